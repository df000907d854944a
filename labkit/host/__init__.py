"""Facts about this host, and the tables and rules that the launcher and the doctor share."""

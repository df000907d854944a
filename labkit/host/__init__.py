"""Facts about this host, and the tables and judgments that the launcher and the doctor share."""

"""Facts about this host, gathered with the standard library alone; nothing here judges them."""

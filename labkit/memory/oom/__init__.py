"""Explains out-of-memory errors: the request, what holds the memory, and what would help."""

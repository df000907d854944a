"""Out-of-memory errors explained: the request, where the memory is, what would help."""

"""Exact peaks, net changes and categories of the memory that a block of code uses."""

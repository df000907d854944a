"""Allocation history: which line allocated what, live memory at the peak, fragmentation."""

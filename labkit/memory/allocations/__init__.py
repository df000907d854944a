"""Allocator history: who allocated what, what was live at the peak, how memory is split up."""

"""Estimates the memory of a step on fake tensors, before it runs."""

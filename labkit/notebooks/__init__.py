"""Runs notebooks headless in fresh kernels, records the results, and makes reports."""

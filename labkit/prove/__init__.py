"""``labkit prove``: whether a device is correct and as fast as it should be, on one page."""

"""The balance: which part of each device's memory is held by whom, now."""

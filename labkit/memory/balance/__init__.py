"""The balance: where every byte of each device's memory is, now."""

"""The balance: what holds each part of a device's memory now."""

"""Checks a host and judges what it finds; an examination changes nothing on the host."""

"""Ports for the servers that tests start."""

from __future__ import annotations

import random

from labkit.host.machine import find_free_port


def choose_port() -> int:
    """A free port of loopback, below those that the kernel gives to any program (from 32768 on).

    A test that closes its listener and takes the port again would lose it to a kernel or client of
    another test. Each call looks from somewhere else on: tests run side by side.
    """
    port = find_free_port("127.0.0.1", random.randrange(20_000, 30_000), 500)
    assert port is not None
    return port

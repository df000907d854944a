"""Which TCP ports of an address are free to listen on."""

from __future__ import annotations

import errno
import socket
from collections.abc import Callable

PortProbe = Callable[[str, int], bool]


def is_port_free(address: str, port: int) -> bool:
    """True where a server could listen on ``address`` and ``port`` now.

    Raises OSError where the address itself is not one of this machine's.
    """
    family = socket.AF_INET6 if ":" in address else socket.AF_INET
    with socket.socket(family, socket.SOCK_STREAM) as listener:
        # As a server does, so that a port just closed does not count as taken.
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            listener.bind((address, port))
            listener.listen(1)
        except OSError as error:
            if error.errno in (errno.EADDRINUSE, errno.EACCES):
                return False
            raise
    return True


def find_free_port(
    address: str, first: int, count: int = 50, is_free: PortProbe = is_port_free
) -> int | None:
    """The first free port from ``first`` on, or None where ``count`` ports are all taken."""
    ports = range(first, min(first + count, 65536))
    return next((port for port in ports if is_free(address, port)), None)

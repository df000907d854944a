"""Asks the server on a port whether it is our JupyterLab, and waits until it is."""

from __future__ import annotations

import time
from collections.abc import Callable
from http.client import HTTPConnection, HTTPException
from typing import Literal

Answer = Literal["healthy", "foreign", "silent"]


def probe_server(port: int, token: str, address: str = "127.0.0.1") -> Answer:
    """Whether our JupyterLab answers there.

    "healthy": it took our token; "foreign": some other server answers; "silent": nothing does.
    """
    connection = HTTPConnection(address, port, timeout=5)
    try:
        connection.request("GET", "/api/status", headers={"Authorization": f"token {token}"})
        status = connection.getresponse().status
    except (OSError, HTTPException):
        return "silent"
    finally:
        connection.close()
    return "healthy" if status == 200 else "foreign"


def reachable_address(bind: str) -> str:
    """The address at which this machine itself reaches a server bound to ``bind``."""
    return {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(bind, bind)  # noqa: S104


def wait_until(
    predicate: Callable[[], bool],
    *,
    timeout_seconds: float,
    interval_seconds: float = 0.1,
    clock: Callable[[], float] = time.monotonic,
    sleep: Callable[[float], None] = time.sleep,
) -> bool:
    """True as soon as ``predicate`` holds, False where it has not within the limit."""
    deadline = clock() + timeout_seconds
    while not predicate():
        if clock() >= deadline:
            return False
        sleep(interval_seconds)
    return True

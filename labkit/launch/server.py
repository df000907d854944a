"""Starts a process that outlives this one, and later tells it from another with its number.

Asks the server on a port whether it is our JupyterLab, and waits until it is.
"""

from __future__ import annotations

import os
import signal
import subprocess
import time
from collections.abc import Callable, Mapping, Sequence
from http.client import HTTPConnection, HTTPException
from pathlib import Path
from typing import Literal

from labkit.launch.state import LabHandle
from labkit.process import run_command

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


STOP_SECONDS = 10.0


def start_in_background(
    command: Sequence[str], environment: Mapping[str, str], log: Path, folder: Path
) -> LabHandle:
    """Starts ``command`` in a session of its own, with its output added to ``log``."""
    with log.open("ab") as output:
        process = subprocess.Popen(
            list(command),
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            env=dict(environment),
            cwd=folder,
            start_new_session=True,
        )
    return LabHandle(process_id=process.pid, process_started=read_start(process.pid))


def read_start(process_id: int) -> str | None:
    """When the process started, as the system counts it; None where it does not run.

    Linux: ticks since boot, field 22 of /proc/PID/stat. Elsewhere: what `ps` says.
    """
    if Path("/proc/self/stat").exists():
        return _read_start_ticks(process_id)
    answer = run_command(["ps", "-o", "lstart=", "-p", str(process_id)], timeout_seconds=5)
    return answer.stdout.strip() or None if answer.ok else None


def _read_start_ticks(process_id: int) -> str | None:
    try:
        text = Path(f"/proc/{process_id}/stat").read_text(encoding="ascii", errors="replace")
    except OSError:
        return None
    # The second field is the program's name in brackets, and may hold anything.
    fields = text.rpartition(")")[2].split()
    is_dead = fields[0] in "ZX"
    return None if is_dead else fields[19]


def is_running(handle: LabHandle) -> bool:
    """True where that very process still runs."""
    if handle.process_id is None or handle.process_started is None:
        return False
    _reap(handle.process_id)
    return read_start(handle.process_id) == handle.process_started


def _reap(process_id: int) -> None:
    """Takes leave of an ended child; one of another process's is not ours to wait for."""
    try:
        os.waitpid(process_id, os.WNOHANG)
    except (ChildProcessError, OSError):
        return


def stop_process(handle: LabHandle, patience_seconds: float = STOP_SECONDS) -> None:
    """Ends the process and its group: politely, then for certain. Gone already is fine."""
    for sign in (signal.SIGTERM, signal.SIGKILL):
        if not is_running(handle) or handle.process_id is None:
            return
        try:
            os.killpg(handle.process_id, sign)
        except (ProcessLookupError, PermissionError):
            return
        wait_until(lambda: not is_running(handle), timeout_seconds=patience_seconds)

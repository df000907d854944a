"""The lab's server: its process and its port.

Starts a background process, finds and stops it later, and verifies that the program on the lab's
port is the lab, by a challenge.
"""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import subprocess
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from http.client import HTTPConnection, HTTPException
from pathlib import Path
from typing import Literal

from labkit.host.proof import ask_for_proof
from labkit.launch.state import LabHandle, open_private
from labkit.process import run_command

Answer = Literal["healthy", "foreign", "silent"]

PROBE_SECONDS = 5.0
STOP_SECONDS = 10.0
LISTENING = "0A"  # the state of a socket, as /proc/net/tcp writes it


def probe_server(
    port: int, token: str, address: str = "127.0.0.1", *, through_engine: bool = False
) -> Answer:
    """Whether the server on ``port`` proves that it has our token; the token is not sent.

    "healthy": it proved it over a direct connection; "foreign": another program answers;
    "silent": no answer in 5 s. ``through_engine`` is for a container's published port, where the
    engine forwards the connection; the caller asks the engine which container has the port.
    """
    connection = HTTPConnection(address, port, timeout=PROBE_SECONDS)
    # The socket's own timeout restarts with each byte: a slow sender would never hit it.
    alarm = threading.Timer(PROBE_SECONDS, _hang_up, [connection])
    alarm.daemon = True
    alarm.start()
    try:
        if not token:
            connection.connect()
            return "foreign"
        proof = ask_for_proof(connection, token)
        if proof is None:
            return "foreign"
        ours = proof.published_port in (None, port) if through_engine else False
        return "healthy" if ours or proof.is_direct(connection) else "foreign"
    except (OSError, HTTPException):
        return "silent"
    except (ValueError, RecursionError):  # malicious or broken JSON
        return "foreign"
    finally:
        alarm.cancel()
        connection.close()


def _hang_up(connection: HTTPConnection) -> None:
    if connection.sock is not None:
        with contextlib.suppress(OSError):
            connection.sock.shutdown(socket.SHUT_RDWR)


def reachable_address(bind: str) -> str:
    """The address for connecting from this machine to a server bound to ``bind``."""
    return {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(bind, bind)  # noqa: S104


def wait_until(
    predicate: Callable[[], bool],
    *,
    timeout_seconds: float,
    interval_seconds: float = 0.1,
    clock: Callable[[], float] = time.monotonic,
    sleep: Callable[[float], None] = time.sleep,
) -> bool:
    """Polls ``predicate``; True once it holds, False if the time limit passes first."""
    deadline = clock() + timeout_seconds
    while not predicate():
        if clock() >= deadline:
            return False
        sleep(interval_seconds)
    return True


def start_in_background(
    command: Sequence[str], environment: Mapping[str, str], log: Path, folder: Path
) -> LabHandle:
    """Starts ``command`` in a new session; its output is appended to ``log``."""
    # O_APPEND: the server truncates its log when it becomes too long.
    with os.fdopen(open_private(log, os.O_APPEND), "ab") as output:
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
    """When the process started, in the system's own format; None if it does not run.

    Linux: ticks since boot, field 22 of /proc/PID/stat. Elsewhere: `ps -o lstart=`.
    """
    if Path("/proc/self/stat").exists():
        fields = _read_stat(process_id)
        return fields[19] if fields and fields[0] not in "ZX" else None
    answer = run_command(["ps", "-o", "lstart=", "-p", str(process_id)], timeout_seconds=5)
    return answer.stdout.strip() or None if answer.ok else None


def _read_stat(process_id: int) -> list[str]:
    """The fields of /proc/PID/stat from the third (the state) on; empty without the file."""
    try:
        text = Path(f"/proc/{process_id}/stat").read_text(encoding="ascii", errors="replace")
    except OSError:
        return []
    # The second field is the program's name in parentheses; it can contain any character.
    return text.rpartition(")")[2].split()


def is_running(handle: LabHandle) -> bool:
    """True if the process of the handle still runs."""
    if handle.process_id is None or handle.process_started is None:
        return False
    _reap(handle.process_id)
    return read_start(handle.process_id) == handle.process_started


def _reap(process_id: int) -> None:
    """Reaps an ended child process; does nothing if the process is not our child."""
    with contextlib.suppress(OSError):
        os.waitpid(process_id, os.WNOHANG)


def is_paused(process_id: int) -> bool:
    """True if the process is stopped (SIGSTOP, Ctrl-Z); False if unknown."""
    return _read_stat(process_id)[:1] == ["T"]


def resume_process(handle: LabHandle) -> None:
    """Continues a stopped process and its group (SIGCONT)."""
    if is_running(handle) and handle.process_id is not None:
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(handle.process_id, signal.SIGCONT)


def stop_process(handle: LabHandle, patience_seconds: float = STOP_SECONDS) -> None:
    """Ends the process and its group: SIGTERM, then SIGKILL. An ended process is not an error."""
    for sign in (signal.SIGTERM, signal.SIGKILL):
        if not is_running(handle) or handle.process_id is None:
            return
        try:
            os.killpg(handle.process_id, sign)
        except (ProcessLookupError, PermissionError):
            return
        wait_until(lambda: not is_running(handle), timeout_seconds=patience_seconds)


def list_ports(process_id: int, proc: Path = Path("/proc")) -> set[int] | None:
    """The TCP ports that the process itself listens on.

    None if the system does not tell: no /proc (macOS), or another user's process.
    """
    try:
        sockets = set(_list_sockets(process_id, proc))
        return {port for port, inode in _read_listeners(proc) if inode in sockets}
    except OSError:
        return None


def _read_listeners(proc: Path) -> Iterator[tuple[int, str]]:
    """Port and inode of each listening TCP socket of this network namespace."""
    for name in ("tcp", "tcp6"):
        path = proc / "net" / name
        if name == "tcp6" and not path.exists():  # a kernel without IPv6
            return
        for line in path.read_text(encoding="ascii").splitlines()[1:]:
            fields = line.split()
            if fields[3] == LISTENING:
                yield int(fields[1].rpartition(":")[2], 16), fields[9]


def _list_sockets(process_id: int, proc: Path) -> Iterator[str]:
    """The inodes of the process's sockets."""
    for descriptor in (proc / str(process_id) / "fd").iterdir():
        with contextlib.suppress(FileNotFoundError):  # closed in the meantime
            target = str(descriptor.readlink())
            if target.startswith("socket:["):
                yield target[len("socket:[") : -1]


def find_server_process(root: Path, python: Path, proc: Path = Path("/proc")) -> int | None:
    """The process id of the checkout's JupyterLab, found without the state file.

    Linux: the process whose environment names the checkout's ``root``. Elsewhere: the process
    `PYTHON -m jupyterlab`, where ``python`` is the checkout's interpreter.
    """
    if not (proc / "self" / "stat").exists():
        listed = run_command(["ps", "-axww", "-o", "pid=,uid=,command="], timeout_seconds=5)
        rows = [line.split(None, 2) for line in listed.stdout.splitlines()]
        wanted = tuple(f"{python}{word} -m jupyterlab" for word in ("", " -P"))
        found = [int(row[0]) for row in rows if len(row) == 3 and _is_server(row[1:], wanted)]
        return found[0] if found else None
    for folder in proc.glob("[0-9]*"):
        with contextlib.suppress(OSError):
            if folder.stat().st_uid != os.geteuid():
                continue
            if b"\0jupyterlab\0" not in (folder / "cmdline").read_bytes():
                continue
            if read_environment(folder).get("LABKIT_HOME") == str(root):
                return int(folder.name)
    return None


def _is_server(row: Sequence[str], wanted: tuple[str, ...]) -> bool:
    return row[0] == str(os.geteuid()) and row[1].startswith(wanted)


def read_environment(folder: Path) -> dict[str, str]:
    """The initial environment variables of the process of a /proc folder. Raises OSError."""
    items = (folder / "environ").read_bytes().decode(errors="replace").split("\0")
    return dict(item.split("=", 1) for item in items if "=" in item)

"""The memory in JupyterLab's status bar: what a kernel answers to the server, and its words.

A kernel listens on a socket beside its connection file and measures only when it is asked, in a
thread of its own: a running cell delays no answer. A message on the kernel's control channel
would do the same, and would make the kernel look idle in every front end while a cell runs.

jupyter-resource-usage shows the memory of the server and its kernels together, in MB, and has no
place for a GPU's memory or an allocator's.
"""

from __future__ import annotations

import asyncio
import atexit
import contextlib
import json
import os
import socket
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

from labkit.jupyter.panel import Panel
from labkit.jupyter.panel_view import PanelView, render_panel
from labkit.memory.balance.model import Balance, Snapshot, ThisProcess, name_device
from labkit.memory.balance.view import list_remarks
from labkit.memory.sample.levels import LevelReader
from labkit.text import format_bytes, plural

# The word that the server sends, and what it gets: the words of the status bar; and with the panel.
STATUS, PANEL = "status", "panel"
ANSWER_SECONDS = 2.0
# A panel that nobody looks at any more is not measured.
UNSEEN_SECONDS = 10.0
# Above this part of a device's memory, the status bar warns.
NEARLY_FULL = 0.9
# The start page names this many GPUs; the panel shows all.
NAMED_GPUS = 4
# sockaddr_un has room for 108 bytes on Linux and 104 on macOS.
LONGEST_ADDRESS = 100


class Usage(NamedTuple):
    """The words of the status bar: ``parts`` in their order, the one in sight to the last first.

    ``details`` has a line for each device. ``nearly_full`` names the device that is, or is "".
    """

    parts: tuple[str, ...]
    details: tuple[str, ...]
    nearly_full: str = ""


def describe_usage(snapshot: Snapshot, *, kernel: bool) -> Usage:
    """The words for a snapshot that a ``kernel`` took of itself, or the server without one.

    The allocator and the device are apart, as are this kernel and others. Of several GPUs it is
    the one where the kernel holds the most, else the fullest.
    """
    gpus = [one for one in snapshot.balances if one.kind != "cpu"]
    machine = next((one for one in snapshot.balances if one.kind == "cpu"), None)
    shown = max(gpus, key=_rank, default=None)
    if shown is not None:
        parts = [*_describe_gpu(shown, len(gpus)), *(_describe_held(shown) if kernel else [])]
    else:
        parts = ["no GPU", *([_describe_machine(machine)] if machine else [])]
        if kernel and machine:
            parts.insert(1, f"kernel {format_bytes(machine.this_process.used_bytes)}")
    full = next((one for one in (shown, machine) if one and _is_nearly_full(one)), None)
    named = "" if full is None else "memory" if full is machine else name_device(full)
    details = [_describe_whole(one, kernel=kernel) for one in snapshot.balances]
    return Usage(tuple(parts), (*details, *snapshot.notes), named)


def describe_device(snapshot: Snapshot) -> str:
    """The devices of this machine and their memory, in one line."""
    gpus = [one for one in snapshot.balances if one.kind != "cpu"]
    machine = next((one for one in snapshot.balances if one.kind == "cpu"), None)
    parts = [f"{one.name or name_device(one)}: {_describe_state(one)}" for one in gpus[:NAMED_GPUS]]
    if len(gpus) > NAMED_GPUS:
        parts.append(f"and {plural(len(gpus) - NAMED_GPUS, 'more GPU')}")
    if not gpus:
        parts.append(f"CPU: {(machine and machine.name) or 'unknown'} (no GPU)")
    if machine is not None:
        parts.append(f"{_describe_machine(machine)} in use")
    return " · ".join(parts)


def _describe_state(balance: Balance) -> str:
    return balance.trouble or f"{_format_share(balance)} in use"


def _rank(balance: Balance) -> tuple[bool, int, int]:
    return balance.is_readable, balance.this_process.known_bytes, balance.used_bytes or 0


def _is_nearly_full(balance: Balance) -> bool:
    if balance.used_bytes is None or not balance.total_bytes:
        return False
    return balance.used_bytes >= NEARLY_FULL * balance.total_bytes


def _describe_gpu(balance: Balance, count: int) -> list[str]:
    """The device's own memory, and what others hold of it."""
    name = name_device(balance) + (f" of {count}" if count > 1 else "")
    if balance.trouble and not balance.is_readable:
        return [f"{name}: {balance.trouble}"]
    return [f"{name} {_format_share(balance)}"]


def _describe_held(balance: Balance) -> list[str]:
    """What the kernel's allocator holds, what the kernel holds in all, and others."""
    mine, others = balance.this_process, balance.other_processes_bytes
    parts = []
    if mine.used_bytes or mine.known_bytes or None not in mine.parts:
        parts.append(f"kernel {format_bytes(mine.known_bytes)}")
    else:
        parts.append("kernel not measured")
    if mine.allocated_bytes is not None and mine.known_bytes:
        allocator = f"tensors {format_bytes(mine.allocated_bytes)}"
        parts.append(f"{allocator}, cached {format_bytes(mine.cached_bytes)}")
    if others is not None:
        parts.append(f"others {format_bytes(others)}")
    return parts


def _describe_machine(balance: Balance) -> str:
    word = "container" if balance.limit_bytes else "machine"
    return f"{word} {_format_share(balance)}"


def _format_share(balance: Balance) -> str:
    """Used and total bytes, with the unit once if it is the same.

    >>> _format_share(Balance("cpu", total_bytes=4 * 2**30, free_bytes=3 * 2**30))
    '1.0 of 4.0 GiB'
    """
    used, total = format_bytes(balance.used_bytes), format_bytes(balance.total_bytes)
    number, _, unit = used.partition(" ")
    return f"{number if unit and total.endswith(f' {unit}') else used} of {total}"


def _describe_whole(balance: Balance, *, kernel: bool) -> str:
    parts = [f"{name_device(balance)} {balance.name or ''}".rstrip(), _format_share(balance)]
    if kernel and balance.kind == "cpu":
        parts.append(f"kernel {format_bytes(balance.this_process.used_bytes)}")
    elif kernel:
        parts += _describe_held(balance)
    return " · ".join([*parts, *list_remarks(balance)])


class Answers:
    """What a process says of its memory when it is asked; it measures nothing in between."""

    def __init__(self, *, kernel: bool, reader: Any = None) -> None:
        self._kernel = kernel
        self._reader = reader or LevelReader(processes=True)
        self._lock = threading.Lock()
        self._feed: PanelFeed | None = None

    def answer(self, word: str) -> dict[str, Any]:
        """The words of the status bar, the line of the start page, and the panel if asked."""
        with self._lock:
            snapshot = self._reader.read()
            if not self._kernel:
                snapshot = leave_out_this_process(snapshot)
            said: dict[str, Any] = {
                **describe_usage(snapshot, kernel=self._kernel)._asdict(),
                "device": describe_device(snapshot),
                "kernel": self._kernel,
            }
            if word == PANEL:
                said["panel"] = self._render(snapshot)
        return said

    def _render(self, snapshot: Snapshot) -> str:
        if not self._kernel:
            return render_still(snapshot)
        if self._feed is None or not self._feed.panel.running:
            self._feed = PanelFeed()
        return self._feed.read() or render_still(snapshot)


def leave_out_this_process(snapshot: Snapshot) -> Snapshot:
    """The snapshot of a server, which holds no tensors: its own memory belongs to the rest."""
    none = ThisProcess(0, 0, 0, 0)
    return snapshot._replace(
        balances=tuple(
            one._replace(
                this_process=none,
                other_processes_bytes=None
                if one.other_processes_bytes is None
                else one.other_processes_bytes + one.this_process.known_bytes,
            )
            for one in snapshot.balances
        )
    )


def render_still(snapshot: Snapshot) -> str:
    """The panel of one snapshot, without traces."""
    view = PanelView("labkit-still", snapshot, {}, (), 0.0, time.time(), 1.0, UNSEEN_SECONDS)
    return render_panel(view)["text/html"]


class PanelFeed:
    """A live panel whose pictures are kept for a reader; it ends when nobody reads any more."""

    def __init__(self, make_panel: Callable[..., Panel] = Panel) -> None:
        self._clock = time.monotonic
        self._read_at = self._clock()
        self._html = ""
        self.panel = make_panel(self._keep, name="labkit-feed", is_cleared=self._is_unseen)
        self.panel.start()

    def read(self) -> str:
        """The panel as HTML, as it was last measured; "" before the first time."""
        self._read_at = self._clock()
        return self._html

    def _keep(self, bundle: dict[str, str], *, update: bool) -> None:
        self._html = bundle["text/html"]

    def _is_unseen(self) -> bool:
        return self._clock() - self._read_at > UNSEEN_SECONDS


@contextlib.contextmanager
def short_address(path: Path) -> Iterator[str]:
    """An address of the socket at ``path`` that fits, however long the path is.

    Raises OSError if there is none.
    """
    if len(os.fsencode(path)) <= LONGEST_ADDRESS or not Path("/proc/self/fd").is_dir():
        yield str(path)
        return
    folder = os.open(path.parent, os.O_RDONLY | os.O_DIRECTORY)
    try:
        yield f"/proc/self/fd/{folder}/{path.name}"
    finally:
        os.close(folder)


class UsageSocket:
    """Answers on a socket of the kernel until the kernel ends."""

    def __init__(self, path: Path, answer: Callable[[str], dict[str, Any]]) -> None:
        self.path = path
        self._answer = answer
        self._process_id = os.getpid()
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        path.unlink(missing_ok=True)  # of an earlier kernel that was killed
        with short_address(path) as address:
            self._socket.bind(address)
        path.chmod(0o600)
        self._socket.listen(4)
        threading.Thread(target=self._serve, name="labkit-usage", daemon=True).start()

    def close(self) -> None:
        """Ends the answers; a forked child leaves its parent's socket alone."""
        if os.getpid() != self._process_id:
            return
        with contextlib.suppress(OSError):
            self._socket.shutdown(socket.SHUT_RDWR)
        self._socket.close()
        self.path.unlink(missing_ok=True)

    def _serve(self) -> None:
        while True:
            try:
                connection, _ = self._socket.accept()
            except OSError:
                return  # closed
            with connection, contextlib.suppress(OSError):
                connection.settimeout(ANSWER_SECONDS)
                word = connection.recv(64).decode(errors="replace").strip()
                connection.sendall(json.dumps(self._answer_safely(word)).encode())

    def _answer_safely(self, word: str) -> dict[str, Any]:
        try:
            return self._answer(word)
        except Exception as error:  # the memory in sight must not end with one failed reading
            return {"trouble": f"{type(error).__name__}: {error}"}


def name_socket(connection_file: Path) -> Path:
    """The socket of the kernel with this connection file."""
    return connection_file.with_suffix(".labkit")


def offer_usage() -> UsageSocket | None:
    """Lets this kernel answer to JupyterLab's status bar.

    None if Jupyter's server did not start it, or the socket cannot be made.
    """
    if "JPY_SESSION_NAME" not in os.environ or "ipykernel" not in sys.modules:
        return None
    if not hasattr(socket, "AF_UNIX"):  # Windows
        return None
    from ipykernel import get_connection_file

    try:
        path = name_socket(Path(get_connection_file()))
        offered = UsageSocket(path, Answers(kernel=True).answer)
    except (OSError, RuntimeError):
        return None  # a file system without sockets; the status bar shows the devices alone
    atexit.register(offered.close)
    return offered


async def ask_kernel(connection_file: Path, word: str) -> dict[str, Any] | None:
    """The kernel's answer; None if it has no labkit or does not answer in time."""

    async def ask() -> bytes:
        with short_address(name_socket(connection_file)) as address:
            reader, writer = await asyncio.open_unix_connection(address)
        try:
            writer.write(word.encode() + b"\n")
            await writer.drain()
            return await reader.read()
        finally:
            writer.close()

    try:
        parts = await asyncio.wait_for(ask(), ANSWER_SECONDS)
        said = json.loads(parts)
    except (OSError, ValueError, asyncio.TimeoutError):
        return None
    return said if isinstance(said, dict) else None

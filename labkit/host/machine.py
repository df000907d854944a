"""This machine and its limits: system and user, memory and cores, folders, free ports.

The limits are those of Linux cgroups, v1 and v2, that a container or a service sets.
"""

from __future__ import annotations

import errno
import os
import platform
import shutil
import socket
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple, TypeVar


@dataclass(frozen=True)
class MachineFacts:
    """The host's system and user; ids are None where the system has none (Windows)."""

    system: str
    architecture: str
    python: tuple[int, int]
    user_id: int | None
    group_id: int | None
    user_name: str | None
    ssh_server: str | None
    ssh_port: int = 22

    @property
    def is_root(self) -> bool:
        """True where the user is root, and the lab must run as another user."""
        return self.user_id == 0


def read_machine(environment: Mapping[str, str] = os.environ) -> MachineFacts:
    """The facts of this process's machine.

    ``ssh_server`` is the address of this host that an SSH session uses (the third field of
    SSH_CONNECTION), or None in a local session.
    """
    connection = environment.get("SSH_CONNECTION", "").split()
    return MachineFacts(
        system=platform.system(),
        architecture=platform.machine(),
        python=(sys.version_info[0], sys.version_info[1]),
        user_id=os.getuid() if hasattr(os, "getuid") else None,
        group_id=os.getgid() if hasattr(os, "getgid") else None,
        user_name=environment.get("USER") or environment.get("LOGNAME"),
        ssh_server=connection[2] if len(connection) == 4 else None,
        ssh_port=int(connection[3]) if len(connection) == 4 else 22,
    )


@dataclass(frozen=True)
class FolderFacts:
    """A folder on disk; its owner and free space are None where it does not exist."""

    path: Path
    exists: bool
    is_folder: bool
    owner_id: int | None
    group_id: int | None
    writable: bool
    free_bytes: int | None


def read_folder(path: Path) -> FolderFacts:
    """The facts of ``path``, or of what it links to."""
    try:
        status = path.stat()
    except OSError:
        return FolderFacts(path, os.path.lexists(path), False, None, None, False, None)
    return FolderFacts(
        path,
        exists=True,
        is_folder=path.is_dir(),
        owner_id=status.st_uid,
        group_id=status.st_gid,
        writable=os.access(path, os.W_OK | os.X_OK),
        free_bytes=shutil.disk_usage(path).free,
    )


PortProbe = Callable[[str, int], bool]


def is_port_free(address: str, port: int) -> bool:
    """True where a server could listen on ``address`` and ``port`` now.

    Raises OSError where the address is not one of this machine's.
    """
    family = socket.AF_INET6 if ":" in address else socket.AF_INET
    with socket.socket(family, socket.SOCK_STREAM) as listener:
        # As a server does: a port that was just closed is free.
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


Number = TypeVar("Number", int, float)

# cgroup v1 writes "no limit" as the largest page-aligned number; nothing real is near it.
NO_LIMIT_BYTES = 2**60


class CgroupLimits(NamedTuple):
    """The tightest limits above this process: cores (can be a fraction), memory in bytes."""

    cores: float | None = None
    memory_bytes: int | None = None


def read_limits(root: Path) -> CgroupLimits:
    """The limits as the cgroup files below ``root`` tell them; None where there is none."""
    return CgroupLimits(
        cores=_find_tightest(_list_folders(root, "cpu"), _read_cores),
        memory_bytes=_find_tightest(_list_folders(root, "memory"), _read_memory),
    )


def read_room(root: Path) -> int | None:
    """Bytes this process can still use under the limits above it; None where there is none."""
    return _find_tightest(_list_folders(root, "memory"), _read_room)


def _list_folders(root: Path, controller: str) -> list[Path]:
    """The folders that can hold a limit for this process, its own first, then those above."""
    top = root / "sys/fs/cgroup"
    mount, inner = top, ""
    for line in (_read_text(root / "proc/self/cgroup") or "").splitlines():
        _, names, path = line.split(":", 2)
        if controller in names.split(","):
            joined = top / names
            mount, inner = (joined if joined.is_dir() else top / controller), path
            break  # where both versions are mounted, v1 holds the controllers it names
        if not names:
            inner = path
    # A path with ".." is outside this container's view: only the mount itself can be read.
    parts = [] if ".." in inner else [part for part in inner.split("/") if part]
    return [mount.joinpath(*parts[:depth]) for depth in range(len(parts), -1, -1)]


def _find_tightest(folders: list[Path], read: Callable[[Path], Number | None]) -> Number | None:
    found = [limit for folder in folders if (limit := read(folder)) is not None]
    return min(found, default=None)


def _read_cores(folder: Path) -> float | None:
    both = _read_text(folder / "cpu.max")
    if both is None:
        quota = _read_text(folder / "cpu.cfs_quota_us")
        period = _read_text(folder / "cpu.cfs_period_us")
        both = f"{quota} {period}"
    words = both.split()
    if len(words) != 2 or not all(word.isdigit() for word in words) or words[1] == "0":
        return None  # "max" in v2, -1 in v1: no quota
    return int(words[0]) / int(words[1])


def _read_memory(folder: Path) -> int | None:
    text = _read_text(folder / "memory.max") or _read_text(folder / "memory.limit_in_bytes") or ""
    limit = int(text) if text.strip().isdigit() else NO_LIMIT_BYTES
    return limit if limit < NO_LIMIT_BYTES else None


def _read_room(folder: Path) -> int | None:
    limit = _read_memory(folder)
    text = _read_text(folder / "memory.current") or _read_text(folder / "memory.usage_in_bytes")
    if limit is None or text is None:
        return None
    stat = dict(
        line.split() for line in (_read_text(folder / "memory.stat") or "").splitlines() if line
    )
    # The kernel gives back the cache of files not used lately before it refuses anyone memory.
    # In v1 the plain figure is the folder's own, and the usage that of all below it.
    idle = stat.get("total_inactive_file") or stat.get("inactive_file") or "0"
    return max(0, limit - int(text) + int(idle))


def _read_text(path: Path) -> str | None:
    try:
        return path.read_text()
    except OSError:
        return None

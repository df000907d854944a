"""Facts about this machine: system, user, folders with their owners, free ports."""

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


@dataclass(frozen=True)
class MachineFacts:
    """The host's system and user; ids are None if the system has none (Windows)."""

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
        """True if the user is root; the lab must then run as another user."""
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
    """A folder on disk; its owner and free space are None if it does not exist."""

    path: Path
    exists: bool
    is_folder: bool
    owner_id: int | None
    group_id: int | None
    writable: bool
    free_bytes: int | None


def read_folder(path: Path) -> FolderFacts:
    """The facts of ``path``, or of its target if it is a link."""
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
    """True if a server can listen on ``address`` and ``port`` now.

    Raises OSError if the address does not belong to this machine.
    """
    family = socket.AF_INET6 if ":" in address else socket.AF_INET
    with socket.socket(family, socket.SOCK_STREAM) as listener:
        # Servers set it too: a port that was just closed counts as free.
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
    """The first free port from ``first`` on, or None if all ``count`` ports are taken."""
    ports = range(first, min(first + count, 65536))
    return next((port for port in ports if is_free(address, port)), None)

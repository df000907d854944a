"""This machine, this user and this Python, as the launcher needs to know them."""

from __future__ import annotations

import os
import platform
import sys
from collections.abc import Mapping
from dataclasses import dataclass


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
        """True where the user may do everything, so the lab must run as somebody else."""
        return self.user_id == 0


def read_machine(environment: Mapping[str, str] = os.environ) -> MachineFacts:
    """The facts of the running process's machine.

    ``ssh_server`` is the address this host was reached at over SSH (the third field of
    SSH_CONNECTION), or None for a local session.
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

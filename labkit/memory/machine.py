"""The machine's memory and a container's share of it, as the kernel counts them now."""

from __future__ import annotations

import re
from pathlib import Path
from typing import NamedTuple

from labkit.devices.cgroup import read_room
from labkit.devices.cpu import detect_cpu, read_linux_cpu


class MachineMemory(NamedTuple):
    """Bytes of the machine and of what may be used here; unknown is None.

    ``total_bytes`` is the container's limit where that is below ``machine_bytes``.
    ``free_bytes`` is what can be had without swapping: the kernel's MemAvailable (not MemFree:
    caches are given back), or what the limit leaves where that is less.
    """

    total_bytes: int | None = None
    free_bytes: int | None = None
    machine_bytes: int | None = None
    limit_bytes: int | None = None
    cpu_name: str | None = None


def read_machine_memory(root: Path = Path("/")) -> MachineMemory:
    """The memory of this machine, from the files below ``root``; all None where there are none."""
    cpu = detect_cpu() if root == Path("/") else read_linux_cpu(root, None)
    available = read_available_bytes(root)
    if cpu.limit_bytes is None:
        return MachineMemory(cpu.total_bytes, available, cpu.total_bytes, None, cpu.name)
    offered = [count for count in (available, read_room(root)) if count is not None]
    free = min(offered, default=None)
    return MachineMemory(cpu.limit_bytes, free, cpu.total_bytes, cpu.limit_bytes, cpu.name)


def read_available_bytes(root: Path) -> int | None:
    """Bytes that can be had without swapping (MemAvailable); None where the kernel does not say."""
    try:
        text = (root / "proc/meminfo").read_text()
    except OSError:
        return None
    found = re.search(r"^MemAvailable:\s*(\d+) kB$", text, re.MULTILINE)
    return int(found[1]) * 1024 if found else None

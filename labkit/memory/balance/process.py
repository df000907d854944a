"""A process's memory as the kernel counts it: resident now, and its highest since a mark.

The mark is the kernel's own and there is one for each process: whoever resets it, resets it for
everyone who reads it.

The machine's memory and a container's share of it, as the kernel counts them now.
"""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import NamedTuple

from labkit.devices.cpu import detect_cpu, read_linux_cpu
from labkit.host.machine import read_room

PROC = Path("/proc")

# proc(5): writing 5 to clear_refs puts the high-water mark of resident memory back to what is
# resident now. It touches nothing else (1 to 4 clear page bits that other tools use).
RESET_HIGH_WATER_MARK = "5"

# The kernel gives the first namespace of process ids this number, on every machine
# (PROC_PID_INIT_INO in include/linux/proc_ns.h); a container's has another.
FIRST_NAMESPACE = 0xEFFFFFFC


def read_resident_bytes(process_id: int | None = None, *, proc: Path = PROC) -> int | None:
    """Bytes of a process (None: this one) that are in physical memory now; None where unknown.

    The figure that ``ps`` calls RSS: shared libraries and shared memory are counted in full.
    """
    try:
        words = (_folder(process_id, proc) / "statm").read_bytes().split()
    except FileNotFoundError:
        # No /proc at all: macOS. A process that has ended is unknown on both ways.
        return None if proc.is_dir() else _ask_ps(process_id)
    except OSError:
        return None
    return int(words[1]) * os.sysconf("SC_PAGE_SIZE") if len(words) > 1 else None


def reset_peak(process_id: int | None = None, *, proc: Path = PROC) -> bool:
    """Puts a process's high-water mark back to what it holds now; False where it cannot."""
    try:
        (_folder(process_id, proc) / "clear_refs").write_text(RESET_HIGH_WATER_MARK)
    except OSError:
        return False
    return True


def read_peak_bytes(process_id: int | None = None, *, proc: Path = PROC) -> int | None:
    """The most bytes a process had in physical memory since its mark was reset (else its start).

    The kernel's own mark (VmHWM), so no spike is missed; None where the system keeps none.
    """
    try:
        status = (_folder(process_id, proc) / "status").read_bytes()
    except OSError:
        return None
    _, found, rest = status.partition(b"\nVmHWM:")
    return int(rest.split(None, 1)[0]) * 1024 if found else None


def sees_host_ids(*, proc: Path = PROC) -> bool:
    """True where process ids here are the host's, as NVML's are; False in a container."""
    try:
        return (proc / "self/ns/pid").stat().st_ino == FIRST_NAMESPACE
    except OSError:
        return False


def has_loaded(library: str, *, proc: Path = PROC) -> bool | None:
    """Whether this process has loaded a library whose path contains the name; None if unknown."""
    try:
        return library.encode() in (proc / "self/maps").read_bytes()
    except OSError:
        return None


def read_command(process_id: int, *, proc: Path = PROC) -> str | None:
    """What a process runs, such as ``python train.py``; None where it has ended or is hidden.

    The program and its script or module, without folders and further arguments: a snapshot gets
    shown and sent around, and those hold names and tokens.
    """
    folder = _folder(process_id, proc)
    try:
        words = (folder / "cmdline").read_bytes().decode(errors="replace").split("\0")
        if not words[0]:  # a kernel's thread
            return _make_printable((folder / "comm").read_text(errors="replace").strip())
    except OSError:
        return None
    program, *rest = words
    said = rest[:2] if rest[:1] == ["-m"] else [word for word in rest[:1] if word[:1] != "-"]
    return _make_printable(" ".join(word.rpartition("/")[2] for word in (program, *said) if word))


def _make_printable(name: str) -> str | None:
    """The name without what would move a terminal's cursor: a process calls itself anything."""
    return "".join(sign if sign.isprintable() else "?" for sign in name) or None


def _folder(process_id: int | None, proc: Path) -> Path:
    return proc / ("self" if process_id is None else str(process_id))


def _ask_ps(process_id: int | None) -> int | None:
    from labkit.process import run_command

    pid = str(process_id or os.getpid())
    answer = run_command(["ps", "-o", "rss=", "-p", pid], timeout_seconds=5)
    text = answer.stdout.strip()
    return int(text) * 1024 if answer.ok and text.isdigit() else None


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

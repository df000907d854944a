"""The limits of Linux cgroups (v1 and v2) on this process: cores and memory.

``labkit devices`` reads them at its start, so this module imports little and uses no dataclass.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple, TypeVar

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

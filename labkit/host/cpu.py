"""The CPU and the machine's memory, and the limits that cgroups (v1 and v2) set on this process.

The facts come from /proc and /sys on Linux (tests replace their root), from sysctl on macOS.
``labkit devices`` and ``labkit memory`` import this module when they start, so it imports little
and uses no dataclass.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple, TypeVar

if TYPE_CHECKING:
    from labkit.process import CommandRunner


Number = TypeVar("Number", int, float)

# cgroup v1 writes "no limit" as the largest page-aligned number; no real limit is near it.
NO_LIMIT_BYTES = 2**60


class CgroupLimits(NamedTuple):
    """The lowest limits of this process's cgroups: cores (can be a fraction), memory in bytes."""

    cores: float | None = None
    memory_bytes: int | None = None


def read_limits(root: Path) -> CgroupLimits:
    """The limits in the cgroup files below ``root``; None if there is none."""
    return CgroupLimits(
        cores=_find_tightest(_list_folders(root, "cpu"), _read_cores),
        memory_bytes=_find_tightest(_list_folders(root, "memory"), _read_memory),
    )


def read_room(root: Path) -> int | None:
    """Bytes that this process can still use under its cgroup limits; None if there is no limit."""
    return _find_tightest(_list_folders(root, "memory"), _read_room)


def _list_folders(root: Path, controller: str) -> list[Path]:
    """The cgroup folders that can limit this process: its own first, then their parents."""
    top = root / "sys/fs/cgroup"
    mount, inner = top, ""
    for line in (_read_text(root / "proc/self/cgroup") or "").splitlines():
        _, names, path = line.split(":", 2)
        if controller in names.split(","):
            joined = top / names
            mount, inner = (joined if joined.is_dir() else top / controller), path
            break  # if both versions are mounted, v1 has the controllers that it names
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
    # The kernel frees the cache of inactive files before an allocation fails. In v1 the entry
    # without "total_" is for this folder only, but the usage includes all folders below it.
    idle = stat.get("total_inactive_file") or stat.get("inactive_file") or "0"
    return max(0, limit - int(text) + int(idle))


# Instruction sets: the kernel's name and the common name, in display order.
X86_EXTENSIONS = {
    "sse4_2": "SSE4.2",
    "avx": "AVX",
    "avx2": "AVX2",
    "avx512f": "AVX512F",
    "avx512_vnni": "AVX512_VNNI",
    "avx512_bf16": "AVX512_BF16",
    "avx512_fp16": "AVX512_FP16",
    "amx_tile": "AMX_TILE",
    "amx_int8": "AMX_INT8",
    "amx_bf16": "AMX_BF16",
}
ARM_EXTENSIONS = {
    "neon": "NEON",
    "asimd": "NEON",
    "asimdhp": "FP16",
    "asimddp": "DOTPROD",
    "bf16": "BF16",
    "i8mm": "I8MM",
    "sve": "SVE",
    "sve2": "SVE2",
    "sme": "SME",
}
# On Arm the kernel reports numbers instead of a name; these are the cores of GPU hosts.
ARM_CORES = {
    ("0x41", "0xd08"): "Arm Cortex-A72",
    ("0x41", "0xd0b"): "Arm Cortex-A76",
    ("0x41", "0xd0c"): "Arm Neoverse N1",
    ("0x41", "0xd40"): "Arm Neoverse V1",
    ("0x41", "0xd42"): "Arm Cortex-A78AE",
    ("0x41", "0xd49"): "Arm Neoverse N2",
    ("0x41", "0xd4f"): "Arm Neoverse V2",
}
SYSCTL_EXTENSIONS = {
    "hw.optional.avx1_0": "AVX",
    "hw.optional.avx2_0": "AVX2",
    "hw.optional.avx512f": "AVX512F",
    "hw.optional.neon": "NEON",
    "hw.optional.arm.FEAT_BF16": "BF16",
    "hw.optional.arm.FEAT_I8MM": "I8MM",
    "hw.optional.arm.FEAT_SME": "SME",
}


class CpuFacts(NamedTuple):
    """The CPU of a machine: cores, memory in bytes, instruction sets; unknown is None.

    ``usable_cores`` respects affinity and the container's quota, and can be a fraction.
    ``limit_bytes`` is the container's memory limit, None if there is none below the total.
    """

    name: str | None = None
    physical_cores: int | None = None
    logical_cores: int | None = None
    usable_cores: float | None = None
    total_bytes: int | None = None
    limit_bytes: int | None = None
    vector_extensions: tuple[str, ...] | None = None


def detect_cpu() -> CpuFacts:
    """The CPU of this machine, and how much of it this process may use."""
    if sys.platform == "darwin":
        from labkit.process import run_command

        return read_macos_cpu(run_command)
    return read_linux_cpu(Path("/"), count_allowed_cores())


def count_allowed_cores() -> int | None:
    """Cores that this process may be scheduled on (``taskset``, cpusets); None if unknown."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count()


def read_linux_cpu(root: Path, allowed_cores: int | None) -> CpuFacts:
    """The CPU, from /proc and /sys below ``root``."""
    cores = _read_cpuinfo(root)
    first = cores[0] if cores else {}
    limits = read_limits(root)
    total_bytes = _read_total_bytes(root)
    capped = limits.memory_bytes is not None and limits.memory_bytes < (total_bytes or 2**60)
    offered = [count for count in (allowed_cores, limits.cores) if count is not None]
    return CpuFacts(
        name=_name_cpu(root, first),
        physical_cores=_count_physical(root, cores),
        logical_cores=len(cores) or None,
        usable_cores=min(offered) if offered else None,
        total_bytes=total_bytes,
        limit_bytes=limits.memory_bytes if capped else None,
        vector_extensions=_list_extensions(first),
    )


def read_macos_cpu(run: CommandRunner) -> CpuFacts:
    """The CPU, from ``sysctl`` on macOS."""
    keys = ("machdep.cpu.brand_string", "hw.physicalcpu", "hw.logicalcpu", "hw.memsize")
    # sysctl prints the names that it knows and fails for others, so the exit code is ignored.
    answer = run(["sysctl", *keys, *SYSCTL_EXTENSIONS], timeout_seconds=5)
    pairs = (line.partition(": ") for line in answer.stdout.splitlines())
    facts = {key: value.strip() for key, colon, value in pairs if colon}
    if not facts:
        return CpuFacts()
    logical = _whole(facts.get("hw.logicalcpu"))
    return CpuFacts(
        name=facts.get("machdep.cpu.brand_string"),
        physical_cores=_whole(facts.get("hw.physicalcpu")),
        logical_cores=logical,
        usable_cores=logical,
        total_bytes=_whole(facts.get("hw.memsize")),
        vector_extensions=tuple(
            name for key, name in SYSCTL_EXTENSIONS.items() if facts.get(key) == "1"
        ),
    )


def _read_cpuinfo(root: Path) -> list[dict[str, str]]:
    """One dictionary for each logical core in /proc/cpuinfo."""
    cores = []
    for block in (_read_text(root / "proc/cpuinfo") or "").split("\n\n"):
        pairs = (line.partition(":") for line in block.splitlines())
        core = {key.strip(): value.strip() for key, colon, value in pairs if colon}
        if "processor" in core:
            cores.append(core)
    return cores


def _name_cpu(root: Path, core: dict[str, str]) -> str | None:
    if core.get("model name"):
        return core["model name"]
    board = (_read_text(root / "proc/device-tree/model") or "").rstrip("\0\n")
    part = (core.get("CPU implementer", ""), core.get("CPU part", ""))
    return ARM_CORES.get(part) or board or None


def _count_physical(root: Path, cores: list[dict[str, str]]) -> int | None:
    places = {
        (core["physical id"], core["core id"])
        for core in cores
        if "core id" in core and "physical id" in core
    }
    if places:
        return len(places)
    # On Arm cpuinfo has no ids: count the groups of hyperthreads that share a core.
    folders = (root / "sys/devices/system/cpu").glob("cpu[0-9]*/topology/thread_siblings_list")
    return len({_read_text(path) or "" for path in folders}) or None


def _list_extensions(core: dict[str, str]) -> tuple[str, ...] | None:
    for field, names in (("flags", X86_EXTENSIONS), ("Features", ARM_EXTENSIONS)):
        if field in core:
            present = set(core[field].split())
            return tuple(dict.fromkeys(name for flag, name in names.items() if flag in present))
    return None


def _read_total_bytes(root: Path) -> int | None:
    for line in (_read_text(root / "proc/meminfo") or "").splitlines():
        if line.startswith("MemTotal:"):
            return int(line.split()[1]) * 1024
    return None


def _whole(text: str | None) -> int | None:
    return int(text) if text and text.isdigit() else None


def _read_text(path: Path) -> str | None:
    """The file's text; None if it cannot be read."""
    try:
        return path.read_text(errors="replace")
    except OSError:
        return None

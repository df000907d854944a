"""The CPU and the machine's memory, and how much of them this process may use.

Linux has the facts in /proc and /sys, below a root that tests replace; macOS in sysctl.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from labkit.host.cgroups import read_limits

if TYPE_CHECKING:
    from labkit.process import CommandRunner


# The kernel's name of an instruction set, and the usual one; in the order they are shown.
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
    # sysctl answers the names that it knows and fails for the rest: its exit code is not used.
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
    for block in _read_text(root / "proc/cpuinfo").split("\n\n"):
        pairs = (line.partition(":") for line in block.splitlines())
        core = {key.strip(): value.strip() for key, colon, value in pairs if colon}
        if "processor" in core:
            cores.append(core)
    return cores


def _name_cpu(root: Path, core: dict[str, str]) -> str | None:
    if core.get("model name"):
        return core["model name"]
    board = _read_text(root / "proc/device-tree/model").rstrip("\0\n")
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
    return len({_read_text(path) for path in folders}) or None


def _list_extensions(core: dict[str, str]) -> tuple[str, ...] | None:
    for field, names in (("flags", X86_EXTENSIONS), ("Features", ARM_EXTENSIONS)):
        if field in core:
            present = set(core[field].split())
            return tuple(dict.fromkeys(name for flag, name in names.items() if flag in present))
    return None


def _read_total_bytes(root: Path) -> int | None:
    for line in _read_text(root / "proc/meminfo").splitlines():
        if line.startswith("MemTotal:"):
            return int(line.split()[1]) * 1024
    return None


def _whole(text: str | None) -> int | None:
    return int(text) if text and text.isdigit() else None


def _read_text(path: Path) -> str:
    try:
        return path.read_text(errors="replace")
    except OSError:
        return ""

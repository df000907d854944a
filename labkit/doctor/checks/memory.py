"""Is there memory for a lab?"""

from __future__ import annotations

import re
from dataclasses import dataclass

from labkit.devices.cgroup import read_limits
from labkit.doctor.check import Check, Finding, ok, unknown, warning
from labkit.doctor.distribution import Distribution
from labkit.doctor.host import Host
from labkit.units import format_bytes

SMALL_BYTES = 2 * 2**30
LOW_BYTES = 2**30


@dataclass(frozen=True)
class MemoryFacts:
    """The machine's memory, what of it is available, and the container's limit, in bytes."""

    total_bytes: int | None = None
    available_bytes: int | None = None
    limit_bytes: int | None = None
    system: str = "Linux"


def probe(host: Host) -> MemoryFacts:
    """/proc/meminfo and the cgroup above this process."""
    text = host.read("proc/meminfo") or ""
    found = re.findall(r"^(MemTotal|MemAvailable):\s+(\d+) kB", text, re.MULTILINE)
    told = {name: int(count) * 1024 for name, count in found}
    limit = read_limits(host.root).memory_bytes if told else None
    return MemoryFacts(told.get("MemTotal"), told.get("MemAvailable"), limit, host.machine.system)


def judge(facts: MemoryFacts, distribution: Distribution) -> Finding:
    """A warning where there is little in all, or little left."""
    if facts.system != "Linux":
        return ok(f"not asked on {facts.system}")
    if facts.total_bytes is None:
        return unknown("/proc/meminfo does not say")
    total = min(facts.total_bytes, facts.limit_bytes or facts.total_bytes)
    if total < SMALL_BYTES:
        limited = total < facts.total_bytes
        return warning(
            f"{format_bytes(total)} of memory{' for this container' if limited else ''}",
            "JupyterLab and torch take about 1 GiB before any work is done",
            "LABKIT_MEMORY=4g make down up" if limited else "free -h   # close what is not needed",
        )
    if facts.available_bytes is not None and facts.available_bytes < LOW_BYTES:
        return warning(
            f"{format_bytes(facts.available_bytes)} of {format_bytes(total)} available",
            "other programs hold the rest",
            "ps -eo pid,rss,comm --sort=-rss | head   # shows which",
        )
    return ok(f"{format_bytes(facts.available_bytes)} of {format_bytes(total)} available")


CHECK = Check("memory", "memory", probe, judge)

"""Is /dev/shm large enough for DataLoader workers?"""

from __future__ import annotations

from dataclasses import dataclass

from labkit.doctor.check import Check, Finding, ok, unknown, warning
from labkit.doctor.distribution import Distribution
from labkit.doctor.host import Host
from labkit.units import format_bytes

ENOUGH_BYTES = 512 * 2**20
PLACE = "dev/shm"


@dataclass(frozen=True)
class SharedMemoryFacts:
    """The size of /dev/shm in bytes; None where there is none to ask."""

    total_bytes: int | None
    in_container: bool = False
    system: str = "Linux"


def probe(host: Host) -> SharedMemoryFacts:
    """The file system's size at /dev/shm."""
    total = host.total_bytes(host.root / PLACE) if host.exists(PLACE) else None
    return SharedMemoryFacts(total, host.in_container, host.machine.system)


def judge(facts: SharedMemoryFacts, distribution: Distribution) -> Finding:
    """A warning below half a GiB: an engine's own default is 64 MiB."""
    if facts.system != "Linux":
        return ok("this system has none, and needs none")
    if facts.total_bytes is None:
        return unknown("shared memory (/dev/shm) cannot be asked")
    size = f"shared memory: {format_bytes(facts.total_bytes)}"
    if facts.total_bytes >= ENOUGH_BYTES:
        return ok(size)
    fix = (
        "LABKIT_SHM_SIZE=2g make down up"
        if facts.in_container
        else ("sudo mount -o remount,size=2G /dev/shm")
    )
    return warning(size, "DataLoader workers die of a Bus error when it is full", fix)


CHECK = Check("shm", "shared memory for worker processes", probe, judge)

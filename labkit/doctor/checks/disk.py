"""Is there room on the disk for images, packages and the workspace?"""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

from labkit.doctor.check import Check, Finding, failed, ok, unknown, warning
from labkit.doctor.distribution import Distribution
from labkit.doctor.host import COMMAND_SECONDS, Host
from labkit.units import format_bytes

FULL_BYTES = 2**30
TIGHT_BYTES = 6 * 2**30  # the CPU image takes 1.6 GB, and its build about as much again twice


@dataclass(frozen=True)
class DiskFacts:
    """Free bytes at each place the lab writes to; None is unknown."""

    places: tuple[tuple[str, int | None], ...]


def probe(host: Host) -> DiskFacts:
    """The workspace's disk, and the engine's own where `docker info` names a folder here."""
    folders = [host.workspace or Path.cwd()]
    info = host.run(["docker", "info", "--format", "{{json .}}"], timeout_seconds=COMMAND_SECONDS)
    named = re.search(r'"DockerRootDir":\s*"(/[^"]+)"', info.stdout)
    if named and host.exists(named.group(1).lstrip("/")):
        folders.append(Path(named.group(1)))
    return DiskFacts(tuple((str(folder), host.free_bytes(folder)) for folder in folders))


def judge(facts: DiskFacts, distribution: Distribution) -> Finding:
    """Judged by the place with the least room."""
    known = [(free, place) for place, free in facts.places if free is not None]
    if not known:
        return unknown("no folder to ask for its room")
    free, place = min(known)
    found = f"{format_bytes(free)} free at {place}"
    if free < FULL_BYTES:
        return failed(found, "the disk is all but full", "df -h && docker system prune")
    if free < TIGHT_BYTES:
        return warning(found, "a build or an update may fill it", "df -h && docker system prune")
    return ok(found)


CHECK = Check("disk", "room on the disk", probe, judge)

"""Are the GPU's device files there, and may this user open them?"""

from __future__ import annotations

import stat
from dataclasses import dataclass

from labkit.doctor.check import Check, Finding, SafeFix, failed, ok
from labkit.doctor.distribution import Distribution
from labkit.doctor.host import Host


@dataclass(frozen=True)
class NodeFacts:
    """The device files found, those that this user may not open, and what could make them."""

    found: tuple[str, ...] = ()
    refused: tuple[str, ...] = ()
    in_wsl: bool = False
    in_container: bool = False
    has_loader: bool = False


def probe(host: Host) -> NodeFacts:
    """/dev/nvidiactl and /dev/nvidia0 and on, by their owner and mode."""
    if host.exists("dev/dxg"):
        return NodeFacts(("dxg",), in_wsl=True)
    nodes = [*host.list("dev", "nvidiactl"), *host.list("dev", "nvidia[0-9]*")]
    refused = [node.name for node in nodes if not _may_open(node.stat(), host)]
    return NodeFacts(
        tuple(node.name for node in nodes),
        tuple(refused),
        in_container=host.in_container,
        has_loader=host.exists("usr/bin/nvidia-modprobe"),
    )


def _may_open(status: object, host: Host) -> bool:
    """Whether the mode lets this host's user read and write; the system would ask it the same."""
    mode = int(getattr(status, "st_mode", 0))
    owner, group = getattr(status, "st_uid", None), getattr(status, "st_gid", None)
    if host.machine.is_root:
        return True
    if owner == host.machine.user_id:
        wanted = stat.S_IRUSR | stat.S_IWUSR
    elif group == host.machine.group_id or group in host.groups:
        wanted = stat.S_IRGRP | stat.S_IWGRP
    else:
        wanted = stat.S_IROTH | stat.S_IWOTH
    return mode & wanted == wanted


def judge(facts: NodeFacts, distribution: Distribution) -> Finding:
    """Fine where nvidiactl and a GPU are there and open to this user."""
    if facts.in_wsl:
        return ok("/dev/dxg is there")
    if "nvidiactl" not in facts.found or len(facts.found) < 2:
        return _judge_missing(facts)
    if facts.refused:
        return failed(
            f"this user may not open {', '.join(f'/dev/{name}' for name in facts.refused)}",
            "their group and mode leave it out",
            "sudo usermod -aG video $USER   # or the group of `ls -l /dev/nvidia*`",
        )
    return ok(f"{', '.join(f'/dev/{name}' for name in facts.found)}, open to this user")


def _judge_missing(facts: NodeFacts) -> Finding:
    found = f"missing: {'/dev/nvidia0' if 'nvidiactl' in facts.found else '/dev/nvidiactl'}"
    if facts.in_container:
        return failed(found, "this container was given part of the GPU's files", "make down up")
    make = SafeFix(("nvidia-modprobe", "-c=0", "-u"), "makes the GPU's device files")
    return failed(
        found,
        "the driver is loaded, but nobody made its device files",
        "sudo nvidia-modprobe -c=0 -u",
        safe=make if facts.has_loader else None,
    )


CHECK = Check("device-nodes", "device files and their permissions", probe, judge, ("driver",))

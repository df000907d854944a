"""Would SELinux keep a container from the GPU?"""

from __future__ import annotations

from dataclasses import dataclass

from labkit.doctor.check import Check, Finding, ok, warning
from labkit.doctor.distribution import Distribution
from labkit.doctor.host import Host


@dataclass(frozen=True)
class SelinuxFacts:
    """Whether SELinux enforces, and whether containers may use devices (None: no such switch)."""

    enforcing: bool = False
    devices_allowed: bool | None = None


def probe(host: Host) -> SelinuxFacts:
    """The switches below /sys/fs/selinux; a boolean reads "now pending"."""
    switch = host.read("sys/fs/selinux/booleans/container_use_devices")
    return SelinuxFacts(
        (host.read("sys/fs/selinux/enforce") or "").strip() == "1",
        switch.split()[:1] == ["1"] if switch else None,
    )


def judge(facts: SelinuxFacts, distribution: Distribution) -> Finding:
    """A warning only where it enforces and the switch for devices is off."""
    if not facts.enforcing:
        return ok("SELinux does not enforce here")
    if facts.devices_allowed is False:
        return warning(
            "SELinux enforces, and containers may not use devices",
            "a container then fails with NVML: Insufficient Permissions",
            "sudo setsebool -P container_use_devices on",
        )
    return ok("SELinux enforces, and lets containers use devices")


CHECK = Check("selinux", "SELinux and the GPU", probe, judge, ("driver", "engine-daemon"))

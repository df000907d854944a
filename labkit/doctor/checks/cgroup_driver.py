"""Which cgroup driver has the engine: can a reload of systemd take the GPU from a container?"""

from __future__ import annotations

from dataclasses import dataclass

from labkit.doctor.check import Check, Finding, ok
from labkit.doctor.checks.cdi import find_specification
from labkit.doctor.checks.engine_client import probe_pair
from labkit.doctor.distribution import Distribution
from labkit.doctor.host import Host


@dataclass(frozen=True)
class DriverFacts:
    """The engine's cgroup driver and version, and whether CDI passes the GPU on; None unknown."""

    engine: str
    driver: str | None = None
    version: str | None = None
    has_specification: bool = False


def probe(host: Host) -> DriverFacts:
    """What `docker info` says of cgroups."""
    said = host.ask_docker()
    return DriverFacts(
        probe_pair(host).chosen.name,
        str(said.get("CgroupDriver") or "") or None,
        str(said.get("CgroupVersion") or "") or None,
        find_specification(host) is not None,
    )


def judge(facts: DriverFacts, distribution: Distribution) -> Finding:
    """Never a fault by itself: most hosts are set so; but it is where a lost GPU comes from."""
    if facts.engine != "docker" or facts.driver is None:
        return ok("no matter for this engine")
    found = f"{facts.driver}, cgroup v{facts.version or '?'}"
    if facts.driver != "systemd" or facts.has_specification:
        return ok(found)
    return ok(
        f"{found}: where a running lab loses its GPU (NVML: Unknown Error) after a daemon-reload, "
        "make down up"
    )


CHECK = Check("cgroup-driver", "the engine's cgroup driver", probe, judge, ("gpu-passing",))

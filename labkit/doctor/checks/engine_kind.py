"""Is the engine one that can reach the GPU at all?"""

from __future__ import annotations

from dataclasses import dataclass

from labkit.doctor.check import Check, Finding, failed, ok
from labkit.doctor.checks.engine_client import probe_pair
from labkit.doctor.checks.toolkit import knows_runtime
from labkit.doctor.distribution import Distribution, Fix
from labkit.doctor.host import Host

LEAVE_SNAP = Fix(
    "sudo snap remove docker   # then install docker anew: docs.docker.com/engine/install",
    debian="sudo snap remove docker && sudo apt-get install docker.io docker-compose",
    ubuntu="sudo snap remove docker && sudo apt-get install docker.io docker-compose-v2",
    fedora="sudo snap remove docker && sudo dnf install moby-engine docker-compose",
)


@dataclass(frozen=True)
class KindFacts:
    """The engine, and what tells where its daemon came from; None is not known."""

    engine: str
    root_folder: str | None = None
    system: str | None = None
    in_wsl: bool = False
    has_runtime: bool = False


def probe(host: Host) -> KindFacts:
    """What `docker info` says of the folder and the system that its daemon lives in."""
    said = host.ask_docker()
    return KindFacts(
        probe_pair(host).chosen.name,
        str(said.get("DockerRootDir") or "") or None,
        str(said.get("OperatingSystem") or "") or None,
        host.in_wsl,
        knows_runtime(host),
    )


def judge(facts: KindFacts, distribution: Distribution) -> Finding:
    """A snap sees little of the host, and Docker Desktop on Linux is a machine without a GPU."""
    if facts.engine != "docker":
        return ok(f"{facts.engine} runs on this very system")
    if (facts.root_folder or "").startswith("/var/snap/"):
        if facts.has_runtime:
            return ok("docker is a snap, with a toolkit of its own")
        return failed(
            "docker is a snap",
            "a snap cannot reach the driver's libraries, so no container gets the GPU",
            LEAVE_SNAP.on(distribution),
        )
    if facts.system == "Docker Desktop" and not facts.in_wsl:
        return failed(
            "docker is Docker Desktop's",
            "its containers run in a virtual machine that has no GPU (context desktop-linux)",
            "docker context use default",
        )
    return ok("docker runs on this very system" if not facts.in_wsl else "docker reaches into WSL2")


CHECK = Check(
    "engine-kind", "an engine that can reach the GPU", probe, judge, ("driver", "engine-daemon")
)

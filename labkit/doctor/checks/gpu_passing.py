"""Is the engine set up to pass the GPU on: by CDI, or by the nvidia runtime?"""

from __future__ import annotations

import re
from dataclasses import dataclass

from labkit.doctor.check import Check, Finding, failed, ok
from labkit.doctor.checks.cdi import find_specification
from labkit.doctor.checks.engine_client import probe_pair
from labkit.doctor.checks.toolkit import knows_runtime
from labkit.doctor.distribution import RESTART_DOCKER, Distribution
from labkit.doctor.host import Host

CDI_BY_DEFAULT = 28  # Docker 25 to 27 have CDI, switched off; older ones have none
ROOTLESS_CONFIGURE = (
    "nvidia-ctk runtime configure --runtime=docker --config=$HOME/.config/docker/daemon.json "
    "&& systemctl --user restart docker"
)
ENABLE_CDI = (
    "sudo nvidia-ctk runtime configure --runtime=docker --cdi.enabled "
    "&& sudo systemctl restart docker"
)


@dataclass(frozen=True)
class PassingFacts:
    """The engine, the nvidia runtime (known, or only written down) and CDI (there, switched on)."""

    engine: str
    has_runtime: bool = False
    has_specification: bool = False
    cdi_off: bool = False
    configured: bool = False
    rootless: bool = False


def probe(host: Host) -> PassingFacts:
    """`docker info`'s runtimes and CDI folders, daemon.json, and the CDI specification."""
    engine = probe_pair(host).chosen
    return PassingFacts(
        engine.name,
        knows_runtime(host),
        find_specification(host) is not None,
        engine.name == "docker" and _is_cdi_off(host),
        "nvidia-container-runtime" in (host.read("etc/docker/daemon.json") or ""),
        bool(engine.rootless),
    )


def _is_cdi_off(host: Host) -> bool:
    """True where the daemon lists no folder of specifications: it then takes no CDI device."""
    said = host.ask_docker()
    if "CDISpecDirs" in said:
        return not said["CDISpecDirs"]
    major = re.match(r"\d+", str(said.get("ServerVersion") or ""))
    return bool(major) and int(major.group()) < CDI_BY_DEFAULT if major else False


def judge(facts: PassingFacts, distribution: Distribution) -> Finding:
    """Podman needs a specification; Docker that, with CDI switched on, or the runtime."""
    if facts.engine != "docker":
        return ok("podman passes the GPU on by CDI")
    by_cdi = facts.has_specification and not facts.cdi_off
    if facts.has_runtime:
        return ok("docker knows the nvidia runtime" + (" and CDI" if by_cdi else ""))
    if by_cdi:
        return ok("docker passes the GPU on by CDI")
    if facts.configured and not facts.rootless:
        return failed(
            "docker's daemon.json names the nvidia runtime, and docker does not know it",
            "it was not restarted since",
            "sudo systemctl restart docker",
        )
    if facts.has_specification and not facts.rootless:
        return failed(
            "docker's CDI is switched off, and it has no nvidia runtime",
            f"before version {CDI_BY_DEFAULT} docker uses CDI only where it is told to",
            ENABLE_CDI,
        )
    return failed(
        "docker has neither the nvidia runtime nor a CDI specification",
        "the toolkit is installed, but docker was not told of it, or not restarted since",
        ROOTLESS_CONFIGURE if facts.rootless else RESTART_DOCKER,
    )


CHECK = Check("gpu-passing", "CDI or the nvidia runtime", probe, judge, ("cdi",))

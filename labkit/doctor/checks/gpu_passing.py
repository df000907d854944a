"""Is the engine set up to pass the GPU on: by CDI, or by the nvidia runtime?"""

from __future__ import annotations

import re
from dataclasses import dataclass

from labkit.doctor.check import Check, Finding, failed, ok, warning
from labkit.doctor.checks.driver import read_module_version
from labkit.doctor.checks.engine_client import probe_pair
from labkit.doctor.checks.toolkit import knows_runtime
from labkit.doctor.distribution import MAKE_CDI_SPEC, RESTART_DOCKER, Distribution
from labkit.doctor.host import Host


@dataclass(frozen=True)
class PassingFacts:
    """The engine, whether it knows the nvidia runtime, and the CDI specification that is there."""

    engine: str
    has_runtime: bool = False
    spec: str | None = None
    spec_driver: str | None = None
    driver: str | None = None


def probe(host: Host) -> PassingFacts:
    """The CDI specifications in /etc/cdi and /var/run/cdi, and `docker info`'s runtimes."""
    spec, text = find_spec(host)
    names_driver = re.search(r"\.so\.(\d{3}\.\d+(?:\.\d+)?)\b", text)
    return PassingFacts(
        probe_pair(host).chosen.name,
        knows_runtime(host),
        spec,
        names_driver.group(1) if names_driver else None,
        read_module_version(host),
    )


def find_spec(host: Host) -> tuple[str | None, str]:
    """The first specification of nvidia.com/gpu with its text, or (None, "")."""
    for folder in ("etc/cdi", "var/run/cdi", "run/cdi"):
        for path in host.list(folder, "*"):
            text = host.read(f"{folder}/{path.name}") or ""
            if path.suffix in (".yaml", ".yml", ".json") and "nvidia.com/gpu" in text:
                return f"/{folder}/{path.name}", text
    return None, ""


def judge(facts: PassingFacts, distribution: Distribution) -> Finding:
    """Podman needs a specification; Docker that or the runtime; neither may be of an old driver."""
    outdated = facts.spec_driver and facts.driver and facts.spec_driver != facts.driver
    if facts.spec and outdated and not (facts.engine == "docker" and facts.has_runtime):
        return failed(
            f"{facts.spec} is for driver {facts.spec_driver}, and {facts.driver} is loaded",
            "the driver was updated after the specification was made",
            MAKE_CDI_SPEC,
        )
    if facts.engine == "docker" and facts.has_runtime:
        if outdated:
            return warning(
                f"the nvidia runtime works; {facts.spec} is for driver {facts.spec_driver}",
                f"driver {facts.driver} came after the specification was made",
                MAKE_CDI_SPEC,
            )
        return ok("docker knows the nvidia runtime" + (" and CDI" if facts.spec else ""))
    if facts.spec:
        return ok(f"CDI: {facts.spec}")
    if facts.engine == "docker":
        return failed(
            "docker has neither the nvidia runtime nor a CDI specification",
            "the toolkit is installed, but docker was not told of it, or not restarted since",
            RESTART_DOCKER,
        )
    return failed(
        "no CDI specification for the GPU", "podman passes GPUs by CDI alone", MAKE_CDI_SPEC
    )


CHECK = Check("gpu-passing", "CDI or the nvidia runtime", probe, judge, ("toolkit",))

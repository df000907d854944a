"""Does the toolkit's no-cgroups setting fit the engine?"""

from __future__ import annotations

import re
from dataclasses import dataclass

from labkit.doctor.check import Check, Finding, failed, ok, warning
from labkit.doctor.checks.cdi import find_specification
from labkit.doctor.checks.engine_client import probe_pair
from labkit.doctor.distribution import Distribution
from labkit.doctor.host import Host

SET = "sudo nvidia-ctk config --in-place --set nvidia-container-cli.no-cgroups={}"


@dataclass(frozen=True)
class CgroupFacts:
    """The setting, and the kind of engine; None is not known."""

    engine: str
    rootless: bool | None = None
    no_cgroups: bool = False
    has_spec: bool = False


def probe(host: Host) -> CgroupFacts:
    """no-cgroups in the toolkit's config.toml, which is commented out where it is off."""
    text = host.read("etc/nvidia-container-runtime/config.toml") or ""
    engine = probe_pair(host).chosen
    setting = re.search(r"^\s*no-cgroups\s*=\s*(true|false)", text, re.MULTILINE)
    on = bool(setting and setting.group(1) == "true")
    return CgroupFacts(engine.name, engine.rootless, on, find_specification(host) is not None)


def judge(facts: CgroupFacts, distribution: Distribution) -> Finding:
    """On for rootless Docker, off for Docker as root; Podman's CDI does not read it."""
    if facts.engine != "docker" or facts.rootless is None:
        return ok("no matter for this engine")
    if facts.rootless and not facts.no_cgroups and not facts.has_spec:
        return warning(
            "rootless docker, and no-cgroups is off",
            "the toolkit then tries to write device rules, which a rootless engine may not",
            f"{SET.format('true')} && systemctl --user restart docker",
        )
    if not facts.rootless and facts.no_cgroups:
        return failed(
            "docker runs as root, and no-cgroups is on",
            "containers then get the GPU's files without the right to use them (NVML: Unknown "
            "Error)",
            f"{SET.format('false')} && sudo systemctl restart docker",
        )
    if facts.rootless and not facts.no_cgroups:
        return ok("no-cgroups is off, and CDI does without it")
    return ok(f"no-cgroups is {'on' if facts.no_cgroups else 'off'}, as this engine needs it")


CHECK = Check("cgroups", "the toolkit's cgroup setting", probe, judge, ("toolkit",))

"""Is Compose 2 there?"""

from __future__ import annotations

from labkit.doctor.check import Check, Finding, failed, ok
from labkit.doctor.checks.engine_client import EnginePair, probe_pair
from labkit.doctor.distribution import INSTALL_COMPOSE, Distribution, packages

INSTALL_PODMAN_COMPOSE = packages(
    debian="podman-compose",
    fedora="podman-compose",
    suse="podman-compose",
    arch="podman-compose",
    anywhere="install podman-compose by your distribution's package",
)


def judge(facts: EnginePair, distribution: Distribution) -> Finding:
    """Compose of any age for Podman, 2 or newer for Docker."""
    engine = facts.chosen
    install = INSTALL_PODMAN_COMPOSE if engine.name == "podman" else INSTALL_COMPOSE
    if engine.compose_version is None:
        return failed(
            f"{engine.name} has no Compose ({engine.compose_problem})",
            "its Compose plugin is not installed",
            install.on(distribution),
        )
    if engine.name == "docker" and (engine.compose_major or 2) < 2:
        return failed(
            f"Compose {engine.compose_version}",
            "too old: the lab's file needs Compose 2",
            install.on(distribution),
        )
    return ok(f"Compose {engine.compose_version}")


CHECK = Check("compose", "Compose 2", probe_pair, judge, ("engine-daemon",))

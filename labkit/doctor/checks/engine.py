"""Is Compose 2 there?

Is a container engine's command here?

Does the engine's daemon answer, and is it on this machine?

May this user talk to the engine's daemon?
"""

from __future__ import annotations

from dataclasses import dataclass

from labkit.doctor.check import Check, Finding, failed, ok, unknown, warning
from labkit.doctor.host import Host
from labkit.host.distribution import Distribution
from labkit.host.engine import EngineFacts
from labkit.host.packages import INSTALL_COMPOSE, INSTALL_PODMAN_COMPOSE, START_DOCKER


@dataclass(frozen=True)
class EnginePair:
    """Docker's and Podman's facts."""

    docker: EngineFacts
    podman: EngineFacts
    in_container: bool = False
    system: str = "Linux"

    @property
    def chosen(self) -> EngineFacts:
        """The engine that answers, Docker first; else the one whose command is here."""
        engines = (self.docker, self.podman)
        answering = [engine for engine in engines if engine.server_version]
        return next(iter(answering or [each for each in engines if each.client_found]), self.docker)


def probe_pair(host: Host) -> EnginePair:
    """Both engines as their own commands describe them; every engine check shares the answers."""
    docker, podman = host.probe_engines()
    return EnginePair(docker, podman, host.in_container, host.machine.system)


def judge_engine_client(facts: EnginePair, distribution: Distribution) -> Finding:
    """Fine with an engine, and without one too: the lab then runs from a .venv."""
    names = [each.name for each in (facts.docker, facts.podman) if each.client_found]
    if facts.in_container and not names:
        return ok("inside a container: its engine is outside", moot="this is inside a container")
    if not names:
        return ok(
            "no docker or podman command; the lab runs from a .venv", moot="no container engine"
        )
    return ok(f"{' and '.join(names)} {'are' if len(names) > 1 else 'is'} installed")


ENGINE_CLIENT_CHECK = Check(
    "engine-client", "a container engine's command", probe_pair, judge_engine_client
)


def judge_engine_daemon(facts: EnginePair, distribution: Distribution) -> Finding:
    """Fine where a daemon of this machine answers."""
    engine = facts.chosen
    if engine.server_version is None:
        return _judge_silent(facts, distribution)
    if engine.remote:
        return failed(
            f"{engine.name} talks to another machine ({engine.endpoint})",
            "that engine cannot see this machine's work/ or its GPU",
            "unset DOCKER_HOST DOCKER_CONTEXT; docker context use default",
        )
    kind = "rootless " if engine.rootless else ""
    docker_says = facts.docker.problem or ""
    if engine.name == "podman" and facts.docker.client_found and "Podman's" not in docker_says:
        return warning(
            f"docker does not answer ({docker_says}); podman {engine.server_version} does",
            "the lab runs in podman, although docker is installed",
            START_DOCKER.on(distribution),
        )
    return ok(f"{kind}{engine.name} {engine.server_version} answers")


def _judge_silent(facts: EnginePair, distribution: Distribution) -> Finding:
    engine = facts.chosen
    if "did not answer" in (engine.problem or ""):
        return unknown(str(engine.problem), "sudo systemctl restart docker   # where it hangs")
    if engine.name == "podman":
        return failed(
            f"podman does not work ({engine.problem})",
            "its storage or its runtime is not set up",
            "podman info   # shows what is wrong with it",
        )
    start = "open -a Docker" if facts.system == "Darwin" else START_DOCKER.on(distribution)
    return failed(f"docker's daemon does not answer ({engine.problem})", "it does not run", start)


ENGINE_DAEMON_CHECK = Check(
    "engine-daemon",
    "the engine's daemon answers",
    probe_pair,
    judge_engine_daemon,
    ("engine-permission",),
)


def judge_engine_permission(facts: EnginePair, distribution: Distribution) -> Finding:
    """Refused is a failure only where no other engine answers."""
    engine = facts.chosen
    if "permission denied" in (engine.problem or "").lower():
        return failed(
            f"{engine.name}'s socket refuses this user",
            "this user is not in the docker group, or not since the last login",
            "sudo usermod -aG docker $USER   # then log out and in again",
        )
    return ok(f"{engine.name} has not refused this user")


ENGINE_PERMISSION_CHECK = Check(
    "engine-permission",
    "this user at the engine's socket",
    probe_pair,
    judge_engine_permission,
    ("engine-client",),
)


def judge_compose(facts: EnginePair, distribution: Distribution) -> Finding:
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


COMPOSE_CHECK = Check("compose", "Compose 2", probe_pair, judge_compose, ("engine-daemon",))

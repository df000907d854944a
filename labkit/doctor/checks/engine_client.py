"""Is a container engine's command here?"""

from __future__ import annotations

from dataclasses import dataclass

from labkit.doctor.check import Check, Finding, ok
from labkit.doctor.distribution import Distribution
from labkit.doctor.host import Host
from labkit.host.engine import EngineFacts


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


def judge(facts: EnginePair, distribution: Distribution) -> Finding:
    """Fine with an engine, and without one too: the lab then runs from a .venv."""
    names = [each.name for each in (facts.docker, facts.podman) if each.client_found]
    if facts.in_container and not names:
        return ok("inside a container: its engine is outside", moot="this is inside a container")
    if not names:
        return ok(
            "no docker or podman command; the lab runs from a .venv", moot="no container engine"
        )
    return ok(f"{' and '.join(names)} {'are' if len(names) > 1 else 'is'} installed")


CHECK = Check("engine-client", "a container engine's command", probe_pair, judge)

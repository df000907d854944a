"""The launcher's choices of engine and user, pure functions of probed facts that also say why."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Generic, TypeVar

from labkit.errors import EngineError, UsageError
from labkit.host.distribution import UNKNOWN, Distribution
from labkit.host.engine import EngineFacts, find_engine_obstacle
from labkit.host.machine import FolderFacts, MachineFacts
from labkit.text import near_match

RUNTIMES = ("docker", "podman", "local")
# Who a lab runs as where the host's user is root: the first ordinary user of most systems.
UNPRIVILEGED_ID = 1000

# Nearer to "cpu" by its letters.
MEANT = {"gpu": "cuda"}

T = TypeVar("T")


@dataclass(frozen=True)
class Choice(Generic[T]):
    """What was taken, why, and what the user should know all the same.

    ``fix`` is the line to type then, ``otherwise`` one for who cannot type that.
    """

    value: T
    reason: str
    warning: str | None = None
    fix: str | None = None
    otherwise: str | None = None


@dataclass(frozen=True)
class Identity:
    """Who the container runs as; ``keep_id`` asks rootless Podman to map the user to itself."""

    user_id: int
    group_id: int
    keep_id: bool = False
    owns_workspace: bool = True

    @property
    def is_root(self) -> bool:
        """True only in a rootless engine, where the container's root is the host's user."""
        return self.user_id == 0


def check_name(kind: str, asked: str, known: tuple[str, ...], variable: str = "") -> None:
    """Raises UsageError, with the near match, unless ``asked`` is "auto" or a known name.

    ``variable`` is what make calls it, where that is another name than ``kind``.
    """
    if asked in known or asked == "auto":
        return
    near = MEANT.get(asked.lower()) or near_match(asked.lower(), known)
    raise UsageError(
        f"unknown {kind} {asked!r}",
        cause=f"{kind} is one of: auto, {', '.join(known)}",
        fix=f"make up {variable or kind.upper()}={near or 'auto'}",
    )


def choose_runtime(
    asked: str,
    docker: EngineFacts,
    podman: EngineFacts,
    distribution: Distribution = UNKNOWN,
    system: str = "Linux",
) -> Choice[str]:
    """docker, podman or local: the one that was asked for, else the first that can run the lab.

    Raises EngineError where what was asked for by name cannot run it.
    """
    check_name("runtime", asked, RUNTIMES)
    if asked == "local":
        return Choice("local", "asked for by name")
    engines = {"docker": docker, "podman": podman}
    if asked in engines:
        obstacle = find_engine_obstacle(engines[asked], distribution, system)
        if obstacle:
            cause = f"{obstacle.what}: {obstacle.cause}"
            raise EngineError(f"RUNTIME={asked} cannot run the lab", cause=cause, fix=obstacle.fix)
        return Choice(asked, f"asked for by name; {_describe_engine(engines[asked])}")
    obstacles = []
    for engine in (docker, podman):
        obstacle = find_engine_obstacle(engine, distribution, system)
        if obstacle is None:
            return Choice(engine.name, _describe_engine(engine))
        if engine.client_found:
            obstacles.append(obstacle)
    if not obstacles:
        return Choice("local", "no docker or podman command here")
    return Choice(
        "local",
        "; ".join(obstacle.what for obstacle in obstacles),
        warning="to use the engine instead: "
        + "; or ".join(obstacle.fix for obstacle in obstacles),
    )


def _describe_engine(engine: EngineFacts) -> str:
    return (
        f"{engine.name.capitalize()} {engine.server_version} answers, "
        f"with Compose {engine.compose_version}"
    )


def choose_identity(
    machine: MachineFacts, workspace: FolderFacts, engine: EngineFacts, checkout: FolderFacts
) -> Choice[Identity]:
    """Who the container's process is, so that the host's user owns what it writes."""
    user, group = machine.user_id, machine.group_id
    if user is None or group is None:
        return Choice(Identity(UNPRIVILEGED_ID, UNPRIVILEGED_ID), "the host has no user ids")
    if engine.rootless and engine.name == "docker":
        return Choice(Identity(0, 0), "rootless Docker: the container's root is you")
    if user != 0:
        keep = engine.name == "podman" and bool(engine.rootless)
        return Choice(Identity(user, group, keep_id=keep), "your own user and group")
    if workspace.owner_id:
        owner_group = workspace.group_id or UNPRIVILEGED_ID
        return Choice(Identity(workspace.owner_id, owner_group), "the workspace's owner, not root")
    if checkout.owner_id:  # `sudo make up`: not whoever has uid 1000 on this machine
        owner_group = checkout.group_id or UNPRIVILEGED_ID
        return Choice(
            Identity(checkout.owner_id, owner_group, owns_workspace=False),
            "you are root, so the checkout's owner, who is given the workspace",
        )
    return Choice(
        Identity(UNPRIVILEGED_ID, UNPRIVILEGED_ID, owns_workspace=False),
        "you are root, so an unprivileged user, who is given the workspace",
    )

"""The launcher's choices of engine and user, pure functions of probed facts that also say why."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Generic, TypeVar

from labkit.errors import EngineError, UsageError
from labkit.host.engine import EngineFacts
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
class EngineObstacle:
    """Why an engine cannot run the lab, and the line that would change that."""

    why: str
    fix: str


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


def find_obstacle(engine: EngineFacts, system: str = "Linux") -> EngineObstacle | None:
    """What keeps the engine from running the lab, or None where nothing does."""
    name = engine.name
    if not engine.client_found:
        return EngineObstacle(f"no {name} command here", _install_hint(name))
    if engine.server_version is None:
        return _find_daemon_obstacle(engine, system)
    if engine.remote:
        return EngineObstacle(
            f"{name} talks to another machine ({engine.endpoint}), which cannot see work/",
            f"unset DOCKER_HOST DOCKER_CONTEXT; {name} context use default",
        )
    if engine.compose_version is None:
        why = f"{name} {engine.server_version} has no Compose ({engine.compose_problem})"
        return EngineObstacle(why, _compose_hint(name))
    if engine.compose_major is not None and engine.compose_major < 2 and name == "docker":
        return EngineObstacle(
            f"Compose {engine.compose_version} is too old: the lab needs Compose 2",
            _compose_hint(name),
        )
    return None


def _find_daemon_obstacle(engine: EngineFacts, system: str) -> EngineObstacle:
    """Why a client that is there gets no answer: refused, or nobody at home."""
    if "permission denied" in (engine.problem or "").lower():
        return EngineObstacle(
            f"{engine.name}'s socket refuses this user ({engine.problem})",
            "sudo usermod -aG docker $USER   # then log out and in again",
        )
    if "Podman's" in (engine.problem or ""):
        return EngineObstacle(str(engine.problem), "make up RUNTIME=podman")
    start = "open -a Docker" if system == "Darwin" else "sudo systemctl start docker"
    return EngineObstacle(
        f"{engine.name} is installed but its daemon does not answer ({engine.problem})",
        start if engine.name == "docker" else "podman info   # shows what is wrong with it",
    )


def _install_hint(name: str) -> str:
    pages = {
        "docker": "https://docs.docker.com/engine/install/",
        "podman": "https://podman.io/docs/installation",
    }
    return f"install it ({pages[name]}), or: make up RUNTIME=local"


def _compose_hint(name: str) -> str:
    if name == "podman":
        return "sudo apt-get install podman-compose   # or your distribution's package of it"
    return "sudo apt-get install docker-compose-plugin   # docs.docker.com/compose/install"


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
    asked: str, docker: EngineFacts, podman: EngineFacts, system: str = "Linux"
) -> Choice[str]:
    """docker, podman or local: the one that was asked for, else the first that can run the lab.

    Raises EngineError where what was asked for by name cannot run it.
    """
    check_name("runtime", asked, RUNTIMES)
    if asked == "local":
        return Choice("local", "asked for by name")
    engines = {"docker": docker, "podman": podman}
    if asked in engines:
        obstacle = find_obstacle(engines[asked], system)
        if obstacle:
            raise EngineError(
                f"RUNTIME={asked} cannot run the lab", cause=obstacle.why, fix=obstacle.fix
            )
        return Choice(asked, f"asked for by name; {_describe_engine(engines[asked])}")
    return _choose_any_runtime(docker, podman, system)


def _choose_any_runtime(docker: EngineFacts, podman: EngineFacts, system: str) -> Choice[str]:
    obstacles = {}
    for engine in (docker, podman):
        obstacle = find_obstacle(engine, system)
        if obstacle is None:
            return Choice(engine.name, _describe_engine(engine))
        if engine.client_found:
            obstacles[engine.name] = obstacle
    if not obstacles:
        return Choice("local", "no docker or podman command here")
    return Choice(
        "local",
        "; ".join(obstacle.why for obstacle in obstacles.values()),
        warning="to use the engine instead: "
        + "; or ".join(obstacle.fix for obstacle in obstacles.values()),
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

"""Facts about Docker and Podman, and the obstacles that prevent an engine from running the lab."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, Literal

from labkit.host.distribution import UNKNOWN, Distribution
from labkit.host.packages import INSTALL_COMPOSE, INSTALL_PODMAN_COMPOSE, START_DOCKER
from labkit.process import CommandRunner
from labkit.text import escape_controls, first_line

PROBE_SECONDS = 10.0
SNAP_FOLDER = "/var/snap/"
DESKTOP = "Docker Desktop"
LEAVE_DESKTOP = "docker context use default"
INSTALL_PAGES = {
    "docker": "https://docs.docker.com/engine/install/",
    "podman": "https://podman.io/docs/installation",
}


@dataclass(frozen=True)
class EngineFacts:
    """Facts of one container engine, from its own commands; None means unknown.

    ``problem`` quotes why its daemon does not answer, ``compose_problem`` why its Compose does not.
    ``chosen_by`` is the variable that names another daemon, such as "DOCKER_HOST=tcp://gpu:2375".
    ``from_snap`` is True for a snap, which sees little of the host; ``is_desktop`` for Docker
    Desktop, which runs its containers in a virtual machine.
    """

    name: str
    client_found: bool
    server_version: str | None = None
    endpoint: str | None = None
    rootless: bool | None = None
    problem: str | None = None
    compose_version: str | None = None
    compose_problem: str | None = None
    chosen_by: str | None = None
    from_snap: bool = False
    is_desktop: bool = False

    @property
    def compose_major(self) -> int | None:
        """Compose's major version, or None if Compose did not answer."""
        found = re.match(r"v?(\d+)\.", self.compose_version or "")
        return int(found.group(1)) if found else None

    @property
    def remote(self) -> bool:
        """True if the daemon is on another machine, which cannot access this machine's folders."""
        return bool(self.endpoint) and not str(self.endpoint).startswith(("unix:", "npipe:", "/"))

    def read_end(self) -> str:
        """The address that the client uses, from its variable or its context; "" if unknown."""
        value = (self.chosen_by or "").partition("=")[2]
        return value if "://" in value else self.endpoint or ""


# The variables by which a client talks to another daemon; the first one that is set counts.
CHOICES = {"docker": ("DOCKER_HOST", "DOCKER_CONTEXT"), "podman": ("CONTAINER_HOST",)}


def probe_engine(
    name: str, run: CommandRunner, environment: Mapping[str, str] = os.environ
) -> EngineFacts:
    """The facts of ``docker`` or ``podman``, from its client and the variables that steer it."""
    facts = (probe_docker if name == "docker" else probe_podman)(run)
    chosen = next((each for each in CHOICES[name] if environment.get(each)), None)
    if chosen is None:
        return facts
    return replace(facts, chosen_by=f"{chosen}={escape_controls(environment[chosen])}")


def probe_docker(run: CommandRunner) -> EngineFacts:
    """Docker's facts: `docker info` for the daemon, `docker compose version` for Compose."""
    info = run(["docker", "info", "--format", "{{json .}}"], timeout_seconds=PROBE_SECONDS)
    if info.missing:
        return EngineFacts("docker", client_found=False)
    said = parse_object(info.stdout)
    version, compose_problem = _probe_compose("docker", run)
    errors = _as_list(said.get("ServerErrors"))
    if "host" in said:
        errors = ["this docker command is Podman's"]
    server = str(said.get("ServerVersion") or "") or None
    return EngineFacts(
        "docker",
        client_found=True,
        server_version=server,
        endpoint=_read_docker_endpoint(run),
        rootless=_is_rootless(said) if server else None,
        problem=None if server else _quote(str(errors[0]) if errors else info.message),
        compose_version=version,
        compose_problem=compose_problem,
        from_snap=str(said.get("DockerRootDir")).startswith(SNAP_FOLDER),
        is_desktop=said.get("OperatingSystem") == DESKTOP,
    )


def probe_podman(run: CommandRunner) -> EngineFacts:
    """Podman's facts: `podman info`, and the Compose provider that `podman compose` finds."""
    info = run(["podman", "info", "--format", "json"], timeout_seconds=PROBE_SECONDS)
    if info.missing:
        return EngineFacts("podman", client_found=False)
    said = parse_object(info.stdout)
    host = _as_object(said.get("host"))
    version, compose_problem = _probe_compose("podman", run)
    server = _as_object(said.get("version")).get("Version")
    return EngineFacts(
        "podman",
        client_found=True,
        server_version=server,
        rootless=_as_object(host.get("security")).get("rootless"),
        problem=None if server else _quote(info.message),
        compose_version=version,
        compose_problem=compose_problem,
    )


def _probe_compose(client: str, run: CommandRunner) -> tuple[str | None, str | None]:
    """Compose's version and None, or None and the reason why Compose is missing."""
    answer = run([client, "compose", "version", "--short"], timeout_seconds=PROBE_SECONDS)
    version = re.search(r"v?\d+\.\d+\S*", answer.stdout) if answer.ok else None
    if version:
        return version.group(0).lstrip("v"), None
    # The first line is the reason; the client's help follows it.
    return None, _quote(answer.stderr or answer.message)


def _quote(text: str) -> str:
    """The first line of a program's output, safe for a terminal."""
    return escape_controls(first_line(text))


def _is_rootless(said: dict[str, Any]) -> bool:
    return any("rootless" in str(option) for option in _as_list(said.get("SecurityOptions")))


def _read_docker_endpoint(run: CommandRunner) -> str | None:
    """The address that the docker client uses: from the context or from DOCKER_HOST."""
    answer = run(
        ["docker", "context", "inspect", "--format", "{{.Endpoints.docker.Host}}"],
        timeout_seconds=PROBE_SECONDS,
    )
    return first_line(answer.stdout) or None if answer.ok else None


def parse_object(text: str) -> dict[str, Any]:
    """The JSON object in a program's output; empty if it is anything else."""
    try:
        return _as_object(json.loads(text))
    except (ValueError, RecursionError):  # RecursionError: thousands of brackets
        return {}


def _as_object(value: Any) -> dict[str, Any]:
    return value if isinstance(value, dict) else {}


def _as_list(value: Any) -> list[Any]:
    return value if isinstance(value, list) else []


@dataclass(frozen=True)
class EngineObstacle:
    """What prevents an engine from running the lab, its likely cause, and the command to fix it.

    ``kind`` says which step fails: "client" (no command), "shim" (Podman's `docker` command),
    "permission" (the socket refuses this user), "timeout" (the daemon hangs), "daemon" (it does
    not answer), "remote" (it is on another machine), "compose" (none, or too old).
    """

    kind: Literal["client", "shim", "permission", "timeout", "daemon", "remote", "compose"]
    what: str
    cause: str
    fix: str

    @property
    def reason(self) -> str:
        """The obstacle and its cause, as one phrase."""
        return f"{self.what}: {self.cause}"


def find_engine_obstacle(
    engine: EngineFacts, distribution: Distribution = UNKNOWN, system: str = "Linux"
) -> EngineObstacle | None:
    """The first obstacle that prevents the engine from running the lab, or None.

    ``system`` is ``platform.system()``: macOS starts Docker with another command.
    """
    name = engine.name
    if not engine.client_found:
        return EngineObstacle(
            "client",
            f"no {name} command here",
            f"{name} is not installed, or not on PATH",
            f"install it ({INSTALL_PAGES[name]}), or: make up RUNTIME=local",
        )
    if engine.server_version is None:
        return _find_daemon_obstacle(engine, distribution, system)
    if engine.remote:
        by = f", by {engine.chosen_by}" if engine.chosen_by else ""
        return EngineObstacle(
            "remote",
            f"{name} talks to another machine ({engine.endpoint}{by})",
            "that engine cannot see this machine's work/ or its GPU",
            "unset DOCKER_HOST DOCKER_CONTEXT; docker context use default",
        )
    return _find_compose_obstacle(engine, distribution)


def _find_daemon_obstacle(
    engine: EngineFacts, distribution: Distribution, system: str
) -> EngineObstacle:
    """The reason why the daemon of an installed client does not answer, or None."""
    problem = engine.problem or "no answer"
    if "permission denied" in problem.lower():
        return EngineObstacle(
            "permission",
            f"{engine.name}'s socket refuses this user ({problem})",
            "this user is not in the docker group, or not since the last login",
            "sudo usermod -aG docker $USER   # then log out and in again",
        )
    end = engine.read_end()
    elsewhere = engine.chosen_by or engine.remote
    if "did not answer" in problem and (end.startswith("unix:") or not elsewhere):
        # Busy machines took longer than the limit: an engine that is slow is never restarted.
        return EngineObstacle(
            "timeout", problem, "the machine is busy, or the daemon hangs", "time docker info"
        )
    other = _find_other_daemon(engine, end, problem)
    if other:
        return other
    if "Podman's" in problem:
        return EngineObstacle(
            "shim", problem, "the package podman-docker provides it", "make up RUNTIME=podman"
        )
    if engine.name == "podman":
        return EngineObstacle(
            "daemon",
            f"podman does not work ({problem})",
            "its storage or its runtime is not set up",
            "podman info   # shows what is wrong with it",
        )
    return EngineObstacle(
        "daemon",
        f"docker's daemon does not answer ({problem})",
        "it is not running",
        "open -a Docker" if system == "Darwin" else START_DOCKER.on(distribution),
    )


# Daemons that run as this user: what their sockets' addresses match, and what starts them.
OWN_DAEMONS = {
    "rootless docker": (r"^unix:///run/user/\d+/docker\.sock$", "systemctl --user start docker"),
    "Docker Desktop": (
        r"^unix:///.+/\.docker/desktop/docker\.sock$",
        "systemctl --user start docker-desktop   # for a GPU: docker context use default",
    ),
}


def _find_other_daemon(engine: EngineFacts, end: str, problem: str) -> EngineObstacle | None:
    """The obstacle that the client talks to another daemon than the machine's; None if not."""
    what = f"{engine.name}'s daemon does not answer ({problem})"
    for kind, (socket, start) in OWN_DAEMONS.items():
        if engine.name == "docker" and re.match(socket, end):
            return EngineObstacle("daemon", what, f"{kind} is not running ({end})", start)
    if engine.chosen_by:
        variable = engine.chosen_by.partition("=")[0]
        cause = f"{engine.chosen_by} names another daemon than this machine's own"
        return EngineObstacle("daemon", what, cause, f"unset {variable}   # or set it right")
    if engine.remote:
        cause = f"the current context names {engine.endpoint}, not this machine's own daemon"
        return EngineObstacle("daemon", what, cause, "docker context use default")
    return None


def _find_compose_obstacle(
    engine: EngineFacts, distribution: Distribution
) -> EngineObstacle | None:
    """Docker needs Compose 2 or newer; Podman works with any version."""
    install = INSTALL_PODMAN_COMPOSE if engine.name == "podman" else INSTALL_COMPOSE
    if engine.compose_version is None:
        return EngineObstacle(
            "compose",
            f"{engine.name} {engine.server_version} has no Compose ({engine.compose_problem})",
            "its Compose plugin is not installed",
            install.on(distribution),
        )
    if engine.name == "docker" and engine.compose_major is not None and engine.compose_major < 2:
        return EngineObstacle(
            "compose",
            f"Compose {engine.compose_version} is too old",
            "the lab's compose.yaml needs Compose 2",
            install.on(distribution),
        )
    return None

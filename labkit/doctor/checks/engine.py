"""Checks of the container engine: its command, its daemon, this user's access, and Compose."""

from __future__ import annotations

import json
from dataclasses import dataclass

from labkit.doctor.check import Check, Finding, Host, failed, ok, unknown, warning
from labkit.host.distribution import UNKNOWN, Distribution
from labkit.host.engine import EngineFacts, EngineObstacle, find_engine_obstacle
from labkit.host.packages import START_DOCKER


@dataclass(frozen=True)
class EnginePair:
    """Docker's and Podman's facts."""

    docker: EngineFacts
    podman: EngineFacts
    in_container: bool = False
    system: str = "Linux"

    @property
    def chosen(self) -> EngineFacts:
        """The engine that answers, Docker first; else the one whose command is installed."""
        engines = (self.docker, self.podman)
        answering = [engine for engine in engines if engine.server_version]
        return next(iter(answering or [each for each in engines if each.client_found]), self.docker)

    def find_obstacle(self, distribution: Distribution = UNKNOWN) -> EngineObstacle | None:
        """The obstacle that prevents the chosen engine from running the lab, or None."""
        return find_engine_obstacle(self.chosen, distribution, self.system)


def probe_pair(host: Host) -> EnginePair:
    """Both engines' facts, from their own commands; all engine checks share the answers."""
    docker, podman = host.probe_engines()
    return EnginePair(docker, podman, host.in_container, host.machine.system)


def judge_engine_client(facts: EnginePair, distribution: Distribution) -> Finding:
    """OK with an engine, and without one: the lab then runs from a .venv."""
    names = [each.name for each in (facts.docker, facts.podman) if each.client_found]
    if facts.in_container and not names:
        reason = "this is inside a container"
        return ok("inside a container: its engine is outside", skip_reason=reason)
    if not names:
        found = "no docker or podman command; the lab runs from a .venv"
        return ok(found, skip_reason="no container engine")
    return ok(f"{' and '.join(names)} {'are' if len(names) > 1 else 'is'} installed")


def judge_engine_permission(facts: EnginePair, distribution: Distribution) -> Finding:
    """A refusal is a failure only if no other engine answers."""
    obstacle = facts.find_obstacle(distribution)
    if obstacle and obstacle.kind == "permission":
        return _fail(obstacle)
    return ok(f"{facts.chosen.name} does not refuse this user")


def judge_engine_daemon(facts: EnginePair, distribution: Distribution) -> Finding:
    """OK if a daemon on this machine answers."""
    engine, obstacle = facts.chosen, facts.find_obstacle(distribution)
    if obstacle and obstacle.kind == "timeout":
        return unknown(obstacle.what, f"{obstacle.fix}   # shows whether it is slow or hangs")
    if obstacle and obstacle.kind != "compose":
        return _fail(obstacle)
    docker_says = facts.docker.problem or ""
    if engine.name == "podman" and facts.docker.client_found and "Podman's" not in docker_says:
        return warning(
            f"docker does not answer ({docker_says}); podman {engine.server_version} does",
            "the lab runs in podman, although docker is installed",
            START_DOCKER.on(distribution),
        )
    kind = "rootless " if engine.rootless else ""
    return ok(f"{kind}{engine.name} {engine.server_version} answers")


def judge_compose(facts: EnginePair, distribution: Distribution) -> Finding:
    """Any Compose for Podman, version 2 or newer for Docker."""
    obstacle = facts.find_obstacle(distribution)
    if obstacle and obstacle.kind == "compose":
        return _fail(obstacle)
    return ok(f"Compose {facts.chosen.compose_version}")


def _fail(obstacle: EngineObstacle) -> Finding:
    return failed(obstacle.what, obstacle.cause, obstacle.fix)


ENGINE_CLIENT_CHECK = Check(
    "engine-client", "a container engine's command", probe_pair, judge_engine_client
)
ENGINE_PERMISSION_CHECK = Check(
    "engine-permission",
    "this user at the engine's socket",
    probe_pair,
    judge_engine_permission,
    ("engine-client",),
)
ENGINE_DAEMON_CHECK = Check(
    "engine-daemon",
    "the engine's daemon answers",
    probe_pair,
    judge_engine_daemon,
    ("engine-permission",),
)
COMPOSE_CHECK = Check("compose", "Compose 2", probe_pair, judge_compose, ("engine-daemon",))


SETTINGS = "etc/docker/daemon.json"


@dataclass(frozen=True)
class EngineSettingsFacts:
    """What is wrong with docker's daemon.json, and whether the daemon remaps user ids."""

    problem: str | None = None
    remapped: bool = False


def probe_engine_settings(host: Host) -> EngineSettingsFacts:
    """The file as JSON, and the security options of `docker info`."""
    text = host.read(SETTINGS)
    problem = None
    if text and text.strip():
        try:
            settings = json.loads(text)
            problem = None if isinstance(settings, dict) else "it is not a JSON object"
        except (ValueError, RecursionError) as error:
            problem = str(error)
    options = host.read_docker_info().get("SecurityOptions")
    remapped = isinstance(options, list) and any("userns" in str(each) for each in options)
    return EngineSettingsFacts(problem, remapped)


def judge_engine_settings(facts: EngineSettingsFacts, distribution: Distribution) -> Finding:
    """A failure if the file does not parse: the daemon's next start fails, if this one did not."""
    if facts.problem:
        return failed(
            f"/{SETTINGS} does not parse: {facts.problem}",
            "docker's daemon does not start with it",
            f"python3 -m json.tool /{SETTINGS}   # names the place; then mend it",
        )
    if facts.remapped:
        return warning(
            "docker remaps user ids (userns-remap)",
            "in the lab's container you are another user, who cannot write to your workspace",
            f"make up RUNTIME=local   # or take userns-remap out of /{SETTINGS}",
        )
    return ok("docker's settings parse")


ENGINE_SETTINGS_CHECK = Check(
    "engine-settings",
    "docker's daemon.json",
    probe_engine_settings,
    judge_engine_settings,
    ("engine-client",),
)


@dataclass(frozen=True)
class NestingFacts:
    """Whether this system is an LXC container, and its AppArmor profile (None: unknown)."""

    in_lxc: bool = False
    profile: str | None = None


def probe_nesting(host: Host) -> NestingFacts:
    """/run/systemd/container, PID 1's cgroup and this process's AppArmor profile."""
    profile = (host.read("proc/self/attr/current") or "").strip()
    return NestingFacts(host.in_lxc, profile or None)


def judge_nesting(facts: NestingFacts, distribution: Distribution) -> Finding:
    """A warning in an LXC container that may not nest others: engines there cannot start any."""
    if not facts.in_lxc:
        return ok("not inside LXC")
    profile = facts.profile or ""
    if profile.startswith("lxc-container-default") and "nesting" not in profile:
        return warning(
            "this is an LXC container without nesting",
            f"its AppArmor profile ({profile.split()[0]}) keeps engines from starting containers",
            "pct set <id> --features nesting=1   # on the Proxmox host, then restart the container",
        )
    return ok("an LXC container that may nest others")


NESTING_CHECK = Check(
    "lxc-nesting", "containers inside LXC", probe_nesting, judge_nesting, ("engine-client",)
)

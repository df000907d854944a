"""What each container engine's client, daemon and Compose say of themselves."""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from typing import Any

from labkit.process import CommandRunner

PROBE_SECONDS = 10.0


@dataclass(frozen=True)
class EngineFacts:
    """One container engine as its own commands describe it; None is "not known".

    ``problem`` is the engine's own line on why its daemon does not answer, ``compose_problem``
    the one on why its Compose does not.
    """

    name: str
    client_found: bool
    server_version: str | None = None
    endpoint: str | None = None
    rootless: bool | None = None
    problem: str | None = None
    compose_version: str | None = None
    compose_problem: str | None = None

    @property
    def compose_major(self) -> int | None:
        """Compose's major version, or None where Compose did not answer."""
        found = re.match(r"v?(\d+)\.", self.compose_version or "")
        return int(found.group(1)) if found else None

    @property
    def remote(self) -> bool:
        """True where the daemon is on another machine, which cannot see this one's folders."""
        return bool(self.endpoint) and not str(self.endpoint).startswith(("unix:", "npipe:", "/"))


def probe_engine(name: str, run: CommandRunner) -> EngineFacts:
    """The facts of the engine ``docker`` or ``podman``, asked of its own client."""
    return (probe_docker if name == "docker" else probe_podman)(run)


def probe_docker(run: CommandRunner) -> EngineFacts:
    """Docker's facts: `docker info` for the daemon, `docker compose version` for Compose."""
    info = run(["docker", "info", "--format", "{{json .}}"], timeout_seconds=PROBE_SECONDS)
    if info.missing:
        return EngineFacts("docker", client_found=False)
    said = _parse_object(info.stdout)
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
        problem=None if server else _first_line(str(errors[0]) if errors else info.message),
        compose_version=version,
        compose_problem=compose_problem,
    )


def probe_podman(run: CommandRunner) -> EngineFacts:
    """Podman's facts: `podman info`, and the Compose provider that `podman compose` finds."""
    info = run(["podman", "info", "--format", "json"], timeout_seconds=PROBE_SECONDS)
    if info.missing:
        return EngineFacts("podman", client_found=False)
    said = _parse_object(info.stdout)
    host = _as_object(said.get("host"))
    version, compose_problem = _probe_compose("podman", run)
    server = _as_object(said.get("version")).get("Version")
    return EngineFacts(
        "podman",
        client_found=True,
        server_version=server,
        rootless=_as_object(host.get("security")).get("rootless"),
        problem=None if server else _first_line(info.message),
        compose_version=version,
        compose_problem=compose_problem,
    )


def _probe_compose(client: str, run: CommandRunner) -> tuple[str | None, str | None]:
    """Compose's version, or the line on why there is none."""
    answer = run([client, "compose", "version", "--short"], timeout_seconds=PROBE_SECONDS)
    version = re.search(r"v?\d+\.\d+\S*", answer.stdout) if answer.ok else None
    if version:
        return version.group(0).lstrip("v"), None
    # The first line says why; what follows it is the client's whole help.
    return None, _first_line(answer.stderr) or answer.message


def _is_rootless(said: dict[str, Any]) -> bool:
    return any("rootless" in str(option) for option in _as_list(said.get("SecurityOptions")))


def _read_docker_endpoint(run: CommandRunner) -> str | None:
    """Where the docker client sends its requests: the context's host, or DOCKER_HOST's."""
    answer = run(
        ["docker", "context", "inspect", "--format", "{{.Endpoints.docker.Host}}"],
        timeout_seconds=PROBE_SECONDS,
    )
    return _first_line(answer.stdout) or None if answer.ok else None


def _parse_object(text: str) -> dict[str, Any]:
    """The JSON object in a command's output; empty where it printed anything else."""
    try:
        return _as_object(json.loads(text))
    except (ValueError, RecursionError):  # the second: brackets without end
        return {}


def _as_object(value: Any) -> dict[str, Any]:
    return value if isinstance(value, dict) else {}


def _as_list(value: Any) -> list[Any]:
    return value if isinstance(value, list) else []


def _first_line(text: str) -> str:
    return next((line.strip() for line in text.splitlines() if line.strip()), "")

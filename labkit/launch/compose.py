"""The lab in a container: Compose builds, starts and stops it; the engine reports its state."""

from __future__ import annotations

import json
import os
import secrets
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from labkit.errors import EngineError, LabkitError
from labkit.files import OUTSIDE_VARIABLE
from labkit.host.gpu import ALL_GPUS
from labkit.host.gpu_access import list_seen, name_cdi_device
from labkit.host.torch_builds import find_build
from labkit.launch import image
from labkit.launch.progress import StepLog, Steps, explain_failure
from labkit.launch.settings import (
    NOTICES_VARIABLE,
    Checkout,
    Flavor,
    Identity,
    Settings,
    check_locks,
    read_lab_variables,
)
from labkit.launch.state import LabHandle, prepare_state_folder, write_private
from labkit.process import (
    CommandResult,
    compose_environment,
    replace_process,
    run_attached,
    run_command,
    stream_command,
)
from labkit.text import MAKE_VARIABLE

GPU_SERVICE = "cuda-chosen"
# The services that get the GPUs: the lab and the tests.
SERVICES = (GPU_SERVICE, "test")
START_LIMIT_SECONDS = 180.0
# Every command enables all profiles: `up` names its service, and `down` must find every one.
PROFILES = ("cpu", "cuda", GPU_SERVICE, "test")


# Set for a command in the running lab, to find it there.
ENTERED_VARIABLE = "LABKIT_ENTERED"
# Signals that command: what an engine puts into a container has no parent there.
END_ENTERED = """for each in /proc/[0-9]*; do
    if grep -q '^PPid:.0$' "$each/status" && tr '\\0' '\\n' <"$each/environ" | grep -qx "$1"; then
        kill "-$2" "${each#/proc/}"
    fi
done 2>/dev/null"""

# Where a container has the folder of DATA=.
DATA_FOLDER = "/data"
# The user's own Compose files, which can overrule any setting.
OVERRIDES = ("compose.override.yaml", "compose.override.yml")


def write_compose_file(checkout: Checkout, name: str, content: Mapping[str, object]) -> Path:
    """Writes `.labkit/NAME`, a Compose file for what compose.yaml cannot have, of mode 0600.

    A variable cannot hold a list there, and a second file can only extend one. JSON is valid YAML.
    """
    prepare_state_folder(checkout)
    path = checkout.state_folder / name
    write_private(path, json.dumps(content, indent=2) + "\n")
    return path


def list_overrides(checkout: Checkout) -> list[str]:
    """The user's Compose files beside compose.yaml, as options of Compose."""
    paths = [checkout.root / name for name in OVERRIDES]
    return [word for path in paths if path.is_file() for word in ("--file", str(path))]


def list_additions(service: str, settings: Settings) -> dict[str, object]:
    """The content of a Compose file with the user's data and variables for a service.

    Compose would replace what begins with a dollar sign.
    """
    added: dict[str, object] = {}
    values = read_lab_variables(settings)
    if settings.data:
        source = str(settings.data).replace("$", "$$")
        mount = {"type": "bind", "source": source, "target": DATA_FOLDER, "read_only": True}
        added["volumes"] = [{**mount, "bind": {"create_host_path": False}}]
        values["LABKIT_DATA"] = DATA_FOLDER
    if values:
        escaped = {name: value.replace("$", "$$") for name, value in values.items()}
        added["environment"] = escaped
    return {"services": {service: added}} if added else {}


def list_gpus(client: str, flavor: Flavor) -> dict[str, object]:
    """The content of a Compose file: each service's GPUs, requested in the way that was proved."""
    cdi = [name_cdi_device(gpu) for gpu in flavor.gpus]
    if client == "podman":  # podman-compose supports no CDI reservation
        return {"services": {name: {"devices": cdi} for name in SERVICES}}
    request: dict[str, object] = {"capabilities": ["gpu"]}
    if flavor.way == "cdi":
        # Not `devices:`: Compose before 2.30 reads its value as a path.
        request.update(driver="cdi", device_ids=cdi)
    elif flavor.gpus == ALL_GPUS:
        request.update(count="all")
    else:
        request.update(device_ids=list(flavor.gpus))
    reserved = {"resources": {"reservations": {"devices": [request]}}}
    return {"services": {name: {"deploy": reserved} for name in SERVICES}}


class PortTakenError(EngineError):
    """The engine could not publish the port: another program took it after the check."""


@dataclass(frozen=True)
class ContainerLab:
    """One flavor of the lab, run by one engine; its start page shows ``notices``, as JSON."""

    checkout: Checkout
    client: str
    flavor: Flavor
    settings: Settings
    port: int = 0
    identity: Identity | None = None
    notices: str = ""

    @property
    def image(self) -> str:
        """The image's name; LABKIT_IMAGE overrides it."""
        return os.environ.get("LABKIT_IMAGE") or f"labkit:{self.flavor.build}"

    @property
    def test_image(self) -> str:
        """The name of the tests' image; LABKIT_TEST_IMAGE overrides it."""
        return os.environ.get("LABKIT_TEST_IMAGE") or f"labkit:{self.flavor.build}-test"

    @property
    def service(self) -> str:
        """The Compose service that runs the lab; "cuda-chosen" if it has a list of GPUs."""
        return GPU_SERVICE if self.flavor.way else self.flavor.name

    def prepare(self, steps: Steps, *, for_tests: bool = False) -> None:
        """Builds the lab's or the tests' image if it is missing or out of date.

        Raises EngineError with the build's log.
        """
        service, name = self.flavor.name, self.image
        inputs = image.LAB_INPUTS
        if for_tests:
            service, name, inputs = "test", self.test_image, image.TEST_INPUTS
        digest = image.digest_inputs(self.checkout, inputs)
        present = image.read_image_digest(self.client, name)
        if present == digest:
            return
        check_locks(self.checkout, find_build(self.flavor.build).locks)
        image.run_build(
            steps,
            f"building the {service} image",
            self.client,
            self.compose_command(["build", service]),
            {**self.environment(), **image.build_variables(self.checkout, digest)},
            why="not built yet" if present is None else "its inputs have changed",
            flavor=self.flavor.name,
            log_path=self.checkout.logs_folder / f"build-{service}.log",
            fix="make build",
        )

    def start(self) -> LabHandle:
        """Starts the service; returns the handle of its container.

        Raises PortTakenError if the port is taken, EngineError if the start fails otherwise.
        """
        with StepLog(self.checkout.logs_folder / "start.log") as log:
            result = self._compose(["up", "--detach", "--no-build", self.service], log)
            if not result.ok:
                error = log.failure("Compose could not start the lab", f"less '{log.path}'")
                if "already allocated" in error.what or "address already in use" in error.what:
                    raise PortTakenError(error.what, cause=f"port {self.port} is taken")
                raise error
        return LabHandle(container=self.find_container())

    def stop(self, handle: LabHandle | None = None) -> None:
        """Stops and removes the container; the workspace and the caches stay."""
        with StepLog(self.checkout.logs_folder / "stop.log") as log:
            words = ["down", "--remove-orphans", "--timeout", "15"]
            if self._has_one_offs():  # `down` would kill a `make run` or `make test`
                words = ["rm", "--stop", "--force", self.service]
            result = self._compose(words, log)
            if not result.ok:
                raise log.failure("Compose could not stop the lab", "make down")

    def find_container(self) -> str | None:
        """The id of this checkout's lab container, running or not, or None."""
        project = f"label=com.docker.compose.project={self.checkout.project}"
        service = f"label=com.docker.compose.service={self.service}"
        filters = ["--filter", project, "--filter", service]
        if self.client == "docker":  # podman-compose does not set this label
            filters += ["--filter", "label=com.docker.compose.oneoff=False"]
        answer = self._ask("ps", "--all", "--quiet", *filters)
        return answer.stdout.split()[0] if answer.ok and answer.stdout.split() else None

    def _has_one_offs(self) -> bool:
        """True while a command of this checkout runs in a separate container."""
        project = f"label=com.docker.compose.project={self.checkout.project}"
        one_off = "label=com.docker.compose.oneoff=True"
        answer = self._ask("ps", "--quiet", "--filter", project, "--filter", one_off)
        return bool(answer.stdout.strip())

    def read_status(self, container: str) -> str | None:
        """The container's state ("running", "exited", ...), or None if it is gone."""
        answer = self._ask("inspect", "--format", "{{.State.Status}}", container)
        return answer.stdout.strip() or None if answer.ok else None

    def is_alive(self, handle: LabHandle) -> bool:
        """True while the container runs; False while it restarts in a loop."""
        return handle.container is not None and self.read_status(handle.container) == "running"

    def find_gpu_problem(self, handle: LabHandle) -> str | None:
        """Why the running lab sees no GPU although its flavor has one, or None.

        The Compose program that Podman uses may ignore the GPU silently (podman#28436).
        """
        if self.flavor.way is None or handle.container is None:
            return None
        answer = self._ask("exec", handle.container, "nvidia-smi", "-L")
        return None if list_seen(answer) else answer.message

    def explain_death(self, handle: LabHandle) -> LabkitError:
        """The error for a container that stopped after its start, with the end of its log."""
        answer = self._ask("logs", "--tail", "40", handle.container or "")
        lines = (answer.stdout + answer.stderr).splitlines()
        path = self.checkout.logs_folder / "server.log"
        path.write_text("\n".join(lines) + "\n", encoding="utf-8")
        # The failed start removes the container, so `make logs` would find nothing.
        return explain_failure("the lab's container stopped", lines, path, f"less '{path}'")

    def show_logs(self, handle: LabHandle | None, lines: int, follow: bool) -> None:
        """Replaces this process by the engine's `logs` of the container."""
        container = (handle and handle.container) or self.find_container()
        if container is None:
            raise EngineError("there is no log yet", cause="no lab was started", fix="make up")
        options = ["--tail", str(lines), *(["--follow"] if follow else [])]
        replace_process([self.client, "logs", *options, container])

    def enter(self, handle: LabHandle | None, command: Sequence[str]) -> int:
        """Runs ``command`` in the running lab, or in a new container; returns its exit code."""
        terminal = sys.stdin.isatty() and sys.stdout.isatty()
        given = [word for each in self._name_caller(command) for word in ("--env", each)]
        if not (handle and handle.container and self.is_alive(handle)):
            options = [*given, *([] if terminal else ["--no-TTY"])]
            return self.run_once(self.service, command, options)
        container, mark = handle.container, f"{ENTERED_VARIABLE}={secrets.token_hex(8)}"
        flags = ["--interactive", *(["--tty"] if terminal else []), *given, "--env", mark]

        def stop() -> None:
            # A shell at a terminal ignores SIGTERM.
            words = ["sh", "-c", END_ENTERED, "sh", mark, "HUP" if terminal else "TERM"]
            self._ask("exec", container, *words)

        return run_attached([self.client, "exec", *flags, container, *command], stop=stop)

    def run_once(self, service: str, command: Sequence[str], options: Sequence[str]) -> int:
        """Runs ``command`` in a new container, which is removed; returns its exit code.

        A signal that ends this process stops the container.
        """
        name = f"{self.checkout.project}-{service}-run-{secrets.token_hex(6)}"
        words = ["run", "--rm", "--name", name, *options, service, *command]

        def stop() -> None:
            if "--no-TTY" not in options:  # a shell at a terminal ignores SIGTERM
                self._ask("kill", "--signal", "HUP", name)
            self._ask("stop", name)
            self._ask("rm", "--force", name)

        return run_attached(self.compose_command(words), self.environment(), stop=stop)

    def _name_caller(self, command: Sequence[str]) -> list[str]:
        """The variables for messages of labkit to somebody outside of the container."""
        if command[0] != "labkit":  # a shell's user reads the container's paths
            return []
        made = [f"{MAKE_VARIABLE}=1"] if os.environ.get(MAKE_VARIABLE) else []
        return [f"{OUTSIDE_VARIABLE}={self.checkout.workspace}", *made]

    def on_port(self, port: int) -> ContainerLab:
        """The same lab, published on another port."""
        return replace(self, port=port)

    def compose_command(self, words: Sequence[str]) -> list[str]:
        """The Compose command line for ``words``.

        To start a lab, it writes and adds the files with its GPUs, data and variables.
        """
        project = ["--project-name", self.checkout.project]
        folder = ["--project-directory", str(self.checkout.root)]
        files = ["--file", str(self.checkout.root / "compose.yaml")]
        if words[0] in ("up", "run"):
            gpus = list_gpus(self.client, self.flavor) if self.flavor.way else {}
            added = list_additions(self.service, self.settings)
            for name, content in (("gpus.json", gpus), ("added.json", added)):
                if content:
                    path = write_compose_file(self.checkout, name, content)
                    files += ["--file", str(path)]
        files += list_overrides(self.checkout)
        profiles = [word for name in PROFILES for word in ("--profile", name)]
        return [self.client, "compose", *project, *folder, *files, *profiles, *words]

    def environment(self) -> dict[str, str]:
        """The variables that compose.yaml reads; the token is never among them."""
        values = {
            "LABKIT_PROJECT": self.checkout.project,
            "LABKIT_IMAGE": self.image,
            "LABKIT_TEST_IMAGE": self.test_image,
            "LABKIT_FLAVOR": self.flavor.name,
            "LABKIT_PORT": str(self.port or 8888),
            "LABKIT_BIND": _bracket(self.settings.bind),
            "LABKIT_WORKSPACE": str(self.checkout.workspace),
            "LABKIT_TOKEN_FILE": str(self.checkout.token_file),
            "LABKIT_REMOTE_ACCESS": "1" if self.settings.opens_to_others else "0",
            "LABKIT_MEMORY": str(self.settings.memory_bytes or 0),
            NOTICES_VARIABLE: self.notices,
        }
        if self.flavor.name == "cuda":
            values["LABKIT_CUDA_BUILD"] = self.flavor.build
        if self.identity:
            values["LABKIT_USER"] = f"{self.identity.user_id}:{self.identity.group_id}"
            values["LABKIT_ALLOW_ROOT"] = "1" if self.identity.is_root else "0"
            values["LABKIT_USERNS"] = "keep-id" if self.identity.keep_id else ""
        return {**compose_environment(), **values}

    def _ask(self, *words: str) -> CommandResult:
        return run_command([self.client, *words], timeout_seconds=30)

    def _compose(self, words: Sequence[str], log: StepLog) -> CommandResult:
        result = stream_command(
            self.compose_command(words),
            timeout_seconds=START_LIMIT_SECONDS,
            on_line=log.write,
            environment=self.environment(),
        )
        if result.missing or result.timed_out:
            log.write(result.message)
        return result


def _bracket(address: str) -> str:
    return f"[{address}]" if ":" in address else address

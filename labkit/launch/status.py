"""The current status of a checkout's lab, for `labkit status`, `up` and `down`.

First the system or the engine is asked whether the process or container runs and owns the port;
only then the server gets a challenge. No secret is sent to any port.
"""

from __future__ import annotations

import contextlib
import ipaddress
import json
import shlex
import shutil
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

from labkit.host.engine import parse_object
from labkit.host.torch_builds import BUILDS, CUDA_BUILDS
from labkit.launch.compose import ContainerLab
from labkit.launch.local import LAB_VARIABLE, LocalLab
from labkit.launch.server import (
    find_server_process,
    is_paused,
    is_running,
    list_ports,
    probe_server,
    reachable_address,
    read_environment,
    read_start,
    resume_process,
)
from labkit.launch.settings import CPU, LOOPBACK, Checkout, Flavor, Settings
from labkit.launch.state import LabHandle, LabState, read_state, read_token
from labkit.launch.venv import PythonEnvironment
from labkit.process import CommandRunner, run_command
from labkit.text import plural

# "unreachable": the engine does not answer; "silent": the lab runs, but its port does not answer;
# "foreign": another program has the port; "unproven": the server on the port gives no valid proof;
# "tokenless": the token is lost, so no proof can be requested.
Condition = Literal[
    "healthy", "gone", "paused", "unreachable", "silent", "foreign", "unproven", "tokenless"
]

CONTAINER_PORT = "8888/tcp"
INSPECT = "{{.State.Status}}\n{{json .NetworkSettings.Ports}}\n{{json .HostConfig.PortBindings}}"
INSPECT_LOST = (
    f"{INSPECT}\n{{{{json .Config.Labels}}}}\n"
    '{{range .Mounts}}{{if eq .Destination "/work"}}{{.Source}}{{end}}{{end}}'
)
# The Compose services that are labs. `up` starts "cuda-chosen", with its GPUs.
LAB_SERVICES = {
    "cpu": CPU,
    "cuda": Flavor("cuda", CUDA_BUILDS[0].name),
    "cuda-chosen": Flavor("cuda", CUDA_BUILDS[0].name, way="cdi"),
}
FOUND = "found running, without its state file"


@dataclass(frozen=True)
class LabStatus:
    """The lab's current status; ``state`` is None without a lab, ``problem`` is what is wrong."""

    checkout: Checkout
    state: LabState | None = None
    condition: Condition = "gone"
    problem: str | None = None
    url: str | None = None

    @classmethod
    def of(cls, checkout: Checkout, state: LabState, token: str) -> LabStatus:
        """The status of a healthy lab."""
        return cls(checkout, state, "healthy", None, make_url(state, token))

    @property
    def healthy(self) -> bool:
        """True if the server has proved that it is this lab's."""
        return self.condition == "healthy"

    @property
    def running(self) -> bool | None:
        """True if its process or container exists; None if the engine does not answer."""
        return None if self.condition == "unreachable" else self.condition != "gone"

    @property
    def opens_to_others(self) -> bool:
        """True if the lab listens on more than loopback."""
        return self.state is not None and not ipaddress.ip_address(self.state.bind).is_loopback

    @property
    def fix(self) -> str:
        """The command that helps."""
        return "make doctor" if self.condition == "unreachable" else "make up"

    def describe(self) -> dict[str, object]:
        """The status as ``--json`` prints it; unknown values are null."""
        state = self.state
        return {
            "running": self.running,
            "healthy": self.healthy,
            "runtime": state.runtime if state else None,
            "flavor": state.flavor if state else None,
            "build": state.build if state else None,
            "gpus": state.gpus if state else None,
            "url": self.url,
            "port": state.port if state else None,
            "bind": state.bind if state else None,
            "started_at": state.started_at if state else None,
            "reason": state.reason if state else None,
            "workspace": str(self.checkout.workspace),
            "problem": self.problem,
        }


def make_url(state: LabState, token: str) -> str:
    """The lab's URL: its start page, with the token."""
    address = reachable_address(state.bind)
    host = f"[{address}]" if ":" in address else address
    return f"http://{host}:{state.port}/lab?token={token}"


def open_lab(checkout: Checkout, state: LabState) -> ContainerLab | LocalLab:
    """The lab that ``state`` describes."""
    checkout = place_checkout(checkout, state)
    settings = Settings(
        state.runtime,
        state.flavor,
        state.port,
        state.bind,
        data=Path(state.data) if state.data else None,
        env_file=Path(state.env_file) if state.env_file else None,
    )
    gpus = tuple(state.gpus.split(",")) if state.gpus else ()
    flavor = Flavor(state.flavor, state.build, gpus, state.way)
    if state.runtime == "local":
        return LocalLab(checkout, settings, state.port, flavor)
    return ContainerLab(checkout, state.runtime, flavor, settings, state.port)


def place_checkout(checkout: Checkout, state: LabState) -> Checkout:
    """The checkout with the workspace that the lab was started with."""
    return replace(checkout, named=Path(state.workspace) if state.workspace else None)


def list_differences(checkout: Checkout, settings: Settings, state: LabState) -> list[str]:
    """The requested settings that the running lab does not have, as typed after `make up`."""
    gpus = ",".join(settings.gpus) or "auto"
    paths = (
        ("LABKIT_WORKSPACE", checkout.named, state.workspace),
        ("DATA", settings.data, state.data),
        ("ENV_FILE", settings.env_file, state.env_file),
    )
    others = [
        f"{name}={shlex.quote(str(asked))}"
        for name, asked, has in paths
        if asked is not None and str(asked) != has
    ]
    named = [
        f"{name}={asked}"
        for name, asked, has in (
            ("RUNTIME", settings.runtime, (state.runtime,)),
            ("FLAVOR", settings.flavor, (state.flavor,)),
            ("CUDA", settings.cuda, (state.build,)),
            ("GPUS", gpus, (state.gpus, state.gpus_asked)),
        )
        if asked not in ("auto", *has)
    ]
    return [*named, *others]


def read_status(checkout: Checkout) -> LabStatus:
    """The status of the checkout's lab, which is found even if its state file is lost."""
    state = read_state(checkout) or find_forgotten_lab(checkout)
    if state is None:
        return LabStatus(checkout)
    checkout = place_checkout(checkout, state)
    token = read_token(checkout)
    condition = examine_lab(state, token)
    if condition == "healthy":
        return LabStatus.of(checkout, state, token)
    return LabStatus(checkout, state, condition, _describe_problem(checkout, state, condition))


def examine_lab(state: LabState, token: str, run: CommandRunner = run_command) -> Condition:
    """The condition of a started lab. The challenge is sent only to a port that the lab owns."""
    is_local = state.runtime == "local"
    found = _examine_process(state) if is_local else _examine_container(state, run)
    if found not in (None, "foreign"):
        return found
    # No byte is sent to a port that the lab does not own: without a token the probe only connects.
    answer = probe_server(
        state.port,
        "" if found else token,
        reachable_address(state.bind),
        through_engine=not is_local,
    )
    if answer == "foreign" and not found:
        return "unproven" if token else "tokenless"
    return answer


def _examine_process(state: LabState) -> Condition | None:
    """The condition of a local lab's process; "foreign": the port is not its own; None: ask it."""
    process = state.handle.process_id
    if process is None or not is_running(state.handle):
        return "gone"
    if is_paused(process):
        return "paused"
    ports = list_ports(process)
    return None if ports is None or state.port in ports else "foreign"


def _examine_container(state: LabState, run: CommandRunner) -> Condition | None:
    """The container's condition; "foreign": it does not publish the port; None: ask the server."""
    if state.handle.container is None:
        return "gone"
    words = [state.runtime, "inspect", "--format", INSPECT, state.handle.container]
    answer = run(words, timeout_seconds=10)
    if not answer.ok:
        is_gone = answer.missing or "no such" in answer.message.lower()
        return "gone" if is_gone else "unreachable"
    status, ports, _ = _parse_inspection(answer.stdout)
    if status != "running":
        return "paused" if status == "paused" else "gone"
    return None if state.port in ports else "foreign"


def _parse_inspection(text: str) -> tuple[str, dict[int, str], dict[int, str]]:
    """A container's state, its ports published now, and its configured ports, with addresses."""
    status, published, bound = [*text.splitlines(), "", "", ""][:3]
    return status, _parse_ports(published), _parse_ports(bound)


def _parse_ports(text: str) -> dict[int, str]:
    """The host ports that lead to the server's port, with their addresses, from engine JSON."""
    try:
        bindings = (json.loads(text) or {}).get(CONTAINER_PORT) or []
        every = "0.0.0.0"  # noqa: S104 - what engines mean by no address
        return {int(one["HostPort"]): str(one.get("HostIp") or every) for one in bindings}
    except (ValueError, TypeError, KeyError, AttributeError, RecursionError):
        return {}


def _describe_problem(checkout: Checkout, state: LabState, condition: Condition) -> str:
    kind = "process" if state.runtime == "local" else "container"
    return {
        "gone": f"its {kind} is gone: it was killed or crashed",
        "paused": f"its {kind} is paused",
        "unreachable": f"{state.runtime} does not answer, so the state of its container is unknown",
        "silent": f"it runs, but does not answer on port {state.port}",
        "foreign": f"another program answers on port {state.port}",
        "unproven": f"the program on port {state.port} does not prove that it is this lab",
        "tokenless": f"its token is gone: {checkout.token_file}",
    }[condition]


def resume_lab(state: LabState) -> None:
    """Resumes a paused lab with its kernels."""
    if state.runtime == "local":
        resume_process(state.handle)
    elif state.handle.container:
        run_command([state.runtime, "unpause", state.handle.container], timeout_seconds=30)


NO_KERNELS = "; it has no kernels"


def describe_kernels(state: LabState, run: CommandRunner = run_command) -> str:
    """The effect of a restart on the kernels, to append to a sentence: "; its 2 kernels end"."""
    if state.runtime == "local":
        words = ["ps", "-axww", "-o", "ppid=,stat=,args="]
        parent = f"{state.handle.process_id} "
    else:
        words = [state.runtime, "top", str(state.handle.container), "-eo", "pid,stat,args"]
        parent = ""
    answer = run(words, timeout_seconds=10)
    if not answer.ok:
        return "; its kernels end"
    lines = [line.strip() for line in answer.stdout.splitlines() if "ipykernel" in line]
    states = [line.split()[1] for line in lines if line.startswith(parent)]
    computing = sum(state.startswith("R") for state in states)
    if not states:
        return NO_KERNELS
    return f"; its {plural(len(states), 'kernel')} end" + (
        f", {computing} of them computing" if computing else ""
    )


def find_forgotten_lab(checkout: Checkout, run: CommandRunner = run_command) -> LabState | None:
    """A running lab of this checkout whose state file is lost; None if there is none."""
    found = _find_forgotten_process(checkout)
    if found is not None:
        return found
    for client in ("docker", "podman"):
        if shutil.which(client):
            label = f"label=com.docker.compose.project={checkout.project}"
            listed = run([client, "ps", "--all", "--quiet", "--filter", label], timeout_seconds=10)
            for container in listed.stdout.split() if listed.ok else ():
                state = _describe_container(checkout, client, container, run)
                if state:
                    return state
    return None


def _find_forgotten_process(checkout: Checkout) -> LabState | None:
    process = find_server_process(checkout.root, PythonEnvironment(checkout).python)
    started = read_start(process) if process else None
    if process is None or started is None:
        return None
    port, bind, flavor, workspace = _read_server(checkout, process)
    return LabState(
        "local",
        flavor.name,
        port,
        bind,
        FOUND,
        None,
        LabHandle(process_id=process, process_started=started),
        build=flavor.build,
        gpus=",".join(flavor.gpus) or None,
        workspace=name_workspace(checkout, workspace),
    )


def name_workspace(checkout: Checkout, workspace: str) -> str | None:
    """The workspace for `LabState`: None if it is the checkout's own or unknown."""
    return workspace if workspace not in ("", str(checkout.root / "work")) else None


def _read_server(checkout: Checkout, process: int) -> tuple[int, str, Flavor, str]:
    """Port, address, flavor and workspace of a server, as its environment or Jupyter says."""
    values: dict[str, str] = {}
    text = ""
    with contextlib.suppress(OSError):
        values = read_environment(Path(f"/proc/{process}"))
    with contextlib.suppress(OSError, ValueError):
        runtime = checkout.state_folder / "jupyter" / "runtime"
        text = (runtime / f"jpserver-{process}.json").read_text(encoding="utf-8")
    said = parse_object(text)
    port = values.get("LABKIT_SERVER_PORT") or str(said.get("port"))
    bind = values.get("LABKIT_SERVER_ADDRESS") or str(said.get("hostname"))
    try:
        ipaddress.ip_address(bind)
    except ValueError:
        bind = LOOPBACK
    name, build, gpus = [*values.get(LAB_VARIABLE, "").split(" "), "", "", ""][:3]
    flavor = Flavor(name, build, tuple(gpus.split(",")) if gpus else ())
    known = name in ("cpu", "cuda") and build in BUILDS
    workspace = values.get("LABKIT_WORKSPACE", "")
    return int(port) if port.isdecimal() else 0, bind, flavor if known else CPU, workspace


def _describe_container(
    checkout: Checkout, client: str, container: str, run: CommandRunner
) -> LabState | None:
    """The state of a container whose state file is lost; None if it is not a lab's service."""
    answer = run([client, "inspect", "--format", INSPECT_LOST, container], timeout_seconds=10)
    _, _, bound = _parse_inspection(answer.stdout)
    said, workspace = [*answer.stdout.splitlines()[3:], "", ""][:2]
    labels = parse_object(said)
    service = labels.get("com.docker.compose.service")
    # The container of a `make run` or `make test` is not the lab.
    if service not in LAB_SERVICES or labels.get("com.docker.compose.oneoff") == "True":
        return None
    flavor, build = LAB_SERVICES[str(service)], labels.get("io.labkit.cuda")
    port, bind = next(iter(bound.items()), (0, LOOPBACK))
    return LabState(
        client,
        flavor.name,
        port,
        bind,
        FOUND,
        None,
        LabHandle(container=container),
        build=str(build) if build in BUILDS else flavor.build,
        way=flavor.way,
        workspace=name_workspace(checkout, workspace.strip()),
    )

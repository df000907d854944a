"""`labkit up`: from a fresh clone to a URL, whatever this host has."""

from __future__ import annotations

import os
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

from labkit.commands import run_command
from labkit.errors import TimedOutError, UsageError
from labkit.host.engine import EngineFacts, probe_engine
from labkit.host.folders import read_folder
from labkit.host.gpu import GpuFacts, probe_gpu
from labkit.host.machine import MachineFacts, read_machine
from labkit.host.ports import find_free_port, is_port_free
from labkit.launch import workspace
from labkit.launch.choose import (
    FLAVORS,
    RUNTIMES,
    Choice,
    Identity,
    check_name,
    choose_flavor,
    choose_identity,
    choose_runtime,
)
from labkit.launch.container import ContainerLab, PortTakenError
from labkit.launch.health import probe_server, reachable_address, wait_until
from labkit.launch.local import LocalLab
from labkit.launch.settings import DEFAULT_PORT, Checkout, Settings
from labkit.launch.state import (
    LabHandle,
    LabState,
    ensure_token,
    forget_state,
    prepare_state_folder,
    timestamp,
    write_state,
)
from labkit.launch.status import LabStatus, open_lab, read_status
from labkit.launch.steps import Steps

HEALTH_LIMIT_SECONDS = 180.0
BUSY_LIMIT_SECONDS = 20.0
START_ATTEMPTS = 5

Lab = ContainerLab | LocalLab


@dataclass(frozen=True)
class HostFacts:
    """Everything the choices are made from."""

    machine: MachineFacts
    docker: EngineFacts
    podman: EngineFacts
    gpu: GpuFacts


@dataclass(frozen=True)
class Plan:
    """How the lab will run, and why."""

    runtime: Choice[str]
    flavor: Choice[str]
    lab: Lab
    port_asked: bool
    identity: Choice[Identity] | None = None


def probe_host(settings: Settings) -> HostFacts:
    """The host's facts, its engines and driver asked side by side."""
    absent = EngineFacts("docker", client_found=False)
    names = [settings.runtime] if settings.runtime in ("docker", "podman") else []
    names = names or ([] if settings.runtime == "local" else ["docker", "podman"])
    with ThreadPoolExecutor() as pool:
        gpu = pool.submit(probe_gpu, run_command)
        engines = {name: pool.submit(probe_engine, name, run_command) for name in names}
        found = {name: future.result() for name, future in engines.items()}
        return HostFacts(
            read_machine(), found.get("docker", absent), found.get("podman", absent), gpu.result()
        )


def make_plan(checkout: Checkout, settings: Settings, facts: HostFacts) -> Plan:
    """The runtime and flavor for these facts. Raises where what was asked for cannot be had."""
    system = facts.machine.system
    runtime = choose_runtime(settings.runtime, facts.docker, facts.podman, system)
    flavor = choose_flavor(settings.flavor, facts.gpu)
    if runtime.value == "local":
        lab: Lab = LocalLab(checkout, settings)
        identity = None
    else:
        engine = facts.docker if runtime.value == "docker" else facts.podman
        folder = read_folder(checkout.workspace)
        identity = choose_identity(facts.machine, folder, engine, read_folder(checkout.root))
        lab = ContainerLab(checkout, runtime.value, flavor.value, settings, identity=identity.value)
    return Plan(runtime, flavor, lab, settings.port is not None, identity)


def start_lab(checkout: Checkout, settings: Settings, steps: Steps) -> LabStatus:
    """Starts the lab, unless it runs already, and waits until it answers."""
    # Before a lab that runs is held against them: `make down` would not make them known.
    check_name("runtime", settings.runtime, RUNTIMES)
    check_name("flavor", settings.flavor, FLAVORS)
    running = find_running(checkout, settings, steps)
    if running:
        return running
    workspace.prepare_workspace(checkout)
    prepare_state_folder(checkout)
    token = ensure_token(checkout)
    plan = make_plan(checkout, settings, probe_host(settings))
    announce(plan, settings, steps)
    if isinstance(plan.lab, ContainerLab) and plan.lab.identity:
        workspace.hand_over(checkout, plan.lab.identity)
    plan.lab.prepare(steps)
    state = launch(checkout, settings, plan, token, steps)
    for line in workspace.describe_update(checkout):
        steps.say(line)
    return LabStatus.of(checkout, state, healthy=True, token=token)


def find_running(checkout: Checkout, settings: Settings, steps: Steps) -> LabStatus | None:
    """The lab that runs already; what is left of one that does not is cleared away.

    Raises UsageError where another kind of lab was asked for by name than runs.
    """
    status = _read_patiently(checkout, steps)
    state = status.state
    if state is None:
        return None
    if not status.healthy:
        steps.say(f"the last lab is not well ({status.problem}); starting it anew")
        open_lab(checkout, state).stop(state.handle)
        forget_state(checkout)
        return None
    differing = [
        f"{name.upper()}={asked}"
        for name, asked, has in (
            ("runtime", settings.runtime, state.runtime),
            ("flavor", settings.flavor, state.flavor),
            ("port", settings.port or "auto", state.port),
            ("bind", settings.bind if settings.bind_asked else "auto", state.bind),
        )
        if asked not in ("auto", has)
    ]
    if differing:
        raise UsageError(
            f"a lab runs already, and not with {' '.join(differing)}",
            cause=f"it has runtime {state.runtime}, flavor {state.flavor}, "
            f"port {state.port}, address {state.bind}",
            fix=f"make down && make up {' '.join(differing)}",
        )
    return status


def _read_patiently(checkout: Checkout, steps: Steps) -> LabStatus:
    """The status; a lab that runs but is silent gets time, as stopping it ends its kernels."""
    status = read_status(checkout)
    if status.running and not status.healthy:
        steps.say(f"{status.problem}: waiting for it")
        wait_until(
            lambda: read_status(checkout).healthy,
            timeout_seconds=BUSY_LIMIT_SECONDS,
            interval_seconds=1.0,
        )
        status = read_status(checkout)
    return status


def announce(plan: Plan, settings: Settings, steps: Steps) -> None:
    """Says what was chosen and why, and warns of what the choice leaves out or lets in."""
    for name, choice in (("runtime", plan.runtime), ("flavor", plan.flavor)):
        steps.say(f"{name + ':':<9}{choice.value} ({choice.reason})")
        if choice.warning:
            steps.say(f"  warning: {choice.warning}")
    if plan.identity and plan.identity.value.user_id != os.getuid():
        steps.say(f"user:    uid {plan.identity.value.user_id} ({plan.identity.reason})")
    if settings.opens_to_others:
        steps.say(
            f"  warning: BIND={settings.bind} opens the lab to every machine that reaches this"
            " one; whoever has the URL can run programs here as you, and plain HTTP can be"
            " read on the way"
        )


def choose_port(settings: Settings, first: int, steps: Steps) -> int:
    """The port that was asked for, or the first free one. Raises UsageError where it is taken."""
    try:
        if settings.port is not None:
            if is_port_free(settings.bind, settings.port):
                return settings.port
            raise _port_taken(settings.port)
        port = find_free_port(settings.bind, first)
    except OSError as error:
        raise UsageError(
            f"cannot listen on {settings.bind}: {error.strerror}",
            cause="it is not an address of this machine",
            fix="make up BIND=127.0.0.1",
        ) from error
    if port is None:
        raise _port_taken(first)
    if port != first:
        steps.say(f"port {first} is taken: using {port}")
    return port


def _port_taken(port: int) -> UsageError:
    return UsageError(
        f"port {port} is taken",
        cause="another program listens on it, or it needs root's rights",
        fix="make up   # takes the next port that is free",
    )


def launch(
    checkout: Checkout, settings: Settings, plan: Plan, token: str, steps: Steps
) -> LabState:
    """Starts the planned lab on a free port and waits until it is healthy.

    Stopped or failed on the way, nothing is left running.
    """
    port = choose_port(settings, settings.port or DEFAULT_PORT, steps)
    with steps.step("starting JupyterLab"):
        for attempt in range(START_ATTEMPTS):
            lab = plan.lab.on_port(port)
            handle = LabHandle()
            try:
                handle = lab.start()
                state = LabState(
                    plan.runtime.value,
                    plan.flavor.value,
                    port,
                    settings.bind,
                    plan.runtime.reason,
                    timestamp(),
                    handle,
                )
                write_state(checkout, state)
                _wait_healthy(lab, state, token)
                return state
            except PortTakenError:
                lab.stop(handle)
                if plan.port_asked or attempt == START_ATTEMPTS - 1:
                    raise _port_taken(port) from None
                port = choose_port(settings, port + 1, steps)
            except BaseException:
                lab.stop(handle)
                forget_state(checkout)
                raise
    raise _port_taken(port)


def _wait_healthy(lab: Lab, state: LabState, token: str) -> None:
    """Returns once the server takes our token. Raises where it dies, or never does."""
    address = reachable_address(state.bind)
    died = False

    def has_answered() -> bool:
        nonlocal died
        if probe_server(state.port, token, address) == "healthy":
            return True
        died = not lab.is_alive(state.handle)
        return died

    answered = wait_until(has_answered, timeout_seconds=HEALTH_LIMIT_SECONDS, interval_seconds=0.2)
    if died:
        raise lab.explain_death(state.handle)
    if not answered:
        raise TimedOutError(
            f"JupyterLab did not answer on port {state.port} in {HEALTH_LIMIT_SECONDS:.0f} s",
            cause="the machine may be very busy",
            fix="make logs",
        )


def describe_urls(status: LabStatus, machine: MachineFacts) -> Sequence[str]:
    """The last lines of `make up`: the URL, how to reach it from afar, and how to stop."""
    lines = [f"JupyterLab is ready:  {status.url}"]
    if machine.ssh_server and status.state and not status.opens_to_others:
        port = status.state.port
        address = reachable_address(status.state.bind)
        host = f"[{address}]" if ":" in address else address
        door = "" if machine.ssh_port == 22 else f"-p {machine.ssh_port} "
        user = f"{machine.user_name}@" if machine.user_name else ""
        lines.append(
            f"from your own computer:  ssh -N {door}-L {port}:{host}:{port} "
            f"{user}{machine.ssh_server}   # then open the URL there"
        )
    if status.state and status.opens_to_others and status.state.bind in ("0.0.0.0", "::"):  # noqa: S104
        lines.append(
            f"from another machine:  the same with this one's name or address for"
            f" {reachable_address(status.state.bind)}"
        )
    lines.append("stop it:  make down")
    return lines

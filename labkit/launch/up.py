"""`labkit up`: from a fresh clone to a URL, whatever this host has.

Makes the lab's environment ready for a command, and finds the lab that runs to run it in.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

from labkit.errors import EngineError, TimedOutError, UsageError
from labkit.host.distribution import read_distribution
from labkit.host.gpu import has_driver
from labkit.host.machine import MachineFacts, find_free_port, is_port_free
from labkit.host.packages import INSTALL_PODMAN_COMPOSE
from labkit.launch import workspace
from labkit.launch.compose import ContainerLab, PortTakenError
from labkit.launch.plan import Lab, Plan, announce_choices, check_settings, make_plan, probe_host
from labkit.launch.progress import Steps
from labkit.launch.server import probe_server, reachable_address, wait_until
from labkit.launch.settings import DEFAULT_PORT, Checkout, Settings
from labkit.launch.state import (
    LabHandle,
    LabState,
    ensure_token,
    forget_state,
    hold_lock,
    prepare_state_folder,
    timestamp,
    write_state,
)
from labkit.launch.status import LabStatus, list_differences, open_lab, read_status

HEALTH_LIMIT_SECONDS = 180.0
BUSY_LIMIT_SECONDS = 20.0
START_ATTEMPTS = 5


def start_lab(checkout: Checkout, settings: Settings, steps: Steps) -> LabStatus:
    """Starts the lab, unless it runs already, and waits until it answers."""
    # Before a lab that runs is held against them: `make down` would not make them known.
    check_settings(settings)
    running = find_running(checkout, settings, steps)
    if running:
        return running
    workspace.prepare_workspace(checkout)
    prepare_state_folder(checkout)
    token = ensure_token(checkout)
    plan = make_plan(checkout, settings, probe_host(checkout, settings, steps))
    announce(plan, settings, steps)
    if isinstance(plan.lab, ContainerLab) and plan.lab.identity:
        workspace.hand_over(checkout, plan.lab.identity)
    plan.lab.prepare(steps)
    state = launch(checkout, settings, plan, token, steps)
    for line in workspace.describe_update(checkout):
        steps.say(line)
    return LabStatus.of(checkout, state, healthy=True, token=token)


def find_running(
    checkout: Checkout, settings: Settings, steps: Steps, root: Path = Path("/")
) -> LabStatus | None:
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
        *list_differences(settings, state),
        *([f"PORT={settings.port}"] if settings.port not in (None, state.port) else []),
        *([f"BIND={settings.bind}"] if settings.bind_asked and settings.bind != state.bind else []),
    ]
    if differing:
        raise UsageError(
            f"a lab runs already, and not with {' '.join(differing)}",
            cause=f"it has runtime {state.runtime}, flavor {state.kind}, "
            f"port {state.port}, address {state.bind}",
            fix=f"make down && make up {' '.join(differing)}",
        )
    if settings.flavor == "auto" and state.flavor == "cpu" and has_driver(root):
        steps.say("the lab that runs is the cpu one, and this host has a GPU's driver")
        steps.say("  try: make down && make up   # chooses anew, and says why")
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
    announce_choices(plan, steps)
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
                state = _describe_state(plan, settings, port, handle)
                write_state(checkout, state)
                _wait_healthy(lab, state, token)
                _check_gpu(lab, state, settings, steps)
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


def _describe_state(plan: Plan, settings: Settings, port: int, handle: LabHandle) -> LabState:
    flavor = plan.flavor.value
    return LabState(
        plan.runtime.value,
        flavor.name,
        port,
        settings.bind,
        plan.runtime.reason,
        timestamp(),
        handle,
        build=flavor.build,
        gpus=",".join(flavor.gpus) or None,
        gpus_asked=",".join(settings.gpus) or None,
        way=flavor.way,
    )


def _check_gpu(lab: Lab, state: LabState, settings: Settings, steps: Steps) -> None:
    """Says where the lab was given a GPU and sees none; raises where one was asked for by name."""
    problem = lab.find_gpu_problem(state.handle)
    if problem is None:
        return
    what = f"the lab runs, but sees no GPU ({problem})"
    cause = f"{state.runtime} passed it on to a container, but its Compose did not"
    fix = "make doctor"
    if state.runtime == "podman":  # its Compose is one of several, and not all know CDI
        fix = f"{INSTALL_PODMAN_COMPOSE.on(read_distribution())}   # then: make down && make up"
    if settings.flavor == "cuda" or settings.asks_for_gpu:
        raise EngineError(what, cause=cause, fix=fix)
    steps.say(f"  warning: {what}: {cause}")
    steps.say(f"    try: {fix}")


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


def prepare_lab(
    checkout: Checkout, settings: Settings, steps: Steps, *, use_running: bool = True
) -> tuple[Lab, LabHandle | None]:
    """The lab to run a command in: the running one where it fits, else one made ready for it.

    Without ``use_running`` it is made ready alone, for which a cuda lab needs no GPU here.
    """
    status = read_status(checkout)
    state = status.state
    check_settings(settings)
    if use_running and state and status.healthy and not list_differences(settings, state):
        return open_lab(checkout, state), state.handle
    prepare_state_folder(checkout)
    plan = make_plan(checkout, settings, probe_host(checkout, settings, steps), demand=use_running)
    announce_choices(plan, steps)
    with hold_lock(checkout, lambda: steps.say("another `up` or `down` is at work: waiting")):
        workspace.prepare_workspace(checkout)
        ensure_token(checkout)
        if isinstance(plan.lab, ContainerLab) and plan.lab.identity:
            workspace.hand_over(checkout, plan.lab.identity)
        plan.lab.prepare(steps)
    return plan.lab, None

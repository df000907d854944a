"""`labkit up` starts the lab and prints its URL; `labkit exec` runs a command in the lab.

A running lab is reused, resumed or restarted; otherwise a lab is planned, prepared and started.
It is ready once its server has proved that this start owns it.
"""

from __future__ import annotations

import html
import json
import os
import shlex
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from labkit.errors import EngineError, LabkitError, TimedOutError, UsageError
from labkit.host.distribution import read_distribution
from labkit.host.gpu import has_driver
from labkit.host.machine import MachineFacts, find_free_port, is_port_free
from labkit.host.packages import INSTALL_PODMAN_COMPOSE
from labkit.launch import workspace
from labkit.launch.compose import ContainerLab, PortTakenError, list_overrides
from labkit.launch.local import LocalLab
from labkit.launch.plan import Lab, Plan, announce_choices, check_settings, make_plan, probe_host
from labkit.launch.progress import Steps
from labkit.launch.server import reachable_address, wait_until
from labkit.launch.settings import DEFAULT_PORT, Checkout, Identity, Settings
from labkit.launch.state import (
    LabHandle,
    LabState,
    ensure_token,
    forget_state,
    hold_lock,
    prepare_state_folder,
    renew_token,
    timestamp,
    write_private,
    write_state,
)
from labkit.launch.status import (
    NO_KERNELS,
    Condition,
    LabStatus,
    describe_kernels,
    examine_lab,
    list_differences,
    open_lab,
    place_checkout,
    read_status,
    resume_lab,
)
from labkit.process import run_command
from labkit.text import format_bytes

HEALTH_LIMIT_SECONDS = 180.0
BUSY_LIMIT_SECONDS = 20.0
START_ATTEMPTS = 5
# Memory that a default limit leaves to the host, so that it stays reachable.
LEAST_RESERVE_BYTES = 512 * 1024**2
MOST_RESERVE_BYTES = 8 * 1024**3


def start_lab(checkout: Checkout, settings: Settings, steps: Steps) -> LabStatus:
    """Starts the lab, unless it runs already, and waits until it answers."""
    # Invalid settings are an error even if a lab runs: `make down` would not make them valid.
    check_settings(settings)
    running = find_running(checkout, settings, steps)
    if running:
        return running
    workspace.prepare_workspace(checkout)
    prepare_state_folder(checkout)
    plan = make_plan(checkout, settings, probe_host(checkout, settings, steps))
    announce(plan, settings, steps)
    token = renew_token(checkout)
    plan = _prepare(checkout, _note_warnings(plan), steps)
    state = launch(checkout, settings, plan, token, steps)
    prepare_state_folder(checkout)  # closes the server's new files too
    for line in workspace.describe_update(checkout):
        steps.say(line)
    return LabStatus.of(checkout, state, token)


def _note_warnings(plan: Plan) -> Plan:
    """The plan with its choices' warnings as notices of the lab's start page."""
    found = [
        {"status": "warning", "found": choice.warning, "fix": choice.fix}
        for choice in (plan.runtime, plan.flavor)
        if choice.warning
    ]
    return replace(plan, lab=replace(plan.lab, notices=json.dumps(found))) if found else plan


def _prepare(checkout: Checkout, plan: Plan, steps: Steps) -> Plan:
    """Makes the planned lab ready to start: workspace, owner, memory limit, environment."""
    lab = plan.lab
    if isinstance(lab, LocalLab):
        _refuse_limit(lab.settings)
    if isinstance(lab, ContainerLab):
        if checkout.named and lab.identity and not lab.identity.owns_workspace:
            raise _refuse_roots_folder(checkout.named, lab.identity)
        settings = replace(lab.settings, memory_bytes=_limit_memory(lab, steps))
        plan = replace(plan, lab=replace(lab, settings=settings))
        if lab.identity:
            warning = workspace.hand_over(checkout, lab.identity)
            if warning:
                steps.say(f"  warning: {warning}")
    plan.lab.prepare(steps)
    return plan


def _refuse_limit(settings: Settings) -> None:
    """Raises UsageError if the user asked for a memory limit, which a local lab cannot have."""
    if settings.memory_bytes:
        raise UsageError(
            f"a lab without a container has no memory limit"
            f" (MEMORY asks for {format_bytes(settings.memory_bytes)})",
            cause="the lab runs from a .venv, as a process of your own",
            fix="make up MEMORY=off   # or with an engine: make doctor",
        )


def _refuse_roots_folder(named: Path, identity: Identity) -> UsageError:
    quoted = shlex.quote(str(named))
    return UsageError(
        f"the workspace {named} belongs to root",
        cause="the lab does not run as root, and labkit gives away no folder of your own",
        fix=f"chown -R {identity.user_id}:{identity.group_id} {quoted}"
        f"   # or another folder: make up LABKIT_WORKSPACE=...",
    )


def _limit_memory(lab: ContainerLab, steps: Steps) -> int:
    """The memory limit of the lab's container in bytes, 0 for none; prints the choice."""
    asked = lab.settings.memory_bytes
    if asked is not None:
        return asked
    total = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    limit = choose_memory_limit(total)
    if limit and lab.client == "podman" and not _podman_limits_memory():
        limit = 0
    if limit:
        steps.say(
            f"memory:  at most {format_bytes(limit)} of the machine's {format_bytes(total)}"
            " (MEMORY=off: no limit)"
        )
    return limit


def choose_memory_limit(total_bytes: int) -> int:
    """The default limit: most of the memory, so that the host stays reachable; 0 if it is small.

    >>> format_bytes(choose_memory_limit(32 * 1024**3))
    '28.8 GiB'
    """
    if total_bytes < 4 * LEAST_RESERVE_BYTES:
        return 0
    reserve = min(max(total_bytes // 10, LEAST_RESERVE_BYTES), MOST_RESERVE_BYTES)
    return total_bytes - reserve


def _podman_limits_memory() -> bool:
    """False if Podman would refuse a limit: rootless, without the memory controller."""
    words = ["podman", "info", "--format", "{{.Host.CgroupControllers}}"]
    answer = run_command(words, timeout_seconds=10)
    return answer.ok and "memory" in answer.stdout


def find_running(
    checkout: Checkout, settings: Settings, steps: Steps, root: Path = Path("/")
) -> LabStatus | None:
    """The running lab, resumed if it was paused; None if a lab must be started.

    A lab that cannot be used is stopped. Raises UsageError if the running lab has other settings
    than the user asked for by name, and EngineError if its engine does not answer.
    """
    status = _read_patiently(checkout, steps)
    state = status.state
    if state is None:
        return None
    if status.condition == "unreachable":
        raise EngineError(
            f"{state.runtime} does not answer, and the lab was started in it",
            cause="its daemon is not running or hangs; the lab's container may still run",
            fix=f"make doctor   # without {state.runtime}: rm .labkit/state.json"
            " && make up RUNTIME=local",
        )
    if not status.healthy:
        kernels = describe_kernels(state) if status.running else ""
        steps.say(f"the last lab cannot be used ({status.problem}): restarting it{kernels}")
        open_lab(checkout, state).stop(state.handle)
        forget_state(checkout)
        # The recorded lab may hide another one whose state file is lost: it has no start time.
        return find_running(checkout, settings, steps, root) if state.started_at else None
    _check_differences(checkout, settings, state)
    followed = _follow_lessons(checkout, state, steps)
    if followed is None:
        return None
    write_state(checkout, followed)  # the file may have been lost
    if settings.flavor == "auto" and state.flavor == "cpu" and has_driver(root):
        steps.say("the running lab has flavor cpu, but this host has a GPU driver")
        steps.say("  try: make down && make up   # chooses again and prints why")
    return status


def _follow_lessons(checkout: Checkout, state: LabState, steps: Steps) -> LabState | None:
    """Lays out lessons that have changed since the start; None if the lab was stopped for it.

    A local lab uses the checkout's own labs. A container has those of its image: it is stopped, to
    start again from a new one, if no kernel ends by that.
    """
    now = workspace.digest_lessons(checkout)
    lab, placed = open_lab(checkout, state), place_checkout(checkout, state)
    if state.lessons in (None, now):
        for line in workspace.describe_missing(placed):
            steps.say(line)
        return replace(state, lessons=now)
    if isinstance(lab, LocalLab):
        with steps.step("the lessons have changed: laying them out"):
            lab.lay_out_changes()
        for line in workspace.describe_update(placed):
            steps.say(line)
        return replace(state, lessons=now)
    kernels = describe_kernels(state)
    if kernels != NO_KERNELS:
        steps.say("the lessons have changed since this lab was started")
        steps.say(f"  try: make down && make up   # lays them out{kernels}")
        return state
    steps.say("the lessons have changed: restarting the lab, which has no kernels")
    lab.stop(state.handle)
    forget_state(checkout)
    return None


def _check_differences(checkout: Checkout, settings: Settings, state: LabState) -> None:
    """Raises UsageError if the running lab differs from what the user asked for by name."""
    differing = [
        *list_differences(checkout, settings, state),
        *([f"PORT={settings.port}"] if settings.port not in (None, state.port) else []),
        *([f"BIND={settings.bind}"] if settings.bind_asked and settings.bind != state.bind else []),
    ]
    if differing:
        raise UsageError(
            f"a lab is already running with other settings (you asked for {' '.join(differing)})",
            cause=f"it has runtime {state.runtime}, flavor {state.kind}, "
            f"port {state.port}, address {state.bind}",
            fix=f"make down && make up {' '.join(differing)}",
        )


def _read_patiently(checkout: Checkout, steps: Steps) -> LabStatus:
    """The status, after resuming a paused lab and waiting for a silent one."""
    status = read_status(checkout)
    if status.condition == "paused" and status.state:
        steps.say(f"the lab cannot answer ({status.problem}): resuming it")
        resume_lab(status.state)
        status = read_status(checkout)
    if status.condition == "silent":
        steps.say(f"the lab is busy or hangs ({status.problem}): waiting for it")
        wait_until(
            lambda: read_status(checkout).condition != "silent",
            timeout_seconds=BUSY_LIMIT_SECONDS,
            interval_seconds=1.0,
        )
        status = read_status(checkout)
    return status


def announce(plan: Plan, settings: Settings, steps: Steps) -> None:
    """Prints what was chosen and why, with warnings, such as that other machines can connect."""
    announce_choices(plan, steps)
    if isinstance(plan.lab, LocalLab):
        steps.say("memory:  not limited: the lab is a process of your own, without a container")
    if isinstance(plan.lab, ContainerLab):
        for name in list_overrides(plan.lab.checkout)[1::2]:
            steps.say(f"compose: {Path(name).name} overrules labkit's settings")
    if plan.identity and plan.identity.value.user_id != os.getuid():
        steps.say(f"user:    uid {plan.identity.value.user_id} ({plan.identity.reason})")
    warn_of_others(settings, steps)


def warn_of_others(settings: Settings, steps: Steps) -> None:
    """Prints a warning if other machines can reach the lab."""
    if settings.opens_to_others:
        steps.say(
            f"  warning: BIND={settings.bind} opens the lab to every machine that can reach"
            " this one; anyone with the URL can run programs here as you, and plain HTTP can be"
            " read on the network"
        )


def choose_port(settings: Settings, first: int, steps: Steps) -> int:
    """The requested port, or the first free one. Raises UsageError if it is taken."""
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
        cause="another program listens on it, or only root may use it",
        fix="make up   # takes the next free port",
    )


def launch(
    checkout: Checkout, settings: Settings, plan: Plan, token: str, steps: Steps
) -> LabState:
    """Starts the planned lab on a free port and waits until it is healthy.

    If it is interrupted or fails, it stops what it started.
    """
    port = choose_port(settings, settings.port or DEFAULT_PORT, steps)
    with steps.step("starting JupyterLab"):
        for attempt in range(START_ATTEMPTS):
            lab = plan.lab.on_port(port)
            handle = LabHandle()
            try:
                handle = lab.start()
                state = _describe_state(checkout, plan, settings, port, handle)
                write_state(checkout, state)
                _wait_healthy(lab, state, token)
                _check_gpu(lab, state, settings, steps)
                return state
            except PortTakenError:
                lab.stop(handle)
                forget_state(checkout)
                if plan.port_asked or attempt == START_ATTEMPTS - 1:
                    raise _port_taken(port) from None
                port = choose_port(settings, port + 1, steps)
            except BaseException:
                lab.stop(handle)
                forget_state(checkout)
                raise
    raise _port_taken(port)


def _describe_state(
    checkout: Checkout, plan: Plan, settings: Settings, port: int, handle: LabHandle
) -> LabState:
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
        workspace=str(checkout.named) if checkout.named else None,
        data=str(settings.data) if settings.data else None,
        env_file=str(settings.env_file) if settings.env_file else None,
        lessons=workspace.digest_lessons(checkout),
    )


def _check_gpu(lab: Lab, state: LabState, settings: Settings, steps: Steps) -> None:
    """Warns if a cuda lab sees no GPU; raises if the user asked for it by name."""
    problem = lab.find_gpu_problem(state.handle)
    if problem is None:
        return
    what = f"the lab runs, but sees no GPU ({problem})"
    cause = f"{state.runtime} passes the GPU on to a container, but its Compose does not"
    fix = "make doctor"
    if state.runtime == "podman":  # not all Compose programs that it uses support CDI
        fix = f"{INSTALL_PODMAN_COMPOSE.on(read_distribution())}   # then: make down && make up"
    if settings.flavor == "cuda" or settings.asks_for_gpu:
        raise EngineError(what, cause=cause, fix=fix)
    steps.say(f"  warning: {what}: {cause}")
    steps.say(f"    try: {fix}")


def _wait_healthy(lab: Lab, state: LabState, token: str) -> None:
    """Returns once the server has proved that this start owns it.

    Raises PortTakenError if another program took the port in the meantime, EngineError if the
    server dies, TimedOutError if it does not answer within the limit.
    """
    condition: Condition = "silent"

    def is_decided() -> bool:
        nonlocal condition
        condition = examine_lab(state, token)
        return condition in ("healthy", "gone")

    wait_until(is_decided, timeout_seconds=HEALTH_LIMIT_SECONDS, interval_seconds=0.2)
    if condition == "healthy":
        return
    if condition == "foreign" or (condition == "gone" and not is_port_free(state.bind, state.port)):
        raise PortTakenError(f"another program took port {state.port}")
    said = lab.explain_death(state.handle)
    if condition == "gone":
        raise said
    if condition == "unproven":
        raise EngineError(
            f"the server on port {state.port} does not prove that it is the lab",
            cause="the lab was built from an older labkit, or a program intercepts the port",
            fix="make build && make up",
        )
    raise _explain_silence(state, said)


def _explain_silence(state: LabState, said: LabkitError) -> TimedOutError:
    """The error of a server that never answered, with the end of its log."""
    load, processors = os.getloadavg()[0], os.cpu_count() or 1
    busy = f"the machine is very busy: load {load:.0f} on {processors} processors"
    quoted = "".join(said.what.partition("\n")[1:])
    return TimedOutError(
        f"JupyterLab did not answer on port {state.port} in {HEALTH_LIMIT_SECONDS:.0f} s{quoted}",
        cause=busy if load > 2 * processors else said.cause,
        fix=said.fix,
    )


def describe_urls(status: LabStatus, machine: MachineFacts) -> Sequence[str]:
    """The last lines of `make up`: the URL, how to reach it remotely, and how to stop the lab."""
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


def open_browser(status: LabStatus, steps: Steps) -> None:
    """Opens the lab's URL in the browser, without the token in any program's arguments.

    The browser gets a page of mode 0600 that leads to the URL. Says so if there is no browser.
    """
    import webbrowser

    has_screen = sys.platform == "darwin" or any(
        map(os.environ.get, ("DISPLAY", "WAYLAND_DISPLAY"))
    )
    page = status.checkout.state_folder / "open.html"
    write_private(
        page, f'<meta http-equiv="refresh" content="0; url={html.escape(status.url or "")}">'
    )
    # Without a screen, a browser of the terminal would take this one.
    if not (has_screen and webbrowser.open(page.as_uri())):
        steps.say("OPEN=1: no browser can be opened here; open the URL yourself")


def prepare_lab(
    checkout: Checkout, settings: Settings, steps: Steps, *, use_running: bool = True
) -> tuple[Lab, LabHandle | None]:
    """The lab to run a command in: the running lab if it fits, else a prepared one.

    Without ``use_running`` the lab is only prepared: a cuda lab then needs no GPU here.
    """
    status = read_status(checkout)
    state = status.state
    check_settings(settings)
    differs = state is not None and list_differences(checkout, settings, state)
    if use_running and state and status.healthy and not differs:
        return open_lab(checkout, state), state.handle
    prepare_state_folder(checkout)
    plan = make_plan(checkout, settings, probe_host(checkout, settings, steps), demand=use_running)
    announce_choices(plan, steps)
    with hold_lock(checkout, lambda: steps.say("another `up` or `down` is at work: waiting")):
        workspace.prepare_workspace(checkout)
        ensure_token(checkout)
        return _prepare(checkout, plan, steps).lab, None

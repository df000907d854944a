"""Makes the lab's environment ready for a command, and finds the lab that runs to run it in."""

from __future__ import annotations

from labkit.launch import workspace
from labkit.launch.container import ContainerLab
from labkit.launch.settings import Checkout, Settings
from labkit.launch.state import LabHandle, ensure_token, hold_lock, prepare_state_folder
from labkit.launch.status import open_lab, read_status
from labkit.launch.steps import Steps
from labkit.launch.up import Lab, make_plan, probe_host


def prepare_lab(
    checkout: Checkout, settings: Settings, steps: Steps, *, use_running: bool = True
) -> tuple[Lab, LabHandle | None]:
    """The lab to run a command in: the running one where it fits, else one made ready for it."""
    status = read_status(checkout)
    state = status.state
    if use_running and state and status.healthy and settings.runtime in ("auto", state.runtime):
        return open_lab(checkout, state), state.handle
    prepare_state_folder(checkout)
    plan = make_plan(checkout, settings, probe_host(settings))
    steps.say(f"runtime: {plan.runtime.value} ({plan.runtime.reason})")
    with hold_lock(checkout, lambda: steps.say("another `up` or `down` is at work: waiting")):
        workspace.prepare_workspace(checkout)
        ensure_token(checkout)
        if isinstance(plan.lab, ContainerLab) and plan.lab.identity:
            workspace.hand_over(checkout, plan.lab.identity)
        plan.lab.prepare(steps)
    return plan.lab, None

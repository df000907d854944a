"""Makes the lab's environment ready for a command, and finds the lab that runs to run it in."""

from __future__ import annotations

from labkit.launch import workspace
from labkit.launch.container import ContainerLab
from labkit.launch.plan import (
    Lab,
    announce_choices,
    check_settings,
    make_plan,
    probe_host,
)
from labkit.launch.settings import Checkout, Settings
from labkit.launch.state import LabHandle, ensure_token, hold_lock, prepare_state_folder
from labkit.launch.status import list_differences, open_lab, read_status
from labkit.launch.steps import Steps


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

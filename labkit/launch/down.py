"""`labkit down`: stops whatever lab of this checkout runs, remembered or not."""

from __future__ import annotations

from labkit.launch.choose_build import DEFAULT_BUILD
from labkit.launch.choose_flavor import CPU, Flavor
from labkit.launch.container import ContainerLab
from labkit.launch.settings import Checkout, Settings
from labkit.launch.state import forget_state, read_state
from labkit.launch.status import open_lab
from labkit.launch.steps import Steps

# A cuda lab with its GPUs, as `up` starts one, whatever its build.
CHOSEN = Flavor("cuda", DEFAULT_BUILD, way="cdi")


def stop_lab(checkout: Checkout, steps: Steps) -> bool:
    """Stops the lab; False where none was running. The workspace is left as it is."""
    state = read_state(checkout)
    if state is None:
        return _stop_forgotten(checkout, steps)
    lab = open_lab(checkout, state)
    alive = lab.is_alive(state.handle)
    with steps.step("stopping the lab"):
        lab.stop(state.handle)
    forget_state(checkout)
    return alive


def _stop_forgotten(checkout: Checkout, steps: Steps) -> bool:
    """Stops a container that the launcher no longer remembers (its state file was deleted)."""
    for client in ("docker", "podman"):
        for flavor in (CPU, CHOSEN):
            lab = ContainerLab(checkout, client, flavor, Settings())
            if lab.find_container():
                with steps.step(f"stopping a lab that {client} still has"):
                    lab.stop()
                return True
    return False

"""`labkit down` stops the checkout's lab; `make clean` removes all that labkit created.

Neither changes the workspace.
"""

from __future__ import annotations

import shutil

from labkit.host.torch_builds import BUILDS
from labkit.launch.compose import ContainerLab
from labkit.launch.progress import Steps
from labkit.launch.settings import Checkout, Flavor, Settings
from labkit.launch.state import LabState, forget_state, read_state
from labkit.launch.status import find_forgotten_lab, open_lab, resume_lab
from labkit.launch.venv import SIMULATED_VENV, PythonEnvironment
from labkit.process import run_command


def stop_lab(checkout: Checkout, steps: Steps) -> bool:
    """Stops the lab, even if its state file is lost; False if none was running."""
    was_running = False
    for find_state in (read_state, find_forgotten_lab):
        state = find_state(checkout)
        if state is not None:
            was_running = _stop(checkout, state, steps) or was_running
    _remove_networks(checkout)
    return was_running


def _remove_networks(checkout: Checkout) -> None:
    """Removes this checkout's networks that nothing uses.

    `make run` and a container that was removed by hand leave one behind, and an engine has address
    ranges for some thirty.
    """
    label = f"label=com.docker.compose.project={checkout.project}"
    for client in ("docker", "podman"):
        words = [client, "network", "ls", "--quiet", "--filter", label]
        listed = run_command(words, timeout_seconds=10)
        for network in listed.stdout.split() if listed.ok else ():
            # Refused while a command of this checkout uses it.
            run_command([client, "network", "rm", network], timeout_seconds=20)


def _stop(checkout: Checkout, state: LabState, steps: Steps) -> bool:
    lab = open_lab(checkout, state)
    with steps.step("stopping the lab"):
        resume_lab(state)  # a paused process handles no signal and cannot end its kernels
        was_running = lab.is_alive(state.handle)
        lab.stop(state.handle)
    forget_state(checkout)
    return was_running


def clean_checkout(checkout: Checkout, steps: Steps) -> list[str]:
    """Stops the lab, removes images, caches, .venv and state, and returns the removed names."""
    stop_lab(checkout, steps)
    removed: list[str] = []
    for client in ("docker", "podman"):
        removed += _clean_engine(checkout, client, steps)
    state = checkout.state_folder
    for name in (None, SIMULATED_VENV):
        environment = PythonEnvironment(checkout, name)
        if environment.is_owned:
            shutil.rmtree(environment.folder)
            removed.append(environment.folder.name)
        elif environment.folder.exists():
            steps.say(f"kept {environment.folder}: it has no mark that labkit made it")
    if state.is_symlink():  # its target is not ours
        state.unlink()
        removed.append(state.name)
    elif state.exists():
        shutil.rmtree(state)
        removed.append(state.name)
    return removed


def _clean_engine(checkout: Checkout, client: str, steps: Steps) -> list[str]:
    """Removes the engine's containers, volumes and images of this checkout."""
    flavors = [Flavor(build.flavor, build.name) for build in BUILDS.values()]
    labs = [ContainerLab(checkout, client, flavor, Settings()) for flavor in flavors]
    names = dict.fromkeys(name for lab in labs for name in (lab.image, lab.test_image))
    images = [name for name in names if _has_image(client, name)]
    volume = f"{checkout.project}_caches"
    has_volume = run_command([client, "volume", "inspect", volume], timeout_seconds=20).ok
    if not images and not has_volume:
        return []
    lab = labs[0]
    with steps.step(f"removing this lab from {client}"):
        run_command(
            lab.compose_command(["down", "--volumes", "--remove-orphans"]),
            timeout_seconds=120,
            environment=lab.environment(),
        )
        gone = [
            name
            for name in images
            if run_command([client, "image", "rm", name], timeout_seconds=120).ok
        ]
    return [*gone, *([volume] if has_volume else [])]


def _has_image(client: str, name: str) -> bool:
    return run_command([client, "image", "inspect", name], timeout_seconds=20).ok

"""`make clean`: removes all that labkit made in and for a checkout; never the workspace.

`labkit down`: stops whatever lab of this checkout runs, remembered or not.
"""

from __future__ import annotations

import shutil

from labkit.host.torch_builds import BUILDS, CUDA_BUILDS
from labkit.launch.compose import ContainerLab
from labkit.launch.progress import Steps
from labkit.launch.settings import CPU, Checkout, Flavor, Settings
from labkit.launch.state import forget_state, read_state
from labkit.launch.status import open_lab
from labkit.launch.venv import PythonEnvironment
from labkit.process import run_command

# A cuda lab with its GPUs, as `up` starts one, whatever its build.
CHOSEN = Flavor("cuda", CUDA_BUILDS[0].name, way="cdi")


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


def clean_checkout(checkout: Checkout, steps: Steps) -> list[str]:
    """Stops the lab, then removes images, caches, .venv and state; the names of what went."""
    stop_lab(checkout, steps)
    removed: list[str] = []
    for client in ("docker", "podman"):
        removed += _clean_engine(checkout, client, steps)
    environment, state = PythonEnvironment(checkout), checkout.state_folder
    if environment.is_owned:
        shutil.rmtree(environment.folder)
        removed.append(environment.folder.name)
    elif environment.folder.exists():
        steps.say(f"left {environment.folder}, which has no mark that labkit made it")
    if state.is_symlink():  # what it leads to is not ours
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
    with steps.step(f"removing what {client} has of this lab"):
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

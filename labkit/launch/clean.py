"""`make clean`: removes all that labkit made in and for a checkout; never the workspace."""

from __future__ import annotations

import shutil

from labkit.commands import run_command
from labkit.host.builds import BUILDS
from labkit.launch.choose_flavor import Flavor
from labkit.launch.container import ContainerLab
from labkit.launch.down import stop_lab
from labkit.launch.settings import Checkout, Settings
from labkit.launch.steps import Steps


def clean_checkout(checkout: Checkout, steps: Steps) -> list[str]:
    """Stops the lab, then removes images, caches, .venv and state; the names of what went."""
    stop_lab(checkout, steps)
    removed: list[str] = []
    for client in ("docker", "podman"):
        removed += _clean_engine(checkout, client, steps)
    for folder in (checkout.environment_folder, checkout.state_folder):
        if folder.is_symlink():  # what it leads to is not ours
            folder.unlink()
            removed.append(folder.name)
        elif folder.exists():
            shutil.rmtree(folder)
            removed.append(folder.name)
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

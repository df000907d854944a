"""The build of torch that a name or a flavor means."""

from __future__ import annotations

import shlex
from collections.abc import Iterable

from labkit.errors import LabkitError, UsageError
from labkit.host.builds import BUILDS, CPU_BUILD, CUDA_BUILDS, TorchBuild
from labkit.launch.settings import Checkout
from labkit.units import near_match


def choose_named_build(flavor: str, cuda: str) -> TorchBuild:
    """The build to make of a flavor on a host that need not run it: no GPU is asked about.

    >>> choose_named_build("cuda", "auto").name
    'cu130'
    """
    if flavor != "cuda" and cuda == "auto":
        return CPU_BUILD
    return CUDA_BUILDS[0] if cuda == "auto" else find_build(cuda)


def find_build(name: str) -> TorchBuild:
    """The build of this name.

    Raises UsageError, with the near match, for a name that is none.

    >>> find_build("cu126").locks
    ('cuda-cu126', 'torch-cu126', 'lab')
    """
    if name in BUILDS:
        return BUILDS[name]
    near = near_match(name.lower(), tuple(BUILDS))
    raise UsageError(
        f"unknown build of torch {name!r}",
        cause=f"it is one of: {', '.join(build.name for build in CUDA_BUILDS)}",
        fix=f"make up CUDA={near or CUDA_BUILDS[0].name}",
    )


def check_locks(checkout: Checkout, locks: Iterable[str]) -> None:
    """Raises LabkitError where a lock is missing, before anything is fetched or removed for it."""
    folder = checkout.root / "docker" / "locks"
    missing = [name for name in locks if not (folder / f"{name}.txt").is_file()]
    if missing:
        raise LabkitError(
            f"docker/locks/{missing[0]}.txt is missing",
            cause="the checkout is not complete",
            fix=f"git -C {shlex.quote(str(checkout.root))} checkout -- docker/locks",
        )

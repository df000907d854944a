"""The build of torch that a name or a flavor means."""

from __future__ import annotations

from labkit.errors import UsageError
from labkit.host.builds import BUILDS, CPU_BUILD, CUDA_BUILDS, TorchBuild
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

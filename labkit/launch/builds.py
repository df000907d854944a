"""The builds of torch that the lab comes with: one for the CPU, one for each CUDA."""

from __future__ import annotations

from dataclasses import dataclass

from labkit.errors import UsageError
from labkit.units import near_match

TORCH_VERSION = "2.13.0"
PYTORCH_INDEX = "https://download.pytorch.org/whl"


@dataclass(frozen=True)
class TorchBuild:
    """One build of torch: what it is called, and which locks make it."""

    name: str
    cuda: str | None  # the CUDA it carries, such as "13.0"; None for the CPU
    from_default_index: bool = False  # else it is on PyTorch's own index alone

    @property
    def flavor(self) -> str:
        """The flavor of the lab that this build makes: cpu or cuda."""
        return "cuda" if self.cuda else "cpu"

    @property
    def torch_version(self) -> str:
        """What ``torch.__version__`` says of it, such as "2.13.0+cu130"."""
        return f"{TORCH_VERSION}+{self.name}"

    @property
    def torch_lock(self) -> str:
        """The lock that holds torch alone."""
        return f"torch-{self.name}"

    @property
    def locks(self) -> tuple[str, ...]:
        """The locks in docker/locks/ that make the lab's environment, in the order to install."""
        libraries = (f"cuda-{self.name}",) if self.cuda else ()
        return (*libraries, self.torch_lock, "lab")

    @property
    def torch_index(self) -> str | None:
        """PyTorch's index where torch comes from there, else None: the default index."""
        return None if self.from_default_index else f"{PYTORCH_INDEX}/{self.name}"


CPU_BUILD = TorchBuild("cpu", None)
# The newest first: the build to take where nothing speaks for another.
CUDA_BUILDS = (
    TorchBuild("cu130", "13.0", from_default_index=True),
    TorchBuild("cu126", "12.6"),
)
BUILDS = {build.name: build for build in (CPU_BUILD, *CUDA_BUILDS)}


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

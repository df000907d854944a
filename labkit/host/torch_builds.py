"""The builds of torch that the lab offers, what each needs, and the torch that is installed."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from labkit.host.gpu import Capability

TORCH_VERSION = "2.13.0"
PYTORCH_INDEX = "https://download.pytorch.org/whl"


# PyTorch makes its CUDA wheels for these, and leaves older architectures out of those for ARM64.
MACHINES = ("x86_64", "aarch64")
OLDEST_ON = {"aarch64": (8, 0)}


@dataclass(frozen=True)
class BuildNeeds:
    """What a build asks of a host: the driver's branch, and architectures from ``oldest`` on.

    ``newest`` is None where code for later architectures is made from the build's PTX.
    """

    driver: int
    oldest: Capability
    newest: Capability | None

    def has_code_for(self, capability: Capability, machine: str) -> bool:
        """True where the build runs on GPUs of this compute capability in such a machine."""
        oldest = max(self.oldest, OLDEST_ON.get(machine, self.oldest))
        return oldest <= capability and (self.newest is None or capability <= self.newest)


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
# By the names of the CUDA builds, in their order.
NEEDS = {
    "cu130": BuildNeeds(580, (7, 5), None),
    "cu126": BuildNeeds(525, (5, 0), (9, 0)),
}


class InstalledTorch(NamedTuple):
    """The installed torch: its version, and what it was built for, each by its version or None.

    ``cuda`` for NVIDIA's GPUs, ``hip`` for AMD's, ``xpu`` for Intel's.
    """

    version: str
    cuda: str | None = None
    hip: str | None = None
    xpu: str | None = None

    def describe(self) -> str:
        """What kind of build it is, as the second half of a sentence.

        >>> InstalledTorch("2.13.0+cpu").describe()
        'torch 2.13.0+cpu is a CPU build'
        >>> InstalledTorch("2.13.0+rocm7.1", hip="7.1").describe()
        'torch 2.13.0+rocm7.1 is built for ROCm'
        """
        built = {"CUDA": self.cuda, "ROCm": self.hip, "XPU": self.xpu}
        platform = next((name for name, version in built.items() if version), None)
        without = "a CPU build" if self.version.endswith("+cpu") else "built without CUDA"
        return f"torch {self.version} is {f'built for {platform}' if platform else without}"


def read_torch_build(folder: Path | None = None) -> InstalledTorch | None:
    """The installed torch's version and CUDA, without importing it; None where there is none.

    Read from ``torch/version.py``: the package's metadata leaves out what a wheel was built for
    ("2.13.0" where this file says "2.13.0+cu130"), and importing torch takes seconds.
    """
    folder = folder or find_torch_folder()
    if folder is None:
        return None
    try:
        text = (folder / "version.py").read_text(encoding="utf-8")
    except OSError:
        return None
    fields = r"^(__version__|cuda|hip|xpu)\b[^=\n]*=\s*'([^'\n]*)'"
    told = dict(re.findall(fields, text, re.MULTILINE))
    version = told.pop("__version__", None)
    return InstalledTorch(version, **told) if version else None


def find_torch_folder() -> Path | None:
    """The folder of the torch that ``import torch`` would load, or None."""
    from importlib.util import find_spec

    try:
        spec = find_spec("torch")
    except ValueError:  # a stand-in without a spec sits in sys.modules
        return None
    places = list(spec.submodule_search_locations or ()) if spec else []
    return Path(places[0]) if places else None

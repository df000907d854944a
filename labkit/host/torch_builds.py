"""The builds of torch that the lab comes with, and what each of them asks of a host."""

from __future__ import annotations

from dataclasses import dataclass

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

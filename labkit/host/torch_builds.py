"""The builds of torch that the lab offers, the choice for a host, and the installed torch."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from labkit.errors import DeviceMissingError, EngineError, LabkitError, UsageError
from labkit.host.distribution import UNKNOWN, Distribution
from labkit.host.gpu import Capability, Gpu, GpuFacts, describe_architecture, describe_gpus
from labkit.host.packages import CPU_LAB, CUDA_12, CUDA_13, advise_driver
from labkit.text import near_match

TORCH_VERSION = "2.13.0"
PYTORCH_INDEX = "https://download.pytorch.org/whl"


# PyTorch makes CUDA wheels for these machines.
MACHINES = ("x86_64", "aarch64")
# The GPUs of NVIDIA's Tegra chips (Jetson) run only code that was built for them alone.
TEGRA: frozenset[Capability] = frozenset({(5, 3), (6, 2), (7, 2), (8, 7), (10, 1)})
ON_JETSON = "a Jetson needs NVIDIA's own builds of torch"
JETSON_WHEELS = "docs.nvidia.com/deeplearning/frameworks/install-pytorch-jetson-platform"


@dataclass(frozen=True)
class BuildNeeds:
    """What a build needs: the driver's branch, and a GPU that its code runs on.

    ``code`` has the compute capabilities that the build is compiled for, by machine, as torch
    lists them (``torch.cuda.PYTORCH_RELEASES_CODE_CC``).
    """

    driver: int
    code: dict[str, tuple[Capability, ...]]

    def has_code_for(self, capability: Capability, machine: str) -> bool:
        """True if the build runs on GPUs of this compute capability in this kind of machine."""
        return any(_runs_on(code, capability) for code in self.code.get(machine, ()))

    def describe_span(self, machine: str) -> str:
        """The capabilities that the build has code for, as "7.5 to 12.0"."""
        code = self.code.get(machine) or ((0, 0),)
        return "{}.{} to {}.{}".format(*code[0], *code[-1])


def _runs_on(code: Capability, capability: Capability) -> bool:
    """True if code runs on the GPU: it is for the same major version, and not for a later one."""
    if capability in TEGRA:
        return code == capability
    return code[0] == capability[0] and code[1] <= capability[1]


@dataclass(frozen=True)
class TorchBuild:
    """One build of torch: its name, its CUDA, and the locks that install it."""

    name: str
    cuda: str | None  # its CUDA version, such as "13.0"; None for the CPU
    from_default_index: bool = False  # else only PyTorch's own index has it

    @property
    def flavor(self) -> str:
        """The lab's flavor with this build: cpu or cuda."""
        return "cuda" if self.cuda else "cpu"

    @property
    def torch_version(self) -> str:
        """Its ``torch.__version__``, such as "2.13.0+cu130"."""
        return f"{TORCH_VERSION}+{self.name}"

    @property
    def torch_lock(self) -> str:
        """The lock with torch alone."""
        return f"torch-{self.name}"

    @property
    def locks(self) -> tuple[str, ...]:
        """The lab's locks in docker/locks/, in the order to install them."""
        libraries = (f"cuda-{self.name}",) if self.cuda else ()
        return (*libraries, self.torch_lock, "lab")

    @property
    def torch_index(self) -> str | None:
        """PyTorch's index of the build, or None if the default index has it."""
        return None if self.from_default_index else f"{PYTORCH_INDEX}/{self.name}"


CPU_BUILD = TorchBuild("cpu", None)
# The newest first: it is the default.
CUDA_BUILDS = (
    TorchBuild("cu130", "13.0", from_default_index=True),
    TorchBuild("cu126", "12.6"),
)
BUILDS = {build.name: build for build in (CPU_BUILD, *CUDA_BUILDS)}
# By the names of the CUDA builds, in their order: the newest first.
NEEDS = {
    "cu130": BuildNeeds(
        CUDA_13,
        {
            "x86_64": ((7, 5), (8, 0), (8, 6), (9, 0), (10, 0), (12, 0)),
            "aarch64": ((8, 0), (9, 0), (10, 0), (11, 0), (12, 0)),
        },
    ),
    "cu126": BuildNeeds(
        CUDA_12,
        {
            "x86_64": ((5, 0), (6, 0), (7, 0), (7, 5), (8, 0), (8, 6), (9, 0)),
            "aarch64": ((8, 0), (9, 0)),
        },
    ),
}


def find_build(name: str) -> TorchBuild:
    """The build of this name.

    Raises UsageError, with the nearest match, if there is no such build.

    >>> find_build("cu126").locks
    ('cuda-cu126', 'torch-cu126', 'lab')
    """
    if name in BUILDS:
        return BUILDS[name]
    near = near_match(name.lower(), tuple(BUILDS))
    raise UsageError(
        f"unknown build of torch {name!r}",
        cause=f"it is one of: {', '.join(NEEDS)}",
        fix=f"make up CUDA={near or CUDA_BUILDS[0].name}",
    )


@dataclass(frozen=True)
class BuildHost:
    """The facts for the choice of a build: the driver, the GPUs of the lab, and the machine."""

    facts: GpuFacts
    gpus: tuple[Gpu, ...]
    machine: str = "x86_64"
    distribution: Distribution = UNKNOWN

    @property
    def driver(self) -> str:
        """The driver's version as it is shown."""
        return self.facts.driver_version or "unknown"

    def advise_driver(self, least: int) -> str:
        """The command that installs a driver of branch ``least`` or newer for the oldest GPU."""
        known = [gpu.capability for gpu in self.gpus if gpu.capability]
        oldest = min(known, default=None)
        virtual = any(gpu.is_virtual for gpu in self.gpus)
        return advise_driver(
            self.distribution, oldest, wsl=self.facts.wsl, least=least, virtual=virtual
        ).command

    def list_served(self, build: str) -> tuple[Gpu, ...]:
        """The GPUs that the build runs on."""
        return tuple(gpu for gpu in self.gpus if not find_gpu_obstacle(build, gpu, self.machine))

    def is_served(self, build: str) -> bool:
        """True if the build runs on a GPU of the host, or the host does not list its GPUs."""
        return bool(self.list_served(build)) or not self.gpus

    def has_driver_for(self, build: str) -> bool:
        """True if machine and driver support the build, or the driver's version is unknown."""
        major = self.facts.driver_major
        return self.machine in MACHINES and (major is None or major >= NEEDS[build].driver)


@dataclass(frozen=True)
class BuildChoice:
    """The CUDA build for a host, its GPUs, the reason, and a warning about excluded GPUs."""

    name: str
    gpus: tuple[Gpu, ...]
    reason: str
    warning: str | None = None
    fix: str | None = None


def choose_build(asked: str, host: BuildHost, *, all_asked: bool = False) -> BuildChoice:
    """The build that supports most of the host's GPUs; the newest of several.

    ``asked`` is a build's name or "auto". Raises EngineError if no build, or not the requested
    one, supports any GPU; with ``all_asked``, also if a GPU would be left out.
    """
    able = [name for name in NEEDS if host.has_driver_for(name)]
    if asked != "auto":
        if asked not in able or not host.is_served(asked):
            raise _refuse_asked(asked, able, host)
        best = asked
    else:
        if not any(host.is_served(name) for name in able):
            raise _refuse_all(host)
        best = max(able, key=lambda name: len(host.list_served(name)))
    served = host.list_served(best)
    left_out = [gpu for gpu in host.gpus if gpu not in served]
    if left_out and all_asked:
        raise _refuse_together(best, left_out, host)
    warning = _warn(best, left_out, host) if left_out or all_asked else _warn_of_mig(served)
    return BuildChoice(best, served, _explain(best, served, host), *warning)


def find_gpu_obstacle(build: str, gpu: Gpu, machine: str) -> str | None:
    """Why a lab of this build cannot use the GPU, or None if no reason is known."""
    if not gpu.answers:
        return "the driver reports an error for it (nvidia-smi prints ERR!)"
    if gpu.lacks_instances:
        return "it is in MIG mode and has no MIG instances"
    if gpu.capability is None or NEEDS[build].has_code_for(gpu.capability, machine):
        return None
    no_code = f"build {build} has no code for its architecture ({describe_architecture(gpu)})"
    return f"{no_code}: {ON_JETSON}" if gpu.capability in TEGRA else no_code


def _explain(build: str, served: Sequence[Gpu], host: BuildHost) -> str:
    if any(gpu.capability is not None for gpu in served):
        return f"build {build} for {describe_gpus(served)} with driver {host.driver}"
    return f"build {build} by driver {host.driver} alone: the GPU's architecture is not known"


def _warn(build: str, left_out: Sequence[Gpu], host: BuildHost) -> tuple[str | None, str | None]:
    """The warning about the GPUs that a lab of this build cannot use, and its fix."""
    if not left_out:
        return None, None
    said = [
        f"{gpu.name} (GPU {gpu.index}) is left out: {find_gpu_obstacle(build, gpu, host.machine)}"
        for gpu in left_out
    ]
    alone = next((gpu for gpu in left_out if gpu.answers and not gpu.lacks_instances), None)
    if not left_out[0].answers:
        return "; ".join(said), "make doctor   # shows the GPU's faults"
    fix = f"make up GPUS={alone.index}   # a lab on that one" if alone else _divide(left_out[0])
    return "; ".join(said), fix


def _warn_of_mig(served: Sequence[Gpu]) -> tuple[str | None, str | None]:
    """The warning that a process uses one of several MIG instances, and how to choose one."""
    split = next((gpu for gpu in served if len(gpu.instances) > 1), None)
    if split is None:
        return None, None
    count = len(split.instances)
    words = f"{split.name} (GPU {split.index}) has {count} MIG instances, and a process gets one"
    return words, f"make up GPUS={split.instances[0]}   # a lab on that one"


def _divide(gpu: Gpu) -> str:
    """The command that makes a GPU in MIG mode usable."""
    return f"sudo nvidia-smi mig -i {gpu.index} -cgi 0 -C   # one instance of the whole GPU"


def _refuse_asked(asked: str, able: Sequence[str], host: BuildHost) -> LabkitError:
    others = [name for name in able if name != asked and host.is_served(name)]
    fix = f"make up CUDA={others[0]}" if others else CPU_LAB
    if host.machine not in MACHINES:
        cause = _describe_machine(host)
    elif asked not in able:
        cause = f"it needs driver {NEEDS[asked].driver} or newer, and {host.driver} is loaded"
        fix = fix if others else host.advise_driver(NEEDS[asked].driver)
    else:
        each = ((gpu.name, find_gpu_obstacle(asked, gpu, host.machine)) for gpu in host.gpus)
        cause = "; ".join(f"{name}: {why}" for name, why in each)
    return EngineError(f"build {asked} cannot run here", cause=cause, fix=fix)


def _refuse_all(host: BuildHost) -> LabkitError:
    """Why no build runs on this driver and these GPUs."""
    what = f"no build of torch fits {describe_gpus(host.gpus)} with driver {host.driver}"
    if host.machine not in MACHINES:
        return EngineError(what, cause=_describe_machine(host), fix=CPU_LAB)
    major, oldest = host.facts.driver_major, min(needs.driver for needs in NEEDS.values())
    # If no build has code for the GPU, a newer driver does not help.
    with_code = [name for name in NEEDS if host.is_served(name)]
    if with_code and major is not None and major < oldest:
        return EngineError(
            f"driver {host.driver} is too old for CUDA",
            cause=f"every CUDA build of torch here needs driver {oldest} or newer",
            fix=host.advise_driver(oldest),
        )
    unusable = _refuse_unusable(what, host)
    if unusable:
        return unusable
    architecture = describe_architecture(host.gpus[0])
    if with_code:
        return EngineError(
            what,
            cause=f"its architecture ({architecture}) needs build {with_code[0]}, which needs"
            f" driver {NEEDS[with_code[0]].driver} or newer",
            fix=host.advise_driver(NEEDS[with_code[0]].driver),
        )
    cause = f"no build has code for its architecture ({architecture})"
    if host.gpus[0].capability in TEGRA:
        fix = f"{CPU_LAB}   # with the GPU: {JETSON_WHEELS}"
        return EngineError(what, cause=f"{cause}: {ON_JETSON}", fix=fix)
    return EngineError(what, cause=cause, fix=CPU_LAB)


def _refuse_unusable(what: str, host: BuildHost) -> LabkitError | None:
    """The error for a GPU that fails, or that MIG leaves without an instance."""
    for gpu in host.gpus:
        why = find_gpu_obstacle(CUDA_BUILDS[0].name, gpu, host.machine)
        cause = f"{gpu.name} (GPU {gpu.index}): {why}"
        if not gpu.answers:
            return EngineError(what, cause=cause, fix="make doctor")
        if gpu.lacks_instances:
            return DeviceMissingError(what, cause=cause, fix=_divide(gpu))
    return None


def _describe_machine(host: BuildHost) -> str:
    return f"the builds are for {' and '.join(MACHINES)}, and this machine is {host.machine}"


def _refuse_together(build: str, left_out: Sequence[Gpu], host: BuildHost) -> LabkitError:
    together = " and ".join(f"GPU {gpu.index}" for gpu in host.gpus)
    served = ",".join(str(gpu.index) for gpu in host.gpus if gpu not in left_out)
    gpu = left_out[0]
    return EngineError(
        f"no build of torch serves {together} together",
        cause=f"{gpu.name} (GPU {gpu.index}): {find_gpu_obstacle(build, gpu, host.machine)}",
        fix=f"make up GPUS={served}",
    )


class InstalledTorch(NamedTuple):
    """The installed torch: its version, and the version of each GPU platform in it, or None.

    ``cuda`` is for NVIDIA's GPUs, ``hip`` for AMD's, ``xpu`` for Intel's.
    """

    version: str
    cuda: str | None = None
    hip: str | None = None
    xpu: str | None = None

    @property
    def platforms(self) -> dict[str, str | None]:
        """The platform versions by kind of device: cuda, rocm, xpu."""
        return {"cuda": self.cuda, "rocm": self.hip, "xpu": self.xpu}

    def describe(self) -> str:
        """A sentence on the kind of build.

        >>> InstalledTorch("2.13.0+cpu").describe()
        'torch 2.13.0+cpu is a CPU build'
        >>> InstalledTorch("2.13.0+rocm7.1", hip="7.1").describe()
        'torch 2.13.0+rocm7.1 is built for ROCm'
        """
        names = {"cuda": "CUDA", "rocm": "ROCm", "xpu": "XPU"}
        platform = next((names[kind] for kind, built in self.platforms.items() if built), None)
        without = "a CPU build" if self.version.endswith("+cpu") else "built without CUDA"
        return f"torch {self.version} is {f'built for {platform}' if platform else without}"


def read_torch_build(folder: Path | None = None) -> InstalledTorch | None:
    """The installed torch's version and CUDA, without importing it; None if it is not installed.

    Read from ``torch/version.py``: importing torch takes seconds, and the package's metadata lacks
    the build ("2.13.0" instead of "2.13.0+cu130").
    """
    folder = folder or find_torch_folder()
    if folder is None:
        return None
    try:
        text = (folder / "version.py").read_text(encoding="utf-8")
    except OSError:
        return None
    fields = r"^(__version__|cuda|hip|xpu)\b[^=\n]*=\s*'([^'\n]*)'"
    found = dict(re.findall(fields, text, re.MULTILINE))
    version = found.pop("__version__", None)
    return InstalledTorch(version, **found) if version else None


def find_torch_folder() -> Path | None:
    """The folder of the torch that ``import torch`` would load, or None."""
    from importlib.util import find_spec

    try:
        spec = find_spec("torch")
    except ValueError:  # sys.modules has a module without a spec
        return None
    places = list(spec.submodule_search_locations or ()) if spec else []
    return Path(places[0]) if places else None

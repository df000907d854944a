"""The build of torch that a name or a flavor means.

Which CUDA build of torch fits the driver and the GPUs, and which GPUs it leaves out.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from labkit.errors import DeviceMissingError, EngineError, LabkitError, UsageError
from labkit.host.distribution import INSTALL_DRIVER, UNKNOWN, Distribution
from labkit.host.gpu import Gpu, GpuFacts, name_architecture
from labkit.host.torch_builds import BUILDS, CPU_BUILD, CUDA_BUILDS, MACHINES, NEEDS, TorchBuild
from labkit.launch.runtime import Choice
from labkit.text import near_match

CPU_LAB = "make up FLAVOR=cpu"
# A driver for Linux inside WSL2 would stand in front of Windows' own, and break it.
WINDOWS_DRIVER = "wsl.exe --shutdown   # after updating NVIDIA's driver in Windows"


# The newest first: the one to take where nothing speaks for another.
CHOOSE_BUILD_BUILDS = tuple(NEEDS)
DEFAULT_BUILD = CHOOSE_BUILD_BUILDS[0]


@dataclass(frozen=True)
class BuildHost:
    """What a build is chosen from: the driver, the GPUs that a lab shall use, and the machine."""

    facts: GpuFacts
    gpus: tuple[Gpu, ...]
    machine: str = "x86_64"
    distribution: Distribution = UNKNOWN

    @property
    def driver(self) -> str:
        """The driver's version as it is shown."""
        return self.facts.driver_version or "unknown"

    @property
    def install_driver(self) -> str:
        """The command that brings this distribution's newest driver; in WSL2 it is Windows'."""
        return WINDOWS_DRIVER if self.facts.wsl else INSTALL_DRIVER.on(self.distribution)


def choose_build(asked: str, host: BuildHost, *, all_asked: bool = False) -> Choice[str]:
    """The build that serves most of the host's GPUs, the newest of several.

    Raises EngineError where none serves any, or not the one that was asked for; where
    ``all_asked``, also where one GPU would be left out.
    """
    fitting = {
        name: _list_served(name, host) for name in CHOOSE_BUILD_BUILDS if _fits_host(name, host)
    }
    if asked != "auto":
        if not _serves(fitting.get(asked), host):
            raise _refuse_asked(asked, fitting, host)
        best = asked
    else:
        if not any(_serves(served, host) for served in fitting.values()):
            raise _refuse_all(host)
        best = max(fitting, key=lambda name: len(fitting[name]))
    left_out = [gpu for gpu in host.gpus if gpu not in fitting[best]]
    if left_out and all_asked:
        raise _refuse_together(best, left_out, host)
    return Choice(best, _explain(best, fitting[best], host), *_warn_of(best, left_out, host))


def find_served(build: str, gpus: Sequence[Gpu], machine: str) -> tuple[Gpu, ...]:
    """Those of the GPUs that the build runs on; one that is not known is given the chance."""
    return tuple(gpu for gpu in gpus if find_gpu_obstacle(build, gpu, machine) is None)


def find_gpu_obstacle(build: str, gpu: Gpu, machine: str) -> str | None:
    """Why a lab of this build cannot use the GPU, or None where nothing speaks against it."""
    if gpu.mig and not gpu.parts:
        return "it is in MIG mode and has no parts"
    if gpu.capability is None or NEEDS[build].has_code_for(gpu.capability, machine):
        return None
    return f"build {build} has no code for its architecture ({describe_architecture(gpu)})"


def describe_architecture(gpu: Gpu) -> str:
    """The architecture and the compute capability of a GPU.

    >>> describe_architecture(Gpu("NVIDIA H200", capability=(9, 0)))
    'Hopper, 9.0'
    """
    if gpu.capability is None:
        return "unknown"
    major, minor = gpu.capability
    return f"{name_architecture(gpu.capability)}, {major}.{minor}"


def describe_gpus(gpus: Sequence[Gpu]) -> str:
    """The GPUs' names, each once, with their number where it is more than one.

    >>> describe_gpus([Gpu("NVIDIA H200"), Gpu("NVIDIA H200", 1), Gpu("NVIDIA L4", 2)])
    '2 NVIDIA H200, NVIDIA L4'
    """
    names = [gpu.name for gpu in gpus]
    counts = {name: names.count(name) for name in names}
    said = [f"{count} {name}" if count > 1 else name for name, count in counts.items()]
    return ", ".join(said) or "an NVIDIA GPU"


def _list_served(build: str, host: BuildHost) -> tuple[Gpu, ...]:
    return find_served(build, host.gpus, host.machine)


def _fits_host(build: str, host: BuildHost) -> bool:
    """True where driver and machine are right; a driver of unknown age is given the chance."""
    needs, major = NEEDS[build], host.facts.driver_major
    return host.machine in MACHINES and (major is None or major >= needs.driver)


def _serves(served: Sequence[Gpu] | None, host: BuildHost) -> bool:
    """True where the build has a GPU to run on, or the host does not tell which it has."""
    return served is not None and (bool(served) or not host.gpus)


def _explain(build: str, served: Sequence[Gpu], host: BuildHost) -> str:
    if any(gpu.capability is not None for gpu in served):
        return f"build {build} for {describe_gpus(served)} with driver {host.driver}"
    return f"build {build} by driver {host.driver} alone: it does not tell the GPU's architecture"


def _warn_of(build: str, left_out: Sequence[Gpu], host: BuildHost) -> tuple[str | None, str | None]:
    """What is said of the GPUs that a lab of this build cannot use, and what would help."""
    if not left_out:
        return None, None
    said = [
        f"{gpu.name} (GPU {gpu.index}) is left out: {find_gpu_obstacle(build, gpu, host.machine)}"
        for gpu in left_out
    ]
    alone = next((gpu for gpu in left_out if not (gpu.mig and not gpu.parts)), None)
    fix = f"make up GPUS={alone.index}   # a lab on that one" if alone else _cut(left_out[0])
    return "; ".join(said), fix


def _cut(gpu: Gpu) -> str:
    """The command that makes a GPU in MIG mode compute again."""
    return f"sudo nvidia-smi mig -i {gpu.index} -cgi 0 -C   # as one part of all of it"


def _refuse_asked(asked: str, fitting: dict[str, tuple[Gpu, ...]], host: BuildHost) -> LabkitError:
    others = [name for name in fitting if name != asked and _serves(fitting[name], host)]
    if host.machine not in MACHINES:
        cause = _describe_machine(host)
    elif asked not in fitting:
        cause = f"it needs driver {NEEDS[asked].driver} or newer, and {host.driver} is loaded"
        if not others:
            return EngineError(
                f"build {asked} cannot run here", cause=cause, fix=host.install_driver
            )
    else:
        cause = "; ".join(
            f"{gpu.name}: {find_gpu_obstacle(asked, gpu, host.machine)}" for gpu in host.gpus
        )
    return EngineError(
        f"build {asked} cannot run here",
        cause=cause,
        fix=f"make up CUDA={others[0]}" if others else CPU_LAB,
    )


def _refuse_all(host: BuildHost) -> LabkitError:
    """Why no build at all runs on this driver and these GPUs."""
    what = f"no build of torch fits {describe_gpus(host.gpus)} with driver {host.driver}"
    if host.machine not in MACHINES:
        return EngineError(what, cause=_describe_machine(host), fix=CPU_LAB)
    major = host.facts.driver_major
    oldest = min(needs.driver for needs in NEEDS.values())
    # Where none has code for the GPU, a newer driver would change nothing.
    able = [name for name in CHOOSE_BUILD_BUILDS if _serves(_list_served(name, host), host)]
    if able and major is not None and major < oldest:
        return EngineError(
            f"driver {host.driver} is too old for CUDA",
            cause=f"every CUDA build of torch here needs driver {oldest} or newer",
            fix=host.install_driver,
        )
    empty = [gpu for gpu in host.gpus if gpu.mig and not gpu.parts]
    if empty:
        return DeviceMissingError(
            what,
            cause=f"{empty[0].name} (GPU {empty[0].index}) is in MIG mode and has no parts",
            fix=_cut(empty[0]),
        )
    kind = describe_architecture(host.gpus[0])
    if able:
        return EngineError(
            what,
            cause=f"its architecture ({kind}) needs build {able[0]}, and that driver"
            f" {NEEDS[able[0]].driver} or newer",
            fix=host.install_driver,
        )
    return EngineError(what, cause=f"its architecture ({kind}) is in none of them", fix=CPU_LAB)


def _describe_machine(host: BuildHost) -> str:
    return f"they are made for {' and '.join(MACHINES)}, and this machine is {host.machine}"


def _refuse_together(build: str, left_out: Sequence[Gpu], host: BuildHost) -> LabkitError:
    together = " and ".join(f"GPU {gpu.index}" for gpu in host.gpus)
    served = ",".join(str(gpu.index) for gpu in host.gpus if gpu not in left_out)
    gpu = left_out[0]
    return EngineError(
        f"no build of torch serves {together} together",
        cause=f"{gpu.name} (GPU {gpu.index}): {find_gpu_obstacle(build, gpu, host.machine)}",
        fix=f"make up GPUS={served}",
    )


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

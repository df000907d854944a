"""Does the installed torch fit the driver and the GPU?"""

from __future__ import annotations

import re
from dataclasses import dataclass

from labkit.devices.torch_devices import TorchBuild, read_torch_build
from labkit.doctor.check import Check, Finding, failed, ok, warning
from labkit.doctor.checks.driver import CUDA_12_DRIVER, CUDA_13_DRIVER, read_module_version
from labkit.doctor.distribution import Distribution
from labkit.doctor.host import Host
from labkit.host.gpu import probe_gpu

# What PyTorch's x86 builds have code for, from the oldest to the newest compute capability.
# CUDA 13's brings PTX too, from which the driver makes code for whatever comes later.
ARCHITECTURES = {"12.6": (5.0, 9.0), "13.0": (7.5, 99.0)}
# Each build's name, the CUDA it carries, and the driver that this needs; the newest first.
BUILDS = (("cu130", "13.0", CUDA_13_DRIVER), ("cu126", "12.6", CUDA_12_DRIVER))


@dataclass(frozen=True)
class BuildFacts:
    """The torch this Python would import, the loaded driver and the GPUs' capabilities."""

    build: TorchBuild | None
    driver: str | None = None
    capabilities: tuple[float, ...] = ()


def probe(host: Host) -> BuildFacts:
    """torch/version.py without importing torch, the module's version, nvidia-smi's list."""
    build = read_torch_build()
    capabilities = read_capabilities(host) if build else ()
    return BuildFacts(build, read_module_version(host), capabilities)


def read_capabilities(host: Host) -> tuple[float, ...]:
    """Each GPU's compute capability, such as 8.9; one that is not known is left out."""
    known = [gpu.capability for gpu in probe_gpu(host.run, host.root).gpus if gpu.capability]
    return tuple(float(f"{major}.{minor}") for major, minor in known)


def find_build(driver: str | None, capabilities: tuple[float, ...]) -> str | None:
    """The newest build that this driver runs and that has code for every GPU, or None."""
    major = int((driver or "999").partition(".")[0])
    for name, cuda, needed in BUILDS:
        oldest, newest = ARCHITECTURES[cuda]
        if major >= needed and all(oldest <= each <= newest for each in capabilities):
            return name
    return None


def judge(facts: BuildFacts, distribution: Distribution) -> Finding:
    """The build's CUDA against the driver, then its architectures against each GPU."""
    build = facts.build
    if build is None:
        return ok("no torch in this Python: the lab brings its own", moot="there is no torch here")
    found = f"torch {build.version}"
    suited = find_build(facts.driver, facts.capabilities) or "cu126"
    fix = f"pip install torch --index-url https://download.pytorch.org/whl/{suited}"
    if build.cuda is None:
        if facts.capabilities:
            return warning(found, "this build is for the CPU, and leaves the GPU unused", fix)
        return ok(f"{found}, for the CPU")
    needed = CUDA_13_DRIVER if build.cuda.startswith("13") else CUDA_12_DRIVER
    major = re.match(r"\d+", facts.driver or "")
    if major and int(major.group()) < needed:
        cause = f"its CUDA {build.cuda} needs driver {needed}, and {facts.driver} is loaded"
        return failed(found, cause, fix)
    oldest, newest = ARCHITECTURES.get(build.cuda, (0.0, 99.0))
    strange = [each for each in facts.capabilities if not oldest <= each <= newest]
    if strange:
        span = f"{oldest} to {newest}" if newest < 99 else f"{oldest} and newer"
        cause = f"it has code for {span}, and a GPU here is {strange[0]}"
        judged = failed if len(strange) == len(facts.capabilities) else warning
        return judged(found, cause, fix)
    return ok(f"{found} fits" + (f" driver {facts.driver}" if facts.driver else " the CPU"))


CHECK = Check("torch-build", "torch against driver and GPU", probe, judge)

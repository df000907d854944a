"""Does the installed torch fit the driver and the GPU?"""

from __future__ import annotations

import re
from dataclasses import dataclass

from labkit.devices.torch_devices import TorchBuild, read_torch_build
from labkit.doctor.check import Check, Finding, failed, ok, warning
from labkit.doctor.checks.driver import CUDA_12_DRIVER, CUDA_13_DRIVER, read_module_version
from labkit.doctor.distribution import Distribution
from labkit.doctor.host import COMMAND_SECONDS, Host

# What PyTorch's x86 builds have code for, from the oldest to the newest compute capability.
ARCHITECTURES = {"12.6": (5.0, 9.0), "13.0": (7.5, 12.1)}
FIT = "pip install torch --index-url https://download.pytorch.org/whl/cu126   # or cu130"
COMPUTE = ["nvidia-smi", "--query-gpu=compute_cap", "--format=csv,noheader"]


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
    """Each GPU's compute capability, such as 8.9, in nvidia-smi's order; empty where not told."""
    answer = host.run(COMPUTE, timeout_seconds=COMMAND_SECONDS)
    found = re.findall(r"^\s*(\d+\.\d)\s*$", answer.stdout, re.MULTILINE)
    return tuple(map(float, found))


def judge(facts: BuildFacts, distribution: Distribution) -> Finding:
    """The build's CUDA against the driver, then its architectures against each GPU."""
    build = facts.build
    if build is None:
        return ok("no torch in this Python: the lab brings its own", moot="there is no torch here")
    found = f"torch {build.version}"
    if build.cuda is None:
        if facts.capabilities:
            cause = "this build is for the CPU, and leaves the GPU unused"
            return warning(found, cause, FIT)
        return ok(f"{found}, for the CPU")
    needed = CUDA_13_DRIVER if build.cuda.startswith("13") else CUDA_12_DRIVER
    major = re.match(r"\d+", facts.driver or "")
    if major and int(major.group()) < needed:
        cause = f"its CUDA {build.cuda} needs driver {needed}, and {facts.driver} is loaded"
        return failed(found, cause, FIT)
    oldest, newest = ARCHITECTURES.get(build.cuda, (0.0, 99.0))
    strange = [each for each in facts.capabilities if not oldest <= each <= newest]
    if strange:
        cause = f"it has no code for compute capability {strange[0]} ({oldest} to {newest} only)"
        return failed(found, cause, FIT)
    return ok(f"{found} fits" + (f" driver {facts.driver}" if facts.driver else " the CPU"))


CHECK = Check("torch-build", "torch against driver and GPU", probe, judge)

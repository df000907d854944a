"""Does the installed torch fit the driver and the GPU?"""

from __future__ import annotations

import re
from dataclasses import dataclass

from labkit.devices.torch_devices import TorchBuild, read_torch_build
from labkit.doctor.check import Check, Finding, failed, ok, warning
from labkit.doctor.checks.driver import NEWEST_DRIVER, OLDEST_DRIVER, read_module_version
from labkit.doctor.distribution import Distribution
from labkit.doctor.host import Host
from labkit.host.architectures import Capability
from labkit.host.builds import CUDA_BUILDS, NEEDS, BuildNeeds
from labkit.host.gpu import probe_gpu


@dataclass(frozen=True)
class BuildFacts:
    """The torch this Python would import, the loaded driver and the GPUs' capabilities."""

    build: TorchBuild | None
    driver: str | None = None
    capabilities: tuple[Capability, ...] = ()
    machine: str = "x86_64"


def probe(host: Host) -> BuildFacts:
    """torch/version.py without importing torch, the module's version, nvidia-smi's list."""
    build = read_torch_build()
    capabilities = read_capabilities(host) if build else ()
    driver = read_module_version(host)
    return BuildFacts(build, driver, capabilities, host.machine.architecture)


def read_capabilities(host: Host) -> tuple[Capability, ...]:
    """Each GPU's compute capability, such as (8, 9); one that is not known is left out."""
    gpus = probe_gpu(host.run, host.root).gpus
    return tuple(gpu.capability for gpu in gpus if gpu.capability)


def find_build(
    driver: str | None, capabilities: tuple[Capability, ...], machine: str = "x86_64"
) -> str | None:
    """The newest build that this driver runs and that has code for every GPU, or None."""
    major = int((driver or "999").partition(".")[0])
    for name, needs in NEEDS.items():
        fits = (needs.has_code_for(each, machine) for each in capabilities)
        if major >= needs.driver and all(fits):
            return name
    return None


def format_capability(capability: Capability) -> str:
    """A compute capability as NVIDIA writes it.

    >>> format_capability((8, 9))
    '8.9'
    """
    return f"{capability[0]}.{capability[1]}"


def judge(facts: BuildFacts, distribution: Distribution) -> Finding:
    """The build's CUDA against the driver, then its architectures against each GPU."""
    build = facts.build
    if build is None:
        return ok("no torch in this Python: the lab brings its own", moot="there is no torch here")
    found = f"torch {build.version}"
    suited = find_build(facts.driver, facts.capabilities, facts.machine) or CUDA_BUILDS[-1].name
    fix = f"pip install torch --index-url https://download.pytorch.org/whl/{suited}"
    if build.cuda is None:
        if facts.capabilities:
            return warning(found, "this build is for the CPU, and leaves the GPU unused", fix)
        return ok(f"{found}, for the CPU")
    needed = NEWEST_DRIVER if build.cuda.startswith("13") else OLDEST_DRIVER
    major = re.match(r"\d+", facts.driver or "")
    if major and int(major.group()) < needed:
        cause = f"its CUDA {build.cuda} needs driver {needed}, and {facts.driver} is loaded"
        return failed(found, cause, fix)
    # Another build than the lab's is given the chance: what it has code for is not known here.
    needs = next((NEEDS[each.name] for each in CUDA_BUILDS if each.cuda == build.cuda), None)
    strange = [
        each for each in facts.capabilities if needs and not needs.has_code_for(each, facts.machine)
    ]
    if needs and strange:
        cause = f"it has code for {_format_span(needs)}, and a GPU here is "
        judged = failed if len(strange) == len(facts.capabilities) else warning
        return judged(found, cause + format_capability(strange[0]), fix)
    return ok(f"{found} fits" + (f" driver {facts.driver}" if facts.driver else " the CPU"))


def _format_span(needs: BuildNeeds) -> str:
    oldest = format_capability(needs.oldest)
    return (
        f"{oldest} to {format_capability(needs.newest)}" if needs.newest else f"{oldest} and newer"
    )


CHECK = Check("torch-build", "torch against driver and GPU", probe, judge)

"""Is there a CUDA build of torch that both the driver and every GPU can run?"""

from __future__ import annotations

from dataclasses import dataclass

from labkit.doctor.check import Check, Finding, failed, ok, warning
from labkit.doctor.checks.driver import read_module_version
from labkit.doctor.checks.torch_build import find_build, format_capability, read_capabilities
from labkit.doctor.distribution import INSTALL_DRIVER, Distribution
from labkit.doctor.host import Host
from labkit.host.architectures import Capability
from labkit.host.builds import NEEDS


@dataclass(frozen=True)
class FitFacts:
    """The loaded driver, and each GPU's compute capability; empty is not known."""

    driver: str | None = None
    capabilities: tuple[Capability, ...] = ()
    machine: str = "x86_64"


def probe(host: Host) -> FitFacts:
    """The module's version and nvidia-smi's list of capabilities."""
    machine = host.machine.architecture
    return FitFacts(read_module_version(host), read_capabilities(host), machine)


def judge(facts: FitFacts, distribution: Distribution) -> Finding:
    """The newest build that fits both; where none does, what stands in the way."""
    name = find_build(facts.driver, facts.capabilities, facts.machine)
    if name is None:
        return _judge_misfit(facts, distribution)
    fits = ", ".join(map(format_capability, dict.fromkeys(facts.capabilities)))
    return ok(f"torch's {name} build fits" + (f" compute capability {fits}" if fits else ""))


def _judge_misfit(facts: FitFacts, distribution: Distribution) -> Finding:
    lost = [each for each in facts.capabilities if not _find_builds(each, facts.machine)]
    if lost:
        return warning(
            f"a GPU of compute capability {format_capability(lost[0])}",
            f"no build of torch for {facts.machine} has code for it any more",
            "make up FLAVOR=cpu",
        )
    named = " and ".join(map(format_capability, dict.fromkeys(facts.capabilities)))
    build = next((name for name in reversed(NEEDS) if _serves_all(name, facts)), None)
    if build:
        return failed(
            f"a GPU of compute capability {named or 'unknown'}, and driver {facts.driver}",
            f"the build with code for it, {build}, needs driver {NEEDS[build].driver} or newer",
            INSTALL_DRIVER.on(distribution),
        )
    return warning(
        f"GPUs of compute capability {named}",
        "no one build of torch has code for all of them",
        "nvidia-smi -L   # then choose those that go together: make up GPUS=0",
    )


def _find_builds(capability: Capability, machine: str) -> list[str]:
    """The builds that have code for GPUs of this compute capability, on whatever driver."""
    return [name for name, needs in NEEDS.items() if needs.has_code_for(capability, machine)]


def _serves_all(build: str, facts: FitFacts) -> bool:
    return all(build in _find_builds(each, facts.machine) for each in facts.capabilities)


CHECK = Check("cuda-build", "a CUDA build for driver and GPU", probe, judge, ("driver-library",))

"""Is there a CUDA build of torch that both the driver and every GPU can run?"""

from __future__ import annotations

from dataclasses import dataclass

from labkit.doctor.check import Check, Finding, failed, ok, warning
from labkit.doctor.checks.driver import CUDA_13_DRIVER, read_module_version
from labkit.doctor.checks.torch_build import ARCHITECTURES, find_build, read_capabilities
from labkit.doctor.distribution import INSTALL_DRIVER, Distribution
from labkit.doctor.host import Host


@dataclass(frozen=True)
class FitFacts:
    """The loaded driver, and each GPU's compute capability; empty is not known."""

    driver: str | None = None
    capabilities: tuple[float, ...] = ()


def probe(host: Host) -> FitFacts:
    """The module's version and nvidia-smi's list of capabilities."""
    return FitFacts(read_module_version(host), read_capabilities(host))


def judge(facts: FitFacts, distribution: Distribution) -> Finding:
    """The newest build that fits both; where none does, what stands in the way."""
    name = find_build(facts.driver, facts.capabilities)
    if name is None:
        return _judge_misfit(facts, distribution)
    fits = ", ".join(str(each) for each in dict.fromkeys(facts.capabilities))
    return ok(f"torch's {name} build fits" + (f" compute capability {fits}" if fits else ""))


def _judge_misfit(facts: FitFacts, distribution: Distribution) -> Finding:
    major = int((facts.driver or "999").partition(".")[0])
    oldest, newest = min(facts.capabilities, default=0.0), max(facts.capabilities, default=0.0)
    if oldest < ARCHITECTURES["12.6"][0]:
        return warning(
            f"a GPU of compute capability {oldest}",
            "no build of torch has code for it any more",
            "make up FLAVOR=cpu",
        )
    if major < CUDA_13_DRIVER:
        return failed(
            f"a GPU of compute capability {newest}, and driver {facts.driver}",
            f"only CUDA 13's build has code for it, and that needs driver {CUDA_13_DRIVER}",
            INSTALL_DRIVER.on(distribution),
        )
    return warning(
        f"GPUs of compute capability {oldest} and {newest}",
        "no one build of torch has code for both",
        "nvidia-smi -L   # then choose those that go together: make up GPUS=0",
    )


CHECK = Check("cuda-build", "a CUDA build for driver and GPU", probe, judge, ("driver-library",))

"""Does torch.compile work, from the compiler to the cache?

Does the installed torch fit the driver and the GPU?

Is there a CUDA build of torch that both the driver and every GPU can run?

How the trials of torch are run and judged; the checks that make them differ by name alone.

Does an allocation on the best device work?

Does the best device multiply as it should?
"""

from __future__ import annotations

import re
import sys
from collections.abc import Callable
from dataclasses import dataclass

from labkit.devices.torch_devices import InstalledTorch, read_torch_build
from labkit.doctor.check import Check, Finding, failed, ok, unknown, warning
from labkit.doctor.checks.driver import NEWEST_DRIVER, OLDEST_DRIVER, read_module_version
from labkit.doctor.host import Host
from labkit.host.distribution import Distribution
from labkit.host.gpu import Capability, probe_gpu
from labkit.host.packages import INSTALL_DRIVER
from labkit.host.torch_builds import CUDA_BUILDS, NEEDS, BuildNeeds
from labkit.known_errors.match import explain_text
from labkit.process import CommandResult


@dataclass(frozen=True)
class BuildFacts:
    """The torch this Python would import, the loaded driver and the GPUs' capabilities."""

    build: InstalledTorch | None
    driver: str | None = None
    capabilities: tuple[Capability, ...] = ()
    machine: str = "x86_64"


def probe_torch_build(host: Host) -> BuildFacts:
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


def judge_torch_build(facts: BuildFacts, distribution: Distribution) -> Finding:
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


TORCH_BUILD_CHECK = Check(
    "torch-build", "torch against driver and GPU", probe_torch_build, judge_torch_build
)


@dataclass(frozen=True)
class FitFacts:
    """The loaded driver, and each GPU's compute capability; empty is not known."""

    driver: str | None = None
    capabilities: tuple[Capability, ...] = ()
    machine: str = "x86_64"


def probe_cuda_build(host: Host) -> FitFacts:
    """The module's version and nvidia-smi's list of capabilities."""
    machine = host.machine.architecture
    return FitFacts(read_module_version(host), read_capabilities(host), machine)


def judge_cuda_build(facts: FitFacts, distribution: Distribution) -> Finding:
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


CUDA_BUILD_CHECK = Check(
    "cuda-build",
    "a CUDA build for driver and GPU",
    probe_cuda_build,
    judge_cuda_build,
    ("driver-library",),
)


# One Python makes them all: importing torch takes seconds, and once is enough.
TRIALS = ("allocation", "matmul", "compile")
# A warm cache compiles in 2 s; an empty one takes 20 s and more, which only --deep waits for.
QUICK_SECONDS = 6.5
DEEP_SECONDS = 240.0
DEEPER = "labkit doctor --deep   # gives torch's trials the minutes that a first compile may take"


@dataclass(frozen=True)
class TrialFacts:
    """What the trials' own Python printed, how it ended, and whether it had its minutes."""

    name: str
    answer: CommandResult
    deep: bool = False

    @property
    def said(self) -> str | None:
        """What this trial found, or None where it did not come to its end."""
        found = re.search(rf"^{self.name}: (.+)$", self.answer.stdout, re.MULTILINE)
        return found.group(1).strip() if found else None


def probe_trial(name: str) -> Callable[[Host], TrialFacts]:
    """The probe of one trial; all trials' probes share one run of them."""

    def probe(host: Host) -> TrialFacts:
        command = [sys.executable, "-m", "labkit.doctor.trials", *TRIALS]
        limit = DEEP_SECONDS if host.deep else QUICK_SECONDS
        return TrialFacts(name, host.run_trial(command, timeout_seconds=limit), host.deep)

    return probe


def judge_trial(facts: TrialFacts, distribution: Distribution) -> Finding:
    """The trial's own line where it ended well, else what its last words mean."""
    answer = facts.answer
    if facts.said:
        return ok(facts.said)
    again = f"{sys.executable} -m labkit.doctor.trials {facts.name}"
    if answer.timed_out and not facts.deep:
        return unknown(f"not done after {answer.seconds:.0f} s, which may be all right", DEEPER)
    if answer.timed_out:
        return failed(
            f"no end after {answer.seconds:.0f} s", "the device or the compiler hangs", again
        )
    if answer.ok:
        return unknown("the trial said nothing", again)
    found = explain_text(f"{answer.stdout}\n{answer.stderr}").first
    if found:
        return failed(found.line, found.error.cause, found.error.fix.on(distribution))
    return failed(answer.message, "not known: its whole output may say more", again)


def make_trial_check(name: str, title: str, needs: str) -> Check:
    """The check of one trial, which waits for the check ``needs``."""
    return Check(
        f"torch-{name}",
        title,
        probe_trial(name),
        judge_trial,
        (needs,),
        deep_seconds=DEEP_SECONDS + 20,
        late=DEEPER,
    )


TORCH_ALLOCATION_CHECK = make_trial_check(
    "allocation", "a tensor on the best device", "torch-build"
)


TORCH_MATMUL_CHECK = make_trial_check("matmul", "a matmul against the CPU", "torch-allocation")


TORCH_COMPILE_CHECK = make_trial_check("compile", "torch.compile", "torch-matmul")

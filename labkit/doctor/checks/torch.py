"""Checks of torch: a build for this driver and GPU, the installed one, and whether it computes.

Torch computes in a separate process, the self-test of ``labkit devices``, because it may hang.
"""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from labkit.doctor.check import Check, Finding, Host, failed, ok, unknown, warning
from labkit.doctor.checks.driver import NEWEST_DRIVER, OLDEST_DRIVER, read_capabilities
from labkit.host.distribution import Distribution
from labkit.host.gpu import Capability, list_bus_gpus, probe_gpu, read_module_version
from labkit.host.packages import CPU_LAB, advise_driver, choose_target
from labkit.host.torch_builds import (
    CUDA_BUILDS,
    JETSON_WHEELS,
    NEEDS,
    ON_JETSON,
    PYTORCH_INDEX,
    TEGRA,
    InstalledTorch,
    read_torch_build,
)
from labkit.known_errors.match import explain_text
from labkit.process import CommandResult
from labkit.text import escape_controls, first_line


@dataclass(frozen=True)
class CudaBuildFacts:
    """The loaded driver, and each GPU's compute capability; empty if unknown."""

    driver: str | None = None
    capabilities: tuple[Capability, ...] = ()
    machine: str = "x86_64"
    in_wsl: bool = False
    virtual: bool = field(default=False, kw_only=True)


def probe_cuda_build(host: Host) -> CudaBuildFacts:
    """The version of the loaded module, and the capabilities that nvidia-smi lists."""
    facts = probe_gpu(host.run, host.root)
    return CudaBuildFacts(
        read_module_version(host.root),
        read_capabilities(host, facts),
        host.machine.architecture,
        host.in_wsl,
        virtual=any(gpu.is_virtual for gpu in facts.gpus),
    )


def find_fitting_build(
    driver: str | None, capabilities: tuple[Capability, ...], machine: str = "x86_64"
) -> str | None:
    """The newest build that runs on this driver and has code for every GPU, or None.

    A GPU that no build has code for is left out, as the launcher does, unless there is no other.
    """
    major = int((driver or "999").partition(".")[0])
    served = [each for each in capabilities if _find_builds(each, machine)] or capabilities
    for name, needs in NEEDS.items():
        fits = (needs.has_code_for(each, machine) for each in served)
        if major >= needs.driver and all(fits):
            return name
    return None


def judge_cuda_build(facts: CudaBuildFacts, distribution: Distribution) -> Finding:
    """The newest build that fits driver and GPUs, else the reason why none does."""
    name = find_fitting_build(facts.driver, facts.capabilities, facts.machine)
    if name is None:
        return _judge_no_build(facts, distribution)
    lost = [each for each in facts.capabilities if not _find_builds(each, facts.machine)]
    if lost:
        return warning(
            f"a GPU of compute capability {format_capability(lost[0])} is left out",
            f"no build of torch for {facts.machine} has code for it; {name} fits the others",
            "make up   # with the others",
        )
    fits = ", ".join(map(format_capability, dict.fromkeys(facts.capabilities)))
    return ok(f"torch's {name} build fits" + (f" compute capability {fits}" if fits else ""))


def _judge_no_build(facts: CudaBuildFacts, distribution: Distribution) -> Finding:
    lost = [each for each in facts.capabilities if not _find_builds(each, facts.machine)]
    if lost and len(lost) == len(facts.capabilities):
        jetson = f"; {ON_JETSON} ({JETSON_WHEELS})" if lost[0] in TEGRA else ""
        return warning(
            f"a GPU of compute capability {format_capability(lost[0])}",
            f"no build of torch for {facts.machine} has code for it{jetson}",
            CPU_LAB,
        )
    named = " and ".join(map(format_capability, dict.fromkeys(facts.capabilities)))
    build = next((name for name in reversed(NEEDS) if _serves_all(name, facts)), None)
    if build:
        return failed(
            f"a GPU of compute capability {named or 'unknown'}, and driver {facts.driver}",
            f"the build with code for it, {build}, needs driver {NEEDS[build].driver} or newer",
            advise_driver(
                distribution,
                min(facts.capabilities, default=None),
                wsl=facts.in_wsl,
                least=NEEDS[build].driver,
                virtual=facts.virtual,
            ).command,
        )
    return warning(
        f"GPUs of compute capability {named}",
        "no build of torch has code for all of them",
        "nvidia-smi -L   # then choose GPUs that one build supports: make up GPUS=0",
    )


def _find_builds(capability: Capability, machine: str) -> list[str]:
    """The builds that have code for GPUs of this compute capability, for any driver."""
    return [name for name, needs in NEEDS.items() if needs.has_code_for(capability, machine)]


def _serves_all(build: str, facts: CudaBuildFacts) -> bool:
    each_has = [_find_builds(each, facts.machine) for each in facts.capabilities]
    return all(build in builds for builds in each_has if builds)


def format_capability(capability: Capability) -> str:
    """A compute capability as NVIDIA writes it.

    >>> format_capability((8, 9))
    '8.9'
    """
    return f"{capability[0]}.{capability[1]}"


CUDA_BUILD_CHECK = Check(
    "cuda-build",
    "a CUDA build for driver and GPU",
    probe_cuda_build,
    judge_cuda_build,
    ("driver-library",),
)


@dataclass(frozen=True)
class InstalledTorchFacts(CudaBuildFacts):
    """The torch that this Python imports, the loaded driver and the GPUs' capabilities."""

    build: InstalledTorch | None = None


def probe_installed_torch(host: Host) -> InstalledTorchFacts:
    """The version from torch/version.py, without importing torch; the driver and the GPUs."""
    build = read_torch_build()
    capabilities = read_capabilities(host) if build else ()
    driver = read_module_version(host.root)
    machine = host.machine.architecture
    return InstalledTorchFacts(driver, capabilities, machine, host.in_wsl, build)


def judge_installed_torch(facts: InstalledTorchFacts, distribution: Distribution) -> Finding:
    """Compares the build's CUDA with the driver, then its architectures with each GPU."""
    build = facts.build
    if build is None:
        return ok(
            "no torch in this Python: the lab has its own",
            skip_reason="this Python has no torch",
        )
    found = f"torch {build.version}"
    suited = find_fitting_build(facts.driver, facts.capabilities, facts.machine)
    packages = "torch torchvision"  # torchvision fits one release of torch only
    fix = f"pip install --force-reinstall {packages} --index-url {PYTORCH_INDEX}/{suited}"
    if suited is None:  # the driver is too old, or no build has code for all GPUs
        fix = _judge_no_build(facts, distribution).fix or ""
    if build.cuda is None:
        if facts.capabilities:
            return warning(found, "it is a CPU build, which does not use the GPU", fix)
        return ok(f"{found}, for the CPU")
    needed = NEWEST_DRIVER if build.cuda.startswith("13") else OLDEST_DRIVER
    major = re.match(r"\d+", facts.driver or "")
    if major and int(major.group()) < needed:
        cause = f"its CUDA {build.cuda} needs driver {needed}, and {facts.driver} is loaded"
        return failed(found, cause, fix)
    # Which GPUs other builds than the lab's have code for is unknown.
    needs = next((NEEDS[each.name] for each in CUDA_BUILDS if each.cuda == build.cuda), None)
    lost = [
        each for each in facts.capabilities if needs and not needs.has_code_for(each, facts.machine)
    ]
    if needs and lost:
        cause = f"it has code for {needs.describe_span(facts.machine)}, and a GPU here is "
        judge = failed if len(lost) == len(facts.capabilities) else warning
        return judge(found, cause + format_capability(lost[0]), fix)
    return ok(f"{found} fits" + (f" driver {facts.driver}" if facts.driver else " the CPU"))


TORCH_BUILD_CHECK = Check(
    "torch-build", "torch against driver and GPU", probe_installed_torch, judge_installed_torch
)


# With a warm cache torch compiles in 2 s; without one in 20 s or more: only --deep waits for it.
QUICK_SECONDS = 6.5
DEEP_SECONDS = 240.0
# A self-test whose parent is gone ends itself after this many times its limit.
ORPHAN_LIMITS = 20
DEEPER = "labkit doctor --deep   # gives torch the minutes that a first compile may take"
# The finding of each step; {words} is the step's result.
SENTENCES = {
    "allocate": "{words} on {device}",
    "compute": "a product on {device} is {words}",
    "compile": "a compiled function on {device} gives {words}",
}


@dataclass(frozen=True)
class SelfTestFacts:
    """One step of the self-test, how its process ended, and whether ``--deep`` gave it minutes.

    ``capabilities`` are those of the GPUs on the bus: a fix that installs a driver is for them.
    """

    step: str
    answer: CommandResult
    deep: bool = False
    capabilities: tuple[Capability, ...] = ()
    in_wsl: bool = False

    @property
    def events(self) -> dict[str, dict[str, Any]]:
        """What the self-test reported, by step."""
        events = {}
        for line in self.answer.stdout.splitlines():
            try:
                event = json.loads(line)
            except (ValueError, RecursionError):
                continue
            if isinstance(event, dict) and isinstance(event.get("step"), str):
                events[event["step"]] = event
        return events


def make_self_test_command(deep: bool) -> tuple[list[str], float]:
    """The self-test's command and its limit in seconds."""
    limit = DEEP_SECONDS if deep else QUICK_SECONDS
    ends_itself = f"{limit * ORPHAN_LIMITS:g}"
    return [sys.executable, "-m", "labkit.devices.self_test", "prove", ends_itself], limit


def probe_self_test(step: str) -> Callable[[Host], SelfTestFacts]:
    """The probe of one step; the probes of all steps share one run."""

    def probe(host: Host) -> SelfTestFacts:
        command, limit = make_self_test_command(host.deep)
        limit *= 1.0 if host.deep else host.patience
        answer = host.run_shared(command, timeout_seconds=limit)
        known = tuple(gpu.capability for gpu in list_bus_gpus(host.root) if gpu.capability)
        return SelfTestFacts(step, answer, host.deep, known, host.in_wsl)

    return probe


def judge_self_test(facts: SelfTestFacts, distribution: Distribution) -> Finding:
    """The result of the step, else the cause of the error or of the process's end."""
    answer, events = facts.answer, facts.events
    event = events.get(facts.step, {})
    if "words" in event:
        device = events.get("device", {}).get("words", "the device")
        return ok(SENTENCES[facts.step].format(words=event["words"], device=device))
    again = "labkit devices --verify   # tests every device, step by step"
    error = event.get("error")
    if answer.timed_out and not facts.deep:
        return unknown(f"not finished after {answer.seconds:.0f} s; it may be fine", DEEPER)
    if answer.timed_out:
        return failed(
            f"not finished after {answer.seconds:.0f} s", "the device or the compiler hangs", again
        )
    if error is None and answer.ok:
        return unknown("the self-test reported nothing", again)
    known = explain_text(
        str(error) if error else f"{answer.stdout}\n{answer.stderr}", signs={"lab"}
    ).first
    if known:
        target = choose_target(facts.capabilities)
        fix = known.error.fix.on(distribution, target, wsl=facts.in_wsl)
        return failed(known.line, known.error.cause, fix)
    message = first_line(escape_controls(str(error or answer.message)))
    return failed(message, "unknown: the whole error may show more", again)


def make_self_test_check(name: str, step: str, title: str, needs: str) -> Check:
    """The check of one step; it runs after the check ``needs``."""
    return Check(
        name,
        title,
        probe_self_test(step),
        judge_self_test,
        (needs,),
        # By wall time; the self-test itself is limited by its work, and a busy machine is slow.
        deep_seconds=DEEP_SECONDS * 4,
        late=DEEPER,
    )


TORCH_ALLOCATION_CHECK = make_self_test_check(
    "torch-allocation", "allocate", "a tensor on the best device", "torch-build"
)
TORCH_MATMUL_CHECK = make_self_test_check(
    "torch-matmul", "compute", "a matmul against the CPU", "torch-allocation"
)
TORCH_COMPILE_CHECK = make_self_test_check(
    "torch-compile", "compile", "torch.compile", "torch-matmul"
)

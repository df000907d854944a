"""Has the GPU itself reported a fault: off the bus, or memory that it cannot correct?"""

from __future__ import annotations

import re
from dataclasses import dataclass

from labkit.doctor.check import Check, Finding, failed, ok, warning
from labkit.doctor.distribution import Distribution
from labkit.doctor.explain import explain_text
from labkit.doctor.host import COMMAND_SECONDS, Host
from labkit.doctor.signs import SIGNS

ERRORS = [
    "nvidia-smi",
    "--query-gpu=index,ecc.errors.uncorrected.volatile.total",
    "--format=csv,noheader",
]
LOGS = (
    ["dmesg"],
    ["journalctl", "--dmesg", "--boot", "--quiet", "--no-pager", "--grep=NVRM"],
)
FAULTS = ("gpu-off-the-bus", "ecc-error", "gpu-firmware-hung", "needs-open-modules")


@dataclass(frozen=True)
class HealthFacts:
    """The kernel's lines on NVIDIA's GPUs since boot (None: not to be read) and the ECC counts."""

    log: str | None = None
    errors: tuple[tuple[int, int], ...] = ()


def probe(host: Host) -> HealthFacts:
    """The kernel's log, where this user may read it, and nvidia-smi's count of memory errors."""
    answer = host.run(ERRORS, timeout_seconds=COMMAND_SECONDS)
    counted = re.findall(r"^(\d+), *(\d+)\s*$", answer.stdout, re.MULTILINE)
    return HealthFacts(_read_log(host), tuple((int(index), int(count)) for index, count in counted))


def _read_log(host: Host) -> str | None:
    for command in LOGS:
        answer = host.run(command, timeout_seconds=COMMAND_SECONDS)
        if answer.ok:
            return "\n".join(line for line in answer.stdout.splitlines() if "NVRM" in line)
        if answer.timed_out:  # one hang is as much waiting as a check may cost
            return None
    return None


def judge(facts: HealthFacts, distribution: Distribution) -> Finding:
    """A GPU that left the bus is gone until a reboot; other faults are warned of."""
    faults = tuple(sign for sign in SIGNS if sign.name in FAULTS)
    found = explain_text(facts.log or "", faults).first
    if found:
        judged = failed if found.sign.name in ("gpu-off-the-bus", "needs-open-modules") else warning
        return judged(found.line, found.sign.cause, found.sign.fix.on(distribution))
    broken = [(index, count) for index, count in facts.errors if count]
    if broken:
        index, count = broken[0]
        return warning(
            f"GPU {index} has met {count} memory errors that it could not correct",
            "programs that used the memory then died or went wrong",
            "nvidia-smi -q -d ECC,ROW_REMAPPER   # a reset clears it; if it comes back, replace it",
        )
    if facts.log is None:
        return ok("no memory error counted; the kernel's log is for root: sudo dmesg | grep NVRM")
    return ok("no fault in the kernel's log since boot")


CHECK = Check("gpu-health", "the GPU's own faults", probe, judge, ("gpu-bus",))

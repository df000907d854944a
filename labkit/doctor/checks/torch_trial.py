"""How the trials of torch are run and judged; the checks that make them differ by name alone."""

from __future__ import annotations

import sys
from collections.abc import Callable
from dataclasses import dataclass

from labkit.commands import CommandResult
from labkit.doctor.check import Finding, failed, ok, unknown
from labkit.doctor.distribution import Distribution
from labkit.doctor.explain import explain_text
from labkit.doctor.host import Host


@dataclass(frozen=True)
class TrialFacts:
    """What the trial's own Python printed, and how it ended."""

    name: str
    answer: CommandResult


def probe_trial(name: str, limit_seconds: float) -> Callable[[Host], TrialFacts]:
    """The probe that runs a trial in a Python of its own, for at most so many seconds."""

    def probe(host: Host) -> TrialFacts:
        command = [sys.executable, "-m", "labkit.doctor.trials", name]
        return TrialFacts(name, host.run_long(command, timeout_seconds=limit_seconds))

    return probe


def judge_trial(facts: TrialFacts, distribution: Distribution) -> Finding:
    """The trial's own line where it ended well, else what its last words mean."""
    answer = facts.answer
    if answer.ok:
        lines = [line for line in answer.stdout.splitlines() if line.strip()]
        return ok(lines[-1]) if lines else unknown("the trial said nothing")
    again = f"{sys.executable} -m labkit.doctor.trials {facts.name}"
    if answer.timed_out:
        return failed(
            f"no end after {answer.seconds:.0f} s", "the device or the compiler hangs", again
        )
    found = explain_text(f"{answer.stdout}\n{answer.stderr}").first
    if found:
        return failed(found.line, found.sign.cause, found.sign.fix.on(distribution))
    return failed(answer.message, "not known: its whole output may say more", again)

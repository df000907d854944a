"""How the trials of torch are run and judged; the checks that make them differ by name alone."""

from __future__ import annotations

import re
import sys
from collections.abc import Callable
from dataclasses import dataclass

from labkit.commands import CommandResult
from labkit.doctor.check import Check, Finding, failed, ok, unknown
from labkit.doctor.distribution import Distribution
from labkit.doctor.explain import explain_text
from labkit.doctor.host import Host

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
        return failed(found.line, found.sign.cause, found.sign.fix.on(distribution))
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

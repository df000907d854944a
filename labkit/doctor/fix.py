"""What ``labkit doctor --fix`` does: runs the safe fixes that were agreed to, and looks again."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

from labkit.commands import CommandResult, CommandRunner
from labkit.doctor.check import Check, Finding, SafeFix
from labkit.doctor.examine import Examination, examine_host
from labkit.doctor.host import Host

FIX_SECONDS = 120.0

# Why a fix that is not safe is left to a person, by what stands in its line; the first that fits.
REASONS = (
    ("reboot", "it restarts this machine"),
    ("shutdown", "it ends every Linux program in WSL2"),
    ("prune", "it deletes what others may want"),
    ("restart", "it restarts the engine, and with it everybody's containers"),
    ("enable --now", "it starts a service, now and at every start"),
    ("install", "it installs packages"),
    ("usermod", "it changes what this user may do, from the next login on"),
    ("setsebool", "it loosens this machine's security policy"),
    ("context use", "it changes where every docker command of yours goes"),
    ("-mig 0", "it changes how everybody's GPU is cut up"),
    ("remount", "it changes a file system under programs that run"),
    ("unset ", "it belongs into your own shell"),
    ("export ", "it belongs into your own shell"),
    ("make ", "it starts, stops or builds the lab"),
)
OTHERWISE = "it looks further, or needs your judgement"


@dataclass(frozen=True)
class Offer:
    """A finding's fix: the exact command that would be run, or why none is (and the line)."""

    finding: Finding
    safe: SafeFix | None = None
    command: tuple[str, ...] = ()
    why_not: str | None = None


@dataclass(frozen=True)
class Attempt:
    """What came of an offer: how its command ended (None: not agreed to), and the check after."""

    offer: Offer
    result: CommandResult | None = None
    after: Finding | None = None

    @property
    def mended(self) -> bool:
        """True where the check found nothing to complain of afterwards."""
        return self.after is not None and self.after.status in ("ok", "skipped")

    def describe(self) -> dict[str, object]:
        """The attempt as ``--json`` prints it."""
        return {
            "check": self.offer.finding.check,
            "command": list(self.offer.command),
            "ran": self.result is not None,
            "exit_code": self.result.exit_code if self.result else None,
            "said": self.result.message if self.result and not self.result.ok else None,
            "mended": self.mended,
        }

    def describe_refusal(self) -> dict[str, object]:
        """What is left to a person, as ``--json`` prints it."""
        return {
            "check": self.offer.finding.check,
            "why": self.offer.why_not,
            "fix": self.offer.finding.fix,
        }


Ask = Callable[[Offer], bool]


def list_offers(
    findings: Sequence[Finding], user_id: int | None, *, may_ask: bool = True
) -> list[Offer]:
    """An offer for each finding that has a fix: safe to run, or the reason why it is not run.

    ``may_ask`` is whether sudo may ask for a password; where nobody would answer, it may not.
    """
    offers = []
    for finding in findings:
        if finding.safe:
            command = finding.safe.command(user_id, may_ask=may_ask)
            offers.append(Offer(finding, finding.safe, command))
        elif finding.fix and finding.status != "ok":
            offers.append(Offer(finding, why_not=explain_refusal(finding.fix)))
    return offers


def mend_host(
    make_host: Callable[[], Host],
    checks: Sequence[Check],
    examination: Examination,
    *,
    ask: Ask,
    run: CommandRunner,
    tell: Callable[[str], None],
    may_ask: bool = True,
    offline: bool = False,
) -> tuple[list[Attempt], Examination]:
    """Offers every fix, tells what came of each, and examines anew as long as one was run.

    What a fix brings to light (the module is loaded; now its device files are missing) is offered
    too. No check's fix is offered twice. ``make_host`` gives a host that remembers no answer.
    """
    attempts: list[Attempt] = []
    while True:
        done = {attempt.offer.finding.check for attempt in attempts}
        left = [finding for finding in examination.findings if finding.check not in done]
        host = make_host()
        made = []
        for offer in list_offers(left, host.machine.user_id, may_ask=may_ask):
            made.append(make_attempt(offer, checks, make_host, ask=ask, run=run))
            tell(format_attempt(made[-1]))
        attempts += made
        if all(attempt.result is None for attempt in made):
            return attempts, examination
        examination = examine_host(host, checks, offline=offline)


def explain_refusal(fix: str) -> str:
    """Why a fix is not one to be run by itself."""
    line = fix.partition("   #")[0]
    return next((reason for mark, reason in REASONS if mark in line), OTHERWISE)


def make_attempt(
    offer: Offer,
    checks: Sequence[Check],
    make_host: Callable[[], Host],
    *,
    ask: Ask,
    run: CommandRunner,
) -> Attempt:
    """Runs the offer's command if ``ask`` agrees, and then makes its check again, alone."""
    if offer.safe is None or not ask(offer):
        return Attempt(offer)
    result = run(offer.command, timeout_seconds=FIX_SECONDS)
    again = [replace(check, needs=()) for check in checks if check.name == offer.finding.check]
    return Attempt(offer, result, examine_host(make_host(), again).findings[0])


def format_attempt(attempt: Attempt) -> str:
    """How a command ended and what its check finds now, or that it was not run and why."""
    offer = attempt.offer
    name = offer.finding.check
    if offer.safe is None:
        return f"{name}: not run: {offer.why_not}\n  type it yourself: {offer.finding.fix}"
    if attempt.result is None or attempt.after is None:
        return f"{name}: not run: you did not say yes"
    lines = []
    if not attempt.result.ok:
        lines.append(f"{name}: the command failed: {attempt.result.message}")
    lines.append(f"{name}: now {attempt.after.status}: {attempt.after.found}")
    if not attempt.mended:
        lines.append(f"  type it yourself: {offer.finding.fix}")
    return "\n".join(lines)

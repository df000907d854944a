"""What ``labkit doctor --fix`` does: runs the safe fixes that were agreed to, and looks again.

Makes all checks side by side: each waits for those it needs, and none holds up the whole.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import Future, InvalidStateError
from concurrent.futures import TimeoutError as FutureTimeoutError
from contextlib import suppress
from dataclasses import dataclass, replace

from labkit.doctor.check import STATUSES, Check, Finding, SafeFix, unknown
from labkit.doctor.host import Host
from labkit.process import CommandResult, CommandRunner

# How long a check still gets when what it waited for has run out of time: it is skipped at once.
AFTERWARDS_SECONDS = 0.3


@dataclass(frozen=True)
class Examination:
    """Every check's finding, in the order of the checks."""

    findings: tuple[Finding, ...]

    @property
    def healthy(self) -> bool:
        """True where nothing failed; warnings and unknowns do not make a host broken."""
        return all(finding.status != "failed" for finding in self.findings)

    @property
    def shown(self) -> list[Finding]:
        """The findings with the failures last, else in order."""
        return sorted(self.findings, key=lambda finding: STATUSES.index(finding.status))

    def count(self) -> dict[str, int]:
        """How many findings there are of each status that came up."""
        counts = dict.fromkeys(STATUSES, 0)
        for finding in self.findings:
            counts[finding.status] += 1
        return {status: count for status, count in counts.items() if count}


class _Round:
    """One examination under way: a thread and a future for each check."""

    def __init__(self, host: Host, checks: Sequence[Check]) -> None:
        self._host = host
        self._futures: dict[str, Future[Finding]] = {check.name: Future() for check in checks}
        self._asking: set[str] = set()
        for check in checks:
            threading.Thread(target=self._make, args=(check,), daemon=True).start()

    def _make(self, check: Check) -> None:
        """Makes the check in its own thread and leaves the finding in its future."""
        needed = [self._futures[name].result() for name in check.needs if name in self._futures]
        reason = next((why for finding in needed if (why := _why_moot(finding))), None)
        if reason:
            finding = Finding("skipped", f"because {reason}", moot=reason)
        else:
            self._asking.add(check.name)
            finding = _ask(check, self._host)
        self._settle(check, finding)

    def await_finding(self, check: Check, deadline: float) -> Finding:
        """The check's finding, or that none came in time."""
        future = self._futures[check.name]
        # Whoever only waits for another that has run out of time just now is told in no time.
        left = AFTERWARDS_SECONDS if check.name not in self._asking else 0.0
        try:
            return future.result(max(left, deadline - time.monotonic()))
        except FutureTimeoutError:
            self._settle(check, unknown("no answer in time", check.late))
            return future.result()

    def _settle(self, check: Check, finding: Finding) -> None:
        with suppress(InvalidStateError):  # the other of the check and its deadline was first
            self._futures[check.name].set_result(replace(finding, check=check.name))


def examine_host(
    host: Host, checks: Sequence[Check], *, offline: bool = False, patience_scale: float = 1.0
) -> Examination:
    """What every check finds; ``offline`` leaves out those that use the network."""
    chosen = [check for check in checks if not (offline and check.network)]
    started = time.monotonic()
    under_way = _Round(host, chosen)
    found = []
    for check in chosen:
        limit_seconds = check.deep_seconds if host.deep else check.patience_seconds
        found.append(under_way.await_finding(check, started + limit_seconds * patience_scale))
    return Examination(tuple(found))


def _ask(check: Check, host: Host) -> Finding:
    try:
        return check.judge(check.probe(host), host.distribution)
    except Exception as error:  # a broken host may say anything: one check lost, not all
        return unknown(f"the check itself broke on what it read: {type(error).__name__}: {error}")


def _why_moot(finding: Finding) -> str | None:
    """Why checks that build on this finding have nothing to look at, or None where they have."""
    if finding.moot or finding.status in ("ok", "warning"):
        return finding.moot
    return f"{finding.check} {'failed' if finding.status == 'failed' else 'is unknown'}"


def format_examination(examination: Examination) -> str:
    """The findings as a person reads them, and a last line that counts them.

    Checks that were skipped for one reason share a line.
    """
    width = max((len(finding.check) for finding in examination.findings), default=0)
    blocks = [_format_finding(finding, width) for finding in _join_skipped(examination.shown)]
    counts = ", ".join(f"{count} {status}" for status, count in examination.count().items())
    return "\n".join([*blocks, "", f"{len(examination.findings)} checks: {counts}"])


def _join_skipped(findings: Sequence[Finding]) -> list[Finding]:
    reasons = [each.found for each in findings if each.status == "skipped"]
    joined: dict[tuple[str, str], Finding] = {}
    for each in findings:
        many = each.status == "skipped" and reasons.count(each.found) > 1
        name = f"{reasons.count(each.found)} checks" if many else each.check
        joined.setdefault((name, each.found), replace(each, check=name))
    return list(joined.values())


def _format_finding(finding: Finding, width: int) -> str:
    indent = " " * (width + 10)
    lines = [f"{finding.status:<8} {finding.check:<{width}} {finding.found}"]
    if finding.cause:
        lines.append(f"{indent}cause: {finding.cause}")
    if finding.fix:
        lines.append(f"{indent}try: {finding.fix}")
    return "\n".join(lines)


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
        made = []
        for offer in list_offers(left, make_host().machine.user_id, may_ask=may_ask):
            made.append(make_attempt(offer, checks, make_host, ask=ask, run=run))
            tell(format_attempt(made[-1]))
        attempts += made
        if all(attempt.result is None for attempt in made):
            return attempts, examination
        examination = examine_host(make_host(), checks, offline=offline)


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

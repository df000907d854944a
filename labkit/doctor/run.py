"""Runs all checks in parallel, formats their findings, and runs the safe fixes.

Each check waits for the checks that it needs, and has a time limit, so none delays the others.
"""

from __future__ import annotations

import textwrap
import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import Future, InvalidStateError
from concurrent.futures import TimeoutError as FutureTimeoutError
from contextlib import suppress
from dataclasses import dataclass, replace

from labkit.doctor.check import STATUSES, Check, Finding, Host, SafeFix, unknown
from labkit.host.packages import adapt_command
from labkit.process import CommandResult, CommandRunner

# Where fewer columns are left beside a check's name, its text stands below.
MIN_TEXT_COLUMNS = 30
# The time to skip a check whose needed check has just timed out.
SKIP_SECONDS = 0.3


@dataclass(frozen=True)
class Examination:
    """Every check's finding, in the order of the checks."""

    findings: tuple[Finding, ...]

    @property
    def healthy(self) -> bool:
        """True if nothing failed; a host with warnings and unknowns is healthy."""
        return all(finding.status != "failed" for finding in self.findings)

    @property
    def shown(self) -> list[Finding]:
        """The findings, by status with the failures last."""
        return sorted(self.findings, key=lambda finding: STATUSES.index(finding.status))

    def count(self) -> dict[str, int]:
        """The number of findings of each status that occurs."""
        counts = dict.fromkeys(STATUSES, 0)
        for finding in self.findings:
            counts[finding.status] += 1
        return {status: count for status, count in counts.items() if count}


class _Examiner:
    """A running examination: a thread and a future for each check."""

    def __init__(self, host: Host, checks: Sequence[Check]) -> None:
        self._host = host
        self._futures: dict[str, Future[Finding]] = {check.name: Future() for check in checks}
        self._running: set[str] = set()
        for check in checks:
            threading.Thread(target=self._run, args=(check,), daemon=True).start()

    def _run(self, check: Check) -> None:
        """Runs the check in its own thread and puts the finding into its future."""
        needed = [self._futures[name].result() for name in check.needs if name in self._futures]
        reason = next((why for finding in needed if (why := _find_skip_reason(finding))), None)
        if reason:
            finding = Finding("skipped", f"because {reason}", skip_reason=reason)
        else:
            self._running.add(check.name)
            finding = _examine(check, self._host)
        self._settle(check, finding)

    def await_finding(self, check: Check, deadline: float) -> Finding:
        """The check's finding; unknown if there is none at the deadline."""
        future = self._futures[check.name]
        # If a needed check has just timed out, this one is skipped at once.
        left = SKIP_SECONDS if check.name not in self._running else 0.0
        try:
            return future.result(max(left, deadline - time.monotonic()))
        except FutureTimeoutError:
            self._settle(check, unknown("no answer in time", check.late))
            return future.result()

    def _settle(self, check: Check, finding: Finding) -> None:
        with suppress(InvalidStateError):  # the check and its deadline may both settle it
            self._futures[check.name].set_result(replace(finding, check=check.name))


def examine_host(
    host: Host, checks: Sequence[Check], *, offline: bool = False, limit_scale: float = 1.0
) -> Examination:
    """The findings of all checks; ``offline`` leaves out those that use the network."""
    chosen = [check for check in checks if not (offline and check.network)]
    started = time.monotonic()
    examiner = _Examiner(host, chosen)
    found = []
    for check in chosen:
        limit_seconds = check.deep_seconds if host.deep else check.limit_seconds
        limit_seconds *= limit_scale * host.patience
        found.append(_adapt(examiner.await_finding(check, started + limit_seconds), host))
    return Examination(tuple(found))


def _adapt(finding: Finding, host: Host) -> Finding:
    """The finding with a fix that this host has the programs for."""
    if not finding.fix:
        return finding
    return replace(finding, fix=adapt_command(finding.fix, host.distribution, host.find_program))


def _examine(check: Check, host: Host) -> Finding:
    try:
        return check.judge(check.probe(host), host.distribution)
    except Exception as error:  # unexpected output breaks one check, not all
        return unknown(f"the check failed on what it read: {type(error).__name__}: {error}")


def _find_skip_reason(finding: Finding) -> str | None:
    """Why checks that depend on this finding are skipped, or None if they are not."""
    if finding.skip_reason or finding.status in ("ok", "warning"):
        return finding.skip_reason
    return f"{finding.check} {'failed' if finding.status == 'failed' else 'is unknown'}"


def format_examination(examination: Examination, columns: int | None = None) -> str:
    """The findings for a person, and a last line that counts them.

    Checks that were skipped for the same reason share a line. Lines fold at ``columns`` (None:
    not at all), except commands, which must stay in one piece to be copied.
    """
    width = max((len(finding.check) for finding in examination.findings), default=0)
    found = _join_skipped(examination.shown)
    blocks = [_format_finding(finding, width, columns) for finding in found]
    counts = ", ".join(f"{count} {status}" for status, count in examination.count().items())
    last = _fold("", f"{len(examination.findings)} checks: {counts}", "  ", columns)
    return "\n".join([*blocks, "", last])


def _join_skipped(findings: Sequence[Finding]) -> list[Finding]:
    reasons = [each.found for each in findings if each.status == "skipped"]
    joined: dict[tuple[str, str], Finding] = {}
    for each in findings:
        many = each.status == "skipped" and reasons.count(each.found) > 1
        name = f"{reasons.count(each.found)} checks" if many else each.check
        joined.setdefault((name, each.found), replace(each, check=name))
    return list(joined.values())


def _format_finding(finding: Finding, width: int, columns: int | None) -> str:
    indent = " " * (width + 10)
    lines = [(f"{finding.status:<8} {finding.check:<{width}} ", finding.found)]
    narrow = columns is not None and columns < len(indent) + MIN_TEXT_COLUMNS
    if narrow:
        indent = "  "
        lines = [(indent, finding.found)]
    if finding.cause:
        lines.append((indent, f"cause: {finding.cause}"))
    shown = [f"{finding.status:<8} {finding.check}"] if narrow else []
    shown += [_fold(start, text, indent, columns) for start, text in lines]
    if finding.fix:
        # A long command starts further left; a line break inside would run half of it.
        fits = columns is None or len(indent) + len(f"try: {finding.fix}") <= columns
        shown.append(f"{indent if fits else '  '}try: {finding.fix}")
    return "\n".join(shown)


def _fold(start: str, text: str, indent: str, columns: int | None) -> str:
    if columns is None:
        return start + text
    return textwrap.fill(
        text,
        max(columns, MIN_TEXT_COLUMNS),
        initial_indent=start,
        subsequent_indent=indent,
        break_on_hyphens=False,
    )


FIX_SECONDS = 120.0

# Why --fix does not run a fix, by a word in its command; the first match counts.
REASONS = (
    ("reboot", "it restarts this machine"),
    ("shutdown", "it ends every Linux program in WSL2"),
    ("prune", "it deletes what others may need"),
    ("restart", "it restarts the engine, and with it all containers"),
    ("enable --now", "it starts a service, now and at every boot"),
    ("install", "it installs packages"),
    ("usermod", "it changes this user's permissions, from the next login on"),
    ("setsebool", "it loosens this machine's security policy"),
    ("context use", "it changes which engine your docker commands use"),
    ("-mig 0", "it changes the MIG instances of all users"),
    ("remount", "it changes a file system that running programs use"),
    ("unset ", "it must run in your own shell"),
    ("export ", "it must run in your own shell"),
    ("make ", "it starts, stops or builds the lab"),
)
OTHERWISE = "it only shows more, or needs your judgment"


@dataclass(frozen=True)
class Offer:
    """The fix of a finding: the exact command to run, or the reason why none is run."""

    finding: Finding
    safe: SafeFix | None = None
    command: tuple[str, ...] = ()
    why_not: str | None = None


@dataclass(frozen=True)
class Attempt:
    """The result of an offer: how its command ended (None: refused), and the check afterwards."""

    offer: Offer
    result: CommandResult | None = None
    after: Finding | None = None

    @property
    def fixed(self) -> bool:
        """True if the check finds no problem afterwards."""
        return self.after is not None and self.after.status in ("ok", "skipped")

    def describe(self) -> dict[str, object]:
        """The attempt as ``--json`` prints it."""
        return {
            "check": self.offer.finding.check,
            "command": list(self.offer.command),
            "ran": self.result is not None,
            "exit_code": self.result.exit_code if self.result else None,
            "said": self.result.message if self.result and not self.result.ok else None,
            "mended": self.fixed,
        }

    def describe_refusal(self) -> dict[str, object]:
        """The fix that a person must run, as ``--json`` prints it."""
        return {
            "check": self.offer.finding.check,
            "why": self.offer.why_not,
            "fix": self.offer.finding.fix,
        }


Ask = Callable[[Offer], bool]


def list_offers(
    findings: Sequence[Finding], user_id: int | None, *, may_ask: bool = True
) -> list[Offer]:
    """An offer for each finding that has a fix: a safe one to run, or the reason why not.

    ``may_ask`` says whether sudo may ask for a password.
    """
    offers = []
    for finding in findings:
        if finding.safe:
            command = finding.safe.command(user_id, may_ask=may_ask)
            offers.append(Offer(finding, finding.safe, command))
        elif finding.fix and finding.status != "ok":
            offers.append(Offer(finding, why_not=explain_refusal(finding.fix)))
    return offers


def fix_host(
    make_host: Callable[[], Host],
    checks: Sequence[Check],
    examination: Examination,
    *,
    ask: Ask,
    run: CommandRunner,
    report: Callable[[str], None],
    may_ask: bool = True,
    offline: bool = False,
) -> tuple[list[Attempt], Examination]:
    """Offers every fix, reports the result of each, and repeats the examination if one was run.

    After a fix, the new examination may offer the next one: first load the module, then create its
    device files. A check's fix is offered only once. ``make_host`` returns a host without cached
    answers.
    """
    attempts: list[Attempt] = []
    while True:
        done = {attempt.offer.finding.check for attempt in attempts}
        left = [finding for finding in examination.findings if finding.check not in done]
        made = []
        for offer in list_offers(left, make_host().machine.user_id, may_ask=may_ask):
            made.append(make_attempt(offer, checks, make_host, ask=ask, run=run))
            report(format_attempt(made[-1]))
        attempts += made
        if all(attempt.result is None for attempt in made):
            return attempts, examination
        examination = examine_host(make_host(), checks, offline=offline)


def explain_refusal(fix: str) -> str:
    """Why ``--fix`` does not run a fix."""
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
    """Runs the offer's command if ``ask`` agrees, and then repeats its check alone."""
    if offer.safe is None or not ask(offer):
        return Attempt(offer)
    result = run(offer.command, timeout_seconds=FIX_SECONDS)
    again = [replace(check, needs=()) for check in checks if check.name == offer.finding.check]
    return Attempt(offer, result, examine_host(make_host(), again).findings[0])


def format_attempt(attempt: Attempt) -> str:
    """How a command ended and what its check finds now, or why it was not run."""
    offer = attempt.offer
    name = offer.finding.check
    if offer.safe is None:
        return f"{name}: not run: {offer.why_not}\n  type it yourself: {offer.finding.fix}"
    if attempt.result is None or attempt.after is None:
        return f"{name}: not run: you did not agree"
    lines = []
    if not attempt.result.ok:
        lines.append(f"{name}: the command failed: {attempt.result.message}")
    lines.append(f"{name}: now {attempt.after.status}: {attempt.after.found}")
    if not attempt.fixed:
        lines.append(f"  type it yourself: {offer.finding.fix}")
    return "\n".join(lines)

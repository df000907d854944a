"""Makes all checks side by side: each waits for those it needs, and none holds up the whole."""

from __future__ import annotations

import threading
import time
from collections.abc import Sequence
from concurrent.futures import Future, InvalidStateError
from concurrent.futures import TimeoutError as FutureTimeoutError
from contextlib import suppress
from dataclasses import dataclass, replace

from labkit.doctor.check import STATUSES, Check, Finding, unknown
from labkit.doctor.host import Host

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

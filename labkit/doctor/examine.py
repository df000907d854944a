"""Makes all checks side by side: each waits for those it needs, and none holds up the whole."""

from __future__ import annotations

import threading
import time
from collections.abc import Mapping, Sequence
from concurrent.futures import Future, InvalidStateError
from concurrent.futures import TimeoutError as FutureTimeoutError
from contextlib import suppress
from dataclasses import dataclass, replace

from labkit.doctor.check import STATUSES, Check, Finding, unknown
from labkit.doctor.host import Host

# How long a check still gets when what it waited for has run out of time: it is skipped at once.
AFTERWARDS_SECONDS = 0.3

Futures = Mapping[str, "Future[Finding]"]


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


def examine_host(
    host: Host, checks: Sequence[Check], *, offline: bool = False, patience_scale: float = 1.0
) -> Examination:
    """What every check finds; ``offline`` leaves out those that use the network."""
    chosen = [check for check in checks if not (offline and check.network)]
    futures: dict[str, Future[Finding]] = {check.name: Future() for check in chosen}
    started = time.monotonic()
    for check in chosen:
        threading.Thread(target=_make_check, args=(check, host, futures), daemon=True).start()
    found = []
    for check in chosen:
        limit_seconds = check.patience_seconds * patience_scale
        found.append(_await_finding(check, futures[check.name], started + limit_seconds))
    return Examination(tuple(found))


def _make_check(check: Check, host: Host, futures: Futures) -> None:
    """Makes the check in its own thread and leaves the finding in its future."""
    needed = [futures[name].result() for name in check.needs if name in futures]
    reason = next((why for finding in needed if (why := _why_moot(finding))), None)
    finding = Finding("skipped", f"because {reason}", moot=reason) if reason else _ask(check, host)
    _settle(futures[check.name], replace(finding, check=check.name))


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


def _await_finding(check: Check, future: Future[Finding], deadline: float) -> Finding:
    try:
        return future.result(max(AFTERWARDS_SECONDS, deadline - time.monotonic()))
    except FutureTimeoutError:
        _settle(future, replace(unknown("no answer in time"), check=check.name))
        return future.result()


def _settle(future: Future[Finding], finding: Finding) -> None:
    with suppress(InvalidStateError):  # the other of the check and its deadline was first
        future.set_result(finding)


def format_examination(examination: Examination) -> str:
    """The findings as a person reads them, and a last line that counts them."""
    width = max((len(finding.check) for finding in examination.findings), default=0)
    blocks = [_format_finding(finding, width) for finding in examination.shown]
    counts = ", ".join(f"{count} {status}" for status, count in examination.count().items())
    return "\n".join([*blocks, "", f"{len(examination.findings)} checks: {counts}"])


def _format_finding(finding: Finding, width: int) -> str:
    indent = " " * (width + 10)
    lines = [f"{finding.status:<8} {finding.check:<{width}} {finding.found}"]
    if finding.cause:
        lines.append(f"{indent}cause: {finding.cause}")
    if finding.fix:
        lines.append(f"{indent}try: {finding.fix}")
    return "\n".join(lines)

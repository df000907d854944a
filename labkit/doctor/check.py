"""A check, and the finding that it returns."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

from labkit.doctor.host import Host
from labkit.host.distribution import Distribution

# All checks must finish within 10 s, with the start of Python and the printing.
LIMIT_SECONDS = 8.0

Status = Literal["ok", "skipped", "unknown", "warning", "failed"]
# In the order shown: failures come last, where a terminal still shows them.
STATUSES: tuple[Status, ...] = ("ok", "skipped", "unknown", "warning", "failed")


@dataclass(frozen=True)
class SafeFix:
    """A fix that ``--fix`` may run: its exact arguments (not a shell line), and what it does.

    A fix is safe if it can be undone, touches no other user's work, and grants no more access than
    the lab needs: no reboot, no installation, no restart of an engine, no deletion.
    """

    arguments: tuple[str, ...]
    does: str
    as_root: bool = True

    def command(self, user_id: int | None, *, may_ask: bool = True) -> tuple[str, ...]:
        """The command for this user, with sudo if it needs root; ``may_ask``: for a password."""
        if not self.as_root or user_id == 0:
            return self.arguments
        return ("sudo", *(() if may_ask else ("-n",)), *self.arguments)


@dataclass(frozen=True)
class Finding:
    """What a check found, the likely cause and the exact fix (both None if there is no problem).

    ``skip_reason`` says why checks that depend on this one are skipped, None if they are not.
    ``safe`` is the fix as data, if ``--fix`` may run it.
    """

    status: Status
    found: str
    cause: str | None = None
    fix: str | None = None
    skip_reason: str | None = None
    check: str = ""
    safe: SafeFix | None = None

    def describe(self) -> dict[str, object]:
        """The finding as ``--json`` prints it."""
        return {
            "check": self.check,
            "status": self.status,
            "found": self.found,
            "cause": self.cause,
            "fix": self.fix,
            "safe_fix": list(self.safe.arguments) if self.safe else None,
        }


def ok(found: str, *, skip_reason: str | None = None) -> Finding:
    """No problem; ``skip_reason`` says why the checks that depend on this one are skipped."""
    return Finding("ok", found, skip_reason=skip_reason)


def warning(
    found: str,
    cause: str,
    fix: str,
    *,
    skip_reason: str | None = None,
    safe: SafeFix | None = None,
) -> Finding:
    """The lab works, but could work better or more safely."""
    return Finding("warning", found, cause, fix, skip_reason, safe=safe)


def failed(found: str, cause: str, fix: str, *, safe: SafeFix | None = None) -> Finding:
    """The lab, or its GPU, does not work."""
    return Finding("failed", found, cause, fix, safe=safe)


def unknown(found: str, fix: str | None = None) -> Finding:
    """The probe gave no usable answer."""
    return Finding("unknown", found, None, fix)


@dataclass(frozen=True)
class Check:
    """One question about a host: a probe that reads facts and a pure function that judges them.

    The check is skipped if one of those in ``needs`` did not pass. It must end ``limit_seconds``
    after the start of the examination, and ``deep_seconds`` after it with ``--deep``, which gives
    slow checks minutes. ``late`` is the fix to show if it does not.
    """

    name: str
    title: str
    probe: Callable[[Host], Any]
    judge: Callable[[Any, Distribution], Finding]
    needs: tuple[str, ...] = ()
    network: bool = False
    limit_seconds: float = LIMIT_SECONDS
    deep_seconds: float = LIMIT_SECONDS
    late: str | None = None

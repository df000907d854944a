"""What a check is, and the finding it comes back with."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

from labkit.doctor.host import Host
from labkit.host.distribution import Distribution

# The whole is to be over in 10 s, with the start of Python and the printing.
PATIENCE_SECONDS = 8.0

Status = Literal["ok", "skipped", "unknown", "warning", "failed"]
# As they are shown: what needs doing comes last, where a terminal still shows it.
STATUSES: tuple[Status, ...] = ("ok", "skipped", "unknown", "warning", "failed")


@dataclass(frozen=True)
class SafeFix:
    """A fix that ``--fix`` may run: its exact arguments, never a shell's line, and what it does.

    Safe is what can be taken back, touches no other person's work and lets no more in than the
    lab needs: no reboot, no installation, no restart of an engine, nothing deleted.
    """

    arguments: tuple[str, ...]
    does: str
    as_root: bool = True

    def command(self, user_id: int | None, *, may_ask: bool = True) -> tuple[str, ...]:
        """The command for this user, by sudo where it takes root; without a password unasked."""
        if not self.as_root or user_id == 0:
            return self.arguments
        return ("sudo", *(() if may_ask else ("-n",)), *self.arguments)


@dataclass(frozen=True)
class Finding:
    """What a check found, the likely cause and the exact fix (both None where all is well).

    ``moot`` is why checks that build on this one need not be made, or None where they should.
    ``safe`` is the fix as data, where it is one that ``--fix`` may run.
    """

    status: Status
    found: str
    cause: str | None = None
    fix: str | None = None
    moot: str | None = None
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


def ok(found: str, *, moot: str | None = None) -> Finding:
    """All is well; ``moot`` says why the checks that build on this one have nothing to look at."""
    return Finding("ok", found, moot=moot)


def warning(
    found: str, cause: str, fix: str, *, moot: str | None = None, safe: SafeFix | None = None
) -> Finding:
    """The lab works, but not as well or as safely as it could."""
    return Finding("warning", found, cause, fix, moot, safe=safe)


def failed(found: str, cause: str, fix: str, *, safe: SafeFix | None = None) -> Finding:
    """This keeps the lab, or its GPU, from working."""
    return Finding("failed", found, cause, fix, safe=safe)


def unknown(found: str, fix: str | None = None) -> Finding:
    """What was asked gave no answer that says anything."""
    return Finding("unknown", found, None, fix)


@dataclass(frozen=True)
class Check:
    """One question to a host: a probe that gathers facts and a pure predicate that judges them.

    ``needs`` names the checks whose trouble makes this one moot. ``patience_seconds`` is how
    long after the start an answer is waited for, and ``deep_seconds`` the same under ``--deep``,
    which gives minutes to what may take them. ``late`` is what to try where none came.
    """

    name: str
    title: str
    probe: Callable[[Host], Any]
    judge: Callable[[Any, Distribution], Finding]
    needs: tuple[str, ...] = ()
    network: bool = False
    patience_seconds: float = PATIENCE_SECONDS
    deep_seconds: float = PATIENCE_SECONDS
    late: str | None = None

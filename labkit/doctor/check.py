"""What a check is, and the finding it comes back with."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

from labkit.doctor.distribution import Distribution
from labkit.doctor.host import Host

Status = Literal["ok", "skipped", "unknown", "warning", "failed"]
# As they are shown: what needs doing comes last, where a terminal still shows it.
STATUSES: tuple[Status, ...] = ("ok", "skipped", "unknown", "warning", "failed")


@dataclass(frozen=True)
class Finding:
    """What a check found, the likely cause and the exact fix (both None where all is well).

    ``moot`` is why checks that build on this one need not be made, or None where they should.
    """

    status: Status
    found: str
    cause: str | None = None
    fix: str | None = None
    moot: str | None = None
    check: str = ""

    def describe(self) -> dict[str, object]:
        """The finding as ``--json`` prints it."""
        return {
            "check": self.check,
            "status": self.status,
            "found": self.found,
            "cause": self.cause,
            "fix": self.fix,
        }


def ok(found: str, *, moot: str | None = None) -> Finding:
    """All is well; ``moot`` says why the checks that build on this one have nothing to look at."""
    return Finding("ok", found, moot=moot)


def warning(found: str, cause: str, fix: str, *, moot: str | None = None) -> Finding:
    """The lab works, but not as well or as safely as it could."""
    return Finding("warning", found, cause, fix, moot)


def failed(found: str, cause: str, fix: str) -> Finding:
    """This keeps the lab, or its GPU, from working."""
    return Finding("failed", found, cause, fix)


def unknown(found: str, fix: str | None = None) -> Finding:
    """What was asked gave no answer that says anything."""
    return Finding("unknown", found, None, fix)


@dataclass(frozen=True)
class Check:
    """One question to a host: a probe that gathers facts and a pure predicate that judges them.

    ``needs`` names the checks whose trouble makes this one moot. ``patience_seconds`` is how
    long after the start an answer is waited for.
    """

    name: str
    title: str
    probe: Callable[[Host], Any]
    judge: Callable[[Any, Distribution], Finding]
    needs: tuple[str, ...] = ()
    network: bool = False
    patience_seconds: float = 9.0

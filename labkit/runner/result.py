"""What came of a run: frozen facts, the object that ``labkit run --json`` prints."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from labkit.errors import ExitCode
from labkit.lessons.outputs import read_checks, read_claims

# The status words of notebooks and runs, and the exit code each one ends the command with.
EXIT_CODES = {
    "passed": ExitCode.OK,
    "failed": ExitCode.FAILED,  # a cell raised, a claim does not hold, a check did not pass
    "died": ExitCode.FAILED,  # the kernel's process ended under a cell, or never started
    "timed_out": ExitCode.TIMEOUT,
    "invalid": ExitCode.USAGE,  # the file is no notebook, or asks for a kernel that is not here
    "interrupted": ExitCode.INTERRUPTED,
    "not_run": ExitCode.OK,  # an earlier notebook failed; that one sets the exit code
}


@dataclass(frozen=True)
class CellResult:
    """One code cell: its place in the notebook from 0, wall seconds (None: did not end by itself).

    ``status`` is passed, failed, timed_out, died, interrupted, skipped (by its tag) or not_run.
    """

    index: int
    status: str
    seconds: float | None
    first_line: str


@dataclass(frozen=True)
class ClaimOutcome:
    """A fact the notebook stated; ``held`` is None where it was skipped, for the reason given."""

    statement: str
    held: bool | None
    skipped: str | None


@dataclass(frozen=True)
class CheckOutcome:
    """An exercise the notebook checked, and the verdict's status."""

    name: str
    status: str


@dataclass(frozen=True)
class RunFailure:
    """Why a notebook ended early: what happened, and in which cell, with its source.

    ``name`` is the exception's; ``traceback`` is its text or, of a kernel that died, the last
    that the process wrote.
    """

    what: str
    cell_index: int | None = None
    name: str | None = None
    source: str | None = None
    traceback: str | None = None


@dataclass(frozen=True)
class NotebookResult:
    """One notebook's run: status, wall seconds with the kernel's start, and what it showed."""

    name: str
    path: str
    status: str
    seconds: float | None = None
    cells: tuple[CellResult, ...] = ()
    claims: tuple[ClaimOutcome, ...] = ()
    checks: tuple[CheckOutcome, ...] = ()
    error: RunFailure | None = None


@dataclass(frozen=True)
class RunResult:
    """A whole run: where it ran, and its notebooks in the order they were asked for."""

    environment: Mapping[str, object]
    notebooks: tuple[NotebookResult, ...]

    @property
    def status(self) -> str:
        """The status of the first notebook that did not pass; "passed" where all did."""
        statuses = [notebook.status for notebook in self.notebooks]
        if "interrupted" in statuses:
            return "interrupted"
        return next((status for status in statuses if status != "passed"), "passed")

    @property
    def exit_code(self) -> ExitCode:
        """The exit code that the command ends with."""
        return EXIT_CODES[self.status]


def describe_run(run: RunResult) -> dict[str, object]:
    """The run as ``--json`` and ``result.json`` have it."""
    return {
        "status": run.status,
        "environment": dict(run.environment),
        "notebooks": [dataclasses.asdict(notebook) for notebook in run.notebooks],
    }


def collect_claims(notebook: Mapping[str, Any]) -> tuple[ClaimOutcome, ...]:
    """The claims that an executed notebook's outputs record, in the order they were shown."""
    return tuple(
        ClaimOutcome(str(record.get("statement")), record.get("held"), record.get("skipped"))
        for record in read_claims(notebook)
    )


def collect_checks(notebook: Mapping[str, Any]) -> tuple[CheckOutcome, ...]:
    """The checks that an executed notebook's outputs record, in the order they were shown."""
    return tuple(
        CheckOutcome(str(record.get("exercise")), str(record.get("status")))
        for record in read_checks(notebook)
    )


def all_held(claims: tuple[ClaimOutcome, ...], checks: tuple[CheckOutcome, ...]) -> bool:
    """True where no claim failed (a skipped one did not) and every check passed."""
    return not any(claim.held is False for claim in claims) and all(
        check.status == "passed" for check in checks
    )

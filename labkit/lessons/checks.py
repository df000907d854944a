"""check(name, function): judges a learner's function, shows the verdict and records it."""

from __future__ import annotations

import os
from collections import Counter
from dataclasses import asdict

from labkit.errors import LabkitError
from labkit.files import find_workspace
from labkit.lessons.cards import BAD, GOOD, QUIET, Card, Detail, show_card
from labkit.lessons.catalog import find_exercise
from labkit.lessons.exercises import NOT_STARTED, Exercise, Verdict
from labkit.lessons.progress import record_attempt
from labkit.notebooks.result import CHECK_MIME

REFERENCE_VARIABLE = "LABKIT_REFERENCE"
NOT_RECORDED = "not recorded: no workspace found from this folder"

_WORDS = {
    "passed": (GOOD, "passed"),
    "not_started": (QUIET, "not started"),
    "raised": (BAD, "raised an exception"),
    "wrong_type": (BAD, "wrong type"),
    "wrong_shape": (BAD, "wrong shape"),
    "wrong_dtype": (BAD, "wrong dtype"),
    "wrong_values": (BAD, "wrong values"),
    "changed_argument": (BAD, "changed its argument"),
    "forbidden": (BAD, "right, but not this way"),
}

# Attempts in this process, used if there is no workspace to record them in.
_attempts: Counter[str] = Counter()


class CheckFailed(LabkitError):
    """A reference solution did not pass its own check."""


def check(name: str, function: object) -> None:
    """Shows the verdict on ``function`` as the answer to the exercise ``<lab>.<name>``.

    A pass is recorded in the workspace. A failure shows a hint, and from the second on one more.
    In a reference run (LABKIT_REFERENCE=1) nothing is recorded, and a failure raises CheckFailed.
    """
    from labkit.lessons.judging import judge_function

    _, exercise = find_exercise(name)
    verdict = judge_function(exercise, name, function)
    if os.environ.get(REFERENCE_VARIABLE) == "1":
        show_verdict(verdict)
        if not verdict.passed:
            raise CheckFailed(f"the reference for {name}: {verdict.status}: {verdict.message}")
        return
    attempts, note = _record(verdict)
    show_verdict(verdict, choose_hints(exercise, verdict, attempts), note)


def choose_hints(exercise: Exercise, verdict: Verdict, attempts: int) -> tuple[str, ...]:
    """The hints to show: none for a pass or a stub, one on a first failure, then all of them."""
    if verdict.passed or verdict.status == NOT_STARTED:
        return ()
    return exercise.hints[:1] if attempts < 2 else exercise.hints


def show_verdict(verdict: Verdict, hints: tuple[str, ...] = (), note: str | None = None) -> None:
    """Displays the verdict (html, text and a record), or prints it outside IPython."""
    record = {**asdict(verdict), "hints": list(hints), "note": note}
    show_card(_make_card(verdict, hints, note), CHECK_MIME, record)


def _record(verdict: Verdict) -> tuple[int, str | None]:
    """The number of attempts, and a note if the attempt could not be recorded."""
    name = verdict.exercise
    if verdict.status == NOT_STARTED:
        return 0, None
    _attempts[name] += 1
    workspace = find_workspace()
    if workspace is None:
        return _attempts[name], NOT_RECORDED
    try:
        standing, note = record_attempt(workspace, name, passed=verdict.passed)
    except LabkitError as error:
        # The verdict is what was asked for; a full disk must not take it away.
        return _attempts[name], f"not recorded: {error.what} ({error.cause})"
    return standing.attempts, note


def _make_card(verdict: Verdict, hints: tuple[str, ...], note: str | None) -> Card:
    severity, word = _WORDS[verdict.status]
    details = (
        Detail("in", verdict.case or ""),
        Detail("expected", verdict.expected or "", code=True),
        Detail("got", verdict.got or "", code=True),
        *(Detail("hint", hint) for hint in hints),
        Detail("note", note or ""),
    )
    shown = tuple(detail for detail in details if detail.text)
    return Card(severity, word, f"`{verdict.exercise}` {verdict.message}", details=shown)

"""check(name, function): runs a learner's function on an exercise's cases and shows the verdict.

The workspace records each attempt.
"""

from __future__ import annotations

import linecache
import os
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from types import TracebackType
from typing import Any

from labkit.errors import LabkitError
from labkit.files import find_workspace
from labkit.lessons.calls import (
    LIMIT_SECONDS,
    TookTooLong,
    call_with_limit,
    copy_arguments,
    find_violation,
)
from labkit.lessons.cards import BAD, GOOD, QUIET, Card, Detail, show_card
from labkit.lessons.catalog import find_exercise
from labkit.lessons.exercises import (
    CHANGED_ARGUMENT,
    FORBIDDEN,
    NOT_STARTED,
    PASSED,
    RAISED,
    TIMED_OUT,
    UNSET,
    WRONG_TYPE,
    WRONG_VALUES,
    Case,
    Exercise,
    NotThisWay,
    Verdict,
)
from labkit.lessons.progress import record_attempt
from labkit.lessons.value_repr import (
    LONGEST_TEXT,
    PLAIN_FUNCTIONS,
    Difference,
    Tolerance,
    describe_type,
    find_difference,
    format_value,
    is_array,
    is_tensor,
    same_value,
)
from labkit.notebooks.result import CHECK_MIME
from labkit.text import shorten

STUB_TEXT = "write your code here"


def judge_function(
    exercise: Exercise, name: str, function: object, limit_seconds: float = LIMIT_SECONDS
) -> Verdict:
    """The verdict on ``function``: that of the first failing case, or a pass.

    ``name`` is the exercise's full name, and the limit is that of one call. The caller's random
    state, default dtype and grad mode do not change.
    """
    if not callable(function):
        text = f"`check` takes the function itself, and was given {describe_type(function)}"
        return Verdict(name, WRONG_TYPE, text)
    with _plain_torch():
        cases = list(exercise.cases())
        for index, case in enumerate(cases):
            place = f"case {index + 1} of {len(cases)}"
            place += f": {case.note}" if case.note else ""
            judge = _CaseJudge(name, case, place, index, limit_seconds)
            verdict = judge.judge(function)
            if verdict:
                return _name_mistake(verdict, exercise, judge)
        violation = find_violation(exercise, function, limit_seconds)
    if violation:
        return Verdict(name, FORBIDDEN, NotThisWay(violation))
    return Verdict(name, PASSED, f"right in all {len(cases)} cases")


@dataclass(frozen=True)
class _CaseJudge:
    """One case of the exercise ``name``; ``place`` names it in a verdict."""

    name: str
    case: Case
    place: str
    seed: int
    limit_seconds: float

    def judge(self, function: Callable[..., object]) -> Verdict | None:
        """The verdict on a function that fails the case; None if it is right."""
        import torch

        torch.manual_seed(self.seed)
        case = self.case
        arguments = copy_arguments(case.arguments)
        before = copy_arguments(arguments)
        got = None
        try:
            got = call_with_limit(function, *arguments, seconds=self.limit_seconds)
        except TookTooLong as error:
            return Verdict(self.name, TIMED_OUT, str(error), self.place)
        except (Exception, SystemExit) as error:
            if case.raises is None or not isinstance(error, case.raises):
                return _judge_error(self.name, function, error, self.place)
        else:
            if case.raises is not None:
                text = f"{case.raises.__name__} must come out of the function, and it returned"
                return Verdict(self.name, WRONG_VALUES, f"{text} {describe_type(got)}", self.place)
        # A changed argument comes first: later values may be wrong for that reason only.
        if case.keeps_arguments:
            changed = _find_changed(arguments, before)
            if changed:
                return Verdict(self.name, CHANGED_ARGUMENT, changed, self.place)
        return self._judge_value(got, arguments)

    def _judge_value(self, got: object, arguments: tuple[Any, ...]) -> Verdict | None:
        case, difference = self.case, None
        expected = _expected_value(case)
        if expected is not UNSET:
            difference = _compare(got, expected, Tolerance(case.rtol, case.atol))
        if difference is None and case.judge is not None:
            difference = _ask_judge(case, got, arguments, self.limit_seconds)
        if difference is None:
            return None
        shown = difference.got or (None if case.raises or callable(got) else format_value(got))
        return Verdict(
            self.name, difference.status, difference.message, self.place, difference.expected, shown
        )


def _name_mistake(verdict: Verdict, exercise: Exercise, judge: _CaseJudge) -> Verdict:
    """The verdict with the known wrong answer that fails the case in the same way, if any."""
    for wrong in exercise.wrong_answers:
        if wrong.verdict == verdict.status:
            other = judge.judge(wrong.function)
            if other and _outcome(other) == _outcome(verdict):
                return replace(verdict, mistake=wrong.description, hint=wrong.hint)
    return verdict


def _outcome(verdict: Verdict) -> tuple[str, str, str | None]:
    # The first line of an error: the second names a line of the learner's code.
    return verdict.status, verdict.message.partition("\n")[0], verdict.got


def _compare(got: object, expected: object, tolerance: Tolerance) -> Difference | None:
    try:
        return find_difference(got, expected, tolerance)
    except (RuntimeError, TypeError) as error:
        # Sparse tensors, tensors without data and the like are not what the exercise asks for.
        reason = f"{type(error).__name__}: {shorten(str(error), LONGEST_TEXT)}"
        return Difference(WRONG_TYPE, f"the answer cannot be compared ({reason})")


def _expected_value(case: Case) -> object:
    if isinstance(case.expected, PLAIN_FUNCTIONS):
        return case.expected(*copy_arguments(case.arguments))
    return case.expected


def _ask_judge(
    case: Case, got: object, arguments: tuple[Any, ...], seconds: float
) -> Difference | None:
    assert case.judge is not None
    try:
        # With a limit too: the answer may be a function, which the judge calls.
        complaint = call_with_limit(case.judge, got, arguments, seconds=seconds)
    except TookTooLong as error:
        return Difference(TIMED_OUT, str(error))
    except Exception as error:
        # The judge looks for a property: an answer without it has the wrong type.
        kind = f"the answer is {describe_type(got)}, which cannot be what was asked for"
        return Difference(
            WRONG_TYPE, f"{kind} ({type(error).__name__}: {shorten(str(error), LONGEST_TEXT)})"
        )
    if not complaint:
        return None
    status = FORBIDDEN if isinstance(complaint, NotThisWay) else WRONG_VALUES
    return Difference(status, complaint)


def _judge_error(name: str, function: object, error: BaseException, label: str) -> Verdict:
    text = str(error)
    # torch also raises NotImplementedError, with other texts, for missing kernels.
    if isinstance(error, NotImplementedError) and text in (STUB_TEXT, ""):
        return Verdict(name, NOT_STARTED, "the function is still the stub")
    said = f"{type(error).__name__}: {shorten(text, 400)}" if text else type(error).__name__
    where = _own_line(function, error.__traceback__)
    return Verdict(name, RAISED, said + (f"\n{where}" if where else ""), label)


def _own_line(function: object, traceback: TracebackType | None) -> str | None:
    """The deepest traceback line in the learner's own code: the function's file or its globals."""
    inner = getattr(function, "__wrapped__", function)
    own_globals = getattr(inner, "__globals__", None)
    own_file = getattr(getattr(inner, "__code__", None), "co_filename", None)
    found = None
    while traceback is not None:
        frame = traceback.tb_frame
        if frame.f_globals is own_globals or frame.f_code.co_filename == own_file:
            found = (frame.f_code, traceback.tb_lineno)
        traceback = traceback.tb_next
    if found is None:
        return None
    code, line = found
    source = linecache.getline(code.co_filename, line).strip()
    return f"in line {line} of `{code.co_name}`" + (f": `{source}`" if source else "")


def _find_changed(arguments: tuple[Any, ...], before: tuple[Any, ...]) -> str | None:
    for index, (now, was) in enumerate(zip(arguments, before, strict=True)):
        watched = is_tensor(now) or is_array(now) or isinstance(now, list | dict)
        if watched and not same_value(now, was):
            return (
                f"the function changed its argument number {index + 1}: "
                f"it was {format_value(was)}, and is now {format_value(now)}"
            )
    return None


@contextmanager
def _plain_torch() -> Iterator[None]:
    """Sets torch's defaults, and restores the caller's random state and settings on exit."""
    import torch

    dtype = torch.get_default_dtype()
    cuda = list(range(torch.cuda.device_count())) if torch.cuda.is_initialized() else []
    with torch.random.fork_rng(devices=cuda), torch.inference_mode(False), torch.enable_grad():
        torch.set_default_dtype(torch.float32)
        try:
            yield
        finally:
            torch.set_default_dtype(dtype)


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

# Attempts in this process, counted here if there is no workspace.
_attempts: Counter[str] = Counter()


class CheckFailed(LabkitError):
    """A reference solution did not pass its own check."""


def check(name: str, function: object) -> None:
    """Shows the verdict on ``function`` as the answer to the exercise ``<lab>.<name>``.

    The workspace records a pass. The first failure shows one hint, later failures show all hints.
    A reference run (LABKIT_REFERENCE=1) records nothing, and a failure raises CheckFailed.
    """

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
        # The learner must see the verdict even if it cannot be recorded (disk full).
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

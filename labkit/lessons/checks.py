"""check(name, function): runs a learner's function on an exercise's cases and shows the verdict.

The workspace records each attempt.
"""

from __future__ import annotations

import ast
import contextlib
import hashlib
import inspect
import io
import itertools
import linecache
import math
import os
import re
import sys
import time
import uuid
from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from types import CodeType, TracebackType
from typing import Any

from labkit.errors import EngineError, LabkitError
from labkit.files import find_workspace
from labkit.lessons.calls import (
    LIMIT_SECONDS,
    TookTooLong,
    call_with_limit,
    copy_arguments,
    find_changed,
    find_violation,
    notice_slow_calls,
)
from labkit.lessons.cards import (
    BAD,
    GOOD,
    HIDDEN_HTML,
    QUIET,
    Card,
    Detail,
    card_html,
    card_text,
    find_kernel_shell,
    show_bundle,
    show_card,
)
from labkit.lessons.catalog import Lab, exercise_names, find_exercise, find_labs, load_exercises
from labkit.lessons.exercises import (
    CHANGED_ARGUMENT,
    FORBIDDEN,
    NOT_RUN,
    NOT_STARTED,
    PASSED,
    RAISED,
    TIMED_OUT,
    UNSET,
    WRONG_DTYPE,
    WRONG_SHAPE,
    WRONG_TYPE,
    WRONG_VALUES,
    Case,
    Exercise,
    NotThisWay,
    Verdict,
    WrongAnswer,
)
from labkit.lessons.notebooks import find_reference
from labkit.lessons.progress import (
    Progress,
    Standing,
    count_attempt,
    read_progress,
    record_attempt,
    record_seen,
)
from labkit.lessons.value_repr import (
    FORGOTTEN,
    LONGEST_TEXT,
    PLAIN_FUNCTIONS,
    Difference,
    Tolerance,
    describe_type,
    find_difference,
    format_value,
    is_tensor,
)
from labkit.notebooks.ranks import STARTUP_SECONDS, RanksFailed, RanksTimedOut, run_on_ranks
from labkit.notebooks.result import CHECK_MIME
from labkit.text import shorten

_ALL_RIGHT = {1: "right in the one case", 2: "right in both cases"}
STUB_TEXT = "write your code here"
NOT_WRITTEN = "write the function in its cell, run that cell, and then this one"
# A second look at an answer, to name its mistake, must not take long: the limit of one call, which
# leaves one that compiles the time to end, and the time after which no further call begins.
_BRIEF_SECONDS, _LOOK_SECONDS = 5.0, 2.0
# The most values of a tensor that are compared with those of known mistakes.
MOST_COMPARED = 1000
_CALLED = re.compile(r"(?<=^TypeError: )[\w.<>]+(?=\(\))")
# What Dynamo's errors end with: advice to those who work on Dynamo.
_FOR_MAINTAINERS = re.compile(
    r"\n\s*(Set TORCHDYNAMO_VERBOSE=1|Developer debug context:|For more information, run with"
    r"|Hint: Please report an issue).*",
    re.DOTALL,
)
# The limit of an answer that runs on several ranks: a collective that waits for ever is common.
RANKS_SECONDS = 5.0
SOLUTION_MIME = "application/vnd.labkit.solution+json"


def judge_function(
    exercise: Exercise, name: str, function: object, limit_seconds: float = LIMIT_SECONDS
) -> Verdict:
    """The verdict on ``function``: that of the first failing case, or a pass.

    ``name`` is the exercise's full name, and the limit is that of one call. The caller's random
    state, default dtype and grad mode do not change.
    """
    if not callable(function):
        text = f'`check` needs the function itself, as in `check("{name}", f)`, but got '
        text += describe_type(function)
        return Verdict(name, WRONG_TYPE, text)
    with _plain_torch():
        cases = list(exercise.cases())
        for index, case in enumerate(cases):
            place = f"case {index + 1} of {len(cases)}"
            place += f": {case.note}" if case.note else ""
            judge = _CaseJudge(name, case, place, index, limit_seconds)
            verdict = judge.judge(function)
            if verdict:
                others = [one for one in enumerate(cases) if one[0] != index]
                return _name_mistake(verdict, exercise, judge, function, others)
        violation = find_violation(exercise, function, limit_seconds)
    if violation:
        known = [one.hint for one in exercise.wrong_answers if one.verdict == FORBIDDEN]
        hint = known[0] if len(known) == 1 else 0
        return Verdict(name, FORBIDDEN, NotThisWay(violation), hint=hint)
    return Verdict(name, PASSED, _ALL_RIGHT.get(len(cases), f"right in all {len(cases)} cases"))


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
            got = self._call(function, arguments)
        except (TookTooLong, RanksTimedOut) as error:
            hint = ENDLESS if isinstance(error, TookTooLong) else 0
            return Verdict(self.name, TIMED_OUT, str(error), self.place, hint=hint)
        except EngineError as error:  # what the check needs is missing: no word on the answer
            return Verdict(self.name, NOT_RUN, str(error))
        except (Exception, SystemExit) as error:
            if case.raises is None or not isinstance(error, case.raises):
                return _judge_error(self.name, function, error, self.place)
        else:
            if case.raises is not None:
                text = f"the function must raise {case.raises.__name__}, but it returned"
                return Verdict(self.name, WRONG_VALUES, f"{text} {describe_type(got)}", self.place)
        # A changed argument comes first: later values may be wrong for that reason only.
        if case.keeps_arguments:
            changed = _find_changed(arguments, before)
            if changed:
                return Verdict(self.name, CHANGED_ARGUMENT, changed, self.place)
        return self._judge_value(got, arguments)

    def _call(self, function: Callable[..., object], arguments: tuple[Any, ...]) -> object:
        case, seconds = self.case, self.limit_seconds
        if case.ranks is None:
            return call_with_limit(function, *arguments, seconds=seconds)
        call = partial(
            run_on_ranks,
            case.harness or _call_plainly,
            function,
            world_size=case.ranks,
            timeout_seconds=min(seconds, RANKS_SECONDS),
        )
        return call_with_limit(
            call,
            *arguments,
            seconds=min(seconds, RANKS_SECONDS),
            startup_seconds=seconds + STARTUP_SECONDS,
        )

    def call(self, function: Callable[..., object]) -> object:
        """What the function returns for the case; None if it raises."""
        import torch

        torch.manual_seed(self.seed)
        try:
            return self._call(function, copy_arguments(self.case.arguments))
        except (Exception, SystemExit):
            return None

    def _judge_value(self, got: object, arguments: tuple[Any, ...]) -> Verdict | None:
        case, difference = self.case, None
        expected = _expected_value(case)
        if expected is not UNSET:
            difference = _compare(got, expected, Tolerance(case.rtol, case.atol))
        if difference is None and case.judge is not None:
            difference = _ask_judge(case, got, arguments, self.limit_seconds)
        if difference is None:
            return None
        # Values that are right tell nothing, and what a function returns is none.
        silent = case.raises or callable(got) or difference.status == FORBIDDEN
        shown = difference.got or (None if silent else format_value(got))
        return Verdict(
            self.name, difference.status, difference.message, self.place, difference.expected, shown
        )


def _call_plainly(function: Callable[..., object], *arguments: object) -> object:
    return function(*arguments)


def _name_mistake(
    verdict: Verdict,
    exercise: Exercise,
    judge: _CaseJudge,
    function: Callable[..., object],
    others: list[tuple[int, Case]],
) -> Verdict:
    """The verdict with the known wrong answer that does the same, or the two that do together."""
    if judge.case.ranks and verdict.status == TIMED_OUT:
        return verdict  # it says where each rank waits; trying others would take the limit again
    brief = min(judge.limit_seconds, _BRIEF_SECONDS)
    judges = [
        replace(judge, case=case, seed=seed, limit_seconds=brief)
        for seed, case in others
        if case.ranks is None and verdict.status != TIMED_OUT
    ]
    with contextlib.redirect_stdout(io.StringIO()):  # what an answer prints is on the page already
        named = _find_same(verdict, exercise, judge, function, judges)
        if not named and verdict.status != TIMED_OUT and judge.case.ranks is None:
            named = _find_parts(verdict, exercise, [judge, *judges], function)
            named = named or _find_product(verdict, exercise, judge, function)
    if not named:
        return verdict
    mistake = ", and that ".join(one.description for one in named)
    return replace(verdict, mistake=mistake, hint=named[0].hint)


def _find_same(
    verdict: Verdict,
    exercise: Exercise,
    judge: _CaseJudge,
    function: Callable[..., object],
    judges: list[_CaseJudge],
) -> list[WrongAnswer]:
    """The known wrong answer that fails the case in the same way, if any.

    Different mistakes can do that: of those that do, the one that agrees in most other cases, and
    in half of them at least.
    """
    known = [one for one in exercise.wrong_answers if one.verdict == verdict.status]
    same = [one for one in known if _outcome(judge.judge(one.function)) == _outcome(verdict)]
    shares = [_share_agreed(judges, function, one.function) for one in same]
    best = max(shares, default=0.0)
    return [same[shares.index(best)]] if best >= 0.5 else []


def _find_parts(
    verdict: Verdict,
    exercise: Exercise,
    judges: list[_CaseJudge],
    function: Callable[..., object],
) -> list[WrongAnswer]:
    """Up to two known wrong answers, each of which fails some case as the function does.

    Of two mistakes in one answer, a case often shows one alone. The first judge has ``verdict``.
    """
    known = [one for one in exercise.wrong_answers if one.verdict != TIMED_OUT]
    until = time.monotonic() + _LOOK_SECONDS
    shown: dict[int, set[int]] = {}  # by wrong answer, the cases that show it
    for place, judge in enumerate(judges):
        ours = _outcome(judge.judge(function) if place else verdict)
        if ours is None or ours[0] == TIMED_OUT:
            continue
        same = []
        for number, one in enumerate(known):
            if time.monotonic() > until:
                break
            if _outcome(judge.judge(one.function)) == ours:
                same.append(number)
        if len(same) == 1:  # a case that several mistakes fail alike tells nothing
            shown.setdefault(same[0], set()).add(place)
    named: list[int] = []
    left = set(range(len(judges)))
    while len(named) < 2 and any(left & cases for cases in shown.values()):
        named.append(max(shown, key=lambda one: (0 in left & shown[one], len(left & shown[one]))))
        left -= shown[named[-1]]
    alike = [one for one in known if one.verdict == verdict.status]
    if not named and verdict.status == CHANGED_ARGUMENT and len(alike) == 1:
        return alike
    if named or verdict.status not in (WRONG_TYPE, WRONG_SHAPE, WRONG_DTYPE):
        return [known[number] for number in named]
    # The same wrong type, shape or dtype is the same mistake, whatever the values are.
    said = (verdict.status, verdict.message)
    return [one for one in alike if (_outcome(judges[0].judge(one.function)) or ())[:2] == said][:1]


def _find_product(
    verdict: Verdict, exercise: Exercise, judge: _CaseJudge, function: Callable[..., object]
) -> list[WrongAnswer]:
    """The two known wrong answers whose factors or differences make the function's values.

    Or the one that shares a third of the wrong values.
    """
    right = _list_numbers(_expected_value(judge.case))
    if verdict.status != WRONG_VALUES or not right:
        return []
    ours = _list_numbers(judge.call(function))
    if len(ours) != len(right):
        return []
    found = [
        (one, values)
        for one in exercise.wrong_answers
        if one.verdict != TIMED_OUT
        for values in [_list_numbers(judge.call(one.function))]
        if values and len(values) == len(right) and not _near(values, right)
    ]
    for (one, a), (other, b) in itertools.combinations(found, 2):
        rows = list(zip(a, b, right, strict=True))
        added = [x + y - z for x, y, z in rows]
        scaled = [x * y / z if z else x * y for x, y, z in rows]
        if _near(ours, added) or _near(ours, scaled):
            return [one, other]
    wrong = [at for at in range(len(right)) if not _near(ours[at : at + 1], right[at : at + 1])]
    shared = [
        sum(_near(ours[at : at + 1], values[at : at + 1]) for at in wrong) for _, values in found
    ]
    best = max(shared, default=0)
    # One or two equal values may be chance, and several mistakes that share as many tell nothing.
    if best < max(3, len(wrong) / 3) or shared.count(best) > 1:
        return []
    return [found[shared.index(best)][0]]


def _list_numbers(value: object) -> list[float]:
    """All numbers of a value made of tensors, numbers and sequences; empty if there are others."""
    if is_tensor(value):
        plain = value.detach().flatten()[:MOST_COMPARED]
        return [] if plain.is_complex() or plain.is_meta else plain.tolist()
    if isinstance(value, int | float):
        return [float(value)]
    if not isinstance(value, list | tuple):
        return []
    parts = [_list_numbers(one) for one in value]
    return [number for part in parts for number in part] if all(parts) else []


def _near(values: list[float], others: list[float]) -> bool:
    return len(values) == len(others) and all(
        math.isclose(one, other, rel_tol=1e-4, abs_tol=1e-6)
        or (math.isnan(one) and math.isnan(other))
        for one, other in zip(values, others, strict=True)
    )


def _share_agreed(
    judges: list[_CaseJudge],
    function: Callable[..., object],
    wrong: Callable[..., object],
) -> float:
    """In which share of the cases that one of them fails both do the same; 0.5 if none tells."""
    same = counted = 0
    until = time.monotonic() + _LOOK_SECONDS
    for judge in judges:
        if time.monotonic() > until:
            break
        ours, theirs = _outcome(judge.judge(function)), _outcome(judge.judge(wrong))
        if (ours or theirs) and not any(one and one[0] == TIMED_OUT for one in (ours, theirs)):
            counted += 1
            same += ours == theirs
    return same / counted if counted else 0.5


def _outcome(verdict: Verdict | None) -> tuple[str, str, str | None] | None:
    if verdict is None:
        return None
    # The first line of an error, whose second names a line of the learner's code; and the name
    # that a call with too few or too many arguments begins with is theirs as well.
    text = _CALLED.sub("", verdict.message.partition("\n")[0])
    return verdict.status, text, verdict.got


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
        if got is None:
            return Difference(WRONG_TYPE, f"the answer is None: {FORGOTTEN}")
        # The judge looks for a property: an answer without it has the wrong type.
        kind = f"the answer is {describe_type(got)}, which cannot be what was asked for"
        said = shorten(str(error), LONGEST_TEXT)
        said = said if isinstance(error, TypeError) else f"{type(error).__name__}: {said}"
        return Difference(WRONG_TYPE, f"{kind} ({said})")
    if not complaint:
        return None
    status = FORBIDDEN if isinstance(complaint, NotThisWay) else WRONG_VALUES
    return Difference(status, complaint)


def _judge_error(name: str, function: object, error: BaseException, label: str) -> Verdict:
    if isinstance(error, RanksFailed):
        if not isinstance(error.original, NotImplementedError):
            return Verdict(name, RAISED, error.what, label)
        error = error.original
    text = str(error)
    # torch also raises NotImplementedError, with other texts, for missing kernels.
    if isinstance(error, NotImplementedError) and text in (STUB_TEXT, ""):
        return Verdict(name, NOT_STARTED, NOT_WRITTEN)
    text = _FOR_MAINTAINERS.sub("", text).strip()
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
        change = find_changed(now, was)
        if change:
            place, after, first = change
            at = f", at {place}" if place else ""
            return (
                f"the function changed its argument number {index + 1}{at}: "
                f"it was {format_value(first)}, and is now {format_value(after)}"
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
# The notebook that ``labkit check`` runs; a front end names its own in JPY_SESSION_NAME.
CHECKED_VARIABLE = "LABKIT_CHECKED"
NOT_RECORDED = "not recorded: no workspace found from this folder"
ENDLESS = "print in the loop what its condition looks at: does it ever change?"
# So many failed attempts, each with another answer, open the solution.
FAILURES_FOR_SOLUTION = 5

_WORDS = {
    PASSED: (GOOD, "passed"),
    NOT_STARTED: (QUIET, "not started"),
    NOT_RUN: (QUIET, "not run"),
    RAISED: (BAD, "raised an exception"),
    WRONG_TYPE: (BAD, "wrong type"),
    WRONG_SHAPE: (BAD, "wrong shape"),
    WRONG_DTYPE: (BAD, "wrong dtype"),
    WRONG_VALUES: (BAD, "wrong values"),
    CHANGED_ARGUMENT: (BAD, "changed its argument"),
    FORBIDDEN: (BAD, "right, but not this way"),
    TIMED_OUT: (BAD, "took too long"),
}

# The standings of this process, used if there is no workspace.
_standings: dict[str, Standing] = {}


class CheckFailed(LabkitError):
    """A reference solution did not pass its own check."""


def check(name: str, function: object) -> None:
    """Shows the verdict on ``function`` as the answer to the exercise ``<lab>.<name>``.

    The workspace records a pass. The first failure shows one hint, later failures show all hints.
    A reference run (LABKIT_REFERENCE=1) records nothing, and a failure raises CheckFailed.
    If the kernel is interrupted meanwhile, the check says so and raises KeyboardInterrupt.
    """
    __tracebackhide__ = True  # IPython hides such frames in a traceback
    lab, exercise = find_exercise(name)
    try:
        with _say_if_slow():
            verdict = find_failed_cell(name, function) or judge_function(exercise, name, function)
    except KeyboardInterrupt as error:
        text = f"`{name}`: the check was interrupted: no verdict, and nothing is recorded"
        card = Card(QUIET, "interrupted", text)
        show_bundle({"text/html": card_html(card), "text/plain": card_text(card)})
        raise error.with_traceback(None) from None
    if os.environ.get(REFERENCE_VARIABLE) == "1":
        show_verdict(verdict)
        if not verdict.passed:
            raise CheckFailed(f"the reference for {name}: {verdict.status}: {verdict.message}")
        return
    standing, note = _record(verdict, function)
    hints = choose_hints(exercise, verdict, standing.attempts)
    if verdict.passed:
        reference = Detail("compare with the reference", find_reference(lab, exercise.name) or "")
        show_verdict(verdict, (), note, _list_next(lab, name), reference)
    else:
        show_verdict(verdict, hints, note, _offer_solution(name, standing))


@contextmanager
def _say_if_slow() -> Iterator[None]:
    """Says in a notebook that the check is still running, and nothing once it has ended."""
    if not somebody_is_there():
        yield
        return
    shown = uuid.uuid4().hex

    def show(limit: float, startup: float) -> None:
        ends = f"a call without a result is stopped after {limit:g} s"
        if startup:
            ends = f"ranks without a result are stopped {limit:g} s after they have started"
        card = Card(QUIET, "still running", f"{ends}. To stop now, interrupt the kernel (■).")
        show_bundle({"text/html": card_html(card), "text/plain": card_text(card)}, shown)
        ended.callback(
            show_bundle, {"text/html": HIDDEN_HTML, "text/plain": ""}, shown, update=True
        )

    with contextlib.ExitStack() as ended, notice_slow_calls(show):
        yield


def somebody_is_there() -> bool:
    """True in a notebook's kernel whose front end takes input; runs and exports take none."""
    shell = find_kernel_shell()
    if shell is None or os.environ.get(REFERENCE_VARIABLE) == "1":
        return False
    return bool(getattr(shell.kernel, "_allow_stdin", False))


def solution(name: str) -> None:
    """Shows the reference solution of an exercise: after a pass, or five different failed answers.

    Progress records that it was seen before a pass.
    """
    lab, exercise = find_exercise(name)
    workspace = find_workspace()
    standing = _read_standing(workspace, name)
    if not (standing.passed or standing.seen or standing.failures >= FAILURES_FOR_SOLUTION):
        text = f"the solution of `{name}` is shown after a pass, or after {FAILURES_FOR_SOLUTION}"
        text += f" different answers that failed (so far {standing.failures})"
        show_card(Card(QUIET, "not yet", text), SOLUTION_MIME, {"exercise": name, "shown": False})
        return
    if workspace and not standing.passed:
        record_seen(workspace, name)
    code = Detail("reference", "\n" + (find_reference(lab, exercise.name) or ""), code=True)
    card = Card(QUIET, "solution", f"`{name}`", details=(code,))
    show_card(card, SOLUTION_MIME, {"exercise": name, "shown": True})


def choose_hints(exercise: Exercise, verdict: Verdict, attempts: int) -> tuple[str, ...]:
    """The hints to show: none for a pass or a stub, one on a first failure, then all of them.

    The hint of a recognized mistake comes first.
    """
    if verdict.status in (PASSED, NOT_STARTED, NOT_RUN):
        return ()
    first = (verdict.hint,) if isinstance(verdict.hint, str) else (exercise.hints[verdict.hint],)
    return (
        first if attempts < 2 else first + tuple(one for one in exercise.hints if one not in first)
    )


def show_verdict(
    verdict: Verdict,
    hints: tuple[str, ...] = (),
    note: str | None = None,
    after: tuple[Detail, ...] = (),
    folded: Detail | None = None,
) -> None:
    """Displays the verdict (html, text and a record), or prints it outside IPython."""
    record = {**asdict(verdict), "hints": list(hints), "note": note}
    severity, word = _WORDS[verdict.status]
    details = (
        Detail("in", verdict.case or ""),
        Detail("expected", verdict.expected or "", code=True),
        Detail("got", verdict.got or "", code=True),
        Detail("looks like", (verdict.mistake and f"an answer that {verdict.mistake}") or ""),
        *(Detail("hint", hint) for hint in hints),
        *after,
        Detail("note", note or ""),
    )
    shown = tuple(detail for detail in details if detail.text)
    sentence = f"`{verdict.exercise}`: {verdict.message}"
    folded = folded if folded and folded.text else None
    show_card(Card(severity, word, sentence, details=shown, folded=folded), CHECK_MIME, record)


def find_failed_cell(name: str, function: object) -> Verdict | None:
    """A verdict if the notebook's last definition of the function failed: it is an older one.

    None outside IPython, and for an answer that is not a function with a name in the notebook.
    """
    module = sys.modules.get("IPython")
    shell = module.get_ipython() if module else None
    code = getattr(getattr(function, "__wrapped__", function), "__code__", None)
    if shell is None or code is None:
        return None
    cells = shell.history_manager.input_hist_raw
    call = re.compile(rf"""\bcheck\(\s*["']{re.escape(name)}["']\s*,\s*(\w+)\s*\)""")
    asked = call.findall(next(filter(None, reversed(cells)), ""))
    called = next((one for one in asked if shell.user_ns.get(one) is function), None)
    why = _explain_failure(shell, cells, called, code) if called else None
    if why is None:
        return None
    text = f"the cell that defines `{called}` {why}, so this would judge an older `{called}`"
    return Verdict(name, NOT_RUN, f"{text}: fix that cell, run it, and check again")


def _explain_failure(shell: Any, cells: list[str], called: str, code: CodeType) -> str | None:
    """What is wrong with the last cell that binds the name; None if nothing is."""
    defines = re.compile(rf"^(async\s+)?def\s+{called}\b|^{called}\s*=", re.MULTILINE)
    for number in reversed(range(len(cells))):
        source = shell.transform_cell(cells[number])
        try:
            tree = ast.parse(source)
        except SyntaxError as error:
            if defines.search(cells[number]):
                return f"has a SyntaxError ({error.msg}, line {error.lineno})"
            continue
        binding = _find_binding(tree, called)
        if binding is None:
            continue
        ran = "".join(linecache.getlines(code.co_filename))
        if not ran or Path(code.co_filename).exists() or ran.strip() == source.strip():
            return None
        failed = _list_failed(shell)
        if failed is None:  # a plain definition would have made this code
            plain = isinstance(binding, ast.FunctionDef) and not binding.decorator_list
            failed = {number} if plain and code.co_name == called else ()
        return "ended with an error" if number in failed else None
    return None


def _list_failed(shell: Any) -> Collection[int] | None:
    """The numbers of the cells that ended with an error; None if IPython, before 9, tells none."""
    return getattr(shell.history_manager, "exceptions", None)


def _find_binding(tree: ast.Module, name: str) -> ast.stmt | None:
    """The last statement of the cell that binds the name, if any does."""
    for statement in reversed(tree.body):
        if getattr(statement, "name", None) == name:
            return statement
        stored = (one for one in ast.walk(statement) if isinstance(one, ast.Name))
        if any(one.id == name and isinstance(one.ctx, ast.Store) for one in stored):
            return statement
    return None


def _record(verdict: Verdict, function: object) -> tuple[Standing, str | None]:
    """The standing after this attempt, and a note if it could not be recorded."""
    name, workspace = verdict.exercise, find_workspace()
    if verdict.status in (NOT_STARTED, NOT_RUN):
        return _read_standing(workspace, name), None
    answer, by = _digest_answer(function), _name_notebook()
    if workspace is not None:
        try:
            return record_attempt(workspace, name, passed=verdict.passed, answer=answer, by=by)
        except LabkitError as error:
            # The learner must see the verdict even if it cannot be recorded (disk full).
            note = f"not recorded: {error.what} ({error.cause})"
    else:
        note = NOT_RECORDED
    known = _standings.get(name, Standing())
    _standings[name] = count_attempt(known, verdict.passed, answer, by)
    return _standings[name], note


def _read_standing(workspace: Path | None, name: str) -> Standing:
    if workspace is None:
        return _standings.get(name, Standing())
    return read_progress(workspace).standing(name)


def _digest_answer(function: object) -> str | None:
    try:
        source = inspect.getsource(function)  # type: ignore[arg-type]
    except (OSError, TypeError):
        return None
    return hashlib.sha256(source.encode()).hexdigest()[:12]


def _name_notebook() -> str | None:
    checked = os.environ.get(CHECKED_VARIABLE)
    if checked:
        return f"labkit check of {checked}"
    return Path(os.environ.get("JPY_SESSION_NAME", "")).name or None


def _list_next(lab: Lab, name: str) -> tuple[Detail, ...]:
    """How far the learner is in the lab, and what comes next."""
    workspace = find_workspace()
    names = [f"{lab.name}.{one}" for one in exercise_names(lab)]
    passed = {one for one in names if _read_standing(workspace, one).passed} | {name}
    far = f"{len(passed)} of {len(names)} exercises of this lab passed"
    place = names.index(name)
    left = [one for one in names[place:] + names[:place] if one not in passed]
    if left:
        titles = {f"{lab.name}.{one.name}": one.title for one in load_exercises(lab)}
        return (Detail("next", f"{titles[left[0]]} (`{left[0]}`); {far}"),)
    labs = find_labs()
    after = [one.name for one in labs].index(lab.name) + 1
    progress = read_progress(workspace) if workspace else Progress(_standings)
    for other in (*labs[after:], *labs[: after - 1]):
        if any(
            not progress.standing(f"{other.name}.{one}").passed for one in exercise_names(other)
        ):
            lesson = f"the lab {other.title} ({other.notebook})"
            return (Detail("next", f"{lesson}; all {len(names)} exercises of this lab passed"),)
    total = sum(len(exercise_names(one)) for one in labs)
    return (Detail("done", f"all {total} exercises passed"),)


def _offer_solution(name: str, standing: Standing) -> tuple[Detail, ...]:
    if standing.failures < FAILURES_FOR_SOLUTION or standing.passed:
        return ()
    code = f'`from labkit import solution; solution("{name}")`'
    return (Detail("solution", f"{code} shows the reference; progress notes that you saw it"),)

"""Runs a learner's function on the cases of an exercise, and returns the verdict."""

from __future__ import annotations

import copy
import linecache
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import TracebackType
from typing import Any

import torch

from labkit.lessons.exercises import (
    CHANGED_ARGUMENT,
    FORBIDDEN,
    NOT_STARTED,
    PASSED,
    RAISED,
    UNSET,
    WRONG_TYPE,
    WRONG_VALUES,
    Case,
    Exercise,
    NotThisWay,
    Verdict,
)
from labkit.lessons.restrictions import find_violation
from labkit.lessons.value_repr import (
    LONGEST_TEXT,
    PLAIN_FUNCTIONS,
    Difference,
    Tolerance,
    describe_type,
    find_difference,
    format_block,
    format_value,
    same_value,
)
from labkit.text import shorten

STUB_TEXT = "write your code here"


def judge_function(exercise: Exercise, name: str, function: object) -> Verdict:
    """The verdict on ``function`` under the exercise's full ``name``: the first failing case's.

    The random state, default dtype and grad mode of the caller are left as they were.
    """
    if not callable(function):
        text = f"`check` takes the function itself, and was given {describe_type(function)}"
        return Verdict(name, WRONG_TYPE, text)
    with _plain_torch():
        cases = list(exercise.cases())
        for index, case in enumerate(cases):
            torch.manual_seed(index)
            verdict = _judge_case(name, function, case, f"case {index + 1} of {len(cases)}")
            if verdict:
                return verdict
    violation = find_violation(function, exercise.restrictions)
    if violation:
        return Verdict(name, FORBIDDEN, NotThisWay(violation))
    return Verdict(name, PASSED, f"right in all {len(cases)} cases")


def _judge_case(
    name: str, function: Callable[..., object], case: Case, place: str
) -> Verdict | None:
    label = f"{place}: {case.note}" if case.note else place
    arguments = copy_arguments(case.arguments)
    before = copy_arguments(arguments)
    try:
        got = function(*arguments)
    except Exception as error:
        return _judge_error(name, function, error, label)
    # A changed argument comes first: the values seen after it may be wrong for that reason only.
    if case.keeps_arguments:
        changed = _find_changed(arguments, before)
        if changed:
            return Verdict(name, CHANGED_ARGUMENT, changed, label)
    expected = _expected_value(case)
    difference = None
    if expected is not UNSET:
        difference = _compare(got, expected, Tolerance(case.rtol, case.atol))
    if difference is None and case.judge is not None:
        difference = _ask_judge(case, got, arguments)
    if difference is None:
        return None
    shown = None if expected is UNSET else format_block(expected)
    return Verdict(name, difference.status, difference.message, label, shown, format_block(got))


def _compare(got: object, expected: object, tolerance: Tolerance) -> Difference | None:
    try:
        return find_difference(got, expected, tolerance)
    except (RuntimeError, TypeError) as error:
        # Sparse tensors, tensors without data and the like: not what the exercise asks for.
        reason = f"{type(error).__name__}: {shorten(str(error), LONGEST_TEXT)}"
        return Difference(WRONG_TYPE, f"the answer cannot be compared ({reason})")


def _expected_value(case: Case) -> object:
    if isinstance(case.expected, PLAIN_FUNCTIONS):
        return case.expected(*copy_arguments(case.arguments))
    return case.expected


def _ask_judge(case: Case, got: object, arguments: tuple[Any, ...]) -> Difference | None:
    assert case.judge is not None
    try:
        complaint = case.judge(got, arguments)
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


def _judge_error(name: str, function: object, error: Exception, label: str) -> Verdict:
    text = str(error)
    # torch raises NotImplementedError too, with texts of its own, for missing kernels.
    if isinstance(error, NotImplementedError) and text in (STUB_TEXT, ""):
        return Verdict(name, NOT_STARTED, "the function is still the stub")
    said = f"{type(error).__name__}: {shorten(text, 400)}" if text else type(error).__name__
    where = _own_line(function, error.__traceback__)
    return Verdict(name, RAISED, said + (f"\n{where}" if where else ""), label)


def _own_line(function: object, traceback: TracebackType | None) -> str | None:
    """The deepest line of the learner's own code: in the function's file or its globals."""
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


def copy_arguments(arguments: tuple[Any, ...]) -> tuple[Any, ...]:
    """The arguments copied deeply, tensors with strides and shared memory kept as they are."""
    memo: dict[int, Any] = {}
    return tuple(_copy_argument(argument, memo) for argument in arguments)


def _copy_argument(argument: Any, memo: dict[int, Any]) -> Any:
    try:
        return copy.deepcopy(argument, memo)
    except (RuntimeError, TypeError):
        if isinstance(argument, torch.Tensor):  # not a leaf: its graph stays with the original
            return argument.detach().clone().requires_grad_(argument.requires_grad)
        return argument


def _find_changed(arguments: tuple[Any, ...], before: tuple[Any, ...]) -> str | None:
    for index, (now, was) in enumerate(zip(arguments, before, strict=True)):
        if isinstance(now, torch.Tensor | list | dict) and not same_value(now, was):
            return (
                f"the function changed its argument number {index + 1}: "
                f"it was {format_value(was)}, and is now {format_value(now)}"
            )
    return None


@contextmanager
def _plain_torch() -> Iterator[None]:
    """torch with its defaults, and the caller's random state and settings put back after."""
    dtype = torch.get_default_dtype()
    cuda = list(range(torch.cuda.device_count())) if torch.cuda.is_initialized() else []
    with torch.random.fork_rng(devices=cuda), torch.inference_mode(False), torch.enable_grad():
        torch.set_default_dtype(torch.float32)
        try:
            yield
        finally:
            torch.set_default_dtype(dtype)

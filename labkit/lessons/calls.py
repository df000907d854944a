"""Calls a learner's function: in a thread of its own, with a limit, and with a record of what ran.

Restrictions are judged by what ran, not by how it was written.
"""

from __future__ import annotations

import contextvars
import copy
import ctypes
import sys
import sysconfig
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from types import CodeType, FrameType
from typing import Any

from labkit.lessons.exercises import AUTOGRAD, BY_HAND, LOOP, Exercise
from labkit.lessons.value_repr import is_array, is_tensor, same_value
from labkit.memory.track.frames import PACKAGES

LIMIT_SECONDS = 30.0
# A check that takes longer than this says that it is still running.
NOTICE_SECONDS = 1.5
_STOP_SECONDS = 2.0
# A thread's default stack is too small on some systems for a deep recursion through torch.
_STACK_BYTES = 16 * 2**20
# A loop over the values takes more steps for the larger size: at least one for each more value.
SIZES = (4, 12)
_PLAIN = (int, float, complex, str, bytes, type(None))
# Beside these: a user's site-packages, and those of the Python that a .venv is made of.
_LIBRARIES = (*{sysconfig.get_paths()[key] for key in ("stdlib", "purelib", "platlib")}, "<frozen")


class TookTooLong(Exception):
    """A call did not end within its limit."""


class _Stop(BaseException):
    """Raised in a thread to end it."""


@dataclass
class _Notice:
    """What to call, once, if calls are still running at ``due`` (of the monotonic clock)."""

    show: Callable[[float, float], None] | None
    due: float


_notice: contextvars.ContextVar[_Notice | None] = contextvars.ContextVar("notice", default=None)


@contextmanager
def notice_slow_calls(
    show: Callable[[float, float], None], seconds: float = NOTICE_SECONDS
) -> Iterator[None]:
    """Calls ``show(limit, startup)`` once, in the caller's thread, if the block's calls take long.

    The limit is that of the call that is running after ``seconds``, which does not count the
    ``startup`` before it.
    """
    token = _notice.set(_Notice(show, time.monotonic() + seconds))
    try:
        yield
    finally:
        _notice.reset(token)


def call_with_limit(
    function: Callable[..., Any],
    *arguments: Any,
    seconds: float = LIMIT_SECONDS,
    startup_seconds: float = 0.0,
) -> Any:
    """``function(*arguments)``, in a thread whose stack holds none of the caller's frames.

    Raises what the function raises, and TookTooLong after ``seconds``, to which come those that
    it may need to start. A call that cannot be stopped, such as one into C, stays behind in its
    thread.
    """
    returned: list[Any] = []
    raised: list[BaseException] = []

    def call() -> None:
        with suppress(_Stop):
            try:
                returned.append(function(*arguments))
            except BaseException as error:
                raised.append(error)

    before = threading.stack_size(_STACK_BYTES)
    try:
        thread = threading.Thread(
            target=contextvars.copy_context().run, args=(call,), name="labkit-check", daemon=True
        )
        thread.start()
    finally:
        threading.stack_size(before)
    try:
        _join(thread, seconds, startup_seconds)
        late = thread.is_alive()
    finally:
        _stop(thread)  # also if the caller is interrupted meanwhile
    if late:
        raise TookTooLong(f"no result within {seconds:g} s: is there a loop that never ends?")
    if raised:
        raise raised.pop()
    return returned.pop()


def _join(thread: threading.Thread, seconds: float, startup_seconds: float) -> None:
    """Waits for the thread to end, and shows the notice of a slow call when it is due."""
    until = time.monotonic() + seconds + startup_seconds
    notice = _notice.get()
    if notice and notice.show and notice.due < until:
        thread.join(max(notice.due - time.monotonic(), 0))
        if thread.is_alive():
            show, notice.show = notice.show, None
            show(seconds, startup_seconds)
    thread.join(max(until - time.monotonic(), 0))


def _stop(thread: threading.Thread) -> None:
    for _ in range(round(_STOP_SECONDS / 0.1)):
        if not thread.is_alive():
            return
        ctypes.pythonapi.PyThreadState_SetAsyncExc(
            ctypes.c_ulong(thread.ident or 0), ctypes.py_object(_Stop)
        )
        thread.join(0.1)


def copy_arguments(arguments: tuple[Any, ...]) -> tuple[Any, ...]:
    """A deep copy of the arguments that keeps the tensors' strides and shared memory."""
    memo: dict[int, Any] = {}
    return tuple(_copy_argument(argument, memo) for argument in arguments)


def find_changed(now: Any, was: Any, place: str = "") -> tuple[str, Any, Any] | None:
    """Where a value differs from its copy, with both values there; None if nothing changed.

    Goes through lists, tuples and dicts, and compares tensors, arrays and plain values; other
    objects are not compared.
    """
    if is_tensor(was) or is_array(was) or isinstance(was, _PLAIN):
        return None if same_value(now, was) else (place, now, was)
    if isinstance(was, dict):
        if not isinstance(now, dict) or now.keys() != was.keys():
            return place, now, was
        inner = [(f"{place}[{key!r}]", now[key], was[key]) for key in was]
    elif isinstance(was, list | tuple):
        if not isinstance(now, list | tuple) or len(now) != len(was):
            return place, now, was
        inner = [(f"{place}[{i}]", now[i], was[i]) for i in range(len(was))]
    else:
        return None
    found = (find_changed(one, before, where) for where, one, before in inner)
    return next((change for change in found if change), None)


def _copy_argument(argument: Any, memo: dict[int, Any]) -> Any:
    # Each item by itself: one that cannot be copied must not keep its neighbors from it.
    if id(argument) in memo:
        return memo[id(argument)]
    kind: Any = type(argument)
    if kind in (list, dict):
        copied = memo[id(argument)] = kind()
        if kind is list:
            copied.extend(_copy_argument(one, memo) for one in argument)
        else:
            copied.update((key, _copy_argument(one, memo)) for key, one in argument.items())
        return copied
    if isinstance(argument, tuple):
        items = [_copy_argument(one, memo) for one in argument]
        memo[id(argument)] = kind(*items) if hasattr(argument, "_fields") else kind(items)
        return memo[id(argument)]
    try:
        return copy.deepcopy(argument, memo)
    except (RuntimeError, TypeError):
        if is_tensor(argument):  # not a leaf: its graph stays with the original
            return argument.detach().clone().requires_grad_(argument.requires_grad)
        return argument


@dataclass
class Ran:
    """What ran in a call: torch's operators and lines of Python outside of libraries, counted."""

    operators: int = 0
    lines: int = 0
    differentiated: bool = False

    @property
    def steps(self) -> int:
        """Operators and lines together."""
        return self.operators + self.lines


def record_call(
    function: Callable[..., Any], arguments: tuple[Any, ...], seconds: float = LIMIT_SECONDS
) -> Ran:
    """What ran in ``function(*arguments)``. Raises as ``call_with_limit`` does."""
    ran = Ran()

    def call() -> None:
        tracing = sys.gettrace()
        sys.settrace(_make_tracer(ran))
        try:
            with _make_mode(ran):
                function(*copy_arguments(arguments))
        finally:
            sys.settrace(tracing)

    call_with_limit(call, seconds=seconds)
    return ran


def _make_mode(ran: Ran) -> Any:
    import torch
    from torch.utils._python_dispatch import TorchDispatchMode

    class Recorder(TorchDispatchMode):  # type: ignore[misc]
        def __torch_dispatch__(
            self, operator: Any, types: Any, args: Any = (), kwargs: Any = None
        ) -> Any:
            ran.operators += 1
            if torch._C._current_autograd_node() is not None:  # a backward pass is running
                ran.differentiated = True
            return operator(*args, **(kwargs or {}))

    return Recorder()


def _is_library(file: str) -> bool:
    return file.startswith(_LIBRARIES) or PACKAGES.search(file) is not None


def _make_tracer(ran: Ran) -> Callable[[FrameType, str, Any], Any]:
    own: dict[CodeType, bool] = {}

    def trace_line(_frame: FrameType, event: str, _value: Any) -> Any:
        ran.lines += event == "line"
        return trace_line

    def trace_call(frame: FrameType, _event: str, _value: Any) -> Any:
        code = frame.f_code
        if code not in own:
            file = code.co_filename
            own[code] = file != __file__ and not _is_library(file)
        # Forward mode has no node of a backward pass: it begins with dual numbers.
        ran.differentiated |= code.co_name == "make_dual" and not own[code]
        return trace_line if own[code] else None

    return trace_call


def find_violation(
    exercise: Exercise, function: Callable[..., Any], seconds: float = LIMIT_SECONDS
) -> str | None:
    """How the function breaks a restriction of the exercise, in a sentence; None if it does not.

    A call that fails while it is recorded counts as no violation: its values were right.
    """
    with suppress(Exception):
        if {BY_HAND, AUTOGRAD} & set(exercise.restrictions):
            calls = [record_call(function, case.arguments, seconds) for case in exercise.cases()]
            differentiated = [ran.differentiated for ran in calls]
            if BY_HAND in exercise.restrictions and not all(differentiated):
                return "this exercise asks for autograd, which computed no gradient here"
            if AUTOGRAD in exercise.restrictions and any(differentiated):
                return "they come from autograd, and this exercise asks for the formula by hand"
        if LOOP in exercise.restrictions and exercise.sized:
            few, many = (
                # The first of two calls may import and compile, which are steps as well.
                min(record_call(function, exercise.sized(n), seconds).steps for _ in range(2))
                for n in SIZES
            )
            if many - few >= SIZES[1] - SIZES[0]:
                return (
                    f"the function loops over the values ({few} steps for size {SIZES[0]}, "
                    f"{many} for size {SIZES[1]}), and this exercise asks for a way without a loop"
                )
    return None

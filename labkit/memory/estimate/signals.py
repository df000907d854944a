"""Signals of a simulated step: it sends none, and a timer of its own ends in its own handler alone.

Those that the process gets meanwhile reach the program's handlers after the step.

Python calls its audit hooks before ``os.kill`` and ``signal.pthread_kill`` (``guard.py``), but not
before what is here.
"""

from __future__ import annotations

import _thread
import contextlib
import dis
import functools
import math
import signal
import sys
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator
from types import FrameType
from typing import Any

# What each timer sends, where the system has it.
TIMERS = {
    getattr(signal, timer): getattr(signal, name)
    for timer, name in (
        ("ITIMER_REAL", "SIGALRM"), ("ITIMER_VIRTUAL", "SIGVTALRM"), ("ITIMER_PROF", "SIGPROF"),
    )
    if hasattr(signal, timer)
}  # fmt: skip
SENDING = ("raise_signal", "pidfd_send_signal")
WAITING = ("pause", "sigwait", "sigwaitinfo")
# How long a handler is held back that may be meant to stop what runs: one of those that a person or
# a timer sends, and others; and how often this is looked at, in seconds.
PROMPT = {int(signal.SIGINT), *map(int, TIMERS.values())}
LONGEST_PROMPT, LONGEST, PERIOD = 5.0, 20.0, 0.25
ALL = tuple(map(int, signal.Signals))
START, MAKE_LOCK, NOW = _thread.start_new_thread, _thread.allocate_lock, time.monotonic
SEND: Any = getattr(signal, "pthread_kill", None)
# C's own functions: Python's find names for numbers, which would take most of the time.
FIND_HANDLER: Any = sys.modules["_signal"].getsignal
SET_HANDLER: Any = sys.modules["_signal"].signal


class StepSignals:
    """Replaces Python's functions where ``is_step()``; ``stop`` takes a call, its number, why.

    ``is_step()`` is false in what the step has forked, which has signals of its own.
    """

    def __init__(
        self, is_step: Callable[[], bool], stop: Callable[[str, int, str], object]
    ) -> None:
        self._is_step, self._stop = is_step, stop
        self._handlers: dict[int, Any] = {}
        # By the timer: what the step has set, and has not been set for real.
        self._set: dict[int, tuple[float, float]] = {}

    def begin(self) -> None:
        """Takes the handlers of now for those from before the step."""
        self._handlers = {number: FIND_HANDLER(number) for number in TIMERS.values()}
        self._set.clear()

    def list_functions(self) -> dict[Any, dict[str, Any]]:
        """What replaces which functions of which modules."""
        sending = {name: self._refuse(name, "would send a signal") for name in _find(SENDING)}
        waiting = {name: self._refuse(name, "would wait for a signal") for name in _find(WAITING)}
        timers = {name: getattr(self, f"_{name}") for name in _find(("setitimer", "getitimer"))}
        if timers and hasattr(signal, "alarm"):
            timers["alarm"] = self._alarm
        interrupt = self._refuse("interrupt_main", "would send a signal", _thread)
        handlers = {name: _see_own(getattr(signal, name)) for name in ("signal", "getsignal")}
        own = sending | waiting | timers | handlers
        return {signal: own, _thread: {"interrupt_main": interrupt}}

    def _refuse(self, name: str, why: str, owner: Any = signal) -> Callable[..., Any]:
        act = getattr(owner, name)

        @functools.wraps(act)
        def answer(*given: Any, **named: Any) -> Any:
            if not self._is_step():
                return act(*given, **named)
            number = next((one for one in reversed(given) if isinstance(one, int)), signal.SIGINT)
            return self._stop(f"{owner.__name__}.{name}", int(number), why)

        return answer

    def _setitimer(self, which: int, seconds: float, interval: float = 0.0) -> tuple[float, float]:
        number = TIMERS.get(which)
        ends = number is not None and FIND_HANDLER(number) is not self._handlers[number]
        if not self._is_step() or ends or seconds < 0 or interval < 0:
            found: tuple[float, float] = SET_TIMER(which, seconds, interval)
            return found
        before = self._getitimer(which)
        self._set[which] = float(seconds), float(interval)
        return before

    def _getitimer(self, which: int) -> tuple[float, float]:
        return self._set[which] if which in self._set and self._is_step() else GET_TIMER(which)

    def _alarm(self, seconds: int) -> int:
        left, _ = self._setitimer(signal.ITIMER_REAL, seconds)
        return math.ceil(left)


class HeardSignal:
    """A signal that has come, when, and whether its handler has been called in the simulation."""

    def __init__(self, number: int) -> None:
        self.number, self.began, self.called = number, NOW(), False


class DeferredSignals:
    """Calls the program's own handlers of signals once the simulated step has run.

    What they change, such as a flag to stop, would else be put back with what the step changes.
    Python runs handlers in the main thread: if the step runs in another one, they are called at
    once, as for what any other thread does meanwhile. ``around`` is entered for them.
    """

    def __init__(self, around: Callable[[], contextlib.AbstractContextManager[Any]]) -> None:
        self._ends, self._around = MAKE_LOCK(), around
        self._handlers: dict[int, Any] = {}
        self._heard: deque[HeardSignal] = deque()
        # The signals whose handlers are to be called at once, and those whose handlers were.
        self._overdue: set[int] = set()
        self._called: set[int] = set()
        self._raised: BaseException | None = None

    @contextlib.contextmanager
    def hold(self) -> Iterator[None]:
        """Holds the signals back until exit, and then calls their handlers, which may raise."""
        if threading.current_thread() is not threading.main_thread():
            yield
            return
        for number in ALL:
            handler = FIND_HANDLER(number)
            if callable(handler) and handler is not signal.default_int_handler:
                self._handlers[number] = handler
                SET_HANDLER(number, self._hear)
        if self._handlers and SEND is not None:
            self._ends.acquire()
            START(self._watch, (threading.get_ident(),))
        try:
            yield
        finally:
            if self._ends.locked():
                self._ends.release()
            for number, handler in self._handlers.items():
                SET_HANDLER(number, handler)
            if self._heard:
                with self._around():
                    self._deliver()

    def find_handler(self, number: int) -> Any:
        """The program's own handler of a signal."""
        return self._handlers[number]

    def _deliver(self) -> None:
        """Calls the handlers; raises what the first has raised, be it in the simulation.

        Those that were called there, too: what they changed was put back.
        """
        raised: BaseException | None = None
        while self._heard:
            number = self._heard.popleft().number
            try:
                self._handlers[number](number, sys._getframe())
            except BaseException as error:  # the others are called all the same
                raised = raised or error
        raised, self._raised = raised or self._raised, None
        if raised is not None:
            raise raised

    def _hear(self, number: int, frame: FrameType | None) -> None:
        if number in self._overdue:
            self._overdue.discard(number)
            self._call(number, frame)
            return
        # Who presses Ctrl+C again is in a hurry.
        again = number == signal.SIGINT and any(one.number == number for one in list(self._heard))
        self._heard.append(HeardSignal(number))
        if again:
            self._call(number, frame)

    def _call(self, number: int, frame: FrameType | None) -> None:
        """Calls the handler in the simulation, as often as the signal has come."""
        self._called.add(number)
        try:
            for one in list(self._heard):  # another signal may come at any line
                if one.number == number and not one.called:
                    one.called = True
                    self._handlers[number](number, frame)
        except BaseException as error:
            self._raised = error
            raise

    def _watch(self, main: int) -> None:
        """Has the main thread call the handlers that were held back for too long."""
        while not self._ends.acquire(timeout=PERIOD):
            for one in list(self._heard):
                number = one.number
                longest = LONGEST_PROMPT if number in PROMPT else LONGEST
                known = number in self._overdue or number in self._called
                late = NOW() - one.began > longest
                if late and not known and _may_raise(self._handlers[number]):
                    self._overdue.add(number)
                    SEND(main, number)


def _may_raise(handler: Any) -> bool:
    """False for a handler that only sets values, and neither raises nor calls anything."""
    code = getattr(getattr(handler, "__func__", handler), "__code__", None)
    return code is None or any(
        one.opname.startswith(("CALL", "RAISE")) for one in dis.get_instructions(code)
    )


def _see_own(act: Callable[..., Any]) -> Callable[..., Any]:
    """Wraps what returns a signal's handler: it returns the program's, and not labkit's."""

    @functools.wraps(act)
    def answer(number: int, *given: Any) -> Any:
        return _find_own(number, act(number, *given))

    return answer


def _find_own(number: int, handler: Any) -> Any:
    owner = getattr(handler, "__self__", None)
    return owner.find_handler(number) if isinstance(owner, DeferredSignals) else handler


def list_signal_handlers() -> list[Any]:
    """The program's own handlers of signals."""
    found = [_find_own(number, FIND_HANDLER(number)) for number in ALL]
    return [one for one in found if callable(one)]


SET_TIMER: Any = getattr(signal, "setitimer", None)
GET_TIMER: Any = getattr(signal, "getitimer", None)


def _find(names: tuple[str, ...]) -> list[str]:
    return [name for name in names if hasattr(signal, name)]

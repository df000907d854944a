"""Signals of a simulated step: it sends none, and a timer of its own ends in its own handler alone.

Python calls its audit hooks before ``os.kill`` and ``signal.pthread_kill`` (``guard.py``), but not
before what is here.
"""

from __future__ import annotations

import _thread
import functools
import math
import signal
import sys
from collections.abc import Callable
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
        return {signal: sending | waiting | timers, _thread: {"interrupt_main": interrupt}}

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


SET_TIMER: Any = getattr(signal, "setitimer", None)
GET_TIMER: Any = getattr(signal, "getitimer", None)


def _find(names: tuple[str, ...]) -> list[str]:
    return [name for name in names if hasattr(signal, name)]

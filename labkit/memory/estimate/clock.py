"""The clocks that a simulated step reads: time passes by a little with each reading, or leaps.

How long the simulation takes is not known, and says nothing about the real step. So a step that
saves each hour, stops at a deadline, or goes by the parity of the second, is simulated both ways.
"""

from __future__ import annotations

import datetime
import functools
import time
from collections.abc import Callable
from typing import Any

CLOCKS = ("time", "perf_counter", "monotonic", "process_time", "thread_time")
# What takes the time as its last argument, and where that is.
CALENDARS = {"localtime": 0, "gmtime": 0, "ctime": 0, "strftime": 1, "asctime": 0}
DATE = datetime.date
DATES = {datetime.datetime: ("now", "utcnow", "today"), datetime.date: ("today",)}
SECOND, DAY = 10**9, 86_400 * 10**9
# What a reading takes: it changes no remainder by a small number.
TICK = 720_720
# The first leap changes the parity of the second and of each smaller part, the half of the day, the
# hour and the minute; further ones change the day alone.
LEAP = DAY + 13 * 3600 * SECOND + 31 * 60 * SECOND + 31 * SECOND + 1_001_001
LONGEST_SLEEP = 0.05
CUT = "a loop that waits for a time was ended after {} readings: it may run longer, and need more"


class Clock:
    """The time of a simulated step.

    ``may_leap`` is False where a line has asked often, ``leaps`` answers, ``is_asked`` is True
    where the step's own code calls. ``began_ns`` is when the estimate began, on both of its ways.
    """

    def __init__(
        self,
        may_leap: Callable[[], bool],
        leaps: Callable[[], bool],
        is_asked: Callable[[], bool],
        note_end: Callable[[], object],
        began_ns: int,
    ) -> None:
        self._may_leap, self._leaps, self.is_asked = may_leap, leaps, is_asked
        self._note_end = note_end
        self._count = self._passed = 0
        self._starts: dict[str, int] = {name: getattr(time, f"{name}_ns")() for name in CLOCKS}
        self._starts["time"] = began_ns - began_ns % TICK

    def read(self, name: str = "time") -> int:
        """The time of one of CLOCKS in nanoseconds; each reading has some of it pass."""
        ends = not self._may_leap()
        if ends:
            self._note_end()
        if ends or self._leaps():
            self._count += 1
        else:
            self._passed += TICK
        passed = self._passed + (LEAP + (self._count - 1) * DAY if self._count else 0)
        return self._starts[name] + passed

    def sleep(self, seconds: float) -> None:
        """Has a time pass without waiting."""
        self._passed += int(seconds * SECOND)


Find = Callable[[], "Clock | None"]


def list_functions(find: Find) -> dict[str, Any]:
    """What replaces which functions of Python's ``time``; ``find`` has the running step's clock."""
    made: dict[str, Any] = {"sleep": _wrap_sleep(find)}
    for name in CLOCKS:
        made[f"{name}_ns"] = _wrap(find, name, f"{name}_ns", 1)
        made[name] = _wrap(find, name, name, SECOND)
    return made | {name: _wrap_calendar(find, name, place) for name, place in CALENDARS.items()}


def list_dates(find: Find) -> dict[type, dict[str, Any]]:
    """What replaces which methods of Python's classes of dates."""
    return {
        kind: {name: _wrap_date(find, kind, name) for name in names}
        for kind, names in DATES.items()
    }


def _wrap(find: Find, name: str, form: str, unit: int) -> Callable[[], Any]:
    read = getattr(time, form)

    @functools.wraps(read)
    def answer() -> Any:
        clock = find()
        # What must not leap is real: an event loop's timers, a lock's limit.
        if clock is None or not clock.is_asked():
            return read()
        passed = clock.read(name)
        return passed if unit == 1 else passed / unit

    return answer


def _wrap_calendar(find: Find, name: str, place: int) -> Callable[..., Any]:
    read = getattr(time, name)
    takes_parts = name in {"strftime", "asctime"}
    find_parts = time.localtime

    @functools.wraps(read)
    def answer(*given: Any) -> Any:
        clock = find()
        if clock is None or len(given) > place or not clock.is_asked():
            return read(*given)
        seconds = clock.read() // SECOND
        return read(*given, find_parts(seconds) if takes_parts else seconds)

    return answer


def _wrap_date(find: Find, kind: Any, name: str) -> Any:
    read = getattr(kind, name)

    def answer(_: Any, *zone: Any, **named: Any) -> Any:
        clock = find()
        if clock is None or not clock.is_asked():
            return read(*zone, **named)
        seconds, rest = divmod(clock.read(), SECOND)
        if kind is DATE:
            return kind.fromtimestamp(seconds)
        zone = (datetime.timezone.utc,) if name == "utcnow" else zone or (*named.values(),)
        made = kind.fromtimestamp(seconds, *zone).replace(microsecond=rest // 1000)
        return made.replace(tzinfo=None) if name == "utcnow" else made

    return classmethod(answer)


def _wrap_sleep(find: Find) -> Callable[[float], None]:
    sleep = time.sleep

    @functools.wraps(sleep)
    def answer(seconds: float) -> None:
        clock = find()
        if clock is not None and clock.is_asked():
            clock.sleep(seconds)
            seconds = min(seconds, LONGEST_SLEEP)
        sleep(seconds)

    return answer

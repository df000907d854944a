"""What ran when: named spans on the time of a sampler, such as a cell, a block, a mark by hand.

Whoever runs something tells all listeners; with none there it costs next to nothing.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from types import TracebackType
from typing import NamedTuple

# So many spans a picture can show at most; a decorated function can be called a million times.
SPAN_LIMIT = 500


class MarkedSpan(NamedTuple):
    """A named stretch of time in a sampler's seconds; its end is None while it goes on.

    ``kind`` is "cell", "block" (of track_memory) or "mark"; a mark by hand that was never opened
    as a block is a moment, and ends where it begins.
    """

    kind: str
    name: str
    begin: float
    end: float | None


class Mark:
    """A mark by hand: a moment, or in a ``with`` statement the time that its block takes."""

    def __init__(self, marks: Marks, name: str) -> None:
        self._marks = marks
        self._number = marks.begin("mark", name, moment=True)

    def __enter__(self) -> Mark:
        self._marks.resume(self._number)
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._marks.end(self._number)


class Marks:
    """The spans of one sampler, in the order they began; beyond a limit the longest are kept."""

    def __init__(self, clock: Callable[[], float], limit: int = SPAN_LIMIT) -> None:
        self._clock = clock
        self._limit = limit
        self._spans: dict[int, MarkedSpan] = {}
        self._begun = {"cell": 0, "block": 0, "mark": 0}
        self._number = 0
        self._lock = threading.Lock()

    def begin(self, kind: str, name: str | None = None, *, moment: bool = False) -> int:
        """Opens a span now; its number. Without a name it is called by its kind and a count.

        A moment ends where it begins.
        """
        now = self._clock()
        with self._lock:
            self._number += 1
            self._begun[kind] += 1
            said = name or f"{kind} {self._begun[kind]}"
            self._spans[self._number] = MarkedSpan(kind, said, now, now if moment else None)
            if len(self._spans) > self._limit:
                self._drop_shortest()
            return self._number

    def end(self, number: int) -> None:
        """Closes a span now; one that was dropped stays so."""
        now = self._clock()
        with self._lock:
            if number in self._spans:
                self._spans[number] = self._spans[number]._replace(end=now)

    def resume(self, number: int) -> None:
        """Lets a moment go on."""
        with self._lock:
            if number in self._spans:
                self._spans[number] = self._spans[number]._replace(end=None)

    def list_spans(self) -> tuple[MarkedSpan, ...]:
        """Every span that is kept, those that go on among them."""
        with self._lock:
            return tuple(self._spans.values())

    def forget_lock(self) -> None:
        """In a forked child: a lock that a thread of the parent's may have held."""
        self._lock = threading.Lock()

    def _drop_shortest(self) -> None:
        """Keeps half: whatever goes on, and the longest of what has ended."""
        now = self._clock()

        def measure(number: int) -> tuple[bool, float]:
            span = self._spans[number]
            return span.end is None, (now if span.end is None else span.end) - span.begin

        longest = sorted(self._spans, key=measure, reverse=True)[: self._limit // 2]
        self._spans = {number: self._spans[number] for number in sorted(longest)}


# The marks of every sampler that runs.
LISTENERS: list[Marks] = []
Opened = list[tuple[Marks, int]]


def begin_spans(kind: str, name: str | None = None) -> Opened:
    """Opens a span with everyone who listens; what ``end_spans`` is to be given."""
    return [(marks, marks.begin(kind, name)) for marks in tuple(LISTENERS)]


def end_spans(opened: Opened) -> None:
    """Closes the spans."""
    for marks, number in opened:
        marks.end(number)

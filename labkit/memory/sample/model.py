"""What ran when: named spans on the time of a sampler, such as a cell, a block, a mark by hand.

Whoever runs something tells all listeners; with none there it costs next to nothing.

Figures over time in a bounded number of buckets, however long it lasts.

Time is cut into buckets of one width, and each keeps the lowest, the highest and the mean of what
fell into it. Where the buckets become too many, each two neighbours become one: the width doubles,
and no spike that was seen is lost.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable, Mapping
from types import TracebackType
from typing import NamedTuple

BUCKET_LIMIT = 600


class Point(NamedTuple):
    """One bucket of one series: its time in seconds, its figures, how many were (not) measured.

    The figures are None where nothing was measured in that time.
    """

    begin: float
    end: float
    low: int | None
    high: int | None
    mean: float | None
    measured: int
    missed: int


def split_at_gaps(points: Iterable[Point], gap_seconds: float) -> list[list[Point]]:
    """The stretches in which a series was measured without a gap; the points in them have figures.

    A gap is a bucket in which nothing could be measured, or more than ``gap_seconds`` without one.
    """
    stretches: list[list[Point]] = []
    whole = False
    for point in points:
        if point.high is None:
            whole = False
            continue
        if not whole or point.begin - stretches[-1][-1].end > gap_seconds:
            stretches.append([])
        stretches[-1].append(point)
        whole = True
    return stretches


class Extent:
    """The running figures of one series in one bucket."""

    __slots__ = ("high", "low", "measured", "missed", "total")

    def __init__(self) -> None:
        self.low = self.high = self.total = self.measured = self.missed = 0

    def add(self, count: int | None) -> None:
        """Takes in one figure; None is one that could not be measured."""
        if count is None:
            self.missed += 1
        else:
            self._join(count, count, count, 1)

    def merge(self, other: Extent) -> None:
        """Takes in what another bucket has seen."""
        if other.measured:
            self._join(other.low, other.high, other.total, other.measured)
        self.missed += other.missed

    def _join(self, low: int, high: int, total: int, measured: int) -> None:
        self.low = min(self.low, low) if self.measured else low
        self.high = max(self.high, high) if self.measured else high
        self.total += total
        self.measured += measured

    def describe(self, begin: float, end: float) -> Point:
        """The figures as they are now."""
        if not self.measured:
            return Point(begin, end, None, None, None, 0, self.missed)
        mean = self.total / self.measured
        return Point(begin, end, self.low, self.high, mean, self.measured, self.missed)


class Buckets:
    """Several series over the same time, at most ``limit`` buckets of each.

    >>> seen = Buckets(limit=2, width_seconds=1.0)
    >>> for second, count in enumerate([5, 90, 5, None]):
    ...     seen.add(float(second), {"used": count})
    >>> [(point.begin, point.end, point.low, point.high) for point in seen.list_points("used")]
    [(0.0, 2.0, 5, 90), (2.0, 4.0, 5, 5)]
    """

    def __init__(self, limit: int = BUCKET_LIMIT, width_seconds: float = 0.1) -> None:
        self.width_seconds = width_seconds
        self._limit = limit
        self._buckets: dict[int, dict[str, Extent]] = {}

    def __len__(self) -> int:
        return len(self._buckets)

    def add(self, seconds: float, figures: Mapping[str, int | None]) -> None:
        """Takes in one figure of each series, at a time that is not below zero."""
        bucket = self._buckets.setdefault(int(seconds / self.width_seconds), {})
        for series, count in figures.items():
            bucket.setdefault(series, Extent()).add(count)
        while len(self._buckets) > self._limit:
            self._halve()

    def list_points(self, series: str) -> tuple[Point, ...]:
        """The buckets of one series in the order of time; those without a sample are not there."""
        width = self.width_seconds
        return tuple(
            extents[series].describe(number * width, (number + 1) * width)
            for number, extents in sorted(self._buckets.items())
            if series in extents
        )

    def _halve(self) -> None:
        merged: dict[int, dict[str, Extent]] = {}
        for number, extents in self._buckets.items():
            bucket = merged.setdefault(number // 2, {})
            for series, extent in extents.items():
                bucket.setdefault(series, Extent()).merge(extent)
        self._buckets = merged
        self.width_seconds *= 2


# So many spans a picture can show at most; a decorated function can be called a million times.
SPAN_LIMIT = 500


class AnnotatedSpan(NamedTuple):
    """A named stretch of time in a sampler's seconds; its end is None while it goes on.

    ``kind`` is "cell", "block" (of track_memory) or "mark"; a mark by hand that was never opened
    as a block is a moment, and ends where it begins.
    """

    kind: str
    name: str
    begin: float
    end: float | None


class Annotation:
    """A mark by hand: a moment, or in a ``with`` statement the time that its block takes."""

    def __init__(self, marks: Annotations, name: str) -> None:
        self._marks = marks
        self._number = marks.begin("mark", name, moment=True)

    def __enter__(self) -> Annotation:
        self._marks.resume(self._number)
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._marks.end(self._number)


class Annotations:
    """The spans of one sampler, in the order they began; beyond a limit the longest are kept."""

    def __init__(self, clock: Callable[[], float], limit: int = SPAN_LIMIT) -> None:
        self._clock = clock
        self._limit = limit
        self._spans: dict[int, AnnotatedSpan] = {}
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
            self._spans[self._number] = AnnotatedSpan(kind, said, now, now if moment else None)
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

    def list_spans(self) -> tuple[AnnotatedSpan, ...]:
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
LISTENERS: list[Annotations] = []
Opened = list[tuple[Annotations, int]]


def begin_spans(kind: str, name: str | None = None) -> Opened:
    """Opens a span with everyone who listens; what ``end_spans`` is to be given."""
    return [(marks, marks.begin(kind, name)) for marks in tuple(LISTENERS)]


def end_spans(opened: Opened) -> None:
    """Closes the spans."""
    for marks, number in opened:
        marks.end(number)

"""Memory over time: buckets of samples, annotated spans, and the results of a sampler.

Time is divided into buckets of equal width. Each keeps the lowest, the highest and the mean of
its samples. If there are too many buckets, neighboring pairs are merged and the width doubles:
the number of buckets is bounded and no measured spike is lost.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable, Mapping
from types import TracebackType
from typing import NamedTuple

from labkit.render import Displayed

BUCKET_LIMIT = 600


class Point(NamedTuple):
    """One bucket of one series: its time in seconds, its figures, and the numbers of samples.

    The figures are None if nothing was measured in that time.
    """

    begin: float
    end: float
    low: int | None
    high: int | None
    mean: float | None
    measured: int
    missed: int


def split_at_gaps(points: Iterable[Point], gap_seconds: float) -> list[list[Point]]:
    """The segments in which a series was measured without a gap.

    A gap is a bucket without a measurement, or more than ``gap_seconds`` without a bucket.
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
    """The current figures of one series in one bucket."""

    __slots__ = ("high", "low", "measured", "missed", "total")

    def __init__(self) -> None:
        self.low = self.high = self.total = self.measured = self.missed = 0

    def add(self, count: int | None) -> None:
        """Adds a sample; None is one that could not be measured."""
        if count is None:
            self.missed += 1
        else:
            self._join(count, count, count, 1)

    def merge(self, other: Extent) -> None:
        """Adds the samples of another bucket."""
        if other.measured:
            self._join(other.low, other.high, other.total, other.measured)
        self.missed += other.missed

    def _join(self, low: int, high: int, total: int, measured: int) -> None:
        self.low = min(self.low, low) if self.measured else low
        self.high = max(self.high, high) if self.measured else high
        self.total += total
        self.measured += measured

    def describe(self, begin: float, end: float) -> Point:
        """The figures now, as a point of this time."""
        if not self.measured:
            return Point(begin, end, None, None, None, 0, self.missed)
        mean = self.total / self.measured
        return Point(begin, end, self.low, self.high, mean, self.measured, self.missed)


class Buckets:
    """Several series over the same time, in at most ``limit`` buckets.

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
        """Adds a sample of each series, at a time of 0 or more seconds."""
        bucket = self._buckets.setdefault(int(seconds / self.width_seconds), {})
        for series, count in figures.items():
            bucket.setdefault(series, Extent()).add(count)
        while len(self._buckets) > self._limit:
            self._merge_neighbors()

    def list_points(self, series: str) -> tuple[Point, ...]:
        """The buckets of one series in order of time, without empty ones."""
        width = self.width_seconds
        return tuple(
            extents[series].describe(number * width, (number + 1) * width)
            for number, extents in sorted(self._buckets.items())
            if series in extents
        )

    def _merge_neighbors(self) -> None:
        merged: dict[int, dict[str, Extent]] = {}
        for number, extents in self._buckets.items():
            bucket = merged.setdefault(number // 2, {})
            for series, extent in extents.items():
                bucket.setdefault(series, Extent()).merge(extent)
        self._buckets = merged
        self.width_seconds *= 2


# The most spans of one sampler: a decorated function can be called a million times.
SPAN_LIMIT = 500


class AnnotatedSpan(NamedTuple):
    """A named span on a sampler's time, in seconds; its end is None while it is open.

    ``kind`` is "cell", "block" (of track_memory) or "mark" (of ``MemorySampler.mark``); a mark
    without a ``with`` block ends where it begins.
    """

    kind: str
    name: str
    begin: float
    end: float | None


class Annotation:
    """A mark: a moment, or with a ``with`` statement the time of its block."""

    def __init__(self, annotations: Annotations, name: str) -> None:
        self._annotations = annotations
        self._number = annotations.begin("mark", name, moment=True)

    def __enter__(self) -> Annotation:
        self._annotations.reopen(self._number)
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._annotations.end(self._number)


class Annotations:
    """The spans of one sampler in order of their start; above the limit, the longest are kept."""

    def __init__(self, clock: Callable[[], float], limit: int = SPAN_LIMIT) -> None:
        self._clock = clock
        self._limit = limit
        self._spans: dict[int, AnnotatedSpan] = {}
        self._begun = {"cell": 0, "block": 0, "mark": 0}
        self._number = 0
        self._lock = threading.Lock()

    def begin(self, kind: str, name: str | None = None, *, moment: bool = False) -> int:
        """Opens a span now and returns its number; without a name it is named "block 3".

        A moment is closed at once.
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
        """Closes a span now, unless it was dropped."""
        self._set_end(number, self._clock())

    def reopen(self, number: int) -> None:
        """Opens a moment again, as a span."""
        self._set_end(number, None)

    def _set_end(self, number: int, end: float | None) -> None:
        with self._lock:
            if number in self._spans:
                self._spans[number] = self._spans[number]._replace(end=end)

    def list_spans(self) -> tuple[AnnotatedSpan, ...]:
        """Every span that is kept, open ones included."""
        with self._lock:
            return tuple(self._spans.values())

    def reset_lock(self) -> None:
        """Replaces the lock, because a thread of the parent may have held it at a fork."""
        self._lock = threading.Lock()

    def _drop_shortest(self) -> None:
        """Keeps half of the spans: those that are open, and the longest of the others."""
        now = self._clock()

        def measure(number: int) -> tuple[bool, float]:
            span = self._spans[number]
            return span.end is None, (now if span.end is None else span.end) - span.begin

        longest = sorted(self._spans, key=measure, reverse=True)[: self._limit // 2]
        self._spans = {number: self._spans[number] for number in sorted(longest)}


# The annotations of every sampler that is running.
LISTENERS: list[Annotations] = []
Opened = list[tuple[Annotations, int]]


def begin_spans(kind: str, name: str | None = None) -> Opened:
    """Opens a span in every running sampler; pass the result to ``end_spans``."""
    return [(annotations, annotations.begin(kind, name)) for annotations in tuple(LISTENERS)]


def end_spans(opened: Opened) -> None:
    """Closes the spans."""
    for sampler_annotations, number in opened:
        sampler_annotations.end(number)


class DeviceSamples(NamedTuple):
    """One device over time: its points by measure, in bytes.

    The measures of a GPU are "allocated" and "reserved" (by torch's allocator in this process)
    and "used" (by all processes, from the driver); those of the CPU "process" (resident memory of
    this process) and "available" (on the machine, or in the container).
    """

    name: str
    kind: str
    total_bytes: int | None
    points: dict[str, tuple[Point, ...]]

    def find_peak(self, measure: str) -> Point | None:
        """The bucket with the highest figure of a measure; None if nothing was measured."""
        known = [point for point in self.points.get(measure, ()) if point.high is not None]
        return max(known, key=lambda point: point.high or 0, default=None)


class _SampleFields(NamedTuple):
    started: float
    seconds: float
    interval_seconds: float
    gap_seconds: float
    devices: tuple[DeviceSamples, ...] = ()
    spans: tuple[AnnotatedSpan, ...] = ()
    trouble: str | None = None


class MemorySamples(
    Displayed, _SampleFields, view="labkit.memory.sample.view", text="format_samples"
):
    """The results of a sampler: the devices (GPUs first), the annotated spans, the timing.

    Times are in seconds since ``started`` (an epoch). If two points are more than ``gap_seconds``
    apart, nothing was measured between them. ``trouble`` is the cause of the last failure.
    """

    def find_device(self, name: str) -> DeviceSamples | None:
        """The device with this torch name, such as "cuda:0" or "cpu"."""
        return next((device for device in self.devices if device.name == name), None)

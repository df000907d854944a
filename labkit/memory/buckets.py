"""Figures over time in a bounded number of buckets, however long it lasts.

Time is cut into buckets of one width, and each keeps the lowest, the highest and the mean of what
fell into it. Where the buckets become too many, each two neighbours become one: the width doubles,
and no spike that was seen is lost.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
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

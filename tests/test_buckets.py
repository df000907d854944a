"""Figures over time in a bounded number of buckets."""

from __future__ import annotations

import random

import pytest

from labkit.memory.sample.model import Buckets, Point, split_at_gaps


def fill(counts, limit=600, width=1.0):
    buckets = Buckets(limit, width)
    for second, count in enumerate(counts):
        buckets.add(float(second), {"used": count})
    return buckets


def test_each_bucket_keeps_the_lowest_the_highest_and_the_mean():
    buckets = Buckets(10, 1.0)
    for at, count in ((0.0, 4), (0.2, 10), (0.9, 1), (1.0, 7)):
        buckets.add(at, {"used": count})
    assert buckets.list_points("used") == (
        Point(0.0, 1.0, 1, 10, 5.0, 3, 0),
        Point(1.0, 2.0, 7, 7, 7.0, 1, 0),
    )


def test_what_is_not_measured_is_none_and_never_zero():
    buckets = fill([5, None, 0])
    assert [point.high for point in buckets.list_points("used")] == [5, None, 0]
    assert [point.mean for point in buckets.list_points("used")] == [5.0, None, 0.0]
    assert [point.missed for point in buckets.list_points("used")] == [0, 1, 0]
    assert buckets.list_points("never heard of") == ()


def test_halving_loses_no_spike_and_no_hole():
    counts = [random.Random(7).randrange(1, 100) for _ in range(1000)]
    counts[333], counts[700:720] = 10_000, [None] * 20
    buckets = fill(counts, limit=16)
    points = buckets.list_points("used")
    known = [count for count in counts if count is not None]
    assert len(points) <= 16
    assert max(point.high for point in points if point.high is not None) == 10_000
    assert min(point.low for point in points if point.low is not None) == min(known)
    assert sum(point.measured for point in points) == len(known)
    assert sum(point.missed for point in points) == 20
    mean = sum((point.mean or 0) * point.measured for point in points) / len(known)
    assert mean == pytest.approx(sum(known) / len(known))
    assert points[333 * len(points) // 1024].high == 10_000


def test_a_series_that_begins_late_has_no_points_before():
    buckets = fill([1, 2, 3], limit=4)
    buckets.add(3.0, {"used": 4, "new": 9})
    buckets.add(4.0, {"used": 5, "new": None})
    assert [(point.begin, point.high, point.missed) for point in buckets.list_points("new")] == [
        (2.0, 9, 0),
        (4.0, None, 1),
    ]


def points_at(*times, high=1):
    return [Point(float(at), at + 1.0, high, high, float(high), 1, 0) for at in times]


@pytest.mark.parametrize(
    ("points", "lengths"),
    [
        pytest.param([], [], id="nothing"),
        pytest.param(points_at(0, 1, 2), [3], id="whole"),
        pytest.param(points_at(0, 3), [2], id="late, but no later than allowed"),
        pytest.param(points_at(0, 1, 9, 10, 11), [2, 3], id="a pause"),
        pytest.param(
            [*points_at(0), Point(1.0, 2.0, None, None, None, 0, 3), *points_at(2)],
            [1, 1],
            id="not measured",
        ),
    ],
)
def test_stretches_end_at_gaps(points, lengths):
    assert [len(stretch) for stretch in split_at_gaps(points, 2.0)] == lengths

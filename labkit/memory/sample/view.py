"""Samples as text: a line of small bars for each measure, with its peak.

This module also has the styles of the measures for the figure and the live panel.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import NamedTuple

from labkit.memory.balance.view import PICTURE_COLORS
from labkit.memory.sample.model import (
    AnnotatedSpan,
    DeviceSamples,
    MemorySamples,
    Point,
    split_at_gaps,
)
from labkit.text import escape_controls, format_bytes, format_clock, format_seconds, plural

WIDTH = 60
BARS = "▁▂▃▄▅▆▇█"
GAP = " "
INDENT = " " * 19


def format_samples(samples: MemorySamples, *, width: int = WIDTH) -> str:
    """One line per measure of each device; a space means that nothing was measured."""
    every = format_seconds(samples.interval_seconds)
    lines = [f"memory over {format_clock(samples.seconds)}, a sample every {every}"]
    for device in samples.devices:
        for place, measure in enumerate(device.points):
            name = "" if place else device.name
            bars = draw_bars(samples, device, measure, width)
            end = describe_extreme(device, measure)
            lines.append(f"{name:<8} {measure:<9} {bars:<{width}}  {end}".rstrip())
    ruler = write_ruler(samples.spans, samples.seconds, width)
    lines += [f"{INDENT}{ruler}"] if ruler else []
    lines += [f"not measured: {sentence}" for sentence in list_missing(samples)]
    return escape_controls("\n".join(lines))


def draw_bars(samples: MemorySamples, device: DeviceSamples, measure: str, width: int) -> str:
    """The measure over the whole time, a bar for the highest figure of each column."""
    columns: list[int | None] = [None] * width
    scale = width / samples.seconds if samples.seconds else 0.0
    for stretch in split_at_gaps(device.points[measure], samples.gap_seconds):
        filled = 0
        for place, point in enumerate(stretch):
            first, last = (min(width - 1, int(at * scale)) for at in (point.begin, point.end))
            # Between two samples without a gap the level is that of the earlier one.
            begin = min(first, filled + 1) if place else first
            for column in range(begin, last + 1):
                columns[column] = max(columns[column] or 0, point.high or 0)
            filled = last
    highest = max((count for count in columns if count is not None), default=0) or 1
    steps = len(BARS) - 1
    return "".join(
        GAP if count is None else BARS[round(count / highest * steps)] for count in columns
    )


def describe_extreme(device: DeviceSamples, measure: str) -> str:
    """The highest figure of a measure in words; for "available" the lowest."""
    if measure == "available":
        least = find_least(device.points[measure])
        return "not measured" if least is None else f"least {format_bytes(least)}"
    peak = device.find_peak(measure)
    if peak is None:
        return "not measured"
    total = f" of {format_bytes(device.total_bytes)}" if device.total_bytes else ""
    return f"peak {format_bytes(peak.high)}{total if measure == 'used' else ''}"


def find_least(points: Iterable[Point]) -> int | None:
    """The lowest figure of all points; None if none was measured."""
    return min((point.low for point in points if point.low is not None), default=None)


def list_missing(samples: MemorySamples) -> list[str]:
    """For each device how many samples are missing, and the cause if it is known."""
    sentences = []
    for device in samples.devices:
        counts = [
            (sum(point.missed for point in points), sum(point.measured for point in points))
            for points in device.points.values()
        ]
        # A measure that never had a figure (torch has not started CUDA) has no missing samples.
        missed = max((missed for missed, measured in counts if measured), default=0)
        if missed:
            sentences.append(f"{device.name} in {plural(missed, 'sample')}")
    return sentences + ([samples.trouble] if samples.trouble else [])


def write_ruler(spans: Iterable[AnnotatedSpan], seconds: float, width: int) -> str:
    """The names of spans at their start positions, as many as fit."""
    line = ""
    for span in sorted(spans, key=lambda span: span.begin):
        place = min(width - 1, int(span.begin / seconds * width)) if seconds else 0
        if place >= len(line) + bool(line) and place + len(span.name) <= width:
            line = f"{line:<{place}}{span.name}"
    return line


class Style(NamedTuple):
    """The style of one measure: its name in the legend, its color, the opacity of its area."""

    words: str
    color: str
    area: float


# In drawing order: a measure is in front of those that include it.
STYLES = {
    "used": Style("used by anyone", PICTURE_COLORS["others"], 0.10),
    "reserved": Style("reserved by torch", PICTURE_COLORS["cached"], 0.25),
    "allocated": Style("tensors", PICTURE_COLORS["allocated"], 0.55),
    "process": Style("this process", PICTURE_COLORS["context"], 0.35),
}

"""How the levels of a device are drawn over time, in a figure and in the live panel.

What a sampler has seen, as text: a line of small bars for each measure, with its peak.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING, NamedTuple

from labkit.errors import UsageError
from labkit.memory.balance.view import PICTURE_COLOURS
from labkit.memory.sample.model import AnnotatedSpan, Point, split_at_gaps
from labkit.memory.sample.sampler import DeviceSamples, MemorySampler, MemorySamples, find_latest
from labkit.text import format_bytes, format_clock, format_seconds

if TYPE_CHECKING:
    from labkit.memory.sample.figure import MemoryFigure

WIDTH = 60
BARS = "▁▂▃▄▅▆▇█"
GAP = " "
INDENT = " " * 19


def format_samples(samples: MemorySamples, *, width: int = WIDTH) -> str:
    """A line for each measure of each device; where nothing was measured it is empty."""
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
    return "\n".join(lines)


def draw_bars(samples: MemorySamples, device: DeviceSamples, measure: str, width: int) -> str:
    """The measure over the whole time, the highest of each column's; a gap is a space."""
    columns: list[int | None] = [None] * width
    scale = width / samples.seconds if samples.seconds else 0.0
    for stretch in split_at_gaps(device.points[measure], samples.gap_seconds):
        filled = 0
        for place, point in enumerate(stretch):
            first, last = (min(width - 1, int(at * scale)) for at in (point.begin, point.end))
            # Between two samples that belong together the level is that of the earlier one.
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
    """The highest figure of a measure in words, for what is available the lowest."""
    if measure == "available":
        least = find_least(device.points[measure])
        return "not measured" if least is None else f"least {format_bytes(least)}"
    peak = device.find_peak(measure)
    if peak is None:
        return "not measured"
    total = f" of {format_bytes(device.total_bytes)}" if device.total_bytes else ""
    return f"peak {format_bytes(peak.high)}{total if measure == 'used' else ''}"


def find_least(points: Iterable[Point]) -> int | None:
    """The lowest figure of all; None where none was measured."""
    return min((point.low for point in points if point.low is not None), default=None)


def list_missing(samples: MemorySamples) -> list[str]:
    """A sentence for each device of which samples are missing, and why, as far as it is known."""
    sentences = []
    for device in samples.devices:
        counts = [
            (sum(point.missed for point in points), sum(point.measured for point in points))
            for points in device.points.values()
        ]
        # What was never told (a GPU whose torch has not started) is no gap.
        missed = max((missed for missed, measured in counts if measured), default=0)
        if missed:
            words = "sample" if missed == 1 else "samples"
            sentences.append(f"{device.name} in {missed:,} {words}")
    return sentences + ([samples.trouble] if samples.trouble else [])


def write_ruler(spans: Iterable[AnnotatedSpan], seconds: float, width: int) -> str:
    """The names of spans where they began, as many as there is room for."""
    line = ""
    for span in sorted(spans, key=lambda span: span.begin):
        place = min(width - 1, int(span.begin / seconds * width)) if seconds else 0
        if place >= len(line) + bool(line) and place + len(span.name) <= width:
            line = f"{line:<{place}}{span.name}"
    return line


class Style(NamedTuple):
    """How one measure is drawn: its name in the legend, its colour, how strong its area is."""

    words: str
    colour: str
    area: float


# In the order of drawing: what holds more lies behind what is within it.
STYLES = {
    "used": Style("used by anyone", PICTURE_COLOURS["others"], 0.10),
    "reserved": Style("reserved by torch", PICTURE_COLOURS["cached"], 0.25),
    "allocated": Style("tensors", PICTURE_COLOURS["allocated"], 0.55),
    "process": Style("this process", PICTURE_COLOURS["context"], 0.35),
}


def plot_memory(
    samples: MemorySampler | MemorySamples | None = None,
) -> MemoryFigure | MemorySamples:
    """A figure of what a sampler has seen: each device over time, its peak, and what ran when.

    Without an argument it is that of the sampler started last. The figure shows itself in a
    notebook, prints as text in a terminal, and can be saved (``savefig``) and changed like any
    other of matplotlib's. Where matplotlib is not installed the samples come back, which print
    as the same text. Raises UsageError where nothing was sampled.
    """
    source = find_latest() if samples is None else samples
    if source is None:
        raise UsageError(
            "there is nothing to plot",
            cause="no sampler was started in this process",
            fix="with labkit.sample_memory() as sampler: ...",
        )
    seen = source if isinstance(source, MemorySamples) else getattr(source, "samples", None)
    if not isinstance(seen, MemorySamples):
        raise UsageError(
            f"cannot plot {source!r}",
            cause="what is plotted are a sampler, a panel, or their samples",
            fix="plot_memory(), of the sampler started last",
        )
    if not seen.devices:
        raise UsageError(
            "there is nothing to plot",
            cause="the sampler has not taken a sample that could be read"
            + (f" ({seen.trouble})" if seen.trouble else ""),
            fix="with labkit.sample_memory() as sampler: ...",
        )
    try:
        from labkit.memory.sample.figure import draw_samples
    except ModuleNotFoundError as error:
        if (error.name or "").partition(".")[0] not in {"matplotlib", "numpy"}:
            raise
        return seen
    return draw_samples(seen)

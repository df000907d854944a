"""Samples as a matplotlib figure; only ``plot_memory`` imports this module.

It is legible on light and dark backgrounds: the figure is transparent, its text is gray, and its
colors are those of the balance.
"""

from __future__ import annotations

import base64
import io
import math
import time
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from labkit.charts import choose_binary_unit
from labkit.memory.sample.model import (
    AnnotatedSpan,
    DeviceSamples,
    MemorySamples,
    Point,
    split_at_gaps,
)
from labkit.memory.sample.view import STYLES, Style, find_least, format_samples, list_missing
from labkit.text import format_bytes

# A contrast of about 4 on white and on JupyterLab's dark background.
INK = "#7b7b7b"
WIDTH_INCHES, DEVICE_INCHES, LANE_INCHES, EDGE_INCHES = 9.0, 2.3, 0.26, 0.75
SCREEN_DPI, PNG_DPI = 100, 200
LETTER_INCHES = 0.07

# The lanes for the kinds of spans, from the top.
LANES = {"cell": "cells", "block": "blocks", "mark": "marks"}
LANE_COLORS = {"cell": "#8a8f98", "block": "#00917c", "mark": "#a07800"}


class MemoryFigure(Figure):
    """A figure of memory over time: a picture in a notebook, text in a terminal."""

    def __init__(self, samples: MemorySamples, **options: Any) -> None:
        super().__init__(**options)
        self.samples = samples

    def __repr__(self) -> str:
        return format_samples(self.samples)

    def __str__(self) -> str:
        return repr(self)

    def _repr_mimebundle_(self, **options: Any) -> tuple[dict[str, str], dict[str, Any]]:
        # A PNG is also shown in untrusted notebooks and on GitHub. It is made here because
        # matplotlib registers its own formatter only when pyplot is imported.
        drawn = io.BytesIO()
        self.savefig(drawn, format="png", dpi=PNG_DPI)
        data = {"image/png": base64.b64encode(drawn.getvalue()).decode(), "text/plain": repr(self)}
        return data, {"image/png": {"width": round(self.get_figwidth() * SCREEN_DPI)}}


def draw_samples(samples: MemorySamples) -> MemoryFigure:
    """The figure: a lane for each kind of span, and below them each device that was measured."""
    shown = [device for device in samples.devices if _list_measures(device)]
    lanes = [kind for kind in LANES if any(span.kind == kind for span in samples.spans)]
    heights = [LANE_INCHES * len(lanes)] if lanes else []
    heights += [DEVICE_INCHES] * len(shown)
    size = (WIDTH_INCHES, sum(heights) + EDGE_INCHES)
    figure = MemoryFigure(
        samples, figsize=size, dpi=SCREEN_DPI, layout="constrained", facecolor="none"
    )
    grid = figure.subplots(
        len(heights), 1, sharex=True, squeeze=False, gridspec_kw={"height_ratios": heights}
    )
    rows: list[Axes] = list(grid[:, 0])
    unit = _choose_time_unit(samples.seconds)
    if lanes:
        _draw_lanes(rows.pop(0), samples, lanes, unit[0])
    for axes, device in zip(rows, shown, strict=True):
        _draw_device(axes, device, samples, unit[0])
    _label_time(figure, rows[-1], samples, unit)
    return figure


def _list_measures(device: DeviceSamples) -> list[str]:
    return [measure for measure in STYLES if device.find_peak(measure) is not None]


def _choose_time_unit(seconds: float) -> tuple[float, str]:
    if seconds < 180:
        return 1.0, "seconds"
    return (60.0, "minutes") if seconds < 3 * 3600 else (3600.0, "hours")


def _label_time(
    figure: Figure, axes: Axes, samples: MemorySamples, unit: tuple[float, str]
) -> None:
    began = time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(samples.started))
    axes.set_xlabel(f"{unit[1]} since {began}", color=INK)
    axes.set_xlim(0, max(samples.seconds, samples.interval_seconds) / unit[0])
    missing = list_missing(samples)
    if missing:
        figure.suptitle(
            f"not measured: {'; '.join(missing)}", x=0.01, ha="left", fontsize=9, color=INK
        )


def _draw_lanes(axes: Axes, samples: MemorySamples, lanes: list[str], unit: float) -> None:
    axes.set_ylim(len(lanes), 0)
    axes.set_yticks([place + 0.5 for place in range(len(lanes))], [LANES[kind] for kind in lanes])
    axes.tick_params(length=0, labelcolor=INK, labelsize=9, labelbottom=False)
    axes.spines[:].set_visible(False)
    axes.set_facecolor("none")
    for span in samples.spans:
        end = samples.seconds if span.end is None else span.end
        _draw_span(axes, span, end, lanes.index(span.kind), (unit, samples.seconds))


def _draw_span(
    axes: Axes, span: AnnotatedSpan, end: float, lane: int, time_scale: tuple[float, float]
) -> None:
    unit, whole = time_scale
    # A minimal width, so that moments are visible.
    width = max(end - span.begin, whole / 600)
    axes.broken_barh(
        [(span.begin / unit, width / unit)],
        (lane + 0.1, 0.8),
        facecolor=(LANE_COLORS[span.kind], 0.16),
        edgecolor=(LANE_COLORS[span.kind], 0.9),
        linewidth=0.8,
    )
    inches = width / whole * (WIDTH_INCHES - 1.0) if whole else 0.0
    if len(span.name) * LETTER_INCHES < inches or span.begin == span.end:
        beside = span.begin == span.end
        at = (span.begin + (width if beside else width / 2)) / unit
        axes.text(
            at,
            lane + 0.52,
            f" {span.name}" if beside else span.name,
            ha="left" if beside else "center",
            va="center",
            fontsize=8,
            color=INK,
            clip_on=True,
        )


def _draw_device(axes: Axes, device: DeviceSamples, samples: MemorySamples, unit: float) -> None:
    measures = _list_measures(device)
    peaks = {measure: device.find_peak(measure) for measure in measures}
    highest = max(point.high or 0 for point in peaks.values() if point)
    scale, name = choose_binary_unit(highest)
    for measure in measures:
        for number, stretch in enumerate(
            split_at_gaps(device.points[measure], samples.gap_seconds)
        ):
            words = STYLES[measure].words if number == 0 else None
            _draw_stretch(axes, stretch, STYLES[measure], (unit, scale), words)
    # The innermost measure shows the reader's own code best.
    inner = next(measure for measure in ("allocated", "process", "used") if measure in measures)
    peak = peaks[inner]
    if peak is not None:
        _note_peak(axes, peak, STYLES[inner].color, (unit, scale, highest), samples.seconds)
    axes.set_ylim(0, (highest / scale or 1.0) * 1.22)
    axes.set_ylabel(name, color=INK)
    axes.yaxis.set_major_locator(MaxNLocator(nbins=5))
    axes.set_title(_write_title(device), loc="left", fontsize=10, color=INK)
    _style_axes(axes, len(measures) > 1)


def _draw_stretch(
    axes: Axes,
    stretch: list[Point],
    style: Style,
    units: tuple[float, float],
    words: str | None,
) -> None:
    unit, scale = units
    # A bucket's figures apply to all of its time, so a single bucket is a line too.
    ends = [(point.end if math.isfinite(point.end) else point.begin) / unit for point in stretch]
    times = [stretch[0].begin / unit, *ends]
    high = [(point.high or 0) / scale for point in (stretch[0], *stretch)]
    low = [(point.low or 0) / scale for point in (stretch[0], *stretch)]
    axes.fill_between(times, high, step="pre", color=style.color, alpha=style.area, linewidth=0)
    if low != high:
        axes.fill_between(times, low, high, step="pre", color=style.color, alpha=0.3, linewidth=0)
    axes.plot(times, high, color=style.color, linewidth=1.6, drawstyle="steps-pre", label=words)


def _note_peak(
    axes: Axes, peak: Point, color: str, units: tuple[float, float, int], whole: float
) -> None:
    """Marks the peak with a dot on its line, and writes its figure above all lines."""
    unit, scale, highest = units
    middle = (peak.begin + peak.end) / 2
    late = middle > whole / 2
    axes.annotate(
        f"peak {format_bytes(peak.high)}",
        (min(middle, whole) / unit, highest / scale),
        xytext=(-6 if late else 6, 5),
        textcoords="offset points",
        ha="right" if late else "left",
        fontsize=9,
        fontweight="bold",
        color=INK,
    )
    axes.plot([min(middle, whole) / unit], [(peak.high or 0) / scale], "o", color=color, ms=5)


def _write_title(device: DeviceSamples) -> str:
    total = f" of {format_bytes(device.total_bytes)}" if device.total_bytes else ""
    if device.kind != "cpu":
        return f"{device.name}{total}"
    least = find_least(device.points["available"])
    left = "" if least is None else f": never less than {format_bytes(least)}{total} available"
    return f"{device.name}{left}"


def _style_axes(axes: Axes, legend: bool) -> None:
    axes.set_facecolor("none")
    axes.spines[["top", "right"]].set_visible(False)
    axes.spines[["left", "bottom"]].set_color(INK)
    axes.tick_params(colors=INK, labelsize=9)
    axes.grid(axis="y", color=INK, alpha=0.25, linewidth=0.8)
    axes.set_axisbelow(True)
    if legend:
        axes.legend(
            loc="lower right",
            bbox_to_anchor=(1.0, 1.0),
            ncols=3,
            frameon=False,
            fontsize=9,
            labelcolor=INK,
            borderaxespad=0.1,
        )

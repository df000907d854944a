"""Small SVG plots that take the page's colours: columns a cell, and lines over time."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from labkit.render import escape
from labkit.text import format_bytes, format_seconds

WIDTH, HEIGHT = 900, 190
LEFT, RIGHT, TOP, BOTTOM = 78, 14, 20, 24
PLOT_WIDTH, PLOT_HEIGHT = WIDTH - LEFT - RIGHT, HEIGHT - TOP - BOTTOM
MANY_COLUMNS = 400  # from here on one path for all: no tooltips, and a page that stays small
WIDEST_COLUMN = 26.0
Format = Callable[[float], str]


@dataclass(frozen=True)
class Column:
    """One cell's column: its height (None: not measured, no column), and a lower mark in it."""

    label: str
    value: float | None
    lower: float | None = None
    bad: bool = False
    tooltip: str = ""


@dataclass(frozen=True)
class Line:
    """One line over time: its class for the colour, and points (seconds, value)."""

    css: str
    points: tuple[tuple[float, float], ...]


def draw_columns(columns: Sequence[Column], *, alt: str, unit: str) -> str:
    """A column for each cell in order, the three highest with their labels; "" without values.

    ``unit`` is "seconds" or "bytes".
    """
    known = [column.value for column in columns if column.value is not None]
    if not known:
        return ""
    scale = choose_scale(max(known), unit)
    step = PLOT_WIDTH / len(columns)
    wide = max(0.8, min(step * 0.72, WIDEST_COLUMN))
    placed = [
        (LEFT + (place + 0.5) * step - wide / 2, column)
        for place, column in enumerate(columns)
        if column.value is not None
    ]
    marks = (
        _draw_many(placed, wide, scale)
        if len(placed) > MANY_COLUMNS
        else "".join(_draw_column(x, wide, column, scale) for x, column in placed)
    )
    ends = _draw_ends(columns[0].label, columns[-1].label)
    return _frame(scale.draw() + marks + _label_highest(placed, wide, scale) + ends, alt)


def draw_lines(lines: Sequence[Line], *, alt: str) -> str:
    """Bytes over seconds, a line each; "" where nothing was seen."""
    drawn = [line for line in lines if len(line.points) > 1]
    if not drawn:
        return ""
    scale = choose_scale(max(value for line in drawn for _, value in line.points), "bytes")
    last = max(seconds for line in drawn for seconds, _ in line.points) or 1.0
    parts = [scale.draw(), _draw_seconds(last), *(_draw_line(line, last, scale) for line in drawn)]
    return _frame("".join(parts), alt)


@dataclass(frozen=True)
class Scale:
    """The vertical axis: its top value, the values of its grid lines, and how they are written."""

    top: float
    ticks: tuple[float, ...]
    write: Format

    def place(self, value: float) -> float:
        """How far down in the picture a value stands."""
        return TOP + PLOT_HEIGHT * (1 - min(value / self.top, 1.0))

    def draw(self) -> str:
        """The grid lines with their values."""
        return "".join(
            f'<line class="grid" x1="{LEFT}" x2="{WIDTH - RIGHT}" y1="{y:.1f}" y2="{y:.1f}"/>'
            f'<text class="tick" x="{LEFT - 8}" y="{y + 4:.1f}" text-anchor="end">'
            f"{escape(self.write(tick))}</text>"
            for tick in self.ticks
            for y in [self.place(tick)]
        )


def choose_scale(highest: float, unit: str) -> Scale:
    """An axis from 0 to just above ``highest`` with two to five round values on it.

    >>> choose_scale(3.2, "seconds").ticks
    (0.0, 1.0, 2.0, 3.0)
    """
    if highest <= 0:
        highest = 1.0
    base = 1.0
    if unit == "bytes":
        base = 1024.0 ** min(5, max(0, math.floor(math.log(highest, 1024))))
    step = base * _round_step(highest / base / 4)
    ticks = tuple(step * number for number in range(math.floor(highest / step) + 1))
    return Scale(highest * 1.04, ticks, _write_bytes if unit == "bytes" else _write_seconds)


def _round_step(least: float) -> float:
    """The smallest of 1, 2, 5 times a power of ten that is not below ``least``."""
    power = 10.0 ** math.floor(math.log10(least))
    return next(power * factor for factor in (1, 2, 5, 10) if power * factor >= least * 0.999)


def _write_bytes(value: float) -> str:
    return format_bytes(round(value)).replace(".0 ", " ")


def _write_seconds(value: float) -> str:
    return format_seconds(float(f"{value:.6g}")) if value else "0 s"


def _draw_column(x: float, wide: float, column: Column, scale: Scale) -> str:
    assert column.value is not None
    css = "column bad-column" if column.bad else "column"
    tooltip = f"<title>{escape(column.tooltip)}</title>" if column.tooltip else ""
    inner = ""
    if column.lower is not None:
        inner = _draw_rectangle(x, wide, column.lower, scale, "lower")
        css += " above"
    return f"<g>{tooltip}{_draw_rectangle(x, wide, column.value, scale, css)}{inner}</g>"


def _draw_rectangle(x: float, wide: float, value: float, scale: Scale, css: str) -> str:
    y = min(scale.place(value), TOP + PLOT_HEIGHT - 1)  # even nothing leaves a trace
    return (
        f'<rect class="{css}" x="{x:.1f}" y="{y:.1f}" width="{wide:.1f}"'
        f' height="{TOP + PLOT_HEIGHT - y:.1f}"/>'
    )


def _draw_many(placed: Sequence[tuple[float, Column]], wide: float, scale: Scale) -> str:
    floor = TOP + PLOT_HEIGHT
    steps = "".join(
        f"M{x + wide / 2:.1f} {floor}V{min(scale.place(column.value or 0), floor - 1):.1f}"
        for x, column in placed
    )
    return f'<path class="columns" style="stroke-width:{wide:.2f}" d="{steps}"/>'


def _label_highest(placed: Sequence[tuple[float, Column]], wide: float, scale: Scale) -> str:
    highest = sorted(placed, key=lambda pair: pair[1].value or 0.0, reverse=True)[:3]
    taken: list[float] = []
    parts = []
    for x, column in highest:
        middle = x + wide / 2
        if any(abs(middle - other) < 28 for other in taken):
            continue
        taken.append(middle)
        y = scale.place(column.value or 0.0) - 5
        parts.append(
            f'<text class="name" x="{middle:.1f}" y="{y:.1f}" text-anchor="middle">'
            f"{escape(column.label)}</text>"
        )
    return "".join(parts)


def _draw_ends(first: str, last: str) -> str:
    return (
        f'<text class="tick" x="{LEFT}" y="{HEIGHT - 6}">cell {escape(first)}</text>'
        f'<text class="tick" x="{WIDTH - RIGHT}" y="{HEIGHT - 6}" text-anchor="end">'
        f"cell {escape(last)}</text>"
    )


def _draw_seconds(last: float) -> str:
    step = _round_step(last / 6)
    places = [step * number for number in range(math.floor(last / step) + 1)]
    return "".join(
        f'<text class="tick" x="{LEFT + PLOT_WIDTH * seconds / last:.1f}" y="{HEIGHT - 6}"'
        f' text-anchor="middle">{escape(_write_seconds(seconds))}</text>'
        for seconds in places
    )


def _draw_line(line: Line, last: float, scale: Scale) -> str:
    points = " ".join(
        f"{LEFT + PLOT_WIDTH * seconds / last:.1f},{scale.place(value):.1f}"
        for seconds, value in line.points
    )
    return f'<polyline class="line {line.css}" points="{points}"/>'


def _frame(content: str, alt: str) -> str:
    return (
        f'<svg class="plot" role="img" aria-label="{escape(alt)}" viewBox="0 0 {WIDTH} {HEIGHT}">'
        f"{content}</svg>"
    )

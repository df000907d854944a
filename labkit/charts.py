"""Small SVG plots in the colors of the page: a column for each cell, and lines over time.

All plots of labkit use ``Scale`` for the vertical axis and ``round_up`` for its round numbers.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from labkit.render import escape
from labkit.text import BINARY_UNITS, format_bytes, format_seconds

WIDTH, HEIGHT = 900, 190
MANY_COLUMNS = 400  # from here on, all columns are one path without tooltips, for a small page
WIDEST_COLUMN = 26.0
HEADROOM = 1.05  # the axis ends this much above the highest value


@dataclass(frozen=True)
class Area:
    """The position of the plot in its picture, in pixels, with room for labels around it."""

    left: int = 78
    top: int = 20
    width: int = WIDTH - 78 - 14
    height: int = HEIGHT - 20 - 24

    @property
    def right(self) -> int:
        """Its right edge."""
        return self.left + self.width

    @property
    def floor(self) -> int:
        """Its lower edge."""
        return self.top + self.height


AREA = Area()


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
    """One line over time: its CSS class for the color, and points (seconds, value)."""

    css: str
    points: tuple[tuple[float, float], ...]


def render_columns(columns: Sequence[Column], *, alt: str, unit: str) -> str:
    """One column per cell in order; the three highest are labeled; "" without values.

    ``unit`` is "seconds" or "bytes".
    """
    known = [column.value for column in columns if column.value is not None]
    if not known:
        return ""
    scale = choose_scale(max(known), unit)
    step = AREA.width / len(columns)
    wide = max(0.8, min(step * 0.72, WIDEST_COLUMN))
    placed = [
        (AREA.left + (place + 0.5) * step - wide / 2, column)
        for place, column in enumerate(columns)
        if column.value is not None
    ]
    if len(placed) > MANY_COLUMNS:
        marks = _render_many(placed, wide, scale)
    else:
        marks = "".join(_render_column(x, wide, column, scale) for x, column in placed)
    first, last = f"cell {escape(columns[0].label)}", f"cell {escape(columns[-1].label)}"
    ends = render_tick(AREA.left, HEIGHT - 6, first, "start") + render_tick(
        AREA.right, HEIGHT - 6, last, "end"
    )
    return render_frame(scale.render() + marks + _label_highest(placed, wide, scale) + ends, alt)


def render_lines(lines: Sequence[Line], *, alt: str, scale: Scale | None = None) -> str:
    """Lines over seconds, of bytes unless there is a ``scale``; "" if no line has two points."""
    drawn = [line for line in lines if len(line.points) > 1]
    if not drawn:
        return ""
    highest = max(value for line in drawn for _, value in line.points)
    scale = scale or choose_scale(highest, "bytes")
    last = max(seconds for line in drawn for seconds, _ in line.points) or 1.0
    parts = [scale.render(), _render_seconds(last)]
    parts += [_render_line(line, last, scale) for line in drawn]
    return render_frame("".join(parts), alt)


@dataclass(frozen=True)
class Scale:
    """The vertical axis: its top value, the values of its grid lines, and their format."""

    top: float
    ticks: tuple[float, ...]
    write: Callable[[float], str]
    area: Area = AREA

    def place(self, value: float) -> float:
        """The distance of a value from the top of the picture, in pixels."""
        return self.area.top + self.area.height * (1 - min(value / self.top, 1.0))

    def render(self) -> str:
        """The grid lines with their values."""
        return "".join(
            f'<line class="grid" x1="{self.area.left}" x2="{self.area.right}" y1="{y:.1f}"'
            f' y2="{y:.1f}"/>{render_tick(self.area.left - 8, y + 4, label, "end")}'
            for tick in self.ticks
            for y, label in [(self.place(tick), escape(self.write(tick)))]
        )


def choose_scale(highest: float, unit: str, area: Area = AREA) -> Scale:
    """An axis from 0 to just above ``highest`` with two to five round values on it.

    ``unit`` is "seconds" or "bytes"; bytes are round in their binary unit.

    >>> choose_scale(3.2, "seconds").ticks
    (0.0, 1.0, 2.0, 3.0)
    """
    if highest <= 0:
        highest = 1.0
    if unit == "bytes":
        base, write = choose_binary_unit(highest)[0], _write_bytes
        step = max(1.0, base * round_up(highest / base / 4))
    else:
        step, write = round_up(highest / 4), _write_seconds
    ticks = tuple(step * number for number in range(math.floor(highest / step) + 1))
    return Scale(highest * HEADROOM, ticks, write, area)


def choose_binary_unit(highest: float) -> tuple[float, str]:
    """The largest binary unit up to ``highest`` bytes: its bytes and its name.

    >>> choose_binary_unit(5000), choose_binary_unit(0)
    ((1024.0, 'KiB'), (1.0, 'B'))
    """
    number = math.floor(math.log(highest, 1024)) if highest >= 1 else 0
    number = min(number, len(BINARY_UNITS) - 1)
    return 1024.0**number, BINARY_UNITS[number]


def round_up(least: float, factors: Sequence[float] = (1, 2, 5)) -> float:
    """The smallest round number that is not below ``least``: a factor times a power of ten.

    ``factors`` are from 1 to 10, in order.

    >>> round_up(0.3), round_up(700), round_up(700, (1, 4, 8))
    (0.5, 1000.0, 800.0)
    """
    power = 10.0 ** math.floor(math.log10(least))
    return next(power * factor for factor in (*factors, 10) if power * factor >= least * 0.999)


def _write_bytes(value: float) -> str:
    return format_bytes(round(value)).replace(".0 ", " ")


def _write_seconds(value: float) -> str:
    return format_seconds(float(f"{value:.6g}")) if value else "0 s"


def _render_column(x: float, wide: float, column: Column, scale: Scale) -> str:
    assert column.value is not None
    css = "column bad-column" if column.bad else "column"
    tooltip = f"<title>{escape(column.tooltip)}</title>" if column.tooltip else ""
    inner = ""
    if column.lower is not None:
        inner = _render_rectangle(x, wide, column.lower, scale, "lower")
        css += " above"
    return f"<g>{tooltip}{_render_rectangle(x, wide, column.value, scale, css)}{inner}</g>"


def _render_rectangle(x: float, wide: float, value: float, scale: Scale, css: str) -> str:
    y = min(scale.place(value), AREA.floor - 1)  # a value of 0 is one pixel high
    return (
        f'<rect class="{css}" x="{x:.1f}" y="{y:.1f}" width="{wide:.1f}"'
        f' height="{AREA.floor - y:.1f}"/>'
    )


def _render_many(placed: Sequence[tuple[float, Column]], wide: float, scale: Scale) -> str:
    steps = "".join(
        f"M{x + wide / 2:.1f} {AREA.floor}V{min(scale.place(one.value or 0), AREA.floor - 1):.1f}"
        for x, one in placed
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


def _render_seconds(last: float) -> str:
    step = round_up(last / 6)
    places = [step * number for number in range(math.floor(last / step) + 1)]
    return "".join(
        render_tick(AREA.left + AREA.width * seconds / last, HEIGHT - 6, _write_seconds(seconds))
        for seconds in places
    )


def _render_line(line: Line, last: float, scale: Scale) -> str:
    points = " ".join(
        f"{AREA.left + AREA.width * seconds / last:.1f},{scale.place(value):.1f}"
        for seconds, value in line.points
    )
    return f'<polyline class="line {line.css}" points="{points}"/>'


def render_tick(x: float, y: float, words: str, anchor: str = "middle") -> str:
    """A label of an axis, already escaped."""
    return f'<text class="tick" x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}">{words}</text>'


def render_frame(content: str, alt: str, height: int = HEIGHT) -> str:
    """The whole picture, with a description for screen readers."""
    return (
        f'<svg class="plot" role="img" aria-label="{escape(alt)}" viewBox="0 0 {WIDTH} {height}">'
        f"{content}</svg>"
    )

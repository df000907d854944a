"""The pictures of a history's page: live bytes over the events, and the segments as bars."""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Sequence

from labkit.memory.history.analysis import Column, DeviceHistory
from labkit.memory.history.layout import Fragmentation, LaidSegment, Span
from labkit.memory.history.markup import escape
from labkit.memory.history.text import count
from labkit.units import format_bytes, format_seconds

WIDTH, HEIGHT = 900, 300
LEFT, RIGHT, TOP, BOTTOM = 78, 14, 30, 42
PLOT_WIDTH, PLOT_HEIGHT = WIDTH - LEFT - RIGHT, HEIGHT - TOP - BOTTOM
FLOOR = TOP + PLOT_HEIGHT
TICKS_ACROSS = 5
BARS_DRAWN = 40
BAR_HEIGHT, BAR_STEP = 14, 20
# The end of the axis stands this much above the highest value.
HEADROOM = 1.06


def draw_timeline(device: DeviceHistory) -> str:
    """Live bytes, in bands by line, and reserved bytes over the events, with the peak marked."""
    columns = device.columns
    highest = max(max(one.live_bytes, one.reserved_bytes) for one in columns)
    scale = Scale(highest, columns)
    parts = [scale.draw_values(), _draw_bands(scale, len(device.bands))]
    if device.has_cache:
        parts.append(_draw_reserved(scale))
    parts += [scale.draw_events(device.events), _mark_peak(device, scale)]
    parts += [_mark_shortage(shortage.moment.event, scale) for shortage in device.shortages]
    parts.append(f'<line class="cursor" x1="-9" x2="-9" y1="{TOP}" y2="{FLOOR}"/>')
    words = escape(json.dumps([_say_column(column, device) for column in columns]))
    alt = f"live bytes on {device.device} over {count(device.events, 'event')}"
    return (
        f'<div class="timeline" data-words="{words}" data-left="{LEFT}"'
        f' data-width="{PLOT_WIDTH}">'
        f'<svg class="plot" role="img" aria-label="{escape(alt)}"'
        f' viewBox="0 0 {WIDTH} {HEIGHT}">{"".join(parts)}</svg>'
        '<p class="read" hidden><input type="range" min="0" value="0" step="1"'
        f' max="{len(columns) - 1}" aria-label="a moment of the timeline"> <output></output></p>'
        "</div>"
    )


class Scale:
    """Where values and columns stand in the picture."""

    def __init__(self, highest: int, columns: Sequence[Column]) -> None:
        self.columns = columns
        self._top = max(highest, 1) * HEADROOM
        self._highest = max(highest, 1)

    def across(self, place: float) -> float:
        """How far right the left edge of a column stands."""
        return LEFT + PLOT_WIDTH * place / len(self.columns)

    def down(self, count_bytes: int) -> float:
        """How far down a number of bytes stands."""
        return TOP + PLOT_HEIGHT * (1 - count_bytes / self._top)

    def find_column(self, level: int) -> float:
        """The middle of the column that stands nearest to a level."""
        near = min(range(len(self.columns)), key=lambda one: abs(self.columns[one].level - level))
        return self.across(near + 0.5)

    def draw_values(self) -> str:
        """Grid lines at round numbers of bytes."""
        step = choose_step(self._highest)
        values = [step * number for number in range(self._highest // step + 1)]
        return "".join(
            f'<line class="grid" x1="{LEFT}" x2="{WIDTH - RIGHT}" y1="{y:.1f}" y2="{y:.1f}"/>'
            f'<text x="{LEFT - 8}" y="{y + 4:.1f}" text-anchor="end">'
            f"{format_bytes(value).replace('.0 ', ' ')}</text>"
            for value in values
            for y in [self.down(value)]
        )

    def draw_events(self, events: int) -> str:
        """Numbers of events under the picture, and their seconds where those are known."""
        last = len(self.columns) - 1
        places = sorted({last * number // TICKS_ACROSS for number in range(TICKS_ACROSS + 1)})
        parts = []
        for place in places if events else []:
            column = self.columns[place]
            x = self.across(place + 0.5)
            anchor = "start" if place == 0 else "end" if place == last else "middle"
            when = format_seconds(column.seconds or 0) if column.seconds is not None else ""
            words = f"event {column.level:,}" if place == 0 else f"{column.level:,}"
            parts.append(
                f'<text x="{x:.1f}" y="{FLOOR + 17}" text-anchor="{anchor}">{words}</text>'
                f'<text class="faint" x="{x:.1f}" y="{FLOOR + 33}" text-anchor="{anchor}">'
                f"{when}</text>"
            )
        return "".join(parts)


def choose_step(highest: int) -> int:
    """The distance of grid lines, in bytes, for two to five of them: 1, 2 or 5 times a power.

    >>> choose_step(3 * 2**30) == 2**30, choose_step(700), choose_step(1)
    (True, 200, 1)
    """
    unit: int = 1024 ** min(5, int(math.log(highest, 1024)))
    least = highest / unit / 4
    power = 10.0 ** math.floor(math.log10(least))
    step = next(power * factor for factor in (1, 2, 5, 10) if power * factor >= least * 0.999)
    return max(1, round(step * unit))


def _draw_bands(scale: Scale, number: int) -> str:
    """The lines' live bytes on top of each other, and grey above them what is of other lines.

    What changes least is at the bottom, so that the steps of the others are seen as they are.
    """
    bands = [[column.bands[band] for column in scale.columns] for band in range(number)]
    order = sorted(range(number), key=lambda band: max(bands[band]) - min(bands[band]))
    lower = [0] * len(scale.columns)
    parts = []
    for band in order:
        upper = [low + held for low, held in zip(lower, bands[band], strict=True)]
        parts.append(f'<path class="band b{band}" d="{_outline(scale, lower, upper)}"/>')
        lower = upper
    upper = [column.live_bytes for column in scale.columns]
    if upper != lower:
        parts.append(f'<path class="band rest" d="{_outline(scale, lower, upper)}"/>')
    return "".join(parts)


def _outline(scale: Scale, lower: Sequence[int], upper: Sequence[int]) -> str:
    """A closed path: along the upper edge, and back along the lower one."""
    there = _steps(scale, upper)
    back = _steps(scale, lower, backwards=True)
    return f"M{there[1:]}L{back[1:]}Z"


def _steps(scale: Scale, values: Sequence[int], *, backwards: bool = False) -> str:
    """The edge of a staircase; a run of equal heights is one piece."""
    order = range(len(values) - 1, -1, -1) if backwards else range(len(values))
    begin, end = (1, 0) if backwards else (0, 1)
    parts, height = [], None
    last = 0.0
    for place in order:
        y = round(scale.down(values[place]), 1)
        x = scale.across(place + begin)
        if height is None:
            parts.append(f"M{x:.1f} {y:g}")
        elif y != height:
            parts.append(f"H{x:.1f}V{y:g}")
        height, last = y, scale.across(place + end)
    return f"{''.join(parts)}H{last:.1f}"


def _draw_reserved(scale: Scale) -> str:
    path = _steps(scale, [column.reserved_bytes for column in scale.columns])
    return f'<path class="reserved" d="{path}"/>'


def _mark_peak(device: DeviceHistory, scale: Scale) -> str:
    x, y = scale.find_column(device.peak.event), scale.down(device.peak.live_bytes)
    anchor = "end" if x > WIDTH * 0.75 else "start"
    shift = -7 if anchor == "end" else 7
    return (
        f'<line class="peak" x1="{x:.1f}" x2="{x:.1f}" y1="{TOP - 14}" y2="{FLOOR}"/>'
        f'<circle class="peak-dot" cx="{x:.1f}" cy="{y:.1f}" r="4"/>'
        f'<text class="strong" x="{x + shift:.1f}" y="{TOP - 6}" text-anchor="{anchor}">'
        f"peak {format_bytes(device.peak.live_bytes)}</text>"
    )


def _mark_shortage(level: int, scale: Scale) -> str:
    x = scale.find_column(level)
    return (
        f'<path class="shortage" d="M{x - 6:.1f} {FLOOR + 2}h12l-6-12z">'
        "<title>out of memory</title></path>"
    )


def _say_column(column: Column, device: DeviceHistory) -> str:
    when = "" if column.seconds is None else f" ({format_seconds(column.seconds)})"
    words = f"event {column.level:,}{when}: {format_bytes(column.live_bytes)} live"
    if column.lowest_bytes != column.live_bytes:
        words += f" (at least {format_bytes(column.lowest_bytes)} around it)"
    if device.has_cache:
        words += f", {format_bytes(column.reserved_bytes)} reserved"
    return words


def draw_segments(cut: Fragmentation) -> str:
    """The largest segments as bars in proportion, what is live in them filled; "" without any."""
    drawn = cut.segments[:BARS_DRAWN]
    if not drawn:
        return ""
    longest = max(1, drawn[0].span.size_bytes)
    height = len(drawn) * BAR_STEP
    rows = "".join(
        _draw_segment(segment, place * BAR_STEP, longest) for place, segment in enumerate(drawn)
    )
    alt = f"{count(len(drawn), 'segment')} with live and free pieces"
    return (
        f'<svg class="plot" role="img" aria-label="{alt}" viewBox="0 0 {WIDTH} {height}">'
        f"{rows}</svg>"
    )


def _draw_segment(segment: LaidSegment, top: int, longest: int) -> str:
    span = segment.span
    width = max(1.0, PLOT_WIDTH * span.size_bytes / longest)
    free = sum(gap.size_bytes for gap in segment.gaps)
    words = f"{format_bytes(span.size_bytes)}, {format_bytes(free)} of it free"
    path = "".join(
        f"M{LEFT + start / 2:g} {top}h{(end - start) / 2:g}v{BAR_HEIGHT}h{(start - end) / 2:g}z"
        for start, end in merge_runs(segment.live, span, width)
    )
    return (
        f"<g><title>{words}</title>"
        f'<text x="{LEFT - 8}" y="{top + 11}" text-anchor="end">'
        f"{format_bytes(span.size_bytes)}</text>"
        f'<rect class="segment" x="{LEFT}" y="{top}" width="{width:.1f}" height="{BAR_HEIGHT}"/>'
        f'<path class="live" d="{path}"/></g>'
    )


def merge_runs(live: Iterable[Span], span: Span, width: float) -> list[tuple[int, int]]:
    """Live ranges in half pixels of a bar; what would touch is one, and none is thinner than one.

    So a bar takes at most as many pieces as it has pixels, whatever is in it.
    """
    runs: list[tuple[int, int]] = []
    for one in live:
        start = int(2 * width * (one.address - span.address) / span.size_bytes)
        end = max(start + 1, round(2 * width * (one.end - span.address) / span.size_bytes))
        if runs and start <= runs[-1][1]:
            runs[-1] = (runs[-1][0], max(end, runs[-1][1]))
        else:
            runs.append((start, end))
    return runs

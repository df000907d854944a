"""The live panel as HTML; without a script, it shows when its updates have ended.

The words "not measured since" are visible by default, and an animation hides them until the next
update is overdue. Each update inserts new elements, which restarts the animation. If the kernel
has ended, the animation ends and the words appear. Untrusted notebooks have no styles: there the
words are always visible. All text is outside the SVGs, which the sanitizer removes.

A trace holds the last minutes of a device. The text of each point is made once, in its own units
(tenths of a second, MiB), and one transform positions all points, so that rendering is cheap.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Iterable, Mapping, Sequence
from typing import NamedTuple

from labkit.charts import round_up
from labkit.memory.balance.model import MIB, Balance, Snapshot, divide_bar, list_terms, name_device
from labkit.memory.balance.view import (
    INLINE_STYLE,
    PICTURE_COLORS,
    format_figures,
    format_snapshot,
    list_remarks,
)
from labkit.memory.sample.levels import read_levels
from labkit.memory.sample.model import AnnotatedSpan
from labkit.memory.sample.view import STYLES, Style
from labkit.render import escape
from labkit.text import BINARY_UNITS, format_bytes, format_seconds

WIDTH, HEIGHT = 600, 64
# A gap in the samples that is longer than this is a gap in the line.
GAP_SECONDS = 2.5
ROUND_FACTORS = (1, 1.5, 2, 3, 4, 5, 6, 8)

BREAK = "|"
# The most points of a measure: all of them are sent twice a second, and Jupyter's server forwards
# at most a megabyte per second.
DOT_LIMIT = 360


class Dots:
    """One measure's samples: their times in tenths of a second, their bytes, their texts.

    Separate lists make joining and searching fast: eight GPUs have thousands of samples. Of a
    constant level, only its two ends are kept; of samples too close to be drawn, only the highest.
    """

    def __init__(self, window_seconds: float) -> None:
        self._window = window_seconds * 10
        self._step = self._window / DOT_LIMIT
        self._seen_at = 0
        self.tenths: deque[int] = deque()
        self.counts: deque[int] = deque()
        self.texts: deque[str] = deque()

    def add(self, tenths: int, count: int | None) -> None:
        """Adds a sample; None, or a long pause before the sample, makes a gap in the line."""
        late = tenths - self._seen_at > GAP_SECONDS * 10 and bool(self.tenths)
        self._seen_at = tenths
        if not late and self._is_close(tenths, count):
            if (count or 0) <= self.counts[-1]:
                return
            self._drop_last()
        level = "" if count is None else f"{count / MIB:.1f}"
        if not late and level and self._stays(level):
            self._drop_last()
        text = f"{tenths},{level}" if level else BREAK
        self.tenths.append(tenths)
        self.counts.append(count or 0)
        self.texts.append(f"{BREAK} {text}" if late else text)
        # One older point stays, as the line begins there.
        while len(self.tenths) > 1 and self.tenths[1] <= tenths - self._window:
            self.tenths.popleft()
            self.counts.popleft()
            self.texts.popleft()

    def _is_close(self, tenths: int, count: int | None) -> bool:
        if count is None or not self.texts or BREAK in self.texts[-1]:
            return False
        return tenths // self._step == self.tenths[-1] // self._step

    def _stays(self, level: str) -> bool:
        """True if the last two are at this level, so that the last one can be dropped."""
        if len(self.texts) < 2 or BREAK in self.texts[-1]:
            return False
        return all(self.texts[place].rpartition(",")[2] == level for place in (-1, -2))

    def _drop_last(self) -> None:
        self.tenths.pop()
        self.counts.pop()
        self.texts.pop()

    def list_stretches(self) -> list[str]:
        """The points of each segment between gaps, as SVG path data."""
        stretches = (stretch.strip() for stretch in " ".join(self.texts).split(BREAK))
        return [stretch for stretch in stretches if stretch]


class SeriesTrace:
    """The samples of one device that are younger than ``window_seconds``, by measure."""

    def __init__(self, window_seconds: float) -> None:
        self._window = window_seconds
        self._dots: dict[str, Dots] = {}

    def add(self, seconds: float, held_bytes: Mapping[str, int | None]) -> None:
        """Adds a sample; a missing measure was not measured."""
        tenths = round(seconds * 10)
        for measure in {*self._dots, *held_bytes} & STYLES.keys():
            dots = self._dots.setdefault(measure, Dots(self._window))
            dots.add(tenths, held_bytes.get(measure))

    def find_highest(self) -> int:
        """The most bytes of any measure in these minutes; 0 if none was measured."""
        return max((max(dots.counts, default=0) for dots in self._dots.values()), default=0)

    def render(self, now: float, spans: Iterable[AnnotatedSpan] = ()) -> tuple[str, float]:
        """The trace as an SVG without words, and the bytes at its upper edge."""
        top = choose_top(self.find_highest())
        across = WIDTH / (self._window * 10)
        down = HEIGHT / (top / MIB)
        place = f"matrix({across:.6g} 0 0 {-down:.6g} {WIDTH - now * 10 * across:.6g} {HEIGHT})"
        bands = "".join(
            f'<rect x="{left:.1f}" y="0" width="{width:.1f}" height="{HEIGHT}"'
            ' fill="currentColor" fill-opacity="0.09"/>'
            for left, width in (
                self.place_span(span, now) for span in spans if self.is_seen(span, now)
            )
        )
        lines = "".join(
            _render_measure(STYLES[measure], self._dots[measure].list_stretches())
            for measure in STYLES
            if measure in self._dots
        )
        edge = f'<path d="M0,{HEIGHT - 0.5}H{WIDTH}" stroke="currentColor" stroke-opacity="0.4"/>'
        picture = (
            f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {HEIGHT}"'
            f' preserveAspectRatio="none" aria-hidden="true"'
            f' style="display:block;width:100%;height:{HEIGHT}px">{bands}'
            f'<g transform="{place}">{lines}</g>{edge}</svg>'
        )
        return picture, top

    def is_seen(self, span: AnnotatedSpan, now: float) -> bool:
        """True if part of the span is in these minutes."""
        return span.end is None or span.end > now - self._window

    def place_span(self, span: AnnotatedSpan, now: float) -> tuple[float, float]:
        """The left edge and the width of a span, in the units of ``WIDTH``."""
        scale = WIDTH / self._window
        left = max(0.0, WIDTH + (span.begin - now) * scale)
        right = WIDTH if span.end is None else WIDTH + (span.end - now) * scale
        return left, max(1.0, right - left)


def choose_top(count: int) -> float:
    """A round number of bytes above a count, for the upper edge of a trace.

    >>> choose_top(0), choose_top(3 * 2**20), choose_top(700)
    (1024.0, 4194304.0, 800.0)
    """
    if count <= 0:
        return 1024.0
    needed, unit = count * 1.08, 1.0
    while needed / unit > 800 and unit < 1024.0 ** (len(BINARY_UNITS) - 1):
        unit *= 1024
    return max(1.0, round_up(needed / unit, ROUND_FACTORS)) * unit


def _render_measure(style: Style, stretches: Iterable[str]) -> str:
    parts = []
    for points in stretches:
        first = points.partition(",")[0]
        last = points.rpartition(" ")[2].partition(",")[0]
        # The path stays open: its area is filled, and it has no line along the bottom.
        parts.append(
            f'<path d="M{first},0L{points}L{last},0" fill="{style.color}"'
            f' fill-opacity="{style.area}" stroke="{style.color}" stroke-width="1.6"'
            ' vector-effect="non-scaling-stroke"/>'
        )
    return "".join(parts)


BAR_CELLS, BAR_HEIGHT = 600, 16
# The width that a cell's number needs below its band.
NUMBER_ROOM = 26
SCALE_WIDTH = 76

STYLE = (
    "<style>"
    # Hidden words take no room: in a narrow side area they would wrap the moment.
    "@keyframes labkit-hidden{from,to{visibility:hidden;font-size:0}}"
    "@keyframes labkit-clear{from,to{opacity:1}}"
    ".labkit-late{color:var(--jp-error-color1,#d6487e);font-weight:bold;animation-name:labkit-hidden}"
    ".labkit-figures{opacity:0.75;animation-name:labkit-clear}"
    "</style>"
)
FLEX = "display:flex;justify-content:space-between;gap:12px"
SMALL = "font-size:85%;opacity:0.75"


class PanelView(NamedTuple):
    """What a panel shows: the balances, the traces by key, the spans, and the time of measuring.

    ``live_seconds`` is how long the figures count as current; None for a stopped panel, and then
    ``ending`` is the reason.
    """

    name: str
    snapshot: Snapshot
    traces: dict[str, SeriesTrace]
    spans: Sequence[AnnotatedSpan]
    now: float
    measured_at: float
    window_seconds: float
    live_seconds: float | None
    ending: str = ""
    trouble: str | None = None


def render_panel(view: PanelView) -> dict[str, str]:
    """The panel as a bundle of HTML and text."""
    devices = "".join(_render_device(balance, view) for balance in view.snapshot.balances)
    notes = [*view.snapshot.notes, *([f"not measured: {view.trouble}"] if view.trouble else [])]
    dim = "".join(f'<div style="{SMALL}">{escape(note)}</div>' for note in notes)
    html = (
        f'<div class="labkit-panel {view.name}" style="{INLINE_STYLE};max-width:760px">'
        f"{STYLE}{_render_head(view)}"
        f'<div class="labkit-figures"{_animate(view)}>{devices}</div>{dim}</div>'
    )
    return {"text/html": html, "text/plain": _format_text(view)}


def format_moment(seconds: float) -> str:
    """An epoch as local date and time with the time zone."""
    return time.strftime("%Y-%m-%d %H:%M:%S %Z", time.localtime(seconds)).rstrip()


def _format_text(view: PanelView) -> str:
    ending = f"; {view.ending}" if view.ending else ""
    return f"{format_snapshot(view.snapshot)}\n\nmeasured {format_moment(view.measured_at)}{ending}"


def _animate(view: PanelView) -> str:
    # A duration of 0: the words "not measured since" are visible.
    duration = f"{view.live_seconds:g}s" if view.live_seconds is not None else "0s"
    return f' style="animation-duration:{duration}"'


def _render_head(view: PanelView) -> str:
    late = f'<span class="labkit-late"{_animate(view)}>not measured since </span>'
    ending = f'<div style="{SMALL}">{escape(view.ending)}</div>' if view.ending else ""
    moment = escape(format_moment(view.measured_at))
    return (
        f'<div style="{FLEX}"><span style="font-weight:bold">memory</span>'
        f'<span style="font-variant-numeric:tabular-nums;text-align:right">{late}'
        f'<span style="white-space:nowrap">{moment}</span></span></div>{ending}'
    )


def _render_device(balance: Balance, view: PanelView) -> str:
    levels = read_levels(balance)
    used, total = format_bytes(balance.used_bytes), format_bytes(balance.total_bytes)
    title = (
        f'<div style="{FLEX};margin-top:8px"><span><span style="font-weight:bold">'
        f"{escape(name_device(balance))}</span> {escape(balance.name or '')}</span>"
        f"<span> {used} of {total} in use</span></div>"
    )
    remarks = "".join(
        f'<div style="{SMALL}">{escape(remark)}</div>' for remark in list_remarks(balance)
    )
    trace = view.traces.get(levels.key)
    terms = f"{_render_bar(balance)}{_render_terms(balance)}" if balance.is_readable else ""
    return title + terms + remarks + (_render_trace(trace, view) if trace else "")


def _render_bar(balance: Balance) -> str:
    left, cells = 0, []
    for key, width in divide_bar(list_terms(balance), BAR_CELLS):
        cells.append(
            f'<rect x="{left}" y="0" width="{width}" height="1" fill="{PICTURE_COLORS[key]}"/>'
            if PICTURE_COLORS[key] != "none"
            else ""
        )
        left += width
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {BAR_CELLS} 1"'
        f' preserveAspectRatio="none" aria-hidden="true" style="display:block;width:100%;'
        f'height:{BAR_HEIGHT}px;box-sizing:border-box;border:1px solid rgba(128,128,128,0.6)">'
        f"{''.join(cells)}</svg>"
    )


def _render_terms(balance: Balance) -> str:
    """Each term with its color and its figure; they add up as those of ``%memory`` do."""
    words = (
        f'<span style="white-space:nowrap"><span style="color:{_name_color(term.key)}">'
        f"{'□' if PICTURE_COLORS[term.key] == 'none' else '■'}</span>"
        f" {escape(term.words)} {figure}</span>"
        for term, figure in format_figures(list_terms(balance), balance.total_bytes)
    )
    return f'<div style="font-size:90%">{" &nbsp; ".join(words)}</div>'


def _name_color(key: str) -> str:
    return "inherit" if PICTURE_COLORS[key] == "none" else PICTURE_COLORS[key]


def _render_trace(trace: SeriesTrace, view: PanelView) -> str:
    picture, top = trace.render(view.now, view.spans)
    begin = f"{format_seconds(view.window_seconds).removesuffix(' 0 s')} ago"
    moment = time.strftime("%H:%M:%S", time.localtime(view.measured_at))
    scale = (
        f'<div style="flex:none;width:{SCALE_WIDTH}px;text-align:right;padding-right:6px;'
        f"box-sizing:border-box;{SMALL};display:flex;flex-direction:column;"
        f'justify-content:space-between"><span>{format_bytes(round(top)).replace(".0 ", " ")}'
        "</span><span>0</span></div>"
    )
    foot = (
        f'<div style="{SMALL};{FLEX};margin-left:{SCALE_WIDTH}px"><span>{begin}</span>'
        f"<span>{moment}</span></div>"
    )
    plot = f'<div style="flex:1">{picture}</div>'
    numbers = _render_numbers(trace, view)
    return f'<div style="display:flex;margin-top:6px">{scale}{plot}</div>{numbers}{foot}'


def _render_numbers(trace: SeriesTrace, view: PanelView) -> str:
    """The cells' numbers below their bands, as many as fit."""
    parts, free = [], 0.0
    for span in _list_cells(trace, view):
        left, _ = trace.place_span(span, view.now)
        if free <= left <= WIDTH - NUMBER_ROOM:
            place = f"position:absolute;left:{left / WIDTH:.1%}"
            parts.append(f'<span style="{place}">{escape(span.name)}</span>')
            free = left + NUMBER_ROOM
    if not parts:
        return ""
    place = f"position:relative;height:1.4em;margin-left:{SCALE_WIDTH}px"
    return f'<div style="{SMALL};{place}">{" ".join(parts)}</div>'


def _list_cells(trace: SeriesTrace, view: PanelView) -> Iterable[AnnotatedSpan]:
    seen = (span for span in view.spans if span.kind == "cell" and trace.is_seen(span, view.now))
    return sorted(seen, key=lambda span: span.begin)

"""The last minutes of one device, kept as the text of an SVG so that drawing costs next to nothing.

A point's text is made once, in its own units (tenths of a second, MiB); where it stands in the
picture is said by one transform for all of them.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Mapping

from labkit.memory.balance import MIB
from labkit.memory.marks import MarkedSpan
from labkit.memory.styles import STYLES, Style
from labkit.units import BINARY_UNITS

WIDTH, HEIGHT = 600, 64
# Without a sample for so long the line is broken.
GAP_SECONDS = 2.5
ROUND = (1, 1.5, 2, 3, 4, 5, 6, 8, 10)


BREAK = "|"
# So many points a measure has at most: a page gets all of them twice a second, and Jupyter's
# server passes on no more than a megabyte a second.
DOT_LIMIT = 360


class Dots:
    """One measure's samples: their times in tenths of a second, bytes, and texts.

    Kept apart, so that joining and searching them is one call each: eight GPUs have thousands. A
    level that stays is kept as its two ends, and of samples too close to be drawn the highest.
    """

    def __init__(self, window_seconds: float) -> None:
        self._window = window_seconds * 10
        self._step = self._window / DOT_LIMIT
        self._seen_at = 0
        self.tenths: deque[int] = deque()
        self.counts: deque[int] = deque()
        self.texts: deque[str] = deque()

    def add(self, tenths: int, count: int | None) -> None:
        """Takes in a sample; None, and a pause before it, break the line."""
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
        # One that is older stays: the line comes from there.
        while len(self.tenths) > 1 and self.tenths[1] <= tenths - self._window:
            self.tenths.popleft()
            self.counts.popleft()
            self.texts.popleft()

    def _is_close(self, tenths: int, count: int | None) -> bool:
        if count is None or not self.texts or BREAK in self.texts[-1]:
            return False
        return tenths // self._step == self.tenths[-1] // self._step

    def _stays(self, level: str) -> bool:
        """True where the last two are at this level, so that the last can be left out."""
        if len(self.texts) < 2 or BREAK in self.texts[-1]:
            return False
        return all(self.texts[place].rpartition(",")[2] == level for place in (-1, -2))

    def _drop_last(self) -> None:
        self.tenths.pop()
        self.counts.pop()
        self.texts.pop()

    def list_stretches(self) -> list[str]:
        """The points of each stretch without a gap, as the text of a path."""
        stretches = (stretch.strip() for stretch in " ".join(self.texts).split(BREAK))
        return [stretch for stretch in stretches if stretch]


class Trace:
    """The samples of one device that are younger than ``window_seconds``, by measure."""

    def __init__(self, window_seconds: float) -> None:
        self._window = window_seconds
        self._dots: dict[str, Dots] = {}

    def add(self, seconds: float, held_bytes: Mapping[str, int | None]) -> None:
        """Takes in a sample; a measure that it lacks was not measured."""
        tenths = round(seconds * 10)
        for measure in {*self._dots, *held_bytes} & STYLES.keys():
            dots = self._dots.setdefault(measure, Dots(self._window))
            dots.add(tenths, held_bytes.get(measure))

    def find_highest(self) -> int:
        """The most bytes of any measure in these minutes; 0 where none was measured."""
        return max((max(dots.counts, default=0) for dots in self._dots.values()), default=0)

    def draw(self, now: float, spans: Iterable[MarkedSpan] = ()) -> tuple[str, float]:
        """The picture as an SVG without words, and the bytes at its upper edge."""
        top = round_up(self.find_highest())
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
            _draw_measure(STYLES[measure], self._dots[measure].list_stretches())
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

    def is_seen(self, span: MarkedSpan, now: float) -> bool:
        """True where some of the span lies in these minutes."""
        return span.end is None or span.end > now - self._window

    def place_span(self, span: MarkedSpan, now: float) -> tuple[float, float]:
        """Where a span begins in the picture, and its width, of ``WIDTH``."""
        scale = WIDTH / self._window
        left = max(0.0, WIDTH + (span.begin - now) * scale)
        right = WIDTH if span.end is None else WIDTH + (span.end - now) * scale
        return left, max(1.0, right - left)


def round_up(count: int) -> float:
    """The next round number of bytes above a count, for the upper edge of a picture.

    >>> round_up(0), round_up(3 * 2**20), round_up(700)
    (1024.0, 4194304.0, 800.0)
    """
    if count <= 0:
        return 1024.0
    unit = 1.0
    while count * 1.08 / unit > 800 and unit < 1024.0 ** (len(BINARY_UNITS) - 1):
        unit *= 1024
    power = 1.0
    while count * 1.08 / unit > 10 * power:
        power *= 10
    needed = count * 1.08 / unit / power
    return next(step for step in ROUND if step >= needed) * power * unit


def _draw_measure(style: Style, stretches: Iterable[str]) -> str:
    parts = []
    for points in stretches:
        first = points.partition(",")[0]
        last = points.rpartition(" ")[2].partition(",")[0]
        # Not closed: an area closes itself, and its edge stays without a line along the ground.
        parts.append(
            f'<path d="M{first},0L{points}L{last},0" fill="{style.colour}"'
            f' fill-opacity="{style.area}" stroke="{style.colour}" stroke-width="1.6"'
            ' vector-effect="non-scaling-stroke"/>'
        )
    return "".join(parts)

"""The last minutes of one device, kept as the text of an SVG so that drawing costs next to nothing.

A point's text is made once, in its own units (tenths of a second, MiB); where it stands in the
picture is said by one transform for all of them.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Mapping
from typing import NamedTuple

from labkit.memory.balance import MIB
from labkit.memory.marks import MarkedSpan
from labkit.memory.styles import STYLES
from labkit.units import BINARY_UNITS

WIDTH, HEIGHT = 600, 64
# Without a sample for so long the line is broken.
GAP_SECONDS = 2.5
ROUND = (1, 1.5, 2, 3, 4, 5, 6, 8, 10)


class Dot(NamedTuple):
    """One sample: its time in tenths of a second, bytes (None: not measured), and its text."""

    tenths: int
    held_bytes: int | None
    text: str


class Trace:
    """The samples of one device that are younger than ``window_seconds``, by measure."""

    def __init__(self, window_seconds: float) -> None:
        self._window = window_seconds
        self._dots: dict[str, deque[Dot]] = {}

    def add(self, seconds: float, held_bytes: Mapping[str, int | None]) -> None:
        """Takes in a sample; a measure that it lacks was not measured."""
        tenths = round(seconds * 10)
        for measure in {*self._dots, *held_bytes} & STYLES.keys():
            count = held_bytes.get(measure)
            text = "" if count is None else f"{tenths},{count / MIB:.1f}"
            dots = self._dots.setdefault(measure, deque())
            dots.append(Dot(tenths, count, text))
            while dots[0].tenths < tenths - self._window * 10:
                dots.popleft()

    def find_highest(self) -> int:
        """The most bytes of any measure in these minutes; 0 where none was measured."""
        return max((dot.held_bytes or 0 for dots in self._dots.values() for dot in dots), default=0)

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
        lines = "".join(_draw_measure(measure, self._dots.get(measure, ())) for measure in STYLES)
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


def _draw_measure(measure: str, dots: Iterable[Dot]) -> str:
    style = STYLES[measure]
    parts = []
    for stretch in _split(dots):
        points = " ".join(dot.text for dot in stretch)
        first, last = stretch[0].tenths, stretch[-1].tenths
        parts.append(
            f'<path d="M{first},0L{points}L{last},0Z" fill="{style.colour}"'
            f' fill-opacity="{style.area}"/>'
            f'<path d="M{points}" fill="none" stroke="{style.colour}" stroke-width="1.6"'
            ' stroke-linecap="round" vector-effect="non-scaling-stroke"/>'
        )
    return "".join(parts)


def _split(dots: Iterable[Dot]) -> list[list[Dot]]:
    """The stretches without a gap; those of one sample among them."""
    stretches: list[list[Dot]] = [[]]
    for dot in dots:
        held = stretches[-1]
        if not dot.text:
            stretches.append([])
        elif held and dot.tenths - held[-1].tenths > GAP_SECONDS * 10:
            stretches.append([dot])
        else:
            held.append(dot)
    return [stretch for stretch in stretches if stretch]

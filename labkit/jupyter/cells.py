"""A line under every cell: IPython's events around a cell, and the memory measured between them.

What a cell used, as text and html: a few lines for ``%%memory``, one dim line for the others.
"""

from __future__ import annotations

import os
import sys
import threading
from collections.abc import Callable
from html import escape
from typing import Any

from labkit.memory.balance.model import MIB
from labkit.memory.track.model import BlockSpan, MemoryUse
from labkit.memory.track.tracker import MemoryTracker
from labkit.text import format_bytes, format_seconds

# A process's resident memory moves by less than this when a cell does nothing at all.
PROCESS_NOISE_BYTES = MIB
# JupyterLab's and VS Code's theme say their muted colour; elsewhere half of the text's own.
DIM_STYLE = "font-size:85%;opacity:0.6"


def show(text: str, html: str) -> None:
    """Displays the text in a terminal and the html in a notebook."""
    from IPython.display import display

    display({"text/plain": text, "text/html": html}, raw=True)


def show_hint(hint: str) -> None:
    """Displays the cause of an error and what to try, below its traceback."""
    show(hint, f'<pre style="white-space:pre-wrap">{escape(hint)}</pre>')


def show_use(use: MemoryUse) -> None:
    """Displays everything that was measured of a cell."""
    rows = [
        f"<tr>{_draw_cell(span.where, 'left')}{_draw_cell(_format_peak(span), 'left')}"
        f"{_draw_cell(_format_change(span.change_bytes), 'right')}</tr>"
        for span in use.spans
    ] or [f"<tr>{_draw_cell('memory', 'left')}{_draw_cell('not measured', 'left')}</tr>"]
    seconds = f"<tr>{_draw_cell('seconds', 'left')}"
    seconds += f"{_draw_cell(format_seconds(use.seconds), 'left')}</tr>"
    table = f'<table style="border-collapse:collapse">{"".join(rows)}{seconds}</table>'
    show(repr(use), table)


def show_line(use: MemoryUse) -> None:
    """Displays one dim line for a cell; nothing where it left the memory as it was."""
    line = format_line(use)
    if line is not None:
        dim = _is_terminal()
        show(
            f"\x1b[2m{line}\x1b[0m" if dim else line,
            f'<div style="{DIM_STYLE}">{escape(line)}</div>',
        )


def format_line(use: MemoryUse) -> str | None:
    """The cell's seconds, peak and change in one line; None for a cell that touched nothing."""
    touched = [span for span in use.spans if _has_moved(span)]
    if not touched:
        return None
    spans = (
        f"{span.where} {_format_peak(span)}, {_format_change(span.change_bytes)}"
        for span in touched
    )
    return " · ".join([format_seconds(use.seconds), *spans])


def _has_moved(span: BlockSpan) -> bool:
    noise = PROCESS_NOISE_BYTES if span.where == "process" else 0
    return (span.added_bytes or 0) > noise or abs(span.change_bytes or 0) > noise


def _format_peak(span: BlockSpan) -> str:
    if span.peak_bytes is None:
        return "peak not measured"
    return f"peak {format_bytes(span.peak_bytes)} (+{format_bytes(span.added_bytes)})"


def _format_change(count: int | None) -> str:
    if count is None:
        return "change not measured"
    return f"change {'+' if count >= 0 else ''}{format_bytes(count)}"


def _draw_cell(text: str, side: str) -> str:
    return f'<td style="text-align:{side};padding:1px 16px 1px 0">{escape(text)}</td>'


def _is_terminal() -> bool:
    refused = os.environ.get("NO_COLOR") or os.environ.get("TERM") == "dumb"
    return sys.stdout.isatty() and not refused


def track_cell() -> MemoryTracker:
    """The tracker of a cell; a sampler's time has the cell on it already, by its number."""
    return MemoryTracker(annotated=False)


class OpenCell:
    """A cell that runs now: what IPython knows of it, and its tracker."""

    def __init__(self, info: Any, tracker: MemoryTracker) -> None:
        self.info = info
        self.tracker = tracker
        self.thread = threading.get_ident()
        self.shown = False

    def is_of(self, info: Any) -> bool:
        """True where this information is about the same cell; IPython can make it anew."""
        return self.info is info or self.info.raw_cell == getattr(info, "raw_cell", None)


class CellLines:
    """Measures every cell of a shell while it is on, and shows a line under it.

    Cells that run within a cell (``%run``, ``run_cell``) are part of it and get no line.
    """

    def __init__(
        self,
        events: Any,
        track: Callable[[], MemoryTracker] = track_cell,
        show: Callable[[MemoryUse], None] = show_line,
    ) -> None:
        self._events = events
        self._track = track
        self._show = show
        self._open: list[OpenCell] = []
        self._on = False

    def turn_on(self) -> None:
        """A line under every cell from the next one on."""
        if not self._on:
            self._events.register("pre_run_cell", self._begin)
            self._events.register("post_run_cell", self._end)
            self._on = True

    def turn_off(self) -> None:
        """No more lines, from the running cell on."""
        if self._on:
            self._events.unregister("pre_run_cell", self._begin)
            self._events.unregister("post_run_cell", self._end)
            self._on = False
        while self._open:
            self._open.pop().tracker.__exit__(None, None, None)

    def mark_shown(self) -> None:
        """The running cell shows its memory itself: no line under it."""
        for cell in self._list_own():
            cell.shown = True

    def _begin(self, info: Any) -> None:
        tracker = self._track()
        cell = OpenCell(info, tracker)
        tracker.__enter__()
        self._open.append(cell)

    def _end(self, result: Any) -> None:
        own = self._list_own()
        cell = next((one for one in reversed(own) if one.is_of(result.info)), None)
        if cell is None:
            return  # it began before the lines were turned on, or it is empty
        # Those within it that IPython never ended, such as one whose syntax was wrong.
        for ended in own[own.index(cell) :]:
            ended.tracker.__exit__(None, None, None)
            self._open.remove(ended)
        if cell is own[0] and not cell.shown and cell.tracker.use is not None:
            self._show(cell.tracker.use)

    def _list_own(self) -> list[OpenCell]:
        """The open cells of this thread, the outermost first; other threads are subshells."""
        return [cell for cell in self._open if cell.thread == threading.get_ident()]

"""A line under every cell: IPython's events around a cell, and the memory measured between them."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Any

from labkit.jupyter.show import show_line
from labkit.memory.track import MemoryTracker, MemoryUse


def track_cell() -> MemoryTracker:
    """The tracker of a cell; a sampler's time has the cell on it already, by its number."""
    return MemoryTracker(marked=False)


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

"""Each executed cell marked with its number on the time of every sampler that runs."""

from __future__ import annotations

from typing import Any

from labkit.memory.marks import Opened, begin_spans, end_spans

_FOLLOWED: list[CellSpans] = []


class CellSpans:
    """The cells of one shell that run now, and what was opened for each."""

    def __init__(self, shell: Any) -> None:
        self.shell = shell
        self._open: list[tuple[Any, int, Opened]] = []
        # How far IPython has counted on when a cell begins: newer ones by one, older not yet.
        self._ahead = 1

    def begin(self, info: Any) -> None:
        """A cell begins; one within it (``%run``) has its number, and is part of it."""
        count = self.shell.execution_count
        # One that IPython never ended, such as one whose syntax was wrong.
        while self._open and self._open[-1][1] != count:
            end_spans(self._open.pop()[2])
        name = f"[{count - self._ahead}]" if info.store_history else None
        opened = [] if self._open else begin_spans("cell", name)
        self._open.append((info, count, opened))

    def end(self, result: Any) -> None:
        """A cell has ended, and with it those within it that were never ended."""
        info = result.info
        if not any(_is_same(one, info) for one, _, _ in self._open):
            return
        while self._open:
            one, count, opened = self._open.pop()
            end_spans(opened)
            if _is_same(one, info):
                if info.store_history and result.execution_count is not None:
                    self._ahead = count - result.execution_count
                return


def follow_cells(shell: Any) -> None:
    """Marks the cells of this shell from the next one on; calling it again changes nothing."""
    if not any(spans.shell is shell for spans in _FOLLOWED):
        spans = CellSpans(shell)
        shell.events.register("pre_run_cell", spans.begin)
        shell.events.register("post_run_cell", spans.end)
        _FOLLOWED.append(spans)


def leave_cells(shell: Any) -> None:
    """No more marks of this shell's cells."""
    for spans in [one for one in _FOLLOWED if one.shell is shell]:
        shell.events.unregister("pre_run_cell", spans.begin)
        shell.events.unregister("post_run_cell", spans.end)
        _FOLLOWED.remove(spans)


def _is_same(one: Any, other: Any) -> bool:
    """True where both are about the same cell; IPython can make the information anew."""
    return one is other or one.raw_cell == getattr(other, "raw_cell", None)

"""Follows a notebook cell by cell as it runs: status, seconds, and where it is."""

from __future__ import annotations

import dataclasses
import re
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from labkit.runner.result import CellResult, RunFailure

SKIP_TAG = "skip-execution"  # nbclient's
ANSI = re.compile(r"\x1b\[[0-9;]*[A-Za-z]")


@dataclass(frozen=True)
class CellEvent:
    """A cell that starts (status "running", seconds None) or has ended."""

    notebook: str
    number: int
    total: int
    first_line: str
    status: str
    seconds: float | None


class Recorder:
    """The cells of one notebook and what has become of each so far."""

    def __init__(self, name: str, notebook: Any, watch: Callable[[CellEvent], None]) -> None:
        self._name = name
        self._notebook = notebook
        self._watch = watch
        self._cells = {
            index: _start_result(index, cell)
            for index, cell in enumerate(notebook.cells)
            if cell.cell_type == "code" and cell.source.strip()
        }
        self._order = [index for index, cell in self._cells.items() if cell.status != "skipped"]
        self._open: int | None = None
        self._started = 0.0

    @property
    def cells(self) -> tuple[CellResult, ...]:
        """Every code cell that has a source, in order."""
        return tuple(self._cells.values())

    @property
    def place(self) -> str | None:
        """The cell that is running, as people count: "cell 3 of 41"; None before the first."""
        if self._open is None:
            return None
        return f"cell {self._order.index(self._open) + 1} of {len(self._order)}"

    def start_cell(self, cell: Any, cell_index: int) -> None:
        """A cell is about to run (nbclient's ``on_cell_execute``)."""
        self._open = cell_index
        self._tell("running", None)
        self._started = time.monotonic()

    def end_cell(self, cell: Any, cell_index: int, execute_reply: Any) -> None:
        """A cell has run (nbclient's ``on_cell_executed``); one that may fail has passed too."""
        seconds = time.monotonic() - self._started
        failed = execute_reply["content"]["status"] == "error"
        allowed = "raises-exception" in cell.metadata.get("tags", [])
        self._settle("failed" if failed and not allowed else "passed", seconds)
        if not failed or allowed:
            self._open = None

    def end_open_cell(self, status: str) -> None:
        """The run ended; the cell it ended in, if it has no status of its own yet, gets this."""
        if self._open is not None and self._cells[self._open].status == "not_run":
            self._settle(status, time.monotonic() - self._started)

    def describe_open_cell(self, what: str) -> RunFailure:
        """The failure ``what`` with the running cell's place and source."""
        if self._open is None:
            return RunFailure(what)
        return RunFailure(what, self._open, source=self._notebook.cells[self._open].source)

    def describe_error(self, name: str, value: str) -> RunFailure:
        """The failure of the running cell, which raised: its source and its plain traceback."""
        message = ANSI.sub("", f"{name}: {value}" if value else name)
        failure = self.describe_open_cell(f"{self.place} raised {message}")
        traceback = _find_traceback(self._notebook.cells[failure.cell_index])
        return dataclasses.replace(failure, name=name, traceback=traceback)

    def _settle(self, status: str, seconds: float) -> None:
        assert self._open is not None
        self._cells[self._open] = dataclasses.replace(
            self._cells[self._open], status=status, seconds=seconds
        )
        self._tell(status, seconds)

    def _tell(self, status: str, seconds: float | None) -> None:
        assert self._open is not None
        number, total = self._order.index(self._open) + 1, len(self._order)
        first_line = self._cells[self._open].first_line
        self._watch(CellEvent(self._name, number, total, first_line, status, seconds))


def _find_traceback(cell: Any) -> str | None:
    for output in reversed(cell.outputs):
        if output.output_type == "error":
            return ANSI.sub("", "\n".join(output.traceback))
    return None


def _start_result(index: int, cell: Any) -> CellResult:
    lines = (line.strip() for line in cell.source.splitlines())
    first_line = next(line for line in lines if line)
    skipped = SKIP_TAG in cell.metadata.get("tags", [])
    return CellResult(index, "skipped" if skipped else "not_run", None, first_line)

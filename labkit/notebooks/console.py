"""A run as people read it: a line a cell while it goes; at the end, what held."""

from __future__ import annotations

import os
import shutil
import threading
import time
from typing import TextIO

from labkit.notebooks.recorder import CellEvent
from labkit.notebooks.result import NotebookResult, RunFailure
from labkit.text import format_bytes, format_seconds

LINE_COLUMNS = 52
LEAST_COLUMNS = 12
FIGURE_COLUMNS = 21  # the seconds and the memory, with the gaps before them
TRACEBACK_LINES = 40
OVER = "\r\x1b[K"  # back to the line's start, and what stood there wiped
PAUSE_SECONDS = 0.2
# These say all in their message; their traceback is labkit's own code.
SPEAK_FOR_THEMSELVES = ("ClaimFailed", "CheckFailed")


class RunProgress:
    """Writes a line a cell, ``tensors  3/41  a = torch.tensor([1.0])  0.01 s``, to a stream.

    On a terminal the line stands while the cell runs, with the seconds so far and the memory now;
    not so where several notebooks run at once (``jobs``) and would write over each other.
    """

    def __init__(self, stream: TextIO, *, jobs: int = 1, columns: int | None = None) -> None:
        self._stream = stream
        self._live = jobs == 1 and stream.isatty() and os.environ.get("TERM") != "dumb"
        self._columns = columns or shutil.get_terminal_size().columns
        self._lock = threading.Lock()
        self._shown = 0.0

    def show_event(self, event: CellEvent) -> None:
        """Writes the line of a cell that starts, goes on or has ended."""
        with self._lock:
            if event.status != "running":
                live = self._live
                line = format_cell(event, self._columns if live else None)
                self._stream.write(f"{OVER}{line}\n" if live else f"{line}\n")
                self._stream.flush()
            elif self._live and self._is_due(event):
                line = format_cell(event, self._columns)
                self._stream.write(OVER + line[: self._columns - 1])
                self._stream.flush()

    def _is_due(self, event: CellEvent) -> bool:
        now = time.monotonic()
        due = event.seconds is None or now - self._shown >= PAUSE_SECONDS
        self._shown = now if due else self._shown
        return due


def format_cell(event: CellEvent, columns: int | None = None) -> str:
    """One line for a cell: notebook, place, its first line, seconds and memory once known.

    In ``columns`` of a terminal the cell's first line gets what the rest leaves.
    """
    place = f"{event.notebook}  {event.number:>{len(str(event.total))}}/{event.total}  "
    width = LINE_COLUMNS
    if columns is not None:
        width = max(LEAST_COLUMNS, min(width, columns - 1 - len(place) - FIGURE_COLUMNS))
    line = f"{place}{_shorten(event.first_line, width):<{width}}"
    if event.seconds is not None:
        line += f"  {event.seconds:6.2f} s"
    if event.resident_bytes is not None:
        line += f"  {format_bytes(event.resident_bytes):>9}"
    return line if event.status in ("running", "passed") else f"{line}  {_say(event.status)}"


def format_summary(notebooks: tuple[NotebookResult, ...]) -> str:
    """What each notebook came to, a line each, with the reason below one that did not pass."""
    return "\n".join(_format_notebook(notebook) for notebook in notebooks)


def _format_notebook(notebook: NotebookResult) -> str:
    words = [f"{notebook.name}: {_say(notebook.status)}", *_count_outcomes(notebook)]
    line = ", ".join(words)
    if notebook.seconds is not None:
        line += f" ({format_seconds(notebook.seconds)})"
    broken = [
        f"claim does not hold: {claim.statement}"
        for claim in notebook.claims
        if claim.held is False
    ]
    broken += [
        f"check did not pass: {check.name} ({check.status})"
        for check in notebook.checks
        if check.status != "passed"
    ]
    broken += _list_truncated(notebook)
    details = [f"  {text}" for text in broken]
    if notebook.error:
        details.append(_indent(_format_failure(notebook.error)))
    return "\n".join([line, *details])


def _list_truncated(notebook: NotebookResult) -> list[str]:
    return [
        f"not all output was kept: {format_bytes(cell.output_bytes)} came from"
        f" {_shorten(cell.first_line)!r}"
        for cell in notebook.cells
        if cell.truncated
    ]


def _count_outcomes(notebook: NotebookResult) -> list[str]:
    """The counts worth saying: cells run, claims held and skipped, checks passed."""
    ran = sum(cell.status not in ("skipped", "not_run") for cell in notebook.cells)
    held = sum(claim.held is True for claim in notebook.claims)
    skipped = sum(claim.skipped is not None for claim in notebook.claims)
    passed = sum(check.status == "passed" for check in notebook.checks)
    words = [f"{ran} of {len(notebook.cells)} cells run"] if notebook.cells else []
    if notebook.claims:
        words.append(f"{held} of {len(notebook.claims)} claims held")
    if skipped:
        words.append(f"{skipped} skipped")
    if notebook.checks:
        words.append(f"{passed} of {len(notebook.checks)} checks passed")
    return words


def _format_failure(failure: RunFailure) -> str:
    blocks = [failure.what]
    if failure.source:
        blocks.append(_indent(failure.source))
    if failure.traceback and failure.name not in SPEAK_FOR_THEMSELVES:
        lines = failure.traceback.splitlines()
        if len(lines) > TRACEBACK_LINES:
            lines = ["...", *lines[-TRACEBACK_LINES:]]
        blocks.append("\n".join(lines))
    if failure.hint:
        blocks.append(failure.hint)
    return "\n\n".join(blocks)


def _indent(text: str) -> str:
    return "\n".join(f"  {line}".rstrip() for line in text.splitlines())


def _shorten(text: str, width: int = LINE_COLUMNS) -> str:
    return text if len(text) <= width else text[: width - 3] + "..."


def _say(status: str) -> str:
    return status.replace("_", " ")

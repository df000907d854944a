"""Output of a run for people: one line per cell while it runs, and a summary at the end.

Control characters in names, code and outputs are escaped.
"""

from __future__ import annotations

import os
import shutil
import threading
import time
from collections.abc import Iterable
from typing import TYPE_CHECKING, TextIO

from labkit.notebooks.result import (
    CellResult,
    NotebookResult,
    RunFailure,
    group_ranks,
    list_rank_rows,
)
from labkit.process import name_command
from labkit.text import escape_controls, format_bytes, format_seconds

if TYPE_CHECKING:
    from labkit.notebooks.execute import CellEvent

LINE_COLUMNS = 52
LEAST_COLUMNS = 12
FIGURE_COLUMNS = 21  # the seconds and the memory, with the gaps before them
TRACEBACK_LINES = 40
RANK_COLUMNS, MOST_RANKS = 36, 8
CLEAR_LINE = "\r\x1b[K"
UPDATE_SECONDS = 0.2
# The message is sufficient; the traceback would show labkit's own code.
WITHOUT_TRACEBACK = ("ClaimFailed", "CheckFailed")


class RunProgress:
    """Writes one line per cell, ``tensors  3/41  a = torch.tensor([1.0])  0.01 s``, to a stream.

    On a terminal the line is updated while the cell runs, with the elapsed seconds and the current
    memory, unless several notebooks run at once (``jobs``) and would overwrite each other.
    """

    def __init__(self, stream: TextIO, *, jobs: int = 1, columns: int | None = None) -> None:
        self._stream = stream
        self._live = jobs == 1 and stream.isatty() and os.environ.get("TERM") != "dumb"
        self._columns = columns or shutil.get_terminal_size().columns
        self._lock = threading.Lock()
        self._shown = 0.0

    def show_event(self, event: CellEvent) -> None:
        """Writes the line of a cell that starts, is running or has ended."""
        with self._lock:
            if event.status != "running":
                live = self._live
                line = format_cell(event, self._columns if live else None)
                self._stream.write(f"{CLEAR_LINE}{line}\n" if live else f"{line}\n")
                self._stream.flush()
            elif self._live and self._is_due(event):
                line = format_cell(event, self._columns)
                self._stream.write(CLEAR_LINE + line[: self._columns - 1])
                self._stream.flush()

    def _is_due(self, event: CellEvent) -> bool:
        now = time.monotonic()
        due = event.seconds is None or now - self._shown >= UPDATE_SECONDS
        self._shown = now if due else self._shown
        return due


def format_cell(event: CellEvent, columns: int | None = None) -> str:
    """One line for a cell: notebook, number, first source line, and seconds and memory if known.

    With ``columns``, the first source line is cut to fit the terminal.
    """
    place = f"{event.number:>{len(str(event.total))}}/{event.total}"
    start = f"{escape_controls(event.notebook)}  {place}  "
    width = LINE_COLUMNS
    if columns is not None:
        width = max(LEAST_COLUMNS, min(width, columns - 1 - len(start) - FIGURE_COLUMNS))
    line = f"{start}{_cut(event.first_line, width):<{width}}"
    if event.seconds is not None:
        line += f"  {event.seconds:6.2f} s"
    if event.resident_bytes is not None:
        line += f"  {format_bytes(event.resident_bytes):>9}"
    return line if event.status in ("running", "passed") else f"{line}  {_say(event.status)}"


def format_summary(notebooks: Iterable[NotebookResult]) -> str:
    """Each notebook's status, one line each, with the reason below a failed one.

    The rank that failed first comes first, and a table has a column for each rank.
    """
    notebooks = sorted(notebooks, key=lambda one: not (one.rank and one.rank.failed_first))
    parts = [_format_notebook(notebook) for notebook in notebooks]
    parts += [f"\n{format_ranks(group)}" for group in group_ranks(notebooks)]
    return escape_controls("\n".join(parts))


def format_ranks(group: list[NotebookResult]) -> str:
    """A line for each cell, with its seconds and its memory's peak in every rank."""
    shown = group[:MOST_RANKS]
    rows = [("cell", [f"rank {one.rank.rank}" for one in shown if one.rank])]
    for number, (first, cells) in enumerate(list_rank_rows(shown), start=1):
        name = f"{number}  {_cut(first, RANK_COLUMNS - 4)}"
        rows.append((name, [_format_figures(cell) for cell in cells]))
    rows.append(("peak", [format_bytes(one.peak_bytes) for one in shown]))
    width = max(len(figure) for _, figures in rows for figure in figures)
    lines = [
        f"{name:<{RANK_COLUMNS}}" + "".join(f"  {figure:>{width}}" for figure in figures)
        for name, figures in rows
    ]
    if len(group) > len(shown):
        lines.append(f"{len(group) - len(shown)} more ranks are in the report")
    return "\n".join(lines)


def _format_figures(cell: CellResult | None) -> str:
    if cell is None or not cell.has_run:
        return "not run"
    seconds = "" if cell.seconds is None else f"{cell.seconds:.2f} s"
    peak = cell.cuda_peak_bytes or (cell.memory.peak_bytes if cell.memory else None)
    figures = f"{seconds}{format_bytes(peak) if peak is not None else '':>11}".strip()
    return figures if cell.status == "passed" else f"{_say(cell.status)} {figures}"


def _format_notebook(notebook: NotebookResult) -> str:
    first = " first" if notebook.rank and notebook.rank.failed_first else ""
    words = [f"{notebook.name}: {_say(notebook.status)}{first}", *_count_outcomes(notebook)]
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
    broken += [_describe_cut(cell) for cell in notebook.cells if cell.truncated]
    numbers = notebook.cell_numbers
    broken += [
        f"output changed in cell {numbers.get(change.cell_index, '?')}:"
        f" saved {_cut(change.saved or 'nothing')!r}, seen {_cut(change.seen or 'nothing')!r}"
        for change in notebook.output_changes or ()
    ]
    details = [f"  {text}" for text in broken]
    details += [f"  note: {note}" for note in notebook.notes]
    if notebook.error:
        details.append(_indent(_format_failure(notebook.error)))
    return "\n".join([line, *details])


def _count_outcomes(notebook: NotebookResult) -> list[str]:
    """The counts above 0: cells run, claims held and skipped, checks passed."""
    held = sum(claim.held is True for claim in notebook.claims)
    skipped = sum(claim.skipped is not None for claim in notebook.claims)
    passed = sum(check.status == "passed" for check in notebook.checks)
    ran = sum(cell.has_run for cell in notebook.cells)
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
    if failure.traceback and failure.name not in WITHOUT_TRACEBACK:
        lines = failure.traceback.splitlines()
        if len(lines) > TRACEBACK_LINES:
            lines = ["...", *lines[-TRACEBACK_LINES:]]
        blocks.append("\n".join(lines))
    if failure.hint:
        blocks.append(name_command(failure.hint))
    return "\n\n".join(blocks)


def _indent(text: str) -> str:
    return "\n".join(f"  {line}".rstrip() for line in text.splitlines())


def _cut(text: str, width: int = LINE_COLUMNS) -> str:
    text = escape_controls(text)
    return text if len(text) <= width else text[: width - 3] + "..."


def _say(status: str) -> str:
    return status.replace("_", " ")


def _describe_cut(cell: CellResult) -> str:
    line = _cut(cell.first_line)
    if not cell.output_bytes:  # nothing of it can be stored
        return f"an output was left out, nested too deep: of '{line}'"
    return f"output was cut: {format_bytes(cell.output_bytes)} came from '{line}'"

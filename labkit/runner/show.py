"""A run as people read it: a line a cell while it goes; at the end, what held."""

from __future__ import annotations

from typing import TextIO

from labkit.runner.recorder import CellEvent
from labkit.runner.result import NotebookResult, RunFailure
from labkit.units import format_seconds

LINE_COLUMNS = 52
TRACEBACK_LINES = 40
# These say all in their message; their traceback is labkit's own code.
SPEAK_FOR_THEMSELVES = ("ClaimFailed", "CheckFailed")


class Progress:
    """Writes a line a cell, ``tensors  3/41  a = torch.tensor([1.0])  0.01 s``, to a stream.

    On a terminal the line stands while the cell runs, and gets its seconds when it ends.
    """

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream
        self._live = stream.isatty()

    def show_event(self, event: CellEvent) -> None:
        """Writes the line of a cell that starts or has ended."""
        line = format_cell(event)
        if event.status != "running":
            self._stream.write(f"\r{line}\n" if self._live else f"{line}\n")
        elif self._live:
            self._stream.write(line)
        self._stream.flush()


def format_cell(event: CellEvent) -> str:
    """One line for a cell: notebook, place, its first line, seconds once known, any bad end."""
    place = f"{event.number:>{len(str(event.total))}}/{event.total}"
    line = f"{event.notebook}  {place}  {_shorten(event.first_line):<{LINE_COLUMNS}}"
    if event.seconds is not None:
        line += f"  {event.seconds:6.2f} s"
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
    details = [f"  {text}" for text in broken]
    if notebook.error:
        details.append(_indent(_format_failure(notebook.error)))
    return "\n".join([line, *details])


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
    return "\n\n".join(blocks)


def _indent(text: str) -> str:
    return "\n".join(f"  {line}".rstrip() for line in text.splitlines())


def _shorten(text: str) -> str:
    return text if len(text) <= LINE_COLUMNS else text[: LINE_COLUMNS - 3] + "..."


def _say(status: str) -> str:
    return status.replace("_", " ")

"""What a cell used, as text and html: a few lines for ``%%memory``, one dim line for the others."""

from __future__ import annotations

import os
import sys
from html import escape

from labkit.memory.balance import MIB
from labkit.memory.blocks import Span
from labkit.memory.track import MemoryUse
from labkit.units import format_bytes, format_seconds

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


def _has_moved(span: Span) -> bool:
    noise = PROCESS_NOISE_BYTES if span.where == "process" else 0
    return (span.added_bytes or 0) > noise or abs(span.change_bytes) > noise


def _format_peak(span: Span) -> str:
    if span.peak_bytes is None:
        return "peak not measured"
    return f"peak {format_bytes(span.peak_bytes)} (+{format_bytes(span.added_bytes)})"


def _format_change(count: int) -> str:
    return f"change {'+' if count >= 0 else ''}{format_bytes(count)}"


def _draw_cell(text: str, side: str) -> str:
    return f'<td style="text-align:{side};padding:1px 16px 1px 0">{escape(text)}</td>'


def _is_terminal() -> bool:
    refused = os.environ.get("NO_COLOR") or os.environ.get("TERM") == "dumb"
    return sys.stdout.isatty() and not refused

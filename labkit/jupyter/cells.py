"""Measures the memory of a cell, and explains its error, below the cell.

``%%memory`` shows a few lines; ``%memory on`` shows one dim line under every cell. Memory is
measured between IPython's events. An out-of-memory error gets a full explanation, other known
errors their cause and fix.
"""

from __future__ import annotations

import os
import re
import symtable
import sys
import threading
from collections.abc import Callable, Collection, Mapping
from pathlib import Path
from typing import Any

from labkit.host.distribution import read_distribution
from labkit.host.gpu import has_gpu
from labkit.jupyter.panel import is_same_cell
from labkit.known_errors.match import hint_at
from labkit.memory.balance.model import MIB, Balance, Snapshot
from labkit.memory.balance.read import find_started_torch, take_snapshot
from labkit.memory.oom.live import Budget, find_live_tensors, list_roots
from labkit.memory.oom.model import (
    OutOfMemoryPage,
    find_out_of_memory,
    read_cache,
    read_failure,
    walk_chain,
)
from labkit.memory.track.frames import find_shell
from labkit.memory.track.model import BlockSpan, MemoryUse
from labkit.memory.track.tracker import MemoryTracker
from labkit.memory.track.view import format_net_change, format_peak
from labkit.render import escape
from labkit.text import format_seconds


def explain_out_of_memory(
    error: BaseException,
    namespace: Mapping[str, object],
    *,
    torch: Any = None,
    take: Callable[[], Snapshot] = take_snapshot,
    budget: Budget | None = None,
) -> OutOfMemoryPage:
    """Explains this out-of-memory error from its text, the allocator and the live tensors.

    The result holds no reference to a tensor or the error. ``torch`` must have started CUDA;
    without it, the allocator's figures are left out.
    """
    torch = torch or find_started_torch()
    failure = read_failure(str(error))
    device = failure.device or (_name_current(torch) if torch else None)
    if device is None:
        return OutOfMemoryPage(failure)
    return OutOfMemoryPage(
        failure._replace(device=device),
        balance=_find_balance(device, take),
        cache=read_cache(torch.cuda, device) if torch else None,
        live=find_live_tensors(device, list_roots(namespace, error), budget),
    )


def explain_last_error() -> str | None:
    """The explanation of the last cell's error as text; None unless it was an out-of-memory error.

    ``labkit run`` calls it in a notebook's kernel; the extension need not be loaded.
    """
    error = find_out_of_memory(getattr(sys, "last_exc", None) or getattr(sys, "last_value", None))
    if error is None:
        return None
    shell = find_shell()
    return repr(explain_out_of_memory(error, shell.user_ns if shell is not None else {}))


def explain_known_error(error: BaseException | None) -> str | None:
    """The cause and the fix of a known error, one line each; None for an unknown one."""
    texts = [f"{type(one).__name__}: {one}" for one in walk_chain(error)]
    if not texts:
        return None
    return hint_at("\n".join(texts), read_distribution(), has_gpu=has_gpu())


def explain_missing_name(
    name: str, notebook: Path | None, ran: Collection[str]
) -> tuple[str, str] | None:
    """Which cell of the notebook defines ``name``: a sentence, as text and as html with a link.

    ``ran`` are the sources of the cells that this kernel has run. None if the notebook does not
    define the name, or cannot be read.
    """
    from labkit.errors import LabkitError
    from labkit.lessons.notebooks import cell_source, read_notebook

    try:
        cells = read_notebook(notebook)["cells"] if notebook else []
    except LabkitError:
        return None
    heading, first = "", True
    for cell in cells:
        source = cell_source(cell)
        if cell["cell_type"] != "code":
            titles = re.findall(r"^#{1,6} +(.+?)\s*$", source, re.MULTILINE)
            heading = titles[-1] if titles else heading
            continue
        if _binds(source, name):
            state = "failed in" if source in ran else "has not run in"
            place = "the first code cell" if first else "a cell"
            text = f"{name} comes from {place} under {{}}, which {state} this kernel: run it first"
            text += " (or Run > Run All Above Selected Cell)"
            link = f'<a href="#{escape(heading.replace(" ", "-"))}">{escape(heading)}</a>'
            return text.format(f'"{heading}"'), escape(text).format(link)
        first = False
    return None


def _binds(source: str, name: str) -> bool:
    """True if the cell assigns, defines or imports the name; False if it is not plain Python."""
    try:
        table = symtable.symtable(source, "<cell>", "exec")
    except (SyntaxError, ValueError):
        return re.search(rf"^(def|class)\s+{re.escape(name)}\b", source, re.MULTILINE) is not None
    found = (one for one in table.get_symbols() if one.get_name() == name)
    return any(one.is_assigned() or one.is_imported() for one in found)


def _name_current(torch: Any) -> str | None:
    try:
        return f"cuda:{torch.cuda.current_device()}"
    except RuntimeError:
        return None  # after an error of CUDA that lasts every call fails


def _find_balance(device: str, take: Callable[[], Snapshot]) -> Balance | None:
    return next((one for one in take().balances if one.torch_name == device), None)


# The resident memory of a process changes by up to this in a cell that does nothing.
PROCESS_NOISE_BYTES = MIB
DIM_STYLE = "font-size:85%;opacity:0.75"


def show(text: str, html: str) -> None:
    """Displays the text in a terminal and the HTML in a notebook."""
    from IPython.display import display

    display({"text/plain": text, "text/html": html}, raw=True)


def show_hint(hint: str) -> None:
    """Displays the cause and the fix of an error, below its traceback."""
    show(hint, f'<pre style="white-space:pre-wrap">{escape(hint)}</pre>')


def show_use(use: MemoryUse) -> None:
    """Displays all measurements of a cell."""
    rows = [(span.where, format_peak(span), format_net_change(span)) for span in use.spans] or [
        ("memory", "not measured", "")
    ]
    rows.append(("seconds", format_seconds(use.seconds), ""))
    cells = "".join(
        f"<tr>{_render_cell(row[0], 'th')}{''.join(map(_render_cell, filter(None, row[1:])))}</tr>"
        for row in rows
    )
    table = f'<table style="border-collapse:collapse">{cells}</table>'
    show(repr(use), table)


def show_line(use: MemoryUse) -> None:
    """Displays one dim line for a cell; nothing if its memory did not change."""
    line = format_line(use)
    if line is not None:
        dim = _is_terminal()
        show(
            f"\x1b[2m{line}\x1b[0m" if dim else line,
            f'<div style="{DIM_STYLE}">{escape(line)}</div>',
        )


def format_line(use: MemoryUse) -> str | None:
    """The cell's seconds, peak and change in one line; None if its memory did not change."""
    changed = [span for span in use.spans if _has_changed(span)]
    if not changed:
        return None
    spans = (f"{span.where} {format_peak(span)}, {format_net_change(span)}" for span in changed)
    return " · ".join([format_seconds(use.seconds), *spans])


def _has_changed(span: BlockSpan) -> bool:
    noise = PROCESS_NOISE_BYTES if span.where == "process" else 0
    return (span.added_bytes or 0) > noise or abs(span.change_bytes or 0) > noise


def _render_cell(text: str, tag: str = "td") -> str:
    scope = ' scope="row"' if tag == "th" else ""
    style = "text-align:left;padding:1px 16px 1px 0;font-weight:normal"
    return f'<{tag}{scope} style="{style}">{escape(text)}</{tag}>'


def _is_terminal() -> bool:
    refused = os.environ.get("NO_COLOR") or os.environ.get("TERM") == "dumb"
    return sys.stdout.isatty() and not refused


def track_cell() -> MemoryTracker:
    """The tracker of a cell; it adds no span, as samplers already have one for the cell."""
    return MemoryTracker(annotated=False)


class OpenCell:
    """A running cell: IPython's information about it, and its tracker."""

    def __init__(self, info: Any, tracker: MemoryTracker) -> None:
        self.info = info
        self.tracker = tracker
        self.thread = threading.get_ident()
        self.shown = False


class CellLines:
    """Measures every cell of a shell while it is on, and shows a line under it.

    Nested cells (``%run``, ``run_cell``) are part of the outer one and get no line.
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
        """Shows a line under every cell from the next one on."""
        if not self._on:
            self._events.register("pre_run_cell", self._begin)
            self._events.register("post_run_cell", self._end)
            self._on = True

    def turn_off(self) -> None:
        """Shows no more lines, from the running cell on."""
        if self._on:
            self._events.unregister("pre_run_cell", self._begin)
            self._events.unregister("post_run_cell", self._end)
            self._on = False
        while self._open:
            self._open.pop().tracker.__exit__(None, None, None)

    def skip_running_cell(self) -> None:
        """Shows no line under the running cell, which shows its memory itself."""
        for cell in self._list_own():
            cell.shown = True

    def _begin(self, info: Any) -> None:
        tracker = self._track()
        cell = OpenCell(info, tracker)
        tracker.__enter__()
        self._open.append(cell)

    def _end(self, result: Any) -> None:
        own = self._list_own()
        cell = next((one for one in reversed(own) if is_same_cell(one.info, result.info)), None)
        if cell is None:
            return  # it began before the lines were turned on, or it is empty
        # IPython does not report the end of every nested cell, such as one with a syntax error.
        for ended in own[own.index(cell) :]:
            ended.tracker.__exit__(None, None, None)
            self._open.remove(ended)
        if cell is own[0] and not cell.shown and cell.tracker.use is not None:
            self._show(cell.tracker.use)

    def _list_own(self) -> list[OpenCell]:
        """The open cells of this thread, the outermost first; other threads run subshells."""
        return [cell for cell in self._open if cell.thread == threading.get_ident()]

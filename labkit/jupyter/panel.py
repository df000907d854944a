"""``watch_memory()``: a live panel in the notebook, made of display updates.

A widget needs an extension, disappears after a kernel restart, and is not saved in the notebook.
An HTML output that is replaced twice a second works in every front end and is saved. The kernel
gets no message when the output is cleared, so ``SavedOutput`` reads this from the saved notebook.
``CellSpans`` annotates each cell on the timelines of the running samplers.
"""

from __future__ import annotations

import os
import secrets
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Protocol

from labkit.errors import UsageError
from labkit.files import read_regular
from labkit.jupyter.panel_view import PanelView, SeriesTrace, render_panel
from labkit.memory.balance.model import Snapshot
from labkit.memory.sample.levels import LevelReader, read_levels
from labkit.memory.sample.model import MemorySamples, Opened, begin_spans, end_spans
from labkit.memory.sample.sampler import MemorySampler, Reader
from labkit.memory.track.frames import find_shell

# A larger file is not read after each save: that would be too slow.
LARGEST_BYTES = 64 * 2**20


class SavedOutput:
    """One output in the file of a notebook, found by a word that occurs nowhere else."""

    def __init__(self, notebook: Path | None, word: str) -> None:
        self._notebook = notebook
        self._word = word.encode()
        self._seen_at: int | None = None
        self._was_there = False

    def was_cleared(self) -> bool:
        """True if the saved notebook lacks the output and an earlier save had it."""
        if self._notebook is None:
            return False
        try:
            status = self._notebook.stat()
            if status.st_mtime_ns == self._seen_at or status.st_size > LARGEST_BYTES:
                return False
            held = read_regular(self._notebook)
        except OSError:
            return False
        self._seen_at = status.st_mtime_ns
        is_there = self._word in held
        # A file that is still being written is incomplete and is ignored.
        gone = self._was_there and not is_there and held.rstrip().endswith(b"}")
        self._was_there = is_there or (self._was_there and not gone)
        return gone


def find_notebook(
    names: Mapping[str, Any], environment: Mapping[str, str] = os.environ
) -> Path | None:
    """The file of this kernel's notebook; None if the front end does not name it."""
    # VS Code sets a name in the notebook's namespace, the Jupyter server a variable.
    said = names.get("__vsc_ipynb_file__") or environment.get("JPY_SESSION_NAME")
    return Path(said) if isinstance(said, str) and said.endswith(".ipynb") else None


def read_cell_number(shell: Any) -> int:
    """The number of the running cell, which execution_count is ahead of since IPython 9.8."""
    import IPython

    ahead = bool(IPython.version_info >= (9, 8))
    return int(shell.execution_count) - ahead


_FOLLOWED: list[CellSpans] = []


class CellSpans:
    """The running cells of one shell, and the spans that are open for each."""

    def __init__(self, shell: Any) -> None:
        self.shell = shell
        self._open: list[tuple[Any, int, Opened]] = []

    def begin(self, info: Any) -> None:
        """A cell begins; a nested one (``%run``) has the same number and is part of it."""
        count = self.shell.execution_count
        # IPython does not report the end of every cell, such as one with a syntax error.
        while self._open and self._open[-1][1] != count:
            end_spans(self._open.pop()[2])
        name = f"[{read_cell_number(self.shell)}]" if info.store_history else None
        opened = [] if self._open else begin_spans("cell", name)
        self._open.append((info, count, opened))

    def end(self, result: Any) -> None:
        """A cell has ended, and with it the open cells that are nested in it."""
        info = result.info
        if not any(is_same_cell(one, info) for one, _, _ in self._open):
            return
        while self._open:
            one, _, opened = self._open.pop()
            end_spans(opened)
            if is_same_cell(one, info):
                return


def follow_cells(shell: Any) -> None:
    """Annotates the cells of this shell from the next one on; a second call has no effect."""
    if not any(spans.shell is shell for spans in _FOLLOWED):
        spans = CellSpans(shell)
        shell.events.register("pre_run_cell", spans.begin)
        shell.events.register("post_run_cell", spans.end)
        _FOLLOWED.append(spans)


def leave_cells(shell: Any) -> None:
    """Stops annotating the cells of this shell."""
    for spans in [one for one in _FOLLOWED if one.shell is shell]:
        shell.events.unregister("pre_run_cell", spans.begin)
        shell.events.unregister("post_run_cell", spans.end)
        _FOLLOWED.remove(spans)


def is_same_cell(one: Any, other: Any) -> bool:
    """True if both are IPython's information about one cell; IPython may create it twice."""
    return one is other or one.raw_cell == getattr(other, "raw_cell", None)


INTERVAL_SECONDS = 0.5
# Without an update for this long, the panel shows "not measured since".
LATE_SECONDS = 3.0
# Jupyter's server stores every message for a closed page, so updates become rare if no cell ran
# for this long.
QUIET_SECONDS, RARE_SECONDS = 15 * 60.0, 5.0
LOOK_SECONDS = 2.0


class Publish(Protocol):
    """Displays a bundle of HTML and text, in a new output or (update) in place of the last."""

    def __call__(self, bundle: dict[str, str], *, update: bool) -> None:
        """Displays the bundle."""
        ...


class Panel:
    """A live panel, updated until ``stop()``, the end of the kernel, or the next panel."""

    def __init__(
        self,
        publish: Publish,
        *,
        minutes: float = 3.0,
        name: str = "labkit-panel",
        reader: Reader | None = None,
        is_cleared: Callable[[], bool] = lambda: False,
        clock: Callable[[], float] = time.monotonic,
        wall_clock: Callable[[], float] = time.time,
        **options: Any,
    ) -> None:
        self.name = name
        self.cell_id: str | None = None
        self._publish, self._is_cleared = publish, is_cleared
        self._window = minutes * 60
        self._wall_clock = wall_clock
        self._traces: dict[str, SeriesTrace] = {}
        self._snapshot = Snapshot(())
        self._measured_at = wall_clock()
        self._published_at = self._looked_at = self._busy_at = self._now = 0.0
        self._shown = self._failed = False
        self._sampler = MemorySampler(
            INTERVAL_SECONDS,
            reader=reader or LevelReader(processes=True),
            clock=clock,
            wall_clock=wall_clock,
            on_sample=self._take_in,
            **options,
        )

    @property
    def running(self) -> bool:
        """True while the panel is updated."""
        return self._sampler.running

    @property
    def samples(self) -> MemorySamples:
        """The samples since the start; ``plot_memory(panel)`` plots them."""
        return self._sampler.samples

    def start(self) -> Panel:
        """Displays the panel here and keeps it up to date; returns itself."""
        self._sampler.start()
        return self

    def show_once(self) -> None:
        """Displays the panel here once."""
        self._sampler.take_sample()

    def stop(self, reason: str = "stopped") -> None:
        """Ends the updates; the panel stays visible and shows when and why it was stopped."""
        if self.running:
            self._sampler.stop()
            self._show(None, f"{reason} at {self._format_time()}")

    def __repr__(self) -> str:
        return f"memory panel, {'live' if self.running else 'stopped'}"

    def _ipython_display_(self) -> None:
        """Displays nothing: the panel is already displayed where it was started."""

    def _format_time(self) -> str:
        return time.strftime("%H:%M:%S", time.localtime(self._wall_clock()))

    def _take_in(self, now: float, snapshot: Snapshot | None) -> None:
        """Adds a sample and updates the output; the sampler's thread calls it."""
        self._now = now
        levels = [read_levels(balance) for balance in snapshot.balances] if snapshot else []
        held = {one.key: one.held_bytes for one in levels}
        for key in {*self._traces, *held}:
            self._traces.setdefault(key, SeriesTrace(self._window)).add(now, held.get(key, {}))
        self._failed = snapshot is None
        if snapshot is not None:
            self._snapshot, self._measured_at = snapshot, self._wall_clock()
        if now - self._looked_at >= LOOK_SECONDS:
            self._looked_at = now
            if self._is_cleared():
                self._sampler.end()
                return
        pause = self._choose_pause(now)
        if snapshot is not None and (not self._shown or now - self._published_at >= pause * 0.9):
            self._show(max(LATE_SECONDS, pause * 3))

    def _choose_pause(self, now: float) -> float:
        spans = self._sampler.spans
        if spans:
            self._busy_at = max(self._busy_at, *(max(one.begin, one.end or 0) for one in spans))
        return INTERVAL_SECONDS if now - self._busy_at < QUIET_SECONDS else RARE_SECONDS

    def _show(self, live_seconds: float | None, ending: str = "") -> None:
        view = PanelView(
            name=self.name,
            snapshot=self._snapshot,
            traces=self._traces,
            spans=self._sampler.spans,
            now=self._now,
            measured_at=self._measured_at,
            window_seconds=self._window,
            live_seconds=live_seconds,
            ending=ending,
            trouble=self._sampler.trouble if self._failed else None,
        )
        self._publish(render_panel(view), update=self._shown)
        self._shown, self._published_at = True, self._now


def watch_memory(minutes: float = 3.0) -> Panel:
    """Displays a live panel of every device's memory in the notebook, updated twice a second.

    For each device it shows the balance as a bar and the last ``minutes`` as a trace, with the
    cells that ran. It is updated while cells run. The updates end with ``stop()``, with another
    ``watch_memory()``, if its cell is run again or deleted, and if its output is cleared and the
    notebook saved. Without a kernel (IPython in a terminal, Python) the balance is printed once.
    """
    if not isinstance(minutes, int | float) or not 0 < minutes <= 60:
        raise UsageError(
            f"invalid minutes={minutes!r}",
            cause="a panel shows at most the last 60 minutes",
            fix="labkit.sample_memory() samples for hours; labkit.plot_memory() plots them",
        )
    shell = _find_kernel_shell()
    if shell is None:
        return _print_once(minutes)
    name = f"labkit-panel-{secrets.token_hex(8)}"
    saved = SavedOutput(find_notebook(shell.user_ns), name)
    panel = Panel(_Output(shell, name), minutes=minutes, name=name, is_cleared=saved.was_cleared)
    follow_cells(shell)
    _find_host(shell).put(panel)
    return panel.start()


class PanelHost:
    """The one live panel of a shell; ends it if its cell is run again or deleted."""

    def __init__(self, shell: Any) -> None:
        self.shell = shell
        self.panel: Panel | None = None
        shell.events.register("pre_run_cell", self._look_at_cell)

    def put(self, panel: Panel) -> None:
        """Replaces the panel."""
        if self.panel is not None:
            self.panel.stop("replaced by another panel")
        panel.cell_id = _read_metadata(self.shell).get("cellId")
        self.panel = panel

    def _look_at_cell(self, info: Any) -> None:
        if self.panel is None or self.panel.cell_id is None:
            return
        deleted = _read_metadata(self.shell).get("deletedCells") or ()
        if self.panel.cell_id in (getattr(info, "cell_id", None), *deleted):
            self.panel.stop()
            self.panel = None


_HOSTS: list[PanelHost] = []


def _find_host(shell: Any) -> PanelHost:
    """This shell's host, created on the first call."""
    found = next((host for host in _HOSTS if host.shell is shell), None)
    if found is None:
        found = PanelHost(shell)
        _HOSTS.append(found)
    return found


class _Output:
    """One output of a notebook: displayed once and then replaced, from any thread."""

    def __init__(self, shell: Any, display_id: str) -> None:
        self._publisher = shell.display_pub
        self._transient = {"display_id": display_id}

    def __call__(self, bundle: dict[str, str], *, update: bool) -> None:
        self._publisher.publish(data=bundle, transient=self._transient, update=update)


def _find_kernel_shell() -> Any:
    """IPython's shell if its front end can replace outputs; None in a terminal."""
    shell = find_shell()
    return shell if getattr(shell, "kernel", None) is not None else None


def _print_once(minutes: float) -> Panel:
    def write(bundle: dict[str, str], *, update: bool) -> None:
        if not update:
            print(bundle["text/plain"])
            print("live in a terminal: labkit memory --watch")

    panel = Panel(write, minutes=minutes)
    panel.show_once()
    return panel


def _read_metadata(shell: Any) -> dict[str, Any]:
    """The front end's metadata of the cell that it runs."""
    parent = shell.get_parent() if hasattr(shell, "get_parent") else {}
    return parent.get("metadata") or {}

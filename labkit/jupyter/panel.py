"""``watch_memory()``: a live panel in the notebook, of plain display updates.

Widgets were weighed and left: a widget's view is gone after a kernel's restart, and a saved
notebook holds none of it. An html output that is replaced twice a second stays in both, is in the
protocol that every front end speaks, and needs nothing installed. What it cannot do is tell the
kernel that it was cleared; ``panel_output`` finds that out from the saved notebook.

Whether a panel's output is still in the notebook, as far as a kernel can know.

No front end tells a kernel that an output was cleared. But the notebook is saved every now and
then, and where an output was in the file and is no longer, it was taken away.

Each executed cell marked with its number on the time of every sampler that runs.
"""

from __future__ import annotations

import os
import secrets
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Protocol

from labkit.errors import UsageError
from labkit.jupyter.panel_view import PanelView, SeriesTrace, draw_panel
from labkit.memory.balance.read import Snapshot
from labkit.memory.sample.levels import LevelReader, read_levels
from labkit.memory.sample.model import Opened, begin_spans, end_spans
from labkit.memory.sample.sampler import MemorySampler, MemorySamples, Reader
from labkit.memory.track.frames import find_shell

# Reading a file of more than that after each save would cost more than it is worth.
LARGEST_BYTES = 64 * 2**20


class SavedOutput:
    """One output in a notebook's file, looked for by a word that stands in nothing else."""

    def __init__(self, notebook: Path | None, word: str) -> None:
        self._notebook = notebook
        self._word = word.encode()
        self._seen_at: int | None = None
        self._was_there = False

    def was_cleared(self) -> bool:
        """True once a saved notebook lacks the output that an earlier save held."""
        if self._notebook is None:
            return False
        try:
            status = self._notebook.stat()
            if status.st_mtime_ns == self._seen_at or status.st_size > LARGEST_BYTES:
                return False
            held = self._notebook.read_bytes()
        except OSError:
            return False
        self._seen_at = status.st_mtime_ns
        is_there = self._word in held
        # A file cut off in the middle of being written proves nothing.
        gone = self._was_there and not is_there and held.rstrip().endswith(b"}")
        self._was_there = is_there or (self._was_there and not gone)
        return gone


def find_notebook(
    names: Mapping[str, Any], environment: Mapping[str, str] = os.environ
) -> Path | None:
    """The file of the notebook that this kernel serves, as its front end names it; else None."""
    # The first is VS Code's, in the notebook's own names, the second the Jupyter server's.
    said = names.get("__vsc_ipynb_file__") or environment.get("JPY_SESSION_NAME")
    return Path(said) if isinstance(said, str) and said.endswith(".ipynb") else None


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


INTERVAL_SECONDS = 0.5
# An update that is so late is not coming: the panel says that nothing is measured any more.
LATE_SECONDS = 3.0
# Nobody may be looking. Jupyter's server keeps every message for a page that was closed, so
# after so long without a new cell the updates become rare.
QUIET_SECONDS, RARE_SECONDS = 15 * 60.0, 5.0
LOOK_SECONDS = 2.0


class Publish(Protocol):
    """Shows a bundle of html and text, in a new output or (update) in place of the last."""

    def __call__(self, bundle: dict[str, str], *, update: bool) -> None:
        """Sends it."""
        ...


class Panel:
    """A live panel: it updates itself until ``stop()``, the end of the kernel, or another one."""

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
        """True while it updates itself."""
        return self._sampler.running

    @property
    def samples(self) -> MemorySamples:
        """What it has seen since it began; ``plot_memory(panel)`` draws it."""
        return self._sampler.samples

    def start(self) -> Panel:
        """Shows the panel here and keeps it up to date; itself."""
        self._sampler.start()
        return self

    def show_once(self) -> None:
        """Shows the panel here as it is now."""
        self._sampler.take_sample()

    def stop(self, reason: str = "stopped") -> None:
        """Ends the updates; the panel stays as it is, and says that it was stopped."""
        if self.running:
            self._sampler.stop()
            self._show(None, f"{reason} at {self._write_time()}")

    def __repr__(self) -> str:
        return f"memory panel, {'live' if self.running else 'stopped'}"

    def _ipython_display_(self) -> None:
        """Nothing: the panel has shown itself where it was started."""

    def _write_time(self) -> str:
        return time.strftime("%H:%M:%S", time.localtime(self._wall_clock()))

    def _take_in(self, now: float, snapshot: Snapshot | None) -> None:
        """What the sampler's thread calls after every sample."""
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
        self._publish(draw_panel(view), update=self._shown)
        self._shown, self._published_at = True, self._now


def watch_memory(minutes: float = 3.0) -> Panel:
    """Shows a panel in the notebook that follows every device's memory, twice a second.

    Each device has its balance as a bar and its last ``minutes`` as a moving picture, with the
    cells that ran. It goes on while a cell runs, and ends with its ``stop()``, with another
    ``watch_memory()``, where its cell is run again or deleted, and, once that is saved, where its
    output was cleared. Without a kernel (plain IPython, Python) it prints the balance once.

    A function and no magic: what it gives back can be stopped and plotted.
    """
    if not isinstance(minutes, int | float) or not 0 < minutes <= 60:
        raise UsageError(
            f"a panel of {minutes!r} minutes cannot be drawn",
            cause="it shows every sample of its last minutes: 60 at most",
            fix="labkit.sample_memory() keeps hours, and labkit.plot_memory() draws them",
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
    """The one live panel of a shell, and what ends it there."""

    def __init__(self, shell: Any) -> None:
        self.shell = shell
        self.panel: Panel | None = None
        shell.events.register("pre_run_cell", self._look_at_cell)

    def put(self, panel: Panel) -> None:
        """Takes in a new panel in place of the one before."""
        if self.panel is not None:
            self.panel.stop("another panel took over")
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
    """This shell's host, made where there is none."""
    found = next((host for host in _HOSTS if host.shell is shell), None)
    if found is None:
        found = PanelHost(shell)
        _HOSTS.append(found)
    return found


class _Output:
    """One output of a notebook that is shown once and then replaced, from whatever thread."""

    def __init__(self, shell: Any, display_id: str) -> None:
        self._publisher = shell.display_pub
        self._transient = {"display_id": display_id}

    def __call__(self, bundle: dict[str, str], *, update: bool) -> None:
        self._publisher.publish(data=bundle, transient=self._transient, update=update)


def _find_kernel_shell() -> Any:
    """IPython's shell where a front end can replace an output; None in a terminal."""
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
    """What the front end says of the cell that it asks to run."""
    parent = shell.get_parent() if hasattr(shell, "get_parent") else {}
    return parent.get("metadata") or {}

"""``watch_memory()``: a live panel in the notebook, of plain display updates.

Widgets were weighed and left: a widget's view is gone after a kernel's restart, and a saved
notebook holds none of it. An html output that is replaced twice a second stays in both, is in the
protocol that every front end speaks, and needs nothing installed. What it cannot do is tell the
kernel that it was cleared; ``panel_output`` finds that out from the saved notebook.
"""

from __future__ import annotations

import secrets
import time
from collections.abc import Callable
from typing import Any, Protocol

from labkit.errors import UsageError
from labkit.jupyter.panel_cells import follow_cells
from labkit.jupyter.panel_output import SavedOutput, find_notebook
from labkit.jupyter.panel_picture import PanelView, draw_panel
from labkit.jupyter.panel_trace import Trace
from labkit.memory.levels import LevelReader, read_levels
from labkit.memory.sampler import MemorySampler, MemorySamples, Reader
from labkit.memory.shell import find_shell
from labkit.memory.snapshot import Snapshot

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
        self._traces: dict[str, Trace] = {}
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
            self._traces.setdefault(key, Trace(self._window)).add(now, held.get(key, {}))
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


class Host:
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


_HOSTS: list[Host] = []


def _find_host(shell: Any) -> Host:
    """This shell's host, made where there is none."""
    found = next((host for host in _HOSTS if host.shell is shell), None)
    if found is None:
        found = Host(shell)
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

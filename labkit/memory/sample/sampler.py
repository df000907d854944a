"""``sample_memory()``: a thread that samples every device's memory; ``plot_memory()`` plots it."""

from __future__ import annotations

import atexit
import contextvars
import os
import threading
import time
import weakref
from collections.abc import Callable
from types import TracebackType
from typing import TYPE_CHECKING, Protocol

from labkit.errors import LabkitError, UsageError
from labkit.memory.balance.model import Snapshot
from labkit.memory.sample.levels import LevelReader, Levels, read_levels
from labkit.memory.sample.model import (
    BUCKET_LIMIT,
    LISTENERS,
    AnnotatedSpan,
    Annotation,
    Annotations,
    Buckets,
    DeviceSamples,
    MemorySamples,
)

if TYPE_CHECKING:
    from labkit.memory.sample.figure import MemoryFigure

DEFAULT_INTERVAL_SECONDS = 0.1
SHORTEST_INTERVAL_SECONDS, LONGEST_INTERVAL_SECONDS = 0.01, 86_400.0
# A gap is this many intervals, and at least this many seconds, without a sample.
GAP_INTERVALS, SHORTEST_GAP_SECONDS = 10, 1.0


class Reader(Protocol):
    """Reads every device, as ``labkit.memory.sample.levels.LevelReader`` does."""

    def read(self) -> Snapshot:
        """The balance of every device now."""
        ...

    def close(self) -> None:
        """Closes open resources; a later reading opens them again."""
        ...

    def forget(self) -> None:
        """Drops what belongs to the parent process, in a forked child."""
        ...


class MemorySampler:
    """Samples memory in its own thread from ``start()`` to ``stop()``, or in a ``with`` block.

    Samples are kept after ``stop()``, and a later start continues after a gap. A failed reading
    does not end the sampling: it is a gap, never zero, and ``trouble`` has its cause.
    """

    def __init__(
        self,
        interval_seconds: float = DEFAULT_INTERVAL_SECONDS,
        *,
        reader: Reader | None = None,
        clock: Callable[[], float] = time.monotonic,
        wall_clock: Callable[[], float] = time.time,
        make_event: Callable[[], threading.Event] = threading.Event,
        on_sample: Callable[[float, Snapshot | None], None] | None = None,
        limit: int = BUCKET_LIMIT,
    ) -> None:
        self.interval_seconds = interval_seconds
        self.trouble: str | None = None
        self._reader = reader or LevelReader()
        self._clock, self._make_event = clock, make_event
        self._on_sample = on_sample
        self._began, self._started = clock(), wall_clock()
        self._last = 0.0
        self._buckets = Buckets(limit, interval_seconds)
        self._annotations = Annotations(self._measure_time)
        self._known: dict[str, Levels] = {}
        self._lock = threading.Lock()
        self._stopping: threading.Event | None = None
        self._thread: threading.Thread | None = None
        _SAMPLERS.add(self)

    @property
    def running(self) -> bool:
        """True between start and stop."""
        return self._stopping is not None

    def start(self) -> MemorySampler:
        """Takes a sample now and after every interval; returns itself."""
        global _LATEST  # noqa: PLW0603 - plot_memory() without an argument plots it
        if self.running:
            raise LabkitError(
                "this sampler is already running",
                cause="a sampler has one thread",
                fix="a new sample_memory() for each use",
            )
        _LATEST = self
        self._stopping = self._make_event()
        LISTENERS.append(self._annotations)
        self.take_sample()
        # Runs in the context of the starting cell, so that the thread's outputs belong to it.
        context = contextvars.copy_context()
        self._thread = threading.Thread(
            target=context.run,
            args=(self._follow, self._stopping),
            name="labkit memory sampler",
            daemon=True,
        )
        self._thread.start()
        return self

    def stop(self) -> None:
        """Takes a last sample and ends; does nothing if it is not running."""
        if not self.running:
            return
        self.end()
        self.take_sample()
        self._reader.close()

    def end(self) -> None:
        """Ends without a last sample; the sampler's own thread may call it."""
        if self._stopping is not None:
            self._stopping.set()
        if self._thread is not None and self._thread is not threading.current_thread():
            self._thread.join(timeout=5)
        self._stopping = self._thread = None
        LISTENERS[:] = [one for one in LISTENERS if one is not self._annotations]

    def __enter__(self) -> MemorySampler:
        return self.start()

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.stop()

    def mark(self, name: str) -> Annotation:
        """Annotates this moment, or with ``with sampler.mark("forward"):`` the time of a block."""
        return Annotation(self._annotations, name)

    @property
    def samples(self) -> MemorySamples:
        """The samples so far."""
        with self._lock:
            devices = tuple(self._describe(levels) for levels in self._known.values())
            width = self._buckets.width_seconds
        gap = max(GAP_INTERVALS * self.interval_seconds, SHORTEST_GAP_SECONDS, 2 * width)
        return MemorySamples(
            started=self._started,
            seconds=self._last,
            interval_seconds=self.interval_seconds,
            gap_seconds=gap,
            devices=tuple(sorted(devices, key=lambda device: device.kind == "cpu")),
            spans=self.spans,
            trouble=self.trouble,
        )

    @property
    def spans(self) -> tuple[AnnotatedSpan, ...]:
        """The annotated spans so far."""
        return self._annotations.list_spans()

    def __repr__(self) -> str:
        return repr(self.samples)

    def take_sample(self) -> None:
        """Reads every device once, now; failed readings count as not measured."""
        snapshot = None
        try:
            snapshot = self._reader.read()
        except Exception as error:  # a failed reading must not end the sampling
            self.trouble = f"{type(error).__name__}: {error}"
        levels = [read_levels(balance) for balance in snapshot.balances] if snapshot else []
        if snapshot is not None:
            self._note_trouble(snapshot, levels)
        with self._lock:
            self._last = self._measure_time()
            self._known.update({one.key: self._keep_total(one) for one in levels})
            missed = {series: None for one in self._known.values() for series in _name_series(one)}
            figures = {
                series: count
                for one in levels
                for series, count in zip(_name_series(one), one.held_bytes.values(), strict=True)
            }
            self._buckets.add(self._last, {**missed, **figures})
        if self._on_sample is not None:
            self._on_sample(self._last, snapshot)

    def forget_thread(self) -> None:
        """Stops in a forked child, which has no threads; the samples are kept."""
        self._lock = threading.Lock()
        self._annotations.reset_lock()
        self._reader.forget()
        self._stopping = self._thread = None

    def _follow(self, stopping: threading.Event) -> None:
        took = 0.0
        while not stopping.wait(max(0.0, self.interval_seconds - took)):
            began = self._clock()
            try:
                self.take_sample()
            except Exception as error:  # on_sample failed; for example, the page is unreachable
                self.trouble = f"{type(error).__name__}: {error}"
            took = self._clock() - began

    def _note_trouble(self, snapshot: Snapshot, levels: list[Levels]) -> None:
        """Records the cause if a device is no longer measured: its own trouble, or the driver's."""
        for balance, one in zip(snapshot.balances, levels, strict=True):
            if balance.trouble:
                self.trouble = f"{one.name}: {balance.trouble}"
        if self._known.keys() - {one.key for one in levels} and snapshot.notes:
            self.trouble = "; ".join(snapshot.notes)

    def _keep_total(self, levels: Levels) -> Levels:
        """The levels with the earlier total of a device that no longer reports it."""
        before = self._known.get(levels.key)
        if levels.total_bytes is None and before is not None:
            return levels._replace(total_bytes=before.total_bytes)
        return levels

    def _measure_time(self) -> float:
        return self._clock() - self._began

    def _describe(self, levels: Levels) -> DeviceSamples:
        points = {
            measure: self._buckets.list_points(series)
            for measure, series in zip(levels.held_bytes, _name_series(levels), strict=True)
        }
        return DeviceSamples(levels.name, levels.kind, levels.total_bytes, points)


def sample_memory(interval: float = DEFAULT_INTERVAL_SECONDS) -> MemorySampler:
    """Samples every device's memory in a thread, for ``plot_memory``.

    Use it in a ``with`` statement, or with its ``start()`` and ``stop()``. ``interval`` is in
    seconds. The memory of the sampler is bounded: in a long run each point summarizes more samples
    by their lowest, highest and mean. It only reads counters: no CUDA context is created, torch is
    not imported. A spike shorter than the interval can be missed; ``track_memory`` measures exact
    peaks.

    >>> with sample_memory() as sampler:
    ...     with sampler.mark("work"):
    ...         held = bytearray(1000)
    >>> sampler.samples.devices[-1].name, sampler.samples.spans[0].name
    ('cpu', 'work')
    """
    known = isinstance(interval, int | float)
    if not known or not SHORTEST_INTERVAL_SECONDS <= interval <= LONGEST_INTERVAL_SECONDS:
        raise UsageError(
            f"invalid interval={interval!r}",
            cause=f"an interval is between {SHORTEST_INTERVAL_SECONDS:g} s and a day; shorter ones"
            " slow down what is measured",
            fix="sample_memory() samples every 0.1 s; for exact peaks use track_memory()",
        )
    return MemorySampler(interval)


def plot_memory(
    samples: MemorySampler | MemorySamples | None = None,
) -> MemoryFigure | MemorySamples:
    """A figure of each device's memory over time, with its peak and the annotated spans.

    Without an argument it plots the sampler that was started last. The figure displays itself in
    a notebook, prints as text in a terminal, and is a matplotlib figure (``savefig``). Without
    matplotlib the samples themselves are returned, which print as the same text. Raises
    UsageError if nothing was sampled.
    """
    source = _LATEST if samples is None else samples
    if source is None:
        raise UsageError(
            "there is nothing to plot",
            cause="no sampler was started in this process",
            fix="with labkit.sample_memory() as sampler: ...",
        )
    seen = source if isinstance(source, MemorySamples) else getattr(source, "samples", None)
    if not isinstance(seen, MemorySamples):
        raise UsageError(
            f"cannot plot {source!r}",
            cause="plot_memory takes a sampler, a panel, or their samples",
            fix="plot_memory() plots the sampler that was started last",
        )
    if not seen.devices:
        raise UsageError(
            "there is nothing to plot",
            cause="no sample could be read" + (f" ({seen.trouble})" if seen.trouble else ""),
            fix="with labkit.sample_memory() as sampler: ...",
        )
    try:
        from labkit.memory.sample.figure import draw_samples
    except ModuleNotFoundError as error:
        if (error.name or "").partition(".")[0] not in {"matplotlib", "numpy"}:
            raise
        return seen
    return draw_samples(seen)


def _name_series(levels: Levels) -> list[str]:
    return [f"{levels.key} {measure}" for measure in levels.held_bytes]


_LATEST: MemorySampler | None = None
_SAMPLERS: weakref.WeakSet[MemorySampler] = weakref.WeakSet()


def _forget_threads() -> None:
    LISTENERS.clear()
    for sampler in _SAMPLERS:
        sampler.forget_thread()


def _stop_all() -> None:
    """Stops all samplers at exit, because a thread that reads during shutdown may crash."""
    for sampler in list(_SAMPLERS):
        sampler.end()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_forget_threads)
atexit.register(_stop_all)

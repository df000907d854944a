"""``sample_memory()``: a thread that follows the memory of every device, for hours if need be."""

from __future__ import annotations

import atexit
import contextvars
import os
import threading
import time
import weakref
from collections.abc import Callable
from types import TracebackType
from typing import NamedTuple, Protocol

from labkit.errors import LabkitError, UsageError
from labkit.memory.balance.read import Snapshot
from labkit.memory.sample.levels import LevelReader, Levels, read_levels
from labkit.memory.sample.model import (
    BUCKET_LIMIT,
    LISTENERS,
    AnnotatedSpan,
    Annotation,
    Annotations,
    Buckets,
    Point,
)

DEFAULT_INTERVAL_SECONDS = 0.1
SHORTEST_INTERVAL_SECONDS, LONGEST_INTERVAL_SECONDS = 0.01, 86_400.0
# Without a sample for so many intervals, and at least so long, there is a gap: a thread gets its
# turn late now and then, and that is none.
GAP_INTERVALS, SHORTEST_GAP_SECONDS = 10, 1.0


class Reader(Protocol):
    """What reads every device; ``labkit.memory.sample.levels.LevelReader`` is the real one."""

    def read(self) -> Snapshot:
        """The balance of every device now."""
        ...

    def close(self) -> None:
        """Nothing will be read for a while."""
        ...

    def forget(self) -> None:
        """This is a forked child."""
        ...


class DeviceSamples(NamedTuple):
    """One device over time: its points by measure, in bytes.

    The measures of a GPU are "allocated" and "reserved" (by torch's allocator in this process)
    and "used" (by anyone, as the driver counts); those of the CPU "process" (resident memory of
    this process) and "available" (on the machine, or in the container).
    """

    name: str
    kind: str
    total_bytes: int | None
    points: dict[str, tuple[Point, ...]]

    def find_peak(self, measure: str) -> Point | None:
        """The bucket with the highest figure of a measure; None where none was measured."""
        known = [point for point in self.points.get(measure, ()) if point.high is not None]
        return max(known, key=lambda point: point.high or 0, default=None)


class MemorySamples(NamedTuple):
    """What a sampler has seen: the devices (GPUs first), the marks, and how it was taken.

    Times are in seconds since ``started`` (an epoch). Between two points more than ``gap_seconds``
    apart nothing was measured. ``trouble`` says why the last failing sample failed.
    """

    started: float
    seconds: float
    interval_seconds: float
    gap_seconds: float
    devices: tuple[DeviceSamples, ...] = ()
    spans: tuple[AnnotatedSpan, ...] = ()
    trouble: str | None = None

    def find_device(self, name: str) -> DeviceSamples | None:
        """The device that torch calls by this name, such as "cuda:0" or "cpu"."""
        return next((device for device in self.devices if device.name == name), None)

    def __repr__(self) -> str:
        from labkit.memory.sample.view import format_samples

        return format_samples(self)

    def __str__(self) -> str:
        return repr(self)


class MemorySampler:
    """Follows memory in a thread of its own from ``start()`` to ``stop()``, or in a ``with``.

    What it has seen stays, and a later start goes on after a gap. One that fails to measure goes
    on and says so: what was not measured is a gap, never zero.
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
        self._marks = Annotations(self._measure_time)
        self._known: dict[str, Levels] = {}
        self._lock = threading.Lock()
        self._stopping: threading.Event | None = None
        self._thread: threading.Thread | None = None
        _EVERY.add(self)

    @property
    def running(self) -> bool:
        """True between start and stop."""
        return self._stopping is not None

    def start(self) -> MemorySampler:
        """Takes a sample now, and then one after every interval; itself."""
        global _LATEST  # noqa: PLW0603 - what plot_memory() draws where it is given nothing
        if self.running:
            raise LabkitError(
                "this sampler runs already",
                cause="one sampler has one thread",
                fix="a sample_memory() of its own for each use",
            )
        _LATEST = self
        self._stopping = self._make_event()
        LISTENERS.append(self._marks)
        self.take_sample()
        # With the context of the cell that starts it: what it displays belongs to that cell.
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
        """Takes a last sample and ends; nothing where it does not run."""
        if not self.running:
            return
        self.end()
        self.take_sample()
        self._reader.close()

    def end(self) -> None:
        """Ends without a last sample; its own thread may call it."""
        if self._stopping is not None:
            self._stopping.set()
        if self._thread is not None and self._thread is not threading.current_thread():
            self._thread.join(timeout=5)
        self._stopping = self._thread = None
        LISTENERS[:] = [marks for marks in LISTENERS if marks is not self._marks]

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
        """Marks this moment, or with ``with sampler.mark("forward"):`` the time of a block."""
        return Annotation(self._marks, name)

    @property
    def samples(self) -> MemorySamples:
        """What was seen so far."""
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
        """What was marked so far."""
        return self._marks.list_spans()

    def __repr__(self) -> str:
        return repr(self.samples)

    def take_sample(self) -> None:
        """Reads every device once, now; what cannot be read counts as not measured."""
        snapshot = None
        try:
            snapshot = self._reader.read()
        except Exception as error:  # following goes on, whatever one reading meets
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
        """In a forked child, where no thread goes on: what was seen stays, and it is stopped."""
        self._lock = threading.Lock()
        self._marks.forget_lock()
        self._reader.forget()
        self._stopping = self._thread = None

    def _follow(self, stopping: threading.Event) -> None:
        took = 0.0
        while not stopping.wait(max(0.0, self.interval_seconds - took)):
            began = self._clock()
            try:
                self.take_sample()
            except Exception as error:  # of who is told of it: a page that cannot be reached now
                self.trouble = f"{type(error).__name__}: {error}"
            took = self._clock() - began

    def _note_trouble(self, snapshot: Snapshot, levels: list[Levels]) -> None:
        """Why a device is not measured that was: its own trouble, or the driver's."""
        for balance, one in zip(snapshot.balances, levels, strict=True):
            if balance.trouble:
                self.trouble = f"{one.name}: {balance.trouble}"
        if self._known.keys() - {one.key for one in levels} and snapshot.notes:
            self.trouble = "; ".join(snapshot.notes)

    def _keep_total(self, levels: Levels) -> Levels:
        """A device that is lost tells its size no more; it has not changed."""
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
    """Follows every device's memory in a thread: what ``plot_memory`` draws.

    Use it as a context manager, or with its ``start()`` and ``stop()``. ``interval`` is in
    seconds. What it keeps is bounded: of a longer time each point holds the lowest, the highest
    and the mean of more samples. It reads counters only: no CUDA context is made, torch is not
    imported. A spike shorter than the interval can be missed; ``track_memory`` misses none.

    >>> with sample_memory() as sampler:
    ...     with sampler.mark("work"):
    ...         held = bytearray(1000)
    >>> sampler.samples.devices[-1].name, sampler.samples.spans[0].name
    ('cpu', 'work')
    """
    known = isinstance(interval, int | float)
    if not known or not SHORTEST_INTERVAL_SECONDS <= interval <= LONGEST_INTERVAL_SECONDS:
        raise UsageError(
            f"interval={interval!r} is no time between two samples",
            cause=f"it is from {SHORTEST_INTERVAL_SECONDS:g} s, below which sampling costs too"
            " much, to a day",
            fix="sample_memory(), every 0.1 s; exact peaks are track_memory()'s",
        )
    return MemorySampler(interval)


def find_latest() -> MemorySampler | None:
    """The sampler that was started last in this process."""
    return _LATEST


def _name_series(levels: Levels) -> list[str]:
    return [f"{levels.key} {measure}" for measure in levels.held_bytes]


_LATEST: MemorySampler | None = None
_EVERY: weakref.WeakSet[MemorySampler] = weakref.WeakSet()


def _forget_threads() -> None:
    LISTENERS.clear()
    for sampler in _EVERY:
        sampler.forget_thread()


def _stop_all() -> None:
    """Before the interpreter goes down: a thread that still reads then may crash it."""
    for sampler in list(_EVERY):
        sampler.end()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_forget_threads)
atexit.register(_stop_all)

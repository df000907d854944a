"""Memory counters, and exact peaks for the blocks of code that share them.

A process has one counter of each kind (the kernel's high-water mark, the statistics of a CUDA
device's allocator, torch's profiler), and each keeps one peak. A nested block must not erase the
outer block's peak. So when a block begins or ends, the peak since the last such boundary is first
added to each open block, and then the counter is reset. The peak of a block is the highest of its
segments.
"""

from __future__ import annotations

import contextlib
import os
import sys
import threading
from collections.abc import Callable, Iterable, Iterator
from typing import Any, NamedTuple, Protocol

from labkit.errors import LabkitError
from labkit.memory.balance import read
from labkit.memory.balance.read import find_started_torch
from labkit.memory.track.model import BlockSpan

LOG_LEVEL, NOTHING_LOGGED = "KINETO_LOG_LEVEL", "6"
# Labkit's event; it is missing if another profiler was started in the segment.
SEGMENT = "labkit: tensors"


class Reading(NamedTuple):
    """Current bytes, and the peak since the last reset, None if the system keeps none."""

    level_bytes: int
    peak_bytes: int | None


class PeakCounter(Protocol):
    """One counter of memory whose peak can be reset."""

    name: str

    def read(self) -> Reading | None:
        """The level and the peak since the last reset; None if neither is known."""
        ...

    def reset(self) -> Reading | None:
        """Resets the peak and returns the level; its peak is None if it cannot be reset."""
        ...


class ProcessCounter:
    """This process's resident memory and its high-water mark in the kernel."""

    name = "process"

    def read(self) -> Reading | None:
        """Resident bytes now and at the peak, which is None if the kernel keeps no mark."""
        peak = read.read_peak_bytes()
        level = read.read_resident_bytes()
        return None if level is None else Reading(level, peak)

    def reset(self) -> Reading | None:
        """Resets the kernel's mark to the resident bytes."""
        exact = read.reset_peak()
        level = read.read_resident_bytes()
        return None if level is None else Reading(level, level if exact else None)


class CudaCounter:
    """The bytes of live tensors on one CUDA (or ROCm) device, from the allocator's statistics.

    The allocator counts on the host, where tensors are created and freed, so the figures are exact
    without waiting for the device.
    """

    def __init__(self, cuda: Any, index: int) -> None:
        self.name = f"cuda:{index}"
        self._cuda = cuda
        self._index = index

    def read(self) -> Reading | None:
        """Bytes of live tensors now and at the peak; None if there are no statistics."""
        try:
            statistics = self._cuda.memory_stats_as_nested_dict(self._index)
        except RuntimeError:
            return None  # a custom allocator (CUDAPluggableAllocator)
        if not statistics:
            return Reading(0, 0)
        counted = statistics["allocated_bytes"]["all"]
        return Reading(counted["current"], counted["peak"])

    def reset(self) -> Reading | None:
        """Resets the allocator's peaks, including ``torch.cuda.max_memory_allocated``."""
        try:
            self._cuda.reset_peak_memory_stats(self._index)
        except RuntimeError:
            return None
        return self.read()


class TensorCounter:
    """Bytes of CPU tensors that the opening thread creates and frees, from torch's profiler.

    The level starts at 0 when the counter is opened: earlier tensors are not included, and freeing
    them makes it negative. The profiler records one segment between two readings.
    """

    name = "tensors"

    def __init__(self) -> None:
        self._segment: Any = None
        self._thread: int | None = None
        self._level = self._peak = 0

    def check_available(self) -> None:
        """Raises LabkitError if the profiler is in use, because a process can run only one."""
        if self._segment is not None:
            if self._thread == threading.get_ident():
                return
            raise LabkitError(
                "cannot measure tensors in two threads at once",
                cause="torch's profiler serves one thread, and another thread's block is open",
                fix="track_memory() without tensors=True: the process's peak covers all threads",
            )
        if is_profiling():
            raise LabkitError(
                "cannot measure tensors while a torch profiler runs",
                cause="torch's profiler cannot be started twice: a second one breaks the first",
                fix="track_memory() without tensors=True, or outside of the profiled block",
            )

    def read(self) -> Reading | None:
        """The level and the peak, after the events of the segment that ends here.

        None if another profiler was started in the segment: torch then drops its events.
        """
        segment, self._segment = self._segment, None
        if segment is not None:
            try:
                segment.__exit__(None, None, None)
            except RuntimeError:  # before torch 2.13, if that profiler has ended too
                return None
            events = segment.kineto_results.events()
            if not any(event.name() == SEGMENT for event in events):
                return None
            self._count(events)
        return Reading(self._level, self._peak)

    def reset(self) -> Reading:
        """Begins a segment whose peak starts at the current level."""
        from torch.autograd.profiler import profile, record_function

        self._peak = self._level
        self._thread = threading.get_ident()
        self._segment = profile(use_kineto=True, profile_memory=True)
        with _silence_first_profile():
            self._segment.__enter__()
        with record_function(SEGMENT):
            pass
        return Reading(self._level, self._peak)

    def _count(self, events: list[Any]) -> None:
        memory = (event for event in events if event.name() == "[memory]")
        for event in sorted(memory, key=lambda event: event.start_ns()):
            if event.device_type().name == "CPU":
                self._level += event.nbytes()
                self._peak = max(self._peak, self._level)


@contextlib.contextmanager
def _silence_first_profile() -> Iterator[None]:
    """Keeps torch 2.13's profiler library from printing two lines after every block.

    The library reads the variable once per process, when it starts. A value that is already set is
    kept.
    """
    if LOG_LEVEL in os.environ:
        yield
        return
    os.environ[LOG_LEVEL] = NOTHING_LOGGED
    try:
        yield
    finally:
        os.environ.pop(LOG_LEVEL, None)


def find_cuda_counters() -> list[PeakCounter]:
    """A counter for each device that torch can use; none before CUDA is started."""
    torch = find_started_torch()
    if torch is None:
        return []
    indices = list(range(torch.cuda.device_count()))
    # Without a current device an error lasts (a device assert); the counters still answer.
    with contextlib.suppress(RuntimeError):
        # The current device, on which code without a device number computes, comes first.
        indices.insert(0, indices.pop(torch.cuda.current_device()))
    return [CudaCounter(torch.cuda, index) for index in indices]


def is_profiling() -> bool:
    """True while a torch profiler runs in any thread."""
    # _profiler_enabled() covers only the calling thread; this flag covers all threads.
    profiler = sys.modules.get("torch.autograd.profiler")
    return bool(getattr(profiler, "_is_profiler_enabled", False))


class BlockFigures:
    """One counter's current figures for one open block; ``lost``: a part was not measured."""

    def __init__(self, before_bytes: int, peak_bytes: int | None) -> None:
        self.before_bytes = before_bytes
        self.peak_bytes = peak_bytes
        self.lost = False

    def fold(self, peak_bytes: int | None) -> None:
        """Adds the peak of a part of the block; one unknown part makes the whole unknown."""
        if self.peak_bytes is None or peak_bytes is None:
            self.peak_bytes = None
        else:
            self.peak_bytes = max(self.peak_bytes, peak_bytes)

    def end(self, counter: PeakCounter, reading: Reading | None) -> BlockSpan:
        """The counter's span over the block, which ends with this reading."""
        before, peak = self.before_bytes, self.peak_bytes
        # Tensors are counted from the block's beginning; those from before are not known.
        base = before if isinstance(counter, TensorCounter) else 0
        if reading is None or self.lost:
            return BlockSpan(counter.name, before - base, None, None)
        after = reading.level_bytes
        # The kernel adds up resident pages lazily: its mark can lag behind the current figure.
        highest = None if peak is None else max(peak, before, after) - base
        return BlockSpan(counter.name, before - base, highest, after - base)


class TrackedBlock(NamedTuple):
    """A block of code being measured: the counters it uses, and its figures by counter."""

    wants: Callable[[str], bool]
    figures: dict[str, BlockFigures]


class OpenBlocks:
    """Every open block of this process, and the counters that the blocks share.

    The counters cover the whole process. A block in any thread gets the peak during its own time,
    which includes the memory that other threads used in that time.
    """

    def __init__(
        self,
        process: PeakCounter | None = None,
        tensors: TensorCounter | None = None,
        find_devices: Callable[[], Iterable[PeakCounter]] = find_cuda_counters,
    ) -> None:
        self._process = process or ProcessCounter()
        self._tensors = tensors or TensorCounter()
        self._find_devices = find_devices
        self._open: list[TrackedBlock] = []
        self._lock = threading.RLock()

    def open_block(self, wants: Callable[[str], bool]) -> TrackedBlock:
        """Begins a block; raises LabkitError if it needs tensors and they cannot be measured."""
        block = TrackedBlock(wants, {})
        with self._lock:
            if wants(self._tensors.name):
                self._tensors.check_available()
            counters = self._list_counters(wants)
            for counter in self._list_shared(counters):
                self._fold(counter)
            for counter in reversed(counters):
                reading = counter.reset()
                if reading is not None:
                    block.figures[counter.name] = BlockFigures(*reading)
                elif isinstance(counter, CudaCounter):  # a custom allocator
                    block.figures[counter.name] = BlockFigures(0, None)
            self._open.append(block)
        return block

    def close_block(self, block: TrackedBlock) -> tuple[BlockSpan, ...]:
        """Ends a block and returns its spans: devices first, then tensors, then the process."""
        spans = {}
        with self._lock:
            counters = self._list_counters(block.wants)
            for counter in counters:
                reading = self._fold(counter)
                if counter.name in block.figures:
                    spans[counter] = block.figures[counter.name].end(counter, reading)
            self._open = [one for one in self._open if one is not block]
            for counter in reversed(self._list_shared(counters)):
                counter.reset()
        last = (self._tensors, self._process)  # sorting keeps the order of the devices
        order = sorted(spans, key=lambda counter: last.index(counter) if counter in last else -1)
        return tuple(spans[counter] for counter in order)

    def forget_all(self) -> None:
        """Drops every block, because in a forked child they belong to the parent."""
        self._lock = threading.RLock()
        self._open = []

    def _list_counters(self, wants: Callable[[str], bool]) -> list[PeakCounter]:
        """The counters in the order to read them; they are reset in the opposite order.

        The process's counter is read first and reset last, so that the memory of the profiler's
        events is not counted for the block.
        """
        counters = [self._process, *self._find_devices(), self._tensors]
        return [counter for counter in counters if wants(counter.name)]

    def _list_shared(self, counters: list[PeakCounter]) -> list[PeakCounter]:
        return [one for one in counters if any(block.wants(one.name) for block in self._open)]

    def _fold(self, counter: PeakCounter) -> Reading | None:
        """Reads the counter and adds its peak to every open block that uses it."""
        reading = counter.read()
        for block in self._open:
            if reading is not None and block.wants(counter.name):
                # A device that torch started inside the block held nothing before.
                block.figures.setdefault(counter.name, BlockFigures(0, 0)).fold(reading.peak_bytes)
            elif reading is None and counter.name in block.figures:
                block.figures[counter.name].lost = True
        return reading


OPEN_BLOCKS = OpenBlocks()
if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=OPEN_BLOCKS.forget_all)

"""Exact peaks for blocks of code that share one counter, nested or overlapping.

A counter keeps one peak. So that a block inside another does not wipe out the outer one's, every
boundary (a block begins or ends) first folds the peak since the last boundary into each block
that is open, and only then resets it. The peak of a block is the highest of its stretches.

What can be read while code runs: a level now, and the highest since the last reset.

Each gauge is one counter that exists once for the process: the kernel's mark, the allocator's
statistics of a CUDA device, torch's profiler. ``blocks.py`` shares them between blocks.
"""

from __future__ import annotations

import contextlib
import os
import sys
import threading
from collections.abc import Callable, Iterable, Iterator
from typing import Any, NamedTuple, Protocol

from labkit.errors import LabkitError
from labkit.memory.balance import process
from labkit.memory.balance.read import find_started_torch

LOG_LEVEL, NOTHING_LOGGED = "KINETO_LOG_LEVEL", "6"


class Reading(NamedTuple):
    """Bytes now, and the most since the last reset; the peak is None where it is not kept."""

    level_bytes: int
    peak_bytes: int | None


class PeakCounter(Protocol):
    """One counter of memory with a peak that can begin anew."""

    name: str

    def read(self) -> Reading | None:
        """The level and the peak since the last restart; None where neither can be told."""
        ...

    def restart(self) -> Reading | None:
        """The level at which the peak begins anew; its peak is None where it cannot."""
        ...


class ProcessCounter:
    """This process's resident memory and the kernel's high-water mark of it."""

    name = "process"

    def read(self) -> Reading | None:
        """Resident bytes now and at most; the mark is None where the kernel keeps none."""
        peak = process.read_peak_bytes()
        level = process.read_resident_bytes()
        return None if level is None else Reading(level, peak)

    def restart(self) -> Reading | None:
        """Puts the kernel's mark back to what is resident now."""
        exact = process.reset_peak()
        level = process.read_resident_bytes()
        return None if level is None else Reading(level, level if exact else None)


class CudaCounter:
    """The bytes of live tensors on one CUDA (or ROCm) device, by the allocator's statistics.

    They are counted where a tensor is made and freed, on the host's side: exact without waiting
    for the device, and no synchronize is needed.
    """

    def __init__(self, cuda: Any, index: int) -> None:
        self.name = f"cuda:{index}"
        self._cuda = cuda
        self._index = index

    def read(self) -> Reading | None:
        """Bytes of live tensors now and at most; None where the allocator keeps no statistics."""
        try:
            statistics = self._cuda.memory_stats_as_nested_dict(self._index)
        except RuntimeError:
            return None  # an allocator of the user's own (CUDAPluggableAllocator)
        if not statistics:
            return Reading(0, 0)
        counted = statistics["allocated_bytes"]["all"]
        return Reading(counted["current"], counted["peak"])

    def restart(self) -> Reading | None:
        """Lets the allocator's peaks begin anew; ``torch.cuda.max_memory_allocated`` is one."""
        try:
            self._cuda.reset_peak_memory_stats(self._index)
        except RuntimeError:
            return None
        return self.read()


class TensorCounter:
    """Bytes of CPU tensors made and freed by the thread that opened it, by torch's profiler.

    The level counts from where it was opened: what was there before is not in it, and freeing
    that brings it below zero. The profiler records a segment between two readings.
    """

    name = "tensors"

    def __init__(self) -> None:
        self._segment: Any = None
        self._thread: int | None = None
        self._level = self._peak = 0

    def check_available(self) -> None:
        """Raises LabkitError where the profiler serves someone else: it can serve one."""
        if self._segment is not None:
            if self._thread == threading.get_ident():
                return
            raise LabkitError(
                "cannot measure tensors in two threads at once",
                cause="torch's profiler serves one thread, and another thread's block is open",
                fix="track_memory() without tensors=True: the process's peak holds every thread",
            )
        if _is_profiling():
            raise LabkitError(
                "cannot measure tensors while a torch profiler runs",
                cause="torch's profiler cannot be started twice: a second one breaks the first",
                fix="track_memory() without tensors=True, or outside of the profiled block",
            )

    def read(self) -> Reading:
        """The level and the peak, after the events of the segment that ends here."""
        if self._segment is not None:
            self._segment.__exit__(None, None, None)
            self._count(self._segment.kineto_results.events())
            self._segment = None
        return Reading(self._level, self._peak)

    def restart(self) -> Reading:
        """Begins a segment whose peak starts at the level now."""
        from torch.autograd.profiler import profile

        self._peak = self._level
        self._thread = threading.get_ident()
        self._segment = profile(use_kineto=True, profile_memory=True)
        with _quieten_first_profile():
            self._segment.__enter__()
        return Reading(self._level, self._peak)

    def _count(self, events: list[Any]) -> None:
        memory = (event for event in events if event.name() == "[memory]")
        for event in sorted(memory, key=lambda event: event.start_ns()):
            if event.device_type().name == "CPU":
                self._level += event.nbytes()
                self._peak = max(self._peak, self._level)


@contextlib.contextmanager
def _quieten_first_profile() -> Iterator[None]:
    """Keeps the profiler's library from writing two lines below every block, as torch 2.13's does.

    It reads the variable when it is started, once in a process; who has set it is not overruled.
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
    """A gauge for each device torch can use; none before CUDA is started, and none starts it."""
    torch = find_started_torch()
    if torch is None:
        return []
    # The device that code without a number computes on comes first.
    current = torch.cuda.current_device()
    others = [index for index in range(torch.cuda.device_count()) if index != current]
    return [CudaCounter(torch.cuda, index) for index in (current, *others)]


def _is_profiling() -> bool:
    # _profiler_enabled() knows of the calling thread alone; the flag of all of them.
    profiler = sys.modules.get("torch.autograd.profiler")
    return bool(getattr(profiler, "_is_profiler_enabled", False))


class BlockSpan(NamedTuple):
    """One counter over a block, in bytes: before, at its highest, after; None is not measured."""

    where: str
    before_bytes: int
    peak_bytes: int | None
    after_bytes: int

    @property
    def added_bytes(self) -> int | None:
        """How far the peak rose above the level at the beginning."""
        return None if self.peak_bytes is None else self.peak_bytes - self.before_bytes

    @property
    def change_bytes(self) -> int:
        """What is held at the end and was not at the beginning; below zero where it was freed."""
        return self.after_bytes - self.before_bytes


class Stretch:
    """One counter's running figures for one open block."""

    def __init__(self, before_bytes: int, peak_bytes: int | None) -> None:
        self.before_bytes = before_bytes
        self.peak_bytes = peak_bytes

    def fold(self, peak_bytes: int | None) -> None:
        """Takes in the peak of a part of the block; one unknown part makes the whole unknown."""
        if self.peak_bytes is None or peak_bytes is None:
            self.peak_bytes = None
        else:
            self.peak_bytes = max(self.peak_bytes, peak_bytes)


class TrackedBlock:
    """A block of code being measured: which counters it wants, and its figures so far."""

    def __init__(self, wants: Callable[[str], bool]) -> None:
        self.wants = wants
        self.stretches: dict[str, Stretch] = {}


class Ledger:
    """Every open block of this process, and the counters they share.

    The counters count for the whole process, so blocks in different threads are right too: each
    gets the peak of its own time, in which another thread's memory is counted as well.
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
        """Begins a block; raises LabkitError where tensors are wanted and cannot be measured."""
        block = TrackedBlock(wants)
        with self._lock:
            if wants(self._tensors.name):
                self._tensors.check_available()
            gauges = self._list_gauges(wants)
            for gauge in self._list_shared(gauges):
                self._fold(gauge)
            for gauge in reversed(gauges):
                reading = gauge.restart()
                if reading is not None:
                    block.stretches[gauge.name] = Stretch(*reading)
            self._open.append(block)
        return block

    def close_block(self, block: TrackedBlock) -> tuple[BlockSpan, ...]:
        """Ends a block and gives its spans: devices first, then tensors, then the process."""
        spans = {}
        with self._lock:
            gauges = self._list_gauges(block.wants)
            for gauge in gauges:
                reading = self._fold(gauge)
                if reading is not None and gauge.name in block.stretches:
                    spans[gauge] = _end_stretch(gauge, block.stretches[gauge.name], reading)
            self._open = [one for one in self._open if one is not block]
            for gauge in reversed(self._list_shared(gauges)):
                gauge.restart()
        # By what says most: sorting keeps the order of the devices.
        last = (self._tensors, self._process)
        order = sorted(spans, key=lambda gauge: last.index(gauge) if gauge in last else -1)
        return tuple(spans[gauge] for gauge in order)

    def forget_all(self) -> None:
        """Begins anew: in a forked child, whose parent's blocks are not its own."""
        self._lock = threading.RLock()
        self._open = []

    def _list_gauges(self, wants: Callable[[str], bool]) -> list[PeakCounter]:
        """The counters in the order to read them; they are restarted in the opposite one.

        The process's is read first and restarted last, so that the memory in which the profiler
        hands over its events is not taken for the block's.
        """
        gauges = [self._process, *self._find_devices(), self._tensors]
        return [gauge for gauge in gauges if wants(gauge.name)]

    def _list_shared(self, gauges: list[PeakCounter]) -> list[PeakCounter]:
        return [gauge for gauge in gauges if any(one.wants(gauge.name) for one in self._open)]

    def _fold(self, gauge: PeakCounter) -> Reading | None:
        """The counter now, its peak put into every open block that wants it."""
        reading = gauge.read()
        if reading is None:
            return None
        for block in self._open:
            if block.wants(gauge.name):
                # A device that torch started inside the block held nothing before.
                block.stretches.setdefault(gauge.name, Stretch(0, 0)).fold(reading.peak_bytes)
        return reading


def _end_stretch(gauge: PeakCounter, stretch: Stretch, reading: Reading) -> BlockSpan:
    before, peak, after = stretch.before_bytes, stretch.peak_bytes, reading.level_bytes
    # Tensors are counted from the block's beginning; what was there before is not known.
    base = before if isinstance(gauge, TensorCounter) else 0
    # The kernel sums resident pages up lazily: its mark can lag behind what it tells of now.
    highest = None if peak is None else max(peak, before, after) - base
    return BlockSpan(gauge.name, before - base, highest, after - base)


LEDGER = Ledger()
if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=LEDGER.forget_all)

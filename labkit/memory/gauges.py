"""What can be read while code runs: a level now, and the highest since the last reset.

Each gauge is one counter that exists once for the process: the kernel's mark, the allocator's
statistics of a CUDA device, torch's profiler. ``blocks.py`` shares them between blocks.
"""

from __future__ import annotations

import contextlib
import os
import sys
import threading
from collections.abc import Iterator
from typing import Any, NamedTuple, Protocol

from labkit.errors import LabkitError
from labkit.memory import process
from labkit.memory.allocator import find_started_torch

LOG_LEVEL, NOTHING_LOGGED = "KINETO_LOG_LEVEL", "6"


class Reading(NamedTuple):
    """Bytes now, and the most since the last reset; the peak is None where it is not kept."""

    level_bytes: int
    peak_bytes: int | None


class Gauge(Protocol):
    """One counter of memory with a peak that can begin anew."""

    name: str

    def read(self) -> Reading | None:
        """The level and the peak since the last restart; None where neither can be told."""
        ...

    def restart(self) -> Reading | None:
        """The level at which the peak begins anew; its peak is None where it cannot."""
        ...


class ProcessGauge:
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


class CudaGauge:
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


class TensorGauge:
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


def find_cuda_gauges() -> list[Gauge]:
    """A gauge for each device torch can use; none before CUDA is started, and none starts it."""
    torch = find_started_torch()
    if torch is None:
        return []
    # The device that code without a number computes on comes first.
    current = torch.cuda.current_device()
    others = [index for index in range(torch.cuda.device_count()) if index != current]
    return [CudaGauge(torch.cuda, index) for index in (current, *others)]


def _is_profiling() -> bool:
    # _profiler_enabled() knows of the calling thread alone; the flag of all of them.
    profiler = sys.modules.get("torch.autograd.profiler")
    return bool(getattr(profiler, "_is_profiler_enabled", False))

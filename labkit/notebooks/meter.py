"""Measures a kernel's process from outside: no code of ours runs in it, nothing is imported there.

The peak of a cell is the operating system's own high-water mark of that one process, reset before
the cell and read after it: exact, and torch.compile is not disturbed. What the process's children
hold (torch.compile's C++ compiler and workers, a DataLoader's workers) is not counted. Where there
is no such mark (macOS), the peak is the highest sample, and the result says so.

Memory over time in a bounded number of points, however long the notebook runs.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from labkit.memory.balance.read import PROC, read_peak_bytes, read_resident_bytes, reset_peak
from labkit.notebooks.result import CellMemory, CudaMemory, Measuring, Point

HIGH_WATER_MARK = "the kernel's high-water mark"
# Each sample is a file read of some 20 us where there is /proc, else a `ps` of some ms.
INTERVAL_SECONDS = 0.1 if PROC.is_dir() else 0.5
SAMPLED = f"sampled every {INTERVAL_SECONDS * 1000:.0f} ms"
ALLOCATOR = "the allocator's own peak"


class Meter:
    """One kernel's memory: per cell, over time, and what the measuring itself took."""

    def __init__(self, tick: Callable[[int | None], None] = lambda resident: None) -> None:
        self._tick = tick
        self._started = time.monotonic()
        self._process_id: int | None = None
        self._timeline = Timeline()
        self._lock = threading.Lock()
        self._done = threading.Event()
        self._thread: threading.Thread | None = None
        self._before: int | None = None
        self._highest: int | None = None
        self._marked = False
        self._how: str | None = None
        self._asked_cuda = False
        self._cell_seconds, self._cells = 0.0, 0
        self._sampling_seconds, self._samples = 0.0, 0

    @property
    def timeline(self) -> Timeline:
        """The points so far."""
        return self._timeline

    @property
    def measuring(self) -> Measuring:
        """How it was measured so far, and the seconds that took."""
        return Measuring(
            process=self._how,
            cuda=ALLOCATOR if self._asked_cuda else None,
            cell_seconds=self._cell_seconds,
            cells=self._cells,
            sampling_seconds=self._sampling_seconds,
            samples=self._samples,
        )

    def attach(self, process_id: int | None) -> None:
        """Starts to sample the process; None where its id is not known: nothing is measured."""
        self._process_id = process_id
        if process_id is not None:
            self._thread = threading.Thread(target=self._sample_on, daemon=True)
            self._thread.start()

    def detach(self) -> None:
        """Ends the sampling."""
        self._done.set()
        if self._thread:
            self._thread.join()

    def begin_cell(self) -> None:
        """A cell is about to run: what is resident now, and the mark put back to that."""
        with self.count_cost():
            self._cells += 1
            self._marked = self._process_id is not None and reset_peak(self._process_id)
            self._before = self._read_resident()
            with self._lock:
                self._highest = self._before

    def end_cell(self) -> CellMemory | None:
        """The memory of the cell that has ended; None where nothing could be measured."""
        with self.count_cost():
            after = self._read_resident()
            peak = read_peak_bytes(self._process_id) if self._marked else None
            self._how = self._how or (HIGH_WATER_MARK if peak is not None else None)
            if peak is None:
                peak = self._highest
                self._how = self._how or (SAMPLED if peak is not None else None)
            # The cell itself may have reset the mark: what was seen beside it counts too.
            seen = (peak, self._highest, self._before, after)
            known = [count for count in seen if count is not None]
        if not known:
            return None
        return CellMemory(self._before, max(known), after)

    def note_cuda(self, cuda: tuple[CudaMemory, ...], reserved_bytes: int) -> None:
        """Puts what the allocator told after a cell on the timeline."""
        self._asked_cuda = self._asked_cuda or bool(cuda)
        self._add_point(self._read_resident(), reserved_bytes)

    @contextmanager
    def count_cost(self) -> Iterator[None]:
        """Counts the time of the block as the measuring's own."""
        started = time.perf_counter()
        try:
            yield
        finally:
            self._cell_seconds += time.perf_counter() - started

    def sample(self) -> None:
        """Reads the process once, for the timeline and for the highest of the running cell."""
        started = time.perf_counter()
        resident = self._read_resident()
        if resident is not None:
            with self._lock:
                self._highest = max(self._highest or 0, resident)
            self._add_point(resident, None)
        self._tick(resident)
        self._samples += 1
        self._sampling_seconds += time.perf_counter() - started

    def _sample_on(self) -> None:
        while not self._done.wait(INTERVAL_SECONDS):
            self.sample()

    def _add_point(self, resident: int | None, cuda: int | None) -> None:
        with self._lock:
            seconds = round(time.monotonic() - self._started, 3)
            self._timeline.add((seconds, resident, cuda))

    def _read_resident(self) -> int | None:
        if self._process_id is None:
            return None
        # A process that has ended and was not collected yet holds 0 pages: not a measurement.
        return read_resident_bytes(self._process_id) or None


POINT_LIMIT = 600
FIRST_WIDTH_SECONDS = 0.05


class Timeline:
    """Points of (seconds, resident bytes, CUDA bytes or None), at most ``limit`` of them.

    Time is cut into slices of one width, and each slice keeps its highest point. Where the slices
    become too many, each two neighbours become one: the thinning is even, and no seen spike is
    lost.
    """

    def __init__(
        self, limit: int = POINT_LIMIT, width_seconds: float = FIRST_WIDTH_SECONDS
    ) -> None:
        self._limit = limit
        self._width = width_seconds
        self._slices: dict[int, Point] = {}

    @property
    def points(self) -> tuple[Point, ...]:
        """What was kept, in the order of time."""
        return tuple(self._slices[number] for number in sorted(self._slices))

    def add(self, point: Point) -> None:
        """Takes in a measured point."""
        self._put(point)
        while len(self._slices) > self._limit:
            self._width *= 2
            points, self._slices = self.points, {}
            for kept in points:
                self._put(kept)

    def _put(self, point: Point) -> None:
        number = int(point[0] / self._width)
        there = self._slices.get(number)
        self._slices[number] = point if there is None else _join(there, point)


def _join(first: Point, second: Point) -> Point:
    """The one of two points with more resident memory, with the higher known CUDA figure."""
    higher = second if (second[1] or 0) > (first[1] or 0) else first
    known = [point[2] for point in (first, second) if point[2] is not None]
    return (higher[0], higher[1], max(known, default=None))

"""Exact peaks for blocks of code that share one counter, nested or overlapping.

A counter keeps one peak. So that a block inside another does not wipe out the outer one's, every
boundary (a block begins or ends) first folds the peak since the last boundary into each block
that is open, and only then resets it. The peak of a block is the highest of its stretches.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Iterable
from typing import NamedTuple

from labkit.memory.gauges import Gauge, ProcessGauge, Reading, TensorGauge, find_cuda_gauges


class Span(NamedTuple):
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


class Block:
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
        process: Gauge | None = None,
        tensors: TensorGauge | None = None,
        find_devices: Callable[[], Iterable[Gauge]] = find_cuda_gauges,
    ) -> None:
        self._process = process or ProcessGauge()
        self._tensors = tensors or TensorGauge()
        self._find_devices = find_devices
        self._open: list[Block] = []
        self._lock = threading.RLock()

    def open_block(self, wants: Callable[[str], bool]) -> Block:
        """Begins a block; raises LabkitError where tensors are wanted and cannot be measured."""
        block = Block(wants)
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

    def close_block(self, block: Block) -> tuple[Span, ...]:
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

    def _list_gauges(self, wants: Callable[[str], bool]) -> list[Gauge]:
        """The counters in the order to read them; they are restarted in the opposite one.

        The process's is read first and restarted last, so that the memory in which the profiler
        hands over its events is not taken for the block's.
        """
        gauges = [self._process, *self._find_devices(), self._tensors]
        return [gauge for gauge in gauges if wants(gauge.name)]

    def _list_shared(self, gauges: list[Gauge]) -> list[Gauge]:
        return [gauge for gauge in gauges if any(one.wants(gauge.name) for one in self._open)]

    def _fold(self, gauge: Gauge) -> Reading | None:
        """The counter now, its peak put into every open block that wants it."""
        reading = gauge.read()
        if reading is None:
            return None
        for block in self._open:
            if block.wants(gauge.name):
                # A device that torch started inside the block held nothing before.
                block.stretches.setdefault(gauge.name, Stretch(0, 0)).fold(reading.peak_bytes)
        return reading


def _end_stretch(gauge: Gauge, stretch: Stretch, reading: Reading) -> Span:
    before, peak, after = stretch.before_bytes, stretch.peak_bytes, reading.level_bytes
    # Tensors are counted from the block's beginning; what was there before is not known.
    base = before if isinstance(gauge, TensorGauge) else 0
    # The kernel sums resident pages up lazily: its mark can lag behind what it tells of now.
    highest = None if peak is None else max(peak, before, after) - base
    return Span(gauge.name, before - base, highest, after - base)


LEDGER = Ledger()
if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=LEDGER.forget_all)

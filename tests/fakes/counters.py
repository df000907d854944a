"""Counters of memory that a test plays: what is taken and given back, with one peak to keep."""

from __future__ import annotations

from labkit.memory.track.counters import OpenBlocks, Reading
from labkit.memory.track.tracker import MemoryTracker


class FakeDevice:
    """A counter whose memory the test takes and gives back; it keeps one peak, as real ones do."""

    def __init__(self, name="cuda:0", level=0, *, exact=True):
        self.name, self.level, self.peak, self.exact = name, level, level, exact
        self.resets = 0

    def take(self, count):
        self.level += count
        self.peak = max(self.peak, self.level)

    def read(self):
        return Reading(self.level, self.peak if self.exact else None)

    def reset(self):
        self.resets += 1
        self.peak = self.level
        return self.read()


class NoCounter(FakeDevice):
    """A counter that tells nothing."""

    def read(self):
        return None

    reset = read


def track(*devices, process_counter=None, device=None, **options):
    """A function that makes trackers on these counters, which share their list of open blocks."""
    found = list(devices)
    open_blocks = OpenBlocks(process_counter or NoCounter("process"), find_devices=lambda: found)
    return lambda: MemoryTracker(device, open_blocks=open_blocks, **options)

"""How much of a device's memory storages hold: the level, its exact peak, what was live at it.

Plain bookkeeping, without torch. To know at the end what was live at the peak, no picture is taken
on the way, which would cost as much as there are storages at each new peak: every storage knows
when it was born, and those that have gone since the peak are kept until there is a higher one.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from typing import NamedTuple

from labkit.memory.track.frames import Frame

# What a storage is for, in the order in which it is told.
CATEGORIES = ("parameters", "gradients", "optimizer", "activations", "inputs", "other")


class Storage:
    """One piece of memory that tensors share; a resized one counts as a new one.

    ``serial`` is never given twice, unlike an address. ``before`` says that it was there when
    the tracing began, and was found when it was used. ``frames`` are the user's lines that
    allocated it, innermost first; for what backward allocates, those of the forward operator it
    belongs to (``backward`` is True).
    """

    __slots__ = ("backward", "before", "born", "bytes", "device", "frames", "kind", "serial")

    def __init__(
        self,
        serial: int,
        count: int,
        device: str,
        kind: str,
        frames: tuple[Frame, ...] = (),
        *,
        before: bool = False,
        backward: bool = False,
    ) -> None:
        self.serial, self.bytes, self.device, self.kind = serial, count, device, kind
        self.frames, self.before, self.backward = frames, before, backward
        self.born = 0

    def __repr__(self) -> str:
        where = self.frames[0].where if self.frames else "unknown line"
        return f"<storage {self.serial}: {self.bytes} B of {self.kind} on {self.device}, {where}>"


class LineUse(NamedTuple):
    """What one line of the user's code held, in bytes and storages; no frame: not known."""

    frame: Frame | None
    held_bytes: int
    storages: int


class Level:
    """One device's bytes in storages: now, at most, and at the beginning."""

    def __init__(self) -> None:
        self.now_bytes = self.peak_bytes = self.before_bytes = 0
        self._clock = self._peak_time = 0
        self._live: dict[int, Storage] = {}
        self._gone_since_peak: list[Storage] = []

    def add(self, storage: Storage) -> None:
        """Counts a storage, from now on or, where it was there before, from the beginning."""
        self._live[storage.serial] = storage
        self.now_bytes += storage.bytes
        if storage.before:
            # It was under every level so far: the moment of the peak does not move.
            self.before_bytes += storage.bytes
            self.peak_bytes += storage.bytes
            return
        self._clock += 1
        storage.born = self._clock
        if self.now_bytes > self.peak_bytes:
            self.peak_bytes, self._peak_time = self.now_bytes, self._clock
            self._gone_since_peak.clear()

    def remove(self, storage: Storage) -> None:
        """Takes back a storage that is freed."""
        del self._live[storage.serial]
        self.now_bytes -= storage.bytes
        if storage.born <= self._peak_time:
            self._gone_since_peak.append(storage)

    def list_at_peak(self) -> list[Storage]:
        """The storages that were live when the level was highest for the first time."""
        live = [one for one in self._live.values() if one.born <= self._peak_time]
        return live + self._gone_since_peak


def sum_categories(storages: Iterable[Storage]) -> dict[str, int]:
    """Bytes by kind, each kind there; they add up to all of them."""
    sums = dict.fromkeys(CATEGORIES, 0)
    for one in storages:
        sums[one.kind] += one.bytes
    return sums


def sum_lines(storages: Iterable[Storage], most: int | None = None) -> tuple[LineUse, ...]:
    """The lines that allocated these storages, the one that holds most first."""
    frames: dict[tuple[str, int] | None, Frame | None] = {}
    held: Counter[tuple[str, int] | None] = Counter()
    count: Counter[tuple[str, int] | None] = Counter()
    for one in storages:
        frame = one.frames[0] if one.frames else None
        line = frame and (frame.file, frame.line)
        frames.setdefault(line, frame)
        held[line] += one.bytes
        count[line] += 1
    ranked = [(line, total) for line, total in held.most_common(most) if total]
    return tuple(LineUse(frames[line], total, count[line]) for line, total in ranked)

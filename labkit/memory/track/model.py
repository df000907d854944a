"""The figures of a measured block, and the storages that a traced block used. Without torch.

To know at the end what was live at the peak, no list is copied at each new peak, which would cost
as much as there are storages: every storage knows when it was allocated, and those freed since
the peak are kept until there is a higher one.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from typing import NamedTuple

from labkit.memory.track.frames import Frame
from labkit.render import Displayed

# What a storage is for, in the order in which it is shown.
CATEGORIES = ("parameters", "gradients", "optimizer", "activations", "inputs", "other")


@dataclass(slots=True, eq=False)
class Storage:
    """One piece of memory that tensors share; a resized storage counts as a new one.

    ``serial`` is never reused, unlike an address. ``before``: it existed when the tracing began,
    and was found when it was first used. ``frames`` are the user's lines that allocated it,
    innermost first; for what backward allocates (``backward`` is True), those of its forward
    operator. ``born`` counts the storages that its ``Level`` has seen.
    """

    serial: int
    bytes: int
    device: str
    category: str
    frames: tuple[Frame, ...] = ()
    before: bool = False
    backward: bool = False
    born: int = 0


class Level:
    """One device's bytes in storages: now, at the peak, and before the block."""

    def __init__(self) -> None:
        self.now_bytes = self.peak_bytes = self.before_bytes = 0
        self._clock = self._peak_time = 0
        self._live: dict[int, Storage] = {}
        self._freed_since_peak: list[Storage] = []

    def add(self, storage: Storage) -> None:
        """Counts a storage from now on; one that existed before the block, from its beginning."""
        self._live[storage.serial] = storage
        self.now_bytes += storage.bytes
        if storage.before:
            # It was part of every level so far: the moment of the peak does not move.
            self.before_bytes += storage.bytes
            self.peak_bytes += storage.bytes
            return
        self._clock += 1
        storage.born = self._clock
        if self.now_bytes > self.peak_bytes:
            self.peak_bytes, self._peak_time = self.now_bytes, self._clock
            self._freed_since_peak.clear()

    def remove(self, storage: Storage) -> None:
        """Subtracts a storage that is freed."""
        del self._live[storage.serial]
        self.now_bytes -= storage.bytes
        if storage.born <= self._peak_time:
            self._freed_since_peak.append(storage)

    def list_at_peak(self) -> list[Storage]:
        """The storages that were live when the level was highest for the first time."""
        live = [one for one in self._live.values() if one.born <= self._peak_time]
        return live + self._freed_since_peak


class LineUse(NamedTuple):
    """Bytes and storages that one line of the user's code allocated; no frame: an unknown line."""

    frame: Frame | None
    held_bytes: int
    storages: int


class Breakdown(NamedTuple):
    """What one device's tensors were for at their peak: bytes by category and bytes by line.

    ``categories`` (all of ``CATEGORIES``) adds up to ``peak_bytes``. Tensors from before the
    block are included where the block used them.
    """

    where: str
    peak_bytes: int
    categories: dict[str, int]
    lines: tuple[LineUse, ...] = ()


class BlockSpan(NamedTuple):
    """One counter over a block, in bytes: before, at the peak, after; ``None`` is not measured."""

    where: str
    before_bytes: int
    peak_bytes: int | None
    after_bytes: int | None

    @property
    def added_bytes(self) -> int | None:
        """How far the peak rose above the level at the beginning."""
        return None if self.peak_bytes is None else self.peak_bytes - self.before_bytes

    @property
    def change_bytes(self) -> int | None:
        """What the block allocated and still holds; below zero where it freed more."""
        return None if self.after_bytes is None else self.after_bytes - self.before_bytes


@dataclass(frozen=True, repr=False)
class MemoryUse(Displayed, view="labkit.memory.track.view", text="format_use"):
    """What a block used: its seconds, and a span in bytes for each counter that was read.

    ``breakdowns`` has one for each device that had tensors, where categories or lines were asked
    for.
    """

    seconds: float
    spans: tuple[BlockSpan, ...]
    breakdowns: tuple[Breakdown, ...] = ()

    def find_span(self, where: str) -> BlockSpan | None:
        """The span of ``"cuda:0"``, ``"tensors"`` or ``"process"``; None if not measured."""
        return next((span for span in self.spans if span.where == where), None)


def sum_categories(storages: Iterable[Storage]) -> dict[str, int]:
    """Bytes of every category; they add up to the bytes of all the storages."""
    sums = dict.fromkeys(CATEGORIES, 0)
    for one in storages:
        sums[one.category] += one.bytes
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

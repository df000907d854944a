"""The figures of a measured block, and the storages of a traced block. Does not import torch.

The storages live at the peak are found without copying a list at each new peak, which would be
slow with many storages: every storage has the number of its allocation, and storages freed since
the peak are kept until there is a higher peak.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from typing import NamedTuple

from labkit.memory.track.frames import Frame
from labkit.render import Displayed

# The categories of storages, in display order.
CATEGORIES = (
    *("parameters", "gradients", "optimizer", "buckets"),
    *("activations", "inputs", "other"),
)


@dataclass(slots=True, eq=False)
class Storage:
    """One piece of memory that tensors share; a resized storage counts as a new one.

    ``serial`` is never reused, unlike an address. ``before``: it existed when the tracing began,
    and was found when it was first used. ``frames`` are the user's lines that allocated it,
    innermost first; if backward allocated it (``backward`` is True), those of its forward
    operator. ``born`` is the number of storages that its ``Level`` had counted.
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
    """One device's bytes in storages: current, at the peak, and before the block."""

    def __init__(self) -> None:
        self.now_bytes = self.peak_bytes = self.before_bytes = 0
        self._clock = self._peak_time = 0
        self._live: dict[int, Storage] = {}
        self._freed_since_peak: list[Storage] = []

    def add(self, storage: Storage) -> None:
        """Adds a storage; one that existed before the block is counted from the block's start."""
        self._live[storage.serial] = storage
        self.now_bytes += storage.bytes
        if storage.before:
            # It was part of every level so far, so the time of the peak does not change.
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
    """Bytes and storages that one user line allocated; the frame is None for an unknown line."""

    frame: Frame | None
    held_bytes: int
    storages: int


class Breakdown(NamedTuple):
    """One device's tensors at their peak: bytes by category and bytes by line.

    ``categories`` (all of ``CATEGORIES``) adds up to ``peak_bytes``. Tensors from before the
    block are included if the block used them. With ``unused_bytes`` (other tensors from before)
    and ``scratch_bytes`` (workspaces of libraries such as cuBLAS, what operators allocate and
    free within themselves, the allocator's rounding) it adds up to the counter's peak; both are
    None without a counter. ``trouble`` says which tensors could not be followed.
    """

    where: str
    peak_bytes: int
    categories: dict[str, int]
    lines: tuple[LineUse, ...] = ()
    unused_bytes: int | None = None
    scratch_bytes: int | None = None
    trouble: str | None = None


class BlockSpan(NamedTuple):
    """One counter over a block, in bytes: before, at the peak, after; ``None`` is not measured."""

    where: str
    before_bytes: int
    peak_bytes: int | None
    after_bytes: int | None

    @property
    def added_bytes(self) -> int | None:
        """The peak minus the level at the block's start."""
        return None if self.peak_bytes is None else self.peak_bytes - self.before_bytes

    @property
    def change_bytes(self) -> int | None:
        """The bytes that the block allocated and still holds; negative if it freed more."""
        return None if self.after_bytes is None else self.after_bytes - self.before_bytes


@dataclass(frozen=True, repr=False)
class MemoryUse(Displayed, view="labkit.memory.track.view", text="format_use"):
    """The memory use of a block: its seconds, and a span in bytes for each counter.

    ``breakdowns`` has one entry per device that had tensors, if categories or lines were requested.
    ``rank`` is this process's rank and the world size; None without a process group.
    """

    seconds: float
    spans: tuple[BlockSpan, ...]
    breakdowns: tuple[Breakdown, ...] = ()
    rank: tuple[int, int] | None = None

    def find_span(self, where: str) -> BlockSpan | None:
        """The span of ``"cuda:0"``, ``"tensors"`` or ``"process"``; None if not measured."""
        return next((span for span in self.spans if span.where == where), None)


def split_rest(level: Level, span: BlockSpan | None) -> tuple[int | None, int | None]:
    """What a counter saw at its peak beyond the storages: from before and not used, and the rest.

    Tensors that the block only freed are not at the peak, so they are not "not used" there.
    """
    if span is None or span.peak_bytes is None:
        return None, None
    if level.before_bytes and not span.before_bytes:  # torch's profiler counts from the start
        return None, max(0, span.peak_bytes + level.before_bytes - level.peak_bytes)
    rest = max(0, span.peak_bytes - level.peak_bytes)
    unused = min(rest, max(0, span.before_bytes - level.before_bytes))
    return unused, rest - unused


def sum_categories(storages: Iterable[Storage]) -> dict[str, int]:
    """Bytes of every category; they add up to the bytes of all the storages."""
    sums = dict.fromkeys(CATEGORIES, 0)
    for one in storages:
        sums[one.category] += one.bytes
    return sums


def sum_lines(storages: Iterable[Storage], most: int | None = None) -> tuple[LineUse, ...]:
    """The lines that allocated these storages, the one that holds most first.

    Lines that hold as much stand in the order of the file: when storages were freed does not count.
    """
    frames: dict[tuple[str, int] | None, Frame | None] = {}
    held: Counter[tuple[str, int] | None] = Counter()
    count: Counter[tuple[str, int] | None] = Counter()
    for one in storages:
        frame = one.frames[0] if one.frames else None
        line = frame and (frame.file, frame.line)
        frames.setdefault(line, frame)
        held[line] += one.bytes
        count[line] += 1
    lines = sorted(filter(held.get, held), key=lambda line: (-held[line], line or ("", 0)))
    return tuple(LineUse(frames[line], held[line], count[line]) for line in lines[:most])

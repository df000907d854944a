"""Replays the events of one device: live and reserved bytes after each event, and the layout.

Level 0 is the state before the first event; level ``n`` is the state after ``n`` events. Sizes
are those requested: the allocator rounds them up (on CUDA to 512 bytes), but the rounded sizes of
freed blocks are not recorded.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import NamedTuple

from labkit.memory.allocations.snapshot import (
    ALLOC,
    FREE_COMPLETED,
    FREE_REQUESTED,
    MAPPED,
    SEGMENT_ADDED,
    SEGMENT_REMOVED,
    Trace,
)
from labkit.memory.track.frames import Frame


class Held(NamedTuple):
    """A live block; ``event`` is the index of its allocation, None if it was before the first."""

    address: int
    size_bytes: int
    frames: tuple[Frame, ...] = ()
    event: int | None = None
    metadata: str = ""


class ReplayedLevels(NamedTuple):
    """Live bytes and reserved bytes at each level."""

    live: list[int]
    reserved: list[int]

    @property
    def peak(self) -> int:
        """The first level with the most live bytes."""
        return self.live.index(max(self.live))


def name_free_action(trace: Trace) -> str:
    """The action after which a block's memory is free again.

    A block that another stream still uses is free only when the free is completed. A recorder may
    leave those events out; then the request counts.
    """
    asked: set[int] = set()
    for event in trace.events:
        if event.action == FREE_COMPLETED:
            return FREE_COMPLETED
        if event.action == FREE_REQUESTED:
            asked.add(event.address)
        elif event.action == ALLOC:
            asked.discard(event.address)
    still_used = any(
        block.live and block.address in asked
        for segment in trace.segments
        for block in segment.blocks
    )
    return FREE_COMPLETED if still_used else FREE_REQUESTED


def find_start(trace: Trace) -> dict[int, Held]:
    """The blocks that were live before the first event, by address.

    These blocks are freed, or live at the end, without an allocation event: they were allocated
    before the recording, or newer events have replaced that event.
    """
    free_action = name_free_action(trace)
    start: dict[int, Held] = {}
    allocated: set[int] = set()
    for event in trace.events:
        if event.action == ALLOC:
            allocated.add(event.address)
        elif event.action == free_action:
            if event.address not in allocated:
                frames = event.frames if trace.frees_have_origin else ()
                start.setdefault(event.address, Held(event.address, event.size_bytes, frames))
            allocated.discard(event.address)
    for segment in trace.segments:
        for block in segment.blocks:
            if block.live and block.address not in allocated and block.address not in start:
                start[block.address] = Held(block.address, block.asked_bytes, block.frames)
    return start


def walk_live(trace: Trace) -> Iterator[tuple[dict[int, Held], Held | None, Held | None]]:
    """For each level: the live blocks by address, the block allocated, and the block freed.

    It yields the same dictionary object every time. An address that is allocated twice was freed
    in between without an event.
    """
    free_action = name_free_action(trace)
    live = find_start(trace)
    yield live, None, None
    for place, event in enumerate(trace.events):
        came = went = None
        if event.action == ALLOC:
            went = live.get(event.address)
            came = Held(event.address, event.size_bytes, event.frames, place, event.metadata)
            live[event.address] = came
        elif event.action == free_action:
            went = live.pop(event.address, None)
        yield live, came, went


def measure_levels(trace: Trace) -> ReplayedLevels:
    """The live and reserved bytes at every level."""
    live: list[int] = []
    level = 0
    for held, came, went in walk_live(trace):
        level += (came.size_bytes if came else 0) - (went.size_bytes if went else 0)
        if not live:
            level = sum(one.size_bytes for one in held.values())
        live.append(level)
    return ReplayedLevels(live, _measure_reserved(trace))


def _measure_reserved(trace: Trace) -> list[int]:
    """The bytes of all segments at every level, counted back from the segments at the end."""
    steps = [0]
    for event in trace.events:
        step = 0
        if event.action in SEGMENT_ADDED:
            step = event.size_bytes
        elif event.action in SEGMENT_REMOVED:
            step = -event.size_bytes
        steps.append(steps[-1] + step)
    # Never below zero, if the recording lacks some events of segments.
    start = max(sum(one.size_bytes for one in trace.segments) - steps[-1], -min(steps))
    return [start + step for step in steps]


def list_live(trace: Trace, levels: Iterable[int]) -> dict[int, tuple[Held, ...]]:
    """The live blocks at each of these levels."""
    wanted = set(levels)
    return {
        level: tuple(held.values())
        for level, (held, _, _) in enumerate(walk_live(trace))
        if level in wanted
    }


ROUNDING_BYTES = 512
SEGMENTS_CHANGED = SEGMENT_ADDED | SEGMENT_REMOVED


class LayoutSpan(NamedTuple):
    """A range of addresses."""

    address: int
    size_bytes: int

    @property
    def end(self) -> int:
        """The first address after it."""
        return self.address + self.size_bytes


class LaidSegment(NamedTuple):
    """A segment with its live ranges in address order; adjacent ranges are joined.

    ``private``: only a CUDA graph or a MemPool can use it; False if it was freed in the recording,
    because only the segments at the end tell.
    """

    span: LayoutSpan
    live: tuple[LayoutSpan, ...] = ()
    stream: int = 0
    private: bool = False

    @property
    def gaps(self) -> tuple[LayoutSpan, ...]:
        """The free ranges."""
        found, at = [], self.span.address
        for one in (*self.live, LayoutSpan(self.span.end, 0)):
            if one.address > at:
                found.append(LayoutSpan(at, one.address - at))
            at = max(at, one.end)
        return tuple(found)


class Fragmentation(NamedTuple):
    """The reserved memory at one moment, in bytes; ``segments`` has the largest first."""

    reserved_bytes: int
    free_bytes: int
    largest_free_bytes: int
    pieces: int
    segments: tuple[LaidSegment, ...] = ()

    @property
    def live_bytes(self) -> int:
        """Reserved bytes in use, including the allocator's rounding."""
        return self.reserved_bytes - self.free_bytes

    @property
    def private_free_bytes(self) -> int:
        """Free bytes in the private pools of CUDA graphs and MemPools."""
        return sum(gap.size_bytes for one in self.segments if one.private for gap in one.gaps)

    def list_usable(self, stream: int | None = None) -> list[int]:
        """The sizes of the free pieces outside of private pools, of one stream or of all."""
        usable = (one for one in self.segments if not one.private and stream in (None, one.stream))
        return [gap.size_bytes for one in usable for gap in one.gaps]


def measure_fragmentation(trace: Trace, level: int, live: Sequence[Held]) -> Fragmentation | None:
    """The fragmentation of the reserved memory; None on the CPU, where nothing is reserved."""
    if not trace.has_cache:
        return None
    segments = lay_out(trace, level, live)
    gaps = [gap.size_bytes for segment in segments for gap in segment.gaps]
    return Fragmentation(
        reserved_bytes=sum(segment.span.size_bytes for segment in segments),
        free_bytes=sum(gaps),
        largest_free_bytes=max(gaps, default=0),
        pieces=len(gaps),
        segments=segments,
    )


def lay_out(trace: Trace, level: int, live: Iterable[Held]) -> tuple[LaidSegment, ...]:
    """The segments at a level with these blocks in them, largest first."""
    sizes = {}
    if level == len(trace.events):  # at the end torch has the real size of each block
        sizes = {b.address: b.size_bytes for s in trace.segments for b in s.blocks if b.live}
    ranges = sorted(
        LayoutSpan(one.address, sizes.get(one.address, _round_up(one.size_bytes))) for one in live
    )
    uses = {e.address: (e.stream, False) for e in trace.events if e.action in SEGMENTS_CHANGED}
    uses |= {one.address: (one.stream, one.private) for one in trace.segments}
    laid, place = [], 0
    for span in find_segments(trace, level):
        inside: list[LayoutSpan] = []
        while place < len(ranges) and ranges[place].address < span.end:
            if ranges[place].address >= span.address:
                _append(inside, ranges[place], span.end)
            place += 1
        laid.append(LaidSegment(span, tuple(inside), *uses.get(span.address, (0, False))))
    return tuple(sorted(laid, key=lambda one: -one.span.size_bytes))


def find_segments(trace: Trace, level: int) -> list[LayoutSpan]:
    """The segments at a level in address order, from those at the end by undoing later events."""
    fixed = {one.address: one.size_bytes for one in trace.segments if not one.expandable}
    mapped = [LayoutSpan(one.address, one.size_bytes) for one in trace.segments if one.expandable]
    for event in reversed(trace.events[level:]):
        span = LayoutSpan(event.address, event.size_bytes)
        if event.action in SEGMENT_ADDED:
            if event.action in MAPPED:
                mapped = _cut_out(mapped, span)
            else:
                fixed.pop(span.address, None)
        elif event.action in SEGMENT_REMOVED:
            if event.action in MAPPED:
                mapped = _join([*mapped, span])
            else:
                fixed[span.address] = span.size_bytes
    return sorted([*(LayoutSpan(*pair) for pair in fixed.items()), *_join(mapped)])


def _append(ranges: list[LayoutSpan], span: LayoutSpan, limit: int) -> None:
    """Appends a range within the segment, joined to the last one if they touch."""
    end = min(span.end, limit)
    if ranges and ranges[-1].end >= span.address:
        ranges[-1] = LayoutSpan(ranges[-1].address, max(ranges[-1].end, end) - ranges[-1].address)
    else:
        ranges.append(LayoutSpan(span.address, end - span.address))


def _join(spans: Iterable[LayoutSpan]) -> list[LayoutSpan]:
    """Joins adjacent ranges, because an expandable segment grows page by page."""
    joined: list[LayoutSpan] = []
    for span in sorted(spans):
        _append(joined, span, span.end)
    return joined


def _cut_out(spans: Iterable[LayoutSpan], hole: LayoutSpan) -> list[LayoutSpan]:
    left = []
    for span in spans:
        if span.end <= hole.address or hole.end <= span.address:
            left.append(span)
            continue
        if span.address < hole.address:
            left.append(LayoutSpan(span.address, hole.address - span.address))
        if hole.end < span.end:
            left.append(LayoutSpan(hole.end, span.end - hole.end))
    return left


def _round_up(count: int) -> int:
    """The smallest block size for a request: torch's CUDA allocator uses multiples of 512 bytes."""
    return max(1, -(-count // ROUNDING_BYTES)) * ROUNDING_BYTES

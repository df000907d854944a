"""How the reserved memory is cut up at a level: segments with their live blocks and their gaps."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import NamedTuple

from labkit.memory.history.replay import Held
from labkit.memory.history.snapshot import MAPPED, SEGMENT_ADDED, SEGMENT_REMOVED, Trace

ROUNDING_BYTES = 512


class Span(NamedTuple):
    """A range of addresses."""

    address: int
    size_bytes: int

    @property
    def end(self) -> int:
        """The first address behind it."""
        return self.address + self.size_bytes


class LaidSegment(NamedTuple):
    """A segment with what is live in it, in order of address; neighbours are joined."""

    span: Span
    live: tuple[Span, ...] = ()

    @property
    def gaps(self) -> tuple[Span, ...]:
        """The free pieces."""
        found, at = [], self.span.address
        for one in (*self.live, Span(self.span.end, 0)):
            if one.address > at:
                found.append(Span(at, one.address - at))
            at = max(at, one.end)
        return tuple(found)


class Fragmentation(NamedTuple):
    """The reserved memory at one moment, in bytes; the layout has its segments, largest first."""

    reserved_bytes: int
    free_bytes: int
    largest_free_bytes: int
    pieces: int
    segments: tuple[LaidSegment, ...] = ()

    @property
    def live_bytes(self) -> int:
        """Reserved and in use, with what the allocator rounds up."""
        return self.reserved_bytes - self.free_bytes


def measure_fragmentation(trace: Trace, level: int, live: Sequence[Held]) -> Fragmentation | None:
    """How the reserved memory was cut up; None on the CPU, where nothing is kept in reserve."""
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
    if level == len(trace.events):  # at the end torch tells what each block really takes
        sizes = {b.address: b.size_bytes for s in trace.segments for b in s.blocks if b.live}
    ranges = sorted(
        Span(one.address, sizes.get(one.address, _round_up(one.size_bytes))) for one in live
    )
    laid, place = [], 0
    for span in find_segments(trace, level):
        inside: list[Span] = []
        while place < len(ranges) and ranges[place].address < span.end:
            if ranges[place].address >= span.address:
                _append(inside, ranges[place], span.end)
            place += 1
        laid.append(LaidSegment(span, tuple(inside)))
    return tuple(sorted(laid, key=lambda one: -one.span.size_bytes))


def find_segments(trace: Trace, level: int) -> list[Span]:
    """The segments at a level in order of address: those at the end, with later events undone."""
    fixed = {one.address: one.size_bytes for one in trace.segments if not one.expandable}
    mapped = [Span(one.address, one.size_bytes) for one in trace.segments if one.expandable]
    for event in reversed(trace.events[level:]):
        span = Span(event.address, event.size_bytes)
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
    return sorted([*(Span(*pair) for pair in fixed.items()), *_join(mapped)])


def _append(ranges: list[Span], span: Span, limit: int) -> None:
    """Adds a range behind the others, joined to its neighbour, within the segment."""
    end = min(span.end, limit)
    if ranges and ranges[-1].end >= span.address:
        ranges[-1] = Span(ranges[-1].address, max(ranges[-1].end, end) - ranges[-1].address)
    else:
        ranges.append(Span(span.address, end - span.address))


def _join(spans: Iterable[Span]) -> list[Span]:
    """Ranges that touch become one: an expandable segment grows page by page."""
    joined: list[Span] = []
    for span in sorted(spans):
        _append(joined, span, span.end)
    return joined


def _cut_out(spans: Iterable[Span], hole: Span) -> list[Span]:
    left = []
    for span in spans:
        if span.end <= hole.address or hole.end <= span.address:
            left.append(span)
            continue
        if span.address < hole.address:
            left.append(Span(span.address, hole.address - span.address))
        if hole.end < span.end:
            left.append(Span(hole.end, span.end - hole.end))
    return left


def _round_up(count: int) -> int:
    """What a block takes at least: torch's CUDA allocator hands out multiples of 512 bytes."""
    return max(1, -(-count // ROUNDING_BYTES)) * ROUNDING_BYTES

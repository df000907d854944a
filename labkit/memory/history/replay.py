"""The events of one device played back: how much was live and reserved after each, and what.

Levels are counted from 0, before the first event; level ``n`` is the state after ``n`` events.
Sizes are those that were asked for: the allocator rounds them up (on CUDA to 512 bytes), and what
it rounded for blocks that are gone is not recorded.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import NamedTuple

from labkit.memory.frames import Frame
from labkit.memory.history.snapshot import (
    ALLOC,
    FREE_COMPLETED,
    FREE_REQUESTED,
    SEGMENT_ADDED,
    SEGMENT_REMOVED,
    Trace,
)


class Held(NamedTuple):
    """A block that is live; ``event`` is the place of its allocation, None: before the first."""

    address: int
    size_bytes: int
    frames: tuple[Frame, ...] = ()
    event: int | None = None


class Levels(NamedTuple):
    """Bytes live and bytes reserved, a number for each level."""

    live: list[int]
    reserved: list[int]

    @property
    def peak(self) -> int:
        """The first level at which the most was live."""
        return self.live.index(max(self.live))


def name_free_action(trace: Trace) -> str:
    """The event after which a block's memory is free again.

    A block that another stream still uses is free only once that is done. A recorder can have
    been told to leave those events out: then asking for it must do.
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

    They are those that were freed, or are live at the end, and of whose allocation there is no
    event: it was before the recording, or newer events have pushed it out.
    """
    free_action = name_free_action(trace)
    start: dict[int, Held] = {}
    allocated: set[int] = set()
    for event in trace.events:
        if event.action == ALLOC:
            allocated.add(event.address)
        elif event.action == free_action:
            if event.address not in allocated:
                frames = event.frames if trace.frees_tell_origin else ()
                start.setdefault(event.address, Held(event.address, event.size_bytes, frames))
            allocated.discard(event.address)
    for segment in trace.segments:
        for block in segment.blocks:
            if block.live and block.address not in allocated and block.address not in start:
                start[block.address] = Held(block.address, block.asked_bytes, block.frames)
    return start


def walk_live(trace: Trace) -> Iterator[tuple[dict[int, Held], Held | None, Held | None]]:
    """At each level the live blocks by address, the block that came, and the one that went.

    The dictionary is the same one all along. An address that is given out twice without having
    been freed was freed without an event.
    """
    free_action = name_free_action(trace)
    live = find_start(trace)
    yield live, None, None
    for place, event in enumerate(trace.events):
        came = went = None
        if event.action == ALLOC:
            went = live.get(event.address)
            came = Held(event.address, event.size_bytes, event.frames, place)
            live[event.address] = came
        elif event.action == free_action:
            went = live.pop(event.address, None)
        yield live, came, went


def measure_levels(trace: Trace) -> Levels:
    """How much was live and how much reserved at every level."""
    live: list[int] = []
    level = 0
    for held, came, went in walk_live(trace):
        level += (came.size_bytes if came else 0) - (went.size_bytes if went else 0)
        if not live:
            level = sum(one.size_bytes for one in held.values())
        live.append(level)
    return Levels(live, _measure_reserved(trace))


def _measure_reserved(trace: Trace) -> list[int]:
    """Bytes of all segments at every level, counted back from the segments at the end."""
    steps = [0]
    for event in trace.events:
        step = 0
        if event.action in SEGMENT_ADDED:
            step = event.size_bytes
        elif event.action in SEGMENT_REMOVED:
            step = -event.size_bytes
        steps.append(steps[-1] + step)
    # Never below zero, where events of segments were left out of the recording.
    start = max(sum(one.size_bytes for one in trace.segments) - steps[-1], -min(steps))
    return [start + step for step in steps]


def list_live(trace: Trace, levels: Iterable[int]) -> dict[int, tuple[Held, ...]]:
    """What was live at each of these levels."""
    wanted = set(levels)
    return {
        level: tuple(held.values())
        for level, (held, _, _) in enumerate(walk_live(trace))
        if level in wanted
    }

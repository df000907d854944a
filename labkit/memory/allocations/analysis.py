"""Analyzes a recording: each device's peak, its lines, fragmentation, and memory never freed.

Live blocks are grouped by the line that allocated them: the innermost line outside torch, Python's
standard library and labkit. If that line is in another package, the user's line that called it is
named too.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import NamedTuple

from labkit.memory.allocations.replay import (
    Fragmentation,
    Held,
    ReplayedLevels,
    find_start,
    list_live,
    measure_fragmentation,
    measure_levels,
    walk_live,
)
from labkit.memory.allocations.snapshot import OOM, Recording, Trace
from labkit.memory.track.frames import NATIVE, PACKAGE, USER, Frame, judge_file
from labkit.render import Displayed

STACKS_KEPT = 3

BEFORE = "before the first event"
NO_STACK = "no Python line: most likely the backward pass, which runs in a thread of torch"


class Place(NamedTuple):
    """The origin of blocks: a frame, or words if there is none; ``via`` is the user's line.

    ``metadata`` is what the program named this part of its run (``_set_memory_metadata``).
    """

    frame: Frame | None
    words: str = ""
    via: Frame | None = None
    metadata: str = ""


class Stack(NamedTuple):
    """A complete stack, innermost first, with the bytes that it allocated."""

    frames: tuple[Frame, ...]
    held_bytes: int


class Group(NamedTuple):
    """All live blocks of one place, its largest stacks, and how many stacks it has."""

    place: Place
    held_bytes: int
    blocks: int
    stacks: tuple[Stack, ...] = ()
    stack_count: int = 0


def find_place(held: Held) -> Place:
    """The place that allocated a block."""
    return _find_line(held)._replace(metadata=held.metadata)


def _find_line(held: Held) -> Place:
    innermost: Frame | None = None
    package: Frame | None = None
    for frame in held.frames:
        if not NATIVE.search(frame.file):
            innermost = innermost or frame
        whose = judge_file(frame.file)
        if whose == USER:
            return Place(package, via=frame) if package else Place(frame)
        if whose == PACKAGE and package is None:
            package = frame
    if innermost is None:
        return Place(None, BEFORE if held.event is None else NO_STACK)
    return Place(package or innermost)


def group_by_line(blocks: Iterable[Held]) -> tuple[Group, ...]:
    """The blocks by place, the place with most bytes first."""
    found: dict[Place, list[Held]] = {}
    for held in blocks:
        found.setdefault(find_place(held), []).append(held)
    groups = [_sum_up(place, held) for place, held in found.items()]
    return tuple(sorted(groups, key=lambda group: -group.held_bytes))


def _sum_up(place: Place, blocks: list[Held]) -> Group:
    stacks: dict[tuple[Frame, ...], int] = {}
    for held in blocks:
        stacks[held.frames] = stacks.get(held.frames, 0) + held.size_bytes
    largest = sorted(stacks.items(), key=lambda pair: -pair[1])[:STACKS_KEPT]
    kept = tuple(Stack(frames, count) for frames, count in largest if frames)
    total = sum(held.size_bytes for held in blocks)
    return Group(place, total, len(blocks), kept, len(stacks))


COLUMNS = 800
BANDS = 6
FAILURES_KEPT = 5


class TimelineColumn(NamedTuple):
    """A range of levels in the picture: its highest level, the lowest, and the most reserved.

    ``bands`` has the live bytes of each colored line at the highest level; the rest belongs to
    other lines.
    """

    level: int
    seconds: float | None
    live_bytes: int
    lowest_bytes: int
    reserved_bytes: int
    bands: tuple[int, ...]


class Moment(NamedTuple):
    """One level: its time, live and reserved bytes, lines and fragmentation.

    ``event`` is the number of events before it.
    """

    event: int
    seconds: float | None
    live_bytes: int
    reserved_bytes: int
    groups: tuple[Group, ...]
    fragmentation: Fragmentation | None = None


class OutOfMemoryEvent(NamedTuple):
    """An allocation that failed: the bytes requested, those free on the device, the moment.

    Free pieces of other streams, and of private pools, could not serve it.
    """

    asked_bytes: int
    device_free_bytes: int | None
    place: Place
    moment: Moment
    stream: int = 0


class DeviceHistory(NamedTuple):
    """The analysis of one device in a recording.

    ``truncated`` is None if the recording does not have its limit of entries. ``kept`` was
    allocated in the recording and is live at its end; ``before_*`` was live when it began.
    """

    device: str
    events: int
    seconds: float | None
    truncated: bool | None
    max_entries: int | None
    before_bytes: int
    before_blocks: int
    highest_reserved_bytes: int
    peak: Moment
    end: Moment
    kept: tuple[Group, ...]
    failures: tuple[OutOfMemoryEvent, ...]
    columns: tuple[TimelineColumn, ...]
    bands: tuple[Place, ...]
    has_cache: bool = True
    expandable: bool = False

    @property
    def fragmented_moment(self) -> Moment:
        """The moment at which fragmentation matters: the last failure, else the peak."""
        return self.failures[-1].moment if self.failures else self.peak


@dataclass(frozen=True, repr=False)
class History(Displayed, view="labkit.memory.allocations.view", text="format_history"):
    """The analysis of all devices in a recording."""

    devices: tuple[DeviceHistory, ...]
    names: Mapping[str, str]
    sources: Mapping[tuple[str, int], str]
    notes: tuple[str, ...] = ()


class LineChange(NamedTuple):
    """One line's live bytes and blocks at the end of two recordings."""

    place: Place
    before_bytes: int
    after_bytes: int
    before_blocks: int
    after_blocks: int


class DeviceComparison(NamedTuple):
    """One device in two recordings (None: it is not in that one), the largest change first."""

    device: str
    before: DeviceHistory | None
    after: DeviceHistory | None
    lines: tuple[LineChange, ...]


@dataclass(frozen=True, repr=False)
class HistoryComparison(Displayed, view="labkit.memory.allocations.view", text="format_comparison"):
    """What changed from one recording to a later one, by the lines that allocated it."""

    devices: tuple[DeviceComparison, ...]
    after: History


def compare_histories(before: History, after: History) -> HistoryComparison:
    """The comparison of two recordings of one program, such as after 10 and after 100 steps."""
    first = {one.device: one for one in before.devices}
    last = {one.device: one for one in after.devices}
    sources, names = {**before.sources, **after.sources}, {**before.names, **after.names}
    return HistoryComparison(
        tuple(
            DeviceComparison(
                device, first.get(device), last.get(device), _compare_lines(first, last, device)
            )
            for device in {**first, **last}
        ),
        History((), names, sources, (*before.notes, *after.notes)),
    )


def _compare_lines(
    first: Mapping[str, DeviceHistory], last: Mapping[str, DeviceHistory], device: str
) -> tuple[LineChange, ...]:
    found = [
        {group.place: group for group in side[device].end.groups} if device in side else {}
        for side in (first, last)
    ]
    nothing = Group(Place(None), 0, 0)
    changes = []
    for place in found[0] | found[1]:
        old, new = (side.get(place, nothing) for side in found)
        if (old.held_bytes, old.blocks) != (new.held_bytes, new.blocks):
            held = old.held_bytes, new.held_bytes
            changes.append(LineChange(place, *held, old.blocks, new.blocks))
    return tuple(sorted(changes, key=lambda one: -abs(one.after_bytes - one.before_bytes)))


def analyse(recording: Recording) -> History:
    """The history of every device in the recording."""
    devices = tuple(_analyse_device(trace) for trace in recording.traces)
    return History(devices, recording.names, recording.sources, recording.notes)


def _analyse_device(trace: Trace) -> DeviceHistory:
    levels = measure_levels(trace)
    end = len(trace.events)
    failed = [place for place, event in enumerate(trace.events) if event.action == OOM]
    failed = failed[-FAILURES_KEPT:]
    live = list_live(trace, {levels.peak, end, *failed})
    peak = _find_moment(trace, levels, levels.peak, live)
    bands = tuple(group.place for group in peak.groups[:BANDS])
    start = find_start(trace).values()
    return DeviceHistory(
        device=trace.device,
        events=end,
        seconds=_measure_seconds(trace, end),
        truncated=None if trace.max_entries is None else end >= trace.max_entries,
        max_entries=trace.max_entries,
        before_bytes=sum(held.size_bytes for held in start),
        before_blocks=len(start),
        highest_reserved_bytes=max(levels.reserved),
        peak=peak,
        end=_find_moment(trace, levels, end, live),
        kept=group_by_line(held for held in live[end] if held.event is not None),
        failures=tuple(_find_failure(trace, levels, place, live) for place in failed),
        columns=make_columns(trace, levels, bands),
        bands=bands,
        has_cache=trace.has_cache,
        expandable=trace.expandable,
    )


def _find_moment(
    trace: Trace, levels: ReplayedLevels, level: int, live: Mapping[int, tuple[Held, ...]]
) -> Moment:
    return Moment(
        level,
        _measure_seconds(trace, level),
        levels.live[level],
        levels.reserved[level],
        group_by_line(live[level]),
        measure_fragmentation(trace, level, live[level]),
    )


def _find_failure(
    trace: Trace, levels: ReplayedLevels, place: int, live: Mapping[int, tuple[Held, ...]]
) -> OutOfMemoryEvent:
    event = trace.events[place]
    return OutOfMemoryEvent(
        event.size_bytes,
        event.free_bytes,
        find_place(Held(0, event.size_bytes, event.frames, place, event.metadata)),
        _find_moment(trace, levels, place, live),
        event.stream,
    )


def _measure_seconds(trace: Trace, level: int) -> float | None:
    """Seconds from the first event to the one before this level; None if unknown."""
    if not trace.events:
        return None
    first, this = trace.events[0].time_us, trace.events[max(0, level - 1)].time_us
    return None if first is None or this is None else (this - first) / 1e6


def make_columns(
    trace: Trace, levels: ReplayedLevels, bands: tuple[Place, ...], most: int = COLUMNS
) -> tuple[TimelineColumn, ...]:
    """The levels in at most ``most`` columns; each has its highest level, so no peak is lost."""
    count = len(levels.live)
    width = min(count, most)
    edges = [count * place // width for place in range(width + 1)]
    highest = [
        max(range(first, last), key=levels.live.__getitem__)
        for first, last in itertools.pairwise(edges)
    ]
    split = _split_levels(trace, bands, highest)
    return tuple(
        TimelineColumn(
            level=level,
            seconds=_measure_seconds(trace, level),
            live_bytes=levels.live[level],
            lowest_bytes=min(levels.live[first:last]),
            reserved_bytes=max(levels.reserved[first:last]),
            bands=split[level],
        )
        for level, (first, last) in zip(highest, itertools.pairwise(edges), strict=True)
    )


def _split_levels(
    trace: Trace, bands: tuple[Place, ...], wanted: Iterable[int]
) -> dict[int, tuple[int, ...]]:
    """The live bytes of each of these places at each of these levels."""
    number = {place: index for index, place in enumerate(bands)}
    wanted = set(wanted)
    sums = [0] * (len(bands) + 1)
    split = {}
    for level, (live, came, went) in enumerate(walk_live(trace)):
        for held in live.values() if level == 0 else ():
            sums[number.get(find_place(held), -1)] += held.size_bytes
        if went:
            sums[number.get(find_place(went), -1)] -= went.size_bytes
        if came:
            sums[number.get(find_place(came), -1)] += came.size_bytes
        if level in wanted:
            split[level] = tuple(sums[:-1])
    return split

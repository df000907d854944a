"""A recording's answers, one set for each device: the peak, its lines, the cuts, what stayed."""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Mapping
from typing import NamedTuple

from labkit.memory.history.layout import Fragmentation, measure_fragmentation
from labkit.memory.history.lines import Group, Place, find_place, group_by_line
from labkit.memory.history.replay import (
    Held,
    Levels,
    find_start,
    list_live,
    measure_levels,
    walk_live,
)
from labkit.memory.history.snapshot import OOM, Recording, Trace

COLUMNS = 800
BANDS = 6
SHORTAGES_KEPT = 5


class Column(NamedTuple):
    """A stretch of levels in the picture: its highest level, the lowest, and the most reserved.

    ``bands`` are the live bytes of each line that has a colour, at the highest level; what is
    not in them is of other lines.
    """

    level: int
    seconds: float | None
    live_bytes: int
    lowest_bytes: int
    reserved_bytes: int
    bands: tuple[int, ...]


class Moment(NamedTuple):
    """One level: when it was, what was live and reserved, by which lines, and how cut up.

    ``event`` is how many events it took to get there.
    """

    event: int
    seconds: float | None
    live_bytes: int
    reserved_bytes: int
    groups: tuple[Group, ...]
    fragmentation: Fragmentation | None = None


class Shortage(NamedTuple):
    """An allocation that failed: what was asked, what the device had free, and the moment."""

    asked_bytes: int
    device_free_bytes: int | None
    place: Place
    moment: Moment


class DeviceHistory(NamedTuple):
    """Everything that a recording tells of one device.

    ``truncated`` is None where the recorder did not say how much it would keep. ``kept`` is what
    was allocated in the recording and is live at its end; ``before_*`` what was there when it
    began.
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
    shortages: tuple[Shortage, ...]
    columns: tuple[Column, ...]
    bands: tuple[Place, ...]
    has_cache: bool = True
    expandable: bool = False

    @property
    def cut_moment(self) -> Moment:
        """The moment at which fragmentation matters: the last shortage, else the peak."""
        return self.shortages[-1].moment if self.shortages else self.peak


class History(NamedTuple):
    """A recording, understood; it shows itself as text."""

    devices: tuple[DeviceHistory, ...]
    names: Mapping[str, str]
    sources: Mapping[tuple[str, int], str]

    def __repr__(self) -> str:
        from labkit.memory.history.text import format_history

        return format_history(self)

    def __str__(self) -> str:
        return repr(self)


def analyse(recording: Recording) -> History:
    """The answers for every device that the recording has something of."""
    devices = tuple(_analyse_device(trace) for trace in recording.traces)
    return History(devices, recording.names, recording.sources)


def _analyse_device(trace: Trace) -> DeviceHistory:
    levels = measure_levels(trace)
    end = len(trace.events)
    failed = [place for place, event in enumerate(trace.events) if event.action == OOM]
    failed = failed[-SHORTAGES_KEPT:]
    live = list_live(trace, {levels.peak, end, *failed})
    peak = _tell_moment(trace, levels, levels.peak, live)
    bands = tuple(group.place for group in peak.groups[:BANDS])
    start = find_start(trace).values()
    return DeviceHistory(
        device=trace.device,
        events=end,
        seconds=_tell_seconds(trace, end),
        truncated=None if trace.max_entries is None else end >= trace.max_entries,
        max_entries=trace.max_entries,
        before_bytes=sum(held.size_bytes for held in start),
        before_blocks=len(start),
        highest_reserved_bytes=max(levels.reserved),
        peak=peak,
        end=_tell_moment(trace, levels, end, live),
        kept=group_by_line(held for held in live[end] if held.event is not None),
        shortages=tuple(_tell_shortage(trace, levels, place, live) for place in failed),
        columns=make_columns(trace, levels, bands),
        bands=bands,
        has_cache=trace.has_cache,
        expandable=trace.expandable,
    )


def _tell_moment(
    trace: Trace, levels: Levels, level: int, live: Mapping[int, tuple[Held, ...]]
) -> Moment:
    return Moment(
        level,
        _tell_seconds(trace, level),
        levels.live[level],
        levels.reserved[level],
        group_by_line(live[level]),
        measure_fragmentation(trace, level, live[level]),
    )


def _tell_shortage(
    trace: Trace, levels: Levels, place: int, live: Mapping[int, tuple[Held, ...]]
) -> Shortage:
    event = trace.events[place]
    return Shortage(
        event.size_bytes,
        event.free_bytes,
        find_place(Held(0, event.size_bytes, event.frames, place)),
        _tell_moment(trace, levels, place, live),
    )


def _tell_seconds(trace: Trace, level: int) -> float | None:
    """Seconds from the first event to the one that led to this level."""
    if not trace.events:
        return None
    first, this = trace.events[0].time_us, trace.events[max(0, level - 1)].time_us
    return None if first is None or this is None else (this - first) / 1e6


def make_columns(
    trace: Trace, levels: Levels, bands: tuple[Place, ...], most: int = COLUMNS
) -> tuple[Column, ...]:
    """The levels in at most ``most`` columns; each shows its highest, so no peak is lost."""
    count = len(levels.live)
    width = min(count, most)
    edges = [count * place // width for place in range(width + 1)]
    highest = [
        max(range(first, last), key=levels.live.__getitem__)
        for first, last in itertools.pairwise(edges)
    ]
    split = _split_levels(trace, bands, highest)
    return tuple(
        Column(
            level=level,
            seconds=_tell_seconds(trace, level),
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

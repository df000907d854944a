"""A history as ``--json`` prints it: bytes and names, None for what is unknown.

A history as text: the peak and its lines, what is cut up, what stayed, and what to know.
"""

from __future__ import annotations

from pathlib import PurePosixPath, PureWindowsPath

from labkit.memory.allocations.analysis import (
    DeviceHistory,
    Group,
    History,
    Moment,
    OutOfMemoryEvent,
    Place,
)
from labkit.memory.allocations.replay import Fragmentation
from labkit.memory.oom.page import EXPANDABLE
from labkit.memory.track.frames import Frame
from labkit.text import format_bytes, format_seconds

LINES_SHOWN = 8
# From here on free memory in pieces is worth a word.
MUCH_FREE = 0.1
SMALL_PIECE = 0.5


def format_history(history: History) -> str:
    """The answers for every device, in lines."""
    if not history.devices:
        return "no allocations were recorded"
    return "\n\n".join(_format_device(device, history) for device in history.devices)


def _format_device(device: DeviceHistory, history: History) -> str:
    lines = [say_title(device)]
    for shortage in device.shortages:
        lines.append(f"  {say_shortage(shortage, history)}")
    lines += _format_groups(device.peak.groups, history)
    lines += [f"  {sentence}" for sentence in list_sentences(device)]
    lines += [f"  note: {note}" for note in list_notes(device)]
    return "\n".join(lines)


def _format_groups(groups: tuple[Group, ...], history: History) -> list[str]:
    lines = []
    for group in groups[:LINES_SHOWN]:
        blocks = count(group.blocks, "block")
        lines.append(
            f"  {format_bytes(group.held_bytes):>10}  {blocks:<13}  "
            f"{say_place(group.place, history)}"
        )
        source = (
            history.sources.get((group.place.frame.file, group.place.frame.line))
            if (group.place.frame)
            else None
        )
        if source:
            lines.append(f"{'':<29}{source[:100]}")
    rest = groups[LINES_SHOWN:]
    if rest:
        held = format_bytes(sum(group.held_bytes for group in rest))
        lines.append(f"  {held:>10}  in {count(len(rest), 'more line')}")
    return lines


def say_title(device: DeviceHistory) -> str:
    """The peak of a device in one line."""
    peak = device.peak
    reserved = f", {format_bytes(peak.reserved_bytes)} reserved" if device.has_cache else ""
    return (
        f"{device.device}: peak {format_bytes(peak.live_bytes)} live{reserved}, "
        f"{say_when(peak, device)}"
    )


def say_when(moment: Moment, device: DeviceHistory) -> str:
    """A moment's place among the events, and its seconds where the recorder kept the time.

    The moment before the first event is the beginning.
    """
    if moment.event == 0:
        return "at the beginning"
    seconds = "" if moment.seconds is None else f" ({format_seconds(moment.seconds)})"
    return f"after event {moment.event:,} of {device.events:,}{seconds}"


def say_shortage(shortage: OutOfMemoryEvent, history: History) -> str:
    """An allocation that failed, in one sentence."""
    had = f" with {format_bytes(shortage.moment.live_bytes)} live"
    if shortage.device_free_bytes is not None:
        had += f" and {format_bytes(shortage.device_free_bytes)} free on the device"
    where = say_place(shortage.place, history)
    return f"out of memory: {format_bytes(shortage.asked_bytes)} asked for{had}, at {where}"


def list_sentences(device: DeviceHistory) -> list[str]:
    """What is reserved and unused, and what is live at the end."""
    kept = sum(group.held_bytes for group in device.kept)
    blocks = sum(group.blocks for group in device.kept)
    sentences = []
    cut = device.cut_moment.fragmentation
    if cut is not None and cut.free_bytes:
        when = "at the shortage" if device.shortages else "at the peak"
        sentences.append(f"reserved and unused {when}: {say_free(cut)}")
        advice = advise(device)
        if advice:
            sentences.append(advice)
    if blocks:
        sentences.append(
            f"allocated here and never freed: {format_bytes(kept)} in {count(blocks, 'block')}"
        )
    else:
        sentences.append("everything that was allocated here was freed")
    return sentences


def say_free(cut: Fragmentation) -> str:
    """Free reserved memory and its pieces.

    >>> say_free(Fragmentation(4096, 3072, 2048, 2))
    '3.0 KiB in 2 pieces, the largest of 2.0 KiB'
    """
    pieces = count(cut.pieces, "piece")
    largest = f", the largest of {format_bytes(cut.largest_free_bytes)}" if cut.pieces > 1 else ""
    return f"{format_bytes(cut.free_bytes)} in {pieces}{largest}"


def advise(device: DeviceHistory) -> str | None:
    """The measure against fragmentation where there is enough of it; None where there is not."""
    cut = device.cut_moment.fragmentation
    if cut is None or not cut.reserved_bytes:
        return None
    asked = device.shortages[-1].asked_bytes if device.shortages else None
    if asked is not None:
        bad = cut.largest_free_bytes < asked <= cut.free_bytes
    else:
        much = cut.free_bytes >= MUCH_FREE * cut.reserved_bytes
        bad = much and cut.largest_free_bytes < SMALL_PIECE * cut.free_bytes
    if not bad:
        return None
    if device.expandable:
        return (
            "it is fragmented although expandable segments are on: allocate what is largest first"
        )
    return f"it is fragmented: start the program with {EXPANDABLE}"


def list_notes(device: DeviceHistory) -> list[str]:
    """What has to be known to read the figures: truncation, and what was there before."""
    notes = []
    if device.truncated:
        notes.append(
            f"the recording is full: only the last {device.events:,} events are kept"
            f" (max_entries={device.max_entries}). An earlier peak can have been higher."
        )
    if device.before_blocks:
        why = (
            "before the events that are kept"
            if device.truncated
            else "before recording began"
            if device.truncated is False
            else "before the first event (before recording began, or max_entries was reached)"
        )
        notes.append(
            f"{format_bytes(device.before_bytes)} in {count(device.before_blocks, 'block')} had"
            f" been allocated {why}; it counts as long as it is live"
        )
    if not device.events:
        notes.append("no events were recorded: what is shown is the state at the end")
    return notes


def say_place(place: Place, history: History) -> str:
    """A place as ``train.py:12 in forward``, with the user's line where it is in a package."""
    if place.frame is None:
        return place.words
    here = say_frame(place.frame, history)
    return f"{here}, from {say_frame(place.via, history)}" if place.via else here


def say_frame(frame: Frame, history: History) -> str:
    """A frame as ``train.py:12 in forward``; a notebook's cell by its number where known."""
    named = history.names.get(frame.file)
    name = named or _strip_folders(frame.file)
    function = "" if frame.function == "<module>" else f" in {frame.function}"
    return f"{name}:{frame.line}{function}"


def _strip_folders(file: str) -> str:
    """The file's name, with its folder where many packages have one of that name."""
    path = PureWindowsPath(file) if "\\" in file else PurePosixPath(file)
    if path.name in ("__init__.py", "__main__.py", "main.py", "utils.py") and path.parent.name:
        return f"{path.parent.name}/{path.name}"
    return path.name or file


def count(number: int, noun: str) -> str:
    """A number with its noun: "1 block", "3 blocks"."""
    return f"{number:,} {noun}" if number == 1 else f"{number:,} {noun}s"


LINES_DESCRIBED = 50


def describe_history(history: History) -> dict[str, object]:
    """The answers for every device; at most 50 lines each, the rest in a sum."""
    return {"devices": [_describe_device(device) for device in history.devices]}


def _describe_device(device: DeviceHistory) -> dict[str, object]:
    return {
        "device": device.device,
        "events": device.events,
        "seconds": device.seconds,
        "truncated": device.truncated,
        "max_entries": device.max_entries,
        "before_bytes": device.before_bytes,
        "before_blocks": device.before_blocks,
        "peak": {**_describe_moment(device.peak), **_describe_lines(device.peak.groups)},
        "highest_reserved_bytes": device.highest_reserved_bytes if device.has_cache else None,
        "end": _describe_moment(device.end),
        "never_freed": _describe_lines(device.kept),
        "out_of_memory": [_describe_shortage(one) for one in device.shortages],
    }


def _describe_moment(moment: Moment) -> dict[str, object]:
    cut = moment.fragmentation
    return {
        "event": moment.event,
        "seconds": moment.seconds,
        "live_bytes": moment.live_bytes,
        "reserved_bytes": None if cut is None else moment.reserved_bytes,
        "free_reserved_bytes": None if cut is None else cut.free_bytes,
        "largest_free_bytes": None if cut is None else cut.largest_free_bytes,
        "free_pieces": None if cut is None else cut.pieces,
        "segments": None if cut is None else len(cut.segments),
    }


def _describe_lines(groups: tuple[Group, ...]) -> dict[str, object]:
    rest = groups[LINES_DESCRIBED:]
    return {
        "lines": [
            {
                **_describe_place(group.place),
                "held_bytes": group.held_bytes,
                "blocks": group.blocks,
            }
            for group in groups[:LINES_DESCRIBED]
        ],
        "other_lines_bytes": sum(group.held_bytes for group in rest),
    }


def _describe_shortage(shortage: OutOfMemoryEvent) -> dict[str, object]:
    return {
        "asked_bytes": shortage.asked_bytes,
        "device_free_bytes": shortage.device_free_bytes,
        **_describe_place(shortage.place),
        **_describe_moment(shortage.moment),
    }


def _describe_place(place: Place) -> dict[str, object]:
    return {
        **_describe_frame(place.frame),
        "via": _describe_frame(place.via) if place.via else None,
        "words": place.words or None,
    }


def _describe_frame(frame: Frame | None) -> dict[str, object]:
    if frame is None:
        return {"file": None, "line": None, "function": None}
    return frame._asdict()

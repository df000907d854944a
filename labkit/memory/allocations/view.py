"""A history as text, and as the object that ``--json`` prints.

A snapshot may come from another person: names and lines from it are printed on one line, with
control characters escaped.
"""

from __future__ import annotations

from pathlib import PurePosixPath, PureWindowsPath

from labkit.memory.allocations.analysis import (
    DeviceComparison,
    DeviceHistory,
    Group,
    History,
    HistoryComparison,
    Moment,
    OutOfMemoryEvent,
    Place,
)
from labkit.memory.allocations.replay import Fragmentation
from labkit.memory.balance.model import MIB
from labkit.memory.oom.model import EXPANDABLE
from labkit.memory.track.frames import Frame
from labkit.memory.track.view import format_change
from labkit.text import escape_controls, format_bytes, format_seconds, plural

LINES_SHOWN = 8
SOURCE_LENGTH = 100
LINES_DESCRIBED = 50
# Free memory is fragmented if it is at least this share of the reserved memory and this many bytes,
# and its largest piece is at most this share of the free memory.
MUCH_FREE, MUCH_FREE_BYTES = 0.1, 256 * MIB
SMALL_PIECE = 0.5


def format_history(history: History) -> str:
    """The history of every device as text."""
    if not history.devices:
        return "no allocations were recorded"
    notes = ["\n".join(f"note: {_clean(note)}" for note in history.notes)] if history.notes else []
    return "\n\n".join([*(_format_device(one, history) for one in history.devices), *notes])


def _format_device(device: DeviceHistory, history: History) -> str:
    peak = device.peak
    reserved = f", {format_bytes(peak.reserved_bytes)} reserved" if device.has_cache else ""
    lines = [
        f"{device.device}: peak {format_bytes(peak.live_bytes)} live{reserved}, "
        f"{format_moment(peak, device)}"
    ]
    lines += [f"  {format_failure(one, history)}" for one in device.failures]
    lines += _format_groups(peak.groups, history)
    lines += [f"  {sentence}" for sentence in _list_findings(device)]
    lines += [f"  note: {note}" for note in list_notes(device)]
    return "\n".join(lines)


def _format_groups(groups: tuple[Group, ...], history: History) -> list[str]:
    lines = []
    for group in groups[:LINES_SHOWN]:
        place = format_place(group.place, history)
        blocks = plural(group.blocks, "block")
        lines.append(f"  {format_bytes(group.held_bytes):>10}  {blocks:<13}  {place}")
        source = find_source(group.place, history)
        if source:
            lines.append(f"{'':<29}{_clean(source)[:SOURCE_LENGTH]}")
    rest = groups[LINES_SHOWN:]
    if rest:
        held = format_bytes(sum(group.held_bytes for group in rest))
        lines.append(f"  {held:>10}  in {plural(len(rest), 'more line')}")
    return lines


def format_moment(moment: Moment, device: DeviceHistory) -> str:
    """The time of a moment: the event before it, and the seconds if the recording has times."""
    if moment.event == 0:
        return "at the beginning"
    seconds = "" if moment.seconds is None else f" ({format_seconds(moment.seconds)})"
    return f"after event {moment.event:,} of {device.events:,}{seconds}"


def format_failure(failure: OutOfMemoryEvent, history: History) -> str:
    """A failed allocation in one sentence."""
    had = f" with {format_bytes(failure.moment.live_bytes)} live"
    if failure.device_free_bytes is not None:
        had += f" and {format_bytes(failure.device_free_bytes)} free on the device"
    where = format_place(failure.place, history)
    return f"out of memory: {format_bytes(failure.asked_bytes)} requested{had}, at {where}"


def explain_failure(failure: OutOfMemoryEvent) -> str | None:
    """Why free pieces that are large enough could not serve the request; None without such."""
    cut = failure.moment.fragmentation
    if cut is None or max(cut.list_usable(failure.stream), default=0) >= failure.asked_bytes:
        return None
    private = cut.private_free_bytes
    others = sum(cut.list_usable()) - sum(cut.list_usable(failure.stream))
    parts = [f"{format_bytes(private)} is in private pools of CUDA graphs"] if private else []
    parts += [f"{format_bytes(others)} belongs to other streams"] if others else []
    if not parts or cut.largest_free_bytes < failure.asked_bytes:
        return None
    advice = ["del graphs that are not replayed any more"] if private else []
    advice += ["allocate on one stream"] if others else []
    return f"the request cannot use it: {' and '.join(parts)}. {'; '.join(advice)}"


def _list_findings(device: DeviceHistory) -> list[str]:
    """Sentences on unused reserved memory, fragmentation, and memory that was never freed."""
    found = []
    cut = device.fragmented_moment.fragmentation
    if cut is not None and cut.free_bytes:
        when = "when memory ran out" if device.failures else "at the peak"
        found.append(f"reserved and unused {when}: {format_free(cut)}")
        reason = explain_failure(device.failures[-1]) if device.failures else None
        found += [sentence for sentence in (reason, advise(device)) if sentence]
    if not device.events:  # a snapshot of the end alone says nothing of what was freed
        return found
    kept = format_bytes(sum(group.held_bytes for group in device.kept))
    blocks = sum(group.blocks for group in device.kept)
    never = f"allocated here and never freed: {kept} in {plural(blocks, 'block')}"
    return [*found, never if blocks else "everything that was allocated here was freed"]


def format_free(cut: Fragmentation) -> str:
    """The free reserved memory and its pieces.

    >>> format_free(Fragmentation(4096, 3072, 2048, 2))
    '3.0 KiB in 2 pieces, the largest of 2.0 KiB'
    """
    largest = f", the largest of {format_bytes(cut.largest_free_bytes)}" if cut.pieces > 1 else ""
    return f"{format_bytes(cut.free_bytes)} in {plural(cut.pieces, 'piece')}{largest}"


def advise(device: DeviceHistory) -> str | None:
    """What to do against fragmentation; None if there is little of it."""
    cut = device.fragmented_moment.fragmentation
    if cut is None or not cut.reserved_bytes:
        return None
    pieces = cut.list_usable(device.failures[-1].stream if device.failures else None)
    free, largest = sum(pieces), max(pieces, default=0)
    if device.failures:
        fragmented = largest < device.failures[-1].asked_bytes <= free
    else:
        much = free >= max(MUCH_FREE * cut.reserved_bytes, MUCH_FREE_BYTES)
        fragmented = much and largest < SMALL_PIECE * free
    if not fragmented:
        return None
    if device.expandable:
        return (
            "it is fragmented although expandable segments are on: allocate the largest blocks"
            " first"
        )
    return f"it is fragmented: start the program with {EXPANDABLE}"


def list_notes(device: DeviceHistory) -> list[str]:
    """Notes on the figures: lost events, and memory from before the recording."""
    notes = []
    if device.truncated:
        notes.append(
            f"the recording is full: only the last {device.events:,} events are kept"
            f" (max_entries={device.max_entries}). An earlier peak can have been higher."
        )
    if device.before_blocks:
        when = {
            True: "before the events that are kept",
            False: "before recording began",
            None: "before the first event (before recording began, or max_entries was reached)",
        }[device.truncated]
        notes.append(
            f"{format_bytes(device.before_bytes)} in {plural(device.before_blocks, 'block')} had"
            f" been allocated {when}; it counts as long as it is live"
        )
    if not device.events:
        notes.append("no events were recorded: the figures are the state at the end")
    return notes


def format_place(place: Place, history: History) -> str:
    """A place as ``train.py:12 in forward``; a line in a package also has the user's line."""
    here = _format_frame(place.frame, history) if place.frame else place.words
    via = f", from {_format_frame(place.via, history)}" if place.via else ""
    return f"{here}{via}{f' [{_clean(place.metadata)}]' if place.metadata else ''}"


def find_source(place: Place, history: History) -> str:
    """The text of the place's line; empty if it is unknown."""
    return history.sources.get((place.frame.file, place.frame.line), "") if place.frame else ""


def _format_frame(frame: Frame, history: History) -> str:
    name = history.names.get(frame.file) or _strip_folders(frame.file)
    function = "" if frame.function == "<module>" else f" in {frame.function}"
    return _clean(f"{name}:{frame.line}{function}")


def _strip_folders(file: str) -> str:
    """The file's name, with its folder if many packages have a file of that name."""
    path = PureWindowsPath(file) if "\\" in file else PurePosixPath(file)
    if path.name in ("__init__.py", "__main__.py", "main.py", "utils.py") and path.parent.name:
        return f"{path.parent.name}/{path.name}"
    return path.name or file


def _clean(text: str) -> str:
    """Text from a snapshot as one line that is safe to print."""
    return escape_controls(text).replace("\n", "\\n").replace("\t", " ")


def format_comparison(comparison: HistoryComparison) -> str:
    """For each device the change of its peak and of what is live at the end, by line."""
    parts = []
    for one in comparison.devices:
        peaks, ends = _read_change(one, "peak"), _read_change(one, "end")
        lines = [
            f"{one.device}: live at the end {_format_step(*ends)}, peak {_format_step(*peaks)}"
        ]
        for line in one.lines[:LINES_SHOWN]:
            change = format_change(line.after_bytes - line.before_bytes)
            blocks = f"{line.before_blocks:,} -> {plural(line.after_blocks, 'block')}"
            lines.append(
                f"  {change:>10}  {blocks:<20}  {format_place(line.place, comparison.after)}"
            )
        rest = one.lines[LINES_SHOWN:]
        if rest:
            change = format_change(sum(line.after_bytes - line.before_bytes for line in rest))
            lines.append(f"  {change:>10}  in {plural(len(rest), 'more line')}")
        parts.append("\n".join(lines if one.lines else [*lines, "  no line holds more or less"]))
    return "\n\n".join(parts) or "no allocations were recorded"


def _read_change(one: DeviceComparison, moment: str) -> tuple[int, int]:
    before, after = (
        getattr(side, moment).live_bytes if side else 0 for side in (one.before, one.after)
    )
    return before, after


def _format_step(before: int, after: int) -> str:
    return f"{format_bytes(before)} -> {format_bytes(after)} ({format_change(after - before)})"


def describe_comparison(comparison: HistoryComparison) -> dict[str, object]:
    """The comparison as ``--json`` prints it."""
    return {
        "devices": [
            {
                "device": one.device,
                "peak_bytes": list(_read_change(one, "peak")),
                "end_bytes": list(_read_change(one, "end")),
                "lines": [
                    {**line._asdict(), "place": _describe_place(line.place)}
                    for line in one.lines[:LINES_DESCRIBED]
                ],
            }
            for one in comparison.devices
        ]
    }


def describe_history(history: History) -> dict[str, object]:
    """The history of every device as ``--json`` prints it: bytes and names, None for unknown.

    Each list has at most 50 lines, and a sum of the rest.
    """
    devices = [_describe_device(device) for device in history.devices]
    return {"devices": devices, "notes": list(history.notes)}


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
        "out_of_memory": [_describe_failure(one) for one in device.failures],
    }


def _describe_moment(moment: Moment) -> dict[str, object]:
    cut = moment.fragmentation
    return {
        "event": moment.event,
        "seconds": moment.seconds,
        "live_bytes": moment.live_bytes,
        "reserved_bytes": None if cut is None else moment.reserved_bytes,
        "free_reserved_bytes": None if cut is None else cut.free_bytes,
        "free_private_bytes": None if cut is None else cut.private_free_bytes,
        "largest_free_bytes": None if cut is None else cut.largest_free_bytes,
        "free_pieces": None if cut is None else cut.pieces,
        "segments": None if cut is None else len(cut.segments),
    }


def _describe_lines(groups: tuple[Group, ...]) -> dict[str, object]:
    rest = groups[LINES_DESCRIBED:]
    return {
        "lines": [
            {**_describe_place(group.place), "held_bytes": group.held_bytes, "blocks": group.blocks}
            for group in groups[:LINES_DESCRIBED]
        ],
        "other_lines_bytes": sum(group.held_bytes for group in rest),
    }


def _describe_failure(failure: OutOfMemoryEvent) -> dict[str, object]:
    return {
        "asked_bytes": failure.asked_bytes,
        "device_free_bytes": failure.device_free_bytes,
        "stream": failure.stream,
        "reason": explain_failure(failure),
        **_describe_place(failure.place),
        **_describe_moment(failure.moment),
    }


def _describe_place(place: Place) -> dict[str, object]:
    return {
        **_describe_frame(place.frame),
        "via": _describe_frame(place.via) if place.via else None,
        "words": place.words or None,
        "metadata": place.metadata or None,
    }


def _describe_frame(frame: Frame | None) -> dict[str, object]:
    if frame is None:
        return {"file": None, "line": None, "function": None}
    return frame._asdict()

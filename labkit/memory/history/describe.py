"""A history as ``--json`` prints it: bytes and names, None for what is unknown."""

from __future__ import annotations

from labkit.memory.frames import Frame
from labkit.memory.history.analysis import DeviceHistory, History, Moment, Shortage
from labkit.memory.history.lines import Group, Place

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


def _describe_shortage(shortage: Shortage) -> dict[str, object]:
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

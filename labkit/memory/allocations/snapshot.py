"""Torch's memory snapshots as facts: the events of each device, and its segments at the end.

A snapshot may come from somebody else: everything in it is checked before it is believed.

Snapshots in files: torch's own pickles, read without running anything that is in them.
"""

from __future__ import annotations

import contextlib
import pickle
import tempfile
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple, NoReturn

from labkit.errors import LabkitError, UsageError
from labkit.memory.track.frames import Frame

# What torch's allocator did, in its own words.
ALLOC, FREE_REQUESTED, FREE_COMPLETED, OOM = "alloc", "free_requested", "free_completed", "oom"
SEGMENT_ADDED = {"segment_alloc", "segment_map"}
SEGMENT_REMOVED = {"segment_free", "segment_unmap"}
MAPPED = {"segment_map", "segment_unmap"}

# The key under which a recording of labkit's says what torch's format has no place for.
OWN_KEY = "labkit"
LARGEST_NUMBER = 2**63
LAST_LINE = 2**31
DEEPEST_STACK = 256
LONGEST_NAME = 1000


class Event(NamedTuple):
    """One thing the allocator did; at "oom" the size is what was asked for, in vain.

    ``free_bytes``: what the device had free, told at "oom" alone. ``frames`` is the stack,
    innermost first.
    """

    action: str
    address: int
    size_bytes: int
    time_us: int | None = None
    frames: tuple[Frame, ...] = ()
    free_bytes: int | None = None


class Block(NamedTuple):
    """A piece of a segment; live ones have ``asked_bytes``, and their stack if it was recorded."""

    address: int
    size_bytes: int
    asked_bytes: int
    live: bool
    frames: tuple[Frame, ...] = ()


class Segment(NamedTuple):
    """Memory that the allocator took from the driver, with its blocks in order of address."""

    address: int
    size_bytes: int
    expandable: bool = False
    blocks: tuple[Block, ...] = ()


class Trace(NamedTuple):
    """What is known of one device; ``max_entries`` is None where the recorder did not say.

    ``has_cache`` is False on the CPU, where torch takes each block from the system by itself.
    ``frees_tell_origin``: the stack of a free is that of the block's allocation, which torch puts
    there when it was told to take none for frees, and not where the block was let go.
    """

    device: str
    events: tuple[Event, ...] = ()
    segments: tuple[Segment, ...] = ()
    max_entries: int | None = None
    has_cache: bool = True
    expandable: bool = False
    frees_tell_origin: bool = False


class Recording(NamedTuple):
    """A whole snapshot; ``names`` are better names of files, ``sources`` lines of code.

    Both are there for labkit's own recordings: ``{"/tmp/ipykernel_7/1.py": "In[3]"}`` and
    ``{("train.py", 12): "y = model(x)"}``.
    """

    traces: tuple[Trace, ...]
    names: Mapping[str, str]
    sources: Mapping[tuple[str, int], str]


def read_recording(snapshot: object) -> Recording:
    """The facts of a snapshot as ``torch.cuda.memory._snapshot()`` gives it; else UsageError."""
    if not isinstance(snapshot, dict):
        raise _refuse(f"it is a {type(snapshot).__name__} and not a dict")
    histories, segments = snapshot.get("device_traces"), snapshot.get("segments")
    if not isinstance(histories, list) or not isinstance(segments, list):
        raise _refuse("it has no lists of device_traces and segments")
    own = snapshot.get(OWN_KEY)
    own = own if isinstance(own, dict) else {}
    settings = snapshot.get("allocator_settings")
    expandable = isinstance(settings, dict) and settings.get("expandable_segments") is True
    by_device = _sort_segments(segments)
    numbers = sorted({*range(len(histories)), *by_device})
    stacks = StackReader()
    traces = (
        _read_trace(_Raw(number, histories, by_device.get(number, []), own, stacks), expandable)
        for number in numbers
    )
    used = tuple(trace for trace in traces if trace.events or trace.segments)
    return Recording(used, _read_names(own), _read_sources(own))


class StackReader:
    """Reads stacks; torch gives frames that are equal as one object, and each is read once.

    For as long as the snapshot is held, that is: objects are told apart by their address.
    """

    def __init__(self) -> None:
        self._known: dict[int, Frame | None] = {}

    def read(self, raw: object) -> tuple[Frame, ...]:
        """A stack, innermost first; what is no frame is left out."""
        if not isinstance(raw, (list, tuple)):
            return ()
        known = self._known
        frames = []
        for one in raw[:DEEPEST_STACK]:
            key = id(one)
            if key not in known:
                known[key] = read_frame(one)
            frame = known[key]
            if frame is not None:
                frames.append(frame)
        return tuple(frames)


def read_frame(raw: object) -> Frame | None:
    """A frame as torch gives it; None where it is something else."""
    if not isinstance(raw, dict):
        return None
    file, line, name = raw.get("filename"), raw.get("line"), raw.get("name")
    if not isinstance(file, str) or not isinstance(name, str) or type(line) is not int:
        return None
    number = line if 0 <= line <= LAST_LINE else 0
    return Frame(file[:LONGEST_NAME], number, name[:LONGEST_NAME])


class _Raw(NamedTuple):
    """What is there to read one device's trace from."""

    number: int
    histories: Sequence[object]
    segments: Sequence[dict[object, object]]
    own: Mapping[object, object]
    stacks: StackReader


def _read_trace(raw: _Raw, expandable: bool) -> Trace:
    number, histories = raw.number, raw.histories
    entries = histories[number] if number < len(histories) else []
    if not isinstance(entries, list):
        raise _refuse(f"device_traces[{number}] is no list")
    on_cpu = raw.own.get("device") == "cpu"
    read = [_read_segment(one, raw.stacks) for one in raw.segments]
    limit = raw.own.get("max_entries")
    return Trace(
        device="cpu" if on_cpu else f"cuda:{number}",
        events=tuple(_read_event(entry, raw.stacks) for entry in entries),
        segments=tuple(sorted(read, key=lambda segment: segment.address)),
        max_entries=limit if isinstance(limit, int) and limit > 0 else None,
        has_cache=not on_cpu,
        expandable=expandable or any(segment.expandable for segment in read),
        frees_tell_origin=raw.own.get("context") == "alloc",
    )


def _read_event(raw: object, stacks: StackReader) -> Event:
    if not isinstance(raw, dict):
        raise _refuse("an event is no dict")
    action = raw.get("action")
    if not isinstance(action, str):
        raise _refuse("an event has no action")
    time_us = raw.get("time_us")
    known_time = isinstance(time_us, int) and 0 <= time_us < LARGEST_NUMBER
    return Event(
        action,
        0 if action == OOM else _read_number(raw, "addr", 0),
        _read_number(raw, "size", 0),
        time_us if known_time else None,
        stacks.read(raw.get("frames")),
        _read_number(raw, "device_free", 0) if "device_free" in raw else None,
    )


def _sort_segments(raw: Iterable[object]) -> dict[int, list[dict[object, object]]]:
    """The segments of each device, by its number."""
    by_device: dict[int, list[dict[object, object]]] = {}
    for segment in raw:
        if not isinstance(segment, dict):
            raise _refuse("a segment is no dict")
        by_device.setdefault(_read_number(segment, "device", 0), []).append(segment)
    return by_device


def _read_segment(raw: dict[object, object], stacks: StackReader) -> Segment:
    address, total = _read_number(raw, "address"), _read_number(raw, "total_size")
    blocks = raw.get("blocks", [])
    if not isinstance(blocks, list):
        raise _refuse("the blocks of a segment are no list")
    read, at = [], address
    for block in blocks:
        # Blocks lie side by side; older snapshots do not say where.
        read.append(_read_block(block, at, stacks))
        at += read[-1].size_bytes
    return Segment(address, total, raw.get("is_expandable") is True, tuple(read))


def _read_block(raw: object, address: int, stacks: StackReader) -> Block:
    if not isinstance(raw, dict):
        raise _refuse("a block is no dict")
    size = _read_number(raw, "size")
    live = raw.get("state") != "inactive"
    asked = _read_number(raw, "requested_size", size)
    return Block(address, size, asked if live else 0, live, stacks.read(raw.get("frames")))


def _read_number(raw: Mapping[object, object], key: str, otherwise: int | None = None) -> int:
    value = raw.get(key, otherwise)
    if type(value) is not int or not 0 <= value < LARGEST_NUMBER:
        raise _refuse(f"{key} is no number of bytes or place (type: {type(value).__name__})")
    return value


def _read_names(own: Mapping[object, object]) -> dict[str, str]:
    names = own.get("names")
    pairs = names.items() if isinstance(names, dict) else ()
    return {
        file: name[:LONGEST_NAME]
        for file, name in pairs
        if isinstance(file, str) and isinstance(name, str)
    }


def _read_sources(own: Mapping[object, object]) -> dict[tuple[str, int], str]:
    sources = own.get("sources")
    found = {}
    for entry in sources if isinstance(sources, list) else ():
        match entry:
            case [str(file), int(line), str(text)]:
                found[file, line] = text[:LONGEST_NAME]
    return found


def _refuse(why: str) -> UsageError:
    return UsageError(
        "this is no memory snapshot of torch's",
        cause=why,
        fix='torch.cuda.memory._dump_snapshot("snapshot.pickle") while history is recorded',
    )


# The newest that torch's own viewer reads.
PICKLE_PROTOCOL = 4
# What reading bytes that are no pickle, or a malicious one, can end in.
UNREADABLE = (
    pickle.UnpicklingError,
    EOFError,
    ValueError,
    TypeError,
    KeyError,
    IndexError,
    AttributeError,
    OverflowError,
    MemoryError,
)


class PlainUnpickler(pickle.Unpickler):
    """Reads containers, text, numbers, truth values and None; a pickle can ask for any code."""

    def find_class(self, module: str, name: str) -> NoReturn:
        """Refuses every function and class: to load one would be to trust the file."""
        raise pickle.UnpicklingError(f"it asks for {module}.{name}, and data needs no code")


def load_snapshot(path: Path) -> Any:
    """What is in a snapshot's file, as plain containers; UsageError where it is something else."""
    try:
        with path.open("rb") as file:
            return PlainUnpickler(file).load()
    except FileNotFoundError as error:
        raise UsageError(f"{path} is not there", fix="ls *.pickle") from error
    except OSError as error:  # a folder, or a file of somebody else's
        cause = error.strerror or str(error)
        raise UsageError(f"{path} cannot be read", cause=cause, fix=f"ls -l {path}") from error
    except UNREADABLE as error:
        raise UsageError(
            f"{path} is not read: it is no memory snapshot of torch's",
            cause=str(error)[:300] or type(error).__name__,
            fix='torch.cuda.memory._dump_snapshot("snapshot.pickle") while history is recorded',
        ) from error


def save_snapshot(path: Path, snapshot: object) -> Path:
    """Writes a snapshot as torch does, for this page maker and for pytorch.org/memory_viz."""
    return write_file(path, pickle.dumps(snapshot, protocol=PICKLE_PROTOCOL))


def write_file(path: Path, content: bytes) -> Path:
    """Writes a file in one step, so that nobody finds half of it; LabkitError where it cannot."""
    partial = path.with_name(f".{path.name}.partial")
    try:
        partial.write_bytes(content)
        partial.replace(path)
    except OSError as error:
        with contextlib.suppress(OSError):
            partial.unlink(missing_ok=True)
        raise LabkitError(
            f"{path} cannot be written",
            cause=error.strerror or str(error),
            fix=f"another folder, such as {Path(tempfile.gettempdir(), path.name)}",
        ) from error
    return path

"""Torch's memory snapshots: the events of each device, and its segments at the end.

A snapshot may come from another person: its pickle is read without running its code, and all data
in it is checked.
"""

from __future__ import annotations

import codecs
import contextlib
import gzip
import lzma
import pickle
import shlex
import tempfile
import zlib
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple, NoReturn, TypeVar

from labkit.errors import LabkitError, UsageError
from labkit.files import open_packed, open_regular, write_atomically
from labkit.memory.track.frames import Frame
from labkit.text import plural

# Torch's names of allocator actions.
ALLOC, FREE_REQUESTED, FREE_COMPLETED, OOM = "alloc", "free_requested", "free_completed", "oom"
SEGMENT_ADDED = {"segment_alloc", "segment_map"}
SEGMENT_REMOVED = {"segment_free", "segment_unmap"}
MAPPED = {"segment_map", "segment_unmap"}

# The key under which labkit stores additional data in a snapshot.
OWN_KEY = "labkit"
LARGEST_NUMBER = 2**63
LAST_LINE = 2**31
DEEPEST_STACK = 256
LONGEST_NAME = 1000


Read = TypeVar("Read")


class Event(NamedTuple):
    """One action of the allocator; at "oom" the size is that of the request that failed.

    ``free_bytes`` is what the device had free, known only at "oom". ``frames`` is the stack,
    innermost first. ``metadata`` is what ``_set_memory_metadata`` had set.
    """

    action: str
    address: int
    size_bytes: int
    time_us: int | None = None
    frames: tuple[Frame, ...] = ()
    free_bytes: int | None = None
    stream: int = 0
    metadata: str = ""


class Block(NamedTuple):
    """A block of a segment; a live one has ``asked_bytes``, and its stack if it was recorded."""

    address: int
    size_bytes: int
    asked_bytes: int
    live: bool
    frames: tuple[Frame, ...] = ()


class Segment(NamedTuple):
    """Memory that the allocator took from the driver, with its blocks in address order.

    Its blocks serve one stream, and if it is ``private`` only a CUDA graph or a ``MemPool``.
    """

    address: int
    size_bytes: int
    expandable: bool = False
    blocks: tuple[Block, ...] = ()
    stream: int = 0
    private: bool = False


class Trace(NamedTuple):
    """The events and segments of one device; ``max_entries`` is None if the snapshot lacks it.

    ``has_cache`` is False on the CPU, where torch takes each block from the system.
    ``frees_have_origin``: the stack of a free is the stack of the block's allocation (torch stores
    it when it records no stacks for frees), not the place where the block was freed.
    """

    device: str
    events: tuple[Event, ...] = ()
    segments: tuple[Segment, ...] = ()
    max_entries: int | None = None
    has_cache: bool = True
    expandable: bool = False
    frees_have_origin: bool = False


class Recording(NamedTuple):
    """A whole snapshot; ``names`` are display names of files, ``sources`` lines of code.

    labkit's own recordings have both: ``{"/tmp/ipykernel_7/1.py": "In[3]"}`` and
    ``{("train.py", 12): "y = model(x)"}``. ``notes``: what was left out.
    """

    traces: tuple[Trace, ...]
    names: Mapping[str, str]
    sources: Mapping[tuple[str, int], str]
    notes: tuple[str, ...] = ()


def read_recording(snapshot: object) -> Recording:
    """The recording in a ``torch.cuda.memory._snapshot()``; raises UsageError for anything else.

    A list of segments, as ``torch.cuda.memory_snapshot()`` returns, is a snapshot without events.
    """
    if isinstance(snapshot, list):
        snapshot = {"segments": snapshot, "device_traces": []}
    if not isinstance(snapshot, dict):
        raise _refuse(f"it is a {type(snapshot).__name__}, not a dict")
    histories, segments = snapshot.get("device_traces", []), snapshot.get("segments")
    if not isinstance(histories, list) or not isinstance(segments, list):
        raise _refuse("it has no lists of segments and device_traces")
    own = snapshot.get(OWN_KEY)
    own = own if isinstance(own, dict) else {}
    settings = snapshot.get("allocator_settings")
    expandable = isinstance(settings, dict) and settings.get("expandable_segments") is True
    reader, traces = EntryReader(), []
    read = reader.read_each(segments, reader.read_segment, "a segment")
    for number in sorted({*range(len(histories)), *(device for device, _ in read)}):
        entries = histories[number] if number < len(histories) else []
        if not isinstance(entries, list):
            raise _refuse(f"device_traces[{number}] is not a list")
        events = tuple(reader.read_each(entries, reader.read_event, "an event"))
        held = sorted((one for device, one in read if device == number), key=lambda s: s.address)
        if events or held:
            traces.append(_make_trace(number, events, tuple(held), own, expandable))
    skipped = f"{plural(reader.skipped, 'piece')} of data with impossible numbers"
    if reader.skipped and not traces:
        raise _refuse(f"it has only {skipped}")
    notes = [f"left out: {skipped}"] if reader.skipped else []
    trouble = own.get("trouble")
    notes += [trouble[:LONGEST_NAME]] if isinstance(trouble, str) else []
    return Recording(tuple(traces), _read_names(own), _read_sources(own), tuple(notes))


class StackReader:
    """Reads stacks, each frame once: in torch's snapshots, equal frames are one object.

    Frames are recognized by ``id()``, so the snapshot must live as long as the reader.
    """

    def __init__(self) -> None:
        self._known: dict[int, Frame | None] = {}

    def read(self, raw: object) -> tuple[Frame, ...]:
        """A stack, innermost first; entries that are not frames are left out."""
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
    """A frame in torch's format; None for anything else."""
    if not isinstance(raw, dict):
        return None
    file, line, name = raw.get("filename"), raw.get("line"), raw.get("name")
    if not isinstance(file, str) or not isinstance(name, str) or type(line) is not int:
        return None
    number = line if 0 <= line <= LAST_LINE else 0
    return Frame(file[:LONGEST_NAME], number, name[:LONGEST_NAME])


def _make_trace(
    number: int,
    events: tuple[Event, ...],
    segments: tuple[Segment, ...],
    own: Mapping[object, object],
    expandable: bool,
) -> Trace:
    on_cpu = own.get("device") == "cpu"
    limit = own.get("max_entries")
    return Trace(
        device="cpu" if on_cpu else f"cuda:{number}",
        events=events,
        segments=segments,
        max_entries=limit if isinstance(limit, int) and limit > 0 else None,
        has_cache=not on_cpu,
        expandable=expandable or any(segment.expandable for segment in segments),
        frees_have_origin=own.get("context") == "alloc",
    )


class ImpossibleNumberError(ValueError):
    """An entry of a snapshot has a number that no allocator writes."""


class EntryReader:
    """Reads events, segments and blocks; ``skipped`` counts those with impossible numbers."""

    def __init__(self) -> None:
        self.skipped = 0
        self._stacks = StackReader()

    def read_each(
        self, entries: list[object], read: Callable[[dict[object, object]], Read], name: str
    ) -> list[Read]:
        """The entries that can be read."""
        found = []
        for entry in entries:
            if not isinstance(entry, dict):
                raise _refuse(f"{name} is not a dict")
            try:
                found.append(read(entry))
            except ImpossibleNumberError:
                self.skipped += 1
        return found

    def read_event(self, raw: dict[object, object]) -> Event:
        """One event of a device."""
        action = raw.get("action")
        if not isinstance(action, str):
            raise _refuse("an event has no action")
        time_us, metadata = raw.get("time_us"), raw.get("user_metadata")
        return Event(
            action,
            0 if action == OOM else _read_number(raw, "addr", 0),
            _read_number(raw, "size", 0),
            time_us if isinstance(time_us, int) and 0 <= time_us < LARGEST_NUMBER else None,
            self._stacks.read(raw.get("frames")),
            _read_number(raw, "device_free", 0) if "device_free" in raw else None,
            _read_number(raw, "stream", 0),
            metadata[:LONGEST_NAME] if isinstance(metadata, str) else "",
        )

    def read_segment(self, raw: dict[object, object]) -> tuple[int, Segment]:
        """A segment and the number of its device."""
        address, total = _read_number(raw, "address"), _read_number(raw, "total_size")
        blocks, pool = raw.get("blocks", []), raw.get("segment_pool_id")
        if not isinstance(blocks, list):
            raise _refuse("the blocks of a segment are not a list")
        placed, at = [], address
        for block in self.read_each(blocks, self.read_block, "a block"):
            # Blocks follow each other without gaps; older snapshots have no addresses.
            placed.append(block if block.address else block._replace(address=at))
            at = placed[-1].address + block.size_bytes
        private = isinstance(pool, (list, tuple)) and any(pool)
        expandable, stream = raw.get("is_expandable") is True, _read_number(raw, "stream", 0)
        segment = Segment(address, total, expandable, tuple(placed), stream, private)
        return _read_number(raw, "device", 0), segment

    def read_block(self, raw: dict[object, object]) -> Block:
        """A block; its address is 0 if the snapshot lacks it."""
        size = _read_number(raw, "size")
        live = raw.get("state") != "inactive"
        first = raw.get("history")  # torch before 2.1
        first = first[0] if isinstance(first, list) and first else {}
        first = first if isinstance(first, dict) else {}
        asked = _read_number(raw, "requested_size", _read_number(first, "real_size", size))
        frames = self._stacks.read(raw.get("frames", first.get("frames")))
        return Block(_read_number(raw, "address", 0), size, asked if live else 0, live, frames)


def _read_number(raw: Mapping[object, object], key: str, otherwise: int | None = None) -> int:
    value = raw.get(key, otherwise)
    if type(value) is not int or not 0 <= value < LARGEST_NUMBER:
        raise ImpossibleNumberError(key)
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


# In the process whose memory is in question, where no command can look.
RECORD = (
    "in the program, before the step: torch.cuda.memory._record_memory_history()"
    ' and after it: torch.cuda.memory._dump_snapshot("snapshot.pickle")'
)


def _refuse(why: str) -> UsageError:
    return UsageError(
        "this is not a memory snapshot of torch",
        cause=why,
        fix=RECORD,
    )


# The newest protocol that torch's own viewer reads.
PICKLE_PROTOCOL = 4
# Exceptions of unpickling bytes that are not a pickle, or a malicious one.
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


NEEDS_CODE = "it needs "


class PlainUnpickler(pickle.Unpickler):
    """Reads containers, strings, numbers, booleans and None; other pickles could run any code."""

    def find_class(self, module: str, name: str) -> NoReturn:
        """Refuses every function and class, because loading one could run code."""
        raise pickle.UnpicklingError(f"{NEEDS_CODE}{module}.{name}, but plain data needs no code")


# How files begin that are often taken for a snapshot, and what they are.
BEGINNINGS = {
    b"version https://git-lfs.": "a pointer of Git LFS; git lfs pull fetches the file",
    b"\x89PNG": "a picture (PNG)",
    b"\xff\xd8\xff": "a picture (JPEG)",
    b"%PDF": "a PDF",
    b"\x89HDF\r\n": "an HDF5 file",
    b"SQLite format 3": "an SQLite database",
    b"\x93NUMPY": "an array of NumPy",
    b"\x7fELF": "a program or a library",
}
# How a pickle of protocol 0, which is text, begins.
PICKLED_TEXT = (b"(dp", b"(lp", b"(d", b"(l", b"]", b"}")
# How much of a file says what it is.
LOOKED_BYTES = 4096


def name_content(start: bytes) -> str | None:
    """What a file that is not a pickle is, by its first bytes; None if it is not known.

    >>> name_content(b"epoch 1, loss 0.7"), name_content(b'{"loss": 0.7}')
    ('text', 'JSON')
    """
    if not start:
        return "empty"
    for beginning, name in BEGINNINGS.items():
        if start.startswith(beginning):
            return name
    wide = start.startswith((b"\xff\xfe", b"\xfe\xff"))
    try:
        # The last character can be cut off.
        text = codecs.getincrementaldecoder("utf-16" if wide else "utf-8-sig")().decode(start)
    except UnicodeDecodeError:
        return None
    if not all(one.isprintable() or one.isspace() for one in text):
        return None
    begins = text.lstrip()[:1]
    return {"<": "a page of HTML, or XML", "{": "JSON", "[": "JSON"}.get(begins, "text")


def _name_other(path: Path) -> str | None:
    """What the file is, unpacked if it is compressed, if it is not a pickle."""
    with contextlib.suppress(OSError, EOFError, zlib.error, lzma.LZMAError):
        with open_regular(path) as file:
            start = _open_packed(file, path).read(LOOKED_BYTES)
        return None if start.startswith(PICKLED_TEXT) else name_content(start)
    return None


# How archives begin that are not read here, and the program that unpacks them.
UNPACKERS = {b"(\xb5/\xfd": "unzstd", b"PK\x03\x04": "unzip"}


def _open_packed(file: Any, path: Path) -> Any:
    """The file's content, unpacked if it is compressed; else UsageError."""
    start = file.read(6)
    file.seek(0)
    for mark, program in UNPACKERS.items():
        if start.startswith(mark):
            raise UsageError(
                f"{path} is an archive",
                cause="a pickle is read, also compressed as .gz, .bz2 or .xz; torch.save() writes"
                " another format",
                fix=f"{program} {shlex.quote(str(path))}",
            )
    return open_packed(file, start) or file


def _find_snapshots(folder: Path) -> str:
    """What lists the pickles of a folder, or makes a snapshot where it has none."""
    with contextlib.suppress(OSError):
        if any(folder.glob("[!.]*.pickle*")):
            shown = "" if folder == Path() else f"{shlex.quote(str(folder))}/"
            return f"ls {shown}*.pickle*"
    return RECORD


def load_snapshot(path: Path) -> Any:
    """Reads a snapshot's file, also a compressed one, as plain containers; else UsageError."""
    try:
        with open_regular(path) as file:
            return PlainUnpickler(_open_packed(file, path)).load()
    except FileNotFoundError as error:
        raise UsageError(
            f"{path} does not exist",
            cause="no file has this name",
            fix=_find_snapshots(path.parent),
        ) from error
    except (gzip.BadGzipFile, zlib.error, lzma.LZMAError) as error:
        program = "xz" if isinstance(error, lzma.LZMAError) else "gzip"
        fix = f"{program} --test {shlex.quote(str(path))}"
        raise UsageError(f"{path} is damaged", cause=str(error), fix=fix) from error
    except OSError as error:  # a folder, or a file of another user
        cause = error.strerror or str(error)
        raise UsageError(
            f"cannot read {path}", cause=cause, fix=f"ls -l {shlex.quote(str(path))}"
        ) from error
    except UNREADABLE as error:
        refused = str(error).startswith(NEEDS_CODE)
        other = None if refused else _name_other(path)
        if other:
            what = "is empty" if other == "empty" else "is not a memory snapshot of torch"
            cause = "it has no bytes: nothing was written" if other == "empty" else f"it is {other}"
            raise UsageError(f"{path} {what}", cause=cause, fix=RECORD) from error
        # pickle raises EOFError before the first item, and this UnpicklingError inside of one.
        if isinstance(error, EOFError) or "truncated" in str(error):
            raise UsageError(
                f"{path} is incomplete",
                cause="it ends early: writing or copying it was interrupted",
                fix=f"ls -l {shlex.quote(str(path))}   # then copy or record it once more",
            ) from error
        raise UsageError(
            f"{path} is not a memory snapshot of torch",
            cause=str(error)[:300] if refused else "it is not a pickle",
            fix=RECORD,
        ) from error


def save_snapshot(path: Path, snapshot: object) -> Path:
    """Writes a snapshot as torch does, for ``labkit history`` and pytorch.org/memory_viz."""
    return write_file(path, pickle.dumps(snapshot, protocol=PICKLE_PROTOCOL))


def write_file(path: Path, content: bytes) -> Path:
    """Writes a file atomically; raises LabkitError if it cannot be written."""
    try:
        write_atomically(path, content)
    except OSError as error:
        raise LabkitError(
            f"cannot write {path}",
            cause=error.strerror or str(error),
            fix=f"choose another folder, such as {Path(tempfile.gettempdir(), path.name)}",
        ) from error
    return path

"""``record_allocations()``: records which line allocates what while a block of code runs.

On CUDA torch records its allocator's events. For CPU tensors ``CpuEvents`` makes the same events
from ``StorageTracer``, for the tracing thread and without an operator's scratch memory. Each
storage gets an address that is never reused. Memory that ``backward()`` allocates gets the line
of its forward operator.
"""

from __future__ import annotations

import importlib
import linecache
import os
import re
import threading
import time
from collections import deque
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any

from labkit.errors import DeviceMissingError, LabkitError, UsageError
from labkit.memory.allocations.analysis import History, analyse
from labkit.memory.allocations.page import make_page
from labkit.memory.allocations.snapshot import (
    OWN_KEY,
    read_frame,
    read_recording,
    save_snapshot,
    write_file,
)
from labkit.memory.balance.read import read_machine_memory
from labkit.memory.track.frames import Frame, is_user_file, list_error_frames, name_cell
from labkit.text import first_line

if TYPE_CHECKING:
    import torch

    from labkit.memory.track.model import Storage


ALIGNMENT = 512
REFUSED = re.compile(r"tried to allocate (\d+) bytes")


class CpuEvents:
    """Receives every storage from ``StorageTracer``, and keeps the last events."""

    def __init__(self, max_entries: int) -> None:
        self._events: deque[dict[str, Any]] = deque(maxlen=max_entries)
        self._live: dict[int, tuple[int, Storage]] = {}
        self._next_address = ALIGNMENT
        self._stacks: dict[tuple[Frame, ...], list[dict[str, Any]]] = {}
        self._frames: dict[Frame, dict[str, Any]] = {}

    def allocate(self, storage: Storage) -> None:
        """Records an allocation; a storage from before the recording has no event."""
        if storage.device != "cpu" or not storage.bytes:
            return
        address = self._next_address
        self._next_address += -(-storage.bytes // ALIGNMENT) * ALIGNMENT
        self._live[storage.serial] = address, storage
        if not storage.before:
            self._note("alloc", address, storage)

    def free(self, storage: Storage) -> None:
        """Records that a storage is freed."""
        address, _ = self._live.pop(storage.serial, (0, None))
        if address:
            self._note("free_completed", address, storage)

    def note_failure(self, error: BaseException) -> None:
        """Records a failed allocation, if the error that ended the recording is one."""
        found = REFUSED.search(str(error))
        if found:
            free = read_machine_memory().free_bytes
            facts = {} if free is None else {"device_free": free}
            frames = self._keep(list_error_frames(error))
            self._append("oom", size=int(found[1]), frames=frames, **facts)

    def make_snapshot(self) -> dict[str, Any]:
        """The current recording in torch's format, with a segment for each live block."""
        segments = [
            self._make_segment(address, storage) for address, storage in self._live.values()
        ]
        return {"segments": segments, "device_traces": [list(self._events)]}

    def _note(self, action: str, address: int, storage: Storage) -> None:
        frames = self._write_stack(storage)
        self._append(action, addr=address, size=storage.bytes, frames=frames)

    def _append(self, action: str, **facts: Any) -> None:
        time_us = time.time_ns() // 1000
        self._events.append({"action": action, **facts, "stream": 0, "time_us": time_us})

    def _make_segment(self, address: int, storage: Storage) -> dict[str, Any]:
        frames = self._write_stack(storage)
        block = {
            "address": address,
            "size": storage.bytes,
            "requested_size": storage.bytes,
            "state": "active_allocated",
            "frames": frames,
        }
        sizes = dict.fromkeys(
            ("total_size", "allocated_size", "active_size", "requested_size"), storage.bytes
        )
        return {
            "device": 0,
            "address": address,
            "stream": 0,
            "frames": frames,
            **sizes,
            "segment_type": "large",
            "is_expandable": False,
            "segment_pool_id": (0, 0),
            "blocks": [block],
        }

    def _write_stack(self, storage: Storage) -> list[dict[str, Any]]:
        frames = storage.frames
        if storage.backward and frames:
            first = frames[0]
            frames = (first._replace(function=f"{first.function} (backward)"), *frames[1:])
        return self._keep(frames)

    def _keep(self, frames: tuple[Frame, ...]) -> list[dict[str, Any]]:
        """A stack in torch's format; equal stacks are one object, which a pickle writes once."""
        if frames not in self._stacks:
            self._stacks[frames] = [self._write_frame(frame) for frame in frames]
        return self._stacks[frames]

    def _write_frame(self, frame: Frame) -> dict[str, Any]:
        written = {"filename": frame.file, "line": frame.line, "name": frame.function}
        return self._frames.setdefault(frame, written)


# An event takes about 0.5 kB; a training step of a large model makes some thousands.
MAX_ENTRIES = 100_000
CPU_STACK_DEPTH = 16


class CudaRecorder:
    """Torch's own recorder, with a limit; by default it is off, and unlimited when turned on.

    ``context`` is "alloc" if frees have no stacks of their own. ``context`` and ``max_entries``
    are None if the settings are unknown.

    If the recorder is already on, its settings cannot be read, and so not be restored. Then it is
    left unchanged and continues after the block.
    """

    device, trouble = "cuda", None

    def __init__(self, torch: Any, max_entries: int) -> None:
        self._torch, self._bound = torch, max_entries
        self.max_entries: int | None = max_entries
        self.context: str | None = "alloc"
        self._joined = False

    def start(self) -> None:
        """Turns the recorder on; this starts CUDA if nothing has started it yet."""
        self.max_entries, self.context = self._bound, "alloc"
        cuda = self._torch.cuda
        try:
            self._joined = cuda.is_initialized() and self._torch._C._cuda_isHistoryEnabled()
            if self._joined:
                self.max_entries = self.context = None
                return
            # Python stacks only, as C++ stacks make the snapshot a hundred times slower. No stacks
            # for frees: torch then stores the allocation's stack, which is more useful, at half the
            # cost.
            cuda.memory._record_memory_history(
                "all", context=self.context, stacks="python", max_entries=self._bound
            )
        except RuntimeError as error:
            if "support" not in str(error):
                raise
            raise LabkitError(
                "torch cannot record this allocator",
                cause=first_line(str(error)),
                fix="start the program with PYTORCH_ALLOC_CONF=backend:native and without"
                " CUDAPluggableAllocator; exact peaks without a restart: track_memory()",
            ) from error

    def stop(self, error: BaseException | None) -> dict[str, Any]:
        """Takes the snapshot; turns the recorder off if it was off before, which drops events."""
        try:
            snapshot: dict[str, Any] = self._torch.cuda.memory._snapshot()
        finally:
            if not self._joined:
                self._torch.cuda.memory._record_memory_history(enabled=None)
        return snapshot


class CpuRecorder:
    """Records this thread's CPU tensors with a dispatch mode; compiled functions run eagerly."""

    device = "cpu"

    def __init__(self, max_entries: int) -> None:
        self.max_entries: int | None = max_entries
        self.context: str | None = "alloc"
        self._bound = max_entries
        self._events = CpuEvents(max_entries)
        self._tracer: Any = None

    @property
    def trouble(self) -> str | None:
        """What the tracer could not follow; None if it followed all."""
        return self._tracer.trouble if self._tracer else None

    def start(self) -> None:
        """Starts tracing this thread's operators."""
        # Torch imports this at the first operator under a dispatch mode, which takes seconds. So
        # import it before the recording.
        importlib.import_module("torch._dynamo")
        from labkit.memory.track.storages import StorageTracer

        self._events = CpuEvents(self._bound)
        self._tracer = StorageTracer(self._events, depth=CPU_STACK_DEPTH)
        self._tracer.__enter__()

    def stop(self, error: BaseException | None) -> dict[str, Any]:
        """Stops tracing; an error about memory becomes an event."""
        self._tracer.__exit__(None, None, None)
        if error is not None:
            self._events.note_failure(error)
        return self._events.make_snapshot()


class AllocationRecorder:
    """Records the allocations of one block; its history is available after the block."""

    _open: AllocationRecorder | None = None
    _lock = threading.Lock()

    def __init__(self, recorder: CudaRecorder | CpuRecorder) -> None:
        self._recorder = recorder
        self._snapshot: dict[str, Any] | None = None
        self._history: History | None = None
        self._trouble: str | None = None

    @property
    def snapshot(self) -> dict[str, Any]:
        """The snapshot as a dict in torch's format; raises LabkitError if there is none."""
        if self._snapshot is None:
            raise LabkitError(
                "nothing has been recorded" if self._trouble is None else "the recording is lost",
                cause=self._trouble or "the with block has not ended",
                fix="with labkit.record_allocations() as recorded: ...",
            )
        return self._snapshot

    @property
    def history(self) -> History:
        """The history in the recording; computing it takes some seconds for a million events."""
        if self._history is None:
            self._history = analyse(read_recording(self.snapshot))
        return self._history

    def save(self, path: str | Path) -> Path:
        """Writes the snapshot, which pytorch.org/memory_viz and ``labkit history`` open."""
        return save_snapshot(Path(path), self.snapshot)

    def save_page(self, path: str | Path) -> Path:
        """Writes the history as one self-contained HTML page."""
        path = Path(path)
        return write_file(path, make_page(self.history).encode(errors="replace"))

    def __enter__(self) -> AllocationRecorder:
        with self._lock:
            if AllocationRecorder._open is not None:
                raise LabkitError(
                    "allocations are already being recorded",
                    cause="a process has one recorder, and its block is open",
                    fix="use one record_allocations() around both blocks",
                )
            AllocationRecorder._open = self
        self._snapshot = self._history = self._trouble = None
        try:
            self._recorder.start()
        except BaseException:
            AllocationRecorder._open = None
            raise
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        AllocationRecorder._open = None
        try:
            snapshot = self._recorder.stop(error)
        except RuntimeError as trouble:
            # After an error of CUDA that lasts every call fails; the block itself must not.
            self._trouble = first_line(str(trouble))
            return
        snapshot[OWN_KEY] = self._describe(snapshot)
        self._snapshot = snapshot

    def _describe(self, snapshot: dict[str, Any]) -> dict[str, Any]:
        """The snapshot with labkit's additional data, which torch's viewer ignores."""
        names, sources = read_lines(snapshot)
        return {
            "schema_version": 1,
            "device": self._recorder.device,
            "max_entries": self._recorder.max_entries,
            "context": self._recorder.context,
            "trouble": self._recorder.trouble,
            "names": names,
            "sources": sources,
        }

    def __repr__(self) -> str:
        if self._snapshot is not None:
            return repr(self.history)
        running = AllocationRecorder._open is self
        return f"allocations: {'being recorded' if running else 'nothing recorded'}"

    def __str__(self) -> str:
        return repr(self)


def _forget_open() -> None:
    """In a forked child, the open recorder is the parent's."""
    AllocationRecorder._open = None


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_forget_open)


def record_allocations(
    device: str | torch.device | None = None, *, max_entries: int = MAX_ENTRIES
) -> AllocationRecorder:
    """Records every allocation of a block: live memory at the peak, by line, and memory not freed.

    On CUDA it uses torch's recorder, for every device; without a GPU, or with ``device="cpu"``, it
    records the CPU tensors of this thread. It keeps the last ``max_entries`` events of each device,
    100,000 by default: an allocation is one event, its free two. The recording is also available
    after an exception; a failed allocation is one of the events. Raises
    UsageError for other devices, DeviceMissingError if there is no CUDA device.

    >>> import torch
    >>> with record_allocations("cpu") as recorded:
    ...     kept = torch.zeros(1024)
    >>> recorded.history.devices[0].peak.live_bytes
    4096
    """
    if type(max_entries) is not int or max_entries < 1:
        raise UsageError(
            f"invalid number of events to keep: max_entries={max_entries!r}",
            cause="it is a whole number above 0: an unlimited recording would fill the memory",
            fix=f"record_allocations(max_entries={MAX_ENTRIES})",
        )
    name = None if device is None else str(device)
    if name not in (None, "cpu", "cuda"):
        raise UsageError(
            f"cannot record the allocations of {name!r}",
            cause="torch records all CUDA devices together; the only other choice is the CPU",
            fix='record_allocations("cuda")',
        )
    import torch

    missing = _find_missing(torch)
    if name == "cuda" and missing:
        raise DeviceMissingError(
            "there is no CUDA device to record", cause=missing[0], fix=missing[1]
        )
    on_cuda = missing is None and name != "cpu"
    return AllocationRecorder(
        CudaRecorder(torch, max_entries) if on_cuda else CpuRecorder(max_entries)
    )


def _find_missing(torch: Any) -> tuple[str, str] | None:
    """Why this process cannot use CUDA, and the fix; None if it can."""
    if not torch.cuda.is_available():
        fix = 'record_allocations("cpu"), or: labkit devices --verify'
        return "torch.cuda.is_available() is False", fix
    # A forked child still sees the allocator of its parent, and its own tensors are on the CPU.
    if torch.cuda._is_in_bad_fork():
        fix = 'torch.multiprocessing.set_start_method("spawn"), or record_allocations("cpu")'
        return "this process was forked after CUDA had been started", fix
    return None


def read_lines(snapshot: dict[str, Any]) -> tuple[dict[str, str], list[list[object]]]:
    """The names of a notebook's cells, and the source of every user line that allocated.

    It is read right after the block, before the files can change.
    """
    names, sources = {}, {}
    for frame in _list_frames(snapshot):
        if is_user_file(frame.file):
            name = name_cell(frame.file)
            if name:
                names[frame.file] = name
            text = linecache.getline(frame.file, frame.line).strip()
            if text:
                sources[frame.file, frame.line] = text
    return names, [[*place, text] for place, text in sources.items()]


def _list_frames(snapshot: dict[str, Any]) -> set[Frame]:
    """The distinct frames of the snapshot's events and blocks."""
    entries = [entry for trace in snapshot["device_traces"] for entry in trace]
    entries += [block for segment in snapshot["segments"] for block in segment["blocks"]]
    unique = {id(raw): raw for entry in entries for raw in entry.get("frames", ())}
    return {frame for frame in map(read_frame, unique.values()) if frame is not None}

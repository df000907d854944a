"""CPU tensors as a memory snapshot: the same events that torch's CUDA allocator records.

They are of the thread that traces, and an operator's scratch memory is not among them. A storage
gets an address of its own, never used twice. What the program's ``backward()`` allocates has the
line of the forward operator it belongs to.
"""

from __future__ import annotations

import re
import time
from collections import deque
from types import TracebackType
from typing import TYPE_CHECKING, Any

from labkit.memory.frames import Frame, is_user_file
from labkit.memory.machine import read_machine_memory

if TYPE_CHECKING:
    from labkit.memory.storage_levels import Storage

ALIGNMENT = 512
REFUSED = re.compile(r"tried to allocate (\d+) bytes")


class CpuEvents:
    """Told of every storage by ``labkit.memory.storages.StorageTracer``; keeps the last events."""

    def __init__(self, max_entries: int) -> None:
        self._events: deque[dict[str, Any]] = deque(maxlen=max_entries)
        self._live: dict[int, tuple[int, Storage]] = {}
        self._next_address = ALIGNMENT
        self._stacks: dict[tuple[Frame, ...], list[dict[str, Any]]] = {}
        self._frames: dict[Frame, dict[str, Any]] = {}

    def allocate(self, storage: Storage) -> None:
        """A storage is there; of one that was there before the recording there is no event."""
        if storage.device != "cpu" or not storage.bytes:
            return
        address = self._next_address
        self._next_address += -(-storage.bytes // ALIGNMENT) * ALIGNMENT
        self._live[storage.serial] = address, storage
        if not storage.before:
            self._note("alloc", address, storage)

    def free(self, storage: Storage) -> None:
        """A storage has gone."""
        address, _ = self._live.pop(storage.serial, (0, None))
        if address:
            self._note("free_completed", address, storage)

    def note_shortage(self, error: BaseException) -> None:
        """An error that ends the recording, which may say that the system's memory ran out."""
        found = REFUSED.search(str(error))
        if found:
            free = read_machine_memory().free_bytes
            facts = {} if free is None else {"device_free": free}
            frames = self._keep(_list_frames(error))
            self._append("oom", size=int(found[1]), frames=frames, **facts)

    def make_snapshot(self) -> dict[str, Any]:
        """What was recorded so far, as torch's own format has it: a segment for each live block."""
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
        kind = {"segment_type": "large", "is_expandable": False, "segment_pool_id": (0, 0)}
        return {
            **{"device": 0, "address": address, "stream": 0, "frames": frames},
            **sizes,
            **kind,
            "blocks": [block],
        }

    def _write_stack(self, storage: Storage) -> list[dict[str, Any]]:
        frames = storage.frames
        if storage.backward and frames:
            first = frames[0]
            frames = (first._replace(function=f"{first.function} (backward)"), *frames[1:])
        return self._keep(frames)

    def _keep(self, frames: tuple[Frame, ...]) -> list[dict[str, Any]]:
        """A stack as torch writes it; equal ones are one object, which a pickle writes once."""
        if frames not in self._stacks:
            self._stacks[frames] = [self._write_frame(frame) for frame in frames]
        return self._stacks[frames]

    def _write_frame(self, frame: Frame) -> dict[str, Any]:
        written = {"filename": frame.file, "line": frame.line, "name": frame.function}
        return self._frames.setdefault(frame, written)


def _list_frames(error: BaseException) -> tuple[Frame, ...]:
    """The user's frames of an error's traceback, innermost first."""
    frames = []
    step: TracebackType | None = error.__traceback__
    while step is not None:
        code = step.tb_frame.f_code
        if is_user_file(code.co_filename):
            frames.append(Frame(code.co_filename, step.tb_lineno, code.co_name))
        step = step.tb_next
    return tuple(reversed(frames))

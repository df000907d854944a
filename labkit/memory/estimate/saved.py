"""Checkpoints of fake tensors, which have no data: what a step saves, it can load again.

A checkpoint has the shapes of its tensors alone. One in a file is written to the layer of files
over the real ones (``overlay.py``).
"""

from __future__ import annotations

import contextlib
import functools
import importlib
import io
import os
import pickle
import threading
import weakref
from collections.abc import Callable
from types import ModuleType
from typing import Any

import torch
from torch._subclasses.fake_tensor import DataDependentOutputException, FakeTensor
from torch.utils._python_dispatch import _disable_current_modes

from labkit.memory.estimate.cuda import replace_attributes
from labkit.memory.estimate.guard import StepThreads
from labkit.memory.estimate.hdf5 import hold_hdf5
from labkit.memory.estimate.locks import LOCKS
from labkit.memory.estimate.loggers import drop_logs
from labkit.memory.estimate.loops import LOOPS
from labkit.memory.estimate.model import EstimateObstacle
from labkit.memory.estimate.overlay import FileOverlay
from labkit.memory.estimate.pipes import KEPT, PIPES
from labkit.memory.estimate.queues import hold_pools, hold_queues
from labkit.memory.estimate.values import KnownValues
from labkit.memory.estimate.waits import WAITS

MARK = b"labkit's checkpoint of fake tensors\n"
# The most values of a tensor that a checkpoint has, such as counts of batches.
MOST_VALUES = 1024


@functools.cache
def _find_safetensors() -> Any:
    """The module that saves tensors, imported before the step imports it; None if there is none."""
    with contextlib.suppress(ImportError):
        return importlib.import_module("safetensors.torch")
    return None


class SavedStorage:
    """The storage of tensors that are saved: its size and its device.

    One from a checkpoint makes a storage when it is first used, on the device ``location``.
    """

    location: Any = None
    values: KnownValues

    def __init__(self, count: int, device: str, tensor: Any = None) -> None:
        self._count, self._device = count, device
        self._find: Callable[[], Any] = (lambda: None) if tensor is None else weakref.ref(tensor)
        self._made: Any = None

    def __reduce__(self) -> Any:
        return SavedStorage, (self._count, self._device)

    def find(self) -> Any:
        """A tensor with the storage."""
        tensor = self._find() if self._made is None else self._made
        if tensor is None:
            place = self.location
            place = place.get(self._device) if isinstance(place, dict) else place
            device = place if isinstance(place, str | torch.device) else self._device
            tensor = self._made = torch.empty(self._count, dtype=torch.uint8, device=device)
        return tensor


def restore_tensor(  # noqa: PLR0917
    saved: SavedStorage, dtype: Any, shape: Any, strides: Any, offset: int, state: Any
) -> Any:
    """The tensor of a checkpoint: a view of its storage."""
    is_parameter, requires_grad, numbers = state
    whole = saved.find()
    made = torch.empty(0, dtype=dtype, device=whole.device)
    with torch.no_grad():
        made.set_(whole.untyped_storage(), offset, shape, strides)
    if numbers is not None:
        with _disable_current_modes():
            value = torch.tensor(numbers, dtype=dtype)
        saved.values.keep(made, value)
    if is_parameter:
        return torch.nn.Parameter(made, requires_grad)
    return made.requires_grad_(requires_grad)


def _refuse_data(read: Callable[..., Any]) -> Callable[..., Any]:
    """A function of safetensors that reads a tensor's memory."""

    def answer(tensor: Any, *arguments: Any, **named: Any) -> Any:
        if isinstance(tensor, FakeTensor):
            raise DataDependentOutputException("safetensors")
        return read(tensor, *arguments, **named)

    return answer


class Checkpoints:
    """Replaces what saves and loads tensors in a simulation; ``serial`` numbers a storage."""

    def __init__(self, values: KnownValues, serial: Callable[[Any], int | None]) -> None:
        self._values, self._serial = values, serial
        # The storages of a checkpoint; pickle alone has one for each tensor.
        self._storages: dict[int | None, SavedStorage] = {}
        self._overlay = FileOverlay()
        self.pipes, self.locks = PIPES, LOCKS
        self._overlay.see_opened = self.pipes.hold_new
        # Of each thread: whether it pickles, and whether it has met a fake tensor meanwhile.
        self._state = threading.local()
        self._lock = threading.RLock()

    @property
    def stopped(self) -> EstimateObstacle | None:
        """The change of something real that the step was stopped at; None if there was none."""
        return self._overlay.guard.obstacle

    @property
    def threads(self) -> StepThreads:
        """The threads that work for the step."""
        return self._overlay.threads

    def is_step(self) -> bool:
        """Whether the running thread works for the step."""
        return self._overlay.threads.includes_this()

    def refuse(self, name: str, path: str) -> None:
        """Keeps that the step is stopped at a change of a file that was open before."""
        self._overlay.guard.note_stop(name, path)

    def has_written(self, path: Any) -> bool:
        """Whether the step has written, or made, what has this path."""
        return self._overlay.has_written(path)

    def open(self, note: Callable[[str], object]) -> contextlib.ExitStack:
        """Replaces torch's and safetensors' functions, and those that take files, until exit.

        ``note`` takes a sentence about what is dropped.
        """
        SavedStorage.values = self._values
        stack = contextlib.ExitStack()
        reduce = replace_attributes(FakeTensor, __reduce_ex__=lambda one, _: self._reduce(one))
        stack.enter_context(reduce)
        stack.enter_context(self._overlay.open())
        stack.enter_context(drop_logs(self._overlay.threads.includes_this))
        threads = self._overlay.threads
        stack.enter_context(hold_queues(threads.includes_this, lambda: threads.is_own, note))
        stack.enter_context(hold_pools(threads))
        LOOPS.threads = threads
        for owner, names in LOOPS.made.find():
            stack.enter_context(replace_attributes(owner, **names))
        stack.enter_context(self.pipes.open(self._overlay.threads, note))
        stack.enter_context(KEPT.open(note))
        stack.enter_context(self.locks.open(self._overlay.threads, note))
        stack.enter_context(hold_hdf5(threads.includes_this, note, self.refuse))
        for owner, names in self._list_savers().items():
            stack.enter_context(replace_attributes(owner, **names))
        return stack

    def list_functions(self) -> dict[Any, dict[str, Any]]:
        """What replaces which functions of which modules."""
        found = self._overlay.functions | self._list_savers()
        guard = self._overlay.guard.list_functions()
        loops = {one: names for one, names in LOOPS.made.find() if not isinstance(one, type)}
        for names_by_owner in (self.pipes.functions, KEPT.functions, guard, loops, WAITS.functions):
            for owner, names in names_by_owner.items():
                found[owner] = found.get(owner, {}) | names
        return found

    def _list_savers(self) -> dict[Any, dict[str, Any]]:
        saving = {"save": self._wrap_save(torch.save), "load": self._wrap_load(torch.load)}
        found: dict[Any, dict[str, Any]] = {torch: saving, torch.serialization: saving}
        safe = _find_safetensors()
        if safe is not None:
            found[safe] = {
                "save_file": self._wrap_save(safe.save_file),
                "load_file": self._wrap_load(safe.load_file),
                "save": lambda tensors, *_, **__: MARK + pickle.dumps(tensors),
                "load": self._wrap_load(safe.load),
            }
            found[safe] |= {
                name: _refuse_data(getattr(safe, name))
                for name in ("_tobytes", "_to_ndarray")
                if hasattr(safe, name)
            }
        return found

    def _reduce(self, tensor: Any) -> Any:
        self._state.is_fake = True
        storage = tensor.untyped_storage()
        saved = SavedStorage(storage.nbytes(), str(tensor.device), tensor)
        if getattr(self._state, "pickles", False):
            saved = self._storages.setdefault(self._serial(tensor), saved)
        value = self._values.find(tensor) if tensor.numel() <= MOST_VALUES else None
        with _disable_current_modes():
            numbers = None if value is None else value.tolist()
        state = isinstance(tensor, torch.nn.Parameter), tensor.requires_grad, numbers
        place = tensor.dtype, tensor.shape, tensor.stride(), tensor.storage_offset()
        return restore_tensor, (saved, *place, state)

    def _wrap_save(self, save: Callable[..., Any]) -> Callable[..., Any]:
        def answer(obj: Any, f: Any = None, pickle_module: Any = pickle, **named: Any) -> None:
            f = named.pop("filename", f)
            if getattr(self._state, "pickles", False):  # the data of a real tensor
                save(obj, f, **named)
                return
            modules = isinstance(pickle_module, ModuleType)
            data = self._pickle(obj, pickle_module if modules else pickle)
            if not self._overlay.threads.includes_this() and not self._state.is_fake:
                save(obj, f, **named)  # of the user's own thread, beside the step
            elif isinstance(f, str | os.PathLike):
                with self._overlay.open_new(f) as file:
                    file.write(MARK + data)
            elif isinstance(f, io.BytesIO) or self._overlay.has(f):
                f.write(MARK + data)

        return answer

    def _pickle(self, obj: Any, module: Any) -> bytes:
        with self._lock:
            self._state.pickles, self._state.is_fake = True, False
            try:
                data: bytes = module.dumps(obj)
            finally:
                self._state.pickles = False
                self._storages.clear()
        return data

    def _wrap_load(self, load: Callable[..., Any]) -> Callable[..., Any]:
        def answer(f: Any = None, map_location: Any = None, **named: Any) -> Any:
            f = named.pop("filename", f)
            data = f if isinstance(f, bytes) else self._read(f)
            if data is None or MARK not in data:
                named |= {} if map_location is None else {"map_location": map_location}
                return load(self._overlay.find(f), **named)
            SavedStorage.location = named.get("device", map_location)
            try:
                return pickle.loads(data.removeprefix(MARK))  # noqa: S301 (the step's own)
            finally:
                SavedStorage.location = None

        return answer

    def _read(self, file: Any) -> bytes | None:
        """What the simulation has written to a file; None for another one."""
        if isinstance(file, io.BytesIO):
            return file.getbuffer()[file.tell() :].tobytes()
        if isinstance(file, str | os.PathLike):
            place = self._overlay.find(file)
            if place is file:
                return None
            with open(place, "rb") as opened:  # noqa: PTH123
                start = opened.read(len(MARK))
                return start + opened.read() if start == MARK else None
        if not self._overlay.has(file) or not file.readable():
            return None
        place = file.tell()
        start = file.read(len(MARK))
        if start == MARK:
            return bytes(start + file.read())
        file.seek(place)
        return None

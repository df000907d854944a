"""Checkpoints of fake tensors, which have no data: what a step saves, it can load again.

A checkpoint in a file is kept here under the file's name, and what the step opens for writing is a
file in a folder of its own: the user's files stay as they are. A checkpoint in memory, as in
``io.BytesIO`` or by pickle, has the shapes of its tensors alone.
"""

from __future__ import annotations

import builtins
import contextlib
import io
import os
import pickle
import re
import shutil
import sys
import tempfile
import threading
import weakref
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch._subclasses.fake_tensor import FakeTensor
from torch.utils._python_dispatch import _disable_current_modes

from labkit.memory.estimate.cuda import replace_attributes
from labkit.memory.estimate.values import KnownValues
from labkit.memory.track.frames import is_user_file

MARK = b"labkit's checkpoint of fake tensors\n"
# The most values of a tensor that a checkpoint has, such as counts of batches.
MOST_VALUES = 1024
OPEN = open
# Python's own modules that open a file for their caller; logging, for one, keeps what it opens.
OPENERS = re.compile(r"[/\\](?:pathlib|shutil|zipfile|gzip|bz2|lzma|tarfile)(?:[/\\]\w+)?\.py$")


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


class Checkpoints:
    """Replaces what saves and loads tensors in a simulation; ``serial`` numbers a storage."""

    def __init__(self, values: KnownValues, serial: Callable[[Any], int | None]) -> None:
        self._values, self._serial = values, serial
        # The storages of a checkpoint; pickle alone has one for each tensor.
        self._storages: dict[int | None, SavedStorage] = {}
        self._shares = False
        self._files: dict[str, bytes] = {}
        # Where a file that the step opened for writing is instead, by its name; and the reverse.
        self._places: dict[str, str] = {}
        self._names: dict[str, str] = {}
        self._folder, self._thread = "", threading.get_ident()

    def open(self) -> contextlib.ExitStack:
        """Replaces torch's and safetensors' functions, and those that move files, until exit."""
        SavedStorage.values = self._values
        stack = replace_attributes(FakeTensor, __reduce_ex__=lambda one, _: self._reduce(one))
        self._folder = stack.enter_context(tempfile.TemporaryDirectory(prefix="labkit-estimate-"))
        for owner, names in self.list_functions().items():
            stack.enter_context(replace_attributes(owner, **names))
        return stack

    def list_functions(self) -> dict[Any, dict[str, Any]]:
        """What replaces which functions of which modules."""
        found: dict[Any, dict[str, Any]] = {
            torch: {"save": self._save, "load": self._wrap_load(torch.load)},
            os: {
                **{name: self._wrap_move(getattr(os, name)) for name in ("replace", "rename")},
                **{name: self._wrap_remove(getattr(os, name)) for name in ("remove", "unlink")},
            },
            # Up to Python 3.10 these do not call those of os.
            Path: {
                **{name: self._wrap_move(getattr(Path, name)) for name in ("replace", "rename")},
                "unlink": self._wrap_remove(Path.unlink),
            },
            shutil: {
                **{
                    name: self._wrap_move(getattr(shutil, name), keeps=True)
                    for name in ("copyfile", "copy", "copy2")
                },
                "move": self._wrap_move(shutil.move),
                "rmtree": self._wrap_remove(shutil.rmtree),
            },
            os.path: {
                name: self._wrap_question(getattr(os.path, name))
                for name in ("exists", "isfile", "getsize")
            },
            **{owner: {"open": self._wrap_open(open)} for owner in (builtins, io)},
        }
        safe = sys.modules.get("safetensors.torch")
        if safe is not None:
            found[safe] = {
                "save_file": lambda tensors, filename, *_, **__: self._save(tensors, filename),
                "load_file": self._wrap_load(safe.load_file),
                "save": lambda tensors, *_, **__: MARK + pickle.dumps(tensors),
                "load": self._wrap_load(safe.load),
            }
        return found

    def _reduce(self, tensor: Any) -> Any:
        storage = tensor.untyped_storage()
        saved = SavedStorage(storage.nbytes(), str(tensor.device), tensor)
        if self._shares:
            saved = self._storages.setdefault(self._serial(tensor), saved)
        value = self._values.find(tensor) if tensor.numel() <= MOST_VALUES else None
        with _disable_current_modes():
            numbers = None if value is None else value.tolist()
        state = isinstance(tensor, torch.nn.Parameter), tensor.requires_grad, numbers
        place = tensor.dtype, tensor.shape, tensor.stride(), tensor.storage_offset()
        return restore_tensor, (saved, *place, state)

    def _save(self, obj: Any, f: Any, pickle_module: Any = pickle, *_: Any, **__: Any) -> None:
        self._shares = True
        try:
            data = pickle_module.dumps(obj)
        finally:
            self._shares = False
            self._storages.clear()
        name = self._find_name(f)
        if name is not None:
            self._files[name] = data
        elif isinstance(f, io.BytesIO):
            f.write(MARK + data)

    def _wrap_load(self, load: Callable[..., Any]) -> Callable[..., Any]:
        def answer(f: Any = None, map_location: Any = None, **named: Any) -> Any:
            f = named.pop("filename", f)
            kept = self._files.get(self._find_name(f) or "")
            data = f if isinstance(f, bytes) else kept
            if isinstance(f, io.BytesIO):
                data = f.getbuffer()[f.tell() :].tobytes()
            if data is None or (kept is None and MARK not in data):
                named |= {} if map_location is None else {"map_location": map_location}
                return load(f, **named)
            SavedStorage.location = named.get("device", map_location)
            try:
                return pickle.loads(data.removeprefix(MARK))  # noqa: S301 (the step's own)
            finally:
                SavedStorage.location = None

        return answer

    def _find_name(self, file: Any) -> str | None:
        """The whole name of a file that is a name or is open; None for one without a name."""
        name = _find_name(file)
        return self._names.get(name or "", name)

    def _wrap_open(self, really: Callable[..., Any]) -> Callable[..., Any]:
        def answer(file: Any, mode: str = "r", *others: Any, **named: Any) -> Any:
            if self._is_asked():
                file = self._divert(file, mode)
            return really(file, mode, *others, **named)

        return answer

    def _is_asked(self) -> bool:
        """True where the step's own code calls, or a module of Python's that it calls."""
        frame: Any = sys._getframe(2)
        while frame is not None and OPENERS.search(frame.f_code.co_filename):
            frame = frame.f_back
        own = threading.get_ident() == self._thread
        return own and frame is not None and is_user_file(frame.f_code.co_filename)

    def _divert(self, file: Any, mode: str) -> Any:
        """Where to open the file: what is to be written goes to this simulation's own folder."""
        name = _find_name(file) if isinstance(file, str | os.PathLike) else None
        if name is None or not (
            name in self._places or name in self._files or set(mode) & set("wax+")
        ):
            return file
        target = Path(name)
        if name not in self._places:
            known = name in self._files
            # A device, and what raises an error, is the real one.
            odd = os.path.lexists(name) and (not target.is_file() or "x" in mode)
            if not known and (odd or not target.parent.is_dir()):
                return file
            place = str(Path(self._folder) / f"{len(self._names)}{target.suffix}")
            self._places[name], self._names[place] = place, name
            if known:
                _write(place, io.BytesIO(MARK + self._files[name]))
            elif target.is_file() and "w" not in mode:
                _write(place, OPEN(name, "rb"))
        return self._places[name]

    def _wrap_question(self, ask: Callable[[Any], Any]) -> Callable[[Any], Any]:
        def answer(path: Any) -> Any:
            name = _find_name(path) or ""
            return ask(
                self._divert(path, "r") if name in self._files else self._places.get(name, path)
            )

        return answer

    def _wrap_move(self, act: Callable[..., Any], *, keeps: bool = False) -> Callable[..., Any]:
        def answer(source: Any, target: Any, *others: Any, **named: Any) -> Any:
            name, other = _find_name(source) or "", _find_name(target) or ""
            if name not in self._files and name not in self._places:
                if not self._is_asked() or not Path(name).is_file():
                    return act(source, target, *others, **named)
                # A file of the user's stays where it is; the step finds a copy.
                if other and self._divert(other, "w") == self._places.get(other):
                    _write(self._places[other], OPEN(name, "rb"))
                return target
            tables: tuple[dict[str, Any], ...] = (self._files, self._places)
            for kept in tables:
                kept.pop(other, None)
                if name in kept:
                    kept[other] = kept[name] if keeps else kept.pop(name)
            if other in self._places:
                self._names[self._places[other]] = other
            return target if keeps or isinstance(source, Path) else None

        return answer

    def _wrap_remove(self, act: Callable[..., Any]) -> Callable[..., Any]:
        def answer(path: Any, *others: Any, **named: Any) -> None:
            name = _find_name(path) or ""
            found = [kept.pop(name, None) for kept in (self._files, self._places)]
            # What was there before the step stays there.
            if all(one is None for one in found) and not (
                self._is_asked() and os.path.lexists(path)
            ):
                act(path, *others, **named)

        return answer


def _write(place: str, source: Any) -> None:
    with source, OPEN(place, "wb") as target:
        shutil.copyfileobj(source, target)


def _find_name(file: Any) -> str | None:
    """The whole name of a file that is a name or is open; None for one without a name."""
    name = file if isinstance(file, str | os.PathLike) else getattr(file, "name", None)
    return str(Path(name).absolute()) if isinstance(name, str | os.PathLike) else None

"""Functions in C, C++ and Rust that open a file by its name, which Python has no event for."""

from __future__ import annotations

import contextlib
import functools
import importlib
import sys
from collections.abc import Iterator
from typing import Any, NamedTuple

import torch

READS, WRITES, KEEPS, REFUSED = "reads", "writes", "keeps", "refused"


class NativeCall(NamedTuple):
    """A function, by its owner and name, and the place of the path among its arguments.

    It reads the file, writes a new one or keeps what is there. It is refused where it would write
    several files, or change one as it likes.
    """

    owner: Any
    name: str
    place: int
    use: str


# Of modules that are not imported here: module, function, place, use.
OTHERS = (
    ("safetensors", "serialize_file", 1, WRITES),
    ("safetensors.torch", "serialize_file", 1, WRITES),
    ("safetensors.numpy", "serialize_file", 1, WRITES),
    ("cv2", "imwrite", 0, WRITES),
    ("cv2", "imread", 0, READS),
    ("cv2", "VideoWriter", 0, WRITES),
    ("h5py.h5f", "create", 0, WRITES),
    ("h5py.h5f", "open", 0, KEEPS),
    ("lmdb", "open", 0, REFUSED),
    ("lmdb", "Environment", 0, REFUSED),
)


def list_native_calls() -> Iterator[NativeCall]:
    """Those of what has been imported."""
    yield NativeCall(torch._C, "PyTorchFileWriter", 0, WRITES)
    yield NativeCall(torch._C, "PyTorchFileReader", 0, READS)
    yield NativeCall(torch._C, "import_ir_module", 1, READS)
    yield NativeCall(torch._C.ScriptModule, "save", 1, WRITES)
    yield NativeCall(torch._C.ScriptFunction, "save", 1, WRITES)
    yield NativeCall(torch._C._autograd._ProfilerResult, "save", 1, WRITES)
    for module, name, place, use in OTHERS:
        if hasattr(sys.modules.get(module), name):
            yield NativeCall(sys.modules[module], name, place, use)
    for one in _import_databases():
        yield NativeCall(one, "open", 0, REFUSED)


def reads_only(call: NativeCall, arguments: tuple[Any, ...], named: dict[str, Any]) -> bool:
    """True where this call leaves the file as it is."""
    if call.use == KEEPS:  # of HDF5, whose flag for reading is 0
        return not arguments[1:2] or not arguments[1]
    if call.use == REFUSED:
        return bool(named.get("readonly")) or (call.name == "open" and arguments[1:2] == ("r",))
    return call.use == READS


@functools.cache
def _import_databases() -> list[Any]:
    """What ``dbm`` and ``shelve`` write files with, as far as Python was built with it."""
    found = []
    for name in ("dbm.gnu", "dbm.ndbm"):
        with contextlib.suppress(ImportError):
            found.append(importlib.import_module(name))
    return found

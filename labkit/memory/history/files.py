"""Snapshots in files: torch's own pickles, read without running anything that is in them."""

from __future__ import annotations

import contextlib
import pickle
import tempfile
from pathlib import Path
from typing import Any, NoReturn

from labkit.errors import LabkitError, UsageError

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

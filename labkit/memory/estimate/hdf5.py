"""HDF5 files that were open before a simulated step: what it writes into them is not real.

HDF5 keeps parts of a file in memory, so that the file's bytes cannot be put back. What h5py's
classes write is dropped where a step can go on without it (values, attributes, sizes), and the
step is stopped at what makes or removes a part of the file, which it may read again.
"""

from __future__ import annotations

import contextlib
import functools
import sys
from collections.abc import Callable, Iterator
from typing import Any

from labkit.memory.estimate.cuda import replace_attributes

# The methods of h5py's classes that change a file, and what the step is stopped at.
DROPPED_CALLS = {
    "Dataset": ("__setitem__", "write_direct", "resize", "make_scale", "flush"),
    "AttributeManager": ("__setitem__", "__delitem__", "create", "modify"),
    "File": ("flush", "close"),
}
STOPPED_CALLS = {
    "Group": (
        "create_dataset", "create_virtual_dataset", "create_group", "__setitem__", "__delitem__",
        "copy", "move",
    ),
}  # fmt: skip
SILENT = {"flush", "close"}
NOTE = "what the step writes into {}, an HDF5 file that was open before, is dropped"


def _find_file(one: Any) -> str:
    """The name of the file that a part of it belongs to; "" for one that is closed."""
    number = getattr(one, "_id", None) or one.id
    with contextlib.suppress(Exception):  # what h5py raises for a closed file
        name = sys.modules["h5py"].h5f.get_name(number)
        return name.decode(errors="replace") if isinstance(name, bytes) else str(name)
    return ""


def _list_open() -> list[Any]:
    """The ids of all open files."""
    library: Any = sys.modules.get("h5py")
    if library is None or not hasattr(library, "h5f"):
        return []
    with contextlib.suppress(Exception):
        files = library.h5f
        return list(files.get_obj_ids(files.OBJ_ALL, files.OBJ_FILE))
    return []


def flush_files() -> None:
    """Has HDF5 write what it keeps of open files, so that their bytes tell what they hold."""
    for one in _list_open():
        with contextlib.suppress(Exception):  # open for reading only
            sys.modules["h5py"].h5f.flush(one)


@contextlib.contextmanager
def hold_hdf5(
    is_step: Callable[[], bool],
    note: Callable[[str], object],
    refuse: Callable[[str, str], object],
) -> Iterator[None]:
    """Keeps the files that are open already as they are where ``is_step()``, until exit.

    ``note`` takes a sentence about what is dropped, ``refuse`` the name of what the step is stopped
    at, and the file's.
    """
    files = {name for one in _list_open() if (name := _find_file(_Part(one)))}
    if not files:
        yield
        return
    library = sys.modules["h5py"]

    def wrap(name: str, act: Callable[..., Any], *, stops: bool) -> Callable[..., Any]:
        @functools.wraps(act)
        def answer(one: Any, *given: Any, **named: Any) -> Any:
            file = _find_file(one) if is_step() else ""
            if file not in files:
                return act(one, *given, **named)
            if stops:
                refuse(f"h5py.{type(one).__name__}.{name}", file)
                raise PermissionError(f"{name} would change {file}")
            if name not in SILENT:
                note(NOTE.format(file))
            return None

        return answer

    with contextlib.ExitStack() as stack:
        for table, stops in ((DROPPED_CALLS, False), (STOPPED_CALLS, True)):
            for kind, names in table.items():
                owner = getattr(library, kind)
                made = {
                    name: wrap(name, vars(owner)[name], stops=stops)
                    for name in names
                    if name in vars(owner)
                }
                stack.enter_context(replace_attributes(owner, **made))
        yield


class _Part:
    """An id as a part of a file has it."""

    def __init__(self, number: Any) -> None:
        self.id = number

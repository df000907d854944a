"""Finds the user's line that is running or raised: the first outside torch, labkit and Python.

For Python a notebook's cell is a file; IPython's shell knows the cell's number.
"""

from __future__ import annotations

import functools
import importlib.util
import linecache
import sys
import sysconfig
import traceback
from pathlib import Path
from types import FrameType
from typing import Any, NamedTuple


class Frame(NamedTuple):
    """A line of a running program: its file, its number, and its function."""

    file: str
    line: int
    function: str

    @property
    def where(self) -> str:
        """``train.py:12``; for a notebook's cell, which has no file, ``In[3]:2``."""
        name = name_cell(self.file) or ("cell" if _is_cell(self.file) else Path(self.file).name)
        return f"{name}:{self.line}"

    @property
    def source(self) -> str:
        """The text of the line; empty if it cannot be read."""
        return linecache.getline(self.file, self.line).strip()


def find_user_frames(depth: int = 1) -> tuple[Frame, ...]:
    """The innermost ``depth`` running frames of the user's own code; () if there is none."""
    found: list[Frame] = []
    running: FrameType | None = sys._getframe(1)
    while running is not None and len(found) < depth:
        code = running.f_code
        if is_user_file(code.co_filename):
            found.append(Frame(code.co_filename, running.f_lineno, code.co_name))
        running = running.f_back
    return tuple(found)


def list_error_frames(error: BaseException) -> tuple[Frame, ...]:
    """The user's own frames in an error's traceback, innermost first."""
    steps = reversed(list(traceback.walk_tb(error.__traceback__)))
    return tuple(
        Frame(frame.f_code.co_filename, line, frame.f_code.co_name)
        for frame, line in steps
        if is_user_file(frame.f_code.co_filename)
    )


@functools.lru_cache(maxsize=4096)
def is_user_file(file: str) -> bool:
    """True for a cell, and for a file outside torch, labkit and Python's standard library."""
    if file.startswith("<"):
        return file.startswith(("<ipython", "<stdin>", "<string>"))
    if not file.startswith(_list_foreign_folders()):
        return True
    # Other packages are installed in Python's folder, and count as the user's code.
    library = ("site-packages", "dist-packages")
    return any(name in file for name in library) and not file.startswith(_list_own_folders())


@functools.cache
def _list_own_folders() -> tuple[str, ...]:
    """The folders where torch and this package are installed."""
    folders = [str(Path(__file__).parents[2])]
    spec = importlib.util.find_spec("torch")
    if spec is not None and spec.origin is not None:
        folders.append(str(Path(spec.origin).parent))
    return tuple(folder + "/" for folder in folders)


@functools.cache
def _list_foreign_folders() -> tuple[str, ...]:
    return (*_list_own_folders(), sysconfig.get_path("stdlib") + "/")


def _is_cell(file: str) -> bool:
    return file.startswith("<ipython") or "ipykernel_" in file


def find_shell() -> Any:
    """The IPython shell that runs the user's code; None in plain Python. Imports nothing."""
    # While another thread imports IPython, the module has no get_ipython yet.
    find = getattr(sys.modules.get("IPython"), "get_ipython", None)
    return find() if find is not None else None


def name_cell(file: str) -> str | None:
    """IPython's name of a cell, ``In[3]``, from its file name; None for a real file."""
    shell = find_shell()
    if shell is None:
        return None
    try:
        found = shell.compile.format_code_name(file)  # ("Cell", "In[3]")
    except (AttributeError, TypeError):
        return None  # a shell with another compiler
    return str(found[1]) if found else None

"""Whose code a file is, and the user's line that is running or raised: the first outside torch,
labkit and Python.

For Python a notebook's cell is a file; IPython's shell knows the cell's number.
"""

from __future__ import annotations

import dis
import functools
import gc
import importlib.util
import linecache
import re
import sys
import sysconfig
import traceback
from pathlib import Path
from types import CodeType, FrameType
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


def list_thread_frames() -> dict[int, FrameType]:
    """The running frame of each thread of Python, by the thread's number.

    A garbage collection that begins within Python's own call can end a thread's state, and then
    waits for ever for what the call holds: there is none meanwhile.

    Source: python/cpython#106883
    """
    collects = gc.isenabled()
    gc.disable()
    try:
        return sys._current_frames()
    finally:
        if collects:
            gc.enable()


# By a user's code's number: the code, which keeps the number its own, and its frames by the place
# of the running instruction. This is asked for each operator, and Python is slow to find a line.
_codes: dict[int, tuple[CodeType, dict[int, Frame]]] = {}
# By a file's name, whether it is the user's: found faster than by a call.
_files: dict[str, bool] = {}
# By a module's name, the names in it, if its file is torch's, labkit's or Python's. That a frame's
# code is read, or an object's ``id()``, Python tells each audit hook; an estimate's hook stays.
_own_modules: dict[str, dict[str, Any]] = {}
MOST_CODES = 20_000
_find_number = object.__hash__


def find_user_frames(depth: int = 1, skipped: int = 0) -> tuple[Frame, ...]:
    """The innermost ``depth`` running frames of the user's own code; () if there is none.

    ``skipped`` is a number of labkit's own frames above, which need not be looked at.
    """
    found: tuple[Frame, ...] = ()
    try:
        running: FrameType | None = sys._getframe(1 + skipped)
    except ValueError:  # a thread of C++ has no further frame
        return found
    while running is not None and depth > 0:
        names = running.f_globals
        if _own_modules.get(names.get("__name__")) is names:  # type: ignore[arg-type]
            running = running.f_back
            continue
        code = running.f_code
        is_users = _files.get(code.co_filename)
        if is_users is None:
            is_users = _add_file(code.co_filename)
        if not is_users:
            _add_module(names, code.co_filename)
        else:
            known = _codes.get(_find_number(code))
            frames = _add_code(code) if known is None else known[1]
            place = running.f_lasti
            frame = frames.get(place)
            if frame is None:
                frame = frames[place] = Frame(code.co_filename, running.f_lineno, code.co_name)
            found += (frame,)
            depth -= 1
        running = running.f_back
    return found


def _add_file(name: str) -> bool:
    if len(_files) >= MOST_CODES:
        _files.clear()
    found = _files[name] = is_user_file(name)
    return found


def _add_module(names: dict[str, Any], file: str) -> None:
    """Keeps the module in whose file a frame runs that is not the user's."""
    name = names.get("__name__")
    module = sys.modules.get(name) if type(name) is str else None
    if module is not None and vars(module) is names and names.get("__file__") == file:
        _own_modules[name] = names  # type: ignore[index]


def _add_code(code: CodeType) -> dict[int, Frame]:
    if len(_codes) >= MOST_CODES:
        _codes.clear()
    frames: dict[int, Frame] = {}
    _codes[_find_number(code)] = code, frames
    return frames


def list_error_frames(error: BaseException) -> tuple[Frame, ...]:
    """The user's own frames in an error's traceback, innermost first."""
    steps = reversed(list(traceback.walk_tb(error.__traceback__)))
    return tuple(
        Frame(frame.f_code.co_filename, line, frame.f_code.co_name)
        for frame, line in steps
        if is_user_file(frame.f_code.co_filename)
    )


def find_check(error: BaseException) -> Frame | None:
    """The line whose condition alone decides that this error is raised, such as an assertion's.

    None if the error was not raised by a statement of Python's, or by one that other lines lead to.
    """
    step = error.__traceback__
    if step is None:
        return None
    while step.tb_next is not None:
        step = step.tb_next
    code = step.tb_frame.f_code
    before = [one for one in dis.get_instructions(code) if one.offset <= step.tb_lasti]
    if not before or before.pop().opname != "RAISE_VARARGS":
        return None
    for one in reversed(before):
        if "JUMP" in one.opname:
            lines = (line for start, end, line in code.co_lines() if start <= one.offset < end)
            return Frame(code.co_filename, next(lines, None) or 0, code.co_name)
        if one.is_jump_target or one.opname in LEAVING:
            return None
    return None


# After these, the next instruction is reached by a jump, or by the next item of a loop.
LEAVING = ("FOR_ITER", "RAISE_VARARGS", "RERAISE", "RETURN_VALUE", "RETURN_CONST")
OWN, PACKAGE, USER = "own", "package", "user"
# Packages whose lines are skipped, because they only run code for another line, and the code that
# torch.compile writes: its cache has files such as ab/cab....py, and its folder can be any.
FOLDED = re.compile(
    r"[/\\](?:site|dist)-packages[/\\](?:torch|torchgen|functorch|triton|labkit|IPython|ipykernel"
    r"|traitlets|tornado|zmq|nbclient|jupyter_client|_pytest|pluggy)(?:[/\\]|\.py$)"
    r"|[/\\]pytorch[/\\]torch[/\\]|[/\\]torchinductor_[^/\\]*[/\\]"
    r"|[/\\]([a-z2-7]{2})[/\\]c\1[a-z2-7]{49}\.py$"
)
# C and C++: torch writes "??" or "" for a file that it does not know.
NATIVE = re.compile(r"^(?:\?\?)?$|\.(?:c|cc|cpp|cxx|cu|h|hpp|cuh|inl|S|so[.\d]*)$")
PACKAGES = re.compile(r"[/\\](?:site|dist)-packages[/\\]")
STANDARD_LIBRARY = re.compile(r"[/\\]lib[/\\]python3\.\d+[/\\]|[/\\]Python3\d+[/\\]Lib[/\\]")


@functools.lru_cache(maxsize=65_536)
def judge_file(file: str) -> str:
    """The owner of a file: "own" (torch, Python, labkit, C++), "package", or "user" (or a cell).

    >>> judge_file("/home/a/train.py"), judge_file("/x/lib/python3.11/site-packages/torch/_ops.py")
    ('user', 'own')
    """
    if file.startswith("<"):
        return USER if file.startswith(("<ipython", "<stdin>", "<string>")) else OWN
    if FOLDED.search(file) or NATIVE.search(file) or file.startswith(_list_own_folders()):
        return OWN
    if PACKAGES.search(file):
        return PACKAGE
    own = STANDARD_LIBRARY.search(file) or file.startswith(f"{sysconfig.get_path('stdlib')}/")
    return OWN if own else USER


def is_user_file(file: str) -> bool:
    """True for a cell, and for a file outside torch, labkit and Python's standard library."""
    return judge_file(file) != OWN


@functools.cache
def _list_own_folders() -> tuple[str, ...]:
    """The folders where torch and this package are installed."""
    folders = [str(Path(__file__).parents[2])]
    spec = importlib.util.find_spec("torch")
    if spec is not None and spec.origin is not None:
        folders.append(str(Path(spec.origin).parent))
    return tuple(folder + "/" for folder in folders)


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

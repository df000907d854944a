"""A layer of files over the real ones: what a simulated step writes, moves and removes is in it.

The layer has a folder for each directory that the step changes something in. At first that has a
link to each file that is there, and an empty folder for each directory; a file is copied when it is
written to, and a folder is filled when something looks into it. So everything that asks for files,
lists them or opens them finds the same ones, and the real ones stay as they are.
"""

from __future__ import annotations

import builtins
import bz2
import contextlib
import functools
import glob
import inspect
import io
import logging
import os
import pathlib
import re
import shutil
import stat
import sys
import tarfile
import tempfile
import threading
import zipimport
from collections.abc import Callable, Iterator
from typing import Any, cast

from labkit.memory.estimate.cuda import replace_attributes
from labkit.memory.estimate.guard import FRAMEWORK, ChangeGuard, StepThreads, find_caller, is_cache
from labkit.memory.estimate.native import (
    KEEPS,
    REFUSED,
    NativeCall,
    list_native_calls,
    reads_only,
)
from labkit.memory.track.frames import USER

OPEN, SCAN, LSTAT, STAT, READ_LINK = open, os.scandir, os.lstat, os.stat, os.readlink
ENTER, FIND_CURRENT, MAKE, DRAW = os.chdir, os.getcwd, os.mkdir, os.urandom
OPEN_CODE, IMPORTING = io.open_code, cast("Any", sys.modules["importlib._bootstrap_external"])
COPIED_BYTES = 2**26
# Directories without files; what is in /dev/shm is in memory, and a file all the same.
ODD = re.compile(r"/(?:dev(?!/shm(?:/|$))|proc|sys)(?:/|$)")
READING = ("stat", "lstat", "access", "readlink", "listxattr", "getxattr")
LISTING = ("listdir", "scandir")
ATTRIBUTES = ("truncate", "utime", "chmod", "chown", "setxattr", "removexattr")
CHANGING = ("remove", "unlink", "rmdir", "mkdir", "mkfifo", "mknod", *ATTRIBUTES)
MOVING = ("rename", "replace")
LINKING = ("symlink", "link")
# What works on a link itself, not on what it points to.
ON_LINKS = ("lstat", "readlink", "remove", "unlink", "rmdir", "mkdir", "mkfifo", "mknod")
MOST_LINKS = 40


class FileOverlay:
    """The layer; ``open`` lays it over the files for the calling thread's step."""

    def __init__(self) -> None:
        self._folder, self._active = "", False
        # What looks at each file, or descriptor, that is opened beside the layer, and its path.
        self.see_opened: Callable[[Any, Any], object] = lambda file, path: None
        self.threads = StepThreads()
        self.guard = ChangeGuard(self.threads)
        self._lock = threading.RLock()
        # The directories that were laid over, of which directory the folders are that are to be
        # filled, and the links to real files: their inodes, and the files.
        self._roots: set[str] = set()
        self._unfilled: dict[str, str] = {}
        self._links: dict[int, str] = {}

    @contextlib.contextmanager
    def open(self) -> Iterator[None]:
        """Replaces the functions of Python's that take the name of a file, until exit."""
        with contextlib.ExitStack() as stack:
            # The step is to find the same one, and Python looks for it by writing a file.
            tempfile.tempdir = tempfile.tempdir or _find_temporary()
            # Few steps need the folder. Its name is known to the step's forks, too.
            name = f"labkit-files-{DRAW(8).hex()}"
            self._folder = os.path.join(os.path.realpath(tempfile.tempdir), name)
            stack.callback(self._remove_folder)
            stack.callback(ENTER, FIND_CURRENT())
            replaced = self.functions
            known = {
                id(getattr(owner, name)): one
                for owner, names in replaced.items()
                for name, one in names.items()
            }
            # What a class has is another object at each look, which has no place among the known.
            methods = [call for call in list_native_calls() if isinstance(call.owner, type)]
            for owner, names in (
                *replaced.items(),
                *((call.owner, {call.name: self._wrap_native(call)}) for call in methods),
            ):
                stack.enter_context(replace_attributes(owner, **names))
            shell = sys.modules.get("IPython.core.interactiveshell")  # a cell's own open()
            for owner, name, number in _find_captured(frozenset(known), shell):
                one = staticmethod(known[number]) if isinstance(owner, type) else known[number]
                stack.enter_context(replace_attributes(owner, **{name: one}))
            for method in _find_defaults(frozenset(known)):
                defaults = tuple(known.get(id(one), one) for one in method.__defaults__)
                stack.callback(setattr, method, "__defaults__", method.__defaults__)
                method.__defaults__ = defaults
            for owner, names in self._find_modules().items():
                stack.enter_context(replace_attributes(owner, **names))
            openers = _find_openers()
            stack.callback(openers.update, dict(openers))
            openers.update({key: known.get(id(one), one) for key, one in openers.items()})
            # What was imported meanwhile may keep a function from here.
            stack.callback(setattr, self, "_active", False)
            self._active = True
            stack.callback(self._close_logs)
            stack.enter_context(self.guard.open(self._folder))
            yield

    def _remove_folder(self) -> None:
        if os.path.isdir(self._folder):
            # What is in it may be read-only, which this changes first.
            tempfile.TemporaryDirectory._rmtree(self._folder)  # type: ignore[attr-defined]

    @functools.cached_property
    def functions(self) -> dict[Any, dict[str, Any]]:
        """What replaces which functions of which modules."""
        system = {
            **{name: self._wrap(name) for name in READING if hasattr(os, name)},
            **{name: self._wrap(name, lists=True) for name in LISTING},
            **{name: self._wrap(name, writes=True) for name in CHANGING if hasattr(os, name)},
            **{name: self._wrap_move(name) for name in MOVING},
            **{name: self._wrap_link(name) for name in LINKING},
            "open": self._wrap_descriptor(os.open),
            "chdir": self._enter,
            "getcwd": self._find_current,
            "getcwdb": lambda: os.fsencode(self._find_current()),
        }
        remove = shutil.rmtree

        @functools.wraps(remove)
        def remove_tree(path: Any, *others: Any, **named: Any) -> None:
            # It works with descriptors, so the layer must be there first.
            remove(self.find(path, writes=True, follows=False), *others, **named)

        for one in filter(inspect.isfunction, system.values()):
            one.__module__ = os.__name__  # where pickle finds it, for a pool of processes
        opening = {owner: {"open": self._wrap_open(open)} for owner in (builtins, io)}
        found = {os: system, shutil: {"rmtree": remove_tree}, **opening}
        for call in list_native_calls():
            if inspect.ismodule(call.owner):
                found.setdefault(call.owner, {})[call.name] = self._wrap_native(call)
        return found

    def has(self, file: Any) -> bool:
        """True for an open file of the layer."""
        name = getattr(file, "name", None)
        return isinstance(name, str) and name.startswith(self._folder)

    def has_written(self, path: Any) -> bool:
        """Whether the step has written the file, or made the folder, with this path."""
        place = self.find(path)
        if place is path or self._is_link(place):
            return False
        return os.path.isfile(place) or (_is_directory(place) and not _is_directory(path))

    def _open_code(self, path: Any) -> Any:
        """``io.open_code``, by which modules are read."""
        return OPEN_CODE(self.find(path))

    def _open_data(self, file: Any, mode: str = "r", *options: Any) -> Any:
        """``io.FileIO``, by which importlib reads other files; it writes bytecode by it, too."""
        reads = mode == "r" and not isinstance(file, int)
        return io.FileIO(self.find(file) if reads else file, mode, *options)

    def _find_modules(self) -> dict[Any, dict[str, Any]]:
        """What importlib uses to find and read files: it takes functions of C itself."""
        system = self.functions[os]
        names = {name: system[name] for name in ("stat", "listdir", "getcwd")}
        files = {"open_code": self._open_code, "FileIO": self._open_data}
        return {
            IMPORTING: {"_os": _Changed(IMPORTING._os, names), "_io": _Changed(io, files)},
            zipimport: {"_io": _Changed(io, files)},
            io: {"open_code": self._open_code},
        }  # fmt: skip

    def _find_current(self) -> str:
        """The working directory, by the name that the step knows."""
        return FIND_CURRENT().removeprefix(self._folder) or os.sep

    def _enter(self, path: Any) -> None:
        """Enters the real directory where there is one, so that others' relative paths are real."""
        if isinstance(path, int):
            ENTER(path)
            return
        place = self.find(path, lists=True)
        real = os.fsdecode(place).removeprefix(self._folder)
        exists = place is path or _is_directory(os.fsdecode(place))
        with _named(place, path):
            ENTER(real if exists and _is_directory(real) else place)

    def open_new(self, path: Any) -> Any:
        """A new file of the layer, for bytes."""
        place = self.find(path, writes=True, asked=True)
        self._copy_up(place, keeps=False)
        return OPEN(place, "wb")

    def find(
        self,
        path: Any,
        *,
        writes: bool = False,
        lists: bool = False,
        asked: bool = False,
        follows: bool = True,
    ) -> Any:
        """The name of the file to use for a path; ``writes`` where it is to be changed.

        It is changed in the layer if the step asks for it, or with ``asked``. With ``follows`` it
        is what a link points to.
        """
        used = self._active and (writes or self._roots)
        if not used or self.threads.works:
            return path
        if not isinstance(path, str | bytes | os.PathLike):
            return path  # a descriptor
        # A file of the layer may be named by its own name.
        whole = os.path.join(self._find_current(), os.fsdecode(path)).removeprefix(self._folder)
        with self.threads.work(), self._lock:
            real = self._resolve(whole, follows=follows)
            if ODD.match(whole) or ODD.match(real):
                return path
        asks = writes and (asked or self._is_asked(real))
        with self.threads.work(), self._lock:
            found = self._find_whole(real, asks=asks, asked=asked, lists=lists)
        if found is None:
            # A link of the step's may lead out of the layer.
            found = real if self._roots and real != os.path.normpath(whole) else None
        if found is None:
            return path
        return os.fsencode(found) if isinstance(os.fspath(path), bytes) else found

    def _resolve(self, whole: str, *, follows: bool) -> str:
        """A path without links, as the step sees them; the last part may be one."""
        found, left, links = "", whole.split(os.sep)[::-1], 0
        while left:
            part = left.pop()
            if part in {"", "."}:
                continue
            if part == "..":
                found = os.path.dirname(found)
                continue
            place = f"{found}/{part}"
            target = self._read_link(found, place) if left or follows else None
            links += target is not None
            if target is None or links > MOST_LINKS or ODD.match(place):
                found = place
                continue
            found = "" if target.startswith(os.sep) else found
            left += target.removeprefix(self._folder).split(os.sep)[::-1]
        return found or os.sep

    def _read_link(self, folder: str, path: str) -> str | None:
        """What a link of the step's, or a real one, points to; None for something else."""
        root = next((one for one in self._roots if _is_inside(folder, one)), None)
        if root is not None:
            self._fill_down(root, folder)
            path = self._folder + path
            if self._is_link(path):
                return None
        try:
            return READ_LINK(path)
        except OSError:
            return None

    def _find_whole(self, whole: str, *, asks: bool, asked: bool, lists: bool) -> str | None:
        parent = os.path.dirname(whole)
        if not asked and not self.threads.includes_this() and _is_directory(parent):
            return None  # of another thread, except in what the step has made
        root = next((one for one in self._roots if _is_inside(parent, one)), None)
        if root is None and whole not in self._roots:
            root = parent if asks and self._lay_over(parent) else None
        if root is None and whole not in self._roots:
            return None
        self._fill_down(root, whole if lists else parent)
        return self._folder + whole

    def _lay_over(self, directory: str) -> bool:
        """Makes the folder of a directory; False where there is no such directory, or it is odd."""
        if not _is_directory(directory) or ODD.match(directory):
            return False
        with contextlib.suppress(FileExistsError):
            MAKE(self._folder, 0o700)
        os.makedirs(self._folder + directory, exist_ok=True)
        self._roots.add(directory)
        self._unfilled[self._folder + directory] = directory
        return True

    def _fill_down(self, root: str | None, directory: str) -> None:
        """Fills the folders from a root on down to a directory."""
        if root is None:
            root = directory
        parts = directory[len(root) :].split(os.sep) if _is_inside(directory, root) else []
        place = self._folder + root
        self._fill(place)
        for part in filter(None, parts):
            place = os.path.join(place, part)
            self._fill(place)

    def _fill(self, place: str) -> None:
        """Puts into a folder a link for each file of its directory, and a folder for each other."""
        directory = self._unfilled.pop(place, None)
        if directory is None or not os.path.isdir(place):
            return
        with contextlib.suppress(OSError), SCAN(directory) as entries:
            for one in entries:
                made = os.path.join(place, one.name)
                if os.path.lexists(made):
                    continue  # it was laid over before
                if one.is_symlink():
                    os.symlink(READ_LINK(one.path), made)
                elif one.is_dir():
                    os.mkdir(made)
                    self._unfilled[made] = one.path
                else:
                    os.symlink(one.path, made)
                    self._links[LSTAT(made).st_ino] = one.path

    def _fill_all(self, place: str) -> None:
        """Fills a folder that is to be moved, and those in it."""
        self._fill(place)
        if os.path.isdir(place) and not os.path.islink(place):
            with SCAN(place) as entries:
                for one in [each.path for each in entries]:
                    self._fill_all(one)

    def _is_link(self, place: Any) -> bool:
        """True for a link to a real file, which stands for the file."""
        try:
            place = os.fsdecode(place)
            found = LSTAT(place)
            file = self._links.get(found.st_ino)
            # The inode of a removed link is used again.
            return file is not None and stat.S_ISLNK(found.st_mode) and READ_LINK(place) == file
        except (OSError, ValueError):
            return False

    def _copy_up(self, place: Any, *, keeps: bool = True) -> None:
        """Puts a copy of a real file where the link to it is, or nothing."""
        if not isinstance(place, str | bytes):
            return
        place = os.fsdecode(place)
        if place.startswith(self._folder) and self._is_link(place):
            with self.threads.work():
                source = READ_LINK(place)
                os.unlink(place)
                if keeps:
                    _copy_file(source, place)

    def _wrap(self, name: str, *, writes: bool = False, lists: bool = False) -> Any:
        act = getattr(os, name)

        @functools.wraps(act)
        def answer(path: Any = ".", *others: Any, dir_fd: Any = None, **named: Any) -> Any:
            if dir_fd is not None:
                return act(path, *others, dir_fd=dir_fd, **named)
            follows = name not in ON_LINKS and named.get("follow_symlinks", True)
            place = self.find(path, writes=writes, lists=lists, follows=follows)
            if place is path:
                return act(path, *others, **named)
            if name in {"mkdir", "rmdir"}:
                self._unfilled.pop(os.fsdecode(place), None)
            elif name in ATTRIBUTES:
                self._copy_up(place)
            elif not follows and not writes and self._is_link(place):
                place = READ_LINK(place)  # the file that the link stands for
            elif name == "scandir":
                return _Entries(act(place), os.fspath(path), self._is_link)
            with _named(place, path):
                return act(place, *others, **named)

        return answer

    def _wrap_open(self, really: Callable[..., Any]) -> Callable[..., Any]:
        @functools.wraps(really)
        def answer(file: Any, mode: str = "r", *others: Any, **named: Any) -> Any:
            writes = bool(set(mode) & set("wax+"))
            odd = writes and _is_odd(file)
            place = file if odd else self.find(file, writes=writes, follows="x" not in mode)
            if place is file:
                opened = really(file, mode, *others, **named)
                self.see_opened(opened, file)
                return opened
            if writes and "x" not in mode:
                self._copy_up(place, keeps="w" not in mode)
            with _named(place, file):
                return really(place, mode, *others, **named)

        return answer

    def _wrap_descriptor(self, really: Callable[..., int]) -> Callable[..., int]:
        @functools.wraps(really)
        def answer(path: Any, flags: int, mode: int = 0o777, *, dir_fd: Any = None) -> int:
            writes = bool(flags & (os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_APPEND))
            if dir_fd is not None or (writes and _is_odd(path)):
                number = really(path, flags, mode, dir_fd=dir_fd)
                self.see_opened(number, path)
                return number
            follows = not flags & (os.O_EXCL | os.O_NOFOLLOW)
            place = self.find(path, writes=writes, follows=follows)
            if place is not path and writes and not flags & os.O_EXCL:
                self._copy_up(place)
            with _named(place, path):
                return really(place, flags, mode)

        return answer

    def _wrap_move(self, name: str) -> Callable[..., None]:
        act = getattr(os, name)

        @functools.wraps(act)
        def answer(source: Any, target: Any, **named: Any) -> Any:
            if named:  # relative to a descriptor
                return act(source, target, **named)
            places = [self.find(one, writes=True, follows=False) for one in (source, target)]
            if places[0] is not source:
                with self.threads.work():
                    self._fill_all(os.fsdecode(places[0]))
                self._unfilled.pop(os.fsdecode(places[1]), None)
            with _named(places[0], source):
                return act(*places)

        return answer

    def _wrap_link(self, name: str) -> Callable[..., None]:
        act = getattr(os, name)

        @functools.wraps(act)
        def answer(source: Any, target: Any, *others: Any, **named: Any) -> Any:
            place = self.find(target, writes=True, follows=False)
            if name == "link" and place is not target:
                source = self.find(source, writes=True, follows=False)
                self._copy_up(source)
            return act(source, place, *others, **named)

        return answer

    def _wrap_native(self, call: NativeCall) -> Callable[..., Any]:
        act = getattr(call.owner, call.name)

        @functools.wraps(act)
        def answer(*arguments: Any, **named: Any) -> Any:
            given = arguments[call.place : call.place + 1]
            if not (given and isinstance(given[0], str | bytes | os.PathLike)):
                return act(*arguments, **named)
            reads = reads_only(call, arguments, named)
            place = self.find(given[0], writes=not reads)
            if place is not given[0] and not reads:
                if call.use == REFUSED:
                    self.guard.refuse(call.name, given[0])
                self._copy_up(place, keeps=call.use == KEEPS)
            return act(*arguments[: call.place], place, *arguments[call.place + 1 :], **named)

        return answer

    def _is_asked(self, whole: str) -> bool:
        """True where the step calls, or Python, a package or torch that works for it."""
        if not self.threads.includes_this():
            return False
        owner, _ = find_caller()
        return owner == USER or (owner == FRAMEWORK and not is_cache(whole))

    def _close_logs(self) -> None:
        """Closes the log files in the layer, and removes their handlers, which are the step's."""
        made = [
            one
            for one in (each() for each in logging._handlerList)  # type: ignore[attr-defined]
            if isinstance(one, logging.FileHandler) and self.has(one.stream)
        ]
        loggers = [logging.root, *logging.root.manager.loggerDict.values()]
        for handler in made:
            for one in loggers:
                if isinstance(one, logging.Logger):
                    one.removeHandler(handler)
            handler.close()


class _Changed:
    """A module with other functions in the place of some."""

    def __init__(self, module: Any, names: dict[str, Any]) -> None:
        self._module = module
        vars(self).update(names)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._module, name)


class _Entry:
    """An entry of a listed directory, under its own name; a link to a real file is a file."""

    def __init__(self, entry: Any, path: str, is_file: bool) -> None:
        self.name, self.path = entry.name, os.path.join(path, entry.name)
        self._entry, self._is_file = entry, is_file
        self._is_link = not is_file and entry.is_symlink()

    def __fspath__(self) -> str:
        return self.path

    def is_dir(self, *, follow_symlinks: bool = True) -> bool:
        if self._is_link and follow_symlinks:
            return os.path.isdir(self.path)
        return not self._is_file and bool(self._entry.is_dir(follow_symlinks=False))

    def is_file(self, *, follow_symlinks: bool = True) -> bool:
        if self._is_link and follow_symlinks:
            return os.path.isfile(self.path)
        return self._is_file or bool(self._entry.is_file(follow_symlinks=False))

    def is_symlink(self) -> bool:
        return self._is_link

    def is_junction(self) -> bool:
        return False

    def inode(self) -> int:
        return int(self._entry.inode())

    def stat(self, *, follow_symlinks: bool = True) -> os.stat_result:
        if self._is_link:
            return os.stat(self.path, follow_symlinks=follow_symlinks)
        return STAT(self._entry.path)


class _Entries:
    """What ``os.scandir`` returns: an iterator and a context manager."""

    def __init__(self, entries: Any, path: str, is_link: Callable[[Any], bool]) -> None:
        self._entries, self._path, self._is_link = entries, path, is_link

    def __iter__(self) -> _Entries:
        return self

    def __next__(self) -> _Entry:
        one = next(self._entries)
        return _Entry(one, self._path, self._is_link(one.path))

    def __enter__(self) -> _Entries:
        return self

    def __exit__(self, *error: Any) -> None:
        self.close()

    def close(self) -> None:
        self._entries.close()


@contextlib.contextmanager
def _named(place: Any, path: Any) -> Iterator[None]:
    """Gives an error the name that the step used."""
    try:
        yield
    except OSError as error:
        if error.filename == place:
            error.filename = path
        raise


def _is_odd(file: Any) -> bool:
    """True for what is neither a file nor missing, such as a device."""
    try:
        return not stat.S_ISREG(os.stat(file).st_mode)
    except (OSError, ValueError, TypeError):
        return not isinstance(file, str | bytes | os.PathLike)


def _find_temporary() -> str:
    """Where Python puts temporary files; it forgets what it finds during an estimate."""
    asked = tuple(map(os.environ.get, ("TMPDIR", "TEMP", "TMP")))
    found = _temporary.get(asked)
    if found is None or not _is_directory(found):
        _temporary.clear()
        found = _temporary[asked] = tempfile.gettempdir()
    return found


_temporary: dict[Any, str] = {}


def _is_directory(path: str) -> bool:
    try:
        return stat.S_ISDIR(STAT(path).st_mode)
    except OSError:
        return False


def _is_inside(directory: str, root: str) -> bool:
    return directory == root or directory.startswith(root.rstrip(os.sep) + os.sep)


@functools.lru_cache(maxsize=4)
def _find_captured(known: frozenset[int], shell: Any) -> list[tuple[Any, str, int]]:
    """Which attributes of Python's modules and their classes are one of these functions, by id."""
    found = []
    for module in filter(None, (pathlib, glob, tarfile, bz2, tempfile, shell)):
        for owner in (module, *vars(module).values()):
            if owner is not module and (not isinstance(owner, type) or module is shell):
                continue
            for name, value in vars(owner).items():
                number = id(getattr(value, "__func__", value))
                found += [(owner, name, number)] if number in known else []
    return found


@functools.lru_cache(maxsize=4)
def _find_defaults(known: frozenset[int]) -> list[Any]:
    """The methods of tempfile with one of these functions, by id, as a default."""
    classes = [one for one in vars(tempfile).values() if isinstance(one, type)]
    methods = [each for one in classes for each in vars(one).values()]
    return [
        method
        for method in methods
        if not known.isdisjoint(map(id, getattr(method, "__defaults__", None) or ()))
    ]


def _find_openers() -> dict[Any, Any]:
    """The functions by which NumPy opens text files."""
    openers = getattr(sys.modules.get("numpy.lib._datasource"), "_file_openers", None)
    if openers is None:
        return {}
    openers._load()
    found: dict[Any, Any] = openers._file_openers
    return found


def _copy_file(source: str, place: str) -> None:
    """A file's copy; of a large one the start alone, the rest of its size is a hole of zeros.

    A dataset that ``np.memmap`` opens for writing, as it does by default, would fill the disk.
    """
    with OPEN(source, "rb") as file, OPEN(place, "wb") as target:
        left = COPIED_BYTES
        while left and (part := file.read(min(left, 2**20))):
            left -= target.write(part)
        target.truncate(STAT(source).st_size)

"""Files that were open before a simulated step: what the step writes into them is dropped.

The methods of Python's files that write are replaced. What code in C writes (``csv.writer``,
``ndarray.tofile``) arrives all the same, and is removed when the step has run: each descriptor that
is open for writing is compared with what it was, and put back where nothing else can have written
to the file. Elsewhere the file is named.
"""

from __future__ import annotations

import bz2
import codecs
import contextlib
import csv
import functools
import gc
import gzip
import io
import logging
import lzma
import os
import stat
import sys
import tarfile
import tempfile
import threading
import zipfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from labkit.memory.estimate.cuda import replace_attributes
from labkit.memory.estimate.hdf5 import flush_files
from labkit.memory.estimate.stalls import runs_loop_elsewhere
from labkit.memory.estimate.state import import_optional
from labkit.memory.track.frames import USER, find_shell, judge_file, list_thread_frames

# The methods of an open file that change it; one that compresses also writes when it is flushed.
METHODS, COMPRESSING = ("write", "writelines", "truncate", "close"), ("write", "flush", "close")
COMPRESSED: tuple[Any, ...] = (
    gzip.GzipFile, bz2.BZ2File, lzma.LZMAFile, tarfile._Stream,  # type: ignore[attr-defined]
)  # fmt: skip
WRITERS: tuple[Any, ...] = (
    io.TextIOWrapper, io.BufferedWriter, io.BufferedRandom, io.FileIO, *COMPRESSED,
)  # fmt: skip
CSV_WRITER: Any = type(csv.writer(io.StringIO()))
# Objects of Python's that write through a file which they hold.
HOLDERS: tuple[Any, ...] = (
    zipfile.ZipFile, tarfile.TarFile, codecs.StreamReaderWriter, codecs.StreamWriter,
    codecs.StreamReader, csv.DictWriter, csv.DictReader,
    tempfile._TemporaryFileWrapper, tempfile.SpooledTemporaryFile,
)  # fmt: skip
# A larger file is put back only where it has grown at its end.
COPIED_BYTES, ALL_COPIED_BYTES = 2**22, 2**26
DESCRIPTORS = "/dev/fd"
# Of one file, and of several.
DROPPED = (
    "what the step writes into {}, which was open before, is dropped",
    "what the step writes into {}, which were open before, is dropped",
)
CHANGED = (
    "{} was open before, and has changed while the step was simulated: what the step writes into"
    " it is not real, and another thread or process may have written too: it is left as it is",
    "{} were open before, and have changed while the step was simulated: what the step writes into"
    " them is not real, and another thread or process may have written too: they are left as they"
    " are",
)
MOVED = (
    "the step reads from {}, which was open before and cannot be put back to its place",
    "the step reads from {}, which were open before and cannot be put back to their places",
)
LIST, READ_LINK, OPEN, CLOSE, STATUS = os.listdir, os.readlink, os.open, os.close, os.stat
SEEK = os.lseek
# Python's own list of running threads takes a lock, which one of them may have.
RUNNING: dict[int, threading.Thread] = threading._active  # type: ignore[attr-defined]


# Of SQLite: the first words of what changes a database, and pragmas that take a name and only read.
CHANGING = (
    "INSERT", "UPDATE", "DELETE", "CREATE", "DROP", "ALTER", "ATTACH", "DETACH", "REINDEX",
    "ANALYZE", "TRANSACTION", "SAVEPOINT", "PRAGMA",
)  # fmt: skip
READING = {"table_info", "table_xinfo", "table_list", "index_list", "index_info", "index_xinfo",
           "foreign_key_list"}  # fmt: skip


@functools.cache
def _list_changing() -> frozenset[int]:
    """SQLite's numbers of the actions that change a database."""
    names = vars(sys.modules["sqlite3"]).items()
    return frozenset(
        number
        for name, number in names
        if name.startswith("SQLITE_") and name.split("_")[1] in CHANGING and type(number) is int
    )


def _allow(*_: Any) -> int:
    """An authorizer of SQLite's that allows all."""
    return 0


CONTROL: Any = import_optional("fcntl")


@dataclass
class OpenPlace:
    """A file that is open for writing: its size, the place in it, its times and its content."""

    number: int
    status: os.stat_result
    place: int
    appends: bool
    content: bytes | None

    def is_same(self) -> bool:
        """True if the descriptor has the same file still."""
        try:
            now = os.fstat(self.number)
        except OSError:
            return False
        return (now.st_dev, now.st_ino) == (self.status.st_dev, self.status.st_ino)

    def has_changed(self) -> bool:
        """True if the file's content is another one now."""
        now = os.fstat(self.number)
        if now.st_size == self.status.st_size and now.st_mtime_ns == self.status.st_mtime_ns:
            return False
        if self.content is None or now.st_size != self.status.st_size:
            return True
        return _read_content(self.number, now.st_size) != self.content

    def put_back(self) -> bool:
        """Gives the file its content and its times back; False where this cannot be done."""
        size = self.status.st_size
        grows = os.fstat(self.number).st_size > size and (self.appends or self.place == size)
        if self.content is None and not grows:
            return False
        os.ftruncate(self.number, size)
        if self.content is not None and _read_content(self.number, size) != self.content:
            if self.appends:  # which would write it at the end
                return False
            os.pwrite(self.number, self.content, 0)
        os.utime(self.number, ns=(self.status.st_atime_ns, self.status.st_mtime_ns))
        return True


def _read_content(number: int, size: int) -> bytes | None:
    """The content of an open file; None where it cannot be read."""
    with contextlib.suppress(OSError):
        return os.pread(number, size, 0)
    with contextlib.suppress(OSError):  # open for writing only
        other = OPEN(f"{DESCRIPTORS}/{number}", os.O_RDONLY)
        try:
            return os.pread(other, size, 0)
        finally:
            CLOSE(other)
    return None


def find_name(number: int) -> str:
    """The path of an open file."""
    try:
        return READ_LINK(f"/proc/self/fd/{number}")
    except OSError:
        return f"descriptor {number}"


def is_database(kind: Any) -> bool:
    """True for the type of a connection of SQLite's, or of a cursor of one."""
    sqlite: Any = sys.modules.get("sqlite3")
    return sqlite is not None and issubclass(kind, sqlite.Connection | sqlite.Cursor)


class OpenFiles:
    """The files that are open for writing, and Python's objects for those that a step can reach."""

    def __init__(self, is_step: Callable[[], bool]) -> None:
        self._is_step = is_step
        # Files of Python's, with where they were; what has no place cannot be put back.
        self._files: list[tuple[Any, Any]] = []
        self._places: dict[int, OpenPlace] = {}
        self._readers: dict[int, tuple[int, str]] = {}
        # The names of those into which the step has written, and of those that are not as before.
        self.written: dict[str, None] = {}
        self.changed: dict[str, None] = {}
        self.moved: dict[str, None] = {}
        self._alone = True
        # Connections, and the authorizers of the program.
        self._databases: list[tuple[Any, Any]] = []

    def take(self, file: Any) -> Iterator[tuple[str, Any]]:
        """What replaces which methods of a file, which is put back to its place later."""
        with contextlib.suppress(OSError, ValueError, AttributeError):
            file.flush()
        place = None
        with contextlib.suppress(OSError, ValueError, AttributeError):
            place = file.tell() if file.seekable() else None
        self._files.append((file, place))
        for name in COMPRESSING if isinstance(file, COMPRESSED) else METHODS:
            if hasattr(file, name):
                yield name, functools.partial(self._drop, file, name, getattr(file, name))

    def take_reader(self, file: Any) -> Iterator[tuple[str, Any]]:
        """Puts a file that is read from back to its place later; returns what replaces a method."""
        yield "close", functools.partial(self._drop, file, "close", file.close)
        with contextlib.suppress(OSError, ValueError, AttributeError):
            number = file.fileno()
            try:
                place = file.tell() if file.seekable() else None
            except OSError:  # in the middle of its lines
                self._readers[number] = SEEK(number, 0, os.SEEK_CUR), str(file.name)
            else:
                self._files.append((file, place))

    def take_database(self, connection: Any, refuse: Callable[[str, str], object]) -> Any:
        """Has the step's statements that change a database refused, until ``end``.

        Returns the program's own authorizer, None if it has none.
        """
        sqlite = sys.modules["sqlite3"]
        before = gc.get_referents(connection)
        try:
            connection.set_authorizer(_allow)
        except sqlite.Error:  # closed, or another thread's, which the step cannot use
            return None
        # Python does not tell which authorizer a connection has: it is what it no longer holds.
        held = {id(one) for one in gc.get_referents(connection)}
        own = next((one for one in before if id(one) not in held and callable(one)), None)
        self._databases.append((connection, own))
        name = ":memory:"
        with contextlib.suppress(sqlite.Error):
            files = connection.execute("PRAGMA database_list").fetchall()
            name = next((Path(one[2]).name for one in files if one[2]), name)
        changing = _list_changing()

        def judge(action: int, first: Any, second: Any, *others: Any) -> int:
            answer = sqlite.SQLITE_OK if own is None else own(action, first, second, *others)
            asks = action == sqlite.SQLITE_PRAGMA and (second is None or first in READING)
            changes = action in changing and not asks and self._is_step()
            if answer != sqlite.SQLITE_OK or not changes:
                return int(answer)
            refuse("sqlite3", name)
            return int(sqlite.SQLITE_DENY)

        connection.set_authorizer(judge)
        return own

    def _drop(self, file: Any, name: str, act: Callable[..., Any], *given: Any) -> Any:
        """Has the place of a method of a file: writes only for other threads than the step's."""
        if not self._is_step():
            return act(*given)
        if name in {"write", "writelines", "truncate"}:
            self.written[str(getattr(file, "name", "a file"))] = None
        if name == "write":
            return memoryview(given[0]).nbytes if not isinstance(given[0], str) else len(given[0])
        return None

    def begin(self) -> None:
        """Remembers how the open files are now."""
        flush_files()
        self._alone = not _are_others()
        left = ALL_COPIED_BYTES
        for number in _list_writable():
            status = os.fstat(number)
            flags = CONTROL.fcntl(number, CONTROL.F_GETFL)
            copied = status.st_size <= min(COPIED_BYTES, left)
            content = _read_content(number, status.st_size) if copied else None
            left -= 0 if content is None else len(content)
            place = SEEK(number, 0, os.SEEK_CUR)
            appends = bool(flags & os.O_APPEND)
            self._places[number] = OpenPlace(number, status, place, appends, content)

    @contextlib.contextmanager
    def open(self) -> Iterator[None]:
        """Drops what the step writes by the descriptors' numbers, until exit."""
        names = {
            name: self._wrap(getattr(os, name))
            for name in ("write", "pwrite", "writev", "pwritev", "ftruncate")
            if hasattr(os, name)
        }
        with replace_attributes(os, **names):
            yield

    def _wrap(self, act: Callable[..., Any]) -> Callable[..., Any]:
        @functools.wraps(act)
        def answer(number: int, given: Any, *others: Any) -> Any:
            place = self._places.get(number)
            if place is None or not self._is_step() or not place.is_same():
                return act(number, given, *others)
            self.written[find_name(number)] = None
            if act.__name__ == "ftruncate":
                return None
            parts = given if act.__name__.endswith("v") else [given]
            return sum(memoryview(one).nbytes for one in parts)

        return answer

    def end(self) -> None:
        """Puts back what code in C has changed."""
        none = None if sys.version_info >= (3, 11) else _allow
        for one, own in reversed(self._databases):
            with contextlib.suppress(Exception):  # closed meanwhile
                one.set_authorizer(own or none)
        flush_files()
        for file, _ in self._files:
            with contextlib.suppress(OSError, ValueError, AttributeError):
                file.flush()
        names = self._list_names()
        alone, left = self._alone and not _are_others(), set()
        for place in self._places.values():
            with contextlib.suppress(OSError):
                name = names.get(place.number)
                # What a library has open, such as a database, it has parts of in memory too.
                known = name is not None
                shown = name or find_name(place.number)
                if not self._compare(place, shown, alone=alone and known, known=known):
                    left.add(place.number)
        for file, where in reversed(self._files):
            with contextlib.suppress(OSError, ValueError, AttributeError):
                # Where content is left, the program's next line comes after it, not into it.
                if where is not None and file.tell() != where and _find_number(file) not in left:
                    file.seek(where)
        for number, (where, name) in self._readers.items():
            with contextlib.suppress(OSError):
                if SEEK(number, 0, os.SEEK_CUR) != where:
                    self.moved[name] = None

    def _list_names(self) -> dict[int, str]:
        names = {}
        for file, _ in reversed(self._files):
            with contextlib.suppress(OSError, ValueError, AttributeError):
                names[file.fileno()] = str(file.name)
        return names

    def _compare(self, place: OpenPlace, name: str, *, alone: bool, known: bool) -> bool:
        """Puts a file back where this is safe; False where its content is left as it is now."""
        if not place.is_same():
            return True
        if place.has_changed():
            same = alone and not _is_shared(find_name(place.number)) and place.put_back()
            if known or not _is_inherited(place.status):
                (self.written if same else self.changed)[name] = None
            if not same:
                return False
        if alone and SEEK(place.number, 0, os.SEEK_CUR) != place.place:
            SEEK(place.number, place.place, os.SEEK_SET)
        return True


def _list_writable() -> Iterator[int]:
    """The descriptors of files that are open for writing, without what the step prints to."""
    if CONTROL is None:
        return
    skipped: set[tuple[int, int]] | None = None
    names = []
    with contextlib.suppress(OSError):
        names = LIST(DESCRIPTORS)
    for name in names:
        with contextlib.suppress(OSError, ValueError):
            number = int(name)
            status = os.fstat(number)
            if not stat.S_ISREG(status.st_mode):  # most: terminals, pipes, sockets
                continue
            flags = CONTROL.fcntl(number, CONTROL.F_GETFL)
            if flags & os.O_ACCMODE == os.O_RDONLY:
                continue
            if skipped is None:
                skipped = set(_list_skipped())
            if (status.st_dev, status.st_ino) not in skipped:
                yield number


def _list_skipped() -> Iterator[tuple[int, int]]:
    """Files that others write to: those of what is printed and logged, and IPython's history."""
    streams: list[Any] = [sys.stdout, sys.stderr, sys.__stdout__, sys.__stderr__]
    handlers = [one() for one in logging._handlerList]  # type: ignore[attr-defined]
    streams += [getattr(one, "stream", None) for one in handlers]
    numbers: list[Any] = [1, 2]
    for one in streams:
        with contextlib.suppress(OSError, ValueError, AttributeError):
            numbers.append(one.fileno())
    history = getattr(getattr(find_shell(), "history_manager", None), "hist_file", None)
    numbers += [history] if isinstance(history, str) else []
    for number in numbers:
        with contextlib.suppress(OSError, TypeError):
            status = STATUS(number)
            yield status.st_dev, status.st_ino


def _find_number(file: Any) -> int | None:
    with contextlib.suppress(OSError, ValueError, AttributeError):
        return int(file.fileno())
    return None


def _are_others() -> bool:
    """Whether another thread may write to the files: a timer, or an event loop, calls what may."""
    timers = any(isinstance(one, threading.Timer) for one in list(RUNNING.values()))
    return timers or runs_loop_elsewhere() or not is_alone()


def is_alone() -> bool:
    """True where no other thread runs code of the program."""
    for number, running in list_thread_frames().items():
        frame: Any = running if number != threading.get_ident() else None
        while frame is not None:
            if judge_file(frame.f_code.co_filename) == USER:
                return False
            frame = frame.f_back
    return True


def _is_inherited(status: os.stat_result) -> bool:
    """True where the parent process has the file open too, such as the log of a launcher."""
    folder = f"/proc/{os.getppid()}/fd"
    with contextlib.suppress(OSError):
        for number in LIST(folder):
            with contextlib.suppress(OSError):
                other = STATUS(f"{folder}/{number}")
                if (other.st_dev, other.st_ino) == (status.st_dev, status.st_ino):
                    return True
    return False


def _is_shared(path: str) -> bool:
    """True where a process that this one has started has the file open too."""
    for child in _list_children(os.getpid()):
        with contextlib.suppress(OSError):
            for number in LIST(f"/proc/{child}/fd"):
                if READ_LINK(f"/proc/{child}/fd/{number}") == path:
                    return True
    return False


def _list_children(process: int) -> Iterator[int]:
    with contextlib.suppress(OSError):
        for thread in LIST(f"/proc/{process}/task"):
            number = OPEN(f"/proc/{process}/task/{thread}/children", os.O_RDONLY)
            try:
                found = os.read(number, 2**16).split()
            finally:
                CLOSE(number)
            for child in map(int, found):
                yield child
                yield from _list_children(child)

"""Pipes, sockets and processes that were there before a simulated step: it does not talk to them.

What a step sends through one is not real, and what it takes from one a real step would not get. So
what it sends is dropped, with a note, and a step that waits for an answer is refused. A process
that it would end goes on, and what it would close stays open. What Python sends for itself, such as
an event loop that wakes up, is real.

A pipe is known by its inode: each copy of its descriptor, and each file that is opened on one, is
the same pipe. Python's files read and write by the methods of their raw file, which are replaced.
"""

from __future__ import annotations

import builtins
import contextlib
import functools
import io
import os
import re
import signal
import stat
import sys
from collections.abc import Callable, Iterator
from typing import Any

from labkit.memory.estimate.cuda import MadeReplacements, Replacement
from labkit.memory.estimate.descriptors import KeptDescriptors
from labkit.memory.estimate.guard import LABKIT_FOLDER, StepThreads, find_caller
from labkit.memory.estimate.held import LiveIteratorError
from labkit.memory.track.frames import USER

FIX = "take what it gives before, and pass it: estimate_memory(step, model, batch)"
FIX_TYPED = "ask before, and pass the answer: estimate_memory(step, model, batch)"
DROPPED = "what the step sends through {} that was open before is dropped"
CONNECTED = "the step connects to {}: what it sends there is real"
ENDED = "a process from before that the step would end goes on"
SHARED = "the step calls {} of what a manager of multiprocessing keeps: what this changes stays"
CLOSED = "what the step closes that was open before stays open"
MADE = "labkit_made"
SENDING = ("send", "sendall", "sendto", "sendmsg", "sendfile", "write")
TAKING = (
    "recv", "recv_into", "recvfrom", "recvfrom_into", "recvmsg", "recvmsg_into", "accept", "read",
)  # fmt: skip
CLOSING = ("close", "shutdown", "detach")
# The methods of a raw file by which all others take and send, and those of a file that take.
RAW_TAKING, RAW_SENDING = ("read", "readall", "readinto"), "write"
FILE_TAKING = (*RAW_TAKING, "read1", "readline", "readlines", "readinto1", "peek")
READING = frozenset((
    "get", "keys", "values", "items", "copy", "count", "index", "is_set", "is_alive",
    "__getitem__", "__len__", "__contains__", "__iter__", "__str__", "__repr__",
    "__getattribute__",
))  # fmt: skip
CONNECTING = ("connect", "connect_ex")
# What sends to wake its own threads and processes, which would wait for ever.
MACHINERY = re.compile(
    r"[/\\](?:asyncio|multiprocessing|concurrent|loky|joblib|billiard|tornado|trio|anyio|gevent"
    r"|eventlet)[/\\]|[/\\](?:pdb|bdb|cmd|code)\.py$"
)
LIST, STATUS, DESCRIPTORS = os.listdir, os.fstat, "/dev/fd"
MOVE, DUPLICATE, CLOSE, ASK_TERMINAL = os.lseek, os.dup2, os.close, os.isatty
RAW = io.FileIO
# The modules whose classes are changed.
MODULES = (
    "socket", "ssl", "subprocess", "multiprocessing.connection", "multiprocessing.managers",
    "multiprocessing.process",
)  # fmt: skip
# Of what moves bytes between descriptors: where the one that gets them is, and the one that gives.
MOVING = {"sendfile": (0, 1), "splice": (1, 0)}
# A file by its device and its inode.
Key = tuple[int, int]


class HeldPipes:
    """The pipes and sockets that are open when ``open`` is entered."""

    def __init__(self) -> None:
        self._threads = StepThreads()
        self._note: Callable[[str], object] = lambda words: None
        self._functions = MadeReplacements(self._list_functions, ())
        self._methods = MadeReplacements(self._list_methods, MODULES)
        # All descriptors of before, as a number that is free is soon another one's.
        self._before: dict[int, Key] = {}
        # What is sent to, and what is taken from: neither what is printed to, nor files.
        self._sending: set[Key] = set()
        self._taking: set[Key] = set()
        # The copies of descriptors that the step has replaced, and where those of files were.
        self._replaced: dict[int, int] = {}
        # What the step has given numbers that were free.
        self._added: dict[int, Key | None] = {}
        # By the object's id: the processes that the step has ended, and what their end says.
        self._ended: dict[int, tuple[Any, int]] = {}
        self._places: dict[int, int] = {}

    @property
    def functions(self) -> dict[Any, dict[str, Any]]:
        """What replaces which of Python's functions that take a descriptor."""
        return dict(self._functions.find())

    def _list_functions(self) -> Iterator[tuple[Any, dict[str, Any]]]:
        sends = {one: self._wrap_write(getattr(os, one)) for one in _list_names("write", "writev")}
        taking = _list_names("read", "readv", "lseek")
        takes = {one: self._wrap_read(getattr(os, one)) for one in taking}
        moves = {one: self._wrap_move(getattr(os, one)) for one in _list_names(*MOVING)}
        others = {"close": self._wrap_close(os.close), "dup2": self._wrap_duplicate(os.dup2)}
        yield os, sends | takes | moves | others
        yield io, {"FileIO": self._make_raw()}
        yield builtins, {"input": self._wrap_input(builtins.input)}

    @contextlib.contextmanager
    def open(self, threads: StepThreads, note: Callable[[str], object]) -> Iterator[None]:
        """Replaces what sends and takes, until exit; ``note`` takes a sentence."""
        self._threads, self._note = threads, note
        self._look()
        with contextlib.ExitStack() as stack:
            stack.callback(self._give_back)
            stack.callback(self._ended.clear)
            for owner, names in (*self._functions.find(), *self._methods.find()):
                stack.enter_context(Replacement(owner, names))
            yield

    def _look(self) -> None:
        """Lists the descriptors that are open now."""
        printed, self._before = _list_printed(), {}
        talks, shown = {}, set()
        for number, status in _list_open():
            key = self._before[number] = status.st_dev, status.st_ino
            mode = status.st_mode
            is_terminal = stat.S_ISCHR(mode) and ASK_TERMINAL(number)
            if stat.S_ISFIFO(mode) or stat.S_ISSOCK(mode) or is_terminal:
                talks[key] = is_terminal
                shown |= {key} if number in printed else set()
        self._sending = {key for key, is_terminal in talks.items() if not is_terminal} - shown
        self._taking = set(talks)

    def restore_places(self) -> None:
        """Puts files back from which the step has read by their descriptors."""
        for number, place in self._places.items():
            with contextlib.suppress(OSError):
                MOVE(number, place, os.SEEK_SET)
        self._places.clear()

    def _give_back(self) -> None:
        """Gives the descriptors that the step has replaced their files back."""
        for number, kept in self._replaced.items():
            DUPLICATE(kept, number, os.get_inheritable(number))
            CLOSE(kept)
        self._replaced.clear()
        for number, key in self._added.items():
            if key is not None and _find_key(number) == key:
                CLOSE(number)
        self._added.clear()

    def hold(self, file: Any) -> Iterator[tuple[str, Any]]:
        """What replaces which methods of a file of Python's, its raw file or its buffer."""
        for name in filter(functools.partial(hasattr, file), FILE_TAKING):
            yield name, self._refuse_file(file, name)
        yield "close", self._leave_open(file.close)

    def hold_new(self, file: Any, path: Any) -> None:
        """Holds what the step opens, where that is a pipe from before, or one that has a name.

        ``file`` is one of Python's files, or a descriptor.
        """
        if self._threads.works or not self._threads.includes_this():
            return
        with contextlib.suppress(OSError, ValueError, AttributeError):
            status = STATUS(file if isinstance(file, int) else file.fileno())
            key = status.st_dev, status.st_ino
            if stat.S_ISFIFO(status.st_mode) and _is_named(path):
                self._sending.add(key)
                self._taking.add(key)
            if not isinstance(file, int) and key in self._sending | self._taking:
                raw = getattr(getattr(file, "buffer", file), "raw", file)
                for name in filter(functools.partial(hasattr, raw), RAW_TAKING):
                    setattr(raw, name, self._refuse_file(raw, name))
                setattr(raw, RAW_SENDING, self._drop_file(raw, RAW_SENDING))

    def is_talk(self, file: Any) -> bool:
        """True for a file of Python's through which another process, or a person, is asked."""
        with contextlib.suppress(OSError, ValueError, AttributeError):
            return _find_key(file.fileno()) in self._taking
        return False

    def _list_methods(self) -> Iterator[tuple[Any, dict[str, Any]]]:
        """What replaces which methods of Python's classes."""
        sockets: Any = sys.modules.get("socket")
        if sockets is not None:
            kinds = [sockets.socket]
            secure: Any = sys.modules.get("ssl")
            kinds += [secure.SSLSocket] if secure is not None else []
            for kind in kinds:
                names = {one: self._wrap_send(kind, one) for one in SENDING if hasattr(kind, one)}
                names |= {one: self._wrap_take(kind, one) for one in TAKING if hasattr(kind, one)}
                names |= {one: self._wrap_shut(kind, one) for one in CLOSING}
                yield kind, names | {one: self._wrap_connect(kind, one) for one in CONNECTING}
        connections: Any = sys.modules.get("multiprocessing.connection")
        if connections is not None:
            kind = connections._ConnectionBase
            sending, taking = ("send", "send_bytes"), ("recv", "recv_bytes", "recv_bytes_into")
            names = {one: self._wrap_send(kind, one) for one in sending}
            names |= {one: self._wrap_take(kind, one) for one in taking}
            yield kind, names | {"close": self._wrap_shut(kind, "close")}
        managers: Any = sys.modules.get("multiprocessing.managers")
        if managers is not None:
            kind = managers.BaseProxy
            yield kind, {"_callmethod": self._wrap_call(kind._callmethod)}
        processes: Any = sys.modules.get("subprocess")
        if processes is not None:
            kind = processes.Popen
            begin = self._mark(kind.__init__)
            talk, end = self._wrap_process(kind.communicate), self._wrap_end(kind.send_signal)
            names = {"__init__": begin, "communicate": talk, "send_signal": end}
            yield kind, names | {one: self._wrap_await(kind, one) for one in ("wait", "poll")}
        forks: Any = sys.modules.get("multiprocessing.process")
        if forks is not None:
            kind = forks.BaseProcess
            names = {one: self._wrap_end(getattr(kind, one)) for one in ("terminate", "kill")}
            yield kind, names | {"join": self._wrap_await(kind, "join")}

    def _sends(self, number: int) -> bool:
        """True for a pipe or socket from before, with which the step's own code works."""
        return bool(self._sending) and self._holds(number, self._sending)

    def _takes(self, number: int) -> bool:
        """The same for the step's own thread, and with terminals."""
        return self._threads.is_own and self._holds(number, self._taking)

    def _holds(self, number: int, keys: set[Key]) -> bool:
        if self._threads.works or not self._threads.includes_this():
            return False
        return _find_key(number) in keys and not MACHINERY.search(_find_caller())

    def is_before(self, number: Any) -> bool:
        """True for any descriptor from before, with which the step's own code works."""
        if self._threads.works or not self._threads.includes_this():
            return False
        key = self._before.get(number)
        return key is not None and key == _find_key(number) and not MACHINERY.search(_find_caller())

    def _wrap_write(self, write: Callable[..., Any]) -> Callable[..., Any]:
        @functools.wraps(write)
        def answer(number: int, given: Any, *others: Any) -> Any:
            if not self._sends(number):
                return write(number, given, *others)
            self._note(DROPPED.format(_name_kind(number)))
            parts = given if write.__name__.endswith("v") else [given]
            return sum(memoryview(one).nbytes for one in parts)

        return answer

    def _wrap_read(self, read: Callable[..., Any]) -> Callable[..., Any]:
        @functools.wraps(read)
        def answer(number: int, *others: Any) -> Any:
            if self._takes(number):
                raise LiveIteratorError(_name_kind(number), FIX)
            if number not in self._places and self.is_before(number):
                with contextlib.suppress(OSError):  # what has no places
                    self._places[number] = MOVE(number, 0, os.SEEK_CUR)
            return read(number, *others)

        return answer

    def _wrap_move(self, move: Callable[..., Any]) -> Callable[..., Any]:
        """``os.sendfile`` and ``os.splice``, which take two descriptors."""
        to, source = MOVING[move.__name__]

        @functools.wraps(move)
        def answer(one: int, other: int, *others: Any, **named: Any) -> Any:
            pair = one, other
            if self._takes(pair[source]):
                raise LiveIteratorError(_name_kind(pair[source]), FIX)
            if not self._sends(pair[to]):
                return move(one, other, *others, **named)
            self._note(DROPPED.format(_name_kind(pair[to])))
            return named.get("count", others[-1] if others else 0)

        return answer

    def _wrap_close(self, close: Callable[[int], None]) -> Callable[[int], None]:
        @functools.wraps(close)
        def answer(fd: int) -> None:
            if self.is_before(fd):
                self._note(CLOSED)
            else:
                close(fd)

        return answer

    def _wrap_duplicate(self, duplicate: Callable[..., int]) -> Callable[..., int]:
        """``os.dup2``, which replaces descriptors from before, or adds some, until the end."""

        @functools.wraps(duplicate)
        def answer(fd: int, fd2: int, *others: Any, **named: Any) -> int:
            if fd2 not in self._replaced and self.is_before(fd2):
                self._replaced[fd2] = os.dup(fd2)
            is_new = self._threads.includes_this() and _find_key(fd2) is None
            made = duplicate(fd, fd2, *others, **named)
            if is_new:
                self._added[fd2] = _find_key(fd2)
            return made

        return answer

    def _wrap_input(self, ask: Callable[..., str]) -> Callable[..., str]:
        @functools.wraps(ask)
        def answer(*given: Any, **named: Any) -> str:
            if self._threads.is_own and not MACHINERY.search(_find_caller()):
                raise LiveIteratorError("the keyboard, by input(),", FIX_TYPED)
            return ask(*given, **named)

        return answer

    def _make_raw(self) -> Any:
        """``io.FileIO`` for files that the step opens by it, which may be copies of a pipe."""
        holder = self

        class Kind(type(io.FileIO)):  # type: ignore[misc]
            def __instancecheck__(cls, one: Any) -> bool:
                return isinstance(one, RAW)

        class FileIO(RAW, metaclass=Kind):
            __module__ = RAW.__module__

            def __init__(self, *given: Any, **named: Any) -> None:
                super().__init__(*given, **named)
                holder.hold_new(self, self.name)

        return FileIO

    def _refuse_file(self, file: Any, name: str) -> Callable[..., Any]:
        take = getattr(file, name)

        @functools.wraps(take)
        def answer(*given: Any, **named: Any) -> Any:
            if self._threads.is_own and not MACHINERY.search(_find_caller()):
                raise LiveIteratorError(_name_file(file), FIX)
            return take(*given, **named)

        return answer

    def _drop_file(self, file: Any, name: str) -> Callable[..., Any]:
        send = getattr(file, name)

        @functools.wraps(send)
        def answer(given: Any) -> Any:
            if not self._sends(file.fileno()):
                return send(given)
            self._note(DROPPED.format(_name_kind(file.fileno())))
            return memoryview(given).nbytes

        return answer

    def _leave_open(self, close: Callable[[], None]) -> Callable[[], None]:
        @functools.wraps(close)
        def answer() -> None:
            if self._threads.includes_this():
                self._note(CLOSED)
            else:
                close()

        return answer

    def _wrap_shut(self, kind: Any, name: str) -> Callable[..., Any]:
        shut = getattr(kind, name)

        @functools.wraps(shut)
        def answer(one: Any, *given: Any) -> Any:
            with contextlib.suppress(OSError, ValueError):  # closed
                if self.is_before(one.fileno()):
                    self._note(CLOSED)
                    return one.fileno() if name == "detach" else None
            return shut(one, *given)

        return answer

    def _wrap_send(self, kind: Any, name: str) -> Callable[..., Any]:
        send = getattr(kind, name)

        @functools.wraps(send)
        def answer(one: Any, given: Any, *others: Any, **named: Any) -> Any:
            if not _asks_for(one, self._sends):
                return send(one, given, *others, **named)
            self._note(DROPPED.format(_name_kind(one.fileno())))
            if name in {"send", "sendto", "sendmsg", "write"} and hasattr(one, "family"):
                parts = given if name == "sendmsg" else [given]
                return sum(memoryview(part).nbytes for part in parts)
            return None

        return answer

    def _wrap_take(self, kind: Any, name: str) -> Callable[..., Any]:
        take = getattr(kind, name)

        @functools.wraps(take)
        def answer(one: Any, *others: Any, **named: Any) -> Any:
            if _asks_for(one, self._takes):
                raise LiveIteratorError(_name_kind(one.fileno()), FIX)
            return take(one, *others, **named)

        return answer

    def _wrap_connect(self, kind: Any, name: str) -> Callable[..., Any]:
        connect = getattr(kind, name)

        @functools.wraps(connect)
        def answer(one: Any, address: Any) -> Any:
            # One of the machine's own sockets has a path for an address.
            if isinstance(address, tuple) and self._threads.includes_this():
                self._note(CONNECTED.format(f"{address[0]}:{address[1]}"))
            return connect(one, address)

        return answer

    def _wrap_call(self, call: Callable[..., Any]) -> Callable[..., Any]:
        @functools.wraps(call)
        def answer(one: Any, name: str, *others: Any, **named: Any) -> Any:
            if self._threads.includes_this() and name not in READING:
                self._note(SHARED.format(f"{name}()"))
            return call(one, name, *others, **named)

        return answer

    def _wrap_end(self, end: Callable[..., None]) -> Callable[..., None]:
        @functools.wraps(end)
        def answer(one: Any, *given: Any) -> None:
            is_held = self._threads.includes_this() and not hasattr(one, MADE)
            # Torch ends the workers of its own loaders.
            if is_held and find_caller()[0] == USER:
                self._note(ENDED)
                self._ended[id(one)] = one, -int(next(iter(given), signal.SIGTERM))
            else:
                end(one, *given)

        return answer

    def _wrap_await(self, kind: Any, name: str) -> Callable[..., Any]:
        """What waits for a process: one that the step has ended has ended, for the step."""
        wait = getattr(kind, name)

        @functools.wraps(wait)
        def answer(one: Any, *given: Any, **named: Any) -> Any:
            if id(one) in self._ended and self._threads.includes_this():
                return None if name == "join" else self._ended[id(one)][1]
            return wait(one, *given, **named)

        return answer

    def _mark(self, begin: Callable[..., None]) -> Callable[..., None]:
        @functools.wraps(begin)
        def answer(one: Any, *arguments: Any, **named: Any) -> None:
            if self._threads.includes_this():
                setattr(one, MADE, True)
            begin(one, *arguments, **named)

        return answer

    def _wrap_process(self, talk: Callable[..., Any]) -> Callable[..., Any]:
        @functools.wraps(talk)
        def answer(one: Any, *arguments: Any, **named: Any) -> Any:
            if self._threads.is_own and not hasattr(one, MADE):
                raise LiveIteratorError("a process", FIX)
            return talk(one, *arguments, **named)

        return answer


# There is one estimate at a time.
PIPES = HeldPipes()
KEPT = KeptDescriptors(PIPES.is_before)


def _list_names(*names: str) -> list[str]:
    """Those of the names that this system's ``os`` has."""
    return [name for name in names if hasattr(os, name)]


def _find_key(number: int) -> Key | None:
    """What an open descriptor is known by; None for one that is not open."""
    try:
        status = STATUS(number)
    except (OSError, TypeError, OverflowError):
        return None
    return status.st_dev, status.st_ino


def _asks_for(one: Any, judge: Callable[[int], bool]) -> bool:
    """The judgment about the descriptor of a socket or a connection; False for a closed one."""
    try:
        return judge(one.fileno())
    except (OSError, ValueError):
        return False


def _is_named(name: Any) -> bool:
    """True for the path of a pipe in a directory, which is not what a descriptor stands for."""
    path = os.fsdecode(name) if isinstance(name, str | bytes | os.PathLike) else ""
    return bool(path) and not path.startswith(("/proc/", "/dev/fd/"))


def _list_open() -> Iterator[tuple[int, os.stat_result]]:
    """The numbers of the open descriptors, and what they are."""
    names = []
    with contextlib.suppress(OSError):
        names = LIST(DESCRIPTORS)
    for name in names:
        with contextlib.suppress(OSError, ValueError):
            yield int(name), STATUS(int(name))


def _list_printed() -> set[int]:
    """The descriptors of what is printed, which is real."""
    numbers = {1, 2}
    for stream in (sys.stdout, sys.stderr, sys.__stdout__, sys.__stderr__):
        with contextlib.suppress(OSError, ValueError, AttributeError):
            numbers.add(stream.fileno())  # type: ignore[union-attr]
    return numbers


def _name_kind(number: int) -> str:
    mode = STATUS(number).st_mode
    if stat.S_ISCHR(mode):
        return "a terminal"
    return "a socket" if stat.S_ISSOCK(mode) else "a pipe"


def _name_file(file: Any) -> str:
    with contextlib.suppress(OSError, ValueError):
        return _name_kind(file.fileno())
    return "a pipe"


def _find_caller() -> str:
    """The file of the code that calls, beside labkit's own."""
    frame: Any = sys._getframe(1)
    while frame is not None and frame.f_code.co_filename.startswith(LABKIT_FOLDER):
        frame = frame.f_back
    return "" if frame is None else frame.f_code.co_filename

"""Pipes, sockets and processes that were there before a simulated step: it does not talk to them.

What a step sends through one is not real, and what it takes from one a real step would not get. So
what it sends is dropped, with a note, and a step that waits for an answer is refused. A process
that it would end goes on. What Python sends for itself, such as an event loop that wakes up, is
real.
"""

from __future__ import annotations

import contextlib
import functools
import os
import re
import stat
import sys
from collections.abc import Callable, Iterator
from typing import Any

from labkit.memory.estimate.cuda import replace_attributes
from labkit.memory.estimate.guard import LABKIT_FOLDER, StepThreads, find_caller
from labkit.memory.estimate.iterators import LiveIteratorError
from labkit.memory.track.frames import USER

FIX = "take what it gives before, and pass it: estimate_memory(step, model, batch)"
DROPPED = "what the step sends through {} that was open before is dropped"
CONNECTED = "the step connects to {}: what it sends there is real"
ENDED = "a process from before that the step would end goes on"
SHARED = "the step calls {} of what a manager of multiprocessing keeps: what this changes stays"
MADE = "labkit_made"
SENDING = ("send", "sendall", "sendto", "sendmsg", "sendfile")
TAKING = ("recv", "recv_into", "recvfrom", "recvfrom_into", "recvmsg", "recvmsg_into")
READING = frozenset((
    "get", "keys", "values", "items", "copy", "count", "index", "is_set", "is_alive",
    "__getitem__", "__len__", "__contains__", "__iter__", "__str__", "__repr__",
    "__getattribute__",
))  # fmt: skip
CONNECTING = ("connect", "connect_ex")
# What sends to wake its own threads and processes, which would wait for ever.
MACHINERY = re.compile(
    r"[/\\](?:asyncio|multiprocessing|concurrent|loky|joblib|billiard|tornado|trio|anyio|gevent"
    r"|eventlet)[/\\]"
)
LIST, STATUS, DESCRIPTORS = os.listdir, os.fstat, "/dev/fd"


class HeldPipes:
    """The pipes and sockets that are open when ``open`` is entered."""

    def __init__(self, threads: StepThreads) -> None:
        self._threads = threads
        self._note: Callable[[str], object] = lambda words: None
        # By the descriptor: the inode, as a number that is free is soon another one's.
        self._inodes: dict[int, int] = {}

    @functools.cached_property
    def functions(self) -> dict[Any, dict[str, Any]]:
        """What replaces which of Python's functions that take a descriptor."""
        sends = {one: self._wrap_write(getattr(os, one)) for one in ("write", "writev")}
        takes = {one: self._wrap_read(getattr(os, one)) for one in ("read", "readv")}
        return {os: {name: one for name, one in (sends | takes).items() if hasattr(os, name)}}

    @contextlib.contextmanager
    def open(self, note: Callable[[str], object]) -> Iterator[None]:
        """Replaces what sends and takes, until exit; ``note`` takes a sentence."""
        self._note, self._inodes = note, dict(_list_open())
        with contextlib.ExitStack() as stack:
            for owner, names in (*self.functions.items(), *self._list_methods()):
                stack.enter_context(replace_attributes(owner, **names))
            yield

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
                yield kind, names | {one: self._wrap_connect(kind, one) for one in CONNECTING}
        connections: Any = sys.modules.get("multiprocessing.connection")
        if connections is not None:
            kind = connections._ConnectionBase
            sending, taking = ("send", "send_bytes"), ("recv", "recv_bytes", "recv_bytes_into")
            names = {one: self._wrap_send(kind, one) for one in sending}
            yield kind, names | {one: self._wrap_take(kind, one) for one in taking}
        managers: Any = sys.modules.get("multiprocessing.managers")
        if managers is not None:
            kind = managers.BaseProxy
            yield kind, {"_callmethod": self._wrap_call(kind._callmethod)}
        processes: Any = sys.modules.get("subprocess")
        if processes is not None:
            kind = processes.Popen
            begin = self._mark(kind.__init__)
            talk, signal = self._wrap_process(kind.communicate), self._wrap_end(kind.send_signal)
            yield kind, {"__init__": begin, "communicate": talk, "send_signal": signal}
        forks: Any = sys.modules.get("multiprocessing.process")
        if forks is not None:
            kind = forks.BaseProcess
            yield kind, {one: self._wrap_end(getattr(kind, one)) for one in ("terminate", "kill")}

    def _holds(self, number: int) -> bool:
        """True for a pipe or socket from before, with which the step's own code works."""
        if number not in self._inodes or not self._threads.includes_this():
            return False
        try:
            same = STATUS(number).st_ino == self._inodes[number]
        except OSError:
            return False
        return same and not MACHINERY.search(_find_caller())

    def _holds_object(self, one: Any) -> bool:
        try:
            return self._holds(one.fileno())
        except (OSError, ValueError):  # closed
            return False

    def _wrap_write(self, write: Callable[..., Any]) -> Callable[..., Any]:
        @functools.wraps(write)
        def answer(number: int, given: Any, *others: Any) -> Any:
            if not self._holds(number):
                return write(number, given, *others)
            self._note(DROPPED.format(_name_kind(number)))
            parts = given if write.__name__.endswith("v") else [given]
            return sum(memoryview(one).nbytes for one in parts)

        return answer

    def _wrap_read(self, read: Callable[..., Any]) -> Callable[..., Any]:
        @functools.wraps(read)
        def answer(number: int, *others: Any) -> Any:
            if self._threads.is_own and self._holds(number):
                raise LiveIteratorError(_name_kind(number), FIX)
            return read(number, *others)

        return answer

    def _wrap_send(self, kind: Any, name: str) -> Callable[..., Any]:
        send = getattr(kind, name)

        @functools.wraps(send)
        def answer(one: Any, given: Any, *others: Any, **named: Any) -> Any:
            if not self._holds_object(one):
                return send(one, given, *others, **named)
            self._note(DROPPED.format(_name_kind(one.fileno())))
            if name in {"send", "sendto", "sendmsg"} and hasattr(one, "family"):
                parts = given if name == "sendmsg" else [given]
                return sum(memoryview(part).nbytes for part in parts)
            return None

        return answer

    def _wrap_take(self, kind: Any, name: str) -> Callable[..., Any]:
        take = getattr(kind, name)

        @functools.wraps(take)
        def answer(one: Any, *others: Any, **named: Any) -> Any:
            if self._threads.is_own and self._holds_object(one):
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
            else:
                end(one, *given)

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


def _list_open() -> Iterator[tuple[int, int]]:
    """The numbers of the pipes and sockets that are open, and their inodes."""
    names = []
    with contextlib.suppress(OSError):
        names = LIST(DESCRIPTORS)
    printed = _list_printed()
    for name in names:
        with contextlib.suppress(OSError, ValueError):
            status = STATUS(int(name))
            is_held = stat.S_ISFIFO(status.st_mode) or stat.S_ISSOCK(status.st_mode)
            if is_held and int(name) not in printed:
                yield int(name), status.st_ino


def _list_printed() -> set[int]:
    """The descriptors of what is printed, which is real."""
    numbers = {0, 1, 2}
    for stream in (sys.stdout, sys.stderr, sys.__stdout__, sys.__stderr__):
        with contextlib.suppress(OSError, ValueError, AttributeError):
            numbers.add(stream.fileno())  # type: ignore[union-attr]
    return numbers


def _name_kind(number: int) -> str:
    return "a socket" if stat.S_ISSOCK(STATUS(number).st_mode) else "a pipe"


def _find_caller() -> str:
    """The file of the code that calls, beside labkit's own."""
    frame: Any = sys._getframe(1)
    while frame is not None and frame.f_code.co_filename.startswith(LABKIT_FOLDER):
        frame = frame.f_back
    return "" if frame is None else frame.f_code.co_filename

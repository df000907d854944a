"""What a simulated step sets for descriptors and sockets that were open before, put back after it.

A lock of such a file is not acquired: nobody can tell whether the process had it before.
"""

from __future__ import annotations

import contextlib
import functools
import os
import sys
from collections.abc import Callable, Iterator
from typing import Any

from labkit.memory.estimate.cuda import MadeReplacements, Replacement

LOCKED = "a lock of a file that was open before is neither acquired nor released"
# What sets something, and what reads it.
SWITCHES = {"set_blocking": "get_blocking", "set_inheritable": "get_inheritable"}
SETTERS = {"settimeout": "gettimeout", "setblocking": "gettimeout",
           "set_inheritable": "get_inheritable"}  # fmt: skip
PUTTING = {"setblocking": "settimeout"}
OPTION_BYTES = 256


class KeptDescriptors:
    """Keeps what the step sets for descriptors for which ``is_before`` is true."""

    def __init__(self, is_before: Callable[[Any], bool]) -> None:
        self._is_before = is_before
        self._note: Callable[[str], object] = lambda words: None
        self._made = MadeReplacements(self._list_functions, ("fcntl", "socket"))
        # What puts a setting back, by what it was set for.
        self._kept: dict[Any, Callable[[], object]] = {}

    @property
    def functions(self) -> dict[Any, dict[str, Any]]:
        """What replaces which functions and methods."""
        return dict(self._made.find())

    @contextlib.contextmanager
    def open(self, note: Callable[[str], object]) -> Iterator[None]:
        """Replaces the functions until exit, which puts back what they have set."""
        self._note = note
        with contextlib.ExitStack() as stack:
            stack.callback(self._put_back)
            for owner, names in self._made.find():
                stack.enter_context(Replacement(owner, names))
            yield

    def _put_back(self) -> None:
        for put in reversed(self._kept.values()):
            with contextlib.suppress(OSError, ValueError):  # closed meanwhile
                put()
        self._kept.clear()

    def _list_functions(self) -> Iterator[tuple[Any, dict[str, Any]]]:
        pairs = [(one, SWITCHES[one]) for one in SWITCHES if hasattr(os, one)]
        names = {one: self._wrap_switch(getattr(os, one), getattr(os, read)) for one, read in pairs}
        yield os, names
        files: Any = sys.modules.get("fcntl")
        if files is not None:
            locks = {one: self._wrap_lock(getattr(files, one)) for one in ("flock", "lockf")}
            yield files, locks | {"fcntl": self._wrap_control(files)}
        sockets: Any = sys.modules.get("socket")
        if sockets is not None:
            kind = sockets.socket
            setters = {one: self._wrap_setter(kind, one) for one in SETTERS}
            yield kind, setters | {"setsockopt": self._wrap_option(kind)}

    def _wrap_switch(self, act: Callable[..., None], read: Callable[[int], Any]) -> Any:
        @functools.wraps(act)
        def answer(fd: int, value: Any) -> None:
            if self._is_before(fd):
                self._kept.setdefault((act, fd), functools.partial(act, fd, read(fd)))
            act(fd, value)

        return answer

    def _wrap_lock(self, lock: Callable[..., Any]) -> Callable[..., Any]:
        @functools.wraps(lock)
        def answer(fd: Any, *given: Any, **named: Any) -> Any:
            if not self._is_before(_find_number(fd)):
                return lock(fd, *given, **named)
            self._note(LOCKED)
            return None

        return answer

    def _wrap_control(self, files: Any) -> Callable[..., Any]:
        control = files.fcntl
        setting = {files.F_SETFL: files.F_GETFL, files.F_SETFD: files.F_GETFD}
        locking = {getattr(files, one, None) for one in ("F_SETLK", "F_SETLKW", "F_OFD_SETLK")}

        @functools.wraps(control)
        def answer(fd: Any, command: int, *given: Any) -> Any:
            number = _find_number(fd)
            if command in setting and self._is_before(number):
                before = control(number, setting[command])
                put = functools.partial(control, number, command, before)
                self._kept.setdefault((control, number, command), put)
            elif command in locking and self._is_before(number):
                self._note(LOCKED)
                return given[0] if given else 0
            return control(fd, command, *given)

        return answer

    def _wrap_setter(self, kind: Any, name: str) -> Callable[..., Any]:
        act, read = getattr(kind, name), getattr(kind, SETTERS[name])
        put = getattr(kind, PUTTING.get(name, name))

        @functools.wraps(act)
        def answer(one: Any, value: Any) -> None:
            if self._is_before(one.fileno()):
                back = functools.partial(put, one, read(one))
                self._kept.setdefault((put, one.fileno()), back)
            act(one, value)

        return answer

    def _wrap_option(self, kind: Any) -> Callable[..., Any]:
        act = kind.setsockopt

        @functools.wraps(act)
        def answer(one: Any, level: int, option: int, *given: Any) -> None:
            if self._is_before(one.fileno()):
                before = one.getsockopt(level, option, OPTION_BYTES)
                put = functools.partial(act, one, level, option, before)
                self._kept.setdefault((act, one.fileno(), level, option), put)
            act(one, level, option, *given)

        return answer


def _find_number(file: Any) -> Any:
    if isinstance(file, int):
        return file
    with contextlib.suppress(OSError, ValueError, AttributeError):
        return file.fileno()
    return None

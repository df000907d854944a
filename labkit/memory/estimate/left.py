"""Locks and semaphores that a simulated step leaves acquired: its next call would wait for them.

The simulation puts them back, so the program itself goes on. A note says what the real step does.
"""

from __future__ import annotations

import contextlib
import sys
import threading
import weakref
from collections.abc import Callable, Iterator
from typing import Any

from labkit.memory.estimate.stalls import ACQUIRED, are_others
from labkit.memory.track.frames import OWN, Frame, find_user_frames, judge_file

WAITS_FOR = "the step leaves {} acquired{}: its next call waits for it for ever{}"
COUNTS_DOWN = (
    "the step leaves {} acquired{}, more of it with each call: once nothing of it is left, the"
    " next call waits for it for ever{}"
)
BLOCKS = "the step leaves {} acquired{}: another {} that acquires it waits for ever"
LOCK = type(threading.Lock())
# Whose functions make the semaphores of the program's own lines.
MAKERS = ("/synchronize.py", "/multiprocessing/context.py", "/estimate/locks.py")


def name_kind(one: Any) -> str:
    """The kind of a lock, with its article."""
    name = "lock" if isinstance(one, LOCK) else type(one).__name__
    return f"an {name}" if name.startswith("R") else f"a {name}"


def is_recursive(one: Any) -> bool:
    """True for a lock of multiprocessing's that its owner can acquire again."""
    return _is_shared(one) and one._semlock.kind == 0


def _is_shared(one: Any) -> bool:
    return hasattr(one, "_semlock")


def _name_others(one: Any) -> str:
    """Who else may release a lock."""
    if _is_shared(one):
        return ", unless another process releases it"
    return ", unless another thread releases it" if are_others([threading.get_ident()]) else ""


def _name_line(line: Frame | None) -> str:
    return "" if line is None else f" at {line.where}"


def _read(one: Any) -> int:
    """How often a semaphore can be acquired."""
    if not _is_shared(one):
        return int(one._value)
    with contextlib.suppress(NotImplementedError):  # on macOS
        return int(one._semlock._get_value())
    return 0


class LeftLocks:
    """What the simulated calls of a step have left acquired; there is one step at a time."""

    def __init__(self) -> None:
        # The sentence, the lock, the line, and what else the sentence has; once for each lock.
        self._found: dict[int, tuple[str, Any, str, str]] = {}
        # By the numbers of their locks: conditions, and the lines that have acquired them last.
        self._owners: dict[int, Any] = {}
        self._lines: dict[int, Frame | None] = {}
        # Semaphores whose values are looked at: those of asyncio, and those that the step makes.
        self._counted: weakref.WeakKeyDictionary[Any, str] = weakref.WeakKeyDictionary()
        # Each with its value, as the last call began.
        self._values: list[tuple[Any, int]] = []

    def clear(self) -> None:
        """Forgets all, before and after an estimate's simulation."""
        ACQUIRED.clear()
        for one in (self._found, self._owners, self._lines):
            one.clear()
        self._counted.clear()
        self._values.clear()

    def add_owner(self, lock: Any, one: Any) -> None:
        """A condition has this lock: it is the condition that the program knows."""
        self._owners[id(lock)] = one

    def note_line(self, lock: Any, line: Frame | None) -> None:
        """This line acquires a condition's lock."""
        self._lines[id(lock)] = line

    def add_waiting(self, one: Any, line: Frame | None) -> None:
        """The step waits for what an earlier call of it has acquired at this line."""
        self._found[id(one)] = WAITS_FOR, one, _name_line(line), _name_others(one)

    def add_falling(self, one: Any, line: str) -> None:
        """Each call of the step leaves more of a semaphore acquired."""
        self._found.setdefault(id(one), (COUNTS_DOWN, one, line, _name_others(one)))

    def add_blocking(self, one: Any, line: Frame | None = None) -> None:
        """The step leaves a lock acquired that it can acquire again itself."""
        other = "process" if _is_shared(one) else "thread"
        line = line or self._lines.get(id(one))
        self._found.setdefault(id(one), (BLOCKS, one, _name_line(line), other))

    def watch(self, one: Any) -> None:
        """Looks at a semaphore's value from the next call on; the running line acquires it."""
        frames = find_user_frames()
        self._counted[one] = f" at {frames[0].where}" if frames else ""
        ACQUIRED.add(one)

    def watch_made(self, one: Any) -> None:
        """The same for one of multiprocessing's that a line of the program makes now."""
        frame: Any = sys._getframe(1)  # who calls has one of these files
        while frame is not None and frame.f_code.co_filename.endswith(MAKERS):
            frame = frame.f_back
        if frame is None or judge_file(frame.f_code.co_filename) == OWN or is_recursive(one):
            return  # a queue's or a pool's, which others release
        frames = find_user_frames()
        self._counted[one] = f" (made at {frames[0].where})" if frames else ""

    def begin_step(self) -> None:
        """Reads the semaphores' values."""
        self._values = [(one, _read(one)) for one in list(self._counted)]

    def compare(self) -> None:
        """Compares the semaphores' values with those before the last call."""
        for one, value in self._values:
            if _read(one) < value:
                self.add_falling(one, self._counted.get(one, ""))

    def describe(self, find_name: Callable[[Any], str]) -> Iterator[str]:
        """A sentence about each; the function names an object as the program does, or not."""
        for words, lock, line, other in self._found.values():
            one = self._owners.get(id(lock), lock)
            name = find_name(one)
            shown = f"{name_kind(one)} ({name})" if name else name_kind(one)
            yield words.format(shown, line, other)


LEFT = LeftLocks()

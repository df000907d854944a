"""Waits of a simulated step: each runs in short slices, so that it can be ended.

C waits at a lock until it is free, and Python delivers no exception to a thread meanwhile. What the
step's threads make and wait at is sliced here. Where nothing of the step goes on any more, the step
is refused; a thread that is left waiting after it is stopped. What waits in C alone is looked at
from outside (``stalls.py``).
"""

from __future__ import annotations

import contextlib
import queue
import threading
import time
from collections.abc import Callable, Iterator
from types import FrameType
from typing import Any

from labkit.memory.estimate import clock
from labkit.memory.estimate.cuda import find_number, replace_attributes
from labkit.memory.estimate.obstacles import StalledStepError, StoppedThread
from labkit.memory.estimate.stalls import (
    LOCK,
    PLAIN,
    Wait,
    Watcher,
    are_others,
    find_own_wait,
    find_wait,
)
from labkit.memory.track.frames import find_user_frames, list_thread_frames

# How long nothing of the step goes on before it is refused: where all its threads wait, and where
# one may read a file or the network; before it is looked at; and how long a slice is, in seconds.
LONGEST, LONGEST_READING, CALM, SLICE = 2.0, 20.0, 0.5, 0.05
FOREVER = -1.0
# How often in a row a thread must be found to go on: once is by chance, between two short waits.
BUSY = 3
NOW, MAKE_LOCK, JOIN = time.monotonic, threading.Lock, threading.Thread.join
IS_ALIVE = threading.Thread.is_alive
MAKE_RECURSIVE: Any = threading.RLock


class StepWaits:
    """The waits of the threads that work for the step; there is one step at a time."""

    def __init__(self) -> None:
        self.is_open = False
        self._threads: Any = None
        self._is_idle: Callable[[int], bool] = lambda number: False
        # By the thread's number: the timeout of its wait, in seconds.
        self._waiting: dict[int, float | None] = {}
        # The locks from before at which they wait.
        self._held: dict[int, Wait] = {}
        self._stopped: set[int] = set()
        # The locks of C that the step's objects have from before.
        self.known: list[Any] = []
        self._stalled: StalledStepError | None = None
        self._leaves, self._passed = False, 0
        # When something of the step has gone on last, and what showed it.
        self._since, self._seen = 0.0, (0, 0)
        self._places: dict[int, Any] = {}
        self._busy = 0
        # What one of the step's threads waits at in C.
        self._met: Wait | None = None

    @contextlib.contextmanager
    def open(self, threads: Any, is_idle: Callable[[int], bool]) -> Iterator[None]:
        """Slices the waits of these threads until exit; ``is_idle`` takes a thread's number."""
        self._threads, self._is_idle = threads, is_idle
        self._stopped.clear()
        self.known.clear()
        self._waiting.clear()
        self._held.clear()
        self._stalled, self._leaves, self.is_open = None, False, True
        with contextlib.ExitStack() as stack:
            for owner, names in self.functions.items():
                stack.enter_context(replace_attributes(owner, **names))
            stack.enter_context(replace_attributes(threading, _allocate_lock=make_lock))
            stack.callback(setattr, self, "is_open", False)
            stack.callback(self.known.clear)
            watcher = Watcher(self._look_at_own)
            watcher.begin()
            stack.callback(watcher.end)
            yield

    @property
    def functions(self) -> dict[Any, dict[str, Any]]:
        """What replaces which functions of which modules."""
        made = {"Lock": make_lock, "RLock": make_recursive}
        return {threading: made, queue: {"SimpleQueue": SlicedQueue}}

    def applies(self) -> bool:
        """Whether a wait of the running thread is sliced."""
        if not self.is_open or not self._threads.includes_this():
            return False
        return not (self._leaves and self._threads.is_own)

    def leave(self) -> None:
        """The step has run: its own thread waits for the others as it asks for it."""
        self._leaves = True

    def stop(self, thread: threading.Thread) -> None:
        """Ends the thread where it waits."""
        self._stopped.add(thread.ident or 0)

    def free(self, threads: list[threading.Thread]) -> None:
        """Unlocks the locks from before at which these threads are left, which then end.

        Not where another thread of the program may have one.
        """
        for lock in self.known:
            for _ in threads:
                waiting = [one for one in threads if self._is_at_lock(one)]
                if not waiting or not lock.locked() or self._are_others(waiting):
                    break
                lock.release()
                JOIN(waiting[0], SLICE)

    def _is_at_lock(self, thread: threading.Thread) -> bool:
        frame = list_thread_frames().get(thread.ident or 0)
        wait = None if frame is None or not IS_ALIVE(thread) else find_wait(frame)
        return wait is not None and wait.kind == LOCK

    def _are_others(self, threads: list[threading.Thread]) -> bool:
        numbers = [one.ident or 0 for one in threads]
        return are_others([self._threads.own, *self._threads.list_others(), *numbers])

    def wait(
        self,
        attempt: Callable[[float], bool],
        timeout: float | None,
        held: Wait | None = None,
    ) -> bool:
        """Whether the attempt succeeds in this time, in seconds; it takes how long it may last.

        ``held`` is a wait for a lock from before, which another thread may release.
        Raises StalledStepError in the step's own thread if nothing of the step goes on, and
        StoppedThread in another one that is to end.
        """
        number, until = threading.get_ident(), NOW() + (timeout or 0.0)
        self._waiting[number] = timeout
        if held is not None:
            self._held[number] = held
        if self._threads.is_own:
            self._since = NOW()
        try:
            while True:
                self._end(number)
                left = FOREVER if timeout is None else max(0.0, until - NOW())
                if not self.is_open:
                    return attempt(left)
                if attempt(SLICE if timeout is None else min(SLICE, left)):
                    self._passed += 1
                    return True
                if timeout is not None and NOW() >= until:
                    return False
                if timeout is None and self._threads.is_own:
                    self._judge()
        finally:
            self._waiting.pop(number, None)
            self._held.pop(number, None)

    def join(self, thread: threading.Thread, timeout: float | None) -> None:
        """``Thread.join``."""

        def attempt(seconds: float) -> bool:
            JOIN(thread, None if seconds == FOREVER else seconds)
            return not IS_ALIVE(thread)

        if IS_ALIVE(thread) and thread is not threading.current_thread() and self.applies():
            self.wait(attempt, timeout)
        else:
            JOIN(thread, timeout)

    def _end(self, number: int) -> None:
        if number in self._stopped:
            raise StoppedThread
        if self._stalled is not None and self.is_open:
            raise self._stalled if self._threads.is_own else StoppedThread

    def _judge(self) -> None:
        player = self._threads.player
        if player is not None:
            player.raise_failure()
        if self._has_stalled(self._held.get(threading.get_ident())):
            frames = find_user_frames()
            where = frames[0].where if frames else ""
            self._met = self._met or find_own_wait(where)
            raise self._refuse(where)

    def _look_at_own(self, frame: FrameType | None) -> BaseException | None:
        """What ends the wait of the step's own thread in C, which another thread looks at."""
        number = self._threads.own
        wait = None if frame is None or number in self._waiting else find_wait(frame)
        if wait is None:
            self._since = self._since if number in self._waiting else NOW()
            return None
        if not self._has_stalled(wait):
            return None
        self._since = NOW()  # what it does at its end may wait, too
        return self._refuse(wait.where)

    def _refuse(self, where: str) -> StalledStepError:
        kind, place = ("", "") if self._met is None else (self._met.kind, self._met.where)
        self._stalled = StalledStepError(where, kind, place)
        return self._stalled

    def _has_stalled(self, own: Wait | None) -> bool:
        """Whether nothing of the step has gone on for too long; ``own`` is its own wait in C."""
        player = self._threads.player
        seen = (self._passed, 0 if player is None else player.count_all())
        if seen != self._seen:
            self._seen, self._since = seen, NOW()
        if NOW() - self._since < CALM:  # who looks at a frame keeps what is in it
            return False
        self._met = own
        works, reads = self._look()
        reads = reads or (own is not None and own.reads) or self._may_be_released()
        self._busy = self._busy + 1 if works else 0
        if self._busy >= BUSY:
            self._since = NOW()
        return NOW() - self._since > (LONGEST_READING if reads else LONGEST)

    def _may_be_released(self) -> bool:
        """Whether another thread may release the lock from before at which the step waits."""
        if self._met is None or self._met.kind != LOCK:
            return False
        return self._are_others([])

    def _look(self) -> tuple[bool, bool]:
        """Whether another thread of the step goes on, and whether one may be reading."""
        frames = list_thread_frames()
        works = reads = False
        for number in self._threads.list_others():
            frame, timeout = frames.get(number), self._waiting.get(number)
            if number in self._waiting:
                self._met = self._met or self._held.get(number)
                works = works or (timeout is not None and timeout >= LONGEST)
            elif frame is None or not (_sleeps(frame) or self._is_idle(number)):
                place = None if frame is None else (find_number(frame), frame.f_lasti)
                moved = self._places.get(number) != place
                self._places[number] = place
                wait = None if moved or frame is None else find_wait(frame)
                self._met = self._met or wait
                reads = reads or wait is None or wait.reads
                works = works or moved
        return works, reads


def _sleeps(frame: FrameType) -> bool:
    return frame.f_code.co_filename == clock.__file__


class _LockKind(type):
    """The type of what has the place of Python's lock: Python's own lock is one, too."""

    def __instancecheck__(cls, one: Any) -> bool:
        return isinstance(one, PLAIN)


class SlicedLock(metaclass=_LockKind):
    """Python's lock, at which the step's threads wait in slices."""

    __slots__ = ("__weakref__", "_lock")

    def __init__(self) -> None:
        self._lock = MAKE_LOCK()

    def acquire(self, blocking: bool = True, timeout: float = FOREVER) -> bool:
        """Locks it; False if it stays locked for this time, in seconds."""
        lock = self._lock
        if not blocking or (timeout < 0 and timeout != FOREVER):
            return lock.acquire(blocking, timeout)
        if lock.acquire(blocking=False):
            return True
        if not WAITS.applies():
            return lock.acquire(timeout=timeout)
        return WAITS.wait(
            lambda seconds: lock.acquire(timeout=seconds), None if timeout == FOREVER else timeout
        )

    def release(self) -> None:
        """Unlocks it."""
        self._lock.release()

    def locked(self) -> bool:
        """Whether it is locked."""
        return self._lock.locked()

    def _at_fork_reinit(self) -> None:
        self._lock = MAKE_LOCK()

    @property  # type: ignore[misc]
    def __class__(self) -> Any:
        return PLAIN

    def __enter__(self) -> bool:
        return self.acquire()

    def __exit__(self, *error: object) -> None:
        self.release()


class SlicedQueue(queue.SimpleQueue):  # type: ignore[type-arg]
    """Python's queue in C, at which the step's threads wait in slices."""

    def get(self, block: bool = True, timeout: float | None = None) -> Any:
        """Takes an item; raises ``queue.Empty`` if there is none for this time, in seconds."""
        if not block or (timeout is not None and timeout < 0) or not WAITS.applies():
            return super().get(block, timeout)
        found: list[Any] = []
        take = super().get

        def attempt(seconds: float) -> bool:
            with contextlib.suppress(queue.Empty):
                found.append(take(timeout=None if seconds == FOREVER else seconds))
            return bool(found)

        if WAITS.wait(attempt, timeout):
            return found.pop()
        raise queue.Empty


def make_lock() -> Any:
    """``threading.Lock``, whose locks of the step's are sliced."""
    return SlicedLock() if WAITS.applies() else MAKE_LOCK()


def make_recursive(*given: Any, **named: Any) -> Any:
    """``threading.RLock``, whose locks of the step's are sliced."""
    # Python's own in Python, which is made of a plain lock.
    kind: Any = threading._RLock  # type: ignore[attr-defined]
    return kind() if WAITS.applies() else MAKE_RECURSIVE(*given, **named)


WAITS = StepWaits()

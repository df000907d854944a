"""Events, semaphores and locks that were made before a simulated step: others see no change.

What the step sets or acquires counts for the step alone, so no thread and no process from before
wakes up for numbers that are not real. What another one would have to do for the step, which does
not hear of it, is waited for a moment and then refused.
"""

from __future__ import annotations

import contextlib
import functools
import sys
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

from labkit.memory.estimate.cuda import MadeReplacements, Replacement
from labkit.memory.estimate.guard import StepThreads, is_idle
from labkit.memory.estimate.held import LiveIteratorError
from labkit.memory.estimate.left import LEFT, is_recursive
from labkit.memory.estimate.stalls import find_held_wait
from labkit.memory.estimate.waits import FOREVER, WAITS
from labkit.memory.track.frames import (
    OWN,
    Frame,
    find_user_frames,
    judge_file,
    list_thread_frames,
)

FIX = "let the step make it, or leave the waiting out of the step"
CAUSE = "what the step sets, releases or puts is not seen by others, who may wait for it"
STARTS = "a thread starts only once, and the real step is to start it"
SIGNALED = "what the step signals by a {} that was made before is dropped"
MADE = "labkit_made"
# How long the step waits for what another thread may do, and how often it looks.
LONGEST, PAUSE = 2.0, 0.01
NOW, SLEEP, MAKE_LOCK = time.monotonic, time.sleep, threading.Lock


class HeldLocks:
    """What the step has done to events and semaphores from before; ``open`` has it count."""

    def __init__(self) -> None:
        self._threads = StepThreads()
        self._note: Callable[[str], object] = lambda words: None
        modules = ("multiprocessing.synchronize", "asyncio.locks")
        self._made = MadeReplacements(self._list_methods, modules)
        # By the object's id: it, and whether the step has set it, or how much it has released.
        self._flags: dict[int, tuple[Any, bool]] = {}
        self._counts: dict[int, tuple[Any, int]] = {}
        # Of each count what it was when the last call began, and how much of what the calls before
        # have acquired still counts; and where the step has acquired last.
        self._before: dict[int, int] = {}
        self._left: dict[int, int] = {}
        self._lines: dict[int, Frame | None] = {}

    @contextlib.contextmanager
    def open(self, threads: StepThreads, note: Callable[[str], object]) -> Iterator[None]:
        """Replaces the methods of Python's classes, until exit; ``note`` takes a sentence."""
        self._threads, self._note = threads, note
        with contextlib.ExitStack() as stack:
            for kind, names in self._made.find():
                stack.enter_context(Replacement(kind, names))
            stack.enter_context(WAITS.open(threads, is_idle))
            for one in (self._flags, self._counts, self._before, self._left, self._lines):
                stack.callback(one.clear)
            yield

    def hold_lock(self, one: Any) -> StepLock:
        """What has the place of a lock of C's until the step has run."""
        return StepLock(one, self._threads)

    def begin_step(self) -> None:
        """Keeps in mind what the calls before have acquired and not released."""
        if self._threads.list_others():  # they may release what they have acquired
            for number, (one, count) in list(self._counts.items()):
                self._counts[number] = one, max(0, count)
        counts = {number: count for number, (_, count) in self._counts.items()}
        self._before, self._left = counts, {one: -count for one, count in counts.items()}
        LEFT.begin_step()

    def end_steps(self) -> None:
        """Finds what the last call has left acquired."""
        LEFT.compare()
        for number, (one, count) in self._counts.items():
            line = self._lines.get(number)
            if is_recursive(one) and count < 0:
                LEFT.add_blocking(one, line)
            elif number in self._before and count < min(0, self._before[number]):
                LEFT.add_falling(one, f" at {line.where}" if line else "")

    def _list_methods(self) -> Iterator[tuple[Any, dict[str, Any]]]:
        shared: Any = sys.modules.get("multiprocessing.synchronize")
        for module in filter(None, (threading, shared)):
            kind = module.Event
            names = {"set": self._wrap_set(kind, value=True), "is_set": self._wrap_is_set(kind)}
            names |= {"clear": self._wrap_set(kind, value=False), "wait": self._wrap_wait(kind)}
            yield kind, names | {"__init__": self._mark(kind)}
            kind = module.Condition
            names = {one: self._wrap_signal(kind, one) for one in ("notify", "notify_all")}
            names |= {one: self._wrap_await(kind, one) for one in ("wait", "wait_for")}
            names["__enter__"] = self._wrap_enter(kind.__enter__)
            yield kind, names | {"__init__": self._mark(kind)}
        kind = threading.Thread
        yield kind, {
            "__init__": self._mark(kind), "join": self._wrap_join(kind.join),
            "start": self._wrap_start(kind.start), "is_alive": self._wrap_alive(kind.is_alive),
        }  # fmt: skip
        yield threading.Timer, {"cancel": self._wrap_signal(threading.Timer, "cancel")}
        kind = threading.Semaphore
        acquire = self._wrap_acquire(kind.acquire)
        yield kind, {
            "__init__": self._mark(kind), "acquire": acquire, "__enter__": acquire,
            "release": self._wrap_release(kind.release), "__exit__": _leave,
        }  # fmt: skip
        loops: Any = sys.modules.get("asyncio.locks")
        if shared is not None:
            yield shared.SemLock, {"__init__": self._mark(shared.SemLock)}
        if loops is not None:
            yield loops.Semaphore, {"acquire": self._watch(loops.Semaphore.acquire)}
        kind = threading.BoundedSemaphore
        yield kind, {"release": self._wrap_release(kind.release)}
        kind = threading.Barrier
        names = {one: self._wrap_signal(kind, one) for one in ("abort", "reset")}
        yield kind, {**names, "__init__": self._mark(kind), "wait": self._wrap_await(kind, "wait")}

    def _holds(self, one: Any) -> bool:
        """True where code of the step calls, and not Python for itself, and not for its own."""
        if hasattr(one, MADE) or not self._threads.includes_this():
            return False
        return judge_file(_name_caller()) != OWN

    def _mark(self, kind: Any) -> Callable[..., None]:
        begin = kind.__init__

        @functools.wraps(begin)
        def answer(one: Any, *arguments: Any, **named: Any) -> None:
            begin(one, *arguments, **named)
            if self._threads.includes_this():
                setattr(one, MADE, True)
                if hasattr(one, "_semlock"):
                    LEFT.watch_made(one)

        return answer

    def _wait(self, test: Callable[[], bool], timeout: float | None) -> bool:
        """Whether this comes true within a moment."""
        until = NOW() + (LONGEST if timeout is None else min(timeout, LONGEST))
        while not test():
            if NOW() >= until or threading.active_count() < 2:
                return False
            SLEEP(PAUSE)
        return True

    def _is_set(self, one: Any, ask: Callable[[Any], bool]) -> bool:
        return self._flags[id(one)][1] if id(one) in self._flags else bool(ask(one))

    def _wrap_set(self, kind: Any, *, value: bool) -> Callable[[Any], None]:
        act = kind.set if value else kind.clear

        @functools.wraps(act)
        def answer(one: Any) -> None:
            if self._holds(one):
                self._flags[id(one)] = one, value
            else:
                act(one)

        return answer

    def _wrap_is_set(self, kind: Any) -> Callable[[Any], bool]:
        ask = kind.is_set

        @functools.wraps(ask)
        def answer(one: Any) -> bool:
            return self._is_set(one, ask) if self._holds(one) else ask(one)

        return answer

    def _wrap_wait(self, kind: Any) -> Callable[..., bool]:
        ask, wait = kind.is_set, kind.wait

        @functools.wraps(wait)
        def answer(one: Any, timeout: float | None = None) -> bool:
            if not self._holds(one):
                return bool(wait(one, timeout))
            found = self._wait(lambda: self._is_set(one, ask), timeout)
            return found or self._give_up(one, timeout)

        return answer

    def _give_up(self, one: Any, timeout: float | None) -> bool:
        if timeout is None and self._threads.is_own:
            name = type(one).__name__
            article = "an" if name[0] in "AEIOU" else "a"
            raise LiveIteratorError(f"{article} {name}", FIX, "waits for", CAUSE)
        return False

    def _wrap_alive(self, ask: Callable[[Any], bool]) -> Callable[[Any], bool]:
        @functools.wraps(ask)
        def answer(one: Any) -> bool:
            found = ask(one)
            if not found:
                self._threads.observe(one)
            return found

        return answer

    def _wrap_join(self, join: Callable[..., None]) -> Callable[..., None]:
        is_alive = threading.Thread.is_alive

        @functools.wraps(join)
        def answer(one: Any, timeout: float | None = None) -> None:
            # Python joins for the step, too: a listener of logging's, as it stops.
            is_held = not hasattr(one, MADE) and self._threads.includes_this()
            if timeout is not None or not is_held:
                WAITS.join(one, timeout)
            else:
                join(one, LONGEST)
                if one.is_alive():
                    self._give_up(one, None)
            if not is_alive(one):
                self._threads.observe(one)

        return answer

    def _wrap_start(self, start: Callable[[Any], None]) -> Callable[[Any], None]:
        is_alive = threading.Thread.is_alive

        @functools.wraps(start)
        def answer(one: Any) -> None:
            if self._holds(one) and one.ident is None and self._threads.is_own:
                raise LiveIteratorError(f"a {type(one).__name__}", FIX, "starts", STARTS)
            start(one)
            self._threads.settle(one, lambda: not is_alive(one))

        return answer

    def _wrap_signal(self, kind: Any, name: str) -> Callable[..., None]:
        act = getattr(kind, name)

        @functools.wraps(act)
        def answer(one: Any, *given: Any, **named: Any) -> None:
            if self._holds(one):
                self._note(SIGNALED.format(type(one).__name__))
            else:
                act(one, *given, **named)

        return answer

    def _wrap_await(self, kind: Any, name: str) -> Callable[..., Any]:
        wait = getattr(kind, name)

        @functools.wraps(wait)
        def answer(one: Any, *given: Any, timeout: float | None = None) -> Any:
            alone = getattr(one, "parties", 0) == 1
            if alone or not self._holds(one):
                return wait(one, *given, **({} if timeout is None else {"timeout": timeout}))
            test = given[0] if name == "wait_for" else None
            limit = given[-1] if len(given) > (test is not None) else timeout
            return bool(test and test()) or self._give_up(one, limit)

        return answer

    def _wrap_enter(self, enter: Callable[[Any], bool]) -> Callable[[Any], bool]:
        @functools.wraps(enter)
        def answer(one: Any) -> bool:
            if self._holds(one):
                LEFT.note_line(one._lock, _find_line())
            return enter(one)

        return answer

    def hold_condition(self, one: Any) -> None:
        """Has a condition be named for its lock, by the line that acquires it."""
        acquire = one.acquire
        LEFT.add_owner(one._lock, one)

        def note_line(*given: Any, **named: Any) -> bool:
            if self._threads.includes_this():
                LEFT.note_line(one._lock, _find_line())
            return bool(acquire(*given, **named))

        if isinstance(one._lock, RECURSIVE):  # of another one, what has its place sees the line
            one.acquire = note_line

    def _wrap_acquire(self, acquire: Callable[..., bool]) -> Callable[..., bool]:
        @functools.wraps(acquire)
        def answer(one: Any, blocking: bool = True, timeout: float | None = None) -> bool:
            if self._holds(one):
                return self._take(one, lambda: one._value, blocking=blocking, timeout=timeout)
            taken = acquire(one, blocking, timeout)
            if taken and self._threads.is_own and judge_file(_name_caller()) != OWN:
                LEFT.watch(one)
            return taken

        return answer

    def _watch(self, acquire: Callable[[Any], Any]) -> Callable[[Any], Any]:
        @functools.wraps(acquire)
        def answer(one: Any) -> Any:
            if self._threads.is_own and not one.locked():
                LEFT.watch(one)
            return acquire(one)

        return answer

    def _take(
        self, one: Any, count: Callable[[], int], *, blocking: bool, timeout: float | None
    ) -> bool:
        """Acquires a semaphore for the step alone, if it can be; ``count`` has what is free."""
        left = self._left.get(id(one), 0)
        if left > 0 and blocking and timeout is None and count() + self._find_count(one) < 1:
            # It would wait for its own call before: the simulation goes on with what that has left.
            LEFT.add_waiting(one, self._lines.get(id(one)))
            self._counts[id(one)] = one, self._find_count(one) + left
            self._left[id(one)] = self._before[id(one)] = 0
        if not self._wait(lambda: count() + self._find_count(one) > 0, timeout if blocking else 0):
            return self._give_up(one, timeout if blocking else 0)
        self._counts[id(one)] = one, self._find_count(one) - 1
        self._lines[id(one)] = _find_line()
        return True

    def _find_count(self, one: Any) -> int:
        return self._counts.get(id(one), (one, 0))[1]

    def _wrap_release(self, release: Callable[..., None]) -> Callable[..., None]:
        @functools.wraps(release)
        def answer(one: Any, n: int = 1) -> None:
            if not self._holds(one):
                release(one, n)
                return
            count = self._find_count(one) + n
            self._left[id(one)] = max(0, self._left.get(id(one), 0) - n)
            if one._value + count > getattr(one, "_initial_value", sys.maxsize):
                raise ValueError("Semaphore released too many times")
            self._counts[id(one)] = one, count

        return answer

    def hold(self, one: Any) -> Iterator[tuple[str, Any]]:
        """What replaces the methods of a lock or a semaphore of multiprocessing."""
        lock, real = one._semlock, (one.acquire, one.release)

        def count() -> int:
            if is_recursive(one) and (lock._is_mine() or self._find_count(one) < 0):
                return sys.maxsize  # one that its owner can acquire again
            with contextlib.suppress(NotImplementedError):  # on macOS
                return int(lock._get_value())
            return int(not lock._is_zero())

        def acquire(block: bool = True, timeout: float | None = None) -> bool:
            if not self._threads.includes_this():
                return bool(real[0](block, timeout))
            return self._take(one, count, blocking=block, timeout=timeout)

        def release() -> None:
            if not self._threads.includes_this():
                real[1]()
            else:
                self._counts[id(one)] = one, self._find_count(one) + 1
                self._left[id(one)] = max(0, self._left.get(id(one), 0) - 1)

        yield "acquire", acquire
        yield "release", release


def _name_caller() -> str:
    """The file of what calls the function that calls this one's caller, or that caller's."""
    frame = sys._getframe(2)
    while frame.f_back is not None and frame.f_code.co_filename == __file__:
        frame = frame.f_back
    return frame.f_code.co_filename


def _find_line() -> Frame | None:
    """The line of the program that runs."""
    frames = find_user_frames()
    return frames[0] if frames else None


def _leave(one: Any, *error: object) -> None:
    """``Semaphore.__exit__``, for whose caller ``release`` is called."""
    one.release()


class StepLock:
    """A lock from before, in its place while a step is simulated.

    For other threads it is the lock. The step acquires it for real, so that nothing that the lock
    guards changes meanwhile, and gives it back at its end. What the step releases and has not
    acquired stays locked: that counts for the step alone. So what others do to it is left as it is.
    A call of the step that would wait for what the call before has acquired does not wait.
    """

    __slots__ = (
        "__weakref__", "_ended", "_guard", "_left", "_line", "_owed", "_own", "_taken", "_taker",
        "_threads", "real",
    )  # fmt: skip

    def __init__(self, real: Any, threads: StepThreads) -> None:
        self.real, self._threads, self._guard = real, threads, MAKE_LOCK()
        self._taken = False
        # Whether the call before has left it acquired, and where it was acquired last.
        self._left, self._taker = False, 0
        self._line: Frame | None = None
        # Whether the step has run, and how often what it has acquired was given back for it: a
        # generator that stays within a ``with`` releases it as it is closed.
        self._ended, self._owed = False, 0
        # Whether it is locked for the step, once the step has released what it had not acquired.
        self._own: bool | None = None

    def acquire(self, blocking: bool = True, timeout: float = FOREVER) -> bool:
        """Locks it; False if it stays locked for this time, in seconds."""
        if not self._threads.includes_this():
            return bool(self.real.acquire(blocking, timeout))
        if not blocking or (timeout < 0 and timeout != FOREVER):
            return self._take(blocking, timeout)
        if self._take(blocking=False):
            return True
        if self._left and timeout == FOREVER:
            LEFT.add_waiting(self.real, self._line)
            self._left, self._line = False, _find_line()
            self._owed += 1
            return True
        if not WAITS.applies():
            return self._take(blocking, timeout)
        limit = None if timeout == FOREVER else timeout
        return WAITS.wait(lambda seconds: self._take(True, seconds), limit, find_held_wait())

    def _take(self, blocking: bool, timeout: float = FOREVER) -> bool:
        with self._guard:
            own = self._own
            if own is not None:
                self._own = True
        if own is not None:
            SLEEP(PAUSE if own and blocking else 0)
            return not own
        taken = bool(self.real.acquire(blocking, timeout))
        if taken:
            self._taken, self._left, self._line = True, False, _find_line()
            self._taker = threading.get_ident()
        return taken

    def release(self) -> None:
        """Unlocks it."""
        if self._threads.includes_this():
            with self._guard:
                if self._own is None and not self._taken and self.real.locked():
                    self._own = True
                if self._own is not None:
                    if not self._own:
                        raise RuntimeError("release unlocked lock")
                    self._own = False
                    return
        if self._owed and (self._ended or not self.real.locked()):
            self._owed -= 1
            return
        self._taken = False
        self.real.release()

    def locked(self) -> bool:
        """Whether it is locked."""
        counts = self._own is not None and self._threads.includes_this()
        return bool(self._own if counts else self.real.locked())

    def leave(self) -> None:
        """A call of the step has ended: it may have left the lock acquired.

        A thread of the step that still runs may release it.
        """
        ended = self._taker == self._threads.own or self._taker not in list_thread_frames()
        self._left, self._own = self._taken and ended and self.real.locked(), None

    def settle(self) -> None:
        """The step has run: gives back what it has acquired."""
        taken, self._taken, self._left, self._own = self._taken, False, False, None
        self._ended = True
        if taken and self.real.locked():
            self._owed += 1
            self.real.release()

    def __enter__(self) -> bool:
        return self.acquire()

    def __exit__(self, *error: object) -> None:
        self.release()

    # Else a place that keeps it longer than the simulation would not know it by the lock.
    def __eq__(self, other: object) -> bool:
        return self.real is getattr(other, "real", other)

    def __hash__(self) -> int:
        return hash(self.real)

    def __repr__(self) -> str:
        return repr(self.real)

    # A lock can be neither copied nor pickled.
    def __reduce_ex__(self, protocol: Any) -> Any:
        return self.real.__reduce_ex__(protocol)

    @property  # type: ignore[misc]
    def __class__(self) -> Any:
        return type(self.real)

    def __getattr__(self, name: str) -> Any:
        return getattr(self.real, name)


# There is one estimate at a time.
LOCKS = HeldLocks()
LOCK, RECURSIVE = type(threading.Lock()), type(threading.RLock())


def keep_lock(kept: Any, one: Any) -> None:
    """Keeps whether a lock is locked, of one that its owner can acquire again how often."""
    kept.locks_before.append((one, one.locked()))
    WAITS.known.append(one)


def keep_recursive(kept: Any, one: Any) -> None:
    """The same for a lock that its owner can acquire again."""
    kept.keep(restore_recursive, one, _count(one))
    kept.recursive_before.append((one, _count(one)))


def _count(one: Any) -> int:
    """How often this thread has acquired it."""
    if not one._is_owned():
        return 0
    state = one._release_save()
    one._acquire_restore(state)
    return int(state[0])


def restore_lock(one: Any, locked: bool, *, alone: bool, known: bool) -> None:
    """Locks or unlocks a changed lock if the step must have done it: if no other thread lives.

    ``known`` is for a lock of which each change of the step's is seen (``StepLock``): what is left
    is another thread's. Raises RuntimeError where it may be either's.
    """
    if alone and locked:
        one.acquire(blocking=False)
    elif alone:
        one.release()
    elif not known and (locked or not one.acquire(timeout=0.1)):
        raise RuntimeError("another thread may have done this")
    elif not known:  # another thread had it for a moment
        one.release()


def restore_recursive(one: Any, count: int) -> None:
    """Has this thread acquire the lock as often as before."""
    now = _count(one)
    if now > count:
        LEFT.add_blocking(one)
    for _ in range(now - count):
        one.release()
    acquire_again(one, count)


def acquire_again(one: Any, count: int) -> None:
    """Has this thread acquire a lock so often that it has done so this often."""
    for _ in range(count - _count(one)):
        if not one.acquire(timeout=LONGEST):
            raise RuntimeError("another thread has acquired it")

"""Waits of a simulated step in C: at an RLock from before it, and of an event loop for events.

So are those at a plain lock that has not been replaced (``locks.py``).

C tells nobody that it waits, and Python delivers no exception to it. A thread of labkit's looks now
and then where the step's own thread is. It ends a wait by a signal, whose handler raises.

Python runs handlers in the main thread alone, and macOS does not end the wait for a lock: in other
threads, and there, a step that waits so waits on.
"""

from __future__ import annotations

import _thread
import dis
import re
import signal
import sys
import threading
import weakref
from collections.abc import Callable, Iterable
from pathlib import Path
from types import FrameType
from typing import Any, NamedTuple

from labkit.memory.estimate.signals import FIND_HANDLER, SET_HANDLER
from labkit.memory.track.frames import (
    USER,
    Frame,
    find_user_frames,
    is_user_file,
    judge_file,
    list_thread_frames,
)

LOCK, LOOP = "a lock", "an event loop"
# A lock of the step's own, and one of asyncio's.
OWN_LOCK, LOOP_LOCK = "a lock of the step", "a lock of asyncio"
# What a signal's default is to ignore: one that arrives late does nothing.
NUMBER: Any = getattr(signal, "SIGURG", None)
PERIOD = 0.25
SEND: Any = getattr(signal, "pthread_kill", None)
RAISE = signal.raise_signal
START, MAKE_LOCK = _thread.start_new_thread, _thread.allocate_lock
PLAIN = type(MAKE_LOCK())
TAKING = ("acquire", "__enter__")
# The name of labkit's functions in the place of methods.
REPLACED = "answer"
# The semaphores that the step has acquired.
ACQUIRED: weakref.WeakSet[Any] = weakref.WeakSet()
LOADING = ("LOAD_ATTR", "LOAD_METHOD")
# Where a thread of a pool waits for work, which another thread has to give to it.
POOL = re.compile(r"[/\\]concurrent[/\\]futures[/\\]thread\.py$")
LOCKS_FILE = re.compile(r"[/\\]asyncio[/\\]locks\.py$")
# Threads of the notebook's kernel and of labkit, which run none of the program's code.
SERVICES = re.compile(r"[/\\](?:site|dist)-packages[/\\](?:ipykernel|IPython)[/\\]")
FOLDER = f"{Path(__file__).parents[2]}/"


class Wait(NamedTuple):
    """What C waits at, whether that may be a file or the network, and the line."""

    kind: str
    reads: bool
    where: str


def find_wait(frame: FrameType) -> Wait | None:
    """What a frame waits at without a timeout; None if it is not known that it does."""
    running: FrameType | None = frame
    while running is not None and not is_user_file(running.f_code.co_filename):
        running = running.f_back
    place = "" if running is None else _name_place(running)
    caller = frame.f_back
    if caller is not None and caller.f_code.co_name == "_run_once":
        selector = frame.f_locals.get("self")
        if frame.f_code.co_name != "select" or frame.f_locals.get("timeout") not in {None, -1}:
            return None
        if selector is None:
            return None
        held = _find_awaited_lock(caller.f_locals.get("self"))
        # One file is the loop's own, by which it is woken up.
        reads = len(selector.get_map() or ()) > 1
        return Wait(LOOP, reads, place) if held is None else Wait(LOOP_LOCK, reads, held)
    return Wait(LOCK, False, place) if _is_acquiring(frame) else None


def find_held_wait() -> Wait:
    """The wait of the running thread for a lock from before."""
    frames = find_user_frames()
    return Wait(LOCK, False, frames[0].where if frames else "")


def _find_awaited_lock(loop: Any) -> str | None:
    """Where a task of the loop awaits a lock that is acquired; None if none does."""
    for task in sys.modules["asyncio"].all_tasks(loop):
        one, place = task.get_coro(), ""
        while (frame := getattr(one, "cr_frame", None)) is not None:
            file, name = frame.f_code.co_filename, frame.f_code.co_name
            if is_user_file(file):
                place = _name_place(frame)
            elif name == "acquire" and LOCKS_FILE.search(file) and _is_acquired(frame):
                return place
            one = one.cr_await
    return None


def find_own_wait(where: str) -> Wait | None:
    """The wait of the running thread for a lock or a semaphore of the step's; else None."""
    frames = []
    frame = sys._getframe(1)
    while frame.f_back is not None and not is_user_file(frame.f_code.co_filename):
        frames.append(frame)
        frame = frame.f_back
    taking = [one for one in frames if one.f_code.co_name in TAKING]
    begins = next((one for one in reversed(frames) if one.f_code.co_name != REPLACED), None)
    return Wait(OWN_LOCK, False, where) if begins in taking and _is_acquired(begins) else None


def _is_acquired(frame: Any) -> bool:
    """Whether the step has acquired what this frame of an ``acquire`` waits for.

    A semaphore may have had nothing to acquire from the start.
    """
    one = frame.f_locals.get("self")
    return not hasattr(one, "_value") or one in ACQUIRED


def _name_place(frame: FrameType) -> str:
    return Frame(frame.f_code.co_filename, frame.f_lineno, frame.f_code.co_name).where


def _is_acquiring(frame: FrameType) -> bool:
    """Whether the running instruction is ``with lock``, or calls ``acquire`` without a timeout."""
    done = [one for one in dis.get_instructions(frame.f_code) if one.offset <= frame.f_lasti]
    if not done:
        return False
    call = done.pop()
    if call.opname in {"BEFORE_WITH", "SETUP_WITH"}:
        return True
    while done and done[-1].opname in {"PRECALL", "PUSH_NULL"}:
        done.pop()
    if not call.opname.startswith(("CALL", "PRECALL")) or not done:
        return False
    if call.opname == "CALL_FUNCTION_EX":
        # A thread's function. A frame whose variables are looked at keeps them until it ends.
        own = not is_user_file(frame.f_code.co_filename)
        return own and any(map(_is_acquire, frame.f_locals.values()))
    if call.arg == 1 and done[-1].argval is True and len(done) > 1:
        done.pop()
    elif call.arg:
        return False
    # LOAD_SPECIAL: ``with`` since Python 3.14.
    method = done[-1]
    return method.opname == "LOAD_SPECIAL" or (method.opname in LOADING and method.argval in TAKING)


def _is_acquire(value: Any) -> bool:
    found = getattr(value, "_target", value)
    return isinstance(getattr(found, "__self__", None), PLAIN) and found.__name__ in TAKING


def are_others(numbers: Iterable[int]) -> bool:
    """Whether another thread than these lives that may run code of the program.

    So may one that waits in Python's own code, such as a timer's or an event loop's.
    """
    known = set(numbers)
    return any(
        _may_act(frame) for number, frame in list_thread_frames().items() if number not in known
    )


def _may_act(frame: FrameType) -> bool:
    """Whether the thread with this frame may do something that nothing gives to it."""
    files = []
    running: FrameType | None = frame
    while running is not None:
        files.append(running.f_code.co_filename)
        running = running.f_back
    if any(judge_file(one) == USER for one in files):
        return True
    # labkit's functions stand for Python's in all threads: its own threads begin with them.
    begins = next((one for one in reversed(files) if one != threading.__file__), "")
    if begins.startswith(FOLDER) or any(map(SERVICES.search, files)):
        return False
    return not (frame.f_code.co_name == "_worker" and POOL.search(files[0]))


def runs_loop_elsewhere() -> bool:
    """Whether another thread runs an event loop of asyncio's."""
    own = threading.get_ident()
    for number, frame in list_thread_frames().items():
        running: FrameType | None = frame if number != own else None
        while running is not None:
            if running.f_code.co_name == "_run_once" and "asyncio" in running.f_code.co_filename:
                return True
            running = running.f_back
    return False


class Watcher:
    """Looks at the running thread until ``end``; ``look`` takes its frame, and says what to raise.

    The frame is None where it has gone on since the last look: to hold one is to keep what it has.
    """

    def __init__(self, look: Callable[[FrameType | None], BaseException | None]) -> None:
        self._look, self._ends, self._number = look, MAKE_LOCK(), threading.get_ident()
        self._raised: BaseException | None = None
        self._before: Any = None
        self._blocks = self._heard = False
        self._place: tuple[int, int] | None = None

    def begin(self) -> None:
        """Starts the thread that looks, where there is a way to end a wait."""
        is_main = threading.current_thread() is threading.main_thread()
        if SEND is None or not is_main:
            return
        self._before = FIND_HANDLER(NUMBER)
        if self._before is None:  # C's own, which could not be put back
            return
        SET_HANDLER(NUMBER, self._raise)
        self._blocks = NUMBER in signal.pthread_sigmask(signal.SIG_UNBLOCK, {NUMBER})
        self._ends.acquire()
        START(self._watch, ())

    def end(self) -> None:
        """Ends the thread that looks."""
        if self._before is not None:
            self._ends.release()
            if self._blocks:
                signal.pthread_sigmask(signal.SIG_BLOCK, {NUMBER})
            if FIND_HANDLER(NUMBER) == self._raise:
                SET_HANDLER(NUMBER, self._before)
            if self._heard:  # it waits again until the program lets it through
                RAISE(NUMBER)

    def _raise(self, number: int, frame: FrameType | None) -> None:
        raised, self._raised = self._raised, None
        if raised is not None:
            raise raised
        if self._blocks:
            self._heard = True
        elif callable(self._before):
            self._before(number, frame)

    def _watch(self) -> None:
        while not self._ends.acquire(timeout=PERIOD):
            self._raised = self._look(self._find_frame())
            if self._raised is not None:
                SEND(self._number, NUMBER)

    def _find_frame(self) -> FrameType | None:
        frame = list_thread_frames().get(self._number)
        place = None if frame is None else (id(frame), frame.f_lasti)
        before, self._place = self._place, place
        return frame if place == before else None

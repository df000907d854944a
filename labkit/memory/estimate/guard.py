"""Stops a simulated step before it changes what is real: a file outside the layer, or a process.

The layer of files (``overlay.py``) replaces functions by their names. A function that the step
keeps elsewhere, in a list or a closure, is the real one. Python calls its audit hooks
before it makes such a call. A hook cannot be removed: outside of simulations this one returns at
once.
"""

from __future__ import annotations

import _thread
import contextlib
import ctypes
import functools
import inspect
import os
import re
import stat
import sys
import sysconfig
import threading
import time
import weakref
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from concurrent.futures import thread as pools
from multiprocessing import context
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import torch

from labkit.memory.estimate.cuda import MadeReplacements, Replacement, replace_attributes
from labkit.memory.estimate.model import EstimateObstacle
from labkit.memory.estimate.obstacles import StoppedThread
from labkit.memory.estimate.signals import StepSignals
from labkit.memory.estimate.waits import WAITS
from labkit.memory.track.frames import (
    OWN,
    PACKAGE,
    STANDARD_LIBRARY,
    USER,
    find_user_frames,
    judge_file,
    list_thread_frames,
)
from labkit.text import shorten

if TYPE_CHECKING:
    from labkit.memory.estimate.threads import PlayedThreads

WRITING = os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_APPEND
FRAMEWORK, LABKIT, PYTHON = "framework", "labkit", "python"
LABKIT_FOLDER, TORCH_FOLDER = f"{Path(__file__).parents[2]}/", f"{Path(torch.__file__).parent}/"
# The layer's own functions, which stand for the real ones.
LAYER = tuple(
    str(Path(__file__).with_name(name))
    for name in (
        "guard.py",
        "locks.py",
        "loops.py",
        "overlay.py",
        "pipes.py",
        "queues.py",
        "saved.py",
        "signals.py",
        "stalls.py",
        "threads.py",
        "waits.py",
    )
)
# What Python writes for itself: bytecode, and what its processes share.
MACHINERY = re.compile(
    r"^<frozen (?:importlib|zipimport)|[/\\]importlib[/\\]"
    r"|[/\\]multiprocessing[/\\](?:util|connection|heap|resource_\w+|shared_memory|forkserver)\.py$"
)
CHILDREN = re.compile(r"[/\\](?:multiprocessing[/\\]\w+|subprocess)\.py$")
# Where a thread waits for work, and how long what a step has started may go on after it.
WAITING = re.compile(r"[/\\](?:queue|selectors|multiprocessing[/\\](?:pool|connection))\.py$")
LEFT_SECONDS = 0.5
# Python's pools of threads; and the attribute of what the step has given to a thread.
POOLS = re.compile(r"[/\\](?:concurrent[/\\]futures[/\\]thread|multiprocessing[/\\]pool)\.py$")
WORK, IS_DONE = "labkit_work", Future.done
COMPUTES_ON = "goes on after the step: what it computes then is missing; join it in the step"
RUNS_ON = "goes on after the step, and for real: wait for its result in the step"
GOES_ON = "thread {!r}, which the step starts, goes on after it: the simulation stops it"
STAYS = "thread {!r}, which the step starts, goes on after it and cannot be stopped: it stays"
CANCELLED = "a Timer that the step starts ends after it: its function is not simulated"
NOW, JOIN, IS_ALIVE = time.monotonic, threading.Thread.join, threading.Thread.is_alive
SLEEP, PAUSE = time.sleep, 0.002
LOGGING = re.compile(r"[/\\]logging[/\\]\w+\.py$")
# Where torch keeps what it compiles and downloads.
CACHES = re.compile(
    r"[/\\](?:__pycache__|torchinductor_[^/\\]*|torch_extensions|\.triton|\.cache|\.nv)(?:[/\\]|$)"
)
CACHE_VARIABLES = (
    "TORCH_HOME", "TORCHINDUCTOR_CACHE_DIR", "TRITON_CACHE_DIR", "TORCH_EXTENSIONS_DIR",
    "XDG_CACHE_HOME",
)  # fmt: skip
# What starts a thread, in ``threading`` and in ``_thread``; Python 3.11 has no event of it.
STARTERS = ("_start_new_thread", "_start_joinable_thread", "start_new_thread", "start_new")
PROCESSES = {
    "subprocess.Popen", "os.system", "os.exec", "os.posix_spawn", "pty.spawn",
}  # fmt: skip
# What the process cannot undo, or not without rights.
LASTING = (
    "nice", "setpriority", "setuid", "seteuid", "setreuid", "setresuid", "setgid", "setegid",
    "setregid", "setresgid", "setgroups", "initgroups", "setsid", "setpgid", "setpgrp", "chroot",
    "sched_setscheduler", "sched_setparam", "tcsetpgrp",
)  # fmt: skip
SIGNALS = {"os.kill", "os.killpg", "signal.pthread_kill"}
# Programs that only print, unless the shell combines them.
PRINTING = re.compile(
    r"(?:\S*/)?(?:nvidia-smi|uname|hostname|lscpu|lspci|nproc|free|df|du|ls|cat|head|tail|wc|grep"
    r"|which|whoami|id|date|pwd|echo|printenv|ps|true|\w+ --version"
    r"|git (?:rev-parse|describe|status|log|diff|show|ls-files|branch --show-current))\b"
    r"(?:[^;&|<>`$()]|2> ?/dev/null|2>&1)*"
)
# The most frames of packages between a call and the line of the step.
DEPTH = 64
LEAVE_OUT = "leave it out of the step"


class EventPath(NamedTuple):
    """Where an event has a path, and the descriptor that this may be relative to.

    ``follows``: of a link, what it points to is changed. ``makes``: nothing is changed where
    something is there already; else, where nothing is there.
    """

    path: int
    descriptor: int | None = None
    follows: bool = False
    makes: bool = False


EVENTS: dict[str, tuple[EventPath, ...]] = {
    "os.remove": (EventPath(0, 1),),
    "os.rmdir": (EventPath(0, 1),),
    "os.mkdir": (EventPath(0, 2, makes=True),),
    "os.rename": (EventPath(0, 2), EventPath(1, 3)),
    "os.link": (EventPath(0, 2), EventPath(1, 3, makes=True)),
    "os.symlink": (EventPath(1, 2, makes=True),),
    "os.truncate": (EventPath(0, follows=True),),
    "os.chmod": (EventPath(0, 2, follows=True),),
    "os.chown": (EventPath(0, 3, follows=True),),
    "os.utime": (EventPath(0, 3, follows=True),),
    "os.chflags": (EventPath(0, follows=True),),
    "os.setxattr": (EventPath(0, follows=True),),
    "os.removexattr": (EventPath(0, follows=True),),
}
HEARD = {*EVENTS, *PROCESSES, *SIGNALS, "open", "sqlite3.connect", "socket.bind"}


class StepThreads:
    """Which threads work for the step: its own, and those that these start or give work to."""

    def __init__(self) -> None:
        self.own: int | None = threading.get_ident()
        self._process = os.getpid()
        self._started: weakref.WeakSet[threading.Thread] = weakref.WeakSet()
        # Those of them that the program's own code starts, and no package.
        self._users: weakref.WeakSet[threading.Thread] = weakref.WeakSet()
        # How often a thread of a pool now works for the step, and what the step has given to pools.
        self._lent: Counter[int] = Counter()
        self._given: weakref.WeakSet[Any] = weakref.WeakSet()
        # What plays the work of other threads, once there is a simulation.
        self.player: PlayedThreads | None = None
        # The threads before the first one that has no object of Python's.
        self._known: set[int] | None = None
        self._state = threading.local()

    @property
    def is_own(self) -> bool:
        """True in the step's own thread."""
        return threading.get_ident() == self.own and os.getpid() == self._process

    @property
    def works(self) -> bool:
        """True while labkit itself works on files in this thread."""
        return getattr(self._state, "works", False)

    @contextlib.contextmanager
    def work(self) -> Iterator[None]:
        """Lets this thread see the files as they are, for what the layer itself does."""
        before, self._state.works = self.works, True
        try:
            yield
        finally:
            self._state.works = before

    def includes_this(self) -> bool:
        """True where the running thread works for the step."""
        number = threading.get_ident()
        if number == self.own or self._lent[number]:
            return True
        if not self._started and self._known is None:
            return False
        thread = threading._active.get(number)  # type: ignore[attr-defined]
        if thread is None or isinstance(thread, threading._DummyThread):  # type: ignore[attr-defined]
            return self._known is not None and number not in self._known
        return thread in self._started

    def follow(self, start: Callable[..., Any]) -> Callable[..., Any]:
        """A function that starts a thread, which is the step's if one of these calls it."""

        @functools.wraps(start)
        def answer(function: Any, *arguments: Any, **named: Any) -> Any:
            if self.includes_this():
                thread = getattr(function, "__self__", None)
                if getattr(thread, "_target", None) is pools._worker:  # type: ignore[attr-defined]
                    pass  # which works for whoever gives it work
                elif isinstance(thread, threading.Thread):
                    self._started.add(thread)
                    if _find_starter() == USER:
                        self._users.add(thread)
                elif self._known is None:
                    self._known = set(list_thread_frames())
                function = self._play(function, thread)
            return start(function, *arguments, **named)

        return answer

    def _play(self, function: Any, thread: Any) -> Any:
        """The function of a new thread, which is played; a pool's has its work played alone."""
        # Methods of Python's that labkit has replaced are Python's.
        target: Any = getattr(thread, "_target", None)
        code = getattr(inspect.unwrap(target), "__code__", None)
        file = "" if code is None else code.co_filename
        own = file.startswith(LABKIT_FOLDER) and file not in LAYER
        if self.player is None or own:
            return function
        if POOLS.search(file):
            thread._args = self.player.wrap_initializers(thread._args)
            return function
        work = self.player.give()
        if not isinstance(thread, threading.Thread):
            return self.player.wrap_thread(work, function)
        setattr(thread, WORK, work)
        # Python's own function catches what this raises.
        thread.run = self.player.wrap_thread(work, thread.run)  # type: ignore[method-assign]
        return function

    def settle(self, one: Any, is_done: Callable[[], bool]) -> None:
        """Waits until the work of a thread, a future or the like is done or waits."""
        work = getattr(one, WORK, None)
        if work is not None and self.player is not None:
            self.player.settle(work, is_done)

    def observe(self, one: Any) -> None:
        """The step has seen that a thread, a future or the like is done."""
        work = getattr(one, WORK, None)
        if work is not None and self.player is not None:
            self.player.observe(work)

    def observe_pool(self, pool: Any) -> None:
        """The step has waited until all threads of a pool have ended."""
        if self.player is not None:
            self.player.observe_pool(pool)

    def has(self, number: int) -> bool:
        """Whether the step has started the thread with this number, or runs in it."""
        thread = threading._active.get(number)  # type: ignore[attr-defined]
        return number == self.own or thread in self._started

    def list_others(self) -> list[int]:
        """The numbers of the other threads that work for the step now."""
        found = {one.ident for one in self._started if IS_ALIVE(one)}
        found |= {number for number, count in list(self._lent.items()) if count}
        return [one for one in found if one is not None and one != self.own]

    def make_run(self, function: Callable[..., Any], pool: Any) -> tuple[Any, Any]:
        """A function that works for the step in a pool's or a loop's thread, and its work."""
        play, work = self.make_player(pool)
        return play(function), work

    def make_player(self, pool: Any) -> tuple[Callable[[Any], Callable[..., Any]], Any]:
        """What makes functions that do the same piece of work for the step, and the work."""
        work = None if self.player is None else self.player.give(pool)
        return functools.partial(self._wrap, work), work

    def make_successor(self, pool: Any) -> Callable[[Any], Callable[..., Any]]:
        """What makes functions that do a part of what this thread does for the step now."""
        work = None if self.player is None else self.player.find_work()
        return self.make_player(pool)[0] if work is None else functools.partial(self._wrap, work)

    def _wrap(self, work: Any, function: Callable[..., Any]) -> Callable[..., Any]:
        run = functools.partial(self.run, function)
        return run if self.player is None else self.player.wrap(work, run)

    def lend(self, submit: Callable[..., Any]) -> Callable[..., Any]:
        """``ThreadPoolExecutor.submit``, which knows the step's work in threads that were there."""

        @functools.wraps(submit)
        def answer(pool: Any, function: Any, /, *arguments: Any, **named: Any) -> Any:
            if not self.includes_this():
                return submit(pool, function, *arguments, **named)
            run, work = self.make_run(function, pool)
            made = submit(pool, run, *arguments, **named)
            self.keep_given(made, work)
            return made

        return answer

    def keep_given(self, made: Any, work: Any) -> None:
        """Keeps the result of what the step has given to a thread from before, and its work."""
        self._given.add(made)
        setattr(made, WORK, work)
        self.settle(made, functools.partial(is_done, made))

    def run(self, function: Any, /, *arguments: Any, **named: Any) -> Any:
        """The function's result, with which the running thread works for the step."""
        number = threading.get_ident()
        self._lent[number] += 1
        try:
            return function(*arguments, **named)
        finally:
            self._lent[number] -= 1

    def leave(self, note: Callable[[str], object], refuse: Callable[[Any], object]) -> None:
        """The step has run: waits a moment for what it has started, and stops what goes on.

        A thread that waits for work is released, as the next work may be a real step's. ``note``
        takes a sentence; ``refuse`` the obstacle that a thread which has computed goes on.
        """
        WAITS.leave()
        if self._started or self._given:
            self._cancel_timers(note)
            self._wait()
        left = [one for one in self._started if IS_ALIVE(one)]
        quiet = [one for one in left if is_idle(one.ident or 0)]
        for thread in left:
            work = getattr(thread, WORK, None)
            if work is not None and work.own and thread not in quiet:
                refuse(EstimateObstacle(f"thread {thread.name!r}", COMPUTES_ON, work.frame))
            WAITS.stop(thread)
            _stop_thread(thread)
        # A thread of a pool from before is not ended: what it does for the step cannot be stopped.
        for work in (getattr(one, WORK, None) for one in self._given if not is_done(one)):
            refuse(
                EstimateObstacle("the work of a thread from before", RUNS_ON, work and work.frame)
            )
        WAITS.free(left)
        deadline = NOW() + LEFT_SECONDS
        for thread in left:
            JOIN(thread, max(0.0, deadline - NOW()))
            work = getattr(thread, WORK, None)
            if IS_ALIVE(thread):
                note(STAYS.format(thread.name))
            elif thread not in quiet and not (work is not None and work.own):
                note(GOES_ON.format(thread.name))
        if self.player is not None:
            self.player.end()

    def _cancel_timers(self, note: Callable[[str], object]) -> None:
        for thread in list(self._started):
            if isinstance(thread, threading.Timer) and IS_ALIVE(thread):
                if not thread.finished.is_set():
                    note(CANCELLED)
                thread.finished.set()

    def _wait(self) -> None:
        deadline = NOW() + LEFT_SECONDS
        for made in list(self._given):
            while not is_done(made) and NOW() < deadline:
                SLEEP(PAUSE)
        for thread in list(self._started):
            calm = 0  # once is by chance, between two pieces of work
            while IS_ALIVE(thread) and calm < 3 and NOW() < deadline:
                JOIN(thread, 0.005)
                calm = calm + 1 if is_idle(thread.ident or 0) else 0
            if calm == 3 and not self._ends_waiting(thread):
                self._started.discard(thread)

    def _ends_waiting(self, thread: threading.Thread) -> bool:
        """True for a thread of the program's code that waits at a queue of the step's own."""
        frame = _find_waiting(thread.ident or 0)
        made = frame is not None and hasattr(frame.f_locals.get("self"), "labkit_made")
        return made and thread in self._users

    def end(self) -> None:
        """The simulation has ended."""
        self.own = None

    @property
    def are_over(self) -> bool:
        """True when none of them works any more."""
        works = any(one.is_alive() for one in self._started)
        return self.own is None and not works and all(map(is_done, self._given))


def is_done(one: Any) -> bool:
    """Whether the result of a pool's or a loop's work is there, without the step's looking."""
    return IS_DONE(one) if isinstance(one, Future) else bool(one._event.is_set())


def _stop_thread(thread: threading.Thread) -> None:
    """Ends a thread where it runs Python's code next."""
    number = ctypes.c_ulong(thread.ident or 0)
    ctypes.pythonapi.PyThreadState_SetAsyncExc(number, ctypes.py_object(StoppedThread))


def is_idle(number: int) -> bool:
    """True where the thread waits at a queue, or an event loop for events."""
    return _find_waiting(number) is not None


def _find_waiting(number: int) -> Any:
    """The frame in which a thread waits at a queue, or an event loop for events; else None."""
    frame: Any = list_thread_frames().get(number)
    while frame is not None and frame.f_code.co_filename in {threading.__file__, *LAYER}:
        frame = frame.f_back
    waits = frame is not None and WAITING.search(frame.f_code.co_filename)
    return frame if waits else None


def _find_starter() -> str:
    """Whose code makes the running call, beside Python, torch and labkit."""
    frame: Any = sys._getframe(1)
    while frame is not None and judge_file(frame.f_code.co_filename) == OWN:
        frame = frame.f_back
    return USER if frame is None else judge_file(frame.f_code.co_filename)


class ChangeGuard:
    """Raises SystemExit where the step is about to change something real.

    Not an Exception, which the step may catch and try again; its other threads and its forks get a
    PermissionError. ``obstacle`` is the first such change, whatever has become of the exception.
    """

    def __init__(self, threads: StepThreads) -> None:
        self.obstacle: EstimateObstacle | None = None
        self._threads, self._folder, self._real_folder = threads, "", ""

    @contextlib.contextmanager
    def open(self, folder: str) -> Iterator[None]:
        """Guards what is outside of the layer's folder, until exit."""
        self._folder, self._real_folder = folder, os.path.realpath(folder)
        _add_hook()
        with contextlib.ExitStack() as stack:
            executor = pools.ThreadPoolExecutor
            submit = self._threads.lend(executor.submit)
            stack.enter_context(replace_attributes(executor, submit=submit))
            _ENDINGS.begin(self)
            stack.callback(_ENDINGS.end)
            for owner, names in _ENDINGS.made.find():
                stack.enter_context(Replacement(owner, names))
            for kind in (context.SpawnProcess, context.ForkServerProcess):
                start = staticmethod(functools.partial(self._start_process, kind._Popen))
                stack.enter_context(replace_attributes(kind, _Popen=start))
            for owner in (threading, _thread):
                for name in filter(functools.partial(hasattr, owner), STARTERS):
                    made = self._threads.follow(getattr(owner, name))
                    stack.enter_context(replace_attributes(owner, **{name: made}))
            # What the step has started is guarded as long as it runs.
            _GUARDS[:] = [one for one in _GUARDS if not one._threads.are_over]
            _GUARDS.append(self)
            stack.callback(self._end)
            yield

    def is_step(self) -> bool:
        """Whether the running thread works for the step."""
        return self._threads.includes_this()

    def list_functions(self) -> dict[Any, dict[str, Any]]:
        """What replaces which functions that end or change the process, or send signals."""
        return dict(_ENDINGS.made.find())

    def _end(self) -> None:
        self._threads.end()
        if self._threads.are_over:
            _GUARDS.remove(self)

    def hear(self, event: str, arguments: tuple[Any, ...]) -> None:
        """Judges a call that is about to be made."""
        if self._threads.works or not self._threads.includes_this():
            return
        with self._threads.work():
            if event in PROCESSES:
                self._judge_process(event, arguments)
            elif event in SIGNALS:
                # A process that has been started may be stopped; 0 asks whether there is one.
                if arguments[1] and not CHILDREN.search(_find_inner()):
                    self.stop(event, arguments[0], f"would send a signal: {LEAVE_OUT}")
            elif event == "open":
                self._judge_open(*arguments)
            elif event == "sqlite3.connect":
                self._judge_database(arguments[0])
            elif event == "socket.bind":
                self._judge_socket(arguments[1])
            else:
                for place in EVENTS[event]:
                    self._judge_place(event, arguments, place)

    def _judge_open(self, path: Any, mode: Any, flags: int) -> None:
        if not flags & WRITING or isinstance(path, int):
            return
        makes = bool(flags & os.O_CREAT and flags & os.O_EXCL)
        real = self._locate(path, None, follows=not makes)
        # A directory is what a temporary file's opener is called with; it opens another path.
        if real is None or os.path.isdir(real) or os.path.isdir(self._folder + real):
            return
        creates = flags & os.O_CREAT and not makes
        if creates or self._changes(real, path, makes=makes):
            self._judge_path("open", path, real)

    def _judge_place(self, event: str, arguments: tuple[Any, ...], place: EventPath) -> None:
        path = arguments[place.path]
        base = None if place.descriptor is None else arguments[place.descriptor]
        real = self._locate(path, base, follows=place.follows)
        if real is not None and self._changes(real, path, makes=place.makes):
            self._judge_path(event, path, real)

    def _judge_path(self, event: str, path: Any, real: str) -> None:
        owner, _ = find_caller()
        if owner in {LABKIT, PYTHON} or (owner == FRAMEWORK and is_cache(real)) or _is_odd(real):
            return
        name = "open()" if event == "open" else event
        self.stop(
            event,
            path,
            f"would change a real file: call {name} by that name, with a path alone,"
            f" or {LEAVE_OUT}",
        )

    def _judge_database(self, path: Any) -> None:
        name = os.fsdecode(path)
        if name in {"", ":memory:"} or re.search(r"[?&](?:mode=(?:ro|memory)|immutable=1)", name):
            return
        real = self._locate(name.removeprefix("file:").partition("?")[0], None, follows=True)
        if real is not None and find_caller()[0] not in {LABKIT, PYTHON}:
            self.stop(
                "sqlite3.connect",
                path,
                "can change a real file: connect to file:...?mode=ro with uri=True,"
                f" or {LEAVE_OUT}",
            )

    def _judge_socket(self, address: Any) -> None:
        # One of the machine's own sockets is a file, unless its name begins with a zero.
        if not isinstance(address, str | bytes) or address[:1] in {"", b"", "\0", b"\0"}:
            return
        real = self._locate(address, None, follows=True)
        if real is not None and find_caller()[0] not in {LABKIT, PYTHON}:
            self.stop("socket.bind", address, f"would make a real file: {LEAVE_OUT}")

    def _judge_process(self, event: str, arguments: tuple[Any, ...]) -> None:
        command = arguments[1] if event == "subprocess.Popen" else arguments[0]
        if event == "os.posix_spawn":
            command = arguments[1]
        owner, file = find_caller()
        if isinstance(command, list | tuple):
            shell = len(command) == 3 and command[1] in {"-c", b"-c"}
            command = command[2] if shell else " ".join(map(os.fsdecode, command))
        command = os.fsdecode(command)
        # A package starts what it needs for itself.
        if owner == USER and judge_file(file) != PACKAGE and not PRINTING.fullmatch(command):
            self.stop(event, command, f"would start a real process: {LEAVE_OUT}")

    def _start_process(self, start: Any, process: Any) -> Any:
        """For a process that does not know of the simulation, since it is not a fork."""
        if self._threads.includes_this():
            self.stop("Process.start", process.name, f"would start a real process: {LEAVE_OUT}")
        return start(process)

    def refuse(self, name: str, path: Any) -> None:
        """Stops a function that would write files by itself."""
        self.stop(name, path, f"would write real files: {LEAVE_OUT}")

    def _locate(self, path: Any, base: Any, *, follows: bool) -> str | None:
        """The real path of a file outside of the layer; None for one in it, or without a name."""
        if isinstance(path, int):
            whole = _read_descriptor(path)
        else:
            folder = "" if base in {None, -1} else _read_descriptor(base)
            whole = os.path.join(folder, os.fsdecode(path))
        if follows:
            real = os.path.realpath(whole)
        else:
            real = os.path.join(os.path.realpath(os.path.dirname(whole)), os.path.basename(whole))
        inside = real.startswith((self._real_folder + os.sep, self._folder + os.sep))
        nameless = isinstance(path, int) and (whole.endswith(" (deleted)") or whole[:1] != os.sep)
        return None if inside or nameless else real

    def _changes(self, real: str, path: Any, *, makes: bool) -> bool:
        """False where the call is an error of its own, by what is there or is not."""
        exists = isinstance(path, int) or os.path.lexists(real)
        if makes:
            return not exists
        return exists or os.path.lexists(self._folder + real)  # what the step has made

    def note_stop(self, name: str, path: str) -> None:
        """Keeps the obstacle of what is not run: it would change a database, or an HDF5 file."""
        self._keep_stop(name, path, f"would change a file that was open before: {LEAVE_OUT}")

    def stop(self, event: str, shown: Any, reason: str) -> None:
        """Stops the step at a call, which is not made."""
        made = self._keep_stop(event, shown, reason)
        # A pool waits forever for a worker that has ended.
        raise SystemExit(str(made)) if self._threads.is_own else PermissionError(str(made))

    def _keep_stop(self, event: str, shown: Any, reason: str) -> EstimateObstacle:
        shown = shorten(repr(os.fsdecode(shown) if not isinstance(shown, int) else shown), 80)
        frames = find_user_frames(DEPTH)
        own = (one for one in frames if judge_file(one.file) == USER)
        frame = next(own, frames[0] if frames else None)
        made = EstimateObstacle(f"{event}({shown})", reason, frame)
        self.obstacle = self.obstacle or made
        return made


class EndingFunctions:
    """Python's functions that end the process, change it for good, or send signals."""

    def __init__(self) -> None:
        self.made = MadeReplacements(self._list_functions, ())
        self._guard: ChangeGuard | None = None
        self._process = 0
        self._signals = StepSignals(self._is_step, self._stop_signal)

    def begin(self, guard: ChangeGuard) -> None:
        """The functions belong to this guard's step, and to this process."""
        self._guard, self._process = guard, os.getpid()
        self._signals.begin()

    def end(self) -> None:
        """The step has ended."""
        self._guard = None

    def _is_step(self) -> bool:
        """True in the step, and false in what it has forked."""
        guard = self._guard
        return guard is not None and guard.is_step() and os.getpid() == self._process

    def _list_functions(self) -> Iterator[tuple[Any, dict[str, Any]]]:
        names = {name: self._end_step(getattr(os, name)) for name in ("_exit", "abort")}
        yield os, names | {name: self._refuse(name) for name in LASTING if hasattr(os, name)}
        yield from self._signals.list_functions().items()

    def _end_step(self, end: Callable[..., Any]) -> Callable[..., Any]:
        """``os._exit`` and ``os.abort``, which end the step as ``sys.exit`` does."""

        @functools.wraps(end)
        def answer(*given: Any, **named: Any) -> Any:
            if self._is_step():
                raise SystemExit(*given, *named.values())
            return end(*given, **named)

        return answer

    def _refuse(self, name: str) -> Callable[..., Any]:
        act = getattr(os, name)

        @functools.wraps(act)
        def answer(*given: Any, **named: Any) -> Any:
            if self._is_step() and not (name == "nice" and given == (0,)):  # which only reads
                shown = given[0] if len(given) == 1 else ", ".join(map(repr, given))
                shown = shown if isinstance(shown, int) else str(shown)
                self._stop(f"os.{name}", shown, "would change the real process")
            return act(*given, **named)

        return answer

    def _stop_signal(self, name: str, number: int, why: str) -> None:
        self._stop(name, number, why)

    def _stop(self, name: str, shown: Any, why: str) -> None:
        assert self._guard is not None
        self._guard.stop(name, shown, f"{why}: {LEAVE_OUT}")


def find_caller() -> tuple[str, str]:
    """Whose code makes the running call, beside Python's modules that work for it, and its file.

    USER is the step, or a package. PYTHON is what Python does for itself, and a handler of logging
    that was there before: what it writes is real, as all that it has opened.
    """
    frame: Any = sys._getframe(1)
    while frame is not None:
        file = frame.f_code.co_filename
        owner = _judge_caller(file)
        if owner == PYTHON:
            if MACHINERY.search(file):
                return PYTHON, file
            if frame.f_code.co_name == "emit" and LOGGING.search(file):
                return PYTHON, file
        elif file not in LAYER:
            return owner, file
        frame = frame.f_back
    return USER, ""  # a thread of the step that runs a function of Python's


def _find_inner() -> str:
    """The file whose code makes the running call itself."""
    frame: Any = sys._getframe(1)
    while frame is not None and frame.f_code.co_filename in LAYER:
        frame = frame.f_back
    return frame.f_code.co_filename if frame else ""


@functools.lru_cache(maxsize=4096)
def _judge_caller(file: str) -> str:
    if judge_file(file) != OWN:
        return USER
    if file.startswith(LABKIT_FOLDER):
        return LABKIT
    standard = file.startswith(("<frozen", f"{sysconfig.get_path('stdlib')}/"))
    if file.startswith(TORCH_FOLDER) or not (standard or STANDARD_LIBRARY.search(file)):
        return FRAMEWORK
    return PYTHON


def is_cache(path: str) -> bool:
    """True for a file of torch's own caches."""
    folders = [os.environ.get(name) for name in CACHE_VARIABLES]
    return bool(CACHES.search(path)) or any(one and path.startswith(one) for one in folders)


def _read_descriptor(number: int) -> str:
    try:
        return os.readlink(f"/proc/self/fd/{number}")
    except OSError:
        return ""  # relative to the working directory, as far as is known


def _is_odd(path: str) -> bool:
    """True for a device, a pipe and the like, which is not a file."""
    try:
        mode = os.stat(path).st_mode
    except (OSError, ValueError):
        return path.startswith(("/proc/", "/sys/"))
    return not (stat.S_ISREG(mode) or stat.S_ISDIR(mode)) or path.startswith(("/proc/", "/sys/"))


_GUARDS: list[ChangeGuard] = []
# There is one estimate at a time.
_ENDINGS = EndingFunctions()


def _hear(event: str, arguments: tuple[Any, ...]) -> None:
    if _GUARDS and event in HEARD:
        for guard in tuple(_GUARDS):
            guard.hear(event, arguments)


@functools.cache
def _add_hook() -> None:
    sys.addaudithook(_hear)

"""Queues and pools that were made before a simulated step: it puts nothing in, and takes nothing.

What a step takes from a queue a real step would not get, and a thread that waits at its other end
would work on numbers that are not real. A pool of processes gets no work. One of threads works for
the step, as one of the step's own does.
"""

from __future__ import annotations

import contextlib
import functools
import queue
import sys
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import Future, _base
from multiprocessing import pool
from typing import Any

from labkit.memory.estimate.cuda import MadeReplacements, Replacement, replace_attributes
from labkit.memory.estimate.guard import WORK, StepThreads, is_done
from labkit.memory.estimate.held import (
    HeldQueue,
    HeldThing,
    LiveIteratorError,
    drop_item,
    refuse_taking,
)

MADE = "labkit_made"
FIX_POOL = "let the step compute it itself, or have it computed before and pass the result"
CAUSE = "another process would work on numbers that are not real"
EXECUTORS = (
    "concurrent.futures.process", "loky.process_executor", "joblib.externals.loky.process_executor",
)  # fmt: skip
# The methods of multiprocessing's pools through which all others go.
POOLS = ("ThreadPoolExecutor", "ProcessPoolExecutor")
ASKING = ("result", "exception", "done")
ANSWERING = ("set_result", "set_exception", "cancel", "set_running_or_notify_cancel")
ANSWERS = "who waits for its result would get one that is not real"
FIX_ANSWER = "let the step make it, or answer it after the step"
ENDING = ("close", "terminate", "join")
ENDS = "the real step, and all that use it, are to find it open"
FIX_END = "let the step make it, or end it after the step"
IS_ALIVE = threading.Thread.is_alive
GIVING = ("apply_async", "_map_async", "imap", "imap_unordered")


@contextlib.contextmanager
def hold_queues(
    is_step: Callable[[], bool], is_own: Callable[[], bool], note: Callable[[str], object]
) -> Iterator[None]:
    """Refuses ``get`` and drops ``put`` where ``is_step()``, except of the step's own queues.

    ``get`` is refused in the step's own thread, where ``is_own()``: another one may wait.
    """
    shared: Any = sys.modules.get("multiprocessing.queues")
    kinds: list[Any] = [queue.Queue]
    if shared is not None:
        kinds += [shared.Queue, shared.JoinableQueue, shared.SimpleQueue]
    with contextlib.ExitStack() as stack:
        stack.enter_context(replace_attributes(HeldQueue, note=staticmethod(note)))
        stack.enter_context(replace_attributes(HeldThing, is_step=staticmethod(is_step)))
        HeldQueue.given.clear()
        for kind in kinds:
            names = {
                "__init__": _mark(kind.__init__, is_step),
                "get": _refuse(kind.get, is_own),
                "put": _drop(kind.put, is_step),
            }
            own = {name: one for name, one in names.items() if name in vars(kind)}
            stack.enter_context(replace_attributes(kind, **own))
        yield


class _RunningThreads:
    """The threads of the step that is simulated now; there is one at a time."""

    threads: Any = None

    def __getattr__(self, name: str) -> Any:
        return getattr(self.threads, name)

    def includes_this(self) -> bool:
        """Whether the running thread works for the step."""
        return bool(self.threads.includes_this())


@contextlib.contextmanager
def hold_pools(threads: StepThreads) -> Iterator[None]:
    """Refuses work for pools of processes from before, and the end of any pool, until exit.

    Has the work of threads played, and sees where the step waits for it.
    """
    with contextlib.ExitStack() as stack:
        _running.threads = threads
        for kind, names in _POOLS.find():
            stack.enter_context(Replacement(kind, names))
        yield


def _list_pools(threads: Any) -> Iterator[tuple[Any, dict[str, Any]]]:
    """What replaces which methods of pools, and of what these return."""
    for name in ("concurrent.futures.thread", *EXECUTORS):
        module: Any = sys.modules.get(name)
        for kind in map(vars(module or object).get, POOLS):
            if kind is None:
                continue
            names = {"__init__": _mark(kind.__init__, threads.includes_this)}
            names["shutdown"] = _wrap_end(kind.shutdown, threads)
            if name in EXECUTORS:
                names["submit"] = _wrap_work(kind.submit, threads)
            yield kind, names
    names = {one: _see_done(getattr(Future, one), threads) for one in ASKING}
    names |= {one: _refuse_answer(getattr(Future, one), threads) for one in ANSWERING}
    yield Future, names | {"__init__": _mark(Future.__init__, threads.includes_this)}
    waiting = _base._AcquireFutures
    yield waiting, {"__init__": _see_all(waiting.__init__, threads)}
    yield from _list_methods(pool, threads)


def _list_methods(module: Any, threads: Any) -> Iterator[tuple[Any, dict[str, Any]]]:
    """What replaces which methods of multiprocessing's pools and of their results."""
    kind = module.Pool
    names = {one: _wrap_work(getattr(kind, one), threads) for one in GIVING}
    names |= {one: _wrap_end(getattr(kind, one), threads) for one in ENDING}
    yield kind, names | {"__init__": _mark(kind.__init__, threads.includes_this)}
    kind = module.ApplyResult
    yield kind, {one: _see_done(getattr(kind, one), threads) for one in ("get", "wait", "ready")}


def _refuse_answer(act: Callable[..., Any], threads: Any) -> Callable[..., Any]:
    """A method that answers a future, which may be one from before."""

    @functools.wraps(act)
    def answer(one: Any, *given: Any, **named: Any) -> Any:
        if not hasattr(one, MADE) and threads.includes_this() and not is_done(one):
            raise LiveIteratorError("a Future", FIX_ANSWER, "answers", ANSWERS)
        return act(one, *given, **named)

    return answer


def _see_all(begin: Callable[..., Any], threads: Any) -> Callable[..., Any]:
    """``_AcquireFutures``, by which Python waits for several futures."""

    def answer(one: Any, given: Any) -> None:
        begin(one, given)
        asking = sys._getframe(1)
        # Others go on before all are done.
        waits = asking.f_locals.get("return_when") == _base.ALL_COMPLETED
        for each in one.futures if waits else ():
            if hasattr(each, WORK) and is_done(each):
                threads.observe(each)

    return answer


def _wrap_end(end: Callable[..., Any], threads: Any) -> Callable[..., Any]:
    """A method that ends a pool, or waits for its end."""

    @functools.wraps(end)
    def answer(pool: Any, *arguments: Any, **named: Any) -> Any:
        if not threads.includes_this():
            return end(pool, *arguments, **named)
        if not hasattr(pool, MADE):
            raise LiveIteratorError(f"a {type(pool).__name__}", FIX_END, "ends", ENDS)
        try:
            return end(pool, *arguments, **named)
        finally:
            if not any(map(IS_ALIVE, _list_workers(pool))):
                threads.observe_pool(pool)

    return answer


def _list_workers(pool: Any) -> list[threading.Thread]:
    """The threads of a pool."""
    found = getattr(pool, "_threads", None) or getattr(pool, "_pool", None) or ()
    return [one for one in found if isinstance(one, threading.Thread)]


def _see_done(ask: Callable[..., Any], threads: Any) -> Callable[..., Any]:
    """A method of a result that waits for it, or asks whether it is there."""

    @functools.wraps(ask)
    def answer(one: Any, *arguments: Any, **named: Any) -> Any:
        try:
            return ask(one, *arguments, **named)
        finally:
            if hasattr(one, WORK) and is_done(one):
                threads.observe(one)

    return answer


def _wrap_work(give: Callable[..., Any], threads: Any) -> Callable[..., Any]:
    @functools.wraps(give)
    def answer(one: Any, function: Any, /, *arguments: Any, **named: Any) -> Any:
        is_lent = isinstance(one, pool.ThreadPool)
        if (hasattr(one, MADE) and not is_lent) or not threads.includes_this():
            return give(one, function, *arguments, **named)
        if is_lent:
            run, work = threads.make_run(function, one)
            made = give(one, run, *arguments, **named)
            if hasattr(made, "ready"):
                threads.keep_given(made, work)
            return made
        raise LiveIteratorError(
            f"a {type(one).__name__} of processes", FIX_POOL, "gives work to", CAUSE
        )

    return answer


def _mark(begin: Callable[..., None], is_step: Callable[[], bool]) -> Callable[..., None]:
    @functools.wraps(begin)
    def answer(one: Any, *arguments: Any, **named: Any) -> None:
        begin(one, *arguments, **named)
        if is_step():
            setattr(one, MADE, True)

    return answer


def _refuse(get: Callable[..., Any], is_own: Callable[[], bool]) -> Callable[..., Any]:
    @functools.wraps(get)
    def answer(one: Any, *arguments: Any, **named: Any) -> Any:
        waits = arguments[0] if arguments else named.get("block", True)
        if hasattr(one, MADE) or not is_own() or (one.empty() and not waits):
            return get(one, *arguments, **named)
        refuse_taking(one)

    return answer


def _drop(put: Callable[..., Any], is_step: Callable[[], bool]) -> Callable[..., Any]:
    @functools.wraps(put)
    def answer(one: Any, *arguments: Any, **named: Any) -> Any:
        if hasattr(one, MADE) or not is_step():
            return put(one, *arguments, **named)
        drop_item(one)
        return None

    return answer


_running = _RunningThreads()
_POOLS = MadeReplacements(lambda: _list_pools(_running), EXECUTORS)

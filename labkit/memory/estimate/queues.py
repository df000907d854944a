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
from collections.abc import Callable, Iterator
from typing import Any

from labkit.memory.estimate.cuda import replace_attributes
from labkit.memory.estimate.guard import StepThreads
from labkit.memory.estimate.held import DROPPED, FIX_QUEUE, HeldQueue, LiveIteratorError

MADE = "labkit_made"
FIX_POOL = "let the step compute it itself, or have it computed before and pass the result"
CAUSE = "another process would work on numbers that are not real"
EXECUTORS = (
    "concurrent.futures.process", "loky.process_executor", "joblib.externals.loky.process_executor",
)  # fmt: skip
# The methods of multiprocessing's pools through which all others go.
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
        for kind in kinds:
            names = {
                "__init__": _mark(kind.__init__, is_step),
                "get": _refuse(kind.get, is_own),
                "put": _drop(kind.put, is_step, note),
            }
            own = {name: one for name, one in names.items() if name in vars(kind)}
            stack.enter_context(replace_attributes(kind, **own))
        yield


@contextlib.contextmanager
def hold_pools(threads: StepThreads) -> Iterator[None]:
    """Refuses what a step gives to pools of processes from before, until exit."""
    with contextlib.ExitStack() as stack:
        for name in EXECUTORS:
            kind: Any = getattr(sys.modules.get(name), "ProcessPoolExecutor", None)
            if kind is not None:
                begin = _mark(kind.__init__, threads.includes_this)
                give = _wrap_work(kind.submit, threads, is_lent=False)
                stack.enter_context(replace_attributes(kind, __init__=begin, submit=give))
        module: Any = sys.modules.get("multiprocessing.pool")
        for kind in () if module is None else (module.ThreadPool, module.Pool):
            is_lent = kind is module.ThreadPool
            names = {
                one: _wrap_work(getattr(kind, one), threads, is_lent=is_lent) for one in GIVING
            }
            begin = _mark(kind.__init__, threads.includes_this)
            stack.enter_context(replace_attributes(kind, __init__=begin, **names))
        yield


def _wrap_work(
    give: Callable[..., Any], threads: StepThreads, *, is_lent: bool
) -> Callable[..., Any]:
    @functools.wraps(give)
    def answer(pool: Any, function: Any, /, *arguments: Any, **named: Any) -> Any:
        if hasattr(pool, MADE) or not threads.includes_this():
            return give(pool, function, *arguments, **named)
        if is_lent:
            run = functools.partial(threads.run, function)
            return give(pool, run, *arguments, **named)
        raise LiveIteratorError(
            f"a {type(pool).__name__} of processes", FIX_POOL, "gives work to", CAUSE
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
        raise LiveIteratorError(f"a {type(one).__name__}", FIX_QUEUE)

    return answer


def _drop(
    put: Callable[..., Any], is_step: Callable[[], bool], note: Callable[[str], object]
) -> Callable[..., Any]:
    @functools.wraps(put)
    def answer(one: Any, *arguments: Any, **named: Any) -> Any:
        if hasattr(one, MADE) or not is_step():
            return put(one, *arguments, **named)
        note(DROPPED.format(type(one).__name__))
        return None

    return answer

"""Queues that were made before a simulated step: it takes nothing from one, and puts nothing in.

What a step takes from a queue a real step would not get, and a thread that waits at its other end
would work on numbers that are not real.
"""

from __future__ import annotations

import contextlib
import functools
import queue
import sys
from collections.abc import Callable, Iterator
from typing import Any

from labkit.memory.estimate.cuda import replace_attributes
from labkit.memory.estimate.iterators import LiveIteratorError

FIX = "take the batch before, and pass it: estimate_memory(step, model, batch)"
DROPPED = "what the step puts into a {} that was made before is dropped"
MADE = "labkit_made"


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
        for kind in kinds:
            names = {
                "__init__": _mark(kind.__init__, is_step),
                "get": _refuse(kind.get, is_own),
                "put": _drop(kind.put, is_step, note),
            }
            own = {name: one for name, one in names.items() if name in vars(kind)}
            stack.enter_context(replace_attributes(kind, **own))
        yield


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
        raise LiveIteratorError(f"a {type(one).__name__}", FIX)

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

"""Event loops of asyncio that run in a thread from before: what the step gives them is played.

A coroutine goes on whenever something wakes it up. Each piece of it works for the step, as a pool's
thread does for a piece of work.
"""

from __future__ import annotations

import functools
import sys
from collections.abc import Callable, Coroutine, Iterator
from typing import Any

from labkit.memory.estimate.cuda import MadeReplacements
from labkit.memory.estimate.guard import StepThreads


class PlayedCoroutine(Coroutine[Any, Any, Any]):
    """A coroutine of the step in a loop from before; ``play`` wraps what works for the step."""

    def __init__(self, played: Any, play: Callable[[Any], Callable[..., Any]]) -> None:
        self._played, self._play = played, play

    def send(self, value: Any) -> Any:
        """Runs the coroutine until it waits for something."""
        return self._play(self._played.send)(value)

    def throw(self, *error: Any) -> Any:
        """The same with an exception where it waits."""
        return self._play(self._played.throw)(*error)

    def close(self) -> None:
        """Ends it."""
        self._play(self._played.close)()

    def __await__(self) -> Any:
        return self._played.__await__()  # what awaits it is played itself

    def __getattr__(self, name: str) -> Any:
        return getattr(self._played, name)


class HeldLoops:
    """Has the work that the step gives to loops from before played."""

    def __init__(self) -> None:
        self.threads = StepThreads()
        self.made = MadeReplacements(self._list_functions, ("asyncio", "asyncio.base_events"))

    def _list_functions(self) -> Iterator[tuple[Any, dict[str, Any]]]:
        events: Any = sys.modules.get("asyncio.base_events")
        tasks: Any = sys.modules.get("asyncio.tasks")
        if events is None or tasks is None:
            return
        kind = events.BaseEventLoop
        yield kind, {
            "call_soon_threadsafe": self._wrap_call(kind.call_soon_threadsafe),
            "create_task": self._wrap_task(kind.create_task),
        }  # fmt: skip
        run = self._wrap_run(tasks.run_coroutine_threadsafe)
        for module in (tasks, sys.modules["asyncio"]):
            yield module, {"run_coroutine_threadsafe": run}

    def _holds(self, loop: Any) -> bool:
        """True where the step calls, and the loop runs in a thread that is not the step's."""
        number = getattr(loop, "_thread_id", None)
        return number is not None and self.threads.includes_this() and not self.threads.has(number)

    def _wrap_call(self, call: Callable[..., Any]) -> Callable[..., Any]:
        @functools.wraps(call)
        def answer(loop: Any, callback: Any, *given: Any, **named: Any) -> Any:
            if self._holds(loop):
                callback, _ = self.threads.make_run(callback, loop)
            return call(loop, callback, *given, **named)

        return answer

    def _wrap_task(self, create: Callable[..., Any]) -> Callable[..., Any]:
        @functools.wraps(create)
        def answer(loop: Any, coroutine: Any, **named: Any) -> Any:
            if self._holds(loop) and not isinstance(coroutine, PlayedCoroutine):
                coroutine = PlayedCoroutine(coroutine, self.threads.make_successor(loop))
            return create(loop, coroutine, **named)

        return answer

    def _wrap_run(self, run: Callable[..., Any]) -> Callable[..., Any]:
        @functools.wraps(run)
        def answer(coroutine: Any, loop: Any) -> Any:
            if not self._holds(loop) or not hasattr(coroutine, "send"):
                return run(coroutine, loop)
            play, work = self.threads.make_player(loop)
            made = run(PlayedCoroutine(coroutine, play), loop)
            self.threads.keep_given(made, work)
            return made

        return answer


# There is one estimate at a time.
LOOPS = HeldLoops()

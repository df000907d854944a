"""Plays what a simulated step computes in other threads than its own.

Each thread has modes of torch of its own, so each one that works for the step enters the
simulation's. One operator at a time is followed, and what starts a thread goes on when that has
ended, or waits. So the played order is a possible one. Where the work of two threads may overlap in
the real step, that can need more: the estimate is a lower bound. It is exact where the step waits
for a thread before anything else computes.
"""

from __future__ import annotations

import contextlib
import functools
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from types import FunctionType, MappingProxyType, MethodType
from typing import Any, NoReturn

import torch
from torch._subclasses.fake_tensor import FakeTensor
from torch.utils._python_dispatch import _disable_current_modes
from torch.utils._pytree import tree_leaves

from labkit.memory.estimate.cuda import HIDDEN, LENT, FakeMode, replace_attributes
from labkit.memory.estimate.held import LiveIteratorError
from labkit.memory.estimate.model import EstimateObstacle
from labkit.memory.estimate.obstacles import (
    LazyTensorError,
    RealTensorError,
    StoppedThread,
    read_obstacle,
)
from labkit.memory.estimate.tracer import DEVICE, FakeTracer
from labkit.memory.track.frames import find_user_frames, list_thread_frames

THREADS = "a thread"
# What the refusal says of a thread that gets fake tensors and does not work for the step.
OTHER = (
    "a thread",
    "let the step start the thread, give its work to a ThreadPoolExecutor or to asyncio's"
    " run_coroutine_threadsafe, or let the step compute it itself",
    "computes in",
    "what that thread makes for the step is not seen, and would be missing",
)
NOTHING: Mapping[str, Any] = MappingProxyType({})
OVERLAP = (
    "may compute at the same time as another one, which can need more: wait for its result before"
    " anything else computes"
)
# How long who starts a thread waits for it: at most, without an operator of it, and how often the
# same line may be found before the thread counts as waiting.
LONGEST, QUIET, PAUSE, CALM = 2.0, 0.25, 0.002, 5
NOW, SLEEP = time.monotonic, time.sleep
# Exceptions of labkit's that refuse a step.
REFUSALS = (LazyTensorError, RealTensorError)


class GivenWork:
    """What the step has given to another thread, until the step has waited for it.

    ``lane`` is what does one piece of work after the other; ``own`` and ``others`` count the
    operators of the work and, when it was given, of all other lanes.
    """

    __slots__ = (
        "calls", "frame", "giver", "is_first", "lane", "number", "others", "own", "pool",
    )  # fmt: skip

    def __init__(self, lane: object, others: int, pool: Any, giver: object) -> None:
        self.lane, self.others, self.own, self.calls = lane, others, 0, 0
        self.pool, self.giver = id(pool), giver
        self.is_first = False  # what a pool's thread begins with
        # The thread that does it, once it has begun.
        self.number: int | None = None
        frames = find_user_frames()
        self.frame = frames[0] if frames else None


class SharedTracer(FakeTracer):
    """The tracer of a step that has other threads: one operator at a time."""

    played: PlayedThreads

    def __torch_dispatch__(
        self, operator: Any, types: Any, arguments: Any = (), named: Any = None
    ) -> Any:
        """Traces the operator, or computes for real in a thread that the step has left behind."""
        if self.played.is_over and self.played.is_here():
            with _disable_current_modes():
                return operator(*arguments, **(named or {}))
        with self.played.lock:
            if operator is not DEVICE:
                self.played.count()
            return super().__torch_dispatch__(operator, types, arguments, named)

    def is_alone(self) -> bool:
        """False: no call is simulated as a whole."""
        return False

    def mark(self, tensor: Any, category: str) -> None:
        """Sets the category."""
        with self.played.lock:
            super().mark(tensor, category)

    def _bury(self) -> None:
        with self.played.lock:
            super()._bury()

    def _name_workspace(self, backward: bool) -> object:
        return backward or self.played.name_workspace() or backward


class PlayedThreads:
    """Has the threads that work for the step enter the simulation's modes."""

    def __init__(self, tracer: FakeTracer, mode: FakeMode) -> None:
        self._tracer, self._mode, self._thread = tracer, mode, threading.get_ident()
        self._failure: BaseException | None = None
        self.lock = threading.RLock()
        self.is_over = False
        self._state = threading.local()
        self._counts: Counter[object] = Counter()
        self._given: list[GivenWork] = []
        # The plain threads that run now and have used cuBLAS, each in its place.
        self._slots: list[int | None] = []

    @property
    def lane(self) -> object:
        """What the running thread works for; None in the step's own thread."""
        work = getattr(self._state, "work", None)
        return None if work is None else work.lane

    def is_here(self) -> bool:
        """True in another thread than the step's own that works for it now."""
        return getattr(self._state, "work", None) is not None

    def count(self) -> None:
        """Counts an operator of the running thread."""
        work = getattr(self._state, "work", None)
        if work is not None:
            work.own += 1
        self._counts[None if work is None else work.lane] += 1

    def find_work(self) -> GivenWork | None:
        """What the running thread does for the step; None in the step's own."""
        return getattr(self._state, "work", None)

    def give(self, pool: Any = None) -> GivenWork:
        """Work for another thread, or for a pool, which begins now."""
        if type(self._tracer) is FakeTracer:
            self._tracer.settle()
            self._tracer.__class__ = SharedTracer
            self._tracer.played = self  # type: ignore[attr-defined]
            self._tracer.follow_others(self.is_here)
        size = getattr(pool, "_max_workers", None) or getattr(pool, "_processes", None)
        # What asyncio's loop does is one after the other, too.
        lane = ("pool", id(pool)) if size == 1 or hasattr(pool, "call_soon") else object()
        work = GivenWork(lane, self._count_others(lane), pool, self.lane)
        self._given.append(work)
        return work

    def count_all(self) -> int:
        """How many operators all threads of the step have run."""
        return self._counts.total()

    def _count_others(self, lane: object) -> int:
        return self._counts.total() - self._counts[lane]

    def wrap(self, work: GivenWork, function: Callable[..., Any]) -> Callable[..., Any]:
        """The function, which is played in the thread that calls it, as this work."""

        @functools.wraps(function, updated=())
        def answer(*arguments: Any, **named: Any) -> Any:
            with self._play(work):
                return function(*arguments, **named)

        return answer

    def wrap_thread(self, work: GivenWork, function: Callable[..., Any]) -> Callable[..., Any]:
        """The same for a thread, whose errors nothing asks for: those of the simulation are kept.

        ``settle`` and ``raise_failure`` raise them.
        """

        def answer(*arguments: Any, **named: Any) -> Any:
            try:
                return function(*arguments, **named)
            except StoppedThread:
                return None
            except BaseException as error:
                own = isinstance(error, Exception) and not isinstance(error, REFUSALS)
                if isinstance(error, SystemExit) or (own and read_obstacle(error) is None):
                    raise
                self._failure = self._failure or error
                return None

        return self.wrap(work, answer)

    def refuse_other(self, operator: object) -> NoReturn:
        """Raises in a thread that does not work for the step, and has the step be refused."""
        self._failure = self._failure or LiveIteratorError(*OTHER)
        raise RuntimeError(f"{operator} gets a tensor of a simulated step in another thread")

    def refuse_others(self, is_step: Callable[[], bool]) -> contextlib.AbstractContextManager[Any]:
        """Refuses operators on fake tensors in threads where ``is_step()`` is false, until exit.

        Torch's own would run them there, unseen. C++ ends the process where it does not get the
        device, or gets one that its build does not have.
        """
        dispatch = FakeTensor.__torch_dispatch__.__func__

        def answer(
            cls: Any, operator: Any, types: Any, arguments: Any = (), named: Any = NOTHING
        ) -> Any:
            if is_step() or not any(
                isinstance(one, FakeTensor) and one.fake_mode is self._mode
                for one in tree_leaves((arguments, named))
            ):
                return dispatch(cls, operator, types, arguments, named)
            if operator is DEVICE:
                kept: torch.device = arguments[0].fake_device
                return HIDDEN if kept.type == "cuda" else kept
            self.refuse_other(operator)

        return replace_attributes(FakeTensor, __torch_dispatch__=classmethod(answer))

    def raise_failure(self) -> None:
        """Raises, once, what has ended a thread of the step's and is not its own error."""
        failure, self._failure = self._failure, None
        if failure is not None:
            raise failure

    def wrap_initializers(self, arguments: tuple[Any, ...]) -> tuple[Any, ...]:
        """The arguments of a pool's worker, whose functions of the step's are played."""
        for one in arguments:  # since Python 3.14 one of them has the function
            begin: Any = getattr(one, "initializer", None)
            if type(begin) in FUNCTIONS:
                one.initializer = self._wrap_first(begin)
        return tuple(self._wrap_first(one) if type(one) in FUNCTIONS else one for one in arguments)

    def _wrap_first(self, function: Callable[..., Any]) -> Callable[..., Any]:
        work = self.give()
        work.is_first = True
        return self.wrap(work, function)

    @contextlib.contextmanager
    def _play(self, work: GivenWork) -> Iterator[None]:
        if self.is_over:  # it begins when the simulation has ended
            yield
            return
        number, before = threading.get_ident(), work.own
        work.number = number
        for first in [one for one in self._given if one.is_first and one.number == number]:
            if first is not work:
                self.observe(first)
                self._counts[work.lane] += self._counts.pop(first.lane, 0)
        outer = getattr(self._state, "work", None)
        if outer is not None:
            yield
            return
        depth = torch._C._len_torch_dispatch_stack()
        self._state.work = work
        LENT.add(number)
        try:
            with torch.autograd.set_multithreading_enabled(False):
                torch._C._set_dispatch_mode(self._mode)
                torch._C._push_on_torch_dispatch_stack(self._tracer)
                yield
        finally:
            while torch._C._len_torch_dispatch_stack() > depth:
                torch._C._pop_torch_dispatch_stack(None)
            LENT.discard(number)
            self._state.work = None
            self._slots = [None if one == number else one for one in self._slots]
            work.calls += work.own > before

    def settle(self, work: GivenWork, is_done: Callable[[], bool]) -> None:
        """Waits until the work is done, or its thread waits for something."""
        began = seen = NOW()
        own, place, calm = work.own, None, 0
        while not is_done() and NOW() - began < LONGEST and calm < CALM:
            SLEEP(PAUSE)
            found = _find_place(work.number)
            if own != work.own:
                seen = NOW()
            elif NOW() - seen > QUIET:
                break
            calm = calm + 1 if found is not None and found == place and own == work.own else 0
            own, place = work.own, found
        if threading.get_ident() == self._thread:
            self.raise_failure()

    def observe(self, work: GivenWork | None) -> None:
        """The step knows that this work is done."""
        if work is None or work not in self._given:
            return
        self._given.remove(work)
        self._judge(work)
        lane = self.lane
        if lane is not None and lane == work.giver:  # one after the other
            self._counts[lane] += self._counts.pop(work.lane, 0)

    def observe_pool(self, pool: Any) -> None:
        """The step knows that all threads of this pool have ended."""
        for work in [one for one in self._given if one.pool == id(pool)]:
            self.observe(work)

    def end(self) -> None:
        """The step has run."""
        for work in list(self._given):
            self.observe(work)
        self.is_over = True

    def _judge(self, work: GivenWork) -> None:
        alone = isinstance(work.lane, tuple) or work.calls <= 1
        if work.own and not (alone and self._count_others(work.lane) == work.others):
            self._tracer.note_obstacle(EstimateObstacle(THREADS, OVERLAP, work.frame))

    def name_workspace(self) -> object:
        """What has the place of the running thread among those that use cuBLAS; None for its own.

        A thread that ends leaves its workspace to the next one.
        """
        if not self.is_here():
            return None
        number = threading.get_ident()
        if number not in self._slots:
            free = self._slots.index(None) if None in self._slots else len(self._slots)
            self._slots[free : free + 1] = [number]
        return f"thread {self._slots.index(number)}"


FUNCTIONS = (FunctionType, MethodType, functools.partial)


SETTLING = PlayedThreads.settle.__code__


def _find_place(number: int | None) -> tuple[Any, ...] | None:
    """Where a thread is, to compare; None if it has not begun, or waits for one of its own."""
    frame: Any = list_thread_frames().get(number or 0)
    if frame is None or frame.f_code is SETTLING:
        return None
    return id(frame), frame.f_lasti

"""What the arguments of a step hold and Python cannot copy: open files, locks, modules.

The step gets such objects themselves. What it writes into files, archives, databases and shared
memory is dropped or put back (``objects.py``). Of another kind that cannot be copied, a note says
that what the step changes in it stays.
"""

from __future__ import annotations

import contextlib
import copy
import functools
import gc
import io
import pickle
import sys
import threading
from collections import OrderedDict, deque
from collections.abc import Callable, Iterable, Iterator
from concurrent import futures
from types import BuiltinMethodType, CodeType, FrameType, FunctionType, ModuleType
from typing import Any

import torch

from labkit.memory.estimate.buffers import MAPPED
from labkit.memory.estimate.held import BUILT, CALLING, METHODS, moves
from labkit.memory.estimate.iterators import find_copy
from labkit.memory.estimate.locks import LOCK, RECURSIVE
from labkit.memory.estimate.objects import is_own_module
from labkit.memory.estimate.opened import CSV_WRITER, HOLDERS, WRITERS, is_database
from labkit.memory.track.frames import OWN, judge_file

SHARED_NOTE = "{} among the arguments cannot be copied: what the step changes in it stays"
# The most objects that are looked at, and the most items of one; the most kinds without a copy.
MOST_LOOKED, MOST_ITEMS, MOST_KINDS = 20_000, 10_000, 16
HELD: tuple[Any, ...] = (
    *WRITERS, *HOLDERS, CSV_WRITER, pickle.Pickler, MAPPED, io.BufferedReader, memoryview,
    threading.local, threading.Thread, threading.Event, threading.Semaphore, threading.Condition,
    threading.Barrier, futures.Executor,
)  # fmt: skip
PASSED: tuple[Any, ...] = (
    str, bytes, int, float, complex, type(None), type, ModuleType, FunctionType, BuiltinMethodType,
    CodeType, FrameType, torch.Tensor, torch.optim.Optimizer,
)  # fmt: skip
# Of modules that need not be imported.
SHARED_KINDS = (
    ("multiprocessing.synchronize", "SemLock"), ("multiprocessing.synchronize", "Event"),
    ("multiprocessing.synchronize", "Condition"), ("multiprocessing.pool", "Pool"),
)  # fmt: skip
COPYING = ("__deepcopy__", "__setstate__", "__reduce_ex__", "__getstate__")
LONG = {list, tuple, dict, set, OrderedDict}
# A condition keeps the methods of its lock, which a copy of the lock would not fit.
LOCKS = {LOCK, RECURSIVE}


@functools.lru_cache(maxsize=4096)
def _judge_kind(kind: Any) -> str:
    """What is done with an object of this type: it is passed by, held, moved or looked into."""
    if issubclass(kind, PASSED):
        return "pass"
    sharing = sys.modules.get("multiprocessing.sharedctypes")
    shared = sharing is not None and issubclass(kind, sharing.SynchronizedBase)
    for name, owner in SHARED_KINDS:
        shared = shared or issubclass(kind, getattr(sys.modules.get(name), owner, ()))
    if moves(kind) and (kind is CALLING or kind.__reduce__ is object.__reduce__):
        return "move"
    return (
        "hold" if shared or kind in LOCKS or issubclass(kind, HELD) or is_database(kind) else "look"
    )


def find_held(arguments: Iterable[Any]) -> tuple[list[Any], list[Any]]:
    """What the arguments hold of which the step gets no copies: open files and the like; and code.

    Code is functions, and classes of the program itself, which may keep what they like, and what a
    method of C's is of, such as the list of ``losses.append``: a copy of it has the real list.
    """
    code: list[Any] = []
    left, found = deque(arguments), []
    seen: set[int] = set()
    while left and len(seen) < MOST_LOOKED:
        one = left.popleft()
        if id(one) in seen:
            continue
        seen.add(id(one))
        kind: Any = type(one)
        judged = _judge_kind(kind)
        if judged in {"hold", "move"}:
            found.append(one)
        elif judged == "pass":
            own = kind is FunctionType or (isinstance(one, type) and is_own_module(one.__module__))
            code += [one] if own else []
            owner: Any = one.__self__ if kind in BUILT else None
            if owner is not None and not isinstance(owner, type | ModuleType):
                code.append(owner)
        elif not (kind in LONG and len(one) > MOST_ITEMS):
            # Many dictionaries of a model are empty.
            left.extend(each for each in gc.get_referents(one) if type(each) not in LONG or each)
    return found, code


@contextlib.contextmanager
def share_held(held: Iterable[Any], find_lock: Callable[[Any], Any]) -> Iterator[None]:
    """Makes ``copy.deepcopy`` give these objects, and modules, themselves, until exit.

    Of locks it gives what ``find_lock`` has for them, and of those that move on a copy of their
    own, or what refuses.
    """
    with contextlib.ExitStack() as stack:
        for kind in {*map(type, held), *LOCKS, ModuleType}:
            copier = _copy_moving if moves(kind) else None
            stack.enter_context(_sharing(kind, _copy_lock(find_lock) if kind is LOCK else copier))
        yield


def share_uncopied(stack: contextlib.ExitStack, error: Exception) -> str | None:
    """Has the object shared that the error is about; returns its kind, None where it stays.

    "" is for one that is copied after all.
    """
    one = _find_uncopied(error)
    kind: Any = type(one)
    if str(error).strip("'") in COPYING and kind not in copy._deepcopy_dispatch:  # type: ignore[attr-defined]
        # A dictionary with attributes raises KeyError for what other objects do not have.
        stack.enter_context(_sharing(kind, _copy_parts))
        return ""
    file = getattr(sys.modules.get(kind.__module__), "__file__", None)
    foreign = file is None or judge_file(file) == OWN or not file.endswith(".py")
    copiers = copy._deepcopy_dispatch  # type: ignore[attr-defined]
    if one is None or not foreign or isinstance(one, PASSED) or kind in copiers:
        return None
    stack.enter_context(_sharing(kind))
    return str(kind.__name__)


def _find_uncopied(error: Exception) -> Any:
    """The object in whose copy an error was raised."""
    found, trace = None, error.__traceback__
    while trace is not None:
        frame = trace.tb_frame
        if frame.f_code is copy.deepcopy.__code__:
            found = frame.f_locals.get("x")
        trace = trace.tb_next
    return found


@contextlib.contextmanager
def _sharing(kind: Any, copier: Any = None) -> Iterator[None]:
    copiers: dict[type, Any] = copy._deepcopy_dispatch  # type: ignore[attr-defined]
    before = copiers.get(kind)
    copiers[kind] = copier or _share
    try:
        yield
    finally:
        del copiers[kind]
        copiers.update({} if before is None else {kind: before})


def _copy_moving(one: Any, memo: dict[int, Any]) -> Any:
    """The copy of what C keeps the place of, or what refuses in its place."""
    kind: Any = type(one)
    parts: tuple[Any, ...] = one.__reduce__()[1] if kind is CALLING else ()
    if len(parts) == 2 and type(parts[0]) not in METHODS:
        made: Any = iter(*copy.deepcopy(parts, memo))
    else:
        made = find_copy(one)
    return memo.setdefault(id(one), made)


def _copy_lock(find_lock: Callable[[Any], Any]) -> Callable[..., Any]:
    def answer(one: Any, memo: dict[int, Any]) -> Any:
        return memo.setdefault(id(one), find_lock(one))

    return answer


def _share(one: Any, memo: dict[int, Any]) -> Any:
    return memo.setdefault(id(one), one)


def _copy_parts(one: Any, memo: dict[int, Any]) -> Any:
    """A copy of an object of which no attribute can be asked for that it does not have."""
    kind: Any = type(one)
    made = memo[id(one)] = kind.__new__(kind)
    if isinstance(one, dict):
        dict.update(made, copy.deepcopy(dict(dict.items(one)), memo))
    elif isinstance(one, list):
        list.extend(made, copy.deepcopy(list(one), memo))
    names = object.__getattribute__(one, "__dict__")
    object.__getattribute__(made, "__dict__").update(copy.deepcopy(names, memo))
    return made

"""Random numbers that a step draws outside of torch, and the time: as low, or as high, as can be.

A number of Python's or NumPy's generators is real, so a step that skips layers by it would be
simulated for one draw only. While the step runs, a single number is the lowest that its generator
can give, or the highest, as the assumptions say; the time stands still or leaps. Arrays, shuffles
and what library code draws for itself stay real draws.
"""

from __future__ import annotations

import contextlib
import functools
import gc
import math
import os
import random
import secrets
import sys
import threading
import time
from collections.abc import Callable, Iterator
from types import BuiltinMethodType, MethodType, ModuleType
from typing import Any

from labkit.memory.estimate.cuda import replace_attributes
from labkit.memory.estimate.values import Assumptions
from labkit.memory.track.frames import PACKAGE, is_user_file, judge_file

ALMOST_ONE = 1 - 2**-53
# The most draws of a line in a step that are answered: a loop may draw until a number suits.
LINE_DRAWS = 64
DAY_SECONDS = 86_400


def _limit_range(*ends: int) -> tuple[int, int]:
    numbers = range(*ends)
    return numbers[0], numbers[-1]


def _limit_choice(values: Any, *size: Any, **named: Any) -> tuple[Any, Any]:
    values = range(values) if isinstance(values, int) else values
    return values[0], values[-1]


def _limit_integers(
    low: int, high: int | None = None, *others: Any, endpoint: bool = False, **named: Any
) -> tuple[int, int]:
    return (0, low - 1 + endpoint) if high is None else (low, high - 1 + endpoint)


def _limit_uniform(low: float = 0.0, high: float = 1.0, *size: Any, **named: Any) -> Any:
    return low, high


def _limit_share(*others: Any, **named: Any) -> tuple[float, float]:
    return 0.0, ALMOST_ONE


# The lowest and the highest number that each function draws, from its arguments.
PYTHON: dict[str, Callable[..., tuple[Any, Any]]] = {
    "random": _limit_share,
    "uniform": _limit_uniform,
    "betavariate": _limit_share,
    "randint": lambda low, high: (low, high),
    "randrange": _limit_range,
    "choice": _limit_choice,
}
SECRETS: dict[str, Callable[..., tuple[Any, Any]]] = {
    "randbelow": _limit_integers,
    "choice": _limit_choice,
    "randbits": lambda count: (0, 2**count - 1),
}
NUMPY: dict[str, Callable[..., tuple[Any, Any]]] = {
    **dict.fromkeys(("random", "rand", "random_sample", "ranf", "sample", "beta"), _limit_share),
    **dict.fromkeys(("randint", "integers", "random_integers"), _limit_integers),
    "uniform": _limit_uniform,
    "choice": _limit_choice,
    "binomial": lambda count, *others, **named: (0, count),
}
CLOCKS = ("time", "perf_counter", "monotonic", "process_time")


class Draws:
    """Answers what a step draws while ``active``, by the assumptions."""

    def __init__(self, assumptions: Assumptions) -> None:
        self._assumptions, self.active = assumptions, False
        self._leaps, self._thread = 0, threading.get_ident()
        self._numpy = sys.modules.get("numpy.random")  # only where something has imported it
        self._watched = self._wrap_classes()

    @contextlib.contextmanager
    def open(self, function: Any, arguments: Any, known: dict[int, Any]) -> Iterator[None]:
        """Replaces the functions and generators that the step's code can name, until exit.

        ``known`` has what else replaces an object, by its id.
        """
        known = dict(known)
        with contextlib.ExitStack() as stack:
            for owner, names in self._wrap_functions().items():
                known |= {id(getattr(owner, name)): one for name, one in names.items()}
                stack.enter_context(replace_attributes(owner, **names))
            for name, value, put in _list_names(
                function, arguments, {*known, *map(id, self._watched)}
            ):
                made = known.get(id(value)) or self._watch(value)
                if made is not None:
                    stack.callback(put, name, value)
                    put(name, made)
            yield

    def _watch(self, value: Any) -> Any:
        """What answers for a generator, or a method of one; None for anything else."""
        if type(value) in self._watched:
            return _make_alike(self._watched[type(value)], value)
        owner = value.__self__ if isinstance(value, METHODS) else None
        if isinstance(owner, random.Random) and value.__name__ in PYTHON:
            return getattr(owner, value.__name__)  # whose class has been replaced
        return getattr(self._watch(owner), value.__name__) if type(owner) in self._watched else None

    def _wrap_functions(self) -> dict[Any, dict[str, Any]]:
        """What replaces which attributes of Python's and NumPy's modules."""
        tables: list[tuple[Any, Any]] = [(random, PYTHON), (secrets, SECRETS)]
        tables += [(random.Random, PYTHON), (random.SystemRandom, PYTHON)]
        numpy = self._numpy
        if numpy is not None:
            tables.append((numpy, NUMPY))
        made = {
            owner: {
                name: self._wrap(getattr(owner, name), limit, skips=isinstance(owner, type))
                for name, limit in limits.items()
                if hasattr(owner, name)
            }
            for owner, limits in tables
        }
        made[os] = {"urandom": self._wrap(os.urandom, lambda n: (bytes(n), b"\xff" * n))}
        made[time] = {name: self._wrap_clock(getattr(time, name)) for name in CLOCKS}
        if numpy is not None:
            make, kind = numpy.default_rng, self._watched[numpy.Generator]
            made[numpy]["default_rng"] = lambda *seed: _make_alike(kind, make(*seed))
            made[numpy]["RandomState"] = self._watched[numpy.RandomState]
        return made

    def _wrap_classes(self) -> dict[type, Any]:
        """NumPy's classes of generators, and for each one whose methods are answered here."""
        found: dict[type, Any] = {}
        kinds = () if self._numpy is None else (self._numpy.Generator, self._numpy.RandomState)
        for kind in kinds:
            names = {
                name: self._wrap(getattr(kind, name), limit, skips=True)
                for name, limit in NUMPY.items()
                if hasattr(kind, name)
            }
            found[kind] = type(kind)(kind.__name__, (kind,), names)
        return found

    def _wrap(self, draw: Any, limit: Callable[..., Any], *, skips: bool = False) -> Any:
        """``draw``, which a user's line gets a limit from; ``skips``: it is a method."""

        @functools.wraps(draw)
        def answer(*arguments: Any, **named: Any) -> Any:
            if not self._is_asked():
                return draw(*arguments, **named)
            shape = _find_shape(draw, arguments[skips:], named)
            limits: Any = None
            # Another kind of arguments is an array of draws, or an error of the step's own.
            with contextlib.suppress(TypeError, ValueError, LookupError):
                limits = limit(*arguments[skips:], **named)
            alone = shape is None or math.prod(shape) == 1
            if limits is None or not alone or not self._assumptions.answers_draw(LINE_DRAWS):
                return draw(*arguments, **named)
            low, high = limits
            number = low if self._assumptions.decide(drawn=True) else high
            return number if shape is None else sys.modules["numpy"].full(shape, number)

        return answer

    def _is_asked(self) -> bool:
        """True where the step calls: no other thread, and no hook of the garbage collector."""
        caller = sys._getframe(2).f_code
        return (
            self.active
            and threading.get_ident() == self._thread
            and is_user_file(caller.co_filename)
            and all(getattr(hook, "__code__", None) is not caller for hook in gc.callbacks)
        )

    def _wrap_clock(self, read: Callable[[], float]) -> Callable[[], float]:
        @functools.wraps(read)
        def answer() -> float:
            if not self._is_asked():
                return read()  # of what must not leap: an event loop's timers, a lock's limit
            may_leap = self._assumptions.answers_draw(LINE_DRAWS)
            self._leaps += may_leap and self._assumptions.decide(drawn=True)
            return read() + self._leaps * DAY_SECONDS

        return answer


def _find_shape(draw: Any, arguments: Any, named: Any) -> tuple[int, ...] | None:
    """The shape of what NumPy is to draw; None for a number of Python's."""
    name = draw.__name__
    size = named.get("size")
    if name == "rand":
        size = arguments or None
    elif size is None and name in SIZE_PLACES and len(arguments) > SIZE_PLACES[name]:
        size = arguments[SIZE_PLACES[name]]
    return None if size is None else (size,) if isinstance(size, int) else tuple(size)


METHODS = MethodType, BuiltinMethodType
# Where NumPy's functions take a size.
SIZE_PLACES = {
    **dict.fromkeys(("random", "random_sample", "ranf", "sample"), 0), "choice": 1,
    **dict.fromkeys(("uniform", "randint", "integers", "random_integers", "beta", "binomial"), 2),
}  # fmt: skip


def _make_alike(kind: Any, generator: Any) -> Any:
    """A generator of another class with the same state."""
    return kind(getattr(generator, "bit_generator", None) or generator._bit_generator)


def _list_names(
    function: Any, arguments: Any, wanted: set[int]
) -> Iterator[tuple[str, Any, Callable[..., Any]]]:
    """What the step's code can name, with what replaces it: name, value, setter.

    Of installed packages only the modules that have one of ``wanted``, or an object of its class,
    both by id: they are thousands.
    """
    for key, module in list(sys.modules.items()):
        file = getattr(module, "__file__", None)
        if type(module) is not ModuleType or not (
            is_user_file(file) if file else key == "__main__"
        ):
            continue
        values = vars(module).values()
        has_none = wanted.isdisjoint(map(id, values)) and wanted.isdisjoint(
            map(id, map(type, values))
        )
        if has_none and file and judge_file(file) == PACKAGE:
            continue
        yield from _list_items(vars(module))
    left, seen = [function, *arguments], set()
    while left:
        one = left.pop()
        if id(one) in seen:
            continue
        seen.add(id(one))
        one_self = getattr(one, "__self__", one)
        if isinstance(getattr(one_self, "__dict__", None), dict):
            yield from _list_items(vars(one_self))
        left += [one.func, *one.args] if isinstance(one, functools.partial) else []
        for cell in getattr(one, "__closure__", None) or ():
            with contextlib.suppress(ValueError):  # an empty cell
                left += [cell.cell_contents] if callable(cell.cell_contents) else []
                yield "cell_contents", cell.cell_contents, functools.partial(setattr, cell)


def _list_items(names: dict[str, Any]) -> Iterator[tuple[str, Any, Callable[..., Any]]]:
    for name, value in list(names.items()):
        yield name, value, names.__setitem__

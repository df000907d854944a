"""Random numbers that a step draws outside of torch: as low, or as high, as can be.

A number of Python's or NumPy's generators is real, so a step that skips layers by it would be
simulated for one draw only. While the step runs, a single number is the lowest that its generator
can give, or the highest, as the assumptions say. So is the free part of the machine's memory and
disks; ``clock.py`` has the time. Arrays and shuffles stay real draws, with a note. Every generator
is as before when the step has run.
"""

from __future__ import annotations

import contextlib
import datetime
import functools
import gc
import itertools
import math
import operator
import os
import random
import secrets
import shutil
import sys
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Set
from dataclasses import dataclass, field
from types import (
    BuiltinMethodType,
    FunctionType,
    MethodType,
    MethodWrapperType,
    ModuleType,
)
from typing import Any, NamedTuple

import torch

from labkit.memory.estimate.clock import CUT, DATES, Clock, list_dates, list_functions
from labkit.memory.estimate.cuda import Replacement, find_number, mend_imported
from labkit.memory.estimate.held import RENEWED, is_stream, keep_place, list_inner, moves
from labkit.memory.estimate.imports import IMPORTS, LAZY
from labkit.memory.estimate.iterators import end_copies, find_copy
from labkit.memory.estimate.limits import ALMOST_ONE
from labkit.memory.estimate.values import Assumptions
from labkit.memory.track.frames import PACKAGE, USER, is_user_file, judge_file

# The most draws of a line in a step that are answered: a loop may draw until a number suits.
LINE_DRAWS = 500
# How far an unbounded distribution is followed: one draw in a thousand million is further out.
DEVIATIONS, DECAYS = 6.0, 20.7
# The most generators of Python whose states are kept.
MOST_GENERATORS = 256
# The least part of a memory or a disk that is free.
LEAST_FREE = 64
# A longer dictionary is not searched.
MOST_KEPT = 64
NOTE = (
    "the step draws from {} random numbers: the figure is of one draw,"
    " and another may need more or less"
)


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


def _limit_normal(mean: float = 0.0, deviation: float = 1.0, *size: Any, **named: Any) -> Any:
    mean, deviation = named.get("loc", mean), named.get("scale", deviation)
    return mean - DEVIATIONS * deviation, mean + DEVIATIONS * deviation


def _limit_standard(*size: Any, **named: Any) -> tuple[float, float]:
    return -DEVIATIONS, DEVIATIONS


def _limit_decay(scale: float = 1.0, *size: Any, **named: Any) -> tuple[float, float]:
    return 0.0, DECAYS * scale


def _limit_poisson(mean: float = 1.0, *size: Any, **named: Any) -> tuple[int, int]:
    return 0, math.ceil(mean + DEVIATIONS * math.sqrt(mean) + DEVIATIONS)


def _limit_geometric(chance: float, *size: Any, **named: Any) -> tuple[int, int]:
    return 1, 1 if chance >= 1 else math.ceil(DECAYS / -math.log1p(-chance))


def _limit_choices(values: Any, *weights: Any, k: int = 1, **named: Any) -> tuple[Any, Any]:
    return [values[0]] * k, [values[-1]] * k


def _limit_bits(count: int) -> tuple[int, int]:
    return 0, 2**count - 1


_names = itertools.count()


def _limit_bytes(count: int | None = None) -> tuple[bytes, bytes]:
    count = 32 if count is None else count
    low, high = bytes(count), b"\xff" * count
    if count < 8:
        return low, high
    # Long ones are often names, which differ from each other: in the middle, not at the ends.
    serial = (next(_names) % 2**32).to_bytes(4, "big")
    return low[:2] + serial + low[6:], high[:2] + serial + high[6:]


def _limit_hex(count: int | None = None) -> tuple[str, str]:
    low, high = _limit_bytes(count)
    return low.hex(), high.hex()


# The lowest and the highest number that each function draws, from its arguments.
PYTHON: dict[str, Callable[..., tuple[Any, Any]]] = {
    "random": _limit_share,
    "uniform": _limit_uniform,
    "betavariate": _limit_share,
    "randint": lambda low, high: (low, high),
    "randrange": _limit_range,
    "choice": _limit_choice,
    "choices": _limit_choices,
    "getrandbits": _limit_bits,
    "randbytes": _limit_bytes,
    "gauss": _limit_normal,
    "normalvariate": _limit_normal,
    "expovariate": lambda rate=1.0: _limit_decay(1 / rate),
    "triangular": lambda low=0.0, high=1.0, mode=None: (low, high),
}
SECRETS: dict[str, Callable[..., tuple[Any, Any]]] = {
    "randbelow": _limit_integers,
    "choice": _limit_choice,
    "randbits": _limit_bits,
    "token_bytes": _limit_bytes,
    "token_hex": _limit_hex,
    "token_urlsafe": _limit_hex,
}
NUMPY: dict[str, Callable[..., tuple[Any, Any]]] = {
    **dict.fromkeys(("random", "rand", "random_sample", "ranf", "sample", "beta"), _limit_share),
    **dict.fromkeys(("randint", "integers", "random_integers"), _limit_integers),
    "uniform": _limit_uniform,
    "choice": _limit_choice,
    "binomial": lambda count, *others, **named: (0, count),
    "normal": _limit_normal,
    **dict.fromkeys(("standard_normal", "randn"), _limit_standard),
    **dict.fromkeys(("exponential", "standard_exponential"), _limit_decay),
    "poisson": _limit_poisson,
    "geometric": _limit_geometric,
}
# What NumPy's generators have beside their draws.
NOT_DRAWN = ("seed", "get_state", "set_state", "spawn", "bit_generator")


class Draws:
    """Answers what a step draws while ``active``, by the assumptions; ``note`` takes a sentence."""

    def __init__(self, assumptions: Assumptions, note: Callable[[str], object]) -> None:
        self._assumptions, self._note_words, self.active = assumptions, note, False
        self._thread = threading.get_ident()
        # Whether the running thread, another one than this, works for the step.
        self.is_played: Callable[[], bool] = lambda: False
        self.clock = Clock(
            lambda: assumptions.answers_draw(LINE_DRAWS),
            lambda: assumptions.decide(drawn=True),
            lambda: self._is_asked(depth=3),
            lambda: note(CUT.format(LINE_DRAWS)),
            assumptions.began_ns,
        )
        self._watched: dict[type, Any] = {}
        # What gives a generator its state back, by the generator's id.
        self._kept: dict[int, Callable[[], object]] = {}
        # By the id of a live iterator: it and its copy.
        self._copies: dict[int, tuple[Any, Any]] = {}

    @contextlib.contextmanager
    def open(self, function: Any, arguments: Any, known: dict[int, Any]) -> Iterator[None]:
        """Replaces the functions and generators that the step's code can name, until exit.

        ``known`` has what else replaces an object, by its number.
        """
        answers = _find_answers()
        self._watched = answers.watched
        known = known | answers.known
        with contextlib.ExitStack() as stack:
            for owner, names in answers.functions:
                stack.enter_context(Replacement(owner, names))
            stack.callback(setattr, _running, "draws", None)
            _running.draws = self
            wanted = {*known, *map(find_number, self._watched)}
            for name, value, put in _list_names(function, arguments, wanted, known.values()):
                made = known.get(find_number(value))
                if made is None and type(value) not in USUAL:
                    made = self._watch(value) or self._copy(value)
                if made is not None:
                    stack.callback(put, name, value)
                    put(name, made)
            stack.callback(self._restore)
            stack.enter_context(mend_imported())
            stack.enter_context(IMPORTS.keep_modules())
            yield

    def _restore(self) -> None:
        """Gives the generators their states back, and ends the copies, which hold fake tensors."""
        for restore in self._kept.values():
            restore()
        self._kept.clear()
        self._copies.clear()
        end_copies()

    def _copy(self, value: Any) -> Any:
        """The copy of a live iterator; None for anything else. A file gets its place back."""
        if isinstance(value, METHODS) and type(value.__self__).__module__ in RENEWED:
            return getattr(value.__self__, value.__name__)  # whose class has been changed
        if isinstance(value, CALLED):
            made = self._copy(value.__self__)
            return None if made is None else getattr(made, value.__name__)
        kind: Any = type(value)
        if not (moves(kind) or is_stream(value) or hasattr(kind, "__next__")):
            return None  # most names
        known = self._copies.get(id(value))
        if known is None:
            made = find_copy(value)
            if made is None:
                restore = keep_place(value)
                if restore is not None:
                    self._kept.setdefault(id(value), restore)
                return None
            known = self._copies[id(value)] = value, made
        return known[1]

    def _watch(self, value: Any) -> Any:
        """What answers for a generator, or a method of one; None for anything else."""
        if isinstance(value, torch.Generator) and value.device.type == "cpu":
            self._kept[id(value)] = functools.partial(value.set_state, value.get_state())
        if type(value) in self._watched:
            bits = _find_bits(value)
            self._kept[id(bits)] = functools.partial(setattr, bits, "state", bits.state)
            return self._watched[type(value)](bits)
        owner = value.__self__ if isinstance(value, METHODS) else None
        if isinstance(owner, random.Random):
            made = getattr(owner, value.__name__)  # whose class has been replaced
            return made if value.__name__ in PYTHON else None
        return getattr(self._watch(owner), value.__name__) if type(owner) in self._watched else None

    def answer(self, draw: _Draw, arguments: Any, named: Any) -> Any:
        """What the step gets from a draw, which a user's line gets a limit from."""
        if not self._is_asked(depth=3):
            if self.active and draw.skips and draw.source == PYTHONS:
                self.keep(arguments[0])
                # A shuffle, for one, draws in Python's own code.
                if self._is_asked(inside=random.__file__, depth=3):
                    self._note_words(NOTE.format(draw.source))
            return draw.function(*arguments, **named)
        given = arguments[draw.skips :]
        shape = _find_shape(draw.function, given, named)
        limits: Any = None
        # Another kind of arguments is an array of draws, or an error of the step's own.
        with contextlib.suppress(TypeError, ValueError, LookupError, ArithmeticError):
            limits = draw.limit(*given, **named) if draw.limit else None
        alone = shape is None or math.prod(shape) == 1
        if limits is None or not alone or not self._assumptions.answers_draw(LINE_DRAWS):
            self._note_words(NOTE.format(draw.source))
            return draw.function(*arguments, **named)
        low, high = limits
        number = low if self._assumptions.decide(drawn=True) else high
        return number if shape is None else sys.modules["numpy"].full(shape, number)

    def keep(self, generator: Any) -> None:
        """Keeps the state of a generator of Python before it changes."""
        known = id(generator) in self._kept or isinstance(generator, random.SystemRandom)
        known = known or "gauss_next" not in vars(generator)  # it is being made
        if not known and len(self._kept) < MOST_GENERATORS:
            restore = functools.partial(generator.setstate, generator.getstate())
            self._kept[id(generator)] = restore

    def _is_asked(self, *, inside: str | None = None, depth: int = 2) -> bool:
        """True where the step calls: no other thread, and no hook of the garbage collector.

        With ``inside``, where a function of that file calls for the step. ``depth`` is the number
        of frames between.
        """
        frame: Any = sys._getframe(depth)
        while frame is not None and frame.f_code.co_filename == inside:
            frame = frame.f_back
        if frame is None:
            return False
        caller = frame.f_code
        return (
            self.active
            and (threading.get_ident() == self._thread or self.is_played())
            and is_user_file(caller.co_filename)
            and all(getattr(hook, "__code__", None) is not caller for hook in gc.callbacks)
        )


PYTHONS, NUMPYS = "Python's", "NumPy's"


class _Running:
    """The draws of the step that is simulated now; there is one at a time."""

    draws: Draws | None = None


_running = _Running()


class _Draw(NamedTuple):
    """A function that draws, and its limits; ``skips``: it is a method."""

    function: Any
    limit: Callable[..., Any] | None
    skips: bool
    source: str


class _Answers(NamedTuple):
    """What replaces the functions and classes that draw, for all estimates.

    ``functions`` by their owners and names, ``known`` by the numbers of the originals, ``watched``
    by the class. ``originals`` are those, as long as nobody else replaces one.
    """

    modules: tuple[Any, ...]
    functions: list[tuple[Any, dict[str, Any]]]
    known: dict[int, Any]
    watched: dict[type, Any]
    originals: list[Any]


_answers: list[_Answers] = []


def _find_answers() -> _Answers:
    """The answers for what is imported now, which are made once."""
    modules = tuple(map(sys.modules.get, ("numpy.random", "timeit", "uuid", "psutil")))
    for one in _answers:
        now = (*modules, *_list_originals(one.functions))
        if all(map(operator.is_, now, (*one.modules, *one.originals))):
            return one
    watched = _wrap_classes(modules[0])
    functions = [*_wrap_functions(modules, watched).items()]
    originals = _list_originals(functions)
    places = [(owner, name, made) for owner, names in functions for name, made in names.items()]
    known = {
        find_number(one): made
        for (owner, name, made), one in zip(places, originals, strict=True)
        # A class's own method is a new object at each look: its number is soon another one's.
        if one is not None and one is getattr(owner, name)
    }
    _answers[:] = [_Answers(modules, functions, known, watched, originals)]
    return _answers[0]


def _list_originals(functions: list[tuple[Any, dict[str, Any]]]) -> list[Any]:
    return [one for owner, names in functions for one in map(vars(owner).get, names)]


def _find_clock() -> Clock | None:
    draws = _running.draws
    return None if draws is None else draws.clock


def _wrap_functions(
    modules: tuple[Any, ...], watched: dict[type, Any]
) -> dict[Any, dict[str, Any]]:
    """What replaces which attributes of Python's and NumPy's modules."""
    numpy, timing, identifiers, measuring = modules
    tables: list[tuple[Any, Any]] = [(random, PYTHON), (secrets, SECRETS)]
    tables += [(random.Random, PYTHON), (random.SystemRandom, PYTHON)]
    made = {
        owner: {
            name: _wrap(getattr(owner, name), limit, skips=isinstance(owner, type))
            for name, limit in limits.items()
            if hasattr(owner, name)
        }
        for owner, limits in tables
    }
    made[random.Random]["seed"] = _wrap_seed(random.Random.seed)
    made[os] = {"urandom": _wrap(os.urandom, _limit_bytes)}
    if hasattr(os, "getloadavg"):
        busy = (float(os.cpu_count() or 1),) * 3
        made[os]["getloadavg"] = _wrap(os.getloadavg, lambda: ((0.0,) * 3, busy))
    made[time] = list_functions(_find_clock)
    dates = list_dates(_find_clock).items()
    made[datetime] = {kind.__name__: _make_alike(kind, names) for kind, names in dates}
    if timing is not None:
        made[timing] = {"default_timer": made[time]["perf_counter"]}
    if identifiers is not None:
        made[identifiers] = _wrap_identifiers(identifiers)
    made |= _wrap_system(measuring)
    if numpy is not None:
        made[numpy] = _wrap_numpy(numpy, watched)
    return made


def _wrap_identifiers(identifiers: Any) -> dict[str, Any]:
    def limit(version: int, *_: Any, **named: Any) -> tuple[Any, Any]:
        ends = (identifiers.UUID(bytes=one, version=version) for one in _limit_bytes(16))
        low, high = ends
        return low, high

    return {
        f"uuid{version}": _wrap(
            getattr(identifiers, f"uuid{version}"), functools.partial(limit, version)
        )
        for version in (1, 4)
    }


def _wrap_system(measuring: Any) -> dict[Any, dict[str, Any]]:
    """What replaces the functions that measure how full the machine is: it is, or is not."""
    made: dict[Any, dict[str, Any]] = {shutil: {"disk_usage": _wrap_usage(shutil.disk_usage)}}
    if measuring is not None:
        names = ("virtual_memory", "swap_memory", "disk_usage")
        made[measuring] = {
            name: _wrap_usage(getattr(measuring, name))
            for name in names
            if hasattr(measuring, name)
        }
    return made


def _wrap_usage(measure: Callable[..., Any]) -> Any:
    def limit(*given: Any, **named: Any) -> tuple[Any, Any]:
        found = measure(*given, **named)
        least = found.total // LEAST_FREE
        used = {"used": found.total, "free": least, "available": least, "percent": 99.0}
        idle = {"used": least, "free": found.total, "available": found.total, "percent": 1.0}
        names = found._fields
        low, high = (
            found._replace(**{name: one for name, one in each.items() if name in names})
            for each in (used, idle)
        )
        return low, high

    return _wrap(measure, limit)


def _wrap_numpy(numpy: Any, watched: dict[type, Any]) -> dict[str, Any]:
    """What replaces NumPy's functions and classes."""
    names = [one for one in _list_draws(numpy.RandomState) if hasattr(numpy, one)]
    make, kind = numpy.default_rng, watched[numpy.Generator]
    return {
        **{name: _wrap(getattr(numpy, name), NUMPY.get(name), source=NUMPYS) for name in names},
        "default_rng": lambda *seed: kind(_find_bits(make(*seed))),
        "RandomState": watched[numpy.RandomState],
        "Generator": kind,
    }


def _wrap_classes(numpy: Any) -> dict[type, Any]:
    """NumPy's classes of generators, and for each one whose methods are answered here."""
    found: dict[type, Any] = {}
    kinds = () if numpy is None else (numpy.Generator, numpy.RandomState)
    for kind in kinds:
        names = {
            name: _wrap(getattr(kind, name), NUMPY.get(name), skips=True, source=NUMPYS)
            for name in _list_draws(kind)
        }
        found[kind] = _make_alike(kind, names)
    return found


def _wrap(
    function: Any,
    limit: Callable[..., Any] | None,
    *,
    skips: bool = False,
    source: str = PYTHONS,
) -> Any:
    draw = _Draw(function, limit, skips, source)

    @functools.wraps(function)
    def answer(*arguments: Any, **named: Any) -> Any:
        draws = _running.draws
        if draws is None:
            return function(*arguments, **named)
        return draws.answer(draw, arguments, named)

    return answer


def _wrap_seed(seed: Any) -> Any:
    @functools.wraps(seed)
    def answer(generator: Any, *arguments: Any, **named: Any) -> None:
        draws = _running.draws
        if draws is not None and draws.active:
            draws.keep(generator)
        seed(generator, *arguments, **named)

    return answer


def _make_alike(kind: Any, names: dict[str, Any]) -> Any:
    """A class with these attributes, whose instances are those of the other one too."""

    def is_one(_: Any, one: Any) -> bool:
        return isinstance(one, kind)

    def make(cls: Any, *arguments: Any, **named: Any) -> Any:
        # A date, such as one that is pickled later, is a real one.
        own = cls is not made or kind not in DATES
        return kind.__new__(cls, *arguments, **named) if own else kind(*arguments, **named)

    metaclass = type("Alike", (type(kind),), {"__instancecheck__": is_one})
    names = {"__new__": make, "__slots__": (), "__module__": kind.__module__, **names}
    made = metaclass(kind.__name__, (kind,), names)
    return made


def _list_draws(kind: Any) -> list[str]:
    """The names of the methods by which NumPy's generators draw."""
    names = (one for one in dir(kind) if not one.startswith("_") and one not in NOT_DRAWN)
    return [one for one in names if callable(getattr(kind, one))]


def _find_bits(generator: Any) -> Any:
    """What has the state of a generator of NumPy."""
    return getattr(generator, "bit_generator", None) or generator._bit_generator


def _find_shape(draw: Any, arguments: Any, named: Any) -> tuple[int, ...] | None:
    """The shape of what NumPy is to draw; None for a number of Python's."""
    name = draw.__name__
    size = named.get("size")
    if name in {"rand", "randn"}:
        size = arguments or None
    elif size is None and name in SIZE_PLACES and len(arguments) > SIZE_PLACES[name]:
        size = arguments[SIZE_PLACES[name]]
    return None if size is None else (size,) if isinstance(size, int) else tuple(size)


METHODS = MethodType, BuiltinMethodType
# Methods of what C has made: an iterator's ``__next__``, a generator's ``send``.
CALLED = BuiltinMethodType, MethodWrapperType
# What is neither a generator, nor a method of one, nor an iterator: most of what code names.
USUAL = frozenset((FunctionType, ModuleType, LAZY, type, str, int, float, bool, type(None), list,
                   tuple, dict, set, frozenset, bytes))  # fmt: skip
# Where NumPy's functions take a size.
SIZE_PLACES = {
    **dict.fromkeys((
        "random", "random_sample", "ranf", "sample", "standard_normal", "standard_exponential"), 0),
    **dict.fromkeys(("choice", "exponential", "poisson", "geometric"), 1),
    **dict.fromkeys((
        "uniform", "randint", "integers", "random_integers", "beta", "binomial", "normal"), 2),
}  # fmt: skip


@dataclass
class _Searched:
    """The modules that named none of ``wanted``, and how many names each had.

    ``loaded`` are all modules of then, ``silent`` the names of those, and ``others`` the rest.
    """

    wanted: set[int] = field(default_factory=set)
    modules: dict[str, tuple[ModuleType, int]] = field(default_factory=dict)
    loaded: list[Any] = field(default_factory=list)
    silent: list[dict[str, Any]] = field(default_factory=list)
    sizes: list[int] = field(default_factory=list)
    others: list[tuple[str, ModuleType]] = field(default_factory=list)

    def find(self, wanted: set[int]) -> list[tuple[str, ModuleType]]:
        """The modules that may name one of ``wanted``."""
        loaded = list(sys.modules.values())
        same = len(loaded) == len(self.loaded) and all(map(operator.is_, loaded, self.loaded))
        if not (same and self.wanted == wanted and list(map(len, self.silent)) == self.sizes):
            self._search(wanted)
            self.loaded = loaded
        return self.others

    def _search(self, wanted: set[int]) -> None:
        if self.wanted != wanted:
            self.wanted, self.modules = wanted, {}
        known, self.others = self.modules, []
        for key, module in list(sys.modules.items()):
            if type(module) is not ModuleType:
                continue
            size = len(vars(module))
            if known.get(key) == (module, size):
                continue
            if _may_name(key, module, wanted):
                self.others.append((key, module))
                known.pop(key, None)
            else:
                known[key] = (module, size)
        self.silent = [vars(module) for module, _ in known.values()]
        self.sizes = [size for _, size in known.values()]


_SEARCHED = _Searched()


def _may_name(key: str, module: ModuleType, wanted: set[int]) -> bool:
    """True if it is a module of the user, or one of a package that names one of ``wanted``."""
    file = getattr(module, "__file__", None)
    if not file:
        return key == "__main__"
    if not is_user_file(file):
        return False
    values = vars(module).values()
    has_none = wanted.isdisjoint(map(find_number, values))
    has_none = has_none and wanted.isdisjoint(map(find_number, map(type, values)))
    return not has_none or judge_file(file) != PACKAGE


def _list_names(
    function: Any, arguments: Any, wanted: set[int], made: Iterable[Any] = ()
) -> Iterator[tuple[str, Any, Callable[..., Any]]]:
    """What the step's code can name, with what replaces it: name, value, setter.

    Of installed packages only the modules that have one of ``wanted``, or an object of its class,
    both by number: they are thousands, and those that have none are remembered. What is ``made`` to
    replace functions keeps the real ones.
    """
    for key, module in _SEARCHED.find(wanted):
        names = vars(module)
        if _may_name(key, module, wanted):
            yield from _list_items(names)
            if (file := getattr(module, "__file__", None)) is None or judge_file(file) != PACKAGE:
                yield from _list_kept(names, key)
    left, seen = [function, *arguments], set(map(find_number, made))
    while left:
        one = left.pop()
        if find_number(one) in seen:
            continue
        seen.add(find_number(one))
        one_self = _read(one, "__self__", one)
        if isinstance(_read(one_self, "__dict__"), dict):
            yield from _list_items(vars(one_self), list_inner(one_self))
            left += [value for value in vars(one_self).values() if _is_users(type(value))]
        left += [one.func, *one.args] if isinstance(one, functools.partial) else []
        for cell in _read(one, "__closure__") or ():
            with contextlib.suppress(ValueError):  # an empty cell
                kept = cell.cell_contents
                left += [kept] if callable(kept) or _is_users(type(kept)) else []
                yield "cell_contents", kept, functools.partial(setattr, cell)


def _read(one: Any, name: str, default: Any = None) -> Any:
    """An attribute; of an object of the program's, which may raise what it likes, the default."""
    try:
        return getattr(one, name, default)
    except Exception:  # a dictionary with attributes raises KeyError
        return default


def _list_items(
    names: dict[Any, Any], inner: Set[str] = frozenset()
) -> Iterator[tuple[str, Any, Callable[..., Any]]]:
    """What a dictionary has, but for the names that are ``inner`` ones of Python's own classes."""
    for name, value in list(names.items()):
        if name not in inner:
            yield name, value, names.__setitem__


def _list_kept(names: dict[str, Any], module: str) -> Iterator[tuple[str, Any, Callable[..., Any]]]:
    """What a module's own dictionaries, classes, objects and functions keep."""
    for value in list(names.values()):
        if isinstance(value, dict) and len(value) <= MOST_KEPT:
            yield from _list_items(value)
        elif isinstance(value, functools.partial):
            yield "func", value.func, functools.partial(_put_function, value)
        elif _read(value, "__module__") == module:
            if isinstance(value, type):
                for name, one in list(vars(value).items()):
                    kept = one.__func__ if isinstance(one, staticmethod) else one
                    yield name, kept, functools.partial(_put_attribute, value, one)
                    yield from _list_defaults(kept)
            elif isinstance(_read(value, "__dict__"), dict):
                yield from _list_items(vars(value), list_inner(value))
            yield from _list_defaults(value)


def _is_users(kind: type) -> bool:
    """True for a class of the user's own code."""
    module = sys.modules.get(kind.__module__)
    file = getattr(module, "__file__", None)
    return judge_file(file) == USER if file else kind.__module__ == "__main__"


def _list_defaults(function: Any) -> Iterator[tuple[str, Any, Callable[..., Any]]]:
    found = _read(function, "__defaults__")
    for place, value in enumerate(found if isinstance(found, tuple) else ()):
        yield "", value, functools.partial(_put_default, function, place)


def _put_default(function: Any, place: int, _: str, value: Any) -> None:
    before = function.__defaults__
    function.__defaults__ = (*before[:place], value, *before[place + 1 :])


def _put_function(partial: Any, _: str, function: Any) -> None:
    partial.__setstate__((function, partial.args, partial.keywords, vars(partial)))


def _put_attribute(owner: type, before: Any, name: str, value: Any) -> None:
    kept = before.__func__ if isinstance(before, staticmethod) else before
    # What is called by way of an instance gets no instance.
    setattr(owner, name, before if value is kept else staticmethod(value))

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
import os
import random
import secrets
import shutil
import sys
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from types import BuiltinMethodType, MethodType, ModuleType
from typing import Any

import torch

from labkit.memory.estimate.clock import CUT, DATES, Clock
from labkit.memory.estimate.cuda import mend_imported, replace_attributes
from labkit.memory.estimate.iterators import find_copy, keep_place
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
        self._clock = Clock(
            lambda: assumptions.answers_draw(LINE_DRAWS),
            lambda: assumptions.decide(drawn=True),
            lambda: self._is_asked(depth=3),
            lambda: note(CUT.format(LINE_DRAWS)),
            assumptions.began_ns,
        )
        self._numpy = sys.modules.get("numpy.random")  # only where something has imported it
        self._watched = self._wrap_classes()
        # What gives a generator its state back, by the generator's id.
        self._kept: dict[int, Callable[[], object]] = {}
        # By the id of a live iterator: it and its copy.
        self._copies: dict[int, tuple[Any, Any]] = {}

    @contextlib.contextmanager
    def open(self, function: Any, arguments: Any, known: dict[int, Any]) -> Iterator[None]:
        """Replaces the functions and generators that the step's code can name, until exit.

        ``known`` has what else replaces an object, by its id.
        """
        known = dict(known)
        with contextlib.ExitStack() as stack:
            for owner, names in self._wrap_functions().items():
                # A class's own method is a new object at each look: its id is soon another one's.
                stays = {name: vars(owner).get(name) for name in names}
                known |= {
                    id(stays[name]): one
                    for name, one in names.items()
                    if stays[name] is not None and stays[name] is getattr(owner, name)
                }
                stack.enter_context(replace_attributes(owner, **names))
            wanted = {*known, *map(id, self._watched)}
            for name, value, put in _list_names(function, arguments, wanted, known.values()):
                made = known.get(id(value)) or self._watch(value) or self._copy(value)
                if made is not None:
                    stack.callback(put, name, value)
                    put(name, made)
            stack.callback(self._restore)
            stack.enter_context(mend_imported())
            yield

    def _restore(self) -> None:
        """Gives the generators their states back."""
        for restore in self._kept.values():
            restore()
        self._kept.clear()

    def _copy(self, value: Any) -> Any:
        """The copy of a live iterator; None for anything else. A file gets its place back."""
        kind = type(value)
        if not hasattr(kind, "__next__") and kind.__name__ != "socket":
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

    def _wrap_functions(self) -> dict[Any, dict[str, Any]]:
        """What replaces which attributes of Python's and NumPy's modules."""
        tables: list[tuple[Any, Any]] = [(random, PYTHON), (secrets, SECRETS)]
        tables += [(random.Random, PYTHON), (random.SystemRandom, PYTHON)]
        made = {
            owner: {
                name: self._wrap(getattr(owner, name), limit, skips=isinstance(owner, type))
                for name, limit in limits.items()
                if hasattr(owner, name)
            }
            for owner, limits in tables
        }
        made[random.Random]["seed"] = self._wrap_seed(random.Random.seed)
        made[os] = {"urandom": self._wrap(os.urandom, _limit_bytes)}
        if hasattr(os, "getloadavg"):
            busy = (float(os.cpu_count() or 1),) * 3
            made[os]["getloadavg"] = self._wrap(os.getloadavg, lambda: ((0.0,) * 3, busy))
        made[time] = self._clock.list_functions()
        dates = self._clock.list_dates().items()
        made[datetime] = {kind.__name__: _make_alike(kind, names) for kind, names in dates}
        if "timeit" in sys.modules:
            made[sys.modules["timeit"]] = {"default_timer": made[time]["perf_counter"]}
        identifiers = sys.modules.get("uuid")
        if identifiers is not None:

            def limit(version: int, *_: Any, **named: Any) -> tuple[Any, Any]:
                ends = (identifiers.UUID(bytes=one, version=version) for one in _limit_bytes(16))
                low, high = ends
                return low, high

            made[identifiers] = {
                f"uuid{version}": self._wrap(
                    getattr(identifiers, f"uuid{version}"), functools.partial(limit, version)
                )
                for version in (1, 4)
            }
        made |= self._wrap_system()
        if self._numpy is not None:
            made[self._numpy] = self._wrap_numpy(self._numpy)
        return made

    def _wrap_system(self) -> dict[Any, dict[str, Any]]:
        """What replaces the functions that measure how full the machine is: it is, or is not."""
        disk = self._wrap_usage(shutil.disk_usage)
        made: dict[Any, dict[str, Any]] = {shutil: {"disk_usage": disk}}
        measuring = sys.modules.get("psutil")
        if measuring is not None:
            names = ("virtual_memory", "swap_memory", "disk_usage")
            made[measuring] = {
                name: self._wrap_usage(getattr(measuring, name))
                for name in names
                if hasattr(measuring, name)
            }
        return made

    def _wrap_usage(self, measure: Callable[..., Any]) -> Any:
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

        return self._wrap(measure, limit)

    def _wrap_numpy(self, numpy: Any) -> dict[str, Any]:
        """What replaces NumPy's functions and classes."""
        names = [one for one in _list_draws(numpy.RandomState) if hasattr(numpy, one)]
        make, kind = numpy.default_rng, self._watched[numpy.Generator]
        return {
            **{
                name: self._wrap(getattr(numpy, name), NUMPY.get(name), source="NumPy's")
                for name in names
            },
            "default_rng": lambda *seed: kind(_find_bits(make(*seed))),
            "RandomState": self._watched[numpy.RandomState],
            "Generator": kind,
        }

    def _wrap_classes(self) -> dict[type, Any]:
        """NumPy's classes of generators, and for each one whose methods are answered here."""
        found: dict[type, Any] = {}
        kinds = () if self._numpy is None else (self._numpy.Generator, self._numpy.RandomState)
        for kind in kinds:
            names = {
                name: self._wrap(getattr(kind, name), NUMPY.get(name), skips=True, source="NumPy's")
                for name in _list_draws(kind)
            }
            found[kind] = _make_alike(kind, names)
        return found

    def _wrap(
        self,
        draw: Any,
        limit: Callable[..., Any] | None,
        *,
        skips: bool = False,
        source: str = "Python's",
    ) -> Any:
        """``draw``, which a user's line gets a limit from; ``skips``: it is a method."""

        @functools.wraps(draw)
        def answer(*arguments: Any, **named: Any) -> Any:
            if not self._is_asked():
                if self.active and skips and source == "Python's":
                    self._keep(arguments[0])
                    # A shuffle, for one, draws in Python's own code.
                    if self._is_asked(inside=random.__file__):
                        self._note_words(NOTE.format(source))
                return draw(*arguments, **named)
            shape = _find_shape(draw, arguments[skips:], named)
            limits: Any = None
            # Another kind of arguments is an array of draws, or an error of the step's own.
            with contextlib.suppress(TypeError, ValueError, LookupError, ArithmeticError):
                limits = limit(*arguments[skips:], **named) if limit else None
            alone = shape is None or math.prod(shape) == 1
            if limits is None or not alone or not self._assumptions.answers_draw(LINE_DRAWS):
                self._note_words(NOTE.format(source))
                return draw(*arguments, **named)
            low, high = limits
            number = low if self._assumptions.decide(drawn=True) else high
            return number if shape is None else sys.modules["numpy"].full(shape, number)

        return answer

    def _wrap_seed(self, seed: Any) -> Any:
        @functools.wraps(seed)
        def answer(generator: Any, *arguments: Any, **named: Any) -> None:
            if self.active:
                self._keep(generator)
            seed(generator, *arguments, **named)

        return answer

    def _keep(self, generator: Any) -> None:
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
            and threading.get_ident() == self._thread
            and is_user_file(caller.co_filename)
            and all(getattr(hook, "__code__", None) is not caller for hook in gc.callbacks)
        )


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
    """The modules that named none of ``wanted``, and how many names each had."""

    wanted: set[int] = field(default_factory=set)
    modules: dict[str, tuple[ModuleType, int]] = field(default_factory=dict)


_SEARCHED = _Searched()


def _may_name(key: str, module: ModuleType, wanted: set[int]) -> bool:
    """True if it is a module of the user, or one of a package that names one of ``wanted``."""
    file = getattr(module, "__file__", None)
    if not file:
        return key == "__main__"
    if not is_user_file(file):
        return False
    values = vars(module).values()
    has_none = wanted.isdisjoint(map(id, values)) and wanted.isdisjoint(map(id, map(type, values)))
    return not has_none or judge_file(file) != PACKAGE


def _list_names(
    function: Any, arguments: Any, wanted: set[int], made: Iterable[Any] = ()
) -> Iterator[tuple[str, Any, Callable[..., Any]]]:
    """What the step's code can name, with what replaces it: name, value, setter.

    Of installed packages only the modules that have one of ``wanted``, or an object of its class,
    both by id: they are thousands, and those that have none are remembered. What is ``made`` to
    replace functions keeps the real ones.
    """
    if _SEARCHED.wanted != wanted:
        _SEARCHED.wanted, _SEARCHED.modules = wanted, {}
    searched = _SEARCHED.modules
    for key, module in list(sys.modules.items()):
        known = searched.get(key)
        if known is not None and known[0] is module and known[1] == len(module.__dict__):
            continue
        if type(module) is not ModuleType:
            continue
        names = vars(module)
        if _may_name(key, module, wanted):
            yield from _list_items(names)
            if (file := getattr(module, "__file__", None)) is None or judge_file(file) != PACKAGE:
                yield from _list_kept(names, key)
        else:
            searched[key] = (module, len(names))
    left, seen = [function, *arguments], set(map(id, made))
    while left:
        one = left.pop()
        if id(one) in seen:
            continue
        seen.add(id(one))
        one_self = _read(one, "__self__", one)
        if isinstance(_read(one_self, "__dict__"), dict):
            yield from _list_items(vars(one_self))
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


def _list_items(names: dict[Any, Any]) -> Iterator[tuple[str, Any, Callable[..., Any]]]:
    for name, value in list(names.items()):
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
                yield from _list_items(vars(value))
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

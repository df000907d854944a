"""Iterators that were made before an estimate: the step gets copies of them, or none.

What an iterator has given it does not give again, so a simulation that took from a live one would
take batches from the user. An iterator of a DataLoader, and a generator that has not begun, are
made once more; Python's own iterators are copied with those that they are made of. What cannot be
copied gives nothing: the step is refused where it first asks.
"""

from __future__ import annotations

import contextlib
import copy
import functools
import gc
import inspect
import itertools
import operator
import sys
import types
import warnings
import weakref
from collections.abc import Callable, Iterator
from types import (
    AsyncGeneratorType,
    CoroutineType,
    FunctionType,
    GeneratorType,
    SimpleNamespace,
)
from typing import Any

from torch.utils.data import dataloader

from labkit.errors import UsageError
from labkit.memory.estimate.cuda import replace_in_thread
from labkit.memory.estimate.held import (
    FIX,
    FIX_MADE,
    METHODS,
    MODULES,
    UNCOPIED,
    HeldIterator,
    LiveIteratorError,
    find_prefix,
    hold,
    is_iterator,
    is_queue,
    is_stream,
    moves,
    name_kind,
)
from labkit.memory.track.frames import OWN, judge_file

LOADED_AGAIN = (
    "an iterator of a DataLoader that was made before stays where it is: simulated with a new one,"
    " from the first batch"
)
Convert = Callable[[Any], Any]
LOADING = (dataloader._SingleProcessDataLoaderIter, dataloader._MultiProcessingDataLoaderIter)
GENERATORS = (GeneratorType, AsyncGeneratorType, CoroutineType)
# What a generator has beside its variables.
PASSED = (types.CodeType, types.FrameType, types.ModuleType)
# The items of a longer list are not searched for iterators.
MOST_PARTS = 1_000


class CopyError(Exception):
    """An argument of the step cannot be copied."""


USED_UP = "the simulation would use up what the real step is to get"


def refuse_live(
    name: str, kind: str, fix: str, verb: str = "takes from", cause: str = USED_UP
) -> UsageError:
    """The error for a step that takes from what was made before, or waits for it."""
    return UsageError(
        f"{name} {verb} {kind} that was made before the estimate", cause=cause, fix=fix
    )


def refuse_copy(name: str, words: str) -> UsageError:
    """The error for an argument that cannot be copied."""
    return UsageError(
        f"{name} cannot get a copy of {words}",
        cause="the step gets copies of its arguments, so that the real ones stay as they are",
        fix="make it inside: estimate_memory(make_step), where make_step() makes the model and the"
        " rest and returns the step, a function without arguments",
    )


def _find_kind(value: Any) -> Any:
    return type(value)


def find_copy(value: Any) -> Any:
    """What a step gets for an object that moves on and that its code can name; None for another.

    For a method of one, ``iterator.__next__``, it is that of the copy.
    """
    kind: Any = type(value)
    if kind in METHODS:
        made = find_copy(value.__self__)
        return None if made is None else getattr(made, value.__name__)
    if is_iterator(kind):
        try:
            return _PartsCopy().convert(value)
        except LiveIteratorError:
            return HeldIterator(value)
    return hold(value)


class _PartsCopy:
    """Copies what an iterator is made of; what it has twice is copied once."""

    def __init__(self) -> None:
        self._made: dict[int, tuple[Any, Any]] = {}

    def convert(self, value: Any) -> Any:
        """The copy of an iterator or a stream, or of a list that holds one; else the value."""
        if id(value) not in self._made:
            self._made[id(value)] = value, self._copy(value)
        return self._made[id(value)][1]

    def _copy(self, value: Any) -> Any:
        kind: Any = type(value)
        if is_iterator(kind):
            return copy_iterator(value, self.convert)
        if kind in {tuple, list} and len(value) <= MOST_PARTS:
            parts = [self.convert(one) if _may_read(one) else one for one in value]
            return value if all(map(operator.is_, parts, value)) else kind(parts)
        if kind.__module__ == "itertools" and kind.__name__ == "_tee_dataobject":
            source, given, later = value.__reduce__()[1]
            return kind(self.convert(source), [*given], later and self.convert(later))
        if kind in METHODS and _may_read(value):
            return getattr(self.convert(value.__self__), value.__name__)
        if kind is functools.partial:
            named = {name: self.convert(one) for name, one in value.keywords.items()}
            return kind(self.convert(value.func), *map(self.convert, value.args), **named)
        made = hold(value)
        if type(made) is HeldIterator and kind.__module__ in UNCOPIED:
            raise LiveIteratorError(name_kind(value), FIX_MADE)  # C would use the real one
        return value if made is None else made


def _may_read(value: Any) -> bool:
    kind: Any = type(value)
    if kind in METHODS:
        return _may_read(value.__self__)
    return kind in {tuple, list, functools.partial} or moves(kind) or is_stream(value)


def list_parts(iterator: Any) -> list[Any]:
    """What an iterator is made of: of a generator its function and its variables."""
    if type(iterator) in GENERATORS and judge_file(_read_code(iterator).co_filename) == OWN:
        return []
    parts = gc.get_referents(iterator)
    if is_queue(type(iterator)) and sys.version_info < (3, 13):
        # Its own list would be put back, without what other threads put into it.
        parts = [item for one in parts if type(one) is list for item in one]
    for one in list(parts):
        if isinstance(one, types.FrameType):  # of a generator, in Python 3.10
            names = (one.f_globals, one.f_builtins)
            held = gc.get_referents(one)
            parts += [each for each in held if all(each is not known for known in names)]
        elif type(one).__name__ == "_tee_dataobject":
            parts += gc.get_referents(one)
    return [one for one in parts if not isinstance(one, PASSED)]


def _read_code(generator: Any) -> Any:
    return getattr(generator, f"{find_prefix(type(generator))}_code")


def _read_frame(generator: Any) -> Any:
    return getattr(generator, f"{find_prefix(type(generator))}_frame")


def read_place(value: Any) -> tuple[int, ...] | None:
    """Where a generator, or an asynchronous one, is, to compare; None for anything else."""
    if type(value) not in GENERATORS:
        return None
    frame = _read_frame(value)
    if frame is None:
        return ()
    # Python adds a dictionary where something asks for the variables.
    held = (id(one) for one in gc.get_referents(value) if type(one) is not dict)
    return (frame.f_lasti, *held)


def copy_iterator(iterator: Any, convert: Convert) -> Any:
    """A copy; ``convert`` copies what the iterator is made of. Raises LiveIteratorError."""
    if type(iterator) in GENERATORS:
        return _copy_generator(iterator, convert)
    kind: Any = type(iterator)
    if kind.__reduce__ is object.__reduce__:  # it would make an empty one
        raise LiveIteratorError(
            name_kind(iterator), FIX if kind.__module__ in MODULES else FIX_MADE
        )
    with warnings.catch_warnings():
        # Python 3.12 and 3.13 warn that later ones cannot copy those of itertools.
        warnings.simplefilter("ignore", DeprecationWarning)
        try:
            make, given, *states = iterator.__reduce__()
            made = make(*map(convert, given))
        except TypeError as error:
            raise LiveIteratorError(name_kind(iterator), FIX) from error
    if states and states[0] is not None:  # as of what has not begun
        made.__setstate__(_copy_state(states[0], convert))
    return made


def _copy_state(state: Any, convert: Convert) -> Any:
    """What an iterator keeps: a list of what it has given, which it goes on to fill, or places."""
    if isinstance(state, tuple):
        return tuple(_copy_state(one, convert) for one in state)
    return [*state] if isinstance(state, list) else convert(state)


def _copy_generator(generator: Any, convert: Convert) -> Any:
    """A generator of the same function and arguments, if this one has given nothing yet."""
    code, frame = _read_code(generator), _read_frame(generator)
    if frame is None:
        raise LiveIteratorError(name_kind(generator), FIX)
    local = dict(frame.f_locals)
    cells = [
        types.CellType(convert(local[name])) if name in local else types.CellType()
        for name in code.co_freevars
    ]
    function = FunctionType(code, frame.f_globals, code.co_name, None, tuple(cells))
    names = iter(code.co_varnames)
    given = [convert(local[name]) for name in itertools.islice(names, code.co_argcount)]
    named = {name: convert(local[name]) for name in itertools.islice(names, code.co_kwonlyargcount)}
    if code.co_flags & inspect.CO_VARARGS:
        given += map(convert, local[next(names)])
    if code.co_flags & inspect.CO_VARKEYWORDS:
        named |= local[next(names)]
    made = function(*given, **named)
    if _read_frame(made).f_lasti != frame.f_lasti:  # where a new one is
        raise LiveIteratorError(name_kind(generator), FIX)
    _copies.append(weakref.ref(made))
    return made


# The generators that were made for the step that is simulated now.
_copies: list[weakref.ref[Any]] = []


def end_copies() -> None:
    """Ends the generators that were made for a step: they hold what it has had of them.

    Their own ``finally`` is the step's code, so this is called before what it changes is put back.
    """
    for find in _copies:
        made = find()
        if isinstance(made, GeneratorType | CoroutineType):
            with contextlib.suppress(Exception, LiveIteratorError):
                made.close()
    _copies.clear()


def _read_settings(iterator: Any, convert: Convert) -> SimpleNamespace:
    """The settings of the loader that has made an iterator; ``convert`` copies its dataset."""
    return SimpleNamespace(
        dataset=convert(iterator._dataset),
        collate_fn=iterator._collate_fn,
        drop_last=iterator._drop_last,
        pin_memory=iterator._pin_memory,
        pin_memory_device="",
        num_workers=iterator._num_workers,
        prefetch_factor=getattr(iterator, "_prefetch_factor", None),
        worker_init_fn=getattr(iterator, "_worker_init_fn", None),
        timeout=0,
        generator=None,
        persistent_workers=False,
        _dataset_kind=iterator._dataset_kind,
        _IterableDataset_len_called=iterator._IterableDataset_len_called,
        _auto_collation=iterator._auto_collation,
        _index_sampler=convert(iterator._index_sampler),
    )


class LiveLoaders:
    """Gives what asks a live iterator of a DataLoader the batches of a new one, in a simulation.

    ``make`` makes an iterator of a loader's settings, ``watch`` gets each one that is made.
    """

    def __init__(
        self,
        make: Callable[[Any], Any],
        watch: Callable[[Any], object],
        note: Callable[[str], object],
    ) -> None:
        self._make, self._watch, self._note = make, watch, note
        # By the id of a live iterator: it and the new one.
        self._alike: dict[int, tuple[Any, Any]] = {}

    @contextlib.contextmanager
    def open(self) -> Iterator[None]:
        """Replaces the methods of loaders and of their iterators, until exit."""
        base, loader = dataloader._BaseDataLoaderIter, dataloader.DataLoader
        begin, take, iterate = base.__init__, base.__next__, loader.__iter__

        def start(iterator: Any, *given: Any, **named: Any) -> None:
            iterator.labkit_loaders = self
            begin(iterator, *given, **named)
            self._watch(iterator)

        def give(iterator: Any) -> Any:
            return take(iterator if self._has_made(iterator) else self._find_alike(iterator))

        def begin_epoch(one: Any) -> Any:
            kept = one.__dict__.get("_iterator")
            if one.persistent_workers and (kept is None or not self._has_made(kept)):
                stack.callback(setattr, one, "_iterator", kept)
                one._iterator = None
            return iterate(one)

        with contextlib.ExitStack() as stack:
            stack.enter_context(replace_in_thread(base, __init__=start, __next__=give))
            stack.enter_context(replace_in_thread(loader, __iter__=begin_epoch))
            yield

    def make_alike(self, iterator: Any, convert: Convert) -> Any:
        """A new iterator of the same DataLoader; ``convert`` copies its dataset."""
        self._note(LOADED_AGAIN)
        return self._make(_read_settings(iterator, convert))

    def _has_made(self, iterator: Any) -> bool:
        return vars(iterator).get("labkit_loaders") is self

    def _find_alike(self, iterator: Any) -> Any:
        if id(iterator) not in self._alike:
            self._alike[id(iterator)] = iterator, self.make_alike(iterator, lambda one: one)
        return self._alike[id(iterator)][1]


@contextlib.contextmanager
def copy_iterators(loaders: LiveLoaders) -> Iterator[None]:
    """Makes ``copy.deepcopy`` copy live iterators, and progress bars, until exit."""
    copiers: dict[type, Any] = copy._deepcopy_dispatch  # type: ignore[attr-defined]

    def load_again(iterator: Any, memo: dict[int, Any]) -> Any:
        made = loaders.make_alike(iterator, lambda one: copy.deepcopy(one, memo))
        return memo.setdefault(id(iterator), made)

    def generate_again(generator: Any, memo: dict[int, Any]) -> Any:
        made = _copy_generator(generator, lambda one: copy.deepcopy(one, memo))
        return memo.setdefault(id(generator), made)

    def show_nothing(bar: Any, memo: dict[int, Any]) -> Any:
        made = type(bar)(copy.deepcopy(bar.iterable, memo), total=bar.total, disable=True)
        return memo.setdefault(id(bar), made)

    added = {**dict.fromkeys(LOADING, load_again), **dict.fromkeys(GENERATORS, generate_again)}
    bars = sys.modules.get("tqdm.std")
    if bars is not None:
        added |= dict.fromkeys(_list_kinds(bars.tqdm), show_nothing)
    with contextlib.ExitStack() as stack:
        for kind, copier in added.items():
            stack.callback(copiers.pop, kind)
            copiers[kind] = copier
        yield


def _list_kinds(kind: Any) -> list[Any]:
    return [kind, *(each for one in kind.__subclasses__() for each in _list_kinds(one))]


def name_uncopied(arguments: tuple[Any, ...], error: Exception) -> str:
    """Which of the arguments cannot be copied, and why."""
    for place, one in enumerate(arguments, 1):
        try:
            copy.deepcopy(one)
        except Exception as own:
            return f"argument {place}, {name_kind(arguments[place - 1])}: {own}"
    return f"the arguments: {error}"

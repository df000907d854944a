"""What a simulated step changes in the user's own objects, put back when it has run.

A step that appends its loss to a list of its module, counts in an attribute, or fills a cache in a
default argument would leave fake tensors and the counts of steps that never were. ``KeptObjects``
copies, one level each, the objects that the user's code can reach from its modules and from the
step, and gives the changed ones their content back. The step's arguments are copied already.
"""

from __future__ import annotations

import codecs
import contextlib
import contextvars
import functools
import gc
import io
import itertools
import logging
import os
import pickle
import random
import sys
import threading
import weakref
from collections import OrderedDict, defaultdict, deque
from collections.abc import Callable, Iterable, Iterator
from operator import is_
from types import (
    BuiltinMethodType,
    CellType,
    CodeType,
    FrameType,
    FunctionType,
    MethodType,
    MethodWrapperType,
    ModuleType,
)
from typing import Any

import torch
from torch.utils._python_dispatch import _disable_current_modes

from labkit.memory.balance.read import is_leaf
from labkit.memory.estimate.buffers import (
    MAPPED,
    NUMBERED,
    SHARED,
    KeptBuffers,
    keep_array,
    keep_mapped,
    keep_numbers,
    keep_shared,
    keep_text,
)
from labkit.memory.estimate.cuda import find_number
from labkit.memory.estimate.held import BUILT, POOLS, RENEWED, is_cursor, list_inner, moves
from labkit.memory.estimate.imports import LAZY
from labkit.memory.estimate.iterators import find_copy, list_parts, read_place
from labkit.memory.estimate.left import LEFT
from labkit.memory.estimate.locks import (
    LOCK,
    RECURSIVE,
    HeldLocks,
    StepLock,
    acquire_again,
    keep_lock,
    keep_recursive,
    restore_lock,
    restore_recursive,
)
from labkit.memory.estimate.opened import (
    CHANGED,
    CSV_WRITER,
    DROPPED,
    HOLDERS,
    MOVED,
    WRITERS,
    OpenFiles,
    is_alone,
    is_database,
)
from labkit.memory.estimate.pipes import HeldPipes
from labkit.memory.estimate.signals import list_signal_handlers
from labkit.memory.estimate.stalls import are_others, runs_loop_elsewhere
from labkit.memory.estimate.state import (
    OWN_MODULES,
    list_handlers,
    put_arithmetic,
    read_arithmetic,
)
from labkit.memory.track.frames import OWN, USER, judge_file
from labkit.text import join_names

# The most objects that are copied; more would take longer than most simulations.
MOST_OBJECTS = 20_000
# The most parts of XML documents that are copied.
MOST_ELEMENTS = 50_000
# The items of a longer container are not searched for others.
MOST_ITEMS = 10_000
# How much of a longer list is compared: its ends, which most code changes.
MOST_COMPARED, ENDS = 100_000, 1_000
# Modules of Python whose objects only hold values; those of others have locks, files and threads.
HOLDING = frozenset(("types", "argparse", "collections", "dataclasses", "torch", "builtins"))
HOLDING_WHOLE = (
    "multiprocessing.sharedctypes", "multiprocessing.shared_memory", "shelve", "dbm.dumb",
    "configparser", "xml.etree.ElementTree", "xml.dom.minidom", "email.message", "timeit", "hmac",
    "unittest.mock",
)  # fmt: skip
# What one event loop changes alone.
OF_LOOPS = ("asyncio.locks", "asyncio.queues")
# What no step sets, and Python sets itself.
SKIPPED = frozenset((
    "__dict__", "__weakref__", "__builtins__", "__abstractmethods__", "_abc_impl", "__slotnames__",
    "__annotations__", "__warningregistry__",
))  # fmt: skip
# Modules of Python whose objects hold no file, or are too many; and those for threads and loops,
# whose files are their own.
WITHOUT_STREAMS = frozenset((
    "builtins", "pathlib", "datetime", "decimal", "fractions", "enum", "re", "uuid", "threading",
    "_thread", "concurrent", "asyncio", "multiprocessing", "queue", "_queue", "weakref", "abc",
    "typing", "functools", "_contextvars", "logging", "selectors",
))  # fmt: skip
# A type whose objects the garbage collector looks at, as C's flag; and the most that are searched.
COLLECTED, MOST_SEARCHED = 1 << 14, 5_000
CONTAINERS: frozenset[Any] = frozenset((list, tuple, dict, deque))
ATOMS = (int, float, str, bytes, bool, complex, type(None), *BUILT, range, slice)

# What a public name of a package's module may be set to.
SETTINGS = (int, float, bool, str)
# What a class has for methods and attributes.
DESCRIPTORS = (property, classmethod, staticmethod)
# What a function's own attributes are, beside its defaults; and a logger's.
OF_FUNCTIONS = ("__code__", "__name__", "__qualname__", "__doc__")
OF_LOGGERS = frozenset(vars(logging.Logger("")))
# A longer text names no attribute.
LONGEST_NAME = 120
ERROR_NAMES = ("args", "__cause__", "__context__", "__suppress_context__", "__traceback__")

# The most objects through which the holder of a fake tensor is searched, and how far.
MOST_HOLDERS, HOLDER_DEPTH, HOLDERS_NAMED = 1_000, 8, 3
# The names of modules that were seen not to be the user's: most of thousands.
_foreign: set[str] = set()

# Of one, and of several.
WRITTEN = (
    "what the step writes into {} stays: it is too large to be copied",
    "what the step writes into {} stays: they are too large to be copied",
)
EMPTIED = (
    "the cache of {} is emptied: the simulation has put values into it that are not real",
    "the caches of {} are emptied: the simulation has put values into them that are not real",
)
CHANGED_DOCUMENT = (
    "what the step changes in XML documents stays in part: they have more than {} parts",
) * 2
ADVANCED = (
    "the generator {} has moved on: the real step gets what comes next",
    "the generators {} have moved on: the real step gets what comes next",
)
LRU_CACHE = type(functools.lru_cache(int))

# Views of a dictionary.
VIEWS = tuple(map(type, ({}.keys(), {}.values(), {}.items())))

# What a connection of SQLite's, or a cursor, makes of what it reads.
FACTORIES = ("row_factory", "text_factory", "arraysize")
Keeper = Callable[["KeptObjects", Any], None]
UNSET = object()
# Functions that make files and of whose calls Python's audit hooks hear nothing.
UNHEARD = tuple(getattr(os, name) for name in ("mkfifo", "mknod") if hasattr(os, name))
# What tables are keyed by that is equal to nothing else.
BY_IDENTITY = (torch.nn.Module, torch.Tensor, torch.optim.Optimizer)
TABLES: tuple[Any, ...] = (
    OrderedDict, dict, set, weakref.WeakKeyDictionary, weakref.WeakValueDictionary, weakref.WeakSet,
)  # fmt: skip


class KeptObjects:
    """One-level copies of the objects that a step can change; ``restore`` gives them back."""

    def __init__(
        self,
        *roots: object,
        is_step: Callable[[], bool],
        refuse: Callable[[str, str], object],
        pipes: HeldPipes,
        locks: HeldLocks,
    ) -> None:
        # What puts an object back, with the object and its content; which keeps their ids theirs.
        self._kept: list[tuple[Callable[[Any, Any], None], Any, Any]] = []
        # Objects of the program's classes, with their classes.
        self.kinds: list[tuple[Any, type]] = []
        self.seen: set[int] = set()
        self.files, self.buffers, self._refuse = OpenFiles(is_step), KeptBuffers(), refuse
        self._pipes, self.locks, self._searched = pipes, locks, 0
        # Locks, with whether they were locked, or how often by this thread.
        self.locks_before: list[tuple[Any, bool]] = []
        # What has their place in the step, by their numbers; and methods of theirs.
        self.step_locks: dict[int, StepLock] = {}
        self.lock_methods: list[Any] = []
        # The numbers of what something else has the place of.
        self._placed: set[int] = set()
        # Whether nothing but the step can change one.
        self._alone = not are_others([threading.get_ident()])
        self.recursive_before: list[tuple[Any, int]] = []
        # Caches of functions, with how often each had to compute.
        self._caches: list[tuple[Any, int]] = []
        # Dictionaries and sets, whose keys may be arguments of the step.
        self.tables: list[Any] = []
        # Tuples, in which nothing can be replaced, and how many parts of XML documents there are.
        self.tuples: list[Any] = []
        self.elements = 0
        self._keeps_unheard = False
        # What the program's code names, the packages' modules that it has, and their classes.
        self.names: set[str] = set()
        self._libraries: list[Any] = []
        self._foreign: set[int] = set()
        # Iterators, and methods of theirs.
        self._iterators: dict[int, Any] = {}
        # What other methods are for ones of classes that have been changed.
        self._renewed: dict[int, Any] = {}
        # Parts of documents that are not copied, and what they were.
        self._elements: list[tuple[Any, Any]] = []
        # Generators, and where they were.
        self._places: list[tuple[Any, tuple[int, ...]]] = []
        handlers = (*list_handlers(), *list_signal_handlers())
        self._left: deque[Any] = deque((*roots, sys.stdin, *handlers))
        for name in _list_unknown_modules():
            module = sys.modules.get(name)
            if type(module) is LAZY:  # to ask it for anything would load it
                continue
            if not is_own_module(name):
                _foreign.add(name)
                _named[0] = []
            elif not _is_importing(module):
                self._left.append(module)
        self._keep_all()
        self._keep_named()
        self._hold()

    def _keep_all(self) -> None:
        """Keeps what can be reached from the objects that are to be looked at."""
        left = self._left
        while left and len(self._kept) - self.elements < MOST_OBJECTS:
            one = left.popleft()
            kind: Any = type(one)
            if find_number(one) in self.seen:
                continue
            if moves(kind):
                if find_number(one) not in self._iterators:
                    self._iterators[find_number(one)] = one
                    self._watch(one)
                    self.follow(list_parts(one))
                if not is_cursor(kind):
                    continue
            keeper = find_keeper(kind)
            if keeper is not None:
                self.seen.add(find_number(one))
                keeper(self, one)
        left.clear()

    def _keep_named(self) -> None:
        """Keeps the packages' modules and classes that the program's code names."""
        names, left = self.names, self._libraries
        left += [sys.modules[name] for name in names & sys.modules.keys()]
        seen: set[int] = set()
        while left:
            one = left.pop()
            if type(one) is LAZY or not _is_module(one) or find_number(one) in seen:
                continue
            seen.add(find_number(one))
            self._left.append(one)
            found = [value for name, value in list(vars(one).items()) if name in names]
            left += [value for value in found if type(value) is ModuleType]
            for value in found:
                if isinstance(value, type) and not is_own_module(value.__module__):
                    self._keep_foreign(value)
        self._keep_all()

    def _keep_foreign(self, kind: type) -> None:
        """Keeps a class of a package's, whose methods code replaces and adds to."""
        if find_number(kind) not in self._foreign:
            self._foreign.add(find_number(kind))
            self.keep(restore_foreign, kind, dict(vars(kind)))

    def hold_library(self, one: ModuleType) -> None:
        """Keeps the names of a package's module; what the program names in it is kept later."""
        if _is_importing(one):
            return
        if not is_own(one):
            self._libraries.append(one)
            self.keep(restore_library, one, (vars(one).copy(),))  # dict() takes 20 times as long
        else:
            self.keep(restore_names, vars(one), dict(vars(one)))
            self.follow((*vars(one).values(), type(one)))

    def _hold(self) -> None:
        """Puts copies, and what refuses, in the place of what moves on."""
        made = {
            find_number(one): getattr(os, one.__name__) for one in UNHEARD if self._keeps_unheard
        }
        if (self._iterators or self._renewed) and is_alone():
            made |= self._renewed
            made |= {number: find_copy(one) for number, one in self._iterators.items()}
        for lock, _ in self.locks_before:
            self.step_locks[find_number(lock)] = self.locks.hold_lock(lock)
        made |= self.step_locks
        for one in self.lock_methods:
            owner = self.step_locks.get(find_number(one.__self__))
            if owner is not None:
                made[find_number(one)] = getattr(owner, one.__name__)
                self._placed.add(find_number(one.__self__))
        if made:
            self._replace(made | self._make_tuples(made))

    def keep(self, restore: Callable[[Any, Any], None], one: Any, content: Any) -> None:
        """Keeps the content of an object, with what puts it back."""
        self._kept.append((restore, one, content))

    def follow(self, values: Iterable[Any]) -> None:
        """Looks at these objects later."""
        self._left.extend(one for one in values if type(one) not in ATOMS or self._notice(one))

    def _notice(self, one: Any) -> bool:
        """Keeps in mind what a function of Python's own works on."""
        if type(one) in BUILT:
            self._keeps_unheard = self._keeps_unheard or one in UNHEARD
            self.follow_method(one)
        return False

    def follow_method(self, one: Any) -> None:
        """Looks at the iterator, or the file, of a method such as ``iterator.__next__``."""
        owner: Any = one.__self__
        kind: Any = type(owner)
        if kind is ModuleType or isinstance(owner, type):
            return
        self._left.append(owner)
        if kind is LOCK:
            self.lock_methods.append(one)
        if moves(kind) or (isinstance(owner, io.IOBase) and self._pipes.is_talk(owner)):
            self._iterators[find_number(one)] = one

    def hold_talk(self, one: Any) -> bool:
        """Has a file refuse to be read from, if it is a pipe, a socket or a terminal.

        Who holds it gets what refuses in its place: C reads the lines that a file has in memory
        by no method.
        """
        if not self._pipes.is_talk(one):
            return False
        self.keep(restore_dictionary, vars(one), dict(vars(one)))
        for name, made in [*self._pipes.hold(one)]:
            setattr(one, name, made)
        self.follow(getattr(one, name, None) for name in ("buffer", "raw"))
        if one is not sys.stdin:
            self._iterators[find_number(one)] = one
        return True

    def search_streams(self, one: Any) -> None:
        """Looks for open files in an object of Python's own modules, of which nothing is kept."""
        left, seen = [one], set()
        while left and self._searched < MOST_SEARCHED:
            one = left.pop()
            self._searched += 1
            names = getattr(one, "__dict__", None)
            for each in (*gc.get_referents(one), *(names.values() if type(names) is dict else ())):
                kind: Any = type(each)
                if isinstance(each, io.IOBase):
                    self._left.append(each)
                elif isinstance(each, BuiltinMethodType) and isinstance(each.__self__, io.IOBase):
                    self._left.append(each.__self__)
                elif find_number(each) not in seen and _may_hold_stream(kind):
                    seen.add(find_number(each))
                    left += [each] if kind not in CONTAINERS or len(each) <= MOST_ITEMS else []

    def _watch(self, one: Any) -> None:
        place = read_place(one)
        if place is not None:
            self._places.append((one, place))

    def leave_element(self, one: Any) -> None:
        """Keeps in mind how a part of an XML document is, and its parts, without a copy."""
        if len(self._elements) < MOST_COMPARED:
            self._elements.append((one, _read_element(one)))
            self.follow(one)
        else:
            self._elements.append((one, UNSET))

    def list_changed_documents(self) -> list[str]:
        """A word for the documents with more parts than are copied, if one of those has changed."""
        changed = any(_read_element(one) != before for one, before in self._elements)
        return [f"{MOST_ELEMENTS:,}"] if changed else []

    def list_moved(self) -> list[str]:
        """The names of the generators that the step has taken from, which cannot go back."""
        return [one.__name__ for one, place in self._places if read_place(one) != place]

    def _replace(self, made: dict[int, Any]) -> None:
        """Puts others in the place of objects, by their ids, in all that is put back.

        Copies of iterators, and the layer's functions for those whose calls Python does not
        announce.
        """
        for restore, one, content in self._kept:
            found = content
            if restore is restore_function:
                found = dict(enumerate(content[0] or ())) | (content[1] or {})
            elif restore is restore_cell:
                found = {"cell_contents": content}
            elif restore is restore_list:
                found = dict(enumerate(content))
            elif restore is restore_partial:
                found = {"": content[1], **content[2]}
            elif restore is restore_module:
                found = content[0]
            if isinstance(found, dict):
                for name in [name for name, value in found.items() if find_number(value) in made]:
                    self._placed.add(find_number(found[name]))
                    _put(restore, one, name, made[find_number(found[name])])

    def _make_tuples(self, made: dict[int, Any]) -> dict[int, Any]:
        """By their numbers: others for the tuples that hold what is replaced, inner ones first."""
        found: dict[int, Any] = {}
        for one in reversed(self.tuples):
            numbers = [*map(find_number, one)]
            self._placed.update(number for number in numbers if number in made)
            items = [
                found.get(number, made.get(number, each))
                for number, each in zip(numbers, one, strict=True)
            ]
            if not all(map(is_, items, one)):
                found[find_number(one)] = tuple.__new__(type(one), items)
        return found

    def keep_cache(self, cache: Any) -> None:
        """Keeps a function's cache in mind, whose content Python does not show."""
        self._caches.append((cache, cache.cache_info().misses))

    def empty_caches(self) -> list[str]:
        """Empties the caches into which the step has put something; returns their names."""
        filled = [one for one, misses in self._caches if one.cache_info().misses != misses]
        for one in filled:
            one.cache_clear()
        return [one.__name__ for one in filled]

    def rename_keys(self, copies: dict[int, Any]) -> None:
        """Gives tables with an argument of the step as a key its copy for it, or the copy's id.

        ``copies`` has the copies by the arguments' ids. What the step looks up in a table by its
        model or a parameter is found, as in a real step.
        """
        for one in self.tables:
            base: Any = next(kind for kind in TABLES if isinstance(one, kind))
            keys = list(base.keys(one) if hasattr(base, "keys") else base.__iter__(one))
            named = [_find_copy(key, copies) for key in keys]
            if _are_same(keys, named):
                continue
            values = [base.__getitem__(one, key) for key in keys] if hasattr(base, "keys") else ()
            base.clear(one)
            base.update(one, dict(zip(named, values, strict=True)) if values else named)

    def renew(self, method: MethodType) -> None:
        """Has a method of a class that has another one now be that one, for who holds it."""
        if type(method.__self__).__module__ in RENEWED:
            made = getattr(method.__self__, method.__name__, method)
            self._renewed[find_number(method)] = made

    def begin_step(self) -> None:
        """Gives back the locks that a simulated step has acquired and not released.

        Of those whose changes are seen, the next call gets what it would wait for. One that its
        owner can acquire again stays acquired: a generator of the step may yet release it.
        """
        self.locks.begin_step()
        for one, locked in self.locks_before:
            if find_number(one) in self._placed:
                self.step_locks[find_number(one)].leave()
                continue
            with contextlib.suppress(RuntimeError):  # it is named at the end
                self._restore_lock(one, locked)
        for one, count in self.recursive_before:
            acquire_again(one, count)

    def find_step_lock(self, one: Any) -> Any:
        """What an argument's copy has for a lock, which is not copied."""
        self._placed.add(find_number(one))
        return self.step_locks.get(find_number(one), one)

    def _restore_lock(self, one: Any, locked: bool) -> None:
        """Puts a lock back if the step has changed it; raises RuntimeError if that is unknown."""
        held = self.step_locks.get(find_number(one))
        if held is not None:
            held.settle()
        if one.locked() is locked:  # as most are: to look at all threads takes longer
            return
        known = find_number(one) in self._placed
        alone = self._alone and not are_others([threading.get_ident()])
        restore_lock(one, locked, alone=alone, known=known)

    def restore(self) -> list[str]:
        """Puts back what has changed; returns what could not be put back, by its type."""
        failed = []
        locks = [(self._restore_lock, *one) for one in self.locks_before]
        # A generator that is within a block of a lock releases it, once nothing holds it.
        after = [one for one in self._kept if one[0] is restore_recursive]
        before = (one for one in self._kept if one[0] is not restore_recursive)
        kinds: list[Any] = [(restore_kind, *one) for one in self.kinds]
        for restore, one, content in (*kinds, *before, *after, *locks):
            try:
                restore(one, content)
            except Exception:  # what the user's classes raise
                failed.append(type(one).__name__)
        return failed


# The names of all modules of then, and of those among them that may be the user's.
_named: list[list[str]] = [[], []]


def _list_unknown_modules() -> list[str]:
    """The names of the modules that are not known to be a package's: few of thousands."""
    names = list(sys.modules)
    if names != _named[0]:
        _named[:] = [names, list(itertools.filterfalse(_foreign.__contains__, names))]
    return _named[1]


def _is_importing(module: Any) -> bool:
    """Whether another thread runs the module's code for the first time, and fills its names."""
    spec = vars(module).get("__spec__") if isinstance(module, ModuleType) else None
    return bool(getattr(spec, "_initializing", False))


def _put(restore: Any, one: Any, name: Any, value: Any) -> None:
    """Puts another function into what ``restore`` puts back."""
    if restore is restore_function:
        if isinstance(name, int):
            defaults = one.__defaults__
            one.__defaults__ = (*defaults[:name], value, *defaults[name + 1 :])
        else:
            one.__kwdefaults__ = one.__kwdefaults__ | {name: value}
    elif restore is restore_partial:
        named = one.keywords | {name: value} if name else one.keywords
        one.__setstate__((one.func, one.args if name else value, named, vars(one)))
    elif restore in {restore_list, restore_dictionary, restore_names}:
        one[name] = value
    elif restore is restore_class:
        setattr(one, name, staticmethod(value))
    else:
        object.__setattr__(one, name, value)


def _find_copy(key: Any, copies: dict[int, Any]) -> Any:
    """The copy of an argument that a table has as a key, or its id where the key is an id."""
    if type(key) is int:
        copied = copies.get(key)
        return id(copied) if isinstance(copied, BY_IDENTITY) else key
    return copies.get(id(key), key) if isinstance(key, BY_IDENTITY) else key


def _find_file(module: Any) -> str | None:
    """The file of a module, or of the class of what a module has put in its place."""
    if not isinstance(module, ModuleType):
        methods = (one for one in vars(type(module)).values() if isinstance(one, FunctionType))
        return next((one.__code__.co_filename for one in methods), None)
    names = vars(module)
    file = names.get("__file__")
    if file is None and isinstance(names.get("__path__"), Iterable):  # of no file of its own
        file = next((f"{one}/" for one in names["__path__"]), None)
    return file if isinstance(file, str) else None


def _judge_module(name: str, module: Any) -> bool:
    """True for a module of the program's: one without a file, unless it is a part of a package."""
    file = _find_file(module)
    if file is not None:
        return judge_file(file) == USER
    parent, _, _ = name.rpartition(".")
    return is_own_module(parent) if parent else name not in OWN_MODULES


def is_own_module(name: str | None) -> bool:
    """True for the name of a module of the user's program, not of a package.

    One that cannot be imported is the program's if it is not a part of something that can be.
    """
    if type(name) is not str:
        return False
    module, (first, _, _) = sys.modules.get(name), name.partition(".")
    if module is None:
        return first not in sys.modules and first not in OWN_MODULES
    if type(module) is LAZY:
        return False
    return name == "__main__" or _judge_module(name, module)


def is_own(module: ModuleType) -> bool:
    """True for a module of the user's program, whether it can be imported or not."""
    name = vars(module).get("__name__")
    if type(name) is not str:
        return True
    return is_own_module(name) if sys.modules.get(name) is module else _judge_module(name, module)


@functools.lru_cache(maxsize=4096)
def find_keeper(kind: Any) -> Keeper | None:
    """What keeps an object of this type; None for one without content that a step can change."""
    for base, keeper in KEEPERS.items():
        if issubclass(kind, base):
            return keeper
    module = getattr(kind, "__module__", "")
    file = getattr(sys.modules.get(module), "__file__", None)
    if module in OF_LOOPS or is_database(kind):
        return _keep_loops if module in OF_LOOPS else _keep_database
    for name, kinds, keeper in IMPORTED:
        imported = sys.modules.get(name)
        if imported is not None and issubclass(
            kind, tuple(getattr(imported, one) for one in kinds)
        ):
            return keeper
    may_hold = module.partition(".")[0] in HOLDING or module in HOLDING_WHOLE
    may_hold = may_hold or is_own_module(module)
    if may_hold or (file is not None and judge_file(file) != OWN):
        if issubclass(kind, POOLS):
            return _keep_pool
        return keep_array if kind.__name__ in {"ndarray", "memmap"} else _keep_attributes
    return _search_streams if _may_hold_stream(kind) else None


@functools.lru_cache(maxsize=4096)
def _may_hold_stream(kind: Any) -> bool:
    """True for a type of Python's own modules, or a container, whose objects may hold a file."""
    if kind in CONTAINERS:
        return True
    if not isinstance(kind.__module__, str) or issubclass(kind, (type, *ATOMS)):
        return False
    module = kind.__module__.partition(".")[0]
    standard = module in sys.stdlib_module_names and module not in WITHOUT_STREAMS
    return standard and bool(kind.__flags__ & COLLECTED)


def _keep_list(kept: KeptObjects, one: Any) -> None:
    kept.keep(restore_list, one, list(one))
    if len(one) <= MOST_ITEMS:
        kept.follow(one)
    _keep_attributes(kept, one)


def _keep_dictionary(kept: KeptObjects, one: Any) -> None:
    base: Any = OrderedDict if isinstance(one, OrderedDict) else dict
    kept.keep(restore_dictionary, one, dict(base.items(one)))
    if isinstance(one, defaultdict):
        kept.keep(restore_slots, one, {"default_factory": one.default_factory})
        kept.follow((one.default_factory,))
    if len(one) <= MOST_ITEMS:
        kept.tables.append(one)
        kept.follow(dict.values(one))
    _keep_attributes(kept, one)


def _keep_set(kept: KeptObjects, one: Any) -> None:
    kept.keep(restore_set, one, set(one))
    if len(one) <= MOST_ITEMS:
        kept.tables.append(one)
        kept.follow(one)


def _keep_weak_dictionary(kept: KeptObjects, one: Any) -> None:
    # Its keys and values live as long as the copy.
    content = list(one.items())
    kept.keep(restore_weak_dictionary, one, content)
    kept.tables.append(one)
    kept.follow(value for _, value in content)


def _keep_weak_set(kept: KeptObjects, one: Any) -> None:
    kept.keep(restore_weak_set, one, list(one))
    kept.tables.append(one)


def _keep_items(kept: KeptObjects, one: Any) -> None:
    if len(one) <= MOST_ITEMS:
        kept.follow(one)
        if isinstance(one, tuple):
            kept.tuples.append(one)


def _keep_element(kept: KeptObjects, one: Any) -> None:
    # A large document would leave out other objects.
    if kept.elements >= MOST_ELEMENTS:
        kept.leave_element(one)
    else:
        kept.elements += 1
        named = one.attrib if one.items() else {}  # else it would be made now
        kept.keep(
            restore_element, one, (one.tag, one.text, one.tail, named, dict(named), list(one))
        )
        kept.follow(one)


def _read_element(one: Any) -> tuple[Any, ...]:
    """What a part of an XML document has, to compare; its parts by their numbers."""
    return one.tag, one.text, one.tail, one.items(), [*map(find_number, one)]


def _keep_local(kept: KeptObjects, one: Any) -> None:
    # The attributes that this thread sees.
    kept.keep(restore_dictionary, vars(one), dict(vars(one)))
    kept.follow((*vars(one).values(), type(one)))


def _keep_random(kept: KeptObjects, one: random.Random) -> None:
    if not isinstance(one, random.SystemRandom):
        kept.keep(restore_random, one, one.getstate())


def _keep_generator(kept: KeptObjects, one: torch.Generator) -> None:
    if one.device.type == "cpu":
        with _disable_current_modes():
            kept.keep(restore_generator, one, one.get_state())


def _keep_numpy(kept: KeptObjects, one: Any) -> None:
    bits = one.bit_generator if hasattr(one, "bit_generator") else one._bit_generator
    kept.keep(restore_bits, bits, bits.state)


def _keep_view(kept: KeptObjects, one: memoryview) -> None:
    with contextlib.suppress(ValueError):  # released
        kept.follow((one.obj,))


def _keep_file(kept: KeptObjects, one: Any) -> None:
    """Drops what the step writes into a file that is open: its numbers are not real."""
    streams = (sys.stdout, sys.stderr, sys.__stdout__, sys.__stderr__)
    if any(one in (each, getattr(each, "buffer", None)) for each in streams):
        return
    if isinstance(one, io.IOBase) and (one.closed or not one.writable()):
        _keep_reader(kept, one)
        return
    if isinstance(one, io.IOBase) and one.isatty():
        return
    kept.keep(restore_dictionary, vars(one), dict(vars(one)))
    for name, made in kept.files.take(one):
        setattr(one, name, made)
    kept.follow((getattr(one, "buffer", None),))


def _keep_reader(kept: KeptObjects, one: Any) -> None:
    if not (one.closed or kept.hold_talk(one) or one.isatty()):
        kept.keep(restore_dictionary, vars(one), dict(vars(one)))
        for name, made in kept.files.take_reader(one):
            setattr(one, name, made)


def _keep_stream(kept: KeptObjects, one: Any) -> None:
    """Keeps a file of another class: one of Python's own, or of the program."""
    standard = type(one).__module__.partition(".")[0] in sys.stdlib_module_names
    if standard and not is_own_module(type(one).__module__):
        if not one.closed and one.readable() and not one.writable():
            _keep_reader(kept, one)
    else:
        _keep_attributes(kept, one)


def _keep_pickler(kept: KeptObjects, one: pickle.Pickler) -> None:
    # It notes what it has written already.
    kept.keep(restore_pickler, one, one.memo.copy())  # type: ignore[attr-defined]
    _keep_file_of_method(kept, one)


def _keep_file_of_method(kept: KeptObjects, one: Any) -> None:
    methods = (each for each in gc.get_referents(one) if isinstance(each, BuiltinMethodType))
    kept.follow(each.__self__ for each in methods)


def _keep_process(kept: KeptObjects, one: Any) -> None:
    streams = {name: vars(one).get(name) for name in ("stdin", "stdout", "stderr")}
    kept.keep(restore_slots, one, streams)
    kept.follow(streams.values())


def _search_streams(kept: KeptObjects, one: Any) -> None:
    kept.search_streams(one)


def _keep_database(kept: KeptObjects, one: Any) -> None:
    kept.keep(
        restore_slots, one, {name: getattr(one, name) for name in FACTORIES if hasattr(one, name)}
    )
    kept.follow((kept.files.take_database(getattr(one, "connection", one), kept._refuse),))


def _keep_handler(kept: KeptObjects, one: logging.Handler) -> None:
    """Keeps the settings of a handler of logging, and the records that it has in memory."""
    # Another thread may have it begin a file meanwhile.
    skipped = {"stream"} if isinstance(one, logging.FileHandler) else set()
    content = {name: value for name, value in vars(one).items() if name not in skipped}
    kept.keep(restore_slots, one, content)
    kept.follow(content.values())


def _keep_logger(kept: KeptObjects, one: logging.Logger) -> None:
    """Keeps what the program adds to a logger: the process's settings have the rest."""
    content = {name: value for name, value in vars(one).items() if name not in OF_LOGGERS}
    kept.keep(restore_pool, one, (content, OF_LOGGERS))
    kept.follow((*content.values(), type(one)))


def _keep_method_by_type(kept: KeptObjects, one: Any) -> None:
    kept.follow((one.dispatcher, one.func))


def _keep_shared_lock(kept: KeptObjects, one: Any) -> None:
    kept.keep(restore_dictionary, vars(one), dict(vars(one)))
    for name, made in [*kept.locks.hold(one)]:
        setattr(one, name, made)


def _keep_condition(kept: KeptObjects, one: threading.Condition) -> None:
    # It keeps the methods of its lock, too.
    kept.keep(restore_dictionary, vars(one), dict(vars(one)))
    kept.follow(vars(one).values())
    kept.locks.hold_condition(one)


def _keep_shared_condition(kept: KeptObjects, one: Any) -> None:
    # It keeps the methods of its lock, too.
    kept.keep(restore_dictionary, vars(one), dict(vars(one)))
    if find_number(one._lock) not in kept.seen:
        kept.seen.add(find_number(one._lock))
        _keep_shared_lock(kept, one._lock)
    one.acquire, one.release = one._lock.acquire, one._lock.release
    LEFT.add_owner(one._lock, one)


def _keep_decimal(kept: KeptObjects, one: Any) -> None:
    kept.keep(put_arithmetic, one, read_arithmetic(one))


def _keep_codec(kept: KeptObjects, one: Any) -> None:
    kept.keep(restore_codec, one, one.getstate())


def _list_hooks(one: Any) -> tuple[Any, Any]:
    """The hooks of a tensor, and those that are called once its gradient is there, or None."""
    return one._backward_hooks, one._post_accumulate_grad_hooks


def _keep_tensor(kept: KeptObjects, one: Any) -> None:
    if is_leaf(one):
        hooks = [table and table.copy() for table in _list_hooks(one)]
        kept.keep(restore_tensor, one, (one.requires_grad, one.grad, hooks))
    kept.keep(restore_dictionary, vars(one), dict(vars(one)))
    kept.follow(vars(one).values())


def _keep_cell(kept: KeptObjects, one: CellType) -> None:
    content = getattr(one, "cell_contents", UNSET)
    kept.keep(restore_cell, one, content)
    kept.follow((content,))


def _wraps(one: FunctionType) -> bool:
    """True for what Python's or torch's code has made of a function, and may keep things for it."""
    package = str(one.__globals__.get("__name__")).partition(".")[0]
    return package == "functools" or (package != "labkit" and hasattr(one, "__wrapped__"))


def _keep_function(kept: KeptObjects, one: FunctionType) -> None:
    if judge_file(one.__code__.co_filename) != OWN:
        kept.names.update(list_names(one.__code__))
    elif not _wraps(one):
        return
    own = {name: getattr(one, name) for name in OF_FUNCTIONS}
    content = one.__defaults__, one.__kwdefaults__, dict(one.__dict__), own
    kept.keep(restore_function, one, content)
    kept.follow(one.__defaults__ or ())
    kept.follow((one.__kwdefaults__, *one.__dict__.values(), *(one.__closure__ or ())))
    names = one.__globals__
    module = sys.modules.get(names.get("__name__", ""))
    imported = isinstance(module, ModuleType) and vars(module) is names
    is_users = not imported and judge_file(one.__code__.co_filename) == USER
    if is_users and find_number(names) not in kept.seen:  # of code that is run, not imported
        kept.seen.add(find_number(names))
        kept.keep(restore_names, names, dict(names))
        kept.follow(names.values())


@functools.lru_cache(maxsize=MOST_OBJECTS)
def list_names(code: CodeType) -> frozenset[str]:
    """The names that a function's code has, of attributes and modules too, also in its texts."""
    found = {*code.co_names}
    for one in code.co_consts:
        if isinstance(one, CodeType):
            found |= list_names(one)
        elif isinstance(one, str) and len(one) < LONGEST_NAME:
            parts = one.split(".")
            found |= {one, *parts} if all(map(str.isidentifier, parts)) else set()
    return frozenset(found)


def _keep_cache(kept: KeptObjects, one: Any) -> None:
    code = getattr(one.__wrapped__, "__code__", None)
    if code is not None and judge_file(code.co_filename) == USER:
        kept.keep_cache(one)
        kept.follow((one.__wrapped__,))


def _keep_method(kept: KeptObjects, one: MethodType) -> None:
    kept.renew(one)
    kept.follow((one.__self__, one.__func__))


def _follow_parts(kept: KeptObjects, one: Any) -> None:
    parts = (one(),) if isinstance(one, weakref.ref) else gc.get_referents(one)
    kept.follow(parts)


def _keep_partial(kept: KeptObjects, one: Any) -> None:
    kept.keep(restore_partial, one, (one.func, one.args, dict(one.keywords), vars(one)))
    kept.follow((one.func, one.args, *one.keywords.values()))
    _keep_attributes(kept, one)


def _keep_wrapped(kept: KeptObjects, one: Any) -> None:
    kept.follow((one.__func__,))


def _keep_property(kept: KeptObjects, one: property) -> None:
    kept.follow((one.fget, one.fset, one.fdel))


def _keep_library(kept: KeptObjects, one: ModuleType) -> None:
    """Keeps the names of a module: of a package's, whose functions and settings code replaces."""
    if type(one) is not LAZY:
        kept.hold_library(one)


def _keep_error(kept: KeptObjects, one: BaseException) -> None:
    kept.keep(restore_error, one, [getattr(one, name) for name in ERROR_NAMES])
    kept.follow(one.args)
    _keep_attributes(kept, one)


def _keep_class(kept: KeptObjects, one: type) -> None:
    if is_own_module(one.__module__):
        content = dict(vars(one))
        kept.keep(restore_class, one, content)
        kept.keep(restore_bases, one, (one.__bases__, one.__name__, one.__qualname__))
        kept.follow(content.values())
        kept.follow(one.__bases__)


def _keep_attributes(kept: KeptObjects, one: Any) -> None:
    kind: Any = type(one)
    if is_own_module(kind.__module__):
        kept.kinds.append((one, kind))
    names = getattr(one, "__dict__", None)
    if type(names) is dict:
        kept.keep(restore_dictionary, names, dict(names))
        kept.follow(names.values())
    slots = _list_slots(kind)
    if slots:
        values = {name: getattr(one, name, UNSET) for name in slots}
        kept.keep(restore_slots, one, values)
        kept.follow(values.values())
    kept.follow((kind,))


def _keep_loops(kept: KeptObjects, one: Any) -> None:
    """Keeps an event, a queue or the like of asyncio's, unless another thread's loop has it."""
    loop = getattr(one, "_loop", None)
    number = getattr(loop, "_thread_id", None)
    is_own = number in {None, threading.get_ident()}
    if is_own and (number is not None or not runs_loop_elsewhere()):
        _keep_attributes(kept, one)


def _keep_pool(kept: KeptObjects, one: Any) -> None:
    """Keeps what a pool's class of the program's own adds: its threads have the rest."""
    inner = list_inner(one)
    content = {name: value for name, value in vars(one).items() if name not in inner}
    kept.keep(restore_pool, one, (content, inner))
    kept.follow(content.values())
    kept.follow((type(one),))


def _keep_module(kept: KeptObjects, one: torch.nn.Module) -> None:
    # A model has many dictionaries of hooks, and most are empty.
    content = dict(vars(one))
    tables = {name: value.copy() for name, value in content.items() if type(value) in TABLES}
    kept.keep(restore_module, one, (content, tables))
    kept.kinds.append((one, type(one)))
    for names in (one._parameters, one._buffers, one._modules):
        kept.follow(names.values())
    kept.follow(value for name, value in vars(one).items() if not name.startswith("_"))
    kept.follow((type(one),))


def _keep_optimizer(kept: KeptObjects, one: torch.optim.Optimizer) -> None:
    hooks = [value for value in vars(one).values() if isinstance(value, OrderedDict)]
    for names in (vars(one), one.state, *one.param_groups, *hooks):
        kept.keep(restore_dictionary, names, dict(names))
    kept.keep(restore_list, one.param_groups, one.param_groups[:])


@functools.lru_cache(maxsize=4096)
def _list_slots(kind: Any) -> tuple[str, ...]:
    found = []
    for one in kind.__mro__:
        if is_own_module(one.__module__) or one.__module__ in HOLDING_WHOLE:
            slots = vars(one).get("__slots__", ())
            found += [slots] if isinstance(slots, str) else list(slots)
    return tuple(name for name in found if name not in SKIPPED)


KEEPERS: dict[type, Keeper | None] = {
    **dict.fromkeys(ATOMS),
    **dict.fromkeys(WRITERS, _keep_file),
    io.BufferedReader: _keep_reader,
    CSV_WRITER: _keep_file_of_method,
    pickle.Pickler: _keep_pickler,
    **dict.fromkeys(
        (codecs.IncrementalDecoder, codecs.IncrementalEncoder, io.IncrementalNewlineDecoder),
        _keep_codec,
    ),
    **dict.fromkeys(HOLDERS, _keep_attributes),
    torch.Tensor: _keep_tensor,
    torch.nn.Module: _keep_module,
    torch.optim.Optimizer: _keep_optimizer,
    list: _keep_list,
    deque: _keep_list,
    dict: _keep_dictionary,
    weakref.WeakKeyDictionary: _keep_weak_dictionary,
    weakref.WeakValueDictionary: _keep_weak_dictionary,
    weakref.WeakSet: _keep_weak_set,
    tuple: _keep_items,
    frozenset: _keep_items,
    set: _keep_set,
    **dict.fromkeys(NUMBERED, keep_numbers),
    **dict.fromkeys((io.StringIO, io.BytesIO), keep_text),
    **dict.fromkeys(SHARED, keep_shared),
    MAPPED: keep_mapped,
    memoryview: _keep_view,
    threading.local: _keep_local,
    random.Random: _keep_random,
    torch.Generator: _keep_generator,
    FunctionType: _keep_function,
    LRU_CACHE: _keep_cache,
    MethodType: _keep_method,
    MethodWrapperType: KeptObjects.follow_method,
    **dict.fromkeys((weakref.ref, *VIEWS), _follow_parts),
    logging.Handler: _keep_handler,
    logging.Logger: _keep_logger,
    contextvars.ContextVar: _follow_parts,
    contextlib.ExitStack: _keep_attributes,
    functools.singledispatchmethod: _keep_method_by_type,
    LOCK: keep_lock,
    RECURSIVE: keep_recursive,
    threading.Condition: _keep_condition,
    functools.partial: _keep_partial,
    BaseException: _keep_error,
    CellType: _keep_cell,
    type: _keep_class,
    staticmethod: _keep_wrapped,
    classmethod: _keep_wrapped,
    property: _keep_property,
    io.IOBase: _keep_stream,
    ModuleType: _keep_library,
}
# The same for classes of modules that need not be imported: module, names, keeper.
IMPORTED: tuple[tuple[str, tuple[str, ...], Keeper], ...] = (
    ("subprocess", ("Popen",), _keep_process),
    ("xml.etree.ElementTree", ("Element",), _keep_element),
    ("numpy.random", ("Generator", "RandomState"), _keep_numpy),
    ("decimal", ("Context",), _keep_decimal),
    ("multiprocessing.synchronize", ("SemLock",), _keep_shared_lock),
    ("multiprocessing.synchronize", ("Condition",), _keep_shared_condition),
)


@contextlib.contextmanager
def keep_objects(
    roots: Iterable[object],
    note: Callable[[str], object],
    is_step: Callable[[], bool],
    refuse: Callable[[str, str], object],
    *,
    pipes: HeldPipes,
    locks: HeldLocks,
) -> Iterator[KeptObjects]:
    """Puts back, on exit, what the block changes in objects of the user's program.

    ``roots`` are the step and what of its arguments is not copied: functions, classes, open files.
    ``note`` takes a sentence about what could not be put back, ``is_step`` says whether the running
    thread works for the step, ``refuse`` keeps what it is stopped at, by a name and a path, and
    ``pipes`` and ``locks`` have those from before.
    """
    LEFT.clear()
    set_now = contextvars.copy_context().values()
    kept = KeptObjects(*roots, *set_now, is_step=is_step, refuse=refuse, pipes=pipes, locks=locks)
    kept.files.begin()
    try:
        with kept.files.open():
            yield kept
    finally:
        locks.end_steps()
        failed = kept.restore()
        pipes.restore_places()
        kept.files.end()
        files = kept.files
        for left in LEFT.describe(_name_lock):
            note(left)
        LEFT.clear()
        for names, words in (
            (kept.empty_caches(), EMPTIED), (files.written, DROPPED), (files.changed, CHANGED),
            (files.moved, MOVED), (kept.buffers.list_changed(), WRITTEN),
            (kept.list_moved(), ADVANCED), (kept.list_changed_documents(), CHANGED_DOCUMENT),
        ):  # fmt: skip
            if names:
                note(words[len(names) > 1].format(join_names(list(names))))
        for kind in dict.fromkeys(failed):
            note(f"a {kind} that the step has changed could not be put back")


def _are_same(one: Any, other: Any) -> bool:
    """True if both have the same objects in the same order; an object's own ``==`` is not asked."""
    return len(one) == len(other) and all(map(is_, one, other))


def restore_list(one: Any, content: list[Any]) -> None:
    """Gives a list or a deque its items back."""
    if len(one) == len(content) > MOST_COMPARED and isinstance(one, list):
        ends = _are_same(one[:ENDS], content[:ENDS]) and _are_same(one[-ENDS:], content[-ENDS:])
        same = bool(ends)
    else:
        same = _are_same(one, content)
    if not same:
        base = list if isinstance(one, list) else deque
        base.clear(one)
        base.extend(one, content)


def restore_dictionary(one: Any, content: dict[Any, Any]) -> None:
    """Gives a dictionary its items back, in their order."""
    base: Any = OrderedDict if isinstance(one, OrderedDict) else dict
    if _are_same(base.keys(one), content) and _are_same(base.values(one), content.values()):
        return
    for key in [key for key in one if key not in content]:
        base.__delitem__(one, key)
    if not _are_same(base.keys(one), content):
        base.clear(one)
    for key, value in content.items():
        base.__setitem__(one, key, value)


def restore_names(names: dict[str, Any], content: dict[str, Any]) -> None:
    """Gives a module its names back; a module that was imported for the step stays."""
    if _are_same(names, content) and _are_same(names.values(), content.values()):
        return
    for name in names.keys() - content.keys():
        one = names[name]
        stays = isinstance(one, ModuleType) and sys.modules.get(one.__name__) is one
        if not stays and name not in SKIPPED:
            del names[name]
    for name, value in content.items():
        if names.get(name, UNSET) is not value and name not in SKIPPED:
            names[name] = value


def restore_set(one: Any, content: set[Any]) -> None:
    """Gives a set its items back."""
    if len(one) != len(content) or not content.issuperset(one):
        set.clear(one)
        set.update(one, content)


def restore_module(one: torch.nn.Module, content: tuple[dict[str, Any], dict[str, Any]]) -> None:
    """Gives a module its attributes back, its parameters, its modules and its hooks."""
    names, tables = content
    restore_dictionary(vars(one), names)
    for name, items in tables.items():
        if items or names[name]:
            (restore_set if isinstance(items, set) else restore_dictionary)(names[name], items)


def restore_weak_dictionary(one: Any, content: list[tuple[Any, Any]]) -> None:
    """Gives a dictionary that holds its keys or its values weakly its items back."""
    now = list(one.items())
    if len(now) != len(content) or not all(map(_are_same, now, content)):
        one.clear()
        one.update(dict(content))


def restore_weak_set(one: Any, content: list[Any]) -> None:
    """Gives a set that holds its items weakly its items back."""
    if {*map(id, one)} != {*map(id, content)}:
        one.clear()
        one.update(content)


def restore_tensor(one: Any, content: tuple[bool, Any, list[Any]]) -> None:
    """Gives a tensor its gradient back, whether it has one, and its hooks."""
    requires_grad, gradient, hooks = content
    for now, before in zip(_list_hooks(one), hooks, strict=True):
        if now:
            restore_dictionary(now, before or {})
    if one.grad is not gradient:
        one.grad = gradient
    if one.requires_grad is not requires_grad:
        one.requires_grad_(requires_grad)


def restore_library(one: Any, content: tuple[dict[str, Any]]) -> None:
    """Gives a package's module its functions and settings back.

    What a package keeps for itself, such as what it has made at the first use, stays.
    """
    _restore_foreign(one, content[0], keeps=lambda value: False)


def restore_foreign(kind: type, content: dict[str, Any]) -> None:
    """Gives a package's class its methods and settings back."""
    _restore_foreign(kind, content, keeps=lambda value: isinstance(value, DESCRIPTORS))


def _restore_foreign(one: Any, before: dict[str, Any], keeps: Callable[[Any], bool]) -> None:
    names = vars(one)
    with contextlib.suppress(Exception):  # of values that cannot be compared
        if len(names) == len(before) and [*names.values()] == [*before.values()]:
            return

    def is_set(name: str, value: Any) -> bool:
        is_setting = type(value) in SETTINGS and not name.startswith("_")
        return callable(value) or is_setting or keeps(value)

    for name, value in before.items():
        if names.get(name, UNSET) is not value and name not in SKIPPED and is_set(name, value):
            setattr(one, name, value)
    for name in names.keys() - before.keys() - SKIPPED:
        if is_set(name, names[name]):
            delattr(one, name)


def restore_error(one: BaseException, content: list[Any]) -> None:
    """Gives an exception its arguments, its causes and its lines back."""
    for name, value in zip(ERROR_NAMES, content, strict=True):
        if getattr(one, name) is not value:
            setattr(one, name, value)


def restore_partial(one: Any, content: tuple[Any, Any, dict[str, Any], Any]) -> None:
    """Gives a partial function its arguments back."""
    named = one.keywords
    same = _are_same(named, content[2]) and _are_same(named.values(), content[2].values())
    if one.args is not content[1] or not same:
        one.__setstate__(content)


def restore_element(one: Any, content: tuple[Any, ...]) -> None:
    """Gives a part of an XML document its name, texts, attributes and parts back."""
    tag, text, tail, named, attributes, parts = content
    if one.tag is not tag:
        one.tag = tag
    if one.text is not text:
        one.text = text
    if one.tail is not tail:
        one.tail = tail
    if (attributes or one.items()) and one.attrib is not named:
        one.attrib = named
    restore_dictionary(named, attributes)
    if len(one) != len(parts) or not _are_same(one, parts):
        one[:] = parts


def restore_pickler(one: pickle.Pickler, content: dict[int, Any]) -> None:
    """Has a pickler forget what it was given meanwhile."""
    one.memo = content  # type: ignore[attr-defined]


def restore_codec(one: Any, content: Any) -> None:
    """Gives what encodes or decodes piece by piece the rest of the last piece back."""
    one.setstate(content)


def restore_random(one: random.Random, content: Any) -> None:
    """Gives a generator of Python's its state back."""
    if one.getstate() != content:
        one.setstate(content)


def restore_generator(one: torch.Generator, content: torch.Tensor) -> None:
    """Gives a generator of torch's its state back."""
    with _disable_current_modes():
        if not torch.equal(one.get_state(), content):
            one.set_state(content)


def restore_bits(one: Any, content: dict[str, Any]) -> None:
    """Gives a generator of NumPy's its state back."""
    one.state = content


def restore_cell(one: CellType, content: Any) -> None:
    """Gives a variable of a closure its value back."""
    now = getattr(one, "cell_contents", UNSET)
    if now is content:
        return
    if content is UNSET:
        del one.cell_contents
    else:
        one.cell_contents = content


def restore_function(one: FunctionType, content: tuple[Any, Any, Any, dict[str, Any]]) -> None:
    """Gives a function its code, its name, its defaults and its attributes back."""
    defaults, named, attributes, own = content
    restore_slots(one, own)
    if one.__defaults__ is not defaults:
        one.__defaults__ = defaults
    if one.__kwdefaults__ is not named:
        one.__kwdefaults__ = named
    restore_dictionary(one.__dict__, attributes)


def restore_class(one: type, content: dict[str, Any]) -> None:
    """Gives a class its attributes back."""
    now = vars(one)
    if _are_same(now, content) and _are_same(now.values(), content.values()):
        return
    for name in now.keys() - content.keys() - SKIPPED:
        delattr(one, name)
    for name, value in content.items():
        if vars(one).get(name, UNSET) is not value and name not in SKIPPED:
            setattr(one, name, value)


def restore_bases(one: type, content: tuple[Any, str, str]) -> None:
    """Gives a class the classes that it inherits from, and its name back."""
    for name, value in zip(("__bases__", "__name__", "__qualname__"), content, strict=True):
        if getattr(one, name) != value:
            setattr(one, name, value)


def restore_kind(one: Any, kind: type) -> None:
    """Gives an object its class back."""
    if type(one) is not kind:
        object.__setattr__(one, "__class__", kind)


def restore_pool(one: Any, kept: tuple[dict[str, Any], frozenset[str]]) -> None:
    """Gives a pool, or a logger, the attributes back that its inner ones are not."""
    content, inner = kept
    for name in vars(one).keys() - content.keys() - inner:
        delattr(one, name)
    vars(one).update(content)


def restore_slots(one: Any, content: dict[str, Any]) -> None:
    """Gives an object with slots its attributes back."""
    for name, value in content.items():
        if getattr(one, name, UNSET) is not value:
            if value is UNSET:
                object.__delattr__(one, name)
            else:
                object.__setattr__(one, name, value)


def name_holders(tensors: list[Any]) -> list[str]:
    """What holds these tensors, by the names of modules, classes and functions.

    Empty if only the simulation itself does, which ends with it: none of labkit's own is named.
    Each level of the search reads the whole heap, so this is only for what is left over.
    """
    modules = {id(vars(one)): one for one in list(sys.modules.values()) if _is_module(one)}
    found: list[str] = []
    ours = False
    level, seen = tensors, {id(tensors)}
    for _ in range(HOLDER_DEPTH):
        seen.update(map(id, level))
        held, further = set(map(id, level)), []
        for one in gc.get_referrers(*level):
            if id(one) in seen or isinstance(one, FrameType) or one is held:
                continue
            module = modules.get(id(one))
            if _is_ours(one if module is None else module):
                ours = True
            elif module is not None:
                names = [name for name, value in vars(module).items() if id(value) in held]
                found += [f"{module.__name__}.{name}" for name in names]
            elif isinstance(one, FunctionType | type):
                found.append(f"{one.__module__}.{one.__qualname__}")
            else:
                further.append(one)
        level = further[:MOST_HOLDERS]
        seen.update((id(further), id(level)))
        if found or not level:
            break
    if ours and not (found or level):
        return []
    kinds = [f"an object of {type(one).__name__}" for one in level] or ["torch's C++ code"]
    return list(dict.fromkeys(found or kinds))[:HOLDERS_NAMED]


def _name_lock(one: Any) -> str:
    """What a module of the program calls it, or which function of one has it; else ""."""
    modules = [name for name in _list_unknown_modules() if is_own_module(name)]
    found = [
        f"{name}.{key}"
        for name in modules
        for key, value in list(getattr(sys.modules[name], "__dict__", {}).items())
        if value is one
    ]
    for name in found or name_holders([one]):
        start = name
        while start and start not in sys.modules:
            start = start.rpartition(".")[0]
        if is_own_module(start):
            return name
    return ""


def _is_ours(one: Any) -> bool:
    """True for a function, a class, a module or an object of the simulation's own."""
    named = one if isinstance(one, FunctionType | type) else type(one)
    name = one.__name__ if _is_module(one) else named.__module__
    return isinstance(name, str) and name.startswith(__package__)


def _is_module(one: object) -> bool:
    return type(one) is ModuleType

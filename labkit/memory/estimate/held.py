"""What stands for an object that was made before an estimate and cannot be put back.

C keeps for itself how far an iterator, a checksum or a compressor has come. The step gets a copy,
where there is one: it goes on from there, and the real one stays. Elsewhere it gets what passes on
all that changes nothing, and refuses the rest.
"""

from __future__ import annotations

import contextlib
import functools
import inspect
import io
import re
import sys
from collections.abc import Callable
from concurrent import futures
from multiprocessing import pool
from types import BuiltinMethodType, FunctionType, MethodWrapperType
from typing import Any, ClassVar, NoReturn

FIX = (
    "pass the loader instead of its iterator, and take the batch in the step:"
    " for batch in loader, or next(iter(loader))"
)
FIX_STREAM = "let the step open it, or read it before and pass what it has"
FIX_MADE = "make it in the step, or pass what it gives: list(...)"
FIX_QUEUE = "take the batch before, and pass it: estimate_memory(step, model, batch)"
WAITS_FOR = "waits for an answer in"
FIX_ASKED = (
    "give the work to a ThreadPoolExecutor, let the step start the thread that answers, or let the"
    " step compute it itself"
)
UNHEARD = (
    "the thread or process that answers does not get what the step has put into {}: it would"
    " work on numbers that are not real"
)
DROPPED = "what the step puts into a {} that was made before is dropped"
# Python's modules whose iterators are made of loaders and batches.
MODULES = {"builtins", "itertools", "_csv"}
# Two types of C's methods: the second knows the class that has it.
BUILT: frozenset[Any] = frozenset((BuiltinMethodType, type(re.compile("").scanner("").search)))  # type: ignore[attr-defined]
METHODS = BUILT | {MethodWrapperType}
# Modules of C whose objects move on, and have a method ``copy``; and such without one.
COPIED = frozenset((
    "_hashlib", "_blake2", "_md5", "_sha1", "_sha256", "_sha512", "_sha2", "_sha3", "zlib",
    "_contextvars",
))  # fmt: skip
UNCOPIED = frozenset(("_bz2", "_lzma", "_sre"))
# The methods that take something from a stream, or move one of those on.
TAKING = frozenset((
    "read", "read1", "readline", "readlines", "readinto", "readinto1", "readall", "peek", "recv",
    "recv_into", "recvfrom",
))  # fmt: skip
MOVING = frozenset(("compress", "decompress", "flush", "match", "search"))
# Modules whose classes have other methods while a step is simulated.
RENEWED = frozenset((
    "socket", "ssl", "subprocess", "threading", "queue", "concurrent.futures.process",
    *(f"multiprocessing.{name}" for name in (
        "connection", "context", "process", "synchronize", "queues", "pool")),
))  # fmt: skip
# Python's pools, and how the names of their modules begin.
POOLS, MACHINES = (futures.Executor, pool.Pool), ("concurrent.", "multiprocessing.")
FETCHING = ("fetchone", "fetchmany", "fetchall", "__next__")
RUNNING = ("execute", "executemany", "executescript")


class LiveIteratorError(BaseException):
    """The step takes from an iterator, or a file, that was made before it and cannot be copied.

    ``args`` are its kind and what to do, and for another use than taking the verb and the cause.
    The step's own ``except Exception`` does not catch it.
    """


class HeldThing:
    """Has the place of something for the step; what else runs uses the thing itself."""

    __slots__ = ()
    is_step: Callable[[], bool] = staticmethod(lambda: True)


class HeldIterator(HeldThing):
    """Has the place of what cannot be copied, and refuses to give anything."""

    # Without a dictionary, in which a search for what moves on would find it.
    __slots__ = ("_held",)

    def __init__(self, held: Any) -> None:
        self._held = held

    def __getattr__(self, name: str) -> Any:
        taking = MOVING if type(self._held).__module__ in UNCOPIED else TAKING
        if name in taking and self.is_step():
            return self._refuse
        return getattr(self._held, name)

    def _refuse(self, *given: Any, **named: Any) -> Any:
        return self.__next__()

    def __enter__(self) -> HeldIterator:
        return self

    def __exit__(self, *error: object) -> None: ...

    def __iter__(self) -> Any:
        return self.__next__() if self.is_step() else iter(self._held)

    def __aiter__(self) -> Any:
        return self.__next__() if self.is_step() else aiter(self._held)

    def __anext__(self) -> Any:
        return self.__next__() if self.is_step() else anext(self._held)

    def __next__(self) -> Any:
        if not self.is_step():
            return next(self._held)
        kind: Any = type(self._held)
        fix = FIX if kind.__module__ in MODULES and kind is not CALLING else FIX_MADE
        raise LiveIteratorError(name_kind(self._held), FIX_STREAM if is_stream(self._held) else fix)


class HeldQueue(HeldThing):
    """Has the place of a ``queue.SimpleQueue``, as ``queues.py`` has that of Python's others."""

    __slots__ = ("_held",)
    # Takes a sentence.
    note: Callable[[str], object] = staticmethod(lambda words: None)
    # The kinds of the queues from before into which the step has put something.
    given: ClassVar[list[str]] = []

    def __init__(self, held: Any) -> None:
        self._held = held

    def __getattr__(self, name: str) -> Any:
        return getattr(self._held, name)

    def get(self, block: bool = True, timeout: float | None = None) -> Any:
        """Refuses, but for an empty queue that is not waited for."""
        if not self.is_step():
            return self._held.get(block, timeout)
        if not block and self._held.empty():
            return self._held.get(block=False)
        refuse_taking(self._held)

    def get_nowait(self) -> Any:
        """The same without waiting."""
        return self.get(block=False)

    def put(self, item: object, block: bool = True, timeout: float | None = None) -> None:
        """Drops the item, with a note."""
        if self.is_step():
            drop_item(self._held)
        else:
            self._held.put(item)

    put_nowait = put


def refuse_taking(one: Any) -> NoReturn:
    """Raises for a queue from before from which the step takes, or in which it waits for an answer.

    It waits for one where it has put something into such a queue, and this one is empty.
    """
    kind = f"a {type(one).__name__}"
    if HeldQueue.given and one.empty():
        cause = UNHEARD.format(f"a {HeldQueue.given[-1]}")
        raise LiveIteratorError(kind, FIX_ASKED, WAITS_FOR, cause)
    raise LiveIteratorError(kind, FIX_QUEUE)


def drop_item(one: Any) -> None:
    """Notes that what the step puts into a queue from before is dropped."""
    name = type(one).__name__
    HeldQueue.given.append(name)
    HeldQueue.note(DROPPED.format(name))


# The type of ``iter(function, last)``, whose function may be anything.
CALLING: Any = type(iter(int, 1))
GENERATORS = {"generator": "gi", "async_generator": "ag", "coroutine": "cr"}


def find_prefix(kind: Any) -> str:
    """How the names of the code and the frame of a generator of this type begin; else ""."""
    return GENERATORS.get(kind.__name__, "") if kind.__module__ == "builtins" else ""


@functools.lru_cache(maxsize=4096)
def is_iterator(kind: Any) -> bool:
    """True for the type of a generator, a coroutine, or an iterator that C has made."""
    if find_prefix(kind):
        return True
    # A mock's own is a descriptor that makes another mock.
    take = next((vars(one)["__next__"] for one in kind.__mro__ if "__next__" in vars(one)), None)
    if take is None or isinstance(take, FunctionType) or "__dict__" in vars(kind):
        return False
    if isinstance(vars(type(take)).get("__get__"), FunctionType):
        return False
    return not issubclass(kind, io.IOBase) and not is_cursor(kind)


@functools.lru_cache(maxsize=4096)
def moves(kind: Any) -> bool:
    """True for a type whose objects move on, and can be put back by nobody."""
    module = kind.__module__
    if module in COPIED or module in UNCOPIED:
        own = module != "_contextvars" or kind.__name__ == "Context"
        return own and kind.__name__ not in {"Pattern", "Match", "Token"}
    return is_iterator(kind) or is_cursor(kind) or is_queue(kind)


def is_cursor(kind: Any) -> bool:
    """True for a cursor of SQLite's."""
    sqlite: Any = sys.modules.get("sqlite3")
    return sqlite is not None and issubclass(kind, sqlite.Cursor)


def is_queue(kind: Any) -> bool:
    """True for the queue that C has made."""
    return bool(kind.__name__ == "SimpleQueue" and kind.__module__ == "_queue")


def list_inner(value: Any) -> frozenset[str]:
    """The attributes of a pool that Python's own classes set, and its threads use; else empty."""
    kind: Any = type(value)
    return _list_inner(kind) if issubclass(kind, POOLS) else frozenset()


@functools.lru_cache(maxsize=4096)
def _list_inner(kind: Any) -> frozenset[str]:
    kinds = [one for one in kind.__mro__ if one.__module__.startswith(MACHINES)]
    begins = [inspect.unwrap(one.__init__) for one in kinds if issubclass(one, POOLS)]
    return frozenset(name for one in begins for name in _list_names(one))


def _list_names(function: Any) -> tuple[str, ...]:
    code = getattr(function, "__code__", None)
    return () if code is None else code.co_names


def is_stream(value: Any) -> bool:
    """True for what is read from, and cannot be put back to where it was."""
    if not isinstance(value, io.IOBase):
        return type(value).__name__ == "socket"
    with contextlib.suppress(OSError, ValueError):
        return value.readable() and not value.writable() and keep_place(value) is None
    return False


def keep_place(value: Any) -> Callable[[], object] | None:
    """What puts a file that is open for reading back to where it is; None for anything else."""
    if not isinstance(value, io.IOBase):
        return None
    with contextlib.suppress(OSError, ValueError):  # closed, or in the middle of its lines
        if value.readable() and value.seekable() and not value.writable():
            return functools.partial(value.seek, value.tell())
    return None


def hold(value: Any) -> Any:
    """What the step gets for an object of a type that ``moves`` and is not an iterator, or None."""
    kind: Any = type(value)
    if is_cursor(kind):
        return _copy_cursor(value)
    if is_queue(kind):
        return HeldQueue(value)
    if kind.__module__ in COPIED and moves(kind):
        with contextlib.suppress(ValueError):  # a stream that has ended
            return value.copy()
    return HeldIterator(value) if moves(kind) or is_stream(value) else None


def _copy_cursor(cursor: Any) -> Any:
    """A new cursor of the same connection, which gives nothing of what the real one has to give."""
    kind: Any = type(cursor)
    waits = cursor.description is not None
    ran: list[bool] = []

    def fetch(name: str) -> Any:
        def answer(one: Any, *given: Any, **named: Any) -> Any:
            if waits and not ran:
                raise LiveIteratorError("a Cursor", FIX_MADE)
            return getattr(kind, name)(one, *given, **named)

        return answer

    def run(name: str) -> Any:
        def answer(one: Any, *given: Any, **named: Any) -> Any:
            ran.append(True)
            return getattr(kind, name)(one, *given, **named)

        return answer

    methods = {name: fetch(name) for name in FETCHING} | {name: run(name) for name in RUNNING}
    try:
        made = cursor.connection.cursor(type(kind.__name__, (kind,), methods))
    except sys.modules["sqlite3"].Error:  # closed, or another thread's
        return HeldIterator(cursor)
    made.row_factory, made.arraysize = cursor.row_factory, cursor.arraysize
    return made


def name_kind(value: Any) -> str:
    """The kind of an iterator, with its article and, of a generator, its function."""
    kind: Any = type(value)
    if find_prefix(kind):
        return f"{_add_article(kind.__name__.replace('async_', ''))} ({value.__name__})"
    return _add_article(kind.__name__.lstrip("_"))


def _add_article(word: str) -> str:
    return f"{'an' if word[0].lower() in 'aeiou' else 'a'} {word}"

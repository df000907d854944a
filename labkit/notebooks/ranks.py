"""Runs one function in several processes that form a process group, and returns their results.

The processes are forked from a server that has imported torch and nothing else: a launch takes a
tenth of a second, and no process inherits this one's threads, locks or CUDA context. Functions
that were defined in a notebook, which no other process can import, are sent by value (cloudpickle).

What a rank prints is printed here with its rank. If a rank fails, the first failure is raised, not
the errors that follow from it in the other ranks; after a timeout the error says where each waits.
"""

from __future__ import annotations

import contextlib
import faulthandler
import io
import marshal
import multiprocessing
import os
import pickle
import re
import signal
import sys
import tempfile
import threading
import time
from collections import ChainMap
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from importlib.util import find_spec
from multiprocessing.connection import Connection, wait
from pathlib import Path
from types import CodeType, ModuleType
from typing import Any, NamedTuple

from labkit.errors import EngineError, LabkitError, TimedOutError, UsageError
from labkit.host.cpu import count_allowed_cores
from labkit.memory.track.frames import Frame, is_user_file, list_error_frames
from labkit.text import format_bytes, shorten

# Imported once, by the server: what a step of an optimizer, DDP, FSDP2 and DTensor would import in
# each rank of each launch.
PRELOADED = [
    *("torch._dynamo", "torch.distributed.fsdp", "torch.distributed.tensor"),
    *("torch.distributed.optim", "torch.nn.parallel", "labkit.memory.track.tracker", __name__),
]
STARTUP_SECONDS = 120.0
# A rank that dies cuts its connections first; the others' errors can arrive before its end does.
GRACE_SECONDS = 2.0
STACK_SECONDS = 1.0
PRINTED_BYTES = 64 * 1024
MESSAGE_CHARACTERS = 1000
# What gloo, NCCL and the store say in a rank whose peer has gone: never the first failure.
LOST_PEER = re.compile(
    r"[Cc]onnection (?:closed|reset) by (?:remote )?peer|[Bb]roken pipe"
    r"|[Cc]onnection was likely closed|remote process exited|ncclRemoteError"
    r"|recvValue failed|failed to recv, got 0 bytes"
)
STACK_LINE = re.compile(r'^  File "(.+)", line (\d+) in (.+)$', re.MULTILINE)


class RankStanding(NamedTuple):
    """Where a rank is: "returned", "raised", "died" or "waits"; its user's line, if known."""

    rank: int
    word: str
    frame: Frame | None = None

    def __str__(self) -> str:
        if self.frame is None:
            return f"rank {self.rank} {self.word}"
        source = f": {self.frame.source}" if self.frame.source else ""
        return f"rank {self.rank} {self.word} in {self.frame.where}{source}"


class RanksFailed(LabkitError):
    """A rank raised or died; ``rank`` is the first one, ``original`` its exception if it raised."""

    def __init__(
        self,
        what: str,
        *,
        rank: int,
        original: BaseException | None = None,
        frame: Frame | None = None,
        cause: str | None = None,
    ) -> None:
        super().__init__(what, cause=cause)
        self.rank, self.original, self.frame = rank, original, frame


class RanksTimedOut(TimedOutError):
    """Not every rank returned in time; ``standings`` says where each one is."""

    def __init__(self, seconds: float, standings: tuple[RankStanding, ...]) -> None:
        cause = "; ".join(map(str, standings))
        super().__init__(f"no result of all ranks within {seconds:g} s", cause=cause)
        self.standings = standings


def is_lost_peer(text: str) -> bool:
    """True if the error's text says that another rank has gone: it follows from that one's end.

    >>> is_lost_peer("Connection closed by peer [127.0.0.1]:4242")
    True
    """
    return bool(LOST_PEER.search(text))


def run_on_ranks(
    function: Callable[..., Any],
    *arguments: Any,
    world_size: int = 2,
    backend: str = "gloo",
    timeout_seconds: float = 60.0,
) -> list[Any]:
    """``function(*arguments)`` in ``world_size`` processes; their results, by rank.

    In each process the default process group is ready, with the environment that torchrun sets
    (RANK, WORLD_SIZE, LOCAL_RANK, MASTER_ADDR, MASTER_PORT); with ``backend="nccl"`` each has the
    GPU of its rank. Arguments and results are copied; a CUDA tensor returns as a copy on the CPU.
    The limit counts from the moment when the group is ready.

    Raises RanksFailed for the first rank that fails, and RanksTimedOut with what each rank waits
    for. No process outlives the call.

    >>> run_on_ranks(max, 1, 2, world_size=2)
    [2, 2]
    """
    if type(world_size) is not int or world_size < 1:
        raise UsageError(f"invalid world_size={world_size!r}", cause="it is a whole number from 1")
    if find_spec("cloudpickle") is None:
        raise EngineError(
            f"{sys.executable} cannot send functions to other processes",
            cause="this Python lacks cloudpickle",
            fix="pip install cloudpickle",
        )
    import torch.distributed as dist

    work = _dump((function, arguments))
    # The store is this process's, on a port that the system chooses: no other program can take it.
    store = dist.TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)
    with tempfile.TemporaryDirectory(prefix="labkit-ranks-") as scratch:
        launch = _Launch(world_size, backend, store.port, scratch)
        try:
            launch.start(work)
            return launch.collect(timeout_seconds)
        finally:
            launch.close()


@dataclass
class _Rank:
    """One process of a launch, and what it has said."""

    number: int
    process: Any
    connection: Connection
    ready: bool = False
    result: Any = None
    word: str = ""  # how it ended
    failure: tuple[BaseException | None, str, tuple[Frame, ...]] | None = None
    stack: Path = field(default_factory=Path)


class _Launch:
    """The processes of one call."""

    def __init__(self, world_size: int, backend: str, port: int, scratch: str) -> None:
        self._size, self._backend, self._port, self._scratch = world_size, backend, port, scratch
        self._ranks: list[_Rank] = []

    def start(self, work: bytes) -> None:
        """Starts every process; each imports the work after its process group is ready."""
        server = "forkserver" in multiprocessing.get_all_start_methods()
        context: Any = multiprocessing.get_context("forkserver" if server else "spawn")
        if server:
            context.set_forkserver_preload(PRELOADED)
        for number in range(self._size):
            here, there = context.Pipe()
            stack = Path(self._scratch) / f"stack-{number}"
            place = _Membership(number, self._size, self._backend, self._port, stack)
            process = context.Process(target=_serve, args=(place, work, there), daemon=True)
            with _without_main():
                process.start()
            there.close()
            self._ranks.append(_Rank(number, process, here, stack=stack))

    def collect(self, seconds: float) -> list[Any]:
        """The results by rank, once every rank has returned."""
        self._read(lambda: all(one.ready for one in self._ranks), STARTUP_SECONDS)
        for one in self._ranks:
            with contextlib.suppress(OSError):
                one.connection.send("go")
        self._read(lambda: all(one.word for one in self._ranks), seconds)
        return [one.result for one in self._ranks]

    def close(self) -> None:
        """Ends the processes that are left."""
        ended = all(one.word == "returned" for one in self._ranks)
        for one in self._ranks:
            if ended:
                with contextlib.suppress(OSError):
                    one.connection.send("end")
            else:
                one.process.kill()
        for one in self._ranks:
            one.process.join(STACK_SECONDS * 5)
            if one.process.is_alive():
                one.process.kill()
                one.process.join()
            one.connection.close()

    def _read(self, done: Callable[[], bool], seconds: float) -> None:
        """Reads what the ranks say until ``done``; raises the first failure."""
        deadline = time.monotonic() + seconds
        suspected: float | None = None
        while not done():
            limit = deadline if suspected is None else min(deadline, suspected)
            left = limit - time.monotonic()
            if left <= 0:
                break
            open_ones = {one.connection: one for one in self._ranks if not one.word}
            for connection in wait(list(open_ones), left):
                self._take(open_ones[connection])  # type: ignore[index]
            first = self._find_first(certain=True)
            if first:
                raise self._explain(first)
            if suspected is None and self._find_first(certain=False):
                suspected = time.monotonic() + GRACE_SECONDS
        first = self._find_first(certain=False)
        if first:
            raise self._explain(first)
        if not done():
            raise RanksTimedOut(seconds, self._list_standings())

    def _take(self, one: _Rank) -> None:
        """Takes one message of a rank."""
        try:
            kind, value = one.connection.recv()
        except (EOFError, OSError):
            one.word = "died"
            one.process.join(GRACE_SECONDS)
            return
        if kind == "ready":
            one.ready = True
        elif kind == "print":
            print("\n".join(f"[rank {one.number}] {line}" for line in value.splitlines()))
        elif kind == "returned":
            one.result, one.word = pickle.loads(value), "returned"  # noqa: S301  our own process
        else:
            one.failure, one.word = pickle.loads(value), "raised"  # noqa: S301

    def _find_first(self, *, certain: bool) -> _Rank | None:
        """The first failed rank; with ``certain``, no rank whose peer has gone."""
        died = [one for one in self._ranks if one.word == "died"]
        raised = [one for one in self._ranks if one.failure]
        own = [one for one in raised if one.failure and not is_lost_peer(one.failure[1])]
        return next(iter([*own, *died, *([] if certain else raised)]), None)

    def _explain(self, one: _Rank) -> RanksFailed:
        place = f"rank {one.number} of {self._size}"
        if one.failure is None:
            code = one.process.exitcode
            ending = f"exit code {code}"
            if code is not None and code < 0:
                ending = f"killed by {signal.Signals(-code).name}"
            return RanksFailed(f"{place} died ({ending})", rank=one.number)
        original, text, frames = one.failure
        frame = frames[0] if frames else None
        where = f"\nin {frame.where}: {frame.source}".rstrip(": ") if frame else ""
        gone = [str(each.number) for each in self._ranks if each.word == "returned"]
        cause = None
        if is_lost_peer(text) and gone:
            cause = f"rank {', '.join(gone)} has returned already: it takes part no more"
        return RanksFailed(
            f"{place} raised {text}{where}",
            rank=one.number,
            original=original,
            frame=frame,
            cause=cause,
        )

    def _list_standings(self) -> tuple[RankStanding, ...]:
        waiting = [one for one in self._ranks if not one.word]
        for one in waiting:
            if hasattr(signal, "SIGUSR1") and one.process.pid:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(one.process.pid, signal.SIGUSR1)
        deadline = time.monotonic() + STACK_SECONDS
        while time.monotonic() < deadline and not all(map(_has_stack, waiting)):
            wait([one.connection for one in waiting], 0.05)
        return tuple(
            RankStanding(one.number, one.word)
            if one.word
            else RankStanding(one.number, "waits", read_stack(one.stack))
            for one in self._ranks
        )


def _has_stack(one: _Rank) -> bool:
    return one.stack.is_file() and one.stack.stat().st_size > 0


def read_stack(path: Path) -> Frame | None:
    """The innermost user's line of the last stack that faulthandler wrote; None without one."""
    try:
        text = path.read_text(encoding="utf-8", errors="replace")
    except OSError:
        return None
    return find_waiting_frame(text)


def find_waiting_frame(text: str) -> Frame | None:
    """The innermost user's line of the last stack in the text; None without one."""
    last = text.rpartition("(most recent call first)")[2]
    for file, line, function in STACK_LINE.findall(last):
        if file != "<string>" and is_user_file(file):
            return Frame(file, int(line), function)
    return None


@contextlib.contextmanager
def _without_main() -> Iterator[None]:
    """Hides ``__main__``, which multiprocessing would import again in the new process."""
    main = sys.modules["__main__"]
    sys.modules["__main__"] = ModuleType("__main__")
    try:
        yield
    finally:
        sys.modules["__main__"] = main


# What runs in the process of a rank.


class _Membership(NamedTuple):
    """A rank's number, its group, the port of the store, and the file for its stack."""

    rank: int
    size: int
    backend: str
    port: int
    stack: Path


def _serve(place: _Membership, work: bytes, connection: Connection) -> None:
    """Joins the process group, runs the work, reports, and waits until every rank has ended.

    A rank that has returned keeps its connections: a peer that waits for it goes on waiting, as
    the caller's limit ends it with a sentence, and not with a lost connection.
    """
    stacks = place.stack.open("w")  # faulthandler writes into it until the end
    if hasattr(signal, "SIGUSR1"):
        faulthandler.register(signal.SIGUSR1, file=stacks, all_threads=False)
    sender = _Sender(connection)
    sys.stdout, sys.stderr = sender, sender
    try:
        _join_group(place)
        function, arguments = pickle.loads(work)  # noqa: S301  our own parent wrote it
        sender.send("ready", None)
        connection.recv()
        threading.Thread(target=_end_with, args=(connection,), daemon=True).start()
        result = function(*arguments)
        sender.finish("returned", _dump(_copy_to_cpu(result)))
    except EOFError:
        os._exit(1)
    except BaseException as error:
        sender.finish("raised", _describe(error))
    threading.Event().wait()


def _end_with(connection: Connection) -> None:
    """Ends this process when the caller says so, or has gone."""
    with contextlib.suppress(EOFError, OSError):
        connection.recv()
    os._exit(0)


def _join_group(place: _Membership) -> None:
    import torch
    import torch.distributed as dist

    rank, size = place.rank, place.size
    torch.set_num_threads(max(1, (count_allowed_cores() or 1) // size))
    os.environ.update(
        RANK=str(rank),
        WORLD_SIZE=str(size),
        LOCAL_RANK=str(rank),
        LOCAL_WORLD_SIZE=str(size),
        MASTER_ADDR="127.0.0.1",
        MASTER_PORT=str(place.port),
        # The caller has the store, as torchrun's agent has.
        TORCHELASTIC_USE_AGENT_STORE="True",
    )
    if sys.platform in ("linux", "darwin"):
        # A container's host name may have no address.
        os.environ.setdefault("GLOO_SOCKET_IFNAME", "lo" if sys.platform == "linux" else "lo0")
    if place.backend == "nccl":
        torch.cuda.set_device(rank)
    dist.init_process_group(place.backend)


def _copy_to_cpu(value: Any) -> Any:
    """The value with CUDA tensors as copies on the CPU; the caller may have no CUDA context."""
    import torch

    if isinstance(value, torch.Tensor):
        return value.detach().cpu() if value.device.type == "cuda" else value
    if isinstance(value, dict):
        return {key: _copy_to_cpu(one) for key, one in value.items()}
    if type(value) in (list, tuple):
        return type(value)(map(_copy_to_cpu, value))
    return value


def _dump(value: Any) -> bytes:
    """The value by cloudpickle; code keeps the names of its files, which tracebacks show."""
    import cloudpickle

    table = ChainMap({CodeType: _reduce_code}, cloudpickle.Pickler.dispatch_table)
    # C reads the table from the class, when the pickler is made.
    own = type("Pickler", (cloudpickle.Pickler,), {"dispatch_table": table})
    buffer = io.BytesIO()
    own(buffer).dump(value)
    return buffer.getvalue()


def _reduce_code(code: CodeType) -> tuple[Callable[[bytes], Any], tuple[bytes]]:
    return marshal.loads, (marshal.dumps(code),)  # both ends are the same Python


def _describe(error: BaseException) -> bytes:
    """The exception, its type and text, and its user's frames; without what cannot be sent."""
    text = shorten(str(error), MESSAGE_CHARACTERS)
    said = f"{type(error).__name__}: {text}" if text else type(error).__name__
    frames = list_error_frames(error)
    with contextlib.suppress(Exception):
        made = _dump((error.with_traceback(None), said, frames))
        pickle.loads(made)  # noqa: S301  some exceptions can be sent and not be read
        return made
    return _dump((None, said, frames))


class _Sender(io.TextIOBase):
    """Sends messages, and what this rank prints, line by line and up to a limit."""

    def __init__(self, connection: Connection) -> None:
        self._connection = connection
        self._lock = threading.RLock()
        self._line = ""
        self._left, self._cut = PRINTED_BYTES, 0

    def send(self, kind: str, value: Any) -> None:
        """Sends one message."""
        with self._lock, contextlib.suppress(OSError):
            self._connection.send((kind, value))

    def finish(self, kind: str, value: Any) -> None:
        """Sends what is left of the printed text, then the last message."""
        if self._line:
            self.write("\n")
        if self._cut:
            self.send("print", f"[labkit left out {format_bytes(self._cut)} here]")
        self.send(kind, value)

    def write(self, text: str) -> int:
        """Sends the text's complete lines."""
        with self._lock:
            kept, self._left = text[: self._left], max(0, self._left - len(text))
            self._cut += len(text) - len(kept)
            whole, newline, rest = (self._line + kept).rpartition("\n")
            self._line = rest
            if newline:
                self.send("print", whole)
        return len(text)

"""Reads a large log by several processes: the result is as of one."""

from __future__ import annotations

import contextlib
import os
import signal
import sys
import threading
from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

from labkit.host.cpu import count_allowed_cores
from labkit.known_errors.block import LogBlock, Outcome
from labkit.known_errors.context import Context
from labkit.known_errors.read import NumberedLines
from labkit.known_errors.scan import Found, Scan, find_errors, index_all, read_facts

if TYPE_CHECKING:
    from multiprocessing.connection import Connection

# More would need more memory than a log may take.
MOST_WORKERS = 4
_HELD = {signal.SIGINT, signal.SIGTERM}


def count_workers() -> int:
    """How many processes read a large log here; 1 where a process cannot safely be forked."""
    if sys.platform != "linux" or threading.active_count() > 1:
        return 1
    return min(MOST_WORKERS, count_allowed_cores() or 1)


def read_parallel(scan: Scan, blocks: Iterable[NumberedLines], count: int) -> None:
    """Reads the blocks of a log by ``count`` other processes, in turn; if 1, by this one."""
    with _start_workers(count if count > 1 else 0) as idle:
        waiting: deque[_Task] = deque()
        for lines in blocks:
            if not idle and not waiting:  # none could be started
                scan.read_lines(lines)
                continue
            worker = idle.pop() if idle else _add_first(scan, waiting)
            # Facts are read in a block with an error that is not among these.
            seen = None if scan.wants_facts(len(waiting)) else scan.seen
            worker.send((lines, scan.list_ended(), seen, scan.context))
            waiting.append(_Task(worker, lines))
        while waiting:
            _add_first(scan, waiting)


class _Worker:
    """A process that reads blocks; one that the system has ended answers None."""

    def __init__(self, others: Sequence[_Worker]) -> None:
        import multiprocessing

        context = multiprocessing.get_context("fork")
        self.connection, remote = context.Pipe()
        # The other processes' ends must be closed in it: else none of them learns that this one
        # has ended.
        here = [self.connection, *(each.connection for each in others)]
        self._process = context.Process(target=_serve, args=(remote, here), daemon=True)
        self._process.start()
        remote.close()

    def send(self, request: object) -> None:
        """Sends the request; it is lost where the process has ended."""
        with contextlib.suppress(OSError):
            self.connection.send(request)

    def receive(self) -> Any:
        """The answer; None from a process that has ended."""
        try:
            return self.connection.recv()
        except (EOFError, OSError):
            return None

    def end(self) -> None:
        """Ends the process, whatever it does: it holds nothing that others wait for."""
        self._process.kill()
        self._process.join()
        self.connection.close()


class _Task(NamedTuple):
    """A block that a worker reads."""

    worker: _Worker
    lines: NumberedLines

    def list_outcomes(self, first: int) -> Iterable[Outcome]:
        """The block's lines from ``first`` on that show progress or a final failure."""
        self.worker.send(first)
        outcomes: list[Outcome] | None = self.worker.receive()
        return LogBlock(self.lines).list_outcomes(first) if outcomes is None else outcomes


def _add_first(scan: Scan, waiting: deque[_Task]) -> _Worker:
    """Adds what the first of the waiting blocks shows; its worker, which is idle then."""
    task = waiting.popleft()
    answer: tuple[Found, Context] | None = task.worker.receive()
    if answer is None:
        scan.read_lines(task.lines)
    else:
        found, context = answer
        scan.add(task.lines, found, lambda mine: mine.add(context), task.list_outcomes)
    return task.worker


@contextlib.contextmanager
def _start_workers(count: int) -> Iterator[list[_Worker]]:
    """Some idle processes, fewer where the system starts no more; none is left after the block."""
    workers: list[_Worker] = []
    try:
        # A signal between the start of a process and its entry in the list would leave it.
        before = signal.pthread_sigmask(signal.SIG_BLOCK, _HELD)
        try:
            with contextlib.suppress(OSError):
                while len(workers) < count:
                    workers.append(_Worker(workers))
        finally:
            signal.pthread_sigmask(signal.SIG_SETMASK, before)
        yield workers.copy()
    finally:
        for each in workers:
            each.end()


def _serve(connection: Connection, others: Sequence[Connection]) -> None:
    """Answers requests until the other end is closed: a block, or from which line on its outcomes.

    Ctrl-C is for the process that prints the result.
    """
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, _HELD)
    for each in others:
        each.close()
    block = LogBlock(NumberedLines([1], [""]))
    with contextlib.suppress(EOFError, OSError):
        while True:
            request = connection.recv()
            if isinstance(request, int):
                connection.send(list(block.list_outcomes(request)))
                continue
            lines, ended, seen, context = request
            block = LogBlock(lines)
            found = find_errors(block, index_all(), ended)
            if seen is None or not seen.issuperset(name for name, _ in found):
                read_facts(block, context)
            connection.send((found, context))
    os._exit(0)  # what runs at the end of the forked program is not for this process

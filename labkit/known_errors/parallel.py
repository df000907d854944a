"""Scans a large log by several processes: the result is as of one."""

from __future__ import annotations

import contextlib
import multiprocessing
import multiprocessing.connection
import os
import signal
import sys
import threading
from collections import deque
from collections.abc import Iterable, Iterator
from concurrent.futures import BrokenExecutor, Future, ProcessPoolExecutor
from typing import NamedTuple

from labkit.known_errors.block import LogBlock
from labkit.known_errors.context import Context
from labkit.known_errors.read import NumberedLines
from labkit.known_errors.scan import Found, Scan, index_all, read_block, repeat_ends

# For each process, so many blocks wait to be read, or to be added in their order.
WAITING = 2
HELD = {signal.SIGINT, signal.SIGTERM}


class _SentBlock(NamedTuple):
    """A block that a process reads, and the names of the errors that were shown before."""

    lines: NumberedLines
    shown: frozenset[str]
    answer: Future[tuple[Found, Context]]


def read_parallel(scan: Scan, blocks: Iterable[NumberedLines], workers: int) -> None:
    """Reads the blocks of a log with so many processes; where none can be started, with this."""
    try:
        pool = ProcessPoolExecutor(workers, _choose_start(), _prepare_worker)
    except (ImportError, NotImplementedError, OSError):  # a system without semaphores
        return scan.read(blocks)
    waiting: deque[_SentBlock] = deque()
    try:
        for lines in repeat_ends(blocks):
            shown = scan.list_shown()
            waiting.append(_SentBlock(lines, shown, _submit(pool, lines, shown)))
            if len(waiting) > WAITING * workers:
                _add(scan, waiting.popleft())
        while waiting:
            _add(scan, waiting.popleft())
    except BaseException:  # a signal: nobody waits for what the processes read now
        for process in multiprocessing.active_children():
            process.kill()
        raise
    finally:
        pool.shutdown(cancel_futures=True)


def _add(scan: Scan, asked: _SentBlock) -> None:
    try:
        found, context = asked.answer.result()
    except BrokenExecutor:  # the system ended a process
        return scan.read_lines(asked.lines)
    if not asked.shown <= scan.list_shown():  # an error passed in a block before this one
        return scan.read_lines(asked.lines)
    scan.context.add(context)
    scan.add(found, asked.lines)


def _submit(
    pool: ProcessPoolExecutor, lines: NumberedLines, shown: frozenset[str]
) -> Future[tuple[Found, Context]]:
    try:
        with _hold_signals():  # one that comes while the pool starts a process would leave it
            return pool.submit(_read_lines, lines, shown)
    except BrokenExecutor as error:
        broken: Future[tuple[Found, Context]] = Future()
        broken.set_exception(error)
        return broken


def _read_lines(lines: NumberedLines, shown: frozenset[str]) -> tuple[Found, Context]:
    context = Context()
    return read_block(LogBlock(lines), index_all(), shown, context), context


def _choose_start() -> multiprocessing.context.BaseContext:
    # A forked process has the index already; the process of a command has no other thread.
    is_forked = sys.platform == "linux" and threading.active_count() == 1
    return multiprocessing.get_context("fork" if is_forked else None)


@contextlib.contextmanager
def _hold_signals() -> Iterator[None]:
    """Ctrl-C and SIGTERM come after the block; Windows has no such mask."""
    if sys.platform == "win32":
        yield
        return
    before = signal.pthread_sigmask(signal.SIG_BLOCK, HELD)
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def _prepare_worker() -> None:
    """Leaves Ctrl-C to the process that prints the result, and ends with it."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    if sys.platform != "win32":
        signal.pthread_sigmask(signal.SIG_UNBLOCK, HELD)
    threading.Thread(target=_end_with_parent, daemon=True).start()


def _end_with_parent() -> None:
    if parent := multiprocessing.parent_process():
        multiprocessing.connection.wait([parent.sentinel])
        os._exit(1)

"""What C keeps the place of, such as an iterator or a checksum, is as before an estimate."""

from __future__ import annotations

import array
import asyncio
import bz2
import codecs
import collections
import contextvars
import csv
import decimal
import functools
import hashlib
import hmac
import io
import itertools
import logging.handlers
import lzma
import mmap
import os
import queue
import re
import sqlite3
import struct
import tempfile
import threading
import time
import zlib
from types import SimpleNamespace
from xml.etree import ElementTree

import numpy as np
import pytest
import torch

from labkit import estimate_memory
from labkit.errors import UsageError

TEXT = "a1b2c3d4e5f6"
NUMBERS = [1, 2, 3, 4, 5, 6]
NAMED = contextvars.ContextVar("NAMED", default=0)
RECORD = logging.makeLogRecord({"msg": "a", "levelno": 20})


def begin(given):
    next(given)
    return given


def decompress_half():
    made = zlib.decompressobj()
    made.decompress(zlib.compress(b"abc")[:5])
    return made


def open_cursor(*, waits=True):
    connection = sqlite3.connect(":memory:")
    connection.execute("CREATE TABLE t (a)")
    connection.executemany("INSERT INTO t VALUES (?)", [(one,) for one in NUMBERS])
    connection.commit()
    cursor = connection.cursor()
    return cursor.execute("SELECT a FROM t ORDER BY a") if waits else cursor


def fill_queue(kind):
    made = kind()
    for one in NUMBERS:
        made.put_nowait(one)
    return made


def open_folder():
    made = os.scandir(FOLDER)
    next(made)
    return made


FOLDER = os.path.dirname(__file__)  # noqa: PTH120


def map_memory():
    with tempfile.TemporaryFile() as file:
        file.write(TEXT.encode())
        file.flush()
        return mmap.mmap(file.fileno(), len(TEXT))


def spool():
    made = tempfile.SpooledTemporaryFile(max_size=20)  # noqa: SIM115
    made.write(TEXT.encode())
    made.seek(1)
    return made


def list_rest(given):
    return [getattr(one, "name", getattr(one, "tag", one)) for one in given]


def list_matches(given):
    return [one.group() for one in given]


def send_first(given):
    with pytest.raises(StopIteration):
        given.send(None)


async def wait():
    return 3


def find_number(match):
    return match.group()


# What is refused: how it is made, what takes from it, and what shows how far it is.
REFUSED = {
    "finditer": (lambda: re.finditer(r"\d", TEXT), next, list_matches),
    "map over finditer": (lambda: map(find_number, re.finditer(r"\d", TEXT)), next, list),
    "iter of a method": (
        lambda: iter(re.compile(r"\d").scanner(TEXT).search, None), next, list_matches),
    "scanner": (lambda: re.compile(r"\d").scanner(TEXT), lambda one: one.search(),
                lambda one: one.search().span()),
    "iter_unpack": (lambda: struct.iter_unpack("b", b"abcd"), next, list),
    "enumerate over iter_unpack": (
        lambda: enumerate(struct.iter_unpack("b", b"abcd")), next, list),
    "scandir": (open_folder, next, lambda given: sorted(list_rest(given))),
    "csv": (lambda: csv.reader(["a,b", "c,d", "e,f", "g,h"]), next, list),
    "csv with names": (lambda: csv.DictReader(["a,b", "c,d", "e,f", "g,h"]), next, list),
    "bz2": (bz2.BZ2Compressor, lambda one: one.compress(b"a"),
            lambda one: one.compress(b"abc") + one.flush()),
    "lzma": (lzma.LZMADecompressor, lambda one: one.decompress(lzma.compress(b"a")),
             lambda one: one.decompress(lzma.compress(b"abc"))),
    "flat": (lambda: np.arange(9).flat, next, list),
    "parts of a document": (
        lambda: ElementTree.fromstring("<a><b/><c/><d/></a>").iter(), next, list_rest),
    "fetchone": (open_cursor, lambda one: one.fetchone(), lambda one: one.fetchall()),
    "rows": (open_cursor, next, list),
    "SimpleQueue": (lambda: fill_queue(queue.SimpleQueue), lambda one: one.get(),
                    lambda one: [one.get() for _ in NUMBERS]),
}  # fmt: skip
# What the step gets a copy of, or what is put back.
KEPT = {
    "accumulate": (lambda: itertools.accumulate(NUMBERS), next, list),
    "accumulate that has begun": (lambda: begin(itertools.accumulate(NUMBERS)), next, list),
    "accumulate from a number": (lambda: itertools.accumulate(NUMBERS, initial=9), next, list),
    "accumulate by a function": (lambda: itertools.accumulate(NUMBERS, max), next, list),
    "accumulate of None": (
        lambda: begin(itertools.accumulate([None, *NUMBERS], lambda one, other: other)),
        next, list),
    "array": (lambda: iter(array.array("i", NUMBERS)), next, list),
    "deque": (lambda: iter(collections.deque(NUMBERS)), next, list),
    "iter of a list's method": (lambda: iter([*NUMBERS].pop, 1), next, list),
    "iter of a partial function": (
        lambda: iter(functools.partial(io.BytesIO(TEXT.encode()).read, 1), b""), next, list),
    "iter of an iterator's method": (lambda: iter(iter(NUMBERS).__next__, 6), next, list),
    "zlib": (zlib.compressobj, lambda one: one.compress(b"a"),
             lambda one: one.compress(b"abc") + one.flush()),
    "zlib, half way": (
        decompress_half, lambda one: one.decompress(zlib.compress(b"abc")[5:]),
        lambda one: one.decompress(zlib.compress(b"abc")[5:])),
    "sha256": (hashlib.sha256, lambda one: one.update(b"a"), lambda one: one.hexdigest()),
    "blake2b": (hashlib.blake2b, lambda one: one.update(b"a"), lambda one: one.hexdigest()),
    "hmac": (lambda: hmac.new(b"a", digestmod="md5"), lambda one: one.update(b"a"),
             lambda one: one.hexdigest()),
    "decoder": (codecs.getincrementaldecoder("utf-16"), lambda one: one.decode(b"\xff\xfe"),
                lambda one: one.decode(b"\xfe\xff\x00a")),
    "another statement": (
        open_cursor, lambda one: one.execute("SELECT 5").fetchall(), lambda one: one.fetchall()),
    "statement": (lambda: open_cursor(waits=False), lambda one: one.execute("SELECT 5").fetchall(),
                  lambda one: one.description),
    "row factory": (lambda: open_cursor().connection,
                    lambda one: setattr(one, "row_factory", sqlite3.Row),
                    lambda one: one.row_factory),
    "mmap": (map_memory, lambda one: one.read(2), lambda one: (one.tell(), one.read(2))),
    "spooled": (spool, lambda one: one.write(b"a"),
                lambda one: (one.tell(), one.read(), one.close())),
    "context": (contextvars.copy_context, lambda one: one.run(NAMED.set, 5),
                lambda one: one.get(NAMED)),
    "asyncio.Queue": (lambda: fill_queue(asyncio.Queue), lambda one: one.get_nowait(),
                      lambda one: one.qsize()),
    "asyncio.Event": (asyncio.Event, lambda one: one.set(), lambda one: one.is_set()),
    "handler with a buffer": (
        lambda: logging.handlers.MemoryHandler(100), lambda one: one.emit(RECORD),
        lambda one: len(one.buffer)),
    "handler with a text": (
        lambda: logging.StreamHandler(io.StringIO()), lambda one: one.emit(RECORD),
        lambda one: one.stream.getvalue()),
    "level of a handler": (
        lambda: logging.StreamHandler(io.StringIO()), lambda one: one.setLevel(40),
        lambda one: one.level),
    "filter": (lambda: logging.getLogger("labkit.tests.moving"),
               lambda one: one.addFilter(lambda record: True), lambda one: one.filters[:]),
    "context of decimal": (
        lambda: decimal.Context(prec=5), lambda one: one.divide(1, 3), str),
    "method of a list": (lambda: [NUMBERS[:].append], lambda one: one[0](1),
                         lambda one: one[0].__self__[:]),
}  # fmt: skip
HOLDS = ["directly", "deep", "as an argument"]


def run(one, take, hold):
    """The estimate of a step that takes from what it holds in one of these ways."""
    box = SimpleNamespace(inner=SimpleNamespace(kept=[{"a": one}]))
    given = [one] if hold == "as an argument" else []

    def take_directly(*_):
        take(one)

    def take_deep(*_):
        take(box.inner.kept[0]["a"])

    act = {"directly": take_directly, "deep": take_deep, "as an argument": take}[hold]

    def step(model, batch, *others):
        act(*others)
        model(batch).mean().backward()

    if hold == "deep":
        del one, given[:]
    return estimate_memory(step, torch.nn.Linear(10, 3), torch.randn(4, 10), *given)


@pytest.mark.parametrize("hold", HOLDS)
@pytest.mark.parametrize("name", REFUSED)
def test_a_step_is_refused_what_has_no_copy(name, hold):
    make, take, show = REFUSED[name]
    one = make()
    with pytest.raises(UsageError, match=r"takes from an? .* that was made before") as raised:
        run(one, take, hold)
    assert "Held" not in str(raised.value)
    assert show(one) == show(make())


@pytest.mark.parametrize("hold", HOLDS)
@pytest.mark.parametrize("name", KEPT)
def test_a_step_goes_on_from_where_it_was_and_the_real_one_stays(name, hold):
    make, take, show = KEPT[name]
    one, other = make(), make()
    estimate = run(one, take, hold)
    assert estimate.obstacle is None
    assert show(one) == show(other)
    del one, other


def test_what_decimal_has_seen_is_as_before():
    decimal.getcontext().clear_flags()
    run([], lambda _: decimal.Decimal(1) / 3, "directly")
    assert not any(decimal.getcontext().flags.values())


def test_a_queue_of_cs_gets_nothing():
    one = fill_queue(queue.SimpleQueue)
    notes = run(one, lambda given: given.put(7), "deep").notes
    assert notes == ("what the step puts into a SimpleQueue that was made before is dropped",)
    assert one.qsize() == len(NUMBERS)


def test_a_coroutine_from_before_has_not_begun():
    given = wait()
    with pytest.raises(UsageError, match="cannot reuse already awaited coroutine"):
        run(given, send_first, "directly")  # a step runs twice
    assert asyncio.run(given) == 3


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
def test_a_file_in_memory_that_the_step_moves_to_the_disk_is_in_memory():
    with spool() as one:
        run(one, lambda given: given.write(b"a" * 30), "directly")
        assert (one.tell(), one.read(), one._rolled) == (1, TEXT[1:].encode(), False)


GIVEN = queue.SimpleQueue()


def test_what_another_thread_puts_into_a_queue_meanwhile_stays():
    """Also where the step can reach the queue, by the names of its module."""
    for _ in range(3):
        GIVEN.put("before")
    ended = []

    def give():
        while not ended:
            GIVEN.put("meanwhile")
            counted.append(1)
            time.sleep(0.002)

    counted, thread = [], threading.Thread(target=give)
    thread.start()
    try:
        notes = estimate_memory(lambda: lambda: [torch.ones(4) * 2 for _ in range(300)]).notes
    finally:
        ended.append(1)
        thread.join()
    found = [GIVEN.get() for _ in range(GIVEN.qsize())]
    assert notes == () and found[:3] == ["before"] * 3
    assert len(found) > 10 and set(found[3:]) == {"meanwhile"}

"""The time, and how full the machine is, where a simulated step decides by them."""

from __future__ import annotations

import collections
import datetime
import shutil
import sys
import time
import uuid
from types import ModuleType

import pytest
import torch

from labkit.memory.estimate.play import estimate_memory

Memory = collections.namedtuple("Memory", "total available percent used free")


@pytest.fixture(autouse=True)
def play_psutil(monkeypatch):
    played = ModuleType("psutil")
    played.virtual_memory = lambda: Memory(64 * 2**30, 8 * 2**30, 87.5, 56 * 2**30, 2**30)
    monkeypatch.setitem(sys.modules, "psutil", played)


def find_available():
    import psutil

    return psutil.virtual_memory().available // 2**30


CHOOSING = {
    "nanosecond": lambda: time.time_ns() % 2,
    "second": lambda: int(time.time()) % 2,
    "date": lambda: datetime.datetime.now().second % 2,
    "text of the time": lambda: int(time.strftime("%S")) % 2,
    "text of a date": lambda: int(f"{datetime.datetime.now():%S}") % 2,
    "parts": lambda: time.localtime().tm_sec % 2,
    "identifier": lambda: uuid.uuid1().int % 2,
    "memory": find_available,
    "disk": lambda: shutil.disk_usage("/").free / shutil.disk_usage("/").total > 0.5,
}


@pytest.mark.parametrize("name", CHOOSING)
def test_what_decides_a_size_makes_a_range(name):
    found = estimate_memory(lambda values: values.repeat(1 + CHOOSING[name]()), torch.ones(1000))
    assert found.lowest_bytes < found.peak_bytes
    assert "random numbers or the time decide" in found.notes[0]


def test_what_is_only_shown_is_no_range_and_no_note(capsys):
    def step(values):
        started = time.time()
        print(time.time_ns() % 2, datetime.datetime.now(), time.strftime("%H:%M:%S"), uuid.uuid1())
        print(find_available(), shutil.disk_usage("/").free, 64 / (time.time() - started))
        return values + 1

    found = estimate_memory(step, torch.ones(1000))
    assert (found.lowest_bytes or found.peak_bytes, found.notes) == (found.peak_bytes, ())
    assert capsys.readouterr().out


def test_a_loop_until_a_deadline_ends_at_once_and_says_so():
    def step(values):
        deadline, kept = time.monotonic() + 3600, []
        while time.monotonic() < deadline:
            kept.append(values + 1)
        return values

    found = estimate_memory(step, torch.ones(1000))
    assert found.lowest_bytes < found.peak_bytes
    assert any("may run longer" in note for note in found.notes)


def test_a_sleep_is_short_and_passes_the_time():
    def step(values):
        started = time.monotonic()
        time.sleep(7200)
        assert time.monotonic() - started > 7200

    began = time.monotonic()
    estimate_memory(step, torch.ones(4))
    assert time.monotonic() - began < 60

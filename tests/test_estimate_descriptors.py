"""What a step sets for descriptors, sockets, packages and the process is as before it."""

from __future__ import annotations

import fcntl
import os
import socket
import tempfile
import threading
from concurrent.futures import Future
from fcntl import flock
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn

from labkit import estimate_memory
from labkit.errors import UsageError

READING, WRITING = os.pipe()
ONE, OTHER = socket.socketpair()
FILE = tempfile.TemporaryFile()  # noqa: SIM115
FREE, LEVEL = 777, (socket.SOL_SOCKET, socket.SO_KEEPALIVE)
ERROR = ValueError("first")


def is_locked():
    number = os.open(f"/proc/self/fd/{FILE.fileno()}", os.O_RDWR)
    try:
        flock(number, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    finally:
        os.close(number)
    return False


def add_twice(one, other):
    return one + 2 * other


CHANGES = {
    "blocking": (lambda: os.get_blocking(READING), lambda: os.set_blocking(READING, False)),
    "inherited": (lambda: os.get_inheritable(READING), lambda: os.set_inheritable(READING, True)),
    "flags": (
        lambda: fcntl.fcntl(FILE, fcntl.F_GETFL),
        lambda: fcntl.fcntl(FILE, fcntl.F_SETFL, os.O_NONBLOCK)),
    "a socket's timeout": (ONE.gettimeout, lambda: ONE.settimeout(3)),
    "a socket without waiting": (ONE.gettimeout, lambda: ONE.setblocking(False)),
    "a socket's option": (
        lambda: ONE.getsockopt(*LEVEL) != 0, lambda: ONE.setsockopt(*LEVEL, 1)),
    "a new descriptor": (
        lambda: Path(f"/proc/self/fd/{FREE}").exists(), lambda: os.dup2(READING, FREE)),
    "a lock": (is_locked, lambda: fcntl.flock(FILE, fcntl.LOCK_EX)),
    "a lock by an imported name": (is_locked, lambda: flock(FILE, fcntl.LOCK_EX)),
    "a thread's name": (
        lambda: threading.current_thread().name,
        lambda: setattr(threading.current_thread(), "name", "other")),
    "an exception's arguments": (lambda: ERROR.args, lambda: setattr(ERROR, "args", ("other",))),
    "an exception's cause": (
        lambda: ERROR.__cause__, lambda: setattr(ERROR, "__cause__", KeyError())),
    "a package's function": (lambda: torch.add, lambda: setattr(torch, "add", add_twice)),
    "a package's class": (lambda: nn.Linear, lambda: setattr(nn, "Linear", nn.Bilinear)),
    "a function that a package gets": (
        lambda: hasattr(F, "add_twice"), lambda: setattr(F, "add_twice", add_twice)),
    "a package's number": (lambda: np.pi, lambda: setattr(np, "pi", 3.0)),
}  # fmt: skip


@pytest.mark.parametrize("name", CHANGES)
def test_what_a_step_changes_is_put_back(name):
    read, change = CHANGES[name]
    before = read()

    def step(values):
        change()
        return values * 2

    try:
        estimate = estimate_memory(step, torch.ones(3))
        assert read() == before and estimate.obstacle is None
        assert ("lock" in str(estimate.notes)) == name.startswith("a lock")
        change()
        assert read() != before
    finally:
        restore(name, before)


def restore(name, before):
    """Puts back what a test has changed for real."""
    os.set_blocking(READING, True)
    os.set_inheritable(READING, False)
    fcntl.flock(FILE, fcntl.LOCK_UN)
    ONE.settimeout(None)
    ONE.setsockopt(*LEVEL, 0)
    if Path(f"/proc/self/fd/{FREE}").exists():
        os.close(FREE)
    if name == "flags":
        fcntl.fcntl(FILE, fcntl.F_SETFL, before)
    threading.current_thread().name = "MainThread"
    ERROR.args, ERROR.__cause__ = ("first",), None
    torch.add, nn.Linear, np.pi = ADD, LINEAR, PI
    vars(F).pop("add_twice", None)


ADD, LINEAR, PI = torch.add, nn.Linear, np.pi


def test_a_descriptor_of_the_steps_own_is_its_own():
    def step(values):
        with tempfile.TemporaryFile() as file:
            fcntl.flock(file, fcntl.LOCK_EX)
            os.set_inheritable(file.fileno(), True)
            assert os.get_inheritable(file.fileno())
        return values * 2

    estimate = estimate_memory(step, torch.ones(3))
    assert estimate.obstacle is None and estimate.notes == ()


def test_what_cannot_be_undone_stops_the_step():
    before = os.getpriority(os.PRIO_PROCESS, 0)
    obstacle = estimate_memory(lambda values: os.nice(1), torch.ones(3)).obstacle
    assert obstacle.operator == "os.nice(1)" and os.getpriority(os.PRIO_PROCESS, 0) == before
    assert estimate_memory(lambda values: values * os.nice(0), torch.ones(3)).obstacle is None


ANSWERS = {
    "a result": lambda future: future.set_result(1),
    "an error": lambda future: future.set_exception(KeyError()),
    "no result": lambda future: future.cancel(),
}


@pytest.mark.parametrize("name", ANSWERS)
def test_a_future_from_before_gets_no_answer(name):
    future = Future()

    def step(values, answered):
        ANSWERS[name](answered or future)
        return values * 2

    with pytest.raises(UsageError, match="answers a Future that was made before"):
        estimate_memory(step, torch.ones(3), None)
    assert not future.done()
    ANSWERS[name](future)
    assert future.done()


def test_a_future_that_the_step_makes_is_its_own():
    def step(values):
        future = Future()
        future.set_result(values * 2)
        return future.result()

    assert estimate_memory(step, torch.ones(3)).obstacle is None

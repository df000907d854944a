"""Signals that the process gets during an estimate reach the program's handlers after it."""

from __future__ import annotations

import contextlib
import os
import signal
import threading
import time

import pytest
import torch

from labkit import estimate_memory
from labkit.memory.estimate import signals

STATE = {"stop": False}
MAIN = threading.main_thread().ident


@contextlib.contextmanager
def handle(number, handler):
    before = signal.signal(number, handler)
    try:
        yield
    finally:
        signal.signal(number, before)


def estimate_while(*numbers, longest=0.1, inside=lambda: None):
    """The estimate of a step that runs while another thread sends signals, and some time longer."""

    def send():
        while not begun:
            time.sleep(0.001)
        for number in numbers:
            signal.pthread_kill(MAIN, number)
            time.sleep(0.05)
        time.sleep(longest)

    def step(inputs):
        begun.append(1)
        while thread.is_alive():
            inputs * 2
        inside()
        return inputs * 2

    begun, thread = [], threading.Thread(target=send)
    thread.start()
    try:
        return estimate_memory(step, torch.ones(2))
    finally:
        thread.join()


def set_stop(*_):
    STATE["stop"] = True


def test_a_flag_that_a_handler_sets_stays_set():
    STATE["stop"] = False
    with handle(signal.SIGTERM, set_stop):
        estimate = estimate_while(signal.SIGTERM)
        assert STATE["stop"] and estimate.notes == ()
        assert signal.getsignal(signal.SIGTERM) is set_stop


def test_handlers_are_called_in_order_after_the_step():
    seen, event, ended = [], threading.Event(), []

    def hear(number, frame):
        seen.append((number, list(ended)))
        event.set()

    with handle(signal.SIGUSR1, hear), handle(signal.SIGALRM, hear):
        numbers = signal.SIGUSR1, signal.SIGALRM, signal.SIGUSR1
        assert estimate_while(*numbers, inside=lambda: ended.append(1)).notes == ()
    # What the step itself has appended is put back before.
    assert seen == [(number, []) for number in numbers] and event.is_set()


def test_a_handler_that_raises_does_so_after_the_step_and_the_others_are_called():
    seen = []

    def give_up(*_):
        raise TimeoutError("enough")

    with (
        handle(signal.SIGALRM, give_up),
        handle(signal.SIGUSR1, lambda *_: seen.append(1)),
        pytest.raises(TimeoutError, match="enough"),
    ):
        estimate_while(signal.SIGALRM, signal.SIGUSR1)
    assert seen == [1]


@pytest.mark.parametrize("number", [signal.SIGALRM, signal.SIGTERM])
def test_a_handler_that_raises_ends_an_estimate_that_goes_on(number, monkeypatch):
    monkeypatch.setattr(signals, "LONGEST_PROMPT", 0.2)
    monkeypatch.setattr(signals, "LONGEST", 0.2)
    ended = []

    def give_up(*_):
        raise TimeoutError("enough")

    with handle(number, give_up), pytest.raises(TimeoutError, match="enough"):
        began = time.monotonic()
        estimate_while(number, longest=3, inside=lambda: ended.append(1))
    assert time.monotonic() - began < 30 and not ended


def test_what_a_handler_changes_that_is_called_in_the_step_is_kept(monkeypatch):
    monkeypatch.setattr(signals, "LONGEST", 0.2)
    seen = []
    with handle(signal.SIGUSR1, lambda *_: seen.append(1)):
        assert estimate_while(signal.SIGUSR1, longest=1, inside=lambda: len(seen)).notes == ()
    assert seen == [1]


def test_what_a_handler_changes_before_it_raises_is_kept(monkeypatch):
    monkeypatch.setattr(signals, "LONGEST", 0.2)
    seen = []

    def give_up(number, _):
        seen.append(number)
        raise TimeoutError("enough")

    with handle(signal.SIGUSR1, give_up), pytest.raises(TimeoutError, match="enough"):
        estimate_while(signal.SIGUSR1, longest=3)
    assert seen == [signal.SIGUSR1]


def test_what_a_handler_sets_in_the_environment_stays(monkeypatch):
    monkeypatch.setenv("LABKIT_TEST_OLD", "1")
    monkeypatch.delenv("LABKIT_TEST_NEW", raising=False)

    def hear(*_):
        os.environ["LABKIT_TEST_NEW"] = "1"
        del os.environ["LABKIT_TEST_OLD"]

    with handle(signal.SIGUSR1, hear):
        estimate_while(signal.SIGUSR1, inside=lambda: os.environ.update(LABKIT_TEST_STEP="1"))
    assert os.environ["LABKIT_TEST_NEW"] == "1"
    assert not os.environ.keys() & {"LABKIT_TEST_OLD", "LABKIT_TEST_STEP"}


def test_the_step_sees_the_programs_own_handlers():
    def stop(*_):
        raise SystemExit

    def step(values):
        assert signal.getsignal(signal.SIGUSR1) is stop
        assert signal.signal(signal.SIGUSR1, stop) is stop
        values.sum().backward()

    with handle(signal.SIGUSR1, stop):
        estimate_memory(step, torch.ones(3, requires_grad=True))
        assert signal.getsignal(signal.SIGUSR1) is stop


def test_a_handler_that_only_sets_a_flag_is_never_called_in_the_step(monkeypatch):
    STATE["stop"] = False
    monkeypatch.setattr(signals, "LONGEST", 0.2)
    with handle(signal.SIGTERM, set_stop):
        assert estimate_while(signal.SIGTERM, longest=1).notes == ()
    assert STATE["stop"]


def test_an_interrupt_ends_the_step_at_once():
    ended = []
    with handle(signal.SIGINT, signal.default_int_handler), pytest.raises(KeyboardInterrupt):
        estimate_while(signal.SIGINT, longest=1, inside=lambda: ended.append(1))
    assert not ended


def test_a_second_interrupt_reaches_the_programs_own_handler_at_once():
    count, ended = [], []

    def hear(*_):
        count.append(1)
        if len(count) > 1:
            raise KeyboardInterrupt

    with handle(signal.SIGINT, hear), pytest.raises(KeyboardInterrupt):
        estimate_while(signal.SIGINT, signal.SIGINT, longest=1, inside=lambda: ended.append(1))
    assert not ended


def test_a_signal_that_the_program_blocks_stays_blocked_and_is_not_lost():
    seen = []
    with handle(signal.SIGURG, lambda *_: seen.append(1)):
        signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGURG})
        try:
            estimate_while(signal.SIGURG)
            assert signal.SIGURG in signal.pthread_sigmask(signal.SIG_BLOCK, ())
            assert not seen
        finally:
            signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGURG})
        assert seen

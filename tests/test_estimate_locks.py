"""Events, semaphores, locks and pools from before an estimate are as before it."""

from __future__ import annotations

import asyncio
import copy
import logging.handlers
import multiprocessing
import multiprocessing.pool
import os
import pickle
import queue
import re
import signal
import sys
import threading
import time
import weakref
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from labkit import estimate_memory
from labkit.errors import UsageError
from labkit.memory.estimate import waits

SLEEP = time.sleep
SHARED = multiprocessing.get_context("fork")


@pytest.fixture(scope="module", autouse=True)
def warm():
    """The first estimate of a process takes seconds: what is timed below would be over."""
    run(list)


def run(act, *given):
    def step(model, batch, *others):
        act(*others)
        model(batch).mean().backward()

    return estimate_memory(step, torch.nn.Linear(10, 3), torch.randn(4, 10), *given)


def set_and_clear(one):
    one.set()
    assert one.is_set() and one.wait()
    one.clear()
    assert not one.is_set() and not one.wait(0.01)
    one.set()


def enter(one):
    with one:
        pass


def make_set(kind):
    one = kind()
    one.set()
    return one


def set_and_join(event, thread):
    event.set()
    thread.join()


def start_once(thread):
    if not thread.is_alive():
        thread.start()


def acquire(one):
    assert one.acquire()


def release(one):
    one.release()


def acquire_once(kind):
    one = kind()
    one.acquire()
    return one


def read_shared(one):
    return one._semlock._get_value()


def read_value(one):
    return one._value


def read_recursive(one):
    return one._is_owned(), repr(one).split("count=")[1][:1]


# How each is made, what the step does, and what shows its state.
CASES = {
    "Event": (threading.Event, set_and_clear, lambda one: one.is_set()),
    "set Event": (lambda: make_set(threading.Event), lambda one: one.clear(),
                  lambda one: one.is_set()),
    "shared Event": (SHARED.Event, set_and_clear, lambda one: one.is_set()),
    "Semaphore": (lambda: threading.Semaphore(2), acquire, read_value),
    "Semaphore of one": (lambda: threading.Semaphore(1), acquire, read_value),
    "released Semaphore": (lambda: threading.Semaphore(0), release, read_value),
    "entered Semaphore": (lambda: threading.Semaphore(1), enter, read_value),
    "bounded Semaphore": (lambda: threading.BoundedSemaphore(3), acquire, read_value),
    "shared Semaphore": (lambda: SHARED.Semaphore(2), acquire, read_shared),
    "released shared Semaphore": (lambda: SHARED.Semaphore(0), release, read_shared),
    "shared Lock": (SHARED.Lock, acquire, read_shared),
    "entered shared Lock": (SHARED.Lock, enter, read_shared),
    "shared RLock": (SHARED.RLock, lambda one: one.acquire() and one.acquire(), read_shared),
    "Lock": (threading.Lock, acquire, lambda one: one.locked()),
    "locked Lock": (lambda: acquire_once(threading.Lock), release, lambda one: one.locked()),
    "entered Lock": (threading.Lock, enter, lambda one: one.locked()),
    "RLock": (threading.RLock, acquire, read_recursive),
    "RLock that is held": (lambda: acquire_once(threading.RLock), release, read_recursive),
    "Condition": (threading.Condition, lambda one: one.acquire(), lambda one: repr(one._lock)[:20]),
    "Barrier": (lambda: threading.Barrier(2), lambda one: one.abort(), lambda one: one.broken),
}  # fmt: skip


# Cases that leave something acquired, beside those that acquire and do nothing else.
LEFT = {"shared RLock", "Condition"}


@pytest.mark.parametrize("hold", ["directly", "deep", "as an argument"])
@pytest.mark.parametrize("name", CASES)
def test_what_a_step_sets_or_acquires_is_as_before(name, hold):
    make, act, show = CASES[name]
    one = make()
    before = show(one)
    box = SimpleNamespace(kept=[{"a": one}])
    if hold == "as an argument":
        estimate = run(act, one)
    elif hold == "deep":
        estimate = run(lambda: act(box.kept[0]["a"]))
    else:
        estimate = run(lambda: act(one))
    assert show(one) == before
    assert estimate.obstacle is None
    left = act is acquire or name in LEFT
    assert len(estimate.notes) == (name == "Barrier" or left)
    if left:
        assert "leaves" in estimate.notes[0] and "acquired" in estimate.notes[0]


def take(one):
    one.acquire()


async def await_acquiring(one):
    await one.acquire()


def acquire_awaited(one):
    asyncio.run(await_acquiring(one))


FOR_EVER = r"its next call waits for it for ever"
USED_UP = r"once nothing of it is left, the next call waits for it for ever"
# How each is made, how the step acquires it, and what the estimate says: in a note for one from
# before; for one of the step's own in an error, a note or not at all.
ENDLESS = {
    "Lock": (threading.Lock, take, FOR_EVER, UsageError),
    "RLock": (threading.RLock, take, "another thread that acquires it waits", None),
    "Condition": (threading.Condition, take, "another thread that acquires it waits", None),
    "Condition of a Lock": (
        lambda: threading.Condition(threading.Lock()), take, FOR_EVER, UsageError),
    "Semaphore": (threading.Semaphore, take, FOR_EVER, UsageError),
    "Semaphore of nine": (lambda: threading.Semaphore(9), take, USED_UP, USED_UP),
    "shared Lock": (SHARED.Lock, take, f"{FOR_EVER}, unless another process", UsageError),
    "shared RLock": (SHARED.RLock, take, "another process that acquires it waits", None),
    "shared Semaphore": (lambda: SHARED.Semaphore(9), take, USED_UP, USED_UP),
    "shared Condition": (SHARED.Condition, take, "another process that acquires it waits", None),
    "asyncio's Lock": (asyncio.Lock, acquire_awaited, UsageError, UsageError),
    "asyncio's Semaphore": (lambda: asyncio.Semaphore(9), acquire_awaited, USED_UP, USED_UP),
    "asyncio's Condition": (asyncio.Condition, acquire_awaited, UsageError, UsageError),
}  # fmt: skip


@pytest.mark.parametrize("hold", ["from before", "as an argument", "of the step"])
@pytest.mark.parametrize("name", ENDLESS)
def test_a_step_that_leaves_something_acquired_is_named(name, hold, monkeypatch):
    monkeypatch.setattr(waits, "LONGEST", 0.6)
    monkeypatch.setattr(waits, "LONGEST_READING", 1.5)
    make, act, from_before, of_step = ENDLESS[name]
    said = of_step if hold == "of the step" else from_before
    one = make()

    def make_step(batch=4):
        own = make()
        return lambda: [act(own), torch.ones(batch, requires_grad=True).sum().backward()]

    def estimate():
        if hold == "of the step":
            return estimate_memory(make_step)
        return run(act, one) if hold == "as an argument" else run(lambda: act(one))

    if said is UsageError:
        with pytest.raises(UsageError, match=r"waits without end at .*locks.py") as caught:
            estimate()
        assert "the step has acquired it, in this call or in the one before" in caught.value.cause
        return
    notes = estimate().notes
    assert len(notes) == (said is not None)
    if said is not None:
        has_line = not said.startswith("another thread")
        line = r" (at|\(made at) test_estimate_locks.py:\d+" if has_line else ""
        assert re.search(f"^the step leaves an? .*acquired{line}.*{said}", notes[0])


def test_the_name_of_a_lock_that_is_left_acquired_is_said():
    notes = run(lambda: take(BEFORE)).notes
    assert re.search(r"leaves a lock \(.*test_estimate_locks.BEFORE\) acquired at", notes[0])
    assert not BEFORE.locked()


QUIET = {
    "without waiting": lambda one: one.acquire(blocking=False),
    "for a moment": lambda one: one.acquire(timeout=0.01),
    "once": lambda one: one.locked() or one.acquire(),
    "released at the next call": lambda one: one.release() if one.locked() else take(one),
}


@pytest.mark.parametrize("name", QUIET)
def test_a_step_whose_next_call_does_not_wait_is_not_warned_of(name):
    one = threading.Lock()
    assert run(lambda: QUIET[name](one)).notes == ()
    assert not one.locked()


def test_a_semaphore_of_which_the_first_call_alone_takes_is_not_warned_of():
    one, seen = threading.Semaphore(3), []
    assert run(lambda: seen or [one.acquire(), seen.append(1)]).notes == ()
    assert one._value == 3


def test_a_lock_that_another_thread_may_release_says_so():
    lock, timer = threading.Lock(), threading.Timer(60, print)
    timer.start()
    thread = threading.Thread(target=wait_for, args=(timer,))
    thread.start()
    try:
        assert "for ever, unless another thread releases it" in run(lock.acquire).notes[0]
    finally:
        timer.cancel()
        thread.join()
        timer.join()


def test_a_call_that_waits_for_itself_is_still_refused(monkeypatch):
    monkeypatch.setattr(waits, "LONGEST", 0.6)
    monkeypatch.setattr(waits, "LONGEST_READING", 1.5)
    lock = threading.Lock()
    with pytest.raises(UsageError, match="waits without end"):
        run(lambda: [lock.acquire(), lock.acquire()])
    assert not lock.locked()


def test_a_lock_that_a_thread_of_the_call_before_still_has_is_waited_for():
    lock, threads = threading.Lock(), []

    def work(taken):
        with lock:
            taken.set()
            SLEEP(0.2)

    def act():
        with lock:
            taken = threading.Event()
        threads.append(threading.Thread(target=work, args=(taken,)))
        threads[-1].start()
        taken.wait()

    assert not [one for one in run(act).notes if "leaves" in one]
    assert not lock.locked()


def test_a_thread_that_waits_for_an_event_goes_on_waiting():
    stop, seen = threading.Event(), []
    waiting = threading.Thread(target=lambda: seen.append(stop.wait()))
    waiting.start()
    try:
        assert run(stop.set).notes == ()
        waiting.join(0.05)
        assert waiting.is_alive()
    finally:
        stop.set()
        waiting.join()
    assert seen == [True]


def test_a_method_that_something_keeps_changes_nothing():
    one = threading.Event()
    kept = {"set": [one.set]}

    def call():
        kept["set"][0]()

    run(call)
    assert not one.is_set()


def test_an_event_that_another_thread_sets_meanwhile_is_seen():
    ready = threading.Event()
    timer = threading.Timer(0.3, ready.set)
    timer.start()
    assert run(ready.wait).obstacle is None
    timer.join()


@pytest.mark.parametrize("kind", ["Event", "Condition", "Barrier", "Semaphore"])
def test_a_step_that_waits_for_others_is_refused(kind):
    event, condition = threading.Event(), threading.Condition()
    barrier, semaphore = threading.Barrier(2), threading.Semaphore(0)
    waits = {
        "Event": event.wait,
        "Condition": lambda: condition.acquire() and condition.wait(),
        "Barrier": barrier.wait,
        "Semaphore": semaphore.acquire,
    }
    with pytest.raises(UsageError, match=f"waits for an? {kind} that was made before"):
        run(waits[kind])


def test_what_the_step_makes_itself_works():
    def work():
        ready, barrier = threading.Event(), threading.Barrier(2)
        other = threading.Thread(target=lambda: (barrier.wait(), ready.set()))
        other.start()
        barrier.wait()
        assert ready.wait()
        other.join()
        semaphore = threading.Semaphore(1)
        with semaphore, SHARED.Lock():
            pass

    assert run(work).notes == ()


def test_a_pool_of_processes_from_before_is_refused_at_once():
    with ProcessPoolExecutor(1, mp_context=SHARED) as executor, SHARED.Pool(1) as pool:
        assert executor.submit(abs, -1).result() == pool.apply(abs, (-1,)) == 1
        for give in (
            lambda: executor.submit(abs, -1).result(),
            lambda: [*executor.map(abs, [-1])],
            lambda: pool.apply(abs, (-1,)),
            lambda: pool.map(abs, [-1]),
            lambda: [*pool.imap(abs, [-1])],
        ):
            with pytest.raises(UsageError, match=r"gives work to a .* of processes"):
                run(give)
        assert executor.submit(abs, -2).result() == pool.apply(abs, (-2,)) == 2


@pytest.mark.parametrize("kind", [ThreadPoolExecutor, multiprocessing.pool.ThreadPool])
def test_a_pool_of_threads_from_before_works_for_the_step(kind, tmp_path):
    path = tmp_path / "file"

    def write(words):
        path.write_text(words)
        return 1

    with kind(1) as pool:
        assert [*pool.map(write, ["real"])] == [1]
        run(lambda: [*pool.map(write, ["fake"])])
        assert path.read_text() == "real"
        assert [*pool.map(Path.read_text, [path])] == ["real"]


def test_a_thread_from_before_is_joined_for_a_moment():
    event = threading.Event()
    thread = threading.Thread(target=event.wait, daemon=True)
    thread.start()
    with pytest.raises(UsageError, match="waits for a Thread that was made before"):
        run(set_and_join, event, thread)
    assert thread.is_alive() and not event.is_set()
    run(lambda: thread.join(0.01))
    event.set()
    thread.join()
    assert run(thread.join).obstacle is None


def test_a_listener_from_before_is_not_waited_for():
    listener = logging.handlers.QueueListener(queue.Queue(), logging.NullHandler())
    listener.start()
    thread = listener._thread
    with pytest.raises(UsageError, match="waits for a Thread that was made before"):
        run(listener.stop)
    assert thread.is_alive()
    listener.queue.put(None)
    thread.join()


def test_a_timer_from_before_goes_on():
    timer = threading.Timer(60, print)
    timer.start()
    assert "a Timer that was made before is dropped" in run(timer.cancel).notes[0]
    assert not timer.finished.is_set()
    timer.cancel()
    timer.join()


def test_a_thread_from_before_is_not_started():
    thread = threading.Thread(target=print)
    with pytest.raises(UsageError, match="starts a Thread that was made before"):
        run(start_once, thread)
    thread.start()
    thread.join()


def test_threads_and_timers_of_the_step_work():
    def work():
        timer, thread = threading.Timer(60, print), threading.Thread(target=len, args=("a",))
        timer.start()
        thread.start()
        timer.cancel()
        timer.join()
        thread.join()

    estimate = run(work)
    assert (estimate.obstacle, estimate.notes) == (None, ())


def test_a_lock_that_only_another_thread_releases_stays_released():
    lock = acquire_once(threading.Lock)
    timer = threading.Timer(0.1, lock.release)
    timer.start()
    assert run(lambda: wait_for(timer)).notes == ()
    assert not lock.locked()


def wait_for(thread):
    while thread.is_alive():
        pass


class Owner:
    """Releases a lock when it is deleted."""

    def __init__(self, lock):
        self.lock = lock

    def __del__(self):
        self.lock.release()


def release_in_pool(lock):
    ThreadPoolExecutor(1).submit(SLEEP, 0.2).add_done_callback(lambda _: lock.release())


def release_in_loop(lock):
    async def work():
        asyncio.get_running_loop().call_later(0.2, lock.release)
        await asyncio.sleep(0.4)

    threading.Thread(target=asyncio.run, args=(work(),)).start()


def release_by_deletion(lock):
    threading.Thread(target=lambda one: SLEEP(0.2), args=(Owner(lock),)).start()


def release_by_finalizer(lock):
    held = threading.Event()
    weakref.finalize(held, lock.release)
    threading.Thread(target=lambda one: SLEEP(0.2), args=(held,)).start()


RELEASING = {
    "timer": lambda lock: threading.Timer(0.2, lock.release).start(),
    "function": lambda lock: threading.Timer(0.2, lambda: release(lock)).start(),
    "pool": release_in_pool,
    "loop": release_in_loop,
    "deletion": release_by_deletion,
    "finalizer": release_by_finalizer,
}


@pytest.mark.parametrize("hold", ["directly", "deep", "as an argument", "of a module", "unused"])
@pytest.mark.parametrize("name", RELEASING)
def test_a_lock_that_another_thread_releases_in_time_is_waited_for(name, hold):
    lock = acquire_once(threading.Lock)
    box, module = SimpleNamespace(kept=[{"a": (lock,)}]), torch.nn.Identity()
    module.lock = lock
    RELEASING[name](lock)
    steps = {
        "directly": lambda: enter(lock),
        "deep": lambda: enter(box.kept[0]["a"][0]),
        "of a module": lambda: enter(module.lock),
        "unused": lambda: wait_until_free(lock),
    }
    estimate = run(enter, lock) if hold == "as an argument" else run(steps[hold])
    assert estimate.obstacle is None and estimate.notes == ()
    assert not lock.locked()
    assert box.kept[0]["a"][0] is lock is module.lock


def wait_until_free(lock):
    while lock.locked():
        pass


def test_a_lock_that_another_thread_acquires_meanwhile_stays_acquired():
    lock = threading.Lock()
    timer = threading.Timer(0.1, lock.acquire)
    timer.start()
    assert run(lambda: wait_for(timer) or lock.locked()).notes == ()
    assert lock.locked()


def test_a_condition_whose_lock_another_thread_releases_stays_released():
    one = threading.Condition(threading.Lock())
    one.acquire()
    threading.Timer(0.2, one.release).start()
    assert run(lambda: enter(one)).notes == ()
    assert not one._lock.locked()


@pytest.mark.parametrize("hold", ["directly", "as a method"])
def test_a_lock_that_the_step_changes_while_a_timer_lives_is_put_back(hold):
    free, held, timer = threading.Lock(), acquire_once(threading.Lock), threading.Timer(60, print)
    taking, giving = [free.acquire], [held.release]
    timer.start()
    try:
        if hold == "directly":
            estimate = run(lambda: free.acquire() and held.release())
        else:
            estimate = run(lambda: taking[0]() and giving[0]())
        assert len(estimate.notes) == 1 and "leaves a lock" in estimate.notes[0]
        assert not free.locked() and held.locked()
    finally:
        timer.cancel()
        timer.join()


def test_a_thread_that_waits_for_a_lock_does_not_get_it_from_the_step():
    lock, seen = acquire_once(threading.Lock), []
    thread = threading.Thread(target=lambda: seen.append(lock.acquire()))
    thread.start()
    run(lock.release)
    assert thread.is_alive() and not seen
    lock.release()
    thread.join()


def test_what_a_timer_sets_and_puts_meanwhile_stays():
    event, numbers = threading.Event(), queue.Queue()
    timers = threading.Timer(0.1, event.set), threading.Timer(0.1, numbers.put, (1,))
    for one in timers:
        one.start()
    run(lambda: [wait_for(one) for one in timers])
    assert event.is_set() and numbers.get_nowait() == 1


def test_what_a_timer_writes_meanwhile_stays(tmp_path):
    with (tmp_path / "file").open("a", encoding="utf-8") as file:
        number = file.fileno()
        timer = threading.Timer(0.1, os.write, (number, b"real"))
        timer.start()
        run(lambda: wait_for(timer) or file.name)
    assert (tmp_path / "file").read_text() == "real"


def test_a_lock_is_waited_for_where_its_signal_is_blocked(monkeypatch):
    monkeypatch.setattr(waits, "LONGEST", 0.6)
    monkeypatch.setattr(waits, "LONGEST_READING", 3.0)
    lock = acquire_once(threading.RLock)  # of C, which labkit does not replace
    lock.release()
    ready, end = threading.Event(), threading.Event()
    thread = threading.Thread(target=lambda: [lock.acquire(), ready.set(), end.wait()])
    thread.start()
    ready.wait()
    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGURG})
    try:
        with pytest.raises(UsageError, match="waits without end"):
            run(lambda: enter(lock))
        assert signal.SIGURG in signal.pthread_sigmask(signal.SIG_BLOCK, ())
    finally:
        signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGURG})
        end.set()
        thread.join()


def wait_until_set(event):
    while not event.is_set():
        pass


async def make_shared():
    return asyncio.Event(), asyncio.Queue(), asyncio.Lock()


def test_what_another_threads_loop_sets_meanwhile_stays():
    loop = asyncio.new_event_loop()
    thread = threading.Thread(target=loop.run_forever)
    thread.start()
    event, numbers, lock = asyncio.run_coroutine_threadsafe(make_shared(), loop).result()

    async def work():
        while not waits.WAITS.is_open:
            await asyncio.sleep(0.01)
        await asyncio.sleep(0.3)
        numbers.put_nowait(1)
        await lock.acquire()
        event.set()

    asyncio.run_coroutine_threadsafe(work(), loop)
    try:
        run(lambda: wait_until_set(event) or (numbers, lock))
        assert event.is_set() and numbers.qsize() == 1 and lock.locked()
    finally:
        loop.call_soon_threadsafe(loop.stop)
        thread.join()
        loop.close()


@pytest.mark.parametrize("kind", [asyncio.Event, asyncio.Queue])
def test_what_the_step_itself_sets_of_asyncios_is_put_back(kind):
    one = kind()
    run(lambda: one.set() if kind is asyncio.Event else one.put_nowait(1))
    assert not (one.is_set() if kind is asyncio.Event else one.qsize())


BEFORE, KIND = threading.Lock(), type(threading.Lock())


@pytest.mark.parametrize("copier", [copy.copy, copy.deepcopy, pickle.dumps])
def test_a_lock_cannot_be_copied_in_the_step_either(copier):
    def step(values):
        with pytest.raises(TypeError, match="cannot pickle"):
            copier(BEFORE)
        values * 2

    estimate_memory(step, torch.ones(3))


def test_a_lock_is_of_its_kind_in_the_step():
    def step(values):
        made = threading.Lock()
        assert all(isinstance(one, KIND) for one in (BEFORE, made))
        assert all(isinstance(one, type(threading.Lock())) for one in (BEFORE, made))
        values * 2

    estimate_memory(step, torch.ones(3))


def hold_lock(lock):
    with lock:
        yield


KEPT = []


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("make", [threading.Lock, threading.RLock, threading.Condition])
@pytest.mark.parametrize("calls", [1, 3])
def test_a_generator_that_stays_within_a_block_of_a_lock_releases_it(make, calls, monkeypatch):
    monkeypatch.setattr(waits, "LONGEST", 0.6)
    ignored = []
    monkeypatch.setattr(sys, "unraisablehook", ignored.append)
    lock = make()

    def begin():
        KEPT[:] = [hold_lock(lock)]
        next(KEPT[0])

    def make_step(batch=4):
        return lambda: [begin(), torch.ones(batch, requires_grad=True).sum().backward()]

    for _ in range(calls):
        estimate_memory(make_step)
    assert not ignored and not KEPT
    assert lock.acquire(blocking=False)
    lock.release()


def acquire_first(condition):
    condition.acquire()


@pytest.mark.parametrize("act", [acquire_first, lambda one: one.__enter__()], ids=["call", "with"])
@pytest.mark.parametrize("inner", [threading.RLock, threading.Lock])
def test_a_condition_that_a_step_leaves_acquired_is_named_with_its_line(act, inner, monkeypatch):
    monkeypatch.setattr(waits, "LONGEST", 0.6)
    monkeypatch.setitem(globals(), "CONDITION", threading.Condition(inner()))
    (note,) = run(lambda: act(CONDITION)).notes  # noqa: F821
    line = act.__code__.co_firstlineno + (act is acquire_first)
    assert f"a Condition ({__name__}.CONDITION) acquired at " in note
    assert f"test_estimate_locks.py:{line}:" in note
    assert "unlocked" in repr(CONDITION)  # noqa: F821

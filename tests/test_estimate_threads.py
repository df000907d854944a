"""What a simulated step computes in other threads counts, and leaves nothing behind."""

from __future__ import annotations

import _thread
import asyncio
import contextlib
import functools
import multiprocessing.pool
import queue
import random
import signal
import threading
import time
from concurrent.futures import Future, ThreadPoolExecutor, as_completed, wait

import pytest
import torch
from torch import nn

from labkit import estimate_memory
from labkit.errors import UsageError
from labkit.memory.estimate import waits
from tests.fakes.record import Record

POOL, POOL_OF_PROCESSING = ThreadPoolExecutor(1), multiprocessing.pool.ThreadPool(1)
POOL.submit(int).result()
TARGETS = [None, "24 GiB"]
LAYER = nn.Linear(64, 64)
LOCK = threading.Lock()


@pytest.fixture
def given():
    model = nn.Sequential(nn.Linear(64, 256), nn.ReLU(), nn.Linear(256, 64))
    return model, torch.optim.Adam(model.parameters()), torch.randn(32, 64)


def train(model, optimizer, inputs):
    optimizer.zero_grad()
    model(inputs).square().mean().backward()
    optimizer.step()


def run_thread(function, *arguments):
    thread = threading.Thread(target=function, args=arguments)
    thread.start()
    thread.join()


def poll_thread(function, *arguments):
    thread = threading.Thread(target=function, args=arguments)
    thread.start()
    while thread.is_alive():
        thread.join(0.01)


def run_thread_of_a_thread(function, *arguments):
    run_thread(run_thread, function, *arguments)


def run_timer(function, *arguments):
    timer = threading.Timer(0.01, function, arguments)
    timer.start()
    timer.join()


def run_executor(function, *arguments):
    with ThreadPoolExecutor(4) as pool:
        pool.submit(function, *arguments).result()


def wait_for_executor(function, *arguments):
    with ThreadPoolExecutor(1) as pool:
        wait([pool.submit(function, *arguments)])


def run_thread_pool(function, *arguments):
    with multiprocessing.pool.ThreadPool(1) as pool:
        pool.apply(function, arguments)


def run_asynchronously(function, *arguments):
    asyncio.run(asyncio.to_thread(function, *arguments))


WAYS = {
    "a thread": run_thread,
    "a thread that is polled": poll_thread,
    "a thread of a thread": run_thread_of_a_thread,
    "a timer": run_timer,
    "an executor": run_executor,
    "an executor that is waited for": wait_for_executor,
    "an executor from before": lambda *given: POOL.submit(*given).result(),
    "a pool of multiprocessing": run_thread_pool,
    "one from before": lambda function, *given: POOL_OF_PROCESSING.apply(function, given),
    "asyncio": run_asynchronously,
}


def estimate_like_alone(step, given, device):
    """The estimate of a step, which is that of the same step in one thread."""

    def step_alone(model, optimizer, inputs):
        train(model, optimizer, inputs)
        model(inputs)

    found, alone = (estimate_memory(one, *given, device=device) for one in (step, step_alone))
    assert (found.peak_bytes, found.kinds) == (alone.peak_bytes, alone.kinds)
    return found


@pytest.mark.parametrize("device", TARGETS)
@pytest.mark.parametrize("name", WAYS)
def test_a_step_in_a_thread_counts_as_in_its_own(name, device, given):
    def step(model, optimizer, inputs):
        WAYS[name](train, model, optimizer, inputs)
        model(inputs)

    found = estimate_like_alone(step, given, device)
    assert found.peak_bytes > 4 * found.kinds["parameters"] > 0
    assert found.obstacle is None and found.notes == ()


def test_a_forward_pass_in_a_thread_has_its_backward_pass_elsewhere(given):
    def step(model, optimizer, inputs):
        found = []
        run_thread(lambda: found.append(model(inputs).square().mean()))
        found[0].backward()

    def step_alone(model, optimizer, inputs):
        model(inputs).square().mean().backward()

    found, alone = (estimate_memory(one, *given) for one in (step, step_alone))
    assert found.peak_bytes == alone.peak_bytes and found.obstacle is None


def test_each_thread_that_multiplies_has_a_workspace_of_cublas(given):
    def step(count, model, optimizer, inputs):
        for _ in range(count):
            run_thread(model, inputs)
        model(inputs)

    def find(count):
        estimate = estimate_memory(
            functools.partial(step, count), *given, inference=True, device="24 GiB"
        )
        return estimate.workspace_bytes

    # A thread that ends leaves it to the next one.
    assert find(1) == find(3) == 2 * find(0)


def start_two(model, inputs):
    threads = [threading.Thread(target=model, args=(one,)) for one in inputs.chunk(2)]
    for one in threads:
        one.start()
    for one in threads:
        one.join()


def meet(model, inputs):
    barrier = threading.Barrier(2)

    def work():
        model(inputs)
        barrier.wait()
        model(inputs)

    threads = [threading.Thread(target=work) for _ in range(2)]
    for one in threads:
        one.start()
    for one in threads:
        one.join()


def map_by_two(model, inputs):
    with ThreadPoolExecutor(2) as pool:
        list(pool.map(model, inputs.chunk(2)))


def map_by_two_of_multiprocessing(model, inputs):
    with multiprocessing.pool.ThreadPool(2) as pool:
        pool.map(model, inputs.chunk(4))


def compute_beside(model, inputs):
    thread = threading.Thread(target=model, args=(inputs,))
    thread.start()
    model(inputs)
    thread.join()


def take_the_first(model, inputs):
    with ThreadPoolExecutor(1) as pool:
        for one in as_completed([pool.submit(model, one) for one in inputs.chunk(2)]):
            one.result().sum()


def load_ahead(model, inputs):
    batches = queue.Queue(2)

    def load():
        for _ in range(4):
            batches.put(inputs * 2)
        batches.put(None)

    threading.Thread(target=load).start()
    for one in iter(batches.get, None):
        model(one)


def run_raw(model, inputs):
    lock = _thread.allocate_lock()
    lock.acquire()

    def work():
        model(inputs)
        lock.release()

    _thread.start_new_thread(work, ())
    lock.acquire()
    model(inputs)


OVERLAPS = (
    start_two, meet, map_by_two, map_by_two_of_multiprocessing, compute_beside, take_the_first,
    load_ahead, run_raw,
)  # fmt: skip


@pytest.mark.parametrize("device", TARGETS)
@pytest.mark.parametrize("act", OVERLAPS)
def test_threads_that_may_compute_at_once_make_a_lower_bound(act, device):
    estimate = estimate_memory(act, LAYER, torch.randn(32, 64), device=device)
    assert "at the same time" in estimate.obstacle.reason
    assert estimate.obstacle.frame.file == __file__
    assert estimate.peak_bytes > estimate.kinds["parameters"] + 32 * 64 * 4


def test_threads_that_compute_nothing_may_run_at_once(given):
    def step(model, optimizer, inputs):
        stop, words = threading.Event(), queue.Queue()

        def watch():
            while not stop.wait(0.01):
                words.put("alive")

        thread = threading.Thread(target=watch)
        thread.start()
        train(model, optimizer, inputs)
        stop.set()
        thread.join()

    found, alone = (estimate_memory(one, *given) for one in (step, train))
    assert found.peak_bytes == alone.peak_bytes and found.obstacle is None


@pytest.mark.parametrize("device", TARGETS)
def test_a_pool_of_one_thread_computes_one_after_the_other(device, given):
    def step(model, optimizer, inputs):
        with ThreadPoolExecutor(1) as pool:
            wait([pool.submit(model, one) for one in inputs.chunk(4)])
        with multiprocessing.pool.ThreadPool(1) as pool:
            pool.map(model, inputs.chunk(4))

    assert estimate_memory(step, *given, device=device).obstacle is None


def test_what_a_pools_thread_begins_with_counts():
    def step():
        local = threading.local()

        def begin():
            local.weights = torch.ones(1000, 1000)

        with ThreadPoolExecutor(1, initializer=begin) as pool:
            pool.submit(lambda: local.weights.sum() + 1).result()

    estimate = estimate_memory(lambda: step)
    assert 4_000_000 <= estimate.peak_bytes < 4_100_000 and estimate.obstacle is None


def test_a_decision_by_a_value_in_a_thread_is_followed_both_ways(given):
    def step(model, optimizer, inputs):
        def work():
            if model(inputs).sum() > 0:
                torch.ones(1_000_000)

        run_thread(work)

    estimate = estimate_memory(step, *given)
    assert estimate.peak_bytes - estimate.lowest_bytes > 3_000_000


def test_a_draw_in_a_thread_makes_a_range():
    def step():
        run_thread(lambda: torch.ones(random.randint(1, 1000)))

    estimate = estimate_memory(lambda: step)
    assert (estimate.lowest_bytes, estimate.peak_bytes) == (4, 4000)


def test_a_thread_may_name_the_gpu():
    def step():
        run_thread(lambda: torch.ones(1000, device="cuda"))
        torch.ones(2000)

    estimate = estimate_memory(lambda: step, device="24 GiB")
    assert (estimate.peak_bytes, estimate.host_bytes) == (4096, 8000)


def test_a_thread_that_trains_what_was_made_before_is_refused():
    def step(inputs):
        run_thread(lambda: LAYER(inputs).sum().backward())

    with pytest.raises(UsageError, match="argument"):
        estimate_memory(step, torch.randn(32, 64))
    assert LAYER.weight.grad is None


@pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")
def test_an_error_of_a_threads_own_ends_the_thread_alone(given):
    def step(model, optimizer, inputs):
        run_thread(lambda: 1 / 0)
        model(inputs)

    assert estimate_memory(step, *given).obstacle is None


@pytest.fixture
def loop():
    made = asyncio.new_event_loop()
    thread = threading.Thread(target=made.run_forever)
    thread.start()
    yield made
    made.call_soon_threadsafe(made.stop)
    thread.join()
    made.close()


async def train_at_once(*given):
    train(*given)


async def train_in_a_task(*given):
    await asyncio.sleep(0.01)
    await asyncio.create_task(train_at_once(*given))


async def train_in_another_thread(*given):
    await asyncio.to_thread(train, *given)


@pytest.mark.parametrize("device", TARGETS)
@pytest.mark.parametrize("act", [train_at_once, train_in_a_task, train_in_another_thread])
def test_a_coroutine_in_a_loop_from_before_counts_as_in_the_step(act, device, given, loop):
    def step(model, optimizer, inputs):
        asyncio.run_coroutine_threadsafe(act(model, optimizer, inputs), loop).result()
        model(inputs)

    found = estimate_like_alone(step, given, device)
    assert found.obstacle is None


def test_a_callback_in_a_loop_from_before_counts(given, loop):
    def step(model, optimizer, inputs):
        done = threading.Event()

        def act():
            train(model, optimizer, inputs)
            done.set()

        loop.call_soon_threadsafe(act)
        done.wait()

    found, alone = (estimate_memory(one, *given) for one in (step, train))
    assert found.peak_bytes == alone.peak_bytes


@pytest.mark.parametrize("device", TARGETS)
def test_a_thread_from_before_that_gets_the_steps_tensors_is_refused(device, given):
    work, ends, failed = Record(), threading.Event(), Record()

    def serve():
        while not ends.wait(0.001):
            for function, done in work.take():
                try:
                    function()
                except RuntimeError as error:
                    failed.append(str(error))
                done.append(1)

    def step(model, optimizer, inputs):
        done = []
        work.append((lambda: train(model, optimizer, inputs), done))
        while not done:
            time.sleep(0.001)

    thread = threading.Thread(target=serve)
    thread.start()
    with pytest.raises(UsageError, match="computes in a thread that was made before") as caught:
        estimate_memory(step, *given, device=device)
    assert "run_coroutine_threadsafe" in caught.value.fix
    assert any("another thread" in one for one in failed.take())
    ends.set()
    thread.join()
    assert given[0][0].weight.grad is None


class CountingExecutor(ThreadPoolExecutor):
    given = 0

    def submit(self, function, /, *arguments, **named):
        self.given += 1
        return super().submit(function, *arguments, **named)


class OwnThreadPool(multiprocessing.pool.ThreadPool):
    given = 0

    def apply_async(self, function, *given, **named):
        self.given += 1
        return super().apply_async(function, *given, **named)


EXECUTOR, THREAD_POOL = CountingExecutor(1), OwnThreadPool(1)


@pytest.mark.parametrize(
    ("pool", "act"),
    [
        (EXECUTOR, EXECUTOR.submit),
        (THREAD_POOL, lambda function, *given: THREAD_POOL.apply_async(function, given)),
    ],
    ids=["an executor", "a pool of multiprocessing"],
)
def test_a_pool_of_a_class_of_the_programs_own_works_for_the_step(pool, act, given):
    def step(model, optimizer, inputs):
        made = act(train, model, optimizer, inputs)
        made.result() if pool is EXECUTOR else made.get()

    found, alone = (estimate_memory(one, *given) for one in (step, train))
    assert found.peak_bytes == alone.peak_bytes and found.obstacle is None
    assert pool.given == 0
    act(int) if pool is THREAD_POOL else act(int).result(9)


def join_a_deadlock():
    lock = threading.Lock()
    lock.acquire()
    run_thread(lock.acquire)


def lock_twice():
    lock = threading.Lock()
    lock.acquire()
    lock.acquire()


def meet_nobody():
    threading.Barrier(2).wait()


def notice_nothing():
    condition = threading.Condition()
    with condition:
        condition.wait()


def join_a_queue():
    waiting = queue.Queue()
    waiting.put(1)
    waiting.join()


def wait_for_a_polling_thread():
    ends = threading.Event()

    def poll():
        while not ends.wait(0.01):
            pass

    thread = threading.Thread(target=poll)
    thread.start()
    thread.join()


def wait_in_a_pool():
    with ThreadPoolExecutor(1) as pool:
        pool.submit(threading.Event().wait).result()


def acquire_from_another():
    lock = threading.RLock()
    run_thread(lock.acquire)
    lock.acquire()


def acquire_all():
    semaphore = threading.Semaphore(1)
    semaphore.acquire()
    semaphore.acquire()


def take_a_lock_from_before():
    LOCK.acquire()
    with LOCK:
        pass


def take_a_raw_lock():
    lock = _thread.allocate_lock()
    lock.acquire()
    lock.acquire(True)


def join_one_that_takes_a_lock_from_before():
    def work():
        with LOCK:
            pass

    LOCK.acquire()
    run_thread(work)


def join_one_that_is_the_acquiring_of_a_lock():
    LOCK.acquire()
    run_thread(LOCK.acquire)


async def await_nothing():
    await asyncio.get_running_loop().create_future()


# What waits in C alone, and a word of the cause.
IN_C = {
    "a lock from before": (take_a_lock_from_before, "lock at test_estimate_threads"),
    "a lock of _thread": (take_a_raw_lock, "lock at test_estimate_threads"),
    "a thread at a lock": (join_one_that_takes_a_lock_from_before, "lock at test_estimate_threads"),
    "acquire as a thread": (join_one_that_is_the_acquiring_of_a_lock, "stays locked"),
    "an event loop": (lambda: asyncio.run(await_nothing()), "event loop at test_estimate_threads"),
}
# What waits at a lock of the step's own.
TAKEN = {"acquire": lock_twice, "acquire an RLock": acquire_from_another, "semaphore": acquire_all}
ENDLESS = {
    **{name: act for name, (act, _) in IN_C.items()},
    **TAKEN,
    "join": join_a_deadlock,
    "a semaphore": lambda: threading.Semaphore(0).acquire(),
    "an event": lambda: threading.Event().wait(),
    "a condition": notice_nothing,
    "a barrier": meet_nobody,
    "a queue": lambda: queue.Queue().get(),
    "a SimpleQueue": lambda: queue.SimpleQueue().get(),
    "join a queue": join_a_queue,
    "a future": lambda: Future().result(),
    "a thread that polls": wait_for_a_polling_thread,
    "a pool": wait_in_a_pool,
}


@pytest.mark.parametrize("name", ENDLESS)
def test_a_step_that_waits_without_end_is_refused(name, monkeypatch):
    monkeypatch.setattr(waits, "LONGEST", 0.6)
    monkeypatch.setattr(waits, "LONGEST_READING", 3.0)

    def step(inputs):
        inputs * 2
        ENDLESS[name]()

    before = threading.active_count()
    with pytest.raises(
        UsageError, match=r"waits without end at .*test_estimate_threads.py:\d"
    ) as caught:
        estimate_memory(step, torch.ones(2))
    assert threading.active_count() == before and not LOCK.locked()
    taken = "the step has acquired it" if name in TAKEN else "no thread of the step has gone on"
    _, word = IN_C.get(name, (None, taken))
    assert word in caught.value.cause


def acquire_for_a_time():
    LOCK.acquire()
    LOCK.acquire(timeout=1.5)
    LOCK.release()


async def sleep_for_a_time():
    await asyncio.to_thread(time.sleep, 0.01)
    await asyncio.sleep(1.5)


@pytest.mark.parametrize(
    "act", [acquire_for_a_time, lambda: asyncio.run(sleep_for_a_time())], ids=["lock", "loop"]
)
def test_a_wait_in_c_that_ends_is_waited_for(act, monkeypatch):
    monkeypatch.setattr(waits, "LONGEST", 0.6)
    monkeypatch.setattr(waits, "LONGEST_READING", 3.0)

    def step(inputs):
        act()
        return inputs * 2

    assert estimate_memory(step, torch.ones(2)).peak_bytes == 16


def test_the_handler_of_the_signal_that_ends_a_wait_is_put_back():
    def answer(number, frame):
        heard.append(number)

    heard, before = Record(), signal.signal(signal.SIGURG, answer)
    try:
        estimate_memory(lambda inputs: inputs * 2, torch.ones(2))
        assert signal.getsignal(signal.SIGURG) is answer
        signal.raise_signal(signal.SIGURG)
        assert heard.take() == [signal.SIGURG]
    finally:
        signal.signal(signal.SIGURG, before)


def test_a_step_that_asks_a_worker_from_before_waits_for_an_answer():
    asked, answers = queue.Queue(), queue.Queue()

    def serve():
        for one in iter(asked.get, None):
            answers.put(one * 2)

    def step(inputs):
        asked.put(inputs)
        return answers.get()

    thread = threading.Thread(target=serve)
    thread.start()
    with pytest.raises(UsageError, match="waits for an answer in a Queue") as caught:
        estimate_memory(step, torch.ones(2))
    assert "does not get what the step has put" in caught.value.cause
    assert "ThreadPoolExecutor" in caught.value.fix
    asked.put(None)
    thread.join()


def test_a_step_that_puts_and_takes_a_batch_that_is_there_takes_it():
    words, batches = queue.SimpleQueue(), queue.SimpleQueue()
    batches.put(torch.ones(2))

    def step(inputs):
        words.put("begin")
        return batches.get() * inputs

    with pytest.raises(UsageError, match="takes from a SimpleQueue") as caught:
        estimate_memory(step, torch.ones(2))
    assert "take the batch before" in caught.value.fix
    assert batches.qsize() == 1 and words.empty()


def test_work_for_a_worker_from_before_is_refused(given, monkeypatch):
    monkeypatch.setattr(waits, "LONGEST", 0.6)
    monkeypatch.setattr(waits, "LONGEST_READING", 3.0)
    work = queue.Queue()

    def serve():
        for function, future in iter(work.get, None):
            future.set_result(function())

    def step(model, optimizer, inputs):
        future = Future()
        work.put((lambda: train(model, optimizer, inputs), future))
        future.result()

    thread = threading.Thread(target=serve)
    thread.start()
    with pytest.raises(UsageError, match="waits without end") as caught:
        estimate_memory(step, *given)
    assert "ThreadPoolExecutor" in caught.value.fix
    future = Future()
    work.put((int, future))
    assert future.result(9) == 0
    work.put(None)
    thread.join()


def end_by_leaving(pool):
    with pool:
        pass


ENDS = {
    "shutdown": (ThreadPoolExecutor, lambda pool: pool.shutdown()),
    "with": (ThreadPoolExecutor, end_by_leaving),
    "close": (multiprocessing.pool.ThreadPool, lambda pool: pool.close()),
    "terminate": (multiprocessing.pool.ThreadPool, lambda pool: pool.terminate()),
    "with a ThreadPool": (multiprocessing.pool.ThreadPool, end_by_leaving),
}


@pytest.mark.parametrize("name", ENDS)
def test_a_pool_from_before_is_not_ended(name):
    kind, end = ENDS[name]
    pool = kind(1)

    def step(inputs):
        end(pool)
        return inputs + 1

    with pytest.raises(UsageError, match=f"ends a {kind.__name__} that was made before"):
        estimate_memory(step, torch.ones(2))
    assert list(pool.map(abs, [-1])) == [1]
    (pool.shutdown if kind is ThreadPoolExecutor else pool.terminate)()


def test_a_thread_that_goes_on_after_the_step_is_stopped(given):
    seen = Record()

    def work(model, inputs):
        while True:
            model(inputs)
            time.sleep(0.01)
            seen.append(1)

    def step(model, optimizer, inputs):
        threading.Thread(target=work, args=(model, inputs), name="late").start()

    obstacle = estimate_memory(step, *given).obstacle
    assert obstacle.operator == "thread 'late'" and "join it" in obstacle.reason
    assert obstacle.frame.function == "step"
    assert "late" not in [one.name for one in threading.enumerate()]
    seen.take()
    time.sleep(0.03)
    assert not seen.take()


LENDERS = {
    "an executor": (ThreadPoolExecutor(1), "submit"),
    "a pool of multiprocessing": (multiprocessing.pool.ThreadPool(1), "apply_async"),
}


@pytest.mark.parametrize("name", LENDERS)
def test_what_goes_on_in_a_pool_from_before_makes_a_lower_bound(name, given):
    pool, give = LENDERS[name]
    goes_on = Record()
    goes_on.append(True)

    def work():
        while goes_on:
            time.sleep(0.001)

    def step(model, optimizer, inputs):
        getattr(pool, give)(work)
        model(inputs)

    other = threading.Timer(3, goes_on.take)
    other.start()
    obstacle = estimate_memory(step, *given).obstacle
    other.join()
    assert "wait for its result" in obstacle.reason and obstacle.frame.function == "step"
    made = getattr(pool, give)(int)
    assert (made.result(9) if give == "submit" else made.get(9)) == 0


def serve_a_queue(model, inputs):
    work = queue.Queue()

    def serve():
        while True:
            work.get()()
            work.task_done()

    threading.Thread(target=serve, daemon=True).start()
    work.put(lambda: model(inputs))
    work.join()


def leave_at(wait):
    threading.Thread(target=wait, daemon=True).start()


def leave_at_a_lock(*given):
    lock = threading.Lock()
    lock.acquire()
    leave_at(lock.acquire)


LEFT = {
    "a queue that is served": serve_a_queue,
    "an event": lambda *given: leave_at(threading.Event().wait),
    "a lock": leave_at_a_lock,
    "a queue": lambda *given: leave_at(queue.Queue().get),
    "a barrier": lambda *given: leave_at(threading.Barrier(2).wait),
}


@pytest.mark.parametrize("name", LEFT)
def test_a_thread_that_waits_after_the_step_is_stopped(name):
    before = threading.active_count()
    estimate = estimate_memory(LEFT[name], LAYER, torch.randn(32, 64))
    assert threading.active_count() == before
    assert not any("cannot be stopped" in one for one in estimate.notes)


def test_a_note_tells_of_a_thread_that_cannot_be_stopped():
    goes_on = Record()
    goes_on.append(True)

    def work():
        while goes_on:
            with contextlib.suppress(SystemExit):
                time.sleep(0.001)

    def step(inputs):
        threading.Thread(target=work, name="stubborn").start()
        return inputs * 2

    notes = estimate_memory(step, torch.ones(2)).notes
    goes_on.take()
    assert any("'stubborn'" in one and "cannot be stopped" in one for one in notes)


def test_a_timer_that_ends_after_the_step_is_cancelled(given):
    seen = Record()

    def step(model, optimizer, inputs):
        train(model, optimizer, inputs)
        threading.Timer(60, seen.append, (1,)).start()

    before = threading.active_count()
    estimate = estimate_memory(step, *given)
    assert estimate.obstacle is None and "Timer" in estimate.notes[0]
    assert threading.active_count() == before and not seen.take()


def test_a_thread_that_is_left_waiting_computes_for_real_later():
    work, done, kept = queue.Queue(), queue.Queue(), Record()

    def compute():
        for one in iter(work.get, None):
            done.put(torch.ones(one).sum().item())

    def step():
        threading.Thread(target=compute).start()
        kept.append(1)
        return torch.ones(2)

    estimate_memory(step)
    for _ in kept.take():
        work.put(5)
        assert done.get(timeout=9) == 5.0
        work.put(None)

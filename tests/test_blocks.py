"""Exact peaks of blocks that share one counter: nested, overlapping, in threads, raising."""

from __future__ import annotations

import threading

import pytest

from labkit.memory.track.counters import BlockSpan, Ledger, Reading, TensorCounter
from labkit.memory.track.tracker import MemoryTracker
from tests.fakes.counters import FakeDevice, NoCounter, track


def test_a_block_has_its_exact_peak_and_change():
    gpu = FakeDevice(level=100)
    with track(gpu)() as tracked:
        gpu.take(500)
        gpu.take(-450)
    assert tracked.use is not None
    assert tracked.use.spans == (BlockSpan("cuda:0", 100, 600, 150),)
    assert (tracked.use.spans[0].added_bytes, tracked.change_bytes) == (500, 50)
    assert tracked.peak_bytes == 600


def test_a_peak_before_the_block_is_not_the_blocks():
    gpu = FakeDevice()
    gpu.take(1000)
    gpu.take(-1000)
    with track(gpu)() as tracked:
        gpu.take(10)
    assert tracked.peak_bytes == 10


def test_the_outer_block_keeps_its_peak_from_before_within_and_after_the_inner():
    for before, within, after in [(900, 10, 10), (10, 900, 10), (10, 10, 900)]:
        gpu = FakeDevice()
        start = track(gpu)
        with start() as outer:
            gpu.take(before)
            gpu.take(-before)
            with start() as inner:
                gpu.take(within)
                gpu.take(-within)
            gpu.take(after)
            gpu.take(-after)
        assert (outer.peak_bytes, inner.peak_bytes) == (900, within)


def test_three_deep_and_two_in_a_row():
    gpu = FakeDevice()
    start = track(gpu)
    with start() as outer:
        with start() as middle:
            with start() as first:
                gpu.take(5)
            with start() as second:
                gpu.take(7)
            gpu.take(-12)
        gpu.take(3)
    assert [one.peak_bytes for one in (outer, middle, first, second)] == [12, 12, 5, 12]
    assert [one.change_bytes for one in (outer, middle, first, second)] == [3, 0, 5, 7]


def test_blocks_that_overlap_without_nesting_each_have_their_own():
    gpu = FakeDevice()
    start = track(gpu)
    first, second = start(), start()
    first.__enter__()
    gpu.take(8)
    second.__enter__()
    gpu.take(-8)
    first.__exit__(None, None, None)
    gpu.take(4)
    second.__exit__(None, None, None)
    assert (first.peak_bytes, second.peak_bytes) == (8, 8)
    gpu.take(100)
    with start() as third:
        pass
    assert third.peak_bytes == 104


def test_blocks_in_two_threads_count_what_both_take():
    gpu = FakeDevice()
    start = track(gpu)
    opened, taken = threading.Event(), threading.Event()
    inner = start()

    def work():
        with inner:
            opened.set()
            assert taken.wait(10)

    with start() as outer:
        gpu.take(30)
        thread = threading.Thread(target=work)
        thread.start()
        assert opened.wait(10)
        gpu.take(40)
        gpu.take(-60)
        taken.set()
        thread.join(10)
    assert (outer.peak_bytes, inner.peak_bytes) == (70, 70)


def test_many_threads_leave_nothing_open():
    gpu = FakeDevice()
    ledger = Ledger(FakeDevice("process"), find_devices=lambda: [gpu])
    trackers = [MemoryTracker(ledger=ledger) for _ in range(8)]
    together = threading.Barrier(len(trackers))

    def work(tracker):
        together.wait(10)
        for _ in range(50):
            with tracker:
                gpu.take(1)

    threads = [threading.Thread(target=work, args=(tracker,)) for tracker in trackers]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(10)
    assert ledger._open == []
    assert all(tracker.peak_bytes is not None for tracker in trackers)


class FakeTensors(TensorCounter):
    """A profiler that only notes when it is read and restarted."""

    def __init__(self, log):
        super().__init__()
        self._log = log

    def read(self):
        self._log.append("read tensors")
        return Reading(0, 0)

    def restart(self):
        self._log.append("start tensors")
        return Reading(0, 0)


class LoggedProcess(FakeDevice):
    """A process whose readings are noted too."""

    def __init__(self, log):
        super().__init__("process")
        self._log = log

    def read(self):
        self._log.append("read process")
        return super().read()

    def restart(self):
        self._log.append("start process")
        return super().read()


def test_the_profilers_own_memory_is_kept_out_of_the_process():
    log: list[str] = []
    ledger = Ledger(LoggedProcess(log), FakeTensors(log), find_devices=list)
    with MemoryTracker(tensors=True, ledger=ledger):
        assert log == ["start tensors", "start process"]
        log.clear()
        with MemoryTracker(tensors=True, ledger=ledger):
            assert log == ["read process", "read tensors", "start tensors", "start process"]
            log.clear()
        assert log == ["read process", "read tensors", "start tensors", "start process"]
        log.clear()
    assert log == ["read process", "read tensors"]


def test_a_block_that_raises_is_measured_and_the_error_goes_on():
    gpu = FakeDevice()
    tracker = track(gpu)()
    with pytest.raises(ZeroDivisionError), tracker:
        gpu.take(9)
        raise ZeroDivisionError
    assert (tracker.peak_bytes, tracker.change_bytes) == (9, 9)
    with tracker:
        gpu.take(1)
    assert tracker.peak_bytes == 10


def test_a_device_that_starts_inside_the_block_held_nothing_before():
    gpu = FakeDevice()
    devices: list[FakeDevice] = []
    ledger = Ledger(NoCounter("process"), find_devices=lambda: devices)
    with MemoryTracker(ledger=ledger) as outer:
        devices.append(gpu)
        gpu.take(50)
        gpu.take(-30)
        with MemoryTracker(ledger=ledger) as inner:
            gpu.take(10)
    assert outer.use is not None
    assert inner.use is not None
    assert outer.use.spans == (BlockSpan("cuda:0", 0, 50, 30),)
    assert inner.use.spans == (BlockSpan("cuda:0", 20, 30, 30),)


def test_gpus_that_held_nothing_are_left_out():
    used, idle = FakeDevice("cuda:1", 7), FakeDevice("cuda:0")
    with track(used, idle)() as tracked:
        pass
    assert tracked.use is not None
    assert [span.where for span in tracked.use.spans] == ["cuda:1"]


@pytest.mark.parametrize(
    ("device", "expected"),
    [
        (None, ["cuda:0", "cuda:1", "process"]),
        ("cuda", ["cuda:0", "cuda:1"]),
        ("cuda:1", ["cuda:1"]),
        ("cpu", ["process"]),
    ],
)
def test_a_device_narrows_what_is_read(device, expected):
    counters = [FakeDevice("cuda:0", 1), FakeDevice("cuda:1", 1)]
    memory = FakeDevice("process", 1)
    with track(*counters, process_gauge=memory, device=device)() as tracked:
        pass
    assert tracked.use is not None
    assert [span.where for span in tracked.use.spans] == expected
    touched = [one.name for one in (*counters, memory) if one.resets]
    assert touched == expected


def test_a_mark_that_cannot_be_reset_is_not_measured():
    memory = FakeDevice("process", 100, exact=False)
    start = track(process_gauge=memory)
    with start() as outer, start() as inner:
        memory.take(5)
    assert inner.use is not None
    assert outer.use is not None
    assert inner.use.spans == outer.use.spans == (BlockSpan("process", 100, None, 105),)
    assert repr(inner).startswith("process: peak not measured, change +5 B\n")
    assert inner.peak_bytes is None


def test_where_nothing_can_be_read_it_is_not_measured():
    with track()() as tracked:
        pass
    assert tracked.use is not None
    assert (tracked.use.spans, tracked.peak_bytes, tracked.change_bytes) == ((), None, None)
    assert repr(tracked).startswith("memory: not measured\nseconds: ")

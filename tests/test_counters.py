"""Counters of memory, and exact peaks of nested and overlapping blocks that share them."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
from types import SimpleNamespace

import pytest

from labkit.errors import LabkitError
from labkit.memory.balance import read
from labkit.memory.track import counters
from labkit.memory.track.counters import (
    CudaCounter,
    OpenBlocks,
    ProcessCounter,
    Reading,
    TensorCounter,
    find_cuda_counters,
)
from labkit.memory.track.model import BlockSpan
from labkit.memory.track.tracker import MemoryTracker, track_memory
from tests.fakes.counters import FakeDevice, NoCounter, track
from tests.fakes.pages import hold_pages

MIB = 2**20


class RecordedCuda:
    """torch.cuda as it answered on a GPU: statistics as the allocator gives them."""

    def __init__(self, started=True, count=2, current=1):
        self.started, self.count, self.current = started, count, current
        self.statistics = {
            "allocated_bytes": {
                "all": {"current": 1024, "peak": 4096, "allocated": 9999, "freed": 8975},
                "small_pool": {"current": 1024, "peak": 1024, "allocated": 1, "freed": 1},
            },
            "reserved_bytes": {"all": {"current": 2 * MIB, "peak": 2 * MIB}},
        }
        self.calls: list[str] = []

    def is_initialized(self):
        return self.started

    def device_count(self):
        return self.count

    def current_device(self):
        return self.current

    def memory_stats_as_nested_dict(self, index):
        return self.statistics

    def reset_peak_memory_stats(self, index):
        self.calls.append(f"reset {index}")

    def synchronize(self):
        self.calls.append("synchronize")


def test_the_allocators_statistics_are_what_is_read():
    cuda = RecordedCuda()
    gauge = CudaCounter(cuda, 0)
    assert (gauge.name, gauge.read()) == ("cuda:0", Reading(1024, 4096))
    assert gauge.reset() == Reading(1024, 4096)
    assert cuda.calls == ["reset 0"]
    cuda.statistics = {}  # never used
    assert gauge.read() == Reading(0, 0)


def test_an_allocator_without_statistics_is_not_measured():
    cuda = RecordedCuda()

    def refuse(index):
        raise RuntimeError("CUDAPluggableAllocator does not yet support getDeviceStats")

    cuda.memory_stats_as_nested_dict = refuse  # type: ignore[method-assign]
    cuda.reset_peak_memory_stats = refuse  # type: ignore[method-assign]
    assert CudaCounter(cuda, 0).read() is None
    assert CudaCounter(cuda, 0).reset() is None
    open_blocks = OpenBlocks(NoCounter("process"), find_devices=lambda: [CudaCounter(cuda, 0)])
    with MemoryTracker(open_blocks=open_blocks) as tracked:
        pass
    assert tracked.use.spans == (BlockSpan("cuda:0", 0, None, None),)
    assert repr(tracked).startswith("cuda:0: not measured\n")


@pytest.mark.parametrize(("started", "names"), [(True, ["cuda:1", "cuda:0"]), (False, [])])
def test_the_current_device_is_the_first_once_cuda_is_started(monkeypatch, started, names):
    monkeypatch.setitem(sys.modules, "torch", SimpleNamespace(cuda=RecordedCuda(started)))
    assert [gauge.name for gauge in find_cuda_counters()] == names


def test_after_an_error_that_lasts_the_counters_still_answer(monkeypatch):
    cuda = RecordedCuda()

    def refuse():
        raise RuntimeError("CUDA error: device-side assert triggered")

    cuda.current_device = cuda.synchronize = refuse  # type: ignore[method-assign]
    monkeypatch.setitem(sys.modules, "torch", SimpleNamespace(cuda=cuda))
    assert [one.name for one in find_cuda_counters()] == ["cuda:0", "cuda:1"]
    open_blocks = OpenBlocks(NoCounter("process"))
    tracked = MemoryTracker(open_blocks=open_blocks, synchronize=True)
    tracked._wait_for_devices = lambda: None  # type: ignore[method-assign]
    tracked.__enter__()
    del tracked._wait_for_devices
    with pytest.raises(RuntimeError, match="assert"):  # the user's own, at the end of the block
        tracked.__exit__(None, None, None)
    assert tracked.use is not None
    assert open_blocks._open == []


@pytest.mark.parametrize(
    ("synchronize", "started", "expected"),
    [(False, True, 0), (True, True, 2), (True, False, 0)],
    ids=["unless asked", "when asked", "and never to start CUDA"],
)
def test_nothing_waits_for_the_device(monkeypatch, synchronize, started, expected):
    cuda = RecordedCuda(started=started)
    monkeypatch.setitem(sys.modules, "torch", SimpleNamespace(cuda=cuda))
    open_blocks = OpenBlocks(find_devices=list)
    with MemoryTracker(synchronize=synchronize, open_blocks=open_blocks):
        pass
    assert cuda.calls.count("synchronize") == expected


def needs_the_mark():
    if not read.reset_peak():
        pytest.skip("needs a kernel that lets a process reset its mark: /proc/self/clear_refs")


def test_the_process_peak_holds_a_spike_that_is_gone_again():
    needs_the_mark()
    with track_memory("cpu") as outer:
        hold_pages(64 * MIB).close()
        with track_memory("cpu") as inner:
            hold_pages(16 * MIB).close()
    outer_added, inner_added = outer.use.spans[0].added_bytes, inner.use.spans[0].added_bytes
    assert outer_added is not None
    assert inner_added is not None
    assert 60 * MIB < outer_added < 80 * MIB
    assert 14 * MIB < inner_added < 32 * MIB


def test_the_process_counter_says_where_there_is_no_mark(monkeypatch):
    monkeypatch.setattr(read, "read_peak_bytes", lambda: None)
    reading = ProcessCounter().read()
    assert reading.peak_bytes is None
    monkeypatch.setattr(read, "reset_peak", lambda: False)
    again = ProcessCounter().reset()
    assert again.peak_bytes is None
    monkeypatch.setattr(read, "read_resident_bytes", lambda: None)
    assert (ProcessCounter().read(), ProcessCounter().reset()) == (None, None)


def read_profilers_peak(step, path):
    """The peak in the trace that torch.profiler itself writes."""
    from torch.profiler import ProfilerActivity, profile

    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiler:
        step()
    profiler.export_chrome_trace(str(path))
    events = [
        event
        for event in json.loads(path.read_text())["traceEvents"]
        if event["name"] == "[memory]"
    ]
    events.sort(key=lambda event: event["ts"])
    level = peak = 0
    for event in events:
        level += event["args"]["Bytes"]
        peak = max(peak, level)
    return peak, level


@pytest.mark.slow
@pytest.mark.parametrize("model", ["mlp", "cnn", "encoder"])
def test_the_tensors_peak_is_the_profilers_to_the_byte(model, tmp_path):
    from tests.fakes.models import make_training

    step = make_training(model, "SGD")(8)
    step()
    # Freed parts of an earlier step are unknown to whichever profiler comes first: let one see
    # a whole step before the two are compared.
    with track_memory(tensors=True):
        step()
    with track_memory(tensors=True) as tracked:
        step()
    span = tracked.use.find_span("tensors")
    assert span.before_bytes == 0
    assert (span.peak_bytes, span.after_bytes) == read_profilers_peak(step, tmp_path / "trace")
    assert span.peak_bytes
    assert tracked.peak_bytes == span.peak_bytes


def test_nested_blocks_share_the_profiler():
    import torch

    with track_memory(tensors=True) as outer:
        first = torch.zeros(1000)
        with track_memory(tensors=True) as inner:
            second = torch.zeros(500)
            del second
        with track_memory() as plain:
            torch.zeros(3000)
        del first
    assert outer.use.find_span("tensors") == BlockSpan("tensors", 0, 16_000, 0)
    assert inner.use.find_span("tensors") == BlockSpan("tensors", 0, 2_000, 0)
    assert plain.use.find_span("tensors") is None


def test_tensors_in_two_threads_at_once_are_refused():
    caught = []

    def work():
        try:
            with track_memory(tensors=True):
                pass
        except LabkitError as error:
            caught.append(error)
        with track_memory("cpu") as other:
            pass
        caught.append(other.use)

    with track_memory(tensors=True) as outer:
        thread = threading.Thread(target=work)
        thread.start()
        thread.join(10)
    assert caught[0].what == "cannot measure tensors in two threads at once"
    assert caught[1] is not None
    assert outer.peak_bytes == 0


# torch 2.11's says so at its first start.
OLDER_PROFILERS = pytest.mark.filterwarnings("ignore:Warning. Profiler clears events")


@OLDER_PROFILERS
def test_a_profiler_of_someone_else_is_left_alone():
    from torch.profiler import ProfilerActivity, profile

    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as theirs:
        with pytest.raises(LabkitError, match="while a torch profiler runs"):
            track_memory(tensors=True).__enter__()
        with track_memory():
            import torch

            torch.zeros(1000)
    assert any(event.name == "aten::zeros" for event in theirs.events())
    with track_memory(tensors=True) as after:
        pass
    assert after.peak_bytes == 0


@OLDER_PROFILERS
@pytest.mark.parametrize("ends", [True, False], ids=["ended", "still running"])
def test_with_a_profiler_started_inside_the_tensors_are_not_measured(ends):
    import torch
    from torch.profiler import ProfilerActivity, profile

    with track_memory(tensors=True) as outer:
        theirs = profile(activities=[ProfilerActivity.CPU])
        with track_memory(tensors=True) as inner:
            theirs.__enter__()
            torch.ones(1000)
            if ends:
                theirs.__exit__(None, None, None)
        with track_memory(tensors=True) as later:
            held = torch.ones(1000)
    assert inner.use.find_span("tensors") == BlockSpan("tensors", 0, None, None)
    assert outer.use.find_span("tensors") == BlockSpan("tensors", 0, None, None)
    assert (inner.peak_bytes, inner.change_bytes) == (None, None)
    assert "tensors: not measured" in repr(inner)
    assert later.peak_bytes == held.nbytes


def test_a_refused_block_is_not_left_open(monkeypatch):
    open_blocks = OpenBlocks(find_devices=list)
    tracker = MemoryTracker(tensors=True, open_blocks=open_blocks)
    with monkeypatch.context() as patched:
        patched.setattr(counters, "is_profiling", lambda: True)
        with pytest.raises(LabkitError):
            tracker.__enter__()
    assert open_blocks._open == []
    with tracker:
        pass
    assert tracker.peak_bytes == 0


@pytest.mark.parametrize("tensors", [False, True], ids=["plain", "tensors"])
def test_a_compiled_function_stays_compiled(tensors):
    import torch

    compiled, ran = [], []

    def backend(module, inputs):
        compiled.append(module)

        def run(*values):
            ran.append(1)
            return module.forward(*values)

        return run

    @torch.compile(backend=backend)
    def double(values):
        return values * 2

    double(torch.ones(3))
    with track_memory(tensors=tensors):
        double(torch.ones(3))
    double(torch.ones(3))
    assert (len(compiled), len(ran)) == (1, 3)


QUIET = """
import os, torch
from labkit import track_memory
with track_memory(tensors=True):
    torch.ones(3)
print(os.environ.get("KINETO_LOG_LEVEL"))
"""


@pytest.mark.slow
@pytest.mark.parametrize("level", [None, "6"], ids=["unset", "set by someone else"])
def test_the_profiler_writes_nothing_and_its_variable_is_as_before(level):
    pytest.importorskip("torch")
    environment = {key: value for key, value in os.environ.items() if key != "KINETO_LOG_LEVEL"}
    given = {} if level is None else {"KINETO_LOG_LEVEL": level}
    ended = subprocess.run(
        [sys.executable, "-c", QUIET],
        env={**environment, **given},
        capture_output=True,
        text=True,
        check=True,
    )
    assert (ended.stdout, ended.stderr) == (f"{level}\n", "")


def test_a_block_has_its_exact_peak_and_change():
    gpu = FakeDevice(level=100)
    gpu.take(1000)
    gpu.take(-1000)  # a peak before the block is not the block's
    with track(gpu)() as tracked:
        gpu.take(500)
        gpu.take(-450)
    assert tracked.use.spans == (BlockSpan("cuda:0", 100, 600, 150),)
    assert (tracked.use.spans[0].added_bytes, tracked.change_bytes) == (500, 50)
    assert tracked.peak_bytes == 600


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
    open_blocks = OpenBlocks(FakeDevice("process"), find_devices=lambda: [gpu])
    trackers = [MemoryTracker(open_blocks=open_blocks) for _ in range(8)]
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
    assert open_blocks._open == []
    assert all(tracker.peak_bytes is not None for tracker in trackers)


class FakeTensors(TensorCounter):
    """A profiler that only notes when it is read and reset."""

    def __init__(self, log):
        super().__init__()
        self._log = log

    def read(self):
        self._log.append("read tensors")
        return Reading(0, 0)

    def reset(self):
        self._log.append("reset tensors")
        return Reading(0, 0)


class LoggedProcess(FakeDevice):
    """A process whose readings are noted too."""

    def __init__(self, log):
        super().__init__("process")
        self._log = log

    def read(self):
        self._log.append("read process")
        return super().read()

    def reset(self):
        self._log.append("reset process")
        return super().read()


def test_the_profilers_own_memory_is_kept_out_of_the_process():
    log: list[str] = []
    open_blocks = OpenBlocks(LoggedProcess(log), FakeTensors(log), find_devices=list)
    with MemoryTracker(tensors=True, open_blocks=open_blocks):
        assert log == ["reset tensors", "reset process"]
        log.clear()
        with MemoryTracker(tensors=True, open_blocks=open_blocks):
            assert log == ["read process", "read tensors", "reset tensors", "reset process"]
            log.clear()
        assert log == ["read process", "read tensors", "reset tensors", "reset process"]
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
    open_blocks = OpenBlocks(NoCounter("process"), find_devices=lambda: devices)
    with MemoryTracker(open_blocks=open_blocks) as outer:
        devices.append(gpu)
        gpu.take(50)
        gpu.take(-30)
        with MemoryTracker(open_blocks=open_blocks) as inner:
            gpu.take(10)
    assert outer.use.spans == (BlockSpan("cuda:0", 0, 50, 30),)
    assert inner.use.spans == (BlockSpan("cuda:0", 20, 30, 30),)


def test_gpus_that_held_nothing_are_left_out():
    used, idle = FakeDevice("cuda:1", 7), FakeDevice("cuda:0")
    with track(used, idle)() as tracked:
        pass
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
    with track(*counters, process_counter=memory, device=device)() as tracked:
        pass
    assert [span.where for span in tracked.use.spans] == expected
    touched = [one.name for one in (*counters, memory) if one.resets]
    assert touched == expected


def test_a_mark_that_cannot_be_reset_is_not_measured():
    memory = FakeDevice("process", 100, exact=False)
    start = track(process_counter=memory)
    with start() as outer, start() as inner:
        memory.take(5)
    assert inner.use.spans == outer.use.spans == (BlockSpan("process", 100, None, 105),)
    assert repr(inner).startswith("process: peak not measured, change +5 B\n")
    assert inner.peak_bytes is None


def test_where_nothing_can_be_read_it_is_not_measured():
    with track()() as tracked:
        pass
    assert (tracked.use.spans, tracked.peak_bytes, tracked.change_bytes) == ((), None, None)
    assert repr(tracked).startswith("memory: not measured\nseconds: ")

"""What is read while code runs: the allocator's statistics, the kernel's mark, the profiler."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
from types import SimpleNamespace

import pytest

from labkit.errors import LabkitError
from labkit.memory.balance import process
from labkit.memory.track import counters
from labkit.memory.track.counters import (
    BlockSpan,
    CudaCounter,
    Ledger,
    ProcessCounter,
    Reading,
    find_cuda_counters,
)
from labkit.memory.track.tracker import MemoryTracker, track_memory
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
    assert gauge.restart() == Reading(1024, 4096)
    assert cuda.calls == ["reset 0"]


def test_an_allocator_without_statistics_is_not_measured():
    cuda = RecordedCuda()

    def refuse(index):
        raise RuntimeError("CUDAPluggableAllocator does not yet support getDeviceStats")

    cuda.memory_stats_as_nested_dict = refuse  # type: ignore[method-assign]
    cuda.reset_peak_memory_stats = refuse  # type: ignore[method-assign]
    assert CudaCounter(cuda, 0).read() is None
    assert CudaCounter(cuda, 0).restart() is None


def test_a_device_that_was_never_used_holds_nothing():
    cuda = RecordedCuda()
    cuda.statistics = {}
    assert CudaCounter(cuda, 0).read() == Reading(0, 0)


def test_the_current_device_is_the_first(monkeypatch):
    monkeypatch.setitem(sys.modules, "torch", SimpleNamespace(cuda=RecordedCuda()))
    assert [gauge.name for gauge in find_cuda_counters()] == ["cuda:1", "cuda:0"]


def test_before_cuda_is_started_it_is_not_read(monkeypatch):
    monkeypatch.setitem(sys.modules, "torch", SimpleNamespace(cuda=RecordedCuda(started=False)))
    assert find_cuda_counters() == []


@pytest.mark.parametrize(
    ("synchronize", "started", "expected"),
    [(False, True, 0), (True, True, 2), (True, False, 0)],
    ids=["unless asked", "when asked", "and never to start CUDA"],
)
def test_nothing_waits_for_the_device(monkeypatch, synchronize, started, expected):
    cuda = RecordedCuda(started=started)
    monkeypatch.setitem(sys.modules, "torch", SimpleNamespace(cuda=cuda))
    ledger = Ledger(find_devices=list)
    with MemoryTracker(synchronize=synchronize, ledger=ledger):
        pass
    assert cuda.calls.count("synchronize") == expected


def needs_the_mark():
    if not process.reset_peak():
        pytest.skip("needs a kernel that lets a process reset its mark: /proc/self/clear_refs")


def test_the_process_peak_holds_a_spike_that_is_gone_again():
    needs_the_mark()
    with track_memory("cpu") as outer:
        hold_pages(64 * MIB).close()
        with track_memory("cpu") as inner:
            hold_pages(16 * MIB).close()
    assert outer.use is not None
    assert inner.use is not None
    outer_added, inner_added = outer.use.spans[0].added_bytes, inner.use.spans[0].added_bytes
    assert outer_added is not None
    assert inner_added is not None
    assert 60 * MIB < outer_added < 80 * MIB
    assert 14 * MIB < inner_added < 32 * MIB


def test_the_process_gauge_says_where_there_is_no_mark(monkeypatch):
    monkeypatch.setattr(process, "read_peak_bytes", lambda: None)
    reading = ProcessCounter().read()
    assert reading is not None
    assert reading.peak_bytes is None
    monkeypatch.setattr(process, "reset_peak", lambda: False)
    again = ProcessCounter().restart()
    assert again is not None
    assert again.peak_bytes is None
    monkeypatch.setattr(process, "read_resident_bytes", lambda: None)
    assert (ProcessCounter().read(), ProcessCounter().restart()) == (None, None)


def make_mlp():
    import torch

    return torch.nn.Sequential(
        torch.nn.Linear(64, 128), torch.nn.ReLU(), torch.nn.Linear(128, 8)
    ), torch.randn(32, 64)


def make_cnn():
    import torch

    return torch.nn.Sequential(
        torch.nn.Conv2d(3, 8, 3), torch.nn.BatchNorm2d(8), torch.nn.ReLU(), torch.nn.Flatten()
    ), torch.randn(4, 3, 16, 16)


def make_encoder():
    import torch

    layer = torch.nn.TransformerEncoderLayer(32, 4, 64, batch_first=True)
    encoder = torch.nn.TransformerEncoder(layer, 2, enable_nested_tensor=False)
    return encoder, torch.randn(2, 10, 32)


def make_step(make):
    """A training step of a small model, whose gradients exist already."""
    import torch

    torch.manual_seed(0)
    model, batch = make()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)

    def step():
        optimizer.zero_grad()
        model(batch).pow(2).mean().backward()
        optimizer.step()

    step()
    return step


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


@pytest.mark.parametrize("make", [make_mlp, make_cnn, make_encoder])
def test_the_tensors_peak_is_the_profilers_to_the_byte(make, tmp_path):
    step = make_step(make)
    # Freed parts of an earlier step are unknown to whichever profiler comes first: let one see
    # a whole step before the two are compared.
    with track_memory(tensors=True):
        step()
    with track_memory(tensors=True) as tracked:
        step()
    assert tracked.use is not None
    span = tracked.use.find_span("tensors")
    assert span is not None
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
    assert outer.use is not None
    assert inner.use is not None
    assert plain.use is not None
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


def test_a_profiler_of_someone_else_is_left_alone():
    from torch.profiler import ProfilerActivity, profile

    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as theirs:
        with pytest.raises(LabkitError, match="while a torch profiler runs"):
            track_memory(tensors=True).__enter__()
        with track_memory() as tracked:
            import torch

            torch.zeros(1000)
    assert any(event.name == "aten::zeros" for event in theirs.events())
    assert tracked.use is not None
    with track_memory(tensors=True) as after:
        pass
    assert after.peak_bytes == 0


def test_a_refused_block_is_not_left_open(monkeypatch):
    ledger = Ledger(find_devices=list)
    tracker = MemoryTracker(tensors=True, ledger=ledger)
    with monkeypatch.context() as patched:
        patched.setattr(counters, "_is_profiling", lambda: True)
        with pytest.raises(LabkitError):
            tracker.__enter__()
    assert ledger._open == []
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

"""``track_memory`` as people use it: around a block, on a function, and what it says."""

from __future__ import annotations

import subprocess
import sys

import pytest

import labkit
from labkit.errors import LabkitError, UsageError
from labkit.memory.blocks import Span
from labkit.memory.track import MemoryUse, track_memory
from tests.fakes.counters import FakeDevice, track

MIB = 2**20


def test_an_open_tracker_has_no_figures_and_cannot_be_opened_again():
    tracker = track(FakeDevice())()
    assert repr(tracker) == "memory: not measured yet"
    with tracker:
        assert (tracker.use, tracker.peak_bytes, tracker.seconds) == (None, None, None)
        with pytest.raises(LabkitError, match="this tracker is measuring already"):
            tracker.__enter__()
    assert tracker.use is not None


def test_the_decorator_measures_each_call_and_keeps_the_functions_ways():
    gpu = FakeDevice()

    @track(gpu)()
    def work(count, *, back=False):
        """Takes some."""
        gpu.take(count)
        if back:
            raise ValueError("no more")
        return count * 2

    assert work.last_use is None
    assert work(4) == 8
    assert work.last_use.spans == (Span("cuda:0", 0, 4, 4),)
    with pytest.raises(ValueError, match="no more"):
        work(1, back=True)
    assert work.last_use.spans == (Span("cuda:0", 4, 5, 5),)
    assert (work.__name__, work.__doc__) == ("work", "Takes some.")


def test_a_decorated_function_may_call_itself():
    gpu = FakeDevice()

    @track(gpu)()
    def descend(depth):
        gpu.take(10)
        if depth:
            descend(depth - 1)
        gpu.take(-10)

    descend(3)
    assert descend.last_use.spans == (Span("cuda:0", 0, 40, 0),)


def test_what_a_decorator_cannot_measure_is_refused():
    async def coroutine():
        pass

    def generator():
        yield

    for function in (coroutine, generator):
        with pytest.raises(UsageError, match=f"cannot decorate {function.__name__}"):
            track_memory()(function)


def test_a_missing_pair_of_parentheses_is_named():
    with pytest.raises(UsageError, match="@track_memory has no parentheses"):

        @track_memory  # type: ignore[arg-type]
        def work():
            pass


@pytest.mark.parametrize("device", ["gpu", "cuda:x", "mps", "cpu:0", ""])
def test_a_device_without_exact_peaks_is_refused(device):
    with pytest.raises(UsageError, match="cannot track the memory of"):
        track_memory(device)


def test_the_figures_as_text():
    use = MemoryUse(
        1.234, (Span("cuda:0", MIB, 3 * MIB, MIB // 2), Span("process", 0, None, 2 * MIB))
    )
    assert str(use) == (
        "cuda:0: peak 3.0 MiB (+2.0 MiB), change -512.0 KiB\n"
        "process: peak not measured, change +2.0 MiB\n"
        "seconds: 1.23 s"
    )
    assert use.find_span("process") == use.spans[1]
    assert use.find_span("tensors") is None


def test_no_cache_is_emptied(monkeypatch):
    import torch

    def refuse():
        raise AssertionError("emptying the cache changes what is measured")

    monkeypatch.setattr(torch.cuda, "empty_cache", refuse)
    with track_memory(tensors=True), track_memory():
        torch.zeros(10)


def test_tracking_the_cpu_does_not_load_torch():
    script = (
        "import sys, labkit\n"
        "with labkit.track_memory() as tracked: held = bytearray(10)\n"
        "assert tracked.use is not None and tracked.use.seconds > 0\n"
        "assert 'torch' not in sys.modules\n"
    )
    subprocess.run([sys.executable, "-c", script], check=True, timeout=60)


@pytest.mark.skipif(
    not hasattr(sys, "getswitchinterval") or sys.platform == "win32", reason="forks"
)
def test_a_forked_child_begins_anew():
    script = (
        "import os, labkit\n"
        "with labkit.track_memory('cpu') as outer:\n"
        "    child = os.fork()\n"
        "    if not child:\n"
        "        with labkit.track_memory('cpu') as own: pass\n"
        "        os._exit(0 if own.use.spans else 1)\n"
        "    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0\n"
        "assert outer.use.spans\n"
    )
    subprocess.run([sys.executable, "-c", script], check=True, timeout=60)


def test_the_public_name_is_the_function():
    assert labkit.track_memory is track_memory


@pytest.mark.gpu
def test_a_real_allocators_peak():
    import torch

    torch.zeros(1, device="cuda")
    with track_memory("cuda") as outer:
        first = torch.empty(64 * MIB, dtype=torch.uint8, device="cuda")
        del first
        with track_memory("cuda") as inner:
            second = torch.empty(16 * MIB, dtype=torch.uint8, device="cuda")
    assert outer.use is not None
    assert inner.use is not None
    assert outer.use.spans[0].added_bytes == 64 * MIB
    assert inner.use.spans[0].added_bytes == 16 * MIB
    assert inner.change_bytes == outer.change_bytes == second.nbytes


@pytest.mark.gpu
def test_cuda_that_starts_inside_a_block_is_measured():
    script = (
        "import labkit, torch\n"
        "with labkit.track_memory('cuda') as tracked:\n"
        "    torch.empty(1 << 20, dtype=torch.uint8, device='cuda')\n"
        "assert tracked.peak_bytes == 1 << 20, tracked\n"
    )
    subprocess.run([sys.executable, "-c", script], check=True, timeout=120)

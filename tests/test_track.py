"""``track_memory`` as people use it: around a block, on a function, and what it says."""

from __future__ import annotations

import gc
import subprocess
import sys
import threading

import pytest

from labkit.errors import LabkitError, UsageError
from labkit.memory.track.frames import Frame, list_thread_frames
from labkit.memory.track.model import (
    CATEGORIES,
    BlockSpan,
    Breakdown,
    Level,
    LineUse,
    MemoryUse,
    Storage,
    split_rest,
    sum_categories,
)
from labkit.memory.track.storages import StorageTracer
from labkit.memory.track.tracker import MemoryTracker, track_memory
from tests.fakes.counters import FakeDevice, track

MIB = 2**20


def test_an_open_tracker_has_no_figures_and_cannot_be_opened_again():
    tracker = track(FakeDevice())()
    assert repr(tracker) == "memory: not measured yet"
    with tracker:
        assert (tracker.use, tracker.peak_bytes, tracker.seconds) == (None, None, None)
        with pytest.raises(LabkitError, match="already measuring"):
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
    assert work.last_use.spans == (BlockSpan("cuda:0", 0, 4, 4),)
    with pytest.raises(ValueError, match="no more"):
        work(1, back=True)
    assert work.last_use.spans == (BlockSpan("cuda:0", 4, 5, 5),)
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
    assert descend.last_use.spans == (BlockSpan("cuda:0", 0, 40, 0),)


def test_a_missing_pair_of_parentheses_is_named():
    with pytest.raises(UsageError, match="@track_memory has no parentheses"):

        @track_memory  # type: ignore[arg-type]
        def work():
            pass


def test_the_figures_as_text():
    use = MemoryUse(
        1.234, (BlockSpan("cuda:0", MIB, 3 * MIB, MIB // 2), BlockSpan("process", 0, None, 2 * MIB))
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


def make_training_step():
    """A small model's training step, which has run once: its gradients and state exist."""
    import torch

    model, inputs = torch.nn.Linear(100, 50, bias=False), torch.randn(8, 100)
    optimizer = torch.optim.Adam(model.parameters())

    def step():
        optimizer.zero_grad()
        model(inputs).square().mean().backward()
        optimizer.step()

    step()
    return step


def test_the_peak_is_split_by_what_it_was_for():
    step = make_training_step()
    with track_memory("cpu", kinds=True) as tracked:
        step()
    weights = 100 * 50 * 4
    assert tuple(tracked.kinds) == CATEGORIES
    assert tracked.kinds["parameters"] == tracked.kinds["gradients"] == weights
    assert tracked.kinds["inputs"] == 8 * 100 * 4
    assert tracked.kinds["optimizer"] >= 2 * weights
    assert sum(tracked.kinds.values()) == tracked.use.breakdowns[0].peak_bytes
    assert tracked.lines == ()


def test_the_kinds_are_those_of_the_tracer_and_the_peak_is_the_profilers():
    step = make_training_step()
    with track_memory("cpu", tensors=True, kinds=True) as tracked:
        step()
    with StorageTracer() as tracer:
        step()
    level = tracer.levels["cpu"]
    assert tracked.kinds == sum_categories(level.list_at_peak())
    # The profiler counts from the block's beginning; and what operators take within themselves.
    added = level.peak_bytes - level.before_bytes
    assert added <= tracked.use.find_span("tensors").peak_bytes <= added + 2048


def test_the_lines_that_allocated_most_are_told():
    import torch

    with track_memory("cpu", lines=2) as tracked:
        small = torch.zeros(1000)
        large = torch.zeros(5000)
        least = torch.zeros(10)
    assert [line.frame.source for line in tracked.lines] == [
        "large = torch.zeros(5000)",
        "small = torch.zeros(1000)",
    ]
    assert tracked.lines[0].held_bytes == large.nbytes
    assert small.nbytes + least.nbytes == 4040
    assert tracked.kinds["other"] == 24_040


@pytest.mark.parametrize(
    ("span", "rest"),
    [
        (None, (None, None)),
        (BlockSpan("cuda:0", 0, None, None), (None, None)),
        (BlockSpan("cuda:0", 700, 1900, 900), (200, 700)),
        (BlockSpan("cuda:0", 900, 1100, 900), (100, 0)),
        (BlockSpan("cuda:0", 500, 900, 500), (0, 0)),
        (BlockSpan("tensors", 0, 600, 0), (None, 100)),
    ],
    ids=["no counter", "no peak", "all parts", "freed before", "below", "a profiler's"],
)
def test_what_the_counter_saw_beyond_the_tensors(span, rest):
    level = Level()
    level.add(Storage(1, 500, "cuda:0", "parameters", before=True))
    level.add(Storage(2, 500, "cuda:0", "activations"))
    assert split_rest(level, span) == rest


def test_a_device_with_nothing_on_it_is_shown_under_its_own_name():
    import torch

    with track_memory("cuda", kinds=True) as tracked:
        torch.zeros(10)
    assert [(one.where, one.peak_bytes) for one in tracked.use.breakdowns] == [("cuda", 0)]


def test_the_breakdown_as_text():
    kinds = dict.fromkeys(CATEGORIES, 0) | {"parameters": 3 * MIB, "inputs": 1024}
    lines = (LineUse(Frame("/a/b.py", 7, "f"), 2 * MIB, 3), LineUse(None, MIB, 1))
    rest = {"unused_bytes": 1024, "scratch_bytes": 16 * MIB, "trouble": "no storage"}
    use = MemoryUse(1.0, (), (Breakdown("cpu", 3 * MIB + 1024, kinds, lines, **rest),))
    assert str(use) == (
        "memory: not measured\n"
        "cpu tensors at their peak: parameters 3.0 MiB, inputs 1.0 KiB\n"
        "  beside them: not used here 1.0 KiB, libraries and operators 16.0 MiB\n"
        "  note: no storage\n"
        "     2.0 MiB  b.py:7\n"
        "     1.0 MiB  before the block\n"
        "seconds: 1 s"
    )


def test_a_block_without_tensors_has_a_breakdown_of_nothing():
    with track_memory("cpu", kinds=True) as tracked:
        pass
    assert set(tracked.kinds.values()) == {0}
    assert "cpu tensors at their peak: none" in repr(tracked)


def test_backward_alone_has_parameters_and_gradients():
    import torch

    layers = [torch.nn.Linear(256, 256), torch.nn.ReLU(), torch.nn.Linear(256, 256)]
    loss = torch.nn.Sequential(*layers)(torch.randn(64, 256)).sum()
    with track_memory("cpu", kinds=True) as tracked:
        loss.backward()
    weights = 2 * (256 * 256 + 256) * 4
    assert tracked.kinds["parameters"] == tracked.kinds["gradients"] == weights


def test_without_asking_there_is_no_breakdown_and_nothing_is_traced(monkeypatch):
    import torch

    monkeypatch.setattr(MemoryTracker, "_open_tracer", None)
    with track_memory(tensors=True) as tracked:
        torch.zeros(10)
    assert (tracked.kinds, tracked.lines, tracked.use.breakdowns) == (None, None, ())
    assert (MemoryTracker().kinds, MemoryTracker().lines) == (None, None)


def test_a_decorated_function_has_its_kinds():
    import torch

    @track_memory("cpu", kinds=True, lines=3)
    def work():
        return torch.zeros(1000)

    work()
    assert work.last_use.breakdowns[0].categories["other"] == 4000
    assert len(work.last_use.breakdowns[0].lines) == 1


def test_kinds_in_a_second_thread_are_refused_and_leave_no_block_open():
    caught = []

    def work():
        tracker = track_memory("cpu", kinds=True)
        try:
            tracker.__enter__()
        except LabkitError as error:
            caught.append(error)
        with track_memory("cpu") as plain:
            pass
        caught.append(plain.use)

    with track_memory("cpu", kinds=True):
        thread = threading.Thread(target=work)
        thread.start()
        thread.join(10)
    assert "two threads" in caught[0].what
    assert "without kinds or lines" in caught[0].fix
    assert caught[1].spans
    with track_memory("cpu", kinds=True):
        pass


def test_a_compiled_function_runs_eagerly_and_is_compiled_still():
    import torch

    ran = []

    def backend(module, inputs):
        def run(*values):
            ran.append(1)
            return module.forward(*values)

        return run

    @torch.compile(backend=backend)
    def double(values):
        return values * 2

    double(torch.ones(3))
    first, second = track_memory(kinds=True), track_memory(kinds=True)
    first.__enter__()
    second.__enter__()
    first.__exit__(None, None, None)
    double(torch.ones(3))
    second.__exit__(None, None, None)
    with track_memory("cpu", kinds=True) as tracked:
        held = double(torch.ones(3))
    assert len(ran) == 1
    double(torch.ones(3))
    assert len(ran) == 2
    assert sum(tracked.kinds.values()) == 2 * held.nbytes


@pytest.mark.filterwarnings("ignore:.*Profiler clears events")  # torch 2.11
def test_kinds_and_a_profiler_of_someone_else_do_not_disturb_each_other():
    import torch
    from torch.profiler import ProfilerActivity, profile

    with (
        profile(activities=[ProfilerActivity.CPU]) as theirs,
        track_memory("cpu", kinds=True) as tracked,
    ):
        held = torch.zeros(1000)
    assert tracked.kinds["other"] == held.nbytes
    assert any(event.name == "aten::zeros" for event in theirs.events())


def test_a_block_that_raises_still_has_its_kinds():
    import torch

    with pytest.raises(ZeroDivisionError), track_memory("cpu", kinds=True) as tracked:
        torch.zeros(1000)
        1 / 0  # noqa: B018
    assert tracked.kinds["other"] == 4000
    assert StorageTracer._open == []


@pytest.mark.gpu
def test_the_kinds_on_a_gpu_come_first():
    import torch

    model = torch.nn.Linear(100, 50, bias=False, device="cuda")
    with track_memory(kinds=True, lines=1) as tracked:
        model(torch.ones(4, 100, device="cuda")).sum().backward()
        torch.zeros(10)
    assert [one.where for one in tracked.use.breakdowns] == ["cuda:0", "cpu"]
    assert tracked.kinds["parameters"] == tracked.kinds["gradients"] == 100 * 50 * 4
    first = tracked.use.breakdowns[0]
    whole = first.peak_bytes + first.unused_bytes + first.scratch_bytes
    assert whole == tracked.use.find_span("cuda:0").peak_bytes


@pytest.mark.gpu
def test_after_a_device_assert_memory_is_still_shown():
    script = (
        "import labkit, torch\n"
        "held = torch.ones(1000, device='cuda')\n"
        "try:\n"
        "    with labkit.track_memory(kinds=True) as tracked, labkit.record_allocations():\n"
        "        held[torch.tensor([5000], device='cuda')]\n"
        "        torch.cuda.synchronize()\n"
        "except RuntimeError:\n"
        "    pass\n"
        "with labkit.track_memory() as later: pass\n"
        "assert tracked.use.spans and later.use.spans\n"
        "with labkit.sample_memory() as sampler: pass\n"
        "assert sampler.trouble is None, sampler\n"
        "gpu = next(one for one in labkit.memory().balances if one.torch_name == 'cuda:0')\n"
        "assert gpu.this_process.allocated_bytes >= 4000, gpu\n"
        "import os; os._exit(0)\n"
    )
    subprocess.run([sys.executable, "-c", script], check=True, timeout=120)


@pytest.mark.gpu
def test_a_real_allocators_peak():
    import torch

    torch.zeros(1, device="cuda")
    with track_memory("cuda") as outer:
        first = torch.empty(64 * MIB, dtype=torch.uint8, device="cuda")
        del first
        with track_memory("cuda") as inner:
            second = torch.empty(16 * MIB, dtype=torch.uint8, device="cuda")
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


@pytest.mark.parametrize("error", [NotImplementedError, AssertionError])
def test_what_an_older_torch_refuses_is_named_with_a_way_out(error):
    words = {
        NotImplementedError: "There was no rule registered for HOP flex_attention and mode X",
        AssertionError: "Unexpectedly found a <class 'torch.Tensor'> in the outputs.",
    }
    newer = pytest.raises(LabkitError, match="need a newer torch")
    with newer as caught, track_memory(kinds=True):
        raise error(words[error])
    assert isinstance(caught.value.__cause__, error)
    assert "without kinds" in caught.value.fix
    with pytest.raises(error), track_memory():
        raise error(words[error])


@pytest.mark.parametrize("collects", [True, False])
def test_no_collection_begins_while_the_threads_are_listed(monkeypatch, collects):
    asked = []
    monkeypatch.setattr(sys, "_current_frames", lambda: asked.append(gc.isenabled()) or {})
    if not collects:
        gc.disable()
    try:
        list_thread_frames()
        assert (asked, gc.isenabled()) == ([False], collects)
    finally:
        gc.enable()

"""The page after an out-of-memory error: its facts, its measures, and the names it finds."""

from __future__ import annotations

import collections
import gc
import sys
import time
import types
from dataclasses import replace

import pytest
import torch

from labkit.jupyter.cells import explain_out_of_memory
from labkit.memory.balance.model import Balance, Snapshot, ThisProcess
from labkit.memory.oom.live import Budget, Root, find_live_tensors, list_roots
from labkit.memory.oom.model import (
    AllocationFailure,
    AllocatorBlocks,
    Holder,
    LiveTensor,
    LiveTensors,
    OutOfMemoryPage,
    find_out_of_memory,
    list_measures,
    read_cache,
    read_failure,
)
from labkit.memory.oom.view import list_figures, list_tensors
from tests.fakes.nvml import ROOT
from tests.test_cli_memory import GPU, in_checkout

MIB, GIB = 2**20, 2**30
TEXT = (
    "CUDA out of memory. Tried to allocate 30.00 GiB. GPU 0 has a total capacity of 79.65 GiB of"
    " which 27.53 GiB is free. Including non-PyTorch memory, this process has 30.52 GiB memory in"
    " use. Of the allocated memory 24.00 GiB is allocated by PyTorch, and 6.00 GiB is reserved by"
    " PyTorch but unallocated. If reserved but unallocated memory is large try setting"
    " PYTORCH_ALLOC_CONF=expandable_segments:True to avoid fragmentation."
)
MODEL = LiveTensor(
    8 * GIB,
    (32768, 65536),
    "float32",
    (Holder("user", "model.head.weight"), Holder("user", "ema['head']")),
)
OUTPUT = LiveTensor(
    4 * GIB, (16384, 65536), "float32", (Holder("output", "Out[7]"), Holder("output", "_7"))
)
FRAME = LiveTensor(3 * GIB, (12288, 65536), "float32", (Holder("frame", "hidden in forward()"),))
# The example of docs/memory.md.
PAGE = OutOfMemoryPage(
    read_failure(TEXT), GPU, AllocatorBlocks(int(1.5 * GIB)), LiveTensors((MODEL, OUTPUT, FRAME))
)
# torch 2.14 with backend:cudaMallocAsync.
ASYNC_TEXT = """Allocation on device 1 would exceed allowed memory. (out of memory)
Currently allocated     : 2.93 GiB
Requested               : 900.00 MiB
Device limit            : 3.75 GiB
Free (according to CUDA): 432.00 MiB
PyTorch limit (set by user-supplied memory fraction)
                        : 17179869184.00 GiB"""


def segment(*blocks, device=0, **facts):
    """A segment as torch.cuda.memory_snapshot() tells it."""
    named = [
        {"state": state, "size": size, "requested_size": size - size % 100}
        for state, size in blocks
    ]
    return {"device": device, "stream": 0, "segment_pool_id": (0, 0), "blocks": named, **facts}


class FakeCuda:
    """torch.cuda with recorded segments."""

    def __init__(self, *segments):
        self.segments = segments

    def memory_snapshot(self, *, include_traces):
        assert include_traces is False
        return list(self.segments)

    def current_device(self):
        return 1

    def current_stream(self, index):
        return types.SimpleNamespace(cuda_stream=0)


def fake_torch(*segments):
    return types.SimpleNamespace(cuda=FakeCuda(*segments))


def say(page):
    return [measure.words for measure in list_measures(page)]


def test_what_the_text_says():
    assert read_failure(TEXT) == AllocationFailure(
        device="cuda:0",
        asked_bytes=30 * GIB,
        total_bytes=round(79.65 * GIB),
        free_bytes=round(27.53 * GIB),
        allocated_bytes=24 * GIB,
        cached_bytes=6 * GIB,
    )


@pytest.mark.parametrize(
    ("text", "asked", "device", "allowed"),
    [
        ("CUDA error: out of memory", None, None, None),
        ("CUDA out of memory. Tried to allocate 512 bytes. GPU 3 has", 512, "cuda:3", None),
        ("HIP out of memory. Tried to allocate 20.00 MiB. GPU 0 has", 20 * MIB, "cuda:0", None),
        (TEXT.replace("Of the", "8.00 GiB allowed; Of the"), 30 * GIB, "cuda:0", 8 * GIB),
    ],
    ids=["no figures", "bytes", "rocm", "a limit"],
)
def test_other_texts(text, asked, device, allowed):
    seen = read_failure(text)
    assert (seen.asked_bytes, seen.device, seen.allowed_bytes) == (asked, device, allowed)


def test_the_text_of_cuda_malloc_async():
    assert read_failure(ASYNC_TEXT) == AllocationFailure(
        device="cuda:1",
        asked_bytes=900 * MIB,
        total_bytes=round(3.75 * GIB),
        free_bytes=432 * MIB,
        allocated_bytes=round(2.93 * GIB),
    )
    limited = read_failure(ASYNC_TEXT.replace("17179869184.00 GiB", "3.00 GiB"))
    assert limited.allowed_bytes == 3 * GIB


def test_what_is_free_in_private_pools_is_not_tensors():
    text = TEXT.replace("PyTorch, and", "PyTorch, with 20.00 GiB allocated in private pools, and")
    seen = read_failure(text)
    assert (seen.allocated_bytes, seen.pooled_bytes, seen.cached_bytes) == (
        4 * GIB,
        20 * GIB,
        6 * GIB,
    )


def test_which_errors_are_about_memory():
    for real in (torch.OutOfMemoryError("any text"), RuntimeError(TEXT), RuntimeError(ASYNC_TEXT)):
        assert find_out_of_memory(real) is real
    for other in (None, ValueError("no"), RuntimeError("disk out of memory"), MemoryError()):
        assert find_out_of_memory(other) is None


def test_an_error_that_memory_led_to():
    real = torch.OutOfMemoryError(TEXT)
    try:
        try:
            raise real
        except RuntimeError as error:
            raise ValueError("training failed") from error
    except ValueError as error:
        assert find_out_of_memory(error) is real
    try:
        try:
            raise real
        except RuntimeError:
            raise ValueError("nothing to do with it") from None
    except ValueError as error:
        assert find_out_of_memory(error) is None


def test_errors_that_lead_to_each_other_come_to_an_end():
    first, second = ValueError("a"), ValueError("b")
    first.__cause__, second.__cause__ = second, first
    assert find_out_of_memory(first) is None


def test_the_cache_of_a_device():
    cuda = FakeCuda(
        segment(("active_allocated", 900), ("inactive", 300), ("active_allocated", 512)),
        segment(("inactive", 200), ("active_pending_free", 800)),
        segment(("inactive", 700), device=1, is_expandable=True),
        segment(("inactive", 400), stream=7),
        segment(("inactive", 2000), segment_pool_id=(0, 1)),
    )
    assert read_cache(cuda, "cuda:0") == AllocatorBlocks(300, 400, 1400)
    assert read_cache(cuda, "cuda:1") == AllocatorBlocks(700, 0, 0, expandable=True)
    assert read_cache(FakeCuda(), "cuda:0") == AllocatorBlocks(0, 0, 0)


def test_an_allocator_that_tells_no_segments():
    class Silent:
        def memory_snapshot(self, *, include_traces):
            raise RuntimeError("not supported by this allocator")

    assert read_cache(Silent(), "cuda:0") is None


@in_checkout
def test_the_documentation_shows_the_page():
    shown, balance, _ = repr(PAGE).partition("\n\nthe balance after the error\ncuda:0")
    assert balance
    text = (ROOT / "docs/memory.md").read_text(encoding="utf-8")
    assert f"```text\n{shown}\n```" in text


def test_the_page_as_html():
    html = PAGE._repr_html_()
    assert html.count("<svg") == 1
    assert "<b>out of memory on cuda:0</b>" in html
    assert "ema[&#x27;head&#x27;]" in html
    assert html.count("<li>") == len(list_measures(PAGE))
    assert (
        "<b>the biggest live tensors</b>" not in OutOfMemoryPage(AllocationFailure())._repr_html_()
    )


def test_a_page_about_nothing_known():
    assert repr(OutOfMemoryPage(AllocationFailure())) == (
        "out of memory on the GPU\n\n"
        "what would help, in order\n"
        "  1. a smaller batch, a smaller type (torch.autocast), or a part at a time"
    )


def test_many_tensors_are_summed_up():
    one = LiveTensor(MIB, (512, 512), "float32", (Holder("user", "x"),) * 5)
    page = OutOfMemoryPage(AllocationFailure(), live=LiveTensors((one,) * 11, complete=False))
    rows = list_tensors(page)
    assert rows[0] == ("1.0 MiB", "(512, 512) float32  x, x, x and 2 more")
    assert rows[8:] == [
        ("3.0 MiB", "in 3 more tensors"),
        ("", "the search ran out of time: there can be more"),
    ]
    assert page.unheld_bytes is None
    nine = replace(page, live=LiveTensors((one._replace(holders=()),) * 9))
    assert list_tensors(nine)[7:] == [
        ("1.0 MiB", "(512, 512) float32  no name found"),
        ("1.0 MiB", "in 1 more tensor"),
    ]


def test_no_freeing_helps_against_more_than_there_is():
    page = replace(PAGE, failure=PAGE.failure._replace(asked_bytes=90 * GIB))
    assert say(page) == [
        "90.0 GiB is more than the 79.7 GiB it can have: no freeing helps",
        "a smaller batch, a smaller type (torch.autocast), or a part at a time",
    ]


def test_memory_in_pieces_is_named_first():
    failure = PAGE.failure._replace(asked_bytes=4 * GIB, free_bytes=GIB)
    page = replace(PAGE, failure=failure)
    assert say(page)[0] == (
        "enough is cached, but in smaller pieces: start the kernel with"
        " PYTORCH_ALLOC_CONF=expandable_segments:True"
    )
    assert "allocate the largest tensors first" in " ".join(
        say(replace(page, cache=AllocatorBlocks(GIB, expandable=True)))
    )


@pytest.mark.parametrize("cache", [AllocatorBlocks(5 * GIB), AllocatorBlocks(GIB, 5 * GIB)])
def test_a_free_block_of_another_stream_is_explained(cache):
    failure = PAGE.failure._replace(asked_bytes=4 * GIB, free_bytes=GIB)
    first = list_measures(replace(PAGE, failure=failure, cache=cache))[0]
    assert "on its own stream" in first.words
    assert first.frees_bytes == 5 * GIB


def test_the_private_pool_of_a_cuda_graph_is_a_measure():
    failure = PAGE.failure._replace(asked_bytes=4 * GIB, free_bytes=GIB, pooled_bytes=5 * GIB)
    page = replace(PAGE, failure=failure._replace(cached_bytes=0), live=LiveTensors(pools=("g",)))
    assert ("free in private pools", "5.0 GiB") in list_figures(page)
    pools = [one for one in list_measures(page) if "private pools" in one.words]
    assert "(g)" in pools[0].words
    assert pools[0].frees_bytes == 5 * GIB


def test_with_a_memory_fraction_ending_others_is_not_advised():
    others = GPU._replace(other_processes_bytes=GIB)
    failure = AllocationFailure("cuda:0", GIB, 8 * GIB, 5 * GIB, 2 * GIB, 3 * GIB // 2, 0)
    words = say(OutOfMemoryPage(failure, others))
    assert words[0] == "raise torch.cuda.set_per_process_memory_fraction(...)"
    assert not any("other processes" in one for one in words)
    assert failure.short_bytes == GIB // 2
    both = say(OutOfMemoryPage(failure._replace(free_bytes=0), others))
    assert any("other processes" in one for one in both)


def test_the_allocators_rounding_is_not_saved_for_backward():
    live = LiveTensors((LiveTensor(11 * MIB, (11 * MIB,), "uint8"),))
    balance = Balance("cuda", torch_name="cuda:0", this_process=ThisProcess(12 * MIB))
    page = OutOfMemoryPage(AllocationFailure(), balance, AllocatorBlocks(0, 0, 11 * MIB), live)
    assert (page.rounding_bytes, page.unheld_bytes) == (MIB, 0)
    assert ("1.0 MiB", "added by the allocator's rounding") in list_tensors(page)


def test_what_frees_enough_comes_before_what_does_not():
    failure = PAGE.failure._replace(free_bytes=10 * GIB)  # 20 GiB short
    frees = [measure.frees_bytes for measure in list_measures(replace(PAGE, failure=failure))]
    assert frees[:3] == [21_500 * MIB, 4 * GIB, 3 * GIB]


@pytest.mark.parametrize(
    ("words", "lines"),
    [(["Out[7]", "_7"], "%xdel _7"), (["_", "_12[0]"], "%xdel _12"), (["_"], "%xdel _")],
    ids=["out", "inside of one", "the last one alone"],
)
def test_how_to_delete_an_output(words, lines):
    held = OUTPUT._replace(holders=tuple(Holder("output", one) for one in words))
    page = OutOfMemoryPage(AllocationFailure(), live=LiveTensors((held, held)))
    assert say(page)[0] == f"only IPython's outputs hold some of it: {lines}"


def test_a_limit_and_graphs_that_are_kept():
    loss = LiveTensor(MIB, (512, 512), "float32", (Holder("user", "losses[0]"),), in_graph=True)
    failure = AllocationFailure("cuda:0", MIB, free_bytes=0, allowed_bytes=GIB, allocated_bytes=GIB)
    page = OutOfMemoryPage(failure, live=LiveTensors((loss,)))
    assert [(one.words, one.frees_bytes) for one in list_measures(page)[:4]] == [
        ("raise torch.cuda.set_per_process_memory_fraction(...)", None),
        ("del what is not needed any more, the biggest first: losses[0]", None),
        ("detach() or item() what is only kept to look at: it holds its graph", MIB),
        ("torch.no_grad() where no gradient is needed; else activation checkpointing", None),
    ]


def find(roots, budget=None):
    """The names of each live CPU tensor that has any, by its bytes."""
    live = find_live_tensors("cpu", roots, budget or Budget(seconds=60))
    return {
        one.held_bytes: [(holder.kind, holder.words) for holder in one.holders]
        for one in live.tensors
        if one.holders
    }


def make(megabytes):
    """A tensor whose bytes no other has."""
    return torch.empty(megabytes * MIB + 7, dtype=torch.uint8)


def test_names_through_containers_and_objects():
    class Trainer:
        def __init__(self, held):
            self.held = held

    names = {
        "plain": make(1),
        "listed": [make(2), (make(3),)],
        "keyed": {"a": make(4), 5: make(5), (1, 2): make(6)},
        "trainer": Trainer(make(7)),
        "queue": collections.deque([make(8)]),
        "bag": {make(9)},
    }
    assert list(find(list_roots(names)).values())[::-1] == [
        [("user", "plain")],
        [("user", "listed[0]")],
        [("user", "listed[1][0]")],
        [("user", "keyed['a']")],
        [("user", "keyed[5]")],
        [("user", "keyed[…]")],
        [("user", "trainer.held")],
        [("user", "queue[0]")],
        [("user", "bag[0]")],
    ]


def test_names_in_a_model_its_gradients_and_its_optimizer():
    model = torch.nn.Sequential(torch.nn.Linear(701, 1, bias=False))
    optimizer = torch.optim.SGD(model.parameters(), momentum=0.9)
    model(torch.ones(1, 701)).sum().backward()
    optimizer.step()
    live = find_live_tensors("cpu", list_roots({"model": model, "optimizer": optimizer}))
    words = {one.holders[0].words for one in live.tensors if one.held_bytes == 2804 and one.holders}
    assert words == {
        "model.0.weight",
        "model.0.weight.grad",
        "optimizer.state[…]['momentum_buffer']",
    }


def test_ipythons_outputs_are_told_from_the_users_names():
    held = make(3)
    names = {"Out": {7: held}, "_oh": {7: held}, "_": held, "_7": held, "_mine": held}
    assert find(list_roots(names)) == {
        held.nbytes: [("output", "Out[7]"), ("output", "_"), ("output", "_7"), ("user", "_mine")]
    }


def test_views_and_their_base_are_one():
    base = make(5)
    names = {"part": base[:10], "base": base}
    live = find_live_tensors("cpu", list_roots(names))
    one = next(one for one in live.tensors if one.held_bytes == base.nbytes)
    assert (one.shape, one.dtype) == ((base.nbytes,), "uint8")
    assert [holder.words for holder in one.holders] == ["part", "base"]


def test_the_frames_of_the_traceback_hold_tensors():
    def train():
        batch = [make(11)]
        raise torch.OutOfMemoryError(TEXT + str(len(batch)))

    try:
        train()
    except torch.OutOfMemoryError as error:
        seen = find(list_roots({}, error))
    assert seen == {11 * MIB + 7: [("frame", "batch[0] in train()")]}


def test_a_cell_whose_locals_are_the_notebooks_names_counts_once():
    names = {"torch": torch, "text": TEXT, "make": make}
    try:
        exec("held = make(12)\nraise torch.OutOfMemoryError(text)", names)
    except torch.OutOfMemoryError as error:
        seen = find(list_roots(names, error))
    first, *others = seen[12 * MIB + 7]
    assert first == ("user", "held")
    assert not any("<module>" in words for _, words in others)


def test_a_graph_is_seen_without_a_warning():
    leaf = torch.ones(333, requires_grad=True)
    names = {"kept": leaf * 2}
    live = find_live_tensors("cpu", list_roots(names))
    kept = next(one for one in live.tensors if one.holders)
    assert (kept.holders[0].words, kept.in_graph) == ("kept", True)


def test_other_devices_and_tensors_without_storage_are_passed_over():
    odd = [torch.empty(9, device="meta"), torch.eye(3).to_sparse()]
    assert find(list_roots({"odd": odd})) == {}
    assert find_live_tensors("cuda:0", list_roots({"held": make(1)})) == LiveTensors()


def test_no_code_of_the_users_is_run():
    class Trap(dict):
        def items(self):
            raise AssertionError

        __iter__ = __eq__ = __repr__ = __getattribute__ = items
        __hash__ = None

    class Traps(list):
        def __iter__(self):
            raise AssertionError

    class Watched(torch.Tensor):
        @classmethod
        def __torch_function__(cls, *_, **__):
            raise AssertionError

    watched = torch.empty(77 * 64).as_subclass(Watched)
    names = {"trap": Trap(a=make(2)), "traps": Traps([make(3)]), "watched": watched}
    seen = find(list_roots(names))
    assert seen == {
        3 * MIB + 7: [("user", "traps[0]")],
        2 * MIB + 7: [("user", "trap['a']")],
        77 * 64 * 4: [("user", "watched")],
    }


def test_what_holds_itself_comes_to_an_end():
    ring = [make(1)]
    ring.append(ring)
    assert find(list_roots({"ring": ring})) == {MIB + 7: [("user", "ring[0]")]}


def test_cuda_graphs_are_named():
    class CUDAGraph:
        """Stands for torch's, which needs CUDA."""

    assert find_live_tensors("cpu", list_roots({"runs": [CUDAGraph()]})).pools == ("runs[0]",)


@pytest.mark.slow
def test_the_search_is_bounded_in_time():
    ticks = iter(range(1000))
    held = make(1)
    live = find_live_tensors(
        "cpu", [Root("user", "held", held)], Budget(seconds=1, clock=lambda: next(ticks))
    )
    assert live.complete is False
    started = time.thread_time()
    chain = {"deep": [[str(n), [n]] for n in range(300_000)]}
    find_live_tensors("cpu", list_roots(chain), Budget(seconds=0.05))
    assert time.thread_time() - started < 5


def test_without_torch_there_is_nothing_to_find(monkeypatch):
    monkeypatch.delitem(sys.modules, "torch")
    assert find_live_tensors("cpu", list_roots({"x": 1})) == LiveTensors()


def test_the_facts_are_put_together():
    balance = Balance("cuda", 0, "cuda:0", total_bytes=80 * GIB, this_process=ThisProcess(GIB))
    other = balance._replace(torch_name="cuda:1")
    page = explain_out_of_memory(
        torch.OutOfMemoryError(TEXT),
        {},
        torch=fake_torch(segment(("inactive", 300))),
        take=lambda: Snapshot((other, balance)),
    )
    assert page == OutOfMemoryPage(read_failure(TEXT), balance, AllocatorBlocks(300, 0, 0))
    assert page.rounding_bytes == GIB


def test_an_error_without_a_number_is_of_the_current_device():
    error = RuntimeError("CUDA error: out of memory")
    page = explain_out_of_memory(error, {}, torch=fake_torch(), take=lambda: Snapshot(()))
    assert page == OutOfMemoryPage(AllocationFailure("cuda:1"), cache=AllocatorBlocks(0, 0, 0))
    assert explain_out_of_memory(error, {}) == OutOfMemoryPage(AllocationFailure())


def test_after_an_error_that_lasts_the_page_is_about_the_gpu():
    def refuse():
        raise RuntimeError("CUDA error: an illegal memory access was encountered")

    lost = types.SimpleNamespace(cuda=types.SimpleNamespace(current_device=refuse))
    error = RuntimeError("CUDA error: out of memory")
    assert explain_out_of_memory(error, {}, torch=lost) == OutOfMemoryPage(AllocationFailure())


@pytest.mark.gpu
def test_a_real_shortage():
    total = torch.cuda.get_device_properties(0).total_memory
    kept = torch.empty(64 * MIB, dtype=torch.uint8, device="cuda:0")
    gc.collect()
    with pytest.raises(torch.OutOfMemoryError) as caught:
        torch.empty(total, dtype=torch.uint8, device="cuda:0")
    page = explain_out_of_memory(caught.value, {"kept": kept})
    assert page.failure.device == "cuda:0"
    assert abs((page.failure.asked_bytes or 0) - total) < 0.01 * total
    assert page.failure.allocated_bytes is not None
    assert page.cache is not None
    assert page.balance is not None
    assert page.balance.this_process.allocated_bytes == torch.cuda.memory_allocated(0)
    named = [one for one in page.live.tensors if one.holders]
    assert (named[0].held_bytes, named[0].holders[0].words) == (kept.nbytes, "kept")

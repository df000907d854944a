"""The replay of allocator events, against an allocator that keeps its own books."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from labkit.memory.allocations.analysis import analyse, make_columns
from labkit.memory.allocations.replay import (
    Held,
    LayoutSpan,
    find_segments,
    find_start,
    lay_out,
    list_live,
    measure_fragmentation,
    measure_levels,
)
from labkit.memory.allocations.snapshot import Block, Event, Segment, Trace, read_recording
from labkit.memory.track.frames import Frame
from tests.fakes.allocator import MIB, FakeAllocator, take_snapshot

LINE = Frame("train.py", 3, "f")
STEPS = st.lists(
    st.one_of(
        st.tuples(st.just("alloc"), st.integers(0, 3 * MIB)),
        st.tuples(st.just("free"), st.integers(0, 2**16)),
        st.tuples(st.just("later"), st.integers(0, 2**16)),
        st.tuples(st.just("complete"), st.integers(0, 2**16)),
        st.tuples(st.just("empty"), st.just(0)),
        st.tuples(st.just("fail"), st.integers(1, MIB)),
    ),
    max_size=60,
)


def carry_out(allocator, steps):
    """Plays the steps; a number picks among the blocks that are there."""
    for word, number in steps:
        states = {at: block["state"] for at, block in allocator.blocks.items()}
        wanted = "active_pending_free" if word == "complete" else "active_allocated"
        there = sorted(at for at, state in states.items() if state == wanted)
        picked = there[number % len(there)] if there else None
        if word == "alloc":
            allocator.alloc(number)
        elif word == "empty":
            allocator.empty_cache()
        elif word == "fail":
            allocator.fail(number)
        elif picked is not None and word == "complete":
            allocator.complete(picked)
        elif picked is not None:
            allocator.free(picked, later=word == "later")


def read_trace(allocator):
    traces = read_recording(take_snapshot(allocator)).traces
    return traces[0] if traces else Trace("cuda:0")


@settings(max_examples=150, deadline=None)
@given(before=STEPS, during=STEPS, expandable=st.booleans(), kept=st.integers(1, 80))
def test_every_level_is_what_the_allocator_had(before, during, expandable, kept):
    allocator = FakeAllocator(expandable=expandable, max_entries=kept)
    carry_out(allocator, before)
    allocator.start()
    carry_out(allocator, during)
    # However much of the recording was pushed out, the rest is told exactly.
    books = allocator.books[-len(allocator.kept) - 1 :]
    trace = read_trace(allocator)
    levels = measure_levels(trace)
    assert levels.live == [book.live_bytes for book in books]
    assert levels.reserved == [book.reserved_bytes for book in books]
    assert max(levels.live) == levels.live[levels.peak] == max(book.live_bytes for book in books)
    for level, live in list_live(trace, range(len(books))).items():
        book = books[level]
        assert {held.address: held.size_bytes for held in live} == book.live
        gaps = [gap for one in lay_out(trace, level, live) for gap in one.gaps]
        assert sorted(gaps) == [LayoutSpan(*gap) for gap in book.gaps]
        cut = measure_fragmentation(trace, level, live)
        sizes = [size for _, size in book.gaps]
        assert (cut.free_bytes, cut.largest_free_bytes, cut.pieces) == (
            sum(sizes),
            max(sizes, default=0),
            len(sizes),
        )
        assert cut.reserved_bytes == book.reserved_bytes


@settings(max_examples=60, deadline=None)
@given(steps=STEPS, most=st.integers(1, 20))
def test_no_peak_is_lost_in_columns(steps, most):
    allocator = FakeAllocator().start()
    carry_out(allocator, steps)
    trace = read_trace(allocator)
    levels = measure_levels(trace)
    columns = make_columns(trace, levels, (), most)
    assert len(columns) == min(most, len(levels.live))
    assert max(column.live_bytes for column in columns) == max(levels.live)
    assert max(column.reserved_bytes for column in columns) == max(levels.reserved)
    assert min(column.lowest_bytes for column in columns) == min(levels.live)
    assert [column.level for column in columns] == sorted({column.level for column in columns})


def test_a_block_that_another_stream_uses_is_live_until_that_is_done():
    allocator = FakeAllocator().start()
    address = allocator.alloc(MIB, stream=7)
    allocator.free(address, later=True)
    assert measure_levels(read_trace(allocator)).live == [0, 0, MIB, MIB]
    allocator.complete(address)
    assert measure_levels(read_trace(allocator)).live[-1] == 0


def test_a_recorder_that_leaves_out_completed_frees():
    events = (Event("alloc", 512, 100), Event("free_requested", 512, 100))
    assert measure_levels(Trace("cuda:0", events)).live == [0, 100, 0]


def test_an_address_given_out_twice_counts_once():
    events = (Event("alloc", 512, 100), Event("alloc", 512, 300))
    assert measure_levels(Trace("cuda:0", events)).live == [0, 100, 300]


def test_the_start_is_what_was_freed_or_stayed_without_having_come():
    kept = Block(1024, 512, 400, live=True, frames=(LINE,))
    gap = Block(1536, 512, 0, live=False)
    trace = Trace(
        "cuda:0",
        (Event("free_completed", 512, 100), Event("alloc", 512, 7)),
        (Segment(512, 1536, blocks=(Block(512, 512, 7, live=True), kept, gap)),),
    )
    assert find_start(trace) == {512: Held(512, 100), 1024: Held(1024, 400, (LINE,))}
    assert measure_levels(trace).live == [500, 400, 407]


def test_reserved_is_never_below_zero():
    events = (Event("segment_free", 0, 2 * MIB), Event("segment_alloc", 0, MIB))
    assert measure_levels(Trace("cuda:0", events)).reserved == [2 * MIB, 0, MIB]


def test_segments_that_lie_side_by_side_stay_two():
    trace = Trace("cuda:0", (), (Segment(0, 512), Segment(512, 512)))
    assert find_segments(trace, 0) == [LayoutSpan(0, 512), LayoutSpan(512, 512)]
    joined = Trace(
        "cuda:0",
        (Event("segment_unmap", 512, 512),),
        (Segment(0, 512, expandable=True), Segment(1024, 512, expandable=True)),
    )
    assert find_segments(joined, 0) == [LayoutSpan(0, 1536)]
    assert find_segments(joined, 1) == [LayoutSpan(0, 512), LayoutSpan(1024, 512)]


def test_at_the_end_a_block_takes_what_torch_says_it_takes():
    # A block that was not worth splitting is larger than what was asked, rounded up.
    block = Block(0, 2048, 700, live=True)
    trace = Trace("cuda:0", (), (Segment(0, 4096, blocks=(block,)),))
    (held,) = find_start(trace).values()
    assert lay_out(trace, 0, [held])[0].gaps == (LayoutSpan(2048, 2048),)


def test_the_cpu_has_nothing_in_reserve():
    trace = Trace("cpu", (Event("alloc", 512, 9),), has_cache=False)
    assert measure_fragmentation(trace, 1, []) is None
    assert analyse(read_recording({"segments": [], "device_traces": []})).devices == ()


@pytest.mark.parametrize("streams", [(0, 0), (0, 9)], ids=["one stream", "two streams"])
def test_devices_do_not_mix(streams):
    first, second = FakeAllocator(device=0).start(), FakeAllocator(device=2).start()
    first.alloc(MIB, stream=streams[0])
    second.alloc(2 * MIB, stream=streams[1])
    history = analyse(read_recording(take_snapshot(first, second)))
    assert [(one.device, one.peak.live_bytes) for one in history.devices] == [
        ("cuda:0", MIB),
        ("cuda:2", 2 * MIB),
    ]

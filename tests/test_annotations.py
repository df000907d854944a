"""What ran when: spans of cells, blocks and marks by hand."""

from __future__ import annotations

import pytest

from labkit.memory.sample.model import (
    LISTENERS,
    AnnotatedSpan,
    Annotation,
    Annotations,
    begin_spans,
    end_spans,
)
from tests.fakes.counters import FakeDevice, track
from tests.fakes.sampling import PlayedClock


@pytest.fixture
def clock():
    return PlayedClock(0.0)


@pytest.fixture
def marks(clock):
    listening = Annotations(clock)
    LISTENERS.append(listening)
    yield listening
    LISTENERS.remove(listening)


def test_a_mark_is_a_moment_or_the_time_of_its_block(marks, clock):
    Annotation(marks, "moment")
    clock.now = 1.0
    with Annotation(marks, "block"):
        clock.now = 3.0
    assert marks.list_spans() == (
        AnnotatedSpan("mark", "moment", 0.0, 0.0),
        AnnotatedSpan("mark", "block", 1.0, 3.0),
    )


def test_a_block_that_raises_ends_and_one_that_goes_on_has_no_end(marks, clock):
    with pytest.raises(ValueError, match="mine"), Annotation(marks, "raises"):
        clock.now = 2.0
        raise ValueError("mine")
    Annotation(marks, "open").__enter__()
    assert [(span.name, span.end) for span in marks.list_spans()] == [
        ("raises", 2.0),
        ("open", None),
    ]


def test_track_memory_marks_its_blocks_and_functions(marks, clock):
    gpu = FakeDevice()
    make = track(gpu)
    with make():
        clock.now = 1.0

    @make()
    def step():
        clock.now += 1.0

    step()
    with make():
        pass
    assert marks.list_spans() == (
        AnnotatedSpan("block", "block 1", 0.0, 1.0),
        AnnotatedSpan("block", "step", 1.0, 2.0),
        AnnotatedSpan("block", "block 3", 2.0, 2.0),
    )


def test_without_a_listener_nothing_is_kept():
    opened = begin_spans("cell", "[1]")
    end_spans(opened)
    assert opened == []


def test_everyone_who_listens_gets_the_span(marks, clock):
    other = Annotations(clock)
    LISTENERS.append(other)
    try:
        opened = begin_spans("cell", "[7]")
    finally:
        LISTENERS.remove(other)
    clock.now = 5.0
    end_spans(opened)
    assert marks.list_spans() == other.list_spans() == (AnnotatedSpan("cell", "[7]", 0.0, 5.0),)


def test_a_million_blocks_keep_the_longest_and_what_goes_on(clock):
    marks = Annotations(clock, limit=50)
    running = marks.begin("cell", "running")
    for number in range(5000):
        block = marks.begin("block")
        clock.now += 100.0 if number == 17 else 0.001
        marks.end(block)
    spans = marks.list_spans()
    assert len(spans) <= 50
    assert spans[0] == AnnotatedSpan("cell", "running", 0.0, None)
    assert spans[1].name == "block 18"
    assert spans[-1].name == "block 5000"
    marks.end(running)
    marks.end(3)  # dropped long ago
    assert marks.list_spans()[0].end == clock.now

"""A history as people and programs see it: lines, text, JSON, and the page."""

from __future__ import annotations

import json
import re
from html.parser import HTMLParser

import pytest

from labkit.memory.allocations.analysis import (
    BEFORE,
    NO_STACK,
    Place,
    analyse,
    compare_histories,
    find_place,
)
from labkit.memory.allocations.page import make_page, merge_runs
from labkit.memory.allocations.replay import Held, LayoutSpan
from labkit.memory.allocations.snapshot import StackReader, read_recording
from labkit.memory.allocations.view import describe_comparison, describe_history, explain_failure
from labkit.memory.track.frames import Frame, judge_file
from tests.fakes.allocator import (
    MAIN,
    MIB,
    PACKAGE,
    TORCH,
    FakeAllocator,
    frame,
    make_training,
    stack_of,
    take_snapshot,
)
from tests.snapshots import assert_snapshot


def understand(*allocators, **own):
    return analyse(read_recording(take_snapshot(*allocators, **own)))


@pytest.mark.parametrize(
    ("file", "whose"),
    [
        ("/home/ada/train.py", "user"),
        ("C:\\work\\train.py", "user"),
        ("/tmp/ipykernel_12/345.py", "user"),
        ("<ipython-input-3-abc>", "user"),
        ("<stdin>", "user"),
        ("<frozen importlib._bootstrap>", "own"),
        (TORCH, "own"),
        ("C:\\py\\Lib\\site-packages\\torch\\_ops.py", "own"),
        ("/opt/pytorch/torch/_ops.py", "own"),
        ("/tmp/torchinductor_ada/ab/cabc.py", "own"),
        ("/cache/t6/ct6huxqvnkehsucllflhta6eudhzs47i52beiszhzl5vw5gfof3f.py", "own"),
        ("/home/ada/t6/ct6.py", "user"),
        ("??", "own"),
        ("", "own"),
        ("CUDACachingAllocator.cpp", "own"),
        ("/usr/lib/libtorch_cuda.so.1", "own"),
        ("<__array_function__ internals>", "own"),
        ("<eval_with_key>.7", "own"),
        ("/usr/lib/python3.11/contextlib.py", "own"),
        ("/v/lib/python3.12/site-packages/IPython/core/interactiveshell.py", "own"),
        (PACKAGE, "package"),
    ],
)
def test_whose_code_a_file_is(file, whose):
    assert judge_file(file) == whose


def locate(*frames, event=0):
    return find_place(Held(0, 1, StackReader().read(list(frames)), event))


def test_the_users_line_is_the_innermost_that_is_not_torchs():
    line = Frame("/home/ada/train.py", 20, "forward")
    assert locate(*stack_of(20)) == Place(line)


def test_a_line_in_a_package_is_told_with_the_users_that_led_there():
    inner, middle = frame(PACKAGE, 9, "block"), frame(PACKAGE, 80, "forward")
    assert locate(frame(TORCH, 1), inner, middle, MAIN) == Place(
        Frame(PACKAGE, 9, "block"), via=Frame("/home/ada/train.py", 40, "<module>")
    )
    assert locate(frame(TORCH, 1), inner) == Place(Frame(PACKAGE, 9, "block"))


def test_a_stack_of_torchs_alone_tells_its_innermost_line():
    assert locate(frame(TORCH, 1), frame(TORCH, 2)).frame == Frame(TORCH, 1, "<module>")


def test_frames_of_cpp_are_skipped():
    # As torch records by default (stacks="all").
    cpp = [frame("??", 0, "torch::unwind::unwind()"), frame("RegisterCUDA_0.cpp", 0, "at::empty")]
    line = Frame("/home/ada/train.py", 20, "forward")
    assert locate(*cpp, *stack_of(20)) == Place(line)
    assert locate(*cpp) == Place(None, NO_STACK)
    assert locate(*cpp, frame(TORCH, 1)).frame == Frame(TORCH, 1, "<module>")


def test_a_block_without_a_stack():
    assert locate() == Place(None, NO_STACK)
    assert locate(event=None) == Place(None, BEFORE)


def test_the_text():
    own = {"max_entries": 1000, "sources": [["/home/ada/train.py", 20, "h = self.layer(h)"]]}
    assert_snapshot("history", repr(understand(make_training(), **own)))


def make_failure(stream=0, asked=8 * MIB):
    """A failed request beside a free piece of its own, of stream 1, and of a private pool."""
    pools = [(0, (0, 0), MIB), (1, (0, 0), 9 * MIB), (stream, (0, 1), 20 * MIB)]
    segments = [
        {
            "address": (place + 1) * 2**40,
            "total_size": size,
            "stream": of,
            "segment_pool_id": pool,
            "blocks": [{"size": size, "state": "inactive"}],
        }
        for place, (of, pool, size) in enumerate(pools)
    ]
    event = {"action": "oom", "size": asked, "stream": stream, "user_metadata": "epoch 3"}
    return analyse(read_recording({"segments": segments, "device_traces": [[event]]}))


def test_free_pieces_that_a_request_cannot_use_are_explained():
    history = make_failure()
    assert "epoch 3" in repr(history)
    (device,) = history.devices
    reason = explain_failure(device.failures[0])
    assert "20.0 MiB is in private pools of CUDA graphs" in reason
    assert "9.0 MiB belongs to other streams" in reason
    assert reason in repr(history)
    assert "private pools" in make_page(history)
    (shown,) = describe_history(history)["devices"]
    assert (shown["out_of_memory"][0]["reason"], shown["end"]["free_private_bytes"]) == (
        reason,
        20 * MIB,
    )
    own = make_failure(stream=1).devices[0]  # the piece of 9 MiB is its own
    assert explain_failure(own.failures[0]) is None
    assert explain_failure(make_failure(asked=30 * MIB).devices[0].failures[0]) is None


@pytest.mark.parametrize(("size", "said"), [(MIB, False), (100 * MIB, True)])
def test_a_little_free_memory_is_not_called_fragmented(size, said):
    allocator = FakeAllocator().start()
    held = [allocator.alloc(size) for _ in range(20)]
    for address in held[::2]:
        allocator.free(address)
    allocator.alloc(20 * size)
    assert ("it is fragmented" in repr(understand(allocator))) is said


def test_two_recordings_are_compared_by_line():
    def run(steps):
        allocator = FakeAllocator().start()
        allocator.alloc(3 * MIB, stack_of(12))
        for _ in range(steps):
            allocator.alloc(MIB, stack_of(20))
        return understand(allocator)

    compared = compare_histories(run(2), run(5))
    text = repr(compared)
    assert "live at the end 5.0 MiB -> 8.0 MiB (+3.0 MiB)" in text
    assert "+3.0 MiB  2 -> 5 blocks" in text
    assert "train.py:20 in forward" in text
    assert "train.py:12" not in text
    (device,) = describe_comparison(compared)["devices"]
    assert (device["end_bytes"], len(device["lines"])) == ([5 * MIB, 8 * MIB], 1)
    assert "no line holds more or less" in repr(compare_histories(run(2), run(2)))
    fewer = compare_histories(
        run(2), analyse(read_recording({"segments": [], "device_traces": []}))
    )
    assert "(-5.0 MiB)" in repr(fewer)


def test_a_truncated_recording_says_what_that_means():
    text = repr(understand(make_training(max_entries=30), max_entries=30))
    assert "only the last 30 events are kept (max_entries=30)" in text
    assert "4.0 MiB in 2 blocks had been allocated before the events that are kept" in text


def test_a_block_whose_allocation_was_pushed_out_keeps_its_line_where_its_free_has_it():
    allocator = FakeAllocator(max_entries=3).start()
    for line in (20, 21):
        allocator.free(allocator.alloc(MIB, stack_of(line)))
    # Kept: the second block's two frees, and this.
    allocator.alloc(512, stack_of(22))
    (known,) = understand(allocator, context="alloc").devices
    (unknown,) = understand(allocator).devices
    assert known.peak.groups[0].place.frame == Frame("/home/ada/train.py", 21, "forward")
    assert unknown.peak.groups[0].place == Place(None, BEFORE)


def test_a_recording_that_tells_no_bound_leaves_it_open():
    (device,) = understand(make_training()).devices
    assert device.truncated is None
    assert "before recording began, or max_entries was reached" in repr(understand(make_training()))


def test_nothing_recorded():
    assert repr(understand()) == "no allocations were recorded"
    assert "Nothing was recorded" in make_page(understand())


def test_only_the_state_at_the_end():
    allocator = FakeAllocator()
    allocator.alloc(MIB)
    text = repr(understand(allocator))
    assert text.startswith("cuda:0: peak 1.0 MiB live, 4.0 MiB reserved, at the beginning\n")
    assert "  reserved and unused at the peak: 3.0 MiB in 1 piece\n" in text
    assert "no events were recorded" in text


def test_many_lines_are_summed_up():
    allocator = FakeAllocator().start()
    for line in range(11):
        allocator.alloc(MIB - line * 512, stack_of(line))
    assert "     3.0 MiB  in 3 more lines" in repr(understand(allocator))


def test_fragmentation_with_expandable_segments_has_another_measure():
    allocator = FakeAllocator(expandable=True).start()
    blocks = [allocator.alloc(MIB, stack_of(20)) for _ in range(8)]
    for address in blocks[::2]:
        allocator.free(address)
    allocator.fail(2 * MIB, free=0)
    text = repr(understand(allocator))
    assert "it is fragmented although expandable segments are on" in text
    assert "PYTORCH_ALLOC_CONF" not in text


def test_the_json():
    told = describe_history(understand(make_training(), max_entries=1000))
    (device,) = json.loads(json.dumps(told))["devices"]
    line = {"file": "/home/ada/train.py", "line": 20, "function": "forward"}
    first = {
        **line,
        "via": None,
        "words": None,
        "metadata": None,
        "held_bytes": 6 * MIB,
        "blocks": 6,
    }
    peak, failure = device["peak"], device["out_of_memory"][0]
    assert (device["device"], device["events"], device["truncated"]) == ("cuda:0", 48, False)
    assert (peak["live_bytes"], peak["reserved_bytes"], peak["event"]) == (10 * MIB, 12 * MIB, 39)
    assert peak["lines"][0] == first
    assert peak["lines"][2]["words"] == "before the first event"
    assert (failure["asked_bytes"], failure["device_free_bytes"]) == (3 * MIB, MIB // 2)
    assert (failure["free_reserved_bytes"], failure["largest_free_bytes"]) == (5 * MIB, 2 * MIB)
    assert (failure["line"], failure["segments"]) == (21, 3)
    assert [one["held_bytes"] for one in device["never_freed"]["lines"]] == [3 * MIB, 3 * MIB]
    assert device["end"]["live_bytes"] == 6 * MIB


def test_the_json_of_a_cpu_has_null_where_there_is_no_cache():
    told = describe_history(understand(make_training(), device="cpu"))
    (device,) = told["devices"]
    assert device["device"] == "cpu"
    assert device["peak"]["reserved_bytes"] is None
    assert device["highest_reserved_bytes"] is None


class Reader(HTMLParser):
    """What a browser makes of the page: its elements, attributes and text."""

    def __init__(self, page):
        super().__init__()
        self.tags, self.attributes, self.text = [], [], []
        self.feed(page)

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        self.attributes += attrs

    def handle_data(self, data):
        if self.tags and self.tags[-1] not in ("style", "script"):
            self.text.append(data)


HOSTILE = "</pre></title><script>alert(1)</script><img src=x onerror=alert(2)>\"'&\u202e\x00.py"


def test_hostile_names_are_text():
    allocator = FakeAllocator().start()
    allocator.alloc(MIB, [frame(TORCH, 1), frame(f"/home/{HOSTILE}", 1, HOSTILE)])
    allocator.fail(MIB, frames=[frame(HOSTILE, 1, HOSTILE)])
    own = {"names": {HOSTILE: HOSTILE}, "sources": [[f"/home/{HOSTILE}", 1, HOSTILE]]}
    page = make_page(understand(allocator, **own), HOSTILE)
    read = Reader(page)
    assert read.tags.count("script") == 1
    assert "img" not in read.tags
    assert not {name for name, _ in read.attributes if name.startswith("on")}
    assert sum("<img src=x onerror=alert(2)>" in text for text in read.text) >= 4
    assert not re.search("[\u202e\x00]", page)


def test_hostile_names_cannot_act_on_a_terminal():
    name = "a\x1b[2J\nout of memory\u202e.py"
    allocator = FakeAllocator().start()
    allocator.alloc(MIB, [frame(name, 1, name)])
    allocator.fail(MIB, frames=[frame(PACKAGE, 1, name), frame(name, 1, name)])
    allocator.events[-1]["user_metadata"] = name
    text = repr(understand(allocator, sources=[[name, 1, name]]))
    assert not re.search("[\x00-\x09\x0b-\x1f\x7f-\x9f\u202e]", text)
    assert "\nout of memory" not in text
    assert "a\\x1b[2J\\nout of memory\\u202e.py:1" in text


def test_the_page_refers_to_nothing_outside():
    page = make_page(understand(make_training()))
    assert not re.search(r"(https?:)?//[\w.]+\.\w", page)
    links = [value for name, value in Reader(page).attributes if name in ("href", "src", "action")]
    assert [link for link in links if not link.startswith("#")] == []
    assert "@import" not in page
    assert "url(" not in page


def test_the_page_has_every_part():
    text = " ".join(Reader(make_page(understand(make_training()), "run.pickle")).text)
    for words in (
        "labkit history of run.pickle",
        "10.0 MiB live at the peak on cuda:0",
        "60 % of it comes from one place: train.py:20 in forward.",
        "out of memory: 3.0 MiB requested",
        "Fragmentation is free memory in pieces",
        "PYTORCH_ALLOC_CONF=expandable_segments:True.",
        "5.0 MiB in 4 pieces, the largest of 2.0 MiB",
        "6.0 MiB of the 6.0 MiB live at the end.",
        "torch.cuda.max_memory_allocated() can be a little higher",
        "/home/ada/train.py:40 <module>",
    ):
        assert words in text, words


def test_the_page_of_a_cpu_says_why_there_is_nothing_reserved():
    page = make_page(understand(make_training(), device="cpu"))
    assert "On the CPU torch reserves no memory" in page
    assert "Dashed: reserved" not in page
    assert "compiled functions ran eagerly" in page


def test_several_devices_have_a_section_each():
    first, second = FakeAllocator(device=0).start(), FakeAllocator(device=1).start()
    first.alloc(MIB)
    second.alloc(2 * MIB)
    page = make_page(understand(first, second))
    assert re.findall(r'<a href="(#d\d)">(.*?)</a>', page) == [("#d0", "cuda:0"), ("#d1", "cuda:1")]
    assert "<h1>2.0 MiB live at the peak on cuda:1</h1>" in page
    assert "No line stands out" not in page


def make_flood(device, events, depth=60):
    """A snapshot's trace with long names in deep stacks, and segments full of holes."""
    long = "x" * 900
    stacks = [
        [frame(f"/{long}/{level}/{number}.py", level, long) for level in range(depth)]
        for number in range(200)
    ]
    trace = []
    for number in range(events):
        address = 2**40 + number * 2048
        frames = stacks[number % 200]
        trace.append({"action": "alloc", "addr": address, "size": 512 + number, "frames": frames})
        if number % 2:
            trace.append({"action": "free_completed", "addr": address, "size": 512 + number})
    segments = [
        {"device": device, "address": 2**40 + n * 2**20, "total_size": 2**20} for n in range(100)
    ]
    return trace, segments


@pytest.mark.slow
def test_a_page_stays_small_whatever_was_recorded():
    traces = [make_flood(device, 6000) for device in range(4)]
    snapshot = {
        "device_traces": [trace for trace, _ in traces],
        "segments": [segment for _, segments in traces for segment in segments],
    }
    page = make_page(analyse(read_recording(snapshot)))
    assert len(page.encode()) < 2_000_000
    assert "left out to keep this page small" in page


@pytest.mark.slow
def test_a_hundred_thousand_events_keep_their_peak():
    trace, segments = make_flood(0, 80_000, depth=8)
    spike = {"action": "alloc", "addr": 1, "size": 2**40}
    trace[50_001:50_001] = [spike, {**spike, "action": "free_completed"}]
    assert len(trace) > 100_000
    history = analyse(read_recording({"device_traces": [trace], "segments": segments}))
    page = make_page(history)
    (device,) = history.devices
    assert device.peak.event == 50_002
    assert "peak 1.0 TiB</text>" in page
    assert "Each column is the highest of about 151 events" in page
    assert len(page.encode()) < 2_000_000


def test_what_touches_in_a_bar_is_one_and_nothing_vanishes():
    span = LayoutSpan(1000, 1000)
    assert merge_runs([], span, 10) == []
    assert merge_runs([LayoutSpan(1000, 1), LayoutSpan(1500, 500)], span, 10) == [(0, 1), (10, 20)]
    assert merge_runs([LayoutSpan(1000 + n, 1) for n in range(0, 1000, 2)], span, 10) == [(0, 20)]

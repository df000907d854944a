"""``watch_memory()``: what the panel shows, when it updates, and what ends it."""

from __future__ import annotations

import re
import subprocess
import sys
import threading
from html.parser import HTMLParser

import pytest
from IPython.core.interactiveshell import InteractiveShell
from traitlets.config import Config

import labkit
from labkit.errors import UsageError
from labkit.jupyter import extension
from labkit.jupyter import panel as panel_module
from labkit.jupyter.panel import QUIET_SECONDS, RARE_SECONDS, Panel
from labkit.memory.sample.model import LISTENERS
from tests.fakes.sampling import (
    GIB,
    MIB,
    PlayedClock,
    PlayedEvent,
    PlayedReader,
    lose_gpu,
    play_cpu,
    play_gpu,
    play_utc,
    snap,
)
from tests.test_panel_trace import points_of


class Screen:
    """What was published: the bundles, and whether each replaced the one before."""

    def __init__(self):
        self.shown = []

    def __call__(self, bundle, *, update):
        self.shown.append((bundle, update))

    @property
    def html(self):
        return self.shown[-1][0]["text/html"]

    @property
    def text(self):
        return self.shown[-1][0]["text/plain"]


def play_panel(*answers, turns=0, **options):
    """A panel on played memory and time, and the screen it is on."""
    clock, screen = PlayedClock(), Screen()
    event = PlayedEvent(clock, turns)
    panel = Panel(
        screen,
        reader=PlayedReader(*(answers or [snap()])),
        clock=clock,
        wall_clock=lambda: clock.now,
        make_event=lambda: event,
        **options,
    )
    PLAYED.append(panel)
    return panel, screen, clock


PLAYED = []


@pytest.fixture(autouse=True)
def _stop_panels():
    with play_utc():
        yield
    while PLAYED:
        PLAYED.pop().stop()


def run_turns(panel):
    """Starts it, and returns once its thread has taken all of its turns."""
    before = set(threading.enumerate())
    panel.start()
    for thread in set(threading.enumerate()) - before:
        thread.join()
    return panel


class Words(HTMLParser):
    """The words of a page, and the styles of what is around them."""

    def __init__(self, html):
        super().__init__()
        self.words, self.skipped = [], 0
        self.feed(html)

    def handle_starttag(self, tag, attributes):
        self.skipped += tag == "style"

    def handle_endtag(self, tag):
        self.skipped -= tag == "style"

    def handle_data(self, data):
        if not self.skipped and data.strip():
            self.words.append(data.strip())


def read_late(html):
    """The animation that hides "not measured since", as the page has it."""
    return re.search(r'labkit-late" style="animation-duration:([^"]+)"', html)[1]


def test_it_is_shown_once_and_then_replaced_twice_a_second():
    panel, screen, _ = play_panel(turns=4)
    run_turns(panel)
    assert [update for _, update in screen.shown] == [False, True, True, True, True]
    assert panel._sampler.interval_seconds == 0.5


def test_the_words_of_the_panel():
    panel, screen, _ = play_panel(snap(play_gpu(), play_cpu()))
    panel.show_once()
    assert Words(screen.html).words[:6] == [
        "memory",
        "not measured since",
        "1970-01-01 00:16:40 UTC",
        "cuda:0",
        "A GPU",
        "4.0 GiB of 24.0 GiB in use",
    ]


def test_the_text_is_the_balance_and_when_it_was_measured():
    panel, screen, _ = play_panel()
    panel.show_once()
    assert screen.text.startswith("cpu     A CPU\n")
    assert "this process" in screen.text
    assert screen.text.endswith("\n\nmeasured 1970-01-01 00:16:40 UTC")


def test_not_measured_since_is_hidden_for_three_seconds_and_no_longer():
    panel, screen, _ = play_panel()
    panel.show_once()
    assert read_late(screen.html) == "3s"
    # Nothing but an animation hides the words: without styles they are there.
    assert "display:none" not in screen.html
    assert re.search(r"\.labkit-late\{[^}]*animation-name:labkit-hidden\}", screen.html)
    assert "@keyframes labkit-hidden{from,to{visibility:hidden;font-size:0}}" in screen.html
    assert "<script" not in screen.html


def test_a_stopped_panel_says_when_and_hides_nothing():
    panel, screen, clock = play_panel()
    panel.start()
    clock.now += 5
    panel.stop()
    panel.stop()
    assert read_late(screen.html) == "0s"
    assert "stopped at 00:16:45" in Words(screen.html).words
    assert screen.text.endswith("UTC; stopped at 00:16:45")
    assert (panel.running, repr(panel)) == (False, "memory panel, stopped")


def test_a_reading_that_fails_leaves_the_last_state_with_its_own_time():
    panel, screen, _ = play_panel(snap(), ValueError("no sense"), turns=6)
    run_turns(panel)
    # Only what was measured is shown as live: the page finds out by itself.
    assert len(screen.shown) == 1
    panel.stop()
    assert "1970-01-01 00:16:40 UTC" in Words(screen.html).words
    assert "not measured: ValueError: no sense" in Words(screen.html).words


def test_a_lost_gpu_is_told_and_the_others_go_on():
    lost = lose_gpu()._replace(uuid="GPU-00000000", torch_name="cuda:0")
    whole = snap(play_gpu(), play_gpu(index=1), play_cpu())
    panel, screen, _ = play_panel(whole, snap(lost, play_gpu(index=1), play_cpu()), turns=3)
    run_turns(panel)
    words = Words(screen.html).words
    assert "the GPU is lost" in words
    assert words.count("4.0 GiB of 24.0 GiB in use") == 1
    assert "unknown of unknown in use" in words


def test_what_failed_once_and_goes_on_is_no_trouble_any_more():
    panel, screen, _ = play_panel(snap(), ValueError("no sense"), snap(), turns=4)
    run_turns(panel)
    assert "no sense" not in screen.html
    assert len(screen.shown) == 4
    assert len(points_of(screen.html, "#9a7fd1")) == 2


def test_a_page_that_cannot_be_reached_for_a_moment_does_not_end_it():
    panel, screen, _ = play_panel(turns=4)
    fails = iter([False, True, False, False, False])
    panel._publish = lambda bundle, update: (
        1 / 0 if next(fails, False) else screen(bundle, update=update)
    )
    run_turns(panel)
    assert len(screen.shown) == 4
    assert panel.samples.trouble == "ZeroDivisionError: division by zero"


def test_what_is_shown_cannot_bring_markup_along():
    panel, screen, _ = play_panel(snap(play_cpu()._replace(name="<b>&")))
    panel.show_once()
    assert "<b>&" not in screen.html
    assert "&lt;b&gt;&amp;" in screen.html


def test_without_a_cell_for_long_the_updates_become_rare_and_say_so():
    panel, screen, _ = play_panel(turns=round(QUIET_SECONDS * 2) + 40)
    run_turns(panel)
    rare = len(screen.shown) - QUIET_SECONDS * 2
    assert 0 < rare <= 20 / RARE_SECONDS + 1
    assert read_late(screen.html) == f"{RARE_SECONDS * 3:g}s"


def test_a_cell_wakes_it_up():
    panel, screen, clock = play_panel(turns=round(QUIET_SECONDS * 2) + 40)
    run_turns(panel)
    assert read_late(screen.html) != "3s"
    marks = panel._sampler._annotations
    clock.now += 1
    marks.end(marks.begin("cell", "[10]"))
    panel._sampler.take_sample()
    clock.now += 0.5
    panel._sampler.take_sample()
    assert read_late(screen.html) == "3s"


def test_a_cleared_output_ends_it():
    asked = iter([False, False, True])
    panel, screen, _ = play_panel(turns=100, is_cleared=lambda: next(asked))
    run_turns(panel)
    assert not panel.running
    assert len(screen.shown) < 20
    assert LISTENERS == []


def test_what_it_saw_can_be_plotted():
    panel, _, _ = play_panel(turns=4)
    run_turns(panel)
    panel.stop()
    assert repr(labkit.plot_memory(panel)).startswith("memory over 0:02, a sample every 500 ms")


@pytest.fixture
def shell():
    """A shell of its own that passes for a kernel's: what it displays is kept."""
    config = Config()
    config.HistoryManager.enabled = False
    config.InteractiveShell.colors = "nocolor"
    InteractiveShell.clear_instance()
    started = InteractiveShell.instance(config=config)
    published = []

    def publish(data, metadata=None, *, transient=None, update=False, **rest):
        published.append((data, transient["display_id"], update))

    started.display_pub.publish = publish
    started.published = published
    started.metadata = {}
    started.get_parent = lambda: {"metadata": started.metadata}
    object.__setattr__(started, "kernel", object())
    yield started
    for host in panel_module._HOSTS:
        if host.panel is not None:
            host.panel.stop()
    panel_module._HOSTS.clear()
    extension.unload_ipython_extension(started)
    panel_module.leave_cells(started)
    InteractiveShell.clear_instance()


WATCH = "import labkit\npanel = labkit.watch_memory()"


def run(shell, cell, cell_id="other", deleted=()):
    shell.metadata.clear()
    shell.metadata.update({"cellId": cell_id, "deletedCells": list(deleted)})
    return shell.run_cell(cell, store_history=True, cell_id=cell_id)


def test_in_a_kernel_it_is_one_output_that_is_replaced(shell):
    run(shell, WATCH, "first")
    assert shell.user_ns["panel"].running
    shell.user_ns["panel"].stop()
    ids = {display_id for _, display_id, _ in shell.published}
    assert len(ids) == 1
    assert ids.pop() in shell.published[-1][0]["text/html"]
    assert [update for _, _, update in shell.published][:2] == [False, True]


def test_showing_the_value_adds_nothing(shell):
    run(shell, WATCH)
    assert shell.display_formatter.format(shell.user_ns["panel"]) == ({}, {})


def test_another_panel_ends_the_first(shell):
    run(shell, WATCH, "first")
    first = shell.user_ns["panel"]
    run(shell, WATCH, "second")
    assert (first.running, shell.user_ns["panel"].running) == (False, True)
    assert any(
        "replaced by another panel at" in data["text/plain"] for data, _, _ in shell.published
    )


@pytest.mark.parametrize(
    ("cell_id", "deleted", "goes_on"),
    [("other", (), True), ("mine", (), False), ("other", ("x", "mine"), False)],
    ids=["another cell", "its own cell again", "its cell deleted"],
)
def test_its_cell_ends_it(shell, cell_id, deleted, goes_on):
    run(shell, WATCH, "mine")
    panel = shell.user_ns["panel"]
    run(shell, "x = 1", cell_id, deleted)
    assert panel.running is goes_on


def test_cells_are_marked_with_their_numbers(shell):
    run(shell, "%load_ext labkit")
    run(shell, WATCH, "mine")
    run(shell, "get_ipython().run_cell('a = 1')\n1/0")
    run(shell, "b = = 1")
    run(shell, "panel.stop()")
    spans = shell.user_ns["panel"]._sampler.spans
    assert [(span.kind, span.name) for span in spans] == [
        ("cell", "[3]"),
        ("cell", "[4]"),
        ("cell", "[5]"),
    ]
    assert all(span.end is not None for span in spans)


def test_the_extension_marks_cells_for_any_sampler_and_leaves_with_it(shell):
    run(shell, "%load_ext labkit")
    with labkit.sample_memory() as sampler:
        run(shell, "x = 1")
    assert [span.name for span in sampler.spans] == ["[2]"]
    run(shell, "%unload_ext labkit")
    assert shell.events.callbacks["post_run_cell"] == []
    with labkit.sample_memory() as sampler:
        run(shell, "x = 1")
    assert sampler.spans == ()


def test_a_measured_cell_is_marked_once_and_a_block_in_it_too(shell):
    run(shell, "%load_ext labkit\n%memory on")
    with labkit.sample_memory() as sampler:
        run(shell, "%%memory\nimport labkit\nwith labkit.track_memory():\n    pass")
        run(shell, "x = 1")
    assert [span.name for span in sampler.spans] == ["[2]", "block 1", "[3]"]


@pytest.mark.parametrize("minutes", [0, -1, 61, float("nan"), None, "3"])
def test_minutes_that_cannot_be_drawn(minutes):
    with pytest.raises(UsageError, match="invalid minutes"):
        labkit.watch_memory(minutes)


PLAIN = """
import sys, labkit
panel = labkit.watch_memory()
print(panel, sorted({"torch", "IPython", "matplotlib", "ipywidgets"} & sys.modules.keys()))
"""


def test_without_a_notebook_it_prints_once_and_says_what_is_live():
    done = subprocess.run(
        [sys.executable, "-c", PLAIN], capture_output=True, text=True, check=True, timeout=60
    )
    lines = done.stdout.splitlines()
    assert lines[0].startswith("cpu ")
    assert re.fullmatch(r"measured \d{4}-\d\d-\d\d \d\d:\d\d:\d\d .*", lines[-3])
    assert lines[-2:] == ["live in a terminal: labkit memory --watch", "memory panel, stopped []"]
    assert done.stderr == ""


def test_a_full_window_of_eight_gpus_is_drawn_within_one_hundredth_of_a_core():
    """Twice a second: 5 ms of processor time for an update, drawing and all."""
    import statistics
    import time

    rows = [
        snap(*(play_gpu(number * MIB, 9 * GIB, 20 * GIB - number, index=at) for at in range(8)))
        for number in range(400)
    ]
    panel, screen, clock = play_panel(*rows)
    costs = []
    for _ in rows:
        clock.now += 0.5
        began = time.thread_time()
        panel._sampler.take_sample()
        costs.append(time.thread_time() - began)
    assert statistics.median(costs[-40:]) < 0.005
    assert len(screen.html) < 100_000


@pytest.mark.gpu
def test_a_real_gpu_is_on_the_panel():
    import torch

    held = torch.empty(256 * MIB, dtype=torch.uint8, device="cuda")
    screen = Screen()
    Panel(screen).show_once()
    words = Words(screen.html).words
    tensors = next(word for word in words if word.startswith("tensors "))
    assert int(tensors.split()[1].replace(",", "")) >= held.nbytes // MIB
    assert "cuda:0" in words

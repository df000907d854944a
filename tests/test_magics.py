"""``%load_ext labkit`` in a real IPython shell: the magics, the lines, the out-of-memory page."""

from __future__ import annotations

import dataclasses
import gc
import re
import statistics
import subprocess
import sys
import time
import types
import weakref

import pytest
import torch
from IPython.core.interactiveshell import InteractiveShell
from IPython.utils.capture import capture_output
from traitlets.config import Config

import labkit
from labkit.jupyter import extension
from labkit.jupyter.cells import CellLines, format_line, show_line, show_use
from labkit.memory.track.model import BlockSpan, MemoryUse
from tests.fakes.counters import FakeDevice, track
from tests.fakes.nvml import ROOT
from tests.fakes.pages import hold_pages
from tests.test_cli_memory import in_checkout
from tests.test_oom_page import TEXT

MIB = 2**20
LINE = re.compile(
    r"[\d.]+ m?s · process peak [\d.]+ [MG]iB \(\+[\d.]+ MiB\), change [+-][\d.]+ \w+"
)


@pytest.fixture
def shell():
    """A shell of its own, without the history file, in which the extension is loaded."""
    config = Config()
    config.HistoryManager.enabled = False
    config.InteractiveShell.colors = "nocolor"
    InteractiveShell.clear_instance()
    started = InteractiveShell.instance(config=config)
    started.user_ns["hold_pages"] = hold_pages
    started.run_cell("%load_ext labkit", store_history=True)
    yield started
    extension.unload_ipython_extension(started)
    InteractiveShell.clear_instance()


def run(shell, *cells):
    """Runs the cells; what the last one showed: (its result, its text, its rich outputs)."""
    for cell in cells[:-1]:
        shell.run_cell(cell, store_history=True)
    with capture_output() as captured:
        result = shell.run_cell(cells[-1], store_history=True)
    return result, captured.stdout, [one.data for one in captured.outputs]


def test_a_measured_cell_shows_its_figures_as_text_and_html(shell):
    result, _, (shown,) = run(shell, f"%%memory\nheld = hold_pages({64 * MIB})")
    assert result.success
    first, seconds = shown["text/plain"].splitlines()
    assert re.fullmatch(r"process: peak [\d.]+ [MG]iB \(\+6[345]\.\d MiB\), change .*", first)
    assert seconds.startswith("seconds: ")
    assert shown["text/html"].startswith("<table")
    assert ">process</th>" in shown["text/html"]


def test_the_last_value_is_the_cells_value(shell):
    result, shown, _ = run(shell, "%%memory\nx = 20\nx + 1")
    assert result.result == 21
    assert shown.startswith("Out[2]: 21")
    assert shell.user_ns["Out"][2] == shell.user_ns["x"] + 1 == 21
    assert run(shell, "%%memory\nx + 1;")[1] == ""
    assert run(shell, "%%memory\ny = 3\nif y: y")[0].result is None


def test_a_cell_in_a_cell_and_other_magics(shell):
    result, shown, _ = run(shell, "%%memory\nfiles = !echo word\nz = 4\n%time z + 1")
    assert result.success
    assert "Out[2]: 5" in shown
    assert shell.user_ns["files"] == ["word"]
    result, shown, outputs = run(shell, "%%time\n%%memory\nz = 6\nz")
    assert (result.result, len(outputs)) == (6, 1)


def test_an_exception_passes_through_as_it_is(shell):
    shell.user_ns["error"] = error = ValueError("mine")
    cell = "%%memory\ndef fail():\n    raise error\n\nfail()"
    result, shown, outputs = run(shell, cell)
    assert result.error_in_exec is error
    assert len(outputs) == 1
    assert "seconds: " in outputs[0]["text/plain"]
    assert shown.rstrip().endswith("ValueError: mine")
    # The lines have the notebook's numbers, and none of labkit's own are among them.
    assert "----> 5 fail()" in shown
    assert "In[2], line 3" in shown
    assert "labkit" not in shown


@pytest.mark.parametrize("name", ["KeyboardInterrupt", "SystemExit"])
def test_an_interruption_passes_through(shell, name):
    if name == "SystemExit":
        with pytest.warns(UserWarning, match="To exit"):
            result, _, outputs = run(shell, f"%%memory\nraise {name}")
    else:
        result, _, outputs = run(shell, f"%%memory\nraise {name}")
    assert type(result.error_in_exec).__name__ == name
    assert len(outputs) == 1


def test_wrong_syntax_is_told_as_such(shell):
    result, _, outputs = run(shell, "%%memory\nx = = 1")
    assert isinstance(result.error_in_exec, SyntaxError)
    assert outputs == []


def test_a_cell_that_awaits_is_refused_with_the_way_out(shell, capsys):
    result, _, outputs = run(shell, "import asyncio", "%%memory\nawait asyncio.sleep(0)")
    assert type(result.error_in_exec).__name__ == "UsageError"
    assert "%memory on" in str(result.error_in_exec)
    assert outputs == []


@pytest.mark.parametrize("cell", ["%memory of", "%%memory on\n1"], ids=["line", "cell"])
def test_a_use_that_there_is_not(shell, cell):
    result, _, _ = run(shell, cell)
    assert type(result.error_in_exec).__name__ == "UsageError"
    assert "%memory on or %memory off" in str(result.error_in_exec)


def test_the_balance(shell):
    result, _, (shown,) = run(shell, "%memory")
    assert result.result is None
    # Where this process holds all that is not free, there is no rest.
    assert re.search(r"· free +[\d,]+ MiB\n +total +[\d,]+ MiB", shown["text/plain"])
    assert "<svg" in shown["text/html"]


def test_tracked_blocks_in_a_measured_cell_are_right(shell):
    cell = (
        "%%memory\n"
        "before = hold_pages(96 * 2**20); del before\n"
        "with labkit.track_memory('cpu') as inner:\n"
        "    held = hold_pages(32 * 2**20); del held\n"
    )
    _, _, (shown,) = run(shell, "import labkit", cell)
    assert 31 * MIB < shell.user_ns["inner"].use.spans[0].added_bytes < 34 * MIB
    assert re.search(r"\(\+9[5-8]\.\d MiB\)", shown["text/plain"])


def test_a_measured_cell_in_a_tracked_block(shell):
    inner = f"%%memory\nheld = hold_pages({96 * MIB}); del held"
    run(
        shell,
        "import labkit",
        f"with labkit.track_memory('cpu') as outer: get_ipython().run_cell({inner!r})",
    )
    assert 95 * MIB < shell.user_ns["outer"].use.spans[0].added_bytes < 99 * MIB


def test_a_line_under_every_cell_that_touches_memory(shell):
    _, _, outputs = run(shell, "%memory on", f"held = hold_pages({64 * MIB})")
    assert LINE.fullmatch(outputs[0]["text/plain"])
    assert outputs[0]["text/html"] == (
        f'<div style="font-size:85%;opacity:0.75">{outputs[0]["text/plain"]}</div>'
    )
    # The first cell of all can stir the process itself.
    assert run(shell, "1 + 1", "1 + 1")[2] == []
    assert run(shell, "")[2] == []
    assert run(shell, "%memory off")[2] == []
    assert run(shell, f"more = hold_pages({64 * MIB})")[2] == []


def test_the_line_comes_after_an_error_too(shell):
    result, _, outputs = run(shell, "%memory on", f"held = hold_pages({64 * MIB}); 1/0")
    assert isinstance(result.error_in_exec, ZeroDivisionError)
    assert LINE.fullmatch(outputs[0]["text/plain"])


def test_a_cell_that_awaits_gets_its_line(shell):
    run(shell, "%memory on", "import asyncio")
    cell = f"await asyncio.sleep(0)\nheld = hold_pages({64 * MIB})"
    assert LINE.fullmatch(run(shell, cell)[2][0]["text/plain"])


def test_a_measured_cell_gets_no_line_as_well(shell):
    _, _, outputs = run(shell, "%memory on", f"%%memory\nheld = hold_pages({64 * MIB})")
    assert len(outputs) == 1
    assert "seconds: " in outputs[0]["text/plain"]


def test_a_cell_within_a_cell_gets_no_line_of_its_own(shell):
    cell = f"get_ipython().run_cell('held = hold_pages({64 * MIB})');"
    assert len(run(shell, "%memory on", cell)[2]) == 1


class Events:
    """IPython's events, fired by the test."""

    def __init__(self):
        self.registered = {"pre_run_cell": [], "post_run_cell": []}

    def register(self, name, function):
        self.registered[name].append(function)

    def unregister(self, name, function):
        self.registered[name].remove(function)

    def begin(self, info):
        for function in self.registered["pre_run_cell"]:
            function(info)

    def end(self, info):
        for function in self.registered["post_run_cell"]:
            function(types.SimpleNamespace(info=info))


def cell(text):
    return types.SimpleNamespace(raw_cell=text)


def play(gpu):
    shown, events = [], Events()
    lines = CellLines(events, track(gpu), shown.append)
    lines.turn_on()
    return lines, events, shown


def test_the_exact_figures_of_nested_cells():
    gpu = FakeDevice()
    _, events, shown = play(gpu)
    outer, inner = cell("outer"), cell("inner")
    events.begin(outer)
    gpu.take(900)
    gpu.take(-900)
    events.begin(inner)
    gpu.take(50)
    events.end(inner)
    assert shown == []
    events.end(outer)
    assert [use.spans for use in shown] == [(BlockSpan("cuda:0", 0, 900, 50),)]


def test_ends_and_beginnings_that_have_no_partner():
    gpu = FakeDevice()
    _, events, shown = play(gpu)
    events.end(cell("the one that turned it on"))
    events.begin(cell("outer"))
    events.begin(cell("never ended"))
    gpu.take(5)
    events.end(cell("outer"))  # told anew, as IPython does after an interruption
    assert [use.spans for use in shown] == [(BlockSpan("cuda:0", 0, 5, 5),)]
    events.begin(cell("next"))
    events.end(cell("next"))
    assert len(shown) == 2


def test_turning_it_off_twice_and_within_a_cell():
    gpu = FakeDevice()
    lines, events, shown = play(gpu)
    lines.turn_on()
    assert len(events.registered["pre_run_cell"]) == 1
    events.begin(cell("off"))
    lines.turn_off()
    lines.turn_off()
    events.end(cell("off"))
    assert (shown, events.registered) == ([], {"pre_run_cell": [], "post_run_cell": []})


def test_the_line_as_text():
    moved = BlockSpan("cuda:0", 1024 * MIB, 3072 * MIB, 1536 * MIB)
    still = BlockSpan("cuda:1", 7, 7, 7)
    use = MemoryUse(0.05, (moved, still, BlockSpan("process", 0, MIB, -MIB)))
    assert format_line(use) == "50 ms · cuda:0 peak 3.0 GiB (+2.0 GiB), change +512.0 MiB"
    assert format_line(dataclasses.replace(use, spans=(still,))) is None
    assert format_line(dataclasses.replace(use, spans=())) is None
    unknown = BlockSpan("process", 0, None, -2 * MIB)
    assert format_line(dataclasses.replace(use, spans=(unknown,))) == (
        "50 ms · process peak not measured, change -2.0 MiB"
    )


def test_a_terminal_dims_the_line(shell, monkeypatch):
    use = MemoryUse(1.0, (BlockSpan("cuda:0", 0, MIB, 0),))

    def show():
        with capture_output() as captured:
            monkeypatch.setattr(sys.stdout, "isatty", lambda: True, raising=False)
            show_line(use)
        return captured.outputs[0].data["text/plain"]

    monkeypatch.delenv("NO_COLOR", raising=False)
    assert show() == "\x1b[2m1 s · cuda:0 peak 1.0 MiB (+1.0 MiB), change +0 B\x1b[0m"
    monkeypatch.setenv("NO_COLOR", "1")
    assert show() == "1 s · cuda:0 peak 1.0 MiB (+1.0 MiB), change +0 B"


def test_nothing_measured_is_said(shell):
    with capture_output() as captured:
        show_use(MemoryUse(1.0, ()))
    assert captured.outputs[0].data["text/plain"] == "memory: not measured\nseconds: 1 s"
    assert ">not measured</td>" in captured.outputs[0].data["text/html"]


def test_a_line_costs_less_than_5_ms_a_cell(shell):
    def time_cell():
        started = time.perf_counter()
        shell.run_cell("a = 1")
        return time.perf_counter() - started

    # In turns, so that what else this machine does meanwhile falls on both.
    with_line, without = [], []
    for _ in range(25):
        without.append(time_cell())
        shell.run_line_magic("memory", "on")
        with_line.append(time_cell())
        shell.run_line_magic("memory", "off")
    assert statistics.median(with_line) - statistics.median(without) < 0.005


def test_loading_twice_unloading_and_loading_anew(shell):
    labkit.load_ipython_extension(shell)
    assert len(shell.events.callbacks["post_run_cell"]) == 2
    run(shell, "%memory on", "%reload_ext labkit")
    assert len(shell.events.callbacks["post_run_cell"]) == 2
    assert run(shell, f"held = hold_pages({64 * MIB})")[2] == []
    run(shell, "%unload_ext labkit")
    assert shell.events.callbacks["post_run_cell"] == []
    assert shell.find_line_magic("memory") is shell.find_cell_magic("memory") is None


@pytest.mark.slow
def test_out_of_memory_is_followed_by_its_page(shell):
    shell.user_ns.update(torch=torch, text=TEXT)
    result, _, outputs = run(shell, "raise torch.OutOfMemoryError(text)")
    assert isinstance(result.error_in_exec, torch.OutOfMemoryError)
    assert outputs[0]["text/plain"].startswith(
        "out of memory on cuda:0\n  asked for                             30.0 GiB\n"
    )
    assert outputs[0]["text/html"].startswith('<div class="labkit-oom"')
    # In a measured cell too, and after the error was wrapped.
    wrapped = "try: raise torch.OutOfMemoryError(text)\nexcept RuntimeError as e: raise ValueError"
    _, _, (figures, page) = run(shell, f"%%memory\n{wrapped}")
    assert "seconds: " in figures["text/plain"]
    assert page["text/plain"].startswith("out of memory on cuda:0\n")
    assert run(shell, "1/0")[2] == run(shell, "1")[2] == []


def test_the_page_is_not_in_the_cells_figures(shell):
    shell.user_ns.update(torch=torch, text=TEXT)
    cell = f"held = hold_pages({64 * MIB}); raise torch.OutOfMemoryError(text)"
    _, _, (line, page) = run(shell, "%memory on", "%memory on", cell)
    assert LINE.fullmatch(line["text/plain"])
    assert page["text/plain"].startswith("out of memory on cuda:0\n")


@pytest.mark.slow
def test_another_error_frees_what_the_traceback_held(shell):
    """The measure that the page names."""
    watched = []

    def fail():
        hidden = torch.ones(1000)
        watched.append(weakref.ref(hidden))
        raise torch.OutOfMemoryError(TEXT)

    shell.user_ns["fail"] = fail
    run(shell, "fail()")
    gc.collect()
    assert watched[0]() is not None
    run(shell, "1/0")
    gc.collect()
    assert watched[0]() is None


def test_deleting_an_output_frees_it_wherever_ipython_keeps_it(shell):
    """The measure that the page names."""
    shell.user_ns["torch"] = torch
    run(shell, "torch.ones(1000)")
    watched = weakref.ref(shell.user_ns["Out"][2])
    run(shell, "%xdel _2")
    gc.collect()
    assert watched() is None


IMPORTS = """
import sys
from IPython.core.interactiveshell import InteractiveShell
shell = InteractiveShell.instance()
for cell in (
    "%load_ext labkit",
    "%memory on",
    "%memory",
    "%%memory\\nheld = bytearray(2**26)",
    "raise RuntimeError('CUDA out of memory. Tried to allocate 2.00 GiB. GPU 0 has')",
):
    shell.run_cell(cell)
loaded = {name.partition(".")[0] for name in sys.modules}
print(*sorted(loaded & {"torch", "numpy", "matplotlib", "ipywidgets"}), file=sys.stderr)
"""


def test_nothing_is_imported_that_the_user_has_not_imported(tmp_path):
    done = subprocess.run(
        [sys.executable, "-c", IMPORTS],
        capture_output=True,
        text=True,
        check=True,
        timeout=120,
        env={"PATH": "", "HOME": str(tmp_path), "PYTHONPATH": str(ROOT)},
    )
    assert done.stderr.strip() == ""
    assert "out of memory on cuda:0" in done.stdout
    assert "Error in callback" not in done.stdout


@in_checkout
def test_the_documentations_cells_run(shell):
    text = (ROOT / "docs/memory.md").read_text(encoding="utf-8")
    blocks = re.findall(r"```ipython\n(.*?)```", text, re.DOTALL)
    assert blocks == ["%load_ext labkit\n%memory on\n"]
    result, _, _ = run(shell, blocks[0])
    assert result.success
    assert "\n50 ms · cuda:0 peak 3.0 GiB (+2.0 GiB), change +512.0 MiB\n" in text


@pytest.mark.gpu
def test_a_real_cell_and_a_real_shortage(shell):
    run(shell, "import torch", "warm = torch.zeros(1, device='cuda:0')")
    _, _, (shown,) = run(
        shell, "%%memory\nheld = torch.empty(2**26, dtype=torch.uint8, device='cuda:0')\ndel held"
    )
    peak = r"cuda:0: peak [\d.]+ [MG]iB \(\+64\.0 MiB\), change \+0 B\n"
    assert re.match(peak, shown["text/plain"])
    run(shell, "kept = torch.empty(2**26, dtype=torch.uint8, device='cuda:0')")
    _, _, (page,) = run(shell, "torch.empty(2**42, dtype=torch.uint8, device='cuda:0')")
    assert "  asked for                              4.0 TiB\n" in page["text/plain"]
    assert "(67108864,) uint8  kept\n" in page["text/plain"]

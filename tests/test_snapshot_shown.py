"""A snapshot as people see it: the bar, figures that add up, the picture, the name it is under."""

from __future__ import annotations

import re
import subprocess
import sys
import xml.etree.ElementTree as ET

import pytest
from hypothesis import given
from hypothesis import strategies as st

import labkit
from labkit.memory.balance.model import (
    Balance,
    DeviceProcess,
    Snapshot,
    Term,
    ThisProcess,
    divide_bar,
    round_together,
)
from labkit.memory.balance.view import format_snapshot, render_balance, render_snapshot
from tests.snapshots import assert_snapshot

GIB, MIB = 2**30, 2**20
ME = 4321


@given(st.lists(st.integers(-(10**12), 10**12), min_size=1, max_size=9))
def test_rounded_figures_add_up_to_the_rounded_sum(counts):
    shares = round_together(counts)
    assert sum(shares) == (sum(counts) + MIB // 2) // MIB
    assert all(abs(share * MIB - count) < MIB for share, count in zip(shares, counts, strict=True))


@given(
    st.lists(st.one_of(st.none(), st.integers(-(2**40), 2**40)), max_size=9), st.integers(9, 640)
)
def test_a_bar_is_full_and_shows_every_term_that_is_not_nothing(counts, width):
    terms = [Term(str(place), "", count) for place, count in enumerate(counts)]
    cells = divide_bar(terms, width)
    shown = [term.key for term in terms if term.held_bytes and term.held_bytes > 0]
    assert [key for key, _ in cells] == shown
    assert all(count >= 1 for _, count in cells)
    assert sum(count for _, count in cells) == (width if shown else 0)


FULL = Balance(
    "cuda",
    0,
    "cuda:0",
    "NVIDIA <H200>",
    "GPU-0a1b",
    total_bytes=64 * GIB,
    free_bytes=16 * GIB,
    driver_reserved_bytes=GIB,
    this_process=ThisProcess(24 * GIB, 7 * GIB, GIB, 32 * GIB),
    other_processes_bytes=14 * GIB,
    processes=(
        DeviceProcess(ME, "python train.py --with very long words", 32 * GIB),
        DeviceProcess(99, None, 14 * GIB),
    ),
)
CPU = Balance(
    "cpu",
    None,
    "cpu",
    "AMD EPYC 9654",
    total_bytes=4 * GIB,
    free_bytes=2 * GIB,
    this_process=ThisProcess(0, 0, GIB, GIB),
    other_processes_bytes=GIB,
    shared=True,
    machine_bytes=16 * GIB,
    limit_bytes=4 * GIB,
)
UNSURE = FULL._replace(
    this_process=ThisProcess(24 * GIB, 7 * GIB),
    driver_reserved_bytes=None,
    other_processes_bytes=None,
    processes=None,
    host_ids=True,
)
SHOWN = Snapshot((FULL, CPU), ("a remark",))


def test_the_screen_of_known_and_unknown_terms():
    unsure = format_snapshot(Snapshot((UNSURE,)), plain=True)
    assert_snapshot("memory", f"{SHOWN!r}\n\n---\n\n{unsure}\n")


def test_names_cannot_act_on_the_terminal():
    process = DeviceProcess(7, "a\x1b[2Jb\u202e")
    hostile = FULL._replace(name="H200\x1b]0;title\x07", processes=(process,))
    for color in (False, True):
        shown = format_snapshot(Snapshot((hostile,), ("\x1b[2J",)), color=color)
        assert not re.search(r"\x1b(?!\[\d+m)|\x07|\u202e", shown)


def test_color_changes_nothing_but_color():
    colored = format_snapshot(SHOWN, color=True)
    assert "\x1b[94m██████████████████████\x1b[0m\x1b[36m▓" in colored
    assert re.sub(r"\x1b\[\d+m", "", colored) == repr(SHOWN)


def test_the_figures_on_the_screen_add_up():
    odd = FULL._replace(total_bytes=64 * GIB + 5, free_bytes=16 * GIB - 700_000)
    figures = [
        int(text.replace(",", ""))
        for text in re.findall(
            r"([\d,]+) MiB", format_snapshot(Snapshot((odd,))).split("2 proc")[0]
        )
    ]
    assert sum(figures[:-1]) == figures[-1]


def test_the_picture_is_drawn_from_the_same_figures():
    drawn = ET.fromstring(render_balance(FULL))
    space = "{http://www.w3.org/2000/svg}"
    words = [text.text for text in drawn.findall(f"{space}text")]
    assert words[0] == "cuda:0  NVIDIA <H200>"
    assert words[1:5] == ["tensors", "24,576 MiB", "cached by the allocator", "7,168 MiB"]
    assert words[-2:] == ["total", "65,536 MiB"]
    bars = [one for one in drawn.findall(f"{space}rect") if one.find(f"{space}title") is not None]
    assert sum(int(one.get("width", "")) for one in bars) == 640
    assert bars[0].findtext(f"{space}title") == "tensors: 24,576 MiB"


def test_the_pictures_text_says_every_figure():
    label = ET.fromstring(render_balance(CPU)).get("aria-label")
    assert label == (
        "memory of cpu  AMD EPYC 9654: this process 1,024 MiB, rest of the container 1,024 MiB,"
        " free 2,048 MiB, total 4,096 MiB"
    )


def test_the_picture_takes_the_readers_colours():
    in_a_file = render_balance(FULL, standalone=True)
    in_a_notebook = render_snapshot(Snapshot((FULL,)))
    assert 'fill="currentColor"' in in_a_file
    assert "@media (prefers-color-scheme:dark)" in in_a_file
    # A notebook's theme is its own, whatever the browser prefers.
    assert "prefers-color-scheme" not in in_a_notebook
    assert "color:var(--jp-content-font-color1,var(--vscode-foreground," in in_a_notebook


def test_a_gpu_in_trouble_has_no_bar_and_says_why():
    lost = Balance("cuda", nvml_index=3, uuid="GPU-0a1b", trouble="the GPU is <lost>")
    assert repr(Snapshot((lost,))) == ("gpu 3   unknown  GPU-0a1b\n        the GPU is <lost>")
    html = render_snapshot(Snapshot((lost,)))
    assert "<rect" not in html
    assert "<div>the GPU is &lt;lost&gt;</div>" in html


def test_the_html_names_the_processes_and_escapes_what_it_shows():
    html = Snapshot((FULL._replace(host_ids=True),), ("<b>",))._repr_html_()
    assert "<div>2 processes, ids of the host</div>" in html
    assert "<div>99: 14,336 MiB</div>" in html
    assert "<p>note: &lt;b&gt;</p>" in html
    ET.fromstring(html)


def test_ipython_shows_the_text_and_not_a_tuple():
    formatters = pytest.importorskip("IPython.core.formatters")
    assert formatters.PlainTextFormatter()(SHOWN) == repr(SHOWN)
    assert formatters.HTMLFormatter()(Snapshot((CPU,))).startswith('<div class="labkit-memory"')


CALLS = {
    "the name first": "import labkit\nlabkit.memory()\nimport labkit.memory.balance.read\n",
    "the package first": "import labkit.memory.balance.read\nimport labkit\n",
    "imported by name": "from labkit import memory\nassert memory() is not None\nimport labkit\n",
    "the tracker first": "from labkit import track_memory\nimport labkit\n",
}


@pytest.mark.parametrize("before", CALLS.values(), ids=CALLS.keys())
def test_labkit_memory_is_function_and_package_in_any_order(before):
    after = (
        "import sys\nassert labkit.memory().balances[-1].kind == 'cpu'\n"
        "assert labkit.memory is sys.modules['labkit.memory']\n"
        "from labkit.memory.balance.model import Snapshot\n"
        "assert isinstance(labkit.memory(), Snapshot)\n"
        "assert 'torch' not in sys.modules\n"
    )
    subprocess.run([sys.executable, "-c", before + after], check=True, timeout=60)


def test_the_exports_are_there():
    assert {"memory", "track_memory"} <= set(labkit.__all__)
    assert labkit.track_memory.__module__ == "labkit.memory.track.tracker"

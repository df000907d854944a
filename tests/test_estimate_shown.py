"""An estimate as people see it: the verdict, the terms, the picture."""

from __future__ import annotations

import dataclasses
import re
import xml.etree.ElementTree as ET

import pytest

from labkit.memory.estimate.model import Estimate, EstimateObstacle, Target
from labkit.memory.estimate.view import format_estimate, list_terms
from labkit.memory.track.frames import Frame
from labkit.memory.track.model import CATEGORIES, LineUse
from tests.snapshots import assert_snapshot

MIB, GIB = 2**20, 2**30
SIZES = (2 * GIB, 2 * GIB, 4 * GIB, 0, 7 * GIB, GIB, 0)
FULL = Estimate(
    name="make_step",
    target=Target("24 GiB", "cuda", 24 * GIB),
    peak_bytes=16 * GIB,
    kinds=dict(zip(CATEGORIES, SIZES, strict=True)),
    lines=(
        LineUse(Frame("/home/me/train.py", 12, "forward"), 7 * GIB, 40),
        LineUse(None, 2 * GIB, 9),
    ),
    batch=32,
    reserved_bytes=17 * GIB,
    context_bytes=(300 * MIB, 800 * MIB),
    notes=("a <note>",),
)


def test_the_screen():
    assert repr(FULL) == str(FULL)
    assert_snapshot("estimate", repr(FULL))


def test_the_bar_without_more_than_ascii():
    drawn = format_estimate(dataclasses.replace(FULL, batch=None), plain=True)
    assert drawn.isascii()
    assert drawn.splitlines()[0] == "make_step"
    assert re.fullmatch(r" {8}#+=+%+/+:+-+\++\.+", drawn.splitlines()[1])


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        pytest.param(
            {"target": Target("8 GiB", "cuda", 8 * GIB), "largest_batch": 11},
            ["does not fit 8 GiB: 8.3 GiB", "largest batch that fits: 11"],
            id="too large",
        ),
        pytest.param(
            {"target": Target("8 GiB", "cuda", 8 * GIB), "largest_batch": 0},
            ["does not fit 8 GiB: 8.3 GiB", "not even a batch of 1"],
            id="hopeless",
        ),
        pytest.param(
            {"target": Target("17 GiB", "cuda", 17 * GIB)},
            ["close: whether it fits 17 GiB"],
            id="close",
        ),
        pytest.param(
            {"obstacle": EstimateObstacle("aten.nonzero", "has no end", Frame("a/b.py", 3, "f"))},
            ["a lower bound: aten.nonzero at b.py:3 has no end", "unknown whether"],
            id="a bound",
        ),
        pytest.param(
            {"target": Target("cuda:0", "cuda", 24 * GIB, 3 * GIB)},
            ["fits cuda:0, with 6.2 GiB", "hold 3.0 GiB of cuda:0"],
            id="others",
        ),
        pytest.param({"target": Target("cpu", "cpu")}, ["no device was named"], id="nothing named"),
    ],
)
def test_the_verdict(changes, expected):
    said = repr(dataclasses.replace(FULL, **changes)).split("\n\n")[1].splitlines()
    assert len(said) == len(expected)
    assert all(words in line for words, line in zip(expected, said, strict=True))


def test_what_does_not_fit_has_nothing_free():
    terms = list_terms(dataclasses.replace(FULL, target=Target("8 GiB", "cuda", 8 * GIB)))
    assert [term.key for term in terms][-2:] == ["cached", "context"]


def test_an_inference_on_the_cpu_has_no_terms_of_cuda():
    estimate = dataclasses.replace(
        FULL, target=Target("cpu", "cpu"), reserved_bytes=None, context_bytes=None, inference=True
    )
    assert repr(estimate).startswith("make_step, batch 32, inference\n")
    held = [name for name, count in FULL.kinds.items() if count]
    assert [term.key for term in list_terms(estimate)] == held


def test_an_estimate_of_nothing():
    nothing = Estimate("idle", Target("cpu", "cpu"), 0, dict.fromkeys(CATEGORIES, 0))
    assert repr(nothing).splitlines()[0] == "idle"
    ET.fromstring(nothing._repr_html_())


def test_the_html_is_whole_and_escaped():
    drawn = ET.fromstring(FULL._repr_html_())
    texts = [one for one in drawn.itertext() if one.strip()]
    assert "fits 24 GiB, with 6.2 GiB to spare" in texts
    assert "note: a <note>" in texts
    assert "activations: 7.0 GiB" in texts


def test_the_pictures_bar_is_as_wide_as_the_picture():
    space = "{http://www.w3.org/2000/svg}"
    drawn = ET.fromstring(FULL._repr_html_()).find(f"{space}svg")
    cells = [one for one in drawn.findall(f"{space}rect") if one.find(f"{space}title") is not None]
    assert sum(int(one.get("width")) for one in cells) == 640


def test_ipython_shows_the_text_and_not_a_tuple():
    formatters = pytest.importorskip("IPython.core.formatters")
    assert formatters.PlainTextFormatter()(FULL) == repr(FULL)
    assert formatters.HTMLFormatter()(FULL).startswith('<div class="labkit-estimate"')


def test_shared_terms_have_the_colors_of_the_balance():
    from labkit.memory.balance import view as balance_view
    from labkit.memory.estimate import view

    shared = ("cached", "context", "free")
    assert {key: view.COLORS[key] for key in shared} == {
        key: balance_view.PICTURE_COLORS[key] for key in shared
    }
    told_apart = [colour for colour in view.COLORS.values() if colour != "none"]
    assert len(set(told_apart)) == len(told_apart)

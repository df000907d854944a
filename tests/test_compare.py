"""Two runs side by side: what is matched, what has a ratio, and what people read."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from labkit.notebooks.compare import (
    Pair,
    choose_cells,
    compare_runs,
    describe_comparison,
    find_median,
    format_comparison,
    match_cells,
)
from labkit.notebooks.result import CellResult, SavedRun, parse_run
from tests.fakes.runs import MIB, make_cell, make_notebook, make_result
from tests.snapshots import assert_snapshot


def compare(a, b):
    paths = Path("runs/a"), Path("runs/b")
    return compare_runs(
        *(SavedRun(path, parse_run(run, path)) for path, run in zip(paths, (a, b), strict=True))
    )


def memory(peak_bytes):
    return {"before_bytes": MIB, "peak_bytes": peak_bytes, "after_bytes": MIB}


def on_cuda(peak_bytes):
    return [{"device": "cuda:0", "before_bytes": 0, "peak_bytes": peak_bytes, "after_bytes": 0}]


CPU = make_result(
    make_notebook(
        seconds=8.0,
        startup_seconds=0.5,
        cells=[
            make_cell(1, seconds=4.0, first_line="import torch", memory=memory(400 * MIB)),
            make_cell(3, seconds=2.0, first_line="y = x @ x", memory=memory(800 * MIB)),
            make_cell(5, seconds=0.01, first_line="print(y)", memory=memory(800 * MIB)),
            make_cell(7, seconds=0.01, first_line="old()"),
        ],
        claims=[
            {"statement": "a tensor can live on a GPU", "held": None, "skipped": "needs cuda"},
            {"statement": "it adds", "held": True, "skipped": None},
            {"statement": "gone", "held": True, "skipped": None},
        ],
    ),
    make_notebook("autograd", seconds=None, cells=[]),
    make_notebook("slow"),
)
GPU = make_result(
    make_notebook(
        status="failed",
        seconds=4.0,
        startup_seconds=0.5,
        cells=[
            make_cell(1, seconds=3.0, first_line="import torch", memory=memory(600 * MIB)),
            make_cell(
                4,
                seconds=0.5,
                first_line="y = x @ x",
                memory=memory(600 * MIB),
                cuda=on_cuda(256 * MIB),
            ),
            make_cell(6, seconds=0.02, first_line="print(y)", memory=None),
            make_cell(8, "not_run", seconds=None, first_line="new()", memory=None),
        ],
        claims=[
            {"statement": "a tensor can live on a GPU", "held": True, "skipped": None},
            {"statement": "it adds", "held": False, "skipped": None},
        ],
    ),
    make_notebook("autograd", seconds=2.0, cells=[]),
    make_notebook("new"),
    status="failed",
    started_at="2026-11-24T07:00:00+00:00",
    environment={"device": "cuda:0", "torch": "2.13.0+cu130"},
)


def test_the_comparison_in_words_is_this():
    assert_snapshot("run_comparison", format_comparison(compare(CPU, GPU)) + "\n")


@pytest.mark.parametrize(
    ("a", "b", "ratio"),
    [(2, 1, 0.5), (4.0, 6.0, 1.5), (None, 1, None), (1, None, None), (0, 1, None), (1, 0, 0.0)],
    ids=["half", "more", "A unknown", "B unknown", "A is 0", "B is 0"],
)
def test_a_ratio_is_b_over_a_and_never_of_an_unknown(a, b, ratio):
    assert Pair(a, b).ratio == ratio


def test_the_object_has_every_figure_with_its_ratio_and_null_for_unknown():
    described = json.loads(json.dumps(describe_comparison(compare(CPU, GPU))))
    assert described["a"]["folder"] == "runs/a"
    assert described["b"]["device"] == "cuda:0"
    assert (described["only_in_a"], described["only_in_b"]) == (["slow"], ["new"])
    tensors, autograd = described["notebooks"]
    assert tensors["name"] == "tensors"
    assert tensors["status"] == {"a": "passed", "b": "failed"}
    assert tensors["seconds"] == {"a": 8.0, "b": 4.0, "ratio": 0.5}
    assert tensors["peak_bytes"] == {"a": 800 * MIB, "b": 600 * MIB, "ratio": 0.75}
    assert tensors["cuda_peak_bytes"] == {"a": None, "b": 256 * MIB, "ratio": None}
    assert tensors["median_cell_seconds"] == {"a": 2.0, "b": 0.5, "ratio": 0.25}
    assert tensors["median_seconds_ratio"] == 0.75
    assert tensors["median_peak_ratio"] == 1.125
    assert tensors["claims_changed"][1] == {"statement": "it adds", "a": "held", "b": "failed"}
    assert tensors["only_in_a"] == [{"index": 7, "first_line": "old()"}]
    assert tensors["only_in_b"] == [{"index": 8, "first_line": "new()"}]
    assert tensors["cells"][1] == {
        "index": {"a": 3, "b": 4},
        "first_line": "y = x @ x",
        "status": {"a": "passed", "b": "passed"},
        "seconds": {"a": 2.0, "b": 0.5, "ratio": 0.25},
        "peak_bytes": {"a": 800 * MIB, "b": 600 * MIB, "ratio": 0.75},
        "cuda_peak_bytes": {"a": None, "b": 256 * MIB, "ratio": None},
    }
    assert autograd["seconds"] == {"a": None, "b": 2.0, "ratio": None}
    assert autograd["median_seconds_ratio"] is None


def make_cells(*lines: str, start: int = 0) -> tuple[CellResult, ...]:
    return tuple(CellResult(start + place, "passed", 1.0, line) for place, line in enumerate(lines))


@pytest.mark.parametrize(
    ("a", "b", "places"),
    [
        (make_cells("x", "y"), make_cells("x", "y"), [(0, 0), (1, 1)]),
        (make_cells("x", "y"), make_cells("new", "x", "y"), [(0, 1), (1, 2)]),
        (make_cells("x", "x", "x"), make_cells("x", "x"), [(0, 0), (1, 1)]),
        (make_cells("x", "x"), make_cells("x", "x", start=7), [(0, 7), (1, 8)]),
        (make_cells("x", "y"), make_cells("y", "x"), [(0, 1), (1, 0)]),
        (make_cells("x"), make_cells("edited"), []),
        ((), make_cells("x"), []),
    ],
    ids=["the same", "one put in", "fewer", "all moved", "swapped", "edited", "empty"],
)
def test_cells_are_matched_by_index_and_first_line_then_by_first_line(a, b, places):
    assert [(pair.a.index, pair.b.index) for pair in match_cells(a, b)] == places


def test_a_run_beside_itself_has_only_ratios_of_one():
    comparison = compare(CPU, CPU)
    described = describe_comparison(comparison)
    for notebook in described["notebooks"]:
        assert notebook["claims_changed"] == notebook["only_in_a"] == notebook["only_in_b"] == []
        assert {cell["seconds"]["ratio"] for cell in notebook["cells"]} <= {1.0}
    text = format_comparison(comparison)
    assert "about the same" in text
    assert "No claim changed." in text
    assert "differs most" not in text


def test_runs_without_a_common_notebook_say_so():
    text = format_comparison(
        compare(make_result(make_notebook("a")), make_result(make_notebook("b")))
    )
    assert "The two runs have no notebook in common." in text
    assert "only in A: a\n\nonly in B: b" in text


def test_a_claim_stated_twice_is_compared_each_time():
    def make(*held):
        claims = [{"statement": "again", "held": one, "skipped": None} for one in held]
        return make_result(make_notebook(claims=claims))

    (pair,) = compare(make(True, True), make(True, False)).notebooks
    assert [(change.a, change.b) for change in pair.claims] == [("held", "failed")]


def test_short_cells_and_equal_ones_are_not_named():
    def make(*seconds):
        cells = [make_cell(place, seconds=one) for place, one in enumerate(seconds)]
        return make_result(make_notebook(cells=cells))

    (pair,) = compare(make(0.001, 1.0, 1.0, None), make(0.04, 1.01, 2.0, 1.0)).notebooks
    assert [chosen.a.index for chosen in choose_cells(pair.cells)] == [2]


def test_medians_leave_unknowns_out():
    assert find_median([1, None, 3]) == 2.0
    assert find_median([None]) is None


def test_escapes_of_a_foreign_result_are_shown_and_not_sent_to_the_terminal():
    evil = "\x1b]0;title\x07"
    cells = [make_cell(0, first_line=evil)]
    claims = [{"statement": evil, "held": None, "skipped": evil}]
    a = make_result(make_notebook(evil, evil, cells=cells, claims=claims), started_at=evil)
    text = format_comparison(compare(a, make_result(make_notebook(evil, cells=[], claims=[]))))
    assert "\x1b" not in text
    assert "\\x1b]0;title" in text

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
from labkit.notebooks.report.comparison import render_comparison, write_comparison
from labkit.notebooks.report.saved import Cell, parse_run
from tests.fakes.runs import MIB, make_cell, make_notebook, make_result
from tests.test_report import Page, assert_opens_offline


def compare(a, b):
    return compare_runs(
        parse_run(a, Path("runs/a/result.json")), parse_run(b, Path("runs/b/result.json"))
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

TEXT = """\
A  runs/a, passed, on cpu, PyTorch 2.13.0+cpu, 23 November 2026, 06:10 UTC
B  runs/b, failed, on cuda:0, PyTorch 2.13.0+cu130, 24 November 2026, 07:00 UTC

For tensors, A took 8 s and B 4 s: B is 2.00 times as fast. \
Of autograd the time of a side is unknown. 3 claims changed.

tensors: A passed, B failed
                        A          B      B/A
  time                8 s        4 s    0.50x
  kernel start     500 ms     500 ms    1.00x
  median cell         2 s     500 ms    0.25x
  peak memory   800.0 MiB  600.0 MiB    0.75x
  peak on CUDA    unknown  256.0 MiB  unknown
  median of the ratios of 3 cells: 0.75x in time and 1.12x in peak memory
  the cells whose time differs most:
    cell 2  y = x @ x     2 s  500 ms  0.25x
    cell 1  import torch  4 s     3 s  0.75x
  claim changed: a tensor can live on a GPU: A skipped: needs cuda, B held
  claim changed: it adds: A held, B failed
  claim changed: gone: A held, B absent
  only in A: cell 4  old()
  only in B: cell 4  new()

autograd: passed
                      A        B      B/A
  time          unknown      2 s  unknown
  kernel start   750 ms   750 ms    1.00x
  peak memory   unknown  unknown  unknown

only in A: slow

only in B: new"""


def test_the_comparison_in_words_is_this():
    assert format_comparison(compare(CPU, GPU)) == TEXT


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


def make_cells(*lines: str, start: int = 0) -> tuple[Cell, ...]:
    return tuple(
        Cell(start + place, place + 1, "passed", 1.0, line) for place, line in enumerate(lines)
    )


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


def test_the_page_has_the_same_figures_and_opens_offline(tmp_path):
    path = write_comparison(tmp_path / "cpu-gpu.html", compare(CPU, GPU))
    page = Page(path.read_text(encoding="utf-8"))
    assert_opens_offline(page)
    assert page.tags.count("h1") == 1
    assert "B is 2.00 times as fast" in page.text
    assert "Only in A: slow" in page.text
    assert "Median of the ratios of 3 cells: 0.75x in time and 1.12x in peak memory." in page.text
    row = "".join(f'<td class="n">{value}</td>' for value in ("8 s", "4 s", "0.50x"))
    assert f'<th scope="row">Time</th>{row}' in page.source
    unknown = '<td class="n">unknown</td><td class="n">256.0 MiB</td>'
    assert f'{unknown}<td class="n"><span class="quiet">unknown</span></td>' in page.source
    assert "Cells only in B" in page.text


def test_hostile_words_stay_words_in_the_page():
    hostile = "<script>alert(1)</script>"
    cells = [make_cell(0, first_line=hostile)]
    claims = [{"statement": hostile, "held": None, "skipped": hostile}]
    a = make_result(make_notebook(hostile, hostile, cells=cells, claims=claims), started_at=hostile)
    b = make_result(make_notebook(hostile, cells=[], claims=[]), make_notebook(hostile * 2))
    page = Page(render_comparison(compare(a, b)))
    assert page.tags.count("script") == 1
    assert_opens_offline(page)


def test_a_page_of_very_many_cells_stays_small():
    cells = [make_cell(index, first_line="é" * 300) for index in range(9000)]
    result = make_result(make_notebook(cells=cells))
    page = render_comparison(compare(result, result))
    assert len(page.encode()) < 3_000_000
    assert "The first 2,000 of 9,000 cells" in page

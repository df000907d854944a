"""What the panel keeps of the last minutes, and what it finds out from the saved notebook."""

from __future__ import annotations

import os
import re

import pytest

from labkit.jupyter.panel import SavedOutput, find_notebook
from labkit.jupyter.panel_view import SeriesTrace, choose_top
from labkit.memory.sample.model import AnnotatedSpan
from tests.fakes.sampling import GIB, MIB


def points_of(svg, colour):
    return re.findall(rf'<path d="M[\d,]+L([\d., ]+)L[\d,]+" fill="{colour}"', svg)


def test_a_trace_forgets_what_is_older_than_its_window():
    trace = SeriesTrace(window_seconds=10)
    for second in range(100):
        count = 1000 if second == 50 else 5 + second % 2
        trace.add(float(second), {"process": count * MIB, "available": 1})
    svg, top = trace.render(99.0)
    (points,) = points_of(svg, "#9a7fd1")
    assert points.split()[0] == "890,6.0"
    assert points.split()[-1] == "990,6.0"
    assert (trace.find_highest(), top) == (6 * MIB, 8 * MIB)


def test_a_level_that_stays_is_kept_as_its_two_ends():
    trace = SeriesTrace(window_seconds=100)
    for second in range(500):
        trace.add(float(second), {"process": (7 if second > 450 else 5) * MIB})
    (points,) = points_of(trace.render(499.0)[0], "#9a7fd1")
    assert points == "0,5.0 4500,5.0 4510,7.0 4990,7.0"


def test_of_samples_too_close_to_be_drawn_the_highest_stays():
    trace = SeriesTrace(window_seconds=3600)
    for number in range(7200):
        count = 900 if number == 5001 else 5 + number % 2
        trace.add(number / 2, {"process": count * MIB})
    (points,) = points_of(trace.render(3600.0)[0], "#9a7fd1")
    assert len(points.split()) <= 361
    assert "25005,900.0" in points


def test_a_trace_breaks_where_nothing_was_measured():
    trace = SeriesTrace(window_seconds=60)
    for second, count in ((0, 1), (1, 2), (2, None), (3, 3), (4, 4), (9, 5)):
        trace.add(float(second), {} if count is None else {"used": count * MIB})
    svg, _ = trace.render(9.0)
    assert points_of(svg, "#e08a2e") == ["0,1.0 10,2.0", "30,3.0 40,4.0", "90,5.0"]


def test_cells_are_bands_where_they_ran():
    trace = SeriesTrace(window_seconds=60)
    trace.add(0.0, {"process": MIB})
    trace.add(60.0, {"process": MIB})
    spans = [
        AnnotatedSpan("cell", "[1]", -20.0, -10.0),
        AnnotatedSpan("cell", "[2]", 6.0, 12.0),
        AnnotatedSpan("cell", "[3]", 54.0, None),
    ]
    svg, _ = trace.render(60.0, spans)
    assert re.findall(r'<rect x="([\d.]+)" y="0" width="([\d.]+)"', svg) == [
        ("60.0", "60.0"),
        ("540.0", "60.0"),
    ]
    assert not trace.is_seen(spans[0], 60.0)


@pytest.mark.parametrize(
    ("count", "top"),
    [
        (0, 1024),
        (700, 800),
        (741 * MIB, GIB),
        (100 * MIB, 150 * MIB),
        (9 * GIB, 10 * GIB),
        (79 * GIB, 100 * GIB),
    ],
)
def test_the_upper_edge_is_a_round_number_above(count, top):
    assert choose_top(count) == top


def write(path, text, at):
    path.write_text(text)
    os.utime(path, ns=(at, at))


def test_an_output_that_was_saved_and_is_no_longer_was_cleared(tmp_path):
    path = tmp_path / "mine.ipynb"
    saved = SavedOutput(path, "labkit-panel-1")
    assert not saved.was_cleared()  # no file yet
    write(path, '{"cells": []}', 1)
    assert not saved.was_cleared()  # not saved with the output so far
    write(path, '{"cells": ["labkit-panel-1"]}', 2)
    assert not saved.was_cleared()
    write(path, '{"cells": [', 3)
    assert not saved.was_cleared()  # half of it is written
    write(path, '{"cells": []}\n', 4)
    assert saved.was_cleared()


def test_a_notebook_is_read_once_for_each_time_it_is_saved(tmp_path, monkeypatch):
    path = tmp_path / "mine.ipynb"
    write(path, '{"labkit-panel-1": 1}', 1)
    saved = SavedOutput(path, "labkit-panel-1")
    saved.was_cleared()
    write(path, "{}", 1)
    assert not saved.was_cleared()
    write(path, "{}", 2)
    assert saved.was_cleared()


@pytest.mark.parametrize(
    ("names", "environment", "found"),
    [
        ({}, {}, None),
        ({}, {"JPY_SESSION_NAME": "/home/me/a.ipynb"}, "/home/me/a.ipynb"),
        ({}, {"JPY_SESSION_NAME": "console-1"}, None),
        ({"__vsc_ipynb_file__": "/b.ipynb"}, {"JPY_SESSION_NAME": "/a.ipynb"}, "/b.ipynb"),
        ({"__vsc_ipynb_file__": 3}, {}, None),
    ],
    ids=["nothing", "jupyter", "a console", "VS Code", "no text"],
)
def test_which_file_the_notebook_is(names, environment, found):
    path = find_notebook(names, environment)
    assert (path and str(path)) == found
    assert SavedOutput(None, "x").was_cleared() is False

from __future__ import annotations

import sys
import xml.etree.ElementTree as ET
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from labkit.errors import UsageError
from labkit.lessons.pictures import draw_shapes
from labkit.lessons.pictures.shapes import (
    describe_picture,
    format_cell,
    read_picture,
    render_pictures,
)

SVG = "{http://www.w3.org/2000/svg}"


def render(tensor, **options):
    html = render_pictures([read_picture(tensor, **options)])
    return ET.fromstring(html)


def texts(tree):
    return [text.text for text in tree.iter(f"{SVG}text")]


def dashed(tree, tag):
    return sum("dasharray" in one.get("style") for one in tree.iter(f"{SVG}{tag}"))


@pytest.mark.parametrize(
    ("tensor", "cells", "edges", "labels"),
    [
        pytest.param(torch.tensor(5), 1, 0, [], id="scalar"),
        pytest.param(torch.ones(3), 3, 0, ["dim 0: 3"], id="vector"),
        pytest.param(torch.ones(2, 3), 6, 0, ["dim 0: 2", "dim 1: 3"], id="matrix"),
        pytest.param(
            torch.ones(3, 2, 4), 8, 2, ["dim 0: 3", "dim 1: 2", "dim 2: 4"], id="three-dimensions"
        ),
        pytest.param(
            torch.ones(2, 3, 2, 4),
            16,
            4,
            ["dim 0: 2", "dim 1: 3", "dim 2: 2", "dim 3: 4"],
            id="four-dimensions",
        ),
        pytest.param(torch.ones(100), 8, 0, ["dim 0: 100, 8 drawn"], id="long"),
        pytest.param(
            torch.ones(1, 1, 1).expand(64, 3, 9, 4),
            60,
            6,
            ["dim 0: 64, 3 drawn", "dim 1: 3", "dim 2: 9, 5 drawn", "dim 3: 4"],
            id="batch",
        ),
        pytest.param(torch.ones(0, 3), 1, 0, ["empty", "dim 0: 0", "dim 1: 3"], id="empty"),
        pytest.param(np.ones((2, 2)), 4, 0, ["dim 0: 2", "dim 1: 2"], id="numpy"),
    ],
)
def test_a_picture_has_a_cell_a_value_and_a_label_a_dimension(tensor, cells, edges, labels):
    tree = render(tensor)
    assert len(list(tree.iter(f"{SVG}rect"))) == cells
    # Of the sheets behind the front one only an edge shows.
    assert len(list(tree.iter(f"{SVG}path"))) == edges
    assert texts(tree) == labels


def test_values_are_written_into_the_cells():
    tree = render(torch.tensor([[1.0, 2.5], [float("nan"), -3.0]]), values=True)
    assert texts(tree)[:4] == ["1", "2.5", "nan", "-3"]


@pytest.mark.parametrize(
    "tensor",
    [torch.ones(2, 2, 2), torch.tensor([123456]), torch.ones(0), torch.tensor([1 + 2j])],
    ids=["three-dimensions", "too-long", "empty", "complex"],
)
def test_values_that_do_not_fit_are_left_out(tensor):
    assert read_picture(tensor, values=True).values is None


@pytest.mark.parametrize(
    ("tensor", "cells", "edges"),
    [
        pytest.param(torch.ones(3, 1).expand(3, 4), 9, 0, id="columns-repeat"),
        pytest.param(torch.ones(4).expand(3, 4), 8, 0, id="rows-repeat"),
        pytest.param(torch.ones(1).expand(3, 4), 11, 0, id="one-value"),
        pytest.param(torch.ones(1, 2, 2).expand(3, 2, 2), 0, 2, id="sheets-repeat"),
        pytest.param(np.broadcast_to(np.ones((3, 1)), (3, 4)), 9, 0, id="numpy"),
        pytest.param(torch.ones(3, 4), 0, 0, id="memory-of-its-own"),
    ],
)
def test_what_a_broadcast_repeats_is_dashed(tensor, cells, edges):
    tree = render(tensor)
    assert (dashed(tree, "rect"), dashed(tree, "path")) == (cells, edges)


@pytest.mark.parametrize(
    ("tensor", "text"),
    [
        (torch.tensor(5), "x: shape (), 0 dimensions, 1 value, int64, values 5"),
        (
            torch.tensor([[1], [2]]).expand(2, 2),
            "x: shape (2, 2), 2 dimensions, 4 values, int64, dimension 1 repeats, values 1 1; 2 2",
        ),
        (
            torch.arange(9),
            "x: shape (9,), 1 dimension, 9 values, int64, begins 0 1 2 3 4 5 6 7",
        ),
        (np.zeros((2, 1, 1)), "x: shape (2, 1, 1), 3 dimensions, 2 values, float64"),
    ],
    ids=["scalar", "expanded", "cut-short", "numpy"],
)
def test_the_text_says_what_the_picture_shows(tensor, text):
    assert describe_picture(read_picture(tensor, name="x", values=True)) == text


def test_the_drawing_is_named_for_screen_readers():
    picture = render(torch.ones(2), name='a < "b"').find(f".//{SVG}svg")
    assert picture.get("role") == "img"
    assert picture.get("aria-label") == 'a < "b": shape (2,), 1 dimension, 2 values, float32'


@pytest.mark.parametrize(
    ("value", "text"),
    [(True, "T"), (3, "3"), (0.125, "0.125"), (1e9, "1e+09"), (float("inf"), "inf")],
)
def test_cells_are_written_short(value, text):
    assert format_cell(value) == text


def test_outside_ipython_the_text_is_printed(capsys, monkeypatch):
    monkeypatch.delitem(sys.modules, "IPython", raising=False)
    draw_shapes(torch.ones(2), column=torch.ones(2, 1))
    assert capsys.readouterr().out == (
        "shape (2,), 1 dimension, 2 values, float32\n"
        "column: shape (2, 1), 2 dimensions, 2 values, float32\n"
    )


def test_in_ipython_the_picture_is_displayed_with_its_text(monkeypatch):
    shown = []
    ipython = pytest.importorskip("IPython")
    import IPython.display

    monkeypatch.setattr(ipython, "get_ipython", SimpleNamespace)
    monkeypatch.setattr(IPython.display, "display", lambda data, raw: shown.append(data))
    draw_shapes(torch.ones(2))
    assert len(shown) == 1
    assert shown[0]["text/html"].count("<rect") == 2
    assert shown[0]["text/plain"] == "shape (2,), 1 dimension, 2 values, float32"


def test_too_many_dimensions_are_refused_with_a_way_out():
    with pytest.raises(UsageError) as refused:
        draw_shapes(torch.ones(1, 1, 1, 1, 1))
    assert refused.value.what == ("draw_shapes got a tensor of 5 dimensions, shape (1, 1, 1, 1, 1)")
    assert refused.value.fix == "draw_shapes(x[0])"


def test_what_has_no_shape_is_refused():
    with pytest.raises(UsageError, match="which has no shape"):
        draw_shapes([1, 2, 3])

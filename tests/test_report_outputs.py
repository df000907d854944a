"""A notebook's own outputs in the report: shown where harmless, bounded, and else said so."""

from __future__ import annotations

import json

import pytest

from labkit.notebooks.report.notebook import Piece, read_cells
from labkit.notebooks.report.page import Pieces
from labkit.render import clean_text, escape, escape_block
from tests.fakes.runs import code, markdown, prints, shows

PIXEL = "R0lGODlhAQABAAAAACwAAAAAAQABAAA="


def read(tmp_path, *cells):
    path = tmp_path / "n.ipynb"
    path.write_text(json.dumps({"nbformat": 4, "cells": list(cells)}), encoding="utf-8")
    return read_cells(path, "n0")


def show(tmp_path, *outputs):
    (cell,) = read(tmp_path, code("x", *outputs))
    return [piece.make() for piece in cell.outputs]


def test_cells_come_with_their_headings_and_lists_of_lines_are_joined(tmp_path):
    cells = read(
        tmp_path,
        markdown("# Tensors\ntext\n```\n# no heading\n```\n## Shapes ##"),
        code(["a = 1\n", "b = 2\n"]),
        code("  \n"),
        code("c"),
    )
    assert [(cell.index, cell.headings) for cell in cells] == [(1, ("Tensors", "Shapes")), (3, ())]
    assert cells[0].source.make() == '<pre class="source">a = 1\nb = 2</pre>'


def test_streams_that_follow_each_other_are_one(tmp_path):
    outputs = [prints("a"), prints("b"), prints("warned", "stderr"), prints("c")]
    assert show(tmp_path, *outputs) == [
        '<pre class="stdout">ab</pre>',
        '<pre class="stderr">warned</pre>',
        '<pre class="stdout">c</pre>',
    ]


@pytest.mark.parametrize(
    ("bundle", "shown"),
    [
        ({"text_plain": "1 < 2"}, '<pre class="result">1 &lt; 2</pre>'),
        ({"text_html": "<i>x</i>", "text_plain": "y"}, '<div class="rich"><i>x</i></div>'),
        ({"text_latex": "$x$", "text_plain": "y"}, '<pre class="result">$x$</pre>'),
        (
            {"image_png": PIXEL, "text_plain": "<Figure size 1x1>"},
            f'<div class="rich"><img src="data:image/png;base64,{PIXEL}"'
            ' alt="a picture the cell drew"></div>',
        ),
        ({"image_png": "no base64!", "text_plain": "y"}, '<pre class="result">y</pre>'),
        ({"application_json": []}, '<pre class="result">[]</pre>'),
        ({"application_x": "m"}, '<pre class="result">[an output of application/x]</pre>'),
    ],
    ids=["plain", "html", "latex", "png", "broken png", "json", "unknown"],
)  # fmt: skip
def test_the_richest_harmless_form_is_shown(tmp_path, bundle, shown):
    assert show(tmp_path, shows(**bundle)) == [shown]


def test_what_lives_by_its_script_is_shown_in_its_other_form(tmp_path):
    html = "<div><script>Plotly.newPlot()</script></div>"
    (shown,) = show(tmp_path, shows(text_html=html, image_png=PIXEL))
    assert shown.startswith('<div class="rich"><img')
    (shown,) = show(tmp_path, shows(text_html=html, text_plain="Figure()"))
    assert shown == (
        '<pre class="result">Figure()</pre><p class="left-out">its html (44 B) is not shown</p>'
    )


def test_an_image_on_transparent_ground_gets_the_paper_it_asks_for(tmp_path):
    (shown,) = show(tmp_path, shows({"needs_background": "light"}, image_png=PIXEL))
    assert shown.startswith('<div class="rich"><img class="on-light"')


def test_html_beyond_its_bound_gives_way_to_the_text(tmp_path):
    (shown,) = show(tmp_path, shows(text_html="<b>x</b>" * 60_000, text_plain="short"))
    assert shown == (
        '<pre class="result">short</pre><p class="left-out">its html (468.8 KiB) is not shown</p>'
    )


def test_a_notebook_that_cannot_be_read_is_none(tmp_path):
    (tmp_path / "broken.ipynb").write_text("{")
    (tmp_path / "list.ipynb").write_text("[]")
    names = ("broken.ipynb", "list.ipynb", "missing.ipynb")
    assert [read_cells(tmp_path / name, "n") for name in names] == [None, None, None]


def test_outputs_of_no_known_shape_are_passed_over(tmp_path):
    assert show(tmp_path, {"output_type": "display_data"}, {}, {"data": 3}) == []


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("\x1b[31mred\x1b[0m", "red"),
        ("10%\r50%\r100%\n", "100%\n"),
        ("one\r\ntwo\r\n", "one\ntwo\n"),
        ("kept\r", "kept"),
        ("\x1b]8;;http://x\x07link\x1b]8;;\x07", "link"),
    ],
    ids=["colour", "progress bar", "windows", "last return", "terminal link"],
)
def test_text_is_what_a_terminal_would_show_in_the_end(text, shown):
    assert clean_text(text) == shown


def test_long_text_loses_its_middle_and_says_how_much():
    assert escape_block("a" * 60 + "b" * 60, 40) == (
        f'{"a" * 30}\n<em class="left-out">80 characters left out</em>\n{"b" * 10}'
    )
    long = escape_block("a" * 5000, 40)
    assert '<em class="left-out">4,960 characters left out</em>' in long


def test_control_characters_are_marked():
    assert escape("a\0b\ud800<") == "a\N{REPLACEMENT CHARACTER}b\N{REPLACEMENT CHARACTER}&lt;"


def test_the_largest_pieces_are_left_out_first_and_named():
    pieces = Pieces()
    small = pieces.lay_aside(Piece("text", 300, lambda: "s" * 300), "n.ipynb")
    large = pieces.lay_aside(Piece("image/png", 5000, lambda: "L" * 5000), "n.ipynb")
    assert pieces.fill(small + large, limit_bytes=1000) == "s" * 300 + (
        '<p class="left-out">image/png of 4.9 KiB is left out to keep this page small;'
        " it is in n.ipynb</p>"
    )
    assert pieces.fill(small + large, limit_bytes=9000) == "s" * 300 + "L" * 5000


def test_a_piece_that_comes_out_larger_than_thought_is_left_out_after_all():
    pieces = Pieces()
    token = pieces.lay_aside(Piece("html", 10, lambda: "<b>" * 1000), "n.ipynb")
    assert "left out" in pieces.fill(token, limit_bytes=1000)

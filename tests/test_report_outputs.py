"""A notebook's own outputs in the report: shown where harmless, bounded, and else said so."""

from __future__ import annotations

import json

import pytest

from labkit.charts import Column, Line, choose_scale, render_columns, render_lines
from labkit.notebooks.report.outputs import Piece, read_cells
from labkit.notebooks.report.page import Pieces
from labkit.notebooks.report.sanitize import clean_html, clean_style
from labkit.render import clean_text, escape, escape_block
from tests.fakes.runs import code, markdown, prints, shows

PIXEL = "R0lGODlhAQABAAAAACwAAAAAAQABAAA="


@pytest.mark.parametrize(
    ("text", "cleaned"),
    [
        ("<b>bold</b> &amp; plain", "<b>bold</b> &amp; plain"),
        ("a<script>alert(1)</script>b", "ab"),
        ("a<SCRIPT src=http://x>1</SCRIPT>b", "ab"),
        ("a<script>never closed", "a"),
        ("a<style>p{}</style>b", "ab"),
        ("a<iframe src='http://x'>in</iframe>b", "ab"),
        ("a<form><input>x</form>b", "ab"),
        ("a<link rel=stylesheet href=http://x>b", "ab"),
        ("a<meta http-equiv=refresh content='0;http://x'>b", "ab"),
        ("<base href=http://x>b", "b"),
        ("<custom-tag>text</custom-tag>", "text"),
        ("<p onclick=alert(1)>x</p>", "<p>x</p>"),
        ("<p class=failure>x</p>", "<p>x</p>"),
        ("<!-- a comment -->x", "x"),
        ("1 < 2 and 3 > 2", "1 &lt; 2 and 3 &gt; 2"),
    ],
    ids=[
        "harmless", "script", "loud script", "open script", "style", "iframe", "form", "link",
        "meta", "base", "unknown tag", "handler", "our classes", "comment", "no tags",
    ],
)  # fmt: skip
def test_what_runs_or_loads_goes_and_the_rest_stays(text, cleaned):
    assert clean_html(text, "p-") == cleaned


@pytest.mark.parametrize(
    ("text", "cleaned"),
    [
        ("</div></section><p>x", "<p>x</p>"),
        ("<div><b>x</div>y", "<div><b>x</b></div>y"),
        ("<table><tr><td>1", "<table><tr><td>1</td></tr></table>"),
    ],
    ids=["closes ours", "crossed", "open"],
)
def test_an_output_cannot_end_the_part_of_the_page_it_is_in(text, cleaned):
    assert clean_html(text, "p-") == cleaned


@pytest.mark.parametrize(
    ("address", "kept"),
    [
        ("https://pytorch.org/docs", "https://pytorch.org/docs"),
        ("mailto:a@b.c", "mailto:a@b.c"),
        ("#top", "#p-top"),
        ("javascript:alert(1)", None),
        (" java\nscript:alert(1)", None),
        ("data:text/html,x", None),
        ("file:///etc/passwd", None),
    ],
)
def test_links_are_for_clicking_only(address, kept):
    wanted = f'href="{kept}" ' if kept else ""
    assert (
        clean_html(f'<a href="{address}">x</a>', "p-")
        == f'<a {wanted}rel="noopener noreferrer">x</a>'
    )


def test_images_stay_only_as_data():
    data = f"data:image/png;base64,{PIXEL}"
    assert clean_html(f'<img src="{data}" alt="a dot">', "") == f'<img src="{data}" alt="a dot">'
    for address in ("http://x/y.png", "//x/y.png", "y.png", "data:text/html;base64,AAAA"):
        assert clean_html(f'<img src="{address}" srcset="http://z">', "") == (
            "<em>[an image that is not in the notebook]</em>"
        )


@pytest.mark.parametrize(
    ("style", "kept"),
    [
        ("color: red; width: 3em", "color: red; width: 3em"),
        ("color: red; background: url(http://x)", "color: red"),
        ("background: u\\72l(http://x)", None),
        ("background: image-set('http://x' 1x)", None),
        ("position: fixed; top: 0", "top: 0"),
        ("width: expression(alert(1))", None),
        ("color: var(--jp-success-color1, #4caf50)", "color: var(--jp-success-color1, #4caf50)"),
    ],
)
def test_styles_shape_only_what_they_are_on(style, kept):
    assert clean_style(style) == kept


def test_svg_keeps_its_shapes_and_its_ids_to_itself():
    picture = (
        '<svg viewBox="0 0 9 9"><defs><marker id="a"><path d="M0 0"/></marker></defs>'
        '<line x1="1" marker-end="url(#a)" stroke="rgb(1, 2, 3)"/><use xlink:href="#a"/>'
        '<rect fill="url(http://x#a)" clip-path="url(http://x)" filter="url(//x)"/>'
        "<title>T</title><foreignObject><p>out</p></foreignObject>"
        '<animate attributeName="href" to="javascript:1"/><set to="x"/></svg>'
    )
    assert clean_html(picture, "p-") == (
        '<svg viewbox="0 0 9 9"><defs><marker id="p-a"><path d="M0 0"></path></marker></defs>'
        '<line x1="1" marker-end="url(#p-a)" stroke="rgb(1, 2, 3)"></line>'
        '<use xlink:href="#p-a"></use><rect></rect><title>T</title></svg>'
    )


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
    flood = escape_block("a" * 5000, 40)
    assert '<em class="left-out">4,960 characters left out</em>' in flood


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


@pytest.mark.parametrize(
    ("highest", "unit", "ticks"),
    [
        (3.98, "seconds", ["0 s", "1 s", "2 s", "3 s"]),
        (0.012, "seconds", ["0 s", "5 ms", "10 ms"]),
        (600 * 2**20, "bytes", ["0 B", "200 MiB", "400 MiB", "600 MiB"]),
        (1.5 * 2**30, "bytes", ["0 B", "512 MiB", "1 GiB", "1.5 GiB"]),
        (0, "seconds", ["0 s", "500 ms", "1 s"]),
    ],
    ids=["seconds", "milliseconds", "MiB", "GiB", "nothing"],
)
def test_axes_have_round_values(highest, unit, ticks):
    scale = choose_scale(highest, unit)
    assert [scale.write(tick) for tick in scale.ticks] == ticks
    assert scale.place(0) == 166
    assert 20 <= scale.place(scale.ticks[-1]) < 100


def test_columns_are_drawn_for_known_values_only():
    columns = [Column("1", 2.0, tooltip="<t>"), Column("2", None), Column("3", 1.0, bad=True)]
    plot = render_columns(columns, alt='"quoted"', unit="seconds")
    assert plot.count("<rect") == 2
    assert plot.count("bad-column") == 1
    assert "<title>&lt;t&gt;</title>" in plot
    assert 'aria-label="&quot;quoted&quot;"' in plot
    assert render_columns([Column("1", None)], alt="", unit="seconds") == ""
    assert render_columns([], alt="", unit="seconds") == ""


def test_very_many_columns_are_one_path():
    columns = [Column(str(number), float(number)) for number in range(5000)]
    plot = render_columns(columns, alt="", unit="bytes")
    assert "<rect" not in plot
    assert plot.count("M") >= 5000
    assert len(plot) < 120_000


def test_lines_need_two_points():
    line = Line("process", ((0.0, 1.0), (2.0, 3.0)))
    plot = render_lines([line, Line("cuda", ())], alt="")
    assert plot.count("<polyline") == 1
    assert render_lines([Line("process", ((0.0, 1.0),))], alt="") == ""
    assert "<polyline" in render_lines([Line("cuda", ((0.0, 0.0), (0.0, 0.0)))], alt="")

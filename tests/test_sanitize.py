"""Foreign html in the report: nothing runs, loads or leaves its place, and in bounded time."""

from __future__ import annotations

import time

import pytest

from labkit.notebooks.report.notebook import (
    MAX_HTML_CHARACTERS,
    MISSING_IMAGE,
    clean_html,
    clean_style,
    is_cheap,
)
from labkit.notebooks.report.page import write_report
from tests.fakes.runs import code, make_notebook, make_result, shows, write_run
from tests.test_report import Page

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
        ("a <![ b", "a "),
        ("</div></section><p>x", "<p>x</p>"),
        ("<div><b>x</div>y", "<div><b>x</b></div><b>y</b>"),
        ("<table><tr><td>1", "<table><tbody><tr><td>1</td></tr></tbody></table>"),
        ("<svg></p><style><a id='</style><img src=1 onerror=alert(1)>'>", None),
        ("<math><mtext><table><mglyph><style><img src=x onerror=alert(1)>", None),
        ("<noscript><p title='</noscript><img src=x onerror=alert(1)>'>", None),
    ],
    ids=lambda value: (value or "harmless")[:24],
)
def test_what_runs_or_loads_goes_and_the_rest_stays(text, cleaned):
    found = clean_html(text, "p-")
    assert cleaned in (found, None)
    assert "onerror" not in found
    assert Page(found).open == []


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
    found = clean_html(f'<a href="{address}">x</a>', "p-")
    assert found == f'<a {wanted}rel="noopener noreferrer">x</a>'


def test_images_stay_only_as_data():
    data = f"data:image/png;base64,{PIXEL}"
    assert clean_html(f'<img src="{data}" alt="a dot">', "") == f'<img src="{data}" alt="a dot">'
    for address in ("http://x/y.png", "//x/y.png", "y.png", "data:text/html;base64,AAAA"):
        found = clean_html(f'<img src="{address}" srcset="http://z">', "")
        assert found == f'<img src="{MISSING_IMAGE}">'


@pytest.mark.parametrize(
    ("style", "kept"),
    [
        ("color: red; width: 3em", "color: red; width: 3em"),
        ("color: red; background: url(http://x)", "color: red"),
        ("background: u\\72l(http://x)", None),
        ("background: image-set('http://x' 1x)", None),
        ("width: expression(alert(1))", None),
        ("margin: 0 0 0 -99px; text-indent: calc(0px - 9em)", None),
        ("color: color-mix(in srgb, red 75%, blue)", "color: color-mix(in srgb, red 75%, blue)"),
        ("color: var(--jp-success-color1, #4caf50)", "color: var(--jp-success-color1, #4caf50)"),
    ],
)
def test_values_of_styles_load_hide_and_move_nothing(style, kept):
    assert clean_style(style) == kept


LEAVING = """
    position z-index top left inset transform translate scale animation content filter zoom
    clip-path mix-blend-mode -webkit-transform will-change cursor pointer-events --accent
"""


@pytest.mark.parametrize("name", LEAVING.split())
def test_properties_that_leave_their_place_are_not_on_the_list(name):
    assert clean_html(f"<p style='{name}: 1; color: red'>x</p>", "") == (
        '<p style="color:red">x</p>'
    )


def test_svg_keeps_its_shapes_and_its_ids_to_itself():
    picture = (
        '<svg viewBox="0 0 9 9"><defs><marker id="a"><path d="M0 -1"/></marker></defs>'
        '<line x1="1" marker-end="url(#a)" stroke="rgb(1, 2, 3)"/><use xlink:href="#a"/>'
        '<linearGradient gradientUnits="userSpaceOnUse"><stop offset="1"/></linearGradient>'
        '<rect fill="url(http://x#a)" clip-path="url(http://x)" filter="url(//x)"/>'
        "<title>T</title><foreignObject><p>out</p></foreignObject>"
        '<animate attributeName="href" to="javascript:1"/><set to="x"/></svg>'
    )
    assert clean_html(picture, "p-") == (
        '<svg viewBox="0 0 9 9"><defs><marker id="p-a"><path d="M0 -1"></path></marker></defs>'
        '<line x1="1" marker-end="url(#p-a)" stroke="rgb(1, 2, 3)"></line>'
        '<use xlink:href="#p-a"></use><linearGradient gradientUnits="userSpaceOnUse">'
        '<stop offset="1"></stop></linearGradient><rect></rect><title>T</title></svg>'
    )


BOLD = "".join(f"<b id={number}>" for number in range(3000))
SLOW = {
    "an odd declaration": "a <![ b",
    "open tags": "<a " * 13_500,
    "nested": "<div>" * 80_000,
    "unclosed scripts": "<script" * 57_000,
    "unmatched ends": "<i>" * 50_000 + "</b>" * 50_000,
    "reopened in each paragraph": f"<p>{BOLD}</p>" + "<p>x</p>" * 40_000,
    "attributes": "<p " + " ".join(f"a{number}=1" for number in range(40_000)) + ">",
    "a long attribute": "<p title='" + "a" * 390_000 + "'>",
    "ampersands": "&" * 400_000,
    "comments": "<!--" * 100_000,
    "a returning line": "\r" + "a" * 399_000,
    "spaces in a heading": "# " + " " * 390_000 + "x",
}


@pytest.mark.slow
@pytest.mark.parametrize("name", SLOW)
def test_hostile_html_and_text_are_reported_in_bounded_time(tmp_path, name):
    text = SLOW[name][:MAX_HTML_CHARACTERS]
    outputs = [
        shows(text_html=text, text_plain="other"),
        shows(text_html=f"<script>1</script>{text}"[:MAX_HTML_CHARACTERS], text_plain="other"),
        {"output_type": "stream", "name": "stdout", "text": text},
    ]
    cells = [{"cell_type": "markdown", "source": text, "metadata": {}}, code("x", *outputs)]
    folder = write_run(tmp_path, make_result(make_notebook()), {"tensors.ipynb": cells})
    started = time.process_time()
    path = write_report(folder)
    # Each takes less than 4 s on a machine that does nothing else.
    assert time.process_time() - started < 20
    assert path.stat().st_size < 3_000_000


def test_html_of_usual_size_is_cheap_and_what_grows_with_the_square_is_not():
    row = '<tr><td style="color: red"><a href="https://x">1</a></td><td><b>2</b></td></tr>'
    assert is_cheap("<table>" + row * 400 + "</table>")
    for name in ("nested", "unmatched ends", "reopened in each paragraph"):
        assert not is_cheap(SLOW[name]), name

"""An estimate as html: the bar and its terms as a picture, the verdict, the lines."""

from __future__ import annotations

from html import escape

from labkit.memory.balance import Term, divide_bar
from labkit.memory.estimate import Estimate
from labkit.memory.estimate_text import (
    list_sums,
    list_terms,
    name_lines,
    name_work,
    say_verdict,
)
from labkit.memory.picture import BAR_HEIGHT, BAR_TOP, INLINE_STYLE, ROW_HEIGHT, WIDTH
from labkit.units import format_bytes

COLOURS = {
    "parameters": "#2f7ed8",
    "gradients": "#6db3e8",
    "optimizer": "#9a7fd1",
    "activations": "#e08a2e",
    "inputs": "#c9b037",
    "other": "#8a8f98",
    "cached": "#b8bec6",
    "context": "#d6487e",
    "free": "none",
}
FIGURES_RIGHT = 400
EDGE = ' stroke="currentColor" stroke-opacity="0.4"'


def draw_estimate(estimate: Estimate) -> str:
    """The estimate as one piece of html."""
    verdict = "".join(f"<div><b>{escape(one)}</b></div>" for one in say_verdict(estimate))
    lines = "".join(
        f'<div style="white-space:pre"><code>{_pad(line.held_bytes)}  {escape(where)}</code></div>'
        for line, where in name_lines(estimate)
    )
    held = f"<details><summary>the lines that hold most at the peak</summary>{lines}</details>"
    notes = "".join(f"<p>note: {escape(note)}</p>" for note in estimate.notes)
    body = draw_bar(estimate) + verdict + (held if lines else "") + notes
    return f'<div class="labkit-estimate" style="{INLINE_STYLE}">{body}</div>'


def draw_bar(estimate: Estimate) -> str:
    """The terms as an SVG picture: the bar, and each with its colour and figure."""
    terms = list_terms(estimate)
    title = name_work(estimate)
    top = BAR_TOP + BAR_HEIGHT + 8
    body = [_write(title, 0, 20, weight="bold"), *_draw_cells(terms)]
    rows: list[tuple[str, str, str | None]] = [
        (term.words, format_bytes(term.held_bytes), COLOURS[term.key]) for term in terms
    ]
    rows += [(words, figure, None) for words, figure in list_sums(estimate)]
    for place, (words, figure, colour) in enumerate(rows):
        body += _draw_row(words, figure, top + place * ROW_HEIGHT, colour)
    height = top + len(rows) * ROW_HEIGHT + 6
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{WIDTH}" height="{height}"'
        f' viewBox="0 0 {WIDTH} {height}" role="img" font-family="sans-serif" font-size="13"'
        f' fill="currentColor" style="display:block;max-width:100%">'
        f"<title>estimate of {escape(title)}</title>{''.join(body)}</svg>"
    )


def _draw_cells(terms: list[Term]) -> list[str]:
    by_key = {term.key: term for term in terms}
    drawn, left = [], 0
    for key, cells in divide_bar(terms, WIDTH):
        words = escape(f"{by_key[key].words}: {format_bytes(by_key[key].held_bytes)}")
        drawn.append(
            f'<rect x="{left}" y="{BAR_TOP}" width="{cells}" height="{BAR_HEIGHT}"'
            f' fill="{COLOURS[key]}"><title>{words}</title></rect>'
        )
        left += cells
    frame = f'<rect x="0.5" y="{BAR_TOP}.5" width="{WIDTH - 1}" height="{BAR_HEIGHT - 1}"'
    return [*drawn, f'{frame} fill="none"{EDGE}/>'] if drawn else []


def _draw_row(words: str, figure: str, top: int, colour: str | None) -> list[str]:
    row = [_write(words, 22, top + 14), _write(figure, FIGURES_RIGHT, top + 14, anchor="end")]
    if colour is not None:
        square = f'<rect x="0.5" y="{top + 3}.5" width="12" height="12" fill="{colour}"{EDGE}/>'
        row.insert(0, square)
    return row


def _pad(count: int) -> str:
    return f"{format_bytes(count):>10}"


def _write(text: str, left: int, base: int, *, anchor: str = "start", weight: str = "") -> str:
    bold = f' font-weight="{weight}"' if weight else ""
    end = ' text-anchor="end"' if anchor == "end" else ""
    return f'<text x="{left}" y="{base}"{end}{bold}>{escape(text)}</text>'

"""An estimate as html: the bar and its terms as a picture, the verdict, the lines."""

from __future__ import annotations

from html import escape

from labkit.memory.estimate import Estimate
from labkit.memory.estimate_text import (
    list_sums,
    list_terms,
    name_lines,
    name_work,
    say_verdict,
)
from labkit.memory.picture import COLOURS as OF_BALANCE
from labkit.memory.sheet_picture import INLINE_STYLE, Row, Sheet, draw_sheet
from labkit.units import format_bytes

# What the balance has too has the balance's colours; there all tensors are blue.
COLOURS = {
    "parameters": OF_BALANCE["allocated"],
    "gradients": "#2a9d8f",
    "optimizer": "#a8982c",
    "activations": "#e08a2e",
    "inputs": "#d6487e",
    "other": "#8a8f98",
    **{key: OF_BALANCE[key] for key in ("cached", "context", "free")},
}


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
    figures = {term.key: format_bytes(term.held_bytes) for term in terms}
    rows = [Row(term.words, figures[term.key], COLOURS[term.key]) for term in terms]
    rows += [Row(words, figure) for words, figure in list_sums(estimate)]
    title = name_work(estimate)
    return draw_sheet(Sheet(f"estimate of {title}", title, terms, COLOURS, figures, rows))


def _pad(count: int) -> str:
    return f"{format_bytes(count):>10}"

"""A comparison as one html file, in the same hand as a run's report."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from labkit.notebooks.compare import (
    FIGURES,
    CellPair,
    Comparison,
    NotebookPair,
    Pair,
    describe_loners,
    describe_medians,
    describe_outcome,
    describe_run,
    format_figure,
    format_ratio,
    list_figures,
)
from labkit.notebooks.report.page import make_page, write_page
from labkit.notebooks.report.saved import Cell
from labkit.notebooks.report.sections import inline
from labkit.render import escape, make_table, render_status, start_sentence
from labkit.text import shorten

MAX_ROWS = 2000
FIRST_LINE_CHARACTERS = 44


def write_comparison(path: Path, comparison: Comparison) -> Path:
    """Writes the comparison to the file ``path`` and returns it; LabkitError where it cannot."""
    return write_page(path, render_comparison(comparison))


def render_comparison(comparison: Comparison) -> str:
    """The comparison as a whole html document that loads nothing."""
    limit = MAX_ROWS // max(1, len(comparison.notebooks))
    loners = "".join(
        f"<p>{escape(start_sentence(line))}</p>" for line in describe_loners(comparison)
    )
    runs = (("A", comparison.a), ("B", comparison.b))
    sides = "".join(
        f"<div><dt>{side}</dt><dd>{escape(describe_run(run))}</dd></div>" for side, run in runs
    )
    body = (
        '<header><p class="kicker">labkit compare</p><h1>Two runs side by side</h1>'
        f'<p class="lede">{escape(describe_outcome(comparison))}</p></header>'
        f'<main><dl class="wide">{sides}</dl>{loners}'
        '<p class="soft">Ratios are B over A; there is none where a side is unknown.</p>'
        f"{''.join(_draw_pair(pair, limit) for pair in comparison.notebooks)}</main>"
        "<footer><p>Made by labkit compare. This page loads nothing and can be read offline.</p>"
        "</footer>"
    )
    return make_page("Two runs side by side - labkit compare", body)


def _draw_pair(pair: NotebookPair, limit: int) -> str:
    status = render_status(pair.a.status)
    if pair.a.status != pair.b.status:
        status = f"A {render_status(pair.a.status)}, B {render_status(pair.b.status)}"
    medians = "".join(
        f'<p class="soft">{escape(start_sentence(text))}.</p>' for text in describe_medians(pair)
    )
    return (
        f'<section><h2>{escape(pair.a.name)}<span class="aside">{status}</span></h2>'
        f"{_draw_figures(pair)}{medians}{_draw_claims(pair)}"
        f"{_draw_cells(pair.cells, limit)}"
        f"{_draw_loners('A', pair.only_a, limit)}{_draw_loners('B', pair.only_b, limit)}</section>"
    )


def _draw_figures(pair: NotebookPair) -> str:
    rows = [
        [
            escape(start_sentence(FIGURES[name])),
            format_figure(name, figure.a),
            format_figure(name, figure.b),
            _draw_ratio(figure),
        ]
        for name, figure in list_figures(pair)
    ]
    return make_table("The notebook as a whole", ["figure", "#A", "#B", "#B/A"], rows)


def _draw_ratio(pair: Pair) -> str:
    text = format_ratio(pair.ratio)
    return f'<span class="quiet">{text}</span>' if pair.ratio is None else text


def _draw_claims(pair: NotebookPair) -> str:
    if not pair.claims:
        return ""
    rows = [
        [inline(change.statement), escape(change.a), escape(change.b)] for change in pair.claims
    ]
    return make_table("Claims that changed", ["claim", "A", "B"], rows)


def _draw_cells(cells: Sequence[CellPair], limit: int) -> str:
    if not cells:
        return ""
    heads = ["cell", "first line", "#time A", "#time B", "#B/A", "#peak A", "#peak B", "#B/A"]
    on_cuda = any(pair.cuda_peak_bytes.b or pair.cuda_peak_bytes.a for pair in cells)
    heads += ["#CUDA A", "#CUDA B", "#B/A"] if on_cuda else []
    caption = f"The first {limit:,} of {len(cells):,} cells" if len(cells) > limit else "Each cell"
    return make_table(caption, heads, [_cell_row(pair)[: len(heads)] for pair in cells[:limit]])


def _cell_row(pair: CellPair) -> list[str]:
    row = [_number(pair.b), _line(pair.b)]
    for name, figure in (
        ("seconds", pair.seconds),
        ("peak_bytes", pair.peak_bytes),
        ("cuda_peak_bytes", pair.cuda_peak_bytes),
    ):
        row += [format_figure(name, figure.a), format_figure(name, figure.b), _draw_ratio(figure)]
    return row


def _draw_loners(side: str, cells: Sequence[Cell], limit: int) -> str:
    if not cells:
        return ""
    rows = [[_number(cell), _line(cell)] for cell in cells[:limit]]
    return make_table(f"Cells only in {side}", ["cell", "first line"], rows)


def _number(cell: Cell) -> str:
    return "tagged" if cell.number is None else str(cell.number)


def _line(cell: Cell) -> str:
    return f'<span class="mono">{escape(shorten(cell.first_line, FIRST_LINE_CHARACTERS))}</span>'

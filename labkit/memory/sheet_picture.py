"""A sheet as an SVG picture: a title, a bar of terms, and a row with a figure for each of them.

The colours are of middle brightness and told apart without red against green; text takes the
colour of the text around it.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from html import escape
from typing import NamedTuple

from labkit.memory.balance import Term, divide_bar

WIDTH, BAR_TOP, BAR_HEIGHT, ROW_HEIGHT = 640, 32, 26, 20
FIGURES_RIGHT = 430
# A picture in a file has no text around it: there the reader's theme decides. GitHub and
# browsers follow it inside <img> too.
STANDALONE_STYLE = (
    "<style>svg{color:#24292f;background:none}"
    "@media (prefers-color-scheme:dark){svg{color:#e6edf3}}</style>"
)
# JupyterLab and VS Code say in these what their theme's text is; elsewhere it is inherited.
INLINE_STYLE = (
    "color:var(--jp-content-font-color1,var(--vscode-foreground,currentColor));"
    "font:13px/1.5 sans-serif"
)


class Row(NamedTuple):
    """A line of the sheet; a sum has no colour, for it is no part of the bar."""

    words: str
    figure: str
    colour: str | None = None


class Sheet(NamedTuple):
    """What is drawn: ``name`` says it to who hears pictures; ``figures`` are the bar's, by key."""

    name: str
    title: str
    terms: Sequence[Term]
    colours: Mapping[str, str]
    figures: Mapping[str, str]
    rows: Sequence[Row]


def draw_sheet(sheet: Sheet, *, standalone: bool = False) -> str:
    """The sheet as an SVG; ``standalone`` makes it a file, which follows the reader's theme."""
    body = [_write(sheet.title, 0, 20, weight="bold"), *_draw_bar(sheet)]
    top = BAR_TOP + BAR_HEIGHT + 8
    for place, row in enumerate(sheet.rows):
        body += _draw_row(row, top + place * ROW_HEIGHT)
    height = top + len(sheet.rows) * ROW_HEIGHT if sheet.rows else BAR_TOP
    style = "" if standalone else ' style="display:block;max-width:100%"'
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{WIDTH}" height="{height}"'
        f' viewBox="0 0 {WIDTH} {height}" role="img" font-family="sans-serif" font-size="13"'
        f' fill="currentColor"{style}><title>{escape(sheet.name)}</title>'
        f"{STANDALONE_STYLE if standalone else ''}{''.join(body)}</svg>"
    )


def _draw_bar(sheet: Sheet) -> Iterable[str]:
    words = {term.key: term.words for term in sheet.terms}
    left = 0
    for key, cells in divide_bar(sheet.terms, WIDTH):
        yield (
            f'<rect x="{left}" y="{BAR_TOP}" width="{cells}" height="{BAR_HEIGHT}"'
            f' fill="{sheet.colours[key]}">'
            f"<title>{escape(f'{words[key]}: {sheet.figures[key]}')}</title></rect>"
        )
        left += cells
    if left:
        yield (
            f'<rect x="0.5" y="{BAR_TOP}.5" width="{WIDTH - 1}" height="{BAR_HEIGHT - 1}"'
            ' fill="none" stroke="currentColor" stroke-opacity="0.4"/>'
        )


def _draw_row(row: Row, top: int) -> Iterable[str]:
    if row.colour is not None:
        yield (
            f'<rect x="0.5" y="{top + 3}.5" width="12" height="12" fill="{row.colour}"'
            ' stroke="currentColor" stroke-opacity="0.4"/>'
        )
    yield _write(row.words, 22, top + 14)
    yield _write(row.figure, FIGURES_RIGHT, top + 14, anchor="end")


def _write(text: str, left: int, base: int, *, anchor: str = "start", weight: str = "") -> str:
    bold = f' font-weight="{weight}"' if weight else ""
    end = ' text-anchor="end"' if anchor == "end" else ""
    return f'<text x="{left}" y="{base}"{end}{bold}>{escape(text)}</text>'

"""A snapshot as html: each device's balance as an SVG picture, legible on light and dark grounds.

The colours are of middle brightness and told apart without red against green; text takes the
colour of the text around it.
"""

from __future__ import annotations

from html import escape

from labkit.memory.balance import Balance, divide_bar, list_terms
from labkit.memory.snapshot import Snapshot
from labkit.memory.text import (
    count_processes,
    format_figures,
    format_mib,
    list_processes,
    list_remarks,
    name_device,
)

WIDTH, BAR_TOP, BAR_HEIGHT, ROW_HEIGHT = 640, 32, 26, 20
FIGURES_RIGHT = 430

COLOURS = {
    "allocated": "#2f7ed8",
    "cached": "#6db3e8",
    "context": "#9a7fd1",
    "others": "#e08a2e",
    "reserved": "#8a8f98",
    "unaccounted": "#d6487e",
    "free": "none",
}
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


def draw_snapshot(snapshot: Snapshot) -> str:
    """The snapshot as one piece of html: a picture for each device, its processes, the notes."""
    parts = [draw_balance(balance) + _list_details(balance) for balance in snapshot.balances]
    parts += [f"<p>note: {escape(note)}</p>" for note in snapshot.notes]
    return f'<div class="labkit-memory" style="{INLINE_STYLE}">{"".join(parts)}</div>'


def draw_balance(balance: Balance, *, standalone: bool = False) -> str:
    """The balance as an SVG picture: the bar, and each term with its colour and figure.

    ``standalone`` makes it a file of its own, which follows the reader's light or dark theme.
    """
    title = f"{name_device(balance)}  {balance.name or 'unknown'}"
    told = balance.total_bytes is not None or not balance.trouble
    terms = list_terms(balance) if told else []
    rows = format_figures(terms, balance.total_bytes)
    body = [_write(title, 0, 20, weight="bold"), *_draw_bar(balance)]
    top = BAR_TOP + BAR_HEIGHT + 8
    for place, (term, figure) in enumerate(rows):
        body += _draw_row(term.words, figure, top + place * ROW_HEIGHT, COLOURS[term.key])
    if rows:
        figure = format_mib(balance.total_bytes)
        body += _draw_row("total", figure, top + len(rows) * ROW_HEIGHT, None)
    height = top + (len(rows) + 1) * ROW_HEIGHT if rows else BAR_TOP
    return _wrap("".join(body), height, title, standalone)


def _wrap(body: str, height: int, title: str, standalone: bool) -> str:
    style = "" if standalone else ' style="display:block;max-width:100%"'
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{WIDTH}" height="{height}"'
        f' viewBox="0 0 {WIDTH} {height}" role="img" font-family="sans-serif" font-size="13"'
        f' fill="currentColor"{style}><title>memory of {escape(title)}</title>'
        f"{STANDALONE_STYLE if standalone else ''}{body}</svg>"
    )


def _draw_bar(balance: Balance) -> list[str]:
    terms = {term.key: term for term in list_terms(balance)}
    drawn, left = [], 0
    for key, cells in divide_bar(terms.values(), WIDTH):
        words = escape(f"{terms[key].words}: {format_mib(terms[key].held_bytes)}")
        drawn.append(
            f'<rect x="{left}" y="{BAR_TOP}" width="{cells}" height="{BAR_HEIGHT}"'
            f' fill="{COLOURS[key]}"><title>{words}</title></rect>'
        )
        left += cells
    if drawn:
        drawn.append(
            f'<rect x="0.5" y="{BAR_TOP}.5" width="{WIDTH - 1}" height="{BAR_HEIGHT - 1}"'
            ' fill="none" stroke="currentColor" stroke-opacity="0.4"/>'
        )
    return drawn


def _draw_row(words: str, figure: str, top: int, colour: str | None) -> list[str]:
    row = [_write(words, 22, top + 14), _write(figure, FIGURES_RIGHT, top + 14, anchor="end")]
    if colour is not None:
        row.insert(
            0,
            f'<rect x="0.5" y="{top + 3}.5" width="12" height="12" fill="{colour}"'
            ' stroke="currentColor" stroke-opacity="0.4"/>',
        )
    return row


def _write(text: str, left: int, base: int, *, anchor: str = "start", weight: str = "") -> str:
    bold = f' font-weight="{weight}"' if weight else ""
    end = ' text-anchor="end"' if anchor == "end" else ""
    return f'<text x="{left}" y="{base}"{end}{bold}>{escape(text)}</text>'


def _list_details(balance: Balance) -> str:
    lines = [count_processes(balance) or ""]
    lines += [f"{who}: {held}" for who, held in list_processes(balance)]
    lines += list_remarks(balance)
    return "".join(f"<div>{escape(line)}</div>" for line in lines if line)

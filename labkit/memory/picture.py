"""A snapshot as html: each device's balance as an SVG picture, its processes, the notes."""

from __future__ import annotations

from html import escape

from labkit.memory.balance import Balance, list_terms
from labkit.memory.sheet_picture import INLINE_STYLE, Row, Sheet, draw_sheet
from labkit.memory.snapshot import Snapshot
from labkit.memory.text import (
    count_processes,
    format_figures,
    format_mib,
    list_processes,
    list_remarks,
    name_device,
)

COLOURS = {
    "allocated": "#2f7ed8",
    "cached": "#6db3e8",
    "context": "#9a7fd1",
    "others": "#e08a2e",
    "reserved": "#8a8f98",
    "unaccounted": "#d6487e",
    "free": "none",
}


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
    terms = list_terms(balance)
    rows = [
        Row(term.words, figure, COLOURS[term.key])
        for term, figure in format_figures(terms, balance.total_bytes)
    ]
    total = Row("total", format_mib(balance.total_bytes))
    figures = {term.key: format_mib(term.held_bytes) for term in terms}
    return draw_sheet(
        Sheet(f"memory of {title}", title, terms, COLOURS, figures, (*rows, total) if told else ()),
        standalone=standalone,
    )


def _list_details(balance: Balance) -> str:
    lines = [count_processes(balance) or ""]
    lines += [f"{who}: {held}" for who, held in list_processes(balance)]
    lines += list_remarks(balance)
    return "".join(f"<div>{escape(line)}</div>" for line in lines if line)

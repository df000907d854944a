"""An out-of-memory error as text and as HTML: figures, live tensors, measures, the balance."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from labkit.memory.balance.model import MIB, Snapshot
from labkit.memory.balance.view import INLINE_STYLE, format_snapshot, render_balance
from labkit.memory.oom.model import NAMES_SHOWN, Holder, OutOfMemoryPage, list_measures
from labkit.render import escape
from labkit.text import format_bytes, plural


def format_page(page: OutOfMemoryPage) -> str:
    """The page as text."""
    rows = [f"  {words:<34}{figure:>12}" for words, figure in list_figures(page)]
    parts = ["\n".join([_name_page(page), *rows])]
    tensors = [f"  {figure:>10}  {words}" for figure, words in list_tensors(page)]
    if tensors:
        parts.append("\n".join(["the biggest live tensors", *tensors]))
    measures = [f"  {place}. {one}" for place, one in enumerate(_say_measures(page), start=1)]
    parts.append("\n".join(["what would help, in order", *measures]))
    if page.balance:
        parts.append(f"the balance after the error\n{format_snapshot(Snapshot((page.balance,)))}")
    return "\n\n".join(parts)


def render_page(page: OutOfMemoryPage) -> str:
    """The page as one piece of HTML."""
    figures = _render_rows(list_figures(page), "left", "right")
    tensors = _render_rows(list_tensors(page), "right", "left")
    measures = "".join(f"<li>{escape(one)}</li>" for one in _say_measures(page))
    parts = [
        f"<b>{escape(_name_page(page))}</b>{figures}",
        f"<b>the biggest live tensors</b>{tensors}" if tensors else "",
        f'<b>what would help, in order</b><ol style="margin:2px 0 10px">{measures}</ol>',
    ]
    if page.balance:
        parts.append(f"<b>the balance after the error</b>{render_balance(page.balance)}")
    return f'<div class="labkit-oom" style="{INLINE_STYLE}">{"".join(parts)}</div>'


def list_figures(page: OutOfMemoryPage) -> list[tuple[str, str]]:
    """The figures at the time of the error, each with its label; unknown ones are left out."""
    failure = page.failure
    rows = [
        ("asked for", failure.asked_bytes),
        ("free on the device", failure.free_bytes),
        ("tensors of this process", failure.allocated_bytes),
        ("cached by the allocator", failure.cached_bytes),
        ("free in private pools", failure.pooled_bytes),
        ("largest free block of the cache", page.cache and page.cache.largest_bytes),
        ("the same, of another stream", (page.cache and page.cache.other_stream_bytes) or None),
        ("allowed for this process", failure.allowed_bytes),
        ("total", failure.total_bytes),
    ]
    return [(words, format_bytes(count)) for words, count in rows if count is not None]


def list_tensors(page: OutOfMemoryPage, shown: int = 8) -> list[tuple[str, str]]:
    """The biggest live tensors, each with its bytes and names; then the sums of the rest."""
    tensors = page.live.tensors
    rows = [
        (format_bytes(one.held_bytes), f"{one.shape} {one.dtype}  {_join_names(one.holders)}")
        for one in tensors[:shown]
    ]
    rest = tensors[shown:]
    if rest:
        held = format_bytes(sum(one.held_bytes for one in rest))
        rows.append((held, f"in {plural(len(rest), 'more tensor')}"))
    if page.rounding_bytes >= MIB:
        rows.append((format_bytes(page.rounding_bytes), "added by the allocator's rounding"))
    unheld = page.unheld_bytes
    if unheld and unheld >= MIB:
        rows.append((format_bytes(unheld), "held by no Python object: mostly saved for backward"))
    if not page.live.complete:
        rows.append(("", "the search ran out of time: there can be more"))
    return rows


def _say_measures(page: OutOfMemoryPage) -> list[str]:
    return [
        one.words + (f" ({format_bytes(one.frees_bytes)})" if one.frees_bytes else "")
        for one in list_measures(page)
    ]


def _name_page(page: OutOfMemoryPage) -> str:
    return f"out of memory on {page.failure.device or 'the GPU'}"


def _join_names(holders: Sequence[Holder]) -> str:
    if not holders:
        return "no name found"
    more = len(holders) - NAMES_SHOWN
    names = ", ".join(holder.words for holder in holders[:NAMES_SHOWN])
    return f"{names} and {more} more" if more > 0 else names


def _render_rows(rows: Iterable[tuple[str, str]], *sides: str) -> str:
    lines = "".join(
        f"<tr>{''.join(map(_render_cell, row, sides, range(len(row))))}</tr>" for row in rows
    )
    style = "margin:2px 0 10px;border-collapse:collapse;background:none"
    return f'<table style="{style}">{lines}</table>' if lines else ""


def _render_cell(text: str, side: str, place: int) -> str:
    style = f"text-align:{side};padding:1px 12px 1px 0;font-weight:normal"
    if place == 0:  # it names the row
        return f'<th scope="row" style="{style}">{escape(text)}</th>'
    return f'<td style="{style}">{escape(text)}</td>'

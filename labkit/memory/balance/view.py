"""A snapshot as text and as HTML: for each device a bar of its terms, with figures that add up.

An SVG uses the surrounding text color. Its bars have colors of medium brightness that
color-blind readers can distinguish.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import NamedTuple

from labkit.memory.balance.model import (
    Balance,
    Snapshot,
    Term,
    divide_bar,
    list_terms,
    name_device,
    round_together,
)
from labkit.render import escape
from labkit.text import escape_controls, shorten

# Draws a number of cells for the term with this key.
Paint = Callable[[str, int], str]

BAR_WIDTH = 64
INDENT = " " * 8
LONGEST_NAME = 26

# Distinct without color, for logs and color-blind readers.
GLYPHS = {
    "allocated": "█",
    "cached": "▓",
    "context": "▒",
    "others": "╱",
    "reserved": "░",
    "unaccounted": "?",
    "free": "·",
}
PLAIN_GLYPHS = dict(zip(GLYPHS, "#=+/:?.", strict=True))
# ANSI colors that contrast with their neighbors on dark and light backgrounds. Free memory keeps
# the terminal's own color.
ANSI_COLORS = {
    "allocated": 94,
    "cached": 36,
    "context": 35,
    "others": 33,
    "reserved": 90,
    "unaccounted": 91,
}
PICTURE_COLORS = {
    "allocated": "#2f7ed8",
    "cached": "#6db3e8",
    "context": "#9a7fd1",
    "others": "#e08a2e",
    "reserved": "#8a8f98",
    "unaccounted": "#d6487e",
    "free": "none",
}


def format_snapshot(
    snapshot: Snapshot, *, color: bool = False, plain: bool = False, width: int = BAR_WIDTH
) -> str:
    """The snapshot as text, in MiB; ``plain`` draws the bars in ASCII."""
    glyphs = PLAIN_GLYPHS if plain else GLYPHS

    def paint(key: str, cells: int) -> str:
        drawn = glyphs[key] * cells
        return f"\x1b[{ANSI_COLORS[key]}m{drawn}\x1b[0m" if color and key in ANSI_COLORS else drawn

    blocks = [_format_balance(balance, paint, width) for balance in snapshot.balances]
    if snapshot.notes:
        blocks.append(escape_controls("\n".join(f"note: {note}" for note in snapshot.notes)))
    return "\n\n".join(blocks)


def format_figures(terms: list[Term], total: int | None) -> list[tuple[Term, str]]:
    """Each term with its figure in whole MiB; the known ones add up to the rounded total."""
    known = [term.held_bytes for term in terms if term.held_bytes is not None]
    if total is None:
        return [(term, format_mib(term.held_bytes)) for term in terms]
    shares = iter(round_together(known))
    return [
        (term, "unknown" if term.held_bytes is None else f"{next(shares):,} MiB") for term in terms
    ]


def format_mib(count: int | None) -> str:
    """Bytes in whole MiB, as in ``nvidia-smi``; None is "unknown".

    >>> format_mib(151397597184), format_mib(None)
    ('144,384 MiB', 'unknown')
    """
    return "unknown" if count is None else f"{round_together([count])[0]:,} MiB"


def list_remarks(balance: Balance) -> list[str]:
    """Remarks on the figures of this balance: trouble, shared memory, limits, unknown terms."""
    remarks = [balance.trouble] if balance.trouble else []
    if balance.shared and balance.kind != "cpu":
        remarks.append("its memory is shared with the system")
    if balance.limit_bytes is not None:
        machine = format_mib(balance.machine_bytes)
        remarks.append(f"{format_mib(balance.limit_bytes)} for this container, of {machine}")
    unknown = [term.words for term in list_terms(balance) if term.held_bytes is None]
    if unknown and balance.unaccounted_bytes is not None:
        remarks.append(f"unaccounted includes what is unknown: {', '.join(unknown)}")
    return remarks


def list_processes(balance: Balance) -> list[tuple[str, str]]:
    """For each process on the device: its id and name, and what it holds."""
    return [
        (f"{one.pid}  {shorten(one.name or '', LONGEST_NAME)}".rstrip(), format_mib(one.used_bytes))
        for one in balance.processes or ()
    ]


def count_processes(balance: Balance) -> str | None:
    """The number of processes, and whether their ids are the host's; None without processes."""
    if not balance.processes:
        return None
    count = len(balance.processes)
    words = f"{count} process" if count == 1 else f"{count} processes"
    return f"{words}, ids of the host" if balance.host_ids else words


def _format_balance(balance: Balance, paint: Paint, width: int) -> str:
    title = f"{name_device(balance):<8}{balance.name or 'unknown'}  {balance.uuid or ''}".rstrip()
    terms = _format_terms(balance, paint, width) if balance.is_readable else []
    processes = count_processes(balance)
    lines = [f"{INDENT}{processes}"] if processes else []
    lines += [f"{INDENT}  {who:<37}{held:>13}" for who, held in list_processes(balance)]
    lines += [f"{INDENT}{remark}" for remark in list_remarks(balance)]
    # Names of devices and processes are untrusted; the terms contain our color sequences.
    return "\n".join([escape_controls(title), *terms, *map(escape_controls, lines)])


def _format_terms(balance: Balance, paint: Paint, width: int) -> list[str]:
    terms = list_terms(balance)
    bar = "".join(paint(key, cells) for key, cells in divide_bar(terms, width))
    rows = [
        f"{INDENT}{paint(term.key, 1)} {term.words:<37}{figure:>13}"
        for term, figure in format_figures(terms, balance.total_bytes)
    ]
    total = f"{INDENT}  {'total':<37}{format_mib(balance.total_bytes):>13}"
    return [f"{INDENT}{bar}", *rows, total] if bar else [*rows, total]


def render_snapshot(snapshot: Snapshot) -> str:
    """The snapshot as HTML: each device's picture, processes and remarks, and the notes."""
    parts = [render_balance(balance) + _render_details(balance) for balance in snapshot.balances]
    parts += [f"<p>note: {escape(note)}</p>" for note in snapshot.notes]
    return f'<div class="labkit-memory" style="{INLINE_STYLE}">{"".join(parts)}</div>'


def render_balance(balance: Balance, *, standalone: bool = False) -> str:
    """The balance as an SVG: the bar, and each term with its color and figure.

    A ``standalone`` SVG is a separate file and follows the reader's light or dark theme.
    """
    title = f"{name_device(balance)}  {balance.name or 'unknown'}"
    terms = list_terms(balance)
    rows = [
        Row(term.words, figure, PICTURE_COLORS[term.key])
        for term, figure in format_figures(terms, balance.total_bytes)
    ]
    rows.append(Row("total", format_mib(balance.total_bytes)))
    sheet = Sheet(
        name=f"memory of {title}",
        title=title,
        terms=terms,
        colors=PICTURE_COLORS,
        figures={term.key: format_mib(term.held_bytes) for term in terms},
        rows=rows if balance.is_readable else (),
    )
    return render_sheet(sheet, standalone=standalone)


def _render_details(balance: Balance) -> str:
    lines = [count_processes(balance) or ""]
    lines += [f"{who}: {held}" for who, held in list_processes(balance)]
    lines += list_remarks(balance)
    return "".join(f"<div>{escape(line)}</div>" for line in lines if line)


WIDTH, BAR_TOP, BAR_HEIGHT, ROW_HEIGHT = 640, 32, 26, 20
FIGURES_RIGHT = 430
# A separate file has no surrounding text color, so it follows the reader's theme.
STANDALONE_STYLE = (
    "<style>svg{color:#24292f;background:none}"
    "@media (prefers-color-scheme:dark){svg{color:#e6edf3}}</style>"
)
# The text color of JupyterLab's and VS Code's themes; elsewhere it is inherited.
INLINE_STYLE = (
    "color:var(--jp-content-font-color1,var(--vscode-foreground,currentColor));"
    "font:13px/1.5 sans-serif"
)


class Row(NamedTuple):
    """A line of a sheet; a sum has no color, because it is not in the bar."""

    words: str
    figure: str
    color: str | None = None


class Sheet(NamedTuple):
    """The data of an SVG. ``name`` is for screen readers; ``colors``, ``figures``: by term key."""

    name: str
    title: str
    terms: Sequence[Term]
    colors: Mapping[str, str]
    figures: Mapping[str, str]
    rows: Sequence[Row]


def render_sheet(sheet: Sheet, *, standalone: bool = False) -> str:
    """The sheet as an SVG: its title, a bar of its terms, and its rows."""
    body = [_render_text(sheet.title, 0, 20, ' font-weight="bold"'), *_render_bar(sheet)]
    top = BAR_TOP + BAR_HEIGHT + 8
    for place, row in enumerate(sheet.rows):
        body += _render_row(row, top + place * ROW_HEIGHT)
    height = top + len(sheet.rows) * ROW_HEIGHT if sheet.rows else BAR_TOP
    style = "" if standalone else ' style="display:block;max-width:100%"'
    text = ", ".join(f"{row.words} {row.figure.strip()}" for row in sheet.rows)
    text = f"{sheet.name}: {text}" if text else sheet.name
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{WIDTH}" height="{height}"'
        f' viewBox="0 0 {WIDTH} {height}" role="img" aria-label="{escape(text)}"'
        f' font-family="sans-serif" font-size="13"'
        f' fill="currentColor"{style}><title>{escape(sheet.name)}</title>'
        f"{STANDALONE_STYLE if standalone else ''}{''.join(body)}</svg>"
    )


def _render_bar(sheet: Sheet) -> Iterable[str]:
    words = {term.key: term.words for term in sheet.terms}
    left = 0
    for key, cells in divide_bar(sheet.terms, WIDTH):
        yield (
            f'<rect x="{left}" y="{BAR_TOP}" width="{cells}" height="{BAR_HEIGHT}"'
            f' fill="{sheet.colors[key]}">'
            f"<title>{escape(f'{words[key]}: {sheet.figures[key]}')}</title></rect>"
        )
        left += cells
    if left:
        yield (
            f'<rect x="0.5" y="{BAR_TOP}.5" width="{WIDTH - 1}" height="{BAR_HEIGHT - 1}"'
            ' fill="none" stroke="currentColor" stroke-opacity="0.4"/>'
        )


def _render_row(row: Row, top: int) -> Iterable[str]:
    if row.color is not None:
        yield (
            f'<rect x="0.5" y="{top + 3}.5" width="12" height="12" fill="{row.color}"'
            ' stroke="currentColor" stroke-opacity="0.4"/>'
        )
    yield _render_text(row.words, 22, top + 14)
    yield _render_text(row.figure, FIGURES_RIGHT, top + 14, ' text-anchor="end"')


def _render_text(text: str, left: int, base: int, attributes: str = "") -> str:
    return f'<text x="{left}" y="{base}"{attributes}>{escape(text)}</text>'

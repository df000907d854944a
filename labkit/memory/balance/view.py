"""A sheet as an SVG picture: a title, a bar of terms, and a row with a figure for each of them.

The colours are of middle brightness and told apart without red against green; text takes the
colour of the text around it.

A snapshot as text: each device's bar, and under it the terms as figures that add up.

A snapshot as html: each device's balance as an SVG picture, its processes, the notes.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from html import escape
from typing import NamedTuple

from labkit.memory.balance.model import Balance, Term, divide_bar, list_terms, round_together
from labkit.memory.balance.read import Snapshot

# Gives so many cells of a term, by its key.
Paint = Callable[[str, int], str]

BAR_WIDTH = 64
INDENT = " " * 8

# Told apart without colour too: by eye on a terminal, in a log, and by who sees no colours.
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
# Bright blue, cyan, magenta, yellow, white, red: each is told from its neighbours on dark and
# light grounds. Free keeps the terminal's own colour.
TEXT_COLOURS = {
    "allocated": 94,
    "cached": 36,
    "context": 35,
    "others": 33,
    "reserved": 90,
    "unaccounted": 91,
}


def format_snapshot(
    snapshot: Snapshot, *, colour: bool = False, plain: bool = False, width: int = BAR_WIDTH
) -> str:
    """The snapshot as a person reads it, in MiB; ``plain`` draws the bars in ASCII."""
    glyphs = PLAIN_GLYPHS if plain else GLYPHS

    def paint(key: str, cells: int) -> str:
        drawn = glyphs[key] * cells
        return (
            f"\x1b[{TEXT_COLOURS[key]}m{drawn}\x1b[0m" if colour and key in TEXT_COLOURS else drawn
        )

    blocks = [_format_balance(balance, paint, width) for balance in snapshot.balances]
    if snapshot.notes:
        blocks.append("\n".join(f"note: {note}" for note in snapshot.notes))
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
    """Bytes in whole MiB, as ``nvidia-smi`` writes them; None is "unknown".

    >>> format_mib(151397597184), format_mib(None)
    ('144,384 MiB', 'unknown')
    """
    return "unknown" if count is None else f"{round_together([count])[0]:,} MiB"


def name_device(balance: Balance) -> str:
    """Torch's name for the device where that is known, else its number in ``nvidia-smi``."""
    number = "" if balance.nvml_index is None else f" {balance.nvml_index}"
    return balance.torch_name or f"gpu{number}"


def list_remarks(balance: Balance) -> list[str]:
    """What has to be known to read this balance: limits, shared memory, trouble."""
    remarks = []
    if balance.trouble:
        remarks.append(balance.trouble)
    if balance.shared and balance.kind != "cpu":
        remarks.append("its memory is shared with the system")
    if balance.limit_bytes is not None:
        machine = format_mib(balance.machine_bytes)
        remarks.append(f"{format_mib(balance.limit_bytes)} for this container, of {machine}")
    unknown = [term.words for term in list_terms(balance) if term.held_bytes is None]
    if unknown and balance.unaccounted_bytes is not None:
        remarks.append(f"in unaccounted, for want of a figure: {', '.join(unknown)}")
    return remarks


def list_processes(balance: Balance) -> list[tuple[str, str]]:
    """A line for each process on the device: its id and name, and what it holds."""
    return [
        (f"{one.pid}  {_shorten(one.name)}".rstrip(), format_mib(one.used_bytes))
        for one in balance.processes or ()
    ]


def count_processes(balance: Balance) -> str | None:
    """How many processes there are, and whose ids they have; None where there are none."""
    if not balance.processes:
        return None
    count = len(balance.processes)
    words = f"{count} process" if count == 1 else f"{count} processes"
    return f"{words}, ids of the host" if balance.host_ids else words


def _format_balance(balance: Balance, paint: Paint, width: int) -> str:
    title = [f"{name_device(balance):<8}{balance.name or 'unknown'}", balance.uuid or ""]
    lines = ["  ".join(title).rstrip()]
    if balance.total_bytes is not None or not balance.trouble:
        lines += _format_terms(balance, paint, width)
    processes = count_processes(balance)
    if processes:
        lines.append(f"{INDENT}{processes}")
        lines += [f"{INDENT}  {who:<37}{held:>13}" for who, held in list_processes(balance)]
    lines += [f"{INDENT}{remark}" for remark in list_remarks(balance)]
    return "\n".join(lines)


def _format_terms(balance: Balance, paint: Paint, width: int) -> list[str]:
    terms = list_terms(balance)
    bar = "".join(paint(key, cells) for key, cells in divide_bar(terms, width))
    rows = [
        f"{INDENT}{paint(term.key, 1)} {term.words:<37}{figure:>13}"
        for term, figure in format_figures(terms, balance.total_bytes)
    ]
    total = f"{INDENT}  {'total':<37}{format_mib(balance.total_bytes):>13}"
    return [f"{INDENT}{bar}", *rows, total] if bar else [*rows, total]


def _shorten(name: str | None, length: int = 26) -> str:
    if name is None or len(name) <= length:
        return name or ""
    return f"{name[: length - 1]}…"


PICTURE_COLOURS = {
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
        Row(term.words, figure, PICTURE_COLOURS[term.key])
        for term, figure in format_figures(terms, balance.total_bytes)
    ]
    total = Row("total", format_mib(balance.total_bytes))
    figures = {term.key: format_mib(term.held_bytes) for term in terms}
    return draw_sheet(
        Sheet(
            f"memory of {title}",
            title,
            terms,
            PICTURE_COLOURS,
            figures,
            (*rows, total) if told else (),
        ),
        standalone=standalone,
    )


def _list_details(balance: Balance) -> str:
    lines = [count_processes(balance) or ""]
    lines += [f"{who}: {held}" for who, held in list_processes(balance)]
    lines += list_remarks(balance)
    return "".join(f"<div>{escape(line)}</div>" for line in lines if line)


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

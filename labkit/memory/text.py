"""A snapshot as text: each device's bar, and under it the terms as figures that add up."""

from __future__ import annotations

from collections.abc import Callable

from labkit.memory.balance import Balance, Term, divide_bar, list_terms, round_together
from labkit.memory.snapshot import Snapshot

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
COLOURS = {
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
        return f"\x1b[{COLOURS[key]}m{drawn}\x1b[0m" if colour and key in COLOURS else drawn

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

"""A comparison as people read it: the two runs, a small table a notebook, what changed."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from labkit.runner.compare import CellPair, Comparison, NotebookPair, Number, Pair
from labkit.runner.report.markup import count, shorten
from labkit.runner.report.saved import Cell, Run
from labkit.runner.report.sections import format_moment, join_names
from labkit.units import format_bytes, format_seconds

NAMED_CELLS = 8
# Below this a cell's seconds tell of the machine's mood more than of the cell.
SHORT_SECONDS = 0.05
SAME_WITHIN = 0.05
FIRST_LINE_CHARACTERS = 44
FIGURES = {
    "seconds": "time",
    "startup_seconds": "kernel start",
    "median_cell_seconds": "median cell",
    "peak_bytes": "peak memory",
    "cuda_peak_bytes": "peak on CUDA",
}


def format_comparison(comparison: Comparison) -> str:
    """The whole comparison as plain text; a ratio is B over A."""
    blocks = [
        f"A  {describe_run(comparison.a)}\nB  {describe_run(comparison.b)}",
        describe_outcome(comparison),
        *(_format_notebook(pair) for pair in comparison.notebooks),
    ]
    return "\n\n".join([*blocks, *describe_loners(comparison)])


def describe_run(run: Run) -> str:
    """A run in a line: its folder, what came of it, where and when it ran."""
    torch = run.environment.get("torch")
    words = [
        str(run.folder),
        run.status.replace("_", " "),
        f"on {run.device}" if run.device else "device unknown",
        f"PyTorch {torch}" if torch else "",
        format_moment(run.started_at),
    ]
    return ", ".join(word for word in words if word)


def describe_outcome(comparison: Comparison) -> str:
    """The comparison in a sentence or two."""
    if not comparison.notebooks:
        return "The two runs have no notebook in common."
    timed = [pair for pair in comparison.notebooks if pair.figures["seconds"].ratio is not None]
    untimed = [pair.a.name for pair in comparison.notebooks if pair not in timed]
    sentences = []
    if timed:
        total = Pair(sum(p.a.seconds or 0 for p in timed), sum(p.b.seconds or 0 for p in timed))
        sentences.append(
            f"For {join_names([pair.a.name for pair in timed])}, A took {format_seconds(total.a)}"
            f" and B {format_seconds(total.b)}: {describe_ratio(total.ratio or 0)}."
        )
    if untimed:
        sentences.append(f"Of {join_names(untimed)} the time of a side is unknown.")
    changed = sum(len(pair.claims) for pair in comparison.notebooks)
    sentences.append(f"{count(changed, 'claim') if changed else 'No claim'} changed.")
    return " ".join(sentences)


def describe_ratio(ratio: float) -> str:
    """A ratio of seconds in words; within 5 per cent it is "about the same".

    >>> describe_ratio(0.5), describe_ratio(2.0), describe_ratio(1.03)
    ('B is 2.00 times as fast', 'B takes 2.00 times as long', 'about the same')
    """
    if abs(ratio - 1) <= SAME_WITHIN:
        return "about the same"
    if ratio > 1:
        return f"B takes {format_number(ratio)} times as long"
    return f"B is {format_number(1 / ratio)} times as fast" if ratio else "B took no time"


def format_ratio(ratio: float | None) -> str:
    """A ratio with three figures; "unknown" where there is none.

    >>> format_ratio(0.5), format_ratio(123.4), format_ratio(None)
    ('0.50x', '123x', 'unknown')
    """
    return "unknown" if ratio is None else f"{format_number(ratio)}x"


def format_number(value: float) -> str:
    """A number with about three figures and never an exponent."""
    if value >= 100:
        return f"{value:,.0f}"
    return f"{value:.1f}" if value >= 10 else f"{value:.2f}" if value >= 0.1 else f"{value:.3f}"


def format_figure(name: str, value: Number | None) -> str:
    """Bytes or seconds, as the figure's name ends; None is "unknown"."""
    if value is None:
        return "unknown"
    return format_bytes(round(value)) if name.endswith("_bytes") else format_seconds(value)


def list_figures(pair: NotebookPair) -> list[tuple[str, Pair]]:
    """The figures that a side knows, and time and peak memory in any case."""
    always = ("seconds", "peak_bytes")
    return [
        (name, pair.figures[name])
        for name in FIGURES
        if name in always or (pair.figures[name].a, pair.figures[name].b) != (None, None)
    ]


def _format_notebook(pair: NotebookPair) -> str:
    status = (
        pair.a.status if pair.a.status == pair.b.status else f"A {pair.a.status}, B {pair.b.status}"
    )
    lines = [f"{pair.a.name}: {status.replace('_', ' ')}"]
    rows = [("", "A", "B", "B/A")]
    for name, figure in list_figures(pair):
        sides = (format_figure(name, figure.a), format_figure(name, figure.b))
        rows.append((FIGURES[name], *sides, format_ratio(figure.ratio)))
    lines += _align(rows)
    lines += [f"  {sentence}" for sentence in describe_medians(pair)]
    lines += _format_cells(choose_cells(pair.cells))
    lines += [
        f"  claim changed: {change.statement}: A {change.a}, B {change.b}" for change in pair.claims
    ]
    lines += [f"  only in A: {name_cell(cell)}" for cell in pair.only_a]
    lines += [f"  only in B: {name_cell(cell)}" for cell in pair.only_b]
    return "\n".join(lines)


def describe_medians(pair: NotebookPair) -> list[str]:
    """The medians of the cells' own ratios, in words; none where no cell has one."""
    ratios = {"time": pair.median_seconds_ratio, "peak memory": pair.median_peak_ratio}
    known = [f"{format_ratio(ratio)} in {name}" for name, ratio in ratios.items() if ratio]
    if not known:
        return []
    return [f"median of the ratios of {count(len(pair.cells), 'cell')}: {' and '.join(known)}"]


def choose_cells(cells: Iterable[CellPair]) -> list[CellPair]:
    """The cells whose seconds differ most, at most eight.

    Left out are those that are short on both sides, and those that took about the same.
    """
    differing = [
        pair
        for pair in cells
        if pair.seconds.ratio is not None
        and abs(pair.seconds.ratio - 1) > SAME_WITHIN
        and max(pair.seconds.a or 0, pair.seconds.b or 0) >= SHORT_SECONDS
    ]
    differing.sort(key=lambda pair: abs((pair.seconds.b or 0) - (pair.seconds.a or 0)))
    return differing[::-1][:NAMED_CELLS]


def _format_cells(cells: Sequence[CellPair]) -> list[str]:
    if not cells:
        return []
    rows = [
        (
            name_cell(pair.b),
            format_seconds(pair.seconds.a),
            format_seconds(pair.seconds.b),
            format_ratio(pair.seconds.ratio),
        )
        for pair in cells
    ]
    return ["  the cells whose time differs most:", *_align(rows, indent="    ")]


def name_cell(cell: Cell) -> str:
    """A cell by its number and first line."""
    number = "skipped cell" if cell.number is None else f"cell {cell.number}"
    return f"{number}  {shorten(cell.first_line, FIRST_LINE_CHARACTERS)}"


def describe_loners(comparison: Comparison) -> list[str]:
    """The notebooks that only one of the runs has, a line a run."""
    sides: tuple[tuple[str, tuple[str, ...]], ...] = (
        ("A", comparison.only_a),
        ("B", comparison.only_b),
    )
    return [f"only in {side}: {join_names(names)}" for side, names in sides if names]


def _align(rows: Sequence[Sequence[str]], indent: str = "  ") -> list[str]:
    """The rows as lines: the first column to the left, the others to the right."""
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]

    def write(row: Sequence[str]) -> str:
        rest = (f"{cell:>{wide}}" for cell, wide in zip(row[1:], widths[1:], strict=True))
        return "  ".join([f"{row[0]:<{widths[0]}}", *rest])

    return [f"{indent}{write(row)}".rstrip() for row in rows]

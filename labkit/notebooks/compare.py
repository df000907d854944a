"""Compares two runs: seconds and peaks with their ratios, and claims that changed.

A ratio is B / A; it is None if a value is unknown or A is 0.
"""

from __future__ import annotations

import statistics
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import msgspec

from labkit.notebooks.report.page import format_moment
from labkit.notebooks.result import CellResult, ClaimOutcome, NotebookResult, SavedRun
from labkit.render import to_words
from labkit.text import (
    escape_controls,
    format_bytes,
    format_seconds,
    join_names,
    plural,
    shorten,
)

Number = int | float


@dataclass(frozen=True)
class Pair:
    """A value in both runs, None if unknown."""

    a: Number | None
    b: Number | None

    @property
    def ratio(self) -> float | None:
        """B / A; None if a value is unknown or A is 0."""
        return None if self.a is None or self.b is None or self.a <= 0 else self.b / self.a


@dataclass(frozen=True)
class CellPair:
    """The same cell in both runs."""

    a: CellResult
    b: CellResult

    @property
    def seconds(self) -> Pair:
        """Wall seconds of each."""
        return Pair(self.a.seconds, self.b.seconds)

    @property
    def peak_bytes(self) -> Pair:
        """The process's peak in each."""
        memories = (self.a.memory, self.b.memory)
        first, second = (memory.peak_bytes if memory else None for memory in memories)
        return Pair(first, second)

    @property
    def cuda_peak_bytes(self) -> Pair:
        """The highest peak on any one CUDA device in each."""
        return Pair(self.a.cuda_peak_bytes, self.b.cuda_peak_bytes)


@dataclass(frozen=True)
class ClaimChange:
    """A claim whose outcome differs: "held", "failed", "skipped: reason" or "absent"."""

    statement: str
    a: str
    b: str


@dataclass(frozen=True)
class NotebookPair:
    """A notebook in both runs: matched cells, cells in only one run, and changed claims."""

    a: NotebookResult
    b: NotebookResult
    cells: tuple[CellPair, ...]
    only_a: tuple[CellResult, ...]
    only_b: tuple[CellResult, ...]
    claims: tuple[ClaimChange, ...]

    @property
    def figures(self) -> dict[str, Pair]:
        """Seconds, peak bytes and the matched cells' median seconds, by their JSON keys."""
        timed = [
            pair.seconds for pair in self.cells if None not in (pair.seconds.a, pair.seconds.b)
        ]
        return {
            "seconds": Pair(self.a.seconds, self.b.seconds),
            "startup_seconds": Pair(self.a.startup_seconds, self.b.startup_seconds),
            "peak_bytes": Pair(self.a.peak_bytes, self.b.peak_bytes),
            "cuda_peak_bytes": Pair(self.a.cuda_peak_bytes, self.b.cuda_peak_bytes),
            "median_cell_seconds": Pair(
                find_median(pair.a for pair in timed), find_median(pair.b for pair in timed)
            ),
        }

    @property
    def median_seconds_ratio(self) -> float | None:
        """The median of the matched cells' time ratios."""
        return find_median(pair.seconds.ratio for pair in self.cells)

    @property
    def median_peak_ratio(self) -> float | None:
        """The median of the matched cells' ratios of process peaks."""
        return find_median(pair.peak_bytes.ratio for pair in self.cells)


@dataclass(frozen=True)
class Comparison:
    """Two runs and their differences: notebooks in both by name, and those in only one run."""

    a: SavedRun
    b: SavedRun
    notebooks: tuple[NotebookPair, ...]
    only_a: tuple[str, ...]
    only_b: tuple[str, ...]


def compare_runs(a: SavedRun, b: SavedRun) -> Comparison:
    """Compares the two runs; notebooks are matched by name."""
    others = {notebook.name: notebook for notebook in b.result.notebooks}
    names = {notebook.name for notebook in a.result.notebooks}
    return Comparison(
        a,
        b,
        tuple(
            _compare_notebooks(notebook, others[notebook.name])
            for notebook in a.result.notebooks
            if notebook.name in others
        ),
        tuple(notebook.name for notebook in a.result.notebooks if notebook.name not in others),
        tuple(notebook.name for notebook in b.result.notebooks if notebook.name not in names),
    )


def _compare_notebooks(a: NotebookResult, b: NotebookResult) -> NotebookPair:
    cells = match_cells(a.cells, b.cells)
    matched_a, matched_b = {id(pair.a) for pair in cells}, {id(pair.b) for pair in cells}
    return NotebookPair(
        a,
        b,
        cells,
        tuple(cell for cell in a.cells if id(cell) not in matched_a),
        tuple(cell for cell in b.cells if id(cell) not in matched_b),
        _compare_claims(a.claims, b.claims),
    )


def match_cells(a: Sequence[CellResult], b: Sequence[CellResult]) -> tuple[CellPair, ...]:
    """Matches cells by index and first line, then the others by first line, in order."""
    places = {(cell.index, cell.first_line): cell for cell in b}
    pairs = {cell.index: places.pop((cell.index, cell.first_line), None) for cell in a}
    left: dict[str, list[CellResult]] = {}
    for cell in places.values():
        left.setdefault(cell.first_line, []).append(cell)
    for cell in a:
        if pairs[cell.index] is None and left.get(cell.first_line):
            pairs[cell.index] = left[cell.first_line].pop(0)
    return tuple(
        CellPair(cell, other) for cell in a for other in [pairs[cell.index]] if other is not None
    )


def _compare_claims(
    a: Sequence[ClaimOutcome], b: Sequence[ClaimOutcome]
) -> tuple[ClaimChange, ...]:
    before, after = _list_outcomes(a), _list_outcomes(b)
    changes = (
        ClaimChange(key[0], before.get(key, "absent"), after.get(key, "absent"))
        for key in {**before, **after}
    )
    return tuple(change for change in changes if change.a != change.b)


def _list_outcomes(claims: Sequence[ClaimOutcome]) -> dict[tuple[str, int], str]:
    """Each claim's outcome, keyed by its statement and the number of earlier equal statements."""
    outcomes: dict[tuple[str, int], str] = {}
    times: dict[str, int] = {}
    for claim in claims:
        time = times[claim.statement] = times.get(claim.statement, -1) + 1
        word = f"skipped: {claim.skipped}" if claim.skipped else "skipped"
        if claim.held is not None:
            word = "held" if claim.held else "failed"
        outcomes[claim.statement, time] = word
    return outcomes


def find_median(values: Iterable[Number | None]) -> float | None:
    """The median of the known values; None if none is known."""
    known = [value for value in values if value is not None]
    return float(statistics.median(known)) if known else None


def describe_comparison(comparison: Comparison) -> dict[str, object]:
    """The comparison as ``--json`` prints it; unknown values are null."""
    return {
        "a": _describe_run(comparison.a),
        "b": _describe_run(comparison.b),
        "notebooks": [_describe_notebook(pair) for pair in comparison.notebooks],
        "only_in_a": list(comparison.only_a),
        "only_in_b": list(comparison.only_b),
    }


def _describe_run(run: SavedRun) -> dict[str, object]:
    result = run.result
    return {
        "folder": str(run.folder),
        "status": result.status,
        "started_at": result.started_at,
        "device": result.device,
        "environment": msgspec.to_builtins(result.environment),
    }


def _describe_notebook(pair: NotebookPair) -> dict[str, object]:
    return {
        "name": pair.a.name,
        "status": {"a": pair.a.status, "b": pair.b.status},
        **{name: _describe_pair(figure) for name, figure in pair.figures.items()},
        "median_seconds_ratio": pair.median_seconds_ratio,
        "median_peak_ratio": pair.median_peak_ratio,
        "claims_changed": [
            {"statement": change.statement, "a": change.a, "b": change.b} for change in pair.claims
        ],
        "cells": [_describe_cells(cells) for cells in pair.cells],
        "only_in_a": [_describe_cell(cell) for cell in pair.only_a],
        "only_in_b": [_describe_cell(cell) for cell in pair.only_b],
    }


def _describe_cells(pair: CellPair) -> dict[str, object]:
    return {
        "index": {"a": pair.a.index, "b": pair.b.index},
        "first_line": pair.a.first_line,
        "status": {"a": pair.a.status, "b": pair.b.status},
        "seconds": _describe_pair(pair.seconds),
        "peak_bytes": _describe_pair(pair.peak_bytes),
        "cuda_peak_bytes": _describe_pair(pair.cuda_peak_bytes),
    }


def _describe_cell(cell: CellResult) -> dict[str, object]:
    return {"index": cell.index, "first_line": cell.first_line}


def _describe_pair(pair: Pair) -> dict[str, Number | None]:
    """Both figures and their ratio."""
    return {"a": pair.a, "b": pair.b, "ratio": pair.ratio}


NAMED_CELLS = 8
# Below this, a cell's seconds are mostly noise.
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
    """The whole comparison as plain text; a ratio is B / A."""
    blocks = [
        f"A  {_say_run(comparison.a)}\nB  {_say_run(comparison.b)}",
        _describe_outcome(comparison),
        *(_format_notebook(pair) for pair in comparison.notebooks),
    ]
    blocks += _list_unmatched(comparison)
    return escape_controls("\n\n".join(blocks))


def _say_run(run: SavedRun) -> str:
    """One line about a run: its folder, its status, its device and its start."""
    result = run.result
    words = [
        str(run.folder),
        to_words(result.status),
        f"on {result.device}" if result.device else "device unknown",
        f"PyTorch {result.environment.torch}" if result.environment.torch else "",
        format_moment(result.started_at),
    ]
    return ", ".join(word for word in words if word)


def _describe_outcome(comparison: Comparison) -> str:
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
            f" and B {format_seconds(total.b)}: {_describe_ratio(total.ratio or 0)}."
        )
    if untimed:
        sentences.append(f"The time of {join_names(untimed)} is unknown in at least one run.")
    changed = sum(len(pair.claims) for pair in comparison.notebooks)
    sentences.append(f"{plural(changed, 'claim') if changed else 'No claim'} changed.")
    return " ".join(sentences)


def _describe_ratio(ratio: float) -> str:
    """A ratio of seconds in words; within 5 percent it is "about the same".

    >>> _describe_ratio(0.5), _describe_ratio(2.0), _describe_ratio(1.03)
    ('B is 2.00 times as fast', 'B takes 2.00 times as long', 'about the same')
    """
    if abs(ratio - 1) <= SAME_WITHIN:
        return "about the same"
    if ratio > 1:
        return f"B takes {_format_number(ratio)} times as long"
    return f"B is {_format_number(1 / ratio)} times as fast" if ratio else "B took no time"


def format_ratio(ratio: float | None) -> str:
    """A ratio with three digits; "unknown" for None.

    >>> format_ratio(0.5), format_ratio(123.4), format_ratio(None)
    ('0.50x', '123x', 'unknown')
    """
    return "unknown" if ratio is None else f"{_format_number(ratio)}x"


def _format_number(value: float) -> str:
    """A number with about three digits and without an exponent."""
    if value >= 100:
        return f"{value:,.0f}"
    return f"{value:.1f}" if value >= 10 else f"{value:.2f}" if value >= 0.1 else f"{value:.3f}"


def _format_figure(name: str, value: Number | None) -> str:
    """Bytes or seconds, chosen by the end of the name; None is "unknown"."""
    if value is None:
        return "unknown"
    return format_bytes(round(value)) if name.endswith("_bytes") else format_seconds(value)


def _list_figures(pair: NotebookPair) -> list[tuple[str, Pair]]:
    """The figures known in either run; time and peak memory are always listed."""
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
    lines = [f"{pair.a.name}: {to_words(status)}"]
    rows = [("", "A", "B", "B/A")]
    for name, figure in _list_figures(pair):
        sides = (_format_figure(name, figure.a), _format_figure(name, figure.b))
        rows.append((FIGURES[name], *sides, format_ratio(figure.ratio)))
    lines += _align(rows)
    lines += [f"  {sentence}" for sentence in _describe_medians(pair)]
    numbers = pair.a.cell_numbers, pair.b.cell_numbers
    lines += _format_cells(pair.cells, numbers[1])
    lines += [
        f"  claim changed: {change.statement}: A {change.a}, B {change.b}" for change in pair.claims
    ]
    lines += [f"  only in A: {_name_cell(cell, numbers[0])}" for cell in pair.only_a]
    lines += [f"  only in B: {_name_cell(cell, numbers[1])}" for cell in pair.only_b]
    return "\n".join(lines)


def _describe_medians(pair: NotebookPair) -> list[str]:
    """The medians of the cells' ratios, in words; empty if no cell has a ratio."""
    ratios = {"time": pair.median_seconds_ratio, "peak memory": pair.median_peak_ratio}
    known = [f"{format_ratio(ratio)} in {name}" for name, ratio in ratios.items() if ratio]
    if not known:
        return []
    return [f"median of the ratios of {plural(len(pair.cells), 'cell')}: {' and '.join(known)}"]


def choose_cells(cells: Iterable[CellPair]) -> list[CellPair]:
    """The cells whose seconds differ most, at most eight.

    Cells that are short in both runs, or that took about the same time, are left out.
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


def _format_cells(cells: Iterable[CellPair], numbers: dict[int, int]) -> list[str]:
    rows = [
        (
            _name_cell(pair.b, numbers),
            format_seconds(pair.seconds.a),
            format_seconds(pair.seconds.b),
            format_ratio(pair.seconds.ratio),
        )
        for pair in choose_cells(cells)
    ]
    return ["  the cells whose time differs most:", *_align(rows, indent="    ")] if rows else []


def _name_cell(cell: CellResult, numbers: dict[int, int]) -> str:
    number = numbers.get(cell.index)
    named = "skipped cell" if number is None else f"cell {number}"
    return f"{named}  {shorten(cell.first_line, FIRST_LINE_CHARACTERS)}"


def _list_unmatched(comparison: Comparison) -> list[str]:
    sides = (("A", comparison.only_a), ("B", comparison.only_b))
    return [f"only in {side}: {join_names(names)}" for side, names in sides if names]


def _align(rows: Sequence[Sequence[str]], indent: str = "  ") -> list[str]:
    """The rows as lines: the first column is left-aligned, the others right-aligned."""
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]

    def write(row: Sequence[str]) -> str:
        rest = (f"{cell:>{wide}}" for cell, wide in zip(row[1:], widths[1:], strict=True))
        return "  ".join([f"{row[0]:<{widths[0]}}", *rest])

    return [f"{indent}{write(row)}".rstrip() for row in rows]

"""Two runs side by side: seconds and peaks with their ratios, and claims that changed.

A ratio is B over A, and there is none where a side is unknown or A is 0.
"""

from __future__ import annotations

import statistics
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from labkit.runner.report.saved import Cell, Claim, Notebook, Run, cell_cuda_peak

Number = int | float


@dataclass(frozen=True)
class Pair:
    """A figure of both runs, None where unknown."""

    a: Number | None
    b: Number | None

    @property
    def ratio(self) -> float | None:
        """B over A; None where a side is unknown or A is 0."""
        return None if self.a is None or self.b is None or self.a <= 0 else self.b / self.a


@dataclass(frozen=True)
class CellPair:
    """The same cell in both runs."""

    a: Cell
    b: Cell

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
        return Pair(cell_cuda_peak(self.a), cell_cuda_peak(self.b))


@dataclass(frozen=True)
class ClaimChange:
    """A claim whose outcome differs: "held", "failed", "skipped: reason" or "absent"."""

    statement: str
    a: str
    b: str


@dataclass(frozen=True)
class NotebookPair:
    """A notebook of both runs: its cells matched, those of one side alone, its changed claims."""

    a: Notebook
    b: Notebook
    cells: tuple[CellPair, ...]
    only_a: tuple[Cell, ...]
    only_b: tuple[Cell, ...]
    claims: tuple[ClaimChange, ...]

    @property
    def figures(self) -> dict[str, Pair]:
        """Seconds, peak bytes and median seconds of a matched cell, under their names in JSON."""
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
        """The median over the matched cells of each one's ratio of seconds."""
        return find_median(pair.seconds.ratio for pair in self.cells)

    @property
    def median_peak_ratio(self) -> float | None:
        """The median over the matched cells of each one's ratio of process peaks."""
        return find_median(pair.peak_bytes.ratio for pair in self.cells)


@dataclass(frozen=True)
class Comparison:
    """Two runs and what differs: notebooks of both by name, and those of one side alone."""

    a: Run
    b: Run
    notebooks: tuple[NotebookPair, ...]
    only_a: tuple[str, ...]
    only_b: tuple[str, ...]


def compare_runs(a: Run, b: Run) -> Comparison:
    """The two runs side by side, notebooks matched by name."""
    others = {notebook.name: notebook for notebook in b.notebooks}
    names = {notebook.name for notebook in a.notebooks}
    return Comparison(
        a,
        b,
        tuple(
            _compare_notebooks(notebook, others[notebook.name])
            for notebook in a.notebooks
            if notebook.name in others
        ),
        tuple(notebook.name for notebook in a.notebooks if notebook.name not in others),
        tuple(notebook.name for notebook in b.notebooks if notebook.name not in names),
    )


def _compare_notebooks(a: Notebook, b: Notebook) -> NotebookPair:
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


def match_cells(a: Sequence[Cell], b: Sequence[Cell]) -> tuple[CellPair, ...]:
    """The cells of both: those with one index and first line, then by first line in order."""
    places = {(cell.index, cell.first_line): cell for cell in b}
    pairs = {cell.index: places.pop((cell.index, cell.first_line), None) for cell in a}
    left: dict[str, list[Cell]] = {}
    for cell in places.values():
        left.setdefault(cell.first_line, []).append(cell)
    for cell in a:
        if pairs[cell.index] is None and left.get(cell.first_line):
            pairs[cell.index] = left[cell.first_line].pop(0)
    return tuple(
        CellPair(cell, other) for cell in a for other in [pairs[cell.index]] if other is not None
    )


def _compare_claims(a: Sequence[Claim], b: Sequence[Claim]) -> tuple[ClaimChange, ...]:
    before, after = _list_outcomes(a), _list_outcomes(b)
    changes = (
        ClaimChange(key[0], before.get(key, "absent"), after.get(key, "absent"))
        for key in {**before, **after}
    )
    return tuple(change for change in changes if change.a != change.b)


def _list_outcomes(claims: Sequence[Claim]) -> dict[tuple[str, int], str]:
    """Each claim's outcome by its statement and how many times that was stated before."""
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
    """The median of the known values; None where none is known."""
    known = [value for value in values if value is not None]
    return float(statistics.median(known)) if known else None


def describe_comparison(comparison: Comparison) -> dict[str, object]:
    """The comparison as ``--json`` prints it; what is unknown is null."""
    return {
        "a": _describe_run(comparison.a),
        "b": _describe_run(comparison.b),
        "notebooks": [_describe_notebook(pair) for pair in comparison.notebooks],
        "only_in_a": list(comparison.only_a),
        "only_in_b": list(comparison.only_b),
    }


def _describe_run(run: Run) -> dict[str, object]:
    return {
        "folder": str(run.folder),
        "status": run.status,
        "started_at": run.started_at,
        "device": run.device,
        "environment": dict(run.environment),
    }


def _describe_notebook(pair: NotebookPair) -> dict[str, object]:
    return {
        "name": pair.a.name,
        "status": {"a": pair.a.status, "b": pair.b.status},
        **{name: describe_pair(figure) for name, figure in pair.figures.items()},
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
        "seconds": describe_pair(pair.seconds),
        "peak_bytes": describe_pair(pair.peak_bytes),
        "cuda_peak_bytes": describe_pair(pair.cuda_peak_bytes),
    }


def _describe_cell(cell: Cell) -> dict[str, object]:
    return {"index": cell.index, "first_line": cell.first_line}


def describe_pair(pair: Pair) -> dict[str, Number | None]:
    """Both figures and their ratio."""
    return {"a": pair.a, "b": pair.b, "ratio": pair.ratio}

"""Compares a notebook's outputs with the ones saved in it, as nbval does.

Compared are a cell's printed text, the text of its results, and its errors' names. Numbers may
differ by a relative tolerance; memory addresses, terminal colors and white space do not count.
Pictures, html and the error stream (warnings, progress bars) are not compared. A cell that has no
saved output is left out. So is one that nbval's marks exclude: a comment on a line of its own such
as ``# NBVAL_IGNORE_OUTPUT``, or the tag ``nbval-ignore-output`` (https://nbval.readthedocs.io).
"""

from __future__ import annotations

import copy
import math
import re
from collections.abc import Collection, Mapping, Sequence
from typing import Any

from labkit.notebooks.result import OutputChange
from labkit.text import shorten, strip_ansi

# nbval's marks, and its older ones, by what they ask for.
IGNORE_MARKS = {"NBVAL_IGNORE_OUTPUT", "PYTEST_VALIDATE_IGNORE_OUTPUT"}
# Tags of nbclient, which runs the cells, by the mark that asks for the same.
TAGS = {"NBVAL_SKIP": "skip-execution", "NBVAL_RAISES_EXCEPTION": "raises-exception"}
NUMBER = re.compile(r"[-+]?(?<![\w.])\d+(?:\.\d*)?(?:[eE][-+]?\d+)?|[-+]?(?<![\w.])\.\d+")
ADDRESS = re.compile(r"\b0x[0-9a-fA-F]{6,}\b")
SHOWN_CHARACTERS = 400


def read_marks(cell: Any) -> set[str]:
    """The cell's marks as nbval writes them in comments: its comment lines, and its tags.

    >>> cell = {"source": "# NBVAL_SKIP\\n1 / 0", "metadata": {"tags": ["nbval-ignore-output"]}}
    >>> sorted(read_marks(cell))
    ['NBVAL_IGNORE_OUTPUT', 'NBVAL_SKIP']
    """
    lines = (line.strip() for line in cell["source"].splitlines())
    comments = {line.lstrip("#").strip() for line in lines if line.startswith("#")}
    tags = cell["metadata"].get("tags") or []
    return comments | {str(tag).upper().replace("-", "_") for tag in tags}


def follow_marks(notebook: Any) -> None:
    """Gives the cells that nbval would skip, or expect to raise, nbclient's tag for it."""
    for cell in notebook.cells:
        if cell.cell_type == "code":
            tags = {TAGS[mark] for mark in TAGS.keys() & read_marks(cell)}
            if tags:
                before = cell.metadata.get("tags") or []
                cell.metadata["tags"] = [*before, *sorted(tags - set(before))]


def copy_outputs(notebook: Any) -> dict[int, list[Any]]:
    """The saved outputs of each code cell to compare, by the cell's index."""
    return {
        index: copy.deepcopy(cell.outputs)
        for index, cell in enumerate(notebook.cells)
        if cell.cell_type == "code" and cell.get("outputs") and not IGNORE_MARKS & read_marks(cell)
    }


def find_changes(
    saved: Mapping[int, Sequence[Any]], notebook: Any, ran: Collection[int], tolerance: float
) -> tuple[OutputChange, ...]:
    """The cells, of those that ``ran``, whose outputs now differ from the saved ones."""
    changes = []
    for index, outputs in saved.items():
        before, now = read_text(outputs), read_text(notebook.cells[index].get("outputs", []))
        if index in ran and not is_same(before, now, tolerance):
            start = _find_difference(before, now)
            changes.append(OutputChange(index, _show(before, start), _show(now, start)))
    return tuple(changes)


def read_text(outputs: Sequence[Any]) -> str:
    """What a cell's outputs say in plain text: printed text, results, and names of errors."""
    parts = []
    for output in outputs:
        kind = output.get("output_type")
        if kind == "stream" and output.get("name") == "stdout":
            parts.append(_join(output.get("text", "")))
        elif kind in ("execute_result", "display_data") and not _is_picture(output):
            parts.append(_join(output.get("data", {}).get("text/plain", "")) + "\n")
        elif kind == "error":
            parts.append(f"{output.get('ename')}: {output.get('evalue')}\n")
    return ADDRESS.sub("0x...", strip_ansi("".join(parts)))


def _is_picture(output: Mapping[str, Any]) -> bool:
    # The text of a figure is its size and its axes' count: a theme changes it.
    return any(str(mime).startswith("image/") for mime in output.get("data", {}))


def _join(text: Any) -> str:
    return "".join(text) if isinstance(text, list) else str(text)


def is_same(before: str, now: str, tolerance: float) -> bool:
    """True if both texts agree, and each number with its counterpart within ``tolerance``.

    >>> is_same("loss 0.1234  step 3", "loss 0.1235 step 3", tolerance=1e-2)
    True
    >>> is_same("step 3", "step 4", tolerance=1e-2)
    False
    """
    words, numbers = NUMBER.split(before), NUMBER.findall(before)
    other_words, other_numbers = NUMBER.split(now), NUMBER.findall(now)
    if [word.split() for word in words] != [word.split() for word in other_words]:
        return False
    return all(
        one == other or math.isclose(float(one), float(other), rel_tol=tolerance)
        for one, other in zip(numbers, other_numbers, strict=True)
    )


def _find_difference(before: str, now: str) -> int:
    """The start of the first line that differs."""
    start = 0
    lines = zip(before.splitlines(keepends=True), now.splitlines(keepends=True), strict=False)
    for one, other in lines:
        if one != other:
            break
        start += len(one)
    return start


def _show(text: str, start: int) -> str:
    return shorten(text[start:].strip("\n"), SHOWN_CHARACTERS)

"""Takes reference solutions out of a lesson's text, or only the marks around them."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from labkit.errors import LabkitError

BEGIN, END = "### BEGIN SOLUTION", "### END SOLUTION"
STUB = 'raise NotImplementedError("write your code here")'
_LOOKS_LIKE_MARK = re.compile(r"^\s*#+\s*(BEGIN|END)\s*SOLUTION", re.IGNORECASE)


@dataclass(frozen=True)
class Solution:
    """One marked region: the line of its first mark, its indentation, and what it holds."""

    line: int
    indent: str
    lines: tuple[str, ...]


def strip_solutions(text: str, path: Path) -> str:
    """The lesson with a stub, at the same indentation, in place of each solution."""
    return _join(
        f"{part.indent}{STUB}" if isinstance(part, Solution) else part
        for part in _split(text, path)
    )


def keep_solutions(text: str, path: Path) -> str:
    """The lesson with its solutions, and without the marks around them."""
    return _join(
        "\n".join(part.lines) if isinstance(part, Solution) else part for part in _split(text, path)
    )


def find_solutions(text: str, path: Path) -> tuple[Solution, ...]:
    """The marked regions in their order; a mark out of place is an error with file and line."""
    return tuple(part for part in _split(text, path) if isinstance(part, Solution))


def _join(lines: Iterator[str]) -> str:
    return "\n".join(lines) + "\n"


def _split(text: str, path: Path) -> Iterator[str | Solution]:
    opened: int | None = None
    indent, held = "", list[str]()
    for number, line in enumerate(text.splitlines(), start=1):
        mark = line.strip()
        if mark == BEGIN:
            if opened:
                raise _misplaced(path, number, f"it is nested in the solution of line {opened}")
            opened, indent, held = number, line[: len(line) - len(line.lstrip())], []
        elif mark == END:
            if not opened:
                raise _misplaced(path, number, f"no {BEGIN!r} stands before it")
            yield Solution(opened, indent, tuple(held))
            opened = None
        elif _LOOKS_LIKE_MARK.match(line):
            raise _misplaced(path, number, f"it must read exactly {BEGIN!r} or {END!r}")
        elif opened and mark.startswith("# %%"):
            raise _misplaced(path, opened, "it is not closed in its cell")
        elif opened:
            held.append(line)
        else:
            yield line
    if opened:
        raise _misplaced(path, opened, "it is never closed")


def _misplaced(path: Path, line: int, cause: str) -> LabkitError:
    return LabkitError(
        f"{path}:{line}: a solution's mark is out of place",
        cause=cause,
        fix=f"put each solution between {BEGIN!r} and {END!r}, inside one cell",
    )

"""Makes notebooks from a lesson, and reads notebooks back.

A lesson is a percent notebook with reference solutions between two marks. The learner's notebook
has a stub in place of each solution; the reference notebook has the solutions.
The same lesson always gives the same bytes: cell ids are hashes of position and content, and
the notebook records neither date nor machine. This module imports only the standard library.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from labkit.errors import LabkitError
from labkit.files import NO_FOLLOW, read_regular
from labkit.lessons.catalog import Lab

BEGIN, END = "### BEGIN SOLUTION", "### END SOLUTION"
STUB = 'raise NotImplementedError("write your code here")'
_LOOKS_LIKE_MARK = re.compile(r"^\s*#+\s*(BEGIN|END)\s*SOLUTION", re.IGNORECASE)


@dataclass(frozen=True)
class Solution:
    """One marked region: the line number of its first mark, its indentation, and its lines."""

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
    """The marked regions in order. A misplaced mark is an error with file and line."""
    return tuple(part for part in _split(text, path) if isinstance(part, Solution))


def find_reference(lab: Lab, exercise: str) -> str | None:
    """The cell with the reference solution of the lab's exercise; None if there is none."""
    text = keep_solutions(read_lesson(lab), lab.lesson)
    cells = re.split(r"^# %%.*\n", text, flags=re.MULTILINE)
    call = re.compile(rf"""\bcheck\(\s*["']{lab.name}\.{exercise}["'],\s*(\w+)""")
    for index, cell in enumerate(cells):
        if found := call.search(cell):
            definition = re.compile(rf"^def {found[1]}\b", re.MULTILINE)
            earlier = (
                one.strip() for one in reversed(cells[: index + 1]) if definition.search(one)
            )
            return next(earlier, None)
    return None


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
                raise _misplaced(path, number, f"there is no {BEGIN!r} before it")
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


# Part of the workspace's source digest. Increase it when the same lesson gives another notebook.
CONVERTER_VERSION = 2
_PERCENT = "py:percent"
# The cells' metadata that reach the learner: ``jupyter`` folds a cell's source (source_hidden).
KEPT_METADATA = ("tags", "jupyter")


def make_learner_notebook(lab: Lab) -> Any:
    """The notebook a learner works in: each solution replaced by a stub that raises."""
    return _build(lab, strip_solutions(read_lesson(lab), lab.lesson))


def make_reference_notebook(lab: Lab) -> Any:
    """The notebook with its solutions, for tests and for checking a machine.

    The metadata of a cell with a solution holds the learner's stub, which a run folder gets.
    """
    from labkit.notebooks.result import STUB_KEY

    notebook = _build(lab, keep_solutions(read_lesson(lab), lab.lesson))
    for cell, learners in zip(notebook.cells, make_learner_notebook(lab).cells, strict=True):
        if cell.source != learners.source:
            cell.metadata[STUB_KEY] = learners.source
    return notebook


def read_lesson(lab: Lab) -> str:
    """The lesson's source text."""
    try:
        return lab.lesson.read_text(encoding="utf-8")
    except OSError as error:
        raise LabkitError(
            f"the lab {lab.name} has no lesson that can be read",
            cause=f"{lab.lesson}: {error.strerror}",
        ) from error


def notebook_bytes(notebook: Any) -> bytes:
    """The notebook as the bytes of a valid .ipynb file that ends in a newline."""
    import nbformat

    nbformat.validate(notebook)
    text = str(nbformat.writes(notebook, version=4))
    return (text.rstrip("\n") + "\n").encode()


def notebook_to_lesson(notebook: Any) -> str:
    """The notebook converted back to a percent script, with its header."""
    import jupytext

    return str(jupytext.writes(notebook, fmt=_PERCENT))


def read_percent(text: str) -> Any:
    """Reads a percent script as a notebook, with jupytext."""
    import jupytext

    return jupytext.reads(text, fmt=_PERCENT)


def _build(lab: Lab, text: str) -> Any:
    import nbformat

    v4 = nbformat.v4
    makers = {"code": v4.new_code_cell, "markdown": v4.new_markdown_cell, "raw": v4.new_raw_cell}
    cells = []
    for position, cell in enumerate(read_percent(text).cells):
        metadata = {key: cell.metadata[key] for key in KEPT_METADATA if key in cell.metadata}
        made = makers[cell.cell_type](cell.source, metadata=metadata)
        made["id"] = _cell_id(lab.name, position, cell.source)
        cells.append(made)
    return v4.new_notebook(cells=cells, metadata=_metadata(lab, text))


def _cell_id(lab: str, position: int, source: str) -> str:
    return hashlib.sha256(f"{lab}\n{position}\n{source}".encode()).hexdigest()[:12]


def _metadata(lab: Lab, text: str) -> dict[str, Any]:
    return {
        "kernelspec": {"display_name": "Python 3", "language": "python", "name": "python3"},
        "language_info": {"name": "python"},
        "labkit": {"lab": lab.name, "version": hashlib.sha256(text.encode()).hexdigest()[:12]},
    }


@dataclass(frozen=True)
class Digests:
    """Two digests of a notebook: of its ``content``, and of the ``whole`` file.

    ``content`` covers the cells' types, sources and attachments, in order. ``whole`` adds the
    outputs and the metadata of cells and notebook, without execution counts and without what
    JupyterLab writes by itself (kernel, language, ids, folded cells, layout of the file).
    """

    content: str
    whole: str


def digest_notebook(data: bytes) -> Digests:
    """The digests of a notebook's bytes. ValueError if they are not a notebook."""
    return digest_parsed(parse_notebook(data))


def digest_parsed(notebook: dict[str, Any]) -> Digests:
    """The digests of a notebook that was read."""
    # JupyterLab adds an empty cell when the last one is run; this is not an edit.
    cells = [
        (cell, content)
        for cell in notebook["cells"]
        if (content := _cell_content(cell))[1].strip() or content[2]
    ]
    contents = [content for _, content in cells]
    added = [(_cell_metadata(cell), cell.get("outputs") or []) for cell, _ in cells]
    return Digests(_digest(contents), _digest([contents, added, _own_metadata(notebook)]))


def parse_notebook(data: bytes) -> dict[str, Any]:
    """The notebook in these bytes, whose cells all have a type and a text. ValueError for others.

    RecursionError if it is nested too deeply.
    """
    notebook = json.loads(data)
    if not isinstance(notebook, dict) or not isinstance(notebook.get("cells"), list):
        raise ValueError("it holds no list of cells")
    for cell in notebook["cells"]:
        _cell_content(cell)
    return notebook


def read_digests(path: Path) -> Digests | None:
    """The digests of a regular file; None if it is not a complete notebook or cannot be read.

    A symbolic link is not followed.
    """
    try:
        return digest_notebook(read_regular(path, NO_FOLLOW))
    except (OSError, ValueError, RecursionError):
        return None


def _digest(value: object) -> str:
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()


def _cell_metadata(cell: dict[str, Any]) -> object:
    metadata = cell.get("metadata")
    if not isinstance(metadata, dict):
        return metadata
    # JupyterLab writes these, also when a cell is only folded or unfolded.
    by_jupyter = ("trusted", "collapsed", "jupyter")
    return {key: metadata[key] for key in metadata if key not in by_jupyter}


def _own_metadata(notebook: dict[str, Any]) -> object:
    metadata = notebook.get("metadata")
    if not isinstance(metadata, dict):
        return metadata
    by_jupyter = ("kernelspec", "language_info")
    return {key: metadata[key] for key in metadata if key not in by_jupyter}


def read_notebook(path: Path) -> dict[str, Any]:
    """The notebook as parsed JSON. Raises LabkitError with file and reason for a broken one."""
    try:
        return parse_notebook(read_regular(path))
    except OSError as error:
        raise LabkitError(
            f"{path} cannot be read",
            cause=error.strerror,
            fix="restore it from a copy, or: labkit reset NAME (which keeps what is there)",
        ) from error
    except (ValueError, RecursionError) as error:
        raise LabkitError(
            f"{path} is not a whole notebook",
            cause=str(error),
            fix="restore it from a copy, or: labkit reset NAME (which keeps a backup of it)",
        ) from error


def _cell_content(cell: Any) -> tuple[str, str, Any]:
    if not isinstance(cell, dict) or not isinstance(cell.get("cell_type"), str):
        raise ValueError("a cell has no type")
    return cell["cell_type"], cell_source(cell), cell.get("attachments")


def cell_source(cell: dict[str, Any]) -> str:
    """A cell's source as one string, also if the file stores a list of lines."""
    source = cell.get("source", "")
    if isinstance(source, list) and all(isinstance(line, str) for line in source):
        return "".join(source)
    if not isinstance(source, str):
        raise ValueError("a cell's source is not text")
    return source

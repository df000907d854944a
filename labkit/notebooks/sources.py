"""What ``labkit run`` is asked to run: a lab's reference notebook, or a file of anybody's."""

from __future__ import annotations

import contextlib
import json
import logging
import re
import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from labkit.errors import UsageError

# What a name must end in to be taken for a file; jupytext reads all but the first.
SUFFIXES = (".ipynb", ".py", ".md", ".myst")
CELL_TYPES = ("code", "markdown", "raw")


@dataclass(frozen=True)
class Source:
    """A notebook to run, not yet read; ``lab`` is the lab whose reference version it is."""

    name: str
    path: Path
    lab: Any = None


def is_path(word: str) -> bool:
    """True where the word means a file and not a lab."""
    return word.endswith(SUFFIXES) or "/" in word


def find_source(word: str) -> Source:
    """The file of that path or the lab of that name; UsageError where there is neither."""
    path = Path(word)
    if not is_path(word):
        from labkit.lessons.catalog import find_lab

        lab = find_lab(word)
        return Source(lab.name, lab.lesson, lab)
    if not path.is_file():
        raise UsageError(
            f"there is no notebook {word}",
            cause=f"{path.parent.resolve()} has no file of that name",
        )
    if path.suffix not in SUFFIXES:
        raise UsageError(
            f"{word} is no notebook", cause=f"its name ends in none of {', '.join(SUFFIXES)}"
        )
    return Source(path.stem, path)


def list_labs() -> list[Source]:
    """Every lab, in its order."""
    from labkit.lessons.catalog import find_labs

    return [Source(lab.name, lab.lesson, lab) for lab in find_labs()]


def load_notebook(source: Source) -> Any:
    """The notebook (nbformat 4) of a source; UsageError names the file and what is wrong in it."""
    if source.lab is not None:
        from labkit.lessons.notebooks import make_reference_notebook

        return make_reference_notebook(source.lab)
    try:
        text = source.path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise UsageError(f"{source.path} cannot be read", cause=str(error)) from error
    return (
        _parse_ipynb(source.path, text)
        if source.path.suffix == ".ipynb"
        else _parse_script(source.path, text)
    )


def _parse_ipynb(path: Path, text: str) -> Any:
    import nbformat

    raw = parse_json(path, text)
    try:
        # What nbformat finds wrong it logs and warns of, and nbclient runs the notebook all the
        # same: old outputs that do not fit the schema are no reason not to.
        with warnings.catch_warnings(), _quiet_log("traitlets"):
            warnings.simplefilter("ignore")
            notebook = nbformat.reads(text, as_version=4)
    except Exception as error:
        # Whatever a broken file provokes in nbformat: KeyError, AttributeError, its own.
        cause = find_trouble(raw, text) or _first_line(error)
        raise UsageError(f"{path} is not a valid notebook", cause=cause) from error
    trouble = find_trouble(raw, text)
    if trouble:
        raise UsageError(f"{path} is not a valid notebook", cause=trouble)
    return notebook


def parse_json(path: Path, text: str) -> Any:
    """The file's content; UsageError with the line and column where it is no JSON."""
    try:
        return json.loads(text)
    except json.JSONDecodeError as error:
        place = f"line {error.lineno} column {error.colno}"
        raise UsageError(f"{path} is no notebook", cause=f"{place}: {error.msg}") from error
    except RecursionError as error:
        raise UsageError(f"{path} is no notebook", cause="it is nested too deeply") from error


def find_trouble(raw: Any, text: str) -> str | None:
    """What keeps this content from being run as a notebook, with the line; None where nothing."""
    if not isinstance(raw, dict) or not isinstance(raw.get("nbformat"), int):
        return "it is JSON, but has no nbformat number"
    if raw["nbformat"] < 4:
        return None  # nbformat made it new; its cells were elsewhere
    cells = raw.get("cells")
    if not isinstance(cells, list):
        return "it has no list of cells"
    if not isinstance(raw.get("metadata"), dict):
        return "it has no metadata"
    for number, cell in enumerate(cells, start=1):
        trouble = _find_cell_trouble(cell)
        if trouble:
            return f"line {_find_line(text, number)}: cell {number} {trouble}"
    return None


def _find_cell_trouble(cell: Any) -> str | None:
    if not isinstance(cell, dict):
        return "is no object"
    if cell.get("cell_type") not in CELL_TYPES:
        return f"has the cell_type {cell.get('cell_type')!r}, not {', '.join(CELL_TYPES)}"
    source = cell.get("source")
    lines = source if isinstance(source, list) else [source]
    if not all(isinstance(line, str) for line in lines):
        return "has no source text"
    return None if isinstance(cell.get("metadata"), dict) else "has no metadata"


def _find_line(text: str, number: int) -> int:
    """The line where the cell with this number, from 1, begins."""
    decoder = json.JSONDecoder()
    start = re.search(r'"cells"\s*:\s*\[', text)
    position = start.end() if start else 0
    for _ in range(number - 1):
        _, position = decoder.raw_decode(text, _skip(text, position))
    return text.count("\n", 0, _skip(text, position)) + 1


def _skip(text: str, position: int) -> int:
    """The next place that is neither white space nor a comma."""
    found = re.compile(r"[\s,]*").match(text, position)
    return found.end() if found else position


@contextlib.contextmanager
def _quiet_log(name: str) -> Iterator[None]:
    log = logging.getLogger(name)
    before, log.disabled = log.disabled, True
    try:
        yield
    finally:
        log.disabled = before


def _first_line(error: Exception) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0]


def _parse_script(path: Path, text: str) -> Any:
    import jupytext

    try:
        return jupytext.reads(text, fmt=path.suffix[1:])
    except Exception as error:
        # jupytext raises what its readers raise; a file it cannot split is the user's to know.
        raise UsageError(f"{path} is no notebook", cause=_first_line(error)) from error

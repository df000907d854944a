"""What ``labkit run`` is asked to run: a lab's reference notebook, or a file of anybody's."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from labkit.errors import UsageError

# What a name must end in to be taken for a file; jupytext reads all but the first.
SUFFIXES = (".ipynb", ".py", ".md")


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

    try:
        # nbformat's own error repeats the file; json's says where it went wrong.
        json.loads(text)
        notebook = nbformat.reads(text, as_version=4)
        nbformat.validate(notebook)
    except json.JSONDecodeError as error:
        place = f"line {error.lineno} column {error.colno}"
        raise UsageError(f"{path} is no notebook", cause=f"{place}: {error.msg}") from error
    except Exception as error:
        # Whatever else a broken file provokes in nbformat: KeyError, AttributeError, its own.
        cause = str(error).strip().splitlines() or [type(error).__name__]
        raise UsageError(f"{path} is not a valid notebook", cause=cause[0]) from error
    return notebook


def _parse_script(path: Path, text: str) -> Any:
    import jupytext

    try:
        return jupytext.reads(text, fmt=path.suffix[1:])
    except Exception as error:
        # jupytext raises what its readers raise; a file it cannot split is the user's to know.
        raise UsageError(f"{path} is no notebook", cause=str(error)) from error

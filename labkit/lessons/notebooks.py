"""Makes notebooks from a lesson: the learner's, with stubs, and the reference, with solutions.

The same lesson always gives the same bytes: ids come from place and content, and nothing of the
day or the machine goes in.
"""

from __future__ import annotations

import hashlib
from typing import Any

from labkit.errors import LabkitError
from labkit.lessons.catalog import Lab
from labkit.lessons.solutions import keep_solutions, strip_solutions

# Goes into the workspace's source digest: raise it where the same lesson gives a new notebook.
CONVERTER_VERSION = 1
_PERCENT = "py:percent"


def make_learner_notebook(lab: Lab) -> Any:
    """The notebook a learner works in: each solution replaced by a stub that raises."""
    return _build(lab, strip_solutions(read_lesson(lab), lab.lesson))


def make_reference_notebook(lab: Lab) -> Any:
    """The notebook with its solutions in place: for tests, and for proving a machine."""
    return _build(lab, keep_solutions(read_lesson(lab), lab.lesson))


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
    """The notebook as the bytes of an .ipynb file, valid and ending in a newline."""
    import nbformat

    nbformat.validate(notebook)
    text = str(nbformat.writes(notebook, version=4))
    return (text.rstrip("\n") + "\n").encode()


def notebook_to_lesson(notebook: Any) -> str:
    """The notebook as a percent script again, header included."""
    import jupytext

    return str(jupytext.writes(notebook, fmt=_PERCENT))


def read_percent(text: str) -> Any:
    """A notebook from a percent script, its cells as jupytext reads them."""
    import jupytext

    return jupytext.reads(text, fmt=_PERCENT)


def _build(lab: Lab, text: str) -> Any:
    import nbformat

    v4 = nbformat.v4
    makers = {"code": v4.new_code_cell, "markdown": v4.new_markdown_cell, "raw": v4.new_raw_cell}
    cells = []
    for position, cell in enumerate(read_percent(text).cells):
        metadata = {key: cell.metadata[key] for key in ("tags",) if key in cell.metadata}
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

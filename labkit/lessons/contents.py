"""What counts as a notebook's content: the cells' kinds, sources and attachments, in order.

Outputs, counters, ids, metadata and the way the file is laid out do not: running every cell and
saving is not a change. Standard library only.
"""

from __future__ import annotations

import hashlib
import json
import os
import stat
from pathlib import Path
from typing import Any

from labkit.errors import LabkitError


def content_digest(data: bytes) -> str:
    """The digest of a notebook's content; ValueError where the bytes are no notebook."""
    notebook = json.loads(data)
    if not isinstance(notebook, dict) or not isinstance(notebook.get("cells"), list):
        raise ValueError("it holds no list of cells")
    # JupyterLab adds an empty cell when the last one is run: nobody wrote anything there.
    cells = [cell for cell in map(_cell_content, notebook["cells"]) if cell[1].strip() or cell[2]]
    return hashlib.sha256(json.dumps(cells, sort_keys=True).encode()).hexdigest()


def read_digest(path: Path) -> str | None:
    """The content digest of a plain file, or None for what is no whole notebook in one.

    A symbolic link is not followed, and a file that may not be read or parsed has no digest.
    """
    try:
        handle = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK)
        with os.fdopen(handle, "rb") as file:
            if not stat.S_ISREG(os.fstat(handle).st_mode):
                return None
            return content_digest(file.read())
    except (OSError, ValueError, RecursionError):
        return None


def read_notebook(path: Path) -> dict[str, Any]:
    """The notebook as parsed JSON; a broken one is an error that names the file and the reason."""
    try:
        data = path.read_bytes()
        content_digest(data)
        return dict(json.loads(data))
    except OSError as error:
        raise LabkitError(f"{path} cannot be read", cause=error.strerror) from error
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
    """A cell's source as one text, however the file splits it into lines."""
    source = cell.get("source", "")
    if isinstance(source, list) and all(isinstance(line, str) for line in source):
        return "".join(source)
    if not isinstance(source, str):
        raise ValueError("a cell's source is no text")
    return source

"""IPython's shell, where this process runs in one, and what it calls its cells."""

from __future__ import annotations

import sys
from typing import Any


def find_shell() -> Any:
    """The shell that runs the user's code; None in plain Python. Imports nothing."""
    # While another thread imports IPython, it has not got that far.
    find = getattr(sys.modules.get("IPython"), "get_ipython", None)
    return find() if find is not None else None


def name_cell(file: str) -> str | None:
    """IPython's name of the cell that a file stands for, ``In[3]``; None for a real file."""
    shell = find_shell()
    if shell is None:
        return None
    try:
        # What ipython calls "Cell In[3]".
        found = shell.compile.format_code_name(file)
    except (AttributeError, TypeError):
        return None  # a shell that compiles in a way of its own
    return str(found[1]) if found else None

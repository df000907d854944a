"""Notebooks of different making, and the ways tests run them and others made in code."""

from __future__ import annotations

import os
import time
from pathlib import Path

import nbformat
from nbformat.v4 import new_code_cell, new_notebook

from labkit.notebooks.execute import RunOptions
from labkit.notebooks.schedule import run_notebooks
from labkit.notebooks.sources import Source

FOLDER = Path(__file__).parent

# Writes the kernel's process id, that of a child, and that of one in a session of its own.
SPAWN = """import os, pathlib, subprocess
child = subprocess.Popen(["sleep", "600"])
apart = subprocess.Popen(["sleep", "600"], start_new_session=True)
_ = pathlib.Path("pids").write_text(f"{os.getpid()} {child.pid} {apart.pid}")"""


def make_notebook(*cells):
    """A notebook of code cells, given as their sources or whole."""
    return new_notebook(
        cells=[new_code_cell(cell) if isinstance(cell, str) else cell for cell in cells]
    )


def make_file(path, *cells):
    """The path, as text, of a notebook file with these cells."""
    path.write_text(nbformat.writes(make_notebook(*cells)))
    return str(path)


def run_one(source, notebook, *, watch=lambda event: None, account=None, **options):
    """The result of a notebook that is in memory already."""
    (result,) = run_notebooks(
        [source],
        RunOptions(**{"timeout_seconds": 60.0, **options}),
        account,
        watch=watch,
        load=lambda source: notebook,
    )
    return result


def run_cells(folder, *cells, **options):
    """The result and the executed notebook of cells run in a folder."""
    notebook = make_notebook(*cells)
    return run_one(Source("sample", folder / "sample.ipynb"), notebook, **options), notebook


def read_pids(folder):
    """The process ids that SPAWN wrote."""
    return [int(pid) for pid in (folder / "pids").read_text().split()]


def is_gone(pid):
    """True once the process has ended: the system ends a killed one in its own time."""
    deadline = time.monotonic() + 10
    while time.monotonic() < deadline:
        try:
            os.kill(pid, 0)
        except ProcessLookupError:
            return True
        # In a container nobody may collect an orphan that has ended.
        if Path(f"/proc/{pid}/stat").exists() and _is_zombie(pid):
            return True
        time.sleep(0.01)
    return False


def _is_zombie(pid):
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "Z"
    except OSError:
        return True

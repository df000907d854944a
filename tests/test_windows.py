"""The package on a played Windows: the launcher names WSL2 in a sentence, the rest works."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import nbformat
import pytest

ROOT = Path(__file__).parents[1]
PLAYED = Path(__file__).parent / "fakes" / "windows"
NAMED = {"PLAYED_PLATFORM": "win32"}


def run_played(
    *words: str, folder: Path, text: str = "", **variables: str
) -> subprocess.CompletedProcess[str]:
    """How Python ends on the played Windows; its kernels are on Windows too."""
    path = os.pathsep.join([str(PLAYED), str(ROOT)])
    environment = {**os.environ, "PYTHONPATH": path, **variables}
    return subprocess.run(
        [sys.executable, *words],
        check=False,
        cwd=folder,
        env=environment,
        input=text,
        capture_output=True,
        text=True,
        timeout=240,
    )


@pytest.mark.parametrize(
    "command",
    [
        *("up", "down", "status", "logs", "shell", "serve", "hub", "lab", "exec ls", "doctor"),
        *("build", "test", "lint", "lock", "clean", "run x.ipynb --nproc-per-node 2"),
    ],
)
def test_what_needs_linux_is_refused_in_a_sentence(tmp_path, command):
    done = run_played("-m", "labkit", *command.split(), folder=tmp_path, **NAMED)
    assert done.returncode == 5
    assert len(done.stderr.splitlines()) == 3 and "does not run on Windows" in done.stderr
    assert "WSL2" in done.stderr and "wsl --install" in done.stderr


def test_the_refusal_is_the_one_object_of_json(tmp_path):
    done = run_played("-m", "labkit", "up", "--json", folder=tmp_path, **NAMED)
    assert json.loads(done.stdout)["error"]["exit_code"] == 5


def test_help_and_texts_that_need_no_host_are_there(tmp_path):
    assert run_played("-m", "labkit", "up", "--help", folder=tmp_path, **NAMED).returncode == 0
    text = "RuntimeError: CUDA out of memory. Tried to allocate 2.00 GiB\n"
    done = run_played("-m", "labkit", "doctor", "--explain", folder=tmp_path, text=text, **NAMED)
    assert (done.returncode, done.stderr) == (0, "")


USED_IN_IPYTHON = r"""
import os, socket, sys
from pathlib import Path
from IPython.core.interactiveshell import InteractiveShell

import labkit.files

assert not hasattr(labkit.files.os, "geteuid")
os.environ["JPY_SESSION_NAME"] = "a notebook"
import ipykernel, labkit, torch
from labkit.errors import LabkitError
from labkit.files import Disk, explain_disk_errors, hold_lock, place_new, read_regular
from labkit.files import write_atomically

shell = InteractiveShell.instance()
shell.run_line_magic("load_ext", "labkit")
assert shell.run_cell("%memory on\nimport torch; x = torch.ones(1000); y = x + 1").success
labkit.claim("it adds", 1 + 1, 2)
with labkit.track_memory(tensors=True) as tracked:
    kept = torch.ones(2**20)
assert tracked.peak_bytes >= 2**22
assert labkit.memory().balances[-1].used_bytes
here = Path.cwd()
write_atomically(here / "a", "one\ntwo\n")
place_new(Disk(), here / "b", b"new\n", here)
with hold_lock(here / "lock"):
    assert read_regular(here / "a") + read_regular(here / "b") == b"one\ntwo\nnew\n"
Disk().make_folder(here / "c" / "d")
try:
    with explain_disk_errors(here):
        raise PermissionError(13, "Permission denied", str(here / "a"))
except LabkitError as error:
    assert "could not be written to" in error.what and error.fix is None
print("done")
"""


@pytest.mark.slow
def test_the_library_works_in_ipython(tmp_path):
    done = run_played("-c", USED_IN_IPYTHON, folder=tmp_path)
    assert done.returncode == 0, done.stderr
    assert done.stdout.endswith("done\n")


@pytest.mark.slow
def test_notebooks_run_and_a_cell_that_hangs_ends(tmp_path):
    cells = ["print(6 * 7)", "while True: pass"]
    notebook = nbformat.v4.new_notebook(cells=list(map(nbformat.v4.new_code_cell, cells)))
    nbformat.write(notebook, tmp_path / "hangs.ipynb")
    command = "-m labkit run hangs.ipynb --timeout 5 --json --output out"
    done = run_played(*command.split(), folder=tmp_path)
    assert done.returncode == 4, done.stderr
    assert "Traceback" not in done.stderr
    assert "42" in (tmp_path / "out" / "hangs.ipynb").read_text(encoding="utf-8")

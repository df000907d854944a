"""The run folder: one run's own, whole at every moment, and honest about a full disk."""

from __future__ import annotations

import json
import os
from datetime import datetime
from pathlib import Path

import nbformat
import pytest
from nbformat.v4 import new_output

from labkit.errors import UsageError
from labkit.notebooks.result import (
    STUB_KEY,
    CellResult,
    Environment,
    NotebookResult,
    RunAccount,
    RunFolder,
    hide_solutions,
    make_run_folder,
)
from tests.notebooks import make_notebook

RESULT = b"{}\n"
NOON = datetime(2026, 11, 23, 12, 0, 0)
WAITING = [NotebookResult("a", "a.ipynb", "not_run"), NotebookResult("b", "b.ipynb", "not_run")]


@pytest.fixture(autouse=True)
def here(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    return tmp_path


def read(folder):
    return json.loads((folder / "result.json").read_text())


def test_the_default_is_named_for_the_time_and_two_at_once_get_two():
    assert make_run_folder(None, RESULT, NOON) == Path("runs/2026-11-23-120000")
    assert make_run_folder(None, RESULT, NOON) == Path("runs/2026-11-23-120000-2")


def test_a_folder_that_holds_a_run_is_refused(here):
    make_run_folder(here / "out", RESULT)
    with pytest.raises(UsageError, match="already holds a run") as caught:
        make_run_folder(here / "out", b"other")
    assert str(here / "out" / "result.json") in caught.value.cause
    assert (here / "out" / "result.json").read_bytes() == RESULT


def test_a_folder_with_other_things_in_it_is_taken(here):
    (here / "out").mkdir()
    (here / "out" / "notes.txt").write_text("mine")
    assert make_run_folder(here / "out", RESULT) == here / "out"


def test_a_file_in_the_way_is_named(here):
    (here / "out").write_text("")
    with pytest.raises(UsageError, match="cannot be made"):
        make_run_folder(here / "out", RESULT)
    (here / "runs").write_text("")
    with pytest.raises(UsageError, match="the run folder runs/2026-11-23-120000 cannot be made"):
        make_run_folder(None, RESULT, NOON)


@pytest.mark.skipif(os.geteuid() == 0, reason="root can write everywhere: run as another user")
def test_a_folder_that_cannot_be_written_is_refused(here):
    (here / "out").mkdir(mode=0o500)
    with pytest.raises(UsageError, match="cannot be written"):
        make_run_folder(here / "out", RESULT)


def test_a_place_where_nothing_can_be_made_is_refused():
    with pytest.raises(UsageError, match="/proc/labkit-run cannot be made"):
        make_run_folder(Path("/proc/labkit-run"), RESULT)


def make_folder(path):
    return RunFolder(path, RunAccount(Environment(python="3")), WAITING)


def test_what_is_known_is_in_the_file_while_the_run_goes_on(here):
    folder = make_folder(here / "out")
    cell = CellResult(0, "running", first_line="slow()")
    folder.follow(0, NotebookResult("a", "a.ipynb", "running", cells=(cell,)))
    known = read(here / "out")
    assert known["status"] == "running"
    assert [notebook["status"] for notebook in known["notebooks"]] == ["running", "not_run"]
    assert known["notebooks"][0]["cells"][0]["status"] == "running"
    # Another so soon after is not written; the end of a notebook always is.
    folder.follow(0, NotebookResult("a", "a.ipynb", "running"))
    assert read(here / "out") == known
    folder.follow(0, NotebookResult("a", "a.ipynb", "passed"))
    known = read(here / "out")
    assert (known["status"], known["notebooks"][0]["status"]) == ("running", "passed")


def test_a_crash_leaves_the_notebook_as_far_as_it_came(here):
    folder = make_folder(here / "out")
    folder.follow(0, NotebookResult("a", "a.ipynb", "running"), make_notebook("1"))
    assert nbformat.read(here / "out" / "a.ipynb", 4).cells[0].source == "1"


def test_the_end_has_the_notebooks_and_the_whole_result(here):
    folder = make_folder(here / "out")
    kept = folder.keep(0, NotebookResult("a", "a.ipynb", "passed"), make_notebook("1"))
    assert kept.executed == "a.ipynb"
    folder.finish(RunAccount(Environment(python="3")).describe((kept,)))
    assert sorted(path.name for path in (here / "out").iterdir()) == ["a.ipynb", "result.json"]
    end = read(here / "out")
    assert (end["schema_version"], end["status"]) == (1, "passed")
    assert end["notebooks"][0]["executed"] == "a.ipynb"
    assert datetime.fromisoformat(end["started_at"]).tzinfo is not None
    assert folder.trouble is None


@pytest.fixture
def full_disk(monkeypatch):
    """Lets every later write end half-way: the disk is full."""

    def fill():
        def fsync(handle):
            os.ftruncate(handle, 1)
            raise OSError(28, "No space left on device")

        monkeypatch.setattr(os, "fsync", fsync)

    return fill


def test_a_full_disk_leaves_the_last_whole_result_and_is_remembered(here, full_disk):
    folder = make_folder(here / "out")
    full_disk()
    result = NotebookResult("a", "a.ipynb", "passed")
    assert folder.keep(0, result, make_notebook("1")).executed is None
    folder.follow(0, result)
    folder.finish(RunAccount(Environment()).describe([result]))
    assert folder.trouble.strerror == "No space left on device"
    assert [path.name for path in (here / "out").iterdir()] == ["result.json"]
    assert read(here / "out")["status"] == "running"


def test_a_full_disk_is_an_error_before_anything_runs(here, full_disk):
    full_disk()
    with pytest.raises(UsageError, match="cannot be written"):
        make_folder(here / "out")
    assert list((here / "out").iterdir()) == []


def test_half_a_character_in_an_output_does_not_keep_the_notebook_from_being_written(here):
    folder = make_folder(here / "out")
    notebook = make_notebook("print('\\ud800')")
    notebook.cells[0].outputs = [new_output("stream", text="\ud800")]
    assert folder.keep(0, NotebookResult("a", "a.ipynb", "passed"), notebook).executed
    kept = nbformat.read(here / "out" / "a.ipynb", as_version=4)
    assert kept.cells[0].outputs[0].text == "\ud800"


def test_a_solution_is_left_out_of_the_folder_and_its_outputs_stay():
    notebook = make_notebook("def double(x):\n    return 2 * x", "print(double(2))")
    stub = 'def double(x):\n    raise NotImplementedError("write your code here")'
    notebook.cells[0].metadata = {STUB_KEY: stub, "tags": ["kept"]}
    notebook.cells[0].outputs = [new_output("stream", text="4\n")]
    shown = hide_solutions(notebook)
    assert "2 * x" not in nbformat.writes(shown)
    assert shown.cells[0].source.splitlines()[1:] == stub.splitlines()
    assert shown.cells[0].metadata == {"tags": ["kept"]}
    assert shown.cells[0].outputs == notebook.cells[0].outputs
    assert shown.cells[1] is notebook.cells[1]
    assert "return 2 * x" in notebook.cells[0].source


def test_a_notebook_of_the_users_own_is_kept_as_it_ran():
    notebook = make_notebook("### BEGIN SOLUTION\nx = 1\n### END SOLUTION")
    assert hide_solutions(notebook) is notebook

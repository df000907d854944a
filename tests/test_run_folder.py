"""The run folder: one run's own, whole at every moment, and honest about a full disk."""

from __future__ import annotations

import json
import os
from datetime import datetime
from pathlib import Path

import nbformat
import pytest

from labkit.errors import UsageError
from labkit.notebooks.folder import RunFolder, make_run_folder, write_whole
from labkit.notebooks.result import CellResult, NotebookResult, RunResult
from tests.notebooks import make_notebook

NOON = datetime(2026, 11, 23, 12, 0, 0)
WAITING = [NotebookResult("a", "a.ipynb", "not_run"), NotebookResult("b", "b.ipynb", "not_run")]


@pytest.fixture(autouse=True)
def here(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    return tmp_path


def read(folder):
    return json.loads((folder / "result.json").read_text())


def test_the_default_is_named_for_the_time_and_two_at_once_get_two():
    assert make_run_folder(None, NOON) == Path("runs/2026-11-23-120000")
    assert make_run_folder(None, NOON) == Path("runs/2026-11-23-120000-2")


def test_a_folder_that_holds_a_run_is_refused(here):
    make_run_folder(here / "out")
    with pytest.raises(UsageError) as caught:
        make_run_folder(here / "out")
    assert caught.value.what == f"--output {here / 'out'} already holds a run"
    assert caught.value.cause == f"{here / 'out' / 'result.json'} is there"


def test_a_folder_with_other_things_in_it_is_taken(here):
    (here / "out").mkdir()
    (here / "out" / "notes.txt").write_text("mine")
    assert make_run_folder(here / "out") == here / "out"


def test_a_file_in_the_way_is_named(here):
    (here / "out").write_text("")
    with pytest.raises(UsageError) as caught:
        make_run_folder(here / "out")
    assert caught.value.cause == "a file of that name is there"
    (here / "runs").write_text("")
    with pytest.raises(UsageError, match="the run folder runs/2026-11-23-120000 cannot be made"):
        make_run_folder(None, NOON)


@pytest.mark.skipif(os.geteuid() == 0, reason="root can write everywhere: run as another user")
def test_a_folder_that_cannot_be_written_is_refused(here):
    (here / "out").mkdir(mode=0o500)
    with pytest.raises(UsageError) as caught:
        make_run_folder(here / "out")
    assert caught.value.what == f"--output {here / 'out'} cannot be written"


def test_a_place_where_nothing_can_be_made_is_refused():
    with pytest.raises(UsageError) as caught:
        make_run_folder(Path("/proc/labkit-run"))
    assert caught.value.what == "--output /proc/labkit-run cannot be made"


def make_folder(path):
    return RunFolder(make_run_folder(path), {"python": "3"}, WAITING)


def test_what_is_known_is_in_the_file_while_the_run_goes_on(here):
    folder = make_folder(here / "out")
    cell = CellResult(0, "running", None, "slow()")
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
    folder.finish(RunResult({"python": "3"}, (kept,), folder.started_at, 2.5))
    assert sorted(path.name for path in (here / "out").iterdir()) == ["a.ipynb", "result.json"]
    end = read(here / "out")
    assert (end["schema_version"], end["status"], end["seconds"]) == (1, "passed", 2.5)
    assert datetime.fromisoformat(end["started_at"]).tzinfo is not None
    assert folder.trouble is None


def fill_disk(monkeypatch):
    def write_text(self, text, encoding=None):
        raise OSError(28, "No space left on device", str(self))

    monkeypatch.setattr(Path, "write_text", write_text)


def test_a_full_disk_does_not_end_the_run_and_is_remembered(here, monkeypatch):
    folder = make_folder(here / "out")
    fill_disk(monkeypatch)
    result = NotebookResult("a", "a.ipynb", "passed")
    assert folder.keep(0, result, make_notebook("1")).executed is None
    folder.follow(0, result)
    assert folder.trouble.strerror == "No space left on device"
    assert [path.name for path in (here / "out").iterdir()] == ["result.json"]


def test_a_file_that_could_not_be_replaced_is_still_the_old_one(here, monkeypatch):
    write_whole(here / "file", "old")
    fill_disk(monkeypatch)
    with pytest.raises(OSError, match="No space left"):
        write_whole(here / "file", "new")
    assert (here / "file").read_text() == "old"
    assert [path.name for path in here.iterdir()] == ["file"]

"""Notebooks in real kernels: what holds, what fails, and that no process is left behind."""

from __future__ import annotations

import json
import os
import signal
import sys
from pathlib import Path

import pytest
from nbformat.v4 import new_code_cell, new_markdown_cell

from labkit.notebooks.execute import RunOptions
from labkit.notebooks.schedule import run_notebooks
from labkit.notebooks.sources import Source
from tests.notebooks import (
    SPAWN,
    is_gone,
    make_file,
    make_notebook,
    read_pids,
    run_cells,
    run_one,
)

CLAIM = """from IPython.display import display
display({{"application/vnd.labkit.claim+json":
    {{"statement": "fact", "held": {held}, "skipped": {skipped}}}, "text/plain": "fact"}}, raw=True)
"""
CHECK = """from IPython.display import display
display({{"application/vnd.labkit.check+json":
    {{"exercise": "lab.task", "status": "{status}"}}, "text/plain": "task"}}, raw=True)
"""


def test_a_sound_notebook_passes_with_every_cell_accounted_for(tmp_path):
    events = []
    skipped = new_code_cell("1/0", metadata={"tags": ["skip-execution"]})
    allowed = new_code_cell("1/0", metadata={"tags": ["raises-exception"]})
    result, notebook = run_cells(
        tmp_path,
        new_markdown_cell("# words"),
        "\n\nx = 1  # first\nx + 1",
        "   ",
        skipped,
        allowed,
        CLAIM.format(held=True, skipped=None) + CLAIM.format(held=None, skipped="'needs cuda'"),
        CHECK.format(status="passed"),
        watch=events.append,
    )
    assert (result.status, result.error) == ("passed", None)
    assert [(cell.index, cell.status) for cell in result.cells] == [
        (1, "passed"),
        (3, "skipped"),
        (4, "passed"),
        (5, "passed"),
        (6, "passed"),
    ]
    assert [cell.raised for cell in result.cells] == [None, None, "ZeroDivisionError", None, None]
    assert result.cells[0].first_line == "x = 1  # first"
    assert notebook.cells[1].outputs[0].data["text/plain"] == "2"
    assert [claim.held for claim in result.claims] == [True, None]
    assert [check.name for check in result.checks] == ["lab.task"]
    # Beside these there are ticks, for cells that take longer: running, with the seconds so far.
    ends = [event for event in events if event.status != "running" or event.seconds is None]
    assert [(event.number, event.total, event.status) for event in ends][:3] == [
        (1, 4, "running"),
        (1, 4, "passed"),
        (2, 4, "running"),
    ]
    assert result.seconds is not None
    assert result.seconds > sum(cell.seconds or 0 for cell in result.cells) > 0


def test_a_failing_cell_is_named_with_its_source_and_traceback(tmp_path):
    source = "def divide():\n    return 1 / 0\ndivide()"
    result, _ = run_cells(tmp_path, "x = 1", source, "never = 1")
    assert result.status == "failed"
    assert [cell.status for cell in result.cells] == ["passed", "failed", "not_run"]
    assert result.error is not None
    assert result.error.what == "cell 2 of 3 raised ZeroDivisionError: division by zero"
    assert (result.error.cell_index, result.error.name) == (1, "ZeroDivisionError")
    assert result.error.source == source
    assert result.error.traceback is not None
    assert "return 1 / 0" in result.error.traceback
    assert "\x1b" not in result.error.traceback


@pytest.mark.parametrize(
    "cell",
    [CLAIM.format(held=False, skipped=None), CHECK.format(status="wrong_shape")],
    ids=["claim", "check"],
)
def test_a_false_claim_or_check_fails_though_no_cell_raised(tmp_path, cell):
    result, _ = run_cells(tmp_path, cell)
    assert (result.status, result.error) == ("failed", None)
    assert [cell.status for cell in result.cells] == ["passed"]


@pytest.mark.slow
def test_a_cell_past_its_time_is_ended_with_its_kernel_and_children(tmp_path):
    result, _ = run_cells(tmp_path, SPAWN, "import time\ntime.sleep(600)", timeout_seconds=1.5)
    assert result.status == "timed_out"
    assert [cell.status for cell in result.cells] == ["passed", "timed_out"]
    assert result.error is not None
    assert result.error.what == "cell 2 of 2 ran past 1.5 s"
    assert all(is_gone(pid) for pid in read_pids(tmp_path))


@pytest.mark.slow
@pytest.mark.parametrize(
    ("ending", "how"),
    [
        ("os._exit(3)", "exit code 3"),
        ("os.kill(os.getpid(), 9)", "killed by SIGKILL"),
        ("import ctypes; ctypes.string_at(0)", "killed by SIGSEGV"),
    ],
)
def test_a_dead_kernel_is_named_and_leaves_no_child(tmp_path, ending, how):
    result, _ = run_cells(tmp_path, SPAWN, ending, "never = 1")
    assert result.status == "died"
    assert [cell.status for cell in result.cells] == ["passed", "died", "not_run"]
    assert result.error is not None
    assert result.error.kind == "dead_kernel"
    assert result.error.what == f"the kernel died in cell 2 of 3: {how}"
    assert result.error.hint is not None
    assert ("memory runs out" in result.error.hint) is ("SIGKILL" in how)
    assert result.error.source == ending
    assert all(is_gone(pid) for pid in read_pids(tmp_path))


@pytest.mark.slow
def test_nothing_is_left_of_a_run_that_passed(tmp_path):
    result, _ = run_cells(tmp_path, SPAWN)
    assert result.status == "passed"
    assert all(is_gone(pid) for pid in read_pids(tmp_path))


def test_ctrl_c_stops_the_kernel_and_keeps_what_was_known(tmp_path, heeds_interrupts):
    def interrupt(event):
        if event.number == 2 and event.status == "running" and event.seconds is None:
            os.kill(os.getpid(), signal.SIGINT)

    result, _ = run_cells(
        tmp_path, SPAWN, "import time\ntime.sleep(600)", "never = 1", watch=interrupt
    )
    assert result.status == "interrupted"
    assert [cell.status for cell in result.cells] == ["passed", "interrupted", "not_run"]
    assert result.error is not None
    assert result.error.what == "interrupted in cell 2 of 3"
    assert all(is_gone(pid) for pid in read_pids(tmp_path))


@pytest.mark.slow
def test_a_progress_that_cannot_be_written_ends_the_kernel_too(tmp_path):
    def fail(event):
        if event.number == 2:
            raise BrokenPipeError

    with pytest.raises(BrokenPipeError):
        run_cells(tmp_path, SPAWN, "import time\ntime.sleep(600)", watch=fail)
    assert all(is_gone(pid) for pid in read_pids(tmp_path))


def run_in_kernel(folder, name, **options):
    """The result and notebook of a cell that prints its Python, in a notebook with this kernel."""
    notebook = make_notebook("import os, sys; print(sys.prefix, os.environ.get('MINE'))")
    notebook.metadata["kernelspec"] = {"name": name, "language": "python", "display_name": "x"}
    source = Source("sample", folder / "sample.ipynb")
    return run_one(source, notebook, **options), notebook


def test_a_kernel_that_is_not_installed_is_named_and_nothing_runs(tmp_path):
    result, notebook = run_in_kernel(tmp_path, "my-conda-env")
    assert (result.status, result.error.kind) == ("invalid", "no_kernel")
    assert "'my-conda-env'" in result.error.what
    assert "--kernel python3" in result.error.hint
    assert result.kernel == "my-conda-env"
    assert notebook.cells[0].outputs == []


def test_a_kernel_that_is_asked_for_overrules_the_notebooks(tmp_path):
    result, notebook = run_in_kernel(tmp_path, "my-conda-env", kernel="python3")
    assert (result.status, result.kernel) == ("passed", "python3")
    assert notebook.cells[0].outputs[0].text == f"{sys.prefix} None\n"


def test_the_kernel_that_a_notebook_names_runs_it(tmp_path, monkeypatch):
    folder = tmp_path / "share" / "kernels" / "mine"
    folder.mkdir(parents=True)
    command = [sys.executable, "-m", "ipykernel_launcher", "-f", "{connection_file}"]
    spec = {"argv": command, "display_name": "Mine", "language": "python", "env": {"MINE": "yes"}}
    (folder / "kernel.json").write_text(json.dumps(spec))
    monkeypatch.setenv("JUPYTER_PATH", str(tmp_path / "share"))
    result, notebook = run_in_kernel(tmp_path, "mine")
    assert (result.status, result.kernel) == ("passed", "mine")
    assert notebook.cells[0].outputs[0].text == f"{sys.prefix} yes\n"


SHOW_ENVIRONMENT = """import os
print([os.environ.get(name) for name in ("LABKIT_REFERENCE", "MPLBACKEND")])
print(os.getcwd())"""


def test_anybodys_notebook_runs_in_its_folder_and_our_environment(tmp_path, monkeypatch):
    monkeypatch.setenv("MPLBACKEND", "agg")
    _, notebook = run_cells(tmp_path, SHOW_ENVIRONMENT)
    assert notebook.cells[0].outputs[0].text == f"[None, 'agg']\n{tmp_path}\n"


def test_a_lab_runs_as_a_reference_away_from_its_folder(tmp_path, monkeypatch):
    monkeypatch.setenv("MPLBACKEND", "agg")
    notebook = make_notebook(SHOW_ENVIRONMENT, "import labkit")
    source = Source("sample", tmp_path / "lesson.py", lambda: notebook)
    result = run_one(source, notebook)
    assert result.status == "passed"
    shown, folder = notebook.cells[0].outputs[0].text.splitlines()
    assert shown == "['1', 'module://matplotlib_inline.backend_inline']"
    assert not Path(folder).exists()


@pytest.mark.slow
def test_an_invalid_file_is_named_and_the_rest_runs(tmp_path):
    broken = tmp_path / "broken.ipynb"
    broken.write_text('{"cells": [\n')
    sound = Source("sound", Path(make_file(tmp_path / "sound.ipynb", "1 + 1")))
    sources = [Source("broken", broken), sound]
    stopped = run_notebooks(sources, RunOptions())
    assert [result.status for result in stopped] == ["invalid", "passed"]
    assert stopped[0].error is not None
    assert stopped[0].error.kind == "invalid"
    assert stopped[0].error.what == (
        f"{broken} is not a notebook: line 2 column 1: Expecting value"
    )
    kept = []

    def keep(place, result, notebook):
        kept.append((place, result.name))
        return result

    going = run_notebooks(sources, RunOptions(keep_going=True), keep=keep)
    assert [result.status for result in going] == ["invalid", "passed"]
    assert kept == [(1, "sound")]


def test_what_a_kernel_prints_outside_its_cells_does_not_reach_us(tmp_path, capfd):
    result, _ = run_cells(tmp_path, "import os\n_ = os.write(1, b'stray')", "import atexit, sys")
    assert result.status == "passed"
    assert capfd.readouterr() == ("", "")

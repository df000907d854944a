"""Several notebooks in one run: at once, within a limit, and gone when the runner is."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest
from nbformat.v4 import new_code_cell

from labkit.notebooks.execute import RunOptions
from labkit.notebooks.kernel import find_marked
from labkit.notebooks.schedule import run_notebooks
from labkit.notebooks.sources import Source
from tests.notebooks import SPAWN, is_gone, make_file, make_notebook, read_pids, run_cells

ROOT = Path(__file__).parents[1]

# Passes only while the other one is running too.
MEET = """import pathlib, time
pathlib.Path({mine!r}).touch()
deadline = time.monotonic() + 30
while not pathlib.Path({other!r}).exists():
    assert time.monotonic() < deadline
    time.sleep(0.01)"""


def run_all(folder, notebooks, **options):
    sources = [Source(name, folder / f"{name}.ipynb") for name in notebooks]
    return run_notebooks(
        sources, RunOptions(**options), load=lambda source: make_notebook(*notebooks[source.name])
    )


def test_jobs_run_at_the_same_time_each_in_its_own_kernel(tmp_path):
    notebooks = {
        "a": ["import os; x = 1", MEET.format(mine="a", other="b")],
        "b": ["import os; assert 'x' not in dir()", MEET.format(mine="b", other="a")],
    }
    results = run_all(tmp_path, notebooks, jobs=2)
    assert [(result.name, result.status) for result in results] == [
        ("a", "passed"),
        ("b", "passed"),
    ]


@pytest.mark.slow
def test_after_a_failure_what_runs_ends_and_nothing_more_begins(tmp_path):
    notebooks = {"a": ["1/0"], "b": ["1"], "c": ["1"]}
    results = run_all(tmp_path, notebooks)
    assert [result.status for result in results] == ["failed", "not_run", "not_run"]


@pytest.mark.slow
def test_the_total_limit_ends_the_run_where_it_is(tmp_path):
    notebooks = {"a": [SPAWN, "import time; time.sleep(600)"], "b": ["1"]}
    results = run_all(tmp_path, notebooks, total_timeout_seconds=4.0, keep_going=True)
    assert [result.status for result in results] == ["timed_out", "not_run"]
    assert results[0].error.what.endswith("was reached in cell 2 of 2")
    assert results[0].error.kind == "timeout"
    assert all(is_gone(pid) for pid in read_pids(tmp_path))


def test_a_limit_shorter_than_the_kernels_start_is_a_timeout(tmp_path):
    (result,) = run_all(tmp_path, {"a": ["1"]}, total_timeout_seconds=0.05)
    assert result.status == "timed_out"
    assert "0.05 s" in result.error.what
    assert result.error.what.endswith("was reached at its start")
    assert [cell.status for cell in result.cells] == ["not_run"]


def test_allowed_errors_go_on_and_are_named(tmp_path):
    result, notebook = run_cells(tmp_path, "1/0", "print('on')", allow_errors=True)
    assert [(cell.status, cell.raised) for cell in result.cells] == [
        ("passed", "ZeroDivisionError"),
        ("passed", None),
    ]
    assert result.status == "passed"
    assert notebook.cells[1].outputs[0].text == "on\n"


def test_out_of_memory_is_a_kind_of_its_own(tmp_path):
    cell = new_code_cell("raise MemoryError('tried to allocate 8.00 GiB')")
    result, _ = run_cells(tmp_path, cell)
    assert (result.status, result.error.kind) == ("failed", "out_of_memory")
    assert result.error.balance.asked_bytes == 8 * 2**30
    assert result.error.hint.startswith("8.0 GiB asked for\ntry: ")


@pytest.mark.slow
def test_a_killed_runner_takes_its_kernel_and_all_children_with_it(tmp_path):
    path = make_file(tmp_path / "long.ipynb", SPAWN, "import time\ntime.sleep(600)")
    command = [sys.executable, "-m", "labkit", "run", path, "--output", str(tmp_path / "out")]
    process = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)
    assert process.stderr is not None
    assert process.stderr.readline().startswith(b"long  1/2")
    wait_for_running_cell(tmp_path / "out" / "result.json")
    process.kill()
    process.communicate()
    assert all(is_gone(pid) for pid in read_pids(tmp_path))


def wait_for_running_cell(path):
    """A crash leaves what was known: here that the first cell passed and the second runs."""
    deadline = time.monotonic() + 20
    while time.monotonic() < deadline:
        text = path.read_text() if path.exists() else ""
        cells = json.loads(text)["notebooks"][0]["cells"] if text else []
        if [cell["status"] for cell in cells] == ["passed", "running"]:
            return
        time.sleep(0.02)
    pytest.fail("the result never told of the running cell")


def test_ctrl_c_ends_all_that_run_and_begins_no_more(tmp_path, heeds_interrupts):
    begun = set()
    lock = threading.Lock()

    def interrupt(event):
        with lock:
            before = len(begun)
            begun.add(event.notebook)
            if (before, len(begun)) == (1, 2):
                os.kill(os.getpid(), signal.SIGINT)

    sleep = ["import time\ntime.sleep(600)"]
    sources = [Source(name, tmp_path / f"{name}.ipynb") for name in ("a", "b", "c")]
    results = run_notebooks(
        sources,
        RunOptions(jobs=2),
        watch=interrupt,
        load=lambda source: make_notebook(*sleep),
    )
    assert [result.status for result in results] == ["interrupted", "interrupted", "not_run"]


def test_a_marked_process_is_found_and_no_other(tmp_path):
    for number, entry in ((11, b"A=1\0LABKIT_KERNEL_a=1\0"), (12, b"LABKIT_KERNEL_ab=1\0")):
        (tmp_path / str(number)).mkdir()
        (tmp_path / str(number) / "environ").write_bytes(entry)
    (tmp_path / "13").mkdir()  # one that ended just now
    assert list(find_marked("LABKIT_KERNEL_a", tmp_path)) == [11]

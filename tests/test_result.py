"""The account of a run: its object, its exit code, and the words people read."""

from __future__ import annotations

import io
import json

import pytest

from labkit.notebooks.console import RunProgress, format_cell, format_summary
from labkit.notebooks.recorder import CellEvent
from labkit.notebooks.result import (
    CellMemory,
    CellResult,
    CheckOutcome,
    ClaimOutcome,
    CudaMemory,
    Measuring,
    NotebookResult,
    RunFailure,
    RunResult,
    all_held,
    collect_checks,
    collect_claims,
    describe_run,
)


def make_run(*statuses):
    return RunResult({}, tuple(NotebookResult(s, f"{s}.ipynb", s) for s in statuses))


@pytest.mark.parametrize(
    ("statuses", "status", "exit_code"),
    [
        (["passed", "passed"], "passed", 0),
        (["passed", "failed", "not_run"], "failed", 1),
        (["died"], "died", 1),
        (["timed_out", "failed"], "timed_out", 4),
        (["invalid", "passed"], "invalid", 2),
        (["failed", "interrupted"], "interrupted", 130),
        (["interrupted", "running"], "running", 1),
    ],
    ids=[
        "passed",
        "failed",
        "died",
        "the first one counts",
        "invalid",
        "Ctrl-C counts most",
        "going on counts more",
    ],
)
def test_the_first_notebook_that_did_not_pass_decides(statuses, status, exit_code):
    run = make_run(*statuses)
    assert (run.status, run.exit_code) == (status, exit_code)


FAILED = NotebookResult(
    name="tensors",
    path="labs/tensors/lesson.py",
    status="failed",
    seconds=12.3,
    executed="tensors.ipynb",
    startup_seconds=0.8,
    timeline=((0.5, 10, None),),
    measuring=Measuring("the kernel's high-water mark", None, 0.003, 2, 0.01, 100),
    cells=(
        CellResult(
            1,
            "passed",
            0.5,
            "import torch",
            memory=CellMemory(10, 30, 20),
            cuda=(CudaMemory("cuda:0", 0, 500, 400),),
            output_bytes=7,
        ),
        CellResult(3, "failed", 0.1, "claim(...)"),
        CellResult(5, "not_run", None, "more()"),
    ),
    claims=(
        ClaimOutcome("from_numpy shares memory", True, None),
        ClaimOutcome("two and two make five", False, None),
        ClaimOutcome("streams overlap", None, "needs cuda"),
    ),
    checks=(
        CheckOutcome("tensors.center", "passed"),
        CheckOutcome("tensors.loss", "wrong_shape"),
    ),
    error=RunFailure("cell 2 of 3 raised ValueError: no", 3, "ValueError", "f()\ng()", "line 1"),
)


def describe_plain_cell(index, status, seconds, first_line):
    return {
        "index": index,
        "status": status,
        "seconds": seconds,
        "first_line": first_line,
        "raised": None,
        "memory": None,
        "cuda": None,
        "output_bytes": 0,
        "truncated": False,
    }


def test_the_object_is_the_documented_one():
    run = RunResult({"python": "3.12"}, (FAILED,), "2026-11-23T12:00:00+00:00", 13.0)
    assert json.loads(json.dumps(describe_run(run))) == {
        "status": "failed",
        "started_at": "2026-11-23T12:00:00+00:00",
        "seconds": 13.0,
        "environment": {"python": "3.12"},
        "measuring": {
            "seconds_per_cell": 0.0015,
            "samples": 100,
            "sampling_seconds": 0.01,
            "how": {"process": "the kernel's high-water mark", "cuda": None},
        },
        "notebooks": [
            {
                "name": "tensors",
                "path": "labs/tensors/lesson.py",
                "status": "failed",
                "seconds": 12.3,
                "executed": "tensors.ipynb",
                "startup_seconds": 0.8,
                "cells": [
                    {
                        "index": 1,
                        "status": "passed",
                        "seconds": 0.5,
                        "first_line": "import torch",
                        "raised": None,
                        "memory": {"before_bytes": 10, "peak_bytes": 30, "after_bytes": 20},
                        "cuda": [
                            {
                                "device": "cuda:0",
                                "before_bytes": 0,
                                "peak_bytes": 500,
                                "after_bytes": 400,
                            }
                        ],
                        "output_bytes": 7,
                        "truncated": False,
                    },
                    describe_plain_cell(3, "failed", 0.1, "claim(...)"),
                    describe_plain_cell(5, "not_run", None, "more()"),
                ],
                "timeline": [[0.5, 10, None]],
                "claims": [
                    {"statement": "from_numpy shares memory", "held": True, "skipped": None},
                    {"statement": "two and two make five", "held": False, "skipped": None},
                    {"statement": "streams overlap", "held": None, "skipped": "needs cuda"},
                ],
                "checks": [
                    {"name": "tensors.center", "status": "passed"},
                    {"name": "tensors.loss", "status": "wrong_shape"},
                ],
                "error": {
                    "what": "cell 2 of 3 raised ValueError: no",
                    "cell_index": 3,
                    "name": "ValueError",
                    "source": "f()\ng()",
                    "traceback": "line 1",
                    "kind": "cell",
                    "hint": None,
                    "balance": None,
                },
            }
        ],
    }


def make_output(mime, record):
    return {"output_type": "display_data", "data": {mime: record, "text/plain": "shown"}}


def test_claims_and_checks_are_read_from_the_outputs_in_order():
    claim = "application/vnd.labkit.claim+json"
    check = "application/vnd.labkit.check+json"
    notebook = {
        "cells": [
            {"cell_type": "markdown", "source": "text"},
            {
                "cell_type": "code",
                "outputs": [
                    {"output_type": "stream", "name": "stdout", "text": "printed"},
                    make_output(claim, {"statement": "first", "held": True, "skipped": None}),
                    make_output(check, {"exercise": "tensors.loss", "status": "raised"}),
                    make_output(claim, {"statement": "second", "held": None, "skipped": "why"}),
                ],
            },
        ]
    }
    assert collect_claims(notebook) == (
        ClaimOutcome("first", True, None),
        ClaimOutcome("second", None, "why"),
    )
    assert collect_checks(notebook) == (CheckOutcome("tensors.loss", "raised"),)


@pytest.mark.parametrize(
    ("held", "status", "expected"),
    [
        (True, "passed", True),
        (None, "passed", True),
        (False, "passed", False),
        (True, "not_started", False),
    ],
    ids=["held", "skipped", "not held", "check not passed"],
)
def test_a_skipped_claim_does_not_fail_a_run(held, status, expected):
    claims = (ClaimOutcome("fact", held, None if held is not None else "needs cuda"),)
    assert all_held(claims, (CheckOutcome("tensors.loss", status),)) is expected


SUMMARY = """\
tensors: failed, 2 of 3 cells run, 1 of 3 claims held, 1 skipped, 1 of 2 checks passed (12.3 s)
  claim does not hold: two and two make five
  check did not pass: tensors.loss (wrong_shape)
  cell 2 of 3 raised ValueError: no

    f()
    g()

  line 1
autograd: not run"""


def test_the_summary_names_what_did_not_hold():
    waiting = NotebookResult("autograd", "labs/autograd/lesson.py", "not_run")
    assert format_summary((FAILED, waiting)) == SUMMARY


def test_a_claims_own_traceback_is_left_out():
    error = RunFailure("cell 1 of 1 raised ClaimFailed: no", 0, "ClaimFailed", "claim()", "inside")
    text = format_summary((NotebookResult("a", "a.py", "failed", error=error),))
    assert text == "a: failed\n  cell 1 of 1 raised ClaimFailed: no\n\n    claim()"


def test_a_long_traceback_keeps_its_end():
    traceback = "\n".join(f"frame {number}" for number in range(100))
    error = RunFailure("it raised", 0, "RecursionError", None, traceback)
    lines = format_summary((NotebookResult("a", "a.py", "failed", error=error),)).splitlines()
    assert len(lines) == 44
    assert lines[3:5] == ["  ...", "  frame 60"]
    assert lines[-1] == "  frame 99"


@pytest.mark.parametrize(
    ("event", "line"),
    [
        pytest.param(
            CellEvent("tensors", 3, 41, "a = torch.tensor([1.0])", "passed", 0.0123),
            "tensors   3/41  a = torch.tensor([1.0])                                 0.01 s",
            id="passed",
        ),
        pytest.param(
            CellEvent("tensors", 3, 9, "x" * 80, "timed_out", 600.4),
            "tensors  3/9  " + "x" * 49 + "...  600.40 s  timed out",
            id="timed out",
        ),
        pytest.param(
            CellEvent("tensors", 3, 9, "x" * 80, "running", 3.2, 300 * 2**20),
            "tensors  3/9  " + "x" * 49 + "...    3.20 s  300.0 MiB",
            id="with its memory now",
        ),
    ],
)
def test_the_line_of_a_cell(event, line):
    assert format_cell(event) == line


class FakeTerminal(io.StringIO):
    """A stream that says it is a terminal."""

    def isatty(self):
        return True


START = CellEvent("a", 1, 1, "f()", "running", None)
LATER = CellEvent("a", 1, 1, "f()", "running", 0.3, 2**20)
END = CellEvent("a", 1, 1, "f()", "passed", 0.5)
OVER = "\r\x1b[K"


@pytest.fixture
def terminal(monkeypatch):
    monkeypatch.setenv("TERM", "xterm")
    return FakeTerminal()


def test_without_a_terminal_a_cell_is_one_line_when_it_ends():
    stream = io.StringIO()
    progress = RunProgress(stream)
    progress.show_event(START)
    progress.show_event(LATER)
    assert stream.getvalue() == ""
    progress.show_event(END)
    assert stream.getvalue() == format_cell(END) + "\n"


def test_on_a_terminal_the_line_stands_and_goes_on_while_the_cell_runs(terminal):
    progress = RunProgress(terminal, columns=120)
    progress.show_event(START)
    assert terminal.getvalue() == OVER + format_cell(START)
    progress.show_event(LATER)
    assert terminal.getvalue() == OVER + format_cell(START)  # too soon to look again
    progress._shown = 0.0
    progress.show_event(LATER)
    progress.show_event(END)
    lines = terminal.getvalue().split(OVER)
    assert lines == ["", format_cell(START), format_cell(LATER), format_cell(END) + "\n"]


def test_a_line_that_stands_never_wraps(terminal):
    RunProgress(terminal, columns=20).show_event(START)
    assert terminal.getvalue() == OVER + format_cell(START, 20)[:19]


def test_in_a_narrow_terminal_the_figures_keep_their_place():
    event = CellEvent("tensors", 3, 9, "x" * 80, "running", 3.2, 300 * 2**20)
    line = format_cell(event, 60)
    assert line == "tensors  3/9  " + "x" * 21 + "...    3.20 s  300.0 MiB"
    assert len(line) == 59


@pytest.mark.parametrize(("jobs", "term"), [(2, "xterm"), (1, "dumb")], ids=["jobs", "dumb"])
def test_where_lines_cannot_stand_they_are_written_when_cells_end(
    terminal, monkeypatch, jobs, term
):
    monkeypatch.setenv("TERM", term)
    progress = RunProgress(terminal, jobs=jobs)
    progress.show_event(START)
    progress.show_event(END)
    assert terminal.getvalue() == format_cell(END) + "\n"


def test_the_summary_adds_what_was_left_out_and_what_to_try():
    cells = (CellResult(0, "passed", 1.0, "print(1)", output_bytes=10**8, truncated=True),)
    error = RunFailure("cell 2 of 2 raised MemoryError", 1, "MemoryError", "f()", hint="try: less")
    text = format_summary((NotebookResult("a", "a.py", "failed", cells=cells, error=error),))
    assert text.splitlines() == [
        "a: failed, 1 of 1 cells run",
        "  not all output was kept: 95.4 MiB came from 'print(1)'",
        "  cell 2 of 2 raised MemoryError",
        "",
        "    f()",
        "",
        "  try: less",
    ]

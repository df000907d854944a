"""The model of a run: encoded, decoded, with a status and a schema; and what people read of it."""

from __future__ import annotations

import io
import json
from pathlib import Path

import pytest
from jsonschema import Draft202012Validator

from labkit.errors import UsageError
from labkit.notebooks import result as model
from labkit.notebooks.execute import CellEvent
from labkit.notebooks.result import (
    CellMemory,
    CellResult,
    CheckOutcome,
    ClaimOutcome,
    CudaMemory,
    Environment,
    NotebookResult,
    RunAccount,
    RunFailure,
    collect_checks,
    collect_claims,
    find_status,
    format_schema,
    parse_run,
    read_run,
)
from labkit.notebooks.summary import CLEAR_LINE, RunProgress, format_cell, format_summary
from tests.fakes.runs import MIB, make_cell, make_notebook, make_result
from tests.snapshots import assert_snapshot


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
    ids=lambda value: ",".join(value) if isinstance(value, list) else str(value),
)
def test_the_first_notebook_that_did_not_pass_decides(statuses, status, exit_code):
    notebooks = [NotebookResult(status=one) for one in statuses]
    run = RunAccount(Environment()).describe(notebooks)
    assert (find_status(notebooks), run.exit_code) == (status, exit_code)


FAILED = NotebookResult(
    name="tensors",
    path="labs/tensors/lesson.py",
    status="failed",
    seconds=12.3,
    executed="tensors.ipynb",
    startup_seconds=0.8,
    timeline=((0.5, 10, None),),
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
        CellResult(3, "failed", 0.1, "claim(...)", output_bytes=10**8, truncated=True),
        CellResult(5, "not_run", None, "more()"),
    ),
    claims=(
        ClaimOutcome("from_numpy shares memory", True),
        ClaimOutcome("two and two make five", False),
        ClaimOutcome("streams overlap", None, "needs cuda"),
    ),
    checks=(CheckOutcome("tensors.center", "passed"), CheckOutcome("tensors.loss", "wrong_shape")),
    error=RunFailure(
        "cell 2 of 3 raised ValueError: no",
        3,
        "ValueError",
        "f()\ng()",
        "line 1",
        hint="try: less",
    ),
    kernel="python3",
)


def test_a_result_is_read_back_as_it_was_written(tmp_path):
    run = RunAccount(Environment(python="3.12")).describe([FAILED])
    (tmp_path / "result.json").write_text(json.dumps(run.describe()))
    saved = read_run(tmp_path)
    assert (saved.folder, saved.result) == (tmp_path, run)
    cell = run.describe()["notebooks"][0]["cells"][0]
    assert cell["memory"] == {"before_bytes": 10, "peak_bytes": 30, "after_bytes": 20}
    assert "trouble" not in run.describe()


def test_the_schema_beside_the_model_is_the_generated_one():
    stored = Path(model.__file__).with_name("result.schema.json").read_text()
    assert stored == format_schema(), "python -m labkit.notebooks.result > result.schema.json"
    Draft202012Validator.check_schema(json.loads(stored))


@pytest.mark.parametrize(
    "change",
    [
        {"schema_version": 2},
        {"status": "fine"},
        {"more": 1},
        {"seconds": -1},
        {"notebooks": [{"name": "tensors"}]},
    ],
    ids=["version", "status", "unknown key", "negative", "missing keys"],
)
def test_the_schema_refuses_what_labkit_does_not_write(change):
    described = RunAccount(Environment()).describe([FAILED]).describe()
    schema = Draft202012Validator(json.loads(format_schema()))
    assert schema.is_valid(json.loads(json.dumps(described)))
    assert not schema.is_valid(json.loads(json.dumps({**described, **change})))


@pytest.mark.parametrize(
    ("text", "what", "cause"),
    [
        ("{", "is not a run's result", "Expecting property name"),
        ("[" * 100_000, "is not a run's result", "recursion"),
        ("[]", "is not a run's result", "no list of notebooks"),
        ('{"error": {}}', "is not a run's result", "no list of notebooks"),
        ('{"schema_version": 2, "notebooks": []}', "schema version 2", "a newer labkit"),
    ],
    ids=["broken", "deep", "a list", "an error's object", "newer"],
)
def test_what_is_not_a_result_is_a_usage_error(tmp_path, text, what, cause):
    (tmp_path / "result.json").write_text(text)
    with pytest.raises(UsageError, match=what) as caught:
        read_run(tmp_path)
    assert cause in (caught.value.cause or "")


def test_a_folder_without_a_result_says_how_to_get_one(tmp_path):
    with pytest.raises(UsageError, match=r"result\.json is not there") as caught:
        read_run(tmp_path)
    assert caught.value.fix == "labkit run tensors --output runs/tensors"


def test_wrong_types_and_unknown_keys_of_another_writer_are_read_as_unknown(tmp_path):
    wrong = make_notebook(
        seconds="fast",
        cells=[
            {"index": -1, "seconds": float("nan"), "memory": 3, "cuda": "no"},
            7,
            {"index": 4, "seconds": 10**400, "memory": {"peak_bytes": 5, "more": 1}},
        ],
        timeline=[["a", 1, 1], 3, [1.0, 2, None]],
        claims=["x", {"held": "yes"}],
        checks=None,
        error="text",
        more=1,
    )
    text = json.dumps(make_result(wrong, measuring=[], environment={"python": 3}))
    (tmp_path / "result.json").write_text(text.replace("300", "1e999"))
    (notebook,) = read_run(tmp_path).result.notebooks
    assert (notebook.seconds, notebook.error, notebook.checks) == (None, None, ())
    assert notebook.cells == (
        CellResult(0, cuda=()),
        CellResult(4, memory=CellMemory(None, 5, None)),
    )
    assert (notebook.timeline, notebook.claims) == (((1.0, 2, None),), (ClaimOutcome(),))


def test_peaks_are_the_highest_known_and_unknown_where_none_is():
    cells = [make_cell(0, memory=None), make_cell(1), make_cell(2, "skipped"), make_cell(3)]
    described = make_result(make_notebook(cells=cells), make_notebook(cells=[]))
    run = parse_run(described, Path("result.json"))
    assert [notebook.peak_bytes for notebook in run.notebooks] == [300 * MIB, None]
    assert [notebook.cuda_peak_bytes for notebook in run.notebooks] == [None, None]
    assert run.notebooks[0].cell_numbers == {0: 1, 1: 2, 3: 3}


def make_output(mime, record):
    return {"output_type": "display_data", "data": {mime: record, "text/plain": "shown"}}


def test_claims_and_checks_are_read_from_the_outputs_in_order():
    claim = "application/vnd.labkit.claim+json"
    check = "application/vnd.labkit.check+json"
    outputs = [
        {"output_type": "stream", "name": "stdout", "text": "printed"},
        make_output(claim, {"statement": "first", "held": True, "skipped": None}),
        make_output(check, {"exercise": "tensors.loss", "status": "raised"}),
        make_output(claim, {"statement": "second", "held": None, "skipped": "why"}),
    ]
    cells = [{"cell_type": "markdown", "source": "text"}, {"cell_type": "code", "outputs": outputs}]
    assert collect_claims({"cells": cells}) == (
        ClaimOutcome("first", True),
        ClaimOutcome("second", None, "why"),
    )
    assert collect_checks({"cells": cells}) == (CheckOutcome("tensors.loss", "raised"),)


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
    notebook = NotebookResult(
        claims=(ClaimOutcome("fact", held),), checks=(CheckOutcome("tensors.loss", status),)
    )
    assert notebook.all_held is expected


def test_the_summary_names_what_did_not_hold():
    waiting = NotebookResult("autograd", "labs/autograd/lesson.py", "not_run")
    assert_snapshot("run_summary", format_summary((FAILED, waiting)) + "\n")


def test_a_claims_own_traceback_is_left_out():
    error = RunFailure("cell 1 of 1 raised ClaimFailed: no", 0, "ClaimFailed", "claim()", "inside")
    text = format_summary((NotebookResult("a", "a.py", "failed", error=error),))
    assert "claim()" in text
    assert "inside" not in text


def test_a_long_traceback_keeps_its_end():
    traceback = "\n".join(f"frame {number}" for number in range(100))
    error = RunFailure("it raised", 0, "RecursionError", None, traceback)
    lines = format_summary((NotebookResult("a", "a.py", "failed", error=error),)).splitlines()
    assert lines[3:5] == ["  ...", "  frame 60"]
    assert lines[-1] == "  frame 99"


def test_escapes_in_names_code_and_errors_are_shown_and_not_sent_to_the_terminal():
    evil = "\x1b]0;title\x07\x1b[2J\u202e"
    error = RunFailure(evil, 0, evil, evil, evil, hint=evil)
    notebook = NotebookResult(
        evil,
        evil,
        evil,
        cells=(CellResult(0, evil, 1.0, evil, truncated=True),),
        claims=(ClaimOutcome(evil, False),),
        checks=(CheckOutcome(evil, evil),),
        error=error,
    )
    event = CellEvent(evil, 1, 1, evil, "passed", 0.5)
    for text in (format_summary((notebook,)), format_cell(event), format_cell(event, 200)):
        assert not set(text) & set("\x1b\x07\u202e")
        assert "\\x1b]0;title" in text


@pytest.mark.parametrize(
    ("event", "line"),
    [
        pytest.param(
            CellEvent("tensors", 3, 41, "a = torch.tensor([1.0])", "passed", 0.0123),
            "tensors   3/41  a = torch.tensor([1.0])                                 0.01 s",
            id="passed",
        ),
        pytest.param(
            CellEvent("tensors", 3, 9, "x" * 80, "timed_out", 600.4, 300 * 2**20),
            "tensors  3/9  " + "x" * 49 + "...  600.40 s  300.0 MiB  timed out",
            id="timed out",
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


@pytest.fixture
def terminal(monkeypatch):
    monkeypatch.setenv("TERM", "xterm")
    return FakeTerminal()


def test_without_a_terminal_a_cell_is_one_line_when_it_ends():
    stream = io.StringIO()
    progress = RunProgress(stream)
    for event in (START, LATER, END):
        progress.show_event(event)
    assert stream.getvalue() == format_cell(END) + "\n"


def test_on_a_terminal_the_line_stands_and_goes_on_while_the_cell_runs(terminal):
    progress = RunProgress(terminal, columns=120)
    progress.show_event(START)
    progress.show_event(LATER)  # too soon for another line
    progress._shown = 0.0
    progress.show_event(LATER)
    progress.show_event(END)
    lines = terminal.getvalue().split(CLEAR_LINE)
    assert lines == ["", format_cell(START), format_cell(LATER), format_cell(END) + "\n"]


def test_a_standing_line_never_wraps_and_keeps_its_figures(terminal):
    RunProgress(terminal, columns=20).show_event(START)
    assert terminal.getvalue() == CLEAR_LINE + format_cell(START, 20)[:19]
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

"""What ``labkit run`` takes from papermill, nbval, pytest and CI: parameters, outputs, JUnit."""

from __future__ import annotations

import json
import subprocess
import sys
import xml.etree.ElementTree as ET
from importlib.metadata import entry_points
from pathlib import Path

import nbformat
import pytest
from nbformat.v4 import new_code_cell, new_notebook, new_output

from labkit.cli import main
from labkit.errors import UsageError
from labkit.notebooks.junit import format_junit
from labkit.notebooks.outputs import is_same, read_text
from labkit.notebooks.result import (
    CellResult,
    CheckOutcome,
    ClaimOutcome,
    NotebookResult,
    RunFailure,
    RunResult,
)
from labkit.notebooks.schedule import choose_jobs, share_cores
from labkit.notebooks.sources import INJECTED_TAG, inject_parameters, parse_parameters
from labkit.notebooks.upload import check_address, upload_folder
from tests.notebooks import make_file, make_notebook


@pytest.fixture(autouse=True)
def here(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("labkit.notebooks.summary.RunProgress.show_event", lambda self, event: None)
    return tmp_path


def run_json(capsys, *words):
    status = main(["run", *words, "--json", "--no-output"])
    return status, json.loads(capsys.readouterr().out)["notebooks"]


def declare(source, *others):
    return make_notebook(new_code_cell(source, metadata={"tags": ["parameters"]}), *others)


@pytest.mark.slow
def test_parameters_follow_the_cell_that_declares_them_and_are_recorded(tmp_path, capsys):
    notebook = declare(
        "n = 1\nname = 'a'\nrate = 0.5", "assert (n, name, rate) == (3, 'b c', 1e-3)"
    )
    nbformat.write(notebook, tmp_path / "one.ipynb")
    (tmp_path / "values.yaml").write_text("n: 2\nname: b c\n")
    words = ["one.ipynb", "--parameters-file", "values.yaml", "-p", "n", "3", "-p", "rate", "1e-3"]
    assert run_json(capsys, *words, "-p", "rate", "nan")[1][0]["parameters"]["rate"] == "nan"
    status, (result,) = run_json(capsys, *words)
    assert status == 0
    assert result["parameters"] == {"n": 3, "name": "b c", "rate": 0.001}
    assert result["notes"] == []


def test_an_earlier_injected_cell_is_replaced():
    notebook = declare("n = 1", new_code_cell("n = 7", metadata={"tags": [INJECTED_TAG]}))
    assert inject_parameters(notebook, {"n": 3}) == []
    assert [cell.source for cell in notebook.cells] == ["n = 1", "# Parameters\nn = 3"]


@pytest.mark.parametrize(
    ("notebook", "place", "note"),
    [
        (lambda: declare("n = 1"), 1, "does not assign x"),
        (lambda: make_notebook("n = 1"), 0, "no cell has the tag"),
        (lambda: declare("%matplotlib inline\nn = 1"), 1, None),
    ],
)
def test_a_parameter_that_is_not_declared_is_noted(notebook, place, note):
    made = notebook()
    notes = inject_parameters(made, {"x": float("inf")})
    assert made.cells[place].source == "# Parameters\nx = float('inf')"
    assert [note in text for text in notes] == ([True] if note else [])


def test_parameters_of_another_language_are_refused():
    notebook = make_notebook("n <- 1")
    notebook.metadata["kernelspec"] = {"name": "ir", "language": "R", "display_name": "R"}
    with pytest.raises(UsageError, match="parameters cannot be set in r"):
        inject_parameters(notebook, {"n": 1})


@pytest.mark.parametrize("name", ["two words", "class", "x = 1; y", ""])
def test_a_parameters_name_is_a_variables_name(name):
    with pytest.raises(UsageError, match="invalid parameter name"):
        parse_parameters([(name, "1")])


@pytest.mark.parametrize("text", ["- 1\n- 2", "{a: [", "a b: 1", "day: 2026-01-01", "x: .nan"])
def test_a_file_without_an_object_of_names_is_refused(tmp_path, capsys, text):
    (tmp_path / "values.yaml").write_text(text)
    make_file(tmp_path / "one.ipynb", "1")
    assert main(["run", "one.ipynb", "--parameters-file", "values.yaml", "--no-output"]) == 2
    assert capsys.readouterr().err.startswith("error: ")


def test_a_notebook_runs_in_the_folder_asked_for(tmp_path, capsys):
    (tmp_path / "data").mkdir()
    make_file(tmp_path / "one.ipynb", "import os; assert os.path.basename(os.getcwd()) == 'data'")
    assert run_json(capsys, "one.ipynb", "--cwd", "data")[0] == 0
    assert main(["run", "one.ipynb", "--cwd", "nowhere"]) == 2


def save_outputs(path, *cells):
    made = [
        new_code_cell(source, outputs=outputs, metadata={"tags": tags})
        for source, outputs, tags in cells
    ]
    nbformat.write(new_notebook(cells=made), path)
    return str(path)


def stream(text, name="stdout"):
    return new_output("stream", name=name, text=text)


@pytest.mark.slow
def test_changed_outputs_fail_the_run_and_are_shown(tmp_path, capsys):
    path = save_outputs(
        tmp_path / "one.ipynb",
        ("print('loss', 0.5000001)", [stream("loss 0.5\n")], []),
        ("print('step 4')", [stream("step 3\n")], []),
        ("import random; print(random.random())", [stream("0.1\n")], ["nbval-ignore-output"]),
        ("print('never saved')", [], []),
        (
            "object()",
            [new_output("execute_result", {"text/plain": "<object at 0x7f00aabbcc>"})],
            [],
        ),
        ("import sys; print('w', file=sys.stderr)", [stream("other", "stderr")], []),
    )
    status, (result,) = run_json(capsys, path, "--compare-outputs")
    assert (status, result["status"]) == (1, "failed")
    changes = [(one["cell_index"], one["saved"], one["seen"]) for one in result["output_changes"]]
    assert changes == [(1, "step 3", "step 4")]
    assert run_json(capsys, path)[1][0]["output_changes"] is None
    assert main(["run", path, "--compare-outputs", "0.5", "--output", "out"]) == 0
    assert "The compared outputs are the saved ones" in (tmp_path / "out/report.html").read_text()
    assert main(["run", path, "--compare-outputs", "--output", "bad", "-p", "n", "3"]) == 1
    page = (tmp_path / "bad/report.html").read_text()
    assert "saved <code>step 3</code>" in page
    assert "Parameters: n = 3" in page


def raised(name, value):
    return new_output("error", ename=name, evalue=value, traceback=[])


@pytest.mark.slow
def test_comments_of_nbval_are_followed_when_outputs_are_compared(tmp_path, capsys):
    path = save_outputs(
        tmp_path / "one.ipynb",
        ("# NBVAL_IGNORE_OUTPUT\nimport time; time.time()", [stream("1.0\n")], []),
        ("a = 1\n  # PYTEST_VALIDATE_IGNORE_OUTPUT\nprint(a)", [stream("2\n")], []),
        ("#NBVAL_SKIP\n1 / 0", [stream("never\n")], []),
        ("# NBVAL_RAISES_EXCEPTION\n1 / 0", [raised("ZeroDivisionError", "division by zero")], []),
        ("{}['a']", [raised("KeyError", "'a'")], ["nbval-raises-exception"]),
        ("print('# NBVAL_SKIP')", [stream("other\n")], []),
    )
    status, (result,) = run_json(capsys, path, "--compare-outputs")
    assert status == 1
    changes = [(one["cell_index"], one["saved"], one["seen"]) for one in result["output_changes"]]
    assert changes == [(5, "other", "# NBVAL_SKIP")]
    skipped = [cell["index"] for cell in result["cells"] if cell["status"] == "skipped"]
    assert skipped == [2]
    # They are comments where nothing is compared, as for nbclient.
    assert run_json(capsys, path)[1][0]["error"]["cell_index"] == 2


@pytest.mark.parametrize(
    ("before", "now", "tolerance", "same"),
    [
        ("a 1.0 b", "a  1.0\nb", 0, True),
        ("1e-3", "0.001", 0, True),
        ("100", "101", 0.02, True),
        ("100", "101", 0.001, False),
        ("conv1 2", "conv2 2", 1, False),
        ("1 2", "1", 1, False),
        ("v1.2.3", "v1.2.4", 1, False),
        ("tensor([-1., 2.])", "tensor([ 1., 2.])", 0.1, False),
    ],
)
def test_numbers_may_differ_by_the_tolerance_and_words_may_not(before, now, tolerance, same):
    assert is_same(before, now, tolerance) is same


def test_a_pictures_text_and_colors_are_not_compared():
    figure = new_output("display_data", {"image/png": "", "text/plain": "<Figure 640x480>"})
    assert read_text([figure, stream("\x1b[31mred\x1b[0m\n")]) == "red\n"


def test_junit_has_a_test_for_each_cell_claim_and_check():
    notebook = NotebookResult(
        name="one",
        path="one.ipynb",
        status="failed",
        cells=(
            CellResult(0, "passed", 0.5, "x = 1"),
            CellResult(1, "skipped", None, "y"),
            CellResult(2, "failed", 1.0, "print('\x1b[1m<&>\x00')"),
            CellResult(3, "not_run", None, "z"),
        ),
        claims=(ClaimOutcome("a", True), ClaimOutcome("b", False), ClaimOutcome("c", None, "cuda")),
        checks=(CheckOutcome("lab.one", "passed"), CheckOutcome("lab.two", "failed")),
        error=RunFailure("cell 2 raised", cell_index=2, traceback="Trace\x0bback"),
    )
    late = NotebookResult(name="two", status="not_run")
    suites = list(ET.fromstring(format_junit(RunResult(notebooks=(notebook, late)))))
    assert [suite.get("failures") for suite in suites] == ["3", "0"]
    assert [suite.get("skipped") for suite in suites] == ["3", "1"]
    cases = {case.get("name"): [child.tag for child in case] for case in suites[0]}
    assert cases["cell 2: print('<&>\ufffd')"] == ["failure"]
    assert (cases["b"], cases["c"], cases["lab.two"]) == (["failure"], ["skipped"], ["failure"])


def test_junit_is_written_also_after_a_failure(tmp_path):
    make_file(tmp_path / "one.ipynb", "1/0")
    assert main(["run", "one.ipynb", "--junit", "out/junit.xml", "--no-output"]) == 1
    (suite,) = ET.parse(tmp_path / "out" / "junit.xml").getroot()
    assert suite.get("failures") == "1"


@pytest.mark.slow
def test_last_failed_runs_what_did_not_pass(tmp_path, capsys):
    make_file(tmp_path / "good.ipynb", "1")
    make_file(tmp_path / "bad.ipynb", "1/0")
    assert main(["run", "bad.ipynb", "good.ipynb", "--keep-going"]) == 1
    capsys.readouterr()
    status, results = run_json(capsys, "good.ipynb", "bad.ipynb", "--last-failed")
    assert (status, [result["name"] for result in results]) == (1, ["bad"])
    make_file(tmp_path / "bad.ipynb", "1")
    assert main(["run", "--last-failed"]) == 0
    assert main(["run", "--last-failed"]) == 2
    assert "every notebook passed" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("notebooks", "cores", "free", "jobs"),
    [(10, 16, 8 * 2**30, 4), (10, 4, None, 2), (1, 64, None, 1), (5, None, None, 1), (5, 8, 0, 1)],
)
def test_auto_jobs_follow_cores_and_memory(notebooks, cores, free, jobs):
    assert choose_jobs(notebooks, cores, free) == jobs


def test_kernels_that_run_at_once_share_the_cores_unless_the_caller_chose():
    assert share_cores(4, 16, {})["OMP_NUM_THREADS"] == "4"
    assert share_cores(1, 16, {}) == share_cores(4, 16, {"OMP_NUM_THREADS": "2"}) == {}


def test_a_run_is_sent_to_an_address(tmp_path, capsys):
    target = tmp_path / "bucket" / "run"
    make_file(tmp_path / "one.ipynb", "1/0")
    assert main(["run", "one.ipynb", "--output", target.as_uri()]) == 1
    assert f"run folder: {target.as_uri()}\n" in capsys.readouterr().err
    assert {"result.json", "one.ipynb", "report.html"} <= {path.name for path in target.iterdir()}
    assert main(["run", "one.ipynb", "--output", target.as_uri()]) == 2
    assert "already holds a run" in capsys.readouterr().err


def test_an_address_that_cannot_be_used_is_refused_without_its_password():
    with pytest.raises(UsageError, match=r"nosuch://\.\.\.@host/run cannot be used"):
        check_address("nosuch://me:secret@host/run")
    with pytest.raises(UsageError, match="cannot be used"):
        upload_folder(Path(), "nosuch://host/run")
    with pytest.raises(UsageError, match="cannot be used"):
        check_address("zip://run::file:///nowhere/at/all.zip")


def test_a_folder_is_refused_with_the_names_of_its_notebooks(tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "mine").mkdir()
    make_file(tmp_path / "mine/one.ipynb", "1")
    for word in ("mine", "mine/"):
        assert main(["run", word, "--no-output"]) == 2
        assert "labkit run mine/*.ipynb" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("files", "pattern"),
    [
        ((), None),
        (("data.csv", ".hidden.ipynb", "one.ipynb/x"), None),
        (("README.md", "one.qmd"), "'my own'/*.qmd"),
        (("train.py",), "'my own'/*.py"),
        (("part/one.ipynb", "data.csv"), "'my own/part'/*.ipynb"),
        (("one.ipynb", "part/two.qmd"), "'my own'/*.ipynb"),
    ],
    ids=lambda value: "+".join(value) if isinstance(value, tuple) else "",
)
def test_a_refused_folder_names_only_what_it_has(files, pattern, tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "my own").mkdir()
    for name in files:
        (tmp_path / "my own" / name).parent.mkdir(exist_ok=True, parents=True)
        (tmp_path / "my own" / name).write_text("")
    assert main(["run", "my own/", "--no-output"]) == 2
    error = capsys.readouterr().err
    if pattern:
        assert f"labkit run {pattern}\n" in error
    else:
        assert "*" not in error
        assert "has none of .ipynb" in error


@pytest.mark.slow
def test_pytest_runs_notebooks_with_the_plugin(tmp_path):
    make_file(tmp_path / "good.ipynb", "1")
    make_file(tmp_path / "bad.ipynb", "1/0")
    words = ["-p", "no:xdist", "-p", "no:cacheprovider", "-q", "--labkit"]
    # An installed labkit brings the plugin; a checkout on the path does not.
    installed = entry_points(group="pytest11", name="labkit")
    plugins = [] if installed else ["-p", "labkit.notebooks.pytest_plugin"]
    ran = subprocess.run(
        [sys.executable, "-m", "pytest", *plugins, *words, str(tmp_path)],
        capture_output=True,
        text=True,
        timeout=240,
        check=False,
    )
    assert "1 failed, 1 passed" in ran.stdout, ran.stdout + ran.stderr
    assert "ZeroDivisionError" in ran.stdout
    assert ran.returncode == 1


@pytest.mark.parametrize(
    "words",
    [
        ["one.ipynb", "--junit", "./one.ipynb"],
        ["one.ipynb", "--output", "."],
        ["one.py", "--output", "."],  # beside its pair, a notebook
    ],
    ids=" ".join,
)
def test_a_run_replaces_no_file_of_the_users(tmp_path, monkeypatch, capsys, words):
    monkeypatch.chdir(tmp_path)
    nbformat.write(declare("n = 1"), tmp_path / "one.ipynb")
    (tmp_path / "one.py").write_text("print(1)\n")
    before = {path: path.read_bytes() for path in tmp_path.iterdir()}
    assert main(["run", *words]) == 2
    assert "would replace it" in capsys.readouterr().err
    assert {path: path.read_bytes() for path in tmp_path.iterdir()} == before

"""``labkit report`` and ``labkit compare`` as people and programs call them."""

from __future__ import annotations

import json
import os

import pytest

from labkit.cli import main
from labkit.cli.run import require_reader
from labkit.errors import EngineError
from tests.fakes.runs import make_notebook, make_result, write_run


@pytest.fixture
def runs(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    return tmp_path / "runs"


def write_aged(folder, age, **facts):
    write_run(folder, make_result(**facts))
    os.utime(folder / "result.json", (2_000_000_000 - age, 2_000_000_000 - age))
    return folder


def test_report_makes_the_page_of_the_run_named_and_prints_its_path(runs, capsys):
    folder = write_run(runs / "cpu", make_result())
    assert main(["report", str(folder)]) == 0
    assert capsys.readouterr().out == f"{folder / 'report.html'}\n"
    assert (folder / "report.html").read_text().startswith("<!DOCTYPE html>")


def test_report_takes_a_result_file_too_and_replaces_the_old_page(runs, capsys):
    folder = write_run(runs / "cpu", make_result())
    (folder / "report.html").write_text("old")
    assert main(["report", str(folder / "result.json"), "--json"]) == 0
    assert json.loads(capsys.readouterr().out) == {
        "schema_version": 1,
        "report": str(folder / "report.html"),
    }
    assert (folder / "report.html").read_text() != "old"


def test_report_without_a_name_takes_the_newest_run(runs, capsys):
    write_aged(runs / "b-older", age=50)
    write_aged(runs / "a-newest", age=10)
    write_aged(runs / "c-oldest", age=90)
    (runs / "empty").mkdir()
    assert main(["report"]) == 0
    assert capsys.readouterr().out == "runs/a-newest/report.html\n"
    assert not (runs / "b-older" / "report.html").exists()


def test_report_without_any_run_says_how_to_make_one(runs, capsys):
    assert main(["report"]) == 2
    assert "labkit run tensors --output runs/tensors" in capsys.readouterr().err


def test_report_of_a_failed_run_is_no_failure_of_the_report(runs):
    folder = write_run(runs / "bad", make_result(make_notebook(status="failed"), status="failed"))
    assert main(["report", str(folder)]) == 0


@pytest.mark.parametrize("words", [["report"], ["compare", "missing"]], ids=["report", "compare"])
def test_a_run_that_is_not_there_is_a_usage_error(runs, capsys, words):
    assert main([*words, "missing"]) == 2
    assert capsys.readouterr().err.startswith("error: missing is not there\n")


def test_compare_prints_words_and_exits_0_whatever_differs(runs, capsys):
    a = write_run(runs / "a", make_result(make_notebook(seconds=2.0)))
    b = write_run(runs / "b", make_result(make_notebook(seconds=3.0, status="failed")))
    assert main(["compare", str(a), str(b / "result.json")]) == 0
    output = capsys.readouterr()
    assert "B takes 1.50 times as long" in output.out
    assert output.err == ""


def test_compare_prints_one_object(runs, capsys):
    a = write_run(runs / "a", make_result())
    assert main(["compare", str(a), str(a), "--json"]) == 0
    described = json.loads(capsys.readouterr().out)
    assert described["schema_version"] == 1
    assert described["notebooks"][0]["seconds"] == {"a": 4.0, "b": 4.0, "ratio": 1.0}


def test_both_commands_are_in_the_help(capsys):
    with pytest.raises(SystemExit):
        main(["--help"])
    text = capsys.readouterr().out
    assert "write a run's report again" in text
    assert "compare two runs" in text


def test_a_python_without_the_packages_says_what_to_type():
    require_reader(find=lambda name: name)
    with pytest.raises(EngineError, match="cannot read a run's result") as caught:
        require_reader(find=lambda name: None if name == "nh3" else name)
    assert caught.value.cause == "this Python lacks nh3"
    assert caught.value.fix == "make shell"

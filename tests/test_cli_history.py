"""``labkit history`` as people and programs call it."""

from __future__ import annotations

import json
import pickle

import pytest

from labkit.cli import main
from labkit.memory.allocations.snapshot import save_snapshot
from tests.fakes.allocator import MIB, make_training, take_snapshot
from tests.test_history_files import Hostile
from tests.test_history_shown import understand
from tests.test_light_imports import HEAVY, MAIN, list_modules


@pytest.fixture
def file(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    return save_snapshot(tmp_path / "run.pickle", take_snapshot(make_training()))


def test_it_prints_what_the_snapshot_tells(file, capsys):
    assert main(["history", "run.pickle"]) == 0
    output = capsys.readouterr()
    assert output.out == f"{understand(make_training())}\n"
    assert output.err == ""


def test_it_writes_the_page_and_names_it(file, capsys):
    assert main(["history", str(file), "-o", "page.html"]) == 0
    assert capsys.readouterr().out == f"{understand(make_training())}\n\npage: page.html\n"
    page = (file.parent / "page.html").read_text()
    assert page.startswith("<!DOCTYPE html>")
    assert "labkit history of run.pickle" in page


def test_json_is_one_object_with_bytes(file, capsys):
    assert main(["history", str(file), "--json", "--output", "page.html"]) == 0
    told = json.loads(capsys.readouterr().out)
    assert (told["schema_version"], told["snapshot"], told["page"]) == (1, str(file), "page.html")
    assert told["devices"][0]["peak"]["live_bytes"] == 10 * MIB
    assert told["devices"][0]["peak"]["largest_free_bytes"] == 2 * MIB


def test_two_snapshots_are_compared(file, capsys):
    assert main(["history", str(file), str(file)]) == 0
    assert "no line holds more or less" in capsys.readouterr().out
    assert main(["history", str(file), str(file), "--json"]) == 0
    told = json.loads(capsys.readouterr().out)
    assert (told["snapshots"], told["devices"][0]["lines"]) == ([str(file)] * 2, [])
    assert main(["history", str(file), str(file), "-o", "page.html"]) == 2


def test_a_hostile_pickle_is_a_usage_error_and_runs_nothing(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "evil.pickle").write_bytes(pickle.dumps(Hostile(tmp_path / "taken")))
    assert main(["history", "evil.pickle", "-o", "page.html", "--json"]) == 2
    output = capsys.readouterr()
    error = json.loads(output.out)["error"]
    assert error["what"] == "evil.pickle is not a memory snapshot of torch"
    assert "subprocess.check_call" in error["cause"]
    assert "_dump_snapshot" in error["fix"]
    assert error["exit_code"] == 2
    assert [one.name for one in tmp_path.iterdir()] == ["evil.pickle"]


def test_a_page_that_cannot_be_written_is_an_error_without_output(file, capsys):
    assert main(["history", str(file), "-o", "no/where.html"]) == 1
    output = capsys.readouterr()
    assert output.out == ""
    assert output.err.startswith("error: cannot write no/where.html\n")


def test_it_works_on_the_standard_library_alone(file):
    words = ["history", str(file), "-o", str(file.with_suffix(".html"))]
    assert list_modules(MAIN.format(words=words)).isdisjoint(HEAVY)
    assert file.with_suffix(".html").exists()

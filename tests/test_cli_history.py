"""``labkit history`` as people and programs call it."""

from __future__ import annotations

import gzip
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


def test_the_page_never_replaces_the_snapshot(file, capsys):
    before = file.read_bytes()
    assert main(["history", "run.pickle", "-o", str(file)]) == 2
    assert "page.html" in capsys.readouterr().err
    assert file.read_bytes() == before


def test_a_file_that_ends_early_is_incomplete(file, tmp_path, capsys):
    content = file.read_bytes()
    packed = gzip.compress(content)
    parts = {"half": content[: len(content) // 2], "gz": packed[: len(packed) // 2]}
    parts["text"] = pickle.dumps(take_snapshot(make_training()), 0)[:200]
    for name, part in parts.items():
        (tmp_path / name).write_bytes(part)
        assert main(["history", str(tmp_path / name), "--json"]) == 2
        error = json.loads(capsys.readouterr().out)["error"]
        assert error["what"] == f"{tmp_path / name} is incomplete"
        assert str(tmp_path / name) in error["fix"]


OTHER_FILES = {
    "empty": (b"", "it has no bytes"),
    "an empty archive": (gzip.compress(b""), "it has no bytes"),
    "a log": (b"epoch 1, loss 0.7\n", "it is text"),
    "an archived log": (gzip.compress("größer\n".encode()), "it is text"),
    "a log that ends inside a letter": ("größer\n".encode() * 1000, "it is text"),
    "Windows' text": ("epoch 1\n".encode("utf-16"), "it is text"),
    "a result": (b'{"loss": 0.7}', "it is JSON"),
    "a page": (b"<!DOCTYPE html>", "it is a page of HTML"),
    "a pointer": (b"version https://git-lfs.github.com/spec/v1\noid sha256:1\n", "git lfs pull"),
    "a picture": (b"\x89PNG\r\n\x1a\n\0\0", "it is a picture"),
    "bytes": (b"\0\1\xff\xfe", "it is not a pickle"),
}


@pytest.mark.parametrize("name", OTHER_FILES)
def test_what_is_not_a_snapshot_is_named_with_what_makes_one(name, tmp_path, capsys):
    content, cause = OTHER_FILES[name]
    (tmp_path / "one").write_bytes(content)
    assert main(["history", str(tmp_path / "one"), "--json"]) == 2
    error = json.loads(capsys.readouterr().out)["error"]
    assert cause in error["cause"]
    assert "incomplete" not in error["what"]
    assert ("is empty" in error["what"]) == ("empty" in name)
    assert "_record_memory_history()" in error["fix"]
    assert "_dump_snapshot" in error["fix"]


def test_a_missing_snapshot_is_looked_for_where_there_are_some(file, capsys):
    assert main(["history", "none.pickle"]) == 2
    assert "ls *.pickle*" in capsys.readouterr().err
    assert main(["history", "elsewhere/none.pickle"]) == 2
    assert "_record_memory_history" in capsys.readouterr().err


def test_the_second_file_is_named_if_it_is_no_snapshot(file, tmp_path, capsys):
    other = tmp_path / "other.pickle"
    other.write_bytes(pickle.dumps({"a": 1}))
    assert main(["history", str(file), str(other)]) == 2
    assert capsys.readouterr().err.startswith(f"error: {other} is not a memory snapshot")


def test_a_snapshot_of_the_end_alone_says_nothing_of_what_was_freed(tmp_path, capsys):
    block = {"address": 4096, "size": 512, "requested_size": 500, "state": "active_allocated"}
    segment = {"address": 4096, "total_size": 1024, "device": 0, "stream": 0, "blocks": [block]}
    path = tmp_path / "end.pickle"
    path.write_bytes(pickle.dumps({"segments": [segment], "device_traces": [[]]}))
    assert main(["history", str(path), "-o", str(tmp_path / "page.html")]) == 0
    output = capsys.readouterr().out
    assert "live" in output
    assert "was freed" not in output
    assert "the snapshot has no events" in (tmp_path / "page.html").read_text()


def test_a_page_that_cannot_be_written_is_an_error_without_output(file, capsys):
    assert main(["history", str(file), "-o", "no/where.html"]) == 1
    output = capsys.readouterr()
    assert output.out == ""
    assert output.err.startswith("error: cannot write no/where.html\n")


def test_it_works_on_the_standard_library_alone(file):
    words = ["history", str(file), "-o", str(file.with_suffix(".html"))]
    assert list_modules(MAIN.format(words=words)).isdisjoint(HEAVY)
    assert file.with_suffix(".html").exists()

from __future__ import annotations

import errno
import json
import os
import subprocess
import sys
from datetime import datetime, timezone
from pathlib import Path

import pytest

from labkit.errors import LabkitError
from labkit.files import Disk, choose_labs_folder, find_workspace
from labkit.lessons import progress as progress_module
from labkit.lessons.progress import (
    Standing,
    clear_progress,
    read_progress,
    record_attempt,
    record_seen,
)

NOON = datetime(2026, 11, 23, 12, tzinfo=timezone.utc)


def test_attempts_are_counted_and_the_first_pass_is_dated(tmp_path: Path) -> None:
    record_attempt(tmp_path, "tensors.a", passed=False, now=NOON)
    standing, note = record_attempt(tmp_path, "tensors.a", passed=True, now=NOON)

    assert (standing, note) == (Standing("2026-11-23T12:00:00+00:00", 2, failures=1), None)


def test_the_same_failed_answer_counts_once(tmp_path: Path) -> None:
    for answer in ("a", "a", "b", "b", "a"):
        standing, _ = record_attempt(tmp_path, "tensors.a", passed=False, answer=answer)

    assert (standing.attempts, standing.failures) == (5, 3)


def test_a_pass_names_its_notebook_and_what_was_seen_before_it(tmp_path: Path) -> None:
    record_seen(tmp_path, "tensors.a")
    record_attempt(tmp_path, "tensors.a", passed=True, by="mine.ipynb", now=NOON)
    record_attempt(tmp_path, "tensors.b", passed=True, by="mine.ipynb", now=NOON)
    record_seen(tmp_path, "tensors.b")

    first, second = (read_progress(tmp_path).standing(f"tensors.{one}") for one in "ab")
    assert (first.by, second.by) == ("mine.ipynb", "mine.ipynb")
    assert first.seen is not None and second.seen is None


def test_cleared_progress_is_gone(tmp_path: Path) -> None:
    for name in ("tensors.a", "tensors.b"):
        record_attempt(tmp_path, name, passed=True, now=NOON)

    clear_progress(tmp_path, ["tensors.a"])

    assert list(read_progress(tmp_path).exercises) == ["tensors.b"]


def test_a_pass_stays_a_pass(tmp_path: Path) -> None:
    record_attempt(tmp_path, "tensors.a", passed=True, now=NOON)
    later = NOON.replace(hour=13)
    record_attempt(tmp_path, "tensors.a", passed=True, now=later)
    standing, _ = record_attempt(tmp_path, "tensors.a", passed=False, now=later)

    assert standing == Standing("2026-11-23T12:00:00+00:00", 3, failures=1)


def test_the_file_is_readable_and_keyed_by_name(tmp_path: Path) -> None:
    record_attempt(tmp_path, "tensors.b", passed=False, now=NOON)
    record_attempt(tmp_path, "tensors.a", passed=True, now=NOON)

    assert (tmp_path / "progress.json").read_text() == (
        "{\n"
        '  "schema_version": 1,\n'
        '  "exercises": {\n'
        '    "tensors.a": {\n'
        '      "passed": "2026-11-23T12:00:00+00:00",\n'
        '      "attempts": 1\n'
        "    },\n"
        '    "tensors.b": {\n'
        '      "passed": null,\n'
        '      "attempts": 1,\n'
        '      "failures": 1\n'
        "    }\n"
        "  }\n"
        "}\n"
    )


def test_nothing_recorded_reads_as_nothing_done(tmp_path: Path) -> None:
    progress = read_progress(tmp_path)

    assert (progress.exercises, progress.note) == ({}, None)
    assert progress.standing("tensors.a") == Standing(None, 0)


BROKEN = [
    pytest.param(b'{"exercises": {"tens', id="truncated"),
    pytest.param(b"\xff\xfe", id="not text"),
    pytest.param(b"[]", id="another shape"),
    pytest.param(b'{"exercises": {"a": 3}}', id="another entry"),
    pytest.param(b'{"exercises": {"a": {"passed": 3}}}', id="another value"),
]


@pytest.mark.parametrize("data", BROKEN)
def test_a_broken_file_is_set_aside_whole_and_said_so(tmp_path: Path, data: bytes) -> None:
    (tmp_path / "progress.json").write_bytes(data)

    standing, note = record_attempt(tmp_path, "tensors.a", passed=True, now=NOON)

    assert standing.attempts == 1
    assert note is not None and note.startswith("progress.json could not be read (")
    assert "it was kept as progress.broken-2026-11-23.json" in note
    assert (tmp_path / "progress.broken-2026-11-23.json").read_bytes() == data
    assert read_progress(tmp_path).standing("tensors.a").attempts == 1


@pytest.mark.parametrize("data", BROKEN)
def test_reading_a_broken_file_changes_nothing(tmp_path: Path, data: bytes) -> None:
    (tmp_path / "progress.json").write_bytes(data)

    progress = read_progress(tmp_path)

    assert progress.note is not None and progress.note.startswith("progress.json could not be read")
    assert [path.name for path in tmp_path.iterdir()] == ["progress.json"]


def test_what_a_lost_mount_hides_is_not_set_aside(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    record_attempt(tmp_path, "tensors.a", passed=True)

    def refuse(path: Path, *_: object) -> bytes:
        raise OSError(errno.ESTALE, "Stale file handle", str(path))

    with monkeypatch.context() as patch:
        patch.setattr(progress_module, "read_regular", refuse)
        assert "Stale" in (read_progress(tmp_path).note or "")
        with pytest.raises(LabkitError, match="Stale"):
            record_attempt(tmp_path, "tensors.b", passed=True)
    assert read_progress(tmp_path).standing("tensors.a").passed


def test_a_write_that_fails_leaves_the_old_file(tmp_path: Path) -> None:
    class FullDisk(Disk):
        def write_new(self, path: Path, data: bytes, mode: int = 0o644) -> None:
            super().write_new(path, data[:10])
            raise OSError(28, "No space left on device", str(path))

    record_attempt(tmp_path, "tensors.a", passed=True, now=NOON)
    before = (tmp_path / "progress.json").read_bytes()

    with pytest.raises(LabkitError) as caught:
        record_attempt(tmp_path, "tensors.b", passed=True, now=NOON, disk=FullDisk())

    assert "No space left on device" in (caught.value.cause or "")
    assert (tmp_path / "progress.json").read_bytes() == before
    assert not list((tmp_path / ".labkit").glob("tmp-*"))


def test_the_workspace_is_the_nearest_folder_that_labkit_made(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("LABKIT_WORKSPACE", raising=False)
    inner = tmp_path / "work" / "mine" / "deep"
    inner.mkdir(parents=True)
    assert find_workspace(start=inner) is None

    (tmp_path / "work" / ".labkit").mkdir()
    (tmp_path / "work" / ".labkit" / "manifest.json").write_text("{}")

    assert find_workspace(start=inner) == tmp_path / "work"
    monkeypatch.chdir(inner)
    assert find_workspace() == tmp_path / "work"


def test_the_variable_names_the_workspace(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LABKIT_WORKSPACE", str(tmp_path))
    assert find_workspace() == tmp_path

    monkeypatch.setenv("LABKIT_WORKSPACE", str(tmp_path / "gone"))
    assert find_workspace() is None


def test_labs_go_beside_notebooks_that_were_there_before_them(tmp_path, monkeypatch):
    monkeypatch.setenv("LABKIT_WORKSPACE", str(tmp_path))
    assert choose_labs_folder(tmp_path) == tmp_path
    (tmp_path / "mine.ipynb").touch()
    assert find_workspace() == tmp_path
    below = choose_labs_folder(tmp_path)
    assert below == tmp_path / "labkit-labs"
    (below / ".labkit").mkdir(parents=True)
    (tmp_path / "mine.ipynb").unlink()
    assert choose_labs_folder(tmp_path) == find_workspace() == below


def test_labs_stay_where_they_are_when_notebooks_come(tmp_path):
    (tmp_path / ".labkit").mkdir()
    (tmp_path / "mine.ipynb").touch()
    assert choose_labs_folder(tmp_path) == tmp_path


def test_fields_that_labkit_does_not_know_are_kept(tmp_path: Path) -> None:
    entry = {"passed": None, "attempts": 2, "more": {"deep": [1]}}
    document = {"schema_version": 7, "owner": "ada", "exercises": {"b": entry, "a": entry}}
    (tmp_path / "progress.json").write_text(json.dumps(document))

    record_attempt(tmp_path, "a", passed=False, now=NOON)

    expected = {**document, "exercises": {"a": {**entry, "attempts": 3, "failures": 1}, "b": entry}}
    assert json.loads((tmp_path / "progress.json").read_text()) == expected


@pytest.mark.parametrize("depth", [400, 200_000], ids=["parsed", "not parsed"])
def test_deep_nesting_is_set_aside_or_kept(tmp_path: Path, depth: int) -> None:
    data = f'{{"exercises": {{}}, "x": {"[" * depth}{"]" * depth}}}'.encode()
    (tmp_path / "progress.json").write_bytes(data)

    standing, note = record_attempt(tmp_path, "a", passed=True, now=NOON)

    assert standing.attempts == 1
    kept = tmp_path / "progress.broken-2026-11-23.json"
    if note:
        assert kept.read_bytes() == data
    else:
        assert "x" in json.loads((tmp_path / "progress.json").read_bytes())
    assert read_progress(tmp_path).standing("a").attempts == 1
    assert note or depth < 200_000


def test_attempts_are_recorded_while_another_process_updates_without_a_pause(
    tmp_path: Path,
) -> None:
    from tests.fakes.small_labs import write_labs

    work, labs = tmp_path / "work", write_labs(tmp_path / "labs")
    script = (
        "from pathlib import Path\n"
        "from labkit.lessons.catalog import listed_labs\n"
        "from labkit.lessons.workspace import update_workspace\n"
        "print('ready', flush=True)\n"
        "while True:\n"
        f"    update_workspace(Path({str(work)!r}), listed_labs(Path({str(labs)!r})),"
        " make=lambda lab: b'{\"cells\": []}')\n"
    )
    with subprocess.Popen([sys.executable, "-c", script], stdout=subprocess.PIPE) as updates:
        assert updates.stdout is not None
        updates.stdout.readline()
        try:
            for count in range(1, 41):
                standing, note = record_attempt(work, "a", passed=True, now=NOON)
                assert (standing.attempts, note) == (count, None)
        finally:
            updates.kill()


@pytest.mark.parametrize(
    ("broken", "follows"), [(True, "starts a new one"), (False, "nothing is recorded")]
)
def test_the_note_says_what_the_next_check_does(tmp_path: Path, broken: bool, follows: str) -> None:
    path = tmp_path / "progress.json"
    path.write_text("{") if broken else path.symlink_to(path)

    note = read_progress(tmp_path).note

    assert note is not None and note.endswith(follows)


def test_what_the_file_is_a_link_to_is_written(tmp_path: Path) -> None:
    workspace, file = tmp_path / "work", tmp_path / "synced" / "mine.json"
    file.parent.mkdir()
    workspace.mkdir()
    record_attempt(file.parent, "tensors.a", passed=True, now=NOON)
    (file.parent / "progress.json").rename(file)
    link = workspace / "progress.json"
    link.symlink_to(Path("..", "synced", "mine.json"))
    record_attempt(workspace, "tensors.b", passed=True, now=NOON)
    assert link.is_symlink()
    assert json.loads(file.read_text())["exercises"].keys() == {"tensors.a", "tensors.b"}


@pytest.mark.parametrize("kind", ["file", "folder", "pipe"])
def test_what_is_no_progress_stays_and_its_link_is_set_aside(tmp_path: Path, kind: str) -> None:
    workspace, target = tmp_path / "work", tmp_path / "precious"
    workspace.mkdir()
    make = {"file": lambda: target.write_text("not json"), "folder": target.mkdir}
    make.get(kind, lambda: os.mkfifo(target))()
    before = target.lstat()
    (workspace / "progress.json").symlink_to(target)
    record_attempt(workspace, "tensors.a", passed=True)
    assert os.path.samestat(before, target.lstat()) and target.lstat().st_size == before.st_size
    assert [one.name for one in tmp_path.iterdir() if one != workspace] == ["precious"]
    assert any(one.is_symlink() for one in workspace.iterdir())  # renamed
    assert read_progress(workspace).standing("tensors.a").passed


def test_a_link_to_nothing_is_said_and_left(tmp_path: Path) -> None:
    link = tmp_path / "progress.json"
    link.symlink_to(tmp_path / "not mounted" / "progress.json")
    note = read_progress(tmp_path).note
    assert note is not None and "nothing is recorded" in note
    with pytest.raises(LabkitError, match="No such file"):
        record_attempt(tmp_path, "tensors.a", passed=True)
    assert link.is_symlink() and not link.exists()


@pytest.mark.root
def test_a_link_to_another_users_file_is_refused(tmp_path: Path) -> None:
    """Root, who runs a learner's checks, would write where the learner may not."""
    file, link = tmp_path / "passwd", tmp_path / "progress.json"
    file.write_text("root:x:0")
    link.symlink_to(file)
    os.lchown(link, 1234, 1234)
    with pytest.raises(LabkitError, match="another user's file"):
        record_attempt(tmp_path, "tensors.a", passed=True)
    assert file.read_text() == "root:x:0"

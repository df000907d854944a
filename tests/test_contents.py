"""Saves by the lab's JupyterLab: whatever happens, a file is all old or all new."""

from __future__ import annotations

import asyncio
import base64
import contextlib
import json
import os
import random
import resource
import stat
import threading
import time
from collections.abc import Callable
from http.client import HTTPException
from pathlib import Path

import pytest
from tornado.web import HTTPError

from labkit.jupyter import contents
from labkit.jupyter.contents import (
    ABANDONED_SECONDS,
    NEW_FILE,
    LabContentsManager,
    open_beside,
    remove_abandoned,
)
from labkit.launch.server import wait_until
from tests.own_servers import OwnServer, start_own_server
from tests.servers import TOKEN, LabServer

# All 50 kills of the acceptance take five minutes: LABKIT_KILLS=50.
KILLS = int(os.environ.get("LABKIT_KILLS", "5"))


@pytest.fixture
def manager(tmp_path):
    remove_abandoned.cache_clear()
    return LabContentsManager(root_dir=str(tmp_path))


def save(manager, name, text):
    """Saves a text file as JupyterLab does."""
    model = {"type": "file", "format": "text", "content": text}
    return asyncio.run(manager.save(model, name))


def list_folder(folder):
    return sorted(path.name for path in folder.iterdir())


def test_a_save_puts_the_new_content_under_the_name(manager, tmp_path):
    save(manager, "notes.txt", "old")
    save(manager, "notes.txt", "new")
    assert (tmp_path / "notes.txt").read_text() == "new"
    assert list_folder(tmp_path) == ["notes.txt"]


def test_until_all_is_on_disk_the_name_holds_the_old_content(manager, tmp_path, monkeypatch):
    save(manager, "notes.txt", "old")
    seen = []
    fsync = os.fsync

    def look_and_sync(descriptor):
        seen.append((tmp_path / "notes.txt").read_text())
        fsync(descriptor)

    monkeypatch.setattr(contents.os, "fsync", look_and_sync)
    save(manager, "notes.txt", "new")
    # The file's own content is synced before it takes the name, the folder after.
    assert seen == ["old", "new"]


def test_a_full_disk_leaves_the_old_content_and_nothing_else(manager, tmp_path):
    save(manager, "notes.txt", "old")
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1000, hard))
    try:
        with pytest.raises(HTTPError) as caught:
            save(manager, "notes.txt", "new" * 1000)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert caught.value.status_code == 500
    assert (tmp_path / "notes.txt").read_text() == "old"
    assert list_folder(tmp_path) == ["notes.txt"]


def test_an_empty_file_has_the_time_of_its_save(manager, tmp_path):
    save(manager, "notes.txt", "old")
    os.utime(tmp_path / "notes.txt", (0, 0))
    save(manager, "notes.txt", "")
    assert (tmp_path / "notes.txt").stat().st_mtime > 1e9


@pytest.mark.parametrize("mode", [0o600, 0o644, 0o755])
def test_the_mode_is_kept(manager, tmp_path, mode):
    save(manager, "script.sh", "old")
    (tmp_path / "script.sh").chmod(mode)
    save(manager, "script.sh", "new")
    assert stat.S_IMODE((tmp_path / "script.sh").stat().st_mode) == mode


def test_a_new_file_has_the_mode_that_the_umask_leaves(manager, tmp_path):
    before = os.umask(0o027)
    try:
        save(manager, "notes.txt", "new")
    finally:
        os.umask(before)
    assert stat.S_IMODE((tmp_path / "notes.txt").stat().st_mode) == 0o640


@pytest.mark.root
def test_the_owner_is_kept(manager, tmp_path):
    save(manager, "notes.txt", "old")
    os.chown(tmp_path / "notes.txt", 1234, 4321)
    save(manager, "notes.txt", "new")
    kept = (tmp_path / "notes.txt").stat()
    assert (kept.st_uid, kept.st_gid) == (1234, 4321)


def refuse(*arguments, **options):
    raise PermissionError(1, "Operation not permitted")


def test_a_file_system_that_refuses_owner_and_mode_takes_the_content(
    manager, tmp_path, monkeypatch
):
    save(manager, "notes.txt", "old")
    (tmp_path / "notes.txt").chmod(0o640)
    for name in ("chown", "chmod"):
        monkeypatch.setattr(contents.os, name, refuse)
    save(manager, "notes.txt", "new")
    assert (tmp_path / "notes.txt").read_text() == "new"
    assert stat.S_IMODE((tmp_path / "notes.txt").stat().st_mode) == 0o640


def test_a_link_is_followed_and_stays_one(manager, tmp_path):
    (tmp_path / "folder").mkdir()
    (tmp_path / "folder" / "target.txt").write_text("old")
    (tmp_path / "between.txt").symlink_to("folder/target.txt")
    (tmp_path / "link.txt").symlink_to("between.txt")
    save(manager, "link.txt", "new")
    assert (tmp_path / "folder" / "target.txt").read_text() == "new"
    assert (tmp_path / "link.txt").is_symlink() and (tmp_path / "between.txt").is_symlink()


def test_a_link_to_nothing_makes_its_target(manager, tmp_path):
    (tmp_path / "link.txt").symlink_to("later.txt")
    save(manager, "link.txt", "new")
    assert (tmp_path / "later.txt").read_text() == "new"


def test_the_longest_name_that_there_is(manager, tmp_path):
    save(manager, "n" * 255, "old")
    save(manager, "n" * 255, "new")
    assert (tmp_path / ("n" * 255)).read_text() == "new"


def test_a_read_only_file_is_refused(manager, tmp_path, monkeypatch):
    save(manager, "notes.txt", "old")
    (tmp_path / "notes.txt").chmod(0o444)
    # For root, everything can be written.
    monkeypatch.setattr(contents.os, "access", lambda path, mode: not str(path).endswith(".txt"))
    with pytest.raises(HTTPError) as caught:
        save(manager, "notes.txt", "new")
    assert caught.value.status_code == 403
    assert (tmp_path / "notes.txt").read_text() == "old"


def test_a_file_that_cannot_be_renamed_to_is_written_in_place(manager, tmp_path, monkeypatch):
    save(manager, "notes.txt", "old")
    number = (tmp_path / "notes.txt").stat().st_ino

    def find_busy(self, target):
        raise OSError(16, "Device or resource busy")

    monkeypatch.setattr(Path, "replace", find_busy)
    save(manager, "notes.txt", "new")
    assert (tmp_path / "notes.txt").read_text() == "new"
    assert (tmp_path / "notes.txt").stat().st_ino == number
    assert list_folder(tmp_path) == ["notes.txt"]


def test_what_is_no_file_is_not_replaced():
    assert open_beside(Path(os.devnull)) is None


def test_what_a_killed_server_left_goes_after_a_day(manager, tmp_path):
    for name, age_seconds in (("old", ABANDONED_SECONDS + 60), ("young", 60)):
        (tmp_path / f"{NEW_FILE}{name}").write_text("half")
        os.utime(tmp_path / f"{NEW_FILE}{name}", (time.time() - age_seconds,) * 2)
    (tmp_path / ".~mine").write_text("not ours")
    os.utime(tmp_path / ".~mine", (0, 0))
    save(manager, "notes.txt", "new")
    assert list_folder(tmp_path) == [f"{NEW_FILE}young", ".~mine", "notes.txt"]


def test_a_checkpoint_and_the_way_back_are_whole_at_every_moment(manager, tmp_path, monkeypatch):
    save(manager, "notes.txt", "first")
    asyncio.run(manager.create_checkpoint("notes.txt"))
    checkpoint = tmp_path / ".ipynb_checkpoints" / "notes-checkpoint.txt"
    save(manager, "notes.txt", "second")
    seen = []
    copy = contents.shutil.copyfileobj

    def look_and_copy(source, target):
        seen.append(((tmp_path / "notes.txt").read_text(), checkpoint.read_text()))
        copy(source, target)

    monkeypatch.setattr(contents.shutil, "copyfileobj", look_and_copy)
    asyncio.run(manager.restore_checkpoint("checkpoint", "notes.txt"))
    assert (tmp_path / "notes.txt").read_text() == "first"
    save(manager, "notes.txt", "third")
    asyncio.run(manager.create_checkpoint("notes.txt"))
    assert checkpoint.read_text() == "third"
    assert seen == [("second", "first"), ("third", "first")]


def put(server: LabServer, name: str, model: object):
    answer = server.ask(f"/api/contents/{name}", method="PUT", token=server.token, body=model)
    assert answer.status in (200, 201), answer.body
    return answer.json()


def test_a_large_file_comes_in_chunks(lab_server: LabServer):
    whole = random.Random(1).randbytes(300_000)
    for number, start in ((1, 0), (2, 100_000), (-1, 200_000)):
        part = base64.b64encode(whole[start : start + 100_000]).decode()
        model = {"type": "file", "format": "base64", "content": part, "chunk": number}
        put(lab_server, "large.bin", model)
    assert (lab_server.workspace / "large.bin").read_bytes() == whole


def test_a_python_file_is_no_notebook_for_the_server(lab_server: LabServer):
    # jupytext's contents manager would open it as one, and write its pairs beside it.
    (lab_server.workspace / "script.py").write_text("# %%\n1 + 1\n")
    answer = lab_server.ask("/api/contents/script.py?type=notebook", token=lab_server.token)
    assert answer.status == 400


def make_notebook(mark: str):
    """A notebook of 2 MB that says ``mark`` everywhere."""
    cell = {
        "cell_type": "code",
        "id": "",
        "metadata": {},
        "execution_count": 1,
        "source": f"print('{mark}')\n" * 20,
        "outputs": [{"output_type": "stream", "name": "stdout", "text": f"{mark}\n" * 1500}],
    }
    return {
        "nbformat": 4,
        "nbformat_minor": 5,
        "metadata": {},
        "cells": [{**cell, "id": f"cell-{number}"} for number in range(100)],
    }


def save_notebook(server: LabServer, mark: str):
    put(server, "mine.ipynb", {"type": "notebook", "content": make_notebook(mark)})


def save_and_kill(server: OwnServer, moment: Callable[[Path], None]) -> None:
    """Starts a save of the new content and kills the server after ``moment``."""

    def try_to_save():
        with contextlib.suppress(OSError, HTTPException):
            save_notebook(server, "the new")

    saver = threading.Thread(target=try_to_save)
    saver.start()
    moment(server.workspace)
    server.process.kill()
    server.process.wait()
    saver.join()


def choose_moment(chance: random.Random, save_seconds: float) -> Callable[[Path], None]:
    """When to kill: anywhere in a save, or, as often, close to where its bytes are written."""
    if chance.random() < 0.5:
        return lambda folder: time.sleep(chance.uniform(0, save_seconds))

    def find_it_writing(folder: Path) -> None:
        wait_until(lambda: any(folder.glob(".~*")), timeout_seconds=10, interval_seconds=0.0005)
        time.sleep(chance.uniform(0, 0.03))

    return find_it_writing


@pytest.mark.slow
@pytest.mark.timeout(60 + 30 * KILLS)
def test_a_kill_during_a_save_leaves_the_old_notebook_or_the_new(tmp_path):
    seed = random.randrange(10**6)
    chance = random.Random(seed)
    outcomes = []
    for number in range(KILLS):
        with start_own_server(tmp_path / str(number), JUPYTER_TOKEN=TOKEN) as server:
            notebook = server.workspace / "mine.ipynb"
            # The first save of a notebook makes its checkpoint too: both are done once before.
            save_notebook(server, "the new")
            new = notebook.read_bytes()
            started = time.monotonic()
            save_notebook(server, "the old")
            save_seconds = time.monotonic() - started
            old = notebook.read_bytes()
            assert len(old) > 2_000_000 and old != new
            save_and_kill(server, choose_moment(chance, save_seconds))
            found = notebook.read_bytes()
        assert found in (old, new), f"{len(found)} bytes after kill {number}, seed {seed}"
        left = [path for path in notebook.parent.iterdir() if path.name.startswith(".~")]
        assert len(left) <= 1
        outcomes.append("new" if found == new else "old")
        json.loads(found)
    print(f"seed {seed}: {outcomes.count('old')} old, {outcomes.count('new')} new")

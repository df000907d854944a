"""The files of a simulated step: it finds its own, and the real ones stay."""

from __future__ import annotations

import codecs
import contextlib
import functools
import glob
import os
import shutil
import tarfile
import tempfile
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
import torch
from IPython.core.interactiveshell import _modified_open
from torch import nn

from labkit.memory.estimate import overlay
from labkit.memory.estimate.play import estimate_memory
from tests.fakes.record import Record


def number_runs(state):
    number = len(glob.glob("runs/run*"))
    os.makedirs(f"runs/run{number}")
    with open(f"runs/run{number}/log.txt", "x") as file:
        file.write("1")
    assert os.path.isdir(f"runs/run{number}") and Path(f"runs/run{number}/log.txt").is_file()
    assert sorted(os.listdir("runs")) == [f"run{place}" for place in range(number + 1)]


def rotate_checkpoints(state):
    os.makedirs("new", exist_ok=True)
    for epoch in range(3):
        torch.save(state, f"new/{epoch}.pt")
    for old in sorted(Path("new").glob("*.pt"))[:-1]:
        old.unlink()
    assert [entry.name for entry in os.scandir("new")] == ["2.pt"]
    shutil.rmtree("best", ignore_errors=True)
    os.rename("new", "best")
    assert not os.path.exists("new") and torch.load("best/2.pt")["weight"].shape == (100, 100)


def empty_a_folder(state):
    if Path("folder/kept.txt").exists():
        assert os.listdir("folder") == ["kept.txt"] and not Path("folder/kept.txt").is_symlink()
        Path("folder/kept.txt").open("a").close()
    shutil.rmtree("folder")
    assert not os.path.exists("folder")
    Path("folder").mkdir()
    assert os.listdir("folder") == []
    Path("folder/other.txt").touch()


def walk_and_copy(state):
    assert ("folder", [], ["kept.txt"]) in list(os.walk("folder"))
    shutil.copytree("folder", "copied/deep", dirs_exist_ok=True)
    assert [str(path) for path in Path("copied").rglob("*.txt")] == ["copied/deep/kept.txt"]
    assert Path("copied/deep/kept.txt").read_text() == "kept"


def write_by_descriptor(state):
    number = os.open("raw", os.O_WRONLY | os.O_CREAT)
    os.write(number, b"123")
    os.close(number)
    assert os.path.getsize("raw") == 3
    with tempfile.NamedTemporaryFile("w", dir=".", delete=False) as file:
        file.write("new")
    os.replace(file.name, "folder/kept.txt")
    assert Path("folder/kept.txt").read_text() == "new"
    np.savetxt("raw", np.ones(3))
    with tarfile.open("raw", "w") as archive:
        archive.add("folder")
    Path("raw").write_bytes(b"123")
    if not os.path.lexists("newest"):
        os.symlink("raw", "newest")
    assert os.path.islink("newest") and Path("newest").read_bytes() == b"123"


def change_from_a_thread(state):
    os.makedirs("threads", exist_ok=True)
    thread = threading.Thread(target=Path("threads/log").write_text, args=("1",))
    thread.start()
    thread.join()
    assert os.listdir("threads") == ["log"]


def change_in_another_directory(state):
    Path("folder/log.txt").write_text("1")
    with contextlib.chdir("folder") if hasattr(contextlib, "chdir") else chdir("folder"):
        assert os.getcwd().endswith("folder")
        Path("kept.txt").write_text("new")
        torch.save(state, "kept.pt")
        assert torch.load("kept.pt")["weight"].shape == (100, 100)
    assert Path("folder/kept.txt").read_text() == "new"
    os.makedirs("deep/er", exist_ok=True)
    os.chdir("deep/er")
    Path("log.txt").write_text("1")
    os.chdir("../..")
    assert os.listdir("deep/er") == ["log.txt"]


@contextlib.contextmanager
def chdir(folder):
    before = os.getcwd()
    os.chdir(folder)
    yield
    os.chdir(before)


def save_from_a_thread(state):
    with ThreadPoolExecutor(1) as pool:
        pool.submit(torch.save, state, "folder/kept.txt").result()
    torch.save({"real": np.ones(3)}, "real.pt")


def name_in_bytes(state):
    with open(b"folder/kept.txt", "w") as file:
        file.write("new")
    with codecs.open("folder/kept.txt", "a") as file:
        file.write("er")
    assert os.listdir(b"folder") == [b"kept.txt"]
    os.remove(b"folder/kept.txt")
    assert not os.path.exists("folder/kept.txt")


def use_a_named_temporary_file(state):
    with tempfile.NamedTemporaryFile(suffix=".pt", dir=".") as file:
        torch.save(state, file.name)
        assert torch.load(file.name)["weight"].shape == (100, 100)


def write_in_a_cell(state):
    with _modified_open("folder/kept.txt", "w") as file:
        file.write("new")


def remove_by_default(path, remove=os.remove):
    remove(path)


OPENERS = {"open": open}
EMPTY_FILE = functools.partial(open, "folder/kept.txt", "w")


class Filing:
    remove = staticmethod(os.remove)
    open = open


def use_kept_functions(state):
    for opener in (OPENERS["open"], Filing().open):
        with opener("folder/kept.txt", "w") as file:
            file.write("new")
    for remove in (remove_by_default, Filing.remove):
        with EMPTY_FILE():
            remove("folder/kept.txt")


def link_the_latest_run(state):
    """Real links, and those of the step, lead to the same files."""
    if os.path.exists("runs"):
        assert os.listdir("latest") == os.listdir("runs/2") and not os.path.lexists("link.txt")
        return
    os.makedirs("runs/2")
    torch.save(state, "runs/2/last.pt")
    assert os.path.islink("latest") and os.readlink("latest") == "folder"
    os.unlink("latest")
    os.symlink(os.path.abspath("runs/2"), "latest", target_is_directory=True)
    assert Path("latest/last.pt").is_file() and Path("latest").resolve().name == "2"
    Path("latest/log.txt").write_text("1")
    assert sorted(os.listdir("runs/2")) == sorted(os.listdir("latest")) == ["last.pt", "log.txt"]
    Path("link.txt").write_text("new")
    assert Path("folder/kept.txt").read_text() == "new" and Path("link.txt").is_symlink()
    assert not Path("folder/kept.txt").is_symlink()
    links = sorted(one.name for one in os.scandir(".") if one.is_symlink())
    assert links == ["latest", "link.txt"]
    assert sorted(one.name for one in os.scandir(".") if one.is_dir()) == [
        "folder",
        "latest",
        "runs",
    ]
    os.symlink("link.txt", "second.txt")
    with open("second.txt", "a") as file:
        file.write("er")
    assert Path("folder/kept.txt").read_text() == "newer"
    os.replace("second.txt", "link.txt")
    assert os.readlink("link.txt") == "link.txt"
    os.unlink("link.txt")


FILING = (
    link_the_latest_run,
    use_kept_functions,
    number_runs,
    change_in_another_directory,
    save_from_a_thread,
    name_in_bytes,
    use_a_named_temporary_file,
    write_in_a_cell,
    rotate_checkpoints,
    empty_a_folder,
    walk_and_copy,
    write_by_descriptor,
    change_from_a_thread,
)


@pytest.mark.parametrize("use", FILING, ids=[one.__name__ for one in FILING])
def test_a_step_finds_the_files_that_it_changed_and_the_real_ones_stay(use, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("folder").mkdir()
    Path("folder/kept.txt").write_text("kept")
    Path("link.txt").symlink_to("folder/kept.txt")
    Path("latest").symlink_to("folder")

    def make_step():
        model = nn.Linear(100, 100)
        return lambda: use(model.state_dict())

    assert estimate_memory(make_step).obstacle is None
    assert Path.cwd() == tmp_path
    assert (OPENERS["open"], Filing.open, EMPTY_FILE.func) == (open, open, open)
    assert (remove_by_default.__defaults__, Filing.remove) == ((os.remove,), os.remove)
    assert {one.name for one in tmp_path.rglob("*")} == {"folder", "kept.txt", "latest", "link.txt"}
    assert (os.readlink("latest"), os.readlink("link.txt")) == ("folder", "folder/kept.txt")
    assert Path("folder/kept.txt").read_text() == "kept"


def test_a_large_file_that_a_step_maps_is_not_copied_whole(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(overlay, "COPIED_BYTES", 8)
    Path("tokens.bin").write_bytes(b"\1" * 4096)
    seen = Record()

    def step():
        tokens = np.memmap("tokens.bin", dtype=np.uint8)  # for reading and writing
        seen.append((tokens.size, int(tokens.sum())))
        tokens[0] = 2
        return torch.ones(int(tokens[0]))

    assert estimate_memory(step).obstacle is None
    assert seen.take()[0] == (4096, 8)
    assert Path("tokens.bin").read_bytes() == b"\1" * 4096


def test_a_thread_of_the_users_saves_its_own_tensors(tmp_path):
    """A checkpoint that is written while an estimate runs is a real one."""
    begin, done = threading.Event(), threading.Event()
    # By way of their class: the step's own calls do not reach another thread.
    set_begin = functools.partial(threading.Event.set, begin)
    wait_done = functools.partial(threading.Event.wait, done, 60)

    def save():
        begin.wait()
        torch.save({"weight": torch.arange(3.0)}, tmp_path / "beside.pt")
        done.set()

    def step():
        set_begin()
        assert wait_done()
        return torch.ones(2)

    thread = threading.Thread(target=save)
    thread.start()
    assert estimate_memory(step).obstacle is None
    thread.join()
    assert torch.load(tmp_path / "beside.pt")["weight"].tolist() == [0, 1, 2]

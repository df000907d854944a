"""The files of a simulated step: it finds its own, and the real ones stay."""

from __future__ import annotations

import glob
import os
import shutil
import tarfile
import tempfile
import threading
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from labkit.memory.estimate import overlay
from labkit.memory.estimate.play import estimate_memory


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
    if not os.path.lexists("latest"):
        os.symlink("raw", "latest")
    assert os.path.islink("latest") and Path("latest").read_bytes() == b"123"


def change_from_a_thread(state):
    os.makedirs("threads", exist_ok=True)
    thread = threading.Thread(target=Path("threads/log").write_text, args=("1",))
    thread.start()
    thread.join()
    assert os.listdir("threads") == ["log"]


FILING = (
    number_runs,
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

    def make_step():
        model = nn.Linear(100, 100)
        return lambda: use(model.state_dict())

    assert estimate_memory(make_step).obstacle is None
    assert sorted(tmp_path.rglob("*")) == [tmp_path / "folder", tmp_path / "folder/kept.txt"]
    assert Path("folder/kept.txt").read_text() == "kept"


def test_a_large_file_that_a_step_maps_is_not_copied_whole(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(overlay, "COPIED_BYTES", 8)
    Path("tokens.bin").write_bytes(b"\1" * 4096)
    seen = []

    def step():
        tokens = np.memmap("tokens.bin", dtype=np.uint8)  # for reading and writing
        seen.append((tokens.size, int(tokens.sum())))
        tokens[0] = 2
        return torch.ones(int(tokens[0]))

    assert estimate_memory(step).obstacle is None
    assert seen[0] == (4096, 8)
    assert Path("tokens.bin").read_bytes() == b"\1" * 4096

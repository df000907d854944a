"""Files that were open before a simulated step: what it writes is dropped, by whatever way."""

from __future__ import annotations

import bz2
import codecs
import contextlib
import csv
import functools
import gzip
import io
import lzma
import mmap
import os
import sqlite3
import subprocess
import sys
import tarfile
import tempfile
import threading
import zipfile
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from labkit.memory.estimate.opened import CHANGED, DROPPED, MOVED
from labkit.memory.estimate.play import estimate_memory


def run(change):
    """The estimate of a step that trains and makes the change."""

    def step(weight):
        loss = weight.square().sum()
        loss.backward()
        change(loss.item())

    return estimate_memory(step, torch.ones(4, requires_grad=True))


def add_member(archive, name="member"):
    member = tarfile.TarInfo(name)
    member.size = 3
    archive.addfile(member, io.BytesIO(b"abc"))


def write_csv(file):
    writer = csv.writer(file)
    return lambda _: writer.writerow([1])


def write_dictionary(file):
    writer = csv.DictWriter(file, ["a"])
    return lambda _: writer.writerow({"a": 1})


def write_encoded(file):
    writer = codecs.getwriter("utf8")(file)
    return lambda _: writer.write("theirs")


def write_through_a_kept_method(file):
    wrapper = tempfile._TemporaryFileWrapper(file, file.name, delete=False)
    wrapper.write("mine\n")
    return lambda _: wrapper.write("theirs")


# Of each: how the file is opened, what makes the step's change, and what is written before.
WAYS = {
    "csv.writer": ("w", write_csv, "mine\n"),
    "csv.writer that appends": ("a", write_csv, "mine\n"),
    "csv.writer in place": ("r+", write_csv, ""),
    "csv.DictWriter": ("w", write_dictionary, "mine\n"),
    "tofile": ("wb", lambda file: lambda _: np.ones(3).tofile(file), b"mine"),
    "tofile in place": ("r+b", lambda file: lambda _: np.ones(3).tofile(file), b""),
    "np.save": ("wb", lambda file: lambda _: np.save(file, np.ones(3)), b"mine"),
    "os.write": ("wb", lambda file: lambda _: os.write(file.fileno(), b"theirs"), b"mine"),
    "os.pwrite": ("r+b", lambda file: lambda _: os.pwrite(file.fileno(), b"x", 0), b""),
    "os.writev": ("wb", lambda file: lambda _: os.writev(file.fileno(), [b"a", b"b"]), b"mine"),
    "os.ftruncate": ("r+b", lambda file: lambda _: os.ftruncate(file.fileno(), 1), b""),
    "raw file": ("wb", lambda file: lambda _: file.raw.write(b"theirs"), b"mine"),
    "codecs": ("wb", write_encoded, b"mine"),
    "another seek": ("r+b", lambda file: lambda _: file.seek(2), b""),
    "wrapper": ("w", write_through_a_kept_method, ""),
    "close": ("w", lambda file: lambda _: file.close(), "mine"),
}


@pytest.mark.parametrize("name", WAYS)
def test_a_file_that_was_open_before_is_as_before(tmp_path, name):
    mode, make, before = WAYS[name]
    path = tmp_path / "log"
    path.write_bytes(b"old content\n")
    with path.open(mode) as file:
        file.write(before)
        change = make(file)
        file.flush()
        place, kept = os.lseek(file.fileno(), 0, os.SEEK_CUR), path.read_bytes()
        estimate = run(change)
        file.flush()
        assert path.read_bytes() == kept
        assert os.lseek(file.fileno(), 0, os.SEEK_CUR) == place
        said = any("log, which was open before, is dropped" in note for note in estimate.notes)
        assert said is (name not in {"another seek", "close"})
        file.write("end" if "b" not in mode else b"end")  # the real one again
    assert b"end" in path.read_bytes()


def test_several_files_are_named_in_one_sentence(tmp_path):
    names = [tmp_path / name for name in ("log.csv", "print.txt", "more.txt")]
    with contextlib.ExitStack() as stack:
        files = [stack.enter_context(path.open("w")) for path in names]

        def write(value):
            for file in files:
                file.write(str(value))

        notes = run(write).notes
    shown = f"{names[0]}, {names[1]} and {names[2]}"
    assert f"what the step writes into {shown}, which were open before, is dropped" in notes


@pytest.mark.parametrize("mode", ["w", "a"])
def test_an_archive_has_the_same_members_as_before(tmp_path, mode):
    path = tmp_path / "some.zip"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("old", "1")
    with zipfile.ZipFile(path, mode) as archive:
        archive.writestr("mine", "1")
        names = iter("ab")
        estimate = run(lambda value: archive.writestr(next(names), f"{value}"))
        archive.writestr("end", "3")
    assert DROPPED[0].format(path) in estimate.notes
    with zipfile.ZipFile(path) as archive:
        assert archive.namelist() == [*["old"][: mode == "a"], "mine", "end"]
        assert archive.testzip() is None


@pytest.mark.parametrize("mode", ["w", "w:gz", "w|gz"])
def test_a_tar_has_the_same_members_as_before(tmp_path, mode):
    path = tmp_path / "some.tar"
    with tarfile.open(str(path), mode) as archive:
        add_member(archive, "mine")
        estimate = run(lambda _: add_member(archive))
        add_member(archive, "end")
    assert any("open before, is dropped" in note for note in estimate.notes)
    with tarfile.open(path) as archive:
        assert archive.getnames() == ["mine", "end"]


@pytest.mark.parametrize("kind", [gzip, bz2, lzma], ids=["gzip", "bz2", "lzma"])
def test_a_compressed_file_is_as_before(tmp_path, kind):
    with kind.open(tmp_path / "log", "wt") as file:
        file.write("mine ")
        run(lambda value: (file.write(f"{value}"), file.flush()))
        file.write("end")
    with kind.open(tmp_path / "log", "rt") as file:
        assert file.read() == "mine end"


def change_and_count(database):
    database.execute("insert into losses values (1)")
    database.commit()


@pytest.mark.parametrize("name", ["losses.db", ":memory:"])
def test_an_open_database_is_not_changed_and_the_estimate_says_so(tmp_path, name):
    path = name if name == ":memory:" else str(tmp_path / name)
    database = sqlite3.connect(path)
    database.execute("create table losses (value)")
    database.commit()
    database.execute("insert into losses values (7)")  # in a transaction that is open
    estimate = run(lambda _: change_and_count(database))
    assert estimate.obstacle is not None
    assert name[:6] in str(estimate.obstacle)
    assert database.in_transaction
    database.rollback()
    change_and_count(database)  # the real one again
    assert database.execute("select value from losses").fetchall() == [(1,)]
    database.close()


def test_a_database_is_read_as_ever(tmp_path):
    database = sqlite3.connect(tmp_path / "rows.db")
    database.execute("create table rows (value)")
    cursor = database.cursor()
    estimate = run(lambda _: cursor.execute("select count(*) from rows").fetchone()[0] + 1)
    assert estimate.obstacle is None
    database.close()


def test_a_file_to_which_a_process_writes_too_is_named_and_left(tmp_path):
    path = tmp_path / "log.csv"
    with path.open("w") as file:
        writer = csv.writer(file)
        command = [sys.executable, "-c", "print('theirs', flush=True); input()"]
        with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=file) as child:
            while not path.stat().st_size:
                pass
            estimate = run(lambda _: writer.writerow([1]))
            child.stdin.close()
        if sys.platform == "linux":
            assert CHANGED[0].format(path) in estimate.notes
    assert path.read_text().startswith("theirs\n")


def test_what_another_thread_writes_in_c_is_left(tmp_path):
    path = tmp_path / "log.csv"
    begun, written = threading.Event(), threading.Event()
    # By way of their class: the step's own calls do not reach another thread.
    begin = functools.partial(threading.Event.set, begun)
    wait = functools.partial(threading.Event.wait, written, 60)
    with path.open("w") as file:
        writer = csv.writer(file)

        def write():
            begun.wait(60)
            writer.writerow(["theirs"])
            file.flush()
            written.set()

        other = threading.Thread(target=write)
        other.start()

        def change(_):
            begin()
            assert wait()

        estimate = run(change)
        other.join()
    assert path.read_text().split() == ["theirs"]
    assert CHANGED[0].format(path) in estimate.notes


def test_the_next_line_does_not_overwrite_what_is_left(tmp_path):
    path, done = tmp_path / "log.csv", threading.Event()
    # Another thread of the program's may have written: the file is left as it is.
    other = threading.Thread(target=lambda: done.wait(60))
    other.start()
    with path.open("w") as file:
        writer = csv.writer(file)
        estimate = run(lambda _: writer.writerow(["a long line of the step's"]))
        file.write("the next\n")
    done.set()
    other.join()
    *left, after = path.read_text().split("\n")[:-1]
    assert set(left) == {"a long line of the step's"} and after == "the next"
    assert CHANGED[0].format(path) in estimate.notes


def test_a_descriptor_that_nothing_of_pythons_names_is_named(tmp_path):
    path = tmp_path / "log"
    number = os.open(path, os.O_RDWR | os.O_CREAT)
    try:
        os.write(number, b"mine")
        assert DROPPED[0].format(path) in run(lambda _: os.write(number, b"theirs")).notes
        assert path.read_bytes() == b"mine"
        kept = SimpleNamespace(write=os.write)  # which is the real one
        assert CHANGED[0].format(path) in run(lambda _: kept.write(number, b"theirs")).notes
    finally:
        os.close(number)


def test_a_file_that_is_read_is_at_its_place_or_named(tmp_path):
    path = tmp_path / "words"
    path.write_text("a\n" * 100_000)
    with path.open() as first, path.open() as second:
        held = SimpleNamespace(first=first, second=second)
        next(second)  # its place cannot be asked for any more
        estimate = run(lambda _: (held.first.readline(), held.second.read()))
        assert first.tell() == 0
    assert MOVED[0].format(path) in estimate.notes


def test_a_mapped_file_keeps_its_bytes(tmp_path):
    path = tmp_path / "mapped"
    path.write_bytes(b"mine" * 1000)
    with path.open("r+b") as file, mmap.mmap(file.fileno(), 0) as mapped:

        def change(_):
            mapped[:6] = b"theirs"
            mapped.seek(9)

        assert not run(change).notes[1:]
        assert (mapped[:8], mapped.tell()) == (b"minemine", 0)
    assert path.read_bytes() == b"mine" * 1000


def test_what_is_printed_to_a_file_stays(tmp_path):
    program = tmp_path / "program.py"
    program.write_text(
        "import torch\nfrom labkit import estimate_memory\n"
        "def step(weight):\n    weight.sum().backward()\n    print('printed')\n"
        "print(estimate_memory(step, torch.ones(4, requires_grad=True)).notes)\n"
    )
    with (tmp_path / "out").open("w") as file:
        subprocess.run([sys.executable, str(program)], stdout=file, check=True)
    assert (tmp_path / "out").read_text() == "printed\nprinted\n()\n"


@pytest.mark.skipif(sys.platform != "linux", reason="descriptors of other processes are in /proc")
def test_a_file_of_the_parent_process_is_not_taken_for_the_steps(tmp_path):
    program, path = tmp_path / "program.py", tmp_path / "launcher.log"
    program.write_text(
        "import os, sys, torch\nfrom labkit import estimate_memory\n"
        "def step(weight):\n    weight.sum().backward()\n"
        "    before = os.path.getsize(sys.argv[1])\n"
        "    while os.path.getsize(sys.argv[1]) == before:\n        pass\n"
        "print(estimate_memory(step, torch.ones(4, requires_grad=True)).notes)\n"
    )
    with path.open("wb", buffering=0) as file:
        command = [sys.executable, str(program), str(path)]
        inherited = (file.fileno(),)
        with subprocess.Popen(command, stdout=subprocess.PIPE, pass_fds=inherited) as child:
            while child.poll() is None:
                file.write(b"a line\n")
            assert child.stdout.read() == b"()\n"

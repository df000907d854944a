"""What the launcher keeps: the lab, its token, and a lock; all closed to other users."""

from __future__ import annotations

import errno
import json
import os
import stat
import threading
from dataclasses import asdict, replace
from functools import partial
from pathlib import Path

import pytest

from labkit.errors import LabkitError, UsageError
from labkit.launch import status
from labkit.launch.progress import StepLog
from labkit.launch.settings import Checkout
from labkit.launch.state import (
    LabHandle,
    LabState,
    ensure_token,
    forget_state,
    hold_lock,
    prepare_state_folder,
    read_state,
    read_token,
    renew_token,
    timestamp,
    write_private,
    write_state,
)
from tests.fakes.host import FakeRunner, make_checkout

STATE = LabState(
    runtime="local",
    flavor="cpu",
    port=8890,
    bind="127.0.0.1",
    reason="no docker or podman command here",
    started_at="2026-11-23T05:00:00Z",
    handle=LabHandle(process_id=4711, process_started="81234"),
)


@pytest.fixture
def checkout(tmp_path):
    return make_checkout(tmp_path / "a lab")


def mode(path):
    return stat.S_IMODE(path.stat().st_mode)


@pytest.mark.parametrize("make", [os.mkfifo, Path.mkdir], ids=["pipe", "folder"])
def test_what_is_not_a_file_is_neither_waited_for_nor_blamed_on_the_disk(checkout, make):
    folder = checkout.state_folder
    for name in ("state.json", "token"):
        make(folder / name)
    assert (read_state(checkout), read_token(checkout)) == (None, "")
    if make is Path.mkdir:
        with pytest.raises(LabkitError, match="token is a folder") as caught:
            ensure_token(checkout)
        assert caught.value.fix.startswith("mv ")
    else:
        assert ensure_token(checkout) == read_token(checkout) != ""


def test_a_pipe_in_place_of_the_state_folder_is_named(checkout):
    checkout.state_folder.rename(checkout.root / "was")
    os.mkfifo(checkout.state_folder)
    with pytest.raises(UsageError, match="is a named pipe"):
        prepare_state_folder(checkout)


def test_a_state_is_read_as_it_was_written(checkout):
    write_state(checkout, STATE)
    assert read_state(checkout) == STATE
    container = replace(STATE, runtime="docker", handle=LabHandle(container="a1b2c3"))
    write_state(checkout, container)
    assert read_state(checkout) == container


def test_nothing_was_started(checkout):
    assert read_state(checkout) is None


def test_a_forgotten_state_is_none(checkout):
    write_state(checkout, STATE)
    forget_state(checkout)
    forget_state(checkout)
    assert read_state(checkout) is None


@pytest.mark.parametrize(
    "content",
    [b"", b"{", b"[1]", b"{}", b"\xff\xfe", b'{"handle": {}, "flavour": "cpu"}', b"[" * 200_000],
    ids=["empty", "cut off", "a list", "no fields", "bytes", "another version", "brackets"],
)
def test_a_corrupt_state_counts_as_none(checkout, content):
    (checkout.state_folder / "state.json").write_bytes(content)
    assert read_state(checkout) is None


CUDA_STATE = replace(
    STATE, runtime="docker", flavor="cuda", build="cu130", gpus="0", gpus_asked="0", way="cdi"
)
ODD_VALUES = (None, True, False, 0, -1, 1.5, "", "x", "--all", [], [1], {}, {"a": 1}, 2**70)


def list_mutations():
    """Every field of a state file, of both kinds of lab, with every odd value and without it."""
    for state in (STATE, replace(CUDA_STATE, handle=LabHandle(container="a1b2c3"))):
        said = asdict(state)
        for place in (said, said["handle"]):
            for name, kept in list(place.items()):
                for value in ODD_VALUES:
                    place[name] = value
                    yield json.dumps(said)
                del place[name]
                yield json.dumps(said)
                place[name] = kept


def test_no_mutated_state_ends_in_a_traceback(checkout, monkeypatch):
    """What is read is valid in every field; the commands that read it never fail on it."""
    monkeypatch.setattr(status, "find_forgotten_lab", lambda checkout: None)
    examine = partial(status.examine_lab, run=FakeRunner({}))
    monkeypatch.setattr(status, "examine_lab", examine)
    path = checkout.state_folder / "state.json"
    mutations = list(list_mutations())
    assert len(mutations) > 400
    for text in mutations:
        path.write_text(text)
        state = read_state(checkout)
        json.dumps(status.read_status(checkout).describe())
        if state is None:
            continue
        assert state.runtime in ("docker", "podman", "local"), text
        assert 1 <= state.port <= 65535 and type(state.port) is int, text
        assert state.handle.process_id is None or state.handle.process_id > 1, text
        assert not str(state.handle.container).startswith("-"), text
        lab = status.open_lab(checkout, state)
        assert all(type(value) is str for value in lab.environment().values()), text


def test_the_state_can_be_read_by_its_owner_alone(checkout):
    write_state(checkout, STATE)
    path = checkout.state_folder / "state.json"
    assert mode(path) == 0o600
    assert json.loads(path.read_text())["port"] == 8890


def test_each_start_gets_a_new_token(checkout):
    tokens = {renew_token(checkout) for _ in range(3)}
    assert len(tokens) == 3
    assert all(len(token) == 48 and int(token, 16) > 0 for token in tokens)
    assert checkout.token_file.read_text().strip() in tokens


def test_what_only_needs_a_token_makes_none_new(checkout):
    token = ensure_token(checkout)
    assert ensure_token(checkout) == token == read_token(checkout)


@pytest.mark.parametrize("content", [b"", b"  \n", b"\xff\xff"], ids=["empty", "blank", "bytes"])
def test_a_file_without_a_token_gets_one(checkout, content):
    checkout.token_file.write_bytes(content)
    assert len(ensure_token(checkout)) == 48


@pytest.mark.parametrize("mask", [0o000, 0o022, 0o077])
def test_the_token_is_its_owners_alone_whatever_the_umask(checkout, mask):
    before = os.umask(mask)
    try:
        renew_token(checkout)
    finally:
        os.umask(before)
    assert mode(checkout.token_file) == 0o600


def test_a_folder_that_is_not_there_is_an_error_and_not_a_traceback(tmp_path):
    with pytest.raises(LabkitError, match="No such file or directory"):
        write_private(tmp_path / "missing" / "token", "text")


def test_a_full_disk_leaves_what_was_there(checkout, monkeypatch):
    write_state(checkout, STATE)

    def fail(self, target):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(Path, "replace", fail)
    with pytest.raises(LabkitError, match="No space left on device") as caught:
        write_state(checkout, replace(STATE, port=9999))
    assert "the disk may be full" in str(caught.value.cause)
    assert read_state(checkout) == STATE
    assert sorted(path.name for path in checkout.state_folder.iterdir()) == ["logs", "state.json"]


@pytest.mark.parametrize("mask", [0o000, 0o022])
def test_the_state_folder_is_its_owners_alone(tmp_path, mask):
    checkout = Checkout(tmp_path)
    before = os.umask(mask)
    try:
        prepare_state_folder(checkout)
        with hold_lock(checkout, lambda: None):
            write_state(checkout, STATE)
            renew_token(checkout)
            with StepLog(checkout.logs_folder / "start.log") as log:
                log.write("a line")
    finally:
        os.umask(before)
    files = [path for path in checkout.state_folder.rglob("*") if path.is_file()]
    assert len(files) == 4
    assert {mode(path) for path in files} == {0o600}
    assert mode(checkout.state_folder) == mode(checkout.logs_folder) == 0o700


def test_a_state_folder_that_was_open_is_closed_with_all_in_it(checkout):
    inner = checkout.state_folder / "jupyter" / "runtime"
    inner.mkdir(parents=True)
    page, library = inner / "jpserver-1-open.html", checkout.state_folder / "kernel.so"
    page.write_text("token")
    library.touch(mode=0o755)
    outside = checkout.root / "outside"
    outside.touch(mode=0o644)
    (checkout.state_folder / "link").symlink_to(outside)
    checkout.state_folder.chmod(0o755)
    prepare_state_folder(checkout)
    assert mode(checkout.state_folder) == mode(inner) == mode(library) == 0o700
    assert mode(page) == 0o600
    assert mode(outside) == 0o644


def test_a_state_folder_that_cannot_be_made(tmp_path):
    (tmp_path / ".labkit").write_text("a file of that name")
    with pytest.raises(UsageError) as caught:
        prepare_state_folder(Checkout(tmp_path))
    path = tmp_path / ".labkit"
    assert (caught.value.what, caught.value.fix) == (f"{path} is a file", f"mv {path} {path}.moved")


def test_the_lock_is_free_and_free_again(checkout):
    waits = []
    for _ in range(2):
        with hold_lock(checkout, lambda: waits.append("waited")):
            pass
    assert waits == []


def test_a_second_command_says_that_it_waits_and_goes_on_when_the_first_is_done(checkout):
    waiting, entered = threading.Event(), threading.Event()

    def work():
        with hold_lock(checkout, waiting.set):
            entered.set()

    with hold_lock(checkout, lambda: None):
        second = threading.Thread(target=work)
        second.start()
        assert waiting.wait(5)
        assert not entered.is_set()
    second.join(5)
    assert entered.is_set()


def test_the_lock_goes_with_an_error(checkout):
    with pytest.raises(ZeroDivisionError), hold_lock(checkout, lambda: None):
        raise ZeroDivisionError
    waits = []
    with hold_lock(checkout, lambda: waits.append("waited")):
        assert waits == []


def test_a_timestamp_is_utc_to_the_second(monkeypatch):
    monkeypatch.setattr("labkit.launch.state.time.gmtime", lambda: (2026, 11, 23, 5, 6, 7, 0, 0, 0))
    assert timestamp() == "2026-11-23T05:06:07Z"


def test_a_lock_that_cannot_be_written_names_the_way_out(tmp_path):
    checkout = make_checkout(tmp_path / "a lab")
    (checkout.state_folder / "lock").mkdir()  # root may write to any file, but to no folder
    with pytest.raises(UsageError) as caught, hold_lock(checkout, lambda: None):
        pytest.fail("held it")
    path = checkout.state_folder / "lock"
    assert caught.value.what == f"{path} is a folder"
    assert caught.value.fix == f"mv '{path}' '{path}.moved'"


def test_a_checkout_on_a_read_only_disk_is_told_to_be_copied(tmp_path, monkeypatch):
    checkout = make_checkout(tmp_path / "a lab")

    def refuse(path, *arguments, **options):
        raise OSError(errno.EROFS, "Read-only file system", str(path))

    monkeypatch.setattr(Path, "mkdir", refuse)
    with pytest.raises(UsageError, match="Read-only file system") as caught:
        prepare_state_folder(checkout)
    assert "read-only file system" in str(caught.value.cause)
    assert caught.value.fix == f"cp -r '{checkout.root}' ~/'a lab' && cd ~/'a lab' && make up"

"""What the launcher remembers: the lab, the token, and who is at work."""

from __future__ import annotations

import errno
import json
import os
import stat
import threading
from dataclasses import replace
from pathlib import Path

import pytest

from labkit.errors import LabkitError, UsageError
from labkit.launch.settings import Checkout
from labkit.launch.state import (
    LabHandle,
    LabState,
    ensure_token,
    forget_state,
    hold_lock,
    prepare_state_folder,
    read_state,
    timestamp,
    write_private,
    write_state,
)
from tests.fakes.host import make_checkout

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
    "text",
    [
        pytest.param("", id="empty"),
        pytest.param("{", id="cut off"),
        pytest.param("[1]", id="a list"),
        pytest.param("{}", id="nothing in it"),
        pytest.param('{"handle": 3}', id="handle of another kind"),
        pytest.param('{"handle": {}, "flavour": "cpu"}', id="of another version"),
    ],
)
def test_a_corrupt_state_counts_as_none(checkout, text):
    (checkout.state_folder / "state.json").write_text(text)
    assert read_state(checkout) is None


def test_bytes_that_are_no_text_count_as_none(checkout):
    (checkout.state_folder / "state.json").write_bytes(b"\xff\xfe")
    assert read_state(checkout) is None


def test_the_state_can_be_read_by_its_owner_alone(checkout):
    write_state(checkout, STATE)
    path = checkout.state_folder / "state.json"
    assert mode(path) == 0o600
    assert json.loads(path.read_text())["port"] == 8890


def test_the_token_is_made_once_and_kept(checkout):
    token = ensure_token(checkout)
    assert len(token) == 48
    assert int(token, 16) > 0
    assert ensure_token(checkout) == token
    assert checkout.token_file.read_text() == token + "\n"


def test_two_checkouts_have_two_tokens(tmp_path):
    tokens = {ensure_token(make_checkout(tmp_path / name)) for name in "ab"}
    assert len(tokens) == 2


@pytest.mark.parametrize("mask", [0o000, 0o022, 0o077])
def test_the_token_is_its_owners_alone_whatever_the_umask(checkout, mask):
    before = os.umask(mask)
    try:
        ensure_token(checkout)
    finally:
        os.umask(before)
    assert mode(checkout.token_file) == 0o600


def test_a_token_that_others_could_read_is_closed_again(checkout):
    token = ensure_token(checkout)
    checkout.token_file.chmod(0o644)
    assert ensure_token(checkout) == token
    assert mode(checkout.token_file) == 0o600


@pytest.mark.parametrize("content", [b"", b"  \n", b"\xff\xff"], ids=["empty", "blank", "bytes"])
def test_a_token_that_is_none_is_made_anew(checkout, content):
    checkout.token_file.write_bytes(content)
    assert len(ensure_token(checkout)) == 48


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


def test_the_state_folder_is_its_owners_alone(tmp_path):
    checkout = Checkout(tmp_path)
    prepare_state_folder(checkout)
    prepare_state_folder(checkout)
    assert mode(checkout.state_folder) == 0o700
    assert checkout.logs_folder.is_dir()


def test_a_state_folder_that_cannot_be_made(tmp_path):
    (tmp_path / ".labkit").write_text("a file of that name")
    with pytest.raises(UsageError) as caught:
        prepare_state_folder(Checkout(tmp_path))
    assert caught.value.what == f"cannot make {tmp_path / '.labkit'}: File exists"
    assert caught.value.fix == f"sudo chown -R $(id -u):$(id -g) {tmp_path / '.labkit'}"


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


def test_a_lock_that_may_not_be_written_is_told_of_with_the_way_out(tmp_path):
    checkout = make_checkout(tmp_path / "a lab")
    (checkout.state_folder / "lock").mkdir()  # root may write to any file, but to no folder
    with pytest.raises(UsageError) as caught, hold_lock(checkout, lambda: None):
        pytest.fail("held it")
    assert caught.value.what == f"cannot write {checkout.state_folder}/lock: Is a directory"
    assert caught.value.cause == ".labkit/ is yours, but may not be written to"
    assert caught.value.fix == f"chmod -R u+rwX '{checkout.state_folder}'"

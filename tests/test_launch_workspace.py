"""The workspace before and after a start: usable, and owned by the lab's user alone."""

from __future__ import annotations

import contextlib
import errno
import json
import os
import shutil
import subprocess
import time
from dataclasses import replace
from pathlib import Path

import pytest

from labkit.errors import UsageError
from labkit.host.machine import read_folder
from labkit.launch import workspace as workspace_module
from labkit.launch.settings import Identity
from labkit.launch.state import ensure_token
from labkit.launch.workspace import (
    describe_update,
    hand_over,
    prepare_workspace,
    read_update_time,
)
from labkit.process import run_command
from tests.fakes.host import make_checkout
from tests.fakes.other_users import find_users_python, open_folder


@pytest.fixture
def checkout(tmp_path):
    return make_checkout(tmp_path / "a lab")


def test_a_missing_workspace_is_made(checkout):
    checkout.workspace.rmdir()
    prepare_workspace(checkout)
    assert checkout.workspace.is_dir()


def test_what_is_in_it_is_left_alone(checkout):
    (checkout.workspace / "mine.ipynb").write_text("my work")
    prepare_workspace(checkout)
    assert (checkout.workspace / "mine.ipynb").read_text() == "my work"


def test_a_workspace_may_be_a_link_elsewhere(checkout, tmp_path):
    checkout.workspace.rmdir()
    (tmp_path / "elsewhere").mkdir()
    checkout.workspace.symlink_to(tmp_path / "elsewhere")
    prepare_workspace(checkout)


@pytest.mark.parametrize("link", [False, True], ids=["a file", "a link to nowhere"])
def test_something_else_has_its_name(checkout, link):
    checkout.workspace.rmdir()
    if link:
        checkout.workspace.symlink_to("nowhere")
    else:
        checkout.workspace.write_text("")
    with pytest.raises(UsageError) as caught:
        prepare_workspace(checkout)
    assert caught.value.what == f"the workspace {checkout.workspace} is not a folder"
    assert caught.value.cause == "another kind of file has its name"


@pytest.fixture
def found(monkeypatch):
    """Changes what is found out about the workspace."""

    def play(**changes):
        monkeypatch.setattr(
            workspace_module, "read_folder", lambda path: replace(read_folder(path), **changes)
        )

    return play


def test_a_workspace_of_somebody_else(checkout, found):
    found(writable=False, owner_id=4711)
    with pytest.raises(UsageError) as caught:
        prepare_workspace(checkout)
    assert caught.value.what == f"the workspace {checkout.workspace} is not writable"
    assert caught.value.cause == f"it belongs to uid 4711, and you are uid {os.getuid()}"
    assert caught.value.fix == f"sudo chown -R $(id -u):$(id -g) '{checkout.workspace}'"


def test_a_full_disk_is_an_error_before_anything_is_lost(checkout, found):
    found(free_bytes=5 * 1024**2)
    with pytest.raises(UsageError) as caught:
        prepare_workspace(checkout)
    assert caught.value.what == "the workspace's disk is full: 5.0 MiB left"


def test_a_disk_whose_room_is_not_known_is_given_a_chance(checkout, found):
    found(free_bytes=None)
    prepare_workspace(checkout)


@pytest.fixture
def chowned(monkeypatch):
    """What root would have given away, by path. The tests' own files stand for root's."""
    given = {}
    monkeypatch.setattr(workspace_module.os, "geteuid", lambda: 0)
    monkeypatch.setattr(workspace_module, "ROOT_ID", os.getuid())

    def note(descriptor, user, group):
        given[Path(f"/proc/self/fd/{descriptor}").readlink()] = (user, group)

    monkeypatch.setattr(workspace_module.os, "fchown", note)
    return given


def test_root_gives_workspace_and_token_to_the_labs_user(checkout, chowned):
    ensure_token(checkout)
    notebook = checkout.workspace / "labs" / "01_tensors.ipynb"
    notebook.parent.mkdir()
    notebook.write_text("{}")
    assert hand_over(checkout, Identity(1000, 1001, owns_workspace=False)) is None
    given = (checkout.token_file, checkout.workspace, notebook.parent, notebook)
    assert chowned == dict.fromkeys(given, (1000, 1001))


def test_a_workspace_that_is_roots_own_link_is_handed_over_itself(checkout, chowned, tmp_path):
    ensure_token(checkout)
    elsewhere = tmp_path / "elsewhere"
    shutil.move(checkout.workspace, elsewhere)
    checkout.workspace.symlink_to("../elsewhere")
    assert hand_over(checkout, Identity(1000, 1000, owns_workspace=False)) is None
    assert elsewhere in chowned


def test_a_workspace_that_is_somebodys_link_is_not_handed_over(
    checkout, chowned, tmp_path, monkeypatch
):
    ensure_token(checkout)
    checkout.workspace.rmdir()
    checkout.workspace.symlink_to(tmp_path)
    monkeypatch.setattr(workspace_module, "ROOT_ID", os.getuid() + 1)
    assert "cannot be given" in str(hand_over(checkout, Identity(1000, 1000)))
    assert chowned == {}


def test_of_somebodys_workspace_only_what_root_made_is_given(checkout, chowned, monkeypatch):
    ensure_token(checkout)
    (checkout.workspace / "made_by_root.txt").write_text("")
    hand_over(checkout, Identity(1007, 1007))
    given = (checkout.token_file, checkout.workspace / "made_by_root.txt")
    assert chowned == dict.fromkeys(given, (1007, 1007))

    chowned.clear()
    monkeypatch.setattr(workspace_module, "ROOT_ID", os.getuid() + 1)  # nothing is root's
    hand_over(checkout, Identity(1007, 1007))
    assert chowned == {}


def test_links_and_files_with_several_names_are_left_alone(checkout, chowned, tmp_path):
    ensure_token(checkout)
    secret, folder = tmp_path / "secret", tmp_path / "folder"
    secret.write_text("root's")
    folder.mkdir()
    (folder / "inner").write_text("root's")
    os.link(secret, checkout.workspace / "hard")
    (checkout.workspace / "soft").symlink_to(secret)
    (checkout.workspace / "to_folder").symlink_to(folder)
    os.mkfifo(checkout.workspace / "pipe")
    assert hand_over(checkout, Identity(1000, 1000, owns_workspace=False)) is None
    assert set(chowned) == {checkout.token_file, checkout.workspace}


def test_a_name_that_becomes_a_link_meanwhile_is_not_followed(checkout, chowned, monkeypatch):
    ensure_token(checkout)
    secret = checkout.root / "secret"
    secret.write_text("root's")
    (checkout.workspace / "notes.txt").write_text("")
    look = os.stat

    def look_and_swap(name, **options):
        facts = look(name, **options)
        if name == "notes.txt":
            (checkout.workspace / name).unlink()
            (checkout.workspace / name).symlink_to(secret)
        return facts

    monkeypatch.setattr(workspace_module.os, "stat", look_and_swap)
    assert "cannot be given" in str(hand_over(checkout, Identity(1000, 1000)))
    assert secret not in chowned


@pytest.mark.parametrize("code", [errno.EPERM, errno.EROFS], ids=["root-squashed", "read-only"])
def test_files_that_refuse_are_a_warning_and_no_error(checkout, chowned, monkeypatch, code):
    ensure_token(checkout)
    (checkout.workspace / "notes.txt").write_text("")

    def refuse(descriptor, user, group):
        raise OSError(code, os.strerror(code))

    monkeypatch.setattr(workspace_module.os, "fchown", refuse)
    warning = str(hand_over(checkout, Identity(1000, 1000)))
    assert "2 files" in warning
    assert os.strerror(code) in warning


@pytest.mark.slow
def test_a_deep_workspace_is_walked_to_its_end(checkout, chowned):
    ensure_token(checkout)
    folder = os.open(checkout.workspace, os.O_RDONLY)
    for _ in range(2000):
        os.mkdir("d", dir_fd=folder)
        inner = os.open("d", os.O_RDONLY, dir_fd=folder)
        os.close(folder)
        folder = inner
    os.close(folder)
    assert hand_over(checkout, Identity(1000, 1000)) is None
    run_command(["rm", "-rf", str(checkout.workspace)], timeout_seconds=60)


@pytest.mark.root
def test_a_file_system_mounted_below_the_workspace_is_left_alone(checkout, tmp_path):
    """Two kinds: a file system of its own, and a folder of the same disk bound there."""
    ensure_token(checkout)
    outside = tmp_path / "outside"
    outside.mkdir()
    (outside / "secret").write_text("root's")
    mounted = [checkout.workspace / name for name in ("tmpfs", "bound")]
    for folder in mounted:
        folder.mkdir()
    (checkout.workspace / "bound_file").touch()
    commands = [
        ["mount", "-t", "tmpfs", "none", str(mounted[0])],
        ["mount", "--bind", str(outside), str(mounted[1])],
        ["mount", "--bind", str(outside / "secret"), str(checkout.workspace / "bound_file")],
    ]
    done = []
    try:
        for command in commands:
            answer = run_command(command, timeout_seconds=10)
            if not answer.ok:
                pytest.skip(f"this root may not mount: {answer.message}")
            done.append(command[-1])
        (mounted[0] / "secret").write_text("root's")
        hand_over(checkout, Identity(1001, 1001, owns_workspace=False))
        kept = [*mounted, mounted[0] / "secret", mounted[1] / "secret", outside / "secret"]
        assert {path: path.stat().st_uid for path in kept} == dict.fromkeys(kept, 0)
        assert checkout.workspace.stat().st_uid == 1001
    finally:
        for target in reversed(done):
            run_command(["umount", target], timeout_seconds=10)


@pytest.mark.slow
@pytest.mark.root
def test_a_user_who_swaps_names_during_the_hand_over_gains_nothing(tmp_path_factory):
    """uid 1001 swaps a file and a folder for links to root's own, while root gives again."""
    folder = open_folder(tmp_path_factory)
    checkout = make_checkout(folder / "a lab")
    secret = folder / "secrets"
    secret.mkdir(mode=0o755)
    (secret / "notes.txt").write_text("root's")
    (secret / "notes.txt").chmod(0o600)
    for path in (checkout.root, checkout.workspace):
        os.chown(path, 1001, 1001)
    racer = subprocess.Popen(
        [find_users_python(), "-c", SWAP, str(checkout.workspace), str(secret)],
        user=1001,
        group=1001,
        extra_groups=[],
        stdout=subprocess.PIPE,
    )
    try:
        assert racer.stdout
        assert racer.stdout.readline()
        until = time.monotonic() + 2
        rounds = 0
        while time.monotonic() < until:
            with contextlib.suppress(OSError):
                (checkout.workspace / "mine").touch()
            hand_over(checkout, Identity(1001, 1001))
            rounds += 1
        assert racer.poll() is None
    finally:
        racer.kill()
        racer.communicate()
    assert rounds > 20
    assert secret.stat().st_uid == (secret / "notes.txt").stat().st_uid == 0


SWAP = """
import os, sys
work, secret = sys.argv[1:]
os.chdir(work)
print("ready", flush=True)
def attempt(do, *words):
    try:
        do(*words)
    except OSError:
        pass
while True:
    attempt(os.mkdir, "d"); attempt(os.close, os.open("f", os.O_CREAT))
    attempt(os.rmdir, "d"); attempt(os.symlink, secret, "d")
    attempt(os.unlink, "f"); attempt(os.symlink, secret + "/notes.txt", "f")
    attempt(os.unlink, "d"); attempt(os.unlink, "f")
    attempt(os.link, secret + "/notes.txt", "f"); attempt(os.unlink, "f")
"""


def test_where_the_containers_root_is_the_user_nothing_is_given_away(checkout, chowned):
    hand_over(checkout, Identity(0, 0))
    assert chowned == {}


def test_a_folder_of_the_users_own_keeps_its_owners(checkout, chowned):
    (checkout.workspace / "mine").touch()
    named = replace(checkout, named=checkout.workspace)
    ensure_token(named)
    hand_over(named, Identity(1000, 1000))
    assert len(chowned) == 1  # the token


def test_an_ordinary_user_gives_nothing_away(checkout, chowned, monkeypatch):
    monkeypatch.setattr(workspace_module.os, "geteuid", lambda: 1000)
    hand_over(checkout, Identity(1000, 1000, owns_workspace=False))
    assert chowned == {}


def write_manifest(checkout, text):
    folder = checkout.workspace / ".labkit"
    folder.mkdir()
    (folder / "manifest.json").write_text(text)


def test_what_the_start_put_there_is_listed(checkout):
    update = {
        "at": "2026-11-23T05:00:00Z",
        "placed": ["01_tensors.ipynb", "02_autograd.ipynb"],
        "replaced": ["03_functional.ipynb"],
        "laid_beside": ["04_modules (2026-11-23).ipynb"],
    }
    write_manifest(checkout, json.dumps({"last_update": update}))
    assert describe_update(checkout) == [
        "put into work/: 01_tensors.ipynb, 02_autograd.ipynb",
        "updated, untouched until now: 03_functional.ipynb",
        "new versions laid beside your own: 04_modules (2026-11-23).ipynb",
    ]
    assert read_update_time(checkout) == "2026-11-23T05:00:00Z"


@pytest.mark.parametrize(
    "text",
    [
        *('{"last_update": null}', '{"last_update": {"placed": []}}', "{}", "[]", "{", ""),
        *('{"last_update": {"placed": 3, "at": 7}}', '{"last_update": {"placed": [null, {}]}}'),
        "[" * 200_000,
    ],
    ids=range(9),
)
def test_an_empty_or_odd_manifest_lists_nothing(checkout, text):
    write_manifest(checkout, text)
    assert describe_update(checkout) == []
    assert read_update_time(checkout) is None


def test_labs_in_a_subfolder_are_listed_with_it(checkout):
    labs = checkout.workspace / "labkit-labs"
    (labs / ".labkit").mkdir(parents=True)
    (labs / ".labkit" / "manifest.json").write_text(
        json.dumps({"last_update": {"placed": ["01_tensors.ipynb"]}})
    )
    assert describe_update(checkout) == ["put into work/labkit-labs/: 01_tensors.ipynb"]

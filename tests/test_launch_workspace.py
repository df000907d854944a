"""The workspace before and after a start: usable, owned by whoever the lab runs as, and told of."""

from __future__ import annotations

import json
import os
import shutil
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
    find_first_notebook,
    hand_over,
    prepare_workspace,
    read_update_time,
)
from tests.fakes.host import make_checkout


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
    assert caught.value.cause == "something else has its name"


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


def test_a_full_disk_is_told_before_anything_is_lost(checkout, found):
    found(free_bytes=5 * 1024**2)
    with pytest.raises(UsageError) as caught:
        prepare_workspace(checkout)
    assert caught.value.what == "the workspace's disk is full: 5.0 MiB left"


def test_a_disk_whose_room_is_not_known_is_given_a_chance(checkout, found):
    found(free_bytes=None)
    prepare_workspace(checkout)


@pytest.fixture
def chowned(monkeypatch):
    """What root would have given away, by path."""
    given = {}
    monkeypatch.setattr(workspace_module.os, "geteuid", lambda: 0)
    # The tests' own files stand for root's.
    monkeypatch.setattr(workspace_module, "ROOT_ID", os.getuid())

    def note(path, user, group, *, dir_fd=None, follow_symlinks=True):
        folder = Path(f"/proc/self/fd/{dir_fd}").readlink() if dir_fd is not None else Path()
        given[folder / path] = (user, group)

    monkeypatch.setattr(workspace_module.os, "chown", note)
    return given


def test_root_gives_workspace_and_token_to_the_labs_user(checkout, chowned):
    ensure_token(checkout)
    notebook = checkout.workspace / "labs" / "01_tensors.ipynb"
    notebook.parent.mkdir()
    notebook.write_text("{}")
    hand_over(checkout, Identity(1000, 1001, owns_workspace=False))
    given = (checkout.token_file, checkout.workspace, notebook.parent, notebook)
    assert chowned == dict.fromkeys(given, (1000, 1001))


def test_a_workspace_that_is_a_link_is_handed_over_itself(checkout, chowned, tmp_path):
    elsewhere = tmp_path / "elsewhere"
    shutil.move(checkout.workspace, elsewhere)
    checkout.workspace.symlink_to(elsewhere)
    hand_over(checkout, Identity(1000, 1000, owns_workspace=False))
    assert elsewhere in chowned
    assert checkout.workspace not in chowned


def test_of_somebodys_workspace_only_what_root_made_is_given(checkout, chowned, monkeypatch):
    (checkout.workspace / "made_by_root.txt").write_text("")
    hand_over(checkout, Identity(1007, 1007))
    given = (checkout.token_file, checkout.workspace / "made_by_root.txt")
    assert chowned == dict.fromkeys(given, (1007, 1007))

    chowned.clear()
    monkeypatch.setattr(workspace_module, "ROOT_ID", os.getuid() + 1)  # nothing is root's
    hand_over(checkout, Identity(1007, 1007))
    assert chowned == {checkout.token_file: (1007, 1007)}


def test_where_the_containers_root_is_the_user_nothing_is_given_away(checkout, chowned):
    hand_over(checkout, Identity(0, 0))
    assert chowned == {}


def test_an_ordinary_user_gives_nothing_away(checkout, chowned, monkeypatch):
    monkeypatch.setattr(workspace_module.os, "geteuid", lambda: 1000)
    hand_over(checkout, Identity(1000, 1000, owns_workspace=False))
    assert chowned == {}


def write_manifest(checkout, text):
    folder = checkout.workspace / ".labkit"
    folder.mkdir()
    (folder / "manifest.json").write_text(text)


def test_what_the_start_put_there_is_told(checkout):
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
    ['{"last_update": null}', '{"last_update": {"placed": []}}', "{}", "[]", "{", ""],
)
def test_where_nothing_was_put_there_nothing_is_told(checkout, text):
    write_manifest(checkout, text)
    assert describe_update(checkout) == []
    assert read_update_time(checkout) is None


def test_before_the_first_start_nothing_is_told(checkout):
    assert describe_update(checkout) == []


def test_the_first_notebook(checkout):
    assert find_first_notebook(checkout) is None
    for name in ("02_autograd.ipynb", "01_tensors.ipynb", "mine.ipynb"):
        (checkout.workspace / name).write_text("{}")
    assert find_first_notebook(checkout) == "01_tensors.ipynb"

"""Folders as they are on disk."""

from __future__ import annotations

import os

import pytest

from labkit.host.machine import FolderFacts, read_folder

as_root = os.geteuid() == 0


def test_a_folder_of_ones_own(tmp_path):
    facts = read_folder(tmp_path)
    assert facts.exists
    assert facts.is_folder
    assert facts.writable
    assert (facts.owner_id, facts.group_id) == (os.getuid(), tmp_path.stat().st_gid)
    assert facts.free_bytes is not None
    assert facts.free_bytes >= 0


def test_nothing_there(tmp_path):
    path = tmp_path / "work"
    assert read_folder(path) == FolderFacts(path, False, False, None, None, False, None)


def test_a_file_is_not_a_folder(tmp_path):
    path = tmp_path / "work"
    path.write_text("")
    facts = read_folder(path)
    assert facts.exists
    assert not facts.is_folder


def test_a_link_is_followed(tmp_path):
    (tmp_path / "elsewhere").mkdir()
    link = tmp_path / "work"
    link.symlink_to("elsewhere")
    assert read_folder(link).is_folder


def test_a_link_to_nowhere_exists_but_is_no_folder(tmp_path):
    link = tmp_path / "work"
    link.symlink_to("nowhere")
    facts = read_folder(link)
    assert facts.exists
    assert not facts.is_folder
    assert facts.free_bytes is None


@pytest.mark.skipif(as_root, reason="root may write everywhere")
def test_a_folder_that_cannot_be_written(tmp_path):
    tmp_path.chmod(0o500)
    try:
        assert not read_folder(tmp_path).writable
    finally:
        tmp_path.chmod(0o700)

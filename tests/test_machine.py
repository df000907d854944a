"""This machine's user, folders and free ports."""

from __future__ import annotations

import os
import socket
import sys

import pytest

from labkit.host.machine import FolderFacts, find_free_port, is_port_free, read_folder, read_machine


def test_the_running_process_is_described():
    facts = read_machine({"USER": "ada"})
    assert facts.python == sys.version_info[:2]
    assert (facts.user_id, facts.group_id) == (os.getuid(), os.getgid())
    assert facts.is_root is (os.getuid() == 0)


@pytest.mark.parametrize(
    ("environment", "server", "name"),
    [
        pytest.param({"USER": "ada"}, None, "ada", id="local"),
        pytest.param({"SSH_CONNECTION": "10.0.0.2 50022 10.0.0.9 22"}, "10.0.0.9", None, id="ssh"),
        pytest.param({"SSH_CONNECTION": "fe80::1 50022 fe80::9 22"}, "fe80::9", None, id="IPv6"),
        pytest.param({"SSH_CONNECTION": "broken", "LOGNAME": "bob"}, None, "bob", id="broken"),
        pytest.param({"SSH_CONNECTION": "", "USER": "", "LOGNAME": "bob"}, None, "bob", id="empty"),
    ],
)
def test_the_user_and_the_address_that_ssh_came_in_by(environment, server, name):
    facts = read_machine(environment)
    assert (facts.ssh_server, facts.user_name) == (server, name)


# Folders


def test_a_folder_of_ones_own(tmp_path):
    facts = read_folder(tmp_path)
    assert (facts.exists, facts.is_folder, facts.writable) == (True, True, True)
    assert (facts.owner_id, facts.group_id) == (os.getuid(), tmp_path.stat().st_gid)
    assert facts.free_bytes is not None


def test_what_is_not_a_folder(tmp_path):
    path = tmp_path / "work"
    assert read_folder(path) == FolderFacts(path, False, False, None, None, False, None)
    path.symlink_to("nowhere")
    facts = read_folder(path)
    assert (facts.exists, facts.is_folder, facts.free_bytes) == (True, False, None)
    (tmp_path / "nowhere").write_text("")
    facts = read_folder(path)
    assert (facts.exists, facts.is_folder) == (True, False)


def test_a_link_is_followed(tmp_path):
    (tmp_path / "work").symlink_to(tmp_path)
    assert read_folder(tmp_path / "work").is_folder


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write everywhere")
def test_a_folder_that_cannot_be_written(tmp_path):
    tmp_path.chmod(0o500)
    try:
        assert not read_folder(tmp_path).writable
    finally:
        tmp_path.chmod(0o700)


# Ports


@pytest.fixture
def listener():
    """A socket that listens on some port of loopback."""
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        sock.listen(1)
        yield sock


def test_a_port_is_free_once_nothing_listens_on_it(listener):
    port = listener.getsockname()[1]
    assert not is_port_free("127.0.0.1", port)
    assert not is_port_free("0.0.0.0", port)
    listener.close()
    assert is_port_free("127.0.0.1", port)
    assert is_port_free("127.0.0.1", port)  # asking leaves it free


def test_an_address_of_another_machine_is_an_error():
    with pytest.raises(OSError, match="annot assign requested address"):
        is_port_free("192.0.2.1", 8888)  # TEST-NET-1: nobody's


@pytest.mark.parametrize(
    ("first", "taken", "found"),
    [
        pytest.param(8888, {}, 8888, id="the first"),
        pytest.param(8888, {8888, 8889}, 8890, id="the next but one"),
        pytest.param(8888, range(8888, 8938), None, id="all fifty taken"),
        pytest.param(65534, {65534, 65535}, None, id="ports end at 65535"),
    ],
)
def test_the_first_free_port(first, taken, found):
    assert find_free_port("127.0.0.1", first, is_free=lambda _, port: port not in taken) == found

"""The user and the way in, as the launcher needs them."""

from __future__ import annotations

import os
import sys

import pytest

from labkit.host.machine import read_machine


def test_the_running_process_is_described():
    facts = read_machine({"USER": "ada"})
    assert facts.python == sys.version_info[:2]
    assert (facts.user_id, facts.group_id) == (os.getuid(), os.getgid())
    assert facts.is_root is (os.getuid() == 0)
    assert facts.user_name == "ada"


@pytest.mark.parametrize(
    ("environment", "server"),
    [
        pytest.param({}, None, id="local"),
        pytest.param({"SSH_CONNECTION": "10.0.0.2 50022 10.0.0.9 22"}, "10.0.0.9", id="ssh"),
        pytest.param({"SSH_CONNECTION": "fe80::1 50022 fe80::9 22"}, "fe80::9", id="ssh, IPv6"),
        pytest.param({"SSH_CONNECTION": "broken"}, None, id="not what ssh writes"),
        pytest.param({"SSH_CONNECTION": ""}, None, id="empty"),
    ],
)
def test_the_address_that_ssh_came_in_by(environment, server):
    assert read_machine(environment).ssh_server == server


@pytest.mark.parametrize(
    ("environment", "name"),
    [({"LOGNAME": "bob"}, "bob"), ({"USER": "", "LOGNAME": "bob"}, "bob"), ({}, None)],
)
def test_the_users_name(environment, name):
    assert read_machine(environment).user_name == name

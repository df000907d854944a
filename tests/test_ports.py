"""Free ports, asked of this machine's own loopback."""

from __future__ import annotations

import socket

import pytest

from labkit.host.machine import find_free_port, is_port_free


@pytest.fixture
def listener():
    """A socket that listens on some port of loopback."""
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        sock.listen(1)
        yield sock


def test_a_port_that_is_listened_on_is_not_free(listener):
    assert not is_port_free("127.0.0.1", listener.getsockname()[1])


def test_a_port_on_every_address_is_not_free_where_loopback_has_it(listener):
    assert not is_port_free("0.0.0.0", listener.getsockname()[1])


def test_a_port_just_closed_is_free_again(listener):
    port = listener.getsockname()[1]
    listener.close()
    assert is_port_free("127.0.0.1", port)


def test_asking_leaves_the_port_free(listener):
    port = listener.getsockname()[1]
    listener.close()
    assert is_port_free("127.0.0.1", port)
    assert is_port_free("127.0.0.1", port)


def test_an_address_of_another_machine_is_an_error():
    with pytest.raises(OSError, match="annot assign requested address"):
        is_port_free("192.0.2.1", 8888)  # TEST-NET-1: nobody's


@pytest.mark.parametrize(
    ("taken", "found"),
    [
        pytest.param(set(), 8888, id="the first"),
        pytest.param({8888, 8889}, 8890, id="the next but one"),
        pytest.param(set(range(8888, 8938)), None, id="all fifty taken"),
    ],
)
def test_the_first_free_port(taken, found):
    def is_free(address, port):
        assert address == "127.0.0.1"
        return port not in taken

    assert find_free_port("127.0.0.1", 8888, is_free=is_free) == found


def test_ports_end_at_65535():
    asked = []

    def is_free(address, port):
        asked.append(port)
        return False

    assert find_free_port("127.0.0.1", 65534, is_free=is_free) is None
    assert asked == [65534, 65535]

"""Whether anything answers on a port, and waiting for it. Who answers: tests/test_impostor.py."""

from __future__ import annotations

import socket
import threading

import pytest

from labkit.launch.server import probe_server, reachable_address, wait_until

TOKEN = "0123456789abcdef" * 3


def test_a_port_that_nobody_listens_on_is_silent():
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        port = listener.getsockname()[1]
    assert probe_server(port, TOKEN) == "silent"


@pytest.mark.parametrize(
    "says", [b"", b"SSH-2.0-OpenSSH_9.2p1\r\n"], ids=["hangs up", "speaks no HTTP"]
)
def test_what_gives_no_answer_is_silent(says):
    with socket.create_server(("127.0.0.1", 0)) as listener:

        def answer_once():
            connection, _ = listener.accept()
            with connection:
                connection.sendall(says)
                connection.recv(4096)

        thread = threading.Thread(target=answer_once)
        thread.start()
        assert probe_server(listener.getsockname()[1], TOKEN) == "silent"
        thread.join()


@pytest.mark.parametrize(
    ("bind", "address"),
    [
        ("0.0.0.0", "127.0.0.1"),
        ("::", "::1"),
        ("127.0.0.1", "127.0.0.1"),
        ("192.168.0.7", "192.168.0.7"),
    ],
)
def test_where_this_machine_reaches_it(bind, address):
    assert reachable_address(bind) == address


class FakeTime:
    """A clock that sleeping moves on."""

    def __init__(self):
        self.now = 50.0
        self.slept = []

    def clock(self):
        return self.now

    def sleep(self, seconds):
        self.slept.append(seconds)
        self.now += seconds


def wait(answers, limit):
    time = FakeTime()
    left = iter(answers)
    held = wait_until(
        lambda: next(left),
        timeout_seconds=limit,
        interval_seconds=0.5,
        clock=time.clock,
        sleep=time.sleep,
    )
    return held, time.slept


def test_what_holds_at_once_is_not_waited_for():
    assert wait([True], 10) == (True, [])


def test_it_waits_until_it_holds():
    assert wait([False, False, True], 10) == (True, [0.5, 0.5])


def test_it_gives_up_at_the_limit():
    assert wait([False] * 9, 1) == (False, [0.5, 0.5])


def test_without_a_limit_it_asks_once():
    assert wait([False], 0) == (False, [])

"""Whoever takes the lab's port, before, during or after a start, gets no token and is no lab."""

from __future__ import annotations

import io
import os
import signal
import socket
import threading

import pytest

from labkit.errors import UsageError
from labkit.launch import server, up
from labkit.launch.progress import Steps
from labkit.launch.server import probe_server, wait_until
from labkit.launch.settings import Checkout, Settings
from labkit.launch.state import LabHandle, read_state, read_token
from labkit.launch.status import read_status
from labkit.launch.stop import stop_lab
from labkit.launch.up import start_lab
from tests.fakes.played_lab import (
    claim_everything,
    impostor,
    make_played_checkout,
    relay_to,
)
from tests.ports import choose_port

# The lab's process outlives its Popen object: that is what it is for.
pytestmark = pytest.mark.filterwarnings("ignore:subprocess:ResourceWarning")


@pytest.fixture
def checkout(tmp_path, monkeypatch):
    """A checkout with a played JupyterLab, whose default port is a free one."""
    made = make_played_checkout(tmp_path)
    monkeypatch.setattr(up, "DEFAULT_PORT", choose_port())
    monkeypatch.setattr(up, "HEALTH_LIMIT_SECONDS", 30.0)
    yield made
    stop_lab(made, Steps(io.StringIO()))


def start(checkout: Checkout, port: int | None = None) -> tuple[int, str]:
    """Starts the lab; the port it took and its token."""
    status = start_lab(checkout, Settings("local", "cpu", port), Steps(io.StringIO()))
    assert status.healthy
    assert status.state
    return status.state.port, read_token(checkout)


def kill_server(checkout: Checkout) -> None:
    state = read_state(checkout)
    assert state and state.handle.process_id
    os.kill(state.handle.process_id, signal.SIGKILL)
    started = state.handle.process_started
    assert wait_until(
        lambda: server.is_running(LabHandle(None, state.handle.process_id, started)) is False,
        timeout_seconds=60,
    )


def test_a_lab_proves_itself_and_an_impostor_does_not(checkout):
    port, token = start(checkout)
    assert probe_server(port, token) == "healthy"
    assert probe_server(port, "0" * 48) == "foreign"
    with impostor() as other:
        assert probe_server(other.port, token) == "foreign"
    assert token.encode() not in other.received


def test_an_impostor_that_relays_to_the_real_lab_is_found_out(checkout):
    port, token = start(checkout)
    with impostor(reply=relay_to(port)) as other:
        assert probe_server(other.port, token) == "foreign"
    assert b"/labkit/proof" in other.received
    assert token.encode() not in other.received


def test_an_answer_that_was_overheard_is_worth_nothing(checkout):
    port, token = start(checkout)
    heard = []

    def overhear(request):
        heard.append(relay_to(port)(request))
        return heard[0]

    with impostor(reply=overhear) as other:
        assert {probe_server(other.port, token) for _ in range(2)} == {"foreign"}


def test_a_server_that_sends_without_end_is_silent(monkeypatch):
    monkeypatch.setattr(server, "PROBE_SECONDS", 0.2)
    done = threading.Event()
    with socket.create_server(("127.0.0.1", 0)) as listener:

        def drip():
            connection, _ = listener.accept()
            with connection:
                try:
                    while not done.wait(0.01):
                        connection.sendall(b"H")
                except OSError:
                    pass

        thread = threading.Thread(target=drip)
        thread.start()
        assert probe_server(listener.getsockname()[1], "0" * 48) == "silent"
        done.set()
        thread.join()


NESTED = b"[" * 900 + b"]" * 900
PROOF = b'{"pid": %s, "server": 1, "client": 2, "published_port": 3, "proof": "\\ud800"}'


@pytest.mark.parametrize(
    "body",
    [b"", b"[]", b"{}", b"null", b"\xff\xfe", b"[" * 4000, PROOF % NESTED, PROOF % b"1e999"],
    ids=["empty", "list", "object", "null", "bytes", "brackets", "nested", "odd values"],
)
def test_no_answer_breaks_who_asks(body):
    def reply(request):
        return b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n%s" % (len(body), body)

    with impostor(reply=reply) as other:
        assert probe_server(other.port, "0" * 48) == "foreign"


def test_a_squatter_on_the_default_port_is_passed_by(checkout):
    with impostor(up.DEFAULT_PORT) as other:
        port, token = start(checkout)
        assert port != other.port
        assert read_status(checkout).healthy
    assert token.encode() not in other.received


def test_a_squatter_on_the_port_that_was_asked_for_is_an_error(checkout):
    with impostor() as other, pytest.raises(UsageError, match=f"port {other.port} is taken"):
        start(checkout, other.port)
    assert other.received == b""
    assert read_state(checkout) is None


@pytest.mark.parametrize("asked", [False, True], ids=["any port", "a port by name"])
def test_a_port_that_is_taken_while_the_server_starts(checkout, asked):
    first = up.DEFAULT_PORT
    checkout.state_folder.mkdir(mode=0o700)
    hold = checkout.state_folder / "hold"
    hold.touch()
    result = []

    def run():
        try:
            result.append(start(checkout, first if asked else None)[0])
        except UsageError as error:
            result.append(error)

    starting = threading.Thread(target=run)
    starting.start()
    assert wait_until(lambda: read_state(checkout) is not None, timeout_seconds=60)
    with impostor(first) as other:
        hold.unlink()
        starting.join(60)
        if asked:
            assert isinstance(result[0], UsageError)
            assert read_state(checkout) is None
        else:
            assert result[0] != first
            assert read_status(checkout).healthy
    assert other.received == b""


@pytest.mark.slow
@pytest.mark.parametrize("relays", [False, True], ids=["poses", "relays"])
def test_a_port_that_is_taken_after_the_lab_was_killed(checkout, relays):
    port, token = start(checkout)
    kill_server(checkout)
    with impostor(port, relay_to(port) if relays else claim_everything) as other:
        status = read_status(checkout)
        assert (status.healthy, status.url) == (False, None)
        new_port, new_token = start(checkout)
        assert new_port != port
        assert read_status(checkout).healthy
    assert other.received == b""
    assert token != new_token


def test_while_the_lab_does_not_listen_nothing_is_sent_to_its_port(checkout):
    checkout.state_folder.mkdir(mode=0o700)
    hold = checkout.state_folder / "hold"
    hold.touch()
    starting = threading.Thread(target=start, args=(checkout,))
    starting.start()
    assert wait_until(lambda: read_state(checkout) is not None, timeout_seconds=60)
    port = up.DEFAULT_PORT
    with impostor(port) as other:
        assert read_status(checkout).condition == "foreign"
        hold.unlink()
        starting.join(60)
    assert other.received == b""


def test_each_start_has_a_token_of_its_own(checkout):
    port, first = start(checkout)
    assert start(checkout) == (port, first)  # it runs already
    stop_lab(checkout, Steps(io.StringIO()))
    assert start(checkout)[1] != first

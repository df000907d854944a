"""On a host of several users: a squatter, a racer and a reader get neither token nor terminal."""

from __future__ import annotations

import http.client
import json
import os
import signal
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from labkit.launch.server import is_running, wait_until
from labkit.launch.settings import Checkout
from labkit.launch.state import read_state
from labkit.process import run_command
from tests.fakes.other_users import (
    ATTACKER,
    OWNER,
    as_user,
    find_users_python,
    open_folder,
)
from tests.fakes.played_lab import make_played_checkout
from tests.ports import choose_port

pytestmark = pytest.mark.root

# Takes the port as soon as it can be had, and prints every byte that comes.
SQUAT = """
import socket, sys
port = int(sys.argv[1])
print("tries", flush=True)
while True:
    listener = socket.socket()
    try:
        listener.bind(("127.0.0.1", port))
        listener.listen()
        break
    except OSError:
        listener.close()
print("listens", flush=True)
while True:
    connection, _ = listener.accept()
    with connection:
        print(connection.recv(65536), flush=True)
        connection.sendall(b"HTTP/1.1 200 OK\\r\\nContent-Length: 2\\r\\n\\r\\n{}")
"""
# Reads all that can be read of a folder and of a process.
READ = """
import os, sys
folder, process = sys.argv[1:]
paths = [os.path.join(top, name) for top, _, names in os.walk(folder) for name in names]
known = ["token", "state.json", "lock", "logs/server.log", "jupyter/runtime/jpserver-1-open.html"]
paths += [os.path.join(folder, name) for name in known]
paths += [f"/proc/{process}/{name}" for name in ("environ", "cmdline", "maps")]
for path in paths:
    try:
        print(open(path, "rb").read())
    except OSError:
        pass
"""


@dataclass
class House:
    """The owner's checkout, and the interpreter of both users."""

    checkout: Checkout
    python: str

    def labkit(self, *words: str) -> subprocess.CompletedProcess[str]:
        """A command of the owner's."""
        home = {"LABKIT_HOME": str(self.checkout.root), "HOME": str(self.checkout.root)}
        command = [self.python, "-m", "labkit", *words]
        return subprocess.run(  # type: ignore[call-overload,no-any-return]
            command, **as_user(OWNER, home), check=False, capture_output=True, text=True, umask=0
        )

    def up(self, *words: str) -> tuple[int, str]:
        """Starts the lab; its port and its token."""
        done = self.labkit("up", "--runtime", "local", "--json", *words)
        assert done.returncode == 0, done.stderr
        said = json.loads(done.stdout)
        return said["port"], said["url"].partition("token=")[2]

    def attack(self, program: str, *words: str) -> subprocess.Popen[str]:
        """A program of the attacker's; returns once it has printed its first line."""
        command = [self.python, "-c", program, *words]
        return subprocess.Popen(  # type: ignore[call-overload,no-any-return]
            command, **as_user(ATTACKER), stdout=subprocess.PIPE, text=True
        )


@pytest.fixture
def house(tmp_path_factory: pytest.TempPathFactory) -> Iterator[House]:
    """A checkout of uid 1001, whose .labkit is open to everybody, as an older labkit's may be."""
    python = find_users_python()
    folder = open_folder(tmp_path_factory)
    checkout = make_played_checkout(folder, python)
    checkout.state_folder.mkdir()
    checkout.state_folder.chmod(0o755)
    run_command(["chown", "-R", f"{OWNER}:{OWNER}", str(checkout.root)], timeout_seconds=10)
    made = House(checkout, python)
    yield made
    made.labkit("down")


def end(attacker: subprocess.Popen[str]) -> str:
    """Ends the attacker; all that it printed."""
    attacker.kill()
    return attacker.communicate(timeout=10)[0]


def ask_for_terminal(port: int, token: str) -> int:
    """The status that a request for a terminal gets."""
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=10)
    try:
        headers = {"Authorization": f"token {token}"} if token else {}
        connection.request("POST", "/api/terminals", headers=headers)
        return connection.getresponse().status
    finally:
        connection.close()


def read_server(checkout: Checkout) -> Any:
    state = read_state(checkout)
    assert state and state.handle.process_id
    return state.handle


def test_a_reader_gets_nothing(house: House):
    port, token = house.up()
    process = str(read_server(house.checkout).process_id)
    page = house.checkout.state_folder / "jupyter" / "runtime"
    page.mkdir(parents=True)
    (page / "jpserver-1-open.html").write_text(token)
    said = house.attack(READ, str(house.checkout.state_folder), process).communicate(timeout=20)[0]
    assert "jupyterlab" in said  # the command line is everybody's to read
    assert token not in said
    assert [ask_for_terminal(port, one) for one in ("", token)] == [403, 200]
    mode = house.checkout.state_folder.stat().st_mode
    assert mode & 0o777 == 0o700
    files = [path for path in house.checkout.state_folder.glob("*") if path.is_file()]
    assert {path.stat().st_mode & 0o077 for path in files} == {0}


@pytest.mark.slow
def test_a_squatter_on_a_dead_labs_port_gets_nothing(house: House):
    port, token = house.up()
    handle = read_server(house.checkout)
    squatter = house.attack(SQUAT, str(port))
    assert squatter.stdout and squatter.stdout.readline() == "tries\n"
    os.kill(handle.process_id, signal.SIGKILL)
    assert wait_until(lambda: not is_running(handle), timeout_seconds=30)
    assert squatter.stdout.readline() == "listens\n"

    status = house.labkit("status", "--json")
    assert json.loads(status.stdout)["healthy"] is False
    assert json.loads(status.stdout)["url"] is None
    new_port, new_token = house.up()
    assert new_port != port
    assert [ask_for_terminal(new_port, one) for one in (token, new_token)] == [403, 200]
    said = end(squatter)
    assert token not in said and new_token not in said


@pytest.mark.slow
def test_a_racer_that_takes_the_port_while_the_lab_starts_gets_nothing(house: House):
    port = choose_port()
    hold = house.checkout.state_folder / "hold"
    hold.touch()
    up = subprocess.Popen(  # type: ignore[call-overload]
        [house.python, "-m", "labkit", "up", "--runtime", "local", "--port", str(port)],
        **as_user(OWNER, {"LABKIT_HOME": str(house.checkout.root)}),
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    assert wait_until(lambda: read_state(house.checkout) is not None, timeout_seconds=30)
    racer = house.attack(SQUAT, str(port))
    assert racer.stdout and racer.stdout.readline() == "tries\n"
    assert racer.stdout.readline() == "listens\n"
    token = house.checkout.token_file.read_text().strip()
    hold.unlink()
    said = up.communicate(timeout=120)[0]
    assert up.returncode == 2, said
    assert f"port {port} is taken" in said
    assert "ready" not in said
    assert token not in end(racer)
    assert house.labkit("status").stdout.startswith("not running")


@pytest.mark.slow
def test_a_lab_of_another_users_is_not_taken_for_ours(house: House):
    """An attacker's process with our checkout in its environment is not the lost lab."""
    pretend = [house.python, "-c", "import time; print(1, flush=True); time.sleep(60)"]
    environment = {"LABKIT_HOME": str(house.checkout.root), "LABKIT_SERVER_PORT": "8888"}
    attacker = subprocess.Popen(  # type: ignore[call-overload]
        [*pretend, "jupyterlab", ""],
        **as_user(ATTACKER, environment),
        stdout=subprocess.PIPE,
        text=True,
    )
    try:
        assert attacker.stdout.readline()
        assert house.labkit("status").stdout.startswith("not running")
        assert house.labkit("down").stdout == "nothing was running\n"
        assert attacker.poll() is None
    finally:
        end(attacker)


@pytest.mark.slow
def test_an_owners_state_folder_in_other_hands_is_refused(house: House, tmp_path: Path):
    os.chown(house.checkout.state_folder, ATTACKER, ATTACKER)
    house.checkout.state_folder.chmod(0o777)
    done = house.labkit("up", "--runtime", "local")
    assert done.returncode == 2
    assert f"belongs to uid {ATTACKER}" in done.stderr
    assert not house.checkout.token_file.exists()

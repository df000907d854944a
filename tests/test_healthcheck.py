"""The container's healthcheck, on real servers: wrong neither way."""

from __future__ import annotations

import importlib.util
import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import pytest

from labkit.host.machine import find_free_port
from tests.own_servers import OwnServer, start_own_server

SCRIPT = Path(__file__).parents[1] / "docker" / "jupyter" / "healthcheck.py"
PORT = find_free_port("127.0.0.1", 31_000, 900)

pytestmark = pytest.mark.skipif(not Path("/proc/self").exists(), reason="needs Linux's /proc")


@pytest.fixture(scope="module")
def healthcheck() -> ModuleType:
    spec = importlib.util.spec_from_file_location("healthcheck", SCRIPT)
    assert spec and spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[OwnServer]:
    """A server under another base URL, on another port than its variables say."""
    folder = tmp_path_factory.mktemp("healthy")
    with start_own_server(folder, f"--port={PORT}", port=PORT, base_url="/one/two/") as running:
        yield running


@pytest.fixture
def processes(server: OwnServer, tmp_path: Path) -> Path:
    """A /proc in which this machine has the server, and one process that is none."""
    for number in (server.process.pid, os.getpid()):
        (tmp_path / str(number)).symlink_to(f"/proc/{number}")
    return tmp_path


def word_of(server: OwnServer) -> Path:
    """The file in which the server says where it answers."""
    return server.state / "jupyter" / "runtime" / f"jpserver-{server.process.pid}.json"


@pytest.mark.slow
def test_a_server_with_another_port_and_base_url_is_well(processes: Path):
    answer = subprocess.run(
        [sys.executable, SCRIPT, processes], capture_output=True, text=True, check=False
    )
    assert (answer.returncode, answer.stderr) == (0, "")


def test_a_hung_server_is_not(healthcheck, processes, server, monkeypatch):
    monkeypatch.setattr(healthcheck, "TIMEOUT_SECONDS", 0.5)
    server.process.send_signal(signal.SIGSTOP)
    try:
        assert f"does not answer on port {server.port}" in healthcheck.main(processes)
    finally:
        server.process.send_signal(signal.SIGCONT)


def test_a_server_that_has_not_said_where_it_answers_is_not(healthcheck, processes, server):
    hidden = word_of(server).rename(word_of(server).with_suffix(".hidden"))
    try:
        assert "not started yet" in healthcheck.main(processes)
    finally:
        hidden.rename(word_of(server))


def test_a_server_that_serves_without_its_token_is_not(healthcheck, processes, server):
    said = word_of(server).read_text()
    word_of(server).write_text(json.dumps({**json.loads(said), "token": "another"}))
    try:
        assert "answers 403" in healthcheck.main(processes)
    finally:
        word_of(server).write_text(said)


def test_without_a_server_nothing_is_well(tmp_path):
    (tmp_path / "1").mkdir()
    (tmp_path / "1" / "cmdline").write_bytes(b"tini\0-s\0--\0labkit\0serve\0")
    answer = subprocess.run(
        [sys.executable, SCRIPT, tmp_path], capture_output=True, text=True, check=False
    )
    assert answer.returncode == 1
    assert "no JupyterLab runs" in answer.stderr

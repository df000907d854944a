"""Starts JupyterLab as both runtimes do, on loopback, and always stops it."""

from __future__ import annotations

import contextlib
import http.client
import json
import os
import secrets
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import quote

from labkit.launch.server import probe_server, wait_until
from tests.ports import choose_port

ROOT = Path(__file__).parents[1]
# Two test runs on one machine must not take each other's server for their own.
TOKEN = secrets.token_hex(16)


@dataclass(frozen=True)
class Answer:
    """What the server said."""

    status: int
    headers: Mapping[str, str]
    body: bytes

    def json(self) -> Any:
        return json.loads(self.body)


@dataclass(frozen=True)
class LabServer:
    """A running JupyterLab."""

    port: int
    token: str
    workspace: Path

    def url(self, path: str = "lab") -> str:
        return f"http://127.0.0.1:{self.port}/{quote(path)}?token={self.token}"

    def ask(
        self,
        path: str,
        *,
        method: str = "GET",
        token: str | None = None,
        headers: Mapping[str, str] | None = None,
        body: object = None,
    ) -> Answer:
        """One request, as it is: no redirects followed, the path not tidied up."""
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=30)
        sent = {**({"Authorization": f"token {token}"} if token else {}), **(headers or {})}
        try:
            connection.request(
                method, path, json.dumps(body) if body is not None else None, dict(sent)
            )
            response = connection.getresponse()
            return Answer(response.status, dict(response.getheaders()), response.read())
        finally:
            connection.close()


@contextlib.contextmanager
def start_server(folder: Path, **variables: str) -> Iterator[LabServer]:
    """`labkit serve` on a free port with everything it writes under ``folder``."""
    workspace = folder / "work"
    workspace.mkdir()
    (folder / "token").write_text(TOKEN)
    # The image and the .venv have the kernels' settings in their own folders.
    profile = folder / "state" / "ipython" / "profile_default"
    profile.mkdir(parents=True)
    shutil.copy(ROOT / "docker" / "jupyter" / "ipython_config.py", profile)
    port = choose_port()
    with (folder / "server.log").open("wb") as log:
        process = subprocess.Popen(
            [sys.executable, "-m", "labkit", "serve"],
            env=serve_environment(folder, port) | variables,
            cwd=workspace,
            stdout=log,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
    try:
        answers = wait_until(
            lambda: probe_server(port, TOKEN) == "healthy" or process.poll() is not None,
            timeout_seconds=90,
        )
        assert answers and process.poll() is None, (folder / "server.log").read_text()
        yield LabServer(port, TOKEN, workspace)
    finally:
        process.send_signal(signal.SIGTERM)
        try:
            process.wait(20)
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()


def serve_environment(folder: Path, port: int) -> dict[str, str]:
    """The variables that the launcher gives a server.

    Without the checkout's own: `make status` in another test would take the server for its lab.
    """
    kept = {name: value for name, value in os.environ.items() if name != "LABKIT_HOME"}
    return {
        **kept,
        "LABKIT_EXTENSION": "1",
        "PYTHONPATH": str(ROOT),
        "LABKIT_STATE": str(folder / "state"),
        "LABKIT_WORKSPACE": str(folder / "work"),
        "LABKIT_TOKEN_FILE": str(folder / "token"),
        "LABKIT_SERVER_ADDRESS": "127.0.0.1",
        "LABKIT_SERVER_PORT": str(port),
        "LABKIT_ALLOW_ROOT": "1",
        "JUPYTER_CONFIG_PATH": str(ROOT / "docker" / "jupyter"),
    }

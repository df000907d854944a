"""JupyterLab for one test: with options and a token of its own, or none, and with its output."""

from __future__ import annotations

import contextlib
import http.client
import signal
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from labkit.launch.serve import prepare_folders
from labkit.launch.server import wait_until
from tests.ports import choose_port
from tests.servers import LabServer, serve_environment


@dataclass(frozen=True)
class OwnServer(LabServer):
    """A running JupyterLab and its process."""

    process: subprocess.Popen[bytes]
    log: Path
    state: Path


@contextlib.contextmanager
def start_own_server(
    folder: Path, *options: str, base_url: str = "/", port: int | None = None, **variables: str
) -> Iterator[OwnServer]:
    """JupyterLab with ``options`` of its command line and ``variables`` of its environment."""
    options = (*options, f"--ServerApp.base_url={base_url}")
    with start_process(folder, *options, port=port, **variables) as server:
        # Written once the port is this server's: another's answer there is not taken for its own.
        own_word = server.state / f"jupyter/runtime/jpserver-{server.process.pid}.json"

        def answers() -> bool:
            if not own_word.exists():
                return server.process.poll() is not None
            connection = http.client.HTTPConnection("127.0.0.1", server.port, timeout=5)
            with contextlib.suppress(OSError), contextlib.closing(connection):
                connection.request("GET", f"{base_url}api")
                return connection.getresponse().status == 200
            return server.process.poll() is not None

        assert wait_until(answers, timeout_seconds=90), server.log.read_text()
        assert server.process.poll() is None, server.log.read_text()
        yield server


@contextlib.contextmanager
def start_process(
    folder: Path, *options: str, port: int | None = None, **variables: str
) -> Iterator[OwnServer]:
    """JupyterLab's process, whether it comes to serve or not; ended in every case.

    ``port`` is where ``options`` have it listen, if they do.
    """
    (folder / "work").mkdir(parents=True)
    free = choose_port()
    environment = {**serve_environment(folder, free), "JUPYTER_TOKEN": "", **variables}
    environment["LABKIT_TOKEN_FILE"] = variables.get("LABKIT_TOKEN_FILE", "")
    log = folder / "server.log"
    with log.open("wb") as output:
        process = subprocess.Popen(
            [sys.executable, "-m", "jupyterlab", *options],
            env=prepare_folders(environment),
            cwd=folder / "work",
            stdout=output,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
    try:
        token = environment.get("JUPYTER_TOKEN", "")
        yield OwnServer(
            port or free, token, folder / "work", process, log, Path(environment["LABKIT_STATE"])
        )
    finally:
        # A stopped process takes no other signal.
        process.send_signal(signal.SIGCONT)
        process.terminate()
        try:
            process.wait(20)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()

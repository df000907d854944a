"""The lab without an engine: the same JupyterLab from a .venv, as a background process."""

from __future__ import annotations

import dataclasses
import os
import re
import shutil
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest

from labkit.launch.server import read_start, wait_until
from labkit.launch.settings import Checkout
from labkit.launch.venv import PythonEnvironment
from labkit.process import run_command
from tests.image.clones import ROOT, Clone, copy_checkout

pytestmark = [
    pytest.mark.engine,
    pytest.mark.skipif(
        not PythonEnvironment(Checkout(ROOT)).is_current(),
        reason="needs this checkout's .venv: make build RUNTIME=local",
    ),
]


@pytest.fixture
def local_clone(tmp_path: Path) -> Iterator[Clone]:
    """A checkout that uses this one's .venv, which takes a minute to make."""
    made = dataclasses.replace(copy_checkout(tmp_path / "my lab"), venv=ROOT / ".venv")
    yield made
    made.labkit("down", timeout_seconds=60)


def up_locally(clone: Clone, *words: str) -> str:
    """Starts the lab; what it printed on stdout."""
    result = clone.labkit("up", "--runtime", "local", *words, timeout_seconds=120)
    assert result.exit_code == 0, result.stderr
    return result.stdout


def read_process(clone: Clone) -> int:
    text = (clone.root / ".labkit" / "state.json").read_text()
    found = re.search(r'"process_id": (\d+)', text)
    assert found
    return int(found.group(1))


def test_a_client_without_a_daemon_counts_as_none_and_is_named(local_clone: Clone):
    nowhere = "unix:///nowhere/docker.sock"
    up = local_clone.labkit("up", DOCKER_HOST=nowhere, timeout_seconds=120)

    assert up.exit_code == 0, up.stderr
    assert "daemon does not answer" in up.stderr
    assert "warning: to use the engine instead" in up.stderr
    assert up.stdout.splitlines()[-1] == "stop it:  make down"
    status = local_clone.status()
    assert (status["runtime"], status["healthy"]) == ("local", True)
    assert local_clone.server().ask("/api/status", token=None).status == 403
    again = local_clone.labkit("up", DOCKER_HOST=nowhere)
    assert again.stdout.startswith("the lab is running already\n")


def test_the_token_is_new_on_each_start_and_in_no_argument_or_variable(local_clone: Clone):
    first = up_locally(local_clone)
    token = local_clone.server().token
    seen = b""
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            seen += (folder / "environ").read_bytes() + (folder / "cmdline").read_bytes()
        except OSError:
            continue
    assert token in first
    assert token.encode() not in seen
    assert local_clone.labkit("down").stdout.startswith("stopped;")

    assert token not in up_locally(local_clone)
    assert local_clone.server().ask("/api/terminals", method="POST", token=token).status == 403


def test_a_lab_whose_state_file_is_lost_is_found_again_and_stopped(local_clone: Clone):
    url = up_locally(local_clone).splitlines()[0]
    process = read_process(local_clone)
    (local_clone.root / ".labkit" / "state.json").unlink()

    again = up_locally(local_clone, "--port", str(local_clone.status()["port"]))
    assert url in again
    assert read_process(local_clone) == process

    shutil.rmtree(local_clone.root / ".labkit")
    assert "token is gone" in local_clone.status()["problem"]
    assert local_clone.labkit("down").stdout.startswith("stopped;")
    assert read_start(process) is None


def test_a_stopped_server_is_resumed_with_its_kernels(local_clone: Clone):
    up_locally(local_clone)
    process = read_process(local_clone)
    os.kill(process, signal.SIGSTOP)
    assert local_clone.status()["problem"] == "its process is paused"

    up_locally(local_clone)
    assert (read_process(local_clone), local_clone.status()["healthy"]) == (process, True)


def test_down_leaves_no_process_and_keeps_the_files(local_clone: Clone):
    up_locally(local_clone)
    server = local_clone.server()
    kernel = server.ask("/api/kernels", method="POST", token=server.token, body={"name": "python3"})
    assert kernel.status == 201
    process = read_process(local_clone)
    (local_clone.workspace / "mine.txt").write_text("mine")

    assert local_clone.labkit("down").exit_code == 0

    assert read_start(process) is None
    assert wait_until(lambda: not find_processes(local_clone), timeout_seconds=60)
    assert (local_clone.workspace / "mine.txt").read_text() == "mine"


def find_processes(clone: Clone) -> list[str]:
    """Processes whose working folder or arguments lie in the clone."""
    listed = run_command(["ps", "-eo", "pid,args"], timeout_seconds=10).stdout
    return [line for line in listed.splitlines() if str(clone.root.resolve()) in line]


def test_a_killed_server_is_noticed_and_up_recovers(local_clone: Clone):
    up_locally(local_clone)
    os.kill(read_process(local_clone), signal.SIGKILL)
    assert wait_until(lambda: not local_clone.status()["healthy"], timeout_seconds=60)

    status = local_clone.status()
    assert status["problem"] == "its process is gone: it was killed or crashed"

    up_locally(local_clone)
    assert local_clone.status()["healthy"] is True


def test_a_stale_state_file_does_not_harm_another_process(local_clone: Clone):
    up_locally(local_clone)
    state = local_clone.root / ".labkit" / "state.json"
    kept = state.read_text()
    process = read_process(local_clone)
    local_clone.labkit("down")
    # As after a reboot: the number belongs to somebody else now (this very test).
    state.write_text(kept.replace(str(process), str(os.getpid())))

    assert local_clone.status()["running"] is False
    assert local_clone.labkit("down").exit_code == 0  # and the test is still here
    assert local_clone.status()["problem"] is None


@pytest.mark.usefixtures("heeds_interrupts")
def test_ctrl_c_while_waiting_leaves_nothing_running(local_clone: Clone):
    up = local_clone.start_labkit("up", "--runtime", "local")
    assert up.stderr
    for line in up.stderr:
        if "starting JupyterLab" in line:
            break
    os.killpg(up.pid, signal.SIGINT)
    up.communicate(timeout=60)

    assert up.returncode == 130
    assert local_clone.status()["running"] is False
    assert wait_until(lambda: not find_processes(local_clone), timeout_seconds=60)


def test_a_server_that_cannot_start_says_why(local_clone: Clone):
    config = local_clone.root / "docker" / "jupyter" / "jupyter_server_config.py"
    config.write_text("raise SystemExit('this configuration is broken')\n")

    up = local_clone.labkit("up", "--runtime", "local", timeout_seconds=120)

    assert up.exit_code == 5
    assert "error: JupyterLab stopped" in up.stderr
    assert "this configuration is broken" in up.stderr
    assert "server.log" in up.stderr
    assert local_clone.status()["running"] is False


def test_exec_runs_inside_and_hands_on_the_exit_code(local_clone: Clone):
    program = "import sys, os; print(sys.prefix); sys.exit(7)"
    answer = local_clone.labkit("exec", "--runtime", "local", "--", "python", "-c", program)

    assert answer.exit_code == 7
    assert answer.stdout.strip().endswith("/.venv")


def test_bind_to_every_interface_is_possible_and_warned_of(local_clone: Clone):
    up = local_clone.labkit("up", "--runtime", "local", "--bind", "0.0.0.0", timeout_seconds=120)

    assert up.exit_code == 0, up.stderr
    assert "warning: BIND=0.0.0.0 opens the lab" in up.stderr
    assert local_clone.status()["url"].startswith("http://127.0.0.1:")
    assert local_clone.server().ask("/api/status", token=None).status == 403


def test_over_ssh_the_tunnel_is_spelled_out(local_clone: Clone):
    up = local_clone.labkit(
        "up",
        "--runtime",
        "local",
        timeout_seconds=120,
        SSH_CONNECTION="198.51.100.7 52000 203.0.113.9 22",
        USER="ada",
    )
    port = local_clone.status()["port"]

    assert f"ssh -N -L {port}:127.0.0.1:{port} ada@203.0.113.9" in up.stdout

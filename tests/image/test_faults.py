"""What goes wrong around a lab, and that nothing is lost or left running by it."""

from __future__ import annotations

import json
import os
import shutil
import signal
import socket
import subprocess
from pathlib import Path

import pytest

from labkit.launch.server import wait_until
from labkit.process import run_command
from tests.image.clones import Clone

pytestmark = pytest.mark.engine


def find_line(process: subprocess.Popen[str], text: str) -> None:
    """Reads the process's progress until a line holds ``text``."""
    assert process.stderr
    for line in process.stderr:
        if text in line:
            return
    raise AssertionError(f"{text!r} never came; exit code {process.wait()}")


def test_a_killed_lab_loses_nothing_that_was_saved_and_up_recovers(fresh_clone: Clone):
    assert fresh_clone.labkit("up", "--runtime", "docker", timeout_seconds=900).ok
    server = fresh_clone.server()
    notebook = server.ask("/api/contents/01_tensors.ipynb", token=server.token).json()
    notebook["content"]["cells"][0]["source"] = "# my own words"
    saved = server.ask(
        "/api/contents/01_tensors.ipynb", method="PUT", token=server.token, body=notebook
    )
    assert saved.status == 200
    before = fresh_clone.status()

    run_command(["docker", "kill", fresh_clone.containers()[0]], timeout_seconds=30)

    status = fresh_clone.status()
    assert (status["running"], status["healthy"]) == (False, False)
    assert status["problem"] == "its container is gone: it was killed or crashed"
    assert fresh_clone.labkit("status").exit_code == 1
    content = json.loads((fresh_clone.workspace / "01_tensors.ipynb").read_text())
    assert "".join(content["cells"][0]["source"]) == "# my own words"

    again = fresh_clone.labkit("up", "--runtime", "docker")
    assert again.exit_code == 0
    assert "its container is gone" in again.stderr
    assert fresh_clone.status()["port"] == before["port"]
    assert fresh_clone.status()["url"] != before["url"]  # each start has its own token
    content = json.loads((fresh_clone.workspace / "01_tensors.ipynb").read_text())
    assert "".join(content["cells"][0]["source"]) == "# my own words"


def test_a_paused_lab_is_resumed(fresh_clone: Clone):
    assert fresh_clone.labkit("up", "--runtime", "docker", timeout_seconds=900).ok
    [container] = fresh_clone.containers()
    run_command(["docker", "pause", container], timeout_seconds=30)
    assert fresh_clone.status()["problem"] == "its container is paused"

    assert fresh_clone.labkit("up", "--runtime", "docker").ok
    assert fresh_clone.containers() == [container]
    assert fresh_clone.status()["healthy"] is True


def test_a_daemon_that_does_not_answer_is_named_and_the_lab_kept(fresh_clone: Clone):
    assert fresh_clone.labkit("up", "--runtime", "docker", timeout_seconds=900).ok
    away = {"DOCKER_HOST": "unix:///nowhere/docker.sock"}
    status = json.loads(fresh_clone.labkit("status", "--json", **away).stdout)
    assert (status["running"], status["healthy"]) == (None, False)
    assert "docker does not answer" in status["problem"]
    assert fresh_clone.labkit("up", **away).exit_code == 5
    assert fresh_clone.status()["healthy"] is True


def test_two_ups_at_once_give_one_lab(fresh_clone: Clone):
    both = [fresh_clone.start_labkit("up", "--runtime", "docker") for _ in range(2)]
    said = [process.communicate(timeout=600) for process in both]

    assert [process.returncode for process in both] == [0, 0]
    assert len(fresh_clone.containers(all_states=True)) == 1
    assert any("another `up` or `down` is at work: waiting" in err for _, err in said)
    assert len({out.splitlines()[-2] for out, _ in said}) == 1


@pytest.mark.usefixtures("heeds_interrupts")
def test_ctrl_c_while_starting_leaves_nothing_running(fresh_clone: Clone):
    up = fresh_clone.start_labkit("up", "--runtime", "docker")
    find_line(up, "starting JupyterLab")
    os.killpg(up.pid, signal.SIGINT)
    up.communicate(timeout=60)

    assert up.returncode == 130
    assert fresh_clone.containers(all_states=True) == []
    assert fresh_clone.labkit("status").stdout.startswith("not running")


@pytest.mark.usefixtures("heeds_interrupts")
def test_ctrl_c_while_building_stops_the_build(fresh_clone: Clone):
    # A first layer that takes for ever, so that the interrupt comes in the middle of it.
    step = fresh_clone.root / "docker" / "steps" / "install-os-packages.sh"
    step.write_text("#!/bin/sh\nsleep 600\n")
    up = fresh_clone.start_labkit("up", "--runtime", "docker", LABKIT_IMAGE="labkit:never")
    find_line(up, "building the cpu image")
    assert up.stderr
    os.killpg(up.pid, signal.SIGINT)
    up.communicate(timeout=60)

    assert up.returncode == 130
    listed = run_command(["docker", "image", "ls", "--quiet", "labkit:never"], timeout_seconds=20)
    assert listed.stdout == ""


def test_a_failing_build_quotes_its_log(fresh_clone: Clone):
    step = fresh_clone.root / "docker" / "steps" / "install-os-packages.sh"
    step.write_text("#!/bin/sh\necho 'E: write error: No space left on device' >&2\nexit 100\n")

    up = fresh_clone.labkit("up", "--runtime", "docker", LABKIT_IMAGE="labkit:never")

    assert up.exit_code == 5
    assert "error: building the cpu image failed" in up.stderr
    assert "No space left on device" in up.stderr
    assert "cause: the disk is full" in up.stderr
    log = fresh_clone.root / ".labkit" / "logs" / "build-cpu.log"
    assert f"the whole log: {log.resolve()}" in up.stderr
    assert "No space left on device" in log.read_text()


def test_a_busy_default_port_moves_on_and_says_so(fresh_clone: Clone):
    with socket.socket() as taken:
        taken.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            taken.bind(("127.0.0.1", 8888))
            taken.listen()
        except OSError:
            pass  # somebody else has it: just as good
        up = fresh_clone.labkit("up", "--runtime", "docker", timeout_seconds=900)

    assert up.exit_code == 0, up.stderr
    port = fresh_clone.status()["port"]
    assert port > 8888
    assert f"port 8888 is taken: using {port}" in up.stderr


def test_a_busy_port_that_was_asked_for_is_an_error(fresh_clone: Clone):
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        up = fresh_clone.labkit("up", "--runtime", "docker", "--port", str(port))

    assert up.exit_code == 2
    assert f"error: port {port} is taken" in up.stderr
    assert fresh_clone.containers(all_states=True) == []


def test_an_engine_that_does_not_answer_is_an_error_where_it_was_asked_for(fresh_clone: Clone):
    up = fresh_clone.labkit("up", "--runtime", "docker", DOCKER_HOST="unix:///nowhere/docker.sock")

    assert up.exit_code == 5
    assert "RUNTIME=docker cannot run the lab" in up.stderr
    assert "daemon does not answer" in up.stderr


def test_a_workspace_that_is_a_file_is_named(fresh_clone: Clone):
    (fresh_clone.root / "work").write_text("not a folder")

    up = fresh_clone.labkit("up", "--runtime", "docker")

    assert up.exit_code == 2
    assert f"the workspace {fresh_clone.root.resolve() / 'work'} is not a folder" in up.stderr
    assert (fresh_clone.root / "work").read_text() == "not a folder"


def test_down_twice_and_clean_keep_the_workspace(fresh_clone: Clone):
    assert fresh_clone.labkit("up", "--runtime", "docker", timeout_seconds=900).ok
    (fresh_clone.workspace / "notes.txt").write_text("mine")

    first, second = fresh_clone.labkit("down"), fresh_clone.labkit("down")
    # The image is shared with the other tests; a name of its own keeps clean away from it.
    clean = fresh_clone.labkit("clean", LABKIT_IMAGE="labkit:none", LABKIT_TEST_IMAGE="labkit:none")

    assert first.stdout.startswith("stopped; your files are in")
    assert (second.exit_code, second.stdout) == (0, "nothing was running\n")
    assert clean.exit_code == 0
    assert (fresh_clone.workspace / "notes.txt").read_text() == "mine"
    assert (fresh_clone.workspace / "01_tensors.ipynb").exists()
    assert not (fresh_clone.root / ".labkit").exists()
    volumes = run_command(["docker", "volume", "ls", "--quiet"], timeout_seconds=30).stdout
    assert fresh_clone.checkout.project not in volumes


def test_removing_the_container_leaves_the_workspace_alone(fresh_clone: Clone):
    assert fresh_clone.labkit("up", "--runtime", "docker", timeout_seconds=900).ok
    before = sorted(path.name for path in fresh_clone.workspace.iterdir())

    run_command(["docker", "rm", "--force", *fresh_clone.containers()], timeout_seconds=60)

    assert sorted(path.name for path in fresh_clone.workspace.iterdir()) == before
    assert fresh_clone.labkit("status").exit_code == 1
    shutil.rmtree(fresh_clone.root / ".labkit")
    assert fresh_clone.labkit("status").stdout.startswith("not running")
    assert len(fresh_clone.networks()) == 1
    assert fresh_clone.labkit("down").stdout == "nothing was running\n"
    assert fresh_clone.networks() == []


def test_a_lab_whose_state_was_deleted_is_still_found_and_stopped(fresh_clone: Clone):
    assert fresh_clone.labkit("up", "--runtime", "docker", timeout_seconds=900).ok
    (fresh_clone.root / ".labkit" / "state.json").unlink()

    assert fresh_clone.labkit("down").stdout.startswith("stopped;")
    assert fresh_clone.containers(all_states=True) == []


def test_the_log_is_there_to_read(fresh_clone: Clone):
    assert fresh_clone.labkit("up", "--runtime", "docker", timeout_seconds=900).ok

    logs = fresh_clone.labkit("logs")
    assert "Jupyter Server" in logs.stdout + logs.stderr

    def is_marked_healthy() -> bool:
        words = ["docker", "inspect", "--format", "{{.State.Health.Status}}"]
        return run_command([*words, *fresh_clone.containers()], timeout_seconds=10).stdout == (
            "healthy\n"
        )

    assert wait_until(is_marked_healthy, timeout_seconds=60, interval_seconds=1)


def test_a_path_that_is_no_checkout_is_named(tmp_path: Path, fresh_clone: Clone):
    up = fresh_clone.labkit("up", LABKIT_HOME=str(tmp_path))

    assert up.exit_code == 2
    assert f"no checkout of labkit at {tmp_path}" in up.stderr

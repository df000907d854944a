"""The lab in its container: what it may do, who owns what, what it leaves behind."""

from __future__ import annotations

import json
import os
import socket

import pytest

from labkit.launch.server import wait_until
from labkit.process import run_command
from tests.image.clones import Clone
from tests.test_server_security import find_own_address

pytestmark = pytest.mark.engine


def test_up_prints_the_url_and_how_to_stop(running: Clone):
    again = running.labkit("up")

    assert again.exit_code == 0
    lines = again.stdout.splitlines()
    assert lines[0] == "the lab is running already"
    assert lines[1] == f"JupyterLab is ready:  {running.status()['url']}"
    assert lines[-1] == "stop it:  make down"


def test_status_says_what_runs_and_where(running: Clone):
    status = running.status()

    assert status["schema_version"] == 1
    assert status["running"] is True and status["healthy"] is True
    assert (status["runtime"], status["flavor"], status["bind"]) == ("docker", "cpu", "127.0.0.1")
    assert status["url"].startswith(f"http://127.0.0.1:{status['port']}/lab?token=")
    assert running.server().ask("/api/status", token=running.server().token).status == 200


def test_the_engine_finds_it_healthy(running: Clone):
    container = running.containers()[0]
    answer = run_command(
        ["docker", "exec", container, "/opt/lab/bin/python", "/etc/labkit/jupyter/healthcheck.py"],
        timeout_seconds=30,
    )
    assert answer.exit_code == 0, answer.stderr


def test_the_process_is_not_root_and_has_no_capabilities(running: Clone):
    status = running.inside("cat", "/proc/1/status").stdout

    fields = dict(line.split(":\t", 1) for line in status.splitlines() if ":\t" in line)
    assert "0" not in fields["Uid"].split()
    for name in ("CapInh", "CapPrm", "CapEff", "CapBnd", "CapAmb"):
        assert int(fields[name], 16) == 0
    assert fields["NoNewPrivs"] == "1"


def test_only_workspace_caches_and_tmp_can_be_written(running: Clone):
    script = (
        "for folder in / /etc /usr/bin /opt/lab /opt/lab/lib /home /var /var/tmp /run /srv"
        " /work /cache /tmp /dev/shm; do"
        " if touch $folder/probe-$$ 2>/dev/null; then echo $folder; rm $folder/probe-$$; fi; done"
    )
    assert running.inside("sh", "-c", script).stdout.split() == [
        "/work",
        "/cache",
        "/tmp",
        "/dev/shm",
    ]


def test_the_token_is_nowhere_but_in_its_file(running: Clone):
    token = running.server().token
    container, image = running.containers()[0], "labkit:cpu"

    said = [
        run_command(["docker", "inspect", container], timeout_seconds=30).stdout,
        run_command(["docker", "inspect", image], timeout_seconds=30).stdout,
        run_command(["docker", "history", "--no-trunc", image], timeout_seconds=30).stdout,
        run_command(["docker", "logs", container], timeout_seconds=30).stdout,
        run_command(["docker", "logs", container], timeout_seconds=30).stderr,
        running.inside("sh", "-c", "cat /proc/[0-9]*/environ /proc/[0-9]*/cmdline").stdout,
    ]

    assert all(len(text) > 0 for text in said[:3])
    assert not any(token in text for text in said)
    assert (running.root / ".labkit" / "token").stat().st_mode & 0o777 == 0o600
    assert (running.root / ".labkit").stat().st_mode & 0o777 == 0o700


def test_only_loopback_reaches_it(running: Clone):
    address = find_own_address()
    if address is None:
        pytest.skip("this machine has no address but loopback")
    with socket.socket() as client:
        client.settimeout(5)
        assert client.connect_ex((address, running.status()["port"])) != 0


def test_what_the_lab_writes_belongs_to_the_user(running: Clone):
    running.server().ask(
        "/api/contents/mine.txt",
        method="PUT",
        token=running.server().token,
        body={"type": "file", "format": "text", "content": "hello"},
    )

    written = running.workspace / "mine.txt"
    assert written.read_text() == "hello"
    # Where the tests run as root, the lab runs as an unprivileged user who owns the workspace.
    expected = os.getuid() or running.workspace.stat().st_uid
    assert written.stat().st_uid == expected != 0


def test_a_tensor_compiles_in_the_image(running: Clone):
    program = (
        "import torch; f = torch.compile(lambda x: torch.sin(x) * 2);"
        "x = torch.randn(64); torch.testing.assert_close(f(x), torch.sin(x) * 2); print('ok')"
    )
    answer = running.inside("python", "-c", program, timeout_seconds=240)

    assert answer.stdout.strip() == "ok", answer.stderr


TINY_PROJECT = """\
[build-system]
requires = ["hatchling"]
build-backend = "hatchling.build"
[project]
name = "tiny_package"
version = "1"
[tool.hatch.build.targets.wheel.shared-data]
"panel.json" = "share/jupyter/labextensions/tiny-panel/package.json"
"""


def test_what_a_learner_installs_goes_to_the_caches_and_into_jupyterlab(running: Clone):
    make = (
        'mkdir -p /tmp/tiny/tiny_package && cd /tmp/tiny && printf %s "$0" > pyproject.toml'
        " && echo 'value = 42' > tiny_package/__init__.py"
        ' && echo \'{"name": "tiny-panel", "version": "1", "jupyterlab": {}}\' > panel.json'
        " && pip install --no-build-isolation --no-index --quiet . && cd /"
        " && python -c 'import tiny_package as t; print(t.value, t.__file__)'"
        " && jupyter labextension list 2>&1"
    )
    answer = running.inside("sh", "-c", make, TINY_PROJECT)

    assert answer.stdout.split()[0] == "42", answer.stderr
    assert answer.stdout.split()[1].startswith("/cache/packages/")
    assert "tiny-panel v1" in answer.stdout and "enabled" in answer.stdout


def test_labkit_in_the_image_carries_the_labs(running: Clone):
    answer = running.inside(
        "python", "-c", "from labkit.lessons.catalog import labs_folder; print(labs_folder())"
    )
    assert answer.stdout.strip().endswith("site-packages/labkit/_labs"), answer.stderr


def test_devices_inside_names_the_cpu_build(running: Clone):
    answer = running.labkit("exec", "--", "labkit", "devices", "--json")

    devices = json.loads(answer.stdout)
    assert devices["best"] == "cpu"
    assert devices["devices"][-1]["kind"] == "cpu"


def test_the_image_says_what_it_is(running: Clone):
    answer = run_command(
        ["docker", "image", "inspect", "labkit:cpu", "--format", "{{json .Config.Labels}}"],
        timeout_seconds=30,
    )
    labels = json.loads(answer.stdout)
    assert labels["org.opencontainers.image.version"] == "0.1.0"
    assert labels["io.labkit.flavor"] == "cpu"
    assert labels["io.labkit.torch"] == "2.13.0+cpu"
    torch_version = running.inside("python", "-c", "import torch; print(torch.__version__)")
    assert torch_version.stdout.strip() == labels["io.labkit.torch"]


def test_a_signal_ends_a_command_in_the_running_lab(running: Clone):
    mark = "signalled-here"
    process = running.start_labkit("exec", "--", "sh", "-c", f"sleep 3600; echo {mark}")
    find = ("pgrep", "--full", mark)
    assert wait_until(lambda: running.inside(*find).ok, timeout_seconds=120)
    process.terminate()
    process.communicate(timeout=120)
    assert process.returncode == 130
    assert wait_until(lambda: not running.inside(*find).ok, timeout_seconds=60)
    assert len(running.containers()) == 1


def test_a_signal_stops_the_container_of_a_command(fresh_clone: Clone):
    process = fresh_clone.start_labkit("exec", "--runtime", "docker", "--", "sleep", "3600")
    assert wait_until(lambda: len(fresh_clone.containers()) == 1, timeout_seconds=1700)
    process.terminate()
    process.communicate(timeout=120)
    assert process.returncode == 130
    assert fresh_clone.containers(all_states=True) == []

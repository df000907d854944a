"""The image under plain `docker run`, built from a checkout that its owner alone may read."""

from __future__ import annotations

import http.client
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

from labkit.host.machine import find_free_port
from labkit.launch.plan import BASE_IMAGE
from labkit.launch.server import wait_until
from labkit.process import run_command
from tests.image.clones import ROOT, copy_checkout
from tests.servers import LabServer

pytestmark = [pytest.mark.engine, pytest.mark.slow, pytest.mark.timeout(1800)]
IMAGE = "labkit-private:test"
STEPS = ROOT / "docker" / "steps"
CHECK = ("/opt/lab/bin/python", "/etc/labkit/jupyter/healthcheck.py")


def docker(*words: str, timeout_seconds: float = 60) -> str:
    """What the engine says on both streams."""
    answer = run_command(["docker", *words], timeout_seconds=timeout_seconds)
    return answer.stdout + answer.stderr


@pytest.fixture(scope="module")
def image(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """An image of this checkout as a clone under umask 077 builds it."""
    clone = copy_checkout(tmp_path_factory.mktemp("private") / "lab")
    for path in (clone.root, *clone.root.rglob("*")):
        path.chmod(path.stat().st_mode & 0o700)
    words = ("build", "--runtime", "docker", "--flavor", "cpu", "--image", IMAGE)
    built = clone.labkit(*words, timeout_seconds=1700)
    assert built.ok, built.stderr
    yield IMAGE
    docker("image", "rm", "--force", IMAGE)


@pytest.fixture(scope="module")
def lab(image: str) -> Iterator[tuple[str, int]]:
    """A container that was told nothing but a port, and the host's port that leads to it."""
    port = find_free_port("127.0.0.1", 28_000, 900)
    assert port is not None
    container = docker("run", "--detach", "--publish", f"127.0.0.1:{port}:8888", image).strip()
    try:
        assert wait_until(lambda: "is ready" in docker("logs", container), timeout_seconds=90)
        yield container, port
    finally:
        docker("rm", "--force", "--volumes", container)


def find_token(container: str) -> str:
    """The token in the URL that the container printed."""
    found = re.findall(
        r"is ready:  http://127\.0\.0\.1:8888/lab\?token=(\S+)", docker("logs", container)
    )
    assert len(found) == 1
    return found[0]


def test_the_printed_token_opens_it_and_is_printed_once(lab: tuple[str, int]):
    container, port = lab
    token = find_token(container)
    assert docker("logs", container).count(token) == 1
    server = LabServer(port, token, Path())
    listed = server.ask("/api/contents", token=token).json()["content"]
    assert "01_tensors.ipynb" in [entry["name"] for entry in listed]
    # The name of a proxy, of a pod, of a codespace.
    headers = {"Host": "lab-1.example.org"}
    assert server.ask("/api/status", token=token, headers=headers).status == 200
    assert server.ask("/api/status").status == 403


def test_options_after_the_images_name_are_jupyterlabs(image: str):
    """Another base URL, and a port that its server listens on."""
    words = ("--ServerApp.base_url=/class/", "--ServerApp.port", "9999")
    container = docker("run", "--detach", image, *words).strip()
    try:
        assert wait_until(lambda: "is ready" in docker("logs", container), timeout_seconds=90)
        assert "http://127.0.0.1:9999/class/lab?token=" in docker("logs", container)
        assert docker("exec", container, *CHECK) == ""
        assert "01_tensors.ipynb" in docker("exec", container, "ls", "/work")
    finally:
        docker("rm", "--force", "--volumes", container)


def test_it_is_healthy(lab: tuple[str, int]):
    container, _ = lab
    state = ("inspect", "--format", "{{.State.Health.Status}}", container)
    assert wait_until(lambda: docker(*state).strip() == "healthy", timeout_seconds=60)


def test_it_is_not_healthy_while_it_hangs(lab: tuple[str, int]):
    container, _ = lab
    pid = docker("exec", container, "pgrep", "--full", "jupyterlab").split()[0]
    docker("exec", container, "kill", "-STOP", pid)
    try:
        assert "does not answer on port 8888" in docker("exec", container, *CHECK)
    finally:
        docker("exec", container, "kill", "-CONT", pid)
    assert docker("exec", container, *CHECK) == ""


def test_a_kernel_runs_in_it(lab: tuple[str, int]):
    container, port = lab
    token = find_token(container)
    answer = LabServer(port, token, Path()).ask(
        "/api/kernels", method="POST", token=token, body={"name": "python3"}
    )
    assert answer.status == 201, answer.body


@pytest.fixture(scope="module")
def strangers_lab(image: str) -> Iterator[tuple[str, str]]:
    """What a container prints that runs as a uid without a name, and can write next to nothing."""
    where = ("--read-only", "--tmpfs", "/cache:ro", "--tmpfs", "/tmp:exec", "--tmpfs", "/work")
    container = docker("run", "--detach", "--user", "123456:0", *where, image).strip()
    try:
        assert wait_until(lambda: "is ready" in docker("logs", container), timeout_seconds=90)
        yield container, docker("logs", container)
    finally:
        docker("rm", "--force", "--volumes", container)


def test_any_user_can_run_it_read_only(strangers_lab: tuple[str, str]):
    container, said = strangers_lab
    assert said.count("/cache cannot be written: the caches are in /tmp/labkit-caches.") == 1
    assert docker("exec", container, *CHECK) == ""
    assert "01_tensors.ipynb" in docker("exec", container, "ls", "/work")


def test_caches_go_to_the_home_where_it_can_be_written(image: str):
    where = ("--tmpfs", "/cache:ro", "--tmpfs", "/home/ada:mode=1777", "--env", "HOME=/home/ada")
    ask = 'echo "$HOME $LABKIT_STATE $XDG_CACHE_HOME"; python -c "import sys; print(sys.path[-1])"'
    said = docker("run", "--rm", "--read-only", *where, image, "sh", "-c", ask)
    assert "the caches are in /home/ada/.cache/labkit\n" in said
    caches = "/home/ada/.cache/labkit"
    assert f"/home/ada {caches}/labkit {caches}\n{caches}/packages/lib/python3." in said


def test_a_workspace_that_cannot_be_written_names_the_mount(image: str):
    said = docker("run", "--rm", "--read-only", "--user", "123456:0", image)
    assert "/work cannot be written by uid 123456" in said and '-v "$PWD":/work' in said


def test_what_a_learner_expects_is_there(lab: tuple[str, int]):
    container, port = lab
    ask = "getent passwd 1000; which curl nano ssh unzip; python -c 'import ipywidgets, tqdm'"
    said = docker("exec", container, "sh", "-c", ask).split()
    assert said == [
        "lab:x:1000:1000::/cache/home:/bin/bash",
        *(f"/usr/bin/{name}" for name in ("curl", "nano", "ssh", "unzip")),
    ]
    page = LabServer(port, "", Path()).ask("/lab", token=find_token(container)).body
    disabled = re.search(rb'"disabledExtensions": \[(.*?)\]', page)
    # Its tiles in the Launcher need a contents manager that the lab does not use.
    assert disabled and b"jupyterlab-jupytext" in disabled[1]


def test_a_mirror_takes_the_place_of_all_of_debians_hosts(image: str):
    steps = ("--env", "APT_MIRROR=http://mirror.invalid/", "--volume", f"{STEPS}:/steps:ro")
    ask = ("sh", "/steps/reach-network.sh", "apt-get", "update", "--print-uris")
    said = docker("run", "--rm", "--user", "0", *steps, image, *ask)
    assert set(re.findall(r"'(\w+://[^/']+)", said)) == {"http://mirror.invalid"}


def test_it_is_small(image: str):
    size = ("image", "inspect", "--format", "{{.Size}}")
    assert int(docker(*size, image)) - int(docker(*size, BASE_IMAGE)) < 1.35e9


def test_a_token_file_that_is_not_there_stops_it(image: str):
    said = docker("run", "--rm", "--env", "LABKIT_TOKEN_FILE=/run/secrets/none", image)
    assert "LABKIT_TOKEN_FILE=/run/secrets/none" in said
    assert "Traceback" not in said and "Serving notebooks" not in said


def test_it_says_what_it_is_built_on(image: str):
    label = '{{index .Config.Labels "org.opencontainers.image.base.name"}}'
    assert docker("image", "inspect", "--format", label, image).strip()


def test_wrong_tokens_do_not_fill_the_engines_log(lab: tuple[str, int]):
    container, port = lab
    before = len(docker("logs", container))
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=10)
    for number in range(300):
        connection.request("GET", f"/lab?token=%ff{number}")
        connection.getresponse().read()
    connection.close()
    assert len(docker("logs", container)) - before < 20_000

"""What `labkit status` knows: from the system or the engine first, and then by a proof."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from labkit.launch import status as status_module
from labkit.launch.compose import ContainerLab
from labkit.launch.local import LocalLab
from labkit.launch.server import read_start, wait_until
from labkit.launch.settings import CPU, Checkout, Flavor, Settings
from labkit.launch.state import LabHandle, LabState, ensure_token, write_state
from labkit.launch.status import (
    LabStatus,
    describe_kernels,
    examine_lab,
    find_forgotten_lab,
    list_differences,
    make_url,
    open_lab,
    read_status,
    resume_lab,
)
from tests.fakes.host import NO_DAEMON, FakeRunner, fails, hangs, make_checkout, says


def state_of(runtime="local", bind="127.0.0.1", handle=None):
    return LabState(
        runtime, "cpu", 8890, bind, "a reason", "2026-11-23T05:00:00Z", handle or LabHandle()
    )


# This very process: surely running.
ALIVE = LabHandle(process_id=os.getpid(), process_started=read_start(os.getpid()))
GONE = LabHandle(process_id=os.getpid(), process_started="1")
CONTAINER = state_of("docker", handle=LabHandle(container="a1b2c3"))
TOKEN = "0" * 48


@pytest.fixture
def checkout(tmp_path, monkeypatch):
    monkeypatch.setattr(status_module.shutil, "which", lambda name: None)
    return make_checkout(tmp_path / "a lab")


@pytest.fixture
def server(monkeypatch):
    """Decides what answers on the lab's port, and notes the token that it was asked with."""
    asked = []

    def play(answer, ports=(8890,)):
        def probe(port, token, address, *, through_engine):
            asked.append((port, token, address, through_engine))
            return answer

        monkeypatch.setattr(status_module, "probe_server", probe)
        monkeypatch.setattr(
            status_module, "list_ports", lambda process: None if ports is None else set(ports)
        )
        return asked

    return play


def test_nothing_was_started(checkout, server):
    asked = server("healthy")
    assert read_status(checkout) == LabStatus(checkout)
    assert read_status(checkout).describe()["running"] is False
    assert asked == []


@pytest.mark.parametrize("ports", [(8890,), None], ids=["its own port", "a system without /proc"])
def test_a_lab_that_answers(checkout, server, ports):
    asked = server("healthy", ports)
    write_state(checkout, state_of(bind="0.0.0.0", handle=ALIVE))
    token = ensure_token(checkout)
    status = read_status(checkout)
    assert (status.running, status.healthy, status.problem) == (True, True, None)
    assert status.url == f"http://127.0.0.1:8890/lab?token={token}"
    assert asked == [(8890, token, "127.0.0.1", False)]


@pytest.mark.parametrize(
    ("handle", "ports", "answer", "condition", "asked_with"),
    [
        pytest.param(GONE, (8890,), "foreign", "gone", [], id="killed"),
        pytest.param(ALIVE, (8890,), "silent", "silent", [TOKEN], id="hangs"),
        pytest.param(ALIVE, (), "foreign", "foreign", [""], id="another program has its port"),
        pytest.param(ALIVE, (), "silent", "silent", [""], id="it does not listen yet"),
        pytest.param(ALIVE, (8890,), "foreign", "unproven", [TOKEN], id="no proof"),
        pytest.param(ALIVE, None, "foreign", "unproven", [TOKEN], id="no proof, no /proc"),
    ],
)
def test_a_local_lab_that_is_not_well(server, handle, ports, answer, condition, asked_with):
    asked = server(answer, ports)
    assert examine_lab(state_of(handle=handle), TOKEN) == condition
    assert [token for _, token, _, _ in asked] == asked_with


def inspected(status, ports='{"8888/tcp":[{"HostIp":"127.0.0.1","HostPort":"8890"}]}'):
    return says(f"{status}\n{ports}\n{ports}")


@pytest.mark.parametrize(
    ("said", "answer", "condition", "asked_with"),
    [
        pytest.param(inspected("running"), "healthy", "healthy", [TOKEN], id="runs"),
        pytest.param(inspected("running"), "silent", "silent", [TOKEN], id="hangs"),
        pytest.param(inspected("running"), "foreign", "unproven", [TOKEN], id="no proof"),
        pytest.param(inspected("running", "{}"), "foreign", "foreign", [""], id="no port"),
        pytest.param(inspected("running", "[]"), "foreign", "foreign", [""], id="odd ports"),
        pytest.param(inspected("paused"), "silent", "paused", [], id="paused"),
        pytest.param(inspected("exited"), "silent", "gone", [], id="exited"),
        pytest.param(fails("Error: No such object: a1b2c3"), "healthy", "gone", [], id="removed"),
        pytest.param(fails(NO_DAEMON), "healthy", "unreachable", [], id="no daemon"),
        pytest.param(hangs("docker"), "healthy", "unreachable", [], id="the daemon hangs"),
    ],
)
def test_a_container_lab(server, said, answer, condition, asked_with):
    asked = server(answer)
    run = FakeRunner({"docker inspect": said})
    assert examine_lab(CONTAINER, TOKEN, run) == condition
    assert [token for _, token, _, _ in asked] == asked_with
    assert all(through_engine for _, _, _, through_engine in asked)


def test_an_engine_that_was_removed_runs_no_container(server):
    server("healthy")
    assert examine_lab(CONTAINER, TOKEN, FakeRunner({})) == "gone"


@pytest.mark.parametrize(
    ("condition", "running", "words", "fix"),
    [
        ("gone", False, "its container is gone", "make up"),
        ("paused", True, "paused", "make up"),
        ("unreachable", None, "docker does not answer", "make doctor"),
        ("silent", True, "does not answer on port 8890", "make up"),
        ("foreign", True, "another program answers on port 8890", "make up"),
        ("unproven", True, "does not prove", "make up"),
        ("tokenless", True, "token is gone", "make up"),
    ],
)
def test_each_condition_is_named(checkout, monkeypatch, condition, running, words, fix):
    monkeypatch.setattr(status_module, "examine_lab", lambda state, token: condition)
    write_state(checkout, CONTAINER)
    status = read_status(checkout)
    assert (status.running, status.healthy, status.url) == (running, False, None)
    assert words in str(status.problem)
    assert status.fix == fix


def test_asking_makes_no_token(checkout, server):
    server("foreign")
    write_state(checkout, state_of(handle=ALIVE))
    assert read_status(checkout).condition == "tokenless"
    assert not checkout.token_file.exists()


def test_the_status_as_json_prints_it(checkout, server):
    server("healthy")
    write_state(checkout, state_of(handle=ALIVE))
    checkout.token_file.write_text("abc\n")
    assert read_status(checkout).describe() == {
        "running": True,
        "healthy": True,
        "runtime": "local",
        "flavor": "cpu",
        "build": "cpu",
        "gpus": None,
        "url": "http://127.0.0.1:8890/lab?token=abc",
        "port": 8890,
        "bind": "127.0.0.1",
        "started_at": "2026-11-23T05:00:00Z",
        "reason": "a reason",
        "workspace": str(checkout.workspace),
        "problem": None,
    }


# A lab whose state file is lost


@pytest.fixture
def forgotten(checkout):
    """A process that looks like the checkout's server; ends with the test."""
    environment = {
        "LABKIT_HOME": str(checkout.root),
        "LABKIT_WORKSPACE": "/srv/mine",
        "LABKIT_SERVER_PORT": "8891",
        "LABKIT_SERVER_ADDRESS": "127.0.0.2",
        "LABKIT_LAB": "cuda cu130 0,1",
    }
    code = "import time; print(1, flush=True); time.sleep(60)"
    process = subprocess.Popen(
        [sys.executable, "-c", code, "jupyterlab", ""], env=environment, stdout=subprocess.PIPE
    )
    assert process.stdout
    process.stdout.readline()
    yield process
    process.kill()
    process.wait()
    process.stdout.close()


needs_proc = pytest.mark.skipif(
    not Path("/proc/self/environ").exists(), reason="needs /proc, which this system has not"
)


@needs_proc
def test_a_forgotten_server_is_found_by_its_environment(checkout, forgotten):
    state = find_forgotten_lab(checkout)
    assert state is not None
    assert (state.runtime, state.port, state.bind) == ("local", 8891, "127.0.0.2")
    assert (state.flavor, state.build, state.gpus) == ("cuda", "cu130", "0,1")
    assert state.handle == LabHandle(None, forgotten.pid, read_start(forgotten.pid))
    assert state.started_at is None
    assert state.workspace == "/srv/mine"


@needs_proc
def test_a_server_of_another_workspace_is_not_it(tmp_path, monkeypatch, checkout, forgotten):
    assert find_forgotten_lab(make_checkout(tmp_path / "another")) is None


@pytest.mark.parametrize(
    ("labels", "flavor", "build"),
    [
        pytest.param({"service": "cpu"}, "cpu", "cpu", id="cpu"),
        pytest.param({"service": "cuda-chosen", "cuda": "cu126"}, "cuda", "cu126", id="cuda"),
        pytest.param({"service": "cpu", "oneoff": "True"}, None, None, id="a command's own"),
        pytest.param({"service": "test"}, None, None, id="the tests"),
        pytest.param({}, None, None, id="no labels"),
    ],
)
def test_a_forgotten_container_is_found_with_its_port(checkout, monkeypatch, labels, flavor, build):
    monkeypatch.setattr(status_module.shutil, "which", lambda name: name == "podman" or None)
    compose = {f"com.docker.compose.{name}": value for name, value in labels.items()}
    said = inspected("running").stdout + json.dumps(
        {**compose, "io.labkit.cuda": labels.get("cuda")}
    )
    project = f"label=com.docker.compose.project={checkout.project}"
    run = FakeRunner(
        {f"podman ps --all --quiet --filter {project}": says("b2"), "podman inspect": says(said)}
    )
    state = find_forgotten_lab(checkout, run)
    if flavor is None:
        assert state is None
        return
    assert state is not None
    assert (state.runtime, state.flavor, state.build) == ("podman", flavor, build)
    assert (state.port, state.bind, state.handle.container) == (8890, "127.0.0.1", "b2")
    assert open_lab(checkout, state).service == labels["service"]


def test_a_stopped_process_is_paused_and_resumed(server):
    asked = server("healthy")
    process = subprocess.Popen(["sleep", "60"], start_new_session=True)
    try:
        state = state_of(handle=LabHandle(None, process.pid, read_start(process.pid)))
        process.send_signal(signal.SIGSTOP)
        assert wait_until(lambda: examine_lab(state, TOKEN) == "paused", timeout_seconds=30)
        asked.clear()
        assert examine_lab(state, TOKEN) == "paused"
        assert asked == []
        resume_lab(state)
        assert wait_until(lambda: examine_lab(state, TOKEN) == "healthy", timeout_seconds=30)
    finally:
        process.kill()
        process.wait()


KERNEL = "python -m ipykernel_launcher -f kernel.json"


@pytest.mark.parametrize(
    ("listed", "said"),
    [
        pytest.param(f"1 Ssl jupyter-lab\n7 Rl {KERNEL}\n8 Ssl {KERNEL}", "2 kernels", id="two"),
        pytest.param(f"1 Ssl jupyter-lab\n7 Rl {KERNEL}", "1 of them computing", id="computing"),
        pytest.param("1 Ssl jupyter-lab", "no kernels", id="none"),
    ],
)
def test_what_a_restart_ends_is_named(listed, said):
    run = FakeRunner({"docker top a1b2c3": says(listed)})
    assert said in describe_kernels(CONTAINER, run)


def test_of_a_local_lab_only_the_servers_own_kernels_count():
    run = FakeRunner({"ps": says(f"  9 Rl {KERNEL}\n 1 Rl {KERNEL}")})
    assert "1 kernel end" in describe_kernels(state_of(handle=LabHandle(None, 9, "1")), run)
    assert describe_kernels(state_of(handle=ALIVE), FakeRunner({})) == "; its kernels end"


# What is printed of it


@pytest.mark.parametrize(
    ("bind", "host"),
    [("0.0.0.0", "127.0.0.1"), ("::", "[::1]"), ("192.168.0.7", "192.168.0.7")],
)
def test_the_url_is_one_that_this_machine_can_open(bind, host):
    assert make_url(state_of(bind=bind), "abc") == f"http://{host}:8890/lab?token=abc"


def test_the_lab_that_a_state_describes(checkout):
    assert isinstance(open_lab(checkout, state_of("local")), LocalLab)
    podman = open_lab(checkout, state_of("podman", bind="0.0.0.0"))
    assert isinstance(podman, ContainerLab)
    assert (podman.client, podman.flavor, podman.port) == ("podman", CPU, 8890)
    assert podman.settings.bind == "0.0.0.0"


CUDA_STATE = replace(
    state_of("docker"),
    flavor="cuda",
    build="cu130",
    gpus="0,1",
    gpus_asked="GPU-a,GPU-b",
    way="cdi",
)


def test_a_cuda_lab_is_the_same_again(checkout):
    flavor = Flavor("cuda", "cu130", ("0", "1"), "cdi")
    assert open_lab(checkout, CUDA_STATE).flavor == flavor
    local = replace(CUDA_STATE, runtime="local", way=None)
    assert open_lab(checkout, local).flavor == replace(flavor, way=None)


@pytest.mark.parametrize(
    ("settings", "differences"),
    [
        pytest.param(Settings(), [], id="nothing asked for"),
        pytest.param(Settings("docker", "cuda", cuda="cu130"), [], id="as it is"),
        pytest.param(Settings(gpus=("0", "1")), [], id="its GPUs"),
        pytest.param(Settings(gpus=("GPU-a", "GPU-b")), [], id="its GPUs as they were typed"),
        pytest.param(Settings(flavor="cpu"), ["FLAVOR=cpu"], id="flavor"),
        pytest.param(
            Settings("local", cuda="cu126", gpus=("0",)),
            ["RUNTIME=local", "CUDA=cu126", "GPUS=0"],
            id="all else",
        ),
    ],
)
def test_what_a_running_lab_is_not(settings, differences):
    assert list_differences(Checkout(Path("/lab")), settings, CUDA_STATE) == differences


def test_what_the_user_brings_is_compared_where_it_is_asked_for():
    state = replace(state_of("docker"), workspace="/srv/mine", data="/srv/data", env_file="/srv/v")
    assert list_differences(Checkout(Path("/lab")), Settings(), state) == []
    same = Settings(data=Path("/srv/data"), env_file=Path("/srv/v"))
    assert list_differences(Checkout(Path("/lab"), Path("/srv/mine")), same, state) == []
    others = Settings(data=Path("/srv/my data"), env_file=Path("/srv/w"))
    assert list_differences(Checkout(Path("/lab"), Path("/srv/other")), others, state) == [
        "LABKIT_WORKSPACE=/srv/other",
        "DATA='/srv/my data'",
        "ENV_FILE=/srv/w",
    ]


def test_the_workspace_is_the_one_that_the_lab_was_started_with(checkout, server):
    server("healthy")
    (checkout.root / "mine").mkdir()
    write_state(checkout, replace(state_of(handle=ALIVE), workspace=f"{checkout.root}/mine"))
    ensure_token(checkout)
    status = read_status(checkout)
    assert status.describe()["workspace"] == f"{checkout.root}/mine"


@pytest.mark.parametrize(("bind", "opens"), [("127.0.0.1", False), ("0.0.0.0", True)])
def test_whether_it_opens_to_others(checkout, bind, opens):
    assert LabStatus(checkout, state_of(bind=bind)).opens_to_others is opens
    assert not LabStatus(checkout).opens_to_others

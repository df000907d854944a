"""What `labkit status` knows, from the lab itself first and then from who started it."""

from __future__ import annotations

import os
from dataclasses import replace

import pytest

from labkit.launch import status as status_module
from labkit.launch.compose import ContainerLab
from labkit.launch.local import LocalLab
from labkit.launch.server import read_start
from labkit.launch.settings import CPU, Flavor, Settings
from labkit.launch.state import LabHandle, LabState, ensure_token, write_state
from labkit.launch.status import LabStatus, list_differences, make_url, open_lab, read_status
from tests.fakes.host import make_checkout


def state_of(runtime="local", bind="127.0.0.1", handle=None):
    return LabState(
        runtime, "cpu", 8890, bind, "a reason", "2026-11-23T05:00:00Z", handle or LabHandle()
    )


# This very process: surely running.
ALIVE = LabHandle(process_id=os.getpid(), process_started=read_start(os.getpid()))
GONE = LabHandle(process_id=os.getpid(), process_started="1")


@pytest.fixture
def checkout(tmp_path):
    return make_checkout(tmp_path / "a lab")


@pytest.fixture
def server(monkeypatch):
    """Decides what answers on the lab's port, and notes who asked."""
    asked = []

    def answer(kind):
        def probe(port, token, address):
            asked.append((port, token, address))
            return kind

        monkeypatch.setattr(status_module, "probe_server", probe)
        return asked

    return answer


def test_nothing_was_started(checkout, server):
    asked = server("healthy")
    assert read_status(checkout) == LabStatus(checkout)
    assert asked == []


def test_a_lab_that_answers(checkout, server):
    asked = server("healthy")
    write_state(checkout, state_of(bind="0.0.0.0"))
    token = ensure_token(checkout)
    status = read_status(checkout)
    assert status.running
    assert status.healthy
    assert status.problem is None
    assert status.url == f"http://127.0.0.1:8890/lab?token={token}"
    assert asked == [(8890, token, "127.0.0.1")]


@pytest.mark.parametrize(
    ("answer", "handle", "running", "problem"),
    [
        pytest.param(
            "silent", GONE, False, "its process is gone: it was killed or crashed", id="killed"
        ),
        pytest.param(
            "foreign",
            GONE,
            False,
            "its process is gone: it was killed or crashed",
            id="killed, and its port taken over",
        ),
        pytest.param(
            "silent", ALIVE, True, "it runs, but does not answer on port 8890", id="stuck"
        ),
        pytest.param(
            "foreign", ALIVE, True, "another program answers on port 8890", id="port taken over"
        ),
    ],
)
def test_a_lab_that_is_not_well(checkout, server, answer, handle, running, problem):
    server(answer)
    write_state(checkout, state_of(handle=handle))
    ensure_token(checkout)
    status = read_status(checkout)
    assert (status.running, status.healthy, status.problem) == (running, False, problem)
    assert status.url is None


def test_asking_makes_no_token(checkout, server):
    server("foreign")
    write_state(checkout, state_of(handle=ALIVE))
    assert read_status(checkout).problem == f"its token is gone: {checkout.token_file}"
    assert not checkout.token_file.exists()


def test_a_container_that_is_gone_is_called_one(checkout, server, monkeypatch):
    server("silent")
    monkeypatch.setattr(ContainerLab, "is_alive", lambda self, handle: False)
    write_state(checkout, state_of("docker", handle=LabHandle(container="a1b2c3")))
    assert read_status(checkout).problem == "its container is gone: it was killed or crashed"


def test_the_status_as_json_prints_it(checkout, server):
    server("healthy")
    write_state(checkout, state_of())
    (checkout.token_file).write_text("abc\n")
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


def test_what_is_not_known_is_null(checkout):
    said = LabStatus(checkout).describe()
    assert said.pop("workspace") == str(checkout.workspace)
    assert (said.pop("running"), said.pop("healthy")) == (False, False)
    assert set(said.values()) == {None}


@pytest.mark.parametrize(
    ("bind", "host"),
    [
        ("127.0.0.1", "127.0.0.1"),
        ("0.0.0.0", "127.0.0.1"),
        ("::1", "[::1]"),
        ("::", "[::1]"),
        ("192.168.0.7", "192.168.0.7"),
    ],
)
def test_the_url_is_one_that_this_machine_can_open(checkout, bind, host):
    assert make_url(checkout, state_of(bind=bind), "abc") == f"http://{host}:8890/lab?token=abc"


def test_the_url_opens_on_the_first_notebook(checkout):
    for name in ("02_autograd.ipynb", "01_tensors.ipynb", "mine.ipynb"):
        (checkout.workspace / name).write_text("{}")
    url = make_url(checkout, state_of(), "abc")
    assert url == "http://127.0.0.1:8890/lab/tree/01_tensors.ipynb?token=abc"


def test_the_lab_that_a_state_tells_of(checkout):
    local = open_lab(checkout, state_of("local"))
    assert isinstance(local, LocalLab)
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
    ("state", "kind"),
    [
        (state_of(), "cpu"),
        (CUDA_STATE, "cuda cu130, GPUs: 0,1"),
        (replace(CUDA_STATE, gpus=None), "cuda cu130, GPUs: none"),
    ],
)
def test_what_kind_of_lab_it_is(state, kind):
    assert state.kind == kind


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
    assert list_differences(settings, CUDA_STATE) == differences


@pytest.mark.parametrize(("bind", "opens"), [("127.0.0.1", False), ("0.0.0.0", True)])
def test_whether_it_opens_to_others(checkout, bind, opens):
    assert LabStatus(checkout, state_of(bind=bind)).opens_to_others is opens
    assert not LabStatus(checkout).opens_to_others

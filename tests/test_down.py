"""`labkit down` stops whatever runs, remembered or not, and never touches the workspace."""

from __future__ import annotations

import io

import pytest

from labkit.launch import stop as stop_module
from labkit.launch.progress import Steps
from labkit.launch.settings import CPU
from labkit.launch.state import LabHandle, LabState, read_state, write_state
from labkit.launch.stop import CHOSEN, stop_lab
from tests.fakes.host import make_checkout

CLIENTS = ("docker", "podman")
STATE = LabState("docker", "cpu", 8888, "127.0.0.1", "a reason", "now", LabHandle(container="a1"))


class FakeLab:
    """One lab; ``container`` is what its engine still has of it."""

    stopped: list[str]

    def __init__(self, client="docker", *, alive=True, container=None, fails=False):
        self.client, self.alive, self.container, self.fails = client, alive, container, fails
        self.stopped = []

    def is_alive(self, handle):
        return self.alive

    def find_container(self):
        return self.container

    def stop(self, handle=None):
        if self.fails:
            raise OSError("the engine is gone")
        self.stopped.append(handle.container if handle else "forgotten")


@pytest.fixture
def checkout(tmp_path):
    checkout = make_checkout(tmp_path / "a lab")
    (checkout.workspace / "mine.ipynb").write_text("my work")
    return checkout


@pytest.fixture
def screen():
    return io.StringIO()


@pytest.fixture
def engines(monkeypatch):
    """The labs that each engine has, for a launcher without a memory."""
    labs = {(client, flavor): FakeLab(client) for client in CLIENTS for flavor in (CPU, CHOSEN)}
    nothing = FakeLab()
    monkeypatch.setattr(
        stop_module,
        "ContainerLab",
        lambda checkout, client, flavor, settings: labs.get((client, flavor), nothing),
    )
    return labs


def play(monkeypatch, lab):
    monkeypatch.setattr(stop_module, "open_lab", lambda checkout, state: lab)
    return lab


@pytest.mark.parametrize("alive", [True, False], ids=["it ran", "it was dead"])
def test_a_remembered_lab_is_stopped_and_forgotten(checkout, screen, monkeypatch, alive):
    lab = play(monkeypatch, FakeLab(alive=alive))
    write_state(checkout, STATE)
    assert stop_lab(checkout, Steps(screen, clock=lambda: 0.0)) is alive
    assert lab.stopped == ["a1"]
    assert read_state(checkout) is None
    assert (checkout.workspace / "mine.ipynb").read_text() == "my work"
    assert screen.getvalue() == "stopping the lab ...\nstopping the lab: done in 0:00\n"


def test_a_lab_that_cannot_be_stopped_is_not_forgotten(checkout, screen, monkeypatch):
    play(monkeypatch, FakeLab(fails=True))
    write_state(checkout, STATE)
    with pytest.raises(OSError, match="the engine is gone"):
        stop_lab(checkout, Steps(screen))
    assert read_state(checkout) == STATE


def test_nothing_was_running(checkout, screen, engines):
    assert stop_lab(checkout, Steps(screen)) is False
    assert screen.getvalue() == ""


@pytest.mark.parametrize("client", CLIENTS)
@pytest.mark.parametrize("flavor", [CPU, CHOSEN], ids=["cpu", "cuda"])
def test_a_forgotten_container_is_found_and_stopped(checkout, screen, engines, client, flavor):
    engines[client, flavor].container = "a1b2c3"
    assert stop_lab(checkout, Steps(screen, clock=lambda: 0.0)) is True
    assert engines[client, flavor].stopped == ["forgotten"]
    assert screen.getvalue().startswith(f"stopping a lab that {client} still has ...\n")

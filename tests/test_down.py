"""`labkit down` stops whatever runs, remembered or not, and never touches the workspace."""

from __future__ import annotations

import io

import pytest

from labkit.launch import stop as stop_module
from labkit.launch.progress import Steps
from labkit.launch.state import LabHandle, LabState, read_state, write_state
from labkit.launch.stop import stop_lab
from tests.fakes.host import make_checkout

STATE = LabState("docker", "cpu", 8888, "127.0.0.1", "a reason", "now", LabHandle(container="a1"))
FORGOTTEN = LabState("docker", "cpu", 8888, "127.0.0.1", "found", None, LabHandle(container="b2"))


class FakeLab:
    """Any lab; ``stopped`` are the containers that it was asked to stop."""

    def __init__(self, *, alive=True, fails=False):
        self.alive, self.fails = alive, fails
        self.stopped = []

    def is_alive(self, handle):
        return self.alive

    def stop(self, handle):
        if self.fails:
            raise OSError("the engine is gone")
        self.stopped.append(handle.container)


@pytest.fixture
def checkout(tmp_path):
    checkout = make_checkout(tmp_path / "a lab")
    (checkout.workspace / "mine.ipynb").write_text("my work")
    return checkout


@pytest.fixture
def play(monkeypatch):
    """Plays the lab, and one that runs without a state file."""

    def play_lab(lab, forgotten=None):
        monkeypatch.setattr(stop_module, "open_lab", lambda checkout, state: lab)
        monkeypatch.setattr(stop_module, "resume_lab", lambda state: None)
        monkeypatch.setattr(stop_module, "find_forgotten_lab", lambda checkout: forgotten)
        return lab

    return play_lab


@pytest.mark.parametrize("alive", [True, False], ids=["it ran", "it was dead"])
def test_a_remembered_lab_is_stopped_and_forgotten(checkout, play, alive):
    lab = play(FakeLab(alive=alive))
    write_state(checkout, STATE)
    assert stop_lab(checkout, Steps(io.StringIO())) is alive
    assert lab.stopped == ["a1"]
    assert read_state(checkout) is None
    assert (checkout.workspace / "mine.ipynb").read_text() == "my work"


def test_a_lab_that_cannot_be_stopped_is_not_forgotten(checkout, play):
    play(FakeLab(fails=True))
    write_state(checkout, STATE)
    with pytest.raises(OSError, match="the engine is gone"):
        stop_lab(checkout, Steps(io.StringIO()))
    assert read_state(checkout) == STATE


def test_nothing_was_running(checkout, play):
    screen = io.StringIO()
    play(FakeLab())
    assert stop_lab(checkout, Steps(screen)) is False
    assert screen.getvalue() == ""


@pytest.mark.parametrize("remembered", [None, STATE], ids=["nothing", "another one"])
def test_a_forgotten_lab_is_stopped_whatever_is_remembered(checkout, play, remembered):
    lab = play(FakeLab(), FORGOTTEN)
    if remembered:
        write_state(checkout, remembered)
    assert stop_lab(checkout, Steps(io.StringIO())) is True
    assert lab.stopped == (["a1", "b2"] if remembered else ["b2"])

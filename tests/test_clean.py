"""`make clean` removes what labkit made, and the learner's work is not of that."""

from __future__ import annotations

import io

import pytest

from labkit.launch import stop
from labkit.launch.progress import Steps
from labkit.launch.stop import clean_checkout
from tests.fakes.host import FakeRunner, fails, make_checkout, says

FAILED = fails("no such object")


@pytest.fixture
def checkout(tmp_path, monkeypatch):
    monkeypatch.delenv("LABKIT_IMAGE", raising=False)
    checkout = make_checkout(tmp_path / "a lab")
    (checkout.workspace / "mine.ipynb").write_text("my work")
    (checkout.environment_folder / "bin").mkdir(parents=True)
    (checkout.environment_folder / ".labkit-environment").touch()
    return checkout


@pytest.fixture
def stopped(monkeypatch):
    """The checkouts whose lab was stopped."""
    labs = []
    monkeypatch.setattr(stop, "stop_lab", lambda checkout, steps: labs.append(checkout))
    return labs


@pytest.fixture
def play(monkeypatch):
    """Plays the engines; the runner has what was asked of them."""

    def play_answers(answers):
        runner = FakeRunner(answers)
        monkeypatch.setattr(
            stop,
            "run_command",
            lambda words, timeout_seconds, environment=None: runner(
                words, timeout_seconds=timeout_seconds
            ),
        )
        return runner

    return play_answers


def test_everything_goes_but_the_learners_work(checkout, stopped, play):
    engine = play({"docker": says("fine")})
    volume = f"{checkout.project}_caches"
    assert clean_checkout(checkout, Steps(io.StringIO())) == [
        *("labkit:cpu", "labkit:cpu-test"),
        *("labkit:cu130", "labkit:cu130-test", "labkit:cu126", "labkit:cu126-test"),
        volume,
        ".venv",
        ".labkit",
    ]
    assert stopped == [checkout]
    assert (checkout.workspace / "mine.ipynb").read_text() == "my work"
    assert not checkout.environment_folder.exists()
    assert not checkout.state_folder.exists()
    assert "docker image rm labkit:cpu-test" in engine.calls
    [down] = [call for call in engine.calls if " down " in call]
    assert down.endswith("down --volumes --remove-orphans")


def test_without_an_engine_the_folders_go(checkout, stopped, play):
    play({})
    screen = io.StringIO()
    assert clean_checkout(checkout, Steps(screen)) == [".venv", ".labkit"]
    assert screen.getvalue() == ""


def test_an_engine_that_has_nothing_of_us_is_left_alone(checkout, stopped, play):
    engine = play({"docker": says("fine"), "docker image": FAILED, "docker volume": FAILED})
    assert clean_checkout(checkout, Steps(io.StringIO())) == [".venv", ".labkit"]
    assert not [call for call in engine.calls if " down " in call or " rm " in call]


def test_an_image_that_is_in_use_is_not_called_removed(checkout, stopped, play):
    play({"docker": says("fine"), "docker image rm labkit:cpu": FAILED})
    removed = clean_checkout(checkout, Steps(io.StringIO()))
    assert "labkit:cpu" not in removed


def test_a_second_time_nothing_is_left_to_remove(checkout, stopped, play):
    play({})
    clean_checkout(checkout, Steps(io.StringIO()))
    assert clean_checkout(checkout, Steps(io.StringIO())) == []


def test_an_environment_that_labkit_did_not_make_stays(checkout, stopped, play, tmp_path):
    play({})
    (checkout.environment_folder / ".labkit-environment").unlink()
    other = tmp_path / "other project"
    checkout.environment_folder.rename(other)
    checkout.environment_folder.symlink_to(other)
    screen = io.StringIO()
    assert clean_checkout(checkout, Steps(screen)) == [".labkit"]
    assert (checkout.environment_folder / "bin").is_dir()
    assert "kept" in screen.getvalue()


def test_a_network_that_a_command_left_goes_with_the_lab(checkout, monkeypatch, play):
    monkeypatch.setattr(stop, "find_forgotten_lab", lambda checkout: None)
    project = f"label=com.docker.compose.project={checkout.project}"
    engine = play(
        {
            f"docker network ls --quiet --filter {project}": says("a1\nb2"),
            "docker network rm": fails("has active endpoints"),
        }
    )

    assert stop.stop_lab(checkout, Steps(io.StringIO())) is False
    assert engine.calls[1:3] == ["docker network rm a1", "docker network rm b2"]

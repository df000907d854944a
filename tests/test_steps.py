"""Long steps as they are seen: whole screens, on a terminal and elsewhere."""

from __future__ import annotations

import io
import os
import threading

import pytest

from labkit.launch import progress as steps_module
from labkit.launch.progress import Step, Steps

CLEAR = "\r\x1b[K"


class FakeClock:
    """A clock that a test moves."""

    def __init__(self):
        self.now = 1000.0

    def __call__(self):
        return self.now


class WatchedStream(io.StringIO):
    """A stream that tells when ``text`` has been written to it."""

    def __init__(self, text):
        super().__init__()
        self.seen = threading.Event()
        self._text = text

    def flush(self):
        super().flush()
        if self._text in self.getvalue():
            self.seen.set()


@pytest.fixture
def clock():
    return FakeClock()


@pytest.fixture
def wide(monkeypatch):
    """A terminal of 60 columns."""
    size = os.terminal_size((60, 24))
    monkeypatch.setattr(steps_module.shutil, "get_terminal_size", lambda: size)


def test_elsewhere_a_step_is_two_lines(clock):
    stream = io.StringIO()
    steps = Steps(stream, clock=clock)
    steps.say("runtime: docker (Docker 26 answers)")
    with steps.step("building the cpu image (not built yet)") as step:
        step.note("step 3 of 9: RUN pip install")
        clock.now += 83.4
    assert stream.getvalue() == (
        "runtime: docker (Docker 26 answers)\n"
        "building the cpu image (not built yet) ...\n"
        "building the cpu image (not built yet): done in 1:23\n"
    )


def test_on_a_terminal_only_the_last_line_stays(clock):
    stream = io.StringIO()
    with Steps(stream, terminal=True, clock=clock).step("starting JupyterLab"):
        clock.now += 4
    assert stream.getvalue() == f"{CLEAR}starting JupyterLab: done in 0:04\n"


def test_a_step_that_fails_says_that_it_stopped(clock):
    stream = io.StringIO()
    with pytest.raises(KeyboardInterrupt), Steps(stream, clock=clock).step("installing lab"):
        clock.now += 3671
        raise KeyboardInterrupt
    assert stream.getvalue() == "installing lab ...\ninstalling lab: stopped after 1:01:11\n"


@pytest.mark.usefixtures("wide")
def test_the_living_line_on_a_terminal(clock, monkeypatch):
    monkeypatch.setattr(steps_module, "TICK_SECONDS", 0.001)
    stream = WatchedStream("0:07")
    with Steps(stream, terminal=True, clock=clock).step("installing lab") as step:
        step.note("package 3 of 118, numpy")
        clock.now += 7
        assert stream.seen.wait(5)
    assert f"{CLEAR}installing lab: package 3 of 118, numpy  0:07" in stream.getvalue()
    assert stream.getvalue().endswith(f"{CLEAR}installing lab: done in 0:07\n")


@pytest.mark.usefixtures("wide")
def test_the_living_line_never_wraps(clock, monkeypatch):
    monkeypatch.setattr(steps_module, "TICK_SECONDS", 0.001)
    stream = WatchedStream(CLEAR)
    with Steps(stream, terminal=True, clock=clock).step("a" * 100):
        assert stream.seen.wait(5)
    assert stream.getvalue().split(CLEAR)[1] == "a" * 59


def test_a_message_comes_above_the_living_line(clock):
    stream = io.StringIO()
    steps = Steps(stream, terminal=True, clock=clock)
    with steps.step("starting JupyterLab"):
        steps.say("port 8888 is taken: using 8889")
    assert stream.getvalue() == (
        f"{CLEAR}port 8888 is taken: using 8889\n{CLEAR}starting JupyterLab: done in 0:00\n"
    )


def test_elsewhere_a_heartbeat_says_that_work_goes_on(clock):
    stream = WatchedStream("0:15")
    steps = Steps(stream, clock=clock, heartbeat_seconds=0.001)
    with steps.step("installing lab") as step:
        step.note("package 3 of 118, numpy")
        clock.now += 15
        assert stream.seen.wait(5)
    assert "  installing lab: package 3 of 118, numpy  0:15\n" in stream.getvalue()


def test_no_message_moves_the_terminal(clock):
    stream = io.StringIO()
    Steps(stream, clock=clock).say("put into work/: a\x1b[2J\x9b31m.ipynb")
    assert stream.getvalue() == "put into work/: a\\x1b[2J\\x9b31m.ipynb\n"


def test_a_file_is_no_terminal(tmp_path, clock):
    path = tmp_path / "log"
    with path.open("w") as stream, Steps(stream, clock=clock).step("a step"):
        pass
    assert path.read_text() == "a step ...\na step: done in 0:00\n"


def test_messages_go_to_stderr_and_results_may_go_to_stdout(capsys):
    Steps().say("runtime: local")
    captured = capsys.readouterr()
    assert (captured.out, captured.err) == ("", "runtime: local\n")


def test_a_step_in_words(clock):
    step = Step("pulling", clock)
    clock.now += 61
    assert str(step) == "pulling  1:01"
    step.note("half")
    assert str(step) == "pulling: half  1:01"
    assert step.seconds == 61

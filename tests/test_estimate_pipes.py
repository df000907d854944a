"""A simulated step sends nothing through pipes, sockets and processes that were there before."""

from __future__ import annotations

import asyncio
import codecs
import contextlib
import io
import multiprocessing
import os
import signal
import socket
import subprocess
import sys
import time
from os import write
from pathlib import Path

import pytest
import torch

from labkit import estimate_memory
from labkit.errors import UsageError


class Pipe:
    """A pipe of the system's."""

    kind = "a pipe"

    def __init__(self):
        self.reading, self.writing = os.pipe()
        os.set_blocking(self.reading, False)

    def read_all(self):
        try:
            return os.read(self.reading, 100)
        except BlockingIOError:
            return b""

    def close(self):
        os.close(self.reading)
        os.close(self.writing)


class SocketPair(Pipe):
    """Two sockets that are connected."""

    kind = "a socket"

    def __init__(self):
        self.own, self.other = socket.socketpair()
        self.reading, self.writing = self.other.fileno(), self.own.fileno()
        self.other.setblocking(False)

    def close(self):
        self.own.close()
        self.other.close()


def send(one):
    assert one.own.send(b"abc") == 3


def send_all(one):
    assert one.own.sendall(b"abc") is None


def write_by_number(one):
    assert os.write(one.writing, b"abc") == 3


def write_many(one):
    assert os.writev(one.writing, [b"ab", b"c"]) == 3


def write_by_another_name(one):
    assert write(one.writing, b"abc") == 3


def run(act, *given):
    def step(model, batch):
        act(*given)
        model(batch).mean().backward()

    return estimate_memory(step, torch.nn.Linear(10, 3), torch.randn(4, 10))


def test_a_method_that_was_taken_before_sends_nothing():
    one = SocketPair()
    act = one.own.sendall
    assert len(run(lambda: act(b"abc")).notes) == 1
    assert one.read_all() == b""
    one.close()


WRITES = [write_by_number, write_many, write_by_another_name]
CASES = [(Pipe, one) for one in WRITES] + [(SocketPair, one) for one in (*WRITES, send, send_all)]


@pytest.mark.parametrize(
    ("make", "act"), CASES, ids=[f"{make.__name__}-{act.__name__}" for make, act in CASES]
)
def test_what_a_step_sends_is_dropped_with_a_note(make, act):
    one = make()
    try:
        estimate = run(act, one)
        assert one.read_all() == b""
        assert estimate.notes == (
            f"what the step sends through {one.kind} that was open before is dropped",
        )
        act(one)
        assert one.read_all() == b"abc"
    finally:
        one.close()


@pytest.mark.parametrize("name", ["os.read", "recv", "connection", "a method"])
def test_a_step_that_waits_for_an_answer_is_refused(name):
    one = SocketPair()
    there, here = multiprocessing.Pipe()
    os.write(one.reading, b"abc")
    there.send("abc")
    takes = {
        "os.read": lambda: os.read(one.writing, 3),
        "recv": lambda: [each.own.recv(3) for each in [one]],
        "connection": lambda: [each.recv() for each in [here]],
        "a method": here.recv,
    }
    try:
        with pytest.raises(UsageError, match=r"takes from a socket that was made before"):
            run(takes[name])
        assert (one.own.recv(3), here.recv()) == (b"abc", "abc")
    finally:
        one.close()
        there.close()
        here.close()


def test_a_connection_of_multiprocessing_sends_nothing():
    there, here = multiprocessing.Pipe()
    notes = run(lambda: here.send(torch.ones(3))).notes
    assert (there.poll(), len(notes)) == (False, 1)
    there.close()
    here.close()


PRINT_INPUT = "import sys; print(sys.stdin.read())"


def test_a_process_from_before_gets_nothing():
    command = [sys.executable, "-c", PRINT_INPUT]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as child:
        kept = [child]
        notes = run(lambda: kept[0].stdin.write(b"fake")).notes
        assert len(notes) == 1
        with pytest.raises(UsageError, match=r"takes from a process"):
            run(lambda: kept[0].communicate(b"fake"))
        assert child.communicate(b"real")[0].strip() == b"real"


def test_a_step_may_ask_whether_a_process_is_there():
    assert run(os.kill, os.getppid(), 0).obstacle is None
    obstacle = run(os.kill, os.getppid(), signal.SIGWINCH).obstacle
    assert "would send a signal" in obstacle.reason


@pytest.mark.parametrize("name", ["terminate", "kill"])
def test_a_process_from_before_goes_on(name):
    with subprocess.Popen(["sleep", "60"]) as child:
        notes = run(getattr(child, name)).notes
        assert (child.poll(), len(notes)) == (None, 1)
        child.send_signal(signal.SIGKILL)
        assert child.wait() == -signal.SIGKILL


def end_and_wait(child, name):
    getattr(child, name)()
    if isinstance(child, subprocess.Popen):
        assert child.wait() < 0 and child.wait(timeout=5) < 0 and child.poll() < 0
    else:
        child.join()


@pytest.mark.parametrize("name", ["terminate", "kill"])
@pytest.mark.parametrize("is_popen", [True, False], ids=["subprocess", "multiprocessing"])
def test_the_step_does_not_wait_for_a_process_that_it_has_ended(name, is_popen):
    begun = time.monotonic()
    if is_popen:
        child = subprocess.Popen(["sleep", "60"])
    else:
        child = multiprocessing.get_context("fork").Process(target=time.sleep, args=(60,))
        child.start()
    try:
        assert run(end_and_wait, child, name).obstacle is None
        assert (child.poll() is None) if is_popen else child.is_alive()
    finally:
        child.kill()
        child.wait() if is_popen else child.join()
    assert time.monotonic() - begun < 50


@pytest.mark.parametrize("name", ["terminate", "kill"])
def test_a_process_of_multiprocessing_from_before_goes_on(name):
    child = multiprocessing.get_context("fork").Process(target=time.sleep, args=(60,))
    child.start()
    try:
        notes = run(getattr(child, name)).notes
        assert (child.is_alive(), len(notes)) == (True, 1)
    finally:
        child.kill()
        child.join()
    assert not child.is_alive()


def test_what_the_step_opens_itself_works():
    def talk():
        one = SocketPair()
        write_by_number(one)
        assert one.read_all() == b"abc"
        one.close()
        made = subprocess.run(["echo", "abc"], stdout=subprocess.PIPE, check=True)
        assert made.stdout == b"abc\n"

    assert run(talk).notes == ()


def test_an_event_loop_from_before_still_wakes_up():
    loop = asyncio.new_event_loop()

    async def wait():
        return await loop.run_in_executor(None, lambda: 3)

    try:
        assert run(lambda: loop.run_until_complete(wait())).notes == ()
    finally:
        loop.close()


def test_a_pool_of_processes_still_wakes_its_threads(tmp_path):
    path = tmp_path / "loky" / "process_executor.py"
    path.parent.mkdir()
    path.write_text("import os\ndef wake(number): os.write(number, b'w')\n")
    names = {}
    exec(compile(path.read_text(), path, "exec"), names)
    one = Pipe()
    assert run(lambda: names["wake"](one.writing)).notes == ()
    assert one.read_all() == b"ww"
    one.close()


def test_what_a_manager_keeps_is_named_where_it_changes():
    with multiprocessing.get_context("fork").Manager() as manager:
        shared = manager.dict()
        assert run(lambda: shared.get("a")).notes == ()
        (note,) = run(lambda: shared.update(a=1)).notes
    assert "update()" in note


def test_a_connection_to_another_machine_is_named():
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
        notes = run(lambda: socket.create_connection(("127.0.0.1", port)).close()).notes
    assert notes == (f"the step connects to 127.0.0.1:{port}: what it sends there is real",)


LINES = b"one\ntwo\nthree\n"


def open_lines(stack, mode="r", buffering=-1):
    reading, writing = os.pipe()
    os.write(writing, LINES)
    os.close(writing)
    return stack.enter_context(os.fdopen(reading, mode, buffering))


def print_lines(stack, **named):
    command = [sys.executable, "-c", f"print({LINES.decode()!r}, end='')"]
    child = stack.enter_context(subprocess.Popen(command, stdout=subprocess.PIPE, **named))
    child.wait()
    return child


def make_socket_file(stack):
    one, other = socket.socketpair()
    one.sendall(LINES)
    one.close()
    with other:
        return stack.enter_context(other.makefile("rb"))


class Holder:
    """An object of the program's."""

    def __init__(self, value):
        self.value = value


# What has a line to read, and how the step reaches the file that it is read from.
SOURCES = {
    "in a dictionary": lambda stack: {"file": open_lines(stack)},
    "in a list of objects": lambda stack: Holder(Holder([open_lines(stack, "rb")])),
    "of a process": print_lines,
    "of a process, as text": lambda stack: [print_lines(stack, text=True)],
    "of a socket": lambda stack: (Holder(make_socket_file(stack)),),
    "through an object of Python's": lambda stack: Holder(
        codecs.getreader("utf-8")(open_lines(stack, "rb"))
    ),
    "through its method": lambda stack: [open_lines(stack).readline],
    "unbuffered": lambda stack: [open_lines(stack, "rb", 0)],
}
FINDS = {
    "in a dictionary": lambda one: one["file"].readline(),
    "in a list of objects": lambda one: one.value.value[0].readline(),
    "of a process": lambda one: one.stdout.readline(),
    "of a process, as text": lambda one: next(one[0].stdout),
    "of a socket": lambda one: one[0].value.readline(),
    "through an object of Python's": lambda one: one.value.readline(),
    "through its method": lambda one: one[0](),
    "unbuffered": lambda one: one[0].readline(),
}


@pytest.mark.parametrize("name", SOURCES)
def test_a_step_takes_no_line_through_whatever_holds_the_file(name):
    with contextlib.ExitStack() as stack:
        held, take, given = SOURCES[name](stack), FINDS[name], []
        for _ in range(3):  # without lines in memory, and with them
            with pytest.raises(UsageError, match=r"takes from a .* that was made before"):
                run(lambda: take(held))
            given.append(take(held))
    whole = b"".join(one if isinstance(one, bytes) else one.encode() for one in given)
    assert whole == LINES


def send_by_a_copy(one):
    copy = os.dup(one.writing)
    assert os.write(copy, b"abc") == 3
    os.close(copy)


def send_by_a_file(one):
    with os.fdopen(os.dup(one.writing), "w") as file:
        print("abc", end="", file=file)


def send_by_a_raw_file(one):
    with io.FileIO(os.dup(one.writing), "w") as file:
        assert isinstance(file, io.FileIO)
        assert file.write(b"abc") == 3


def send_by_its_name(one):
    Path(f"/dev/fd/{one.writing}").write_bytes(b"abc")


def send_by_its_name_in_the_process(one):
    with open(f"/proc/self/fd/{one.writing}", "wb", buffering=0) as file:  # noqa: PTH123
        file.write(b"abc")


def send_by_another_number(one):
    os.dup2(one.writing, 500)
    os.write(500, b"abc")
    os.close(500)


@pytest.mark.skipif(sys.platform != "linux", reason="needs /proc")
@pytest.mark.parametrize(
    "act",
    [
        send_by_a_copy,
        send_by_a_file,
        send_by_a_raw_file,
        send_by_its_name,
        send_by_its_name_in_the_process,
        send_by_another_number,
    ],
)
def test_what_a_step_sends_by_another_descriptor_of_a_pipe_is_dropped(act):
    one = Pipe()
    try:
        (note,) = run(act, one).notes
        assert "a pipe that was open before is dropped" in note
        assert one.read_all() == b""
        act(one)
        assert one.read_all() == b"abc"
    finally:
        one.close()


def test_a_pipe_with_a_name_gets_nothing(tmp_path):
    path = tmp_path / "pipe"
    os.mkfifo(path)
    reading = os.open(path, os.O_RDONLY | os.O_NONBLOCK)

    def write_both():
        path.write_text("abc")
        number = os.open(path, os.O_WRONLY)
        os.write(number, b"abc")
        os.close(number)

    try:
        assert len(run(write_both).notes) == 1
        assert os.read(reading, 10) == b""
        write_both()
        assert os.read(reading, 10) == b"abcabc"
    finally:
        os.close(reading)


def test_a_step_asks_nobody(monkeypatch):
    with contextlib.ExitStack() as stack:
        typed = open_lines(stack)
        monkeypatch.setattr(sys, "stdin", typed)
        for ask in (input, typed.readline, lambda: sys.stdin.buffer.read(1)):
            with pytest.raises(UsageError, match=r"takes from"):
                run(ask)
        assert typed.read() == LINES.decode()


def test_what_was_open_stays_open(tmp_path):
    path = tmp_path / "words"
    path.write_text("one\ntwo\n")
    number, (own, other) = os.open(path, os.O_RDONLY), socket.socketpair()
    file = path.open()
    kept = [file, own]

    def shut():
        kept[0].close()
        kept[1].close()
        os.read(number, 4)
        os.close(number)

    try:
        assert "what the step closes that was open before stays open" in run(shut).notes
        assert file.readline() == "one\n"
        assert os.read(number, 4) == b"one\n"
        own.sendall(b"abc")
        assert other.recv(3) == b"abc"
    finally:
        os.close(number)
        for one in (file, own, other):
            one.close()


def test_a_descriptor_that_the_step_replaces_is_as_before(tmp_path):
    (tmp_path / "words").write_text("one\ntwo\n")
    number = os.open(tmp_path / "words", os.O_RDONLY)

    def replace():
        other = os.open(os.devnull, os.O_RDONLY)
        os.dup2(other, number)
        os.close(other)

    try:
        before = len([*Path("/dev/fd").iterdir()])
        assert run(replace).notes == ()
        assert os.read(number, 4) == b"one\n"
        assert len([*Path("/dev/fd").iterdir()]) == before
    finally:
        os.close(number)

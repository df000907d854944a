"""A simulated step sends nothing through pipes, sockets and processes that were there before."""

from __future__ import annotations

import asyncio
import multiprocessing
import os
import signal
import socket
import subprocess
import sys
import time
from os import write

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


@pytest.mark.parametrize("name", ["terminate", "kill"])
def test_a_process_from_before_goes_on(name):
    with subprocess.Popen(["sleep", "60"]) as child:
        notes = run(getattr(child, name)).notes
        assert (child.poll(), len(notes)) == (None, 1)
        child.send_signal(signal.SIGKILL)
        assert child.wait() == -signal.SIGKILL


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

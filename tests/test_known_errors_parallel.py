"""A large log that several processes read: the same result, and no process is left."""

from __future__ import annotations

import io
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from labkit.known_errors import KNOWN_ERRORS, match, parallel
from labkit.known_errors.match import explain_file

RETRY = "ConnectionResetError: [Errno 104] Connection reset by peer\n"
HEALTHY = "step 12: all is well\n" * 500


@pytest.fixture
def small_blocks(monkeypatch):
    monkeypatch.setattr(match, "BLOCK_BYTES", 2**13)


def make_log():
    samples = [f"{error.samples[0]}\n{HEALTHY}" for error in KNOWN_ERRORS[::9]]
    progress = "Downloading torch-2.13.0.whl (900 MB)\nSuccessfully installed torch-2.13.0\n"
    again = [HEALTHY, RETRY, HEALTHY, progress, HEALTHY, *samples[:3], RETRY]
    return "".join([RETRY, HEALTHY, progress, *samples, *again]).encode()


@pytest.mark.parametrize("start", ["WSL2 Ubuntu 24.04\n", "driver version: 580.65.06\n"])
def test_the_result_is_as_of_one_process(small_blocks, start):
    log = start.encode() + make_log()
    alone = explain_file(io.BytesIO(log), workers=1)
    beside = explain_file(io.BytesIO(log), workers=3)
    assert len(alone.found) > 50
    assert beside.describe() == alone.describe()


def test_an_error_that_a_later_block_shows_to_be_over_is_not_found(small_blocks):
    log = (RETRY + HEALTHY * 3 + "Successfully installed torch-2.13.0\n" + HEALTHY * 3).encode()
    assert explain_file(io.BytesIO(log), workers=2).found == ()


def test_a_process_that_the_system_ends_costs_no_error(small_blocks, monkeypatch):
    monkeypatch.setattr(parallel, "_prepare_worker", end_process)
    found = explain_file(io.BytesIO(make_log()), workers=2)
    assert found.describe() == explain_file(io.BytesIO(make_log()), workers=1).describe()


def end_process():
    os.kill(os.getpid(), signal.SIGKILL)


def test_without_semaphores_one_process_reads_all(small_blocks, monkeypatch):
    def refuse(*_):
        raise OSError(38, "Function not implemented")

    monkeypatch.setattr(parallel, "ProcessPoolExecutor", refuse)
    assert explain_file(io.BytesIO(make_log()), workers=2).found


@pytest.mark.skipif(sys.platform != "linux", reason="it reads /proc")
@pytest.mark.parametrize("sign", [signal.SIGKILL, signal.SIGTERM, signal.SIGINT])
def test_no_process_is_left_when_the_command_is_ended(tmp_path, sign):
    log = tmp_path / "large.log"
    log.write_bytes(b"The value of the name is not found in the list of this class.\n" * 10**6)
    command = [sys.executable, "-m", "labkit", "doctor", "--explain", str(log)]
    started = subprocess.Popen(command, stderr=subprocess.DEVNULL, start_new_session=True)
    wait_until(lambda: len(list_group(started.pid)) > 1)
    started.send_signal(sign)
    started.wait()
    wait_until(lambda: not list_group(started.pid))


def list_group(leader):
    found = []
    for process in Path("/proc").glob("[0-9]*/stat"):
        try:
            state, _, group = process.read_text().rpartition(") ")[2].split()[:3]
        except OSError:  # it has ended
            continue
        if int(group) == leader and state != "Z":
            found.append(process)
    return found


def wait_until(condition):
    ends = time.monotonic() + 60
    while not condition():
        assert time.monotonic() < ends
        time.sleep(0.05)

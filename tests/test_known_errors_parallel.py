"""A large log that several processes read: the same result, and no process is left."""

from __future__ import annotations

import io
import multiprocessing
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from labkit.known_errors import KNOWN_ERRORS, match, parallel, scan
from labkit.known_errors.context import Context
from labkit.known_errors.match import explain_file

pytestmark = [
    pytest.mark.skipif(sys.platform != "linux", reason="it forks processes"),
    # The tests' own process may have threads (xdist's), where a command has none.
    pytest.mark.filterwarnings("ignore:.*multi-threaded, use of fork:DeprecationWarning"),
]

RETRY = "ConnectionResetError: [Errno 104] Connection reset by peer\n"
HEALTHY = "step 12: all is well\n" * 500
INSTALLED = "Downloading torch-2.13.0.whl (900 MB)\nSuccessfully installed torch-2.13.0\n"


@pytest.fixture
def small_blocks(monkeypatch):
    monkeypatch.setattr(match, "BLOCK_BYTES", 2**13)
    monkeypatch.setattr(match, "BLOCKS_ALONE", 1)
    monkeypatch.setattr(scan, "BLOCKS_OF_FACTS", 1)


def make_log():
    samples = [f"{error.samples[0]}\n{HEALTHY}" for error in KNOWN_ERRORS[::9]]
    again = [HEALTHY, RETRY, HEALTHY, INSTALLED, HEALTHY, *samples[:3], RETRY]
    return "".join([RETRY, HEALTHY, INSTALLED, *samples, *again]).encode()


def describe(log, workers):
    return explain_file(io.BytesIO(log), workers).describe()


@pytest.mark.parametrize("start", ["WSL2 Ubuntu 24.04\n", "driver version: 580.65.06\n"])
def test_the_result_is_as_of_one_process(small_blocks, start):
    log = start.encode() + make_log()
    alone = describe(log, 1)
    assert len(alone["found"]) > 50
    assert alone["read_from_text"]["signs"]
    assert describe(log, 3) == alone


@pytest.mark.parametrize("workers", [1, 3])
def test_what_is_said_of_the_machine_counts_at_the_start_and_near_an_error(small_blocks, workers):
    near = f"driver version: 580.65.06\n{HEALTHY}{KNOWN_ERRORS[0].samples[0]}\n"
    log = f"{HEALTHY}{HEALTHY}WSL2\n{HEALTHY}{HEALTHY}{near}{HEALTHY}"
    read = describe(log.encode(), workers)["read_from_text"]
    assert read["driver"] == "580.65.06" and "wsl" not in read["signs"]
    assert "wsl" in describe(f"WSL2\n{log}".encode(), workers)["read_from_text"]["signs"]


def test_what_the_log_says_first_of_its_machine_counts():
    early = Context({"wsl"}, {"driver": "580.65"}, python="venv/bin/python")
    early.add(
        Context({"k8s"}, {"driver": "570.1", "torch": "cu130"}, "debian", "python3", "3.12", "x")
    )
    assert early == Context(
        {"wsl", "k8s"},
        {"driver": "580.65", "torch": "cu130"},
        "debian",
        "venv/bin/python",
        "3.12",
        "x",
    )


def test_the_blocks_are_read_by_other_processes(small_blocks, monkeypatch):
    read = []
    read_lines = match.Scan.read_lines
    monkeypatch.setattr(
        match.Scan, "read_lines", lambda scan, lines: read.append(1) or read_lines(scan, lines)
    )
    describe(make_log(), 2)
    assert len(read) == 1
    assert not multiprocessing.active_children()


def test_an_error_that_a_later_block_shows_to_be_over_is_not_found(small_blocks):
    log = (RETRY + HEALTHY * 3 + INSTALLED + HEALTHY * 3).encode()
    assert describe(log, 2)["found"] == []
    assert describe(log + RETRY.encode(), 2)["found"]


def test_a_process_that_the_system_ends_costs_no_error(small_blocks, monkeypatch):
    find_errors = parallel.find_errors
    main = os.getpid()

    def end_some(*arguments):
        if os.getpid() != main and os.getpid() % 2:
            os.kill(os.getpid(), signal.SIGKILL)
        return find_errors(*arguments)

    monkeypatch.setattr(parallel, "find_errors", end_some)
    assert describe(make_log(), 4) == describe(make_log(), 1)


def test_a_process_that_ends_before_it_lists_progress_costs_nothing(small_blocks, monkeypatch):
    main, list_outcomes = os.getpid(), parallel.LogBlock.list_outcomes

    def end(block, first):
        if os.getpid() != main:
            os.kill(os.getpid(), signal.SIGKILL)
        return list_outcomes(block, first)

    monkeypatch.setattr(parallel.LogBlock, "list_outcomes", end)
    assert describe(make_log(), 2) == describe(make_log(), 1)


def test_where_no_process_can_be_started_one_reads_all(small_blocks, monkeypatch):
    expected = describe(make_log(), 1)

    def refuse(*_):
        raise BlockingIOError(11, "Resource temporarily unavailable")

    monkeypatch.setattr(os, "fork", refuse)
    assert describe(make_log(), 2) == expected


@pytest.mark.parametrize(("threads", "workers"), [(1, parallel.MOST_WORKERS), (2, 1)])
def test_a_process_with_other_threads_is_not_forked(monkeypatch, threads, workers):
    monkeypatch.setattr(parallel, "count_allowed_cores", lambda: 64)
    monkeypatch.setattr(parallel.threading, "active_count", lambda: threads)
    assert parallel.count_workers() == workers


@pytest.mark.parametrize("sign", [signal.SIGKILL, signal.SIGTERM, signal.SIGINT])
def test_no_process_is_left_when_the_command_is_ended(tmp_path, sign):
    log = tmp_path / "large.log"
    log.write_bytes(b"The value of the name is not found in the list of this class.\n" * 10**6)
    code = "from labkit.known_errors import parallel; parallel.count_workers = lambda: 3\n"
    code += "from labkit.known_errors import match; match.count_workers = lambda: 3\n"
    code += "from labkit.cli import main; raise SystemExit(main())"
    command = [sys.executable, "-c", code, "doctor", "--explain", str(log)]
    with subprocess.Popen(command, stderr=subprocess.PIPE, start_new_session=True) as started:
        wait_until(lambda: len(list_group(started.pid)) > 3)
        os.killpg(started.pid, sign) if sign == signal.SIGINT else started.send_signal(sign)
        errors = started.stderr.read()
    assert b"Traceback" not in errors
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

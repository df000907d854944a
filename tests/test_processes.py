"""A process in the background is not confused with a later one that has its number."""

from __future__ import annotations

import os
import signal
import socket
from dataclasses import replace
from pathlib import Path

import pytest

from labkit.launch import server
from labkit.launch.server import (
    find_server_process,
    is_running,
    list_ports,
    read_start,
    start_in_background,
    stop_process,
    wait_until,
)
from labkit.launch.state import LabHandle
from tests.fakes.host import FakeRunner, says

# Its Popen object goes while it runs on: that is what it is for.
pytestmark = pytest.mark.filterwarnings("ignore:subprocess:ResourceWarning")


@pytest.fixture
def start(tmp_path):
    """Starts a line of sh in the background; whatever is left of it is ended with the test."""
    handles = []

    def start_script(script):
        handle = start_in_background(
            ["sh", "-c", script], {"PATH": os.environ["PATH"]}, tmp_path / "log", tmp_path
        )
        handles.append(handle)
        return handle

    yield start_script
    for handle in handles:
        if is_running(handle):
            os.killpg(handle.process_id, signal.SIGKILL)
            wait_until(lambda handle=handle: not is_running(handle), timeout_seconds=30)


def wait_for_log(tmp_path, text):
    log = tmp_path / "log"
    assert wait_until(
        lambda: text in log.read_text(), timeout_seconds=30, interval_seconds=0.005
    ), log.read_text()


def test_it_runs_until_it_is_stopped(start):
    handle = start("exec sleep 60")
    assert is_running(handle)
    stop_process(handle)
    assert not is_running(handle)


def test_it_has_a_session_of_its_own(start):
    handle = start("exec sleep 60")
    assert os.getsid(handle.process_id) == handle.process_id != os.getsid(0)


def test_both_streams_go_to_the_end_of_the_log(start, tmp_path):
    (tmp_path / "log").write_text("before\n")
    start("pwd; echo err >&2; exec sleep 60")
    wait_for_log(tmp_path, "err")
    assert (tmp_path / "log").read_text() == f"before\n{tmp_path}\nerr\n"


def test_a_log_that_the_server_empties_goes_on_at_its_start(start, tmp_path):
    """As the server bounds its own log: truncated under the process that writes."""
    start("echo first; while [ ! -e go ]; do sleep 0.01; done; echo second; exec sleep 60")
    wait_for_log(tmp_path, "first")
    os.truncate(tmp_path / "log", 0)
    (tmp_path / "go").touch()
    wait_for_log(tmp_path, "second")
    assert (tmp_path / "log").read_bytes() == b"second\n"
    assert (tmp_path / "log").stat().st_mode & 0o777 == 0o600


def test_the_ports_of_a_process_are_its_own():
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
        own, other = list_ports(os.getpid()), list_ports(1)
        if own is None:
            pytest.skip("this system has no /proc/net/tcp")
        assert port in own
        assert port not in (other or ())
    assert port not in (list_ports(os.getpid()) or ())


def test_where_there_is_no_proc_the_ports_are_not_known(tmp_path):
    assert list_ports(os.getpid(), tmp_path) is None


def test_where_there_is_no_proc_ps_finds_the_server(tmp_path, monkeypatch):
    python = tmp_path / "a lab" / ".venv" / "bin" / "python"
    listed = (
        f"  11 {os.geteuid() + 1} {python} -m jupyterlab\n"
        f"  12 {os.geteuid()} /usr/bin/python -m jupyterlab\n"
        f"  13 {os.geteuid()} {python} -m jupyterlab --ip ::1"
    )
    monkeypatch.setattr(server, "run_command", FakeRunner({"ps -axww": says(listed)}))
    assert find_server_process(tmp_path / "work", python, tmp_path / "no proc") == 13
    assert find_server_process(tmp_path, tmp_path / "python", tmp_path / "no proc") is None


def test_one_that_ended_by_itself_does_not_run(start):
    handle = start("exit 3")
    assert wait_until(lambda: not is_running(handle), timeout_seconds=30)
    stop_process(handle)


def test_another_process_with_its_number_is_left_alone(start):
    handle = start("exec sleep 60")
    stale = replace(handle, process_started="1")
    assert not is_running(stale)
    stop_process(stale)
    assert is_running(handle)


def test_its_children_end_with_it(start, tmp_path):
    handle = start('sleep 60 & echo "child $!"; wait')
    wait_for_log(tmp_path, "child")
    child = int((tmp_path / "log").read_text().split()[1])
    stop_process(handle)
    assert wait_until(lambda: read_start(child) is None, timeout_seconds=30)


def test_one_that_does_not_listen_is_killed(start, tmp_path):
    handle = start('trap "" TERM; echo ready; while :; do sleep 60; done')
    wait_for_log(tmp_path, "ready")
    stop_process(handle, patience_seconds=0.02)
    assert not is_running(handle)


@pytest.mark.parametrize(
    "handle",
    [LabHandle(), LabHandle(process_id=4711), LabHandle(container="a1b2c3")],
    ids=["empty", "never seen running", "a container"],
)
def test_a_handle_without_a_process_does_not_run(handle):
    assert not is_running(handle)
    stop_process(handle)


def test_when_this_process_started_never_changes():
    assert read_start(os.getpid()) == read_start(os.getpid()) is not None


def test_a_number_that_nobody_has():
    assert read_start(2**22 + 1) is None


def test_a_name_with_brackets_and_spaces_is_read_past(tmp_path, start):
    program = tmp_path / "a (b) c"
    program.symlink_to("/bin/sleep")
    handle = start(f"exec '{program}' 60")
    assert wait_until(
        lambda: "a (b) c" in Path(f"/proc/{handle.process_id}/stat").read_text(),
        timeout_seconds=60,
    )
    assert is_running(handle)


def test_where_there_is_no_proc_ps_is_asked(monkeypatch, tmp_path):
    monkeypatch.setattr(server, "Path", lambda path: tmp_path / "nothing")
    ps = FakeRunner({"ps": says("Mon Nov 23 05:00:00 2026")})
    monkeypatch.setattr(server, "run_command", ps)
    assert read_start(4711) == "Mon Nov 23 05:00:00 2026"
    assert ps.calls == ["ps -o lstart= -p 4711"]

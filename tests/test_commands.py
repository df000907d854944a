"""The one door to subprocesses: limits hold, nothing outlives them, broken hosts are answers."""

from __future__ import annotations

import os
import shlex
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from labkit.errors import UsageError
from labkit.launch.compose import ContainerLab
from labkit.launch.local import LocalLab
from labkit.launch.server import wait_until
from labkit.launch.settings import CPU, Settings
from labkit.process import (
    KEPT_BYTES,
    STEERING_VARIABLES,
    CommandResult,
    compose_environment,
    name_python,
    read_session_cpu,
    replace_process,
    run_at_terminal,
    run_attached,
    run_command,
    run_working,
    stream_command,
)
from tests.fakes.host import make_checkout

ROOT = Path(__file__).parents[1]

# Starts a child in the background, writes down its number, and waits for longer than any test.
PARENT = "sh -c '{trap}sleep 60' & echo $! > {path}; wait"


def is_gone(process_id):
    """True where the process has ended; a zombie whose parent died counts."""
    try:
        text = Path(f"/proc/{process_id}/stat").read_text(encoding="ascii")
        return text.rpartition(")")[2].split()[0] in "ZX"
    except OSError:
        return True


def read_child(path):
    assert wait_until(
        lambda: path.exists() and path.read_text().strip() != "",
        timeout_seconds=60,
        interval_seconds=0.005,
    )
    return int(path.read_text())


def shell(script):
    return ["sh", "-c", script]


def test_a_program_says_what_it_printed_and_how_it_ended():
    result = run_command(shell("echo out; echo err >&2; exit 3"), timeout_seconds=5)
    assert (result.stdout, result.stderr, result.exit_code) == ("out\n", "err\n", 3)
    assert not result.ok
    assert result.message == "err"


def test_a_missing_program_is_an_answer():
    result = run_command(["no-such-program", "--version"], timeout_seconds=5)
    assert result.missing
    assert result.exit_code is None
    assert result.message == "no-such-program: command not found"


def test_a_missing_program_is_an_answer_when_streamed():
    seen = []
    result = stream_command(["no-such-program"], timeout_seconds=5, on_line=seen.append)
    assert result.missing
    assert seen == []


def test_a_file_that_cannot_be_run_counts_as_missing(tmp_path):
    program = tmp_path / "docker"
    program.write_text("not a program")
    assert run_command([str(program)], timeout_seconds=5).missing


@pytest.mark.parametrize(
    ("result", "message"),
    [
        pytest.param(CommandResult(("a",), 1, "out\n", "\n"), "exit code 1", id="blank stderr"),
        pytest.param(CommandResult(("a",), 1, "one\ntwo\n\n"), "two", id="stdout alone"),
        pytest.param(CommandResult(("a",), 7), "exit code 7", id="silent"),
        pytest.param(CommandResult(("a",), -9), "a was killed by SIGKILL", id="killed"),
        pytest.param(CommandResult(("a",), -99), "exit code -99", id="no signal of here"),
        pytest.param(
            CommandResult(("docker", "info"), None, seconds=10.02, timed_out=True),
            "docker did not answer in 10 s",
            id="timed out",
        ),
    ],
)
def test_message_is_the_line_that_says_most(result, message):
    assert result.message == message


@pytest.mark.parametrize("trap", ["", 'trap "" TERM; '], ids=["polite child", "stubborn child"])
def test_at_its_limit_a_program_is_ended_with_its_children(tmp_path, trap):
    path = tmp_path / "child"
    started = time.monotonic()
    result = run_command(shell(PARENT.format(trap=trap, path=path)), timeout_seconds=0.05)
    assert result.timed_out
    assert result.exit_code is None
    assert time.monotonic() - started < 30
    assert wait_until(lambda: is_gone(read_child(path)), timeout_seconds=30)


@pytest.mark.parametrize("trap", ["", 'trap "" TERM; '], ids=["polite child", "stubborn child"])
def test_at_its_limit_a_streamed_program_is_ended_with_its_children(tmp_path, trap):
    path = tmp_path / "child"
    script = "echo first; " + PARENT.format(trap=trap, path=path)
    seen = []
    result = stream_command(shell(script), timeout_seconds=0.05, on_line=seen.append)
    assert result.timed_out
    assert seen == ["first"]
    assert wait_until(lambda: is_gone(read_child(path)), timeout_seconds=30)


def test_what_a_program_printed_before_its_limit_is_kept():
    result = run_command(shell("echo one; echo two >&2; exec sleep 60"), timeout_seconds=0.3)
    assert result.timed_out
    assert (result.stdout, result.stderr) == ("one\n", "two\n")


def test_of_a_flood_a_part_is_kept_and_the_program_ends_by_itself():
    flood = f"head -c {KEPT_BYTES + 2**20} /dev/zero | tr '\\0' x; echo end >&2"
    result = run_command(shell(flood), timeout_seconds=20)
    assert result.ok
    assert result.stdout == "x" * KEPT_BYTES
    assert result.stderr == "end\n"


def test_an_endless_flood_is_ended_at_its_limit():
    started = time.monotonic()
    result = run_command(["yes", "x" * 500], timeout_seconds=0.3)
    assert result.timed_out
    assert len(result.stdout) <= KEPT_BYTES
    assert time.monotonic() - started < 30


@pytest.mark.slow
def test_a_child_that_left_and_holds_the_pipe_holds_up_nobody(tmp_path):
    path = tmp_path / "child"
    started = time.monotonic()
    result = run_command(
        shell(f"echo said; setsid sleep 20 & echo $! > {path}; exit 0"), timeout_seconds=0.3
    )
    assert time.monotonic() - started < 15
    assert result.timed_out
    assert result.stdout == "said\n"
    os.kill(read_child(path), signal.SIGKILL)


def test_a_program_that_is_killed_is_an_answer():
    result = run_command(shell("echo said; kill -9 $$"), timeout_seconds=5)
    assert (result.exit_code, result.stdout, result.ok) == (-9, "said\n", False)


@pytest.mark.parametrize(
    ("command", "code", "missing"),
    [(shell("exit 3"), 3, False), (["no-such-program"], None, True)],
    ids=["ends", "missing"],
)
def test_at_the_terminal_a_program_says_how_it_ended(command, code, missing):
    result = run_at_terminal(command, timeout_seconds=5)
    assert (result.exit_code, result.missing) == (code, missing)


def test_at_the_terminal_a_limit_holds_too():
    result = run_at_terminal(["sleep", "20"], timeout_seconds=0.1)
    assert result.timed_out
    assert not result.ok


def test_at_the_terminal_standard_output_stays_free_for_results(capfd):
    assert run_at_terminal(shell("echo said"), timeout_seconds=5).ok
    assert capfd.readouterr() == ("", "said\n")


def test_a_slow_reader_gets_every_line_of_a_program_past_its_limit():
    seen = []

    def read_slowly(line):
        time.sleep(0.03)
        seen.append(line)

    result = stream_command(
        shell("echo one; echo two; echo three; exec sleep 60"),
        timeout_seconds=0.02,
        on_line=read_slowly,
    )
    assert result.timed_out
    assert seen == ["one", "two", "three"]


def test_lines_of_both_streams_come_as_they_are_printed():
    seen = []
    result = stream_command(
        shell("echo out; echo err >&2; printf last"), timeout_seconds=5, on_line=seen.append
    )
    assert seen == ["out", "err", "last"]
    assert result.ok


BAD_BYTES = r"printf 'a\377b\n'"


def test_bytes_that_are_no_text_are_replaced():
    seen = []
    assert run_command(shell(BAD_BYTES), timeout_seconds=5).stdout == "a\ufffdb\n"
    assert stream_command(shell(BAD_BYTES), timeout_seconds=5, on_line=seen.append).ok
    assert seen == ["a\ufffdb"]


def test_the_environment_and_the_folder_are_those_asked_for(tmp_path):
    environment = {"PATH": os.environ["PATH"], "NAME": "a value"}
    result = run_command(
        shell('echo "$NAME"; pwd'), timeout_seconds=5, environment=environment, folder=tmp_path
    )
    assert result.stdout == f"a value\n{tmp_path}\n"


def test_a_program_never_waits_for_the_keyboard():
    assert run_command(["cat"], timeout_seconds=5).stdout == ""


@pytest.mark.slow
def test_ctrl_c_ends_the_program_and_its_children(tmp_path):
    path = tmp_path / "child"

    def press_ctrl_c():
        read_child(path)
        os.kill(os.getpid(), signal.SIGINT)

    threading.Thread(target=press_ctrl_c).start()
    with pytest.raises(KeyboardInterrupt):
        stream_command(shell(PARENT.format(trap="", path=path)), timeout_seconds=30, on_line=print)
    assert wait_until(lambda: is_gone(read_child(path)), timeout_seconds=30)


def test_a_reader_that_fails_ends_the_program(tmp_path):
    path = tmp_path / "child"

    def fail(line):
        raise ZeroDivisionError(line)

    with pytest.raises(ZeroDivisionError, match="ready"):
        stream_command(
            shell(f"sleep 60 & echo $! > {path}; echo ready; wait"),
            timeout_seconds=30,
            on_line=fail,
        )
    assert wait_until(lambda: is_gone(read_child(path)), timeout_seconds=30)


def test_becoming_a_program_hands_over_its_exit_code():
    script = (
        "from labkit.process import replace_process\n"
        "replace_process(['sh', '-c', 'echo $NAME; exit 7'], {'NAME': 'lab', 'PATH': '/bin'})"
    )
    result = run_command([sys.executable, "-c", script], timeout_seconds=20)
    assert (result.exit_code, result.stdout) == (7, "lab\n")


def test_becoming_a_program_that_is_missing_is_a_usage_error():
    with pytest.raises(UsageError) as caught:
        replace_process(["no-such-program"])
    assert caught.value.what == "cannot run no-such-program: No such file or directory"
    assert caught.value.fix == "command -v no-such-program"


ENDED = """
import os, signal, sys
from labkit.process import end_like_interrupt
{before}
try:
    with end_like_interrupt():
        os.kill(os.getpid(), signal.{name})
except KeyboardInterrupt:
    print("undone")
print(signal.getsignal(signal.{name}) == {after})
"""


@pytest.mark.parametrize("name", ["SIGTERM", "SIGHUP"])
def test_a_signal_ends_the_block_as_ctrl_c_does_and_nothing_after_it(name):
    script = ENDED.format(before="", name=name, after="signal.SIG_DFL")
    result = run_command([sys.executable, "-c", script], timeout_seconds=20)
    assert result.stdout == "undone\nTrue\n"


def test_a_signal_that_nohup_ignores_stays_ignored():
    before = "signal.signal(signal.SIGHUP, signal.SIG_IGN)"
    script = ENDED.format(before=before, name="SIGHUP", after="signal.SIG_IGN")
    result = run_command([sys.executable, "-c", script], timeout_seconds=20)
    assert result.stdout == "True\n"


ATTACHED = """
import signal, sys
from labkit.process import run_attached
signal.signal(signal.SIGHUP, signal.SIG_DFL)  # whoever runs these tests may ignore it
try:
    command = ["sh", "-c", "echo began; while [ ! -e stopped ]; do sleep 0.1; done; echo ended"]
    run_attached(command, stop=lambda: print("stop", file=open("stopped", "a")))
except KeyboardInterrupt:
    sys.exit(130)
"""


@pytest.mark.parametrize("name", ["SIGTERM", "SIGHUP", "SIGINT"])
def test_a_signal_stops_what_an_attached_program_has_started(tmp_path, heeds_interrupts, name):
    process = subprocess.Popen(
        [sys.executable, "-c", ATTACHED],
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        cwd=tmp_path,
        stdout=subprocess.PIPE,
        text=True,
        start_new_session=True,  # without a terminal, which would send Ctrl-C to the program too
    )
    assert process.stdout is not None and process.stdout.readline() == "began\n"
    process.send_signal(getattr(signal, name))
    said, _ = process.communicate(timeout=60)
    assert (said, process.returncode) == ("ended\n", 130)
    assert (tmp_path / "stopped").read_text() == "stop\nstop\n"


@pytest.mark.parametrize(("command", "code"), [("exit 7", 7), ("kill -9 $$", 137)])
def test_an_attached_programs_exit_code_is_a_shells(command, code):
    assert run_attached(shell(command), stop=lambda: None) == code


def test_an_attached_program_that_is_missing_is_a_usage_error():
    with pytest.raises(UsageError, match="cannot run no-such-program"):
        run_attached(["no-such-program"], stop=lambda: None)


# The environment of what is started

STEERED = {
    "PIP_TARGET": "/x",
    "PIP_USER": "1",
    "PYTHONPATH": "/x",
    "PYTHONSTARTUP": "/x",
    "JUPYTER_PATH": "/x",
    "JUPYTER_NO_CONFIG": "1",
    "JUPYTER_CONFIG_DIR": "/x",
    "VIRTUAL_ENV": "/x",
    "COMPOSE_FILE": "/x",
    "GIT_DIR": "/x",
    "MAKEFLAGS": "-n",
}
PASSED = {
    "PIP_INDEX_URL": "https://index.example",
    "PIP_CONFIG_FILE": "/x/pip.conf",
    "PIP_CERT": "/x/ca.pem",
    "PIP_TRUSTED_HOST": "index.example",
    "HTTPS_PROXY": "http://proxy:3128",
    "SSL_CERT_FILE": "/x/ca.pem",
    "HF_TOKEN": "a learner's own",
    "PYTHONHASHSEED": "0",
    "GIT_AUTHOR_NAME": "Ada",
    "PYTORCH_ALLOC_CONF": "x",
    "DOCKER_HOST": "unix:///x",
}


def test_what_would_steer_a_program_is_left_out_and_the_rest_passed_on():
    assert compose_environment({**STEERED, **PASSED}) == PASSED


def run_and_list(words):
    return run_command(words, timeout_seconds=10).stdout


def stream_and_list(words):
    lines = []
    stream_command(words, timeout_seconds=10, on_line=lines.append)
    return "\n".join(lines)


def replace_and_list(words):
    program = f"from labkit.process import replace_process; replace_process({words!r})"
    return subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=True, cwd=ROOT
    ).stdout


def attach_and_list(words):
    program = f"from labkit.process import run_attached; run_attached({words!r}, stop=print)"
    return subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=True, cwd=ROOT
    ).stdout


@pytest.mark.parametrize(
    "start", [run_and_list, stream_and_list, replace_and_list, attach_and_list]
)
def test_every_way_to_start_a_program_composes_its_environment(start, monkeypatch):
    for name, value in {**STEERED, **PASSED}.items():
        if name != "PYTHONSTARTUP":
            monkeypatch.setenv(name, value)
    found = dict(line.partition("=")[::2] for line in start(["env"]).splitlines())
    assert STEERED.keys() & found.keys() == set()
    assert found.items() >= PASSED.items()


def test_the_documentation_lists_what_is_passed_on():
    text = (ROOT / "docs" / "environment.md").read_text(encoding="utf-8")
    for start, passed in STEERING_VARIABLES.items():
        assert [name for name in (start, *passed) if f"`{name}" not in text] == []


def test_the_lab_gets_it_in_a_container_and_without_one(tmp_path, monkeypatch):
    for name, value in {**STEERED, **PASSED}.items():
        monkeypatch.setenv(name, value)
    checkout = make_checkout(tmp_path / "lab")
    composed = ContainerLab(checkout, "docker", CPU, Settings()).environment()
    local = LocalLab(checkout, Settings()).environment()
    assert local.pop("VIRTUAL_ENV") == str(checkout.environment_folder)
    for environment in (composed, local):
        assert STEERED.keys() & environment.keys() == set()
        assert environment.items() >= PASSED.items()


def test_a_kernel_of_the_callers_named_python3_is_not_the_labs(tmp_path, monkeypatch):
    kernel = tmp_path / "kernels" / "python3" / "kernel.json"
    kernel.parent.mkdir(parents=True)
    kernel.write_text('{"argv": ["evil"], "display_name": "evil", "language": "python"}')
    words = [sys.executable, "-m", "jupyter_client.kernelspecapp", "list", "--json"]
    monkeypatch.setenv("JUPYTER_PATH", str(tmp_path))
    as_it_is = run_command(words, timeout_seconds=60, environment=os.environ)
    assert "evil" in as_it_is.stdout
    composed = run_command(words, timeout_seconds=60)
    assert "python3" in composed.stdout
    assert "evil" not in composed.stdout


@pytest.mark.parametrize(
    ("script", "cpu", "ended"),
    [
        ("print('done')", 0.0, False),
        ("import time; time.sleep(60)", 0.0, True),
        ("import time; time.sleep(60)", None, True),
        ("import time; time.sleep(60)", 9.0, True),
        ("import time; time.sleep(1.5); print('done')", 0.1, False),
    ],
    ids=["fine", "stands still", "no /proc", "worked enough", "slow and at work"],
)
def test_a_limit_of_work_ends_what_hangs_and_not_what_is_slow(script, cpu, ended):
    reads = iter(range(10_000))

    def read(session):
        # At work, the CPU time grows with each reading.
        return cpu if cpu in (0.0, None, 9.0) else cpu * next(reads)

    result = run_working(
        [sys.executable, "-c", script], timeout_seconds=1.0, idle_seconds=0.6, read_cpu=read
    )
    assert result.timed_out is ended
    assert result.ok is not ended


def test_the_cpu_time_of_a_session_is_read_with_its_children():
    script = "import subprocess, sys; subprocess.run([sys.executable, '-c', 'sum(range(10**7))'])"
    seen = []

    def read(session):
        seen.append(read_session_cpu(session))
        return seen[-1]

    run_working([sys.executable, "-c", script], timeout_seconds=60, read_cpu=read)
    assert read_session_cpu(2**22) is None
    assert seen == sorted(seen)


def test_python_is_named_so_that_the_command_runs_in_this_one(tmp_path, monkeypatch):
    monkeypatch.setenv("PATH", str(tmp_path))
    assert name_python() == shlex.quote(sys.executable)
    other = tmp_path / "python"
    other.write_text("#!/bin/sh\n")
    other.chmod(0o755)
    assert name_python() == shlex.quote(sys.executable)
    monkeypatch.setenv("PATH", str(Path(sys.executable).parent))
    expected = "python" if Path(sys.executable).with_name("python").exists() else sys.executable
    assert name_python() == expected


def test_a_path_with_a_blank_is_quoted(monkeypatch):
    monkeypatch.setattr(sys, "executable", "/opt/my venv/bin/python")
    assert name_python() == "'/opt/my venv/bin/python'"

"""``labkit doctor`` as people and programs see it."""

from __future__ import annotations

import bz2
import gzip
import io
import json
import lzma
import os
import random
import select
import signal
import subprocess
import sys
import threading
import zipfile
from pathlib import Path
from types import SimpleNamespace

import pytest

from labkit.cli import doctor, main
from labkit.doctor import checks as doctor_checks
from labkit.doctor.check import Check, failed, ok, unknown, warning
from labkit.doctor.checks import CHECKS
from labkit.host import distribution as doctor_distribution
from labkit.host.distribution import Distribution
from labkit.known_errors import match
from tests.fakes.sick_hosts import play_host
from tests.test_light_imports import HEAVY, MAIN, list_modules

LOG = """\
#12 8.411 Collecting torch
#12 9.020 ERROR: Could not install packages due to an OSError: [Errno 28] No space left on device
"""
# The beginnings of its lines: the catalog's wording is its own.
LOG_SCREEN = (
    "disk-full (certain)",
    "  line 2: #12 9.020 ERROR: Could not install packages due to an OSError: [Errno 28] No space",
    "  cause: the disk of the engine is full",
    "  try: docker system df",
)


def shows_the_log(text):
    lines = text.splitlines()
    return len(lines) == len(LOG_SCREEN) and all(map(str.startswith, lines, LOG_SCREEN))


def play_checks(monkeypatch, tmp_path, *findings):
    """Lets the command make checks that come back with these findings, on a played host."""

    def make(number, finding):
        return Check(
            f"check-{number}", f"question {number}", lambda host: finding, lambda facts, _: facts
        )

    made = tuple(make(number, finding) for number, finding in enumerate(findings, 1))
    monkeypatch.setattr(doctor_checks, "CHECKS", made)
    monkeypatch.setattr(doctor, "make_host", lambda deep: play_host(tmp_path, deep=deep))


def test_a_healthy_host(monkeypatch, tmp_path, capsys):
    play_checks(monkeypatch, tmp_path, ok("no NVIDIA GPU on the bus; the lab uses the CPU"))
    assert main(["doctor"]) == 0
    assert capsys.readouterr().out == (
        "ok       check-1 no NVIDIA GPU on the bus; the lab uses the CPU\n\n1 checks: 1 ok\n"
    )


def test_a_broken_host(monkeypatch, tmp_path, capsys):
    play_checks(
        monkeypatch,
        tmp_path,
        failed("0 B free at /home", "the disk is almost full", "df -h"),
        ok("port 8888 is free"),
        warning("shared memory: 64.0 MiB", "workers die", "LABKIT_SHM_SIZE=2g make down up"),
    )
    assert main(["doctor"]) == 5
    assert capsys.readouterr().out == (
        "ok       check-2 port 8888 is free\n"
        "warning  check-3 shared memory: 64.0 MiB\n"
        "                 cause: workers die\n"
        "                 try: LABKIT_SHM_SIZE=2g make down up\n"
        "failed   check-1 0 B free at /home\n"
        "                 cause: the disk is almost full\n"
        "                 try: df -h\n"
        "\n"
        "3 checks: 1 ok, 1 warning, 1 failed\n"
    )


@pytest.mark.parametrize(
    ("finding", "code"),
    [(ok("x"), 0), (warning("x", "c", "f"), 0), (unknown("x"), 0), (failed("x", "c", "f"), 5)],
    ids=["ok", "warning", "unknown", "failed"],
)
def test_only_a_failure_ends_with_5(monkeypatch, tmp_path, finding, code):
    play_checks(monkeypatch, tmp_path, finding)
    assert main(["doctor"]) == code


def test_the_findings_as_json(monkeypatch, tmp_path, capsys):
    play_checks(monkeypatch, tmp_path, failed("no Compose", "not installed", "install it"))
    assert main(["doctor", "--json"]) == 5
    assert json.loads(capsys.readouterr().out) == {
        "schema_version": 1,
        "healthy": False,
        "distribution": "Debian GNU/Linux 13 (trixie)",
        "counts": {"failed": 1},
        "checks": [
            {
                "check": "check-1",
                "status": "failed",
                "found": "no Compose",
                "cause": "not installed",
                "fix": "install it",
                "safe_fix": None,
            }
        ],
        "fixes": [],
        "not_run": [],
    }


def test_the_list_has_every_check_and_makes_none(monkeypatch, capsys):
    monkeypatch.setattr(doctor, "make_host", lambda: pytest.fail("a check was made"))
    assert main(["doctor", "--list"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == "gpu-bus           an NVIDIA GPU on the bus"
    assert [line.split()[0] for line in lines] == [check.name for check in CHECKS]


def test_the_list_as_json(capsys):
    assert main(["doctor", "--list", "--json"]) == 0
    said = json.loads(capsys.readouterr().out)
    assert {"check": "compose", "title": "Compose 2"} in said["checks"]


def test_a_log_is_explained(tmp_path, capsys):
    path = tmp_path / "build.log"
    path.write_text(LOG)
    assert main(["doctor", "--explain", str(path)]) == 0
    assert shows_the_log(capsys.readouterr().out)


@pytest.mark.parametrize("words", [[], ["--json"]], ids=["text", "json"])
def test_an_empty_log_is_said_to_be_empty_not_healthy(words, tmp_path, monkeypatch, capsys):
    path = tmp_path / "build.log"
    path.write_bytes(b"")
    for name in ("-", str(path)):
        monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(b"")))
        assert main(["doctor", "--explain", name, *words]) == 2
        said = capsys.readouterr()
        assert "nothing was read" in said.out + said.err
        assert "2>&1 |" in said.out + said.err
        assert not words or json.loads(said.out or said.err)
    path.write_text("\n")
    assert main(["doctor", "--explain", str(path), *words]) == 0


def test_a_log_from_standard_input(monkeypatch, capsys):
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(LOG.encode())))
    assert main(["doctor", "--explain"]) == 0
    assert shows_the_log(capsys.readouterr().out)


def test_an_explanation_as_json(tmp_path, monkeypatch, capsys):
    fedora = Distribution("Fedora Linux 43", "fedora")
    monkeypatch.setattr(doctor_distribution, "read_distribution", lambda: fedora)
    path = tmp_path / "log"
    path.write_text("docker: 'compose' is not a docker command.\n")
    assert main(["doctor", "--explain", str(path), "--json"]) == 0
    found = json.loads(capsys.readouterr().out)["found"]
    assert len(found) == 1
    assert found[0]["sign"] == "no-compose"
    assert found[0]["line"] == "docker: 'compose' is not a docker command."
    command, _, comment = found[0]["fix"].partition("   # ")
    assert command == "sudo dnf install docker-compose"
    assert comment == "on Fedora and RHEL, as on this machine"  # the log names no distribution
    assert found[0]["fix_elsewhere"]["ubuntu"] == "sudo apt-get install docker-compose-v2"
    assert found[0]["caused_by"] is None


@pytest.mark.parametrize("words", [[], ["--json"]], ids=["text", "json"])
def test_an_unknown_error_is_quoted_and_ends_with_1(tmp_path, capsys, words):
    path = tmp_path / "log"
    path.write_bytes(b"step 1 \xff\xfe\nerror: the widget is bent\n")
    assert main(["doctor", "--explain", str(path), *words]) == 1
    said = capsys.readouterr()
    # An object has the answer's parts in it; a text is the answer.
    remarks = said.err if words else said.out
    assert "line 2: error: the widget is bent\ncollect: " in remarks
    assert "\nask: " in remarks
    if words:
        line = {"line_number": 2, "line": "error: the widget is bent"}
        assert json.loads(said.out)["unexplained"] == line
    else:
        assert said.err == ""


@pytest.mark.parametrize("words", [[], ["--json"]], ids=["text", "json"])
def test_an_error_that_is_known_by_its_form_alone_is_no_healthy_log(words, tmp_path, capsys):
    path = tmp_path / "log"
    path.write_text(
        'Traceback (most recent call last):\n  File "train.py", line 4, in main\n'
        '    raise ValueError("the parts must sum to 1")\nValueError: the parts must sum to 1\n'
    )
    assert main(["doctor", "--explain", str(path), *words]) == 1
    said = capsys.readouterr()
    assert "ValueError at line 4 of train.py" in said.out
    assert "known by its form alone" in (said.err if words else said.out)
    assert "does not know the error" not in said.err + said.out
    if words:
        unexplained = json.loads(said.out)["unexplained"]
        assert (unexplained["line_number"], unexplained["where"]) == (4, "train.py:4")


def test_a_failure_far_from_what_is_known_by_its_form_is_unknown(tmp_path, capsys):
    path = tmp_path / "log"
    path.write_text("error: the widget is bent\n" + "step\n" * 300 + "KeyError: 'labels'\n")
    assert main(["doctor", "--explain", str(path)]) == 1
    said = capsys.readouterr()
    assert "exception-line" in said.out
    assert "line 1: error: the widget is bent" in said.out


PASSED = "RuntimeError: CUDA out of memory.\nstep 300 loss 1.0\nstep 301 loss 1.0\n"


@pytest.mark.parametrize("words", [[], ["--json"]], ids=["text", "json"])
def test_an_error_that_passed_is_explained_and_not_called_unknown(words, tmp_path, capsys):
    path = tmp_path / "log"
    path.write_text(PASSED)
    assert main(["doctor", "--explain", str(path), *words]) == 1
    said = capsys.readouterr()
    assert said.err == ""
    if words:
        assert [each["sign"] for each in json.loads(said.out)["passed"]] == ["gpu-memory-full"]
    else:
        assert "line 1: RuntimeError: CUDA out of memory." in said.out
        assert "the log goes on after it" in said.out
        assert "try: a smaller batch" in said.out


def test_a_failure_after_an_error_that_passed_is_unknown(tmp_path, capsys):
    path = tmp_path / "log"
    path.write_text(PASSED + "error: the widget is bent\n")
    assert main(["doctor", "--explain", str(path)]) == 1
    said = capsys.readouterr()
    assert "gpu-memory-full" in said.out
    assert "line 4: error: the widget is bent" in said.out


def test_a_warning_that_passed_is_named_beside_a_healthy_log(tmp_path, capsys):
    path = tmp_path / "log"
    path.write_text("WARNING: CUDA out of memory, skipping batch 3\nstep 4 loss 0.1\n")
    assert main(["doctor", "--explain", str(path)]) == 0
    said = capsys.readouterr()
    assert said.err == ""
    assert said.out.startswith("no error found")
    assert "line 1: gpu-memory-full, but the log goes on" in said.out


@pytest.mark.parametrize("text", ["all is well\n", "step 1\n0 errors, 0 warnings\n"])
def test_a_log_without_an_error_says_so_and_ends_with_0(tmp_path, capsys, text):
    path = tmp_path / "log"
    path.write_text(text)
    assert main(["doctor", "--explain", str(path)]) == 0
    said = capsys.readouterr()
    assert (said.out, said.err) == ("no error found in this text\n", "")


@pytest.mark.parametrize("name", ["/dev/full", "/dev/zero", "/dev/urandom"])
def test_a_device_that_never_ends_is_refused_by_its_kind(name, capsys):
    if not Path(name).is_char_device():
        pytest.skip(f"no {name} here")
    assert main(["doctor", "--explain", name]) == 2
    assert f"{name} is a character device" in capsys.readouterr().err


def test_a_log_that_is_not_there(tmp_path, capsys):
    assert main(["doctor", "--explain", str(tmp_path / "none")]) == 2
    assert f"error: cannot read {tmp_path}/none: No such file" in capsys.readouterr().err


class Expired(threading.Timer):
    """A timer whose time is over when it starts."""

    def start(self):
        self.function(*self.args, **self.kwargs)


def zip_bytes(content):
    packed = io.BytesIO()
    with zipfile.ZipFile(packed, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("logs/empty.txt", "")
        archive.writestr("logs/1_build.txt", content)
    return packed.getvalue()


PACKED = {"gz": gzip.compress, "xz": lzma.compress, "bz2": bz2.compress, "zip": zip_bytes}


@pytest.mark.parametrize("ending", PACKED)
def test_a_compressed_log_is_read_from_a_file_and_from_a_pipe(
    ending, tmp_path, monkeypatch, capsys
):
    log = tmp_path / f"dockerd.log.1.{ending}"
    log.write_bytes(PACKED[ending](b"OSError: [Errno 28] No space left on device\n" * 9))
    assert main(["doctor", "--explain", str(log)]) == 0
    assert "disk-full" in capsys.readouterr().out

    read, write = os.pipe()
    os.write(write, log.read_bytes())
    os.close(write)
    with os.fdopen(read) as pipe:
        monkeypatch.setattr(sys, "stdin", pipe)
        assert main(["doctor", "--explain"]) == 0
    assert "disk-full" in capsys.readouterr().out

    log.write_bytes(log.read_bytes()[:-12])
    assert main(["doctor", "--explain", str(log)]) == 2
    assert "cannot read" in capsys.readouterr().err


BINARY = {
    "random": random.Random(0).randbytes(9000),
    "program": b"\x7fELF\x02\x01\x01" + bytes(500) + bytes(range(256)),
}


@pytest.mark.parametrize("content", BINARY.values(), ids=BINARY.keys())
def test_what_is_not_text_is_said_to_be_none(content, tmp_path, capsys):
    (tmp_path / "log").write_bytes(content)
    assert main(["doctor", "--explain", str(tmp_path / "log")]) == 2
    assert "is not text" in capsys.readouterr().err


def test_a_text_of_another_encoding_is_text(tmp_path, capsys):
    for encoding in ("utf-16", "gbk", "shift-jis"):
        (tmp_path / "log").write_bytes("安裝完成 一切正常\n".encode(encoding, errors="ignore") * 40)
        assert main(["doctor", "--explain", str(tmp_path / "log")]) == 0
        assert "no error found" in capsys.readouterr().out


def grow(path):
    with path.open("a") as file:
        file.write("step 2\n")


def cut(path):
    os.truncate(path, 3)


def write_again(path):
    text = path.read_text()
    path.write_text(text)
    os.utime(path, (1, 1))


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (grow, "log grew while it was read"),
        (cut, "log was cut short while it was read"),
        (write_again, "log was written again while it was read"),
        (Path.unlink, "log was written again while it was read"),
        (Path.exists, None),
    ],
)
@pytest.mark.parametrize("redirected", [False, True], ids=["named", "redirected"])
def test_a_log_that_changes_while_it_is_read_is_named(
    change, said, redirected, tmp_path, monkeypatch, capsys
):
    path = tmp_path / "log"
    path.write_text("step 1\nNo space left on device\n")
    read = match.explain_file
    monkeypatch.setattr(match, "explain_file", lambda log: (read(log), change(path))[0])
    with path.open() as opened:
        monkeypatch.setattr(sys, "stdin", opened)
        assert main(["doctor", "--explain", "-" if redirected else str(path)]) == 0
    printed = capsys.readouterr()
    assert "disk-full" in printed.out
    if said:
        assert (said.replace("log", "standard input") if redirected else said) in printed.err
    else:
        assert printed.err == ""


def test_a_pipe_that_stays_open_is_mentioned(monkeypatch, capsys):
    read, write = os.pipe()
    os.write(write, b"No space left on device\n")
    os.close(write)
    monkeypatch.setattr(threading, "Timer", Expired)
    with os.fdopen(read) as pipe:
        monkeypatch.setattr(sys, "stdin", pipe)
        assert main(["doctor", "--explain"]) == 0
    printed = capsys.readouterr()
    assert "Ctrl-C" in printed.err
    assert "disk-full" in printed.out


@pytest.mark.parametrize("words", [[], ["--json"]], ids=["text", "json"])
def test_ctrl_c_explains_what_a_pipe_brought_until_then(words, monkeypatch, capsys):
    read, write = os.pipe()
    os.write(write, b"step 1\nNo space left on device\nstep 2\n")
    monkeypatch.setattr(doctor, "POLL_SECONDS", 0)

    def interrupt_when_empty(*waited):
        ready = select.select(*waited)
        if not ready[0]:
            signal.raise_signal(signal.SIGINT)
        return ready

    monkeypatch.setattr(doctor, "select", SimpleNamespace(select=interrupt_when_empty))
    handler = signal.getsignal(signal.SIGINT)
    with os.fdopen(read) as pipe, os.fdopen(write):
        monkeypatch.setattr(sys, "stdin", pipe)
        assert main(["doctor", "--explain", *words]) == 130
    assert signal.getsignal(signal.SIGINT) is handler
    printed = capsys.readouterr()
    assert "disk-full" in printed.out
    assert "interrupted" in printed.err


def test_ctrl_c_a_second_time_ends_the_command():
    log = doctor.StoppableInput(0)
    log.stop()
    assert log.read(9) == b""
    with pytest.raises(KeyboardInterrupt):
        log.stop()


@pytest.mark.parametrize(
    "words",
    [["--explain", "--json", "{}"], ["{}", "--explain", "--json"], ["--json", "--explain={}"]],
)
def test_a_log_may_be_named_after_another_option(tmp_path, capsys, words):
    log = tmp_path / "a log.txt"
    log.write_text(LOG)
    assert main(["doctor", *[word.format(log) for word in words]]) == 0
    assert json.loads(capsys.readouterr().out)["found"][0]["sign"] == "disk-full"


def test_a_log_without_its_option_is_refused_with_the_option(tmp_path, capsys):
    assert main(["doctor", "a log.txt"]) == 2
    printed = capsys.readouterr().err
    assert "doctor takes no file: a log.txt" in printed
    assert "doctor --explain 'a log.txt'" in printed


def test_listing_and_explaining_exclude_each_other(capsys):
    assert main(["doctor", "--list", "--explain"]) == 2
    assert "not allowed with argument" in capsys.readouterr().err


def test_the_indexes_are_those_that_are_named():
    assert doctor.find_indexes({}) == ()
    assert doctor.find_indexes({"TORCH_INDEX": "https://own.example"}) == ("https://own.example",)
    assert doctor.find_indexes({"PIP_INDEX_URL": "https://pip.example"}) == ("https://pip.example",)


def test_this_checkout_is_the_one_that_is_examined(monkeypatch):
    monkeypatch.setenv("LABKIT_PORT", "9001")
    for name in ("TORCH_INDEX", "PIP_INDEX_URL"):
        monkeypatch.delenv(name, raising=False)
    host = doctor.make_host()
    assert (host.port, host.port_asked) == (9001, True)
    assert host.workspace is not None and host.workspace.name == "work"
    assert (host.indexes, host.builds_torch) == ((), True)
    monkeypatch.setenv("TORCH_INDEX", "https://own.example")
    host = doctor.make_host()
    assert (host.indexes, host.builds_torch) == (("https://own.example",), False)


@pytest.mark.parametrize(
    ("environment", "workspace"),
    [
        ({}, None),
        ({"LABKIT_IN_CONTAINER": "1"}, Path("/work")),
        ({"LABKIT_IN_CONTAINER": "1", "LABKIT_WORKSPACE": "/elsewhere"}, Path("/elsewhere")),
    ],
    ids=["nowhere", "inside the lab", "named"],
)
def test_the_workspace_is_known_inside_the_lab(environment, workspace):
    assert doctor.find_workspace(environment) == workspace


def test_outside_of_a_checkout_there_is_no_workspace(monkeypatch, tmp_path):
    monkeypatch.setenv("LABKIT_HOME", str(tmp_path))
    for name in ("LABKIT_WORKSPACE", "LABKIT_IN_CONTAINER"):
        monkeypatch.delenv(name, raising=False)
    assert doctor.make_host().workspace is None


@pytest.mark.parametrize(
    "words",
    [["doctor", "--list"], ["doctor", "--explain", __file__]],
    ids=["list", "explain"],
)
def test_the_doctor_needs_the_standard_library_alone(words):
    assert list_modules(MAIN.format(words=words)).isdisjoint({*HEAVY, "pynvml"})


def test_a_whole_examination_loads_nothing_heavy():
    statement = (
        "from labkit.cli import doctor\n"
        "    from labkit.doctor.checks import CHECKS\n"
        "    from labkit.doctor.run import examine_host\n"
        "    keep = [each for each in CHECKS if each.name[:6] != 'torch-']\n"
        "    examine_host(doctor.make_host(), keep, offline=True)"
    )
    assert list_modules(statement).isdisjoint({*HEAVY, "pynvml"})


def test_this_machine_is_examined_without_a_crash():
    # -S leaves the installed packages out: a bare host, as `make doctor` finds it.
    command = [sys.executable, "-S", "-m", "labkit", "doctor", "--offline", "--json"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    said = json.loads(done.stdout)
    assert done.returncode == (0 if said["healthy"] else 5)
    assert {each["check"] for each in said["checks"]} == {
        check.name for check in CHECKS if not check.network
    }
    assert not [each for each in said["checks"] if "itself broke" in each["found"]]


def test_a_closed_standard_input_is_named(monkeypatch, capsys):
    monkeypatch.setattr(sys, "stdin", None)
    assert main(["doctor", "--explain", "-"]) == 2
    assert "standard input is closed" in capsys.readouterr().err

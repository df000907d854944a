"""A process's resident memory and its high-water mark, from a played /proc and the real one."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from labkit.host.cpu import CpuFacts
from labkit.memory.balance import read
from labkit.memory.balance.read import (
    read_command,
    read_peak_bytes,
    read_resident_bytes,
    reset_peak,
    sees_host_ids,
)
from labkit.process import CommandResult
from tests.fakes.pages import hold_pages

MIB = 2**20
PAGE = os.sysconf("SC_PAGE_SIZE")
STATUS = "Name:\tpython\nVmPeak:\t  999 kB\nVmHWM:\t   2048 kB\nVmRSS:\t   1024 kB\n"

on_linux = pytest.mark.skipif(sys.platform != "linux", reason="needs Linux's /proc")


@pytest.fixture
def proc(tmp_path):
    """A /proc with this process and process 77."""
    for name in ("self", "77"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "statm").write_text("5000 256 100 1 0 300 0\n")
        (tmp_path / name / "status").write_text(STATUS)
        (tmp_path / name / "clear_refs").write_text("")
    return tmp_path


@pytest.mark.parametrize("process_id", [None, 77], ids=["this one", "another"])
def test_the_figures_are_the_kernels(proc, process_id):
    assert read_resident_bytes(process_id, proc=proc) == 256 * PAGE
    assert read_peak_bytes(process_id, proc=proc) == 2 * MIB


def test_resetting_writes_the_five_of_proc_5(proc):
    assert reset_peak(77, proc=proc) is True
    assert (proc / "77/clear_refs").read_text() == "5"
    assert (proc / "self/clear_refs").read_text() == ""


def test_a_process_that_has_ended_is_unknown(proc):
    assert read_resident_bytes(78, proc=proc) is None
    assert read_peak_bytes(78, proc=proc) is None
    assert reset_peak(78, proc=proc) is False
    assert read_command(78, proc=proc) is None


def test_a_kernel_that_keeps_no_mark_gives_none(proc):
    (proc / "self/status").write_text("Name:\tpython\nVmRSS:\t 1024 kB\n")
    assert read_peak_bytes(proc=proc) is None


def test_a_process_without_memory_has_no_figure(proc):
    (proc / "77/statm").write_text("")
    assert read_resident_bytes(77, proc=proc) is None


@pytest.mark.parametrize(
    ("answer", "expected"),
    [
        (CommandResult(("ps",), 0, " 2048\n"), 2 * MIB),
        (CommandResult(("ps",), 1, ""), None),
        (CommandResult(("ps",), None, missing=True), None),
    ],
    ids=["told", "no such process", "no ps"],
)
def test_without_proc_and_psutil_the_figure_is_that_of_ps(tmp_path, monkeypatch, answer, expected):
    asked = []

    def play(arguments, *, timeout_seconds):
        asked.append(arguments)
        return answer

    monkeypatch.setattr("labkit.process.run_command", play)
    monkeypatch.setitem(sys.modules, "psutil", None)
    assert read_resident_bytes(77, proc=tmp_path / "none") == expected
    assert asked == [["ps", "-o", "rss=", "-p", "77"]]


def test_without_proc_psutil_reads_the_process_and_the_machine(tmp_path, monkeypatch):
    assert read_resident_bytes(proc=tmp_path / "none") > MIB
    assert read_resident_bytes(2**22 + 1, proc=tmp_path / "none") is None  # no such process
    monkeypatch.setattr(read, "detect_cpu", CpuFacts)
    monkeypatch.setattr(read, "ROOT", tmp_path)
    memory = read.read_machine_memory(tmp_path)
    assert memory.total_bytes == memory.machine_bytes > memory.free_bytes > MIB


@pytest.mark.parametrize(
    ("files", "expected"),
    [
        ({"cmdline": b"/opt/bin/python\0/home/me/train.py\0--token\0x\0"}, "python train.py"),
        ({"cmdline": b"python3\0-m\0vllm.serve\0--api-key\0x\0"}, "python3 -m vllm.serve"),
        ({"cmdline": b"python\0-c\0print(1)\0"}, "python"),
        ({"cmdline": b"nvidia-persistenced\0"}, "nvidia-persistenced"),
        ({"cmdline": b"", "comm": b"kworker/0:1\n"}, "kworker/0:1"),
        ({"cmdline": b"", "comm": b""}, None),
        ({"cmdline": b"pyth\xffon\0"}, "pyth\ufffdon"),
        ({"cmdline": b"py\x1b[2Jthon\nx\0"}, "py?[2Jthon?x"),
    ],
    ids=[
        "script",
        "module",
        "code",
        "program",
        "kernel thread",
        "empty",
        "not utf-8",
        "a terminal's commands",
    ],
)
def test_the_command_of_a_process(proc, files, expected):
    for name, content in files.items():
        (proc / "77" / name).write_bytes(content)
    assert read_command(77, proc=proc) == expected


def test_ids_are_the_hosts_only_in_the_first_namespace(proc, monkeypatch):
    (proc / "self/ns").mkdir()
    namespace = proc / "self/ns/pid"
    namespace.write_text("")
    assert sees_host_ids(proc=proc) is False
    monkeypatch.setattr(read, "FIRST_NAMESPACE", namespace.stat().st_ino)
    assert sees_host_ids(proc=proc) is True


def test_ids_are_nobodys_where_there_is_no_namespace(tmp_path):
    assert sees_host_ids(proc=tmp_path) is False


@on_linux
def test_a_spike_is_seen_after_it_is_gone():
    if not reset_peak():
        pytest.skip("needs a kernel that lets a process reset its mark: /proc/self/clear_refs")
    before = read_resident_bytes()
    spike = hold_pages(64 * MIB)
    del spike
    peak = read_peak_bytes()
    assert before is not None
    assert peak is not None
    assert 60 * MIB < peak - before < 80 * MIB
    assert reset_peak()
    again = read_peak_bytes()
    assert again is not None
    assert again < peak - 50 * MIB


@on_linux
def test_another_process_is_read_too():
    script = "import sys; held = bytearray(32 << 20); print('ready', flush=True); sys.stdin.read()"
    with subprocess.Popen(
        [sys.executable, "-c", script], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as child:
        assert child.stdout is not None
        assert child.stdout.readline() == "ready\n"
        resident, peak = read_resident_bytes(child.pid), read_peak_bytes(child.pid)
        command = read_command(child.pid)
        child.communicate()
    assert resident is not None
    assert peak is not None
    assert 32 * MIB < resident < 128 * MIB
    assert peak >= resident - MIB
    assert command == Path(sys.executable).name

"""Programs that hang, flood, die or talk nonsense: the doctor ends in time, and whole."""

from __future__ import annotations

import dataclasses
import json
import os
import time
from pathlib import Path

import pytest

from labkit.doctor.check import PROBE_SECONDS, OnceRunner, run_probe
from labkit.doctor.checks import CHECKS
from labkit.doctor.checks import torch as torch_build_check
from labkit.doctor.run import examine_host, format_examination
from tests.fakes.host import write_program
from tests.fakes.sick_hosts import play_host

PROGRAMS = (
    *("docker", "podman", "nvidia-smi", "nvidia-ctk"),
    *("modinfo", "dmesg", "journalctl", "mokutil"),
)
WHOLE_SECONDS = 10.0

STUBBORN = 'trap "" TERM INT HUP; sleep 60 & wait; sleep 60'
FAULTS = {
    "hangs": "exec sleep 60",
    "floods": "exec yes x,y,580.95.05",
    "floods its errors": "exec yes error >&2",
    "floods one endless line": "exec tr '\\0' x </dev/zero",
    "prints bytes that are no text": "head -c 4000 /dev/urandom; printf '\\377\\376{'; exit 1",
    "is killed": "echo half a line; kill -9 $$",
    "crashes": "kill -11 $$",
    "prints nothing": "exit 0",
    "prints JSON of another shape": """echo '{"Runtimes": 3, "SecurityOptions": 7, "host": 1}'""",
    "prints JSON without end": "head -c 200000 /dev/zero | tr '\\0' '['",
    "asks a question": "read -r answer; echo $answer",
    "leaves a child behind": "(sleep 30 &) ; exit 0",
    "is no program": None,
}


@pytest.fixture
def sick_programs(tmp_path, monkeypatch):
    """Puts programs of every name that a probe may run, all of one fault, before the real ones."""
    monkeypatch.setattr(torch_build_check, "read_torch_build", lambda: None)

    def write(script, limit_seconds=0.5):
        for name in PROGRAMS:
            program = write_program(tmp_path / "bin", name, script or "")
            if script is None:
                program.write_bytes(b"\x7fELF no program at all")
        monkeypatch.setenv("PATH", f"{tmp_path / 'bin'}:{os.environ['PATH']}")
        run = OnceRunner(run_probe, limit_seconds)
        host = play_host(tmp_path / "root", gpu=True)
        return dataclasses.replace(host, run=run, run_long=run_probe, run_shared=run_probe)

    return write


@pytest.mark.slow
@pytest.mark.parametrize("script", FAULTS.values(), ids=FAULTS.keys())
def test_whatever_programs_do_every_check_comes_back(sick_programs, script):
    examination = examine_host(sick_programs(script), CHECKS)
    assert [each.check for each in examination.findings] == [check.name for check in CHECKS]
    assert not [each for each in examination.findings if "itself broke" in each.found]
    assert format_examination(examination)
    assert json.dumps([each.describe() for each in examination.findings])


@pytest.mark.slow
def test_with_the_real_limits_the_whole_ends_within_ten_seconds(sick_programs):
    host = sick_programs(STUBBORN, PROBE_SECONDS)
    started = time.monotonic()
    examination = examine_host(host, CHECKS)
    assert time.monotonic() - started < WHOLE_SECONDS - 1  # Python starts and prints in the rest
    daemon = next(each for each in examination.findings if each.check == "engine-daemon")
    assert daemon.found == "docker did not answer in 3 s"  # its own verdict, and not the whole's


def test_what_is_sound_is_still_judged_beside_what_hangs(sick_programs):
    examination = examine_host(sick_programs("exec sleep 60"), CHECKS)
    status = {each.check: each.status for each in examination.findings}
    assert status["gpu-bus"] == status["driver"] == status["memory"] == status["disk"] == "ok"
    assert status["driver-library"] == "unknown"
    assert status["engine-daemon"] == "unknown"
    assert status["compose"] == "skipped"


def test_probes_that_break_in_every_way_are_told_apart_from_the_host(tmp_path, monkeypatch):
    monkeypatch.setattr(torch_build_check, "read_torch_build", lambda: None)

    def broken(arguments, *, timeout_seconds):
        raise MemoryError("no room for another process")

    host = dataclasses.replace(play_host(tmp_path, gpu=True), run=broken)
    findings = examine_host(host, CHECKS).findings
    assert len(findings) == len(CHECKS)
    assert any("MemoryError: no room for another process" in each.found for each in findings)


def test_files_that_may_not_be_read_and_folders_in_their_place_break_nothing(tmp_path, monkeypatch):
    monkeypatch.setattr(torch_build_check, "read_torch_build", lambda: None)
    host = play_host(tmp_path, gpu=True)
    for name in ("proc/modules", "proc/meminfo", "etc/os-release", "proc/driver/nvidia/version"):
        path = Path(tmp_path / name)
        path.unlink()
        path.mkdir()
    findings = examine_host(host, CHECKS).findings
    assert not [each for each in findings if "itself broke" in each.found]

"""Whole screens of ``labkit doctor``: a broken host, and the same one on its way out."""

from __future__ import annotations

import io
import json
import sys
from pathlib import Path

import pytest

from labkit import process
from labkit.cli import doctor, main
from labkit.doctor.checks import CHECKS, torch
from labkit.doctor.run import examine_host, format_examination
from labkit.host.distribution import Distribution
from labkit.process import CommandResult
from tests.fakes.host import DOCKER_INFO, INFO, says
from tests.fakes.sick_hosts import CTK, CTK_FINE, play_host
from tests.snapshots import assert_snapshot

SYSTEMD = {**DOCKER_INFO, "CgroupDriver": "systemd", "CgroupVersion": "2"}
WITH_TOOLKIT = {**SYSTEMD, "Runtimes": {"runc": {}, "nvidia": {}}}
UBUNTU = Distribution("Ubuntu 24.04", "ubuntu")
NO_UVM = {"dev/nvidia-uvm": None, "proc/modules": "nvidia 14000000 1 - Live 0x0\n"}


@pytest.fixture
def lab_box(tmp_path, monkeypatch):
    """An Ubuntu box with an RTX 4090, no toolkit and no nvidia-uvm; its state can be changed."""
    state = {"files": dict(NO_UVM), "answers": {INFO: says(json.dumps(SYSTEMD)), CTK: None}}
    monkeypatch.setattr(torch, "read_torch_build", lambda: None)
    place = Path("/home/ada/labkit/work")

    def make(deep):
        settings = {"gpu": True, "distribution": "ubuntu", "workspace": place, "deep": deep}
        return play_host(tmp_path, **settings, **state)

    monkeypatch.setattr(doctor, "make_host", make)
    return state


def test_a_sick_host_is_shown_its_way_out(lab_box, monkeypatch, capsys):
    assert main(["doctor"]) == 5
    sick = capsys.readouterr().out
    assert_snapshot("doctor_sick_host", sick)

    def load(arguments, *, timeout_seconds):
        lab_box["files"] = {}
        return CommandResult(tuple(arguments), 0)

    stream = io.StringIO("y\n")
    stream.isatty = lambda: True
    monkeypatch.setattr(sys, "stdin", stream)
    monkeypatch.setattr(process, "run_at_terminal", load)
    assert main(["doctor", "--fix"]) == 5
    out, err = capsys.readouterr()
    assert out.startswith(sick)
    # The tests may run as root, who needs no sudo.
    assert "sudo modprobe nvidia-uvm" in err.replace("  modprobe", "  sudo modprobe")
    assert "nvidia-uvm: now ok" in err
    assert "toolkit: not run" in err

    lab_box["answers"] = {INFO: says(json.dumps(WITH_TOOLKIT)), CTK: CTK_FINE}
    assert main(["doctor"]) == 0
    assert_snapshot("doctor_healthy_host", capsys.readouterr().out)


LOG = """\
 cuda-1  | Failed to initialize NVML: Driver/library version mismatch
 cuda-1  | RuntimeError: No CUDA GPUs are available
 cuda-1  | OSError: [Errno 28] No space left on device: '\x1b]0;title\x07/data'
"""


def test_an_explained_log(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr("labkit.host.distribution.read_distribution", lambda: UBUNTU)
    log = tmp_path / "lab.log"
    log.write_text(LOG)
    assert main(["doctor", "--explain", str(log)]) == 0
    assert_snapshot("doctor_explain", capsys.readouterr().out)


@pytest.mark.parametrize("columns", [40, 57, 60, 80, 200])
def test_the_findings_fold_at_the_terminals_width(tmp_path, columns):
    without = {CTK: None, INFO: says(json.dumps(SYSTEMD))}
    examination = examine_host(play_host(tmp_path, gpu=True, answers=without), CHECKS)
    lines = format_examination(examination, columns).splitlines()
    assert max(len(line) for line in lines if "try: " not in line) <= columns
    # A command stays in one piece, whatever its length.
    fix = next(each.fix for each in examination.findings if each.check == "toolkit")
    assert fix
    assert f"try: {fix}" in "\n".join(lines)

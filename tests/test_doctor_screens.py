"""Whole screens of ``labkit doctor``: a broken host, and the same one on its way out."""

from __future__ import annotations

import io
import json
import sys
from pathlib import Path

import pytest

from labkit import process
from labkit.cli import doctor, main
from labkit.doctor.checks import torch
from labkit.process import CommandResult
from tests.fakes.host import DOCKER_INFO, INFO, says
from tests.fakes.sick_hosts import CTK, CTK_FINE, play_host

SYSTEMD = {**DOCKER_INFO, "CgroupDriver": "systemd", "CgroupVersion": "2"}
WITH_TOOLKIT = {**SYSTEMD, "Runtimes": {"runc": {}, "nvidia": {}}}
NO_UVM = {"dev/nvidia-uvm": None, "proc/modules": "nvidia 14000000 1 - Live 0x0\n"}

BROKEN = """\
ok       gpu-bus           1 on the bus: 0000:01:00.0
ok       gpu-health        no fault in the kernel's log since boot
ok       driver            driver 580.95.05 runs every CUDA build of torch
ok       driver-library    module and libraries work together, both 580.95.05: NVIDIA GeForce \
RTX 4090
ok       device-nodes      /dev/nvidiactl, /dev/nvidia0, open to this user
ok       mig               MIG is off, or not on this GPU
ok       cuda-build        torch's cu130 build fits compute capability 8.9
ok       engine-client     docker is installed
ok       engine-permission docker has not refused this user
ok       engine-daemon     docker 26.1.5+dfsg1 answers
ok       compose           Compose 2.26.1-4
ok       engine-kind       docker runs on this system
ok       selinux           SELinux is not enforcing
ok       shm               shared memory: 16.0 GiB
ok       disk              80.0 GiB free at /home/ada/labkit/work
ok       memory            22.9 GiB of 30.5 GiB available
ok       port              port 8888 is free
ok       workspace         /home/ada/labkit/work does not exist yet; make up creates it
ok       certificates      no proxy and no certificate file is set
ok       dns               index.example resolves
ok       index             https://index.example/whl/cpu answers
ok       torch-build       no torch in this Python: the lab brings its own
skipped  5 checks          because toolkit failed
skipped  4 checks          because there is no torch here
warning  nvidia-uvm        no nvidia-uvm
                           cause: CUDA would fail with an unknown error, although nvidia-smi works
                           try: sudo nvidia-modprobe -u -c=0 || sudo modprobe nvidia-uvm
failed   toolkit           no NVIDIA Container Toolkit
                           cause: without it no container gets the GPU; it comes from NVIDIA's own \
package source (nvidia.github.io/libnvidia-container)
                           try: sudo apt-get install nvidia-container-toolkit && sudo nvidia-ctk \
runtime configure --runtime=docker && sudo systemctl restart docker

33 checks: 22 ok, 9 skipped, 1 warning, 1 failed
"""
OFFERED = """\
nvidia-uvm: no nvidia-uvm
  sudo modprobe nvidia-uvm   # loads the driver's module for CUDA's memory
run it? [y/N] nvidia-uvm: now ok: /dev/nvidia-uvm exists
toolkit: not run: it restarts the engine, and with it all containers
  type it yourself: sudo apt-get install nvidia-container-toolkit && sudo nvidia-ctk runtime \
configure --runtime=docker && sudo systemctl restart docker
"""
# What is new on the screen once the toolkit is there too.
WHOLE = [
    "ok       nvidia-uvm        /dev/nvidia-uvm exists",
    "ok       toolkit           NVIDIA Container Toolkit 1.17.8",
    "ok       cdi               no CDI specification, and none needed",
    "ok       gpu-passing       docker knows the nvidia runtime",
    "ok       cgroups           no-cgroups is off, as this engine requires",
    "ok       cgroup-driver     systemd, cgroup v2: where a running lab loses its GPU (NVML: "
    "Unknown Error) after a daemon-reload, make down up",
    "ok       container-gpu     a container of labkit:cuda sees 1 GPU (by reservation)",
    "33 checks: 29 ok, 4 skipped",
]


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


def test_a_host_without_the_toolkit(lab_box, capsys):
    assert main(["doctor"]) == 5
    assert capsys.readouterr().out == BROKEN


def test_its_way_out(lab_box, tmp_path, monkeypatch, capsys):
    ran = []

    def load(arguments, *, timeout_seconds):
        ran.append(arguments)
        lab_box["files"] = {}
        return CommandResult(tuple(arguments), 0)

    stream = io.StringIO("y\n")
    stream.isatty = lambda: True
    monkeypatch.setattr(sys, "stdin", stream)
    monkeypatch.setattr(process, "run_at_terminal", load)
    assert main(["doctor", "--fix"]) == 5
    out, err = capsys.readouterr()
    assert out.startswith(BROKEN)
    # The tests may run as root, who needs no sudo.
    assert err.replace("  modprobe", "  sudo modprobe") == OFFERED
    assert len(ran) == 1

    lab_box["answers"] = {INFO: says(json.dumps(WITH_TOOLKIT)), CTK: CTK_FINE}
    assert main(["doctor"]) == 0
    screen = capsys.readouterr().out.splitlines()
    before = BROKEN.splitlines()
    assert [line for line in screen if line and line not in before] == WHOLE

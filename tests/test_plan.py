"""From a host's facts to a plan of the lab, and what is said of it."""

from __future__ import annotations

import io
from dataclasses import replace
from pathlib import Path

import pytest

from labkit.errors import EngineError, UsageError
from labkit.host.gpu import Gpu, GpuFacts
from labkit.host.machine import FolderFacts
from labkit.host.packages import GUIDE
from labkit.launch.compose import ContainerLab
from labkit.launch.local import LocalLab
from labkit.launch.plan import Choice, HostFacts, make_plan, probe_host
from labkit.launch.progress import Steps
from labkit.launch.settings import CPU, Identity, Settings
from labkit.launch.up import announce
from tests.fakes.gpu_hosts import docker_host
from tests.fakes.host import (
    ADA,
    DOCKER,
    NO_DOCKER,
    NO_GPU,
    NO_PODMAN,
    PODMAN,
    FakeRunner,
    make_checkout,
)


@pytest.fixture
def checkout(tmp_path):
    return make_checkout(tmp_path / "a lab")


@pytest.fixture
def screen():
    return io.StringIO()


@pytest.fixture
def steps(screen):
    return Steps(screen, clock=lambda: 0.0)


def facts(docker=NO_DOCKER, podman=NO_PODMAN, gpu=NO_GPU, machine=ADA):
    folder = FolderFacts(Path("/home/ada/lab"), True, True, 1000, 1000, True, 10**12)
    return HostFacts(machine, docker, podman, gpu, folder, folder)


def test_a_host_without_an_engine_gets_a_local_lab(checkout):
    plan = make_plan(checkout, Settings(), facts())
    assert plan.runtime == Choice("local", "no docker or podman command here")
    assert plan.flavor.value == CPU
    assert plan.lab == LocalLab(checkout, Settings())
    assert not plan.port_asked


def test_a_host_with_docker_gets_a_container_of_its_user(checkout):
    plan = make_plan(checkout, Settings(port=9000), facts(docker=DOCKER))
    assert isinstance(plan.lab, ContainerLab)
    assert (plan.lab.client, plan.lab.flavor) == ("docker", CPU)
    assert plan.lab.identity == Identity(1000, 1000)
    assert plan.port_asked


def test_a_host_with_podman_keeps_the_users_id(checkout):
    plan = make_plan(checkout, Settings(), facts(podman=PODMAN))
    assert isinstance(plan.lab, ContainerLab)
    assert plan.lab.client == "podman"
    assert plan.lab.identity == Identity(1000, 1000, keep_id=True)


@pytest.mark.parametrize(
    ("runtime", "clients"),
    [
        ("docker", {"docker"}),
        ("podman", {"podman"}),
        ("local", set()),
        ("auto", {"docker", "podman"}),
    ],
)
def test_only_the_engine_that_was_asked_for_is_probed(checkout, tmp_path, runtime, clients):
    run = FakeRunner({})
    probe_host(
        checkout, Settings(runtime=runtime), Steps(io.StringIO()), run, tmp_path, machine=ADA
    )
    asked = {call.split()[0] for call in run.calls}
    assert asked == {"nvidia-smi", *clients}


def test_settings_that_no_host_meets_are_told_before_it_is_asked(checkout, tmp_path):
    run = FakeRunner({})
    for settings in (Settings(runtime="dokcer"), Settings(flavor="gpus"), Settings(cuda="cu1")):
        with pytest.raises(UsageError, match="unknown"):
            probe_host(checkout, settings, Steps(io.StringIO()), run, tmp_path, machine=ADA)
    assert run.calls == []


def test_the_probes_of_a_gpu_host_stand_side_by_side_but_the_trial_comes_last(
    checkout, tmp_path, steps, screen
):
    run = FakeRunner(docker_host("NVIDIA H200, 580.65.06, 0, GPU-aaaa, 9.0, Disabled"))
    access_tests = probe_host(checkout, Settings(), steps, run, tmp_path, machine=ADA).access_tests
    assert screen.getvalue().splitlines() == [
        "trying a container with the GPU ...",
        "trying a container with the GPU: done in 0:00",
    ]
    assert [test.way for test in access_tests] == ["reservation", "cdi"]
    assert [call.split()[1] for call in run.calls[-3:]] == ["image", "run", "run"]


def test_what_was_chosen_and_why_is_said(steps, screen, checkout):
    gpu = GpuFacts("470.82.01", (Gpu("Tesla T4", capability=(7, 5)),))
    announce(make_plan(checkout, Settings(), facts(gpu=gpu)), Settings(), steps)
    assert screen.getvalue() == (
        "runtime: local (no docker or podman command here)\n"
        "flavor:  cpu (driver 470.82.01 is too old for CUDA)\n"
        "  warning: Tesla T4 (driver 470.82.01) is here but will not be used: every CUDA build of"
        " torch here needs driver 525 or newer\n"
        "    try: install NVIDIA's driver 580 or newer (open modules) from its own source"
        f" ({GUIDE}), then reboot\n"
        "memory:  not limited: the lab is a process of your own, without a container\n"
    )


def test_an_open_address_is_warned_of(steps, screen, checkout):
    settings = Settings(bind="0.0.0.0")
    announce(make_plan(checkout, settings, facts()), settings, steps)
    assert screen.getvalue().splitlines()[-1] == (
        "  warning: BIND=0.0.0.0 opens the lab to every machine that can reach this one; anyone "
        "with the URL can run programs here as you, and plain HTTP can be read on the network"
    )


def test_a_fix_names_only_programs_that_are_installed(checkout):
    gpu = GpuFacts("470.82.01", (Gpu("Tesla T4", capability=(7, 5)),))
    stopped = replace(DOCKER, server_version=None, problem="no daemon")
    lacking = replace(
        facts(docker=stopped, gpu=gpu),
        find_program=lambda name: None if name == "systemctl" else name,
    )
    with pytest.raises(EngineError) as caught:
        make_plan(checkout, Settings(runtime="docker"), lacking)
    assert caught.value.fix == "sudo service docker start"

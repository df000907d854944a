"""From a host's facts to a plan of the lab, and what is said of it."""

from __future__ import annotations

import io

import pytest

from labkit.host.gpu import GpuFacts
from labkit.launch import up
from labkit.launch.choose import Choice, Identity
from labkit.launch.container import ContainerLab
from labkit.launch.local import LocalLab
from labkit.launch.settings import Settings
from labkit.launch.steps import Steps
from labkit.launch.up import HostFacts, announce, make_plan
from tests.fakes.host import ADA, DOCKER, NO_DOCKER, NO_GPU, NO_PODMAN, PODMAN, make_checkout


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
    return HostFacts(machine, docker, podman, gpu)


def test_a_host_without_an_engine_gets_a_local_lab(checkout):
    plan = make_plan(checkout, Settings(), facts())
    assert plan.runtime == Choice("local", "no docker or podman command here")
    assert plan.flavor.value == "cpu"
    assert plan.lab == LocalLab(checkout, Settings())
    assert not plan.port_asked


def test_a_host_with_docker_gets_a_container_of_its_user(checkout):
    plan = make_plan(checkout, Settings(port=9000), facts(docker=DOCKER))
    assert isinstance(plan.lab, ContainerLab)
    assert (plan.lab.client, plan.lab.flavor) == ("docker", "cpu")
    assert plan.lab.identity == Identity(1000, 1000)
    assert plan.port_asked


def test_a_host_with_podman_keeps_the_users_id(checkout):
    plan = make_plan(checkout, Settings(), facts(podman=PODMAN))
    assert isinstance(plan.lab, ContainerLab)
    assert plan.lab.client == "podman"
    assert plan.lab.identity == Identity(1000, 1000, keep_id=True)


def test_only_the_engine_that_was_asked_for_is_probed(monkeypatch):
    probed = []
    monkeypatch.setattr(up, "probe_engine", lambda name, run: probed.append(name) or DOCKER)
    monkeypatch.setattr(up, "probe_gpu", lambda run: NO_GPU)
    up.probe_host(Settings(runtime="docker"))
    assert probed == ["docker"]
    up.probe_host(Settings(runtime="local"))
    assert probed == ["docker"]
    up.probe_host(Settings())
    assert sorted(probed) == ["docker", "docker", "podman"]


def test_what_was_chosen_and_why_is_said(steps, screen, checkout):
    gpu = GpuFacts("580.65.06", ("NVIDIA H200",))
    announce(make_plan(checkout, Settings(), facts(gpu=gpu)), Settings(), steps)
    assert screen.getvalue() == (
        "runtime: local (no docker or podman command here)\n"
        "flavor:  cpu (this version of labkit has no cuda flavor yet)\n"
        "  warning: NVIDIA H200 (driver 580.65.06) is here but will not be used\n"
    )


def test_an_open_address_is_warned_of(steps, screen, checkout):
    settings = Settings(bind="0.0.0.0")
    announce(make_plan(checkout, settings, facts()), settings, steps)
    assert screen.getvalue().splitlines()[2] == (
        "  warning: BIND=0.0.0.0 opens the lab to every machine that reaches this one; whoever "
        "has the URL can run programs here as you, and plain HTTP can be read on the way"
    )

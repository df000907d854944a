"""What the probes make of recorded answers: facts, and the engine's own line where it fails."""

from __future__ import annotations

import json

import pytest

from labkit.host.engine import PROBE_SECONDS, EngineFacts, find_engine_obstacle, probe_engine
from tests.fakes import host
from tests.fakes.host import FakeRunner, fails, hangs, says


def probe(name, answers):
    return probe_engine(name, FakeRunner(answers))


def test_docker_that_answers():
    assert probe("docker", host.DOCKER_FINE) == EngineFacts(
        "docker",
        client_found=True,
        server_version="26.1.5+dfsg1",
        endpoint="unix:///var/run/docker.sock",
        rootless=False,
        compose_version="2.26.1-4",
    )


def test_rootless_docker_says_so():
    info = {**host.DOCKER_INFO, "SecurityOptions": ["name=seccomp", "name=rootless"]}
    answers = {**host.DOCKER_FINE, host.INFO: says(json.dumps(info))}
    assert probe("docker", answers).rootless is True


def test_podman_that_answers():
    assert probe("podman", host.PODMAN_FINE) == EngineFacts(
        "podman",
        client_found=True,
        server_version="5.4.2",
        rootless=True,
        compose_version="1.3.0",
    )


@pytest.mark.parametrize("name", ["docker", "podman"])
def test_no_client_is_asked_nothing_more(name):
    run = FakeRunner({})
    assert probe_engine(name, run) == EngineFacts(name, client_found=False)
    assert len(run.calls) == 1


def test_every_probe_has_a_limit():
    run = FakeRunner(host.DOCKER_FINE)
    probe_engine("docker", run)
    assert run.limits == [PROBE_SECONDS] * 3


@pytest.mark.parametrize(
    ("info", "problem"),
    [
        pytest.param(fails(host.NO_DAEMON, stdout='{"ID":""}'), host.NO_DAEMON, id="no daemon"),
        pytest.param(
            says(json.dumps({"ServerErrors": [host.NO_DAEMON]})),
            host.NO_DAEMON,
            id="no daemon, told in the JSON",
        ),
        pytest.param(fails(host.NOT_ALLOWED), host.NOT_ALLOWED, id="permission denied"),
        pytest.param(hangs("docker"), "docker did not answer in 10 s", id="it hangs"),
        pytest.param(says("not JSON"), "not JSON", id="no JSON"),
        pytest.param(says("[1, 2]"), "[1, 2]", id="JSON of another kind"),
    ],
)
def test_docker_whose_daemon_does_not_answer(info, problem):
    facts = probe("docker", {**host.DOCKER_FINE, host.INFO: info})
    assert facts.client_found
    assert facts.server_version is None
    assert facts.rootless is None
    assert facts.problem == problem


@pytest.mark.parametrize(
    ("answer", "version", "problem"),
    [
        pytest.param(says("2.29.7"), "2.29.7", None, id="plain"),
        pytest.param(says("v2.39.1-desktop.1"), "2.39.1-desktop.1", None, id="with a v"),
        pytest.param(
            fails(host.NO_COMPOSE_PLUGIN, 125), None, "unknown flag: --short", id="no plugin"
        ),
        pytest.param(
            fails("docker: 'compose' is not a docker command.\nSee 'docker --help'"),
            None,
            "docker: 'compose' is not a docker command.",
            id="no plugin, older client",
        ),
        pytest.param(says("hello"), None, "hello", id="no version in it"),
    ],
)
def test_compose_and_why_there_is_none(answer, version, problem):
    facts = probe("docker", {**host.DOCKER_FINE, host.COMPOSE: answer})
    assert (facts.compose_version, facts.compose_problem) == (version, problem)


def test_podman_without_a_compose_provider():
    answers = {**host.PODMAN_FINE, host.PODMAN_COMPOSE: fails(host.NO_PODMAN_PROVIDER, 125)}
    facts = probe("podman", answers)
    assert facts.compose_version is None
    assert facts.compose_problem == "Error: looking up compose provider failed"


def test_podman_that_fails():
    answers = {**host.PODMAN_FINE, host.PODMAN_INFO: fails("Error: cannot re-exec process", 125)}
    facts = probe("podman", answers)
    assert facts.server_version is None
    assert facts.rootless is None
    assert facts.problem == "Error: cannot re-exec process"


def test_a_docker_command_that_is_podmans():
    facts = probe("docker", host.PODMAN_AS_DOCKER)
    assert facts.server_version is None
    assert facts.problem == "this docker command is Podman's"
    assert facts.endpoint is None


@pytest.mark.parametrize(
    ("version", "major"),
    [("2.26.1-4", 2), ("v5.0.0", 5), ("1.29.2", 1), (None, None), ("dev", None)],
)
def test_composes_major_version(version, major):
    assert EngineFacts("docker", True, compose_version=version).compose_major == major


@pytest.mark.parametrize(
    ("endpoint", "remote"),
    [
        ("unix:///var/run/docker.sock", False),
        ("unix:///run/user/1000/docker.sock", False),
        ("npipe:////./pipe/docker_engine", False),
        ("ssh://ada@gpu-host", True),
        ("tcp://10.0.0.7:2376", True),
        (None, False),
    ],
)
def test_a_daemon_on_another_machine_is_remote(endpoint, remote):
    assert EngineFacts("docker", True, endpoint=endpoint).remote is remote


@pytest.mark.parametrize(
    ("variable", "answers", "kind", "fix"),
    [
        (
            "DOCKER_HOST=tcp://gpu:2375",
            {host.INFO: fails(host.NO_DAEMON)},
            "daemon",
            "unset DOCKER_HOST",
        ),
        (
            "DOCKER_CONTEXT=gpu",
            {host.INFO: fails('Failed to initialize: context "gpu": context not found')},
            "daemon",
            "unset DOCKER_CONTEXT",
        ),
        (
            "DOCKER_HOST=ssh://ada@gpu",
            {host.CONTEXT: says("ssh://ada@gpu")},
            "remote",
            "unset DOCKER_HOST",
        ),
    ],
)
def test_a_variable_that_names_another_daemon_is_named(variable, answers, kind, fix):
    name, _, value = variable.partition("=")
    run = FakeRunner({**host.DOCKER_FINE, **answers})
    obstacle = find_engine_obstacle(probe_engine("docker", run, {name: value}))
    assert (obstacle.kind, variable in obstacle.reason) == (kind, True)
    assert fix in obstacle.fix

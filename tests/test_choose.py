"""Each choice is a pure function of facts: a table of hosts, and what is taken on them and why."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from labkit.errors import EngineError, UsageError
from labkit.host.distribution import Distribution
from labkit.host.engine import find_engine_obstacle
from labkit.host.machine import FolderFacts
from labkit.launch.plan import Choice, check_name, choose_identity, choose_runtime
from labkit.launch.settings import Identity
from tests.fakes import host
from tests.fakes.host import ADA, DOCKER, NO_DOCKER, NO_PODMAN, PODMAN

NO_ANSWER = replace(DOCKER, server_version=None, rootless=None, problem=host.NO_DAEMON)
REFUSED = replace(DOCKER, server_version=None, rootless=None, problem=host.NOT_ALLOWED)
HANGS = replace(DOCKER, server_version=None, problem="docker did not answer in 10 s")
FEDORA = Distribution("Fedora Linux 42", "fedora")
SHIM = replace(DOCKER, server_version=None, problem="this docker command is Podman's")
NO_COMPOSE = replace(DOCKER, compose_version=None, compose_problem="unknown flag: --short")
OLD_COMPOSE = replace(DOCKER, compose_version="1.29.2")
REMOTE = replace(DOCKER, endpoint="ssh://ada@gpu-host")
PODMAN_BARE = replace(PODMAN, compose_version=None, compose_problem="no provider")
PODMAN_BROKEN = replace(PODMAN, server_version=None, problem="cannot re-exec process")

DOCKER_ANSWERS = "Docker 26.1.5 answers, with Compose 2.26.1"
PODMAN_ANSWERS = "Podman 5.4.2 answers, with Compose 1.3.0"


@pytest.mark.parametrize(
    ("docker", "podman", "choice"),
    [
        pytest.param(DOCKER, NO_PODMAN, Choice("docker", DOCKER_ANSWERS), id="docker fine"),
        pytest.param(DOCKER, PODMAN, Choice("docker", DOCKER_ANSWERS), id="both fine"),
        pytest.param(NO_DOCKER, PODMAN, Choice("podman", PODMAN_ANSWERS), id="podman only"),
        pytest.param(SHIM, PODMAN, Choice("podman", PODMAN_ANSWERS), id="podman-docker shim"),
        pytest.param(NO_ANSWER, PODMAN, Choice("podman", PODMAN_ANSWERS), id="docker stopped"),
        pytest.param(
            NO_DOCKER,
            NO_PODMAN,
            Choice("local", "no docker or podman command here"),
            id="no engine",
        ),
    ],
)
def test_the_runtime_where_none_was_asked_for(docker, podman, choice):
    assert choose_runtime("auto", docker, podman) == choice


@pytest.mark.parametrize(
    ("asked", "reason"),
    [
        pytest.param("docker", f"asked for by name; {DOCKER_ANSWERS}", id="docker"),
        pytest.param("podman", f"asked for by name; {PODMAN_ANSWERS}", id="podman"),
        pytest.param("local", "asked for by name", id="local"),
    ],
)
def test_the_runtime_that_was_asked_for(asked, reason):
    assert choose_runtime(asked, DOCKER, PODMAN) == Choice(asked, reason)


# Each engine that cannot run the lab: the obstacle's kind, a word of what is said, and the fix.
OBSTACLES = [
    pytest.param(NO_DOCKER, "client", "no docker command", "docs.docker.com", id="no docker"),
    pytest.param(NO_PODMAN, "client", "no podman command", "podman.io/docs", id="no podman"),
    pytest.param(NO_ANSWER, "daemon", host.NO_DAEMON, "systemctl enable --now docker", id="daemon"),
    pytest.param(REFUSED, "permission", host.NOT_ALLOWED, "usermod -aG docker", id="refused"),
    pytest.param(HANGS, "timeout", "10 s", "time docker info", id="hangs"),
    pytest.param(SHIM, "shim", "Podman's", "make up RUNTIME=podman", id="podman-docker"),
    pytest.param(REMOTE, "remote", "ssh://ada@gpu-host", "unset DOCKER_HOST", id="remote"),
    pytest.param(NO_COMPOSE, "compose", "unknown flag", "docker-compose", id="no compose"),
    pytest.param(OLD_COMPOSE, "compose", "1.29.2", "docker-compose", id="compose 1"),
    pytest.param(PODMAN_BARE, "compose", "no provider", "podman-compose", id="podman bare"),
    pytest.param(PODMAN_BROKEN, "daemon", "re-exec", "podman info", id="podman broken"),
]


@pytest.mark.parametrize(("engine", "kind", "words", "fix"), OBSTACLES)
def test_what_keeps_an_engine_from_running_the_lab(engine, kind, words, fix):
    obstacle = find_engine_obstacle(engine, FEDORA)
    assert obstacle is not None
    assert obstacle.kind == kind
    assert words in obstacle.what
    assert obstacle.cause
    assert fix in obstacle.fix
    assert "apt-get" not in obstacle.fix


@pytest.mark.parametrize(("engine", "kind", "words", "fix"), OBSTACLES)
def test_an_engine_asked_for_by_name_that_cannot_run_the_lab_is_an_error(engine, kind, words, fix):
    docker, podman = (engine, PODMAN) if engine.name == "docker" else (DOCKER, engine)
    with pytest.raises(EngineError, match=f"RUNTIME={engine.name}") as caught:
        choose_runtime(engine.name, docker, podman, FEDORA)
    assert words in str(caught.value.cause)
    assert fix in str(caught.value.fix)


@pytest.mark.parametrize(("engine", "kind", "words", "fix"), OBSTACLES)
def test_without_an_engine_the_lab_is_local_and_says_how_to_use_one(engine, kind, words, fix):
    docker, podman = (engine, NO_PODMAN) if engine.name == "docker" else (NO_DOCKER, engine)
    choice = choose_runtime("auto", docker, podman, FEDORA)
    assert choice.value == "local"
    if kind == "client":
        assert choice == Choice("local", "no docker or podman command here")
    else:
        assert words in choice.reason
        assert fix in str(choice.warning)


def test_where_neither_engine_can_both_ways_out_are_named():
    choice = choose_runtime("auto", NO_ANSWER, PODMAN_BARE, FEDORA)
    assert "systemctl" in str(choice.warning)
    assert "sudo dnf install podman-compose" in str(choice.warning)


def test_on_a_mac_docker_is_started_another_way():
    obstacle = find_engine_obstacle(NO_ANSWER, system="Darwin")
    assert obstacle is not None
    assert obstacle.fix == "open -a Docker"


def test_podmans_compose_provider_may_be_of_the_first_version():
    assert find_engine_obstacle(replace(PODMAN, compose_version="1.0.6")) is None


def test_a_compose_without_a_version_number_is_given_a_chance():
    assert find_engine_obstacle(replace(DOCKER, compose_version="dev")) is None


@pytest.mark.parametrize(
    ("kind", "asked", "fix"),
    [
        pytest.param("runtime", "dokcer", "make up RUNTIME=docker", id="a typing error"),
        pytest.param("runtime", "Podman", "make up RUNTIME=podman", id="a capital"),
        pytest.param("runtime", "kubernetes", "make up RUNTIME=auto", id="nothing near"),
        pytest.param("flavor", "cudas", "make up FLAVOR=cuda", id="flavor"),
    ],
)
def test_an_unknown_name_is_a_usage_error_with_the_near_match(kind, asked, fix):
    known = {"runtime": ("docker", "podman", "local"), "flavor": ("cpu", "cuda")}[kind]
    with pytest.raises(UsageError) as caught:
        check_name(kind, asked, known)
    assert caught.value.what == f"unknown {kind} {asked!r}"
    assert caught.value.cause == f"{kind} is one of: auto, {', '.join(known)}"
    assert caught.value.fix == fix


def test_an_unknown_runtime_is_refused():
    with pytest.raises(UsageError, match="unknown runtime 'dokcer'"):
        choose_runtime("dokcer", DOCKER, PODMAN)


def test_what_make_calls_by_another_name_is_typed_by_that():
    with pytest.raises(UsageError, match="unknown CUDA build 'cu13'") as caught:
        check_name("CUDA build", "cu13", ("cu130", "cu126"), "CUDA")
    assert caught.value.fix == "make up CUDA=cu130"


def folder(owner, group=None):
    path = Path("/home/ada/lab/work")
    return FolderFacts(path, True, True, owner, owner if group is None else group, True, 10**9)


ROOTS = folder(0)  # a checkout that belongs to root
ROOT = replace(ADA, user_id=0, group_id=0, user_name="root")
NO_IDS = replace(ADA, system="Windows", user_id=None, group_id=None)
ROOTLESS_DOCKER = replace(DOCKER, rootless=True)
ROOTFUL_PODMAN = replace(PODMAN, rootless=False)
UNKNOWN_PODMAN = replace(PODMAN, rootless=None)


@pytest.mark.parametrize(
    ("machine", "workspace", "engine", "identity"),
    [
        pytest.param(ADA, folder(1000), DOCKER, Identity(1000, 1000), id="user"),
        pytest.param(
            replace(ADA, user_id=1234, group_id=100),
            folder(1234, 100),
            DOCKER,
            Identity(1234, 100),
            id="user of another group",
        ),
        pytest.param(
            ROOT,
            folder(0),
            DOCKER,
            Identity(1000, 1000, owns_workspace=False),
            id="root, workspace of root",
        ),
        pytest.param(
            ROOT, folder(1007, 1008), DOCKER, Identity(1007, 1008), id="root, somebody's workspace"
        ),
        pytest.param(
            ROOT,
            folder(1007, 0),
            DOCKER,
            Identity(1007, 1000),
            id="root, workspace of root's group",
        ),
        pytest.param(ADA, folder(1000), ROOTLESS_DOCKER, Identity(0, 0), id="rootless docker"),
        pytest.param(
            ADA, folder(1000), PODMAN, Identity(1000, 1000, keep_id=True), id="rootless podman"
        ),
        pytest.param(ADA, folder(1000), ROOTFUL_PODMAN, Identity(1000, 1000), id="rootful podman"),
        pytest.param(ADA, folder(1000), UNKNOWN_PODMAN, Identity(1000, 1000), id="unknown podman"),
        pytest.param(NO_IDS, folder(None), DOCKER, Identity(1000, 1000), id="no user ids"),
    ],
)
def test_who_the_container_runs_as(machine, workspace, engine, identity):
    assert choose_identity(machine, workspace, engine, ROOTS).value == identity


@pytest.mark.parametrize("workspace", [folder(0), folder(1007), folder(None)])
@pytest.mark.parametrize("machine", [ADA, ROOT, NO_IDS], ids=["user", "root", "no ids"])
@pytest.mark.parametrize(
    "engine", [DOCKER, PODMAN, ROOTFUL_PODMAN], ids=["docker", "podman", "rootful podman"]
)
def test_outside_rootless_docker_nobody_is_root(machine, workspace, engine):
    assert not choose_identity(machine, workspace, engine, ROOTS).value.is_root


def test_under_sudo_the_lab_runs_as_the_checkouts_owner():
    choice = choose_identity(ROOT, folder(0), DOCKER, folder(4321, 4322))
    assert choice.value == Identity(4321, 4322, owns_workspace=False)
    assert choice.reason == "you are root, so the checkout's owner, who is given the workspace"

"""Each choice is a pure function of facts: a table of hosts, and what is taken on them and why."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from labkit.errors import EngineError, ExitCode, UsageError
from labkit.host.machine import FolderFacts
from labkit.launch.runtime import (
    Choice,
    Identity,
    check_name,
    choose_identity,
    choose_runtime,
    find_obstacle,
)
from tests.fakes import host
from tests.fakes.host import ADA, DOCKER, NO_DOCKER, NO_PODMAN, PODMAN

NO_ANSWER = replace(DOCKER, server_version=None, rootless=None, problem=host.NO_DAEMON)
REFUSED = replace(DOCKER, server_version=None, rootless=None, problem=host.NOT_ALLOWED)
SHIM = replace(DOCKER, server_version=None, problem="this docker command is Podman's")
NO_COMPOSE = replace(DOCKER, compose_version=None, compose_problem="unknown flag: --short")
OLD_COMPOSE = replace(DOCKER, compose_version="1.29.2")
REMOTE = replace(DOCKER, endpoint="ssh://ada@gpu-host")
PODMAN_BARE = replace(PODMAN, compose_version=None, compose_problem="no provider")
PODMAN_BROKEN = replace(PODMAN, server_version=None, problem="cannot re-exec process")

START_DOCKER = "sudo systemctl start docker"
JOIN_GROUP = "sudo usermod -aG docker $USER   # then log out and in again"
GET_COMPOSE = "sudo apt-get install docker-compose-plugin   # docs.docker.com/compose/install"
GET_PODMAN_COMPOSE = "sudo apt-get install podman-compose   # or your distribution's package of it"
NO_ANSWER_WHY = f"docker is installed but its daemon does not answer ({host.NO_DAEMON})"
REFUSED_WHY = f"docker's socket refuses this user ({host.NOT_ALLOWED})"
NO_COMPOSE_WHY = "docker 26.1.5 has no Compose (unknown flag: --short)"
OLD_COMPOSE_WHY = "Compose 1.29.2 is too old: the lab needs Compose 2"
REMOTE_WHY = "docker talks to another machine (ssh://ada@gpu-host), which cannot see work/"
DOCKER_ANSWERS = "Docker 26.1.5 answers, with Compose 2.26.1"
PODMAN_ANSWERS = "Podman 5.4.2 answers, with Compose 1.3.0"
INSTEAD = "to use the engine instead: "


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
        pytest.param(
            NO_ANSWER,
            NO_PODMAN,
            Choice("local", NO_ANSWER_WHY, INSTEAD + START_DOCKER),
            id="client without daemon",
        ),
        pytest.param(
            REFUSED,
            NO_PODMAN,
            Choice("local", REFUSED_WHY, INSTEAD + JOIN_GROUP),
            id="permission denied",
        ),
        pytest.param(
            NO_COMPOSE,
            NO_PODMAN,
            Choice("local", NO_COMPOSE_WHY, INSTEAD + GET_COMPOSE),
            id="compose missing",
        ),
        pytest.param(
            OLD_COMPOSE,
            NO_PODMAN,
            Choice("local", OLD_COMPOSE_WHY, INSTEAD + GET_COMPOSE),
            id="compose 1.29",
        ),
        pytest.param(
            REMOTE,
            NO_PODMAN,
            Choice(
                "local",
                REMOTE_WHY,
                INSTEAD + "unset DOCKER_HOST DOCKER_CONTEXT; docker context use default",
            ),
            id="remote context",
        ),
        pytest.param(
            NO_ANSWER,
            PODMAN_BARE,
            Choice(
                "local",
                f"{NO_ANSWER_WHY}; podman 5.4.2 has no Compose (no provider)",
                f"{INSTEAD}{START_DOCKER}; or {GET_PODMAN_COMPOSE}",
            ),
            id="neither can",
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


@pytest.mark.parametrize(
    ("asked", "docker", "podman", "cause", "fix"),
    [
        pytest.param("docker", NO_ANSWER, PODMAN, NO_ANSWER_WHY, START_DOCKER, id="no daemon"),
        pytest.param("docker", REFUSED, PODMAN, REFUSED_WHY, JOIN_GROUP, id="permission denied"),
        pytest.param("docker", NO_COMPOSE, PODMAN, NO_COMPOSE_WHY, GET_COMPOSE, id="no compose"),
        pytest.param(
            "docker", OLD_COMPOSE, PODMAN, OLD_COMPOSE_WHY, GET_COMPOSE, id="compose 1.29"
        ),
        pytest.param(
            "docker",
            SHIM,
            PODMAN,
            "this docker command is Podman's",
            "make up RUNTIME=podman",
            id="podman-docker shim",
        ),
        pytest.param(
            "docker",
            NO_DOCKER,
            PODMAN,
            "no docker command here",
            "install it (https://docs.docker.com/engine/install/), or: make up RUNTIME=local",
            id="no docker",
        ),
        pytest.param(
            "podman",
            DOCKER,
            NO_PODMAN,
            "no podman command here",
            "install it (https://podman.io/docs/installation), or: make up RUNTIME=local",
            id="no podman",
        ),
        pytest.param(
            "podman",
            DOCKER,
            PODMAN_BROKEN,
            "podman is installed but its daemon does not answer (cannot re-exec process)",
            "podman info   # shows what is wrong with it",
            id="podman broken",
        ),
    ],
)
def test_what_was_asked_for_and_cannot_be_had_is_an_error(asked, docker, podman, cause, fix):
    with pytest.raises(EngineError) as caught:
        choose_runtime(asked, docker, podman)
    assert caught.value.exit_code == ExitCode.ENGINE
    assert caught.value.what == f"RUNTIME={asked} cannot run the lab"
    assert (caught.value.cause, caught.value.fix) == (cause, fix)


def test_on_a_mac_docker_is_started_another_way():
    obstacle = find_obstacle(NO_ANSWER, "Darwin")
    assert obstacle is not None
    assert obstacle.fix == "open -a Docker"


def test_podmans_compose_provider_may_be_of_the_first_version():
    assert find_obstacle(replace(PODMAN, compose_version="1.0.6")) is None


def test_a_compose_without_a_version_number_is_given_a_chance():
    assert find_obstacle(replace(DOCKER, compose_version="dev")) is None


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

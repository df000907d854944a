"""An image for other hosts: built by name, on a host whose own GPU nobody asks about."""

from __future__ import annotations

import json
import os

import pytest

from labkit.cli import main
from labkit.errors import EngineError, ExitCode
from labkit.host.torch_builds import find_build
from labkit.launch import image, publish
from labkit.launch.publish import BuiltImage, describe_built, find_engine
from labkit.launch.settings import Settings
from tests.fakes.host import DOCKER_INFO, make_checkout, write_program
from tests.test_container import FakeDocker

NAME = "registry.example/team/labkit:1.2"
ANSWERS = (
    f"'info --format'*) echo '{json.dumps(DOCKER_INFO)}' ;;",
    "'compose version'*) echo 2.26.1 ;;",
)


@pytest.fixture
def docker(tmp_path, monkeypatch):
    """A docker that answers and builds, at the front of PATH."""
    for name in [*filter(lambda name: name.startswith("LABKIT_"), os.environ)]:
        monkeypatch.delenv(name)
    fake = FakeDocker(tmp_path / "fake")
    fake.play(*ANSWERS)
    monkeypatch.setenv("PATH", f"{fake.folder}{os.pathsep}{os.environ['PATH']}")
    return fake


@pytest.fixture
def checkout(docker, tmp_path, monkeypatch):
    made = make_checkout(tmp_path / "a lab")
    monkeypatch.setenv("LABKIT_HOME", str(made.root))
    return made


def read_variables(docker):
    """What the build was given."""
    lines = docker.environments.splitlines()
    return dict(line.split("=", 1) for line in lines if line.startswith("LABKIT_"))


def test_a_cuda_image_is_built_under_the_name_and_the_way_to_hosts_is_said(
    docker, checkout, capsys
):
    assert main(["build", "--flavor", "cuda", "--image", NAME]) == ExitCode.OK

    build, prune = docker.calls[-2:]
    assert prune == "image prune --force --filter label=io.labkit.flavor=cuda"
    assert build == (
        f"compose --project-directory {checkout.root} --project-name labkit"
        f" --file {checkout.root}/compose.yaml --profile cuda build cuda"
    )
    variables = read_variables(docker)
    assert variables["LABKIT_IMAGE"] == NAME
    assert variables["LABKIT_CUDA_BUILD"] == "cu130"
    assert variables["LABKIT_INPUTS"] == image.digest_inputs(checkout)
    assert capsys.readouterr().out.splitlines() == [
        f"built {NAME}: torch 2.13.0+cu130, revision None",
        "  warning: the checkout has changes that are not committed",
        f"push it:            docker push {NAME}",
        f"on each host:       docker pull {NAME}",
        f"  from a checkout of the same revision:  LABKIT_IMAGE={NAME} make up CUDA=cu130",
    ]


@pytest.mark.usefixtures("checkout")
def test_an_image_for_other_hosts_asks_nothing_of_this_ones_gpu(docker):
    asked = docker.folder / "asked"
    write_program(docker.folder, "nvidia-smi", f"touch {asked}")
    assert main(["build", "--flavor", "cuda", "--image", NAME]) == ExitCode.OK
    assert not asked.exists()


@pytest.mark.usefixtures("checkout")
def test_an_image_for_this_host_is_made_for_its_gpu(docker):
    row = "NVIDIA GeForce GTX 1080, 580.65.06, 0, GPU-aaaa, 6.1, [N/A]"
    write_program(docker.folder, "nvidia-smi", f"echo '{row}'")
    assert main(["build", "--flavor", "cuda"]) == ExitCode.OK
    assert read_variables(docker)["LABKIT_IMAGE"] == "labkit:cu126"


@pytest.mark.usefixtures("checkout")
@pytest.mark.parametrize(
    ("words", "service", "name", "cuda"),
    [
        (["--flavor", "cuda"], "cuda", "labkit:cu130", "cu130"),
        (["--flavor", "cuda", "--cuda", "cu126"], "cuda", "labkit:cu126", "cu126"),
        (["--cuda", "cu126"], "cuda", "labkit:cu126", "cu126"),
        (["--flavor", "cpu"], "cpu", "labkit:cpu", "cu130"),
        (["--image", NAME], "cpu", NAME, "cu130"),
    ],
)
def test_which_service_build_and_name(docker, words, service, name, cuda):
    assert main(["build", *words]) == ExitCode.OK
    assert docker.calls[-2].endswith(f"--profile {service} build {service}")
    variables = read_variables(docker)
    assert (variables["LABKIT_IMAGE"], variables["LABKIT_CUDA_BUILD"]) == (name, cuda)


@pytest.mark.usefixtures("checkout")
def test_the_variable_names_the_image_where_no_option_does(docker, monkeypatch):
    monkeypatch.setenv("LABKIT_IMAGE", "labkit:mine")
    assert main(["build", "--flavor", "cuda"]) == ExitCode.OK
    assert read_variables(docker)["LABKIT_IMAGE"] == "labkit:mine"


@pytest.mark.usefixtures("checkout")
@pytest.mark.parametrize("command", ["build"])
@pytest.mark.parametrize(
    ("words", "what"),
    [
        (["--flavor", "cuad"], "error: unknown flavor 'cuad'"),
        (["--cuda", "cu999"], "error: unknown CUDA build 'cu999'"),
        (["--flavor", "cpu", "--cuda", "cu126"], "error: CUDA=cu126 conflicts with FLAVOR=cpu"),
    ],
)
def test_a_name_that_is_none_is_refused_before_anything_is_built(
    docker, capsys, command, words, what
):
    assert main([command, "--image", NAME, *words]) == ExitCode.USAGE
    assert capsys.readouterr().err.startswith(what)
    assert docker.calls == []


def test_a_build_that_fails_quotes_its_log(docker, checkout, capsys):
    docker.play(*ANSWERS, "compose*build*) echo 'E: no such package'; exit 1 ;;")
    assert main(["build", "--flavor", "cuda"]) == ExitCode.ENGINE
    said = capsys.readouterr().err
    assert "error: building labkit:cu130 failed\n  | E: no such package" in said
    assert f"the whole log: {checkout.root.resolve()}/.labkit/logs/build-cu130.log" in said


def test_an_engine_on_another_machine_builds_too(docker):
    docker.play(*ANSWERS, "'context inspect'*) echo ssh://builder.example ;;")
    assert find_engine(Settings()) == "docker"


@pytest.mark.parametrize("runtime", ["auto", "local"])
def test_without_an_engine_no_image_is_built(tmp_path, monkeypatch, runtime):
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(EngineError) as caught:
        find_engine(Settings(runtime=runtime))
    assert caught.value.what == "no container engine here to build an image with"
    assert caught.value.fix == "make build RUNTIME=docker"


def test_an_engine_that_was_asked_for_and_does_not_answer_is_named(tmp_path, monkeypatch):
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(EngineError, match="RUNTIME=podman cannot run the lab"):
        find_engine(Settings(runtime="podman"))


def test_a_name_without_a_registry_is_not_pushed():
    built = BuiltImage("docker", "labkit:cu126", find_build("cu126"), "0123456789ab")
    assert describe_built(built) == [
        "built labkit:cu126: torch 2.13.0+cu126, revision 0123456789ab"
    ]


def test_an_image_of_a_commit_comes_without_a_warning():
    built = BuiltImage("podman", NAME, find_build("cpu"), "0123456789ab")
    lines = describe_built(built)
    assert not any("warning" in line for line in lines)
    assert lines[1] == f"push it:            podman push {NAME}"


def test_the_project_is_the_same_for_every_checkout(checkout):
    """Compose labels the image with it."""
    assert publish.compose_build(checkout, "docker", "cpu")[4:6] == ["--project-name", "labkit"]

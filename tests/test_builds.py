"""The builds of torch: which locks make them, and which one a name means."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import pytest

from labkit.errors import LabkitError, UsageError
from labkit.host.torch_builds import BUILDS, CUDA_BUILDS, NEEDS, TORCH_VERSION, find_build
from labkit.launch.publish import choose_named_build
from labkit.launch.settings import check_locks
from tests.fakes.host import make_checkout

ROOT = Path(__file__).parents[1]
DOCKERFILE = (ROOT / "docker" / "Dockerfile").read_text(encoding="utf-8")


@pytest.mark.parametrize(
    ("name", "flavor", "torch", "index", "locks"),
    [
        (
            "cpu",
            "cpu",
            "2.13.0+cpu",
            "https://download.pytorch.org/whl/cpu",
            ("torch-cpu", "lab"),
        ),
        ("cu130", "cuda", "2.13.0+cu130", None, ("cuda-cu130", "torch-cu130", "lab")),
        (
            "cu126",
            "cuda",
            "2.13.0+cu126",
            "https://download.pytorch.org/whl/cu126",
            ("cuda-cu126", "torch-cu126", "lab"),
        ),
    ],
)
def test_what_makes_a_build(name, flavor, torch, index, locks):
    build = find_build(name)
    assert (build.flavor, build.torch_version, build.torch_index) == (flavor, torch, index)
    assert build.locks == locks


@pytest.mark.parametrize("build", BUILDS.values(), ids=BUILDS)
def test_every_lock_of_a_build_is_there(build):
    for name in build.locks:
        assert (ROOT / "docker" / "locks" / f"{name}.txt").is_file()


def test_the_dockerfile_makes_the_same_builds():
    assert f"ARG TORCH_VERSION={TORCH_VERSION}\n" in DOCKERFILE
    assert f"ARG CUDA_BUILD={CUDA_BUILDS[0].name}\n" in DOCKERFILE
    copied = set(re.findall(r"docker/locks/([\w${}-]+)\.txt", DOCKERFILE))
    variables = {"${CUDA_BUILD}": "cu126", "${LABKIT_TORCH_BUILD}": "cu126"}
    for variable, value in variables.items():
        copied = {name.replace(variable, value) for name in copied}
    assert copied == {*find_build("cu126").locks, "test"}


def test_only_the_cuda_stage_asks_for_nvidias_driver():
    stages = dict(re.findall(r"^FROM \S+ AS ([\w-]+)\n(.*?)(?=^FROM |\Z)", DOCKERFILE, re.M | re.S))
    assert [name for name, text in stages.items() if "NVIDIA_" in text] == ["cuda"]
    assert "NVIDIA_VISIBLE_DEVICES=all" in stages["cuda"]
    assert "NVIDIA_DRIVER_CAPABILITIES=compute,utility" in stages["cuda"]


def test_the_steps_know_pytorchs_index_in_one_place():
    steps = ROOT / "docker" / "steps"
    knowing = [path.name for path in steps.iterdir() if "pytorch.org" in path.read_text()]
    assert knowing == ["install-python-packages.sh"]
    assert "pytorch.org" not in DOCKERFILE


def test_an_unknown_build_is_named_with_its_near_match():
    with pytest.raises(UsageError) as caught:
        find_build("cu13")
    assert caught.value.what == "unknown build of torch 'cu13'"
    assert caught.value.cause == "it is one of: cu130, cu126"
    assert caught.value.fix == "make up CUDA=cu130"


@pytest.mark.parametrize(
    ("flavor", "cuda", "build"),
    [
        ("auto", "auto", "cpu"),
        ("cpu", "auto", "cpu"),
        ("cuda", "auto", "cu130"),
        ("cuda", "cu126", "cu126"),
        ("auto", "cu126", "cu126"),
    ],
)
def test_the_build_that_was_named(flavor, cuda, build):
    assert choose_named_build(flavor, cuda).name == build


def test_each_cuda_build_says_what_it_needs():
    assert list(NEEDS) == [build.name for build in CUDA_BUILDS]


@pytest.mark.parametrize(
    ("build", "capability", "machine", "has"),
    [
        ("cu130", (7, 0), "x86_64", False),
        ("cu130", (7, 5), "x86_64", True),
        ("cu130", (7, 5), "aarch64", False),
        ("cu130", (12, 1), "aarch64", True),
        ("cu126", (3, 7), "x86_64", False),
        ("cu126", (5, 0), "x86_64", True),
        ("cu126", (9, 0), "x86_64", True),
        ("cu126", (10, 0), "x86_64", False),
    ],
)
def test_the_gpus_that_a_build_has_code_for(build, capability, machine, has):
    assert NEEDS[build].has_code_for(capability, machine) is has


def test_a_lock_that_is_missing_is_named_before_anything_is_done(tmp_path):
    checkout = make_checkout(tmp_path / "a lab")
    check_locks(checkout, find_build("cpu").locks)
    with pytest.raises(LabkitError) as caught:
        check_locks(checkout, ["lab", "torch-cu999"])
    assert caught.value.what == "docker/locks/torch-cu999.txt is missing"
    assert caught.value.fix == f"git -C {shlex.quote(str(checkout.root))} checkout -- docker/locks"

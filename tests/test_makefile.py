"""The Makefile: thin, complete, and its own documentation."""

from __future__ import annotations

import os
import re
import shlex
import shutil
import sys
from pathlib import Path

import pytest

from labkit.cli import FAMILIES
from labkit.process import run_command
from tests.fakes.host import write_program

ROOT = Path(__file__).parents[1]
TEXT = (ROOT / "Makefile").read_text(encoding="utf-8")
TARGETS = re.findall(r"^([a-z][a-z-]*):(?!=)", TEXT, flags=re.MULTILINE)
VARIABLES = (
    "RUNTIME",
    "FLAVOR",
    "CUDA",
    "GPUS",
    "PORT",
    "BIND",
    "MEMORY",
    "IMAGE",
    "STEP",
    "DEVICE",
    "LABS",
    "FAST",
    "SIMULATED",
    "PYTEST",
    "QUICK",
    "PROVE",
    "FIX",
    "DEEP",
    "PYTHON",
)

needs_make = pytest.mark.skipif(not shutil.which("make"), reason="needs make: apt-get install make")


def run_make(*words, folder=ROOT, **variables):
    """How make ends, with none of its variables set outside but ``variables``."""
    unset = (*VARIABLES, "MAKEFLAGS", "MAKELEVEL", "MFLAGS", "LABKIT_IMAGE")
    kept = {name: value for name, value in os.environ.items() if name not in unset}
    return run_command(
        ["make", *words], timeout_seconds=20, environment={**kept, **variables}, folder=folder
    )


def say(*words, folder=ROOT):
    """What make prints."""
    result = run_make(*words, folder=folder)
    assert result.exit_code == 0, result.stderr
    return result.stdout


@pytest.fixture
def follow(tmp_path):
    """Call it with make's words: the words that the tool behind the target gets.

    The target's Python is a program that writes them down, with the image of the environment.
    """
    noted = tmp_path / "noted"
    script = f"""printf '%s\\0' "$@" > {noted}; echo "$LABKIT_IMAGE" > {noted}-image"""
    program = write_program(tmp_path / "bin", "python", script)

    def follow(*words, folder=ROOT, **variables):
        result = run_make(*words, f"PYTHON={program}", folder=folder, **variables)
        assert result.exit_code == 0, result.stderr
        return noted.read_text().split("\0")[:-1]

    return follow


def test_there_is_a_target_for_each_obvious_thing():
    wanted = "up down status logs shell run test lint build lock clean help devices memory estimate"
    wanted += " house docs"
    assert set(wanted.split()) <= set(TARGETS)


@pytest.mark.parametrize("target", TARGETS)
def test_every_target_has_a_line_of_help(target):
    assert re.search(rf"^{target}:  ## \S.+$", TEXT, flags=re.MULTILINE)


def test_phony_is_complete():
    phony = re.search(r"^\.PHONY: (.+)$", TEXT, flags=re.MULTILINE)
    assert phony is not None
    assert sorted(phony.group(1).split()) == sorted(TARGETS)


def test_every_target_is_one_line_that_calls_the_tool():
    recipes = re.findall(r"^[a-z]+:  ## .+\n((?:\t.*\n)+)", TEXT, flags=re.MULTILINE)
    lengths = [recipe.count("\n") for recipe in recipes[:-1]]  # all but help, which prints itself
    assert len(recipes) == len(TARGETS)
    assert set(lengths) == {1}


def test_the_command_that_a_target_calls_is_there():
    called = set(re.findall(r"(?:\$\(LABKIT\)|-- labkit) ([a-z]+)", TEXT))
    assert called <= set(FAMILIES)
    assert {"up", "down", "exec", "run"} <= called


@needs_make
@pytest.mark.parametrize("words", [(), ("help",)], ids=["make", "make help"])
def test_help_lists_every_target_and_variable(words):
    said = say(*words)
    assert [name for name in TARGETS if f"  make {name} " not in said] == []
    assert [name for name in VARIABLES if f"{name}=" not in said.partition("Variables")[2]] == []


LABKIT = ["-E", "-m", "labkit"]


@needs_make
@pytest.mark.parametrize(
    ("words", "called"),
    [
        (["up"], ["up"]),
        (
            ["up", "RUNTIME=local", "FLAVOR=cpu", "PORT=9000", "BIND=0.0.0.0"],
            ["up", "--runtime", "local", "--flavor", "cpu", "--port", "9000", "--bind", "0.0.0.0"],
        ),
        (["up", "CUDA=cu126", "GPUS=0,1"], ["up", "--cuda", "cu126", "--gpus", "0,1"]),
        (["up", "MEMORY=16g"], ["up", "--memory", "16g"]),
        (
            ["build", "FLAVOR=cuda", "IMAGE=a/b:c"],
            ["build", "--flavor", "cuda", "--image", "a/b:c"],
        ),
        (["run"], ["exec", "--", "labkit", "run", "--all"]),
        (["run", "LABS=tensors autograd"], ["exec", "--", "labkit", "run", "tensors", "autograd"]),
        (["check", "LABS=tensors"], ["exec", "--", "labkit", "check", "tensors"]),
        (["reset", "LABS=tensors"], ["exec", "--", "labkit", "reset", "tensors"]),
        (
            ["test", "PYTEST=-k 'a or b'", "RUNTIME=local"],
            ["test", "--runtime", "local", "--", "-k", "a or b"],
        ),
        (["test", "FAST=1"], ["test", "--fast", "--"]),
        (["test", "SIMULATED=1"], ["test", "--simulated", "--"]),
        (["house"], ["test", "--house"]),
        (["docs"], ["docs"]),
        (["devices"], ["exec", "--", "labkit", "devices"]),
        (["doctor", "FIX=1", "DEEP=1"], ["doctor", "--fix", "--deep"]),
        (
            ["prove", "QUICK=1", "PROVE=--skip labs"],
            ["exec", "--", "labkit", "prove", "--quick", "--skip", "labs"],
        ),
        (
            ["estimate", "STEP=my train.py:make_step", "DEVICE=24 GiB"],
            [*["exec", "--", "labkit", "estimate"], "my train.py:make_step", "--device", "24 GiB"],
        ),
    ],
    ids=" ".join,
)
def test_what_a_target_calls(follow, words, called):
    assert follow(*words) == [*LABKIT, *called]


@needs_make
def test_a_value_of_the_environment_counts_and_is_no_command(follow, tmp_path):
    hostile = f'$(shell touch {tmp_path}/pwned)`touch {tmp_path}/pwned`"; touch {tmp_path}/pwned #'
    assert follow("up", RUNTIME=hostile, PORT="9000") == [
        *LABKIT,
        *("up", "--runtime", hostile, "--port", "9000"),
    ]
    assert not (tmp_path / "pwned").exists()


@needs_make
def test_a_toolkits_folder_in_the_environment_is_no_choice_of_a_build(follow):
    assert follow("up", CUDA="/usr/local/cuda", GPUS="8") == [*LABKIT, "up"]


# Folders as a user may name them; in each, what a shell or make would do with it would show.
HOSTILE_FOLDERS = [
    "my lab",
    "x$(touch pwned)y",
    "x $(shell touch pwned) y",
    "x`touch pwned`y",
    'a"b',
    "a'b",
    "$HOME",
    "$$HOME ${HOME}",
    "a; touch pwned",
    "a & touch pwned",
    "a # b",
    "a%b=c*?[d]~",
    "a\\b",
    "a\nb",
]


@pytest.mark.slow
@needs_make
@pytest.mark.parametrize("name", HOSTILE_FOLDERS)
def test_a_checkout_in_any_folder_works_and_its_name_runs_nothing(tmp_path, name):
    folder = tmp_path / name
    folder.mkdir()
    shutil.copy(ROOT / "Makefile", folder)
    (folder / "compose.yaml").touch()
    (folder / "labkit").symlink_to(ROOT / "labkit")
    for words in (["status"], ["-C", str(folder), "status"]):
        result = run_make(*words, f"PYTHON={shlex.quote(sys.executable)}", folder=folder)
        assert "not running" in result.stdout, result.stderr
    assert "make up" in say(folder=folder)
    for target in TARGETS:
        run_make(target, "PYTHON=true", folder=folder)
    assert not list(tmp_path.rglob("pwned"))


@needs_make
def test_the_callers_python_variables_change_nothing(tmp_path):
    (tmp_path / "labkit.py").write_text("raise SystemExit('another labkit')")
    (tmp_path / "argparse.py").write_text("raise SystemExit('another argparse')")
    result = run_make(
        "status",
        f"PYTHON={shlex.quote(sys.executable)}",
        PYTHONPATH=str(tmp_path),
        PYTHONHOME=str(tmp_path),
        PYTHONSAFEPATH="1",
    )
    assert result.stderr == ""
    assert "another" not in result.stdout


@needs_make
def test_a_signal_to_make_reaches_labkit_itself(tmp_path):
    """Make sends it to its own child, which a shell would keep to itself."""
    parent = write_program(tmp_path, "python", 'ps -o comm= -p "$PPID"')
    assert run_make("test", "RUNTIME=docker", f"PYTHON={parent}").stdout.split() == ["make"]


@needs_make
def test_a_failing_command_fails_the_target():
    assert run_make("-s", "status", "PYTHON=false").exit_code == 2


@needs_make
@pytest.mark.parametrize(
    ("words", "image"), [([], ""), (["IMAGE=registry.example/lab:x"], "registry.example/lab:x")]
)
def test_an_image_that_is_typed_is_the_labs(follow, tmp_path, words, image):
    follow("up", *words, IMAGE="of-something-else")
    assert (tmp_path / "noted-image").read_text() == f"{image}\n"

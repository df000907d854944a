"""The Makefile: thin, complete, and its own documentation."""

from __future__ import annotations

import os
import re
import shutil
from pathlib import Path

import pytest

from labkit.cli import FAMILIES
from labkit.process import run_command

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
    "STEP",
    "DEVICE",
    "LABS",
    "PYTHON",
)

needs_make = pytest.mark.skipif(not shutil.which("make"), reason="needs make: apt-get install make")


def run_make(*words, folder=ROOT):
    """What make prints, with none of its variables set outside."""
    environment = {
        name: value
        for name, value in os.environ.items()
        if name not in (*VARIABLES, "PYTEST", "MAKEFLAGS", "MAKELEVEL", "MFLAGS")
    }
    result = run_command(
        ["make", *words], timeout_seconds=20, environment=environment, folder=folder
    )
    assert result.exit_code == 0, result.stderr
    return result.stdout


def test_there_is_a_target_for_each_obvious_thing():
    wanted = "up down status logs shell run test lint build lock clean help devices memory estimate"
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
    said = run_make(*words)
    assert [name for name in TARGETS if f"  make {name} " not in said] == []
    assert [name for name in VARIABLES if f"  {name}= " not in said] == []
    assert "\nUsing the lab\n" in said
    assert "  make up        start the lab and print its URL\n" in said


@needs_make
@pytest.mark.parametrize(
    ("words", "command"),
    [
        (("up",), "-m labkit up"),
        (("up", "PORT=9000"), '-m labkit up --port "9000"'),
        (
            ("up", "RUNTIME=local", "FLAVOR=cpu", "PORT=9000", "BIND=0.0.0.0"),
            '-m labkit up --runtime "local" --flavor "cpu" --port "9000" --bind "0.0.0.0"',
        ),
        (("up", "CUDA=cu126", "GPUS=0,1"), '-m labkit up --cuda "cu126" --gpus "0,1"'),
        (("build", "FLAVOR=cuda"), '-m labkit build --flavor "cuda"'),
        (("run",), "-m labkit exec -- labkit run --all"),
        (("run", "LABS=tensors autograd"), "-m labkit exec -- labkit run tensors autograd"),
        (("test", "PYTEST=-k ports", "RUNTIME=local"), 'test --runtime "local" -- -k ports'),
        (("status", "PYTHON=python3.12"), "python3.12 -m labkit status"),
        (("devices",), "-m labkit exec -- labkit devices"),
        (("memory",), "-m labkit exec -- labkit memory"),
        (
            ("estimate", "STEP=train.py:make_step", "DEVICE=24 GiB"),
            'labkit estimate "train.py:make_step" --device "24 GiB"',
        ),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, tuple) else "",
)
def test_what_a_target_runs(words, command):
    line = " ".join(run_make("-n", *words).split())
    assert line.endswith(command)


@needs_make
def test_a_toolkits_folder_in_the_environment_is_no_choice_of_a_build(monkeypatch):
    monkeypatch.setenv("CUDA", "/usr/local/cuda")
    monkeypatch.setenv("GPUS", "8")
    result = run_command(["make", "-n", "up"], timeout_seconds=20, folder=ROOT)
    assert "labkit up" in result.stdout
    assert "/usr/local/cuda" not in result.stdout
    assert "--gpus" not in result.stdout


@needs_make
def test_a_checkout_in_a_folder_with_spaces(tmp_path):
    folder = tmp_path / "my lab"
    folder.mkdir()
    shutil.copy(ROOT / "Makefile", folder)
    assert f'PYTHONPATH="{folder}" python3 -m labkit up' in run_make("-n", "up", folder=folder)
    assert "make up" in run_make(folder=folder)


@needs_make
def test_a_failing_command_fails_the_target(tmp_path):
    shutil.copy(ROOT / "Makefile", tmp_path)
    result = run_command(
        ["make", "-s", "status", "PYTHON=false"], timeout_seconds=20, folder=tmp_path
    )
    assert result.exit_code == 2


@needs_make
@pytest.mark.parametrize(
    ("words", "image"), [([], ""), (["IMAGE=registry.example/lab:x"], "registry.example/lab:x")]
)
def test_an_image_that_is_typed_is_the_labs(tmp_path, monkeypatch, words, image):
    monkeypatch.delenv("LABKIT_IMAGE", raising=False)
    monkeypatch.setenv("IMAGE", "of-something-else")
    more = tmp_path / "more.mk"
    more.write_text('show:\n\t@echo "[$$LABKIT_IMAGE]"\n')
    said = run_make("-s", "-f", str(ROOT / "Makefile"), "-f", str(more), "show", *words)
    assert said == f"[{image}]\n"

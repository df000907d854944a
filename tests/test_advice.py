"""Commands that advice names can be typed as they stand."""

from __future__ import annotations

import shlex
import shutil
import subprocess
import sys

import pytest

from labkit.cli import FAMILIES
from labkit.process import compose_environment, has_make, in_clone, name_command, name_python
from tests.conftest import ROOT

MODULE = "/site-packages/labkit/__main__.py"


@pytest.fixture
def no_program(monkeypatch):
    """A PATH without labkit; returns what runs it instead."""
    monkeypatch.setattr(shutil, "which", lambda name: None)
    return f"{name_python()} -m labkit"


def test_every_command_is_named_by_the_python_that_runs(no_program):
    for name in (*FAMILIES, "--help"):
        assert name_command(f"labkit {name} a", program=MODULE) == f"{no_program} {name} a"
    two = name_command("labkit run a, or: labkit estimate --help", program=MODULE)
    assert two == f"{no_program} run a, or: {no_program} estimate --help"


@pytest.mark.parametrize(
    "text",
    ["what labkit created", "pip install 'labkit'", "python -m mylabkit run", "/opt/labkit run"],
)
def test_what_is_not_a_command_stays(no_program, text):
    assert name_command(text, program=MODULE) == text


def test_a_program_on_the_path_is_named_as_it_is(monkeypatch):
    monkeypatch.setattr(shutil, "which", lambda name: f"/usr/bin/{name}")
    assert name_command("labkit run a", program=MODULE) == "labkit run a"


def test_a_program_that_was_started_by_its_name_is_named_so(no_program):
    assert name_command("labkit run a", program="/opt/bin/labkit") == "labkit run a"


@pytest.mark.parametrize(
    ("text", "outside"),
    [
        ("make up", "labkit lab"),
        ("make up RUNTIME=local   # or not", "labkit lab   # or not"),
        ("make down up", "labkit lab"),
        ("make run LABS='tensors autograd'", "labkit run tensors autograd"),
        ("make doctor", "labkit doctor"),
        ("make it a plain function", "make it a plain function"),
    ],
)
def test_outside_of_a_clone_no_line_of_make_is_named(text, outside):
    assert name_command(text, clone=False) == outside
    assert name_command(text, clone=True, make=True) == text


@pytest.mark.parametrize(
    ("text", "elsewhere"),
    [
        ("make up", "labkit up"),
        ("make up, or set A to the folder", "labkit up, or set A to the folder"),
        ("make up RUNTIME=local   # or not", "labkit up --runtime local   # or not"),
        ("make down && make up GPUS=0,1", "labkit down && labkit up --gpus 0,1"),
        ("make down up", "labkit down && labkit up"),
        ("LABKIT_VENV=.x make up   # or", "LABKIT_VENV=.x labkit up   # or"),
        ("make run LABS='tensors autograd'", "labkit run tensors autograd"),
        ("make hub STOP=1", "labkit hub --stop"),
        ("make doctor   # on the host", "labkit doctor   # on the host"),
        ("make it a plain function", "make it a plain function"),
    ],
)
def test_outside_of_the_clones_folder_its_commands_stand_for_make(text, elsewhere):
    assert name_command(text, clone=True, make=False) == elsewhere


def test_only_the_clones_own_folder_has_its_makefile(tmp_path, monkeypatch):
    monkeypatch.chdir(ROOT)
    assert has_make()
    for folder in (tmp_path, ROOT / "labkit"):
        monkeypatch.chdir(folder)
        assert not has_make()
    (tmp_path / "Makefile").touch()
    monkeypatch.chdir(tmp_path)
    assert not has_make()


def test_a_clone_has_a_makefile_and_services(tmp_path):
    assert in_clone()
    assert not in_clone(tmp_path / "labkit")


def run_module(words, folder, environment):
    """What ``python -m labkit`` prints in a folder, and its exit code."""
    return subprocess.run(
        [sys.executable, "-m", "labkit", *words],
        check=False,
        capture_output=True,
        text=True,
        cwd=folder,
        env=environment,
    )


def test_a_user_without_a_clone_reads_commands_that_run(tmp_path):
    shutil.copytree(
        ROOT / "labkit", tmp_path / "labkit", ignore=shutil.ignore_patterns("__pycache__")
    )
    environment = {**compose_environment(), "PATH": "/usr/bin:/bin", "PYTHONPATH": str(tmp_path)}
    environment.pop("LABKIT_HOME", None)
    for words, advice in ((["up"], "-m labkit lab DIR"), (["runn"], "-m labkit run")):
        made = run_module(words, tmp_path, environment)
        assert made.returncode == 2
        assert f"{shlex.quote(sys.executable)} {advice}" in made.stderr
        assert "make up" not in made.stderr


@pytest.mark.parametrize(
    ("words", "advice"),
    [
        (["status"], "-m labkit up"),
        (["logs"], "-m labkit up"),
        (["check"], "-m labkit lab, or set LABKIT_WORKSPACE"),
        (["progress"], "-m labkit lab, or set LABKIT_WORKSPACE"),
        (["doctor", "--explain", "log"], "-m labkit doctor   # on the host"),
    ],
)
def test_a_clone_that_is_used_from_another_folder_names_commands_that_run(tmp_path, words, advice):
    (tmp_path / "log").write_text('exec: "nvidia-smi": executable file not found in $PATH')
    environment = {**compose_environment(), "PATH": "/usr/bin:/bin", "PYTHONPATH": str(ROOT)}
    for name in ("LABKIT_HOME", "LABKIT_MAKE", "LABKIT_WORKSPACE"):
        environment.pop(name, None)
    made = run_module(words, tmp_path, {**environment, "LABKIT_STATE": str(tmp_path / "state")})
    said = made.stdout + made.stderr
    assert advice in said
    assert "make up" not in said

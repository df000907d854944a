"""The lab without an engine: a background process, its variables and its last words."""

from __future__ import annotations

import io
import os
from dataclasses import replace
from pathlib import Path

import pytest

from labkit.errors import EngineError, UsageError
from labkit.launch import local
from labkit.launch.local import LocalLab, link_data
from labkit.launch.progress import Steps
from labkit.launch.settings import Flavor, Settings
from labkit.launch.state import LabHandle, ensure_token
from tests.fakes.host import make_checkout, write_program


@pytest.fixture
def lab(tmp_path):
    return LocalLab(make_checkout(tmp_path / "a lab"), Settings(runtime="local"), port=8890)


@pytest.fixture
def became(monkeypatch):
    calls = []

    def become(words, environment=None):
        calls.append((list(words), environment))
        raise SystemExit

    monkeypatch.setattr(local, "replace_process", become)
    return calls


def test_the_variables_are_the_images_own_with_folders_of_the_checkout(lab):
    root = str(lab.checkout.root)
    values = lab.environment()
    assert values["PATH"].startswith(f"{root}/.venv/bin{os.pathsep}")
    assert values["LABKIT_WORKSPACE"] == f"{root}/work"
    assert values["LABKIT_TOKEN_FILE"] == f"{root}/.labkit/token"
    assert values["LABKIT_SERVER_ADDRESS"] == "127.0.0.1"
    assert values["LABKIT_SERVER_PORT"] == "8890"
    assert values["LABKIT_REMOTE_ACCESS"] == "0"
    assert values["LABKIT_LOG_FILE"] == str(lab.log_file)  # the server keeps it short
    assert values["JUPYTER_CONFIG_PATH"] == f"{root}/docker/jupyter"


def test_what_the_user_brings(lab, tmp_path):
    (tmp_path / "variables").write_text("HF_TOKEN=hf_$secret\n")
    brought = Settings(data=tmp_path, env_file=tmp_path / "variables")
    values = LocalLab(lab.checkout, brought).environment()
    assert (values["HF_TOKEN"], values["LABKIT_DATA"]) == ("hf_$secret", str(tmp_path))


def test_data_is_a_link_in_the_workspace(lab, tmp_path):
    workspace, other = lab.checkout.workspace, tmp_path / "other"
    for data in (tmp_path, tmp_path, other):
        link_data(workspace, data)
        assert (workspace / "data").readlink() == data
    (workspace / "data").unlink()
    (workspace / "data").mkdir()
    with pytest.raises(UsageError, match="in the way of DATA="):
        link_data(workspace, tmp_path)


def test_the_token_itself_is_in_no_variable(lab):
    token = ensure_token(lab.checkout)
    assert token not in "".join(lab.environment().values())


def test_an_address_that_opens_to_others_allows_remote_access(lab):
    opened = LocalLab(lab.checkout, Settings(bind="0.0.0.0"), 8890)
    assert opened.environment()["LABKIT_REMOTE_ACCESS"] == "1"


@pytest.mark.filterwarnings("ignore:subprocess:ResourceWarning")  # it is meant to outlive us
def test_it_starts_in_the_background_and_is_stopped(lab):
    program = lab.python_environment.python
    write_program(program.parent, program.name, 'echo "started: $*"; exec sleep 60')
    handle = lab.start()
    try:
        assert lab.is_alive(handle)
        assert handle.container is None
    finally:
        lab.stop(handle)
    assert not lab.is_alive(handle)


@pytest.mark.filterwarnings("ignore:subprocess:ResourceWarning")
def test_each_start_has_a_log_of_its_own(lab):
    lab.log_file.write_text("of the last time\n")
    program = lab.python_environment.python
    write_program(program.parent, program.name, "exit 0")
    lab.stop(lab.start())
    assert "of the last time" not in lab.log_file.read_text()


def test_what_it_prepares_is_the_environment(lab, monkeypatch):
    prepared = []
    monkeypatch.setattr(
        local.PythonEnvironment, "prepare", lambda self, steps, locks: prepared.append(locks)
    )
    lab.prepare(Steps())
    replace(lab, flavor=Flavor("cuda", "cu126", ("all",))).prepare(Steps())
    assert prepared == [("torch-cpu", "lab"), ("cuda-cu126", "torch-cu126", "lab")]


@pytest.mark.parametrize(
    ("asked", "locks", "said"),
    [
        pytest.param(
            "auto",
            ("cuda-cu130", "torch-cu130", "lab", "test"),
            "keeping the build for CUDA 13.0 in .venv, which has the CPU too\n",
            id="left to the launcher",
        ),
        pytest.param("cpu", ("torch-cpu", "lab", "test"), "", id="asked for by name"),
    ],
)
def test_a_cuda_build_is_kept_while_its_driver_fails(lab, monkeypatch, asked, locks, said):
    prepared, screen = [], io.StringIO()
    monkeypatch.setattr(
        local.PythonEnvironment, "prepare", lambda self, steps, locks: prepared.append(locks)
    )
    lab.checkout.environment_folder.mkdir()
    (lab.checkout.environment_folder / ".labkit-torch-cu130").write_text("0123")
    replace(lab, settings=Settings(flavor=asked)).prepare(Steps(screen), ["test"])
    assert prepared == [locks]
    assert screen.getvalue() == said


@pytest.mark.parametrize(
    ("gpus", "asked", "outside", "seen"),
    [
        pytest.param((), (), None, None, id="cpu"),
        pytest.param(("all",), (), None, None, id="all"),
        pytest.param(("all",), (), "3", "3", id="all, and a choice made outside"),
        pytest.param(("0", "1"), ("0", "1"), None, "0,1", id="some"),
        pytest.param(("0",), ("0",), "3", "0", id="some, by name, against one made outside"),
        pytest.param(("1",), (), None, "1", id="what the build serves"),
        pytest.param(("1",), (), "3", "3", id="what the build serves, and one made outside"),
    ],
)
def test_torch_sees_the_chosen_gpus(lab, monkeypatch, gpus, asked, outside, seen):
    for name in ("CUDA_VISIBLE_DEVICES", "CUDA_DEVICE_ORDER"):
        monkeypatch.delenv(name, raising=False)
    if outside:
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", outside)
    flavor = Flavor("cuda", "cu130", gpus)
    values = replace(lab, settings=Settings(gpus=asked), flavor=flavor).environment()
    assert values.get("CUDA_VISIBLE_DEVICES") == seen
    # As nvidia-smi counts them: by itself CUDA has the fastest in front.
    assert values.get("CUDA_DEVICE_ORDER") == ("PCI_BUS_ID" if seen not in (None, "3") else None)


def test_the_driver_has_been_asked_already(lab):
    assert lab.find_gpu_problem(LabHandle()) is None


def test_a_dead_server_is_explained_by_its_last_words(lab):
    lab.log_file.write_text("[I 2026] starting\nOSError: [Errno 98] Address already in use\n")
    error = lab.explain_death(LabHandle())
    assert "  | OSError: [Errno 98] Address already in use" in error.what
    assert str(lab.log_file) in error.what


def test_of_a_long_log_only_the_end_is_read(lab, monkeypatch):
    monkeypatch.setattr(local, "LAST_BYTES", 20)
    lab.log_file.write_text("first\n" * 100 + "the last line\n")
    assert "  | the last line" in lab.explain_death(LabHandle()).what
    assert lab.explain_death(LabHandle()).what.count("first") <= 1


def test_a_server_without_a_log_is_explained_all_the_same(lab):
    assert lab.explain_death(LabHandle()).what == f"JupyterLab stopped (log: {lab.log_file})"


@pytest.mark.parametrize(
    ("follow", "words"), [(False, ["-n", "50"]), (True, ["-n", "50", "-f"])], ids=["once", "follow"]
)
def test_logs_are_the_tail_of_the_file(lab, became, follow, words):
    lab.log_file.write_text("a line\n")
    with pytest.raises(SystemExit):
        lab.show_logs(None, 50, follow)
    assert became == [(["tail", *words, str(lab.log_file)], None)]


def test_no_log_yet(lab, became):
    with pytest.raises(EngineError, match="there is no log yet") as caught:
        lab.show_logs(None, 50, False)
    assert caught.value.fix == "make up"


def test_a_command_runs_in_the_workspace_with_the_environments_programs(lab, became, monkeypatch):
    monkeypatch.chdir(lab.checkout.root)
    with pytest.raises(SystemExit):
        lab.enter(None, ["labkit", "devices"])
    [(words, environment)] = became
    assert words == ["labkit", "devices"]
    assert environment["VIRTUAL_ENV"] == str(lab.checkout.environment_folder)
    assert Path.cwd() == lab.checkout.workspace


def test_the_same_lab_on_another_port(lab):
    assert lab.on_port(9000) == LocalLab(lab.checkout, lab.settings, 9000)

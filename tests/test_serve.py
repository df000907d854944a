"""What `labkit serve` makes ready before it becomes JupyterLab."""

from __future__ import annotations

import os
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

from labkit.cli import main
from labkit.errors import EngineError, UsageError
from labkit.launch import serve
from labkit.launch.serve import (
    STATE_FOLDERS,
    STRICT_CONFIG,
    become_jupyter,
    compose_lab,
    find_workspace,
    prepare_folders,
)
from labkit.launch.settings import Settings
from labkit.process import SAFE_PATH, run_command
from tests.ports import choose_port

ROOT = Path(__file__).parents[1]


def test_jupyters_own_folders_are_made_in_the_state_folder(tmp_path):
    values = prepare_folders({"LABKIT_STATE": str(tmp_path / "state"), "OTHER": "kept"})
    assert values.pop("LABKIT_STATE") == str(tmp_path / "state")
    assert values.pop("OTHER") == "kept"
    assert values.pop(STRICT_CONFIG) == "1"
    assert values == {name: f"{tmp_path}/state/{path}" for name, path in STATE_FOLDERS.items()}
    assert all(Path(path).is_dir() for path in values.values())


def test_the_users_own_jupyter_settings_are_left_out_of_it(tmp_path):
    environment = {"LABKIT_STATE": str(tmp_path), "JUPYTER_CONFIG_DIR": "/home/ada/.jupyter"}
    assert prepare_folders(environment)["JUPYTER_CONFIG_DIR"] == f"{tmp_path}/jupyter/config"


def test_what_is_there_already_is_kept(tmp_path):
    prepare_folders({"LABKIT_STATE": str(tmp_path)})
    (tmp_path / "jupyter" / "config" / "mine.json").write_text("{}")
    prepare_folders({"LABKIT_STATE": str(tmp_path)})
    assert (tmp_path / "jupyter" / "config" / "mine.json").exists()


@pytest.mark.parametrize(("inside", "made"), [("1", True), ("", False)], ids=["container", "host"])
def test_a_home_is_made_in_a_container_alone(tmp_path, inside, made):
    home = tmp_path / "home"
    environment = {
        "LABKIT_STATE": str(tmp_path / "state"),
        "LABKIT_IN_CONTAINER": inside,
        "HOME": str(home),
    }
    prepare_folders(environment)
    assert home.exists() is made


def test_caches_that_cannot_be_written(tmp_path):
    (tmp_path / "state").write_text("a file of that name")
    with pytest.raises(EngineError) as caught:
        prepare_folders({"LABKIT_STATE": str(tmp_path / "state")})
    assert caught.value.what.startswith(f"cannot write to {tmp_path}/state/")
    assert caught.value.fix == "make clean && make up"


def test_the_workspace_by_its_variable(tmp_path):
    assert find_workspace({"LABKIT_WORKSPACE": str(tmp_path)}) == tmp_path


def test_without_the_variable_it_is_here(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert find_workspace({}) == tmp_path


def test_a_workspace_that_cannot_be_written(tmp_path):
    missing = tmp_path / "work"
    with pytest.raises(UsageError) as caught:
        find_workspace({"LABKIT_WORKSPACE": str(missing)})
    assert caught.value.what == f"the workspace {missing} cannot be written by uid {os.getuid()}"
    assert caught.value.fix == f"sudo chown -R $(id -u):$(id -g) {missing}"
    with pytest.raises(UsageError) as caught:
        find_workspace({"LABKIT_WORKSPACE": str(missing), "LABKIT_IN_CONTAINER": "1"})
    assert '-v "$PWD":/work' in str(caught.value.fix)


def test_what_holds_tokens_and_keys_is_closed_to_others(tmp_path):
    runtime = tmp_path / "jupyter" / "runtime"
    runtime.mkdir(parents=True, mode=0o755)
    page, said = runtime / "jpserver-7-open.html", runtime / "jpserver-7.json"
    for path in (page, said):
        path.touch(mode=0o644)
    prepare_folders({"LABKIT_STATE": str(tmp_path)})
    assert not page.exists()
    assert [path.stat().st_mode & 0o777 for path in (runtime, said)] == [0o700, 0o600]


@pytest.mark.parametrize("name", ["a file", "a file/below", "a program"])
def test_a_folder_of_ones_own_that_cannot_be_used(tmp_path, name):
    (tmp_path / "a file").touch()
    (tmp_path / "a program").touch(mode=0o755)
    with pytest.raises(UsageError) as caught:
        compose_lab(tmp_path / name, Settings(), 8888, {"LABKIT_STATE": str(tmp_path / "state")})
    assert caught.value.cause == "there is a file of that name"
    assert caught.value.fix.startswith("labkit lab ")


def test_caches_of_ones_own_lab_that_cannot_be_written(tmp_path):
    (tmp_path / "state").touch()
    with pytest.raises(EngineError) as caught:
        compose_lab(tmp_path / "my lab", Settings(), 8888, {"LABKIT_STATE": f"{tmp_path}/state"})
    command = f'LABKIT_STATE="$(mktemp -d)" labkit lab {shlex.quote(str(tmp_path / "my lab"))}'
    assert caught.value.fix == command


def test_a_folder_of_ones_own_that_is_a_link_to_itself(tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("LABKIT_STATE", str(tmp_path / "state"))
    (tmp_path / "loop").symlink_to(tmp_path / "loop")
    assert main(["lab", str(tmp_path / "loop")]) == 2
    assert "labkit lab ~" in capsys.readouterr().err


@pytest.mark.root
def test_a_read_only_folder_of_ones_own(tmp_path):
    script = (
        f"mount --bind {tmp_path} {tmp_path} && mount -o remount,bind,ro {tmp_path} || exit 77;"
        f"exec {shlex.quote(sys.executable)} -m labkit lab {tmp_path}/new/work"
    )
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    words = ["unshare", "--mount", "sh", "-c", script]
    done = run_command(words, timeout_seconds=60, environment=environment)
    if done.exit_code in (77, 1):
        pytest.skip(f"this system allows no mounts: {done.message}")
    assert (done.exit_code, "labkit lab ~" in done.stderr) == (2, True), done.stderr


@pytest.fixture
def became(monkeypatch):
    """What the process would have become."""
    calls = []
    monkeypatch.setattr(serve, "replace_process", lambda *arguments: calls.append(arguments))
    return calls


def test_it_becomes_jupyterlab_of_its_own_python(became):
    become_jupyter({"JUPYTER_CONFIG_PATH": "/etc/labkit/jupyter"})
    assert became == [
        (
            [sys.executable, *SAFE_PATH, "-m", "jupyterlab"],
            {"JUPYTER_CONFIG_PATH": "/etc/labkit/jupyter"},
        )
    ]


@pytest.mark.slow
@pytest.mark.skipif(not SAFE_PATH, reason="Python 3.10 has no -P")
def test_a_learners_file_with_a_modules_name_stops_no_server(tmp_path):
    for name in ("queue", "random", "json"):
        (tmp_path / f"{name}.py").write_text("raise SystemExit('the learner's own file')\n")
    become = "import os; from labkit.launch.serve import become_jupyter as become;"
    words = ["-c", f"{become} become(dict(os.environ), ['--version'])"]
    done = subprocess.run(
        [sys.executable, *SAFE_PATH, *words],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == 0, done.stderr


def test_further_arguments_are_jupyterlabs(became, tmp_path, monkeypatch):
    monkeypatch.setattr("labkit.lessons.workspace.update_workspace", lambda workspace: None)
    monkeypatch.setenv("LABKIT_WORKSPACE", str(tmp_path))
    monkeypatch.setenv("LABKIT_STATE", str(tmp_path / "state"))
    options = ["--ServerApp.base_url=/user/ada/", "--ip", "0.0.0.0", "notes.ipynb"]
    assert main(["serve", *options]) == 0
    assert became[0][0][3 + len(SAFE_PATH) :] == options


def test_the_labs_in_a_folder_without_a_checkout(became, tmp_path, monkeypatch):
    monkeypatch.setenv("LABKIT_STATE", str(tmp_path / "state"))
    monkeypatch.setenv("JUPYTER_CONFIG_PATH", "/home/ada/.jupyter")
    port = str(choose_port())
    assert main(["lab", str(tmp_path / "a lab"), "--port", port]) == 0
    [(command, values)] = became
    assert command[1:] == [*SAFE_PATH, "-m", "jupyterlab"]
    assert (tmp_path / "a lab" / "01_tensors.ipynb").is_file()
    assert values["LABKIT_WORKSPACE"] == str(tmp_path / "a lab")
    assert (values["LABKIT_SERVER_ADDRESS"], values["LABKIT_SERVER_PORT"]) == ("127.0.0.1", port)
    assert (Path(values["JUPYTER_CONFIG_PATH"]) / "jupyter_server_config.py").is_file()
    extension = Path(values["IPYTHONDIR"], "profile_default", "ipython_config.py").read_text()
    assert 'extensions = ["labkit"]' in extension


def test_a_lab_without_jupyterlab_names_the_extra(monkeypatch, tmp_path, capsys):
    monkeypatch.setattr(serve, "find_spec", lambda name: None)
    assert main(["lab", str(tmp_path)]) == 5
    assert 'pip install "labkit[lab]"' in capsys.readouterr().err


def test_no_other_command_takes_arguments_that_it_does_not_know(capsys):
    assert main(["status", "--ServerApp.base_url=/"]) == 2
    assert "--ServerApp.base_url=/" in capsys.readouterr().err


@pytest.mark.slow
@pytest.mark.parametrize("fault", ["raise RuntimeError('broken on purpose')", "def f(:"])
def test_a_configuration_that_does_not_load_stops_the_server(tmp_path, fault):
    """Jupyter itself would serve without it: with its own token, on its own port."""
    (tmp_path / "config").mkdir()
    (tmp_path / "work").mkdir()
    (tmp_path / "config" / "jupyter_server_config.py").write_text(fault + "\n")
    environment = {
        **os.environ,
        "PYTHONPATH": str(Path(__file__).parents[1]),
        "LABKIT_WORKSPACE": str(tmp_path / "work"),
        "LABKIT_STATE": str(tmp_path / "state"),
        "JUPYTER_CONFIG_PATH": str(tmp_path / "config"),
    }
    command = [
        sys.executable,
        *SAFE_PATH,
        "-m",
        "jupyterlab",
        "--no-browser",
        "--allow-root",
        "--port=0",
    ]
    done = run_command(command, timeout_seconds=60, environment=prepare_folders(environment))
    assert done.exit_code not in (0, None)
    assert ("broken on purpose" in done.stderr) or ("SyntaxError" in done.stderr)

"""A maintainer's tools, in an environment of their own."""

from __future__ import annotations

import io

import pytest

from labkit.errors import EngineError, UsageError
from labkit.launch import dev as tools_module
from labkit.launch.dev import build_docs, prepare_tools, run_simulated_tests
from labkit.launch.progress import Steps
from labkit.launch.settings import Settings
from labkit.launch.venv import PythonEnvironment
from tests.fakes.host import make_checkout, write_program

# Plays the Python that makes the environment, whose pip does what the case says.
PYTHON = """\
for home; do :; done
mkdir -p "$home/bin"
printf '#!/bin/sh\\necho "$*" "$PIP_CERT" >> {calls}\\n{pip}\\n' > "$home/bin/python"
chmod +x "$home/bin/python" """


@pytest.fixture
def checkout(tmp_path, monkeypatch):
    monkeypatch.delenv("LABKIT_CA_FILE", raising=False)
    monkeypatch.delenv("PIP_CERT", raising=False)
    monkeypatch.setenv("PIP_TARGET", "/elsewhere")
    checkout = make_checkout(tmp_path / "lab")
    checkout.lock_file("tools").write_text("one==1 --hash=sha256:aa\n")
    return checkout


@pytest.fixture
def play(tmp_path, monkeypatch):
    """Call it with what pip does; the calls it had, one a line."""

    def play(pip):
        script = PYTHON.format(calls=tmp_path / "calls", pip=pip)
        program = write_program(tmp_path / "bin", "python3", script)
        monkeypatch.setattr(tools_module.sys, "executable", str(program))

    play("exit 0")
    return play


def prepare(checkout):
    return prepare_tools(checkout, Steps(io.StringIO()), "tools", "make lock")


@pytest.mark.usefixtures("play")
def test_they_are_installed_once_by_their_hashes(checkout, tmp_path):
    first, second = prepare(checkout), prepare(checkout)
    assert first == second
    assert first.parent.parent == checkout.state_folder / "tools"
    [call] = (tmp_path / "calls").read_text().splitlines()
    assert "--require-hashes" in call
    assert call.strip().endswith(f"-r {checkout.lock_file('tools')}")


@pytest.mark.usefixtures("play")
def test_another_lock_is_another_environment(checkout, tmp_path):
    first = prepare(checkout)
    checkout.lock_file("tools").write_text("one==2 --hash=sha256:bb\n")
    assert prepare(checkout) != first
    assert len((tmp_path / "calls").read_text().splitlines()) == 2


def test_a_failed_install_is_repeated(checkout, play):
    play("echo no such release >&2; exit 1")
    with pytest.raises(EngineError, match="no such release") as caught:
        prepare(checkout)
    assert "make lock" in str(caught.value.fix)
    play("exit 0")
    assert prepare(checkout).is_dir()


@pytest.mark.usefixtures("play")
def test_their_pip_trusts_the_networks_certificate(checkout, tmp_path, monkeypatch):
    certificate = tmp_path / "ca.pem"
    certificate.write_text("-----BEGIN CERTIFICATE-----\n")
    monkeypatch.setenv("LABKIT_CA_FILE", str(certificate))
    prepare(checkout)
    assert (tmp_path / "calls").read_text().endswith(f"{checkout.state_folder}/trusted.pem\n")


@pytest.mark.parametrize(
    "settings", [Settings(runtime="docker"), Settings(runtime="podman"), Settings(flavor="cpu")]
)
def test_simulated_gpus_are_in_no_container_and_no_cpu_build(checkout, settings):
    with pytest.raises(UsageError, match="SIMULATED=1") as caught:
        run_simulated_tests(checkout, settings, Steps(io.StringIO()))
    assert caught.value.fix == "make test SIMULATED=1"


@pytest.mark.parametrize(("fast", "marked"), [(False, "simulated)"), (True, "not slow")])
def test_simulated_gpus_have_an_environment_of_their_own(checkout, monkeypatch, fast, marked):
    ran = []
    monkeypatch.setattr(tools_module, "prepare_state_folder", lambda _: None)
    monkeypatch.setattr(PythonEnvironment, "prepare", lambda self, _, locks: ran.append(locks))
    monkeypatch.setattr(tools_module, "_build_simulation", lambda *_: None)
    monkeypatch.setattr(tools_module, "replace_process", lambda *words: ran.append(words))
    monkeypatch.chdir(checkout.root)
    run_simulated_tests(checkout, Settings(), Steps(io.StringIO()), ["-k", "x"], fast=fast)
    locks, (command, variables) = ran
    home = checkout.root / ".venv-simulated"
    assert locks == ("cuda-cu130", "torch-cu130", "lab", "test")
    assert command[0] == str(home / "bin" / "python")
    assert command[-3].endswith(marked)
    assert variables["LD_LIBRARY_PATH"] == str(home / "simulated-gpu" / "driver")


# Plays mkdocs: the arguments are what it says and how it ends.
@pytest.mark.parametrize(("script", "fails"), [("exit 0", False), ("exit 1", True)])
def test_the_documentation_is_built_strictly(checkout, monkeypatch, script, fails):
    words = 'echo "$*" > words; echo "WARNING - memory.md links to nothing" >&2'
    program = write_program(checkout.root / "bin", "mkdocs", f"{words}; {script}")
    monkeypatch.setattr(tools_module, "prepare_tools", lambda *_: program.parent)
    if fails:
        with pytest.raises(EngineError, match=r"memory\.md links to nothing"):
            build_docs(checkout, Steps(io.StringIO()))
    else:
        page = build_docs(checkout, Steps(io.StringIO()))
        assert page == checkout.root / "build" / "site" / "index.html"
    assert (checkout.root / "words").read_text() == "build --strict\n"

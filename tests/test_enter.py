"""Where a command runs: in the lab that is up, or in one made ready for it."""

from __future__ import annotations

import io
import os
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from labkit.errors import UsageError
from labkit.host.torch_builds import BUILDS
from labkit.launch import dev, image, up
from labkit.launch.compose import ContainerLab
from labkit.launch.dev import run_tools
from labkit.launch.local import LocalLab
from labkit.launch.plan import Choice, Plan
from labkit.launch.progress import Steps
from labkit.launch.settings import CPU, Flavor, Settings
from labkit.launch.state import LabHandle, LabState
from labkit.launch.status import LabStatus
from labkit.launch.up import prepare_lab
from labkit.process import run_command
from tests.fakes.host import make_checkout

STATE = LabState("docker", "cpu", 8888, "127.0.0.1", "why", "now", LabHandle(container="a1"))


@dataclass
class FakeLab:
    """A lab that notes that it was made ready."""

    prepared: list[str] = field(default_factory=list)

    def prepare(self, steps):
        self.prepared.append("prepared")


@pytest.fixture
def checkout(tmp_path):
    return make_checkout(tmp_path / "a lab")


@pytest.fixture
def demanded():
    """Whether the plans that were made had to have a GPU where one is asked for."""
    return []


@pytest.fixture
def planned(monkeypatch, demanded):
    """The lab that would be made ready; no host is probed."""

    def play(lab, module=up, flavor=CPU):
        plan = Plan(Choice("local", "no engine"), Choice(flavor, "a reason"), lab, False)
        monkeypatch.setattr(module, "probe_host", lambda checkout, settings, steps: None)

        def make_plan(checkout, settings, facts, *, demand):
            demanded.append(demand)
            return plan

        monkeypatch.setattr(module, "make_plan", make_plan)
        return lab

    return play


def runs(monkeypatch, checkout, state=STATE, *, healthy=True):
    status = LabStatus(checkout, state, "healthy" if healthy else "silent")
    monkeypatch.setattr(up, "read_status", lambda checkout: status)


@pytest.mark.parametrize("runtime", ["auto", "docker"])
def test_the_lab_that_runs_is_used(checkout, monkeypatch, runtime):
    runs(monkeypatch, checkout)
    lab, handle = prepare_lab(checkout, Settings(runtime=runtime), Steps(io.StringIO()))
    assert isinstance(lab, ContainerLab)
    assert handle == STATE.handle


@pytest.mark.parametrize(
    ("settings", "healthy", "use_running"),
    [
        pytest.param(Settings(runtime="local"), True, True, id="another runtime asked for"),
        pytest.param(Settings(flavor="cuda"), True, True, id="another flavor asked for"),
        pytest.param(Settings(gpus=("0",)), True, True, id="a GPU asked for"),
        pytest.param(Settings(), False, True, id="it is not well"),
        pytest.param(Settings(), True, False, id="make build"),
    ],
)
def test_else_one_is_made_ready(
    checkout, monkeypatch, planned, demanded, settings, healthy, use_running
):
    runs(monkeypatch, checkout, healthy=healthy)
    fake = planned(FakeLab())
    checkout.workspace.rmdir()
    screen = io.StringIO()
    lab, handle = prepare_lab(checkout, settings, Steps(screen), use_running=use_running)
    assert (lab, handle) == (fake, None)
    assert fake.prepared == ["prepared"]
    assert screen.getvalue() == "runtime: local (no engine)\nflavor:  cpu (a reason)\n"
    assert demanded == [use_running]  # `make build` needs no GPU, what runs in the lab does
    assert checkout.workspace.is_dir()
    assert checkout.token_file.exists()


def test_a_workspace_that_cannot_be_used_is_told_before(checkout, monkeypatch, planned):
    monkeypatch.setattr(up, "read_status", LabStatus)
    fake = planned(FakeLab())
    checkout.workspace.rmdir()
    checkout.workspace.write_text("")
    with pytest.raises(UsageError, match="is not a folder"):
        prepare_lab(checkout, Settings(), Steps(io.StringIO()))
    assert fake.prepared == []


# The tests and the linters


@pytest.fixture
def became(monkeypatch):
    """What the process would have become."""
    calls = []
    monkeypatch.setattr(
        dev, "replace_process", lambda words, environment=None: calls.append(list(words))
    )
    return calls


@pytest.mark.parametrize("build", BUILDS.values(), ids=tuple(BUILDS))
def test_in_a_venv_pytest_runs_from_the_checkout(
    checkout, planned, demanded, became, monkeypatch, build
):
    installed = []
    monkeypatch.setattr(
        "labkit.launch.venv.PythonEnvironment.prepare",
        lambda self, steps, locks: installed.append(locks),
    )
    flavor = Flavor(build.flavor, build.name)
    planned(LocalLab(checkout, Settings(), flavor=flavor), dev, flavor)
    monkeypatch.chdir(os.curdir)
    run_tools(checkout, Settings(), Steps(io.StringIO()), "test", ["-k", "ports"])
    assert installed == [(*build.locks, "test")]
    assert demanded == [False]
    assert became == [["python", "-m", "pytest", "-k", "ports"]]
    assert Path.cwd() == checkout.root


@pytest.fixture
def container(checkout, planned):
    return planned(ContainerLab(checkout, "docker", CPU, Settings()), dev)


@pytest.fixture
def attached(monkeypatch):
    """What would have run in a container."""
    calls = []
    monkeypatch.chdir(os.curdir)  # the tools run in the checkout's
    monkeypatch.setattr(
        "labkit.launch.compose.run_attached",
        lambda words, environment=None, *, stop: calls.append(list(words)) or 7,
    )
    return calls


def test_in_a_container_pytest_runs_in_the_test_image(checkout, container, attached, monkeypatch):
    monkeypatch.setattr(image, "read_image_digest", lambda client, name: "0123")
    monkeypatch.setattr(image, "digest_inputs", lambda checkout, inputs: "0123")
    assert run_tools(checkout, Settings(), Steps(io.StringIO()), "test", []) == 7
    assert attached[0][-5:] == ["--no-TTY", "test", "python", "-m", "pytest"]


@pytest.mark.parametrize("present", [None, "4567"], ids=["missing", "stale"])
def test_the_test_image_is_built_where_it_is_missing_or_stale(
    checkout, container, attached, monkeypatch, present
):
    built = []
    monkeypatch.setattr(image, "read_image_digest", lambda client, name: present)
    monkeypatch.setattr(image, "run_build", lambda *words, **_: built.append(words[3][-2:]))
    run_tools(checkout, Settings(), Steps(io.StringIO()), "test", [])
    assert built == [["build", "test"]]


def test_the_fast_tests_leave_out_what_takes_long(checkout, container, attached, monkeypatch):
    monkeypatch.setattr(image, "read_image_digest", lambda client, name: "0123")
    monkeypatch.setattr(image, "digest_inputs", lambda checkout, inputs: "0123")
    run_tools(checkout, Settings(), Steps(io.StringIO()), "fast test", ["-k", "ports"])
    words = attached[0][attached[0].index("pytest") :]
    assert words[-2:] == ["-k", "ports"]
    assert "not slow and not engine and not browser" in words
    assert words[words.index("-n") + 1] == "2"


@pytest.mark.parametrize(
    ("linters", "exit_code", "printed"),
    [
        pytest.param(("echo a", "echo b"), 0, "+ echo a\na\n+ echo b\nb\n", id="all fine"),
        pytest.param(("false", "echo b"), 1, "+ false\n+ echo b\nb\n", id="the first fails"),
        pytest.param(("echo a", "false"), 1, "+ echo a\na\n+ false\n", id="the last fails"),
    ],
)
def test_every_linter_runs_whatever_the_one_before_found(linters, exit_code, printed):
    result = run_command(dev.chain_commands(linters), timeout_seconds=10)
    assert (result.exit_code, result.stdout) == (exit_code, printed)

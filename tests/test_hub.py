"""The hub's Compose file, configuration and launcher; tests/image/test_hub.py has a real class."""

from __future__ import annotations

import io
import json
import os
import runpy
import sys
from pathlib import Path
from types import ModuleType, SimpleNamespace

import pytest
import yaml  # comes with JupyterLab

from labkit.cli import main
from labkit.errors import EngineError
from labkit.launch import hub, serve
from labkit.launch.compose import ContainerLab
from labkit.launch.progress import Steps
from labkit.launch.settings import CPU, Settings
from labkit.process import SAFE_PATH, CommandResult
from tests.fakes.host import fails, make_checkout, says
from tests.test_compose import fill_in

FOLDER = Path(__file__).parents[1] / "hub"
COMPOSE = yaml.safe_load(fill_in((FOLDER / "compose.yaml").read_text(encoding="utf-8")))
HUB, PROXY = COMPOSE["services"]["hub"], COMPOSE["services"]["proxy"]


def test_hub_and_proxy_are_hardened_and_listen_on_loopback():
    for service in (HUB, PROXY):
        assert (service["cap_drop"], service["read_only"]) == (["ALL"], True)
        assert service["security_opt"] == ["no-new-privileges:true"]
        assert service["user"] == "1000:1000" and service["mem_limit"]
    assert (PROXY["ports"], HUB.get("ports")) == (["127.0.0.1:8000:8000"], None)


def test_the_hub_alone_has_the_engines_socket():
    has_socket = [
        name
        for name, service in COMPOSE["services"].items()
        if any("docker.sock" in volume for volume in service.get("volumes", ()))
    ]
    assert has_socket == ["hub"]


class Settable(SimpleNamespace):
    """JupyterHub's configuration object: any section, any name."""

    def __getattr__(self, name: str):
        setattr(self, name, Settable())
        return getattr(self, name)


@pytest.fixture
def configure(monkeypatch):
    """Call it with HUB_GPUS and others; it gives what the configuration file defines."""
    spawner = ModuleType("dockerspawner")
    spawner.DockerSpawner = type("DockerSpawner", (), {"environment": {}})
    monkeypatch.setitem(sys.modules, "dockerspawner", spawner)
    monkeypatch.setattr(Path, "read_text", lambda self, **_: "token\n")
    for name, value in HUB["environment"].items():
        monkeypatch.setenv(name, str(value or ""))

    def configure(gpus: str = "", **variables: str):
        for name, value in {"HUB_GPUS": gpus, **variables}.items():
            monkeypatch.setenv(name, value)
        settings = Settable()
        path = str(FOLDER / "jupyterhub_config.py")
        return runpy.run_path(path, {"get_config": lambda: settings}), settings

    return configure


def test_without_gpus_there_is_nothing_to_choose(configure):
    defined, settings = configure("")
    assert list(defined["PROFILES"]) == ["CPU"]
    assert defined["LabSpawner"]()._options_form_default() == ""
    assert settings.DockerSpawner.mem_limit == "2G"
    assert settings.Authenticator.admin_users == set()
    assert settings.NativeAuthenticator.open_signup is False


def test_a_profile_gives_the_container_its_own_gpu(configure):
    defined, _ = configure("one <GPU>=0; MIG instance=MIG-5c8e")
    assert list(defined["PROFILES"]) == ["CPU", "one <GPU>", "MIG instance"]
    [request] = defined["PROFILES"]["MIG instance"]["device_requests"]
    assert request["DeviceIDs"] == ["MIG-5c8e"]
    form = defined["LabSpawner"]()._options_form_default()
    assert form.count("checked") == 1 and 'value="one &lt;GPU&gt;"' in form
    with pytest.raises(SystemExit, match="is not TITLE=DEVICE"):
        configure("GPU 0")


@pytest.mark.parametrize(
    ("variables", "everyone", "named"),
    [
        pytest.param({}, True, set(), id="who has signed up"),
        pytest.param({"HUB_AUTHENTICATOR": "generic-oauth"}, True, set(), id="the institution's"),
        pytest.param(
            {"HUB_AUTHENTICATOR": "github"}, False, set(), id="nobody of a service for all"
        ),
        pytest.param(
            {"HUB_AUTHENTICATOR": "github", "HUB_ALLOWED": "ada bob"},
            *(False, {"ada", "bob"}),
            id="named",
        ),
        pytest.param({"HUB_AUTHENTICATOR": "github", "HUB_ALLOWED": "*"}, True, set(), id="all"),
    ],
)
def test_who_may_log_in(configure, variables, everyone, named):
    _, settings = configure(**variables)
    assert settings.Authenticator.allow_all is everyone
    assert settings.Authenticator.allowed_users == named


@pytest.fixture
def checkout(tmp_path):
    return make_checkout(tmp_path / "a lab")


def test_without_docker_there_is_no_hub(checkout):
    with pytest.raises(EngineError, match="runtime local") as caught:
        hub.start_hub(checkout, Settings("local", "cpu"), Steps(io.StringIO()))
    assert caught.value.fix == "make hub RUNTIME=docker"


def test_hub_and_proxy_share_a_token_that_stays(checkout, monkeypatch, tmp_path):
    monkeypatch.setattr(hub, "SOCKET", tmp_path)
    monkeypatch.setattr(hub.os, "chown", lambda *_: None)
    checkout.state_folder.mkdir(exist_ok=True)
    lab = ContainerLab(checkout, "docker", CPU, Settings())
    values = hub.compose_variables(checkout, lab, Settings(port=8765, bind="::1"))
    assert (values["HUB_PORT"], values["HUB_LAB_IMAGE"]) == ("8765", "labkit:cpu")
    assert values["HUB_SOCKET_GROUP"] == str(tmp_path.stat().st_gid)
    token = Path(values["HUB_TOKEN_FILE"])
    text = token.read_text()
    assert (token.stat().st_mode & 0o777, len(text)) == (0o600, 65)
    assert text.strip() not in "".join(values.values())
    assert hub.compose_variables(checkout, lab, Settings()) and token.read_text() == text


def test_the_class_is_read_from_the_learners_volumes(checkout, monkeypatch):
    lab = {"lab": "tensors", "passed": 2, "total": 5}
    calls = []

    def run(words, *, timeout_seconds) -> CommandResult:
        calls.append(list(words))
        if words[1] == "volume":
            return says(
                "labkit-learner-bob-work\nlabkit-learner-a-40b-work\nlabkit-learner-x-cache"
            )
        return says("\n".join([json.dumps({"labs": [lab]}), "not JSON"]))

    monkeypatch.setattr(hub, "run_command", run)
    learners = hub.read_class(checkout)
    assert hub.describe_class(learners) == [
        "learner    tensors",
        "a@b            2/5",
        "bob        unknown",
    ]
    mounts = [word for word in calls[1] if ":/learners/" in word]
    assert len(mounts) == 2 and all(mount.endswith(":ro") for mount in mounts)


ADA, BOB = "a" * 64, "b" * 64
GPU_LINE = "NVIDIA A100, 580.95.05, {0}, GPU-{0}{0}, 8.0, Disabled"


def answer_for_a_class(words, *, timeout_seconds) -> CommandResult:
    if words[1] == "ps":
        return says(f"{BOB} labkit-learner-bob\n{ADA} labkit-learner-ada")
    if words[1] == "stats":
        return says(f"{ADA} 350MiB / 2GiB")
    if words[1].startswith("--query-compute-apps"):
        return says("11, GPU-22, 1024\n12, GPU-22, 512\n13, GPU-11, [N/A]\n14, GPU-11, 77")
    return says("\n".join(map(GPU_LINE.format, (1, 2))))


def test_what_each_learner_holds_is_found_by_container(tmp_path):
    groups = {11: f"docker-{ADA}.scope", 12: f"docker-{ADA}.scope", 13: f"docker/{BOB}", 14: "user"}
    for pid, group in groups.items():
        (tmp_path / "proc" / str(pid)).mkdir(parents=True)
        (tmp_path / "proc" / str(pid) / "cgroup").write_text(f"0::/system.slice/{group}\n")

    assert hub.read_usage(answer_for_a_class, tmp_path) == [
        hub.LearnerUsage("ada", "350MiB / 2GiB", {2: 1536 * 2**20}),
        hub.LearnerUsage("bob", None, {1: None}),
        hub.LearnerUsage(None, None, {1: 77 * 2**20}),
    ]


def test_without_docker_no_learner_is_listed():
    with pytest.raises(EngineError, match="cannot list"):
        hub.read_usage(lambda *_, **__: fails("no daemon"))


@pytest.mark.parametrize("installed", [True, False])
def test_under_a_hub_the_lab_becomes_its_single_user_server(monkeypatch, installed):
    became = []
    monkeypatch.setattr(serve, "replace_process", lambda *words: became.append(words[0]))
    monkeypatch.setattr(serve, "find_spec", lambda name: installed or None)
    environment = {**os.environ, "JUPYTERHUB_API_TOKEN": "abc"}
    if installed:
        serve.become_jupyter(environment, ["--a=b"])
        assert became == [[sys.executable, *SAFE_PATH, "-m", "jupyterhub.singleuser", "--a=b"]]
        return
    with pytest.raises(EngineError, match="JupyterHub is not in its image"):
        serve.become_jupyter(environment)


@pytest.mark.parametrize(
    ("words", "variables", "address"),
    [
        pytest.param([], {"LABKIT_PORT": "8890"}, ("127.0.0.1", 8000), id="not the lab's port"),
        pytest.param([], {"HUB_PORT": "80", "HUB_BIND": "::1"}, ("::1", 80), id="the hub's own"),
        pytest.param(["--port", "81"], {"HUB_PORT": "80"}, ("127.0.0.1", 81), id="typed"),
    ],
)
def test_the_hub_has_an_address_of_its_own(checkout, monkeypatch, words, variables, address):
    started = []
    monkeypatch.setenv("LABKIT_HOME", str(checkout.root))
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(hub, "start_hub", lambda checkout, settings, _: started.append(settings))
    assert main(["hub", *words]) == 0
    assert [(settings.bind, settings.port) for settings in started] == [address]

"""The lab in a container, against a docker command that is a few lines of sh."""

from __future__ import annotations

import json
import os
from dataclasses import replace
from pathlib import Path

import pytest

from labkit.errors import EngineError, format_error
from labkit.launch import compose
from labkit.launch.compose import ContainerLab, PortTakenError
from labkit.launch.progress import Steps
from labkit.launch.settings import CPU, Flavor, Identity, Settings
from labkit.launch.state import LabHandle, ensure_token
from labkit.process import run_command
from tests.fakes.host import make_checkout, write_program

RUNNING = LabHandle(container="a1b2c3")
CUDA = Flavor("cuda", "cu126", ("0", "1"), "reservation")
IDLE = Flavor("cuda", "cu130")

# Writes down how it was called and with what variables, then does what the case says.
SCRIPT = """\
echo "$*" >> "{record}"
env >> "{record}.environment"
case "$*" in
{cases}
esac"""


class FakeDocker:
    """A `docker` at the front of PATH."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder / "bin"
        self.record = folder / "calls"
        self.play()

    def play(self, *cases: str) -> None:
        """From now on it answers by these `case` branches."""
        script = SCRIPT.format(record=self.record, cases="\n".join([*cases, "*) ;;"]))
        write_program(self.folder, "docker", script)

    @property
    def calls(self) -> list[str]:
        return self.record.read_text().splitlines() if self.record.exists() else []

    @property
    def environments(self) -> str:
        return Path(f"{self.record}.environment").read_text()


@pytest.fixture
def docker(tmp_path, monkeypatch):
    for name in list(os.environ):
        if name.startswith("LABKIT_"):
            monkeypatch.delenv(name)
    fake = FakeDocker(tmp_path / "fake")
    monkeypatch.setenv("PATH", f"{fake.folder}{os.pathsep}{os.environ['PATH']}")
    return fake


@pytest.fixture
def checkout(tmp_path):
    return make_checkout(tmp_path / "a lab")


@pytest.fixture
def lab(checkout):
    return ContainerLab(
        checkout, "docker", CPU, Settings(), port=8890, identity=Identity(1234, 100)
    )


@pytest.fixture
def became(monkeypatch):
    """What the process would have become; as in life, nothing after that runs."""
    calls = []

    def become(words, environment=None):
        calls.append(list(words))
        raise SystemExit

    monkeypatch.setattr(compose, "replace_process", become)
    return calls


@pytest.fixture
def attached(monkeypatch):
    """What would have run at the terminal, and how a signal stops it."""
    calls = []

    def run(words, environment=None, *, stop):
        calls.append((list(words), stop))
        return 7

    monkeypatch.setattr(compose, "run_attached", run)
    return calls


def test_the_compose_command_names_project_folder_and_file(lab):
    root = str(lab.checkout.root)
    command = lab.compose_command(["up", "--detach"])
    assert command[:2] == ["docker", "compose"]
    assert command[-2:] == ["up", "--detach"]
    options = dict(zip(command[2:-2:2], command[3:-2:2], strict=True))
    assert options["--project-name"] == lab.checkout.project
    assert options["--project-directory"] == root
    assert options["--file"] == f"{root}/compose.yaml"
    assert command.count("--profile") == 4


@pytest.mark.usefixtures("docker")
def test_the_variables_that_compose_reads(lab):
    root = lab.checkout.root
    said = {name: value for name, value in lab.environment().items() if name.startswith("LABKIT_")}
    assert (
        said.items()
        >= {
            "LABKIT_PROJECT": lab.checkout.project,
            "LABKIT_PORT": "8890",
            "LABKIT_WORKSPACE": str(root / "work"),
            "LABKIT_TOKEN_FILE": str(root / ".labkit" / "token"),
        }.items()
    )


@pytest.mark.usefixtures("docker")
@pytest.mark.parametrize(
    ("flavor", "service", "image", "build"),
    [
        pytest.param(CPU, "cpu", "labkit:cpu", None, id="cpu"),
        pytest.param(CUDA, "cuda-chosen", "labkit:cu126", "cu126", id="cuda with its GPUs"),
        pytest.param(IDLE, "cuda", "labkit:cu130", "cu130", id="cuda without a GPU"),
    ],
)
def test_each_flavor_has_its_service_and_its_images(lab, flavor, service, image, build):
    flavored = replace(lab, flavor=flavor)
    values = flavored.environment()
    assert (flavored.service, flavored.image) == (service, image)
    assert (values["LABKIT_IMAGE"], values["LABKIT_TEST_IMAGE"]) == (image, f"{image}-test")
    assert (values["LABKIT_FLAVOR"], values.get("LABKIT_CUDA_BUILD")) == (flavor.name, build)


def test_what_starts_a_cuda_lab_gets_the_file_with_its_gpus(lab):
    cuda = replace(lab, flavor=CUDA)
    path = lab.checkout.state_folder / "gpus.json"
    for words in (["up", "--detach"], ["run", "--rm", "test"]):
        path.unlink(missing_ok=True)
        command = cuda.compose_command(words)
        assert command[command.index("--profile") - 2 :][:2] == ["--file", str(path)]
        reserved = json.loads(path.read_text())["services"]["test"]["deploy"]["resources"]
        assert reserved["reservations"]["devices"] == [
            {"capabilities": ["gpu"], "device_ids": ["0", "1"]}
        ]


@pytest.mark.parametrize(
    ("flavor", "words"),
    [(CUDA, ["down"]), (CUDA, ["build", "cuda"]), (IDLE, ["run"]), (CPU, ["up"])],
    ids=["stopping", "building", "no GPU given", "cpu"],
)
def test_nothing_else_needs_the_file(lab, flavor, words):
    assert replace(lab, flavor=flavor).compose_command(words).count("--file") == 1
    assert not (lab.checkout.state_folder / "gpus.json").exists()


def test_what_the_user_brings_is_in_a_private_file_of_its_own(lab, tmp_path):
    (tmp_path / "variables").write_text("HF_TOKEN=hf_$secret\n")
    brought = Settings(data=tmp_path / "$1", env_file=tmp_path / "variables")
    command = replace(lab, settings=brought).compose_command(["up"])
    path = lab.checkout.state_folder / "added.json"
    assert command[command.index("--profile") - 2 :][:2] == ["--file", str(path)]
    assert "hf_$secret" not in " ".join([*command, *lab.environment().values()])
    assert path.stat().st_mode & 0o777 == 0o600
    [(service, added)] = json.loads(path.read_text())["services"].items()
    assert service == "cpu"
    # Compose reads $$ as a dollar sign.
    assert added["environment"] == {"HF_TOKEN": "hf_$$secret", "LABKIT_DATA": "/data"}
    [mount] = added["volumes"]
    assert mount["source"] == f"{tmp_path}/$$1"
    assert (mount["target"], mount["read_only"]) == ("/data", True)


def test_the_users_own_compose_file_comes_last(lab):
    override = lab.checkout.root / "compose.override.yaml"
    override.write_text("services: {}\n")
    for words in (["up"], ["down"], ["build", "cpu"]):
        command = replace(lab, flavor=CUDA).compose_command(words)
        assert command[command.index("--profile") - 2 :][:2] == ["--file", str(override)]


def test_a_cuda_lab_is_built_by_its_flavor_and_started_with_its_gpus(lab, docker):
    cuda = replace(lab, flavor=CUDA)
    docker.play('"ps "*) echo a1b2c3 ;;', '"image inspect"*) exit 1 ;;')
    cuda.prepare(Steps())
    assert cuda.start() == RUNNING
    [build] = [call for call in docker.calls if " build " in call]
    [start] = [call for call in docker.calls if " up " in call]
    assert build.endswith(" build cuda")
    assert start.endswith(" up --detach --no-build cuda-chosen")
    assert "label=com.docker.compose.service=cuda-chosen" in docker.calls[-1]


@pytest.mark.parametrize(
    ("answer", "problem"),
    [
        pytest.param('echo "GPU 0: NVIDIA H200 (UUID: GPU-aaaa)"', None, id="it sees one"),
        pytest.param(
            'echo "Failed to initialize NVML: Unknown Error"; exit 255',
            "Failed to initialize NVML: Unknown Error",
            id="it sees none",
        ),
        pytest.param(
            "echo 'exec: \"nvidia-smi\": executable file not found in $PATH' >&2; exit 127",
            'exec: "nvidia-smi": executable file not found in $PATH',
            id="nothing was passed on",
        ),
    ],
)
def test_whether_the_running_lab_sees_its_gpus(lab, docker, answer, problem):
    docker.play(f'"exec a1b2c3 nvidia-smi -L") {answer} ;;')
    assert replace(lab, flavor=CUDA).find_gpu_problem(RUNNING) == problem


def test_a_lab_without_gpus_is_not_asked_for_any(lab, docker):
    for flavor in (CPU, IDLE):
        assert replace(lab, flavor=flavor).find_gpu_problem(RUNNING) is None
    assert docker.calls == []


@pytest.mark.parametrize(
    ("bind", "text", "remote"),
    [("127.0.0.1", "127.0.0.1", "0"), ("::1", "[::1]", "0"), ("0.0.0.0", "0.0.0.0", "1")],
)
def test_the_address_as_compose_wants_it(checkout, bind, text, remote):
    values = ContainerLab(checkout, "docker", CPU, Settings(bind=bind)).environment()
    assert (values["LABKIT_BIND"], values["LABKIT_REMOTE_ACCESS"]) == (text, remote)


@pytest.mark.parametrize(
    ("identity", "user", "allow_root", "namespace"),
    [
        pytest.param(Identity(1000, 1000), "1000:1000", "0", "", id="a user"),
        pytest.param(Identity(0, 0), "0:0", "1", "", id="rootless docker"),
        pytest.param(Identity(7, 8, keep_id=True), "7:8", "0", "keep-id", id="rootless podman"),
    ],
)
def test_who_it_runs_as(checkout, identity, user, allow_root, namespace):
    lab = ContainerLab(checkout, "docker", CPU, Settings(), identity=identity)
    values = lab.environment()
    assert values["LABKIT_USER"] == user
    assert values["LABKIT_ALLOW_ROOT"] == allow_root
    assert values["LABKIT_USERNS"] == namespace


def test_another_image_by_name(lab, docker, monkeypatch):
    monkeypatch.setenv("LABKIT_IMAGE", "registry.example/lab:1")
    assert lab.image == "registry.example/lab:1"
    assert lab.environment()["LABKIT_IMAGE"] == "registry.example/lab:1"


def test_the_token_itself_is_in_no_argument_and_no_variable(lab, docker):
    token = ensure_token(lab.checkout)
    docker.play('"ps "*) echo a1b2c3 ;;')
    lab.start()
    lab.prepare(Steps())
    lab.stop(RUNNING)
    assert len(docker.calls) >= 4
    assert token not in "\n".join(docker.calls)
    assert token not in docker.environments
    assert str(lab.checkout.token_file) in docker.environments


def test_a_started_lab_is_taken_hold_of_by_its_container(lab, docker):
    docker.play('"ps "*) echo a1b2c3 ;;')
    assert lab.start() == LabHandle(container="a1b2c3")
    project = lab.checkout.project
    assert docker.calls[0].endswith("--profile test up --detach --no-build cpu")
    assert docker.calls[1] == (
        f"ps --all --quiet --filter label=com.docker.compose.project={project}"
        " --filter label=com.docker.compose.service=cpu"
        " --filter label=com.docker.compose.oneoff=False"
    )


@pytest.mark.parametrize(
    "line",
    [
        "Error response from daemon: driver failed programming external connectivity on endpoint "
        "lab: Bind for 127.0.0.1:8890 failed: port is already allocated",
        "Error: rootlessport listen tcp 127.0.0.1:8890: bind: address already in use",
    ],
    ids=["docker", "podman"],
)
def test_a_port_that_was_taken_meanwhile_has_an_error_of_its_own(lab, docker, line):
    docker.play(f'*" up "*) echo "{line}" >&2; exit 1 ;;')
    with pytest.raises(PortTakenError) as caught:
        lab.start()
    assert caught.value.cause == "port 8890 is taken"


def test_compose_that_fails_is_quoted(lab, docker):
    docker.play('*" up "*) echo "no configuration file provided" >&2; exit 14 ;;')
    with pytest.raises(EngineError) as caught:
        lab.start()
    assert format_error(caught.value).splitlines()[:3] == [
        "error: Compose could not start the lab",
        "  | no configuration file provided",
        f"  the whole log: {lab.checkout.logs_folder / 'start.log'}",
    ]


def test_an_engine_that_is_gone_is_named(lab, monkeypatch):
    monkeypatch.setenv("PATH", str(lab.checkout.root))
    with pytest.raises(EngineError, match="docker: command not found"):
        lab.start()
    assert lab.find_container() is None
    assert not lab.is_alive(RUNNING)


def test_a_current_image_is_not_built(lab, docker, monkeypatch):
    monkeypatch.setattr(compose.image, "digest_inputs", lambda checkout, inputs: "0123")
    docker.play('"image inspect"*) echo 0123 ;;')
    lab.prepare(Steps())
    assert len(docker.calls) == 1


@pytest.mark.parametrize(
    ("answer", "why"),
    [("exit 1", "not built yet"), ("echo 4567", "its inputs have changed")],
    ids=["missing", "stale"],
)
def test_a_missing_or_stale_image_is_built(lab, docker, capsys, answer, why):
    docker.play(
        f'"image inspect"*) {answer} ;;',
        '*" build cpu") echo "STEP 1/2: FROM debian"; echo "$LABKIT_INPUTS" ;;',
    )
    lab.prepare(Steps())
    digest = compose.image.digest_inputs(lab.checkout)
    log = lab.checkout.logs_folder / "build-cpu.log"
    assert log.read_text() == f"STEP 1/2: FROM debian\n{digest}\n"
    assert f"building the cpu image ({why}) ...\n" in capsys.readouterr().err


def test_a_build_that_fails_quotes_its_log_and_the_cause(lab, docker):
    docker.play(
        '"image inspect"*) exit 1 ;;',
        '*" build cpu") echo "write /x: no space left on device"; exit 17 ;;',
    )
    with pytest.raises(EngineError) as caught:
        lab.prepare(Steps())
    assert "  | write /x: no space left on device" in caught.value.what
    assert str(lab.checkout.logs_folder / "build-cpu.log") in caught.value.what
    assert caught.value.cause.startswith("the disk is full")


def test_stopping_keeps_workspace_and_caches(lab, docker):
    lab.stop(RUNNING)
    assert docker.calls[-1].endswith(" down --remove-orphans --timeout 15")
    assert "--volumes" not in docker.calls[-1]


def test_stopping_leaves_a_command_in_a_container_of_its_own_alone(lab, docker):
    docker.play("*oneoff=True*) echo a1b2c3 ;;")
    lab.stop(RUNNING)
    assert docker.calls[-1].endswith(" rm --stop --force cpu")


def test_a_stop_that_fails_is_an_error(lab, docker):
    docker.play('*" down "*) echo "permission denied"; exit 1 ;;')
    with pytest.raises(EngineError, match="Compose could not stop the lab"):
        lab.stop(RUNNING)


@pytest.mark.parametrize(
    ("answer", "status", "alive"),
    [
        ("echo running", "running", True),
        ("echo restarting", "restarting", False),
        ("echo exited", "exited", False),
        ("echo 'No such object' >&2; exit 1", None, False),
    ],
    ids=["running", "restarting", "exited", "gone"],
)
def test_only_a_running_container_is_alive(lab, docker, answer, status, alive):
    docker.play(f'"inspect "*) {answer} ;;')
    assert lab.read_status("a1b2c3") == status
    assert lab.is_alive(RUNNING) is alive


def test_what_was_never_started_is_not_alive(lab, docker):
    assert not lab.is_alive(LabHandle())
    assert docker.calls == []


def test_a_dead_container_is_explained_by_its_last_words(lab, docker):
    docker.play('"logs "*) echo out; echo "OSError: cannot bind" >&2 ;;')
    error = lab.explain_death(RUNNING)
    assert "the lab's container stopped\n  | out\n  | OSError: cannot bind\n" in error.what
    assert (lab.checkout.logs_folder / "server.log").read_text() == "out\nOSError: cannot bind\n"


@pytest.mark.parametrize(
    ("follow", "words"),
    [(False, ["--tail", "50"]), (True, ["--tail", "50", "--follow"])],
    ids=["once", "follow"],
)
def test_logs_are_the_engines_own(lab, became, follow, words):
    with pytest.raises(SystemExit):
        lab.show_logs(RUNNING, 50, follow)
    assert became == [["docker", "logs", *words, "a1b2c3"]]


def test_no_container_has_no_logs(lab, docker, became):
    with pytest.raises(EngineError, match="there is no log yet"):
        lab.show_logs(None, 50, False)
    assert became == []


@pytest.mark.parametrize("made", [(), ("LABKIT_MAKE=1",)], ids=["labkit", "make"])
def test_a_command_goes_into_the_running_container(lab, docker, attached, monkeypatch, made):
    for word in made:
        monkeypatch.setenv(*word.split("="))
    docker.play('"inspect "*) echo running ;;')
    assert lab.enter(RUNNING, ["labkit", "devices"]) == 7
    outside = f"LABKIT_OUTSIDE={lab.checkout.workspace}"
    given = [word for each in (outside, *made) for word in ("--env", each)]
    ((words, stop),) = attached
    mark = words[-4]
    start = ["docker", "exec", "--interactive", *given, "--env"]
    assert words == [*start, mark, "a1b2c3", "labkit", "devices"]
    stop()
    assert docker.calls[-1].endswith(f"sh {mark} TERM") and "exec a1b2c3 sh" in "".join(
        docker.calls
    )


def test_a_shell_in_the_container_names_the_containers_paths(lab, docker, attached):
    docker.play('"inspect "*) echo running ;;')
    lab.enter(RUNNING, ["bash"])
    assert "LABKIT_OUTSIDE" not in " ".join(attached[0][0])


def test_without_a_running_one_a_command_gets_a_container_of_its_own(lab, docker, attached):
    assert lab.enter(None, ["labkit", "run", "--all"]) == 7
    ((words, stop),) = attached
    outside = f"LABKIT_OUTSIDE={lab.checkout.workspace}"
    assert words[-7:] == ["--env", outside, "--no-TTY", "cpu", "labkit", "run", "--all"]
    name = words[words.index("--name") + 1]
    assert words[words.index("--name") - 2 :][:2] == ["run", "--rm"]
    stop()
    assert docker.calls[-2:] == [f"stop {name}", f"rm --force {name}"]


def test_a_command_in_the_container_is_ended_by_its_mark(tmp_path):
    script = compose.END_ENTERED.replace("/proc/", f"{tmp_path}/")
    for number, parent, mark in ((11, 0, "A=1"), (12, 11, "A=1"), (13, 0, "A=12"), (14, 0, "B=1")):
        (tmp_path / str(number)).mkdir()
        (tmp_path / str(number) / "status").write_text(f"Name:\tsh\nPPid:\t{parent}\n")
        (tmp_path / str(number) / "environ").write_bytes(f"X=2\0{mark}\0".encode())
    ended = run_command(
        ["sh", "-c", f"kill() {{ echo $*; }}; {script}", "sh", "A=1", "TERM"], timeout_seconds=60
    )
    assert ended.stdout == "-TERM 11\n"


def test_the_same_lab_on_another_port(lab):
    assert lab.on_port(9000).environment()["LABKIT_PORT"] == "9000"
    assert lab.port == 8890

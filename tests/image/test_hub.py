"""A class on the real engine: JupyterHub, its proxy, and three learners with a container each."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import pytest

from labkit.host.machine import find_free_port
from labkit.launch.server import wait_until
from labkit.process import CommandResult, run_command
from tests.fakes.learners import Learner
from tests.image.clones import Clone, copy_checkout

pytestmark = [pytest.mark.hub, pytest.mark.slow, pytest.mark.timeout(1800)]
NAMES = ("testada", "testbob", "testeve")
MEMORY_BYTES = 700 * 2**20
DATA = "labkit-hub_data"


def docker(*words: str, timeout_seconds: float = 60) -> CommandResult:
    return run_command(["docker", *words], timeout_seconds=timeout_seconds)


@dataclass(frozen=True)
class Class:
    """A running hub and its learners; ``start`` starts it again with other variables."""

    clone: Clone
    learners: tuple[Learner, ...]
    start: Callable[..., str]


@pytest.fixture(scope="module")
def room(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Class]:
    """A hub with three learners whose servers run. A hub that was here before is left alone."""
    if docker("volume", "inspect", DATA).ok:
        pytest.skip(f"a hub of this machine has accounts here (volume {DATA})")
    port = find_free_port("127.0.0.1", 28_900, 90)
    clone = copy_checkout(tmp_path_factory.mktemp("class") / "lab")
    limits = {"HUB_MEMORY": str(MEMORY_BYTES), "HUB_PIDS": "200", "HUB_SERVER_IDLE": "0"}

    def start(**variables: str) -> str:
        words = ("hub", "--runtime", "docker", "--flavor", "cpu", "--port", str(port), "--json")
        started = clone.labkit(*words, timeout_seconds=1700, **{**limits, **variables})
        assert started.ok, started.stderr
        return json.loads(started.stdout)["url"]

    try:
        url = start(HUB_SIGNUP="open")
        learners = tuple(Learner(url, name) for name in NAMES)
        for learner in learners:
            learner.sign_up()
            assert learner.log_in()
        with ThreadPoolExecutor() as pool:
            assert all(pool.map(Learner.start, learners))
        yield Class(clone, learners, start)
    finally:
        clone.labkit("hub", "--stop", timeout_seconds=120)
        volumes = [f"labkit-learner-{name}-{kind}" for name in NAMES for kind in ("work", "cache")]
        docker("volume", "rm", "--force", DATA, *volumes)


def inside(learner: Learner, *words: str) -> CommandResult:
    return docker("exec", learner.container, *words)


def list_files(learner: Learner, place: str) -> list[str] | int:
    """The names that the contents API of a server lists for the learner; else its status."""
    status, said = learner.call(f"{place}/api/contents")
    return [entry["name"] for entry in said["content"]] if status == 200 else status


def test_each_learner_has_the_labs_and_a_kernel(room: Class):
    for learner in room.learners:
        assert "01_tensors.ipynb" in list_files(learner, learner.place)
    ada = room.learners[0]
    assert ada.call(f"{ada.place}/api/kernels", "POST", {"name": "python3"})[0] == 201


def test_each_container_is_hardened_limited_and_healthy(room: Class):
    for learner in room.learners:
        said = json.loads(docker("inspect", learner.container).stdout)[0]
        host = said["HostConfig"]
        assert (host["CapDrop"], host["ReadonlyRootfs"]) == (["ALL"], True)
        assert (host["Memory"], host["MemorySwap"]) == (MEMORY_BYTES, MEMORY_BYTES)
        assert (host["PidsLimit"], host["NanoCpus"] or host["CpuQuota"]) != (0, 0)
        assert "NVIDIA_VISIBLE_DEVICES=void" in said["Config"]["Env"]
        state = ("inspect", "--format", "{{.State.Health.Status}}", learner.container)
        assert wait_until(
            lambda state=state: docker(*state).stdout.strip() == "healthy", timeout_seconds=60
        )


def test_no_learner_reaches_another_or_the_hubs_own(room: Class):
    ada, bob = room.learners[:2]
    assert list_files(bob, ada.place) in (403, 404)
    assert bob.call(f"/hub/api/users/{ada.name}")[0] in (403, 404)
    status, address, _ = bob.ask(f"{ada.place}/lab")
    assert (status, "/lab" in address) == (403, False)
    ask = 'curl -s -o /dev/null -w "%{http_code} " '
    with_token = f'{ask}-H "Authorization: token $JUPYTERHUB_API_TOKEN" '
    script = (
        f"{ask} http://{ada.container}:8888{ada.place}/api/contents;"
        f"{with_token} http://{ada.container}:8888{ada.place}/api/contents;"
        f"{ask} http://proxy:8001/api/routes;"
        f"{with_token} http://hub:8081/hub/api/users/{ada.name};"
        "ls /var/run/docker.sock"
    )
    said = inside(bob, "sh", "-c", script)
    assert set(said.stdout.split()) <= {"403", "404"} and len(said.stdout.split()) == 4
    assert "No such file" in said.stderr


def test_a_learner_who_takes_everything_leaves_the_others_alone(room: Class):
    ada, bob = room.learners[:2]
    fill = "parts = []\nwhile True: parts.append(bytearray(50_000_000))"
    assert inside(bob, "python", "-c", fill).exit_code == 137
    bomb = (
        "import subprocess\n"
        "try:\n for _ in range(400): subprocess.Popen(['sleep', '20'])\n"
        "except OSError as error: print(error)"
    )
    assert "unavailable" in inside(bob, "python", "-c", bomb).stdout
    assert "01_tensors.ipynb" in list_files(ada, ada.place)


def test_the_instructor_sees_what_was_passed(room: Class):
    ada = room.learners[0]
    passes = (
        "from pathlib import Path; from labkit.lessons.progress import record_attempt;"
        "record_attempt(Path('/work'), 'tensors.own_tensor', passed=True)"
    )
    assert inside(ada, "python", "-c", passes).ok
    shown = room.clone.labkit("hub", "--progress").stdout.splitlines()
    rows = {line.split()[0]: line.split()[1] for line in shown}
    assert (rows[ada.name], rows[room.learners[1].name]) == ("1/5", "0/5")


def test_the_hub_comes_back_with_its_servers_and_culls_idle_ones(room: Class):
    ada = room.learners[0]
    assert inside(ada, "sh", "-c", 'echo mine > "$LABKIT_WORKSPACE/mine.txt"').ok
    started = docker("inspect", "--format", "{{.State.StartedAt}}", ada.container).stdout
    room.start(HUB_SERVER_IDLE="8", HUB_SIGNUP="approved")
    assert docker("inspect", "--format", "{{.State.StartedAt}}", ada.container).stdout == started
    listed = ("ps", "--all", "--quiet", "--filter", "name=^/labkit-learner-test")
    assert wait_until(lambda: not docker(*listed).stdout.strip(), timeout_seconds=90)

    assert ada.start()
    assert "mine.txt" in list_files(ada, ada.place)


def test_who_is_not_approved_cannot_log_in(room: Class):
    stranger = Learner(room.learners[0].url, "testmallory")
    stranger.sign_up()
    assert not stranger.log_in()

"""A class on the real engine: JupyterHub, its proxy, and learners with a container each."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import pytest

from labkit.host.machine import find_free_port
from labkit.launch.server import wait_until
from labkit.process import CommandResult, run_command
from tests.fakes.learners import Learner
from tests.fakes.oidc import run_provider
from tests.image.clones import Clone, copy_checkout

pytestmark = [pytest.mark.hub, pytest.mark.slow, pytest.mark.timeout(1800)]
NAMES = ("testada", "testbob", "testeve")
BY_OAUTH = "testdora@uni.example"
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
        volumes = docker("volume", "ls", "--quiet", "--filter", "name=^labkit-learner-test")
        docker("volume", "rm", "--force", DATA, *volumes.stdout.split())


def inside(learner: Learner, *words: str) -> CommandResult:
    return docker("exec", learner.container, *words)


PASS_ONE = (
    "from pathlib import Path; from labkit.lessons.progress import record_attempt;"
    "record_attempt(Path('/work'), 'tensors.own_tensor', passed=True)"
)


def list_progress(room: Class) -> dict[str, str]:
    """The instructor's table: by learner, what is passed of the first lab."""
    shown = room.clone.labkit("hub", "--progress").stdout.splitlines()
    return {line.split()[0]: line.split()[1] for line in shown}


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
    assert inside(ada, "python", "-c", PASS_ONE).ok
    rows = list_progress(room)
    assert (rows[ada.name], rows[room.learners[1].name]) == ("1/5", "0/5")


def read_notebook(learner: Learner, name: str) -> dict[str, Any]:
    return learner.call(f"{learner.place}/api/contents/{name}")[1]["content"]


def add_cell(learner: Learner, name: str, text: str) -> None:
    content = read_notebook(learner, name)
    cell = {"cell_type": "markdown", "id": "mine", "metadata": {}, "source": text}
    content["cells"].append(cell)
    body = {"type": "notebook", "format": "json", "content": content}
    assert learner.call(f"{learner.place}/api/contents/{name}", "PUT", body)[0] == 200


def test_an_update_of_the_labs_keeps_what_the_learners_wrote(room: Class):
    ada, bob = room.learners[:2]
    add_cell(ada, "01_tensors.ipynb", "a note of mine")
    assert inside(ada, "sh", "-c", 'echo mine > "$LABKIT_WORKSPACE/mine.txt"').ok
    assert inside(ada, "python", "-c", PASS_ONE).ok
    lesson = room.clone.root / "labs" / "tensors" / "lesson.py"
    lesson.write_text(lesson.read_text() + "\n# %% [markdown]\n# A line of the new version.\n")

    # The servers that run keep running over the update, until they are idle.
    started = docker("inspect", "--format", "{{.State.StartedAt}}", ada.container).stdout
    room.start(HUB_SERVER_IDLE="8")
    assert docker("inspect", "--format", "{{.State.StartedAt}}", ada.container).stdout == started
    listed = ("ps", "--all", "--quiet", "--filter", "name=^/labkit-learner-test")
    assert wait_until(lambda: not docker(*listed).stdout.strip(), timeout_seconds=300)
    room.start()
    with ThreadPoolExecutor() as pool:
        assert all(pool.map(Learner.start, (ada, bob)))

    assert "a note of mine" in json.dumps(read_notebook(ada, "01_tensors.ipynb"))
    names = [name for name in list_files(ada, ada.place) if name.startswith("01_tensors")]
    [beside] = set(names) - {"01_tensors.ipynb"}
    assert "of the new version" in json.dumps(read_notebook(ada, beside))
    assert "of the new version" in json.dumps(read_notebook(bob, "01_tensors.ipynb"))
    assert "mine.txt" in list_files(ada, ada.place)
    assert list_progress(room)[ada.name] == "1/5"


def test_who_is_not_approved_cannot_log_in(room: Class):
    room.start(HUB_SIGNUP="approved")
    stranger = Learner(room.learners[0].url, "testmallory")
    stranger.sign_up()
    assert not stranger.log_in()


def test_the_institutions_login_lets_in_who_is_named(room: Class):
    gateway = ("network", "inspect", "--format", "{{(index .IPAM.Config 0).Gateway}}", "labkit-hub")
    url = room.learners[0].url
    with run_provider(docker(*gateway).stdout.strip()) as provider:
        room.start(HUB_ALLOWED=BY_OAUTH, **provider.list_variables(url))
        provider.user = BY_OAUTH.title()
        learner = Learner(url, BY_OAUTH)
        assert learner.log_in_by_oauth()
        assert "openid" in provider.scopes
        provider.user = "testmallory@uni.example"
        assert not Learner(url, provider.user).log_in_by_oauth()

    assert learner.start()
    assert "01_tensors.ipynb" in list_files(learner, learner.place)
    assert list_progress(room)[BY_OAUTH] == "0/5"

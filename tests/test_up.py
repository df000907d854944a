"""`labkit up`, step by step, with a lab that is played."""

from __future__ import annotations

import io
import json
from dataclasses import dataclass, field, replace
from functools import partial

import pytest

from labkit.errors import EngineError, LabkitError, TimedOutError, UsageError
from labkit.host.distribution import Distribution
from labkit.launch import up
from labkit.launch.compose import ContainerLab, PortTakenError
from labkit.launch.local import LocalLab
from labkit.launch.plan import Choice, Plan
from labkit.launch.progress import Steps
from labkit.launch.server import wait_until
from labkit.launch.settings import CPU, Flavor, Identity, Settings
from labkit.launch.state import (
    LabHandle,
    LabState,
    prepare_state_folder,
    read_state,
    write_state,
)
from labkit.launch.status import NO_KERNELS, LabStatus
from labkit.launch.up import choose_port, describe_urls, find_running, launch, start_lab
from labkit.launch.workspace import digest_lessons
from tests.fakes.host import ADA, make_checkout, says

TOKEN = "abc"


@dataclass
class FakeLab:
    """A lab that starts or fails as the test says; ``calls`` is what was done with it."""

    port: int = 0
    on_start: dict[int, BaseException] = field(default_factory=dict)
    gpu_problem: str | None = None
    calls: list[str] = field(default_factory=list)

    def on_port(self, port):
        return replace(self, port=port)

    def prepare(self, steps):
        self.calls.append("prepare")

    def start(self):
        self.calls.append(f"start {self.port}")
        if self.port in self.on_start:
            raise self.on_start[self.port]
        return LabHandle(container=f"at-{self.port}")

    def stop(self, handle):
        self.calls.append(f"stop {handle.container}")

    def find_gpu_problem(self, handle):
        return self.gpu_problem

    def explain_death(self, handle):
        return EngineError(f"{handle.container} died\n  | its last line", cause="its own cause")


def plan_for(lab, port_asked=False, flavor=CPU):
    return Plan(Choice("local", "a reason"), Choice(flavor, "another"), lab, port_asked)


@pytest.fixture
def checkout(tmp_path):
    return make_checkout(tmp_path / "a lab")


@pytest.fixture
def screen():
    return io.StringIO()


@pytest.fixture
def steps(screen):
    return Steps(screen, clock=lambda: 0.0)


@pytest.fixture(autouse=True)
def taken(monkeypatch):
    """The ports that something else listens on; no real port is touched."""
    ports = set()
    monkeypatch.setattr(up, "is_port_free", lambda address, port: port not in ports)

    def find(address, first):
        return next((port for port in range(first, first + 50) if port not in ports), None)

    monkeypatch.setattr(up, "find_free_port", find)
    return ports


@pytest.fixture
def answers(monkeypatch):
    """The started lab's conditions, one after the other; the last one stays."""
    left = ["healthy"]

    def examine(state, token):
        assert token == TOKEN
        answer = left.pop(0) if len(left) > 1 else left[0]
        if isinstance(answer, BaseException):
            raise answer
        return answer

    monkeypatch.setattr(up, "examine_lab", examine)
    monkeypatch.setattr(up, "wait_until", partial(wait_until, interval_seconds=0.001))
    return left


@pytest.mark.parametrize("kind", ["local", "docker"])
def test_what_is_wrong_with_the_host_is_for_the_start_page_too(checkout, kind):
    lab = LocalLab(checkout, Settings())
    if kind == "docker":
        lab = ContainerLab(checkout, "docker", CPU, Settings())
    plan = plan_for(lab)
    assert up._note_warnings(plan) is plan
    warned = replace(plan.flavor, warning="the GPU cannot be passed on", fix="make doctor")
    (said,) = json.loads(
        up._note_warnings(replace(plan, flavor=warned)).lab.environment()["LABKIT_NOTICES"]
    )
    assert (said["found"], said["fix"]) == ("the GPU cannot be passed on", "make doctor")


# Ports


def test_the_default_port(steps, screen):
    assert choose_port(Settings(), 8888, steps) == 8888
    assert screen.getvalue() == ""


def test_a_busy_default_moves_on_and_says_so(steps, screen, taken):
    taken.update({8888, 8889})
    assert choose_port(Settings(), 8888, steps) == 8890
    assert screen.getvalue() == "port 8888 is taken: using 8890\n"


def test_a_port_that_was_asked_for(steps):
    assert choose_port(Settings(port=9000), 9000, steps) == 9000


@pytest.mark.parametrize(("port", "fix"), [(9000, "make up   # takes the next free port")])
def test_a_busy_port_that_was_asked_for_is_an_error(steps, taken, port, fix):
    taken.add(port)
    with pytest.raises(UsageError) as caught:
        choose_port(Settings(port=port), port, steps)
    assert caught.value.fix == fix


def test_no_free_port_at_all(steps, taken):
    taken.update(range(8888, 8938))
    with pytest.raises(UsageError, match="port 8888 is taken"):
        choose_port(Settings(), 8888, steps)


def test_an_address_of_another_machine(steps, monkeypatch):
    def fail(address, first):
        raise OSError(99, "Cannot assign requested address")

    monkeypatch.setattr(up, "find_free_port", fail)
    with pytest.raises(UsageError) as caught:
        choose_port(Settings(bind="192.0.2.1"), 8888, steps)
    assert caught.value.what == "cannot listen on 192.0.2.1: Cannot assign requested address"


# What runs already

RUNNING = LabState(
    "local", "cpu", 8890, "127.0.0.1", "a reason", "2026-11-23T05:00:00Z", LabHandle()
)


@pytest.fixture
def running(checkout, monkeypatch):
    """A lab that runs and is well, or whatever status the test gives."""

    def play(status):
        monkeypatch.setattr(up, "read_status", lambda checkout: status)
        return status

    return play


def healthy(checkout, state=RUNNING):
    return LabStatus.of(checkout, state, TOKEN)


@pytest.mark.parametrize(
    "settings",
    [
        Settings(),
        Settings(runtime="local", flavor="cpu", port=8890),
        Settings(runtime="auto", port=8890),
    ],
    ids=["nothing asked", "the same asked", "the same port"],
)
def test_a_lab_that_runs_is_taken_as_it_is(checkout, steps, screen, running, settings):
    status = running(healthy(checkout))
    assert find_running(checkout, settings, steps, checkout.root) is status
    assert screen.getvalue() == ""


@pytest.mark.parametrize(
    ("settings", "state", "named"),
    [
        (Settings(), RUNNING, True),
        (Settings(flavor="cpu"), RUNNING, False),
        (Settings(), replace(RUNNING, flavor="cuda", build="cu130", gpus="all"), False),
    ],
    ids=["nothing asked", "cpu by name", "a cuda lab"],
)
def test_a_gpu_that_came_after_a_cpu_lab_is_named(
    checkout, steps, screen, running, tmp_path, settings, state, named
):
    (tmp_path / "dev").mkdir()
    (tmp_path / "dev" / "dxg").touch()
    status = running(healthy(checkout, state))
    assert find_running(checkout, settings, steps, tmp_path) is status
    assert ("make down && make up" in screen.getvalue()) is named


@pytest.mark.parametrize(
    ("settings", "differing"),
    [
        (Settings(runtime="docker"), "RUNTIME=docker"),
        (Settings(flavor="cuda"), "FLAVOR=cuda"),
        (Settings(port=9000), "PORT=9000"),
        (Settings(bind="0.0.0.0", bind_asked=True), "BIND=0.0.0.0"),
        (Settings(runtime="docker", port=9000), "RUNTIME=docker PORT=9000"),
        (Settings(cuda="cu126", gpus=("0", "1")), "CUDA=cu126 GPUS=0,1"),
    ],
)
def test_another_kind_of_lab_than_runs_is_refused(checkout, steps, running, settings, differing):
    running(healthy(checkout))
    with pytest.raises(UsageError) as caught:
        find_running(checkout, settings, steps)
    assert differing in caught.value.what
    assert caught.value.cause == "it has runtime local, flavor cpu, port 8890, address 127.0.0.1"
    assert caught.value.fix == f"make down && make up {differing}"


CUDA_RUNNING = replace(
    RUNNING,
    runtime="docker",
    flavor="cuda",
    build="cu130",
    gpus="1",
    gpus_asked="GPU-bbbb",
    way="reservation",
)


@pytest.mark.parametrize(
    "settings",
    [Settings(), Settings(flavor="cuda", cuda="cu130", gpus=("1",)), Settings(gpus=("GPU-bbbb",))],
    ids=["nothing asked", "the same asked", "the GPU as it was typed"],
)
def test_a_cuda_lab_that_runs_is_taken_as_it_is(checkout, steps, running, settings):
    status = running(healthy(checkout, CUDA_RUNNING))
    assert find_running(checkout, settings, steps) is status


def test_another_build_and_other_gpus_than_the_running_labs_are_refused(checkout, steps, running):
    running(healthy(checkout, CUDA_RUNNING))
    with pytest.raises(UsageError) as caught:
        find_running(checkout, Settings(cuda="cu126", gpus=("0",)), steps)
    assert caught.value.cause == (
        "it has runtime docker, flavor cuda cu130, GPUs: 1, port 8890, address 127.0.0.1"
    )
    assert caught.value.fix == "make down && make up CUDA=cu126 GPUS=0"


def test_where_a_lab_runs_no_host_is_probed(checkout, steps, running, monkeypatch):
    status = running(healthy(checkout, CUDA_RUNNING))
    monkeypatch.setattr(up, "probe_host", lambda checkout, settings, steps: pytest.fail("probed"))
    assert start_lab(checkout, Settings(), steps) is status


@pytest.fixture
def lessons(checkout):
    """Call it with a text: the checkout's one lesson becomes that; returns the lessons' digest."""

    def write(text):
        path = checkout.root / "labs" / "small" / "lesson.py"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
        return digest_lessons(checkout)

    return write


def test_changed_lessons_are_laid_out_in_a_local_lab(
    checkout, steps, screen, running, monkeypatch, lessons
):
    status = running(healthy(checkout, replace(RUNNING, lessons=lessons("one"))))
    laid = []
    monkeypatch.setattr(LocalLab, "lay_out_changes", lambda self: laid.append("laid"))
    now = lessons("two")
    assert find_running(checkout, Settings(), steps, checkout.root) is status
    assert len(laid) == 1 and "the lessons have changed" in screen.getvalue()
    assert read_state(checkout).lessons == now
    # The next `up` has nothing to do.
    running(healthy(checkout, read_state(checkout)))
    find_running(checkout, Settings(), steps, checkout.root)
    assert len(laid) == 1


@pytest.mark.parametrize("kernels", [NO_KERNELS, "; its 2 kernels end"], ids=["none", "two"])
def test_changed_lessons_restart_a_container_that_has_no_kernels(
    checkout, steps, screen, running, monkeypatch, lessons, kernels
):
    lab = FakeLab()
    monkeypatch.setattr(up, "open_lab", lambda checkout, state: lab)
    monkeypatch.setattr(up, "describe_kernels", lambda state: kernels)
    state = replace(RUNNING, runtime="docker", lessons=lessons("one"))
    status = running(healthy(checkout, state))
    lessons("two")
    restarts = kernels == NO_KERNELS
    assert (find_running(checkout, Settings(), steps, checkout.root) is None) is restarts
    assert lab.calls == (["stop None"] if restarts else [])
    assert ("make down && make up" in screen.getvalue()) is not restarts
    assert "the lessons have changed" in screen.getvalue()
    if not restarts:  # the next `up` says it again
        assert read_state(checkout) == status.state


def test_a_lab_that_the_learner_deleted_is_named(checkout, steps, screen, running):
    (checkout.workspace / ".labkit").mkdir(parents=True)
    entries = {name: {"file": f"{name}.ipynb"} for name in ("tensors", "autograd")}
    manifest = json.dumps({"labs": entries})
    (checkout.workspace / ".labkit" / "manifest.json").write_text(manifest)
    (checkout.workspace / "autograd.ipynb").write_text("{}")
    running(healthy(checkout))
    find_running(checkout, Settings(), steps, checkout.root)
    assert "deleted by you: tensors (make reset LABS=tensors puts" in screen.getvalue()


def test_nothing_runs(checkout, steps, running):
    running(LabStatus(checkout))
    assert find_running(checkout, Settings(), steps) is None


@pytest.fixture
def stopped(monkeypatch):
    """The played lab that is stopped before a restart."""
    lab = FakeLab()
    monkeypatch.setattr(up, "open_lab", lambda checkout, state: lab)
    monkeypatch.setattr(up, "describe_kernels", lambda state: "; its 2 kernels end")
    return lab


def play_conditions(monkeypatch, checkout, *conditions):
    """The statuses that are read one after the other; the last one stays."""
    left = list(conditions)

    def read(checkout):
        condition = left.pop(0) if len(left) > 1 else left[0]
        if condition is None:
            return LabStatus(checkout)
        if condition == "healthy":
            return healthy(checkout)
        return LabStatus(checkout, RUNNING, condition, f"it is {condition}")

    monkeypatch.setattr(up, "read_status", read)
    monkeypatch.setattr(up, "wait_until", lambda predicate, **limits: predicate())


@pytest.mark.parametrize("condition", ["gone", "foreign", "unproven", "tokenless", "silent"])
def test_a_lab_that_cannot_be_used_is_stopped_and_its_kernels_named(
    checkout, steps, screen, monkeypatch, stopped, condition
):
    waits = 3 if condition == "silent" else 1
    play_conditions(monkeypatch, checkout, *[condition] * waits, None)
    write_state(checkout, RUNNING)
    assert find_running(checkout, Settings(runtime="docker"), steps) is None
    assert stopped.calls == ["stop None"]
    assert read_state(checkout) is None
    assert f"it is {condition}" in screen.getvalue()
    assert ("its 2 kernels end" in screen.getvalue()) is (condition != "gone")


def test_behind_a_dead_lab_a_forgotten_one_is_found(checkout, steps, monkeypatch, stopped):
    play_conditions(monkeypatch, checkout, "gone", "healthy")
    status = find_running(checkout, Settings(), steps)
    assert status and status.healthy
    assert replace(read_state(checkout), lessons=None) == RUNNING  # remembered again


def test_a_paused_lab_is_resumed_and_not_stopped(checkout, steps, monkeypatch, stopped):
    resumed = []
    monkeypatch.setattr(up, "resume_lab", resumed.append)
    play_conditions(monkeypatch, checkout, "paused", "healthy")
    status = find_running(checkout, Settings(), steps)
    assert status and status.healthy
    assert (resumed, stopped.calls) == ([RUNNING], [])


def test_a_lab_that_is_only_busy_is_waited_for_and_not_stopped(
    checkout, steps, monkeypatch, stopped
):
    play_conditions(monkeypatch, checkout, "silent", "healthy")
    status = find_running(checkout, Settings(), steps)
    assert status and status.healthy
    assert stopped.calls == []


def test_while_the_engine_does_not_answer_nothing_is_started(checkout, steps, monkeypatch, stopped):
    play_conditions(monkeypatch, checkout, "unreachable")
    write_state(checkout, RUNNING)
    with pytest.raises(EngineError, match="does not answer") as caught:
        find_running(checkout, Settings(), steps)
    assert "make doctor" in str(caught.value.fix)
    assert stopped.calls == []
    assert read_state(checkout) == RUNNING


# The launch


def test_a_launched_lab_is_remembered(checkout, steps, screen, answers):
    answers[:] = ["silent", "foreign", "unproven", "healthy"]
    lab = FakeLab()
    state = launch(checkout, Settings(), plan_for(lab), TOKEN, steps)
    assert (state.runtime, state.flavor, state.port) == ("local", "cpu", 8888)
    assert state.handle == LabHandle(container="at-8888")
    assert read_state(checkout) == state
    assert lab.calls == ["start 8888"]
    assert screen.getvalue() == "starting JupyterLab ...\nstarting JupyterLab: done in 0:00\n"


CUDA = Flavor("cuda", "cu130", ("1",), "reservation")


@pytest.mark.usefixtures("answers")
def test_a_cuda_lab_is_remembered_with_its_build_and_gpus(checkout, steps):
    settings = Settings(gpus=("GPU-bbbb",))
    state = launch(checkout, settings, plan_for(FakeLab(), flavor=CUDA), TOKEN, steps)
    assert (state.flavor, state.build, state.gpus) == ("cuda", "cu130", "1")
    assert (state.gpus_asked, state.way) == ("GPU-bbbb", "reservation")
    assert read_state(checkout) == state


@pytest.mark.usefixtures("answers")
@pytest.mark.parametrize(
    ("runtime", "fix"),
    [
        ("podman", "dnf install podman-compose"),
        ("docker", "make doctor"),
    ],
)
def test_a_lab_that_was_given_a_gpu_and_sees_none_says_so(
    checkout, steps, screen, monkeypatch, runtime, fix
):
    monkeypatch.setattr(up, "read_distribution", lambda: Distribution("Fedora 43", "fedora"))
    lab = FakeLab(gpu_problem="nvidia-smi: command not found")
    plan = replace(plan_for(lab, flavor=CUDA), runtime=Choice(runtime, "a reason"))
    launch(checkout, Settings(), plan, TOKEN, steps)
    assert lab.calls == ["start 8888"]
    warning, advice = screen.getvalue().splitlines()[1:3]
    assert "sees no GPU (nvidia-smi: command not found)" in warning
    assert fix in advice


@pytest.mark.usefixtures("answers")
@pytest.mark.parametrize("settings", [Settings(flavor="cuda"), Settings(gpus=("1",))])
def test_where_the_gpu_was_asked_for_by_name_it_is_not_left_running(checkout, steps, settings):
    lab = FakeLab(gpu_problem="Failed to initialize NVML: Unknown Error")
    with pytest.raises(EngineError, match="the lab runs, but sees no GPU"):
        launch(checkout, settings, plan_for(lab, flavor=CUDA), TOKEN, steps)
    assert lab.calls == ["start 8888", "stop at-8888"]
    assert read_state(checkout) is None


def test_ctrl_c_while_waiting_leaves_nothing_running(checkout, steps, answers):
    answers[:] = ["silent", KeyboardInterrupt()]
    lab = FakeLab()
    with pytest.raises(KeyboardInterrupt):
        launch(checkout, Settings(), plan_for(lab), TOKEN, steps)
    assert lab.calls == ["start 8888", "stop at-8888"]
    assert read_state(checkout) is None


def test_ctrl_c_while_starting_leaves_nothing_running(checkout, steps):
    lab = FakeLab(on_start={8888: KeyboardInterrupt()})
    with pytest.raises(KeyboardInterrupt):
        launch(checkout, Settings(), plan_for(lab), TOKEN, steps)
    assert lab.calls == ["start 8888", "stop None"]
    assert read_state(checkout) is None


def test_a_lab_that_dies_is_explained_and_forgotten(checkout, steps, answers):
    answers[:] = ["silent", "gone"]
    lab = FakeLab()
    with pytest.raises(EngineError, match="at-8888 died"):
        launch(checkout, Settings(), plan_for(lab), TOKEN, steps)
    assert lab.calls == ["start 8888", "stop at-8888"]
    assert read_state(checkout) is None


@pytest.mark.parametrize(
    ("load", "cause"), [(40.0, "very busy: load 40 on 2"), (1.0, "its own cause")]
)
def test_a_lab_that_never_answers_times_out(checkout, steps, answers, monkeypatch, load, cause):
    answers[:] = ["silent"]
    monkeypatch.setattr(up, "HEALTH_LIMIT_SECONDS", 0.0)
    monkeypatch.setattr(up.os, "getloadavg", lambda: (load, 0.0, 0.0))
    monkeypatch.setattr(up.os, "cpu_count", lambda: 2)
    lab = FakeLab()
    with pytest.raises(TimedOutError, match="did not answer on port 8888") as caught:
        launch(checkout, Settings(), plan_for(lab), TOKEN, steps)
    assert lab.calls == ["start 8888", "stop at-8888"]
    assert "  | its last line" in caught.value.what
    assert cause in str(caught.value.cause)


def test_a_lab_that_never_proves_itself_is_not_ready(checkout, steps, answers, monkeypatch):
    answers[:] = ["unproven"]
    monkeypatch.setattr(up, "HEALTH_LIMIT_SECONDS", 0.0)
    lab = FakeLab()
    with pytest.raises(EngineError, match="does not prove"):
        launch(checkout, Settings(), plan_for(lab), TOKEN, steps)
    assert lab.calls == ["start 8888", "stop at-8888"]


def test_a_port_that_another_program_took_while_the_lab_started(
    checkout, steps, answers, monkeypatch
):
    answers[:] = ["foreign", "gone", "healthy"]
    lab = FakeLab()
    monkeypatch.setattr(up, "is_port_free", lambda address, port: False)
    state = launch(checkout, Settings(), plan_for(lab), TOKEN, steps)
    assert state.port == 8889
    assert lab.calls == ["start 8888", "stop at-8888", "start 8889"]


def test_a_port_taken_meanwhile_is_left_for_the_next(checkout, steps, screen, answers, taken):
    lab = FakeLab(on_start={8888: PortTakenError("taken"), 8889: PortTakenError("taken")})
    state = launch(checkout, Settings(), plan_for(lab), TOKEN, steps)
    assert state.port == 8890
    assert lab.calls == ["start 8888", "stop None", "start 8889", "stop None", "start 8890"]


def test_it_does_not_try_for_ever(checkout, steps):
    lab = FakeLab(on_start={port: PortTakenError("taken") for port in range(8888, 8950)})
    with pytest.raises(UsageError, match="port 8892 is taken"):
        launch(checkout, Settings(), plan_for(lab), TOKEN, steps)
    assert lab.calls.count("stop None") == 5


def test_a_port_asked_for_and_taken_meanwhile_is_an_error(checkout, steps):
    lab = FakeLab(on_start={9000: PortTakenError("taken")})
    with pytest.raises(UsageError, match="port 9000 is taken"):
        launch(checkout, Settings(port=9000), plan_for(lab, port_asked=True), TOKEN, steps)
    assert lab.calls == ["start 9000", "stop None"]


def test_from_nothing_to_a_url(checkout, steps, monkeypatch):
    lab = FakeLab()
    monkeypatch.setattr(up, "probe_host", lambda checkout, settings, steps: None)
    monkeypatch.setattr(up, "make_plan", lambda checkout, settings, facts: plan_for(lab))
    monkeypatch.setattr(up, "examine_lab", lambda state, token: "healthy")
    monkeypatch.setattr(up, "read_status", LabStatus)
    status = start_lab(checkout, Settings(), steps)
    token = checkout.token_file.read_text().strip()
    assert status.url == f"http://127.0.0.1:8888/lab?token={token}"
    assert status.healthy
    assert lab.calls == ["prepare", "start 8888"]


def test_a_workspace_that_cannot_be_used_stops_it_before_anything_starts(
    checkout, steps, monkeypatch
):
    monkeypatch.setattr(up, "read_status", LabStatus)
    checkout.workspace.rmdir()
    checkout.workspace.write_text("a file of that name")
    monkeypatch.setattr(up, "probe_host", lambda checkout, settings, steps: pytest.fail("went on"))
    with pytest.raises(LabkitError, match="is not a folder"):
        start_lab(checkout, Settings(), steps)


# The memory limit


@pytest.mark.parametrize(
    ("asked", "client", "controllers", "limit"),
    [
        pytest.param(None, "docker", None, 28 * 2**30, id="most of the machine's"),
        pytest.param(None, "podman", "[cpu memory pids]", 28 * 2**30, id="podman"),
        pytest.param(None, "podman", "[cpu]", 0, id="podman without the controller"),
        pytest.param(4 * 2**30, "docker", None, 4 * 2**30, id="as asked"),
        pytest.param(0, "docker", None, 0, id="off"),
    ],
)
def test_a_container_leaves_the_host_some_memory(
    checkout, steps, screen, monkeypatch, asked, client, controllers, limit
):
    monkeypatch.setattr(up.os, "sysconf", lambda name: 4096 if "SIZE" in name else 28 * 2**18)
    monkeypatch.setattr(up, "choose_memory_limit", lambda total: total)
    monkeypatch.setattr(up, "run_command", lambda words, timeout_seconds: says(controllers or ""))
    monkeypatch.setattr(ContainerLab, "prepare", lambda self, steps: None)
    lab = ContainerLab(checkout, client, CPU, Settings(memory_bytes=asked))
    plan = up._prepare(checkout, plan_for(lab), steps)
    assert plan.lab.environment()["LABKIT_MEMORY"] == str(limit)
    assert ("MEMORY=off" in screen.getvalue()) is (asked is None and limit > 0)


@pytest.mark.parametrize(
    ("total", "left"), [(1, 1), (4, 0.5), (16, 1.6), (1024, 8)], ids=["tiny", "4", "16", "1024"]
)
def test_how_much_is_left_to_the_host(total, left):
    limit = up.choose_memory_limit(total * 2**30)
    assert limit == (0 if total == 1 else pytest.approx((total - left) * 2**30, abs=1))


# The last lines


def test_the_last_lines(checkout):
    assert describe_urls(healthy(checkout), ADA) == [
        "JupyterLab is ready:  http://127.0.0.1:8890/lab?token=abc",
        "stop it:  make down",
    ]


@pytest.mark.parametrize(("user", "target"), [("ada", "ada@10.0.0.9"), (None, "10.0.0.9")])
def test_over_ssh_the_tunnel_is_spelled_out(checkout, user, target):
    machine = replace(ADA, user_name=user, ssh_server="10.0.0.9")
    assert describe_urls(healthy(checkout), machine)[1] == (
        "from your own computer:  ssh -N -L 8890:127.0.0.1:8890 "
        f"{target}   # then open the URL there"
    )


def test_an_open_lab_needs_no_tunnel(checkout):
    status = healthy(checkout, replace(RUNNING, bind="0.0.0.0"))
    lines = describe_urls(status, replace(ADA, ssh_server="10.0.0.9"))
    assert lines[1:] == [
        "from another machine:  the same with this one's name or address for 127.0.0.1",
        "stop it:  make down",
    ]


def test_loopback_asked_for_by_name_is_no_open_lab(checkout, steps, running):
    running(healthy(checkout, replace(RUNNING, bind="0.0.0.0")))
    with pytest.raises(UsageError, match=r"asked for BIND=127\.0\.0\.1"):
        find_running(checkout, Settings(bind="127.0.0.1", bind_asked=True), steps)


def test_an_unknown_name_is_an_error_although_a_lab_runs(checkout, steps, running):
    running(healthy(checkout))
    with pytest.raises(UsageError) as caught:
        start_lab(checkout, Settings(runtime="dokcer"), steps)
    assert caught.value.fix == "make up RUNTIME=docker"


def test_the_tunnel_goes_through_the_servers_own_port(checkout):
    status = healthy(checkout, replace(RUNNING, bind="::1"))
    lines = describe_urls(status, replace(ADA, ssh_server="10.0.0.9", ssh_port=2222))
    assert "ssh -N -p 2222 -L 8890:[::1]:8890 " in lines[1]


# What the user brings


def test_a_memory_limit_that_a_local_lab_cannot_have_is_an_error(checkout, steps):
    lab = LocalLab(checkout, Settings("local", memory_bytes=2**30))
    with pytest.raises(UsageError, match="no memory limit") as caught:
        up._prepare(checkout, plan_for(lab), steps)
    assert "MEMORY=off" in str(caught.value.fix)


def test_a_folder_of_roots_own_is_not_given_away(checkout, steps):
    named = replace(checkout, named=checkout.root / "mine")
    identity = Identity(1000, 1000, owns_workspace=False)
    lab = ContainerLab(named, "docker", CPU, Settings(), identity=identity)
    with pytest.raises(UsageError, match="mine belongs to root"):
        up._prepare(named, plan_for(lab), steps)


@pytest.mark.parametrize("screen_there", [True, False])
def test_the_browser_gets_a_private_page_and_no_token(
    checkout, steps, screen, monkeypatch, screen_there
):
    opened = []
    monkeypatch.setattr("webbrowser.open", lambda url: opened.append(url) or True)
    monkeypatch.setattr(up.sys, "platform", "linux")
    monkeypatch.delenv("WAYLAND_DISPLAY", raising=False)
    monkeypatch.setenv("DISPLAY", ":0" if screen_there else "")
    prepare_state_folder(checkout)
    url = "http://127.0.0.1:8888/lab?token=abc"
    up.open_browser(LabStatus(checkout, url=url), steps)
    page = checkout.state_folder / "open.html"
    assert opened == ([page.as_uri()] if screen_there else [])
    assert ("open the URL yourself" in screen.getvalue()) is not screen_there
    assert (page.stat().st_mode & 0o777, f"url={url}" in page.read_text()) == (0o600, True)

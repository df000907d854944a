"""The start page and the memory in the status bar, as the server and a kernel give them."""

from __future__ import annotations

import asyncio
import json
import os
import sys
import time
from html.parser import HTMLParser

import pytest

from labkit.doctor.checks import CHECKS, QUICK_CHECKS
from labkit.jupyter import usage
from labkit.jupyter.start import Doctor, read_launch_notices, read_notices
from labkit.jupyter.start_view import Notice, render_start
from labkit.jupyter.usage import (
    Answers,
    PanelFeed,
    UsageSocket,
    ask_kernel,
    describe_device,
    describe_usage,
    leave_out_this_process,
    name_socket,
)
from labkit.launch.server import wait_until
from labkit.lessons.catalog import find_labs
from labkit.lessons.overview import read_overview
from labkit.lessons.progress import record_attempt
from labkit.lessons.workspace import reset_lab, update_workspace
from labkit.memory.balance.model import ThisProcess
from labkit.process import run_command
from tests.fakes.sampling import GIB, MIB, PlayedReader, lose_gpu, play_cpu, play_gpu, snap
from tests.fakes.small_labs import EXERCISES, LESSON, TOML, write_labs
from tests.servers import LabServer

SECOND = TOML.replace('"small"', '"big"').replace('"Small"', '"Big"').replace("01_small", "02_big")
HEADED = LESSON.replace(
    "# %%\ndef center", "# %% [markdown]\n# ## Exercise 1: center\n\n# %%\ndef center"
)


@pytest.fixture
def labs(tmp_path):
    """Two labs of two exercises each, "small" and "big"."""
    folder = write_labs(tmp_path / "labs", lesson=HEADED, toml=TOML + SECOND)
    (folder / "big").mkdir()
    (folder / "big" / "lesson.py").write_text(LESSON.replace("small.", "big."))
    (folder / "big" / "exercises.py").write_text(EXERCISES)
    return find_labs(folder)


@pytest.fixture
def work(tmp_path, labs):
    workspace = tmp_path / "work"
    update_workspace(workspace, labs)
    return workspace


def edit(path, at=None):
    """Types something into a notebook, and saves it at that time."""
    notebook = json.loads(path.read_text())
    notebook["cells"][-1]["source"] += "\n# mine"
    path.write_text(json.dumps(notebook))
    if at is not None:
        os.utime(path, (at, at))


def pass_all(work, lab, *names):
    for name in names or ("center", "double"):
        record_attempt(work, f"{lab}.{name}", passed=True)


def test_a_new_learner_starts_with_the_first_lab(work, labs):
    overview = read_overview(work, labs)
    step = overview.next
    assert (step.card.notebook, step.begun, step.cell) == ("01_small.ipynb", False, None)
    assert (overview.passed, overview.total) == (0, 4)


def test_the_notebook_that_was_edited_last_goes_on_at_its_open_exercise(work, labs):
    edit(work / "02_big.ipynb", at=time.time() - 60)
    edit(work / "01_small.ipynb")
    step = read_overview(work, labs).next
    assert (step.card.lab.name, step.exercise) == ("small", "Center the columns")
    cells = json.loads((work / "01_small.ipynb").read_text())["cells"]
    assert [cell["id"] for cell in cells if "## Exercise" in "".join(cell["source"])] == [step.cell]
    edit(work / "02_big.ipynb", at=time.time() + 60)
    pass_all(work, "big", "center")
    step = read_overview(work, labs).next
    assert (step.card.lab.name, step.exercise, step.begun) == ("big", "Double", True)


def test_the_exercise_that_was_tried_comes_before_one_that_was_passed_over(work, labs):
    edit(work / "01_small.ipynb")
    record_attempt(work, "small.double", passed=False)
    assert read_overview(work, labs).next.exercise == "Double"


@pytest.mark.parametrize(("done", "then"), [("big", "small"), ("small", "big")])
def test_after_a_lab_the_next_one_with_an_open_exercise(work, labs, done, then):
    (notebook,) = work.glob(f"*_{done}.ipynb")
    edit(notebook)
    pass_all(work, done)
    step = read_overview(work, labs).next
    assert (step.card.lab.name, step.begun) == (then, False)


def test_a_notebook_that_was_only_opened_counts_as_untouched(work, labs):
    path = work / "02_big.ipynb"
    path.write_text(json.dumps(json.loads(path.read_text()), indent=3))
    assert read_overview(work, labs).next.card.lab.name == "small"


def test_all_passed(work, labs):
    pass_all(work, "small")
    pass_all(work, "big")
    overview = read_overview(work, labs)
    assert (overview.next, overview.passed) == (None, 4)
    assert "passed all 4 exercises" in render_start(overview, "CPU")


def test_a_deleted_lab_is_named_with_the_way_back(work, labs):
    (work / "01_small.ipynb").unlink()
    overview = read_overview(work, labs)
    assert [card.notebook for card in overview.cards] == [None, "02_big.ipynb"]
    assert overview.next.card.lab.name == "big"
    assert "labkit reset small" in render_start(overview, "CPU")
    reset_lab(work, labs[0])
    assert "labkit reset" not in render_start(read_overview(work, labs), "CPU")


def test_a_renamed_notebook_is_found(work, labs):
    (work / "mine").mkdir()
    (work / "01_small.ipynb").rename(work / "mine" / "my lab #1.ipynb")
    overview = read_overview(work, labs)
    assert overview.cards[0].notebook == "mine/my lab #1.ipynb"
    links = list_links(render_start(overview, "CPU", base_url="/user/ada/"))
    assert links[0]["href"] == "/user/ada/lab/tree/mine/my%20lab%20%231.ipynb"
    assert links[0]["data-path"] == "mine/my lab #1.ipynb"


@pytest.mark.parametrize("broken", ["manifest.json", "progress.json", "01_small.ipynb"])
def test_a_broken_file_hides_no_lab(work, labs, broken):
    path = work / (f".labkit/{broken}" if broken == "manifest.json" else broken)
    path.write_text("{")
    page = render_start(read_overview(work, labs), "CPU")
    assert [link["data-path"] for link in list_links(page)][-2:] == [
        "01_small.ipynb",
        "02_big.ipynb",
    ]


def test_labs_beside_notebooks_of_the_learners_own(tmp_path, labs):
    workspace = tmp_path / "own"
    update_workspace(workspace / "labkit-labs", labs)
    pass_all(workspace / "labkit-labs", "small")
    overview = read_overview(workspace, labs)
    assert overview.next.card.notebook == "labkit-labs/02_big.ipynb"


@pytest.mark.slow
def test_it_loads_no_torch(work):
    script = (
        "import sys; from pathlib import Path; import labkit.jupyter.start\n"
        "from labkit.lessons.overview import read_overview; read_overview(Path(sys.argv[1]))\n"
        "assert not {'torch', 'IPython', 'matplotlib'} & {*sys.modules}, sorted(sys.modules)"
    )
    done = run_command([sys.executable, "-c", script, str(work)], timeout_seconds=60)
    assert done.ok, done.stderr


class Links(HTMLParser):
    def __init__(self):
        super().__init__()
        self.found = []
        self.tags = []

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        if tag == "a":
            self.found.append(dict(attrs))


def list_links(page):
    parser = Links()
    parser.feed(page)
    return parser.found


def test_a_link_goes_to_the_exercises_cell(work, labs):
    edit(work / "01_small.ipynb")
    overview = read_overview(work, labs)
    first = list_links(render_start(overview, "CPU"))[0]
    assert first["data-cell"] == overview.next.cell
    assert first["href"] == f"/lab/tree/01_small.ipynb#cell-id={overview.next.cell}"


def test_what_others_wrote_is_text(work, labs):
    hostile = "<img src=x onerror=alert(1)>"
    (work / "01_small.ipynb").rename(work / f"{hostile}.ipynb".replace("/", "-"))
    notices = [Notice("failed", hostile, hostile, hostile)]
    parser = Links()
    parser.feed(render_start(read_overview(work, labs), hostile, notices))
    assert "img" not in parser.tags


def test_the_doctors_failures_come_before_its_warnings_and_are_open(work, labs):
    checks = [
        {"status": "ok", "found": "fine", "cause": None, "fix": None},
        {"status": "warning", "found": "64 MiB", "cause": "small", "fix": "more"},
        {"status": "failed", "found": "no disk left", "cause": None, "fix": "df -h"},
    ]
    notices = read_notices({"checks": checks})
    assert [one.found for one in notices] == ["no disk left", "64 MiB"]
    page = render_start(read_overview(work, labs), "CPU", notices)
    assert 'data-status="failed" open' in page and page.index("no disk") < page.index("64 MiB")
    assert "labkit-doctor" not in render_start(read_overview(work, labs), "CPU", ())


@pytest.mark.parametrize("text", ["", "[]", "{", "3", "[3]", '[{"status": "warning"}]'])
def test_no_notices_of_the_launcher_or_odd_ones(text):
    assert read_launch_notices({"LABKIT_NOTICES": text}) == ()


def ask_doctor(*script):
    """What a doctor played by a script says, when it has ended, and how often it was asked."""

    async def ask():
        doctor = Doctor((sys.executable, "-c", *script))
        first = doctor.read()
        assert doctor.is_asked
        while doctor.is_asked:
            await asyncio.sleep(0.01)
        task = doctor._task
        return first, doctor.read(), doctor._task is task

    return asyncio.run(ask())


def test_the_doctor_is_asked_once_in_the_background():
    script = """print('{"checks": [{"status": "failed", "found": "no"}]}')"""
    assert ask_doctor(script) == ((), (Notice("failed", "no"),), True)


@pytest.mark.parametrize("script", ["print('[1]')", "print('{')", "raise SystemExit(3)"])
def test_a_doctor_that_fails_says_nothing(script):
    assert ask_doctor(script) == ((), (), True)


def test_the_quick_checks_neither_compute_nor_leave_the_machine():
    left_out = {check.name for check in CHECKS} - {check.name for check in QUICK_CHECKS}
    assert {"torch-allocation", "torch-compile", "dns", "engine-daemon", "container-gpu"} < left_out
    assert {"disk", "shm", "memory", "driver-library", "gpu-health"}.isdisjoint(left_out)


@pytest.mark.parametrize(
    ("balances", "kernel", "parts"),
    [
        ([play_cpu()], True, ["no GPU", "kernel 100.0 MiB", "machine 8.0 of 16.0 GiB"]),
        ([play_cpu()], False, ["no GPU", "machine 8.0 of 16.0 GiB"]),
        (
            [play_gpu(other_processes_bytes=GIB), play_cpu()],
            True,
            [
                *("cuda:0 4.0 of 24.0 GiB", "kernel 2.0 GiB", "tensors 1.0 GiB, cached 1.0 GiB"),
                "others 1.0 GiB",
            ],
        ),
        ([play_gpu(), play_cpu()], False, ["cuda:0 4.0 of 24.0 GiB"]),
        (
            [play_gpu(used=20 * GIB, this_process=ThisProcess()), play_cpu()],
            True,
            ["cuda:0 20.0 of 24.0 GiB", "kernel not measured"],
        ),
        (
            [play_gpu(0, 0, 20 * GIB), play_gpu(index=1), play_cpu()],
            True,
            ["cuda:1 of 2 4.0 of 24.0 GiB", "kernel 2.0 GiB", "tensors 1.0 GiB, cached 1.0 GiB"],
        ),
        ([lose_gpu(), play_cpu()], False, ["gpu 0: the GPU is lost"]),
        ([lose_gpu(), play_gpu(index=1), play_cpu()], False, ["cuda:1 of 2 4.0 of 24.0 GiB"]),
    ],
    ids=["cpu", "server", "gpu", "gpu-server", "not-seen", "two", "lost", "one-lost"],
)
def test_the_words_of_the_status_bar(balances, kernel, parts):
    assert list(describe_usage(snap(*balances), kernel=kernel).parts) == parts


@pytest.mark.parametrize(
    ("balances", "named"),
    [
        ([play_cpu(available=GIB)], "memory"),
        ([play_gpu(used=23 * GIB), play_cpu()], "cuda:0"),
        ([play_gpu(), play_cpu(available=GIB)], "memory"),
        ([play_gpu(), play_cpu()], ""),
        ([lose_gpu(), play_cpu()], ""),
    ],
    ids=["machine", "gpu", "machine-beside-a-gpu", "none", "lost"],
)
def test_what_is_nearly_full(balances, named):
    assert describe_usage(snap(*balances), kernel=True).nearly_full == named


def test_a_container_is_called_one():
    limited = play_cpu()._replace(limit_bytes=16 * GIB, machine_bytes=64 * GIB)
    assert "container 8.0 of 16.0 GiB" in describe_usage(snap(limited), kernel=False).parts


@pytest.mark.parametrize(
    ("balances", "line"),
    [
        ([play_cpu()], "CPU: A CPU (no GPU) · machine 8.0 of 16.0 GiB in use"),
        (
            [play_gpu(), play_cpu()],
            "A GPU: 4.0 of 24.0 GiB in use · machine 8.0 of 16.0 GiB in use",
        ),
        (
            [lose_gpu(), play_cpu()],
            "gpu 0: the GPU is lost · machine 8.0 of 16.0 GiB in use",
        ),
    ],
    ids=["cpu", "gpu", "lost"],
)
def test_the_device_in_one_line(balances, line):
    assert describe_device(snap(*balances)) == line


def test_many_gpus_stay_one_line():
    line = describe_device(snap(*(play_gpu(index=index) for index in range(8)), play_cpu()))
    assert "and 4 more GPUs" in line


def test_the_server_counts_itself_to_the_rest():
    (cpu,) = leave_out_this_process(snap(play_cpu(resident=100 * MIB))).balances
    assert cpu.this_process.known_bytes == 0
    assert cpu.other_processes_bytes == 8 * GIB


def test_a_kernel_answers_on_a_socket_whatever_the_path(tmp_path):
    folder = tmp_path / ("a long folder " * 12)
    folder.mkdir()
    connection_file = folder / "kernel-1.json"
    answers = Answers(kernel=True, reader=PlayedReader(snap()))
    path = name_socket(connection_file)
    path.write_text("left by a kernel that was killed")
    socket = UsageSocket(path, answers.answer)
    try:
        said = asyncio.run(ask_kernel(connection_file, "status"))
        assert (said["parts"][0], said["kernel"], "panel" in said) == ("no GPU", True, False)
        assert path.stat().st_mode & 0o777 == 0o600
    finally:
        socket.close()
    assert not path.exists()
    assert asyncio.run(ask_kernel(connection_file, "status")) is None


def test_a_reading_that_fails_ends_no_answers(tmp_path):
    answers = Answers(kernel=True, reader=PlayedReader(RuntimeError("lost"), snap()))
    socket = UsageSocket(tmp_path / "kernel-1.labkit", answers.answer)
    try:
        said = [asyncio.run(ask_kernel(tmp_path / "kernel-1.json", "status")) for _ in range(2)]
    finally:
        socket.close()
    assert said[0] == {"trouble": "RuntimeError: lost"}
    assert said[1]["parts"]


def test_a_kernel_that_does_not_answer_is_not_waited_for(tmp_path, monkeypatch):
    monkeypatch.setattr(usage, "ANSWER_SECONDS", 0.05)
    socket = UsageSocket(tmp_path / "kernel-1.labkit", lambda word: time.sleep(0.3) or {})
    try:
        assert asyncio.run(ask_kernel(tmp_path / "kernel-1.json", "status")) is None
    finally:
        socket.close()


def test_a_panel_that_nobody_reads_ends():
    feed = PanelFeed(lambda publish, **options: _StillPanel(publish, options))
    assert feed.read() == "<p>measured</p>"
    assert not feed.panel.is_cleared()
    feed._clock = lambda: time.monotonic() + usage.UNSEEN_SECONDS + 1
    assert feed.panel.is_cleared()


class _StillPanel:
    """A panel that measures once, when it is started."""

    def __init__(self, publish, options):
        self.publish, self.is_cleared = publish, options["is_cleared"]

    def start(self):
        self.publish({"text/html": "<p>measured</p>"}, update=False)


@pytest.mark.parametrize("path", ["/labkit/start", "/labkit/memory"])
def test_only_the_owner_is_answered(lab_server: LabServer, path: str):
    assert lab_server.ask(path).status == 403
    assert lab_server.ask(path, token=lab_server.token).status == 200


def test_the_server_shows_the_labs_and_starts_no_kernel(lab_server: LabServer):
    before = lab_server.ask("/api/kernels", token=lab_server.token).json()
    page = lab_server.ask("/labkit/start", token=lab_server.token).json()["html"]
    assert "01_tensors.ipynb" in page
    assert lab_server.ask("/api/kernels", token=lab_server.token).json() == before


def test_memory_of_a_kernel_that_is_not_there_is_the_servers(lab_server: LabServer):
    said = lab_server.ask("/labkit/memory?kernel=none&panel=1", token=lab_server.token).json()
    assert (said["kernel"], said["silent"]) == (False, True)
    assert "labkit-panel" in said["panel"]


@pytest.mark.slow
def test_a_notebooks_kernel_answers_for_itself(lab_server: LabServer):
    body = {"path": "own.ipynb", "type": "notebook", "name": "", "kernel": {"name": "python3"}}
    answer = lab_server.ask("/api/sessions", method="POST", token=lab_server.token, body=body)
    kernel = answer.json()["kernel"]["id"]

    def ask(more=""):
        path = f"/labkit/memory?kernel={kernel}{more}"
        return lab_server.ask(path, token=lab_server.token).json()

    try:
        assert wait_until(lambda: ask()["kernel"], timeout_seconds=60)
        assert any(part.startswith("kernel ") for part in ask()["parts"])
        assert wait_until(lambda: "<svg" in ask("&panel=1")["panel"], timeout_seconds=20)
    finally:
        lab_server.ask(f"/api/kernels/{kernel}", method="DELETE", token=lab_server.token)

"""The start page and the memory in the status bar, as the server and a kernel give them."""

from __future__ import annotations

import asyncio
import json
import logging
import os
import sys
import threading
import time
from html.parser import HTMLParser
from pathlib import Path
from types import SimpleNamespace

import pytest

from labkit import files
from labkit.doctor.checks import CHECKS, QUICK_CHECKS
from labkit.jupyter import start, usage
from labkit.jupyter.start import Doctor, Pages, read_launch_notices, read_notices
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
from labkit.lessons import notebooks
from labkit.lessons import overview as overview_module
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


FIRST = "01_small.ipynb"


def put_in_manifest(work, file):
    path = work / ".labkit" / "manifest.json"
    manifest = json.loads(path.read_text())
    manifest["labs"]["small"]["file"] = file
    path.write_text(json.dumps(manifest))


def put_in_notebook(work, change):
    notebook = json.loads((work / FIRST).read_text())
    change(notebook)
    (work / FIRST).write_text(json.dumps(notebook))


def replace_by(make, name=FIRST):
    def act(work):
        (work / name).unlink(missing_ok=True)
        make(work / name)

    return act


def set_ids(value):
    def change(notebook):
        for cell in notebook["cells"]:
            cell["id"] = value
            cell["metadata"] = {"tags": ["mine"]}

    return lambda work: put_in_notebook(work, change)


def name_by(encoded):
    return lambda work: (work / FIRST).rename(work / os.fsdecode(encoded))


def set_metadata(value):
    def act(work):
        put_in_notebook(work, lambda notebook: notebook.update(metadata=value))
        (work / FIRST).rename(work / "mine.ipynb")

    return act


ODD = {
    "name-not-utf8": name_by(b"01_sm\xe9ll.ipynb"),
    "name-with-newline": name_by(b"a\nb.ipynb"),
    "folder-not-utf8": lambda work: (
        (work / "d\udce9").mkdir() or (work / FIRST).rename(work / "d\udce9" / FIRST)
    ),
    "folder-named-like-it": replace_by(Path.mkdir),
    "pipe": replace_by(os.mkfifo),
    "pipe-beside": lambda work: (
        replace_by(os.mkfifo, "other.ipynb")(work) or set_metadata([])(work)
    ),
    "link-to-itself": replace_by(lambda path: path.symlink_to(path)),
    "link-to-nothing": replace_by(lambda path: path.symlink_to("gone")),
    "link-to-a-device": replace_by(lambda path: path.symlink_to("/dev/zero")),
    "folder-in-itself": lambda work: (work / "again").symlink_to(work),
    "labs-folder-in-itself": lambda work: (work / "labkit-labs").symlink_to("labkit-labs"),
    "empty": lambda work: (work / FIRST).write_bytes(b""),
    "not-utf8": lambda work: (work / FIRST).write_bytes(b'{"cells": ["\xff"]}'),
    "deep": lambda work: (work / FIRST).write_text("[" * 100_000),
    "cells-of-text": lambda work: (work / FIRST).write_text('{"cells": ["a"]}'),
    "metadata-list": set_metadata([]),
    "metadata-null": set_metadata(None),
    "metadata-odd-lab": set_metadata({"labkit": {"lab": ["small"]}}),
    "id-surrogate": set_ids("\ud800"),
    "id-number": set_ids(7),
    "id-object": set_ids({"a": 1}),
    "manifest-long-name": lambda work: put_in_manifest(work, "a" * 256 + ".ipynb"),
    "manifest-long-utf8": lambda work: put_in_manifest(work, "é" * 128),
    "manifest-outside": lambda work: put_in_manifest(work, "/etc/hosts"),
    "manifest-above": lambda work: put_in_manifest(work, ".."),
    "manifest-null-byte": lambda work: put_in_manifest(work, "a\0b"),
    "manifest-surrogate": lambda work: put_in_manifest(work, "\ud800.ipynb"),
    "manifest-number": lambda work: put_in_manifest(work, 7),
    "manifest-list": lambda work: (work / ".labkit" / "manifest.json").write_text("[]"),
    "manifest-pipe": replace_by(os.mkfifo, ".labkit/manifest.json"),
    "manifest-folder": replace_by(Path.mkdir, ".labkit/manifest.json"),
    "manifest-future": lambda work: (work / ".labkit" / "manifest.json").write_text(
        '{"schema_version": 9, "labs": [{"name": "small"}]}'
    ),
    "state-is-a-file": lambda work: (
        (work / ".labkit").rename(work / "was") or (work / ".labkit").write_text("")
    ),
    "progress-pipe": replace_by(os.mkfifo, "progress.json"),
    "progress-folder": replace_by(Path.mkdir, "progress.json"),
    "progress-link": replace_by(lambda path: path.symlink_to(path), "progress.json"),
    "progress-deep": lambda work: (work / "progress.json").write_text("[" * 100_000),
    "progress-future": lambda work: (work / "progress.json").write_text(
        '{"schema_version": 9, "exercises": {"small.center": ["passed"]}, "predictions": 3}'
    ),
    "progress-huge-number": lambda work: (work / "progress.json").write_text("9" * 5000),
}


@pytest.mark.parametrize("damage", ODD.values(), ids=ODD)
def test_whatever_stands_in_the_workspace_the_page_has_every_lab(work, labs, damage):
    damage(work)
    page = render_start(read_overview(work, labs), "CPU")
    json.dumps(page).encode()
    assert page.count('<li class="labkit-card"') == 2
    assert "02_big.ipynb" in [link["data-path"] for link in list_links(page)]


@pytest.mark.parametrize("name", [b"01_sm\xe9ll.ipynb", b"d\xe9/a.ipynb"], ids=["file", "folder"])
def test_a_name_that_no_url_can_hold_is_told_apart_from_a_deleted_notebook(work, labs, name):
    path = work / os.fsdecode(name)
    path.parent.mkdir(exist_ok=True)
    (work / FIRST).rename(path)
    page = render_start(read_overview(work, labs), "CPU")
    assert "not UTF-8" in page and "\\udce9" in page and "deleted" not in page


@pytest.mark.parametrize(
    ("make", "kind"),
    [(os.mkfifo, "named pipe"), (lambda path: path.symlink_to(path.name), "symbolic link")],
    ids=["pipe", "link-to-itself"],
)
def test_what_no_browser_can_open_is_named_and_no_way_leads_there(work, labs, make, kind):
    edit(work / "02_big.ipynb")
    replace_by(make, "02_big.ipynb")(work)
    overview = read_overview(work, labs)
    assert overview.next.card.notebook == FIRST
    assert kind in overview.cards[1].trouble and "labkit reset big" in overview.cards[1].trouble
    assert "deleted" not in render_start(overview, "CPU")
    reset_lab(work, labs[1])
    assert read_overview(work, labs).cards[1].trouble is None


def add_picture(notebook):
    picture = {"image/png": "A" * 2_000_000}
    output = {"output_type": "display_data", "metadata": {}, "data": picture}
    code = next(cell for cell in notebook["cells"] if cell["cell_type"] == "code")
    code["outputs"] = [output]


def test_a_large_notebook_is_read_once(work, labs, monkeypatch):
    put_in_notebook(work, add_picture)
    first = read_overview(work, labs)
    monkeypatch.setattr(notebooks, "parse_notebook", lambda data: pytest.fail("it is read again"))
    assert read_overview(work, labs) == first
    assert first.next.begun


def test_what_nobody_foresaw_takes_neither_the_labs_nor_the_reason_away(monkeypatch):
    def fail(*_, **__):
        raise RuntimeError("the disk is gone")

    monkeypatch.setattr(start, "read_overview", fail)
    # A list in place of a log: Python 3.11 parses code to format a traceback, and before 3.11.8
    # that disturbs another thread that parses a lab.
    logged = []
    log = SimpleNamespace(exception=logged.append)
    pages = Pages(Path("work"), SimpleNamespace(answer=fail), log)
    overview, device, pending = asyncio.run(pages.read(60))
    page = render_start(overview, device)
    assert not pending and len(logged) == 2
    assert "the disk is gone" in page and "not measured" in page
    assert [link["data-path"] for link in list_links(page)] == [lab.notebook for lab in find_labs()]


def play_slow_reading(monkeypatch, work, labs):
    """Pages of a workspace, read from a disk that stands still until the event is set."""
    goes_on = threading.Event()

    def read_slowly(root, on_read):
        on_read(root / "01_small.ipynb")
        assert goes_on.wait(60)
        return read_overview(root, labs, on_read)

    monkeypatch.setattr(start, "read_overview", read_slowly)
    answers = SimpleNamespace(answer=lambda word: {"device": "CPU"})
    return Pages(work, answers, logging.getLogger("test")), goes_on


def test_a_disk_that_stands_still_holds_up_neither_the_page_nor_the_server(work, labs, monkeypatch):
    pages, goes_on = play_slow_reading(monkeypatch, work, labs)
    before = threading.active_count()

    async def read():
        early = [await pages.read(0.01) for _ in range(20)]
        threads = threading.active_count()
        goes_on.set()
        return early, threads, await pages.read(60)

    early, threads, (late, _, still) = asyncio.run(read())
    page = render_start(early[-1][0], early[-1][1])
    assert all(pending for _, _, pending in early) and not still
    assert "still reading 01_small.ipynb" in page and "0 of" not in page
    assert threads - before <= 1  # one reading, however often it is asked for
    assert (late.passed, late.note) == (0, None)


def test_while_it_is_read_again_the_page_shows_what_it_knew(work, labs, monkeypatch):
    pages, goes_on = play_slow_reading(monkeypatch, work, labs)
    pass_all(work, "small")
    goes_on.set()

    async def read():
        first, _, _ = await pages.read(60)
        goes_on.clear()
        second, _, pending = await pages.read(0.01)
        goes_on.set()
        return first, second, pending, (await pages.read(60))[0]

    first, second, pending, third = asyncio.run(read())
    assert pending and second.cards == first.cards and "still reading" in second.note
    assert third == first


def test_the_page_reads_no_notebook_twice_and_no_large_one_for_its_digest(work, labs, monkeypatch):
    edit(work / "01_small.ipynb")
    put_in_notebook(work, add_picture)
    read = []
    real = files.open_regular
    monkeypatch.setattr(
        files, "open_regular", lambda path, *rest: read.append(path.name) or real(path, *rest)
    )
    monkeypatch.setattr(overview_module, "_LARGEST_PLACED_BYTES", 2**20)
    seen = read_overview(work, labs)
    assert seen.next.begun and seen.next.cell
    notebooks_read = [name for name in read if name.endswith(".ipynb")]
    assert sorted(notebooks_read) == ["01_small.ipynb", "02_big.ipynb"]


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
        assert wait_until(lambda: "<svg" in ask("&panel=1")["panel"], timeout_seconds=60)
    finally:
        lab_server.ask(f"/api/kernels/{kernel}", method="DELETE", token=lab_server.token)

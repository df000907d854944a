"""``labkit run`` from its arguments to its exit code and its JSON."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import nbformat
import pytest
from jsonschema import Draft202012Validator

from labkit.cli import main
from labkit.cli.run import require_packages
from labkit.devices.detect import Detection, Device
from labkit.errors import EngineError
from tests.notebooks import make_file

ROOT = Path(__file__).parents[1]
SCHEMA = json.loads((ROOT / "labkit/notebooks/result.schema.json").read_text())

LABS = """[[lab]]
name = "numbers"
title = "Numbers"
summary = "Counting"
minutes = 1
needs = []
notebook = "01_numbers.ipynb"

[[lab]]
name = "letters"
title = "Letters"
summary = "Spelling"
minutes = 1
needs = []
notebook = "02_letters.ipynb"
"""
HEADER = """# ---
# jupyter:
#   jupytext:
#     text_representation:
#       extension: .py
#       format_name: percent
#   kernelspec:
#     display_name: Python 3
#     language: python
#     name: python3
# ---

"""
NUMBERS = """# %% [markdown]
# # Numbers

# %%
from labkit import claim

# %%
def double(x):
    ### BEGIN SOLUTION
    return 2 * x
    ### END SOLUTION

# %%
claim("doubling two makes four", double(2), 4)
"""
LETTERS = """# %%
from labkit import claim

# %%
claim("the alphabet ends with y", "abcxyz"[-1], "y")
"""


@pytest.fixture(autouse=True)
def quiet_progress(monkeypatch):
    monkeypatch.setattr("labkit.notebooks.summary.RunProgress.show_event", lambda self, event: None)


@pytest.fixture(autouse=True)
def here(tmp_path, monkeypatch):
    """Runs are kept below the test's own folder."""
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture
def labs(tmp_path, monkeypatch):
    """Two labs of our own: one whose claim holds, one whose does not."""
    folder = tmp_path / "labs"
    for name, lesson in (("numbers", NUMBERS), ("letters", LETTERS)):
        (folder / name).mkdir(parents=True)
        (folder / name / "lesson.py").write_text(HEADER + lesson)
    (folder / "labs.toml").write_text(LABS)
    monkeypatch.setenv("LABKIT_LABS", str(folder))
    return folder


def test_a_lab_runs_by_name_with_its_solutions(labs, capsys):
    assert main(["run", "numbers", "--no-output"]) == 0
    out, err = capsys.readouterr()
    assert out.startswith("numbers: passed, 3 of 3 cells run, 1 of 1 claims held (")
    assert err == ""


def test_a_claim_that_does_not_hold_is_named_and_fails(labs, capsys):
    assert main(["run", "--all", "--keep-going", "--json", "--no-output"]) == 1
    out, err = capsys.readouterr()
    printed = json.loads(out)
    assert (printed["schema_version"], printed["status"]) == (1, "failed")
    assert [notebook["status"] for notebook in printed["notebooks"]] == ["passed", "failed"]
    assert printed["notebooks"][1]["claims"] == [
        {"statement": "the alphabet ends with y", "held": False, "skipped": None}
    ]
    assert printed["environment"]["python"] == ".".join(str(part) for part in sys.version_info[:3])
    assert "  claim does not hold: the alphabet ends with y\n" in err


@pytest.mark.slow
def test_after_a_failure_the_rest_runs_if_asked(tmp_path, capsys):
    files = [make_file(tmp_path / "bad.ipynb", "1/0"), make_file(tmp_path / "good.ipynb", "1")]
    assert main(["run", *files, "--json", "--no-output", "--keep-going"]) == 1
    printed = json.loads(capsys.readouterr().out)
    assert [notebook["status"] for notebook in printed["notebooks"]] == ["failed", "passed"]
    assert printed["notebooks"][0]["error"]["kind"] == "cell"


FAULTS = [
    pytest.param(
        ["import os; os._exit(7)"], [], 1, "the kernel died in cell 1 of 1: exit code 7", id="death"
    ),
    pytest.param(
        ["import time; time.sleep(600)"],
        ["--timeout", "0.5"],
        4,
        "cell 1 of 1 ran past 0.5 s",
        id="timeout",
    ),
]


@pytest.mark.parametrize(("cells", "options", "exit_code", "what"), FAULTS)
def test_a_fault_is_told_in_words_and_in_one_whole_object(
    tmp_path, capsys, cells, options, exit_code, what
):
    path = make_file(tmp_path / "fault.ipynb", *cells)
    assert main(["run", path, "--json", "--no-output", *options]) == exit_code
    out, err = capsys.readouterr()
    (notebook,) = json.loads(out)["notebooks"]
    assert notebook["error"]["what"] == what
    assert notebook["error"]["source"] == cells[0]
    assert what in err


@pytest.mark.parametrize(
    ("name", "content", "cause"),
    [
        ("text.ipynb", "no json at all", "is not a notebook: line 1 column 1: Expecting value"),
        ("half.ipynb", '{"cells": [}', "is not a notebook: line 1 column 12: Expecting value"),
        ("empty.ipynb", "\n", "is not a notebook: the file is empty"),
        (
            "lfs.ipynb",
            "version https://git-lfs.github.com/spec/v1\n",
            "is not a notebook: it is a pointer",
        ),
        ("both.ipynb", "<<<<<<< a\n{}\n>>>>>>> b\n", "is not a notebook: it has the marks of a"),
        ("page.ipynb", "\n<!DOCTYPE html>\n", "is not a notebook: it is a page of HTML"),
        ("other.ipynb", '{"a": 1}', "is not a valid notebook: "),
        ("list.ipynb", "[1, 2]", "is not a valid notebook: "),
        ("binary.ipynb", b"\xff\xfe\x00", "cannot be read: 'utf-8' codec can't decode"),
    ],
)
def test_a_file_that_is_no_notebook_exits_2_and_is_named(tmp_path, capsys, name, content, cause):
    path = tmp_path / name
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    assert main(["run", str(path), "--json", "--no-output"]) == 2
    (notebook,) = json.loads(capsys.readouterr().out)["notebooks"]
    assert notebook["status"] == "invalid"
    assert notebook["error"]["what"].startswith(f"{path} {cause}")


@pytest.mark.parametrize(
    ("words", "named"),
    [
        ([], ["nothing to run", "labkit run --all"]),
        (["nubmers"], ["'nubmers'", "the labs are numbers, letters", "did you mean numbers?"]),
        (["--all", "numbers"], ["--all conflicts with names"]),
        (["numbers", "--timeout", "0"], ["--timeout 0", "above 0"]),
        (["numbers", "--timeout", "nan"], ["--timeout nan"]),
        (["numbers", "--total-timeout", "-1"], ["--total-timeout -1"]),
        (["numbers", "--jobs", "0"], ["--jobs 0", "at least 1"]),
        (["numbers", "--output", "a", "--no-output"], ["--output conflicts with --no-output"]),
        (["numbers", "--device", "gpu"], ["--device 'gpu'", "auto, cpu, cuda or cuda:N"]),
        (["./notes.txt"], ["no notebook ./notes.txt", "{folder} has no file"]),
        (["./labs/labs.toml"], ["./labs/labs.toml is not a notebook", ".ipynb, .py, .md, .myst"]),
    ],
    ids=lambda value: " ".join(value)[:40] or "nothing",
)
def test_wrong_arguments_exit_2_before_anything_runs(
    labs, tmp_path, monkeypatch, capsys, words, named
):
    monkeypatch.chdir(tmp_path)
    assert main(["run", *words]) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert err.startswith("error: ")
    for text in named:
        assert text.format(folder=tmp_path) in err


def test_no_labs_at_all_is_an_error(tmp_path, monkeypatch, capsys):
    (tmp_path / "labs.toml").write_text("")
    monkeypatch.setenv("LABKIT_LABS", str(tmp_path))
    assert main(["run", "--all"]) == 2
    assert capsys.readouterr().err.startswith("error: there is no lab to run\n")


@pytest.mark.slow
def test_output_keeps_the_notebooks_and_the_object(tmp_path, capsys):
    (tmp_path / "a").mkdir()
    first = make_file(tmp_path / "same.ipynb", "1 + 1")
    second = make_file(tmp_path / "a" / "same.ipynb", "2 + 2")
    third = make_file(tmp_path / "same-2.ipynb", "3 + 3")
    folder = tmp_path / "out" / "run"
    assert main(["run", first, second, third, "--json", "--output", str(folder)]) == 0
    out, err = capsys.readouterr()
    result = json.loads((folder / "result.json").read_text())
    assert result == json.loads(out)
    assert f"run folder: {folder}\n" in err
    Draft202012Validator(SCHEMA).validate(result)
    assert [notebook["executed"] for notebook in result["notebooks"]] == [
        "same.ipynb",
        "same-2.ipynb",
        "same-2-2.ipynb",
    ]
    shown = [
        nbformat.read(folder / name, as_version=4).cells[0].outputs[0].data["text/plain"]
        for name in ("same.ipynb", "same-2.ipynb", "same-2-2.ipynb")
    ]
    assert shown == ["2", "4", "6"]


def test_an_output_that_is_a_file_is_refused_before_anything_runs(tmp_path, capsys):
    path = make_file(tmp_path / "a.ipynb", "1")
    assert main(["run", path, "--output", path]) == 2
    assert capsys.readouterr().err.startswith(f"error: --output {path} cannot be made\n")


def test_a_run_is_kept_under_runs_with_its_report_and_says_where(tmp_path, capsys):
    path = make_file(tmp_path / "a.ipynb", "1/0")
    assert main(["run", path]) == 1
    (folder,) = Path("runs").iterdir()
    assert sorted(file.name for file in folder.iterdir()) == [
        "a.ipynb",
        "report.html",
        "result.json",
    ]
    assert capsys.readouterr().err.endswith(
        f"run folder: {folder}\nreport: {folder / 'report.html'}\n"
    )
    result = json.loads((folder / "result.json").read_text())
    Draft202012Validator(SCHEMA).validate(result)
    assert result["status"] == "failed"


def test_a_run_for_somebody_outside_names_the_hosts_paths(tmp_path, capsys, monkeypatch):
    monkeypatch.setenv("LABKIT_WORKSPACE", str(Path.cwd()))
    monkeypatch.setenv("LABKIT_OUTSIDE", "/home/ada/labs")
    assert main(["run", make_file(tmp_path / "a.ipynb", "1")]) == 0
    (folder,) = Path("runs").iterdir()
    outside = f"/home/ada/labs/{folder}"
    assert capsys.readouterr().err.endswith(
        f"run folder: {outside}\nreport: {outside}/report.html\n"
    )


def test_where_runs_cannot_be_made_the_run_goes_on_without(tmp_path, capsys):
    (tmp_path / "runs").write_text("a file")
    assert main(["run", make_file(tmp_path / "a.ipynb", "1")]) == 0
    err = capsys.readouterr().err
    assert err.startswith("warning: this run is not saved: the run folder runs/")
    assert err.endswith("  try: --output DIR, or --no-output\n")


def test_a_second_run_into_one_folder_is_refused(tmp_path, capsys):
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "result.json").write_text("{}")
    assert main(["run", make_file(tmp_path / "a.ipynb", "1"), "--output", "out", "--json"]) == 2
    out, err = capsys.readouterr()
    assert json.loads(out)["error"]["what"] == "--output out already holds a run"
    assert "out/result.json" in err.splitlines()[1]
    assert (tmp_path / "out" / "result.json").read_text() == "{}"


def test_a_disk_that_fills_up_fails_the_run_and_loses_no_result(tmp_path, monkeypatch, capsys):
    def fail(path, text):
        raise OSError(28, "No space left on device", str(path))

    monkeypatch.setattr("labkit.notebooks.result.write_atomically", fail)
    path = make_file(tmp_path / "a.ipynb", "1")
    assert main(["run", path, "--json", "--output", "out"]) == 1
    out, err = capsys.readouterr()
    printed = json.loads(out)
    assert (printed["status"], printed["notebooks"][0]["status"]) == ("failed", "passed")
    assert printed["trouble"].startswith("the run folder is incomplete: [Errno 28]")
    assert err.endswith(
        "error: the run folder out is incomplete\n  cause: No space left on device\n"
    )


def test_a_file_that_is_no_notebook_keeps_no_other_from_running(tmp_path, capsys):
    (tmp_path / "bad.ipynb").write_text('{"cells": [')
    paths = [str(tmp_path / "bad.ipynb"), make_file(tmp_path / "good.ipynb", "1")]
    assert main(["run", *paths, "--json", "--no-output"]) == 2
    statuses = [notebook["status"] for notebook in json.loads(capsys.readouterr().out)["notebooks"]]
    assert statuses == ["invalid", "passed"]


def test_an_interruption_is_one_object_too(monkeypatch, capsys):
    def interrupt(arguments):
        raise KeyboardInterrupt

    monkeypatch.setattr("labkit.cli.run.run_asked", interrupt)
    assert main(["run", "tensors", "--json"]) == 130
    assert json.loads(capsys.readouterr().out)["error"]["exit_code"] == 130


def test_a_device_that_is_not_here_exits_3_before_anything_runs(tmp_path, monkeypatch, capsys):
    nothing = Detection("cpu", (Device("cpu", "cpu"),), ("the NVIDIA driver is not installed",))
    monkeypatch.setattr("labkit.devices.detect.detect_devices", lambda: nothing)
    path = make_file(tmp_path / "a.ipynb", "1")
    assert main(["run", path, "--device", "cuda:1", "--json"]) == 3
    out, err = capsys.readouterr()
    assert json.loads(out)["error"]["exit_code"] == 3
    assert "--device cuda:1" in err
    assert "cause: the NVIDIA driver is not installed\n  try: labkit devices\n" in err
    assert not Path("runs").exists()


def test_on_the_cpu_the_notebook_sees_no_gpu(tmp_path, capsys):
    cell = "import os; assert os.environ['CUDA_VISIBLE_DEVICES'] == ''"
    path = make_file(tmp_path / "a.ipynb", cell)
    assert main(["run", path, "--device", "cpu", "--json", "--no-output"]) == 0
    assert json.loads(capsys.readouterr().out)["environment"]["device"] == "cpu"


@pytest.mark.parametrize(
    ("labs_asked", "present", "cause", "fix"),
    [
        (["tensors"], (), "all of the lab's packages", "make run LABS=tensors"),
        ([], (), "all of the lab's packages", "make run LABS=tensors"),
        (
            ["tensors", "autograd"],
            ("nbclient", "nbformat", "ipykernel", "jupytext", "msgspec", "nh3"),
            "torch",
            "make run LABS='tensors autograd'",
        ),
        (
            [],
            ("nbformat", "nh3"),
            "nbclient, ipykernel, jupytext, msgspec",
            "make run LABS=tensors",
        ),
    ],
    ids=["nothing", "nothing, for a file", "no torch", "some"],
)
def test_a_python_without_the_packages_says_what_to_type(labs_asked, present, cause, fix):
    with pytest.raises(EngineError) as caught:
        require_packages(labs_asked, find=lambda name: name if name in present else None)
    assert caught.value.what == f"{sys.executable} cannot run notebooks"
    assert caught.value.cause == f"this Python lacks {cause}"
    assert caught.value.fix == fix


def test_a_notebook_of_ones_own_needs_no_torch():
    require_packages([], find=lambda name: None if name == "torch" else name)


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM], ids=["Ctrl-C", "SIGTERM"])
def test_a_signal_stops_the_kernel_and_still_prints_the_object(tmp_path, heeds_interrupts, number):
    path = make_file(
        tmp_path / "long.ipynb",
        "import os, pathlib\n_ = pathlib.Path('pid').write_text(str(os.getpid()))",
        "import time\ntime.sleep(600)",
    )
    command = [sys.executable, "-m", "labkit", "run", path, "--json"]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    process = subprocess.Popen(
        command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    assert process.stderr is not None
    # The first line comes when the first cell has ended: the second is on its way.
    assert process.stderr.readline().startswith("long  1/2")
    process.send_signal(number)
    out, _ = process.communicate(timeout=60)
    assert process.returncode == 130
    printed = json.loads(out)
    assert printed["status"] == "interrupted"
    assert printed["notebooks"][0]["cells"][0]["status"] == "passed"
    Draft202012Validator(SCHEMA).validate(printed)
    (folder,) = Path("runs").iterdir()
    assert json.loads((folder / "result.json").read_text()) == printed
    with pytest.raises(ProcessLookupError):
        os.kill(int((tmp_path / "pid").read_text()), 0)

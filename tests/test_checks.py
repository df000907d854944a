from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from labkit import check, solution
from labkit.errors import UsageError
from labkit.lessons import checks
from labkit.lessons.checks import CheckFailed
from labkit.lessons.progress import read_progress
from labkit.notebooks.result import CHECK_MIME
from tests.fakes.small_labs import EXERCISES, LESSON, TOML, write_labs


def center(x: torch.Tensor) -> torch.Tensor:
    return x - x.mean(0)


def stub(x: torch.Tensor) -> torch.Tensor:
    raise NotImplementedError("write your code here")


@pytest.fixture
def workspace(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    folder = tmp_path / "work"
    folder.mkdir()
    monkeypatch.setenv("LABKIT_LABS", str(write_labs(tmp_path / "labs")))
    monkeypatch.setenv("LABKIT_WORKSPACE", str(folder))
    monkeypatch.delenv("LABKIT_REFERENCE", raising=False)
    checks._standings.clear()
    return folder


def test_a_right_answer_passes_and_is_recorded(workspace: Path, capsys: Any) -> None:
    check("small.center", center)

    assert capsys.readouterr().out == (
        "passed: `small.center`: right in both cases\n"
        "  next: Double (`small.double`); 1 of 2 exercises of this lab passed\n"
    )
    assert read_progress(workspace).standing("small.center").passed is not None


def test_the_stub_gets_no_hint_and_is_no_attempt(workspace: Path, capsys: Any) -> None:
    check("small.center", stub)

    assert capsys.readouterr().out == (
        "not started: `small.center`: write the function in its cell, run that cell,"
        " and then this one\n"
    )
    assert not (workspace / "progress.json").exists()


def test_the_second_hint_comes_with_the_second_failure(workspace: Path, capsys: Any) -> None:
    check("small.center", lambda x: x.mean(0))
    first = capsys.readouterr().out
    check("small.center", lambda x: x.mean(0))
    second = capsys.readouterr().out

    assert first.splitlines()[-1] == "  hint: What shape has the mean?"
    assert second.splitlines()[-2:] == [
        "  hint: What shape has the mean?",
        "  hint: Which dimension goes away?",
    ]
    assert read_progress(workspace).standing("small.center").attempts == 2


def test_a_failure_says_what_was_expected_and_what_came(workspace: Path, capsys: Any) -> None:
    check("small.double", lambda x: x * 3)

    assert capsys.readouterr().out == (
        "wrong values: `small.double`: 2 of 2 values differ; largest difference at [0]: "
        "expected 2, got 3, off by 1\n"
        "  in: case 1 of 1\n"
        "  expected: tensor([2., 2.])\n"
        "  got: tensor([3., 3.])\n"
        "  hint: Twice one is two.\n"
    )


def test_without_a_workspace_nothing_is_recorded_and_it_says_so(
    workspace: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    monkeypatch.delenv("LABKIT_WORKSPACE")
    monkeypatch.chdir(workspace)

    check("small.center", lambda x: x.mean(0))
    check("small.center", lambda x: x.mean(0))

    out = capsys.readouterr().out
    assert out.count("  note: not recorded: no workspace found from this folder\n") == 2
    assert out.count("Which dimension goes away?") == 1
    assert list(workspace.iterdir()) == []


def test_a_record_that_cannot_be_written_does_not_take_the_verdict_away(
    workspace: Path, capsys: Any
) -> None:
    (workspace / ".labkit").write_text("a file where the folder should be")

    check("small.center", center)

    out = capsys.readouterr().out
    assert out.startswith("passed: `small.center`: right in both cases\n")
    assert "  note: not recorded: " in out
    assert ".labkit is a file" in out


def test_an_unknown_name_is_an_error_with_the_near_match(workspace: Path) -> None:
    with pytest.raises(UsageError) as caught:
        check("small.centr", center)

    assert caught.value.fix == "did you mean small.center?"


def test_a_reference_run_raises_and_records_nothing(
    workspace: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    monkeypatch.setenv("LABKIT_REFERENCE", "1")

    check("small.center", center)
    with pytest.raises(CheckFailed, match=r"the reference for small\.center: wrong_shape"):
        check("small.center", lambda x: x.mean(0))

    assert list(workspace.iterdir()) == []


def test_a_recognized_mistake_is_named(workspace: Path, capsys: Any) -> None:
    check("small.center", lambda x: x.mean(dim=0))

    assert "  looks like: an answer that gives the means\n" in capsys.readouterr().out


def test_the_solution_opens_after_five_different_failures(workspace: Path, capsys: Any) -> None:
    solution("small.center")
    assert capsys.readouterr().out.startswith("not yet: the solution of `small.center`")

    for wrong in (
        lambda x: x + 1,
        lambda x: x + 2,
        lambda x: x + 3,
        lambda x: x + 4,
        lambda x: x + 5,
    ):
        out = capsys.readouterr().out
        check("small.center", wrong)
    assert "solution" not in out
    assert 'solution("small.center")` shows the reference' in capsys.readouterr().out

    solution("small.center")
    assert "means = x.mean(dim=0, keepdim=True)" in capsys.readouterr().out
    assert read_progress(workspace).standing("small.center").seen is not None


def test_after_a_pass_the_solution_is_open_and_not_marked(workspace: Path, capsys: Any) -> None:
    check("small.center", center)
    solution("small.center")

    assert "means = x.mean(dim=0, keepdim=True)" in capsys.readouterr().out
    assert read_progress(workspace).standing("small.center").seen is None


def test_the_last_exercise_of_all_ends_it(workspace: Path, capsys: Any) -> None:
    check("small.center", center)
    check("small.double", lambda x: x * 2)

    assert capsys.readouterr().out.endswith("  done: all 2 exercises passed\n")


@pytest.mark.parametrize("first", [True, False], ids=["a-later-lab", "an-earlier-lab"])
def test_the_last_exercise_of_a_lab_leads_to_one_that_is_open(
    workspace: Path, capsys: Any, first: bool
) -> None:
    big = TOML.replace('"small"', '"big"').replace('"Small"', '"Big"').replace("01_small", "02_big")
    folder = workspace.parent / "labs"
    write_labs(folder, toml=TOML + big if first else big + TOML)
    (folder / "big").mkdir()
    (folder / "big" / "lesson.py").write_text(LESSON.replace("small.", "big."))
    (folder / "big" / "exercises.py").write_text(EXERCISES)
    check("small.center", center)
    check("small.double", lambda x: x * 2)

    said = capsys.readouterr().out
    assert "  next: the lab Big (02_big.ipynb); all 2 exercises of this lab passed\n" in said


@pytest.fixture
def shell(workspace: Path) -> Iterator[Any]:
    from IPython.core.displaypub import CapturingDisplayPublisher
    from IPython.core.interactiveshell import InteractiveShell
    from traitlets.config import Config

    config = Config()
    config.HistoryManager.enabled = False
    shell = InteractiveShell.instance(config=config)
    shell.display_pub = CapturingDisplayPublisher()
    shell.run_cell("import torch\nfrom labkit import check", store_history=True)
    yield shell
    InteractiveShell.clear_instance()


RIGHT = "def center(x):\n    return x - x.mean(0)\n"


@pytest.mark.parametrize(
    ("broken", "why"),
    [
        pytest.param("def center(x):\n    return x -\n", "has a SyntaxError", id="syntax"),
        pytest.param("gone\n" + RIGHT.replace("0", "1"), "ended with an error", id="raised"),
    ],
)
def test_a_failed_cell_is_not_judged_by_its_older_version(
    shell: Any, workspace: Path, capsys: Any, broken: str, why: str
) -> None:
    for cell in (RIGHT, broken, 'check("small.center", center)'):
        shell.run_cell(cell, store_history=True)
    shown = shell.display_pub.outputs[-1]["data"][CHECK_MIME]
    shell.run_cell(RIGHT, store_history=True)
    shell.run_cell('check("small.center", center)', store_history=True)

    assert shown["status"] == "not_run" and why in shown["message"]
    assert shell.display_pub.outputs[-1]["data"][CHECK_MIME]["status"] == "passed"
    assert read_progress(workspace).standing("small.center").attempts == 1


def test_an_interrupted_check_says_so_and_counts_for_nothing(shell: Any, workspace: Path) -> None:
    shell.run_cell("def center(x):\n    raise KeyboardInterrupt", store_history=True)
    done = shell.run_cell('check("small.center", center)', store_history=True)

    assert isinstance(done.error_in_exec, KeyboardInterrupt)  # the cells that wait do not run
    assert "interrupted" in shell.display_pub.outputs[-1]["data"]["text/plain"]
    assert CHECK_MIME not in shell.display_pub.outputs[-1]["data"]
    assert read_progress(workspace).standing("small.center").attempts == 0


MAKE = "def make(axis):\n    def center(x):\n        return x - x.mean(axis)\n    return center\n"
PLAINLY = "def log(f):\n    def inner(x):\n        return f(x)\n    return inner\n"
OTHER = RIGHT.replace("center", "other")


@pytest.mark.parametrize("tells", [True, False], ids=["IPython 9", "IPython 8"])
@pytest.mark.parametrize(
    "cells",
    [
        pytest.param([MAKE, "center = make(0)"], id="made by a factory"),
        pytest.param([PLAINLY, "@log\n" + RIGHT], id="decorated without wraps"),
        pytest.param([OTHER, "center = other"], id="another name"),
        pytest.param([RIGHT, OTHER, "center, same = other, center"], id="several at once"),
        pytest.param(
            [RIGHT, "kept = center", RIGHT.replace("0", "1"), "center = kept"], id="put back"
        ),
        pytest.param([RIGHT + "assert center(torch.ones(2, 2)) is None"], id="fails afterwards"),
    ],
)
def test_a_function_that_another_cell_made_is_judged(
    shell: Any, monkeypatch: pytest.MonkeyPatch, cells: list[str], tells: bool
) -> None:
    for cell in cells:
        shell.run_cell(cell, store_history=True)
    if not tells:
        monkeypatch.setattr(checks, "_list_failed", lambda shell: None)
    shell.run_cell('check("small.center", center)', store_history=True)

    assert shell.display_pub.outputs[-1]["data"][CHECK_MIME]["status"] == "passed"


def test_of_two_checks_in_a_cell_each_judges_its_own_function(shell: Any) -> None:
    wrong = OTHER.replace("0", "1")
    checks = 'check("small.center", center)\ncheck("small.center", other)'
    for cell in (RIGHT, wrong, "gone\n" + RIGHT, checks):
        shell.run_cell(cell, store_history=True)

    shown = [one["data"][CHECK_MIME]["status"] for one in shell.display_pub.outputs[-2:]]
    assert shown == ["not_run", "raised"]


def test_in_ipython_the_verdict_is_shown_with_its_record(workspace: Path) -> None:
    from IPython.core.displaypub import CapturingDisplayPublisher
    from IPython.core.interactiveshell import InteractiveShell

    shell = InteractiveShell.instance()
    shell.display_pub = CapturingDisplayPublisher()
    try:
        check("small.double", lambda x: x[:1])
    finally:
        InteractiveShell.clear_instance()

    bundle = shell.display_pub.outputs[0]["data"]
    assert bundle[CHECK_MIME] == {
        "exercise": "small.double",
        "status": "wrong_shape",
        "message": "the answer must have the shape (2,), but has (1,)",
        "case": "case 1 of 1",
        "expected": "tensor([2., 2.])",
        "got": "tensor([1.])",
        "mistake": None,
        "hint": 0,
        "hints": ["Twice one is two."],
        "note": None,
    }
    assert "wrong shape" in bundle["text/html"]

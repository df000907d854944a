from __future__ import annotations

import json
import os
import subprocess
from pathlib import Path
from typing import Any

import pytest

from labkit.cli import main
from labkit.errors import LabkitError
from labkit.lessons.catalog import Lab, listed_labs, load_exercises
from labkit.lessons.learner import find_notebook
from labkit.lessons.progress import (
    Prediction,
    read_progress,
    record_attempt,
    record_prediction,
    record_seen,
)
from labkit.lessons.workspace import update_workspace
from tests.fakes.other_users import OWNER, as_user, find_users_python, open_folder
from tests.fakes.small_labs import LESSON, TOML, write_labs

SOLVED = "return x - x.mean(dim=0)"
STUB = 'raise NotImplementedError("write your code here")'


class Desk:
    """A workspace with the small lab, and a learner at it."""

    def __init__(self, folder: Path) -> None:
        self.labs = write_labs(folder / "labs")
        self.work = folder / "work"
        update_workspace(self.work, listed_labs(self.labs))
        self.notebook = self.work / "01_small.ipynb"

    def solve(self, first: str, second: str = STUB) -> None:
        notebook = json.loads(self.notebook.read_bytes())
        answers = [first, second]
        for cell in notebook["cells"]:
            source = "".join(cell["source"])
            if STUB in source:
                cell["source"] = source.replace(STUB, answers.pop(0))
        self.notebook.write_text(json.dumps(notebook))


@pytest.fixture
def desk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Desk:
    monkeypatch.setenv("LABKIT_LABS", str(tmp_path / "labs"))
    monkeypatch.delenv("LABKIT_WORKSPACE", raising=False)
    desk = Desk(tmp_path)
    monkeypatch.chdir(desk.work)
    return desk


def run_json(capsys: Any, *words: str) -> tuple[int, dict[str, Any]]:
    capsys.readouterr()
    code = main([*words, "--json"])
    return code, json.loads(capsys.readouterr().out)


@pytest.mark.slow
def test_check_judges_the_learners_own_notebook(desk: Desk, capsys: Any) -> None:
    desk.solve(SOLVED, "return x * 3")

    assert main(["check"]) == 1

    captured = capsys.readouterr()
    assert captured.out == (
        "small  01_small.ipynb\n"
        "  passed            center\n"
        "  wrong values      double\n"
        "                      2 of 2 values differ; largest difference at [0]: "
        "expected 2, got 3, off by 1\n"
        "                      in case 1 of 1\n"
        "                      hint: Twice one is two.\n"
        "1 of 2 passed\n"
    )
    assert captured.err == "small: running 7 cells\n"
    assert read_progress(desk.work).standing("small.center").passed is not None


@pytest.mark.slow
def test_check_of_one_exercise_runs_no_further_than_its_check(desk: Desk, capsys: Any) -> None:
    desk.solve(SOLVED)

    code = main(["check", "small.center"])

    captured = capsys.readouterr()
    assert code == 0
    assert captured.out == "small  01_small.ipynb\n  passed            center\n1 of 1 passed\n"
    assert captured.err == "small: running 5 cells\n"


@pytest.mark.slow
def test_check_says_that_a_pass_was_not_recorded(desk: Desk, capsys: Any) -> None:
    desk.solve(SOLVED)
    record = desk.work / "progress.json"
    record.symlink_to(record)

    assert main(["check", "small.center"]) == 0

    assert "note: not recorded: " in capsys.readouterr().out


@pytest.mark.slow
def test_check_leaves_the_notebook_as_it_is(desk: Desk) -> None:
    desk.solve(SOLVED)
    before = desk.notebook.read_bytes()

    main(["check", "small.center"])

    assert desk.notebook.read_bytes() == before


@pytest.mark.slow
def test_check_as_json_is_one_object(desk: Desk, capsys: Any) -> None:
    desk.notebook.rename(desk.work / "mine.ipynb")

    code, value = run_json(capsys, "check", "small")

    assert code == 1
    assert (value["schema_version"], value["passed"], value["total"]) == (1, 0, 2)
    (lab,) = value["labs"]
    assert (lab["lab"], lab["notebook"], lab["error"]) == ("small", "mine.ipynb", None)
    assert [(one["exercise"], one["status"]) for one in lab["exercises"]] == [
        ("small.center", "not_started"),
        ("small.double", "not_started"),
    ]


def test_a_broken_notebook_is_named_with_the_reason(desk: Desk, capsys: Any) -> None:
    desk.notebook.write_text('{"cells": [')

    code, value = run_json(capsys, "check")

    assert code == 1
    assert value["labs"][0]["error"]["what"] == f"{desk.notebook} is not a whole notebook"
    main(["check"])
    said = capsys.readouterr()
    assert f"error: {desk.notebook} is not a whole notebook\n  cause: " in said.err
    # What cannot be read is not passed, and counts.
    assert (value["passed"], value["total"]) == (0, 2)
    assert said.out.endswith("0 of 2 passed\n")


@pytest.mark.root
@pytest.mark.parametrize("command", ["check", "progress"])
def test_a_workspace_that_cannot_be_read_is_not_called_empty(
    tmp_path_factory: pytest.TempPathFactory, command: str
) -> None:
    workspace = open_folder(tmp_path_factory) / "work"
    workspace.mkdir(mode=0)
    words = [find_users_python(), "-m", "labkit", command]
    owner = as_user(OWNER, {"LABKIT_WORKSPACE": str(workspace)})
    done = subprocess.run(words, **owner, check=False, capture_output=True, text=True)  # type: ignore[call-overload]
    assert done.returncode == 1
    assert f"the workspace {workspace} cannot be read" in done.stderr


def test_a_missing_notebook_says_how_it_comes_back(desk: Desk, capsys: Any) -> None:
    desk.notebook.unlink()

    assert main(["check", "small.center"]) == 1

    assert capsys.readouterr().out == (
        "small  no notebook\n"
        "  no check          center\n"
        "                      the workspace has no notebook of this lab: labkit reset small\n"
        "0 of 1 passed\n"
    )


def test_a_check_that_was_taken_out_is_told(desk: Desk, capsys: Any) -> None:
    text = desk.notebook.read_text()
    desk.notebook.write_text(text.replace(r"check(\"small.center\", center)", "pass"))

    assert main(["check", "small.center"]) == 1
    assert 'the notebook has no check("small.center", ...)' in capsys.readouterr().out


@pytest.mark.slow
def test_a_check_whose_cell_fails_is_told_with_the_error(desk: Desk, capsys: Any) -> None:
    text = desk.notebook.read_text()
    desk.notebook.write_text(text.replace(r"\"small.center\", center", r"\"small.center\", centre"))

    assert main(["check", "small.center"]) == 1
    assert "its cell raised NameError: name 'centre' is not defined" in capsys.readouterr().out


@pytest.mark.slow
def test_an_endless_answer_ends_at_the_limit(desk: Desk, capsys: Any) -> None:
    desk.solve("import time\n    time.sleep(600)")

    code = main(["check", "small.center", "--timeout", "20"])

    assert code == 4
    assert "timed out         center\n" in capsys.readouterr().out


@pytest.mark.slow
def test_an_interrupt_is_not_called_a_timeout(desk: Desk, capsys: Any) -> None:
    desk.solve("raise KeyboardInterrupt")

    assert main(["check", "small.center"]) == 1
    said = capsys.readouterr().out
    assert "the check was interrupted" in said and "took longer" not in said


@pytest.mark.slow
def test_a_dead_kernel_names_the_cell(desk: Desk, capsys: Any) -> None:
    desk.solve("import os\n    os._exit(3)")

    assert main(["check", "small.center"]) == 1
    assert "error: the kernel died in cell 5 of 5\n" in capsys.readouterr().err


def test_the_notebook_last_worked_on_counts(desk: Desk) -> None:
    lab = listed_labs(desk.labs)[0]
    assert find_notebook(desk.work, lab) == desk.notebook

    copy = desk.work / "deep" / "copy.ipynb"
    copy.parent.mkdir()
    copy.write_bytes(desk.notebook.read_bytes())
    desk.solve(SOLVED)
    assert find_notebook(desk.work, lab) == desk.notebook

    for hidden in ("01_small.old-2026-11-23.ipynb", ".ipynb_checkpoints/01_small.ipynb"):
        (desk.work / hidden).parent.mkdir(exist_ok=True)
        (desk.work / hidden).write_bytes(desk.notebook.read_bytes() + b" ")
    assert find_notebook(desk.work, lab) == desk.notebook

    run = desk.work / "runs" / "2026-11-23" / "notebooks"
    run.mkdir(parents=True)
    (run.parent / "result.json").write_text("{}")
    (run / "01_small.ipynb").write_bytes(desk.notebook.read_bytes() + b" ")
    assert find_notebook(desk.work, lab) == desk.notebook


def test_a_notebook_without_metadata_is_known_by_its_checks(desk: Desk) -> None:
    notebook = json.loads(desk.notebook.read_bytes())
    notebook["metadata"] = {}
    desk.notebook.unlink()
    (desk.work / "other.ipynb").write_text(json.dumps(notebook))
    (desk.work / "unrelated.ipynb").write_text(json.dumps({**notebook, "cells": []}))

    assert find_notebook(desk.work, listed_labs(desk.labs)[0]) == desk.work / "other.ipynb"


def test_progress_shows_where_one_stands(desk: Desk, capsys: Any) -> None:
    record_seen(desk.work, "small.double")
    record_attempt(desk.work, "small.double", passed=True, by="01_small.ipynb")
    record_attempt(desk.work, "small.center", passed=False)

    assert main(["progress"]) == 0
    assert capsys.readouterr().out == (
        "Small  1/2\n  [ ] center\n"
        "  [x] double  (by 01_small.ipynb, after its solution was shown)\nall    1/2\n"
    )

    _, value = run_json(capsys, "progress")
    assert value["labs"][0]["passed"] == 1
    assert value["labs"][0]["exercises"][0] == {
        "name": "small.center",
        "passed": None,
        "attempts": 1,
        "failures": 1,
        "failed": None,
        "by": None,
        "seen": None,
    }


def test_progress_shows_the_score_of_predictions_by_lab(desk: Desk, capsys: Any) -> None:
    for number, expected in enumerate("445"):
        made = Prediction(expected, "4", expected == "4")
        record_prediction(desk.work, f"small.question_{number}", made)

    assert main(["progress"]) == 0
    assert "2 of 3 predictions as expected" in capsys.readouterr().out
    _, value = run_json(capsys, "progress")
    assert value["labs"][0]["predictions"] == {"predicted": 3, "as_expected": 2}

    assert main(["progress", "--clear", "small"]) == 0
    assert read_progress(desk.work).predictions == {}


def test_progress_is_cleared_by_name(desk: Desk, capsys: Any) -> None:
    for name in ("small.double", "small.center"):
        record_attempt(desk.work, name, passed=True)

    assert main(["progress", "--clear", "small.double"]) == 0
    assert capsys.readouterr().out == "Small  1/2\n  [x] center\n  [ ] double\nall    1/2\n"
    assert main(["progress", "--clear", "small"]) == 0
    assert capsys.readouterr().out.endswith("all    0/2\n")
    assert main(["progress", "--clear", "smal"]) == 2


def test_a_broken_progress_file_is_told(desk: Desk, capsys: Any) -> None:
    (desk.work / "progress.json").write_text("{")

    assert main(["progress"]) == 0
    assert capsys.readouterr().err.startswith("warning: progress.json could not be read")


def test_reset_names_the_backup(desk: Desk, capsys: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    desk.solve(SOLVED)
    mine = desk.notebook.read_bytes()

    assert main(["reset", "small"]) == 0

    first, second = capsys.readouterr().out.splitlines()
    backup = desk.work / second.removeprefix("yours was kept as ")
    assert first == "01_small.ipynb is fresh"
    assert backup.read_bytes() == mine
    assert STUB in json.loads(desk.notebook.read_text())["cells"][3]["source"][-1]


@pytest.mark.slow
def test_check_names_a_backup_and_the_notebook_that_counts(desk: Desk, capsys: Any) -> None:
    desk.solve(SOLVED)
    main(["reset", "small"])

    code, value = run_json(capsys, "check", "small.center")
    assert (code, value["labs"][0]["notebook"]) == (1, "01_small.ipynb")

    assert main(["check", "small.center"]) == 1
    (note,) = [line for line in capsys.readouterr().err.splitlines() if line.startswith("note:")]
    assert ".old-" in note and note.endswith("checked: 01_small.ipynb")


@pytest.mark.slow
def test_check_puts_an_interrupted_save_back_first(desk: Desk, capsys: Any) -> None:
    desk.solve(SOLVED)
    desk.notebook.rename(desk.work / ".~01_small.ipynb")
    desk.notebook.write_bytes(b"")
    os.utime(desk.notebook, (1, 1))

    assert main(["check", "small.center"]) == 0
    assert "note: a save of 01_small.ipynb was interrupted" in capsys.readouterr().err


@pytest.mark.parametrize("words", [["small", "small"], ["--all"]], ids=["names", "all"])
def test_several_labs_are_reset_at_once(desk: Desk, capsys: Any, words: list[str]) -> None:
    code, value = run_json(capsys, "reset", *words)

    assert code == 0
    assert [lab["lab"] for lab in value["labs"]] == ["small"] * len(words)


@pytest.mark.slow
def test_several_names_are_checked(desk: Desk, capsys: Any) -> None:
    desk.solve(SOLVED)
    code, value = run_json(capsys, "check", "small.double", "small.center")

    assert code == 1
    names = [one["exercise"] for lab in value["labs"] for one in lab["exercises"]]
    assert names == ["small.double", "small.center"]


def test_what_an_update_changed_is_laid_out(desk: Desk, capsys: Any) -> None:
    assert main(["reset", "--changed"]) == 0
    assert "nothing has changed" in capsys.readouterr().out
    write_labs(desk.work.parent / "labs", lesson=LESSON.replace("One idea.", "Another idea."))
    assert main(["reset", "--changed"]) == 0
    assert "01_small.ipynb is new" in capsys.readouterr().out
    assert "Another idea." in desk.notebook.read_text()


def test_messages_name_makes_lines_where_make_was_called(
    desk: Desk, capsys: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    desk.notebook.unlink()
    monkeypatch.setenv("LABKIT_MAKE", "1")
    assert main(["check"]) == 1
    assert "make reset LABS=small" in capsys.readouterr().out
    assert main(["reset"]) == 2
    assert "try: make reset LABS=tensors\n" in capsys.readouterr().err


def test_reset_without_a_lab_changes_nothing(desk: Desk) -> None:
    assert main(["reset"]) == 2
    assert [path.name for path in desk.work.glob("*.ipynb")] == ["01_small.ipynb"]


def test_reset_of_an_unknown_lab_gives_the_near_match(desk: Desk, capsys: Any) -> None:
    assert main(["reset", "smal"]) == 2
    assert "  try: did you mean small?\n" in capsys.readouterr().err


@pytest.mark.parametrize("words", [["check"], ["progress"], ["reset", "small"]], ids=lambda w: w[0])
def test_without_a_workspace_the_way_to_one_is_told(
    desk: Desk, capsys: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, words: list[str]
) -> None:
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")

    assert main(words) == 2
    assert capsys.readouterr().err == (
        "error: there is no workspace here\n"
        f"  cause: labkit created neither {tmp_path / 'elsewhere'} nor a folder above it\n"
        "  try: labkit lab, or set LABKIT_WORKSPACE to the folder\n"
    )


def test_from_the_checkout_its_work_folder_is_taken(
    desk: Desk, capsys: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(desk.work.parent)

    assert main(["progress"]) == 0
    assert capsys.readouterr().out.startswith("Small  0/2\n")


def test_the_count_is_told(desk: Desk, capsys: Any) -> None:
    assert main(["check", "--count"]) == 0
    assert capsys.readouterr().out == "small: 2 claims, 2 exercises\nall: 2 claims, 2 exercises\n"

    _, value = run_json(capsys, "check", "--count")
    assert (value["claims"], value["exercises"]) == (2, 2)


def test_the_fast_gate_says_what_holds(desk: Desk, capsys: Any) -> None:
    assert main(["check", "--gate", "--fast"]) == 0
    assert capsys.readouterr().out == "small: holds: 2 claims, 2 exercises\nthe gate holds\n"


def test_the_gate_says_what_does_not_hold(desk: Desk, capsys: Any) -> None:
    (desk.labs / "labs.toml").write_text(TOML.replace("needs = []", 'needs = ["cuba"]'))

    assert main(["check", "--gate", "--fast"]) == 1
    assert capsys.readouterr().out == (
        "small: holds: 2 claims, 2 exercises\n"
        "labs: small: unknown need 'cuba'\n"
        "the gate does not hold\n"
    )
    code, value = run_json(capsys, "check", "--gate", "--fast")
    assert (code, value["holds"]) == (1, False)
    assert value["problems"] == ["small: unknown need 'cuba'"]


@pytest.mark.slow
def test_the_whole_gate_counts_what_held(desk: Desk, capsys: Any) -> None:
    assert main(["check", "small", "--gate"]) == 0
    assert "small: holds: 2 claims (" in capsys.readouterr().out


@pytest.mark.parametrize("seconds", ["0", "-1", "nan", "inf"])
def test_what_is_no_time_limit_is_refused(desk: Desk, capsys: Any, seconds: str) -> None:
    assert main(["check", "--timeout", seconds]) == 2
    assert "invalid --timeout" in capsys.readouterr().err


def test_a_mistake_in_a_labs_exercises_names_the_file(tmp_path: Path) -> None:
    (tmp_path / "exercises.py").write_text("EXERCISES = (unknown,)\n")
    lab = Lab("odd", "Odd", "", 5, (), "01_odd.ipynb", tmp_path)

    with pytest.raises(LabkitError) as caught:
        load_exercises(lab)

    assert caught.value.what == f"{tmp_path / 'exercises.py'} cannot be loaded"
    assert caught.value.cause == "NameError: name 'unknown' is not defined"


def test_fast_without_gate_is_a_mistake(desk: Desk, capsys: Any) -> None:
    assert main(["check", "--fast"]) == 2
    assert "  try: labkit check --gate --fast\n" in capsys.readouterr().err

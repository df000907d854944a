from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from labkit import check
from labkit.errors import UsageError
from labkit.lessons import checks
from labkit.lessons.checks import CheckFailed
from labkit.lessons.progress import read_progress
from labkit.notebooks.result import CHECK_MIME
from tests.fakes.small_labs import write_labs


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
    checks._attempts.clear()
    return folder


def test_a_right_answer_passes_and_is_recorded(workspace: Path, capsys: Any) -> None:
    check("small.center", center)

    assert capsys.readouterr().out == "passed: `small.center` right in all 2 cases\n"
    assert read_progress(workspace).standing("small.center").passed is not None


def test_the_stub_gets_no_hint_and_is_no_attempt(workspace: Path, capsys: Any) -> None:
    check("small.center", stub)

    assert capsys.readouterr().out == (
        "not started: `small.center` the function is still the stub\n"
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
        "wrong values: `small.double` 2 of 2 values differ; furthest apart at [0]: "
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
    assert out.startswith("passed: `small.center` right in all 2 cases\n  note: not recorded: the ")


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
        "message": "the answer must have the shape (2,), and has (1,)",
        "case": "case 1 of 1",
        "expected": "tensor([2., 2.])",
        "got": "tensor([1.])",
        "mistake": None,
        "hint": 0,
        "hints": ["Twice one is two."],
        "note": None,
    }
    assert "wrong shape" in bundle["text/html"]

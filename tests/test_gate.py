from __future__ import annotations

import re
from pathlib import Path

import pytest

from labkit.lessons.catalog import Lab, exercise_titles, find_labs, listed_labs
from labkit.lessons.gate import (
    Counts,
    LabGate,
    count_lab,
    inspect_folder,
    inspect_lab,
    run_reference,
)
from labkit.lessons.learner import count_claims, find_predictions
from labkit.lessons.needs import missing_need
from labkit.lessons.notebooks import make_reference_notebook, read_lesson
from tests.fakes.small_labs import EXERCISES, LESSON, TOML, write_labs

ROOT = Path(__file__).parents[1]
LABS = find_labs(ROOT / "labs")
# A lab's learner finds at least this much to do.
LEAST_EXERCISES = 4


@pytest.fixture
def labs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("LABKIT_LABS", str(tmp_path / "labs"))
    return write_labs(tmp_path / "labs")


def small(labs: Path) -> Lab:
    return listed_labs(labs)[0]


def test_a_sound_lab_goes_through(labs: Path) -> None:
    found = inspect_lab(small(labs))

    assert found.problems == ()
    assert (found.claims, found.exercises, found.held) == (2, 2, None)
    assert inspect_folder() == ()


@pytest.mark.parametrize("lab", LABS, ids=lambda lab: lab.name)
def test_an_exercise_is_called_what_its_heading_says(lab: Lab) -> None:
    # The start page and a verdict's "next" name it by its title: a learner looks for that heading.
    headings = re.findall(r"^# ## Exercise: (.+)$", read_lesson(lab), re.MULTILINE)
    assert [title.lower() for title in exercise_titles(lab).values()] == [
        heading.lower() for heading in headings
    ]


@pytest.mark.parametrize(
    ("lesson", "exercises", "problem"),
    [
        pytest.param(
            LESSON.replace(
                "### BEGIN SOLUTION\n    return x * scale\n    ### END SOLUTION", "pass"
            ),
            EXERCISES,
            "small.double: the stub must get not_started, but gets wrong_type",
            id="a stub that is none",
        ),
        pytest.param(
            LESSON.replace(
                "    ### BEGIN SOLUTION\n    return x * scale\n    ### END SOLUTION\n",
                "    return x * scale\n",
            ),
            EXERCISES,
            "small.double: the stub must get not_started, but gets passed",
            id="delivered solved",
        ),
        pytest.param(
            LESSON.replace("return x - means", "return means"),
            EXERCISES,
            "small.center: the reference must get passed, but gets wrong_shape",
            id="a wrong reference",
        ),
        pytest.param(
            LESSON,
            EXERCISES.replace('"wrong_shape"', '"wrong_dtype"'),
            "small.center: the wrong answer 'gives the means' must get wrong_dtype, "
            "but gets wrong_shape",
            id="a wrong diagnosis",
        ),
        pytest.param(
            LESSON,
            EXERCISES.replace("x.mul_(2)", "x * 2"),
            "small.double: the wrong answer 'in place' must get changed_argument, but gets passed",
            id="a wrong answer that passes",
        ),
        pytest.param(
            LESSON,
            EXERCISES.replace('"What is x + x?"', '" "'),
            "small.double has an empty hint",
            id="an empty hint",
        ),
        pytest.param(
            LESSON,
            EXERCISES.replace(', "What is x + x?"', ","),
            "small.double has 1 hints, but must have 2",
            id="one hint",
        ),
        pytest.param(
            LESSON.replace('check("small.double", double)', "pass"),
            EXERCISES,
            "small.double is never checked in the lesson",
            id="never checked",
        ),
        pytest.param(
            LESSON.replace('"small.double"', '"small.twice"'),
            EXERCISES,
            "the lesson checks small.twice, which exercises.py does not have",
            id="checks what is not there",
        ),
        pytest.param(
            LESSON.replace("# One idea.", "# One idea: `means = x.mean(dim=0, keepdim=True)`")
            .replace("    return x - means\n", "")
            .replace("    means = x", "    return x"),
            EXERCISES,
            "small.center: the reference must get passed",
            id="another reference",
        ),
        pytest.param(
            LESSON.replace(
                "# One idea.",
                "# One idea:\n#     means = x.mean(dim=0, keepdim=True)\n#     return x - means",
            ),
            EXERCISES,
            "is in the learner's notebook too",
            id="the solution given away",
        ),
        pytest.param(
            LESSON.replace("    return x * scale\n", ""),
            EXERCISES,
            "is empty",
            id="an empty solution",
        ),
        pytest.param(
            LESSON.replace("    ### END SOLUTION", "", 1),
            EXERCISES,
            "a solution's mark is out of place (it is not closed in its cell)",
            id="an unclosed solution",
        ),
        pytest.param(
            LESSON.replace("scale = 2.0", "scale = gone"),
            EXERCISES,
            "the answer to small.double cannot be evaluated: NameError: name 'gone' is not defined",
            id="an answer that cannot be made",
        ),
        pytest.param(
            LESSON,
            EXERCISES.replace('name="double"', 'name="dou" + "ble"'),
            'each exercise must have a literal name, as Exercise(name="...")',
            id="a name put together",
        ),
        pytest.param(
            LESSON,
            EXERCISES[: EXERCISES.index('wrong_answers=(WrongAnswer("in')] + "),\n)",
            "small.double has no wrong answers",
            id="no wrong answers",
        ),
        pytest.param(
            LESSON,
            EXERCISES.replace(
                'WrongAnswer("in place",',
                'WrongAnswer("adds", lambda x: x.add_(x), "changed_argument", 1),'
                ' WrongAnswer("in place",',
            ),
            "the wrong answer 'in place' gets the hint of an answer that adds",
            id="a hint for another mistake",
        ),
        pytest.param(
            LESSON + "\n# %%\ndef (\n", EXERCISES, "invalid syntax", id="a cell that is no Python"
        ),
    ],
)
def test_each_fault_of_a_lab_is_named(
    labs: Path, lesson: str, exercises: str, problem: str
) -> None:
    write_labs(labs, lesson=lesson, exercises=exercises)

    problems = "\n".join(inspect_lab(small(labs)).problems)

    assert problem in problems


def test_the_folder_and_labs_toml_must_agree(labs: Path) -> None:
    other = TOML.replace('"small"', '"later"').replace("needs = []", 'needs = ["cuba"]')
    (labs / "labs.toml").write_text(TOML + other)
    (labs / "forgotten").mkdir()
    (labs / "notes.txt").touch()
    (labs / "small" / "lesson.ipynb").touch()
    (labs / "small" / "__pycache__").mkdir()

    assert inspect_folder() == (
        "labs.toml lists later, but later/lesson.py does not exist",
        "later: unknown need 'cuba'",
        "labs.toml gives two labs the same notebook",
        "stray: forgotten is not a lab in labs.toml",
        "stray: notes.txt is not a lab in labs.toml",
        "stray: small/lesson.ipynb",
    )


def test_a_notebooks_name_must_be_plain(labs: Path) -> None:
    (labs / "labs.toml").write_text(TOML.replace("01_small.ipynb", "../01_small.ipynb"))

    assert inspect_folder() == ("small: '../01_small.ipynb' is not a plain notebook file name",)


@pytest.mark.slow
def test_the_gate_runs_every_claim_of_the_reference(labs: Path) -> None:
    started: list[int] = []
    found = run_reference(
        small(labs),
        inspect_lab(small(labs)),
        timeout_seconds=120,
        on_cell=lambda cell, total: started.append(cell),
    )

    assert found.problems == ()
    skipped = 1 if missing_need("cuda") else 0
    assert (found.held, found.skipped) == (2 - skipped, skipped)
    assert started == [1, 2, 3, 4, 5, 6, 7]


@pytest.mark.slow
def test_the_gate_names_the_claim_and_the_cell_that_fail(labs: Path) -> None:
    lesson = LESSON.replace("sum(), 3)", "sum(), 4)").replace(
        "return x * scale", "return x + scale"
    )
    write_labs(labs, lesson=lesson)
    lab = small(labs)

    problems = run_reference(lab, inspect_lab(lab), timeout_seconds=120).problems

    assert "the claim does not hold: ones sum to their number" in problems
    assert "small.double did not pass in the reference run" in problems
    assert any(
        problem.startswith("cell 3 raised ClaimFailed: ones sum to their number")
        for problem in problems
    )


def test_a_lab_whose_need_is_missing_does_not_go_through_unseen(labs: Path) -> None:
    if not missing_need("cuda"):
        pytest.skip("needs a machine without CUDA")
    (labs / "labs.toml").write_text(TOML.replace("needs = []", 'needs = ["cuda"]'))

    found = run_reference(small(labs), inspect_lab(small(labs)), timeout_seconds=60)

    assert found.problems == ("it cannot run here: needs cuda",)


def test_counts_are_those_of_the_lesson(labs: Path) -> None:
    assert count_lab(small(labs)) == Counts("small", 2, 2)


def test_a_question_is_named_after_its_lab_and_no_name_comes_twice(labs: Path) -> None:
    questions = """
# %%
predict("small.sum", "1 + 1?", [2, 3], seen=2)
predict("small.sum", "1 + 2?", [2, 3], seen=3)
predict("other.sum", "1 + 1?", [2, 3], seen=2)
"""
    write_labs(labs, lesson=LESSON.replace("claim\n", "claim, predict\n", 1) + questions)

    assert inspect_lab(small(labs)).problems == (
        "two questions are named small.sum",
        'the question other.sum must be named "small.NAME"',
    )


@pytest.mark.parametrize("lab", LABS, ids=lambda lab: lab.name)
def test_a_lab_asks_before_two_thirds_of_its_claims(lab: Lab) -> None:
    lesson = make_reference_notebook(lab)
    sources = [cell.source for cell in lesson.cells if cell.cell_type == "code"]
    asked = [source for source in sources if find_predictions([source])]

    assert 8 <= len(asked) <= 15
    assert count_claims(asked) >= 2 / 3 * count_claims(sources)


def test_the_labs_folder_holds() -> None:
    assert inspect_folder(ROOT / "labs") == ()


@pytest.mark.slow
@pytest.mark.parametrize("lab", LABS, ids=lambda lab: lab.name)
def test_each_lab_holds(lab: Lab) -> None:
    found = inspect_lab(lab)

    assert found.problems == ()
    assert found.exercises >= LEAST_EXERCISES


@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.parametrize("lab", LABS, ids=lambda lab: lab.name)
def test_every_claim_of_each_lab_holds_when_run(lab: Lab) -> None:
    uninspected = LabGate(lab.name, 0, 0, ())  # the test above inspects, which takes as long
    found = run_reference(lab, uninspected, timeout_seconds=600)

    assert found.problems == ()
    assert found.held

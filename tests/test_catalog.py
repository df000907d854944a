from __future__ import annotations

import ast
import math
import re
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from labkit.errors import LabkitError, UsageError
from labkit.lessons.catalog import (
    Lab,
    exercise_names,
    find_exercise,
    find_lab,
    find_labs,
    labs_folder,
    listed_labs,
    load_exercises,
)
from labkit.lessons.learner import find_predictions
from labkit.lessons.notebooks import make_learner_notebook
from tests.fakes.small_labs import EXERCISES, TOML, write_labs

ROOT = Path(__file__).parents[1]


@pytest.fixture
def labs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("LABKIT_LABS", str(tmp_path / "labs"))
    return write_labs(tmp_path / "labs")


def test_a_checkout_uses_its_own_labs(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("LABKIT_LABS", raising=False)

    assert labs_folder() == ROOT / "labs"


def test_the_labs_come_in_their_order() -> None:
    labs = listed_labs(ROOT / "labs")

    assert [lab.notebook for lab in labs] == [
        "01_tensors.ipynb",
        "02_autograd.ipynb",
        "03_devices.ipynb",
        "04_compile.ipynb",
        "05_functional.ipynb",
        "06_training.ipynb",
        "07_distributed.ipynb",
    ]


def test_a_lab_is_as_labs_toml_states_it(labs: Path) -> None:
    (lab,) = find_labs()

    assert (lab.name, lab.title, lab.summary, lab.minutes) == ("small", "Small", "One idea", 5)
    assert (lab.needs, lab.notebook, lab.folder) == ((), "01_small.ipynb", labs / "small")


def test_a_lab_whose_folder_is_not_there_yet_leaves_the_others(labs: Path) -> None:
    (labs / "labs.toml").write_text(TOML + TOML.replace('"small"', '"later"'))

    assert [lab.name for lab in find_labs()] == ["small"]
    assert [lab.name for lab in listed_labs()] == ["small", "later"]
    assert load_exercises(find_lab("later")) == ()
    assert exercise_names(find_lab("later")) == ()


def test_an_unknown_lab_is_an_error_with_the_near_match(labs: Path) -> None:
    with pytest.raises(UsageError) as caught:
        find_lab("smal")

    assert caught.value.what == "there is no lab named 'smal'"
    assert caught.value.fix == "did you mean small?"


def test_an_unknown_exercise_is_an_error_with_the_near_match(labs: Path) -> None:
    with pytest.raises(UsageError) as caught:
        find_exercise("small.centre")

    assert caught.value.what == "there is no exercise named 'small.centre'"
    assert caught.value.cause == "the exercises of small are center, double"
    assert caught.value.fix == "did you mean small.center?"


def test_exercises_are_read_anew_and_leave_nothing_behind(labs: Path) -> None:
    assert find_exercise("small.center")[1].title == "Center the columns"
    modules = set(sys.modules)

    (labs / "small" / "exercises.py").write_text(EXERCISES.replace("Center the", "Mid the"))

    assert find_exercise("small.center")[1].title == "Mid the columns"
    assert sorted(path.name for path in (labs / "small").iterdir()) == ["exercises.py", "lesson.py"]
    # A module left there would be asked by pickle for torch's names, and fail the compiler's cache.
    assert not [name for name in set(sys.modules) | modules if name.startswith("labkit_labs")]


def test_names_are_known_without_loading_torch(labs: Path) -> None:
    (labs / "small" / "exercises.py").write_text("raise RuntimeError\n" + EXERCISES)

    assert exercise_names(find_lab("small")) == ("center", "double")


@pytest.mark.parametrize(
    ("toml", "cause"),
    [
        pytest.param(TOML.replace("minutes = 5", ""), "missing or invalid key: 'minutes'", id="a"),
        pytest.param("[[lab", "Expected", id="not toml"),
        pytest.param(None, "labs.toml cannot be read", id="no file"),
    ],
)
def test_what_is_wrong_with_labs_toml_is_said(labs: Path, toml: str | None, cause: str) -> None:
    if toml is None:
        (labs / "labs.toml").unlink()
    else:
        (labs / "labs.toml").write_text(toml)

    with pytest.raises(LabkitError) as caught:
        find_labs()
    assert cause in (caught.value.cause or "")


LABS = find_labs()


@pytest.mark.parametrize("lab", LABS, ids=[lab.name for lab in LABS])
def test_a_lab_folds_its_imports_and_ends_with_takeaways_and_what_is_next(lab: Lab):
    cells = make_learner_notebook(lab).cells
    code = [cell for cell in cells if cell.cell_type == "code"]
    assert code[0].source.startswith("# Imports: run this cell first.\n")
    assert code[0].metadata.jupyter.source_hidden
    assert not [
        cell.source for cell in code[1:] if re.search(r"^(import|from) ", cell.source, re.M)
    ]
    assert cells[-1].source.startswith("## Key takeaways")
    later = LABS[LABS.index(lab) + 1 :]
    links = re.findall(r"\]\((\w+\.ipynb)\)", cells[-1].source)
    assert links == [one.notebook for one in later[:1]]
    assert later or "Where to go from here" in cells[-1].source


@pytest.mark.parametrize("lab", LABS, ids=[lab.name for lab in LABS])
def test_a_question_is_folded_so_that_its_cell_does_not_tell_the_answer(lab: Lab):
    cells = [cell for cell in make_learner_notebook(lab).cells if "predict(" in cell.source]
    assert len(cells) >= 8
    for cell in cells:
        if not cell.source.startswith("# Imports"):
            assert cell.metadata.get("jupyter", {}).get("source_hidden"), cell.source[:80]
            assert cell.source.startswith("# A question")


# Minutes that the cells of a lab run for on two cores, where they are a minute or more.
RUN_MINUTES = {"compile": 2, "training": 2, "distributed": 1}


def cells_to_read(lab: Lab) -> Iterator[Any]:
    """The cells of the learner's notebook that are in no section marked as optional."""
    optional = 0
    for cell in make_learner_notebook(lab).cells:
        prose = cell.cell_type == "markdown"
        heading = re.match(r"(#+) (Optional)?", cell.source) if prose else None
        if heading and (not optional or len(heading[1]) <= optional):
            optional = len(heading[1]) if heading[2] else 0
        if not optional:
            yield cell


def count_minutes(lab: Lab) -> float:
    """The minutes that a newcomer needs: for prose, visible code, questions, exercises, the runs.

    200 words a minute, a second for each line of code that is not folded, 40 seconds for each
    question, three and a half minutes for each exercise.
    """
    cells = list(cells_to_read(lab))
    words = sum(len(cell.source.split()) for cell in cells if cell.cell_type == "markdown")
    code = [cell for cell in cells if cell.cell_type == "code"]
    visible = [cell for cell in code if not cell.metadata.get("jupyter", {}).get("source_hidden")]
    lines = sum(bool(line.strip()) for cell in visible for line in cell.source.splitlines())
    questions = len(find_predictions([cell.source for cell in code]))
    exercises = sum(cell.source.startswith("check(") for cell in code)
    seconds = lines + 40 * questions + 210 * exercises
    return words / 200 + seconds / 60 + RUN_MINUTES.get(lab.name, 0)


@pytest.mark.parametrize("lab", LABS, ids=[lab.name for lab in LABS])
def test_a_lab_takes_a_newcomer_the_minutes_that_it_says(lab: Lab):
    assert lab.minutes == 5 * math.ceil(count_minutes(lab) / 5)
    assert 25 <= lab.minutes <= 40


SHOWN_CALLS = ("predict", "claim", "claim_raises")
# Buttons and cards show text, and code in backticks: no other Markdown.
MARKUP = re.compile(r"(?<![\w*])[*_]{1,2}[^\W\d_][^*_]*[*_](?!\w)|\]\(|\$")


@pytest.mark.parametrize("lab", find_labs(ROOT / "labs"), ids=lambda lab: lab.name)
def test_questions_claims_and_hints_have_no_markup_but_code(lab: Lab) -> None:
    tree = ast.parse((lab.folder / "lesson.py").read_text(encoding="utf-8"))
    texts = [
        part.value
        for call in ast.walk(tree)
        if isinstance(call, ast.Call) and getattr(call.func, "id", "") in SHOWN_CALLS
        for one in (*call.args, *(given.value for given in call.keywords))
        for part in ast.walk(one)
        if isinstance(part, ast.Constant) and isinstance(part.value, str)
    ]
    for exercise in load_exercises(lab):
        own = [one.hint for one in exercise.wrong_answers if isinstance(one.hint, str)]
        texts += [*exercise.hints, *own]

    marked = [text for text in texts if MARKUP.search(re.sub(r"`[^`]*`", "", text))]

    assert len(texts) > 20 and marked == []


@pytest.mark.parametrize("lab", find_labs(ROOT / "labs"), ids=lambda lab: lab.name)
def test_a_fact_that_stands_alone_does_not_go_on_from_a_folded_one(lab: Lab) -> None:
    tree = ast.parse((lab.folder / "lesson.py").read_text(encoding="utf-8"))
    alone = [
        call.args[0].value
        for call in ast.walk(tree)
        if isinstance(call, ast.Call) and getattr(call.func, "id", "") in ("claim", "claim_raises")
        if any(given.arg == "shown" for given in call.keywords)
        if isinstance(call.args[0], ast.Constant)
    ]

    assert [one for one in alone if re.match(r"(and|but|so|because|nor|it|they)\b", one)] == []

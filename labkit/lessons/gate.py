"""The gate: the checks that every lab must pass before it is published.

``inspect_lab`` reads and judges in this process; ``run_reference`` runs the reference notebook.
"""

from __future__ import annotations

import tempfile
import warnings
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stdout
from dataclasses import dataclass, replace
from io import StringIO
from pathlib import Path
from typing import Any

from labkit.errors import LabkitError
from labkit.lessons.catalog import (
    Lab,
    exercise_names,
    find_labs,
    labs_folder,
    listed_labs,
    load_exercises,
)
from labkit.lessons.exercises import NOT_STARTED, PASSED, Exercise
from labkit.lessons.learner import (
    CheckCall,
    count_claims,
    find_answer,
    find_check_calls,
    find_predictions,
)
from labkit.lessons.needs import NEEDS, missing_need
from labkit.lessons.notebooks import (
    BEGIN,
    END,
    find_solutions,
    make_learner_notebook,
    make_reference_notebook,
    notebook_bytes,
    notebook_to_lesson,
    read_lesson,
    read_percent,
)
from labkit.notebooks.kernel import OnCell, cell_error, kernel_environment, run_cells
from labkit.notebooks.result import read_checks, read_claims

HINTS_AN_EXERCISE = 2
FILES_OF_A_LAB = {"lesson.py", "exercises.py"}
# Shorter solutions, such as `return x.T`, are ordinary code that a lesson may show.
SHORTEST_GIVEAWAY = 24


@dataclass(frozen=True)
class LabGate:
    """The gate's result for one lab: its counts, and every problem.

    ``held`` and ``skipped`` count the claims of a whole run; None if the lab was not run.
    """

    lab: str
    claims: int
    exercises: int
    problems: tuple[str, ...] = ()
    held: int | None = None
    skipped: int | None = None


@dataclass(frozen=True)
class Counts:
    """The number of claims in a lab's lesson, and the number of its exercises."""

    lab: str
    claims: int
    exercises: int


def count_lab(lab: Lab) -> Counts:
    """Counts the claims in the lab's lesson, and its exercises."""
    sources = _code_sources(make_reference_notebook(lab))
    return Counts(lab.name, count_claims(sources), len(load_exercises(lab)))


def inspect_folder(folder: Path | None = None) -> tuple[str, ...]:
    """The problems of the labs' folder: files that do not belong there, errors in labs.toml."""
    folder = folder or labs_folder()
    return tuple(_folder_problems(folder))


def inspect_lab(lab: Lab) -> LabGate:
    """Checks notebooks, stubs, references, wrong answers and hints without running a notebook."""
    try:
        counts = count_lab(lab)
        problems = [*_notebook_problems(lab), *_prediction_problems(lab), *_exercise_problems(lab)]
    except LabkitError as error:
        cause = f" ({error.cause})" if error.cause else ""
        return LabGate(lab.name, 0, 0, (error.what + cause,))
    except SyntaxError as error:
        return LabGate(lab.name, 0, 0, (str(error),))
    return LabGate(lab.name, counts.claims, counts.exercises, tuple(problems))


def run_reference(
    lab: Lab, found: LabGate, *, timeout_seconds: float, on_cell: OnCell | None = None
) -> LabGate:
    """Runs the whole reference notebook; returns ``found`` plus the run's problems and claims."""
    missing = [reason for reason in map(missing_need, lab.needs) if reason]
    if missing:
        return replace(found, problems=(*found.problems, f"it cannot run here: {missing[0]}"))
    with tempfile.TemporaryDirectory(prefix="labkit-gate-") as folder:
        try:
            notebook = run_cells(
                make_reference_notebook(lab),
                Path(folder),
                kernel_environment(reference=True, workspace=None),
                timeout_seconds=timeout_seconds,
                on_cell=on_cell,
            )
        except LabkitError as error:
            return replace(found, problems=(*found.problems, error.what))
    claims = read_claims(notebook)
    return replace(
        found,
        problems=(*found.problems, *_run_problems(lab, notebook)),
        held=sum(record["held"] is True for record in claims),
        skipped=sum(record["held"] is None for record in claims),
    )


def _folder_problems(folder: Path) -> Iterator[str]:
    listed = {lab.name: lab for lab in listed_labs(folder)}
    with_lesson = {lab.name for lab in find_labs(folder)}
    for name, lab in listed.items():
        if name not in with_lesson:
            yield f"labs.toml lists {name}, but {name}/lesson.py does not exist"
        if Path(lab.notebook).name != lab.notebook or not lab.notebook.endswith(".ipynb"):
            yield f"{name}: {lab.notebook!r} is not a plain notebook file name"
        unknown = [need for need in lab.needs if need not in NEEDS]
        if unknown:
            yield f"{name}: unknown need {unknown[0]!r}"
    names = [lab.notebook for lab in listed.values()]
    if len(set(names)) < len(names):
        yield "labs.toml gives two labs the same notebook"
    for path in sorted(folder.iterdir()):
        if path.name in listed and path.is_dir():
            yield from _stray_files(path)
        elif path.name not in ("labs.toml", "__pycache__"):
            yield f"stray: {path.name} is not a lab in labs.toml"


def _stray_files(folder: Path) -> Iterator[str]:
    for path in sorted(folder.iterdir()):
        if path.name not in FILES_OF_A_LAB and path.name != "__pycache__":
            yield f"stray: {folder.name}/{path.name}"


def _notebook_problems(lab: Lab) -> Iterator[str]:
    learner = make_learner_notebook(lab)
    for notebook in (learner, make_reference_notebook(lab)):
        notebook_bytes(notebook)
        again = read_percent(notebook_to_lesson(notebook))
        if _outline(again) != _outline(notebook):
            yield "the notebook changes when it is converted to a lesson and back"
    for mark in (BEGIN, END):
        if any(mark in cell.source for cell in learner.cells):
            yield f"{mark!r} remains in the learner's notebook"
    shown = "\n".join(_plain(cell.source) for cell in learner.cells)
    for solution in find_solutions(read_lesson(lab), lab.lesson):
        text = _plain("\n".join(solution.lines))
        if not text:
            yield f"the solution of line {solution.line} is empty"
        elif len(text) >= SHORTEST_GIVEAWAY and text in shown:
            yield f"the solution of line {solution.line} is in the learner's notebook too"


def _prediction_problems(lab: Lab) -> Iterator[str]:
    names = find_predictions(_code_sources(make_reference_notebook(lab)))
    for name in dict.fromkeys(names):
        if name.partition(".")[0] != lab.name:
            yield f'the question {name} must be named "{lab.name}.NAME"'
        if names.count(name) > 1:
            yield f"two questions are named {name}"


def _exercise_problems(lab: Lab) -> Iterator[str]:
    exercises = {f"{lab.name}.{one.name}": one for one in load_exercises(lab)}
    stubs = _answers(make_learner_notebook(lab))
    references = _answers(make_reference_notebook(lab))
    if sorted(exercises) != sorted(f"{lab.name}.{name}" for name in exercise_names(lab)):
        yield 'each exercise must have a literal name, as Exercise(name="...")'
    for name in references:
        if name not in exercises:
            yield f"the lesson checks {name}, which exercises.py does not have"
    for name, exercise in exercises.items():
        yield from _hint_problems(name, exercise)
        if name not in references:
            yield f"{name} is never checked in the lesson"
            continue
        yield from _verdict_problem(name, exercise, "the stub", stubs[name], NOT_STARTED)
        yield from _verdict_problem(name, exercise, "the reference", references[name], PASSED)
        if not exercise.wrong_answers:
            yield f"{name} has no wrong answers"
        for wrong in exercise.wrong_answers:
            answer = f"the wrong answer {wrong.description!r}"
            yield from _judged_problem(
                name, exercise, answer, wrong.function, wrong.verdict, hint=wrong.hint
            )


def _answers(notebook: Any) -> dict[str, tuple[list[Any], CheckCall]]:
    statements, calls = find_check_calls(_code_sources(notebook))
    return {call.exercise: (statements, call) for call in calls}


def _hint_problems(name: str, exercise: Exercise) -> Iterator[str]:
    if len(exercise.hints) != HINTS_AN_EXERCISE:
        yield f"{name} has {len(exercise.hints)} hints, but must have {HINTS_AN_EXERCISE}"
    own = [one.hint for one in exercise.wrong_answers if isinstance(one.hint, str)]
    if any(not hint.strip() for hint in (*exercise.hints, *own)):
        yield f"{name} has an empty hint"
    if not exercise.title.strip():
        yield f"{name} has no title"


def _verdict_problem(
    name: str,
    exercise: Exercise,
    answer: str,
    source: tuple[list[Any], CheckCall],
    wanted: str,
) -> Iterator[str]:
    try:
        with _quiet():
            function = find_answer(*source)
    except LabkitError as error:
        yield f"{error.what}: {error.cause}"
        return
    yield from _judged_problem(name, exercise, answer, function, wanted)


def _judged_problem(
    name: str,
    exercise: Exercise,
    answer: str,
    function: object,
    wanted: str,
    *,
    hint: int | str | None = None,
) -> Iterator[str]:
    from labkit.lessons.checks import judge_function

    with _quiet():
        verdict = judge_function(exercise, name, function)
    if verdict.status != wanted:
        found = f"{verdict.status} ({verdict.message})"
        yield f"{name}: {answer} must get {wanted}, but gets {found}"
    elif hint is not None and verdict.mistake is not None and verdict.hint != hint:
        yield f"{name}: {answer} gets the hint of an answer that {verdict.mistake}"


@contextmanager
def _quiet() -> Iterator[None]:
    """Suppresses the output and warnings of lessons."""
    with redirect_stdout(StringIO()), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


def _run_problems(lab: Lab, notebook: Any) -> Iterator[str]:
    for number, cell in enumerate(notebook.cells, start=1):
        error = cell_error(cell)
        if error:
            yield f"cell {number} raised {error}"
    for record in read_claims(notebook):
        if record["held"] is False:
            yield f"the claim does not hold: {record['statement']}"
    passed = {record["exercise"] for record in read_checks(notebook) if record["status"] == PASSED}
    for exercise in load_exercises(lab):
        if f"{lab.name}.{exercise.name}" not in passed:
            yield f"{lab.name}.{exercise.name} did not pass in the reference run"


def _code_sources(notebook: Any) -> list[str]:
    return [cell.source for cell in notebook.cells if cell.cell_type == "code"]


def _outline(notebook: Any) -> list[tuple[str, str]]:
    return [(cell.cell_type, cell.source) for cell in notebook.cells]


def _plain(text: str) -> str:
    return "\n".join(line.strip() for line in text.splitlines() if line.strip())

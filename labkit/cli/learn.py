"""labkit check, progress and reset: the learner's own answers, and the maintainer's gate."""

from __future__ import annotations

import math
import os
import shlex
import sys
from argparse import ArgumentParser, Namespace, _SubParsersAction
from collections.abc import Iterable, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from labkit.cli import add_common, advise, print_error, print_json
from labkit.errors import ExitCode, LabkitError, UsageError, describe_error
from labkit.files import name_outside
from labkit.text import escape_controls, plural

if TYPE_CHECKING:
    from labkit.lessons.catalog import Lab
    from labkit.lessons.gate import LabGate
    from labkit.lessons.learner import LabAnswers

CELL_TIMEOUT_SECONDS = 600.0
_STATUS_WIDTH = 18


def add_commands(commands: _SubParsersAction[Any]) -> None:
    """Adds check, progress and reset to the command line."""
    check = "Runs your own notebooks, which do not change, and judges each exercise in them."
    _add_check(
        commands.add_parser("check", help="run the checks on your own notebooks", description=check)
    )
    progress = commands.add_parser(
        "progress", help="show the exercises passed, and the score of your predictions"
    )
    progress.add_argument(
        "--clear",
        nargs="+",
        metavar="NAME",
        help="forget what is recorded of labs (tensors) or exercises (tensors.NAME)",
    )
    add_common(progress)
    progress.set_defaults(run=show_progress)
    reset = commands.add_parser("reset", help="make a fresh notebook; yours is kept")
    reset.add_argument("names", nargs="*", metavar="LAB", help="a lab, for example tensors")
    reset.add_argument("--all", action="store_true", help="every lab")
    reset.add_argument(
        "--changed",
        action="store_true",
        help="what an update changed: replaces untouched notebooks, and lays new ones beside yours",
    )
    add_common(reset)
    reset.set_defaults(run=reset_notebooks)


def _add_check(parser: ArgumentParser) -> None:
    parser.add_argument(
        "names", nargs="*", metavar="NAME", help="labs (tensors) or exercises (tensors.NAME)"
    )
    kind = parser.add_mutually_exclusive_group()
    kind.add_argument("--gate", action="store_true", help="for maintainers: check the labs")
    kind.add_argument("--count", action="store_true", help="count the claims and exercises")
    parser.add_argument("--fast", action="store_true", help="with --gate: do not run the notebooks")
    parser.add_argument(
        "--timeout",
        type=float,
        default=CELL_TIMEOUT_SECONDS,
        metavar="SECONDS",
        help="longest time for one cell (default %(default).0f)",
    )
    add_common(parser)
    parser.set_defaults(run=check_answers)


def check_answers(arguments: Namespace) -> int:
    """labkit check: judges the learner's notebooks; with --gate or --count, the labs themselves."""
    if not (math.isfinite(arguments.timeout) and arguments.timeout > 0):
        raise UsageError(
            f"invalid --timeout {arguments.timeout:g}", cause="it must be above 0 seconds"
        )
    if arguments.gate:
        return _run_gate(arguments)
    if arguments.count:
        return _print_counts(arguments)
    if arguments.fast:
        raise UsageError("--fast needs --gate", fix="labkit check --gate --fast")
    workspace = _need_workspace()
    chosen = _chosen(arguments.names)
    _restore_saves(workspace)
    results = [_answer_lab(workspace, lab, exercise, arguments) for lab, exercise in chosen]
    answers = [answer for found, _, _ in results if found for answer in found.answers]
    passed = sum(answer.status == "passed" for answer in answers)
    unread = [
        _count_exercises(lab, exercise)
        for (lab, exercise), (_, _, error) in zip(chosen, results, strict=True)
        if error
    ]
    total = len(answers) + sum(unread)
    if arguments.json:
        _print_answers_json(workspace, results, passed, total)
    else:
        print(f"{passed} of {total} passed")
    if any(answer.status == "timed_out" for answer in answers):
        return ExitCode.TIMEOUT
    return ExitCode.FAILED if passed < total or unread else ExitCode.OK


def _count_exercises(lab: Lab, exercise: str | None) -> int:
    from labkit.lessons.catalog import exercise_names

    try:
        return 1 if exercise else len(exercise_names(lab))
    except LabkitError:  # the lab's own file is broken, which is the error that is shown
        return 0


def show_progress(arguments: Namespace) -> int:
    """labkit progress: each lab's passed exercises and predictions; --clear forgets some first."""
    from labkit.lessons.catalog import exercise_names, find_labs
    from labkit.lessons.progress import clear_progress, read_progress

    workspace = _need_workspace()
    cleared = [one for name in arguments.clear or () for one in _named(name)]
    if note := clear_progress(workspace, cleared):
        _print_notes([note])
    progress = read_progress(workspace)
    labs = []
    for lab in find_labs():
        entries = []
        for exercise in exercise_names(lab):
            name = f"{lab.name}.{exercise}"
            entries.append({"name": name, **asdict(progress.standing(name))})
        done = sum(entry["passed"] is not None for entry in entries)
        row = {"lab": lab.name, "title": lab.title, "passed": done, "total": len(entries)}
        score = asdict(progress.score(lab.name))
        labs.append({**row, "exercises": entries, "predictions": score})
    if progress.note:
        print(advise(f"warning: {progress.note}"), file=sys.stderr)
    if arguments.json:
        print_json({"workspace": str(workspace), "labs": labs, "note": progress.note})
    else:
        _print_progress(labs)
    return ExitCode.OK


def _named(name: str) -> list[str]:
    """The full names of the exercises that ``name`` stands for; a lab's own name comes with them.

    The name of the lab stands for its predictions.
    """
    from labkit.lessons.catalog import exercise_names

    ((lab, exercise),) = _chosen([name])
    if exercise:
        return [exercise]
    return [name, *(f"{name}.{one}" for one in exercise_names(lab))]


def reset_notebooks(arguments: Namespace) -> int:
    """labkit reset LAB: makes a fresh notebook; keeps the previous one under a dated name."""
    from labkit.lessons.catalog import find_lab, find_labs
    from labkit.lessons.workspace import reset_lab

    if [bool(arguments.names), arguments.all, arguments.changed].count(True) != 1:
        raise UsageError(
            "reset takes names of labs, or --all, or --changed", fix="labkit reset tensors"
        )
    workspace = _need_workspace()
    if arguments.changed:
        return _lay_out_changes(workspace, arguments)
    labs = find_labs() if arguments.all else [find_lab(name) for name in arguments.names]
    done: list[dict[str, object]] = []
    for lab in labs:
        reset = reset_lab(workspace, lab)
        _print_notes(reset.notes)
        done.append({"lab": lab.name, "notebook": reset.file, "backup": reset.backup})
        if not arguments.json:
            print(f"{reset.file} is fresh")
            if reset.backup:
                print(f"yours was kept as {reset.backup}")
    if arguments.json:
        print_json(done[0] if arguments.names and len(done) == 1 else {"labs": done})
    return ExitCode.OK


def _lay_out_changes(workspace: Path, arguments: Namespace) -> int:
    from labkit.lessons.workspace import LAID_BESIDE, PLACED, REPLACED, update_workspace

    update = update_workspace(workspace)
    changed = [lab for lab in update.labs if lab.action in (PLACED, REPLACED, LAID_BESIDE)]
    _print_notes(update.notes)
    if arguments.json:
        print_json({"labs": [{"lab": lab.lab, "notebook": lab.file} for lab in changed]})
    else:
        print("\n".join(f"{lab.file} is new" for lab in changed) or "nothing has changed")
    return ExitCode.OK


def _print_notes(notes: Iterable[str]) -> None:
    for note in notes:
        print(escape_controls(advise(f"note: {note}")), file=sys.stderr)


def _need_workspace() -> Path:
    from labkit.files import WORKSPACE_VARIABLE, find_workspace
    from labkit.process import has_make

    workspace = find_workspace()
    if workspace is None:
        # From a checkout's root the workspace is the folder that `make up` fills.
        workspace = find_workspace(start=Path.cwd() / "work")
    if workspace is None:
        raise UsageError(
            "there is no workspace here",
            cause=f"labkit created neither {Path.cwd()} nor a folder above it",
            fix=f"{'make up' if has_make() else 'labkit lab'}, or set {WORKSPACE_VARIABLE} to the"
            " folder",
        )
    workspace = workspace.resolve()
    if not os.access(workspace, os.R_OK | os.X_OK):
        raise LabkitError(
            f"the workspace {name_outside(workspace)} cannot be read",
            cause="it belongs to another user, or its mode denies it",
            fix=f"ls -ld {shlex.quote(str(name_outside(workspace)))}",
        )
    return workspace


def _chosen(names: Sequence[str]) -> list[tuple[Lab, str | None]]:
    """The labs of these names, each with the one exercise that is meant (None: all of them)."""
    from labkit.lessons.catalog import find_exercise, find_lab, find_labs

    if not names:
        return [(lab, None) for lab in find_labs()]
    return [
        (find_exercise(name)[0], name) if "." in name else (find_lab(name), None)
        for name in dict.fromkeys(names)
    ]


def _answer_lab(
    workspace: Path, lab: Lab, exercise: str | None, arguments: Namespace
) -> tuple[LabAnswers | None, Lab, LabkitError | None]:
    from labkit.lessons.learner import answer_lab

    with _Steps(lab.name) as steps:
        try:
            found = answer_lab(
                workspace, lab, exercise, timeout_seconds=arguments.timeout, on_cell=steps
            )
        except LabkitError as error:
            steps.end()
            print_error(error)
            return None, lab, error
    counted = found.notebook.name if found.notebook else "no notebook"
    _print_notes(
        f"{backup.name} is a backup and was not checked; checked: {counted}"
        for backup in found.backups
    )
    if not arguments.json:
        _print_answers(workspace, found)
    return found, lab, None


def _restore_saves(workspace: Path) -> None:
    from labkit.lessons.workspace import restore_saves

    try:
        _print_notes(restore_saves(workspace))
    except LabkitError as error:
        # A notebook that stays broken is reported below.
        print_error(error)


def _print_answers(workspace: Path, found: LabAnswers) -> None:
    where = found.notebook.relative_to(workspace) if found.notebook else "no notebook"
    print(f"{found.lab}  {where}")
    for answer in found.answers:
        status = answer.status.replace("_", " ")
        name = answer.exercise.partition(".")[2]
        print(f"  {status:<{_STATUS_WIDTH}}{name}")
        lines: list[str | None] = []
        if answer.status not in ("passed", "not_started"):
            lines = [answer.message, answer.case and f"in {answer.case}"]
            lines += [answer.mistake and f"looks like an answer that {answer.mistake}"]
            lines += [f"hint: {hint}" for hint in answer.hints]
        lines.append(answer.note and f"note: {answer.note}")
        for line in "\n".join(text for text in lines if text).splitlines():
            print(f"  {'':<{_STATUS_WIDTH}}  {escape_controls(advise(line))}")


def _print_answers_json(
    workspace: Path,
    results: list[tuple[LabAnswers | None, Lab, LabkitError | None]],
    passed: int,
    total: int,
) -> None:
    labs = []
    for found, lab, error in results:
        notebook = found.notebook.relative_to(workspace) if found and found.notebook else None
        labs.append(
            {
                "lab": lab.name,
                "notebook": str(notebook) if notebook else None,
                "exercises": [asdict(answer) for answer in found.answers] if found else [],
                "error": describe_error(error) if error else None,
            }
        )
    print_json({"workspace": str(workspace), "passed": passed, "total": total, "labs": labs})


def _print_progress(labs: list[dict[str, Any]]) -> None:
    width = max((len(lab["title"]) for lab in labs), default=0)
    for lab in labs:
        print(f"{lab['title']:<{width}}  {lab['passed']}/{lab['total']}")
        for entry in lab["exercises"]:
            mark = "x" if entry["passed"] else " "
            said = [f"by {entry['by']}"] if entry["by"] else []
            said += ["after its solution was shown"] if entry["seen"] else []
            how = f"  ({', '.join(said)})" if said else ""
            print(escape_controls(f"  [{mark}] {entry['name'].partition('.')[2]}{how}"))
        score = lab["predictions"]
        if score["predicted"]:
            predictions = plural(score["predicted"], "prediction")
            print(f"  {score['as_expected']} of {predictions} as expected")
    done, total = (sum(lab[key] for lab in labs) for key in ("passed", "total"))
    print(f"{'all':<{width}}  {done}/{total}")


def _print_counts(arguments: Namespace) -> int:
    from labkit.lessons.gate import count_lab

    counts = [count_lab(lab) for lab, _ in _chosen(arguments.names)]
    claims = sum(count.claims for count in counts)
    exercises = sum(count.exercises for count in counts)
    if arguments.json:
        labs = [asdict(count) for count in counts]
        print_json({"claims": claims, "exercises": exercises, "labs": labs})
        return ExitCode.OK
    for count in counts:
        print(f"{count.lab}: {count.claims} claims, {count.exercises} exercises")
    print(f"all: {claims} claims, {exercises} exercises")
    return ExitCode.OK


def _run_gate(arguments: Namespace) -> int:
    from labkit.lessons.gate import inspect_folder, inspect_lab, run_reference

    folder_problems = inspect_folder()
    found = []
    for lab, _ in _chosen(arguments.names):
        one = inspect_lab(lab)
        if not arguments.fast:
            with _Steps(lab.name) as steps:
                one = run_reference(lab, one, timeout_seconds=arguments.timeout, on_cell=steps)
        if not arguments.json:
            _print_gate(one)
        found.append(one)
    holds = not folder_problems and not any(one.problems for one in found)
    if arguments.json:
        labs = [asdict(one) for one in found]
        print_json({"holds": holds, "problems": list(folder_problems), "labs": labs})
    else:
        for problem in folder_problems:
            print(f"labs: {problem}")
        print("the gate holds" if holds else "the gate does not hold")
    return ExitCode.OK if holds else ExitCode.FAILED


def _print_gate(found: LabGate) -> None:
    run = ""
    if found.held is not None:
        run = f" ({found.held} held, {found.skipped} skipped when run)"
    state = "holds" if not found.problems else "does not hold"
    counts = f"{found.claims} claims{run}, {found.exercises} exercises"
    print(f"{found.lab}: {state}: {counts}")
    for problem in found.problems:
        print(f"  {problem}")


class _Steps:
    """Shows progress on stderr: one line that changes on a terminal, else a line per lab."""

    def __init__(self, lab: str) -> None:
        self._lab = lab
        self._changing = sys.stderr.isatty()

    def __call__(self, cell: int, total: int) -> None:
        if self._changing:
            print(
                f"\r{self._lab}: cell {cell} of {total}\033[K", end="", file=sys.stderr, flush=True
            )
        elif cell == 1:
            print(f"{self._lab}: running {total} cells", file=sys.stderr, flush=True)

    def __enter__(self) -> _Steps:
        return self

    def __exit__(self, *_: object) -> None:
        self.end()

    def end(self) -> None:
        """Clears the progress line, so that the next output starts on an empty line."""
        if self._changing:
            print("\r\033[K", end="", file=sys.stderr, flush=True)

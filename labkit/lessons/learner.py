"""Finds and runs the learner's notebooks, and gives the verdict on each exercise.

``find_answer`` runs only the statements that the answer to one check depends on, so that the
gate can judge every stub and every reference in a second, without running whole labs.
"""

from __future__ import annotations

import ast
import linecache
import os
import re
import symtable
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

from labkit.errors import LabkitError
from labkit.files import STATE_FOLDER, read_regular
from labkit.lessons.catalog import Lab, load_exercises
from labkit.lessons.checks import CHECKED_VARIABLE
from labkit.lessons.exercises import TIMED_OUT
from labkit.lessons.notebooks import cell_source, parse_notebook, read_digests, read_notebook
from labkit.lessons.workspace import Entry, read_manifest
from labkit.notebooks.kernel import (
    TIMED_OUT_MARK,
    OnCell,
    cell_error,
    kernel_environment,
    run_cells,
)
from labkit.notebooks.result import RESULT_NAME, read_checks


@dataclass(frozen=True)
class CheckCall:
    """A ``check(name, answer)`` call in a notebook: its position and the answer's expression."""

    exercise: str
    position: int
    answer: ast.expr


def find_check_calls(sources: Iterable[str]) -> tuple[list[ast.stmt], list[CheckCall]]:
    """The top-level statements of the code cells, and the check calls among them."""
    statements = [statement for source in sources for statement in _parse(source)]
    calls = []
    for position, statement in enumerate(statements):
        for node in ast.walk(statement):
            if _is_check(node):
                calls.append(CheckCall(node.args[0].value, position, node.args[1]))  # type: ignore
    return statements, calls


def find_answer(statements: list[ast.stmt], call: CheckCall) -> Any:
    """The function passed to the check, made by running only the statements it depends on."""
    body = [statements[index] for index in sorted(_needed_by(statements, call))]
    answer = ast.Assign(targets=[ast.Name("__answer__", ast.Store())], value=call.answer)
    module = ast.fix_missing_locations(ast.Module([*body, answer], type_ignores=[]))
    name, text = f"<{call.exercise}>", ast.unparse(module)
    # Lets inspect and linecache find the function's source.
    linecache.cache[name] = (len(text), None, text.splitlines(keepends=True), name)
    namespace: dict[str, Any] = {"__name__": "__lesson__"}
    try:
        exec(compile(text, name, "exec"), namespace)  # noqa: S102  our own lesson
    except Exception as error:
        raise LabkitError(
            f"the answer to {call.exercise} cannot be evaluated",
            cause=f"{type(error).__name__}: {error}",
            fix="let its cell depend on imports and definitions only",
        ) from error
    return namespace["__answer__"]


def count_claims(sources: Iterable[str]) -> int:
    """The number of ``claim`` and ``claim_raises`` calls in the code cells."""
    return sum(
        _called_name(node) in ("claim", "claim_raises")
        for source in sources
        for statement in _parse(source)
        for node in ast.walk(statement)
    )


def find_predictions(sources: Iterable[str]) -> list[str]:
    """The names of the questions that the code cells ask with ``predict``, in order."""
    return [
        str(node.args[0].value)
        for source in sources
        for statement in _parse(source)
        for node in ast.walk(statement)
        if _called_name(node) == "predict"
        and isinstance(node, ast.Call)
        and node.args
        and isinstance(node.args[0], ast.Constant)
    ]


def _parse(source: str) -> list[ast.stmt]:
    from IPython.core.inputtransformer2 import TransformerManager

    return list(ast.parse(str(TransformerManager().transform_cell(source))).body)


def _is_check(node: ast.AST) -> bool:
    return (
        _called_name(node) == "check"
        and isinstance(node, ast.Call)
        and len(node.args) == 2
        and isinstance(node.args[0], ast.Constant)
    )


def _called_name(node: ast.AST) -> str | None:
    if not isinstance(node, ast.Call):
        return None
    if isinstance(node.func, ast.Attribute):
        return node.func.attr
    return node.func.id if isinstance(node.func, ast.Name) else None


def _needed_by(statements: list[ast.stmt], call: CheckCall) -> set[int]:
    """The positions of the statements that the answer depends on, directly or indirectly."""
    chosen: set[int] = set()
    asked: set[tuple[str, int]] = set()
    answer = ast.Expr(call.answer)
    waiting = [(name, call.position) for name in _used_now(answer) | _used_later(answer)]
    while waiting:
        name, before = waiting.pop()
        if (name, before) in asked:
            continue
        asked.add((name, before))
        for index in _makers(statements[:before], name):
            if index not in chosen:
                chosen.add(index)
                waiting += [(other, index) for other in _used_now(statements[index])]
                # Names in a function's body are looked up when it is called: at the check.
                waiting += [(other, call.position) for other in _used_later(statements[index])]
    return chosen


def _makers(statements: list[ast.stmt], name: str) -> Iterator[int]:
    """The last statement that binds the name, and later ones that change its value."""
    for index in range(len(statements) - 1, -1, -1):
        if name in _bound_names(statements[index]):
            yield index
            return
        if name in _changed_names(statements[index]):
            yield index


def _bound_names(statement: ast.stmt) -> set[str]:
    if isinstance(statement, ast.AugAssign):
        return set()
    return {
        symbol.get_name()
        for symbol in _table(statement).get_symbols()
        if symbol.is_assigned() or symbol.is_imported()
    }


def _changed_names(statement: ast.stmt) -> set[str]:
    if isinstance(statement, ast.AugAssign) and isinstance(statement.target, ast.Name):
        return {statement.target.id}
    return {
        node.value.id
        for node in ast.walk(statement)
        if isinstance(node, ast.Attribute | ast.Subscript)
        and isinstance(node.ctx, ast.Store)
        and isinstance(node.value, ast.Name)
    }


def _used_now(statement: ast.stmt) -> set[str]:
    """The names that the statement looks up when it runs."""
    table = _table(statement)
    used = {symbol.get_name() for symbol in table.get_symbols() if symbol.is_referenced()}
    if isinstance(statement, ast.AugAssign):
        used |= _changed_names(statement)
    return used


def _used_later(statement: ast.stmt) -> set[str]:
    """The global names that the functions and classes defined by the statement look up."""
    waiting = list(_table(statement).get_children())
    used: set[str] = set()
    while waiting:
        table = waiting.pop()
        waiting += table.get_children()
        used |= {
            symbol.get_name()
            for symbol in table.get_symbols()
            if symbol.is_global() and symbol.is_referenced()
        }
    return used


def _table(statement: ast.stmt) -> symtable.SymbolTable:
    return symtable.symtable(ast.unparse(statement), "<lesson>", "exec")


# Statuses that a notebook's run adds to those of a verdict.
NO_CHECK, NO_VERDICT = "no_check", "no_verdict"
_CHECK_CALL = re.compile(r"""\bcheck\(\s*["']([A-Za-z0-9_]+\.[A-Za-z0-9_]+)["']""")
LARGE_BYTES = 2**20
# Names of the copies that a reset keeps; earlier versions named them "backup".
_BACKUP = re.compile(r"\.(backup|old)-\d{4}-\d{2}-\d{2}")


OnRead = Callable[[Path], None]


@dataclass(frozen=True)
class Answer:
    """A notebook's result for one exercise: a verdict's status, or why there is none.

    ``note`` says why the attempt was not recorded, or what became of a broken record.
    """

    exercise: str
    status: str
    message: str
    case: str | None = None
    expected: str | None = None
    got: str | None = None
    mistake: str | None = None
    hints: tuple[str, ...] = ()
    note: str | None = None


@dataclass(frozen=True)
class LabAnswers:
    """The answers of one lab's notebook; ``notebook`` is None if the workspace has none.

    ``backups`` are copies that a reset kept; labkit does not check the work in them.
    """

    lab: str
    notebook: Path | None
    answers: tuple[Answer, ...]
    backups: tuple[Path, ...] = ()


def answer_lab(
    workspace: Path,
    lab: Lab,
    exercise: str | None = None,
    *,
    timeout_seconds: float,
    on_cell: OnCell | None = None,
) -> LabAnswers:
    """Runs the learner's notebook of the lab, and gives the verdict on each exercise (or on one).

    Cells after the last needed check are not run. The notebook file does not change; passes are
    recorded as in JupyterLab.
    """
    names = [f"{lab.name}.{one.name}" for one in load_exercises(lab)]
    names = [name for name in names if exercise in (None, name)]
    path, backups = find_notebook(workspace, lab), find_backups(workspace, lab)
    if path is None:
        text = f"the workspace has no notebook of this lab: labkit reset {lab.name}"
        answers = tuple(Answer(name, NO_CHECK, text) for name in names)
        return LabAnswers(lab.name, None, answers, backups)
    notebook = _cut_after_last(read_notebook(path), names)
    if notebook["cells"]:
        environment = kernel_environment(reference=False, workspace=workspace)
        environment[CHECKED_VARIABLE] = path.name
        notebook = run_cells(
            notebook, path.parent, environment, timeout_seconds=timeout_seconds, on_cell=on_cell
        )
    records = {record["exercise"]: record for record in read_checks(notebook)}
    answers = tuple(_answer(name, records.get(name), notebook["cells"]) for name in names)
    return LabAnswers(lab.name, path, answers, backups)


def find_notebook(workspace: Path, lab: Lab) -> Path | None:
    """The learner's notebook of a lab: the one edited last, whatever its name.

    A notebook belongs to a lab by its metadata, or by the checks that it calls. An unedited
    notebook is returned only if there is no edited one; backups are ignored.
    """
    return find_notebooks(workspace, [lab]).get(lab.name)


def find_notebooks(
    workspace: Path, labs: Iterable[Lab], on_read: OnRead = lambda path: None
) -> dict[str, Path]:
    """The notebook of each lab that has one, by the lab's name; see `find_notebook`.

    ``on_read`` is called with each notebook before it is read.
    """
    entries = read_entries(workspace)
    owned: dict[str, list[Path]] = {lab.name: [] for lab in labs}
    names = {_name_file(lab, entries): lab.name for lab in labs}
    for path in list_notebooks(workspace):
        on_read(path)
        for name in () if is_backup(path) else _list_owners(path, names):
            owned.get(name, []).append(path)
    return {
        name: _choose_notebook(paths, entries.get(name)) for name, paths in owned.items() if paths
    }


def _choose_notebook(paths: list[Path], entry: Entry | None) -> Path:
    """The one that was edited last, else the one that was written last."""
    if len(paths) == 1:
        return paths[0]
    shipped = {entry.placed, entry.laid, *entry.older} - {None} if entry else set()
    digests = {path: read_digests(path) for path in paths}
    worked_on = [
        path for path, digest in digests.items() if not digest or digest.content not in shipped
    ]
    return max(worked_on or paths, key=_written_at)


def _written_at(path: Path) -> int:
    """When the file was last written, in ns; 0 for a broken link, or a file that just went."""
    try:
        return path.stat().st_mtime_ns
    except OSError:
        return 0


def find_backups(workspace: Path, lab: Lab) -> tuple[Path, ...]:
    """The copies of the lab's notebook that a reset kept."""
    names = {_name_file(lab, read_entries(workspace)): lab.name}
    backups = filter(is_backup, list_notebooks(workspace))
    return tuple(path for path in backups if lab.name in _list_owners(path, names))


def list_notebooks(workspace: Path) -> Iterator[Path]:
    """The notebooks in the workspace and its folders, except hidden ones and those of runs.

    A run's executed notebooks may be references, whose checks pass without the learner.
    """
    for folder, inner, files in os.walk(workspace):
        inner[:] = sorted(
            name
            for name in inner
            # Unlike Path's, os.path's questions raise nothing, for instance about a closed folder.
            if not name.startswith(".") and not os.path.isfile(Path(folder) / name / RESULT_NAME)  # noqa: PTH113
        )
        for name in sorted(files):
            if name.endswith(".ipynb") and not name.startswith("."):
                yield Path(folder) / name


def is_backup(path: Path) -> bool:
    """True if the file has a name that a reset gives to the notebook that it replaces."""
    return bool(_BACKUP.search(path.name))


def called_checks(source: str) -> list[str]:
    """The full names of the exercises that a cell's source checks.

    >>> called_checks('check("tensors.center_columns", center_columns)')
    ['tensors.center_columns']
    """
    return _CHECK_CALL.findall(source)


def read_entries(workspace: Path) -> Mapping[str, Entry]:
    """The manifest's entries, by lab; empty if it cannot be read."""
    try:
        return read_manifest(workspace / STATE_FOLDER).entries
    except (OSError, ValueError):
        return {}


def _name_file(lab: Lab, entries: Mapping[str, Entry]) -> str:
    """The file name of the lab's notebook as it was placed."""
    entry = entries.get(lab.name)
    return entry.file if entry else lab.notebook


def _list_owners(path: Path, names: Mapping[str, str]) -> tuple[str, ...]:
    """The labs that the notebook belongs to; ``names`` are the labs by their file names."""
    try:
        known = path.stat()
        return _read_labs(path, (known.st_mtime_ns, known.st_ctime_ns, known.st_size, known.st_ino))
    except (OSError, ValueError, RecursionError):
        # A broken notebook with the lab's file name is reported, not ignored.
        return (names[path.name],) if path.name in names else ()


@lru_cache(maxsize=4096)
def _read_labs(path: Path, version: tuple[int, ...]) -> tuple[str, ...]:
    """The labs that the notebook belongs to. A version of a file is read once: some are large."""
    data = read_regular(path)
    # Parsing a large notebook holds up the other threads of a server.
    if len(data) > LARGE_BYTES and b"labkit" not in data and b"check(" not in data:
        return ()
    notebook = parse_notebook(data)
    metadata = notebook.get("metadata")
    own = metadata.get("labkit") if isinstance(metadata, dict) else None
    if isinstance(own, dict) and "lab" in own:
        return (str(own["lab"]),)
    calls = (call for cell in _code_cells(notebook) for call in called_checks(cell_source(cell)))
    return tuple({call.partition(".")[0] for call in calls})


def _code_cells(notebook: dict[str, Any]) -> Iterator[dict[str, Any]]:
    return (cell for cell in notebook["cells"] if cell["cell_type"] == "code")


def _cut_after_last(notebook: dict[str, Any], names: Iterable[str]) -> dict[str, Any]:
    wanted = set(names)
    last = -1
    for index, cell in enumerate(notebook["cells"]):
        if cell["cell_type"] == "code" and wanted & set(called_checks(cell_source(cell))):
            last = index
    return {**notebook, "cells": notebook["cells"][: last + 1]}


def _answer(name: str, record: dict[str, Any] | None, cells: list[Any]) -> Answer:
    if record:
        return Answer(
            name,
            record["status"],
            record["message"],
            record.get("case"),
            record.get("expected"),
            record.get("got"),
            record.get("mistake"),
            tuple(record.get("hints", ())),
            record.get("note"),
        )
    calling = [cell for cell in cells if name in called_checks(cell_source(cell))]
    if not calling:
        return Answer(name, NO_CHECK, f'the notebook has no check("{name}", ...)')
    error = cell_error(calling[-1])
    if TIMED_OUT_MARK in calling[-1]["metadata"]:
        return Answer(name, TIMED_OUT, "the check took longer than the limit")
    if error and error.startswith("KeyboardInterrupt"):
        return Answer(name, NO_VERDICT, "the check was interrupted (KeyboardInterrupt)")
    said = f"its cell raised {error}" if error else "its cell gave no verdict"
    number, first = next(
        ((number, text) for number, cell in enumerate(cells, 1) if (text := cell_error(cell))),
        (0, ""),
    )
    if first and TIMED_OUT_MARK in cells[number - 1]["metadata"]:
        return Answer(name, TIMED_OUT, f"cell {number} took longer than the limit; then {said}")
    if first and cells[number - 1] is not calling[-1]:
        said += f"; the first cell that raised is cell {number}: {first}"
    return Answer(name, NO_VERDICT, said)

"""A run's result as JUnit XML, which CI systems show as tests.

One suite per notebook. Its tests are the cells, the claims and the checks; what was skipped or did
not run is "skipped". Format: the schema that Jenkins, GitLab and GitHub's actions read
(https://github.com/testmoapp/junitxml).
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from xml.etree.ElementTree import Element, SubElement, indent, tostring

from labkit.errors import UsageError
from labkit.files import write_atomically
from labkit.notebooks.result import CellResult, NotebookResult, RunResult
from labkit.text import strip_ansi

# XML 1.0 has no way to write these characters.
NOT_XML = re.compile("[^\t\n\r\u0020-\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]")


@dataclass(frozen=True)
class JunitCase:
    """One test: its group within the suite, its name, and why it failed or was skipped."""

    group: str
    name: str
    seconds: float | None = None
    failure: str | None = None
    details: str = ""
    skipped: str | None = None


def write_junit(run: RunResult, path: Path) -> None:
    """Writes the file. Raises UsageError if that is not possible."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        write_atomically(path, format_junit(run).encode())
    except OSError as error:
        raise UsageError(f"--junit {path} cannot be written", cause=error.strerror) from error


def format_junit(run: RunResult) -> str:
    """The XML of a run."""
    root = Element("testsuites", name="labkit run", time=_seconds(run.seconds))
    for notebook in run.notebooks:
        cases = list(_list_cases(notebook))
        suite = SubElement(
            root,
            "testsuite",
            name=_clean(notebook.name),
            file=_clean(notebook.path),
            tests=str(len(cases)),
            failures=str(sum(case.failure is not None for case in cases)),
            errors="0",
            skipped=str(sum(case.skipped is not None for case in cases)),
            time=_seconds(notebook.seconds),
            timestamp=run.started_at or "",
        )
        for case in cases:
            _add_case(suite, notebook, case)
    indent(root)
    return '<?xml version="1.0" encoding="UTF-8"?>\n' + tostring(root, encoding="unicode") + "\n"


def _list_cases(notebook: NotebookResult) -> Iterator[JunitCase]:
    failure, placed = notebook.error, False
    for cell in notebook.cells:
        if failure and failure.cell_index == cell.index:
            placed = True
            details = "\n\n".join(filter(None, [failure.source, failure.traceback, failure.hint]))
            yield JunitCase("cells", _name(notebook, cell), cell.seconds, failure.what, details)
        else:
            yield _make_cell_case(notebook, cell)
    for claim in notebook.claims:
        broken = "the claim does not hold" if claim.held is False else None
        yield JunitCase("claims", claim.statement, failure=broken, skipped=claim.skipped)
    for check in notebook.checks:
        broken = None if check.status == "passed" else f"the check is {check.status}"
        yield JunitCase("checks", check.name, failure=broken)
    if failure and not placed:  # it never started, or ended between two cells
        yield JunitCase("notebook", notebook.name, failure=failure.what, details=failure.hint or "")
    elif notebook.status == "not_run":
        yield JunitCase("notebook", notebook.name, skipped="an earlier notebook failed")


def _make_cell_case(notebook: NotebookResult, cell: CellResult) -> JunitCase:
    change = next((c for c in notebook.output_changes or () if c.cell_index == cell.index), None)
    skipped = None if cell.has_run else cell.status.replace("_", " ")
    failure = "its output differs from the saved one" if change else None
    details = f"saved:\n{change.saved}\n\nseen:\n{change.seen}" if change else ""
    return JunitCase("cells", _name(notebook, cell), cell.seconds, failure, details, skipped)


def _name(notebook: NotebookResult, cell: CellResult) -> str:
    number = notebook.cell_numbers.get(cell.index)
    return f"cell {number}: {cell.first_line}" if number else f"skipped cell: {cell.first_line}"


def _add_case(suite: Element, notebook: NotebookResult, case: JunitCase) -> None:
    element = SubElement(
        suite,
        "testcase",
        classname=_clean(f"{notebook.name}.{case.group}"),
        name=_clean(case.name),
        time=_seconds(case.seconds),
    )
    if case.failure is not None:
        failed = SubElement(element, "failure", message=_clean(case.failure))
        failed.text = _clean(case.details)
    elif case.skipped is not None:
        SubElement(element, "skipped", message=_clean(case.skipped))


def _seconds(seconds: float | None) -> str:
    return f"{seconds or 0.0:.3f}"  # the format has no word for "not measured"


def _clean(text: str) -> str:
    return NOT_XML.sub("\ufffd", strip_ansi(text))

"""A run as one html file: what machine, what held, what did not and why, and what each cell took.

The page is made from the run folder alone (result.json and the executed notebooks), loads
nothing, and is read without a script. Standard library only.
"""

from __future__ import annotations

from pathlib import Path

from labkit.notebooks.report.notebook import draw_notebook
from labkit.notebooks.report.page import Pieces, make_page, write_page
from labkit.notebooks.report.saved import Run, read_run
from labkit.notebooks.report.sections import (
    describe_verdict,
    draw_failures,
    draw_header,
    draw_machine,
    draw_overview,
)

REPORT_NAME = "report.html"


def write_report(run_folder: Path) -> Path:
    """Writes report.html beside the folder's result.json and returns its path.

    UsageError where the folder holds no run's result; LabkitError where it cannot be written.
    """
    run = read_run(run_folder)
    return write_page(run.folder / REPORT_NAME, render_report(run))


def render_report(run: Run) -> str:
    """The run as a whole html document of less than 3 MB, failures first."""
    pieces = Pieces()
    sections = [
        draw_failures(run),
        draw_machine(run),
        draw_overview(run),
        *(draw_notebook(run, number, pieces) for number in range(len(run.notebooks))),
    ]
    version = str(run.environment.get("labkit") or "")
    body = draw_header(run) + f"<main>{''.join(sections)}</main>" + _draw_footer(version)
    return pieces.fill(make_page(f"{describe_verdict(run)} - labkit run", body))


def _draw_footer(version: str) -> str:
    from labkit.render import escape

    made_by = escape(f"labkit {version}".strip())
    return (
        f"<footer><p>Made by {made_by} from result.json and the executed notebooks beside it."
        " This page loads nothing and can be read offline.</p></footer>"
    )

"""Writes a run as one html file: the machine, the results, the failures, and each cell's costs.

The page is made only from the run folder (result.json and the executed notebooks). It loads
nothing, and is readable without its script.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import datetime, timezone
from importlib.resources import files
from pathlib import Path

import msgspec

from labkit.errors import LabkitError
from labkit.files import write_atomically
from labkit.notebooks.report.notebook import Piece, describe_counts, inline, render_notebook
from labkit.notebooks.result import (
    CellResult,
    DeviceName,
    NotebookResult,
    RunFailure,
    RunResult,
    SavedRun,
    group_ranks,
    list_rank_rows,
    read_run,
)
from labkit.render import escape, escape_block, make_document, make_table, render_status, to_words
from labkit.text import format_bytes, format_seconds, join_names

REPORT_NAME = "report.html"
MAX_PAGE_BYTES = 2_900_000
# A placeholder is the number of a piece between two of these; it is replaced when it is known
# which pieces fit. escape() removes this character from all other text.
EDGE = "\0"


def write_report(run_folder: Path) -> Path:
    """Writes report.html beside the folder's result.json and returns its path.

    Raises UsageError if the folder holds no run's result, LabkitError if it cannot be written.
    """
    saved = read_run(run_folder)
    return write_page(saved.folder / REPORT_NAME, render_report(saved))


def render_report(saved: SavedRun) -> str:
    """The run as a whole html document of less than 3 MB, failures first."""
    run, pieces = saved.result, Pieces()
    sections = [
        _render_failures(run),
        _render_machine(run),
        _render_overview(run),
        *(
            render_notebook(saved.folder, run.notebooks, place, pieces.lay_aside)
            for place in range(len(run.notebooks))
        ),
    ]
    made_by = escape(f"labkit {run.environment.labkit or ''}".strip())
    body = (
        f"{_render_header(run)}<main>{''.join(sections)}</main>"
        f"<footer><p>Made by {made_by} from result.json and the executed notebooks beside it."
        " This page loads nothing and can be read offline.</p></footer>"
    )
    return pieces.fill(make_page(f"{describe_verdict(run)} - labkit run", body))


class Pieces:
    """The outputs of a page: collected first, then inserted up to the page's size limit."""

    def __init__(self) -> None:
        self._pieces: list[tuple[Piece, str]] = []

    def lay_aside(self, piece: Piece, where: str) -> str:
        """Stores the piece and returns its placeholder; ``where`` names the file with it."""
        self._pieces.append((piece, where))
        return f"{EDGE}{len(self._pieces) - 1}{EDGE}"

    def fill(self, page: str, limit_bytes: int = MAX_PAGE_BYTES) -> str:
        """The page with its pieces; if they do not fit, notes replace the largest ones."""
        parts = page.split(EDGE)
        asked = {int(number) for number in parts[1::2]}
        room = limit_bytes - sum(len(part.encode(errors="replace")) for part in parts[::2])
        sizes = {number: self._pieces[number][0].size_bytes for number in asked}
        kept = {number: self._pieces[number][0].make() for number in _choose(sizes, room)}
        # A rendered piece may be larger than its estimate.
        sizes = {number: len(made.encode(errors="replace")) for number, made in kept.items()}
        fitting = _choose(sizes, room)
        for place in range(1, len(parts), 2):
            number = int(parts[place])
            parts[place] = kept[number] if number in fitting else self._say_left_out(number)
        return "".join(parts)

    def _say_left_out(self, number: int) -> str:
        piece, where = self._pieces[number]
        size = format_bytes(piece.size_bytes)
        return (
            f'<p class="left-out">{escape(piece.what)} of {size} is left out to keep this page'
            f" small; it is in {escape(where)}</p>"
        )


def _choose(sizes: dict[int, int], room: int) -> set[int]:
    """The pieces that fit when the largest are replaced by short notes."""
    note = 200
    kept, total = set(sizes), sum(sizes.values())
    for number in sorted(sizes, key=lambda one: sizes[one], reverse=True):
        if total <= room or sizes[number] <= note:
            break
        kept.discard(number)
        total -= sizes[number] - note
    return kept


def make_page(title: str, body: str, style: str = "") -> str:
    """A complete html document with inline style and script; its policy blocks all others.

    ``style`` is added to the report's.
    """
    return make_document(
        escape(title),
        body,
        style=_read("report.css") + style,
        script=_read("report.js"),
        sources=("img-src data:",),
    )


def write_page(path: Path, page: str) -> Path:
    """Writes the page atomically. Raises LabkitError if it cannot be written."""
    try:
        write_atomically(path, page.encode("utf-8", "replace"))
    except OSError as error:
        raise LabkitError(f"{path} cannot be written", cause=str(error)) from error
    return path


def _read(name: str) -> str:
    return files("labkit.notebooks.report").joinpath(name).read_text(encoding="utf-8")


MAX_TRACEBACK_CHARACTERS = 20_000


def _render_header(run: RunResult) -> str:
    """The verdict in a sentence, the time of the run, and the counts."""
    when = [format_moment(run.started_at)]
    if run.seconds is not None:
        when.append(f"took {format_seconds(run.seconds)}")
    kicker = " · ".join(["labkit run", *(text for text in when if text)])
    return (
        f'<header><p class="kicker">{escape(kicker)}</p>'
        f"<h1>{escape(describe_verdict(run))}</h1>"
        f'<p class="lede">{escape(describe_counts(run.notebooks))}</p>{_render_buttons()}</header>'
    )


def _render_buttons() -> str:
    return (
        '<p class="no-print"><button type="button" data-open="yes" hidden>Open all</button>'
        '<button type="button" data-open="no" hidden>Close all</button></p>'
    )


def describe_verdict(run: RunResult) -> str:
    """The run's outcome in one line: "3 notebooks passed", "tensors failed"."""
    failed = [notebook for notebook in run.notebooks if notebook.status != "passed"]
    if not run.notebooks:
        return "No notebook was run"
    if not failed:
        names = [notebook.name for notebook in run.notebooks]
        return f"{join_names(names) if len(names) < 4 else f'All {len(names)} notebooks'} passed"
    first = next((one for one in failed if one.rank and one.rank.failed_first), None)
    if first is not None:
        return f"{first.name} {_say_ending(first.status)}"
    if len(run.notebooks) == 1:
        return f"{failed[0].name} {_say_ending(failed[0].status)}"
    if len(failed) == len(run.notebooks):
        return f"None of the {len(failed)} notebooks passed"
    return f"{len(failed)} of {len(run.notebooks)} notebooks did not pass"


def _say_ending(status: str) -> str:
    verbs = {
        "invalid": "could not be read",
        "interrupted": "was interrupted",
        "not_run": "was not run",
        "unknown": "ended in an unknown way",
        "running": "was cut short",
    }
    return verbs.get(status, to_words(status))


def _render_failures(run: RunResult) -> str:
    """What failed and why, one block per notebook; "" if everything passed."""
    blocks = [
        _render_failure(number, notebook)
        for number, notebook in enumerate(run.notebooks)
        if has_failed(notebook)
    ]
    if not blocks:
        return ""
    return f'<section><h2 id="failures">What did not hold</h2>{"".join(blocks)}</section>'


def has_failed(notebook: NotebookResult) -> bool:
    """True if the notebook did not pass, or has a failed claim or check.

    A rank that was ended because another one failed has not failed itself.
    """
    return notebook.status != "stopped" and (
        notebook.status not in ("passed", "not_run")
        or notebook.error is not None
        or any(claim.held is False for claim in notebook.claims)
        or any(check.status != "passed" for check in notebook.checks)
    )


def _render_failure(number: int, notebook: NotebookResult) -> str:
    parts = [f"<h3>{escape(notebook.name)}: {render_status(notebook.status)}</h3>"]
    if notebook.error:
        parts.append(_explain_failure(number, notebook.error, notebook.cells))
    parts += [
        f'<p class="what">Claim does not hold: {inline(claim.statement)}</p>'
        for claim in notebook.claims
        if claim.held is False
    ]
    parts += [
        '<p class="what">Check did not pass: '
        f"{escape(check.name)} ({escape(to_words(check.status))})</p>"
        for check in notebook.checks
        if check.status != "passed"
    ]
    if len(parts) == 1:
        running = notebook.status == "running"
        why = "The run was cut short while it ran." if running else "The result does not say why."
        parts.append(f'<p class="what">{why}</p>')
    return f'<article class="failure">{"".join(parts)}</article>'


def _explain_failure(number: int, failure: RunFailure, cells: tuple[CellResult, ...]) -> str:
    parts = [f'<p class="what">{escape(failure.what)}</p>']
    if any(cell.index == failure.cell_index for cell in cells):
        link = f"#n{number}-c{failure.cell_index}"
        parts.append(f'<p class="no-print"><a href="{link}">to the cell and what it showed</a></p>')
    if failure.hint and "\n\n" in failure.hint:  # a page with columns, not a sentence
        parts.append(f"<pre>{escape_block(failure.hint, MAX_TRACEBACK_CHARACTERS)}</pre>")
    elif failure.hint:
        parts.append(f"<p>{inline(failure.hint)}</p>")
    if failure.balance:
        counts = msgspec.structs.asdict(failure.balance)
        lines = [
            f"{to_words(key[: -len('_bytes')])} {format_bytes(n)}" for key, n in counts.items()
        ]
        parts.append(_render_facts({"Balance": lines}))
    if failure.source:
        source = escape_block(failure.source, MAX_TRACEBACK_CHARACTERS)
        parts.append(f"<p>Its source</p><pre>{source}</pre>")
    if failure.traceback:
        traceback = escape_block(failure.traceback, MAX_TRACEBACK_CHARACTERS)
        parts.append(f'<p>Traceback</p><pre class="error">{traceback}</pre>')
    return "".join(parts)


def _render_machine(run: RunResult) -> str:
    """The machine, how memory was measured, and how long measuring took."""
    environment, measuring = run.environment, run.measuring
    costs = []
    if measuring.seconds_per_cell is not None:
        costs.append(f"{format_seconds(measuring.seconds_per_cell)} a cell")
    if measuring.sampling_seconds is not None:
        costs.append(f"{format_seconds(measuring.sampling_seconds)} for the timeline")
    facts: dict[str, Sequence[str | None]] = {
        "Ran on": [run.device],
        "Devices": [_name_device(device) for device in environment.devices],
        "Memory": [format_bytes(environment.memory_total_bytes)],
        "labkit": [environment.labkit],
        "Python": [environment.python],
        "Platform": [environment.platform],
        "PyTorch": [environment.torch],
        "Process memory": [measuring.how.process or "not measured"],
        "CUDA memory": [measuring.how.cuda or "not measured"],
        "Cost of measuring": costs,
    }
    return f'<section><h2 id="machine">The machine</h2>{_render_facts(facts)}</section>'


def _name_device(device: DeviceName) -> str:
    name = device.name or "unknown"
    return f"{name} ({device.torch_name})" if device.torch_name else name


def _render_facts(facts: Mapping[str, Sequence[str | None]]) -> str:
    """Facts as a list of names and values, one value per line; None is "unknown"."""
    rows = []
    for name, values in facts.items():
        lines = "<br>".join(escape(value or "unknown") for value in values) or "unknown"
        rows.append(f"<div><dt>{name}</dt><dd>{lines}</dd></div>")
    return f"<dl>{''.join(rows)}</dl>"


def _render_overview(run: RunResult) -> str:
    """A table of the run's notebooks, each with its status, counts, seconds and peaks."""
    rows = [_overview_row(number, notebook) for number, notebook in enumerate(run.notebooks)]
    heads = ["notebook", "status", "#cells run", "#claims held", "#checks passed", "#time"]
    optional = [
        ("#kernel start", any(notebook.startup_seconds is not None for notebook in run.notebooks)),
        ("#peak memory", True),
        ("#peak on CUDA", any(n.cuda_peak_bytes is not None for n in run.notebooks)),
    ]
    kept = [*range(len(heads)), *(len(heads) + n for n, (_, keep) in enumerate(optional) if keep)]
    heads += [head for head, keep in optional if keep]
    table = make_table(
        "Peak memory is the highest of a notebook’s process during any of its cells.",
        heads,
        ([row[place] for place in kept] for row in rows),
    )
    ranks = "".join(_render_ranks(group) for group in group_ranks(run.notebooks))
    return f'<section><h2 id="notebooks">Notebooks</h2>{table}{ranks}</section>'


def _render_ranks(group: list[NotebookResult]) -> str:
    """A table of a notebook's cells, with a column of seconds and one of memory for each rank."""
    names = [f"rank {one.rank.rank}" for one in group if one.rank]
    heads = ["cell", *(f"#{name}: {figure}" for name in names for figure in ("time", "peak"))]
    rows = [
        [inline(f"`{line}`"), *(text for cell in cells for text in _rank_figures(cell))]
        for line, cells in list_rank_rows(group)
    ]
    words = "Each rank's time and the peak memory of its process (on CUDA: of its tensors)."
    return make_table(words, heads, rows)


def _rank_figures(cell: CellResult | None) -> tuple[str, str]:
    if cell is None or not cell.has_run:
        return '<span class="quiet">not run</span>', ""
    peak = cell.cuda_peak_bytes or (cell.memory.peak_bytes if cell.memory else None)
    seconds = "" if cell.seconds is None else format_seconds(cell.seconds)
    mark = "" if cell.status == "passed" else render_status(cell.status)
    return f"{mark} {seconds}".strip(), format_bytes(peak) if peak is not None else ""


def _overview_row(number: int, notebook: NotebookResult) -> list[str]:
    held = sum(claim.held is True for claim in notebook.claims)
    passed = sum(check.status == "passed" for check in notebook.checks)
    ran = sum(cell.has_run for cell in notebook.cells)
    return [
        f'<a href="#n{number}">{escape(notebook.name)}</a>',
        render_status(notebook.status),
        _of(ran, len(notebook.cells)),
        _of(held, len(notebook.claims)),
        _of(passed, len(notebook.checks)),
        format_seconds(notebook.seconds),
        format_seconds(notebook.startup_seconds),
        format_bytes(notebook.peak_bytes),
        format_bytes(notebook.cuda_peak_bytes),
    ]


def _of(part: int, whole: int) -> str:
    return f"{part:,} of {whole:,}" if whole else '<span class="quiet">none</span>'


def format_moment(text: str | None) -> str:
    """An ISO timestamp as text, in UTC; an unreadable one is returned unchanged.

    >>> format_moment("2026-11-23T06:10:12+00:00")
    '23 November 2026, 06:10 UTC'
    """
    try:
        moment = datetime.fromisoformat((text or "").replace("Z", "+00:00"))
    except ValueError:
        return text or ""
    if moment.tzinfo is None:
        moment = moment.replace(tzinfo=timezone.utc)
    moment = moment.astimezone(timezone.utc)
    return f"{moment.day} {moment:%B %Y, %H:%M} UTC"

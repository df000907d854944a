"""The part of a report that is about one notebook: its plots, claims, cells and outputs."""

from __future__ import annotations

import statistics
from pathlib import Path

from labkit.charts import Column, Line, render_columns, render_lines
from labkit.notebooks.report.outputs import ShownCell, read_cells
from labkit.notebooks.report.page import Pieces
from labkit.notebooks.report.saved import Cell, Claim, Notebook, Run, cell_cuda_peak
from labkit.notebooks.report.sections import describe_counts, inline
from labkit.render import escape, make_table, render_status
from labkit.text import format_bytes, format_seconds, plural, shorten

# Of all notebooks together: so many rows and cells keep a page of any run within its bounds.
MAX_ROWS = 1000
FIRST_LINE_CHARACTERS = 90
STATEMENT_CHARACTERS = 600
BAD_ENDS = ("failed", "died", "timed_out")


def draw_notebook(run: Run, number: int, pieces: Pieces) -> str:
    """One notebook's section; its outputs are laid aside in ``pieces``."""
    notebook = run.notebooks[number]
    limit = max(20, MAX_ROWS // len(run.notebooks))
    parts = [
        f'<h2 id="n{number}">{escape(notebook.name)}'
        f'<span class="aside">{render_status(notebook.status)}</span></h2>',
        f'<p class="soft">{_describe_notebook(notebook)}</p>',
        _draw_seconds(notebook),
        _draw_memory(notebook),
        _draw_cuda(notebook),
        _draw_timeline(notebook),
        _draw_claims(notebook.claims, limit),
        _draw_checks(notebook),
        _draw_table(number, notebook, limit),
        _draw_cells(run.folder, number, notebook, pieces, limit),
    ]
    return f"<section>{''.join(parts)}</section>"


def _describe_notebook(notebook: Notebook) -> str:
    words = f"{describe_counts([notebook])} It took {format_seconds(notebook.seconds)}"
    if notebook.startup_seconds is not None:
        words += f", {format_seconds(notebook.startup_seconds)} of it to start the kernel"
    return f'{escape(words)}. <span class="mono">{escape(notebook.path)}</span>'


def _draw_seconds(notebook: Notebook) -> str:
    timed = [cell for cell in notebook.cells if cell.seconds is not None]
    if not timed:
        return ""
    slowest = max(timed, key=lambda cell: cell.seconds or 0.0)
    median = statistics.median(cell.seconds or 0.0 for cell in timed)
    words = (
        f"The slowest is {_name_cell(slowest)} with {format_seconds(slowest.seconds)};"
        f" the median is {format_seconds(median)}."
    )
    columns = [
        Column(
            str(cell.number),
            cell.seconds,
            bad=cell.status in BAD_ENDS,
            tooltip=_tooltip(cell, format_seconds(cell.seconds)),
        )
        for cell in notebook.cells
    ]
    plot = render_columns(columns, alt=f"Time per cell. {words}", unit="seconds")
    return _figure("Time per cell", words, plot)


def _draw_memory(notebook: Notebook) -> str:
    peak = notebook.peak_bytes
    if peak is None:
        return ""
    highest = next(c for c in notebook.cells if c.memory and c.memory.peak_bytes == peak)
    words = f"The process is largest in {_name_cell(highest)}, with {format_bytes(peak)}."
    columns = []
    for cell in notebook.cells:
        memory = cell.memory
        value = memory.peak_bytes if memory else None
        after = memory.after_bytes if memory else None
        columns.append(
            Column(
                str(cell.number),
                value,
                lower=after,
                tooltip=_tooltip(cell, f"peak {format_bytes(value)}, then {format_bytes(after)}"),
            )
        )
    key = '<span class="key peak"></span>at most<span class="key after"></span>afterwards'
    plot = render_columns(columns, alt=f"Memory per cell. {words}", unit="bytes")
    return _figure("Memory per cell", words, plot, key)


def _draw_cuda(notebook: Notebook) -> str:
    peak = notebook.cuda_peak_bytes
    if peak is None:
        return ""
    highest = next(cell for cell in notebook.cells if cell_cuda_peak(cell) == peak)
    words = f"The most is allocated in {_name_cell(highest)}: {format_bytes(peak)}."
    columns = [
        Column(str(cell.number), cell_cuda_peak(cell), tooltip=_tooltip(cell, _say_cuda(cell)))
        for cell in notebook.cells
    ]
    plot = render_columns(columns, alt=f"CUDA memory per cell. {words}", unit="bytes")
    return _figure("Peak on CUDA per cell", words, plot)


def _draw_timeline(notebook: Notebook) -> str:
    moments = notebook.timeline
    resident = [(m.seconds, m.resident_bytes) for m in moments if m.resident_bytes is not None]
    cuda = [(m.seconds, m.cuda_bytes) for m in moments if m.cuda_bytes is not None]
    lines = [Line("process", tuple(resident)), Line("cuda", tuple(cuda))]
    words = f"{plural(len(moments), 'sample')} from the run’s start to its end."
    plot = render_lines(lines, alt=f"Memory over the seconds of the run. {words}")
    if not plot:
        return ""
    key = '<span class="key process"></span>process<span class="key cuda"></span>reserved on CUDA'
    return _figure("Memory over time", words, plot, key if cuda else "")


def _figure(title: str, words: str, plot: str, key: str = "") -> str:
    caption = f'<b>{title}</b> <span class="soft">{escape(words)}{key}</span>'
    return f"<figure><figcaption>{caption}</figcaption>{plot}</figure>"


def _draw_claims(claims: tuple[Claim, ...], limit: int) -> str:
    if not claims:
        return ""
    held = [claim for claim in claims if claim.held is True]
    failed = [claim for claim in claims if claim.held is False]
    skipped = [claim for claim in claims if claim.held is None]
    parts = ["<h3>Claims</h3>"]
    if failed:
        parts.append(f'<p class="bad">{plural(len(failed), "claim")} did not hold</p>')
        parts.append(_list_claims(failed, limit))
    if skipped:
        parts.append(
            f"<p>{plural(len(skipped), 'claim')} skipped</p>{_list_claims(skipped, limit)}"
        )
    if held:
        summary = f"<summary>{plural(len(held), 'claim')} held</summary>"
        parts.append(f"<details>{summary}{_list_claims(held, limit)}</details>")
    return "".join(parts)


def _list_claims(claims: list[Claim], limit: int) -> str:
    items = [_draw_claim(claim) for claim in claims[:limit]]
    if len(claims) > limit:
        items.append(f"<em>{plural(len(claims) - limit, 'more claim')} in result.json</em>")
    return f"<ul>{''.join(f'<li>{item}</li>' for item in items)}</ul>"


def _draw_claim(claim: Claim) -> str:
    reason = f' <span class="quiet">({escape(claim.skipped)})</span>' if claim.skipped else ""
    return inline(shorten(claim.statement, STATEMENT_CHARACTERS)) + reason


def _draw_checks(notebook: Notebook) -> str:
    if not notebook.checks:
        return ""
    items = "".join(
        f'<li><span class="mono">{escape(check.name)}</span> {render_status(check.status)}</li>'
        for check in sorted(notebook.checks, key=lambda check: check.status == "passed")
    )
    return f'<h3>Checks</h3><ul class="checks">{items}</ul>'


def _draw_table(number: int, notebook: Notebook, limit: int) -> str:
    if not notebook.cells:
        return ""
    cells = notebook.cells
    caption = "Change is the process’s memory after the cell less that before it."
    if len(cells) > limit:
        slowest = sorted(cells, key=lambda cell: (cell.status in BAD_ENDS, cell.seconds or 0.0))
        cells = tuple(sorted(slowest[-limit:], key=lambda cell: cell.index))
        caption += f" The {limit:,} slowest of {len(notebook.cells):,} cells."
    heads = ["cell", "first line", "status", "#time", "#peak memory", "#change", "#output"]
    on_cuda = notebook.cuda_peak_bytes is not None
    if on_cuda:
        heads.append("#peak on CUDA")
    rows = [_table_row(number, cell)[: len(heads)] for cell in cells]
    table = make_table(caption, heads, rows)
    return f"<h3>Cells</h3><details><summary>Each cell in numbers</summary>{table}</details>"


def _table_row(number: int, cell: Cell) -> list[str]:
    memory = cell.memory
    label = str(cell.number) if cell.number is not None else "tagged"
    return [
        f'<a href="#n{number}-c{cell.index}">{label}</a>',
        f'<span class="mono">{escape(shorten(cell.first_line, FIRST_LINE_CHARACTERS))}</span>',
        _mark_cell(cell),
        format_seconds(cell.seconds),
        format_bytes(memory.peak_bytes if memory else None),
        format_change(memory.before_bytes, memory.after_bytes) if memory else "unknown",
        format_bytes(cell.output_bytes) + (" (cut)" if cell.truncated else ""),
        format_bytes(cell_cuda_peak(cell)),
    ]


def format_change(before: int | None, after: int | None) -> str:
    """The difference with its sign; "unknown" where a side is.

    >>> format_change(1024, 3072), format_change(2048, 1024), format_change(None, 1)
    ('+2.0 KiB', '−1.0 KiB', 'unknown')
    """
    if before is None or after is None:
        return "unknown"
    sign = "+" if after > before else "−" if after < before else ""
    return sign + format_bytes(abs(after - before))


def _draw_cells(folder: Path, number: int, notebook: Notebook, pieces: Pieces, limit: int) -> str:
    if not notebook.executed:
        return '<p class="soft">The executed notebook was not kept.</p>'
    # A name only: a result from elsewhere must not make this page read outside of its folder.
    name = Path(notebook.executed).name
    shown = read_cells(folder / name, f"n{number}")
    if shown is None:
        return f'<p class="soft">The executed notebook {escape(name)} cannot be read.</p>'
    results = {cell.index: cell for cell in notebook.cells}
    articles = [_draw_cell(number, cell, results.get(cell.index), pieces, name) for cell in shown]
    more = len(articles) - limit
    if more > 0:
        note = f'<p class="left-out">{plural(more, "more cell")} in {escape(name)}</p>'
        articles = [*articles[:limit], note]
    summary = f"<summary>{plural(len(shown), 'cell')} with what they showed</summary>"
    return f"<details>{summary}{''.join(articles)}</details>"


def _draw_cell(number: int, shown: ShownCell, cell: Cell | None, pieces: Pieces, name: str) -> str:
    headings = "".join(f'<h4 class="heading">{inline(text)}</h4>' for text in shown.headings)
    source = pieces.lay_aside(shown.source, name)
    outputs = "".join(pieces.lay_aside(piece, name) for piece in shown.outputs)
    cut = '<p class="left-out">This cell’s output was cut while it ran.</p>'
    return (
        f'{headings}<article class="cell" id="n{number}-c{shown.index}">'
        f"<header>{_describe_cell(cell)}</header>"
        f"{source}{outputs}{cut if cell and cell.truncated else ''}</article>"
    )


def _describe_cell(cell: Cell | None) -> str:
    if cell is None:
        return "a cell the result does not tell of"
    words = [escape(_name_cell(cell)), _mark_cell(cell), format_seconds(cell.seconds)]
    if cell.memory and cell.memory.peak_bytes is not None:
        words.append(f"peak {format_bytes(cell.memory.peak_bytes)}")
    if cell.cuda:
        words.append(escape(_say_cuda(cell)))
    return " · ".join(words)


def _mark_cell(cell: Cell) -> str:
    return render_status(cell.status) + (f" (raised {escape(cell.raised)})" if cell.raised else "")


def _name_cell(cell: Cell) -> str:
    return "a skipped cell" if cell.number is None else f"cell {cell.number}"


def _tooltip(cell: Cell, words: str) -> str:
    return f"{_name_cell(cell)}: {words}\n{shorten(cell.first_line, FIRST_LINE_CHARACTERS)}"


def _say_cuda(cell: Cell) -> str:
    return ", ".join(f"{one.place} peak {format_bytes(one.peak_bytes)}" for one in cell.cuda)

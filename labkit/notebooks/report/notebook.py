"""The report's section on one notebook: its plots, claims, cells and outputs.

An output is shown in the richest form that needs no script, sanitized and limited in size.
nh3 sanitizes the html with an allowlist. Scripts, styles, frames and forms are removed with their
content; an unknown tag is removed, but its text stays. The page loads nothing: only images in data
URLs stay, and links only work as links. An element's style can set colors and sizes, but cannot
move the element.
"""

from __future__ import annotations

import base64
import binascii
import json
import re
import statistics
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import nh3

from labkit.charts import Column, Line, render_columns, render_lines
from labkit.files import read_regular
from labkit.notebooks.result import CellMemory, CellResult, ClaimOutcome, NotebookResult
from labkit.notebooks.sources import is_nested_too_deep
from labkit.render import escape, escape_block, make_table, mark_controls, render_status
from labkit.text import count_bytes, format_bytes, format_seconds, plural, shorten

# Above these limits, parsing takes seconds: its cost is quadratic in the open elements.
MAX_TAGS = 20_000
MAX_REPEATED = 2_000_000
# The parser reopens these elements in each following block, up to three equal ones.
_REOPENED = re.compile(
    r"<(?:a|b|big|code|em|font|i|nobr|s|small|strike|strong|tt|u)[\s/]", re.IGNORECASE
)


def _words(text: str) -> set[str]:
    return set(text.split())


_HTML_TAGS = _words(
    "a abbr address article aside b bdi bdo blockquote br caption center cite code col colgroup"
    " dd del details dfn div dl dt em figcaption figure font footer h1 h2 h3 h4 h5 h6 header hr i"
    " img ins kbd li main mark meter ol p pre progress q rp rt ruby s samp section small span"
    " strike strong sub summary sup table tbody td tfoot th thead time tr tt u ul var wbr"
)
_SVG_TAGS = _words(
    "svg g path rect circle ellipse line polyline polygon text tspan textPath defs symbol use"
    " marker linearGradient radialGradient stop clipPath mask pattern title desc"
)
# Removed with their content.
_REMOVED = _words(
    "script style iframe frame frameset object applet template noscript noembed noframes form"
    " select textarea button audio video canvas map math head foreignObject animate set"
    " animateTransform animateMotion"
)
_HTML_ATTRIBUTES = _words(
    "align alt abbr aria-hidden aria-label bgcolor border cellpadding cellspacing char color"
    " colspan datetime dir face headers height hidden high href id lang low max min nowrap open"
    " optimum role rows rowspan scope size span start src style title type valign value width"
)
_SVG_ATTRIBUTES = _words(
    "alignment-baseline baseline-shift clip-path clip-rule cx cy d direction display"
    " dominant-baseline dx dy fill fill-opacity fill-rule filter font-family font-size font-style"
    " font-variant font-weight fx fy gradientTransform gradientUnits clipPathUnits marker-end"
    " marker-mid marker-start markerHeight markerUnits markerWidth mask offset opacity orient"
    " patternTransform patternUnits points preserveAspectRatio r refX refY rotate rx ry stop-color"
    " stop-opacity stroke stroke-dasharray stroke-dashoffset stroke-linecap stroke-linejoin"
    " stroke-miterlimit stroke-opacity stroke-width text-anchor textLength text-decoration"
    " transform vector-effect viewBox visibility x x1 x2 xlink:href y y1 y2 letter-spacing"
)
# CSS properties that stay: none that sets a position, a negative margin, a transform or a layer.
_SIDES = ("", "-top", "-right", "-bottom", "-left")
_STYLE_PROPERTIES = {
    *(f"padding{side}" for side in _SIDES),
    *(f"margin{side}" for side in _SIDES),
    *(f"border{side}{part}" for side in _SIDES for part in ("", "-color", "-style", "-width")),
    *_words(
        "background background-color border-collapse border-radius border-spacing caption-side"
        " clear color column-count column-gap direction display empty-cells fill fill-opacity flex"
        " flex-direction flex-wrap float font font-family font-size font-style font-variant"
        " font-weight gap grid-template-columns height justify-content align-items letter-spacing"
        " line-height list-style list-style-type max-height max-width min-height min-width opacity"
        " overflow overflow-x overflow-y stroke stroke-dasharray stroke-linecap stroke-linejoin"
        " stroke-opacity stroke-width table-layout text-align text-anchor text-decoration"
        " text-indent text-overflow text-transform vertical-align visibility white-space width"
        " word-break word-wrap overflow-wrap"
    ),
}
# A value that loads a resource, or could hide one behind an escape.
_LOADS = re.compile(r"url\s*\(|image-set|image\s*\(|src\s*\(|expression|@|\\|//|/\*", re.IGNORECASE)
_NEGATIVE = re.compile(r"(?<![\w-])-\s*[\d.]")
_DATA_IMAGE = re.compile(r"data:image/(png|jpeg|gif|webp|svg\+xml);base64,[A-Za-z0-9+/=\s]+\Z")
_LINK = re.compile(r"(https?://|mailto:)[^\s]+\Z", re.IGNORECASE)
_POINTER = re.compile(r"""url\(\s*['"]?#([\w:.-]+)['"]?\s*\)\Z""")
_ID = re.compile(r"[\w:.-]+\Z")
# Attributes with free text for readers.
_WORDS = {"abbr", "alt", "aria-label", "title"}
# An svg of 240 x 20 pixels with the words "an image that is not in the notebook".
MISSING_IMAGE = (
    "data:image/svg+xml;base64,PHN2ZyB4bWxucz0iaHR0cDovL3d3dy53My5vcmcvMjAwMC9zdmciIHdpZHRoPSIyNDAi"
    "IGhlaWdodD0iMjAiPjx0ZXh0IHk9IjE1IiBmb250LXNpemU9IjEzIiBmaWxsPSIjODg4Ij5hbiBpbWFnZSB0aGF0IGlz"
    "IG5vdCBpbiB0aGUgbm90ZWJvb2s8L3RleHQ+PC9zdmc+"
)


def is_cheap(text: str) -> bool:
    """True if parsing the html takes less than about a second."""
    tags = text.count("<")
    return tags <= MAX_TAGS and len(_REOPENED.findall(text)) * tags <= MAX_REPEATED


def clean_html(text: str, prefix: str) -> str:
    """The html of an output, without scripts, loaded resources and positioned elements.

    ``prefix`` is added to every id, so that the ids of two outputs do not collide on one page.
    """
    return nh3.clean(
        mark_controls(text),
        tags=_HTML_TAGS | _SVG_TAGS,
        clean_content_tags=_REMOVED,
        attributes={"*": _HTML_ATTRIBUTES | _SVG_ATTRIBUTES},
        attribute_filter=lambda tag, name, value: _clean_attribute(tag, name, value, prefix),
        filter_style_properties=_STYLE_PROPERTIES,
        url_schemes={"http", "https", "mailto", "data"},
        id_prefix=prefix,
    )


def strip_tags(text: str) -> str:
    """The text of the html, without tags."""
    return nh3.clean(text, tags=set(), clean_content_tags={"script", "style"})


def _clean_attribute(tag: str, name: str, value: str, prefix: str) -> str | None:
    """The attribute's safe value; None removes the attribute."""
    if name == "src":
        return value if tag == "img" and _DATA_IMAGE.match(value) else MISSING_IMAGE
    if name in ("href", "xlink:href"):
        return _clean_link(tag, value.strip(), prefix)
    if name == "id":
        return value if _ID.match(value) else None
    if name == "style":
        return clean_style(value)
    pointer = _POINTER.match(value.strip())
    if pointer:
        return f"url(#{prefix}{pointer[1]})"
    return value if name in _WORDS or not _LOADS.search(value) else None


def _clean_link(tag: str, value: str, prefix: str) -> str | None:
    if value.startswith("#") and _ID.match(value[1:]):
        return f"#{prefix}{value[1:]}"
    return value if tag == "a" and _LINK.match(value) else None


def clean_style(style: str) -> str | None:
    """The safe declarations: no loading, no escapes, no negative values. None if none is left."""
    kept = [part.strip() for part in style.split(";") if part.strip()]
    harmless = (part for part in kept if not _LOADS.search(part) and not _NEGATIVE.search(part))
    return "; ".join(harmless) or None


# Limits over all notebooks of a run, so that the page stays within its size limit.
MAX_ROWS = 1000
FIRST_LINE_CHARACTERS = 90
STATEMENT_CHARACTERS = 600
BAD_ENDS = ("failed", "died", "timed_out")

# Takes an output and the name of the file that contains it; returns its placeholder in the page.
LayAside = Callable[["Piece", str], str]


@dataclass(frozen=True)
class Section:
    """A notebook, its position in the run, and the data that the parts of its section share."""

    place: int
    notebook: NotebookResult
    limit: int

    @cached_property
    def numbers(self) -> dict[int, int]:
        """The number of each cell that runs, by its index."""
        return self.notebook.cell_numbers

    def name_cell(self, cell: CellResult) -> str:
        """The cell's name with its number, counted from 1."""
        number = self.numbers.get(cell.index)
        return "a skipped cell" if number is None else f"cell {number}"

    def tooltip(self, cell: CellResult, words: str) -> str:
        """The tooltip of a cell in a plot."""
        return f"{self.name_cell(cell)}: {words}\n{shorten(cell.first_line, FIRST_LINE_CHARACTERS)}"


def render_notebook(
    folder: Path, notebooks: Sequence[NotebookResult], place: int, lay_aside: LayAside
) -> str:
    """One notebook's section; ``lay_aside`` stores its outputs and returns placeholders."""
    notebook = notebooks[place]
    section = Section(place, notebook, max(20, MAX_ROWS // len(notebooks)))
    parts = [
        f'<h2 id="n{place}">{escape(notebook.name)}'
        f'<span class="aside">{render_status(notebook.status)}</span></h2>',
        f'<p class="soft">{_describe_notebook(notebook)}</p>',
        _render_seconds(section),
        _render_memory(section),
        _render_cuda(section),
        _render_timeline(notebook),
        _render_claims(notebook.claims, section.limit),
        _render_checks(notebook),
        _render_changes(section),
        _render_table(section),
        _render_cells(section, folder, lay_aside),
    ]
    return f"<section>{''.join(parts)}</section>"


def describe_counts(notebooks: Iterable[NotebookResult]) -> str:
    """The counts of cells run, claims held and skipped, and checks passed, in words."""
    notebooks = list(notebooks)
    cells = [cell for notebook in notebooks for cell in notebook.cells]
    claims = [claim for notebook in notebooks for claim in notebook.claims]
    checks = [check for notebook in notebooks for check in notebook.checks]
    words = [f"{sum(cell.has_run for cell in cells):,} of {plural(len(cells), 'cell')} ran"]
    if claims:
        held = sum(claim.held is True for claim in claims)
        failed = sum(claim.held is False for claim in claims)
        words.append(f"{held:,} of {plural(len(claims), 'claim')} held")
        words += [f"{failed:,} did not"] if failed else []
        skipped = len(claims) - held - failed
        words += [f"{skipped:,} skipped"] if skipped else []
    if checks:
        passed = sum(check.status == "passed" for check in checks)
        words.append(f"{passed:,} of {plural(len(checks), 'check')} passed")
    return ", ".join(words) + "."


def inline(text: str) -> str:
    """A sentence as html, with `backticked` words as code."""
    return BACKTICKS.sub(r"<code>\1</code>", escape(text))


def _describe_notebook(notebook: NotebookResult) -> str:
    words = f"{describe_counts([notebook])} It took {format_seconds(notebook.seconds)}"
    if notebook.startup_seconds is not None:
        words += f", {format_seconds(notebook.startup_seconds)} of it to start the kernel"
    if notebook.kernel:
        words += f" {notebook.kernel}"
    if notebook.parameters:
        values = ", ".join(f"{name} = {value!r}" for name, value in notebook.parameters.items())
        words += f". Parameters: {values}"
    words = ". ".join([words, *notebook.notes])
    return f'{escape(words)}. <span class="mono">{escape(notebook.path)}</span>'


def _render_seconds(section: Section) -> str:
    cells = section.notebook.cells
    timed = [cell for cell in cells if cell.seconds is not None]
    if not timed:
        return ""
    slowest = max(timed, key=lambda cell: cell.seconds or 0.0)
    median = statistics.median(cell.seconds or 0.0 for cell in timed)
    words = (
        f"The slowest is {section.name_cell(slowest)} with {format_seconds(slowest.seconds)};"
        f" the median is {format_seconds(median)}."
    )
    columns = [
        Column(
            str(section.numbers.get(cell.index)),
            cell.seconds,
            bad=cell.status in BAD_ENDS,
            tooltip=section.tooltip(cell, format_seconds(cell.seconds)),
        )
        for cell in cells
    ]
    plot = render_columns(columns, alt=f"Time per cell. {words}", unit="seconds")
    return _figure("Time per cell", words, plot)


def _render_memory(section: Section) -> str:
    notebook, peak = section.notebook, section.notebook.peak_bytes
    if peak is None:
        return ""
    highest = next(c for c in notebook.cells if c.memory and c.memory.peak_bytes == peak)
    words = f"The process is largest in {section.name_cell(highest)}, with {format_bytes(peak)}."
    columns = []
    for cell in notebook.cells:
        memory = cell.memory or CellMemory()
        sizes = f"peak {format_bytes(memory.peak_bytes)}, then {format_bytes(memory.after_bytes)}"
        columns.append(
            Column(
                str(section.numbers.get(cell.index)),
                memory.peak_bytes,
                lower=memory.after_bytes,
                tooltip=section.tooltip(cell, sizes),
            )
        )
    key = '<span class="key peak"></span>at most<span class="key after"></span>afterwards'
    plot = render_columns(columns, alt=f"Memory per cell. {words}", unit="bytes")
    return _figure("Memory per cell", words, plot, key)


def _render_cuda(section: Section) -> str:
    notebook, peak = section.notebook, section.notebook.cuda_peak_bytes
    if peak is None:
        return ""
    highest = next(cell for cell in notebook.cells if cell.cuda_peak_bytes == peak)
    words = f"The most is allocated in {section.name_cell(highest)}: {format_bytes(peak)}."
    columns = [
        Column(
            str(section.numbers.get(cell.index)),
            cell.cuda_peak_bytes,
            tooltip=section.tooltip(cell, _say_cuda(cell)),
        )
        for cell in notebook.cells
    ]
    plot = render_columns(columns, alt=f"CUDA memory per cell. {words}", unit="bytes")
    return _figure("Peak on CUDA per cell", words, plot)


def _render_timeline(notebook: NotebookResult) -> str:
    points = notebook.timeline
    resident = [(seconds, count) for seconds, count, _ in points if count is not None]
    cuda = [(seconds, count) for seconds, _, count in points if count is not None]
    lines = [Line("process", tuple(resident)), Line("cuda", tuple(cuda))]
    words = f"{plural(len(points), 'sample')} from the run’s start to its end."
    plot = render_lines(lines, alt=f"Memory over the seconds of the run. {words}")
    if not plot:
        return ""
    key = '<span class="key process"></span>process<span class="key cuda"></span>reserved on CUDA'
    return _figure("Memory over time", words, plot, key if cuda else "")


def _figure(title: str, words: str, plot: str, key: str = "") -> str:
    caption = f'<b>{title}</b> <span class="soft">{escape(words)}{key}</span>'
    return f"<figure><figcaption>{caption}</figcaption>{plot}</figure>"


def _render_claims(claims: Sequence[ClaimOutcome], limit: int) -> str:
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


def _render_changes(section: Section) -> str:
    changes = section.notebook.output_changes
    if changes is None:
        return ""
    if not changes:
        return "<p>The compared outputs are the saved ones.</p>"
    numbers = section.notebook.cell_numbers
    rows = [
        f"<li>cell {numbers.get(change.cell_index, '?')}: saved"
        f" <code>{escape(change.saved or 'nothing')}</code>,"
        f" seen <code>{escape(change.seen or 'nothing')}</code></li>"
        for change in changes[: section.limit]
    ]
    more = len(changes) - len(rows)
    rows += [f"<li><em>{more:,} more in result.json</em></li>"] if more else []
    title = f"{plural(len(changes), 'output')} differ from the saved ones"
    return f'<h3>Outputs</h3><p class="bad">{title}</p><ul>{"".join(rows)}</ul>'


def _list_claims(claims: list[ClaimOutcome], limit: int) -> str:
    items = [_render_claim(claim) for claim in claims[:limit]]
    if len(claims) > limit:
        items.append(f"<em>{plural(len(claims) - limit, 'more claim')} in result.json</em>")
    return f"<ul>{''.join(f'<li>{item}</li>' for item in items)}</ul>"


def _render_claim(claim: ClaimOutcome) -> str:
    reason = f' <span class="quiet">({escape(claim.skipped)})</span>' if claim.skipped else ""
    return inline(shorten(claim.statement, STATEMENT_CHARACTERS)) + reason


def _render_checks(notebook: NotebookResult) -> str:
    if not notebook.checks:
        return ""
    items = "".join(
        f'<li><span class="mono">{escape(check.name)}</span> {render_status(check.status)}</li>'
        for check in sorted(notebook.checks, key=lambda check: check.status == "passed")
    )
    return f'<h3>Checks</h3><ul class="checks">{items}</ul>'


def _render_table(section: Section) -> str:
    cells, limit = section.notebook.cells, section.limit
    if not cells:
        return ""
    caption = "Change is the process’s memory after the cell less that before it."
    if len(cells) > limit:
        caption += f" The {limit:,} slowest of {len(cells):,} cells."
        slowest = sorted(cells, key=lambda cell: (cell.status in BAD_ENDS, cell.seconds or 0.0))
        cells = tuple(sorted(slowest[-limit:], key=lambda cell: cell.index))
    heads = ["cell", "first line", "status", "#time", "#peak memory", "#change", "#output"]
    if section.notebook.cuda_peak_bytes is not None:
        heads.append("#peak on CUDA")
    rows = [_table_row(section, cell)[: len(heads)] for cell in cells]
    table = make_table(caption, heads, rows)
    return f"<h3>Cells</h3><details><summary>Each cell in numbers</summary>{table}</details>"


def _table_row(section: Section, cell: CellResult) -> list[str]:
    memory = cell.memory or CellMemory()
    label = section.numbers.get(cell.index, "tagged")
    return [
        f'<a href="#n{section.place}-c{cell.index}">{label}</a>',
        f'<span class="mono">{escape(shorten(cell.first_line, FIRST_LINE_CHARACTERS))}</span>',
        _mark_cell(cell),
        format_seconds(cell.seconds),
        format_bytes(memory.peak_bytes),
        format_change(memory.before_bytes, memory.after_bytes),
        format_bytes(cell.output_bytes) + (" (cut)" if cell.truncated else ""),
        format_bytes(cell.cuda_peak_bytes),
    ]


def format_change(before: int | None, after: int | None) -> str:
    """The difference with its sign; "unknown" if a value is None.

    >>> format_change(1024, 3072), format_change(2048, 1024), format_change(None, 1)
    ('+2.0 KiB', '−1.0 KiB', 'unknown')
    """
    if before is None or after is None:
        return "unknown"
    sign = "+" if after > before else "−" if after < before else ""
    return sign + format_bytes(abs(after - before))


def _render_cells(section: Section, folder: Path, lay_aside: LayAside) -> str:
    notebook = section.notebook
    if not notebook.executed:
        return '<p class="soft">The executed notebook was not kept.</p>'
    # Only the file name: a foreign result must not make this page read files outside its folder.
    name = Path(notebook.executed).name
    shown = read_cells(folder / name, f"n{section.place}")
    if shown is None:
        return f'<p class="soft">The executed notebook {escape(name)} cannot be read.</p>'
    results = {cell.index: cell for cell in notebook.cells}
    articles = []
    for cell in shown[: section.limit]:
        pieces = (lay_aside(piece, name) for piece in (cell.source, *cell.outputs))
        articles.append(_render_cell(section, cell, results.get(cell.index), "".join(pieces)))
    more = len(shown) - section.limit
    if more > 0:
        articles.append(f'<p class="left-out">{plural(more, "more cell")} in {escape(name)}</p>')
    summary = f"<summary>{plural(len(shown), 'cell')} with what they showed</summary>"
    return f"<details>{summary}{''.join(articles)}</details>"


def _render_cell(section: Section, shown: ShownCell, cell: CellResult | None, content: str) -> str:
    headings = "".join(f'<h4 class="heading">{inline(text)}</h4>' for text in shown.headings)
    cut = '<p class="left-out">This cell’s output was cut while it ran.</p>'
    return (
        f'{headings}<article class="cell" id="n{section.place}-c{shown.index}">'
        f"<header>{_describe_cell(section, cell)}</header>"
        f"{content}{cut if cell and cell.truncated else ''}</article>"
    )


def _describe_cell(section: Section, cell: CellResult | None) -> str:
    if cell is None:
        return "a cell that the result does not mention"
    words = [escape(section.name_cell(cell)), _mark_cell(cell), format_seconds(cell.seconds)]
    if cell.memory and cell.memory.peak_bytes is not None:
        words.append(f"peak {format_bytes(cell.memory.peak_bytes)}")
    if cell.cuda:
        words.append(escape(_say_cuda(cell)))
    return " · ".join(words)


def _mark_cell(cell: CellResult) -> str:
    return render_status(cell.status) + (f" (raised {escape(cell.raised)})" if cell.raised else "")


def _say_cuda(cell: CellResult) -> str:
    return ", ".join(f"{one.device} peak {format_bytes(one.peak_bytes)}" for one in cell.cuda or ())


# The cells of the executed notebook.

MAX_TEXT_CHARACTERS = 16_000
MAX_SOURCE_CHARACTERS = 12_000
MAX_HTML_CHARACTERS = 400_000
MAX_IMAGE_CHARACTERS = 1_500_000
IMAGES = ("image/svg+xml", "image/png", "image/jpeg", "image/gif", "image/webp")
TEXTS = ("text/markdown", "text/latex", "application/json", "text/plain")
BACKTICKS = re.compile(r"`([^`]+)`")
HEADING = re.compile(r"#{1,6}[ \t]")
FENCES = ("```", "~~~")
DRAWN = re.compile(r"<(?:img|svg|table|hr|meter|progress)\b")


@dataclass(frozen=True)
class Piece:
    """One output (or source): its approximate bytes of html, and a function that renders it.

    ``what`` names it in the note if it is left out.
    """

    what: str
    size_bytes: int
    make: Callable[[], str]


@dataclass(frozen=True)
class ShownCell:
    """A code cell of the executed notebook: the headings above it, its source, its outputs."""

    index: int
    headings: tuple[str, ...]
    source: Piece
    outputs: tuple[Piece, ...]


def read_cells(path: Path, prefix: str) -> tuple[ShownCell, ...] | None:
    """The code cells of the notebook at ``path``; None if it cannot be read.

    ``prefix`` makes the ids in its outputs unique among all notebooks.
    """
    try:
        notebook = json.loads(read_regular(path).decode(errors="replace"))
    except (OSError, ValueError, RecursionError):
        return None
    cells = notebook.get("cells") if isinstance(notebook, dict) else None
    return tuple(_read_cells(cells, prefix)) if isinstance(cells, list) else None


def _read_cells(cells: list[Any], prefix: str) -> Iterator[ShownCell]:
    headings: list[str] = []
    for index, cell in enumerate(cells):
        if not isinstance(cell, Mapping):
            continue
        source = _join(cell.get("source"))
        if cell.get("cell_type") == "markdown":
            headings += _find_headings(source)
        elif cell.get("cell_type") == "code" and source.strip():
            outputs = cell.get("outputs")
            pieces = _list_outputs(outputs if isinstance(outputs, list) else [], prefix, index)
            yield ShownCell(index, tuple(headings), show_source(source), tuple(pieces))
            headings = []


def _find_headings(source: str) -> Iterator[str]:
    """The headings of a markdown cell; lines in code blocks are ignored."""
    inside = ""
    for line in source.splitlines():
        fence = line[:3]
        if fence in FENCES and inside in ("", fence):
            inside = "" if inside else fence
        elif not inside and HEADING.match(line):
            yield line.strip().strip("#").strip()


def show_source(source: str) -> Piece:
    """A cell's source, unchanged."""
    return _show_text(source.rstrip("\n"), "source", "source", MAX_SOURCE_CHARACTERS)


def _list_outputs(outputs: list[Any], prefix: str, index: int) -> Iterator[Piece]:
    for number, output in enumerate(_merge_streams(outputs)):
        kind = output.get("output_type")
        if kind == "stream":
            css = "stderr" if output.get("name") == "stderr" else "stdout"
            yield _show_text(_join(output.get("text")), f"text on {css}", css)
        elif kind == "error":
            traceback = "\n".join(str(line) for line in output.get("traceback") or ())
            text = traceback or f"{output.get('ename')}: {output.get('evalue')}"
            yield _show_text(text, "traceback", "error")
        elif isinstance(output.get("data"), Mapping):
            metadata = output.get("metadata")
            yield _show_bundle(
                output["data"],
                metadata if isinstance(metadata, Mapping) else {},
                f"{prefix}-{index}-{number}-",
            )


def _merge_streams(outputs: list[Any]) -> list[Mapping[str, Any]]:
    """The outputs, with consecutive outputs to the same stream merged."""
    merged: list[Mapping[str, Any]] = []
    texts: list[str] = []
    for output in (one for one in outputs if isinstance(one, Mapping)):
        last = merged[-1] if merged else {}
        stream = output.get("output_type") == "stream"
        if (
            stream
            and last.get("output_type") == "stream"
            and last.get("name") == output.get("name")
        ):
            texts.append(_join(output.get("text")))
            merged[-1] = {**last, "text": texts}
        else:
            texts = [_join(output.get("text"))] if stream else []
            merged.append(output)
    return merged


def _show_bundle(data: Mapping[str, Any], metadata: Mapping[str, Any], prefix: str) -> Piece:
    """The richest form of an output that can be shown without scripts."""
    notes = []
    if "text/html" in data:
        text = _join(data["text/html"])
        if len(text) <= MAX_HTML_CHARACTERS:
            piece = _show_html(text, prefix, data)
            if piece:
                return piece
        notes.append(f"its html ({format_bytes(len(text))}) is not shown")
    for mime in IMAGES:
        image = _show_image(mime, data, metadata) if mime in data else None
        if image:
            return image
    for mime in TEXTS:
        if mime in data:
            value = data[mime]
            text = _format_json(value) if "json" in mime else _join(value)
            return _show_text(text, mime, "result", note="; ".join(notes))
    kinds = ", ".join(sorted(str(kind) for kind in data)) or "nothing"
    return _show_text(f"[an output of {kinds}]", "output", "result")


def _show_html(text: str, prefix: str, data: Mapping[str, Any]) -> Piece | None:
    """The sanitized html; None if parsing is too slow, or if the html shows nothing without its
    scripts and the output has another form."""

    if not is_cheap(text):
        return None
    others = any(mime in data for mime in (*IMAGES, *TEXTS))
    if others and "<script" in text.lower() and not _shows_something(clean_html(text, prefix)):
        return None
    return Piece("html", count_bytes(text), lambda: _wrap_html(clean_html(text, prefix)))


def _shows_something(cleaned: str) -> bool:

    return DRAWN.search(cleaned) is not None or bool(strip_tags(cleaned).strip())


def _wrap_html(cleaned: str) -> str:
    return f'<div class="rich">{cleaned}</div>'


def _show_image(mime: str, data: Mapping[str, Any], metadata: Mapping[str, Any]) -> Piece | None:
    """The image as a data URL; None if its data is broken or too large."""
    text = _join(data[mime])
    if mime == "image/svg+xml":
        encoded = base64.b64encode(text.encode(errors="replace")).decode()
    else:
        encoded = "".join(text.split())
        try:
            base64.b64decode(encoded, validate=True)
        except (binascii.Error, ValueError):
            return None
    if not encoded or len(encoded) > MAX_IMAGE_CHARACTERS:
        return None
    plain = _join(data.get("text/plain")).strip()
    alt = plain[:200] if plain and not plain.startswith("<") else "a picture the cell drew"
    paper = metadata.get("needs_background")
    css = f' class="on-{paper}"' if paper in ("light", "dark") else ""
    page = f'<img{css} src="data:{mime};base64,{encoded}" alt="{escape(alt)}">'
    return Piece(mime, len(page), lambda: f'<div class="rich">{page}</div>')


def _show_text(
    text: str, what: str, css: str, limit: int = MAX_TEXT_CHARACTERS, note: str = ""
) -> Piece:
    said = f'<p class="left-out">{escape(note)}</p>' if note else ""
    return Piece(
        what,
        min(count_bytes(text), 2 * limit),
        lambda: f'<pre class="{css}">{escape_block(text, limit)}</pre>{said}',
    )


def _format_json(value: Any) -> str:
    deep = is_nested_too_deep(value)
    return "[JSON that is nested too deep to show]" if deep else json.dumps(value, indent=1)


def _join(value: object) -> str:
    """A text of the notebook format, which can be stored as a list of lines."""
    if isinstance(value, str):
        return value
    return "".join(str(line) for line in value) if isinstance(value, list) else ""

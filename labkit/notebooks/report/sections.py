"""The parts of a report that are about the whole run: verdict, failures, machine, overview."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from datetime import datetime, timezone

from labkit.notebooks.report.saved import Cell, Failure, Notebook, Run
from labkit.render import escape, escape_block, make_table, render_status, start_sentence, to_words
from labkit.text import format_bytes, format_seconds, plural

MAX_TRACEBACK_CHARACTERS = 20_000
NAMES_OF_FACTS = {
    "python": "Python",
    "torch": "PyTorch",
    "labkit": "labkit",
    "memory_total_bytes": "Memory",
}
BACKTICKS = re.compile(r"`([^`]+)`")


def draw_header(run: Run) -> str:
    """The verdict in a sentence, when the run was, and the counts behind the verdict."""
    when = [format_moment(run.started_at)]
    if run.seconds is not None:
        when.append(f"took {format_seconds(run.seconds)}")
    kicker = " · ".join(["labkit run", *(text for text in when if text)])
    return (
        f'<header><p class="kicker">{escape(kicker)}</p>'
        f"<h1>{escape(describe_verdict(run))}</h1>"
        f'<p class="lede">{escape(describe_counts(run.notebooks))}</p>{_draw_buttons()}</header>'
    )


def _draw_buttons() -> str:
    return (
        '<p class="no-print"><button type="button" data-open="yes" hidden>Open all</button>'
        '<button type="button" data-open="no" hidden>Close all</button></p>'
    )


def describe_verdict(run: Run) -> str:
    """What came of the run in one line: "3 notebooks passed", "tensors failed"."""
    unwell = [notebook for notebook in run.notebooks if notebook.status != "passed"]
    if not run.notebooks:
        return "No notebook was run"
    if not unwell:
        names = [notebook.name for notebook in run.notebooks]
        return f"{join_names(names) if len(names) < 4 else f'All {len(names)} notebooks'} passed"
    if len(run.notebooks) == 1:
        return f"{unwell[0].name} {_say_ending(unwell[0].status)}"
    if len(unwell) == len(run.notebooks):
        return f"None of the {len(unwell)} notebooks passed"
    return f"{len(unwell)} of {len(run.notebooks)} notebooks did not pass"


def join_names(names: Sequence[str]) -> str:
    """The names as a sentence has them.

    >>> join_names(["tensors", "autograd", "compile"])
    'tensors, autograd and compile'
    """
    return " and ".join([", ".join(names[:-1]), names[-1]] if len(names) > 1 else names)


def _say_ending(status: str) -> str:
    verbs = {
        "invalid": "could not be read",
        "interrupted": "was interrupted",
        "not_run": "was not run",
        "unknown": "ended, how is unknown",
        "running": "was cut short",
    }
    return verbs.get(status, to_words(status))


def describe_counts(notebooks: Iterable[Notebook]) -> str:
    """Cells run, claims held and skipped, checks passed, over all the notebooks, in words."""
    notebooks = list(notebooks)
    cells = [cell for notebook in notebooks for cell in notebook.cells]
    claims = [claim for notebook in notebooks for claim in notebook.claims]
    checks = [check for notebook in notebooks for check in notebook.checks]
    words = [f"{sum(has_run(cell) for cell in cells):,} of {plural(len(cells), 'cell')} ran"]
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


def has_run(cell: Cell) -> bool:
    """True where the cell was started."""
    return cell.status not in ("skipped", "not_run")


def draw_failures(run: Run) -> str:
    """What did not hold and why, a block for each notebook; "" where everything held."""
    blocks = [
        _draw_failure(number, notebook)
        for number, notebook in enumerate(run.notebooks)
        if is_unwell(notebook)
    ]
    if not blocks:
        return ""
    return f'<section><h2 id="failures">What did not hold</h2>{"".join(blocks)}</section>'


def is_unwell(notebook: Notebook) -> bool:
    """True where there is something to explain: a bad end, a failed claim or check."""
    return (
        notebook.status not in ("passed", "not_run")
        or notebook.failure is not None
        or any(claim.held is False for claim in notebook.claims)
        or any(check.status != "passed" for check in notebook.checks)
    )


def _draw_failure(number: int, notebook: Notebook) -> str:
    parts = [f"<h3>{escape(notebook.name)}: {render_status(notebook.status)}</h3>"]
    if notebook.failure:
        parts.append(_explain_failure(number, notebook.failure, notebook.cells))
    parts += [
        f'<p class="what">Claim does not hold: {inline(claim.statement)}</p>'
        for claim in notebook.claims
        if claim.held is False
    ]
    parts += [
        '<p class="what">Check did not pass: '
        f"{escape(f'{check.name} ({to_words(check.status)})')}</p>"
        for check in notebook.checks
        if check.status != "passed"
    ]
    if len(parts) == 1:
        running = notebook.status == "running"
        why = "The run was cut short while it ran." if running else "The result does not say why."
        parts.append(f'<p class="what">{why}</p>')
    return f'<article class="failure">{"".join(parts)}</article>'


def _explain_failure(number: int, failure: Failure, cells: tuple[Cell, ...]) -> str:
    parts = [f'<p class="what">{escape(failure.what)}</p>']
    if any(cell.index == failure.cell_index for cell in cells):
        link = f"#n{number}-c{failure.cell_index}"
        parts.append(f'<p class="no-print"><a href="{link}">to the cell and what it showed</a></p>')
    if failure.hint and "\n\n" in failure.hint:  # a page with columns, not a sentence
        parts.append(f"<pre>{escape_block(failure.hint, MAX_TRACEBACK_CHARACTERS)}</pre>")
    elif failure.hint:
        parts.append(f"<p>{inline(failure.hint)}</p>")
    if failure.details:
        parts.append(draw_facts(failure.details))
    if failure.source:
        source = escape_block(failure.source, MAX_TRACEBACK_CHARACTERS)
        parts.append(f"<p>Its source</p><pre>{source}</pre>")
    if failure.traceback:
        traceback = escape_block(failure.traceback, MAX_TRACEBACK_CHARACTERS)
        parts.append(f'<p>Traceback</p><pre class="error">{traceback}</pre>')
    return "".join(parts)


def draw_machine(run: Run) -> str:
    """Where the run ran, how its memory was measured, and what the measuring cost."""
    environment = dict(run.environment)
    environment.pop("best", None)
    environment.pop("device", None)
    devices = environment.pop("devices", None)
    memory = environment.pop("memory_total_bytes", None)
    facts: dict[str, object] = {"ran on": run.device}
    if isinstance(devices, list):
        facts["devices"] = [_name_device(device) for device in devices]
    facts["memory_total_bytes"] = memory
    facts.update(environment)
    facts.update(_describe_measuring(run))
    return f'<section><h2 id="machine">The machine</h2>{draw_facts(facts)}</section>'


def _name_device(device: object) -> str:
    if not isinstance(device, Mapping):
        return format_fact("device", device)
    name = str(device.get("name") or "unknown")
    return f"{name} ({device['torch_name']})" if device.get("torch_name") else name


def _describe_measuring(run: Run) -> dict[str, object]:
    how = run.measuring.get("how")
    how = how if isinstance(how, Mapping) else {}
    facts: dict[str, object] = {
        "process memory": how.get("process") or "not measured",
        "CUDA memory": how.get("cuda") or "not measured",
    }
    costs = []
    for key, unit in (("seconds_per_cell", "a cell"), ("sampling_seconds", "for the timeline")):
        cost = run.measuring.get(key)
        if isinstance(cost, int | float) and not isinstance(cost, bool):
            costs.append(f"{format_seconds(cost)} {unit}")
    facts["cost of measuring"] = costs or "unknown"
    return facts


def draw_facts(facts: Mapping[str, object]) -> str:
    """Facts as a list of names and values; a value's unit is told by the end of its name."""
    rows = "".join(
        f"<div><dt>{escape(_name_fact(key))}</dt><dd>{_draw_fact(key, value)}</dd></div>"
        for key, value in facts.items()
    )
    return f"<dl>{rows}</dl>"


def _draw_fact(key: str, value: object) -> str:
    """The value as html, each part of a list or of named parts on a line of its own."""
    parts: list[object] = [value]
    if isinstance(value, Mapping):
        parts = [{name: part} for name, part in value.items()]
    elif isinstance(value, list) and value:
        parts = value
    return "<br>".join(escape(format_fact(key, part)) for part in parts)


def _name_fact(key: str) -> str:
    if key in NAMES_OF_FACTS:
        return NAMES_OF_FACTS[key]
    return start_sentence(to_words(key.removesuffix("_bytes").removesuffix("_seconds")))


def format_fact(key: str, value: object) -> str:
    """A value of the result in words; None is "unknown".

    >>> format_fact("free_bytes", 2048), format_fact("torch", None), format_fact("x", ["a", 1])
    ('2.0 KiB', 'unknown', 'a; 1')
    """
    if value is None or isinstance(value, bool):
        return {None: "unknown", True: "yes", False: "no"}[value]
    if isinstance(value, int | float):
        return _format_number(key, value)
    if isinstance(value, Mapping):
        return ", ".join(
            f"{_name_fact(str(name)).lower()} {format_fact(str(name), part)}"
            for name, part in value.items()
        )
    if isinstance(value, list | tuple):
        return "; ".join(format_fact(key, part) for part in value) or "none"
    return str(value)


def _format_number(key: str, value: int | float) -> str:
    if key.endswith("_bytes"):
        return format_bytes(round(value))
    return format_seconds(value) if key.endswith("seconds") else f"{value:,}"


def draw_overview(run: Run) -> str:
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
    return f'<section><h2 id="notebooks">Notebooks</h2>{table}</section>'


def _overview_row(number: int, notebook: Notebook) -> list[str]:
    held = sum(claim.held is True for claim in notebook.claims)
    passed = sum(check.status == "passed" for check in notebook.checks)
    ran = sum(has_run(cell) for cell in notebook.cells)
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


def inline(text: str) -> str:
    """A sentence as html, its `backticked` words as code."""
    return BACKTICKS.sub(r"<code>\1</code>", escape(text))


def format_moment(text: str | None) -> str:
    """An ISO moment as people write it, in UTC; what cannot be read is kept as it is.

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

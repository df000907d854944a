"""An estimate as text, HTML and JSON: the bar and its terms, the verdict, the lines, the notes."""

from __future__ import annotations

from labkit.memory.balance.model import MIB, Term, divide_bar
from labkit.memory.balance.view import INLINE_STYLE, Row, Sheet, render_sheet
from labkit.memory.balance.view import PICTURE_COLORS as OF_BALANCE
from labkit.memory.estimate.model import Estimate
from labkit.memory.track.model import LineUse
from labkit.render import escape
from labkit.text import format_bytes, plural, shorten

INDENT = " " * 8
BAR_WIDTH = 64
SOURCE_LENGTH = 60
GLYPHS = {
    "parameters": "█",
    "gradients": "▓",
    "optimizer": "▒",
    "buckets": "▚",
    "activations": "╱",
    "inputs": "░",
    "other": "?",
    "cached": "-",
    "workspaces": "=",
    "context": "+",
    "free": "·",
}
PLAIN_GLYPHS = dict(zip(GLYPHS, "#=%&/:?-*+.", strict=True))


def format_estimate(estimate: Estimate, *, plain: bool = False, width: int = BAR_WIDTH) -> str:
    """The estimate as text; ``plain`` draws the bar in ASCII."""
    glyphs = PLAIN_GLYPHS if plain else GLYPHS
    terms = list_terms(estimate)
    bar = "".join(glyphs[key] * cells for key, cells in divide_bar(terms, width))
    rows = [
        f"{INDENT}{glyphs[term.key]} {term.words:<32}{format_bytes(term.held_bytes):>22}"
        for term in terms
    ]
    rows += [f"{INDENT}  {words:<32}{figure:>22}" for words, figure in list_sums(estimate)]
    parts = ["\n".join([name_work(estimate), f"{INDENT}{bar}".rstrip(), *rows])]
    parts.append("\n".join(say_verdict(estimate)))
    if estimate.lines:
        lines = [
            f"{INDENT}{format_bytes(one.held_bytes):>10}  {where}"
            for one, where in name_lines(estimate)
        ]
        parts.append("\n".join(["the lines that hold most at the peak", *lines]))
    if estimate.notes:
        parts.append("\n".join(f"note: {note}" for note in estimate.notes))
    return "\n\n".join(parts)


def name_work(estimate: Estimate) -> str:
    """What was estimated: the function, its batch, and whether gradients were off."""
    words = [estimate.name]
    if estimate.batch is not None:
        words.append(f"batch {estimate.batch}")
    if estimate.inference:
        words.append("inference")
    return ", ".join(words)


def list_terms(estimate: Estimate) -> list[Term]:
    """The parts of the bar: the peak's categories, CUDA's memory, and the memory left."""
    terms = [Term(name, name, held) for name, held in estimate.kinds.items() if held]
    if estimate.reserved_bytes is not None:
        cached = estimate.reserved_bytes - estimate.peak_bytes
        if cached > 0:
            terms.append(Term("cached", "cached by the allocator", cached))
    if estimate.workspace_bytes:
        terms.append(Term("workspaces", "workspaces of cuBLAS", estimate.workspace_bytes))
    if estimate.context_bytes is not None:
        terms.append(Term("context", "context and libraries, at most", estimate.context_bytes[1]))
    if estimate.target.capacity_bytes is not None:
        left = estimate.target.capacity_bytes - estimate.most_bytes
        if left > 0:
            terms.append(Term("free", "free", left))
    return terms


def list_sums(estimate: Estimate) -> list[tuple[str, str]]:
    """The sums under the terms: the tensors' peak, the needed memory, and the capacity."""
    sums = [("tensors at the peak", format_bytes(estimate.peak_bytes))]
    if estimate.context_bytes is not None:
        needed = f"{format_bytes(estimate.least_bytes)} to {format_bytes(estimate.most_bytes)}"
        sums.append(("needed", needed))
    if (estimate.host_bytes or 0) >= MIB:  # less are the counts of an optimizer
        sums.append(("tensors that stay on the host", format_bytes(estimate.host_bytes)))
    if estimate.target.capacity_bytes is not None:
        sums.append((estimate.target.name, format_bytes(estimate.target.capacity_bytes)))
    return sums


def say_verdict(estimate: Estimate) -> list[str]:
    """Whether it fits, by how much, and the largest batch that fits; one sentence per line."""
    said = []
    if estimate.obstacle is not None:
        said += [f"a lower bound: {estimate.obstacle}"]
    if estimate.excess is not None:
        said += [f"an upper bound: {estimate.excess}"]
    if estimate.growth_bytes:
        grown = format_bytes(estimate.growth_bytes)
        said += [f"a lower bound for more than {estimate.steps} steps: each keeps {grown} more"]
    spare, name = estimate.spare_bytes, estimate.target.name
    if spare is not None:
        said.append(_say_fit(estimate, spare, name))
    if estimate.largest_batch:
        said.append(f"the largest batch that fits: {estimate.largest_batch}")
    elif estimate.largest_batch == 0:
        said.append("not even a batch of 1 certainly fits")
    taken = estimate.target.taken_bytes
    if taken:
        said.append(f"other processes hold {format_bytes(taken)} of {name} now")
    return said or ["no verdict: no device was named"]


def _say_fit(estimate: Estimate, spare: int, name: str) -> str:
    if estimate.fits:
        return f"fits {name}, with {format_bytes(spare)} to spare"
    if estimate.fits is False:
        return f"does not fit {name}: {format_bytes(-spare)} too much"
    if estimate.steps_left and estimate.obstacle is None:
        steps = plural(estimate.steps_left, "more step")
        return f"its memory grows with each step: fits {name} for about {steps}"
    if estimate.obstacle is not None:
        return f"unknown whether it fits {name}"
    reason = "CUDA's context and the allocator's cache"
    if estimate.excess is not None and spare < 0:
        reason = "how much less the real step needs"
    elif estimate.lowest_bytes is not None and estimate.lowest_bytes < estimate.peak_bytes:
        reason = "unknown values"
    return f"close: whether it fits {name} depends on {reason}"


def name_lines(estimate: Estimate) -> list[tuple[LineUse, str]]:
    """Each line with its place and its text."""
    return [(one, _name_line(one)) for one in estimate.lines]


def _name_line(line: LineUse) -> str:
    if line.frame is None:
        return "before the step, or not in a line of Python"
    return f"{line.frame.where}  {shorten(line.frame.source, SOURCE_LENGTH)}".rstrip()


# Terms that the balance has too have its colors; in the balance all tensors are blue.
COLORS = {
    "parameters": OF_BALANCE["allocated"],
    "gradients": "#2a9d8f",
    "optimizer": "#a8982c",
    "buckets": "#5f8f3f",
    "activations": "#e08a2e",
    "inputs": "#d6487e",
    "other": "#8a8f98",
    "workspaces": "#7b5ea7",
    **{key: OF_BALANCE[key] for key in ("cached", "context", "free")},
}


def render_estimate(estimate: Estimate) -> str:
    """The estimate as one piece of html."""
    verdict = "".join(f"<div><b>{escape(one)}</b></div>" for one in say_verdict(estimate))
    lines = "".join(
        f'<div style="white-space:pre"><code>{_pad(line.held_bytes)}  {escape(where)}</code></div>'
        for line, where in name_lines(estimate)
    )
    held = f"<details><summary>the lines that hold most at the peak</summary>{lines}</details>"
    notes = "".join(f"<p>note: {escape(note)}</p>" for note in estimate.notes)
    body = render_bar(estimate) + verdict + (held if lines else "") + notes
    return f'<div class="labkit-estimate" style="{INLINE_STYLE}">{body}</div>'


def render_bar(estimate: Estimate) -> str:
    """The terms as an SVG picture: the bar, and each with its color and figure."""
    terms = list_terms(estimate)
    figures = {term.key: format_bytes(term.held_bytes) for term in terms}
    rows = [Row(term.words, figures[term.key], COLORS[term.key]) for term in terms]
    rows += [Row(words, figure) for words, figure in list_sums(estimate)]
    title = name_work(estimate)
    return render_sheet(Sheet(f"estimate of {title}", title, terms, COLORS, figures, rows))


def describe_estimate(estimate: Estimate) -> dict[str, object]:
    """The estimate as ``--json`` prints it; what is unknown is null."""
    return {
        "function": estimate.name,
        "batch": estimate.batch,
        "inference": estimate.inference,
        "device": {
            "name": estimate.target.name,
            "kind": estimate.target.kind,
            "capacity_bytes": estimate.target.capacity_bytes,
            "taken_bytes": estimate.target.taken_bytes,
        },
        "peak_bytes": estimate.peak_bytes,
        "lowest_bytes": estimate.lowest_bytes,
        "growth_bytes": estimate.growth_bytes,
        "kinds": estimate.kinds,
        "host_bytes": estimate.host_bytes,
        "allocated_bytes": estimate.allocated_bytes,
        "reserved_bytes": estimate.reserved_bytes,
        "workspace_bytes": estimate.workspace_bytes,
        "context_bytes": estimate.context_bytes,
        "needed_bytes": [estimate.least_bytes, estimate.most_bytes],
        "fits": estimate.fits,
        "spare_bytes": estimate.spare_bytes,
        "largest_batch": estimate.largest_batch,
        "complete": estimate.obstacle is None,
        "excess": estimate.excess,
        "obstacle": _describe_obstacle(estimate),
        "lines": [_describe_line(line) for line in estimate.lines],
        "notes": list(estimate.notes),
    }


def _describe_obstacle(estimate: Estimate) -> dict[str, object] | None:
    obstacle = estimate.obstacle
    if obstacle is None:
        return None
    return {
        "operator": obstacle.operator,
        "reason": obstacle.reason,
        "file": obstacle.frame and obstacle.frame.file,
        "line": obstacle.frame and obstacle.frame.line,
    }


def _describe_line(line: LineUse) -> dict[str, object]:
    return {
        "file": line.frame and line.frame.file,
        "line": line.frame and line.frame.line,
        "source": line.frame and line.frame.source,
        "held_bytes": line.held_bytes,
        "storages": line.storages,
    }


def _pad(count: int) -> str:
    return f"{format_bytes(count):>10}"

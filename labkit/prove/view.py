"""A proof as text for a terminal, as one offline page, and two proofs side by side."""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple

from labkit.charts import AREA, WIDTH, Area, Line, Scale, render_frame, render_lines, render_tick
from labkit.memory.balance.view import render_balance
from labkit.notebooks.compare import Pair
from labkit.notebooks.report.page import format_moment, make_page
from labkit.prove.judge import VARIABLES, is_rate
from labkit.prove.limits import find_limit
from labkit.prove.model import Cause, DeviceProof, Figure, HardwareFacts, LabProof, Proof, ProofFact
from labkit.render import escape, make_table, start_sentence
from labkit.text import escape_controls, format_bytes, format_seconds, plural

FACT_ORDER = ("failed", "warning", "unknown", "ok", "skipped")
FOUND = {True: "yes", False: "no", None: "unknown"}


def format_value(value: float | None, unit: str) -> str:
    """A figure with its unit, in three digits.

    >>> format_value(722.43, "TFLOP/s"), format_value(15.86, "us"), format_value(None, "s")
    ('722 TFLOP/s', '15.9 us', 'not measured')
    """
    if value is None:
        return "not measured"
    digits = max(0, 2 - math.floor(math.log10(value))) if value > 0 else 0
    return f"{value:,.{min(digits, 3)}f} {unit}"


def format_share(figure: Figure) -> str:
    """The part of the limit that was reached; "" if the limit is unknown.

    >>> format_share(Figure(value=722.0, limit=1070.5, unit="TFLOP/s"))
    '67 % of 1,070 TFLOP/s'
    """
    if figure.share is None:
        return ""
    return f"{figure.share:.0%} of {format_value(figure.limit, figure.unit)}".replace("%", " %")


def format_spread(figure: Figure) -> str:
    """Half the distance of the 20th and 80th percentile, in percent of the value; "" if unknown."""
    if figure.slow is None or figure.fast is None or not figure.value:
        return ""
    return f"± {abs(figure.fast - figure.slow) / 2 / figure.value:.1%}".replace("%", " %")


# The terminal


def format_proof(proof: Proof) -> str:
    """The proof as text: each device's figures, what is low and why, what failed, the verdict."""
    blocks = [_format_device(device) for device in proof.devices]
    if proof.links:
        blocks.append("\n".join(["between GPUs", *_format_figures(proof.links)]))
    bad = [fact for fact in proof.facts if fact.status in ("failed", "warning")]
    blocks += [_format_fact(fact) for fact in bad]
    if proof.labs:
        blocks.append("\n".join(_format_lab(lab) for lab in proof.labs))
    if proof.variables:
        set_ = proof.variables.items()
        said = [f"  {name}={value}: {VARIABLES.get(name, 'unknown')}" for name, value in set_]
        blocks.append("\n".join(["set variables", *said]))
    blocks += [
        f"{step.name}: {step.words}" for step in proof.steps if step.status in ("skipped", "failed")
    ]
    return escape_controls("\n\n".join([*blocks, start_sentence(proof.verdict)]))


def _format_device(device: DeviceProof) -> str:
    lines = [f"{device.torch_name or device.kind}  {device.name or 'unknown'}"]
    lines += [f"  trouble: {device.trouble}"] if device.trouble else []
    lines += _format_figures(device.figures)
    for figure in device.figures:
        if figure.status == "low":
            lines += ["", f"  low: {figure.title}: {figure.why}"]
            lines += _format_causes(figure.causes)
    if device.alarms:
        lines += ["", "  found on this device:", *_format_causes(device.alarms)]
    return "\n".join(lines)


def _format_figures(figures: Sequence[Figure]) -> list[str]:
    width = max((len(figure.title) for figure in figures), default=0)
    lines = []
    for figure in figures:
        if figure.value is None:
            lines.append(f"  {figure.title:<{width}}  {figure.status}: {figure.why}")
            continue
        value = format_value(figure.value, figure.unit)
        verdict = "" if figure.status == "unjudged" else figure.status
        share = format_share(figure)
        line = f"  {figure.title:<{width}}  {value:>16}  {format_spread(figure):>8}  {share:<26}"
        lines.append(f"{line}  {verdict}".rstrip())
    return lines


def _format_causes(causes: Iterable[Cause]) -> list[str]:
    lines = []
    for cause in causes:
        lines.append(f"    {cause.name}: {FOUND[cause.found]}: {cause.words}")
        if cause.found and cause.command:
            lines.append(f"      try: {cause.command}")
    return lines


def _format_fact(fact: ProofFact) -> str:
    lines = [f"{fact.status}: {fact.group}: {fact.name}: {fact.found}"]
    lines += [f"  cause: {fact.cause}"] if fact.cause else []
    lines += [f"  try: {fact.fix}"] if fact.fix else []
    return "\n".join(lines)


def _format_lab(lab: LabProof) -> str:
    line = f"{lab.name}: {_say(lab.status)}, {lab.held} of {plural(lab.claims, 'claim')} held"
    line += f", {lab.skipped} skipped" if lab.skipped else ""
    line += f" ({format_seconds(lab.seconds)})" if lab.seconds else ""
    return "\n".join([line, *(f"  does not hold: {statement}" for statement in lab.broken)])


def _say(status: str) -> str:
    return status.replace("_", " ")


# The page

STYLE = """
.low { color: var(--bad); font-weight: 600; }
.roof { fill: none; stroke: var(--soft); stroke-width: 1.5; }
.roof.measured { stroke-dasharray: 5 4; stroke: var(--accent); }
.leader { stroke: var(--soft); stroke-width: 0.75; }
.dot { fill: var(--accent); stroke: var(--paper); stroke-width: 1; }
.dot.bad { fill: var(--bad); }
.line.clock { stroke: var(--second); }
.line.power { stroke: var(--good); }
.key.clock { background: var(--second); }
.key.power { background: var(--good); }
.key.rate { background: var(--accent); }
.roofline .name { paint-order: stroke; stroke: var(--paper); stroke-width: 4px; }
.command { font-family: var(--mono); font-size: 0.82rem; overflow-wrap: anywhere; }
.balances svg { max-width: 100%; height: auto; }
"""


def render_proof(proof: Proof) -> str:
    """The proof as one HTML document that loads nothing: the verdict first, then the evidence."""
    sections = [
        _render_low(proof),
        *(_render_device(device) for device in proof.devices),
        _render_links(proof.links),
        _render_labs(proof),
        _render_facts(proof.facts),
        _render_conditions(proof),
    ]
    body = (
        f"{_render_header(proof)}<main>{''.join(sections)}</main>"
        "<footer><p>Made by "
        f"{escape(f'labkit {proof.versions.labkit or str()}'.strip())} from proof.json beside it."
        " This page loads nothing and can be read offline. It has no host name, and UUIDs are"
        " hashed.</p></footer>"
    )
    return make_page(f"{start_sentence(proof.verdict)} - labkit prove", body, STYLE)


def _render_header(proof: Proof) -> str:
    names = [device.name or device.kind for device in proof.devices if device.kind != "cpu"]
    names = names or [device.name or device.kind for device in proof.devices]
    when = ["labkit prove", format_moment(proof.started_at)]
    when += [f"took {format_seconds(proof.seconds)}"] if proof.seconds else []
    counted = ", ".join(
        f"{names.count(name)} x {name}" if names.count(name) > 1 else name
        for name in dict.fromkeys(names)
    )
    return (
        f'<header><p class="kicker">{escape(" · ".join(text for text in when if text))}</p>'
        f"<h1>{escape(start_sentence(proof.verdict))}</h1>"
        f'<p class="lede">{escape(counted)}. {escape(_describe_correctness(proof))}</p></header>'
    )


def _describe_correctness(proof: Proof) -> str:
    claims = sum(lab.claims for lab in proof.labs)
    held = sum(lab.held for lab in proof.labs)
    parts = [f"{held} of {plural(claims, 'claim')} of the labs held"] if claims else []
    checks = [fact for fact in proof.facts if fact.group == "doctor"]
    failed = sum(fact.status == "failed" for fact in checks)
    if checks:
        parts.append(f"{plural(len(checks), 'check')} of the doctor, {failed} failed")
    return "; ".join(parts) + "." if parts else ""


def _render_low(proof: Proof) -> str:
    """What is low or failed, each with the causes that were looked at; "" if all is well."""
    blocks = []
    for device, figure in proof.figures:
        if figure.status in ("low", "failed"):
            blocks.append(_render_bad_figure(device, figure))
    for device in proof.devices:
        named = {cause.words for figure in device.figures for cause in figure.causes if cause.found}
        alarms = [cause for cause in device.alarms if cause.words not in named]
        blocks += [_render_alarm(device, cause) for cause in alarms]
        if device.trouble:
            blocks.append(_render_block(f"{_name(device)} cannot be used", device.trouble))
    blocks += [
        _render_block(
            f"{fact.group}: {fact.name}", fact.found, *filter(None, [fact.cause]), command=fact.fix
        )
        for fact in proof.facts
        if fact.status == "failed"
    ]
    blocks += [
        _render_block(f"lab {lab.name}: {_say(lab.status)}", *lab.broken)
        for lab in proof.labs
        if lab.is_broken
    ]
    return (
        f'<section><h2 id="low">What is not as it should be</h2>{"".join(blocks)}</section>'
        if (blocks)
        else ""
    )


def _name(device: DeviceProof) -> str:
    return f"{device.name or 'unknown'} ({device.torch_name or device.kind})"


def _render_block(title: str, *lines: str, command: str | None = None) -> str:
    parts = [f"<h3>{escape(title)}</h3>", *(f"<p>{escape(line)}</p>" for line in lines)]
    if command:
        parts.append(f"<p>Try: <code>{escape(command)}</code></p>")
    return f'<article class="failure">{"".join(parts)}</article>'


def _render_bad_figure(device: DeviceProof | None, figure: Figure) -> str:
    where = f" on {_name(device)}" if device else ""
    value = "" if figure.value is None else f": {format_value(figure.value, figure.unit)}"
    parts = [f"<h3>{escape(start_sentence(figure.title))}{escape(where)}{escape(value)}</h3>"]
    share = format_share(figure)
    said = "; ".join(text for text in (share, figure.why or "") if text)
    parts.append(f"<p>{escape(start_sentence(said))}.</p>")
    if figure.causes:
        rows = [
            [
                escape(cause.name),
                f'<span class="{"bad" if cause.found else "quiet"}">{FOUND[cause.found]}</span>',
                escape(cause.words),
                f'<span class="command">{escape(cause.command or "")}</span>',
            ]
            for cause in figure.causes
        ]
        heads = ["likely cause", "found", "what was seen", "what tells more"]
        parts.append(make_table("Causes that were looked at", heads, rows))
    return f'<article class="failure">{"".join(parts)}</article>'


def _render_alarm(device: DeviceProof, cause: Cause) -> str:
    return _render_block(f"{_name(device)}: {cause.name}", cause.words, command=cause.command)


def _render_device(device: DeviceProof) -> str:
    parts = [f"<h2>{escape(_name(device))}</h2>", _render_figures(device.figures)]
    roofline = render_roofline(device)
    if roofline:
        words = (
            "Measured points under the limits of the hardware: solid lines are the memory's rate"
            " and the units' rate by dtype, the dashed line is the memory's rate as measured."
        )
        drawn = f"<figcaption>{words}</figcaption>{roofline}"
        parts.append(f'<figure class="roofline">{drawn}</figure>')
    parts.append(_render_sustained(device))
    if device.balance:
        drawn = render_balance(device.balance.restore(device))
        words = "Its memory at the end of the measuring, while the measuring process was there."
        parts.append(f'<figure class="balances"><figcaption>{words}</figcaption>{drawn}</figure>')
    parts.append(_render_hardware(device))
    return f"<section>{''.join(parts)}</section>"


def _render_figures(figures: Sequence[Figure]) -> str:
    rows = [
        [
            escape(figure.title),
            escape(format_value(figure.value, figure.unit)) if figure.value is not None else "",
            escape(format_spread(figure)),
            escape(format_share(figure)),
            escape(format_value(figure.stored, figure.unit)) if figure.stored else "",
            _render_status(figure),
            f'<span class="soft">{escape(figure.detail or figure.why or "")}</span>',
        ]
        for figure in figures
    ]
    heads = ["figure", "#median", "#spread", "#of the limit", "#best stored", "verdict", "measured"]
    keep = [place for place in range(len(heads)) if place < 2 or any(row[place] for row in rows)]
    caption = (
        "Medians of many runs on random data; the spread is between the 20th and 80th percentile."
    )
    return make_table(
        caption, [heads[place] for place in keep], [[row[place] for place in keep] for row in rows]
    )


def _render_status(figure: Figure) -> str:
    css = {"well": "good", "low": "low", "failed": "bad"}.get(figure.status, "quiet")
    return f'<span class="{css}">{escape(figure.status)}</span>'


def _render_links(links: Sequence[Figure]) -> str:
    if not links:
        return ""
    tables = _render_matrix(links) + _render_figures(links)
    return f"<section><h2>Between the GPUs</h2>{tables}</section>"


def _render_matrix(links: Sequence[Figure]) -> str:
    """GB/s from each GPU (rows) to each other (columns)."""
    rates = {
        tuple(one.key.partition(".")[2].split("-")): one for one in links if one.key[:5] == "peer."
    }
    names = sorted({end for pair in rates for end in pair}, key=int)
    rows = [
        [f"cuda:{row}", *(_render_cell(rates.get((row, column))) for column in names)]
        for row in names
    ]
    heads = ["from", *(f"#to cuda:{name}" for name in names)]
    return make_table("Copies between GPUs, GB/s", heads, rows) if names else ""


def _render_cell(link: Figure | None) -> str:
    if link is None or link.value is None:
        return ""
    return f'<span class="{"low" if link.status == "low" else ""}">{link.value:,.1f}</span>'


def _render_hardware(device: DeviceProof) -> str:
    facts, idle = device.hardware, device.idle
    rows: dict[str, str | None] = {
        "Compute capability": facts.compute_capability,
        "SMs": _count(facts.sm_count),
        "Highest clocks": _join(facts.max_sm_mhz, facts.max_memory_mhz, " MHz", "SM", "memory"),
        "Power limit": _pair(facts.power_limit_watts, facts.default_power_limit_watts, "W"),
        "Memory": format_bytes(facts.memory_bytes) if facts.memory_bytes else None,
        "Memory's bus": f"{facts.bus_width_bits:.0f} bit" if facts.bus_width_bits else None,
        "Replaced rows": _count(facts.remapped_rows),
        "Uncorrected errors": _count(facts.ecc_errors),
        "UUID, hashed": device.uuid_hash,
        "Threads": _count(facts.threads),
        "Cores": f"{facts.cores:g}" if facts.cores else None,
    }
    if idle and idle.temperature_celsius is not None:
        power = f", {idle.power_watts:.0f} W" if idle.power_watts is not None else ""
        rows["Before the load"] = f"{idle.temperature_celsius:.0f} °C{power}"
    known = {name: value for name, value in rows.items() if value is not None}
    return _render_list(known)


def _count(number: float | None) -> str | None:
    return None if number is None else f"{number:,.0f}"


def _pair(value: float | None, usual: float | None, unit: str) -> str | None:
    if value is None:
        return None
    default = f" (default {usual:.0f} {unit})" if usual is not None else ""
    return f"{value:.0f} {unit}{default}"


def _join(first: float | None, second: float | None, unit: str, *names: str) -> str | None:
    both = zip((first, second), names, strict=True)
    known = [f"{value:,.0f}{unit} ({name})" for value, name in both if value]
    return ", ".join(known) or None


def _render_list(facts: dict[str, str]) -> str:
    rows = (
        f"<div><dt>{escape(name)}</dt><dd>{escape(value)}</dd></div>"
        for name, value in facts.items()
    )
    return f"<dl>{''.join(rows)}</dl>"


def _render_sustained(device: DeviceProof) -> str:
    """The rate, the SM clock and the power during the sustained load, in percent of their most."""
    readings = [one for one in device.sustained if one.seconds is not None]
    rates = [one.rate for one in readings if one.rate]
    if len(rates) < 2:
        return ""
    facts = device.hardware
    series = (
        ("rate", "rate", [one.rate for one in readings], max(rates)),
        ("clock", "SM clock", [one.sm_mhz for one in readings], facts.max_sm_mhz),
        ("power", "power", [one.power_watts for one in readings], facts.power_limit_watts),
    )
    lines, keys = [], []
    for css, name, values, most in series:
        pairs = zip(readings, values, strict=True)
        points = [
            (float(one.seconds or 0), 100 * value / most)
            for one, value in pairs
            if most and value is not None
        ]
        if len(points) > 1 and most:
            unit = {"rate": "FLOP/s", "clock": "MHz", "power": "W"}[css]
            lines.append(Line(css, tuple(points)))
            scale = f" of {most:,.0f} {unit}" if css != "rate" else " of its best"
            keys.append(f'<span class="key {css}"></span>{name}{scale}')
    ticks = (0.0, 25.0, 50.0, 75.0, 100.0)
    drawn = render_lines(
        lines,
        alt="rate, clock and power over the seconds of load",
        scale=Scale(112.0, ticks, lambda value: f"{value:.0f} %"),
    )
    words = f"{readings[-1].seconds or 0:.0f} seconds of matrix products: {''.join(keys)}"
    reasons = sorted({reason for one in readings for reason in one.clock_reasons or ()})
    if reasons:
        words += f". Clocks were held by: {escape(', '.join(reasons))}"
    return f"<figure><figcaption>{words}.</figcaption>{drawn}</figure>"


def _render_labs(proof: Proof) -> str:
    skipped = [step for step in proof.steps if step.name == "labs" and step.status == "skipped"]
    if not proof.labs:
        words = f'<p class="quiet">Not run: {escape(skipped[0].words)}</p>' if skipped else ""
        return f"<section><h2>Claims of the labs</h2>{words}</section>" if words else ""
    rows = [
        [
            escape(lab.name),
            f'<span class="{_lab_class(lab)}">{escape(_say(lab.status))}</span>',
            f"{lab.held} of {lab.claims}",
            str(lab.skipped),
            f"{lab.passed} of {lab.checks}",
            format_seconds(lab.seconds) if lab.seconds else "",
        ]
        for lab in proof.labs
    ]
    heads = ["lab", "status", "#claims held", "#claims skipped", "#checks passed", "#time"]
    table = make_table("Each lab's reference version, run on this machine.", heads, rows)
    return f"<section><h2>Claims of the labs</h2>{table}</section>"


def _lab_class(lab: LabProof) -> str:
    return "good" if lab.status == "passed" else "bad" if lab.is_broken else "quiet"


def _render_facts(facts: Sequence[ProofFact]) -> str:
    if not facts:
        return ""
    order = {status: place for place, status in enumerate(FACT_ORDER)}
    ordered = sorted(facts, key=lambda fact: order.get(fact.status, len(order)))
    css = {"ok": "good", "failed": "bad", "warning": "low"}
    rows = [
        [
            escape(fact.name),
            f'<span class="{css.get(fact.status, "quiet")}">{escape(fact.status)}</span>',
            escape("; ".join(text for text in (fact.found, fact.cause) if text)),
            f'<span class="command">{escape(fact.fix or "")}</span>',
        ]
        for fact in ordered
    ]
    table = make_table(
        "The doctor's checks, the self-tests of <code>labkit devices --verify</code>, and the"
        " balance beside nvidia-smi.",
        ["check", "status", "what was found", "what mends it"],
        rows,
    )
    return f"<section><h2>Checks</h2>{table}</section>"


def _render_conditions(proof: Proof) -> str:
    versions = proof.versions
    facts = {
        "Command": proof.command,
        "labkit": versions.labkit,
        "PyTorch": versions.torch,
        "Built for CUDA": versions.cuda,
        "Driver": versions.driver,
        "Python": versions.python,
        "Platform": versions.platform,
        "Variables": "; ".join(f"{name}={value}" for name, value in proof.variables.items()),
    }
    steps = make_table(
        "The steps of this proof.",
        ["step", "status", "#time", "result"],
        [
            [
                escape(step.name),
                escape(step.status),
                format_seconds(step.seconds) if step.seconds is not None else "",
                escape(step.words),
            ]
            for step in proof.steps
        ],
    )
    sources = {
        figure.limit_source
        for _, figure in proof.figures
        if figure.limit_source and figure.value is not None
    }
    listed = "".join(f"<li>{escape(source)}</li>" for source in sorted(sources))
    limits = f"<h3>Where the limits come from</h3><ul>{listed}</ul>" if listed else ""
    known = {name: value for name, value in facts.items() if value}
    return f"<section><h2>How this was measured</h2>{_render_list(known)}{steps}{limits}</section>"


# The roofline: rate over intensity, both logarithmic

ROOF_HEIGHT = 380
ROOF_AREA = Area(left=92, width=WIDTH - 92 - 150, height=ROOF_HEIGHT - AREA.top - 44)
LABEL_GAP = 14.0
DTYPES = ("float8", "bfloat16", "tf32", "float32")


class RoofPoint(NamedTuple):
    """A measured point: its name, FLOP per byte, FLOP/s, and whether it is low."""

    name: str
    intensity: float
    rate: float
    low: bool


class RoofScale(NamedTuple):
    """The two logarithmic axes, by the powers of ten at their ends."""

    left: float
    right: float
    bottom: float
    top: float

    def x(self, intensity: float) -> float:
        """The place of an intensity, in pixels."""
        part = (math.log10(intensity) - self.left) / (self.right - self.left)
        return ROOF_AREA.left + ROOF_AREA.width * part

    def y(self, rate: float) -> float:
        """The place of a rate, in pixels."""
        part = (math.log10(rate) - self.bottom) / (self.top - self.bottom)
        return ROOF_AREA.top + ROOF_AREA.height * (1 - part)


def list_points(device: DeviceProof) -> list[RoofPoint]:
    """The device's measured figures that have an intensity."""
    points = []
    for figure in device.figures:
        if not figure.intensity or not figure.value:
            continue
        scale = {"TFLOP/s": 1e12, "GFLOP/s": 1e9, "GB/s": 1e9 * figure.intensity}.get(figure.unit)
        if scale:
            name = figure.title.replace("matrix product, ", "")
            rate = figure.value * scale
            points.append(RoofPoint(name, figure.intensity, rate, figure.status == "low"))
    return points


def render_roofline(device: DeviceProof) -> str:
    """The roofline of a device as an SVG; "" with fewer than two measured points."""
    points = list_points(device)
    if len(points) < 2:
        return ""
    copied = next((one.value for one in device.figures if one.key == "copy.device"), None)
    memory = find_limit("copy.device", device)
    roofs = {
        dtype: found.value * 1e12
        for dtype in DTYPES
        if (found := find_limit(f"matmul.{dtype}", device)) is not None
    }
    rates = [point.rate for point in points] + list(roofs.values())
    scale = RoofScale(
        math.floor(min(math.log10(point.intensity) for point in points)),
        math.ceil(max(math.log10(point.intensity) for point in points) + 0.05),
        math.floor(math.log10(min(rates))),
        math.log10(max(rates)) + 0.15,
    )
    parts = [_render_axes(scale)]
    highest = max(roofs.values(), default=max(rates))
    if memory:
        parts.append(_render_slope(scale, memory.value * 1e9, highest, "roof"))
    if copied:
        parts.append(_render_slope(scale, copied * 1e9, highest, "roof measured"))
    parts += [
        _render_roof(scale, dtype, rate, memory.value * 1e9 if memory else None)
        for dtype, rate in roofs.items()
    ]
    parts.append(_render_points(scale, points))
    listing = ", ".join(f"{point.name} {point.rate / 1e12:.3g} TFLOP/s" for point in points)
    return render_frame("".join(parts), f"roofline: {listing}", ROOF_HEIGHT)


def _render_axes(scale: RoofScale) -> str:
    parts = []
    for power in range(math.ceil(scale.bottom), math.floor(scale.top) + 1):
        y = scale.y(10.0**power)
        label = _name_rate(10.0**power)
        parts.append(
            f'<line class="grid" x1="{ROOF_AREA.left}" x2="{ROOF_AREA.right}" y1="{y:.1f}"'
            f' y2="{y:.1f}"/>{render_tick(ROOF_AREA.left - 6, y + 4, label, "end")}'
        )
    floor = ROOF_AREA.floor
    for power in range(math.ceil(scale.left), math.floor(scale.right) + 1):
        x = scale.x(10.0**power)
        parts.append(
            f'<line class="grid" x1="{x:.1f}" x2="{x:.1f}" y1="{ROOF_AREA.top}" y2="{floor}"/>'
            f"{render_tick(x, floor + 16, f'{10.0**power:g}')}"
        )
    return "".join(parts) + render_tick(
        WIDTH / 2, ROOF_HEIGHT - 6, "FLOP per byte of memory traffic"
    )


def _name_rate(rate: float) -> str:
    unit, size = next(
        (name, size)
        for name, size in (("P", 1e15), ("T", 1e12), ("G", 1e9), ("M", 0.0))
        if rate >= size * 0.999
    )
    return f"{rate / (size or 1e6):g} {unit}FLOP/s"


def _render_slope(scale: RoofScale, bandwidth: float, highest: float, css: str) -> str:
    """The memory's roof, from the left edge (or the floor) to the highest roof."""
    start = max(10.0**scale.left, 10.0**scale.bottom / bandwidth)
    end = min(10.0**scale.right, highest / bandwidth)
    if end <= start:
        return ""
    return (
        f'<line class="{css}" x1="{scale.x(start):.1f}" y1="{scale.y(start * bandwidth):.1f}"'
        f' x2="{scale.x(end):.1f}" y2="{scale.y(end * bandwidth):.1f}"/>'
    )


def _render_roof(scale: RoofScale, dtype: str, rate: float, bandwidth: float | None) -> str:
    start = max(10.0**scale.left, rate / bandwidth) if bandwidth else 10.0**scale.left
    x, y = scale.x(start), scale.y(rate)
    name = "bfloat16, float16" if dtype == "bfloat16" else dtype
    place = f'x="{x - 10:.1f}" y="{y + 3:.1f}" text-anchor="end"'
    label = f'<text class="name" {place}>limit of {name}</text>'
    line = f'<line class="roof" x1="{x:.1f}" x2="{ROOF_AREA.right}" y1="{y:.1f}" y2="{y:.1f}"/>'
    return line + label


def _render_points(scale: RoofScale, points: Sequence[RoofPoint]) -> str:
    """The points; those on the right have their names in a column beside the picture."""
    parts, lowest = [], -math.inf
    for point in sorted(points, key=lambda one: -one.rate):
        x, y = scale.x(point.intensity), scale.y(point.rate)
        left, label_y = x + 9, y + 4
        if x > ROOF_AREA.left + ROOF_AREA.width / 2:
            left, label_y = ROOF_AREA.right + 14, max(y + 4, lowest + LABEL_GAP)
            lowest = label_y
            parts.append(
                f'<line class="leader" x1="{x:.1f}" y1="{y:.1f}" x2="{left - 4:.1f}"'
                f' y2="{label_y - 4:.1f}"/>'
            )
        name = escape(point.name)
        css = "dot bad" if point.low else "dot"
        parts.append(
            f'<circle class="{css}" cx="{x:.1f}" cy="{y:.1f}" r="5"><title>{name}:'
            f" {point.rate / 1e12:.4g} TFLOP/s</title></circle>"
            f'<text class="name" x="{left:.1f}" y="{label_y:.1f}">{name}</text>'
        )
    return "".join(parts)


# Two proofs side by side


class FigurePair(NamedTuple):
    """The same figure in two proofs; ``better`` is None if the change is within 3 percent."""

    device: str
    title: str
    unit: str
    pair: Pair
    better: bool | None


def compare_proofs(a: Proof, b: Proof) -> list[FigurePair]:
    """The figures that both proofs have, in the order of the first; devices by kind and place."""
    others = _list_by_place(b)
    pairs = []
    for place, figure in _list_by_place(a).items():
        if place not in others or (figure.value is None and others[place].value is None):
            continue
        pair = Pair(figure.value, others[place].value)
        better = None
        if pair.ratio is not None and abs(pair.ratio - 1) > 0.03:
            better = (pair.ratio > 1) == is_rate(figure)
        pairs.append(FigurePair(place[0], figure.title, figure.unit, pair, better))
    return pairs


def _list_by_place(proof: Proof) -> dict[tuple[str, str], Figure]:
    places = {}
    for device, figure in proof.figures:
        name = (device.torch_name or device.kind) if device else "between GPUs"
        places[(name, figure.key)] = figure
    return places


def describe_proof_comparison(a: Proof, b: Proof) -> dict[str, Any]:
    """The comparison as JSON values; a ratio is B / A."""
    return {
        "a": {"status": a.status, "verdict": a.verdict, "started_at": a.started_at},
        "b": {"status": b.status, "verdict": b.verdict, "started_at": b.started_at},
        "figures": [
            {
                "device": one.device,
                "title": one.title,
                "unit": one.unit,
                "a": one.pair.a,
                "b": one.pair.b,
                "ratio": one.pair.ratio,
                "better": one.better,
            }
            for one in compare_proofs(a, b)
        ],
    }


def format_proof_comparison(a: Proof, b: Proof) -> str:
    """The comparison as text: what differs below the figures, then each figure with B / A."""
    lines = [f"A: {_title(a)}", f"B: {_title(b)}"]
    lines += _list_differences(a, b)
    pairs = compare_proofs(a, b)
    width = max((len(one.title) for one in pairs), default=0)
    shown = None
    for one in pairs:
        if one.device != shown:
            shown = one.device
            lines += ["", shown]
        ratio = f"{one.pair.ratio:.2f} x" if one.pair.ratio is not None else ""
        word = {True: "better", False: "worse", None: ""}[one.better]
        left, right = (format_value(value, one.unit) for value in (one.pair.a, one.pair.b))
        lines.append(
            f"  {one.title:<{width}}  {left:>16}  {right:>16}  {ratio:>8}  {word}".rstrip()
        )
    # A foreign proof's words stay in their line.
    return "\n".join(escape_controls(re.sub(r"\s", " ", line)) for line in lines)


def _title(proof: Proof) -> str:
    names = dict.fromkeys(device.name or device.kind for device in proof.devices)
    return f"{format_moment(proof.started_at)}, {', '.join(names)}: {proof.verdict}"


def _list_differences(a: Proof, b: Proof) -> list[str]:
    lines = []
    for name in ("labkit", "torch", "cuda", "driver", "python", "platform"):
        first, second = getattr(a.versions, name), getattr(b.versions, name)
        if first != second:
            lines.append(f"   {name}: {first or 'unknown'} -> {second or 'unknown'}")
    for one, other in zip(a.devices, b.devices, strict=False):
        changes = _list_settings(one.hardware, other.hardware)
        lines += [f"   {one.torch_name}: {change}" for change in changes]
    return lines


def _list_settings(a: HardwareFacts, b: HardwareFacts) -> list[str]:
    settings = {
        "power_limit_watts": "power limit in W",
        "max_link_width": "width of the PCIe link",
        "max_link_generation": "generation of the PCIe link",
        "mig_enabled": "MIG",
        "ecc_errors": "uncorrected errors",
        "remapped_rows": "replaced rows",
    }
    pairs = ((words, getattr(a, name), getattr(b, name)) for name, words in settings.items())
    return [f"{words}: {first} -> {second}" for words, first, second in pairs if first != second]

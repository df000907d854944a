"""Renders a history as one small, self-contained HTML page.

It shows a plot of the live bytes over the events, and the segments as bars.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from importlib.resources import files

from labkit.charts import WIDTH, Area, choose_scale
from labkit.memory.allocations.analysis import (
    DeviceHistory,
    Group,
    History,
    Moment,
    Place,
    TimelineColumn,
)
from labkit.memory.allocations.replay import Fragmentation, LaidSegment, LayoutSpan
from labkit.memory.allocations.view import (
    advise,
    explain_failure,
    find_source,
    format_failure,
    format_free,
    format_moment,
    format_place,
    list_notes,
)
from labkit.memory.track.frames import Frame, is_user_file
from labkit.render import escape, make_document, make_table, start_sentence
from labkit.text import format_bytes, format_seconds, plural, shorten_start

HEIGHT = 300
AREA = Area(top=30, height=HEIGHT - 30 - 42)
TICKS_ACROSS = 5
BARS_DRAWN = 40
BAR_HEIGHT, BAR_STEP = 14, 20
ROWS_SHOWN = 25
KEPT_ROWS_SHOWN = 15
NAME_LENGTH, SOURCE_LENGTH = 160, 120
STACKS_BYTES = 700_000  # for all stacks of the page together
CLEAR_SHARE = 25  # percent
FRAGMENTATION = (
    "Fragmentation is free memory in pieces: the allocator has enough free memory in total, but no"
    " single piece is large enough for the next request, so it must take more from the device."
)
NO_CACHE = (
    "On the CPU torch reserves no memory: each tensor takes its memory from the system and gives it"
    " back. So no reserved memory can be fragmented here."
)
COUNTED_ON_CPU = (
    "The figures count the CPU tensors of the thread that recorded. They do not include memory that"
    " an operator allocates and frees within itself; compiled functions ran eagerly."
)
COUNTED_ON_CUDA = (
    "The figures count the bytes that were requested. The CUDA allocator rounds each block up to a"
    " multiple of 512 bytes and sometimes by more, so torch.cuda.max_memory_allocated() can be"
    " a little higher."
)


def render_timeline(device: DeviceHistory) -> str:
    """Plots live bytes by line, and reserved bytes, over the events; marks the peak."""
    timeline = Timeline(device)
    parts = [timeline.scale.render(), timeline.render_bands()]
    if device.has_cache:
        reserved = timeline.trace([one.reserved_bytes for one in device.columns])
        parts.append(f'<path class="reserved" d="{reserved}"/>')
    parts += [timeline.render_events(), timeline.mark_peak()]
    parts += [timeline.mark_failure(one.moment.event) for one in device.failures]
    parts.append(f'<line class="cursor" x1="-9" x2="-9" y1="{AREA.top}" y2="{AREA.floor}"/>')
    words = escape(json.dumps([_describe_column(one, device) for one in device.columns]))
    alt = f"live bytes on {device.device} over {plural(device.events, 'event')}"
    return (
        f'<div class="timeline" data-words="{words}" data-left="{AREA.left}"'
        f' data-width="{AREA.width}">'
        f'<svg class="plot" role="img" aria-label="{escape(alt)}"'
        f' viewBox="0 0 {WIDTH} {HEIGHT}">{"".join(parts)}</svg>'
        '<p class="read" hidden><input type="range" min="0" value="0" step="1"'
        f' max="{len(device.columns) - 1}" aria-label="a moment of the timeline"> <output></output>'
        "</p></div>"
    )


class Timeline:
    """The plot of a device over its events: the positions of columns and values."""

    def __init__(self, device: DeviceHistory) -> None:
        self._device, self._columns = device, device.columns
        highest = max(max(one.live_bytes, one.reserved_bytes) for one in self._columns)
        self.scale = choose_scale(highest, "bytes", AREA)

    def across(self, place: float) -> float:
        """The distance of a column's left edge from the left, in pixels."""
        return AREA.left + AREA.width * place / len(self._columns)

    def find_column(self, level: int) -> float:
        """The middle of the column nearest to a level."""
        columns = self._columns
        near = min(range(len(columns)), key=lambda one: abs(columns[one].level - level))
        return self.across(near + 0.5)

    def render_events(self) -> str:
        """The event numbers under the plot, and their seconds if known."""
        last = len(self._columns) - 1
        places = sorted({last * number // TICKS_ACROSS for number in range(TICKS_ACROSS + 1)})
        parts = []
        for place in places if self._device.events else []:
            column = self._columns[place]
            x = self.across(place + 0.5)
            anchor = "start" if place == 0 else "end" if place == last else "middle"
            when = "" if column.seconds is None else format_seconds(column.seconds)
            words = f"event {column.level:,}" if place == 0 else f"{column.level:,}"
            parts.append(
                f'<text x="{x:.1f}" y="{AREA.floor + 17}" text-anchor="{anchor}">{words}</text>'
                f'<text class="faint" x="{x:.1f}" y="{AREA.floor + 33}" text-anchor="{anchor}">'
                f"{when}</text>"
            )
        return "".join(parts)

    def render_bands(self) -> str:
        """The colored lines' live bytes, stacked, and those of all other lines above them in gray.

        The lines that change least are at the bottom, so that changes of the others are visible.
        """
        numbers = range(len(self._device.bands))
        bands = [[column.bands[number] for column in self._columns] for number in numbers]
        order = sorted(numbers, key=lambda number: max(bands[number]) - min(bands[number]))
        lower = [0] * len(self._columns)
        parts = []
        for number in order:
            upper = [low + held for low, held in zip(lower, bands[number], strict=True)]
            parts.append(f'<path class="band b{number}" d="{self._outline(lower, upper)}"/>')
            lower = upper
        upper = [column.live_bytes for column in self._columns]
        if upper != lower:
            parts.append(f'<path class="band rest" d="{self._outline(lower, upper)}"/>')
        return "".join(parts)

    def _outline(self, lower: Sequence[int], upper: Sequence[int]) -> str:
        """A closed path: along the upper edge, and back along the lower one."""
        return f"{self.trace(upper)}L{self.trace(lower, backwards=True)[1:]}Z"

    def trace(self, values: Sequence[int], *, backwards: bool = False) -> str:
        """The path of one value per column, as steps; equal neighbors are one step."""
        order = range(len(values) - 1, -1, -1) if backwards else range(len(values))
        begin, end = (1, 0) if backwards else (0, 1)
        parts, height = [], None
        for place in order:
            y = round(self.scale.place(values[place]), 1)
            if height is None:
                parts.append(f"M{self.across(place + begin):.1f} {y:g}")
            elif y != height:
                parts.append(f"H{self.across(place + begin):.1f}V{y:g}")
            height = y
        return f"{''.join(parts)}H{self.across(order[-1] + end):.1f}"

    def mark_peak(self) -> str:
        """A vertical line at the peak, with its bytes."""
        peak = self._device.peak
        x, y = self.find_column(peak.event), self.scale.place(peak.live_bytes)
        shift, anchor = (-7, "end") if x > WIDTH * 0.75 else (7, "start")
        return (
            f'<line class="peak" x1="{x:.1f}" x2="{x:.1f}" y1="{AREA.top - 14}"'
            f' y2="{AREA.floor}"/><circle class="peak-dot" cx="{x:.1f}" cy="{y:.1f}" r="4"/>'
            f'<text class="strong" x="{x + shift:.1f}" y="{AREA.top - 6}" text-anchor="{anchor}">'
            f"peak {format_bytes(peak.live_bytes)}</text>"
        )

    def mark_failure(self, level: int) -> str:
        """A triangle where an allocation failed."""
        x = self.find_column(level)
        return (
            f'<path class="failed" d="M{x - 6:.1f} {AREA.floor + 2}h12l-6-12z">'
            "<title>out of memory</title></path>"
        )


def _describe_column(column: TimelineColumn, device: DeviceHistory) -> str:
    when = "" if column.seconds is None else f" ({format_seconds(column.seconds)})"
    words = f"event {column.level:,}{when}: {format_bytes(column.live_bytes)} live"
    if column.lowest_bytes != column.live_bytes:
        words += f" (at least {format_bytes(column.lowest_bytes)} around it)"
    if device.has_cache:
        words += f", {format_bytes(column.reserved_bytes)} reserved"
    return words


def render_segments(cut: Fragmentation) -> str:
    """The largest segments as bars to scale, with filled live ranges; "" without segments."""
    drawn = cut.segments[:BARS_DRAWN]
    if not drawn:
        return ""
    longest = max(1, drawn[0].span.size_bytes)
    height = len(drawn) * BAR_STEP
    rows = "".join(
        _render_segment(segment, place * BAR_STEP, longest) for place, segment in enumerate(drawn)
    )
    alt = f"{plural(len(drawn), 'segment')} with live and free pieces"
    return (
        f'<svg class="plot" role="img" aria-label="{alt}" viewBox="0 0 {WIDTH} {height}">'
        f"{rows}</svg>"
    )


def _render_segment(segment: LaidSegment, top: int, longest: int) -> str:
    span, left = segment.span, AREA.left
    width = max(1.0, AREA.width * span.size_bytes / longest)
    size = format_bytes(span.size_bytes)
    free = format_bytes(sum(gap.size_bytes for gap in segment.gaps))
    path = "".join(
        f"M{left + start / 2:g} {top}h{(end - start) / 2:g}v{BAR_HEIGHT}h{(start - end) / 2:g}z"
        for start, end in merge_runs(segment.live, span, width)
    )
    return (
        f"<g><title>{size}, {free} of it free, stream {segment.stream}"
        f"{', private pool' if segment.private else ''}</title>"
        f'<text x="{left - 8}" y="{top + 11}" text-anchor="end">{size}</text>'
        f'<rect class="segment" x="{left}" y="{top}" width="{width:.1f}" height="{BAR_HEIGHT}"/>'
        f'<path class="live" d="{path}"/></g>'
    )


def merge_runs(live: Iterable[LayoutSpan], span: LayoutSpan, width: float) -> list[tuple[int, int]]:
    """Live ranges in half pixels of a bar, at least one wide; adjacent ranges are merged.

    A bar therefore has at most as many pieces as pixels.
    """
    runs: list[tuple[int, int]] = []
    for one in live:
        start = int(2 * width * (one.address - span.address) / span.size_bytes)
        end = max(start + 1, round(2 * width * (one.end - span.address) / span.size_bytes))
        if runs and start <= runs[-1][1]:
            runs[-1] = (runs[-1][0], max(end, runs[-1][1]))
        else:
            runs.append((start, end))
    return runs


class StackWriter:
    """Writes stacks up to a total size; a note replaces each stack beyond it."""

    def __init__(self, room_bytes: int = STACKS_BYTES) -> None:
        self._room = room_bytes

    def write(self, group: Group, history: History) -> str:
        """The stacks of a group, collapsed; "" if it has none."""
        if not group.stacks:
            return ""
        written = "".join(
            f"<pre>{_write_stack(stack.frames, history)}</pre>" for stack in group.stacks
        )
        size = len(written.encode(errors="replace"))
        if size > self._room:
            return "<details><summary>stack</summary>left out to keep this page small</details>"
        self._room -= size
        more = group.stack_count - len(group.stacks)
        rest = f'<p class="soft">and {plural(more, "more stack")}</p>' if more > 0 else ""
        words = "stack" if group.stack_count == 1 else f"{group.stack_count:,} stacks"
        return f"<details><summary>{words}</summary>{written}{rest}</details>"


def make_page(history: History, name: str = "") -> str:
    """The whole page; ``name`` names the recording, such as the snapshot's file."""
    stack_writer = StackWriter()
    title, lede = _make_title(history)
    kicker = f"labkit history{' of ' + escape(shorten_start(name, NAME_LENGTH)) if name else ''}"
    many = len(history.devices) > 1
    cached = any(device.has_cache for device in history.devices)
    counted = COUNTED_ON_CUDA if cached else COUNTED_ON_CPU
    links = "".join(
        f'<a href="#d{place}">{escape(device.device)}</a>'
        for place, device in enumerate(history.devices)
    )
    body = [
        f'<header><p class="kicker">{kicker}</p><h1>{escape(title)}</h1>'
        f'<p class="lede">{escape(lede)}</p>{f"<nav>{links}</nav>" if many else ""}</header>',
        "<main>",
        *(
            _make_device(device, history, stack_writer, place, headed=many)
            for place, device in enumerate(history.devices)
        ),
        *(f'<p class="note">{escape(note)}</p>' for note in history.notes),
        "</main>",
        f"<footer><p>{escape(counted)}</p></footer>",
    ]
    return make_document(
        escape(f"{title} - labkit history"),
        "\n".join(body),
        style=_read("history.css"),
        script=_read("history.js"),
    )


def _read(name: str) -> str:
    return files("labkit.memory.allocations").joinpath(name).read_text(encoding="utf-8")


def _make_title(history: History) -> tuple[str, str]:
    if not history.devices:
        return "Nothing was recorded", "The recording has no events and no segments."
    highest = max(history.devices, key=lambda device: device.peak.live_bytes)
    title = f"{format_bytes(highest.peak.live_bytes)} live at the peak on {highest.device}"
    groups = highest.peak.groups
    if not groups:
        return title, "No block was ever live."
    share = 100 * groups[0].held_bytes // max(1, highest.peak.live_bytes)
    place = shorten_start(format_place(groups[0].place, history), NAME_LENGTH)
    if share >= CLEAR_SHARE:
        return title, f"{share} % of it comes from one place: {place}."
    return title, f"No line stands out: the largest, {place}, has {share} %."


def _make_device(
    device: DeviceHistory, history: History, stack_writer: StackWriter, place: int, *, headed: bool
) -> str:
    parts = [f'<section id="d{place}">']
    if headed:
        parts.append(f"<h2>{escape(device.device)}</h2>")
    parts += [
        f'<p class="failure-note">{escape(format_failure(one, history))}</p>'
        for one in device.failures
    ]
    parts += [f'<p class="note">{escape(note)}</p>' for note in list_notes(device)]
    parts += [_make_timeline(device), _make_peak(device, history, stack_writer)]
    parts += [_make_cut(device), _make_kept(device, history, stack_writer), "</section>"]
    return "\n".join(parts)


def _make_timeline(device: DeviceHistory) -> str:
    grain = -(-(device.events + 1) // len(device.columns))
    words = "Live bytes after each event, colored by the line that allocated them (the colors"
    words += " of the table below; gray: all other lines)."
    if device.has_cache:
        words += " Dashed: reserved by the allocator."
    if grain > 1:
        words += f" Each column is the highest of about {grain:,} events, so no peak is lost."
    if device.failures:
        words += " The triangle marks where memory ran out."
    return (
        f"<h3>Over time</h3><figure>{render_timeline(device)}"
        f"<figcaption>{words}</figcaption></figure>"
    )


def _make_peak(device: DeviceHistory, history: History, stack_writer: StackWriter) -> str:
    peak = device.peak
    caption = f"{format_bytes(peak.live_bytes)}, {format_moment(peak, device)}"
    lines = _make_lines(caption, peak, peak.groups, ROWS_SHOWN, (device, history, stack_writer))
    return f"<h3>Live at the peak, by line</h3>{lines}"


def _make_kept(device: DeviceHistory, history: History, stack_writer: StackWriter) -> str:
    head = "<h3>Allocated here and never freed</h3>"
    if not device.events:
        return f"{head}<p>Unknown: the snapshot has no events.</p>"
    if not device.kept:
        return f"{head}<p>Everything that was allocated in the recording was freed in it.</p>"
    total = sum(group.held_bytes for group in device.kept)
    caption = (
        f"{format_bytes(total)} of the {format_bytes(device.end.live_bytes)} live at the end."
        " A model and its optimizer belong here; memory that grows from step to step does not."
    )
    moment = device.end._replace(live_bytes=total)
    context = (device, history, stack_writer)
    return head + _make_lines(caption, moment, device.kept, KEPT_ROWS_SHOWN, context)


def _make_lines(
    caption: str,
    moment: Moment,
    groups: Sequence[Group],
    shown: int,
    context: tuple[DeviceHistory, History, StackWriter],
) -> str:
    """The table of lines; the first ``shown`` have their share of the moment's live bytes."""
    device, history, stack_writer = context
    rows = []
    for group in groups[:shown]:
        colour = f"b{device.bands.index(group.place)}" if group.place in device.bands else "rest"
        share = 100 * group.held_bytes / max(1, moment.live_bytes)
        rows.append(
            (
                f'<span class="key {colour}"></span>'
                f"{_make_place(group.place, history)}{stack_writer.write(group, history)}",
                format_bytes(group.held_bytes),
                f"{group.blocks:,}",
                f'<div class="share {colour}" style="width:{share:.1f}%"></div>',
            )
        )
    rest = groups[shown:]
    if rest:
        held = format_bytes(sum(group.held_bytes for group in rest))
        blocks = sum(group.blocks for group in rest)
        more = f'<span class="soft">{plural(len(rest), "more line")}</span>'
        rows.append((more, held, f"{blocks:,}", ""))
    return make_table(escape(caption), ("line", "#bytes", "#blocks", "share"), rows)


def _make_place(place: Place, history: History) -> str:
    words = escape(shorten_start(format_place(place, history), NAME_LENGTH))
    if place.frame is None:
        return words
    full = escape(shorten_start(place.frame.file, NAME_LENGTH))
    source = find_source(place, history)[:SOURCE_LENGTH]
    code = f'<code class="source">{escape(source)}</code>' if source else ""
    return f'<span class="mono" title="{full}">{words}</span>{code}'


def _write_stack(frames: Sequence[Frame], history: History) -> str:
    """A stack, innermost line first; lines of torch, Python and labkit are dimmed."""
    lines = []
    for frame in frames:
        named = history.names.get(frame.file, frame.file)
        line = escape(
            f"{shorten_start(named, NAME_LENGTH)}:{frame.line} {frame.function[:NAME_LENGTH]}"
        )
        lines.append(line if is_user_file(frame.file) else f'<span class="soft">{line}</span>')
    return "\n".join(lines)


def _make_cut(device: DeviceHistory) -> str:
    head = "<h3>Fragmentation</h3>"
    moment = device.fragmented_moment
    cut = moment.fragmentation
    if cut is None:
        return f"{head}<p>{escape(NO_CACHE)}</p>"
    when = "when memory ran out" if device.failures else "at the peak"
    figures = [
        (f"reserved {when}", format_bytes(cut.reserved_bytes)),
        ("in use", format_bytes(cut.live_bytes)),
        ("reserved but unused", format_free(cut) if cut.free_bytes else "0 B"),
        *(
            [("in private pools", format_bytes(private))]
            if (private := cut.private_free_bytes)
            else []
        ),
        ("segments", f"{len(cut.segments):,}"),
        ("most ever reserved", format_bytes(device.highest_reserved_bytes)),
        ("reserved at the end", format_bytes(device.end.reserved_bytes)),
    ]
    rows = "".join(f"<div><dt>{name}</dt><dd>{figure}</dd></div>" for name, figure in figures)
    reason = explain_failure(device.failures[-1]) if device.failures else None
    said = ". ".join(start_sentence(one) for one in (reason, advise(device)) if one)
    advice = f"{said or 'There is little of it in this recording'}."
    left_out = len(cut.segments) - BARS_DRAWN
    more = f" The {BARS_DRAWN} largest of {len(cut.segments):,} are drawn." if left_out > 0 else ""
    drawn = render_segments(cut)
    figure = (
        f"<figure>{drawn}<figcaption>Each bar is a segment, {when}: "
        '<span class="key b0"></span>in use, <span class="key unused"></span>free.'
        f"{more}</figcaption></figure>"
        if drawn
        else ""
    )
    return f"{head}<p>{escape(f'{FRAGMENTATION} {advice}')}</p><dl>{rows}</dl>{figure}"

"""A history as one html page that needs no internet and stays small whatever was recorded.

The pictures of a history's page: live bytes over the events, and the segments as bars.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Sequence
from importlib.resources import files

from labkit.memory.allocations.analysis import (
    OWN,
    DeviceHistory,
    Group,
    History,
    Moment,
    Place,
    TimelineColumn,
    judge_file,
)
from labkit.memory.allocations.replay import Fragmentation, LaidSegment, LayoutSpan
from labkit.memory.allocations.view import (
    advise,
    count,
    list_notes,
    say_free,
    say_place,
    say_shortage,
    say_when,
)
from labkit.memory.track.frames import Frame
from labkit.render import escape, make_document
from labkit.text import format_bytes, format_seconds, shorten_start

WIDTH, HEIGHT = 900, 300
LEFT, RIGHT, TOP, BOTTOM = 78, 14, 30, 42
PLOT_WIDTH, PLOT_HEIGHT = WIDTH - LEFT - RIGHT, HEIGHT - TOP - BOTTOM
FLOOR = TOP + PLOT_HEIGHT
TICKS_ACROSS = 5
BARS_DRAWN = 40
BAR_HEIGHT, BAR_STEP = 14, 20
# The end of the axis stands this much above the highest value.
HEADROOM = 1.06


def draw_timeline(device: DeviceHistory) -> str:
    """Live bytes, in bands by line, and reserved bytes over the events, with the peak marked."""
    columns = device.columns
    highest = max(max(one.live_bytes, one.reserved_bytes) for one in columns)
    scale = Scale(highest, columns)
    parts = [scale.draw_values(), _draw_bands(scale, len(device.bands))]
    if device.has_cache:
        parts.append(_draw_reserved(scale))
    parts += [scale.draw_events(device.events), _mark_peak(device, scale)]
    parts += [_mark_shortage(shortage.moment.event, scale) for shortage in device.shortages]
    parts.append(f'<line class="cursor" x1="-9" x2="-9" y1="{TOP}" y2="{FLOOR}"/>')
    words = escape(json.dumps([_say_column(column, device) for column in columns]))
    alt = f"live bytes on {device.device} over {count(device.events, 'event')}"
    return (
        f'<div class="timeline" data-words="{words}" data-left="{LEFT}"'
        f' data-width="{PLOT_WIDTH}">'
        f'<svg class="plot" role="img" aria-label="{escape(alt)}"'
        f' viewBox="0 0 {WIDTH} {HEIGHT}">{"".join(parts)}</svg>'
        '<p class="read" hidden><input type="range" min="0" value="0" step="1"'
        f' max="{len(columns) - 1}" aria-label="a moment of the timeline"> <output></output></p>'
        "</div>"
    )


class Scale:
    """Where values and columns stand in the picture."""

    def __init__(self, highest: int, columns: Sequence[TimelineColumn]) -> None:
        self.columns = columns
        self._top = max(highest, 1) * HEADROOM
        self._highest = max(highest, 1)

    def across(self, place: float) -> float:
        """How far right the left edge of a column stands."""
        return LEFT + PLOT_WIDTH * place / len(self.columns)

    def down(self, count_bytes: int) -> float:
        """How far down a number of bytes stands."""
        return TOP + PLOT_HEIGHT * (1 - count_bytes / self._top)

    def find_column(self, level: int) -> float:
        """The middle of the column that stands nearest to a level."""
        near = min(range(len(self.columns)), key=lambda one: abs(self.columns[one].level - level))
        return self.across(near + 0.5)

    def draw_values(self) -> str:
        """Grid lines at round numbers of bytes."""
        step = choose_step(self._highest)
        values = [step * number for number in range(self._highest // step + 1)]
        return "".join(
            f'<line class="grid" x1="{LEFT}" x2="{WIDTH - RIGHT}" y1="{y:.1f}" y2="{y:.1f}"/>'
            f'<text x="{LEFT - 8}" y="{y + 4:.1f}" text-anchor="end">'
            f"{format_bytes(value).replace('.0 ', ' ')}</text>"
            for value in values
            for y in [self.down(value)]
        )

    def draw_events(self, events: int) -> str:
        """Numbers of events under the picture, and their seconds where those are known."""
        last = len(self.columns) - 1
        places = sorted({last * number // TICKS_ACROSS for number in range(TICKS_ACROSS + 1)})
        parts = []
        for place in places if events else []:
            column = self.columns[place]
            x = self.across(place + 0.5)
            anchor = "start" if place == 0 else "end" if place == last else "middle"
            when = format_seconds(column.seconds or 0) if column.seconds is not None else ""
            words = f"event {column.level:,}" if place == 0 else f"{column.level:,}"
            parts.append(
                f'<text x="{x:.1f}" y="{FLOOR + 17}" text-anchor="{anchor}">{words}</text>'
                f'<text class="faint" x="{x:.1f}" y="{FLOOR + 33}" text-anchor="{anchor}">'
                f"{when}</text>"
            )
        return "".join(parts)


def choose_step(highest: int) -> int:
    """The distance of grid lines, in bytes, for two to five of them: 1, 2 or 5 times a power.

    >>> choose_step(3 * 2**30) == 2**30, choose_step(700), choose_step(1)
    (True, 200, 1)
    """
    unit: int = 1024 ** min(5, int(math.log(highest, 1024)))
    least = highest / unit / 4
    power = 10.0 ** math.floor(math.log10(least))
    step = next(power * factor for factor in (1, 2, 5, 10) if power * factor >= least * 0.999)
    return max(1, round(step * unit))


def _draw_bands(scale: Scale, number: int) -> str:
    """The lines' live bytes on top of each other, and grey above them what is of other lines.

    What changes least is at the bottom, so that the steps of the others are seen as they are.
    """
    bands = [[column.bands[band] for column in scale.columns] for band in range(number)]
    order = sorted(range(number), key=lambda band: max(bands[band]) - min(bands[band]))
    lower = [0] * len(scale.columns)
    parts = []
    for band in order:
        upper = [low + held for low, held in zip(lower, bands[band], strict=True)]
        parts.append(f'<path class="band b{band}" d="{_outline(scale, lower, upper)}"/>')
        lower = upper
    upper = [column.live_bytes for column in scale.columns]
    if upper != lower:
        parts.append(f'<path class="band rest" d="{_outline(scale, lower, upper)}"/>')
    return "".join(parts)


def _outline(scale: Scale, lower: Sequence[int], upper: Sequence[int]) -> str:
    """A closed path: along the upper edge, and back along the lower one."""
    there = _steps(scale, upper)
    back = _steps(scale, lower, backwards=True)
    return f"M{there[1:]}L{back[1:]}Z"


def _steps(scale: Scale, values: Sequence[int], *, backwards: bool = False) -> str:
    """The edge of a staircase; a run of equal heights is one piece."""
    order = range(len(values) - 1, -1, -1) if backwards else range(len(values))
    begin, end = (1, 0) if backwards else (0, 1)
    parts, height = [], None
    last = 0.0
    for place in order:
        y = round(scale.down(values[place]), 1)
        x = scale.across(place + begin)
        if height is None:
            parts.append(f"M{x:.1f} {y:g}")
        elif y != height:
            parts.append(f"H{x:.1f}V{y:g}")
        height, last = y, scale.across(place + end)
    return f"{''.join(parts)}H{last:.1f}"


def _draw_reserved(scale: Scale) -> str:
    path = _steps(scale, [column.reserved_bytes for column in scale.columns])
    return f'<path class="reserved" d="{path}"/>'


def _mark_peak(device: DeviceHistory, scale: Scale) -> str:
    x, y = scale.find_column(device.peak.event), scale.down(device.peak.live_bytes)
    anchor = "end" if x > WIDTH * 0.75 else "start"
    shift = -7 if anchor == "end" else 7
    return (
        f'<line class="peak" x1="{x:.1f}" x2="{x:.1f}" y1="{TOP - 14}" y2="{FLOOR}"/>'
        f'<circle class="peak-dot" cx="{x:.1f}" cy="{y:.1f}" r="4"/>'
        f'<text class="strong" x="{x + shift:.1f}" y="{TOP - 6}" text-anchor="{anchor}">'
        f"peak {format_bytes(device.peak.live_bytes)}</text>"
    )


def _mark_shortage(level: int, scale: Scale) -> str:
    x = scale.find_column(level)
    return (
        f'<path class="shortage" d="M{x - 6:.1f} {FLOOR + 2}h12l-6-12z">'
        "<title>out of memory</title></path>"
    )


def _say_column(column: TimelineColumn, device: DeviceHistory) -> str:
    when = "" if column.seconds is None else f" ({format_seconds(column.seconds)})"
    words = f"event {column.level:,}{when}: {format_bytes(column.live_bytes)} live"
    if column.lowest_bytes != column.live_bytes:
        words += f" (at least {format_bytes(column.lowest_bytes)} around it)"
    if device.has_cache:
        words += f", {format_bytes(column.reserved_bytes)} reserved"
    return words


def draw_segments(cut: Fragmentation) -> str:
    """The largest segments as bars in proportion, what is live in them filled; "" without any."""
    drawn = cut.segments[:BARS_DRAWN]
    if not drawn:
        return ""
    longest = max(1, drawn[0].span.size_bytes)
    height = len(drawn) * BAR_STEP
    rows = "".join(
        _draw_segment(segment, place * BAR_STEP, longest) for place, segment in enumerate(drawn)
    )
    alt = f"{count(len(drawn), 'segment')} with live and free pieces"
    return (
        f'<svg class="plot" role="img" aria-label="{alt}" viewBox="0 0 {WIDTH} {height}">'
        f"{rows}</svg>"
    )


def _draw_segment(segment: LaidSegment, top: int, longest: int) -> str:
    span = segment.span
    width = max(1.0, PLOT_WIDTH * span.size_bytes / longest)
    free = sum(gap.size_bytes for gap in segment.gaps)
    words = f"{format_bytes(span.size_bytes)}, {format_bytes(free)} of it free"
    path = "".join(
        f"M{LEFT + start / 2:g} {top}h{(end - start) / 2:g}v{BAR_HEIGHT}h{(start - end) / 2:g}z"
        for start, end in merge_runs(segment.live, span, width)
    )
    return (
        f"<g><title>{words}</title>"
        f'<text x="{LEFT - 8}" y="{top + 11}" text-anchor="end">'
        f"{format_bytes(span.size_bytes)}</text>"
        f'<rect class="segment" x="{LEFT}" y="{top}" width="{width:.1f}" height="{BAR_HEIGHT}"/>'
        f'<path class="live" d="{path}"/></g>'
    )


def merge_runs(live: Iterable[LayoutSpan], span: LayoutSpan, width: float) -> list[tuple[int, int]]:
    """Live ranges in half pixels of a bar; what would touch is one, and none is thinner than one.

    So a bar takes at most as many pieces as it has pixels, whatever is in it.
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


ROWS_SHOWN = 25
KEPT_ROWS_SHOWN = 15
NAME_LENGTH, SOURCE_LENGTH = 160, 120
STACKS_BYTES = 700_000  # for all stacks of the page together
CLEAR_SHARE = 25  # percent
WHAT_FRAGMENTATION_IS = (
    "Fragmentation is free memory in pieces: the allocator holds enough in all, but no single"
    " piece is large enough for what is asked next, so it has to take more from the device."
)
WHY_NO_CACHE = (
    "On the CPU torch keeps no memory in reserve: every tensor's memory is taken from the system"
    " and goes back to it. So there is nothing reserved here, and nothing that could be in pieces."
)
WHAT_CPU_COUNTS = (
    "Counted are the CPU tensors of the thread that recorded. What an operator takes and gives"
    " back within itself is not seen, and compiled functions ran eagerly."
)
WHAT_IS_COUNTED = (
    "Counted are the bytes that were asked for. The CUDA allocator rounds each block up to a"
    " multiple of 512 bytes and sometimes by more, so torch.cuda.max_memory_allocated() can be"
    " a little higher."
)


class StackShelf:
    """Writes stacks until the page has enough of them; then it says that one is left out."""

    def __init__(self, room_bytes: int = STACKS_BYTES) -> None:
        self._room = room_bytes

    def write(self, group: Group, history: History) -> str:
        """The stacks of a group, closed until somebody opens them; "" where it has none."""
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
        rest = f'<p class="soft">and {count(more, "more stack")}</p>' if more > 0 else ""
        words = "stack" if group.stack_count == 1 else f"{group.stack_count:,} stacks"
        return f"<details><summary>{words}</summary>{written}{rest}</details>"


def make_page(history: History, name: str = "") -> str:
    """The whole page; ``name`` says what was recorded, such as the snapshot's file."""
    shelf = StackShelf()
    title, lede = _make_title(history)
    kicker = f"labkit history{' of ' + escape(shorten_start(name, NAME_LENGTH)) if name else ''}"
    many = len(history.devices) > 1
    cached = any(device.has_cache for device in history.devices)
    counted = WHAT_IS_COUNTED if cached else WHAT_CPU_COUNTS
    links = "".join(
        f'<a href="#d{place}">{escape(device.device)}</a>'
        for place, device in enumerate(history.devices)
    )
    body = [
        f'<header><p class="kicker">{kicker}</p><h1>{escape(title)}</h1>'
        f'<p class="lede">{escape(lede)}</p>{f"<nav>{links}</nav>" if many else ""}</header>',
        "<main>",
        *(
            _make_device(device, history, shelf, place, headed=many)
            for place, device in enumerate(history.devices)
        ),
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
        return "Nothing was recorded", "There is neither an event nor a segment of memory in it."
    highest = max(history.devices, key=lambda device: device.peak.live_bytes)
    title = f"{format_bytes(highest.peak.live_bytes)} live at the peak on {highest.device}"
    groups = highest.peak.groups
    if not groups:
        return title, "No block was live at any moment."
    share = 100 * groups[0].held_bytes // max(1, highest.peak.live_bytes)
    place = shorten_start(say_place(groups[0].place, history), NAME_LENGTH)
    if share >= CLEAR_SHARE:
        return title, f"{share} % of it comes from one place: {place}."
    return title, f"No line stands out: the largest, {place}, has {share} %."


def _make_device(
    device: DeviceHistory, history: History, shelf: StackShelf, place: int, *, headed: bool
) -> str:
    parts = [f'<section id="d{place}">']
    if headed:
        parts.append(f"<h2>{escape(device.device)}</h2>")
    parts += [
        f'<p class="shortage-note">{escape(say_shortage(one, history))}</p>'
        for one in device.shortages
    ]
    parts += [f'<p class="note">{escape(note)}</p>' for note in list_notes(device)]
    parts += [_make_timeline(device), _make_peak(device, history, shelf)]
    parts += [_make_cut(device), _make_kept(device, history, shelf), "</section>"]
    return "\n".join(parts)


def _make_timeline(device: DeviceHistory) -> str:
    grain = -(-(device.events + 1) // len(device.columns))
    words = "Live bytes after each event, coloured by the line that allocated them (the colours"
    words += " of the table below; grey: all other lines)."
    if device.has_cache:
        words += " Dashed: reserved by the allocator."
    if grain > 1:
        words += f" Each column is the highest of about {grain:,} events, so no peak is lost."
    if device.shortages:
        words += " The triangle marks where memory ran out."
    return (
        f"<h3>Over time</h3><figure>{draw_timeline(device)}"
        f"<figcaption>{words}</figcaption></figure>"
    )


def _make_peak(device: DeviceHistory, history: History, shelf: StackShelf) -> str:
    peak = device.peak
    caption = f"{format_bytes(peak.live_bytes)}, {say_when(peak, device)}"
    rows = _make_rows(peak, peak.groups[:ROWS_SHOWN], history, shelf, device.bands)
    return (
        f"<h3>Live at the peak, by line</h3>{_make_table(caption, rows, peak.groups[ROWS_SHOWN:])}"
    )


def _make_kept(device: DeviceHistory, history: History, shelf: StackShelf) -> str:
    head = "<h3>Allocated here and never freed</h3>"
    if not device.kept:
        return f"{head}<p>Everything that was allocated in the recording was freed in it.</p>"
    total = sum(group.held_bytes for group in device.kept)
    caption = (
        f"{format_bytes(total)} of the {format_bytes(device.end.live_bytes)} live at the end."
        " A model and its optimizer belong here; what grows from step to step does not."
    )
    moment = device.end._replace(live_bytes=total)
    rows = _make_rows(moment, device.kept[:KEPT_ROWS_SHOWN], history, shelf, device.bands)
    return head + _make_table(caption, rows, device.kept[KEPT_ROWS_SHOWN:])


def _make_table(caption: str, rows: str, rest: Sequence[Group]) -> str:
    if rest:
        held = format_bytes(sum(group.held_bytes for group in rest))
        blocks = sum(group.blocks for group in rest)
        rows += (
            f'<tr><th scope="row" class="soft">{count(len(rest), "more line")}</th>'
            f'<td class="n">{held}</td><td class="n">{blocks:,}</td><td class="share"></td></tr>'
        )
    return (
        f'<div class="scroll"><table><caption>{escape(caption)}</caption><thead><tr>'
        '<th scope="col">line</th><th scope="col" class="n">bytes</th>'
        '<th scope="col" class="n">blocks</th><th scope="col" class="share">share</th>'
        f"</tr></thead><tbody>{rows}</tbody></table></div>"
    )


def _make_rows(
    moment: Moment,
    groups: Sequence[Group],
    history: History,
    shelf: StackShelf,
    bands: tuple[Place, ...],
) -> str:
    rows = []
    for group in groups:
        colour = f"b{bands.index(group.place)}" if group.place in bands else "rest"
        share = 100 * group.held_bytes / max(1, moment.live_bytes)
        rows.append(
            f'<tr><th scope="row"><span class="key {colour}"></span>'
            f"{_make_place(group.place, history)}{shelf.write(group, history)}</th>"
            f'<td class="n">{format_bytes(group.held_bytes)}</td>'
            f'<td class="n">{group.blocks:,}</td>'
            f'<td class="share"><span class="{colour}" style="width:{share:.1f}%"></span></td></tr>'
        )
    return "".join(rows)


def _make_place(place: Place, history: History) -> str:
    words = escape(shorten_start(say_place(place, history), NAME_LENGTH))
    if place.frame is None:
        return words
    full = escape(shorten_start(place.frame.file, NAME_LENGTH))
    source = history.sources.get((place.frame.file, place.frame.line), "")
    told = f'<code class="source">{escape(source[:SOURCE_LENGTH])}</code>' if source else ""
    return f'<span class="mono" title="{full}">{words}</span>{told}'


def _write_stack(frames: Sequence[Frame], history: History) -> str:
    """A stack, the innermost line first, what is not the user's dimmed."""
    lines = []
    for frame in frames:
        named = history.names.get(frame.file, frame.file)
        line = escape(
            f"{shorten_start(named, NAME_LENGTH)}:{frame.line} {frame.function[:NAME_LENGTH]}"
        )
        own = judge_file(frame.file) == OWN
        lines.append(f'<span class="soft">{line}</span>' if own else line)
    return "\n".join(lines)


def _make_cut(device: DeviceHistory) -> str:
    head = "<h3>Fragmentation</h3>"
    moment = device.cut_moment
    cut = moment.fragmentation
    if cut is None:
        return f"{head}<p>{escape(WHY_NO_CACHE)}</p>"
    when = "when memory ran out" if device.shortages else "at the peak"
    figures = [
        (f"reserved {when}", format_bytes(cut.reserved_bytes)),
        ("in use", format_bytes(cut.live_bytes)),
        ("reserved but unused", say_free(cut) if cut.free_bytes else "0 B"),
        ("segments", f"{len(cut.segments):,}"),
        ("most ever reserved", format_bytes(device.highest_reserved_bytes)),
        ("reserved at the end", format_bytes(device.end.reserved_bytes)),
    ]
    rows = "".join(f"<div><dt>{name}</dt><dd>{figure}</dd></div>" for name, figure in figures)
    advice = f"{advise(device) or 'there is little of it here'}."
    left_out = len(cut.segments) - BARS_DRAWN
    more = f" The {BARS_DRAWN} largest of {len(cut.segments):,} are drawn." if left_out > 0 else ""
    drawn = draw_segments(cut)
    figure = (
        f"<figure>{drawn}<figcaption>Each bar is a segment, {when}: "
        '<span class="key b0"></span>in use, <span class="key unused"></span>free.'
        f"{more}</figcaption></figure>"
        if drawn
        else ""
    )
    sentence = f"{WHAT_FRAGMENTATION_IS} {advice[:1].upper()}{advice[1:]}"
    return f"{head}<p>{escape(sentence)}</p><dl>{rows}</dl>{figure}"

"""A history as one html page that needs no internet and stays small whatever was recorded."""

from __future__ import annotations

from collections.abc import Sequence
from importlib.resources import files

from labkit.memory.frames import Frame
from labkit.memory.history.analysis import DeviceHistory, History, Moment
from labkit.memory.history.drawing import BARS_DRAWN, draw_segments, draw_timeline
from labkit.memory.history.lines import OWN, Group, Place, judge_file
from labkit.memory.history.markup import escape, shorten
from labkit.memory.history.text import (
    advise,
    count,
    list_notes,
    say_free,
    say_place,
    say_shortage,
    say_when,
)
from labkit.pages import make_document
from labkit.units import format_bytes

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
    kicker = f"labkit history{' of ' + escape(shorten(name, NAME_LENGTH)) if name else ''}"
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
    return files("labkit.memory.history").joinpath(name).read_text(encoding="utf-8")


def _make_title(history: History) -> tuple[str, str]:
    if not history.devices:
        return "Nothing was recorded", "There is neither an event nor a segment of memory in it."
    highest = max(history.devices, key=lambda device: device.peak.live_bytes)
    title = f"{format_bytes(highest.peak.live_bytes)} live at the peak on {highest.device}"
    groups = highest.peak.groups
    if not groups:
        return title, "No block was live at any moment."
    share = 100 * groups[0].held_bytes // max(1, highest.peak.live_bytes)
    place = shorten(say_place(groups[0].place, history), NAME_LENGTH)
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
    words = escape(shorten(say_place(place, history), NAME_LENGTH))
    if place.frame is None:
        return words
    full = escape(shorten(place.frame.file, NAME_LENGTH))
    source = history.sources.get((place.frame.file, place.frame.line), "")
    told = f'<code class="source">{escape(source[:SOURCE_LENGTH])}</code>' if source else ""
    return f'<span class="mono" title="{full}">{words}</span>{told}'


def _write_stack(frames: Sequence[Frame], history: History) -> str:
    """A stack, the innermost line first, what is not the user's dimmed."""
    lines = []
    for frame in frames:
        named = history.names.get(frame.file, frame.file)
        line = escape(f"{shorten(named, NAME_LENGTH)}:{frame.line} {frame.function[:NAME_LENGTH]}")
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

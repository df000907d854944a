"""The live panel as html: it says by itself when no newer one has come.

No script is needed for that, and none is there: the words "not measured since" are shown by
default, and an animation hides them for as long as the next update may take. Every update puts
new elements in the page, so the animation begins anew. Where the kernel has gone it ends, and
the words appear; where styles are taken away (a notebook that is not trusted) they were never
hidden; where it was stopped there is none. What the sanitizer leaves is words and figures: the
pictures have none of their own.
"""

from __future__ import annotations

import time
from collections.abc import Iterable, Sequence
from html import escape
from typing import NamedTuple

from labkit.jupyter.panel_trace import WIDTH, Trace
from labkit.memory.balance import Balance, divide_bar, list_terms
from labkit.memory.levels import read_levels
from labkit.memory.marks import MarkedSpan
from labkit.memory.picture import COLOURS
from labkit.memory.sheet_picture import INLINE_STYLE
from labkit.memory.snapshot import Snapshot
from labkit.memory.text import format_figures, format_snapshot, list_remarks, name_device
from labkit.units import format_bytes, format_seconds

BAR_CELLS, BAR_HEIGHT = 600, 16
# Room for a cell's number below its band, of the picture's width.
NUMBER_ROOM = 26
SCALE_WIDTH = 76

STYLE = (
    "<style>"
    "@keyframes labkit-hidden{from,to{visibility:hidden}}"
    "@keyframes labkit-clear{from,to{opacity:1}}"
    ".labkit-late{color:#d6487e;font-weight:bold;animation-name:labkit-hidden}"
    ".labkit-figures{opacity:0.55;animation-name:labkit-clear}"
    "</style>"
)
FLEX = "display:flex;justify-content:space-between;gap:12px"
SMALL = "font-size:85%;opacity:0.75"


class PanelView(NamedTuple):
    """What a panel shows: the balances, the traces by key, what ran, and when it was measured.

    ``live_seconds`` is how long it may be taken for the present; None once it has been stopped,
    and then ``ending`` says why.
    """

    name: str
    snapshot: Snapshot
    traces: dict[str, Trace]
    spans: Sequence[MarkedSpan]
    now: float
    measured_at: float
    window_seconds: float
    live_seconds: float | None
    ending: str = ""
    trouble: str | None = None


def draw_panel(view: PanelView) -> dict[str, str]:
    """The panel as html and as text."""
    devices = "".join(_draw_device(balance, view) for balance in view.snapshot.balances)
    notes = [*view.snapshot.notes, *([f"not measured: {view.trouble}"] if view.trouble else [])]
    dim = "".join(f'<div style="{SMALL}">{escape(note)}</div>' for note in notes)
    html = (
        f'<div class="labkit-panel {view.name}" style="{INLINE_STYLE};max-width:760px">'
        f"{STYLE}{_draw_head(view)}"
        f'<div class="labkit-figures"{_animate(view)}>{devices}</div>{dim}</div>'
    )
    return {"text/html": html, "text/plain": _write_text(view)}


def format_moment(seconds: float) -> str:
    """An epoch as date and time of the kernel's clock, with its zone's name."""
    return time.strftime("%Y-%m-%d %H:%M:%S %Z", time.localtime(seconds)).rstrip()


def _write_text(view: PanelView) -> str:
    ending = f"; {view.ending}" if view.ending else ""
    return f"{format_snapshot(view.snapshot)}\n\nmeasured {format_moment(view.measured_at)}{ending}"


def _animate(view: PanelView) -> str:
    # Without an animation: how it looks once nothing is measured any more.
    duration = f"{view.live_seconds:g}s" if view.live_seconds is not None else "0s"
    return f' style="animation-duration:{duration}"'


def _draw_head(view: PanelView) -> str:
    late = f'<span class="labkit-late"{_animate(view)}>not measured since </span>'
    ending = f'<div style="{SMALL}">{escape(view.ending)}</div>' if view.ending else ""
    moment = escape(format_moment(view.measured_at))
    return (
        f'<div style="{FLEX}"><span style="font-weight:bold">memory</span>'
        f'<span style="font-variant-numeric:tabular-nums">{late}{moment}</span></div>{ending}'
    )


def _draw_device(balance: Balance, view: PanelView) -> str:
    levels = read_levels(balance)
    used, total = format_bytes(balance.used_bytes), format_bytes(balance.total_bytes)
    title = (
        f'<div style="{FLEX};margin-top:8px"><span><span style="font-weight:bold">'
        f"{escape(name_device(balance))}</span> {escape(balance.name or '')}</span>"
        f"<span> {used} of {total} in use</span></div>"
    )
    remarks = "".join(
        f'<div style="{SMALL}">{escape(remark)}</div>' for remark in list_remarks(balance)
    )
    trace = view.traces.get(levels.key)
    told = balance.total_bytes is not None or not balance.trouble
    terms = f"{_draw_bar(balance)}{_draw_terms(balance)}" if told else ""
    return title + terms + remarks + (_draw_trace(trace, view) if trace else "")


def _draw_bar(balance: Balance) -> str:
    left, cells = 0, []
    for key, width in divide_bar(list_terms(balance), BAR_CELLS):
        cells.append(
            f'<rect x="{left}" y="0" width="{width}" height="1" fill="{COLOURS[key]}"/>'
            if COLOURS[key] != "none"
            else ""
        )
        left += width
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {BAR_CELLS} 1"'
        f' preserveAspectRatio="none" aria-hidden="true" style="display:block;width:100%;'
        f'height:{BAR_HEIGHT}px;box-sizing:border-box;border:1px solid rgba(128,128,128,0.6)">'
        f"{''.join(cells)}</svg>"
    )


def _draw_terms(balance: Balance) -> str:
    """Each term with its colour and its figure; they add up as those of ``%memory`` do."""
    words = (
        f'<span style="white-space:nowrap"><span style="color:{_name_colour(term.key)}">'
        f"{'□' if COLOURS[term.key] == 'none' else '■'}</span> {escape(term.words)} {figure}</span>"
        for term, figure in format_figures(list_terms(balance), balance.total_bytes)
    )
    return f'<div style="font-size:90%">{" &nbsp; ".join(words)}</div>'


def _name_colour(key: str) -> str:
    return "inherit" if COLOURS[key] == "none" else COLOURS[key]


def _draw_trace(trace: Trace, view: PanelView) -> str:
    picture, top = trace.draw(view.now, view.spans)
    begin = f"{format_seconds(view.window_seconds).removesuffix(' 0 s')} ago"
    moment = time.strftime("%H:%M:%S", time.localtime(view.measured_at))
    scale = (
        f'<div style="flex:none;width:{SCALE_WIDTH}px;text-align:right;padding-right:6px;'
        f"box-sizing:border-box;{SMALL};display:flex;flex-direction:column;"
        f'justify-content:space-between"><span>{format_bytes(round(top)).replace(".0 ", " ")}'
        "</span><span>0</span></div>"
    )
    foot = (
        f'<div style="{SMALL};{FLEX};margin-left:{SCALE_WIDTH}px"><span>{begin}</span>'
        f"<span>{moment}</span></div>"
    )
    plot = f'<div style="flex:1">{picture}</div>'
    numbers = _draw_numbers(trace, view)
    return f'<div style="display:flex;margin-top:6px">{scale}{plot}</div>{numbers}{foot}'


def _draw_numbers(trace: Trace, view: PanelView) -> str:
    """The cells' numbers below their bands, as many as there is room for."""
    parts, free = [], 0.0
    for span in _list_cells(trace, view):
        left, _ = trace.place_span(span, view.now)
        if free <= left <= WIDTH - NUMBER_ROOM:
            place = f"position:absolute;left:{left / WIDTH:.1%}"
            parts.append(f'<span style="{place}">{escape(span.name)}</span>')
            free = left + NUMBER_ROOM
    if not parts:
        return ""
    place = f"position:relative;height:1.4em;margin-left:{SCALE_WIDTH}px"
    return f'<div style="{SMALL};{place}">{" ".join(parts)}</div>'


def _list_cells(trace: Trace, view: PanelView) -> Iterable[MarkedSpan]:
    seen = (span for span in view.spans if span.kind == "cell" and trace.is_seen(span, view.now))
    return sorted(seen, key=lambda span: span.begin)

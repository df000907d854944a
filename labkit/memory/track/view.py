"""The figures of a measured block as text."""

from __future__ import annotations

from labkit.memory.track.model import BlockSpan, Breakdown, MemoryUse
from labkit.text import format_bytes, format_seconds


def format_use(use: MemoryUse) -> str:
    """A line for each counter, the breakdown of each device, and the seconds."""
    lines = [_format_span(span) for span in use.spans] or ["memory: not measured"]
    if use.rank is not None:
        lines.insert(0, f"rank {use.rank[0]} of {use.rank[1]}")
    lines += [_format_breakdown(one) for one in use.breakdowns]
    return "\n".join([*lines, f"seconds: {format_seconds(use.seconds)}"])


def _format_span(span: BlockSpan) -> str:
    if span.change_bytes is None:
        return f"{span.where}: not measured"
    return f"{span.where}: {format_peak(span)}, {format_net_change(span)}"


def format_peak(span: BlockSpan) -> str:
    """A span's peak, and in parentheses how far it is above the start."""
    if span.peak_bytes is None:
        return "peak not measured"
    return f"peak {format_bytes(span.peak_bytes)} ({format_change(span.added_bytes)})"


def format_net_change(span: BlockSpan) -> str:
    """What the block allocated and still holds."""
    if span.change_bytes is None:
        return "change not measured"
    return f"change {format_change(span.change_bytes)}"


def _format_breakdown(one: Breakdown) -> str:
    held = [f"{name} {format_bytes(count)}" for name, count in one.categories.items() if count]
    parts = [f"{one.where} tensors at their peak: {', '.join(held) or 'none'}"]
    beside = {"not used here": one.unused_bytes, "libraries and operators": one.scratch_bytes}
    shown = [f"{words} {format_bytes(count)}" for words, count in beside.items() if count]
    parts += [f"  beside them: {', '.join(shown)}"] if shown else []
    parts += [f"  note: {one.trouble}"] if one.trouble else []
    for line in one.lines:
        where = f"{line.frame.where}  {line.frame.source}" if line.frame else "before the block"
        parts.append(f"  {format_bytes(line.held_bytes):>10}  {where}".rstrip())
    return "\n".join(parts)


def format_change(count: int | None) -> str:
    """A change in bytes with its sign.

    >>> format_change(2048), format_change(-2048)
    ('+2.0 KiB', '-2.0 KiB')
    """
    return format_bytes(count) if count is None or count < 0 else f"+{format_bytes(count)}"

"""``plot_memory()``: memory over time as a matplotlib figure, or as text where there is none."""

from __future__ import annotations

from typing import TYPE_CHECKING

from labkit.errors import UsageError
from labkit.memory.sampler import MemorySampler, MemorySamples, find_latest

if TYPE_CHECKING:
    from labkit.memory.figure import MemoryFigure


def plot_memory(
    samples: MemorySampler | MemorySamples | None = None,
) -> MemoryFigure | MemorySamples:
    """A figure of what a sampler has seen: each device over time, its peak, and what ran when.

    Without an argument it is that of the sampler started last. The figure shows itself in a
    notebook, prints as text in a terminal, and can be saved (``savefig``) and changed like any
    other of matplotlib's. Where matplotlib is not installed the samples come back, which print
    as the same text. Raises UsageError where nothing was sampled.
    """
    source = find_latest() if samples is None else samples
    if source is None:
        raise UsageError(
            "there is nothing to plot",
            cause="no sampler was started in this process",
            fix="with labkit.sample_memory() as sampler: ...",
        )
    seen = source if isinstance(source, MemorySamples) else getattr(source, "samples", None)
    if not isinstance(seen, MemorySamples):
        raise UsageError(
            f"cannot plot {source!r}",
            cause="what is plotted are a sampler, a panel, or their samples",
            fix="plot_memory(), of the sampler started last",
        )
    if not seen.devices:
        raise UsageError(
            "there is nothing to plot",
            cause="the sampler has not taken a sample that could be read"
            + (f" ({seen.trouble})" if seen.trouble else ""),
            fix="with labkit.sample_memory() as sampler: ...",
        )
    try:
        from labkit.memory.figure import draw_samples
    except ModuleNotFoundError as error:
        if (error.name or "").partition(".")[0] not in {"matplotlib", "numpy"}:
            raise
        return seen
    return draw_samples(seen)

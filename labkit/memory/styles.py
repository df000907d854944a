"""How the levels of a device are drawn over time, in a figure and in the live panel."""

from __future__ import annotations

from typing import NamedTuple

from labkit.memory.picture import COLOURS


class Style(NamedTuple):
    """How one measure is drawn: its name in the legend, its colour, how strong its area is."""

    words: str
    colour: str
    area: float


# In the order of drawing: what holds more lies behind what is within it.
STYLES = {
    "used": Style("used by anyone", COLOURS["others"], 0.10),
    "reserved": Style("reserved by torch", COLOURS["cached"], 0.25),
    "allocated": Style("tensors", COLOURS["allocated"], 0.55),
    "process": Style("this process", COLOURS["context"], 0.35),
}

"""Pictures for the labs, legible in light and dark themes: plots, shapes and graphs."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from labkit.lessons.pictures.graph import draw_graph as draw_graph
    from labkit.lessons.pictures.plots import use_lab_style as use_lab_style
    from labkit.lessons.pictures.shapes import draw_shapes as draw_shapes

_EXPORTS = {
    "draw_graph": "labkit.lessons.pictures.graph",
    "draw_shapes": "labkit.lessons.pictures.shapes",
    "use_lab_style": "labkit.lessons.pictures.plots",
}

__all__ = ["draw_graph", "draw_shapes", "use_lab_style"]


def __getattr__(name: str) -> Any:
    if name not in _EXPORTS:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(_EXPORTS[name]), name)


def __dir__() -> list[str]:
    return sorted(__all__)

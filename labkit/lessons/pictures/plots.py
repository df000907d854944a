"""The style of the labs' matplotlib plots, and how notebooks show them: with a text.

JupyterLab shows matplotlib's own PNG without a text for screen readers. ``use_lab_style`` lets
IPython show a figure as HTML instead: the same PNG, and a description read from its axes.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator, Sequence
from typing import Any

from labkit.render import escape

# Each has a contrast of at least 3.4 against white and against JupyterLab's dark #111111, and
# they differ in hue and lightness for color-blind readers (after Okabe and Ito).
SERIES_COLORS = ("#1f83c4", "#d55e00", "#00917c", "#b8609a", "#a07800")
# A contrast of 4.6 on white. A dark theme of JupyterLab brightens the picture by 1.4, which gives
# 7 on #111111: its themes set this variable to 32, the light ones to 0. Other pages do not set it.
INK = "#757575"
_THEME_FILTER = "brightness(calc(1 + var(--jp-shadow-base-lightness, 0) / 80))"
# A series with up to so many values is described by all of them, a longer one by its ends.
_MOST_VALUES = 8
_MOST_NAMES = 12

_SETTINGS: dict[str, object] = {
    "figure.facecolor": "none",
    "figure.edgecolor": "none",
    "figure.figsize": (7.0, 3.8),
    "figure.dpi": 110,
    "savefig.facecolor": "none",
    "savefig.edgecolor": "none",
    "axes.facecolor": "none",
    "axes.edgecolor": INK,
    "axes.labelcolor": INK,
    "axes.titlecolor": INK,
    "axes.titlelocation": "left",
    "axes.titlesize": 13,
    "axes.labelsize": 12,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "axes.axisbelow": True,
    "grid.color": INK,
    "grid.alpha": 0.25,
    "text.color": INK,
    "xtick.color": INK,
    "xtick.labelcolor": INK,
    "ytick.color": INK,
    "ytick.labelcolor": INK,
    "font.size": 12,
    "legend.frameon": False,
    "legend.labelcolor": INK,
    "lines.linewidth": 2.2,
    "lines.markersize": 6,
    "image.cmap": "cividis",
}


def use_lab_style() -> None:
    """Sets matplotlib's style for this kernel, and gives the figures it shows a text.

    The background is transparent, text and axes are gray, and series use the colors of
    ``SERIES_COLORS`` in turn. A second call changes nothing.
    """
    import matplotlib
    from matplotlib.figure import Figure
    from matplotlib.rcsetup import cycler

    matplotlib.rcParams.update(_SETTINGS)
    matplotlib.rcParams["axes.prop_cycle"] = cycler(color=SERIES_COLORS)
    ipython = sys.modules.get("IPython")
    shell = ipython.get_ipython() if ipython is not None else None
    if shell is not None:
        # This formatter comes before all others, so the PNG is not stored a second time.
        shell.display_formatter.ipython_display_formatter.for_type(Figure, show_figure)


def show_figure(figure: Any) -> None:
    """Displays the figure as a PNG with its description; a figure without axes shows nothing."""
    from IPython.core.pylabtools import print_figure
    from IPython.display import display

    image = print_figure(figure, fmt="png", base64=True)
    if image:
        try:
            text = describe_figure(figure)
        except Exception:  # an artist of another library: the picture is shown without its words
            text = "A plot."
        display({"text/html": render_image(image, text), "text/plain": text}, raw=True)


def render_image(image: str, text: str) -> str:
    """The HTML of a PNG (base64) that is legible in light and dark themes, with its text."""
    style = f"max-width: 100%; height: auto; filter: {_THEME_FILTER}"
    # One line: a line break would be part of the data's URL.
    data = "".join(image.split())
    return f'<img src="data:image/png;base64,{data}" alt="{escape(text)}" style="{style}">'


def describe_figure(figure: Any) -> str:
    """What a drawn figure shows, in sentences: titles, axes with their ranges, and each series."""
    described = [_describe_axes(axes) for axes in figure.axes if axes.get_label() != "<colorbar>"]
    title = figure._suptitle.get_text() if getattr(figure, "_suptitle", None) else ""
    return " ".join(filter(None, (title and f"{title}.", *described))) or "An empty plot."


def _describe_axes(axes: Any) -> str:
    titles = (axes.get_title(loc=place) for place in ("left", "center", "right"))
    parts = ["Plot: " + (" ".join(filter(None, titles)) or "without a title")]
    if axes.axison:
        parts += [_describe_axis("x", axes.xaxis), _describe_axis("y", axes.yaxis)]
        parts += _describe_lines(axes)
        parts += _describe_bars(axes)
        parts += _describe_areas(axes)
    else:
        parts += [" | ".join(" ".join(text.get_text().split()) for text in axes.texts)]
    return ". ".join(part for part in parts if part) + "."


def _describe_axis(name: str, axis: Any) -> str:
    label = axis.get_label_text()
    scale = ", logarithmic" if axis.get_scale() == "log" else ""
    names = _list_names(axis)
    if names:
        return f"{name}: {label}{': ' if label else ''}{', '.join(names)}"
    first, last = axis.get_view_interval()
    return f"{name}: {label}{', ' if label else ''}{_number(first)} to {_number(last)}{scale}"


def _list_names(axis: Any) -> list[str]:
    """The names at an axis whose places have names and not numbers, in order; else none."""
    from matplotlib.category import StrCategoryFormatter
    from matplotlib.ticker import FixedFormatter

    if not isinstance(axis.get_major_formatter(), FixedFormatter | StrCategoryFormatter):
        return []
    return [text for one in axis.get_majorticklabels() if (text := one.get_text())][:_MOST_NAMES]


def _describe_lines(axes: Any) -> Iterator[str]:
    for line in axes.lines:
        label = _own_label(line)
        xs, ys = ([float(value) for value in values] for values in line.get_data(orig=False))
        if label and ys and line.get_transform() != axes.transData:
            # axhline and axvline: one of the coordinates is a share of the axes.
            level = f"y = {_number(ys[0])}" if len(set(ys)) == 1 else f"x = {_number(xs[0])}"
            yield f"{label}: a line at {level}"
        elif ys and line.get_transform() == axes.transData:
            yield f"{label or 'a line'}: {_describe_series(xs, ys)}"


def _describe_series(xs: Sequence[float], ys: Sequence[float]) -> str:
    if len(ys) <= _MOST_VALUES:
        return ", ".join(map(_number, ys))
    return (
        f"{len(ys)} points from ({_number(xs[0])}, {_number(ys[0])})"
        f" to ({_number(xs[-1])}, {_number(ys[-1])}), lowest {_number(min(ys))},"
        f" highest {_number(max(ys))}"
    )


def _describe_bars(axes: Any) -> Iterator[str]:
    from matplotlib.container import BarContainer

    for bars in axes.containers:
        if isinstance(bars, BarContainer):
            across = bars.orientation == "horizontal"
            names = _list_names(axes.yaxis if across else axes.xaxis)
            values = [bar.get_width() if across else bar.get_height() for bar in bars]
            label = _own_label(bars) or "bars"
            if len(names) == len(values):
                pairs = zip(names, values, strict=True)
                yield f"{label}: " + ", ".join(f"{name} {_number(v)}" for name, v in pairs)
            else:
                yield f"{label}: {_describe_series(range(len(values)), values)}"


def _describe_areas(axes: Any) -> Iterator[str]:
    for image in axes.images:
        values = image.get_array()
        size = " by ".join(str(length) for length in values.shape)
        yield f"an image of {size} values from {_number(values.min())} to {_number(values.max())}"
    for collection in axes.collections:
        label, places = _own_label(collection), collection.get_offsets()
        if label and len(places):
            yield f"{label}: {', '.join(f'({_number(x)}, {_number(y)})' for x, y in places[:5])}"


def _own_label(artist: Any) -> str:
    """The label that the author gave; "" for one that matplotlib made."""
    label = str(artist.get_label())
    return "" if label.startswith("_") else label


def _number(value: float) -> str:
    return f"{float(value):.3g}"

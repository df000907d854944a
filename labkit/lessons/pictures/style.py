"""Matplotlib settings under which one plot is legible in light and dark themes."""

from __future__ import annotations

# Each has a contrast of at least 3.4 against white and against JupyterLab's dark #111111, and
# they differ in hue and lightness for colour-blind eyes (after Okabe and Ito).
SERIES_COLORS = ("#1f83c4", "#d55e00", "#00917c", "#b8609a", "#a07800")

# matplotlib-inline asks JupyterLab for a white or black card behind a transparent plot whose
# tick labels are all dark or all light. These two sit on either side of its threshold (0.5),
# so that no card is laid down and the page shows through in both themes.
DARKER_GREY = "#7b7b7b"
LIGHTER_GREY = "#818181"

_SETTINGS: dict[str, object] = {
    "figure.facecolor": "none",
    "figure.edgecolor": "none",
    "figure.figsize": (7.0, 3.8),
    "figure.dpi": 110,
    "savefig.facecolor": "none",
    "savefig.edgecolor": "none",
    "axes.facecolor": "none",
    "axes.edgecolor": DARKER_GREY,
    "axes.labelcolor": DARKER_GREY,
    "axes.titlecolor": DARKER_GREY,
    "axes.titlelocation": "left",
    "axes.titlesize": 13,
    "axes.labelsize": 12,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "axes.axisbelow": True,
    "grid.color": DARKER_GREY,
    "grid.alpha": 0.25,
    "text.color": DARKER_GREY,
    "xtick.color": DARKER_GREY,
    "xtick.labelcolor": DARKER_GREY,
    "ytick.color": LIGHTER_GREY,
    "ytick.labelcolor": LIGHTER_GREY,
    "font.size": 12,
    "legend.frameon": False,
    "legend.labelcolor": DARKER_GREY,
    "lines.linewidth": 2.2,
    "lines.markersize": 6,
    "image.cmap": "cividis",
}


def use_lab_style() -> None:
    """Sets matplotlib up for the rest of the kernel's life: plots that suit both themes.

    The background is transparent, text and axes are a grey between light and dark, and
    series take the colours of ``SERIES_COLORS`` in turn. Calling it again changes nothing.
    """
    import matplotlib
    from matplotlib.rcsetup import cycler

    matplotlib.rcParams.update(_SETTINGS)
    matplotlib.rcParams["axes.prop_cycle"] = cycler(color=SERIES_COLORS)

from __future__ import annotations

import subprocess
import sys

import matplotlib
import pytest

matplotlib.use("agg")

import matplotlib.pyplot as plt

from labkit.lessons import pictures
from labkit.lessons.pictures import shapes, use_lab_style

JUPYTER_LIGHT, JUPYTER_DARK = "#ffffff", "#111111"


@pytest.fixture(autouse=True)
def settings_of_the_test_only():
    with matplotlib.rc_context():
        yield
    plt.close("all")


def luminance(color: str) -> float:
    channels = [int(color[start : start + 2], 16) / 255 for start in (1, 3, 5)]
    linear = [c / 12.92 if c <= 0.03928 else ((c + 0.055) / 1.055) ** 2.4 for c in channels]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


def contrast(one: str, other: str) -> float:
    dark, light = sorted((luminance(one), luminance(other)))
    return (light + 0.05) / (dark + 0.05)


@pytest.mark.parametrize("page", [JUPYTER_LIGHT, JUPYTER_DARK], ids=["light", "dark"])
@pytest.mark.parametrize("color", [*shapes.SERIES_COLORS, shapes.DARKER_GREY, shapes.LIGHTER_GREY])
def test_every_color_stands_out_on_both_pages(color, page):
    assert contrast(color, page) >= 3.4


def test_figures_are_transparent_and_series_take_the_lab_colors():
    use_lab_style()
    figure, axes = plt.subplots()
    lines = [axes.plot([0, 1])[0] for _ in shapes.SERIES_COLORS]
    assert figure.get_facecolor()[3] == 0
    assert axes.get_facecolor()[3] == 0
    assert tuple(line.get_color() for line in lines) == shapes.SERIES_COLORS


def test_calling_it_twice_changes_nothing():
    use_lab_style()
    once = dict(matplotlib.rcParams)
    use_lab_style()
    assert dict(matplotlib.rcParams) == once


def test_jupyterlab_lays_no_card_behind_a_plot():
    inline = pytest.importorskip("matplotlib_inline.backend_inline")
    use_lab_style()
    figure, axes = plt.subplots()
    axes.plot([0, 1], [0, 1])
    assert inline._fetch_figure_metadata(figure) is None


def test_jupyterlab_would_lay_one_behind_a_plot_without_the_style():
    inline = pytest.importorskip("matplotlib_inline.backend_inline")
    figure, axes = plt.subplots(facecolor="none")
    axes.plot([0, 1], [0, 1])
    assert inline._fetch_figure_metadata(figure) == {"needs_background": "light"}


def test_the_package_names_what_it_has():
    assert dir(pictures) == ["draw_graph", "draw_shapes", "use_lab_style"]
    assert callable(pictures.draw_shapes)
    with pytest.raises(AttributeError, match="has no attribute 'draw'"):
        _ = pictures.draw


def test_importing_the_pictures_loads_neither_torch_nor_matplotlib():
    code = (
        "import sys, labkit.lessons.pictures.shapes, labkit.lessons.pictures.shapes\n"
        "print([name for name in ('torch', 'numpy', 'matplotlib', 'IPython')"
        " if name in sys.modules])"
    )
    command = [sys.executable, "-c", code]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert done.stdout == "[]\n", done.stderr

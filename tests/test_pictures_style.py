from __future__ import annotations

import re
import subprocess
import sys

import matplotlib
import pytest

matplotlib.use("agg")

import matplotlib.pyplot as plt

from labkit.lessons import cards, pictures
from labkit.lessons.pictures import plots, use_lab_style
from labkit.lessons.pictures.plots import describe_figure, render_image

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
@pytest.mark.parametrize("color", plots.SERIES_COLORS)
def test_every_color_stands_out_on_both_pages(color, page):
    assert contrast(color, page) >= 3.4


def test_figures_are_transparent_and_series_take_the_lab_colors():
    use_lab_style()
    figure, axes = plt.subplots()
    lines = [axes.plot([0, 1])[0] for _ in plots.SERIES_COLORS]
    assert figure.get_facecolor()[3] == 0
    assert axes.get_facecolor()[3] == 0
    assert tuple(line.get_color() for line in lines) == plots.SERIES_COLORS


def test_calling_it_twice_changes_nothing():
    use_lab_style()
    once = dict(matplotlib.rcParams)
    use_lab_style()
    assert dict(matplotlib.rcParams) == once


def test_text_has_the_contrast_of_wcag_aa_in_both_themes():
    red, green, blue = (int(plots.INK[at : at + 2], 16) for at in (1, 3, 5))
    brightened = "#" + "".join(f"{round(c * (1 + 32 / 80)):02x}" for c in (red, green, blue))
    assert contrast(plots.INK, JUPYTER_LIGHT) >= 4.5
    assert contrast(brightened, JUPYTER_DARK) >= 4.5
    assert "var(--jp-shadow-base-lightness, 0) / 80" in render_image("", "")


@pytest.mark.parametrize(
    ("color", "ink", "page"),
    [
        pytest.param("#388e3c", "#212121", JUPYTER_LIGHT, id="light, holds"),
        pytest.param("#d32f2f", "#212121", JUPYTER_LIGHT, id="light, fails"),
        pytest.param("#4caf50", "#ffffff", JUPYTER_DARK, id="dark, holds"),
        pytest.param("#f44336", "#ffffff", JUPYTER_DARK, id="dark, fails"),
    ],
)
def test_the_word_of_a_card_has_the_contrast_of_wcag_aa(color, ink, page):
    share = int(re.search(r"\} (\d+)%", cards._MIXED)[1]) / 100
    pairs = ((int(one[at : at + 2], 16) for one in (color, ink)) for at in (1, 3, 5))
    mixed = "#" + "".join(f"{round(share * a + (1 - share) * b):02x}" for a, b in pairs)
    assert contrast(mixed, page) >= 4.5


def describe(figure) -> str:
    figure.canvas.draw()
    return describe_figure(figure)


def test_a_plots_text_says_its_title_its_axes_and_each_series():
    figure, axes = plt.subplots()
    axes.semilogy(range(1, 31), [1 / n for n in range(1, 31)], "o", label="eager")
    axes.plot([1, 2, 3], [4, 5, 6], label="compiled")
    axes.axhline(0.3, label="limit")
    axes.set(xlabel="call", ylabel="seconds", title="Each call")
    text = describe(figure)
    assert text.startswith("Plot: Each call. x: call, ")
    assert re.search(r"y: seconds, [\d.]+ to [\d.]+, logarithmic\.", text)
    assert "eager: 30 points from (1, 1) to (30, 0.0333), lowest 0.0333, highest 1." in text
    assert "compiled: 4, 5, 6. limit: a line at y = 0.3." in text


def test_bars_are_told_with_their_names_and_two_plots_one_after_the_other():
    figure, (left, right) = plt.subplots(1, 2)
    left.barh(["first call", "later"], [12.5, 0.25])
    right.imshow([[0, 1], [2, 3]])
    figure.colorbar(right.images[0], ax=right)
    text = describe(figure)
    assert "bars: first call 12.5, later 0.25." in text
    assert text.count("Plot:") == 2
    assert "an image of 2 by 2 values from 0 to 3." in text


def test_a_drawing_without_axes_is_told_by_its_texts_and_an_empty_figure_says_so():
    figure, axes = plt.subplots()
    axes.barh(0, 1)
    axes.text(0, 0, "graph 1\nmul, sum")
    axes.text(1, 0, "print")
    axes.set(title="talkative")
    axes.set_axis_off()
    assert describe(figure) == "Plot: talkative. graph 1 mul, sum | print."
    assert describe(plt.figure()) == "An empty plot."


def test_in_a_notebook_a_figure_is_shown_once_as_an_image_with_its_text(monkeypatch):
    ipython = pytest.importorskip("IPython")
    shell = ipython.core.interactiveshell.InteractiveShell()
    monkeypatch.setattr(ipython, "get_ipython", lambda: shell)
    use_lab_style()
    figure, axes = plt.subplots()
    axes.set_title('a < b & "c"')
    shown = []
    monkeypatch.setattr("IPython.display.display", lambda data, raw: shown.append(data))
    assert shell.display_formatter.format(figure) == ({}, {})
    (data,) = shown
    assert sorted(data) == ["text/html", "text/plain"]
    assert 'alt="Plot: a &lt; b &amp; &quot;c&quot;. x: ' in data["text/html"]
    assert data["text/html"].startswith('<img src="data:image/png;base64,iVBOR')


def test_the_package_names_what_it_has():
    assert dir(pictures) == ["draw_graph", "draw_shapes", "use_lab_style"]
    assert callable(pictures.draw_shapes)
    with pytest.raises(AttributeError, match="has no attribute 'draw'"):
        _ = pictures.draw


def test_importing_the_pictures_loads_neither_torch_nor_matplotlib():
    code = (
        "import sys, labkit.lessons.pictures.shapes, labkit.lessons.pictures.plots\n"
        "print([name for name in ('torch', 'numpy', 'matplotlib', 'IPython')"
        " if name in sys.modules])"
    )
    command = [sys.executable, "-c", code]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert done.stdout == "[]\n", done.stderr

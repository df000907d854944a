"""``plot_memory()``: the figure, and the text where there is no matplotlib."""

from __future__ import annotations

import base64
import subprocess
import sys

import pytest

import labkit
from labkit.errors import UsageError
from labkit.memory.sample import sampler as sampler_module
from labkit.memory.sample.sampler import MemorySampler
from labkit.memory.sample.view import BARS
from tests.fakes.sampling import (
    GIB,
    MIB,
    PlayedClock,
    PlayedReader,
    play_cpu,
    play_gpu,
    play_utc,
    snap,
)


def play_run(*answers, interval=1.0, steps=None):
    """A stopped sampler that saw each answer for a second, with a cell, blocks and marks."""
    clock = PlayedClock(0.0)
    sampler = MemorySampler(
        interval, reader=PlayedReader(*answers), clock=clock, wall_clock=lambda: 0.0
    )
    for number in range(steps or len(answers)):
        sampler.take_sample()
        if number == 2:
            sampler.mark("now")
        clock.now += interval
    return sampler


def play_gpu_run():
    counts = [1, 2, 3, 8, 8, 3, 3, 1]
    rows = [snap(play_gpu(count * GIB, GIB, (count + 2) * GIB), play_cpu()) for count in counts]
    rows[5] = snap()  # the GPU is not told of for one second
    return play_run(*rows)


SCREEN = """\
memory over 0:07, a sample every 1 s
cuda:0   allocated {allocated}  peak 8.0 GiB
         reserved  {reserved}  peak 9.0 GiB
         used      {used}  peak 10.0 GiB of 24.0 GiB
cpu      process   {process}  peak 100.0 MiB
         available {process}  least 8.0 GiB
                                    now
not measured: cuda:0 in 1 sample"""


def bars(*runs):
    return "".join(letter * count for letter, count in runs)


def test_the_samples_as_text():
    assert repr(play_gpu_run()) == SCREEN.format(
        allocated=bars(("▂", 8), ("▃", 9), ("▄", 8), ("█", 18), (" ", 8), ("▄", 9)),
        reserved=bars(("▃", 8), ("▃", 9), ("▄", 8), ("█", 18), (" ", 8), ("▄", 9)),
        used=bars(("▃", 8), ("▄", 9), ("▅", 8), ("█", 18), (" ", 8), ("▅", 9)),
        process="█" * 60,
    )


def test_a_single_sample_and_none_at_all():
    one = play_run(snap())
    assert repr(one).splitlines()[1].split() == ["cpu", "process", BARS[-1], "peak", "100.0", "MiB"]
    assert repr(play_run(ValueError("no"), steps=1)) == (
        "memory over 0:00, a sample every 1 s\nnot measured: ValueError: no"
    )


def test_a_device_that_was_never_measured_says_so():
    text = repr(play_run(snap(play_gpu(free_bytes=None), play_cpu())))
    assert text.splitlines()[3] == f"{'         used':<81}not measured"


def test_the_figure_has_each_device_and_what_ran():
    with play_utc():
        figure = labkit.plot_memory(play_gpu_run())
    lanes, gpu, cpu = figure.axes
    assert [label.get_text() for label in lanes.get_yticklabels()] == ["marks"]
    assert gpu.get_title(loc="left") == "cuda:0 of 24.0 GiB"
    assert cpu.get_title(loc="left") == "cpu: never less than 8.0 GiB of 16.0 GiB available"
    assert (gpu.get_ylabel(), cpu.get_ylabel()) == ("GiB", "MiB")
    assert [text.get_text() for text in gpu.texts] == ["peak 8.0 GiB"]
    assert [text.get_text() for text in gpu.get_legend().get_texts()] == [
        "used by anyone",
        "reserved by torch",
        "tensors",
    ]
    assert cpu.get_xlabel() == "seconds since 1970-01-01 00:00:00"
    assert figure.get_suptitle() == "not measured: cuda:0 in 1 sample"


def test_gaps_are_gaps_in_the_figure():
    gpu = labkit.plot_memory(play_gpu_run()).axes[1]
    used = [line for line in gpu.lines if line.get_color() == "#e08a2e"]
    assert [list(line.get_xdata()) for line in used] == [[0, 1, 2, 3, 4, 5], [6, 7, 8]]
    assert [max(line.get_ydata()) for line in used] == [10.0, 5.0]


@pytest.mark.parametrize(
    ("seconds", "unit"), [(100, "seconds"), (3600, "minutes"), (36000, "hours")], ids=str
)
def test_the_time_is_in_units_that_can_be_read(seconds, unit):
    figure = labkit.plot_memory(play_run(snap(), interval=seconds / 10, steps=11))
    assert figure.axes[-1].get_xlabel().startswith(f"{unit} since ")
    assert figure.axes[-1].get_xlim()[1] == pytest.approx(
        seconds / {"seconds": 1, "minutes": 60, "hours": 3600}[unit]
    )


def test_it_shows_itself_as_picture_and_text():
    figure = labkit.plot_memory(play_gpu_run())
    data, metadata = figure._repr_mimebundle_()
    assert base64.b64decode(data["image/png"]).startswith(b"\x89PNG")
    assert data["text/plain"] == repr(figure) == str(figure) == repr(play_gpu_run())
    assert metadata == {"image/png": {"width": 900}}


def test_ipython_shows_it_by_that_alone():
    from IPython.core.formatters import DisplayFormatter

    data, _ = DisplayFormatter().format(labkit.plot_memory(play_gpu_run()))
    assert sorted(data) == ["image/png", "text/plain"]


def test_it_can_be_saved_like_any_figure(tmp_path):
    path = tmp_path / "memory.svg"
    labkit.plot_memory(play_gpu_run()).savefig(path)
    assert path.read_text().startswith("<?xml")


@pytest.mark.parametrize("ground", [(1.0, 1.0, 1.0), (0.067, 0.067, 0.067)], ids=["light", "dark"])
def test_words_are_legible_on_both_grounds(ground):
    from matplotlib.colors import to_rgb
    from matplotlib.text import Text

    figure = labkit.plot_memory(play_gpu_run())
    assert figure.get_facecolor()[3] == 0
    colours = {to_rgb(text.get_color()) for text in figure.findobj(Text) if text.get_text()}
    assert colours
    for colour in colours:
        assert contrast(colour, ground) > 3.8


def contrast(one, other):
    """As the accessibility guidelines of the web count it."""

    def brightness(colour):
        linear = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in colour]
        return sum(
            part * share for part, share in zip(linear, (0.2126, 0.7152, 0.0722), strict=True)
        )

    low, high = sorted((brightness(one), brightness(other)))
    return (high + 0.05) / (low + 0.05)


def test_without_an_argument_it_is_the_sampler_started_last(monkeypatch):
    monkeypatch.setattr(sampler_module, "_LATEST", play_gpu_run())
    assert repr(labkit.plot_memory()) == repr(play_gpu_run())


def test_nothing_to_plot(monkeypatch):
    monkeypatch.setattr(sampler_module, "_LATEST", None)
    with pytest.raises(UsageError) as caught:
        labkit.plot_memory()
    assert "no sampler was started" in caught.value.cause
    with pytest.raises(UsageError) as caught:
        labkit.plot_memory(play_run(ValueError("no sense"), steps=1))
    assert "(ValueError: no sense)" in caught.value.cause


WITHOUT = """
import sys
sys.modules["matplotlib"] = None
import labkit
with labkit.sample_memory() as sampler:
    pass
print(labkit.plot_memory())
"""


def test_without_matplotlib_it_is_text():
    done = subprocess.run(
        [sys.executable, "-c", WITHOUT], capture_output=True, text=True, check=True, timeout=60
    )
    assert done.stdout.startswith("memory over 0:00, a sample every 100 ms\n")
    assert "cpu      process   " in done.stdout
    assert done.stderr == ""


def test_the_spike_of_a_long_run_is_in_the_figure():
    rows = [snap(play_cpu(resident=9000 * MIB if at == 777 else 100 * MIB)) for at in range(2000)]
    figure = labkit.plot_memory(play_run(*rows))
    (text,) = figure.axes[1].texts
    assert text.get_text() == "peak 8.8 GiB"
    assert max(figure.axes[1].lines[0].get_ydata()) == pytest.approx(9000 / 1024)

"""Charts: round axes, and shapes for known values only."""

from __future__ import annotations

import pytest

from labkit.charts import Column, Line, choose_scale, render_columns, render_lines


@pytest.mark.parametrize(
    ("highest", "unit", "ticks"),
    [
        (3.98, "seconds", ["0 s", "1 s", "2 s", "3 s"]),
        (0.012, "seconds", ["0 s", "5 ms", "10 ms"]),
        (600 * 2**20, "bytes", ["0 B", "200 MiB", "400 MiB", "600 MiB"]),
        (1.5 * 2**30, "bytes", ["0 B", "512 MiB", "1 GiB", "1.5 GiB"]),
        (0, "seconds", ["0 s", "500 ms", "1 s"]),
    ],
    ids=["seconds", "milliseconds", "MiB", "GiB", "nothing"],
)
def test_axes_have_round_values(highest, unit, ticks):
    scale = choose_scale(highest, unit)
    assert [scale.write(tick) for tick in scale.ticks] == ticks
    assert scale.place(0) == 166
    assert 20 <= scale.place(scale.ticks[-1]) < 100


def test_columns_are_drawn_for_known_values_only():
    columns = [Column("1", 2.0, tooltip="<t>"), Column("2", None), Column("3", 1.0, bad=True)]
    plot = render_columns(columns, alt='"quoted"', unit="seconds")
    assert plot.count("<rect") == 2
    assert plot.count("bad-column") == 1
    assert "<title>&lt;t&gt;</title>" in plot
    assert 'aria-label="&quot;quoted&quot;"' in plot
    assert render_columns([Column("1", None)], alt="", unit="seconds") == ""
    assert render_columns([], alt="", unit="seconds") == ""


def test_very_many_columns_are_one_path():
    columns = [Column(str(number), float(number)) for number in range(5000)]
    plot = render_columns(columns, alt="", unit="bytes")
    assert "<rect" not in plot
    assert plot.count("M") >= 5000
    assert len(plot) < 120_000


def test_lines_need_two_points():
    line = Line("process", ((0.0, 1.0), (2.0, 3.0)))
    plot = render_lines([line, Line("cuda", ())], alt="")
    assert plot.count("<polyline") == 1
    assert render_lines([Line("process", ((0.0, 1.0),))], alt="") == ""
    assert "<polyline" in render_lines([Line("cuda", ((0.0, 0.0), (0.0, 0.0)))], alt="")

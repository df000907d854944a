"""Output that would fill memory or disk is cut in the middle, and it is said where."""

from __future__ import annotations

import resource

import pytest

from labkit.notebooks.kernel import HEAD_BYTES, RICH_BYTES, TAIL_BYTES, OutputLimit, shorten_middle
from tests.notebooks import run_cells

MIB = 2**20


def test_text_below_the_limit_stays_as_it_is():
    limit = OutputLimit()
    assert limit.take_text("stdout", "a" * HEAD_BYTES) == ("a" * HEAD_BYTES, None)
    assert limit.take_text("stderr", "b") == ("b", None)
    assert (limit.output_bytes, limit.truncated) == (HEAD_BYTES + 1, False)


def test_past_the_limit_the_beginning_and_the_end_are_kept():
    limit = OutputLimit()
    head, rest = limit.take_text("stdout", "a" * HEAD_BYTES + "b")
    assert head == "a" * HEAD_BYTES
    for number in range(400):
        assert limit.take_text("stdout", f"{number:03}" + "." * 997) == ("", None)
    limit.finish_cell()
    assert limit.truncated
    assert limit.output_bytes == HEAD_BYTES + 1 + 400_000
    notice, end = rest.text.lstrip("\n").split("\n", 1)
    left_out = 1 + 400_000 - TAIL_BYTES
    assert notice == f"[labkit left out {left_out / 1024:.1f} KiB of stdout here]"
    assert len(end) == TAIL_BYTES
    assert end.endswith("399" + "." * 997)


def test_a_little_past_the_limit_nothing_is_lost():
    limit = OutputLimit()
    head, rest = limit.take_text("stdout", "a" * HEAD_BYTES + "the end")
    limit.finish_cell()
    assert head + rest.text == "a" * HEAD_BYTES + "the end"


def test_text_in_other_scripts_is_counted_in_bytes():
    limit = OutputLimit()
    limit.take_text("stdout", "日本")
    assert limit.output_bytes == 6


def test_cleared_output_counts_no_longer():
    limit = OutputLimit()
    limit.take_text("stdout", "a" * HEAD_BYTES)
    limit.clear()
    assert limit.take_text("stdout", "b") == ("b", None)


def test_a_picture_too_many_gives_way_to_a_line():
    limit = OutputLimit()
    first = {"data": {"image/png": "x" * (RICH_BYTES - 10)}, "metadata": {}}
    limit.bound_content(first)
    assert "image/png" in first["data"]
    second = {"data": {"image/png": "y" * 2048, "text/plain": ""}, "metadata": {"a": 1}}
    limit.bound_content(second)
    assert second["data"] == {"text/plain": "[labkit left out an output of 2.0 KiB here]"}
    assert (limit.truncated, limit.output_bytes) == (True, RICH_BYTES - 10 + 2048)


def test_an_endless_traceback_is_shortened():
    limit = OutputLimit()
    content = {"ename": "E", "evalue": "v" * 10**6, "traceback": ["x" * 10**6, *["line"] * 5000]}
    limit.bound_content(content)
    assert len(content["evalue"]) < 70_000
    assert len(content["traceback"]) == 2000
    assert limit.truncated


def test_a_short_text_is_not_shortened():
    assert shorten_middle("text", 4) == "text"


@pytest.mark.slow
def test_a_hundred_megabytes_are_bounded_and_the_rest_goes_on(tmp_path):
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    source = "block = 'x' * 999_999 + '\\n'\nfor _ in range(100): print(block, end='', flush=True)"
    result, notebook = run_cells(
        tmp_path, source, "print('after')", f"raise ValueError('y' * {MIB})"
    )
    grown_bytes = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) * 1024
    first, after, failed = result.cells
    assert (first.status, first.truncated, first.output_bytes) == ("passed", True, 10**8)
    assert (after.truncated, after.output_bytes) == (False, 6)
    assert failed.truncated
    text = "".join(output.text for output in notebook.cells[0].outputs)
    assert len(text) < HEAD_BYTES + TAIL_BYTES + 100
    assert "[labkit left out 94.1 MiB of stdout here]" in text
    assert grown_bytes < 150 * MIB
    assert len(result.error.what) < 2200
    assert len(notebook.cells[2].outputs[0].evalue) < 70_000

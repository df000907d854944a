"""The bookkeeping of storages: the level, its exact peak, and what was live at it."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from labkit.memory.track.frames import Frame, find_user_frames, is_user_file
from labkit.memory.track.model import CATEGORIES, Level, LineUse, Storage, sum_categories, sum_lines

FIRST, SECOND = Frame("/home/me/train.py", 3, "step"), Frame("/home/me/train.py", 9, "step")


def hold(serial, count, kind="other", frames=(), *, before=False):
    return Storage(serial, count, "cpu", kind, frames, before=before)


def test_the_peak_and_what_was_live_at_it():
    level = Level()
    one, two, three = hold(1, 100), hold(2, 50), hold(3, 20)
    level.add(one)
    level.add(two)
    level.remove(one)
    level.add(three)
    assert (level.now_bytes, level.peak_bytes) == (70, 150)
    assert {storage.serial for storage in level.list_at_peak()} == {1, 2}


def test_the_first_of_two_equal_peaks_is_told():
    level = Level()
    first, second = hold(1, 100), hold(2, 100)
    level.add(first)
    level.remove(first)
    level.add(second)
    assert level.list_at_peak() == [first]


def test_what_was_there_before_is_under_the_peak_that_was_already():
    level = Level()
    peak, old = hold(1, 100), hold(2, 30, before=True)
    level.add(peak)
    level.remove(peak)
    level.add(old)
    assert (level.before_bytes, level.now_bytes, level.peak_bytes) == (30, 30, 130)
    assert {storage.serial for storage in level.list_at_peak()} == {1, 2}
    level.remove(old)
    assert (level.now_bytes, level.peak_bytes) == (0, 130)
    assert {storage.serial for storage in level.list_at_peak()} == {1, 2}


@given(st.lists(st.tuples(st.integers(0, 9), st.integers(0, 50)), max_size=60))
def test_what_was_live_at_the_peak_adds_up_to_it(moves):
    """Each move frees the storage in its place, if there is one, or puts one there."""
    level, held, serial = Level(), {}, 0
    highest = now = 0
    for place, count in moves:
        if place in held:
            gone = held.pop(place)
            now -= gone.bytes
            level.remove(gone)
        else:
            serial += 1
            held[place] = hold(serial, count)
            now += count
            highest = max(highest, now)
            level.add(held[place])
    assert (level.now_bytes, level.peak_bytes) == (now, highest)
    assert sum(storage.bytes for storage in level.list_at_peak()) == highest


def test_sums_by_kind_name_every_kind():
    sums = sum_categories([hold(1, 5, "inputs"), hold(2, 7, "inputs"), hold(3, 1, "gradients")])
    assert tuple(sums) == CATEGORIES
    assert (sums["inputs"], sums["gradients"], sums["other"]) == (12, 1, 0)


def test_sums_by_line_have_the_largest_first():
    elsewhere = Frame(FIRST.file, FIRST.line, "<listcomp>")
    storages = [
        hold(1, 5, frames=(FIRST,)),
        hold(2, 7, frames=(SECOND, FIRST)),
        hold(3, 6, frames=(elsewhere,)),
        hold(4, 2),
    ]
    assert sum_lines(storages) == (
        LineUse(FIRST, 11, 2),
        LineUse(SECOND, 7, 1),
        LineUse(None, 2, 1),
    )
    assert len(sum_lines(storages, 2)) == 2


def test_the_users_own_frames_are_found_from_the_innermost_on():
    def inner():
        return find_user_frames(2)

    frames = inner()
    assert [frame.function for frame in frames] == [
        "inner",
        "test_the_users_own_frames_are_found_from_the_innermost_on",
    ]
    assert frames[0].where == f"test_storage_levels.py:{frames[0].line}"
    assert frames[0].source == "return find_user_frames(2)"
    assert find_user_frames(0) == ()


def test_torch_labkit_and_the_library_are_not_the_users():
    import contextlib

    import numpy
    import torch

    import labkit

    for module in (torch, torch.nn, labkit, contextlib):
        assert not is_user_file(module.__file__)
    assert is_user_file(numpy.__file__)


def test_a_notebooks_cell_is_called_so():
    assert Frame("/tmp/ipykernel_12/345.py", 2, "<module>").where == "cell:2"


def test_a_line_is_that_of_its_own_code_after_another_code_is_gone():
    for number in range(50):  # the next code soon has the place of the one before it
        source = "\n" * number + "def find():\n    return find_user_frames()[0]"
        names = {"find_user_frames": find_user_frames}
        exec(compile(source, f"/home/a/train_{number}.py", "exec"), names)
        for _ in range(2):
            frame = names["find"]()
            assert (frame.file, frame.line) == (f"/home/a/train_{number}.py", number + 2)

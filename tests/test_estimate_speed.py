"""What an estimate does for its own speed, and what it leaves as it was."""

from __future__ import annotations

import contextlib
import functools
import gc
import io
import multiprocessing
import random
import sys
import tempfile
import weakref
from pathlib import Path
from types import ModuleType

import pytest
import torch

from labkit.memory.estimate import draws, results, state, tracer
from labkit.memory.estimate.cuda import replace_attributes
from labkit.memory.estimate.play import estimate_memory
from labkit.memory.estimate.results import FACTS, borrow_attributes, find_facts
from labkit.memory.estimate.tracer import FakeTracer
from labkit.memory.track.frames import find_check, find_user_frames


@pytest.fixture
def unfrozen():
    gc.unfreeze()
    yield
    gc.unfreeze()


def make_growing():
    kept = []

    def step():
        print(gc.get_freeze_count())
        kept.append(torch.ones(1000))

    return step


@pytest.mark.usefixtures("unfrozen")
def test_the_collector_does_not_look_at_what_was_there_before_the_estimate(capsys):
    assert estimate_memory(make_growing).growth_bytes == 4000
    looks = [int(one) for one in capsys.readouterr().out.split()]
    assert len(looks) == 3
    assert min(looks) > 1000
    assert gc.get_freeze_count() == 0


@pytest.mark.usefixtures("unfrozen")
def test_what_the_process_has_frozen_itself_stays_so():
    gc.freeze()
    count = gc.get_freeze_count()
    estimate_memory(make_growing)
    # Some of it may be gone, by its count of references.
    assert gc.get_freeze_count() == pytest.approx(count, rel=0.01)


@pytest.mark.usefixtures("unfrozen")
def test_garbage_from_before_an_estimate_does_not_outlive_it():
    class Loop:
        pass

    gc.collect()
    loop = Loop()
    loop.self = loop
    gone = weakref.ref(loop)
    del loop
    estimate_memory(make_growing)
    assert gone() is None


def list_folders(tmp_path):
    return [one.name for one in tmp_path.glob("labkit-files-*")]


@pytest.mark.parametrize("forks", [False, True], ids=["itself", "in a fork"])
def test_only_a_step_that_writes_has_a_folder_for_its_files_and_it_does_not_stay(
    forks, monkeypatch, tmp_path
):
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))

    def make():
        def step():
            print(list_folders(tmp_path))
            if forks:
                process = multiprocessing.get_context("fork").Process(target=write)
                process.start()
                process.join()
            else:
                write()
            print(list_folders(tmp_path))
            return torch.ones(3)

        return step

    with contextlib.redirect_stdout(io.StringIO()) as said:
        estimate_memory(make)
    seen = said.getvalue().splitlines()
    assert seen[0] == "[]"
    assert len(set(seen)) == 2
    assert list_folders(tmp_path) == []
    assert not Path("labkit-written").exists()


def write():
    Path("labkit-written").write_text("a line", encoding="utf-8")


@pytest.mark.parametrize("variable", ["TMPDIR", "TMP"])
def test_a_step_finds_the_folder_for_temporary_files_as_it_is_set_now(
    variable, monkeypatch, tmp_path
):
    def make():
        print(tempfile.gettempdir())
        return lambda: torch.ones(3)

    monkeypatch.setattr(tempfile, "tempdir", None)
    for name in ("TMPDIR", "TEMP", "TMP"):
        monkeypatch.delenv(name, raising=False)
    found = []
    for name in ("first", "second", "first"):
        folder = tmp_path / name
        folder.mkdir(exist_ok=True)
        monkeypatch.setenv(variable, str(folder))
        with contextlib.redirect_stdout(io.StringIO()) as said:
            estimate_memory(make)
        found.append(said.getvalue().strip())
        assert tempfile.tempdir is None
    assert found == [str(tmp_path / name) for name in ("first", "second", "first")]
    (tmp_path / "first").rmdir()
    with contextlib.redirect_stdout(io.StringIO()) as said:
        estimate_memory(make)
    assert said.getvalue().strip() != found[0]


class Replaced:
    first = 1


class Heir(Replaced):
    own = 2


def test_replaced_attributes_come_back_and_inherited_ones_are_inherited_again():
    with replace_attributes(Heir, first=3, own=4, other=5):
        assert (Heir.first, Heir.own, Heir.other) == (3, 4, 5)
    assert vars(Heir).keys().isdisjoint({"first", "other"})
    assert (Heir.first, Heir.own) == (1, 2)


def test_an_attribute_that_was_deleted_does_not_keep_others_from_coming_back():
    with pytest.raises(AttributeError), replace_attributes(Heir, own=4, other=5):
        del Heir.other
    assert Heir.own == 2


def test_a_fake_tensor_has_few_attributes_of_its_own():
    def make():
        values = torch.ones(3)

        def step():
            made = values * 2
            print(len(vars(made)), made.constant, made.nonzero_memo)

        return step

    for _ in range(2):
        with contextlib.redirect_stdout(io.StringIO()) as said:
            estimate_memory(make)
    words = said.getvalue().split()
    assert max(map(int, words[::3])) <= 6
    assert set(words[1::3]) == set(words[2::3]) == {"None"}


def test_an_operator_whose_facts_a_step_removes_has_the_same_ones_again():
    operator = torch.ops.aten.mul.Tensor
    with borrow_attributes():
        facts = find_facts(operator)
        del operator.__dict__[FACTS]
        assert find_facts(operator) is facts


def test_what_answers_draws_is_made_once_for_the_same_functions(monkeypatch):
    first = draws._find_answers()
    assert draws._find_answers() is first
    monkeypatch.setattr(random, "random", lambda: 0.5)
    assert draws._find_answers() is not first


def test_a_draw_that_something_else_replaces_between_estimates_is_answered(monkeypatch):
    def make():
        return lambda: torch.ones(10 if random.random() < 0.5 else 1000)

    assert (estimate_memory(make).lowest_bytes, estimate_memory(make).peak_bytes) == (40, 4000)
    monkeypatch.setattr(random, "random", lambda: 0.25)
    assert (estimate_memory(make).lowest_bytes, estimate_memory(make).peak_bytes) == (40, 4000)
    assert random.random() == 0.25


def test_a_draw_that_outlives_an_estimate_is_real_after_it():
    def make():
        torch.utils._labkit_kept = [random.gauss]  # what torch keeps for itself is not put back
        return lambda: torch.ones(3)

    estimate_memory(make)
    (kept,) = torch.utils.__dict__.pop("_labkit_kept")
    assert len({kept(0.0, 1.0) for _ in range(9)}) == 9


def test_settings_are_listed_once_for_what_has_them_now(monkeypatch):
    first = state._list_settings()
    assert state._list_settings() is first
    monkeypatch.setattr(sys, "path", [*sys.path])
    assert state._list_settings() is first
    monkeypatch.setattr(torch, "set_num_threads", functools.partial(torch.set_num_threads))
    assert state._list_settings() is not first
    before = [*sys.path]
    estimate_memory(lambda: (sys.path.append("added"), lambda: torch.ones(3))[1])
    assert sys.path == before


def test_a_module_that_is_imported_meanwhile_is_looked_at(monkeypatch):
    def make():
        return lambda: (added.kept.append(1), torch.ones(3))[1]

    estimate_memory(lambda: lambda: torch.ones(3))
    added = ModuleType("added_later")
    added.__file__, added.kept = __file__, []
    monkeypatch.setitem(sys.modules, "added_later", added)
    estimate_memory(make)
    assert added.kept == []


def test_what_is_known_of_a_draw_is_known_of_its_views_each_time():
    def step():
        for _ in range(3):
            made = torch.randint(1, 100, (2, 3)).t().reshape(6).unsqueeze(0)
        return torch.ones(1000 * int(made[0, 0].item()))

    found = estimate_memory(lambda: step)
    assert found.obstacle is None
    assert found.lowest_bytes is not None
    assert found.lowest_bytes < found.peak_bytes


def test_own_frames_are_skipped_and_the_users_line_stays_the_same():
    def find(skipped):
        return find_user_frames(2, skipped)

    assert [one.function for one in find(0)] == ["find", find_user_frames()[0].function]
    assert find(1)[0].function == find_user_frames()[0].function
    assert find_user_frames(1, 10_000) == ()


def multiply_into(first, second, out):
    torch.addmm(first, first, second, out=out)
    torch.addmm(first, out, second.T, out=first)


@pytest.mark.parametrize("device", [None, "H100"])
def test_calls_that_write_into_out_are_computed_once(device, monkeypatch, capsys):
    def make():
        tensors = [torch.ones(37, 37) for _ in range(3)]

        def step():
            for _ in range(9):
                multiply_into(*tensors)

        return step

    def compute(tracer, operator, *given):
        print(operator)
        return compute_once(tracer, operator, *given)

    compute_once = FakeTracer._compute
    monkeypatch.setattr(results, "_recipes", {})
    monkeypatch.setattr(FakeTracer, "_compute", compute)
    estimate = estimate_memory(make, device=device)
    assert capsys.readouterr().out.count("aten.addmm.out") == 2
    monkeypatch.setattr(tracer, "find_recipe", lambda key: None)
    computed = estimate_memory(make, device=device)
    assert (computed.peak_bytes, computed.kinds) == (estimate.peak_bytes, estimate.kinds)
    assert capsys.readouterr().out.count("aten.addmm.out") == 36


def check(values):
    if not (values > 0).all():
        raise ValueError("not positive")
    if not (values < 2).all():
        raise ValueError("too large")


def test_a_check_that_a_step_calls_often_is_found_to_be_one_at_once(capsys):
    def make():
        values = [torch.ones(1000).uniform_() for _ in range(9)]

        def step():
            print("step")
            for one in values:
                check(one)
            return torch.cat(values)

        return step

    estimate = estimate_memory(make)
    assert (estimate.peak_bytes, estimate.lowest_bytes) == (72_000, 72_000)
    assert "ways that end in an error were left out" in estimate.notes[0]
    # Twice for each way, and once for each line that raises.
    assert capsys.readouterr().out.count("step") == 6


def raise_by(values, flags):
    for one, flag in zip(values, flags, strict=True):
        if one:
            raise ValueError(f"{one} is {flag}")
        if not flag:
            raise ValueError(f"not {flag}")
        if one or not flag or len(values) > 2:
            raise KeyError(one)
        int(one if flag else "a")
    raise TypeError


@pytest.mark.parametrize(
    ("values", "flags", "line"),
    [
        ([0, 1], [1, 1], 2),
        ([0], [0], 4),
        ([0, 0, 0], [1, 1, 1], None),  # more than one condition
        (["a"], [1, 1], 2),
        ([0], [1], None),  # no condition
        ([0], [1, 1], None),  # raised by C
    ],
)
def test_the_condition_that_leads_to_an_error_is_found(values, flags, line):
    with pytest.raises((ValueError, AssertionError, KeyError, TypeError)) as caught:
        raise_by(values, flags)
    found = find_check(caught.value)
    start = raise_by.__code__.co_firstlineno
    assert (found and found.line - start) == line

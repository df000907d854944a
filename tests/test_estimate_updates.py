"""Updates of optimizers as whole calls: the same figures as by their parts, and their values."""

from __future__ import annotations

import contextlib

import pytest
import torch
from torch import nn, optim

from labkit.errors import UsageError
from labkit.memory.estimate import updates
from labkit.memory.estimate.cuda import FakeMode
from labkit.memory.estimate.play import estimate_memory
from tests.fakes.record import Record

# Beside a small batch, what an update takes meanwhile is at the peak.
BASE = {"make": optim.Adam, "lr": 1e-3}
OPTIONS = {
    "Adam": BASE,
    "amsgrad": {**BASE, "amsgrad": True},
    "maximize": {**BASE, "maximize": True},
    "weight decay": {**BASE, "weight_decay": 0.1},
    "AdamW": {**BASE, "make": optim.AdamW},
    "SGD": {**BASE, "make": optim.SGD},
    "momentum": {**BASE, "make": optim.SGD, "momentum": 0.9, "nesterov": True},
    "RMSprop": {**BASE, "make": optim.RMSprop, "centered": True},
    "Adagrad": {**BASE, "make": optim.Adagrad},
    "Adamax": {**BASE, "make": optim.Adamax},
    "Adadelta": {**BASE, "make": optim.Adadelta},
    "tensor as lr": {**BASE, "lr": torch.tensor(1e-3)},
}


def make_work(options, *, wide=64, dtype=torch.float32, across=False, frozen=False):
    def make():
        made = {name: one for name, one in options.items() if name != "make"}
        first = nn.Linear(wide, 64, dtype=dtype)
        if across:
            first.weight = nn.Parameter(torch.empty(64, wide, dtype=dtype).T)
        model = nn.Sequential(first, nn.Linear(64, wide, dtype=dtype))
        model[1].bias.requires_grad_(not frozen)
        optimizer = options["make"](model.parameters(), **made)
        inputs = torch.ones(2, wide, dtype=dtype)

        def step():
            optimizer.zero_grad()
            model(inputs).sum().backward()
            optimizer.step()

        return step

    return make


@contextlib.contextmanager
def by_parts(monkeypatch):
    with monkeypatch.context() as patched:
        patched.setattr(updates, "UPDATES", ())
        yield


def show(estimate):
    return estimate.peak_bytes, estimate.kinds, estimate.lines, estimate.notes, estimate.obstacle


@pytest.fixture
def plans(monkeypatch):
    kept = {}
    monkeypatch.setattr(updates, "_plans", kept)
    return kept


@pytest.mark.parametrize("options", OPTIONS.values(), ids=OPTIONS)
def test_an_update_repeated_as_a_whole_has_the_figures_of_its_parts(options, plans, monkeypatch):
    work = make_work(options)
    with by_parts(monkeypatch):
        expected = show(estimate_memory(work))
    assert show(estimate_memory(work)) == expected
    assert show(estimate_memory(work)) == expected
    assert any(plans.values()) == (type(options["lr"]) is float)


OTHERS = {
    "width": make_work(BASE, wide=96),
    "dtype": make_work(BASE, dtype=torch.float64),
    "strides": make_work(BASE, across=True),
    "parameters": make_work(BASE, frozen=True),
    "weight decay": make_work(OPTIONS["weight decay"]),
    "amsgrad": make_work(OPTIONS["amsgrad"]),
    "maximize": make_work(OPTIONS["maximize"]),
    "function": make_work(OPTIONS["RMSprop"]),
}


@pytest.mark.parametrize("other", OTHERS.values(), ids=OTHERS)
def test_an_update_that_differs_in_one_thing_is_another_one(other, plans, monkeypatch):
    with by_parts(monkeypatch):
        expected = show(estimate_memory(other))
    estimate_memory(make_work(BASE))
    known = len(plans)
    assert show(estimate_memory(other)) == expected
    assert len(plans) > known


def test_another_learning_rate_is_no_other_update(plans):
    estimate_memory(make_work(BASE))
    known = len(plans)
    estimate_memory(make_work({**BASE, "lr": 0.5}))
    assert len(plans) == known


def train(weight, optimizer):
    (weight * torch.randn(4)).sum().backward()
    optimizer.step()
    return optimizer.state[weight]["step"]


def make_weight():
    weight = nn.Parameter(torch.zeros(4))
    return weight, optim.Adam([weight])


def test_the_number_of_steps_is_known_after_an_update(plans):
    read = Record()

    def step():
        weight, optimizer = make_weight()
        for _ in range(3):
            count = train(weight, optimizer)
        read.append(count.item())

    for _ in range(2):
        estimate_memory(lambda: step)
    assert read.take() == [3.0] * 4
    assert any(plans.values())


def test_a_parameter_is_unknown_after_an_update(plans):
    def step():
        weight, optimizer = make_weight()
        train(weight, optimizer)
        if weight.sum() > 0:
            torch.ones(1000)

    found = [estimate_memory(lambda: step).notes for _ in range(2)]
    assert "unknown values decide" in found[0][0]
    assert found[0] == found[1]
    assert any(plans.values())


def test_an_update_changes_what_a_graph_has_saved(plans):
    def step():
        weight, optimizer = make_weight()
        train(weight, optimizer)
        kept = weight.square()
        train(weight, optimizer)
        kept.sum().backward()

    for _ in range(2):
        with pytest.raises(UsageError, match="modified by an inplace operation"):
            estimate_memory(lambda: step)
    assert any(plans.values())


def test_an_update_under_a_mode_of_the_step_runs_by_its_parts(plans):
    class Counting(torch.overrides.TorchFunctionMode):
        def __torch_function__(self, function, types, arguments=(), named=None):
            counted.append(function)
            return function(*arguments, **(named or {}))

    def step():
        weight, optimizer = make_weight()
        with Counting():
            train(weight, optimizer)

    counted = Record()
    estimate_memory(lambda: step)
    known = len(counted.take())
    estimate_memory(lambda: step)
    assert len(counted.take()) == known > 0
    assert not plans


def test_an_update_of_known_values_runs_by_its_parts(plans):
    read = Record()

    def step():
        weight, optimizer = make_weight()
        (weight * 2).sum().backward()
        optimizer.step()
        read.append(weight[0].item())

    for _ in range(2):
        estimate_memory(lambda: step)
    assert read.take() == pytest.approx([-1e-3] * 4)
    assert not any(plans.values())


def test_what_an_optimizer_notes_for_a_profiler_does_not_reach_the_fake_mode(monkeypatch):
    seen, dispatch = [], FakeMode.dispatch

    def watch(mode, operator, *others, **named):
        seen.append(str(operator))
        return dispatch(mode, operator, *others, **named)

    monkeypatch.setattr(FakeMode, "dispatch", watch)
    estimate_memory(make_work(BASE, wide=72))
    assert seen
    assert not [one for one in seen if one.startswith("profiler")]

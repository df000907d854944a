"""Tensors of a class of the user's, which fake tensors become by ``as_subclass``."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from torch.nn import functional

from labkit.memory.estimate.play import estimate_memory
from tests.fakes.steps import measure_twice


class TaggedTensor(torch.Tensor):
    """Keeps its class through all functions, as Tensor's own subclasses do."""

    def double(self):
        return self * 2


class CountingTensor(torch.Tensor):
    """Calls Tensor's own way to follow functions."""

    seen = 0

    @classmethod
    def __torch_function__(cls, function, types, given=(), named=None):
        CountingTensor.seen += 1
        return super().__torch_function__(function, types, given, named or {})


class TitledTensor(torch.Tensor):
    """Has attributes, and loses its class by any function."""

    @staticmethod
    def __new__(cls, data, title):
        made = torch.as_tensor(data).as_subclass(cls)
        made.title = title
        return made

    @classmethod
    def __torch_function__(cls, function, types, given=(), named=None):
        with torch._C.DisableTorchFunctionSubclass():
            made = function(*given, **(named or {}))
        return made.as_subclass(torch.Tensor) if isinstance(made, cls) else made


def tag(model, inputs):
    made = model(inputs).as_subclass(TaggedTensor)
    assert isinstance(made * 1, TaggedTensor)
    made.double().square().mean().backward()


def count(model, inputs):
    made = functional.relu(model(inputs.as_subclass(CountingTensor)))
    assert isinstance(made, CountingTensor)
    made.mean().as_subclass(torch.Tensor).backward()


def title(model, inputs):
    titled = TitledTensor(inputs, "a batch")
    assert (titled.title, isinstance(titled, TitledTensor)) == ("a batch", True)
    made = model(titled)
    assert not isinstance(made, TitledTensor)
    made.sum().backward()


def change_in_place(model, inputs):
    made = model(inputs.as_subclass(TaggedTensor)).view(-1)[:50]
    made += 1
    one, other = torch.cat([made, made.clone()]).chunk(2)
    (one * other).sum().backward()


def train_parameter(model, inputs):
    scale = nn.Parameter(torch.ones(64, 64).as_subclass(TaggedTensor))
    assert isinstance(scale, TaggedTensor)
    optimizer = torch.optim.Adam([scale, *model.parameters()])
    (model(inputs) @ scale).sum().backward()
    optimizer.step()


def make_without_graph(model, inputs):
    made = torch.Tensor._make_subclass(TaggedTensor, model(inputs), True)
    assert (made.is_leaf, made.requires_grad) == (True, True)
    made.double().sum().backward()


STEPS = (tag, count, title, change_in_place, train_parameter, make_without_graph)


def make(step):
    torch.manual_seed(0)
    model, inputs = nn.Linear(64, 64), torch.randn(16, 64)

    def run():
        model.zero_grad()
        step(model, inputs)

    return run


@pytest.mark.parametrize("step", STEPS)
def test_a_tensor_can_become_one_of_a_subclass(step):
    estimate = estimate_memory(lambda: make(step))
    assert (estimate.obstacle, estimate.notes) == (None, ())
    assert estimate.peak_bytes == pytest.approx(measure_twice(lambda: make(step)), rel=0.01)
    assert estimate_memory(lambda: make(step), device="H100").obstacle is None
    make(step)()  # the real one
    assert type(torch.ones(2).as_subclass(TaggedTensor)) is TaggedTensor


@pytest.mark.parametrize("device", [None, "H100"])
def test_an_argument_of_a_subclass_is_of_it_in_the_step(device):

    def step(model, tagged, titled):
        assert isinstance(tagged, TaggedTensor)
        assert titled.title == "mine"
        (model(tagged.double()).sum() + model(titled).sum()).backward()

    inputs = torch.ones(4, 64)
    given = inputs.as_subclass(TaggedTensor), TitledTensor(inputs, "mine")
    estimate = estimate_memory(step, nn.Linear(64, 64), *given, device=device)
    assert estimate.obstacle is None
    assert (type(given[0]), type(given[1])) == (TaggedTensor, TitledTensor)


def test_what_a_subclass_does_at_each_function_is_done():
    def step(inputs):
        before = CountingTensor.seen
        (inputs.as_subclass(CountingTensor) * 2).sum()
        assert CountingTensor.seen == before + 2

    before = CountingTensor.seen
    estimate_memory(step, torch.ones(4))
    assert CountingTensor.seen == before  # put back

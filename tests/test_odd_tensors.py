"""Tensors that are not like others: lazy modules' parameters, fakes, subclasses with a will."""

from __future__ import annotations

import pytest

import labkit
from labkit.errors import UsageError
from labkit.memory.balance.read import count_cpu_tensors

torch = pytest.importorskip("torch")
nn = torch.nn


def run_once(model):
    """A forward and a backward pass on a batch of four."""
    model(torch.ones(4, 10)).sum().backward()


def test_the_balance_counts_the_tensors_beside_them():
    model = nn.LazyLinear(10)
    before = count_cpu_tensors()
    held = torch.ones(1000)
    assert count_cpu_tensors() - before == held.nbytes
    assert labkit.memory().balances[-1].this_process.allocated_bytes >= held.nbytes
    assert nn.parameter.is_lazy(model.weight)


def test_the_first_pass_within_a_block_makes_parameters_of_them():
    model = nn.LazyLinear(10, bias=False)
    with labkit.track_memory("cpu", kinds=True) as tracked:
        run_once(model)
    assert tracked.kinds["parameters"] == tracked.kinds["gradients"] == 400
    assert model.weight.grad is not None


def test_a_recording_has_what_they_allocate():
    model = nn.LazyLinear(10, bias=False)
    with labkit.record_allocations("cpu") as recorded:
        run_once(model)
    assert sum(group.held_bytes for group in recorded.history.devices[0].kept) == 800


def make_step(batch=4):
    """A step whose model has not run yet."""
    model, inputs = nn.LazyLinear(10), torch.ones(batch, 10)
    return lambda: model(inputs).sum().backward()


@pytest.mark.parametrize(
    "arguments",
    [(make_step,), (run_once, nn.Sequential(nn.LazyLinear(10)))],
    ids=["made inside", "handed in"],
)
def test_an_estimate_says_what_to_do_first(arguments):
    with pytest.raises(UsageError, match="has a lazy module, whose parameters") as caught:
        labkit.estimate_memory(*arguments)
    assert caught.value.fix.startswith("run the model once on a small batch")


class Jealous(torch.Tensor):
    """A tensor that lets nobody ask it anything."""

    @classmethod
    def __torch_function__(cls, function, types, arguments=(), named=None):
        """Refuses."""
        raise TypeError("do not touch")


def test_no_code_of_a_tensors_own_runs_when_it_is_counted():
    before = count_cpu_tensors()
    held = torch.ones(1000).as_subclass(Jealous)
    assert count_cpu_tensors() - before == 4000
    del held


def test_a_fake_tensor_is_no_memory():
    from torch._subclasses import FakeTensorMode

    before = count_cpu_tensors()
    with FakeTensorMode():
        held = torch.ones(10**9)
    assert count_cpu_tensors() == before
    del held

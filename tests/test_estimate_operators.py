"""Fake results have the storages of real ones: all operators of torch's own test database."""

from __future__ import annotations

import itertools
import re

import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode

from labkit import estimate_memory
from labkit.errors import UsageError
from labkit.memory.estimate.cuda import find_number
from labkit.memory.estimate.replaced import REPLACED
from labkit.memory.track.storages import list_parts, list_tensors
from tests.fakes.operators import survey

# The samples of each operator that are compared.
SAMPLES = 6
# Operators whose fake results have other storages, and why this is not corrected.
DIFFERENT = {
    "aten._embedding_bag_forward_only.default": "some indices, as many as there are bags",
    "aten._to_sparse.default": "its size depends on values; an estimate says so",
    "aten._to_sparse.sparse_dim": "its size depends on values; an estimate says so",
}


class Recorder(TorchDispatchMode):
    """Keeps the bytes of the storages that each operator returns."""

    def __init__(self, replace=None):
        super().__init__()
        self.made, self.replace = [], replace or {}

    def __torch_dispatch__(self, operator, types, arguments=(), named=None):
        result = self.replace.get(find_number(operator), operator)(*arguments, **(named or {}))
        parts = [part for one in list_tensors(result) for part in list_parts(one)]
        sizes = sorted(part.untyped_storage().nbytes() for part in parts)
        self.made.append((str(operator), sizes))
        return result


def record(function, sample, modes):
    """What each operator returns while the function runs on the sample."""
    recorder = Recorder(REPLACED if modes else None)
    with torch.random.fork_rng(devices=[]):
        if not modes:
            with recorder:
                function(sample.input, *sample.args, **sample.kwargs)
        else:
            with modes[0]:
                convert = modes[0].from_tensor
                copy = sample.transform(
                    lambda one: convert(one) if isinstance(one, torch.Tensor) else one
                )
                with recorder:
                    function(copy.input, *copy.args, **copy.kwargs)
    return recorder.made


def compare(operator):
    """The operators, inside of this one, whose storages differ."""
    found = set()
    samples = operator.sample_inputs("cpu", torch.float32, requires_grad=False)
    for sample in itertools.islice(samples, SAMPLES):
        try:
            real = record(operator.op, sample, [])
            fake = record(operator.op, sample, [FakeTensorMode(allow_non_fake_inputs=True)])
        except Exception:
            continue  # it has no fake version, or reads values
        if [name for name, _ in real] == [name for name, _ in fake]:
            found |= {
                name for (name, one), (_, other) in zip(real, fake, strict=True) if one != other
            }
    return found


@pytest.mark.slow
@pytest.mark.timeout(1200)
def test_the_table_of_differences_is_complete(monkeypatch):
    assert survey(compare, monkeypatch) == set(DIFFERENT)


# By dtype: operators that the CPU's kernels take or do not take.
RARE = (torch.uint16, torch.complex64, torch.float8_e4m3fn, torch.float32)
ASKED = {
    "masked_select": lambda one: one.masked_select(torch.ones(64, dtype=torch.bool)),
    "unique": lambda one: one.unique(),
    "nonzero": lambda one: one.nonzero(),
    "sort": lambda one: one.sort(),
    "topk": lambda one: one.topk(3),
    "max": lambda one: one.max(),
    "sum": lambda one: one.sum(),
    "product": lambda one: one.view(8, 8) @ one.view(8, 8),
    "cat": lambda one: torch.cat([one, one]),
    "copy": lambda one: one.clone().to(torch.complex128),
}


@pytest.mark.parametrize("dtype", RARE, ids=str)
@pytest.mark.parametrize("name", ASKED)
def test_a_dtype_that_a_kernel_does_not_take_raises_what_the_real_step_raises(name, dtype):
    values, said = torch.ones(64).to(dtype), ""
    try:
        ASKED[name](values)
    except (RuntimeError, NotImplementedError) as error:
        said = str(error)
    if said:
        with pytest.raises(UsageError, match=re.escape(said.strip())):
            estimate_memory(ASKED[name], values)
    else:
        assert estimate_memory(ASKED[name], values).obstacle is None


def test_an_operator_with_another_kernel_for_large_tensors_is_not_refused():
    values = torch.ones(64).to(torch.uint16)
    assert estimate_memory(lambda one: torch.isin(one, one), values).obstacle is None

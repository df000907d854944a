"""The backward pass of views into which a step writes is that of real tensors."""

import itertools

import pytest
import torch
from torch import nn

from labkit import estimate_memory
from tests.fakes.steps import measure_twice

VIEWS = {
    "view": lambda base: base.view(8, 100, 128),
    "flat": lambda base: base.view(-1),
    "turned": lambda base: base.t(),
    "part": lambda base: base[:300],
    "columns": lambda base: base[:, :64],
    "row of columns": lambda base: base.view(8, 100, 128)[:, 3],
    "unsqueezed": lambda base: base.unsqueeze(1),
    "squeezed": lambda base: base.unsqueeze(0).squeeze(0),
    "permuted": lambda base: base.view(8, 100, 128).permute(2, 0, 1),
    "diagonal": lambda base: base.diagonal(),
    "no view": lambda base: base,
}
WRITES = {
    "add_": lambda one: one.add_(1),
    "clamp_": lambda one: one.clamp_(0, 1),
    "copy_": lambda one: one.copy_(torch.zeros(one.shape)),
    "index_put_": lambda one: one.index_put_((torch.tensor([0]),), torch.tensor(0.0)),
    "scatter_": lambda one: one.scatter_(0, torch.zeros(one.shape, dtype=torch.long)[:1], 0.0),
    "twice": lambda one: one.add_(1).mul_(2),
}
LOSSES = {
    "sum": lambda one: one.sum(),
    "mean": lambda one: one.mean(),
    "both": lambda one: one.square().sum() + one.sum(),
}


def compare(make_step):
    estimate = estimate_memory(make_step)
    assert estimate.obstacle is None and estimate.lowest_bytes is None
    assert estimate.peak_bytes == pytest.approx(measure_twice(make_step), rel=0.005)


@pytest.mark.parametrize("loss", LOSSES)
@pytest.mark.parametrize("view", VIEWS)
def test_writes_into_a_view_take_what_they_take(view, loss):
    wrong = []
    for name, write in WRITES.items():

        def make_step(write=write):
            weight = torch.randn(800, 128, requires_grad=True)

            def step():
                base = weight * 2
                seen = VIEWS[view](base)
                write(seen)
                LOSSES[loss](seen).backward()

            return step

        estimate, measured = estimate_memory(make_step), measure_twice(make_step)
        if abs(estimate.peak_bytes - measured) > 0.005 * measured:
            wrong.append((name, estimate.peak_bytes, measured))
    assert wrong == []


STEPS = {
    "padding": lambda model, rows: _zero_padding(model(rows)).sum(1).square().mean(),
    "the base": lambda model, rows: _write_columns(model(rows)).square().mean(),
    "banned words": lambda model, rows: nn.functional.cross_entropy(
        _ban(model(rows)), torch.zeros(len(rows) * rows.size(1), dtype=torch.long)
    ),
    "nested": lambda model, rows: _write_nested(model(rows)).sum(),
    "temperature": lambda model, rows: nn.functional.cross_entropy(
        model(rows).div_(2).flatten(0, 1), torch.zeros(len(rows) * rows.size(1), dtype=torch.long)
    ),
    "activation": lambda model, rows: (
        nn.functional.silu(model(rows), inplace=True)[..., :10].square().mean()
    ),
    "residual": lambda model, rows: model(rows)[..., :16].add_(rows).mean(),
}


def _zero_padding(hidden):
    hidden[:, torch.arange(hidden.size(1)) > 20] = 0.0
    return hidden


def _write_columns(hidden):
    hidden[..., :4].mul_(2)
    return hidden


def _ban(hidden):
    words = hidden.view(-1, hidden.size(-1))
    words[:, [0, 3]] = -1e4
    return words


def _write_nested(hidden):
    part = hidden[:, 1:].transpose(1, 2)
    part.add_(1)
    hidden.mul_(2)
    return part


@pytest.mark.parametrize("name", STEPS)
def test_writes_into_what_a_layer_makes_are_exact(name):
    def make_step():
        model, rows = nn.Linear(16, 200), torch.randn(16, 50, 16)
        return lambda: STEPS[name](model, rows).backward()

    compare(make_step)


def test_views_that_are_not_used_change_nothing():
    def make_step():
        weight = torch.randn(800, 128, requires_grad=True)

        def step():
            base = weight * 2
            base[:10].add_(1)
            for one, other in itertools.pairwise(range(0, 800, 100)):
                base[one:other]
            base.split(100)
            base.view(-1).square().sum().backward()

        return step

    compare(make_step)


# Views of no_grad: torch tells nothing of their graph once their base is written to.
PARTS = {
    "unbind": lambda base: base.unbind(0),
    "split": lambda base: base.split(200),
    "split_with_sizes": lambda base: base.split([300, 500]),
    "chunk": lambda base: base.chunk(3),
    "tensor_split": lambda base: base.tensor_split(3),
    "unsafe_split": lambda base: base.unsafe_split(200),
    "unsafe_chunk": lambda base: base.unsafe_chunk(3),
    "hsplit": lambda base: base.hsplit(2),
    "vsplit": lambda base: base.vsplit(2),
    "select": lambda base: [base[0], base[1]],
    "loop": list,
}


@pytest.mark.parametrize("name", PARTS)
def test_parts_that_are_written_to_without_gradients_are_followed(name):
    def make_step():
        weight = torch.randn(800, 128, requires_grad=True)

        def step():
            base = weight * 2
            with torch.no_grad():
                for part in PARTS[name](base):
                    part.mul_(2)
            base.mul_(3)
            with torch.no_grad():
                part.add_(1)
            base.square().sum().backward()
            weight.grad = None

        return step

    compare(make_step)

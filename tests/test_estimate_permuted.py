"""Estimates lay out the results of arguments in any layout as the CPU's kernels do."""

from __future__ import annotations

import ast
import contextlib
import functools

import pytest
import torch
from torch import nn
from torch.nn import functional
from torch.utils._pytree import tree_map_only

from labkit.memory.estimate.cuda import FakeMode, find_number
from labkit.memory.estimate.layouts import lay_out
from labkit.memory.estimate.play import estimate_memory
from labkit.memory.estimate.replaced import REPLACED
from labkit.memory.estimate.strides import find_name
from labkit.memory.track.storages import list_tensors
from tests.fakes.operators import survey
from tests.fakes.steps import measure_twice
from tests.test_estimate_layouts import list_operators, make_arguments
from tests.test_estimate_strides import expand, permute, record_calls

# The calls of each operator of the database that are compared.
CALLS = 1
SHAPES = ((3, 4, 5), (2, 8, 4, 3))
# Operators whose results are laid out in another way, and why.
OTHER = {
    "ldexp": "of a number that is expanded: it multiplies with a contiguous power",
}
# Operators that are not run on arguments that no code would give them.
UNSAFE = (
    "_foreach",
    "_fused",
    "_dyn_quant",
    "_native_batch_norm_legit",
    "_functional_",
    "_scaled",
    "resize_as",
)
VARYING = {torch.Tag.data_dependent_output, torch.Tag.dynamic_output_shape}


def transpose(tensor):
    return tensor.mT.contiguous().mT if tensor.dim() > 1 else tensor


def slice_ends(tensor):
    """The same tensor, as each second element of the last dimension."""
    return torch.stack([tensor, tensor], -1)[..., 0]


def slice_permuted(tensor):
    return permute(torch.cat([tensor, tensor]))[: len(tensor)] if tensor.dim() else tensor


def keep(tensor):
    return tensor


TOGETHER = (
    *((one, one) for one in (permute, transpose, slice_ends, slice_permuted)),
    *((permute, keep), (keep, permute), (expand, permute), (permute, expand)),
    *((slice_ends, transpose), (keep, slice_permuted)),
)


def list_changes(arguments):
    """The arguments in other layouts: the first tensor in one, and those behind it in another."""
    places = [place for place, one in enumerate(arguments) if isinstance(one, torch.Tensor)]
    for changes in TOGETHER[: len(TOGETHER) if len(places) > 1 else 4]:
        changed = list(arguments)
        for place in places:
            changed[place] = changes[place != places[0]](arguments[place])
        yield changed
    for place in places:
        yield [*arguments[:place], expand(arguments[place]), *arguments[place + 1 :]]


def read_strides(tensor):
    """Strides without those of sizes of one; of images with them, for channels last."""
    pairs = zip(tensor.shape, tensor.stride(), strict=True)
    return [step for size, step in pairs if size != 1 or tensor.dim() in {4, 5}]


def is_alike(real, made):
    """Whether the layout is the same. A shape that depends on values is not compared."""
    if not real.numel() or real.layout is not torch.strided or real.shape != made.shape:
        return True
    return read_strides(real) == read_strides(made)


def differs(mode, operator, arguments, named):
    """None if the operator refuses the arguments."""
    try:
        real = list_tensors(operator(*arguments, **named))
        fakes = tree_map_only(torch.Tensor, mode.from_tensor, (list(arguments), named))
        with mode:
            run = REPLACED.get(find_number(operator)) or lay_out(operator)
            made = list_tensors(run(*fakes[0], **fakes[1]))
    except Exception:
        return None
    return not all(map(is_alike, real, made))


def is_compared(operator):
    return not (operator._schema.is_mutable or operator.is_view or VARYING & set(operator.tags))


def raise_dimensions(value):
    """A row of numbers as a matrix, because a row has one layout."""
    long = value.dim() == 1 and len(value) > 4 and len(value) % 2 == 0
    return value.view(2, -1) if long else value


def find_other(mode, checked, info):
    """The names of operators whose results are laid out in another way."""
    found = set()
    for operator, arguments, named in record_calls(info):
        if not is_compared(operator) or checked.get(operator, 0) >= CALLS:
            continue
        given = list(arguments)
        flat = [one for one in given if isinstance(one, torch.Tensor)]
        if all(one.dim() < 2 for one in flat):
            given = tree_map_only(torch.Tensor, raise_dimensions, given)
        if any(one.layout is not torch.strided for one in flat):
            continue
        if not any(one.dim() > 1 and one.numel() > 1 for one in list_tensors(given)):
            continue
        checked[operator] = checked.get(operator, 0) + 1
        with torch.random.fork_rng(devices=[]):
            for changed in list_changes(given):
                if differs(mode, operator, changed, named):
                    found.add(find_name(operator))
                    break
    return found


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_operators_of_the_database_have_the_strides_of_the_kernels(monkeypatch):
    checked = {}
    found = survey(functools.partial(find_other, FakeMode("cpu"), checked), monkeypatch)
    print(sorted(found), len(checked))
    assert len(checked) > 300
    assert found <= set(OTHER)


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_all_operators_of_tensors_alike_have_the_strides_of_the_kernels():
    mode, checked, found = FakeMode("cpu"), set(), set()
    torch.manual_seed(0)
    for operator in filter(is_compared, list_operators()):
        name = find_name(operator)
        if name.startswith(UNSAFE):
            continue
        for shape in SHAPES:
            for dtype in (torch.float32, torch.int64):
                with contextlib.suppress(Exception):
                    given = list(
                        make_arguments(operator, dtype, functools.partial(torch.rand, shape))
                    )
                    operator(*given)
                    results = {differs(mode, operator, one, {}) for one in list_changes(given)}
                    checked |= {operator} if False in results else set()
                    found |= {name} if True in results else set()
                    break
    print(sorted(found), len(checked))
    assert len(checked) > 300
    assert found == set(OTHER)


def mix():
    """A gradient of one number, times a matrix with a column for each of its rows."""
    one = torch.ones((), dtype=torch.bfloat16).expand(300, 200)
    return one * torch.ones(200, 300, dtype=torch.bfloat16).t()


def read_unknown(shape):
    """Numbers that an estimate does not know."""
    return torch.ones(shape).cumsum(0).sin() + 2


USES = {
    "mix": mix,
    "nonzero": lambda: read_unknown((5, 7)).nonzero(),
    "nonzero of known values": lambda: torch.tensor([[1, 2], [3, 4], [5, 6]]).nonzero(),
    **{
        f"{name} of {kind} along {dim}": lambda use=use, make=make, dim=dim: use(make(), dim=dim)
        for name, use in (("unique", torch.unique), ("consecutive", torch.unique_consecutive))
        for kind, make in (
            ("known", lambda: torch.arange(24).view(2, 3, 4)),
            ("matrix", lambda: torch.arange(12).view(4, 3)),
        )
        for dim in (0, 1, -1)
    },
    **{
        f"unique of unknown along {dim}": lambda dim=dim: torch.unique(
            read_unknown((3, 4, 5)) + torch.rand(3, 4, 5), dim=dim
        )
        for dim in (0, 1, -1)
    },
}


def test_what_depends_on_values_has_the_strides_of_the_kernels(capsys):
    def make_step():
        for name, use in USES.items():
            made = use()
            print(repr((name, tuple(made.shape), made.stride())))
        return lambda: None

    make_step()
    real = capsys.readouterr().out.splitlines()
    estimate_memory(make_step)
    made = [one for one in capsys.readouterr().out.splitlines() if one.startswith("('")]
    assert list(map(ast.literal_eval, made[: len(real)])) == list(map(ast.literal_eval, real))


def learn(use, *shape, order=(0, 2, 1)):
    """What makes a step that differentiates by an input that is not contiguous."""

    def make():
        values = torch.ones(shape).permute(order).requires_grad_()
        targets = torch.zeros(values.shape)

        def step():
            values.grad = None
            use(values, targets).sum().backward()

        return step

    return make


def normalize(train):
    def use(values, _):
        norm = nn.BatchNorm2d(values.size(1))
        return norm.train(train)(values)

    return use


def project(values, _):
    return functional.linear(values, torch.ones(128, values.size(2)), torch.ones(128))


def multiply(values, _):
    return values @ torch.ones(values.size(2), 128) + torch.ones(128)


def add_after(values, _):
    return functional.linear(values, torch.ones(128, values.size(2))) + torch.ones(128)


TURNED = {
    "trained norm": learn(normalize(True), 8, 16, 24, 32, order=(0, 1, 3, 2)),
    "evaluated norm": learn(normalize(False), 8, 16, 24, 32, order=(0, 3, 1, 2)),
    "trained norm, channels last": learn(normalize(True), 8, 16, 24, 32, order=(0, 3, 1, 2)),
    "linear": learn(project, 8, 64, 96),
    "product and bias": learn(multiply, 8, 64, 96),
    "linear, and a bias": learn(add_after, 8, 64, 96),
    **{name: learn(getattr(functional, name), 8, 64, 96) for name in (
        "mse_loss", "smooth_l1_loss", "huber_loss", "l1_loss", "soft_margin_loss",
    )},
}  # fmt: skip


@pytest.mark.parametrize("name", TURNED)
def test_gradients_of_what_is_permuted_are_laid_out_as_by_the_kernels(name):
    estimate = estimate_memory(TURNED[name])
    assert estimate.lowest_bytes is None and estimate.obstacle is None
    assert estimate.peak_bytes == measure_twice(TURNED[name])

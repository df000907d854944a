"""Estimates lay out what operators make as the kernels do, strides of sizes of one included."""

from __future__ import annotations

import ast
import itertools

import pytest
import torch
from torch import nn
from torch.nn import functional
from torch.utils._pytree import tree_map_only

from labkit.memory.estimate.cuda import FakeMode
from labkit.memory.estimate.layouts import lay_out
from labkit.memory.estimate.play import estimate_memory
from tests.fakes.steps import measure_twice

SHAPES = ((2, 8, 1, 1), (1, 8, 4, 4), (2, 1, 4, 4), (2, 8, 1, 4), (2, 8, 4, 4), (1, 4, 1, 1))


def stretch(shape):
    """Channels last, with the strides that convolutions give to sizes of one."""
    channels, height, width = shape[1:]
    strides = channels * height * width, 1, channels * width, channels
    return torch.empty_strided(shape, strides).fill_(0.5)


def read_tokens(shape):
    """A sequence of patches, seen as an image again."""
    samples, channels, height, width = shape
    tokens = torch.ones(samples, height * width, channels)
    return tokens.transpose(1, 2).unflatten(2, (height, width))


LAYOUTS = {
    "contiguous": torch.ones,
    "channels_last": lambda shape: torch.ones(shape).contiguous(memory_format=torch.channels_last),
    "stretched": stretch,
    "tokens": read_tokens,
    "sliced": lambda shape: torch.ones(shape[0], 2 * shape[1], *shape[2:])[:, ::2],
    "expanded": lambda shape: torch.ones(*shape[:2], 1, 1).expand(shape),
    "transposed": lambda shape: torch.ones(*shape[:2], shape[3], shape[2]).transpose(2, 3),
}
USES = {
    **{name: getattr(functional, name) for name in (
        "relu", "gelu", "silu", "hardswish", "leaky_relu", "elu", "mish", "normalize",
    )},
    **{name: getattr(torch, name) for name in (
        "sqrt", "sigmoid", "tanh", "floor", "neg", "empty_like", "zeros_like", "rand_like",
    )},
    "add": lambda one: one + one,
    "multiply by channels": lambda one: one * torch.ones(1, one.size(1), 1, 1),
    "power": lambda one: one**2,
    "clone": torch.clone,
    "contiguous": torch.Tensor.contiguous,
    "where": lambda one: torch.where(one > 0, one, 0 * one),
    "masked_fill": lambda one: one.masked_fill(one > 0, 0),
    "batch norm": lambda one: functional.batch_norm(
        one, torch.zeros(one.size(1)), torch.ones(one.size(1))
    ),
    "group norm": lambda one: functional.group_norm(one, 1),
    "layer norm": lambda one: functional.layer_norm(one, one.shape[1:]),
    "log_softmax": lambda one: one.log_softmax(1),
    "softmax": lambda one: one.softmax(1),
    "conv2d": lambda one: functional.conv2d(one, torch.ones(8, one.size(1), 1, 1)),
    "avg_pool2d": lambda one: functional.avg_pool2d(one, 3, 1, 1),
    "max_pool2d": lambda one: functional.max_pool2d(one, 3, 1, 1),
    "adaptive_avg_pool2d": lambda one: functional.adaptive_avg_pool2d(one, 2),
    **{mode: lambda one, mode=mode: functional.interpolate(one, scale_factor=2, mode=mode)
       for mode in ("nearest", "nearest-exact", "bilinear", "bicubic")},
    **{f"pad {mode}": lambda one, mode=mode: functional.pad(one, (0, 0, 0, 0), mode=mode)
       for mode in ("constant", "reflect", "replicate")},
    "cat": lambda one: torch.cat([one, one], 1),
    "flip": lambda one: one.flip(3),
    "sort": lambda one: one.sort(1)[0],
    "pixel_shuffle": lambda one: functional.pixel_shuffle(torch.cat([one] * 4, 1), 2),
    "floor division": lambda one: torch.div(one, one, rounding_mode="floor"),
    "copysign": lambda one: torch.copysign(one, one),
    "reshape": lambda one: one.reshape(one.size(0), -1),
}  # fmt: skip


def print_strides(kind):
    """Prints a line for each use of each layout, and for the gradient of what has one."""
    for shape in SHAPES:
        for layout, make in LAYOUTS.items():
            for name, use in USES.items():
                made = use(make(shape))
                print(repr((kind, (name, layout, *shape), tuple(made.shape), made.stride())))


def test_results_have_the_strides_of_the_kernels(capsys):
    def make_step():
        print_strides("estimated")
        return lambda: None

    print_strides("real")
    estimate_memory(make_step)
    found = {"real": {}, "estimated": {}}
    for line in capsys.readouterr().out.splitlines():
        if line.startswith("('"):
            kind, key, *made = ast.literal_eval(line)
            found[kind].setdefault(key, made)
    assert len(found["real"]) == len(SHAPES) * len(LAYOUTS) * len(USES)
    other = {key for key, made in found["real"].items() if found["estimated"].get(key) != made}
    assert other == set()


def is_composite(operator):
    """Whether it is made of other operators before a mode sees it, or has no kernel at all."""
    try:
        key = "CompositeImplicitAutograd"
        return torch._C._dispatch_has_kernel_for_dispatch_key(operator.name(), key)
    except RuntimeError:
        return True


def list_operators(names=None):
    """The operators that torch has, and do not write into an argument.

    ``names`` are all that have been asked for before if None.
    """
    for name in names or dir(torch.ops.aten):
        packet = getattr(torch.ops.aten, name, None)
        for overload in packet.overloads() if hasattr(packet, "overloads") else ():
            operator = getattr(packet, overload)
            new = not operator._schema.is_mutable and not name.startswith(("_foreach", "__"))
            if new and not is_composite(operator):
                yield operator


def list_pointwise():
    registered = map(str.split, torch._C._dispatch_get_all_op_names(), itertools.repeat("::"))
    names = {name.partition(".")[0] for space, name in registered if space == "aten"}
    return (one for one in list_operators(sorted(names)) if torch.Tag.pointwise in one.tags)


PLAIN = {"number": 1, "float": 0.5, "int": 0, "bool": False, "str": "none"}


def make_arguments(operator, dtype, make):
    """An argument of each type that the operator takes, tensors of one layout."""
    for one in operator._schema.arguments:
        kind = str(one.type)
        if one.kwarg_only:
            return
        if kind in {"Tensor", "Optional[Tensor]"}:
            yield make().to(torch.bool if one.name in {"mask", "condition"} else dtype)
        else:
            yield one.default_value if one.has_default_value() else PLAIN.get(kind)


@pytest.mark.parametrize("make", [stretch, LAYOUTS["channels_last"], LAYOUTS["transposed"]])
def test_operators_of_single_elements_have_the_strides_of_the_kernels(make):
    checked, other = 0, []
    for operator in list_pointwise():
        for dtype in (torch.float32, torch.int64, torch.bool):
            given = list(make_arguments(operator, dtype, lambda: make((2, 8, 1, 1))))
            try:
                real = operator(*given)
            except (RuntimeError, TypeError):
                continue
            if not isinstance(real, torch.Tensor):
                break
            mode = FakeMode("cpu")
            fakes = tree_map_only(torch.Tensor, mode.from_tensor, given)
            with mode:
                made = lay_out(operator)(*fakes)
            checked += 1
            other += [str(operator)] * (made.stride() != real.stride())
            break
    assert checked > 150
    assert other == []


def test_a_pyramid_of_pooled_images_is_exact():
    """A pool to 1 x 1, batch norm, and back to the size: the concatenation copies if it guesses."""

    def make_step():
        torch.manual_seed(0)
        conv, norm = nn.Conv2d(64, 32, 1, bias=False), nn.BatchNorm2d(32)
        out = nn.Conv2d(96, 256, 3, padding=1)
        images = torch.ones(2, 64, 2, 2).contiguous(memory_format=torch.channels_last)

        def step():
            pooled = norm(conv(functional.adaptive_avg_pool2d(images, 1))).relu()
            grown = functional.interpolate(pooled, size=(2, 2), mode="bilinear")
            out(torch.cat([images, grown], 1)).sum().backward()

        return step

    estimate = estimate_memory(make_step)
    assert estimate.peak_bytes == pytest.approx(measure_twice(make_step), rel=0.001)

"""Estimates count the copies that operators make of arguments that are not contiguous."""

from __future__ import annotations

import itertools

import pytest
import torch
from torch import nn
from torch.nn import functional
from torch.utils._python_dispatch import TorchDispatchMode

from labkit.memory.estimate import measured, strides
from labkit.memory.estimate.operators import (
    CONVERTING,
    CPU_SCRATCH,
    SCRATCH,
    count_converted,
    count_promoted,
)
from labkit.memory.estimate.play import estimate_memory
from labkit.memory.estimate.selecting import SCATTERED
from labkit.memory.track.counters import TensorCounter
from labkit.memory.track.storages import list_tensors
from tests.fakes.operators import survey
from tests.fakes.steps import measure_twice

ATEN = torch.ops.aten
# The samples of each operator that are compared.
SAMPLES = 2
# Bytes that the small tables of threads, and of sums, may take.
SMALL = 64
# Operators that take more in other layouts, which no table has, and why.
MORE = {
    "_ctc_loss": "lengths that are expanded, of 8 bytes a sample",
    "_ctc_loss_backward": "lengths that are expanded, of 8 bytes a sample",
    "masked_scatter_backward": "depends on values",
    "masked_select": "depends on values",
    "normal": "draws random numbers: it is not run",
    "repeat_interleave": "depends on values",
    "rrelu_with_noise": "draws random numbers: it is not run",
    "unique_consecutive": "depends on values",
    "unique_dim": "depends on values",
    "_unique2": "depends on values",
}


def permute(tensor):
    """The same tensor, with its dimensions in the opposite order in memory."""
    order = list(reversed(range(tensor.dim())))
    return tensor.detach().permute(order).contiguous().permute(order)


def expand(tensor):
    """A tensor that has one number in each place, as a gradient of sum()."""
    filled = torch.zeros(tensor.numel(), dtype=tensor.dtype)
    return filled.as_strided(tensor.shape, [0] * tensor.dim())


def train(make_model, *shape, read=torch.sum, batch=4):
    """What makes a step that trains the model on images or rows."""

    def make_step(batch=batch):
        model = make_model()
        optimizer = torch.optim.SGD(model.parameters(), 0.1)
        values = torch.rand(batch, *shape)

        def step():
            optimizer.zero_grad()
            made = model(values)  # it lives during the backward pass
            read(made).backward()
            optimizer.step()

        return step

    return make_step


class Applied(nn.Module):
    """A linear layer of channels, and a function of what it makes."""

    def __init__(self, function, channels=16):
        super().__init__()
        self.mix, self.function = nn.Conv2d(3, channels, 1), function

    def forward(self, values):
        return self.function(self.mix(values))


class Scaled(nn.Module):
    """An enlarged image, and one parameter: its training step calls no library's convolution."""

    def __init__(self):
        super().__init__()
        self.scale = nn.Parameter(torch.ones(()))

    def forward(self, values):
        return functional.interpolate(values * self.scale, scale_factor=2, mode="bilinear")


def enlarge(mode):
    return lambda: Applied(lambda one: functional.interpolate(one, scale_factor=2, mode=mode))


def sample_grid(values):
    grid = torch.zeros(len(values), 64, 64, 2)
    return functional.grid_sample(values, grid, align_corners=False)


def lose_margins(values):
    flat = permute_view(values)
    return functional.multilabel_margin_loss(
        flat, torch.zeros(flat.shape, dtype=torch.long), reduction="none"
    )


def permute_view(values):
    return values.flatten(2).mean(2).repeat(64, 8).t()


def train_embedding(batch=64):
    table = nn.Embedding(100, 64, scale_grad_by_freq=True)
    optimizer = torch.optim.SGD(table.parameters(), 0.1)
    words = torch.zeros(batch, 128, dtype=torch.long)

    def step():
        optimizer.zero_grad()
        made = table(words)
        made.sum().backward()
        optimizer.step()

    return step


STEPS = {
    "bilinear": train(enlarge("bilinear"), 3, 64, 64, read=lambda one: one.sum((2, 3)).mean()),
    "bicubic": train(enlarge("bicubic"), 3, 64, 64),
    "grid": train(lambda: Applied(sample_grid), 3, 64, 64, read=lambda one: one.sum(-1).mean()),
    "margins": train(lambda: Applied(lose_margins), 3, 64, 64),
    "embedding": train_embedding,
    "channels_last": train(
        lambda: Applied(nn.PixelShuffle(2)).to(memory_format=torch.channels_last), 3, 64, 64
    ),
    "softmax": train(lambda: Applied(lambda one: one.transpose(1, 3).softmax(1)), 3, 32, 32),
}


@pytest.mark.parametrize("threads", [1, 2])
@pytest.mark.parametrize("name", STEPS)
def test_copies_of_expanded_and_permuted_gradients_are_counted(name, threads):
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        estimate = estimate_memory(STEPS[name])
        assert estimate.lowest_bytes is None and estimate.obstacle is None
        assert estimate.peak_bytes == pytest.approx(measure_twice(STEPS[name]), rel=0.002)
    finally:
        torch.set_num_threads(before)


def test_what_is_too_large_is_measured_on_fewer_samples(monkeypatch):
    monkeypatch.setattr(measured, "MOST_BYTES", 2**20)
    monkeypatch.setattr(measured, "_measured", {})
    make_step = train(enlarge("bilinear"), 3, 37, 41, batch=16)
    estimate = estimate_memory(make_step)
    assert estimate.lowest_bytes is None
    assert estimate.peak_bytes == pytest.approx(measure_twice(make_step), rel=0.002)


def test_what_cannot_be_measured_is_an_interval(monkeypatch):
    monkeypatch.setattr(measured, "MOST_BYTES", 2**10)
    monkeypatch.setattr(measured, "_measured", {})
    make_step = train(Scaled, 4, 61, 43, batch=1)
    estimate, peak = estimate_memory(make_step), measure_twice(make_step)
    assert estimate.obstacle is None
    assert estimate.lowest_bytes < peak <= estimate.peak_bytes
    assert "upsample_bilinear2d_backward may copy arguments" in estimate.notes[0]


def test_a_doubt_beside_what_has_no_figure_is_a_lower_bound(monkeypatch):
    monkeypatch.setattr(measured, "MOST_BYTES", 2**10)
    monkeypatch.setattr(measured, "_measured", {})
    make_step = train(enlarge("bilinear"), 3, 61, 43, batch=1)
    estimate, peak = estimate_memory(make_step), measure_twice(make_step)
    assert estimate.obstacle.operator == "aten.convolution.default"
    assert estimate.lowest_bytes == estimate.peak_bytes < peak


def test_zeros_reach_as_far_as_a_kernel_that_ignores_strides():
    made = measured._make_zeros(torch.empty_strided((5, 7), (0, 0), device="meta"))
    assert made.stride() == (0, 0)
    assert made.untyped_storage().nbytes() == 4 * 5 * 7


def test_a_measured_operator_draws_no_random_numbers():
    for operator in (ATEN.bernoulli_.float, ATEN.normal_.default, ATEN.native_dropout.default):
        assert strides.takes_strides(operator)


@pytest.mark.parametrize(
    ("operator", "sizes", "expected"),
    [
        (ATEN.upsample_bilinear2d_backward.default, 1, (4 * 256, 0)),
        (ATEN.huber_loss_backward.default, 3, (0, 3 * 4 * 256)),
        (ATEN.mul.Tensor, 2, (0, 0)),
        (ATEN.grid_sampler_2d_backward.default, 3, (0, 0)),
    ],
    ids=lambda one: str(one) if isinstance(one, torch._ops.OpOverload) else "",
)
def test_cuda_counts_known_copies_and_doubts_unknown_ones(operator, sizes, expected):
    tensors = [expand(torch.zeros(4, 4, 4, 4)) for _ in range(sizes)]
    assert strides.count_cuda_copies(operator, tensors, tensors) == expected
    dense = [one.contiguous() for one in tensors]
    assert strides.count_cuda_copies(operator, dense, dense) == (0, 0)


def test_cuda_takes_channels_last():
    tensor = torch.zeros(2, 4, 4, 5).to(memory_format=torch.channels_last)
    operator = ATEN.max_pool2d_with_indices.default
    assert strides.count_cuda_copies(operator, [tensor], [tensor]) == (0, 0)
    turned = tensor.transpose(2, 3)
    assert strides.count_cuda_copies(operator, [turned], [turned]) == (0, 640)


@pytest.mark.parametrize("name", ["mm", "addmm", "bmm", "baddbmm"])
def test_cublas_copies_what_it_cannot_read(name):
    shape = (2, 8, 8) if "bmm" in name else (8, 8)
    plain, count = torch.zeros(shape), SCRATCH[name]
    assert count([plain, plain.mT]) == 0
    assert count([plain, expand(plain)]) == plain.nbytes


class Recorder(TorchDispatchMode):
    """Keeps each operator's arguments, as they were before it ran."""

    def __init__(self):
        super().__init__()
        self.calls = []

    def __torch_dispatch__(self, operator, types, arguments=(), named=None):
        self.calls.append((operator, copy_values(arguments), copy_values(named or {})))
        return operator(*arguments, **(named or {}))


def copy_values(value):
    if isinstance(value, torch.Tensor):
        return value.detach().clone(memory_format=torch.contiguous_format)
    if isinstance(value, dict):
        return {name: copy_values(one) for name, one in value.items()}
    return type(value)(map(copy_values, value)) if isinstance(value, list | tuple) else value


def record_calls(info):
    """The operators that run inside of this one's forward and backward passes."""
    samples = info.sample_inputs("cpu", torch.float32, requires_grad=info.supports_autograd)
    for sample in itertools.islice(samples, SAMPLES):
        recorder = Recorder()
        try:
            with torch.random.fork_rng(devices=[]), recorder:
                made = list_tensors(info.op(sample.input, *sample.args, **sample.kwargs))
                made = [one for one in made if one.requires_grad]
                if made:
                    torch.autograd.backward(made, list(map(torch.ones_like, made)))
        except Exception:
            pass  # it refuses these values
        yield from recorder.calls


def measure_beside(operator, arguments, named):
    """The bytes beside the results, that neither a table nor a measurement has."""
    counter = TensorCounter()
    counter.reset()
    try:
        made = operator(*arguments, **named)
    finally:
        reading = counter.read()
    given = {one.untyped_storage()._cdata for one in list_tensors((arguments, named))}
    storages = (one.untyped_storage() for one in list_tensors(made))
    new = {one._cdata: one.nbytes() for one in storages if one._cdata not in given}
    tensors, name = list_tensors(arguments), strides.find_name(operator)
    if measured.needs_measuring(operator, tensors) or name == SCATTERED:
        return 0
    if name in CONVERTING and isinstance(made, torch.Tensor):
        counted = count_converted(name, tensors[0], made)
    else:
        counted = CPU_SCRATCH[name](arguments) if name in CPU_SCRATCH else 0
        counted += count_promoted(operator, arguments, tensors, made)
    return reading.peak_bytes - sum(new.values()) - counted


def list_layouts(arguments):
    """The arguments with each tensor in another layout."""
    for place, one in enumerate(arguments):
        if isinstance(one, torch.Tensor) and one.numel() > 1:
            for change in (permute, expand):
                changed = change(one)
                if not changed.is_contiguous():
                    yield [*arguments[:place], changed, *arguments[place + 1 :]]


def find_copying(info):
    """The names of operators that take more in another layout, without a word."""
    found = set()
    seen = set()
    for operator, arguments, named in record_calls(info):
        if operator in seen or not strides.takes_strides(operator) or operator.is_view:
            continue
        if any(one.layout is not torch.strided for one in list_tensors((arguments, named))):
            continue
        seen.add(operator)
        try:
            plain = measure_beside(operator, list(copy_values(arguments)), named)
        except Exception:
            continue
        for changed in list_layouts(list(arguments)):
            try:
                more = measure_beside(operator, changed, named) - plain
            except Exception:
                continue
            if more > SMALL:
                found.add(strides.find_name(operator))
    return found


@pytest.mark.slow
@pytest.mark.timeout(1200)
def test_operators_that_are_not_run_take_any_layout(monkeypatch):
    found = survey(find_copying, monkeypatch)
    print(sorted(found), sorted(set(MORE) - found))
    assert found <= set(MORE)

"""What operators take that select by values, known or not, in several layouts."""

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from labkit import estimate_memory
from labkit.memory.estimate.selecting import SELECTING, count_scattered, count_selecting
from labkit.memory.estimate.strides import find_name
from labkit.memory.estimate.values import KNOWN_ELEMENTS
from labkit.memory.track.counters import TensorCounter
from labkit.memory.track.storages import list_tensors
from tests.fakes.steps import measure_twice

ATEN = torch.ops.aten
SIZES = (300, 200)
LAYOUTS = {
    "contiguous": lambda one: one,
    "turned": lambda one: one.mT.contiguous().mT,
    "repeated": lambda one: one[:1].clone().expand_as(one),
}
# The calls of each operator that selects, on values and a mask.
CALLS = {
    "unique": lambda values, mask: ATEN._unique2(values),
    "unique inverse": lambda values, mask: ATEN._unique2(values, True, True),
    "unique counts": lambda values, mask: ATEN._unique2(values, True, False, True),
    "unique all": lambda values, mask: ATEN._unique2(values, True, True, True),
    "unique of bool": lambda values, mask: ATEN._unique2(mask, True, True, True),
    "consecutive": lambda values, mask: ATEN.unique_consecutive(values, True, True),
    "consecutive rows": lambda values, mask: ATEN.unique_consecutive(values, False, False, 0),
    "rows": lambda values, mask: ATEN.unique_dim(values, 0),
    "columns": lambda values, mask: ATEN.unique_dim(values, 1, True, True, True),
    "select": ATEN.masked_select,
    "select rows": lambda values, mask: ATEN.masked_select(values, mask[:, :1]),
    "index": lambda values, mask: ATEN.index(values, [mask]),
}


@pytest.fixture(params=[1, 2])
def threads(request):
    before = torch.get_num_threads()
    torch.set_num_threads(request.param)
    yield request.param
    torch.set_num_threads(before)


def make_values(layout, other):
    generator = torch.Generator().manual_seed(3)
    values = torch.randint(0, 50, SIZES, generator=generator).float()
    mask = torch.rand(SIZES, generator=generator) > 0.7
    return LAYOUTS[layout](values), LAYOUTS[other](mask)


def measure_peak(run):
    """The bytes of all tensors that it has at a time, and its result."""
    counter = TensorCounter()
    counter.reset()
    try:
        result = run()
    finally:
        reading = counter.read()
    return reading.peak_bytes, result


def measure_scratch(call):
    """The bytes taken beside the storages of the results, and the results."""
    peak_bytes, result = measure_peak(call)
    return peak_bytes - sum(one.untyped_storage().nbytes() for one in list_tensors(result)), result


class Selection(TorchDispatchMode):
    """Keeps the name and the arguments of the operator that selects."""

    def __torch_dispatch__(self, operator, types, arguments=(), named=None):
        if find_name(operator) in SELECTING:
            self.call = find_name(operator), arguments
        return operator(*arguments, **(named or {}))


@pytest.mark.parametrize("other", LAYOUTS)
@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("name", CALLS)
def test_the_table_has_what_kernels_take(name, layout, other, threads):
    values, mask = make_values(layout, other)
    with Selection() as selection:
        CALLS[name](values, mask)
    taken, result = measure_scratch(lambda: CALLS[name](values, mask))
    counted = count_selecting(*selection.call, result)
    # Sums take a number for each thread, and copies of what is turned a block.
    assert counted - 64 <= taken <= counted + 8 * threads + 4 * 60 * 60


@pytest.mark.parametrize("other", LAYOUTS)
@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("rest", [0, 1000])
@pytest.mark.parametrize("rows", [False, True])
def test_the_backward_pass_of_masked_scatter_is_counted(rows, rest, layout, other, threads):
    gradient, mask = make_values(layout, other)
    mask = mask[:, :1] if rows else mask
    chosen = int(mask.expand(SIZES).sum())
    arguments = (gradient, mask, [chosen + rest])
    taken, _ = measure_scratch(lambda: ATEN.masked_scatter_backward(*arguments))
    counted = count_scattered(arguments, chosen)
    assert counted <= taken <= counted + 8 * threads


# Steps of a parameter of these sizes and of a mask that is not known to be of any one kind.
STEPS = {
    "images among words": lambda values, mask: torch.zeros(SIZES).masked_scatter(mask, values),
    "rows among words": lambda values, mask: torch.zeros(SIZES).masked_scatter(mask[:, :1], values),
    "select": lambda values, mask: values.masked_select(mask),
    "unique": lambda values, mask: values.sum() * torch.unique(mask * 3.5, return_inverse=True)[0],
    "consecutive": lambda values, mask: (
        values.sum() * torch.unique_consecutive(mask * 3.5, return_inverse=True)[0]
    ),
    "unique rows": lambda values, mask: values.sum() * torch.unique(mask * 3.5, dim=0),
}


@pytest.mark.parametrize("name", STEPS)
def test_a_known_mask_has_one_figure(name, threads):
    numbers = torch.rand(SIZES, generator=torch.Generator().manual_seed(5)).tolist()

    def make_step():
        parameter = torch.zeros(SIZES, requires_grad=True)
        mask = torch.tensor(numbers) > 0.6

        def step():
            STEPS[name](parameter * 2, mask).square().sum().backward()
            parameter.grad = None

        return step

    estimate = estimate_memory(make_step)
    assert estimate.obstacle is None and estimate.lowest_bytes is None
    assert estimate.peak_bytes == pytest.approx(measure_twice(make_step), rel=0.002)


@pytest.mark.parametrize("name", STEPS)
def test_an_unknown_mask_has_a_range_around_the_truth(name, threads):
    def make_step():
        parameter = torch.randn(SIZES, requires_grad=True)

        def step():
            values = parameter * 2
            STEPS[name](values, values > 0).square().sum().backward()
            parameter.grad = None

        return step

    estimate, measured = estimate_memory(make_step), measure_twice(make_step)
    assert estimate.obstacle is None
    assert estimate.lowest_bytes - 64 <= measured <= estimate.peak_bytes + 64


EXPANDED = {
    "expanded": lambda mask, words: mask[..., None].expand_as(words),
    "copied": lambda mask, words: mask[..., None].expand(words.shape).contiguous(),
    "inverted": lambda mask, words: ~(~mask)[..., None].expand(-1, -1, words.size(2)),
    "turned": lambda mask, words: mask[:, None].expand(-1, words.size(2), -1).mT,
}


@pytest.mark.parametrize("name", EXPANDED)
def test_a_known_mask_stays_known_where_it_is_expanded(name, threads):
    tokens = torch.randint(3, 99, (8, 128), generator=torch.Generator().manual_seed(3))
    tokens[:, 5:21] = 2
    numbers = tokens.tolist()

    def make_step():
        tokens = torch.tensor(numbers)
        words, images = torch.zeros(8, 128, 512, requires_grad=True), torch.zeros(8 * 16, 512)
        images.requires_grad_()

        def step():
            made = words * 2
            mask = EXPANDED[name](tokens == 2, made)
            assert mask.numel() > KNOWN_ELEMENTS
            if made[mask].numel() != images.numel() or len(mask.nonzero()) != images.numel():
                raise ValueError("as many images as places")
            made.masked_scatter(mask, images).square().sum().backward()
            words.grad = images.grad = None

        return step

    taken, estimate = measure_peak(lambda: estimate_memory(make_step))
    assert taken < 8 * 128 * 512  # the bytes of a mask of all elements
    assert estimate.obstacle is None and estimate.lowest_bytes is None
    assert estimate.peak_bytes == pytest.approx(measure_twice(make_step), rel=0.002)


def test_a_matrix_is_turned_in_a_block():
    def make_step():
        parameter = torch.zeros(SIZES, requires_grad=True)
        return lambda: parameter.t().contiguous().sum().backward()

    estimate = estimate_memory(make_step)
    taken = 2 * 4 * 300 * 200 + 4 * 60 * 60
    assert estimate.peak_bytes == pytest.approx(measure_twice(make_step), abs=64)
    assert estimate.peak_bytes > taken

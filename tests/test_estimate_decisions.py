"""Steps that decide by unknown values: which ways are followed, and how the figures are flagged."""

import pytest
import torch
from torch import nn

from labkit import estimate_memory
from labkit.errors import UsageError
from tests.fakes.steps import measure_twice

ROWS, WIDTH, EXPERTS = 400, 64, 4


def make_layer():
    torch.manual_seed(0)
    return nn.Linear(WIDTH, WIDTH), torch.randn(ROWS, WIDTH)


def keep_quantile():
    layer, inputs = make_layer()

    def step():
        hidden = layer(inputs)
        kept = hidden[hidden > 1.0]
        (kept * (kept > kept.quantile(0.5))).sum().backward()

    return step


def route_to_experts():
    _, inputs = make_layer()
    experts = nn.ModuleList([nn.Linear(WIDTH, WIDTH) for _ in range(EXPERTS)])
    router = nn.Linear(WIDTH, EXPERTS)

    def step():
        chosen = router(inputs).topk(2).indices
        mask = nn.functional.one_hot(chosen, EXPERTS).sum(1).mT
        made = torch.zeros_like(inputs)
        for place in (mask.sum(1) > 0).nonzero():
            rows = torch.where(mask[place[0]])[0]
            made.index_add_(0, rows, experts[place[0]](inputs[rows]))
        made.square().mean().backward()

    return step


def grow_by_a_mean():
    layer, inputs = make_layer()

    def step():
        hidden = layer(inputs)
        kept = hidden[hidden > 1.0]
        if hidden.mean() > 0:
            kept = torch.cat([kept] * 3)
        kept.quantile(0.5).backward()

    return step


def grow_otherwise():
    layer, inputs = make_layer()

    def step():
        hidden = layer(inputs)
        kept = hidden[hidden > 1.0]
        if hidden.mean() < 1:
            pass
        else:
            hidden.mean().backward()
        if hidden.mean() > 100:
            hidden.mean().backward()
        else:
            kept = torch.cat([kept] * 3)
        kept.quantile(0.5).backward()

    return step


@pytest.mark.parametrize(
    "make_step", [keep_quantile, route_to_experts, grow_by_a_mean, grow_otherwise]
)
def test_where_selecting_nothing_fails_everything_is_the_upper_end(make_step):
    estimate, measured = estimate_memory(make_step), measure_twice(make_step)
    assert estimate.obstacle is None
    # Before the error, the way of nothing has the layer and its result.
    assert WIDTH * WIDTH * 4 < estimate.lowest_bytes <= measured + 64
    assert measured <= estimate.peak_bytes + 64
    assert f"at least {estimate.lowest_bytes / 1024:.1f} KiB" in estimate.notes[0]


def test_where_selecting_everything_fails_nothing_is_a_lower_bound():
    def make_step():
        layer, inputs = make_layer()

        def step():
            hidden = layer(inputs)
            kept = hidden[hidden > 1.5]
            made = torch.zeros(ROWS * 20)
            made[: len(kept)].copy_(kept)
            made.sum().backward()

        return step

    estimate = estimate_memory(make_step)
    assert "one way only" in str(estimate.obstacle)
    assert estimate.peak_bytes <= measure_twice(make_step)


def test_a_branch_that_cannot_be_followed_makes_a_lower_bound_of_what_was_reached():
    def make_step():
        layer, inputs = make_layer()

        def step():
            hidden = layer(inputs)
            kept, names = hidden[hidden > 1.0], ["many"]
            if hidden.mean() < 0:
                names.append("few")
            if hidden.mean() < 0:
                names.append("none")
            made = {("many",): kept.quantile(0.5)}
            made[tuple(names)].backward()

        return step

    estimate = estimate_memory(make_step)
    assert "one way only" in str(estimate.obstacle)
    assert estimate.peak_bytes == sum(estimate.kinds.values()) <= measure_twice(make_step)


def find_times(read):
    """A step that finds the places of drawn times in a table, as schedulers do."""

    def make_step():
        layer, inputs = make_layer()
        times, weights = torch.linspace(1000, 1, 1000), torch.linspace(1, 0, 1000)

        def step():
            drawn = times[torch.randint(0, 1000, (4,))]
            factors = torch.stack([read(times == one, weights) for one in drawn])
            (layer(inputs[:4]) * factors[:, None]).square().mean().backward()

        return step

    return make_step


READINGS = {
    "item": lambda mask, weights: weights[mask.nonzero().item()],
    "int": lambda mask, weights: weights[int(torch.where(mask)[0])],
    "float": lambda mask, weights: torch.tensor(float(weights[mask])),
    "select": lambda mask, weights: torch.tensor(weights.masked_select(mask).mul(2).item()),
}


@pytest.mark.parametrize("name", READINGS)
def test_what_item_reads_is_one_selected_element(name):
    make_step = find_times(READINGS[name])
    estimate = estimate_memory(make_step)
    assert estimate.obstacle is None and estimate.lowest_bytes == estimate.peak_bytes
    assert estimate.peak_bytes == pytest.approx(measure_twice(make_step), rel=0.005)


def test_item_of_many_elements_stays_an_error_of_the_step():
    with pytest.raises(UsageError, match="7 elements cannot be converted"):
        estimate_memory(lambda: (torch.zeros(7)[torch.zeros(7) == 0]).repeat(1).item())
    with pytest.raises(UsageError, match="cannot be converted"):
        estimate_memory(lambda: (torch.randn(3, 5) > 0).nonzero().item())


def serve_experts(choose):
    """A step with one tensor of weights, each expert's rows found by its number."""

    def make_step():
        _, inputs = make_layer()
        weights = torch.randn(EXPERTS, WIDTH, WIDTH, requires_grad=True)
        router = nn.Linear(WIDTH, EXPERTS)
        given = torch.randint(0, EXPERTS, (ROWS,))

        def step():
            chosen = choose(router(inputs), given)
            served = torch.zeros_like(inputs)
            for number in torch.unique(chosen).tolist():
                (rows,) = torch.where(chosen == number)
                served = served.index_add(0, rows, inputs[rows] @ weights[number])
            served.square().mean().backward()
            weights.grad = None

        return step

    return make_step


@pytest.mark.parametrize(
    "choose",
    [
        lambda scores, given: scores.argmax(1),
        lambda scores, given: scores.topk(2).indices[:, 1],
        lambda scores, given: given,
    ],
)
def test_different_numbers_are_known_by_their_limits(choose):
    make_step = serve_experts(choose)
    estimate, measured = estimate_memory(make_step), measure_twice(make_step)
    assert estimate.obstacle is None
    assert estimate.lowest_bytes - 64 <= measured <= estimate.peak_bytes + 64
    # Not as many experts as rows.
    assert estimate.peak_bytes < 4 * measured


def test_numbers_without_limits_are_an_obstacle_as_an_index():
    make_step = serve_experts(lambda scores, given: (scores.sum(1).sigmoid() * EXPERTS).long())
    estimate = estimate_memory(make_step)
    assert "reads a value" in estimate.obstacle.reason
    assert estimate.peak_bytes <= measure_twice(make_step)


PLACES = {
    "constants": lambda values, places: torch.tensor_split(values, torch.tensor([30, 60])),
    "given": lambda values, places: values.tensor_split(places, dim=1),
    "named": lambda values, places: torch.tensor_split(
        input=values, tensor_indices_or_sections=places, dim=0
    ),
    "sections": lambda values, places: values.tensor_split(torch.tensor(7)),
    "numbers": lambda values, places: (*values.tensor_split(5), *values.tensor_split([2, 9])),
}


@pytest.mark.parametrize("name", PLACES)
def test_a_tensor_is_split_at_known_places(name):
    def make_step():
        layer, inputs = make_layer()
        places = torch.tensor([3, 50])

        def step():
            parts = PLACES[name](layer(inputs), places)
            sum(one.square().mean() * len(one) for one in parts).backward()

        return step

    estimate = estimate_memory(make_step)
    assert estimate.obstacle is None and estimate.lowest_bytes is None
    assert estimate.peak_bytes == pytest.approx(measure_twice(make_step), rel=0.005)


def test_a_tensor_is_split_at_unknown_places_both_ways():
    def make_step():
        layer, inputs = make_layer()

        def step():
            hidden = layer(inputs)
            places = (hidden[0, :3].sigmoid() * 100).long().sort().values
            return [one * 2 for one in hidden.tensor_split(places)]

        return step

    estimate = estimate_memory(make_step)
    assert estimate.obstacle is None
    assert estimate.lowest_bytes <= measure_twice(make_step) <= estimate.peak_bytes + 64

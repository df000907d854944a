"""What can be handed to ``estimate_memory`` as a step, and what is said of the unknown."""

from __future__ import annotations

import pytest

torch = pytest.importorskip("torch")
from torch import nn  # noqa: E402

from labkit.errors import UsageError  # noqa: E402
from labkit.memory.estimate.play import FORWARD_ALONE, estimate_memory  # noqa: E402


def test_a_model_with_its_inputs_is_its_forward_pass():
    model, inputs = nn.Linear(100, 10, bias=False), torch.ones(5, 100)
    weight = model.weight
    estimate = estimate_memory(model, inputs, inference=True)
    assert (estimate.name, estimate.notes) == ("Linear", ())
    assert (estimate.kinds["parameters"], estimate.kinds["inputs"]) == (4000, 2000)
    assert estimate.peak_bytes == 4000 + 2000 + 200
    assert model.weight is weight
    assert type(weight) is nn.Parameter


def test_a_models_forward_pass_alone_is_not_taken_for_training():
    estimate = estimate_memory(nn.Linear(2, 2), torch.ones(1, 2))
    assert estimate.notes == (FORWARD_ALONE,)
    assert "calls backward() too" in str(estimate)


def test_a_model_from_outside_would_count_twice_without_training_too():
    model = nn.Linear(4, 4)
    with pytest.raises(UsageError, match="reads a parameter that was made outside") as caught:
        estimate_memory(lambda inputs: model(inputs), torch.ones(1, 4), inference=True)  # noqa: PLW0108
    assert caught.value.cause == (
        "it would count twice: as it is, and as the fake one that is made of it"
    )


@pytest.mark.filterwarnings("ignore:torch.quantize_per_tensor:UserWarning")
def test_a_tensor_that_cannot_be_faked_makes_a_lower_bound():
    quantized = torch.quantize_per_tensor(torch.ones(10), 0.1, 0, torch.qint8)
    estimate = estimate_memory(lambda one: one.dequantize(), quantized, device="24 GiB")
    assert (estimate.obstacle.operator, estimate.fits) == ("a tensor", None)
    assert "a lower bound: a tensor has no fake version" in str(estimate)


def test_where_the_context_alone_is_too_much_no_batch_is_tried():
    tried = []

    def make_step(batch):
        tried.append(batch)
        held = torch.ones(batch)
        return lambda: held + 1

    estimate = estimate_memory(make_step, batch=1000, device="100 MiB")
    assert (estimate.fits, estimate.largest_batch) == (False, 0)
    assert tried == [1000]

"""estimate_memory against the peak of torch's CUDA allocator, step by step."""

from __future__ import annotations

import gc
from importlib.metadata import version

import pytest

from labkit import estimate_memory
from tests.simulated_gpu.training import STEPS

pytestmark = pytest.mark.gpu

TOLERANCE = 0.03
# The estimate is 27.1 MB there, 26.1 MB are measured; from 2.14 on both are the same.
OVER = pytest.mark.xfail(
    version("torch").startswith("2.13"),
    strict=True,
    reason="4 % over with torch 2.13",
)
CASES = [pytest.param(name, marks=OVER if name == "encoder" else []) for name in STEPS]


def measure(make, batch, *, trains):
    """The peak of two steps over what is there after a small one, in bytes.

    What libraries keep for themselves is there from the small one on.
    """
    import torch

    with torch.inference_mode(not trains):
        step = make("cuda", 2)
        step()
        del step
        gc.collect()
        torch.cuda.empty_cache()
        before = torch.cuda.memory_allocated()
        torch.cuda.reset_peak_memory_stats()
        step = make("cuda", batch)
        step()
        step()
        torch.cuda.synchronize()
        return torch.cuda.max_memory_allocated() - before


@pytest.mark.parametrize("name", CASES)
def test_the_estimate_is_within_three_percent_of_the_peak(name):
    make, batch, trains = STEPS[name]
    estimate = estimate_memory(
        lambda batch: make("cuda", batch), batch=batch, device="cuda:0", inference=not trains
    )
    assert estimate.obstacle is None
    measured = measure(make, batch, trains=trains)
    assert estimate.peak_bytes == pytest.approx(measured, rel=TOLERANCE)

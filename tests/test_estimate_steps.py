"""Estimates of many kinds of steps, against what torch's profiler and CUDA's allocator measure."""

from __future__ import annotations

import gc

import pytest
import torch

from labkit.memory.estimate.play import estimate_memory
from labkit.memory.track.tracker import track_memory
from tests.fakes.steps import BATCH, STEPS, UPPER

# So large that what the allocator cannot cut off from a block, up to 1 MiB, is not much.
CUDA_BATCH = 64


def estimate_step(name, device, target, batch=BATCH):
    """The estimate of a step on a device, for a target."""

    def make_step(batch):
        return STEPS[name](device, batch)

    return estimate_memory(make_step, batch=batch, device=target)


def run_step(name, device, batch=BATCH):
    """Makes the step and takes it twice, as an estimate does."""
    torch.manual_seed(0)  # how many iterations L-BFGS takes depends on the numbers
    run = STEPS[name](device, batch)
    run()
    run()


def measure_cuda(name):
    """The peak of CUDA's allocator, without what cuBLAS keeps for itself."""
    run_step(name, "cuda", 2)
    gc.collect()
    torch.cuda.empty_cache()
    before = torch.cuda.memory_allocated()
    torch.cuda.reset_peak_memory_stats()
    run_step(name, "cuda", CUDA_BATCH)
    return torch.cuda.max_memory_allocated() - before


def judge(estimate, measured, tolerance):
    """Fails where the estimate is too far off without saying so, in the direction it is off."""
    off = (estimate.peak_bytes - measured) / measured
    assert off <= tolerance or estimate.excess, f"{off:+.2%} and no upper bound"
    assert off >= -tolerance or estimate.obstacle, f"{off:+.2%} and no lower bound"


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:Warning. use_reentrant")
@pytest.mark.parametrize("name", STEPS)
def test_on_the_cpu_it_is_within_one_percent_of_the_profiler(name):
    estimate = estimate_step(name, "cpu", None)
    run_step(name, "cpu")
    gc.collect()
    with track_memory("cpu", tensors=True) as tracked:
        run_step(name, "cpu")
    judge(estimate, tracked.use.find_span("tensors").peak_bytes, 0.01)
    assert (estimate.excess is not None) is (name in UPPER)
    assert estimate.obstacle is None


@pytest.mark.gpu
@pytest.mark.parametrize("name", STEPS)
def test_on_a_gpu_it_is_within_three_percent_of_the_allocator(name):
    estimate = estimate_step(name, "cuda", "H100", CUDA_BATCH)
    judge(estimate, measure_cuda(name), 0.03)
    assert estimate.obstacle is None
    assert (estimate.excess is not None) is (name in UPPER)

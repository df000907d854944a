"""What only a real GPU shows: cuDNN, Triton's kernels, speeds, its sensors, its links, the labs.

Simulated GPUs skip these: their README says what they play.
"""

from __future__ import annotations

import gc
import json
import statistics
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from torch import nn

from labkit.devices.detect import detect_devices
from labkit.lessons.catalog import find_labs
from labkit.memory.balance.read import take_snapshot
from labkit.memory.estimate.cuda import CONTEXT_BYTES
from labkit.memory.estimate.play import estimate_memory
from tests import conftest

ROOT = Path(__file__).parents[1]
needs_gpu = pytest.mark.gpu_hardware


@pytest.mark.parametrize(
    ("missing_simulation", "missing_gpu", "words"),
    [
        pytest.param(None, None, "only a real one", id="a simulated GPU"),
        pytest.param("no simulation", "needs an NVIDIA GPU", "needs an NVIDIA GPU", id="no GPU"),
        pytest.param("no simulation", None, None, id="a real GPU"),
    ],
)
def test_the_mark_skips_with_its_reason_on_all_but_a_real_gpu(
    request, monkeypatch, missing_simulation, missing_gpu, words
):
    monkeypatch.setattr(conftest, "find_missing_simulation", lambda: missing_simulation)
    monkeypatch.setattr(conftest, "_missing_gpu", lambda: missing_gpu)
    added = []
    item = SimpleNamespace(
        get_closest_marker=lambda name: name == "gpu_hardware",
        add_marker=added.append,
        path=Path(__file__),
    )
    conftest.pytest_collection_modifyitems(request.config, [item])
    reasons = [mark.kwargs["reason"] for mark in added]
    assert [words in reason for reason in reasons] == ([True] if words else [])


def time_calls(call, calls=20):
    """The median milliseconds of a call on the GPU, by its events."""
    for _ in range(5):
        call()
    times = []
    for _ in range(calls):
        begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        begin.record()
        call()
        end.record()
        end.synchronize()
        times.append(begin.elapsed_time(end))
    return statistics.median(times)


def run_labkit(*words):
    """``labkit`` in a process of its own; pytest's own limit ends it."""
    return subprocess.run(
        [sys.executable, "-m", "labkit", *words],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )


@needs_gpu
def test_cudnns_convolution_is_the_cpus():
    assert torch.backends.cudnn.is_available()
    layer, images = nn.Conv2d(8, 16, 3, padding=1), torch.randn(4, 8, 32, 32)
    expected = layer(images)
    with torch.backends.cudnn.flags(enabled=True, allow_tf32=False):
        made = layer.cuda()(images.cuda())
    torch.testing.assert_close(made.cpu(), expected.detach(), rtol=1e-4, atol=1e-4)


@needs_gpu
@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:.*jit.script.*:DeprecationWarning")  # torch's own compiler
def test_compiled_code_computes_by_kernels_of_triton():
    if torch.cuda.get_device_capability() < (7, 0):
        pytest.skip("Triton needs compute capability 7.0")
    values = torch.randn(1000, 1000, device="cuda")

    def compute(values):
        return (values.sin() * values).softmax(-1)

    torch.testing.assert_close(torch.compile(compute)(values), compute(values))


@needs_gpu
def test_products_in_tf32_are_faster():
    if torch.cuda.get_device_capability() < (8, 0):
        pytest.skip("TF32 needs compute capability 8.0")
    matrix, allowed = torch.randn(4096, 4096, device="cuda"), torch.backends.cuda.matmul
    before, times = allowed.allow_tf32, {}
    try:
        for tf32 in (False, True):
            allowed.allow_tf32 = tf32
            times[tf32] = time_calls(lambda: matrix @ matrix)
    finally:
        allowed.allow_tf32 = before
    assert times[True] < times[False] / 1.5


@needs_gpu
def test_a_call_returns_before_its_work_is_done():
    matrix = torch.randn(8192, 8192, device="cuda")
    torch.cuda.synchronize()
    stream = torch.cuda.current_stream()
    for _ in range(20):
        matrix = matrix @ matrix
    assert not stream.query()
    torch.cuda.synchronize()
    assert stream.query()


@needs_gpu
def test_what_cuda_takes_is_within_the_range_of_an_estimate():
    torch.ones(8, 8, device="cuda") @ torch.ones(8, 8, device="cuda")
    balance = next(one for one in take_snapshot().balances if one.torch_name == "cuda:0")
    context = balance.this_process.context_bytes
    if context is None:
        pytest.skip("in this container it is not known which process is ours")
    assert CONTEXT_BYTES[0] / 2 <= context <= CONTEXT_BYTES[1]


@needs_gpu
def test_an_estimate_of_a_network_with_cudnn_is_no_more_than_its_peak():
    def make_step(batch=64):
        model = nn.Sequential(
            nn.Conv2d(3, 32, 3, padding=1), nn.BatchNorm2d(32), nn.ReLU(), nn.Conv2d(32, 32, 3)
        ).to("cuda")
        images = torch.randn(batch, 3, 64, 64, device="cuda")
        return lambda: model(images).square().mean().backward()

    estimate = estimate_memory(make_step, device="H100")
    assert any("cuDNN" in note for note in estimate.notes)
    make_step(2)()
    gc.collect()
    torch.cuda.empty_cache()
    before = torch.cuda.memory_allocated()
    torch.cuda.reset_peak_memory_stats()
    step = make_step()
    step()
    step()
    measured = torch.cuda.max_memory_allocated() - before
    assert 0.6 * measured <= estimate.peak_bytes <= 1.03 * measured


@needs_gpu
def test_two_gpus_copy_to_each_other():
    if torch.cuda.device_count() < 2:
        pytest.skip("needs two GPUs")
    sent = torch.randn(2**24, device="cuda:0")
    assert torch.equal(sent.to("cuda:1").to("cuda:0"), sent)
    assert torch.equal(sent.to("cuda:1").cpu(), sent.cpu())


@needs_gpu
def test_a_mig_instance_names_its_gpu():
    instances = [one for one in detect_devices().devices if one.mig]
    if not instances:
        pytest.skip("needs a GPU that is split by MIG")
    assert all(one.parent_uuid and one.total_bytes for one in instances)


@needs_gpu
@pytest.mark.slow
@pytest.mark.timeout(900)
def test_the_measured_speeds_are_below_the_hardwares_limits(tmp_path):
    done = run_labkit("prove", "--quick", "--device", "cuda:0", "--json", "--output", str(tmp_path))
    proof = json.loads(done.stdout)
    [device] = proof["devices"]
    figures = [one for one in device["figures"] if one["value"] and one["limit"]]
    assert figures, done.stderr
    assert all(one["value"] <= 1.05 * one["limit"] for one in figures), figures
    heat = [one["temperature_celsius"] for one in device["sustained"]]
    assert all(10 <= one <= 110 for one in heat if one is not None)


@needs_gpu
@pytest.mark.slow
@pytest.mark.timeout(1800)
@pytest.mark.parametrize("lab", [lab.name for lab in find_labs()])
def test_every_claim_of_a_lab_holds_also_those_about_time(tmp_path, lab):
    done = run_labkit("run", lab, "--json", "--output", str(tmp_path / "run"))
    [result] = json.loads(done.stdout)["notebooks"]
    assert result["status"] == "passed", result

"""The figures that estimates promise, side by side: ``python -m tests.bench.bench_estimate``.

Each line names a model and an optimizer, what was estimated, and what was measured: by labkit's
own tracer and, apart from it, by torch's profiler; on a GPU also by CUDA's allocator.
"""

from __future__ import annotations

import gc
import statistics
import sys
import time
from collections.abc import Callable

import torch

from labkit.memory.estimate.model import Estimate
from labkit.memory.estimate.play import estimate_memory
from labkit.memory.track.storages import StorageTracer
from labkit.memory.track.tracker import track_memory
from tests.fakes.models import MODELS, OPTIMIZERS, make_training, run_twice

ROUNDS = 15
BATCH = 32
GPU_BATCH = 256
CPU_LIMIT, GPU_LIMIT = 2.0, 3.0  # per cent
CASES = [(model, optimizer) for model in MODELS for optimizer in OPTIMIZERS]


def measure_by_profiler(make_step: Callable[[int], Callable[[], object]]) -> int:
    """The peak of the CPU's tensors, as torch's profiler counts them."""
    with track_memory("cpu", tensors=True) as tracked:
        run_twice(make_step, BATCH)
    assert tracked.peak_bytes is not None
    return tracked.peak_bytes


def measure_by_profilers_trace(make_step: Callable[[int], Callable[[], object]]) -> int:
    """The same from a profiler of torch's own making, without labkit."""
    from torch.profiler import ProfilerActivity, profile

    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiler:
        run_twice(make_step, BATCH)
    events = profiler.profiler.kineto_results.events()
    level = peak = 0
    for event in sorted(events, key=lambda event: event.start_ns()):
        if event.name() == "[memory]" and event.device_type().name == "CPU":
            level += event.nbytes()
            peak = max(peak, level)
    return peak


def measure_by_allocator(make_step: Callable[[int], Callable[[], object]]) -> int:
    """The peak of CUDA's allocator above what was there, cuBLAS's workspace among it."""
    run_twice(make_step, 2)
    gc.collect()
    torch.cuda.empty_cache()
    before = torch.cuda.memory_allocated()
    torch.cuda.reset_peak_memory_stats()
    run_twice(make_step, GPU_BATCH)
    return torch.cuda.max_memory_allocated() - before


def report(name: str, estimate: Estimate, measured: int, limit: float) -> bool:
    """Prints an estimate beside what was measured; True where it is within the limit."""
    off = 100 * (estimate.peak_bytes - measured) / measured
    holds = abs(off) <= limit and estimate.obstacle is None
    print(
        f"{name:<28}{estimate.peak_bytes:>13,} B  measured {measured:>13,} B  {off:+7.4f} %"
        f"  limit {limit:g}  {'ok' if holds else 'TOO FAR'}"
    )
    return holds


def compare_cpu() -> list[bool]:
    """The estimates against the tracer and the profiler on real CPU tensors."""
    held = []
    for model, optimizer in CASES:
        make_step = make_training(model, optimizer)
        started = time.perf_counter()
        estimate = estimate_memory(make_step, batch=BATCH)
        seconds = time.perf_counter() - started
        run_twice(make_step, BATCH)
        with StorageTracer() as tracer:
            run_twice(make_step, BATCH)
        profiled, traced = measure_by_profiler(make_step), measure_by_profilers_trace(make_step)
        name = f"{model}, {optimizer}"
        held.append(report(f"{name}: tracer", estimate, tracer.levels["cpu"].peak_bytes, CPU_LIMIT))
        held.append(report(f"{name}: profiler", estimate, profiled, CPU_LIMIT))
        same = profiled == traced
        print(
            f"{'':<28}track_memory and torch.profiler: {'equal' if same else 'DIFFERENT'}", end=""
        )
        print(f"; estimated in {seconds:.2f} s")
        held.append(same)
    return held


def compare_gpu() -> list[bool]:
    """The estimates against CUDA's allocator, where there is a GPU."""
    if not torch.cuda.is_available():
        print("cuda: not measured, there is no GPU")
        return []
    device = torch.cuda.get_device_properties(0).total_memory
    return [
        report(
            f"{model}, {optimizer}: cuda",
            estimate_memory(make_training(model, optimizer), batch=GPU_BATCH, device=device),
            measure_by_allocator(make_training(model, optimizer, "cuda")),
            GPU_LIMIT,
        )
        for model, optimizer in CASES
    ]


def compare_cost() -> None:
    """What watching costs a step of sixty tiny layers, and one of matmuls; it has no limit."""
    tiny = torch.nn.Sequential(*(torch.nn.Linear(8, 8) for _ in range(60)))
    wide = torch.nn.Sequential(*(torch.nn.Linear(1024, 1024) for _ in range(4)))
    for name, model, inputs in (
        ("60 tiny layers", tiny, torch.ones(4, 8)),
        ("4 wide layers", wide, torch.ones(256, 1024)),
    ):
        taken: dict[str, list[float]] = {"nothing": [], "tensors": [], "kinds": []}
        for _ in range(ROUNDS):
            for way, seconds in taken.items():
                started = time.perf_counter()
                with track_memory("cpu", **({} if way == "nothing" else {way: True})):
                    model(inputs).sum().backward()
                seconds.append(time.perf_counter() - started)
        medians = {way: 1000 * statistics.median(seconds) for way, seconds in taken.items()}
        print(name, *(f"{way} {figure:.1f} ms" for way, figure in medians.items()), sep=", ")


if __name__ == "__main__":
    figures = [*compare_cpu(), *compare_gpu()]
    compare_cost()
    sys.exit(0 if all(figures) else 1)

"""Measures one device, in a process of its own, so that a crash or a hang is a result too.

``python -m labkit.prove.measure DEVICE PLAN`` prints one JSON object per line: ``start`` before a
step, each figure, each state of the GPU, and why a step was skipped or failed. ``PLAN`` is a JSON
object with the fields of ``MeasurePlan``.

Triton's ``do_bench`` times CUDA kernels (CUDA events, warm-up, the L2 cache flushed before each
run), ``torch.utils.benchmark`` everything else. All data is random: zeros draw less power, so the
clocks stay higher than real work lets them.
"""

from __future__ import annotations

import functools
import itertools
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from labkit.devices.nvml import GpuMeter
from labkit.devices.self_test import (
    NotTried,
    allocate,
    compile_function,
    compute,
    find_compiler_gap,
)
from labkit.devices.self_test import run_steps as run_self_test
from labkit.devices.torch_devices import read_torch_devices

TERA, GIGA, MIB = 1e12, 1e9, 2**20
Emit = Callable[[Mapping[str, object]], None]

# (rows, inner, columns) of matrix products. Which one is fastest depends on how the tiles of the
# result fill the SMs, so that a small search finds what a card can do.
SHAPES = (
    (4096, 4096, 4096),
    (8192, 8192, 8192),
    (4096, 8192, 4096),
    (8448, 8192, 8192),
    (16384, 8192, 1280),
    (16896, 4096, 8192),
    (4864, 4096, 8192),
    (2048, 2048, 2048),
)
PLAIN_SHAPES = SHAPES[:2]  # without tensor cores, every large shape reaches the same
# A large GPU at its power limit lowers its clocks after about 0.1 s. Short bursts with rests show
# what its units can do; the sustained load shows what its power limit lets it do for long.
BURST_SECONDS, REST_SECONDS, LAST_BURSTS = 0.06, 0.15, 3
GPU_DTYPES: tuple[str, ...] = ("bfloat16", "float16", "tf32", "float8", "float32")
CPU_DTYPES: tuple[str, ...] = ("float32", "bfloat16")
CPU_SHAPES = ((2048, 2048, 2048), (4096, 4096, 4096))
TRIED_SHAPE = (1024, 1024, 1024)
LONGEST_PRODUCT_SECONDS = 0.15
FLOAT8_CAPABILITY = (8, 9)
MEMORY_MIB = (4096, 1024, 256, 64)
HOST_MIB = 512
# (batch, heads, tokens, width of a head)
ATTENTION = (4, 32, 4096, 128)
CPU_ATTENTION = (1, 8, 1024, 64)
BACKENDS = {
    "flash": "FLASH_ATTENTION",
    "cudnn": "CUDNN_ATTENTION",
    "efficient": "EFFICIENT_ATTENTION",
    "math": "MATH",
}
HOLD_INTERVAL_SECONDS = 0.5


@dataclass(frozen=True)
class MeasurePlan:
    """What to measure: the steps in their order, and how long each may take.

    ``uuid`` is NVML's for the device. ``repeat_seconds`` is the time for the runs of one figure,
    ``hold_seconds`` of the sustained load. After ``limit_seconds`` no further step begins.
    """

    steps: tuple[str, ...]
    uuid: str | None = None
    repeat_seconds: float = 0.1
    hold_seconds: float = 30.0
    limit_seconds: float = 240.0
    quick: bool = False


class Timing(NamedTuple):
    """Seconds: the median of the runs, and their 20th and 80th percentile."""

    median: float
    fast: float
    slow: float

    @classmethod
    def of(cls, times: Sequence[float]) -> Timing:
        """The timing of these runs."""
        fast, *_, slow = statistics.quantiles([*times, *times], n=5, method="inclusive")
        return cls(statistics.median(times), fast, slow)


@dataclass
class Bench:
    """A device under measurement, and what later steps use of earlier ones."""

    torch: Any
    device: Any
    plan: MeasurePlan
    emit: Emit
    meter: GpuMeter
    started: float = field(default_factory=time.monotonic)

    @property
    def is_cpu(self) -> bool:
        """True if the device is the CPU."""
        return bool(self.device.type == "cpu")

    def synchronize(self) -> None:
        """Waits until the device is done."""
        if not self.is_cpu:
            self.torch.accelerator.synchronize(self.device)

    def time(self, call: Callable[[], object], seconds: float | None = None) -> Timing:
        """The seconds that one call takes: its median and the spread of the runs."""
        seconds = seconds or self.plan.repeat_seconds
        if self.device.type == "cuda" and (do_bench := _find_do_bench()):
            quarter = max(1, int(seconds * 250))
            found = do_bench(call, quarter, int(seconds * 1000), quantiles=[0.5, 0.2, 0.8])
            return Timing(*(milliseconds / 1000 for milliseconds in found))
        return self._time_with_torch(call, seconds)

    def _time_with_torch(self, call: Callable[[], object], seconds: float) -> Timing:
        from torch.utils.benchmark import Timer

        def wait() -> None:
            call()
            self.synchronize()

        stated = {"call": call if self.is_cpu else wait}
        timer = Timer("call()", globals=stated, num_threads=self.torch.get_num_threads())
        return Timing.of(timer.blocked_autorange(min_run_time=seconds).times)

    def time_runs(self, call: Callable[[], object], runs: int, calls: int = 1) -> Timing:
        """As ``time``, by the wall clock: for what also works on the CPU, or does not wait.

        A run is a number of calls, of which the seconds of one count; the first run is a warm-up.
        """
        times = []
        for _ in range(runs + 1):
            self.synchronize()
            began = time.perf_counter()
            for _ in range(calls):
                call()
            if calls == 1:
                self.synchronize()
            times.append((time.perf_counter() - began) / calls)
        return Timing.of(times[1:])

    def random(self, *shape: int, dtype: Any = None) -> Any:
        """A tensor of random numbers on the device."""
        made = self.torch.randn(*shape, device=self.device)
        return made if dtype is None else made.to(dtype)

    def fits(self, needed_bytes: float) -> bool:
        """True if a step may take that much memory: at most a third of what is free."""
        free = self._count_free()
        return free is None or needed_bytes < free / 3

    def _count_free(self) -> int | None:
        if self.device.type == "cuda":
            return int(self.torch.cuda.mem_get_info(self.device)[0])
        from labkit.memory.balance.read import read_machine_memory

        return read_machine_memory().free_bytes

    def report(
        self, key: str, title: str, unit: str, work: float, timing: Timing, **more: object
    ) -> None:
        """Emits a figure: ``work`` in the unit, divided by the seconds of the timing."""
        values = Timing(*(work / seconds for seconds in timing))
        self._emit_figure({"key": key, "title": title, "unit": unit, **more}, values)

    def report_seconds(self, key: str, title: str, timing: Timing, unit: str = "s") -> None:
        """Emits a duration in "s" or "us"."""
        values = Timing(*(seconds * {"s": 1, "us": 1e6}[unit] for seconds in timing))
        self._emit_figure({"key": key, "title": title, "unit": unit}, values)

    def _emit_figure(self, figure: Mapping[str, object], values: Timing) -> None:
        median, fast, slow = values
        spread = {} if fast == slow else {"slow": slow, "fast": fast}  # a single run has none
        self.emit({"figure": {**figure, "value": median, **spread}})

    def skip(self, key: str, title: str, why: str) -> None:
        """Emits a figure that cannot be measured here."""
        self.emit({"figure": {"key": key, "title": title, "status": "skipped", "why": why}})


def _find_do_bench() -> Any:
    try:
        from triton.testing import do_bench
    except ImportError:
        return None
    return do_bench


# The self-test of `labkit devices --verify`


def verify_device(bench: Bench) -> None:
    """Emits the self-test's own events: allocate, compute."""
    tests = {"allocate": allocate, "compute": compute}
    run_self_test(bench.torch, str(bench.device), bench.emit, time.perf_counter, tests)


def verify_compile(bench: Bench) -> None:
    """Emits the self-test's last event: compile."""
    tests = {"compile": compile_function}
    run_self_test(bench.torch, str(bench.device), bench.emit, time.perf_counter, tests)


# Matrix products


def measure_matmul(bench: Bench) -> None:
    """The fastest matrix product of each dtype, in TFLOP/s (on the CPU: GFLOP/s)."""
    dtypes = CPU_DTYPES if bench.is_cpu else GPU_DTYPES
    for dtype in dtypes[:2] if bench.plan.quick else dtypes:
        try:
            _search_shapes(bench, dtype)
        except NotTried as reason:
            bench.skip(f"matmul.{dtype}", f"matrix product, {dtype}", str(reason))


def _search_shapes(bench: Bench, dtype: str) -> None:
    best, timing = TRIED_SHAPE, None
    with _float32_products(bench.torch, "high" if dtype == "tf32" else "highest"):
        for shape in _choose_shapes(bench, dtype):
            tried = _time_burst(bench, make_product(bench, dtype, shape))
            if timing is None or _flop(shape) / tried.median > _flop(best) / timing.median:
                best, timing = shape, tried
        product = make_product(bench, dtype, best)
        bursts = [_time_burst(bench, product) for _ in range(LAST_BURSTS)]
    timing = min(bursts, key=lambda burst: burst.median)
    rows, inner, columns = best
    unit, scale = ("GFLOP/s", GIGA) if bench.is_cpu else ("TFLOP/s", TERA)
    size = {"float8": 1, "float32": 4, "tf32": 4}.get(dtype, 2)
    traffic = size * (rows * inner + inner * columns + rows * columns)
    burst = "" if bench.is_cpu else f", the best of {LAST_BURSTS} bursts"
    bench.report(
        f"matmul.{dtype}",
        f"matrix product, {dtype}",
        unit,
        _flop(best) / scale,
        timing,
        detail=f"({rows}, {inner}) @ ({inner}, {columns}){burst}",
        intensity=_flop(best) / traffic,
    )


def _time_burst(bench: Bench, product: Callable[[], object]) -> Timing:
    """The seconds of one product in a burst after a rest; on the CPU there is no rest."""
    if bench.is_cpu:
        return bench.time(product)
    bench.synchronize()
    time.sleep(REST_SECONDS)
    return bench.time(product, BURST_SECONDS)


def _choose_shapes(bench: Bench, dtype: str) -> Iterator[tuple[int, int, int]]:
    """The shapes that fit the memory, and that this device multiplies in a short time."""
    usual = SHAPES if dtype in ("bfloat16", "float16", "float8", "tf32") else PLAIN_SHAPES
    shapes = CPU_SHAPES if bench.is_cpu else usual[:4] if bench.plan.quick else usual
    product = make_product(bench, dtype, TRIED_SHAPE)
    product()
    bench.synchronize()
    began = time.perf_counter()
    product()
    bench.synchronize()
    per_flop = (time.perf_counter() - began) / _flop(TRIED_SHAPE)
    yield TRIED_SHAPE
    for shape in shapes:
        rows, inner, columns = shape
        needed = 8 * (rows * inner + inner * columns + rows * columns)
        if _flop(shape) * per_flop < LONGEST_PRODUCT_SECONDS and bench.fits(needed):
            yield shape


def _flop(shape: tuple[int, int, int]) -> float:
    return 2.0 * shape[0] * shape[1] * shape[2]


def make_product(bench: Bench, dtype: str, shape: tuple[int, int, int]) -> Callable[[], object]:
    """A call that multiplies two random matrices. Raises NotTried if there is no such hardware."""
    torch = bench.torch
    rows, inner, columns = shape
    if dtype == "float8":
        return _make_float8_product(bench, shape)
    kind = torch.float32 if dtype in ("float32", "tf32") else getattr(torch, dtype)
    if dtype == "bfloat16" and bench.device.type == "cuda" and not torch.cuda.is_bf16_supported():
        raise NotTried("this GPU has no bfloat16")
    left, right = bench.random(rows, inner, dtype=kind), bench.random(inner, columns, dtype=kind)
    out = torch.empty(rows, columns, device=bench.device, dtype=kind)
    return lambda: torch.mm(left, right, out=out)


def _make_float8_product(bench: Bench, shape: tuple[int, int, int]) -> Callable[[], object]:
    torch = bench.torch
    rows, inner, columns = shape
    found = bench.device.type == "cuda" and not torch.version.hip
    if not found or torch.cuda.get_device_capability(bench.device) < FLOAT8_CAPABILITY:
        raise NotTried("float8 needs compute capability 8.9 or newer")
    kind, one = torch.float8_e4m3fn, torch.ones((), device=bench.device)
    left = bench.random(rows, inner).to(kind)
    right = bench.random(columns, inner).to(kind).t()

    def multiply() -> object:
        return torch._scaled_mm(
            left, right, scale_a=one, scale_b=one, out_dtype=torch.bfloat16, use_fast_accum=True
        )

    return multiply


@contextmanager
def _float32_products(torch: Any, precision: str) -> Iterator[None]:
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision(precision)
    try:
        yield
    finally:
        torch.set_float32_matmul_precision(before)


# Attention


def measure_attention(bench: Bench) -> None:
    """TFLOP/s of scaled dot product attention, by each backend that runs here."""
    from torch.nn.attention import SDPBackend, sdpa_kernel

    names = {"math": "MATH", "flash": "FLASH_ATTENTION"} if bench.is_cpu else BACKENDS
    dtype = bench.torch.float32 if bench.is_cpu else bench.torch.bfloat16
    batch, heads, tokens, width = _choose_attention(bench)
    query, key, value = (bench.random(batch, heads, tokens, width, dtype=dtype) for _ in range(3))
    attend = bench.torch.nn.functional.scaled_dot_product_attention
    flop = 4.0 * batch * heads * tokens**2 * width
    unit, scale = ("GFLOP/s", GIGA) if bench.is_cpu else ("TFLOP/s", TERA)
    for name, backend in names.items():
        if bench.plan.quick and name == "math":
            continue
        label = f"attention, {name}"
        try:
            with sdpa_kernel(getattr(SDPBackend, backend)):
                timing = bench.time(lambda: attend(query, key, value))
        except RuntimeError as error:  # one backend that fails leaves the others
            if "No available kernel" in str(error):
                bench.skip(f"attention.{name}", label, "this backend does not run here")
            else:
                bench.emit({"failed": f"attention.{name}", "why": str(error)})
                bench.synchronize()
            continue
        shape = f"(batch {batch}, heads {heads}, tokens {tokens}, width {width})"
        traffic = 4 * query.nbytes
        bench.report(
            f"attention.{name}", label, unit, flop / scale, timing, detail=shape,
            intensity=flop / traffic,
        )  # fmt: skip


def _choose_attention(bench: Bench) -> tuple[int, int, int, int]:
    if bench.is_cpu:
        return CPU_ATTENTION
    batch, heads, tokens, width = ATTENTION
    # The reference without a fused kernel keeps all scores, in float32 too.
    while tokens > 512 and not bench.fits(12.0 * batch * heads * tokens**2):
        tokens //= 2
    return batch, heads, tokens, width


# Memory


def measure_copies(bench: Bench) -> None:
    """GB/s within the device's memory: a copy (read and written bytes) and a sum (read bytes)."""
    torch = bench.torch
    size = next((mib for mib in MEMORY_MIB if bench.fits(2 * mib * MIB)), MEMORY_MIB[-1])
    size = min(size, 256) if bench.is_cpu else size
    source = torch.empty(size * MIB // 4, dtype=torch.float32, device=bench.device).normal_()
    target = torch.empty_like(source)
    count = source.nbytes
    timing = bench.time(lambda: target.copy_(source))
    bench.report(
        "copy.device", "copy within its memory", "GB/s", 2 * count / GIGA, timing,
        detail=f"{size} MiB, read and written", intensity=0.0,
    )  # fmt: skip
    timing = bench.time(source.sum)
    bench.report(
        "sum.float32", "sum of float32", "GB/s", count / GIGA, timing,
        detail=f"{size} MiB read", intensity=0.25,
    )  # fmt: skip


def measure_transfers(bench: Bench) -> None:
    """GB/s between the machine's memory and the GPU, pinned and pageable."""
    torch = bench.torch
    size = HOST_MIB // 4 if bench.plan.quick else HOST_MIB
    there = torch.empty(size * MIB, dtype=torch.uint8, device=bench.device).random_()
    for kind in ("pinned", "pageable"):
        here = torch.empty(size * MIB, dtype=torch.uint8, pin_memory=kind == "pinned")
        ways = {"to": (there, here), "from": (here, there)}
        for way, (target, source) in ways.items():
            copy = functools.partial(target.copy_, source, non_blocking=True)
            timing = bench.time_runs(copy, 4 if bench.plan.quick else 9)
            words = f"copy {way} the GPU, {kind}"
            bench.report(
                f"copy.{way}.{kind}", words, "GB/s", size * MIB / GIGA, timing, detail=f"{size} MiB"
            )


# Overheads


def measure_overheads(bench: Bench) -> None:
    """Microseconds for the launch of a kernel, and for memory from the allocator's cache."""
    torch = bench.torch
    number = torch.zeros(1, device=bench.device)
    calls = 200 if bench.plan.quick else 1000
    timing = bench.time_runs(lambda: number.add_(1), 7, calls)
    bench.report_seconds("launch", "launch of a kernel", timing, "us")

    def allocate_block() -> None:
        torch.empty(MIB, dtype=torch.uint8, device=bench.device)

    timing = bench.time_runs(allocate_block, 7, calls)
    bench.report_seconds("allocator.cached", "1 MiB from the allocator", timing, "us")


# torch.compile


def measure_compile(bench: Bench) -> None:
    """Seconds of the first compile and of one from the cache, and what a compiled model gains."""
    torch = bench.torch
    reason = find_compiler_gap(torch, str(bench.device))
    if reason:
        raise NotTried(reason)
    width = 512 if bench.is_cpu else 2048
    # In float32 a GPU's products, which are not compiled, would take nearly all the time.
    dtype = torch.float16 if bench.device.type == "cuda" else torch.float32
    model = torch.nn.Sequential(
        torch.nn.LayerNorm(width), torch.nn.Linear(width, width), torch.nn.GELU(),
        torch.nn.LayerNorm(width), torch.nn.Linear(width, width), torch.nn.GELU(),
    ).to(bench.device, dtype).eval()  # fmt: skip
    batch = bench.random(256 if bench.is_cpu else 8192, width, dtype=dtype)
    with torch.no_grad():
        for key, words in (("first", "first torch.compile"), ("warm", "compile from the cache")):
            torch._dynamo.reset()
            began = time.perf_counter()
            compiled = torch.compile(model)
            compiled(batch)
            bench.synchronize()
            timing = Timing.of([time.perf_counter() - began])
            bench.report_seconds(f"compile.{key}", words, timing)
        plain, faster = bench.time(lambda: model(batch)), bench.time(lambda: compiled(batch))
    detail = f"{plain.median * 1e3:.3g} ms to {faster.median * 1e3:.3g} ms"
    bench.report(
        "compile.gain", "gain of a compiled model", "x", plain.median, faster, detail=detail
    )


# The CPU


class Pictures:
    """A dataset of random pictures, (3, 224, 224), which are cropped, mirrored and normalized."""

    def __init__(self, count: int) -> None:
        self._count = count

    def __len__(self) -> int:
        return self._count

    def __getitem__(self, place: int) -> Any:
        import torch

        if place >= self._count:
            raise IndexError(place)
        made = torch.Generator().manual_seed(place)
        picture = torch.randint(0, 256, (3, 256, 256), generator=made, dtype=torch.uint8)
        cropped = picture[:, 16:240, 16:240].flip(2).float() / 255
        return (cropped - cropped.mean((1, 2), keepdim=True)) / cropped.std()


def measure_loader(bench: Bench) -> None:
    """Samples per second of a DataLoader, in this process and with workers."""
    from torch.utils.data import DataLoader

    from labkit.prove.measure import Pictures as Importable  # for workers that are not forked

    workers = min(4, os.cpu_count() or 1)
    for count in (0, workers):
        samples = 64 if bench.plan.quick else 256
        loader = DataLoader(Importable(samples), batch_size=16, num_workers=count)  # type: ignore[arg-type,var-annotated]
        batches = iter(loader)
        next(batches)  # with workers, the first one waits for their start
        began = time.perf_counter()
        for _ in batches:
            pass
        timing = Timing.of([time.perf_counter() - began])
        title = "DataLoader, " + (f"{count} workers" if count else "no workers")
        key = "loader.workers" if count else "loader.alone"
        bench.report(key, title, "samples/s", samples - 16, timing)


def measure_threads(bench: Bench) -> None:
    """How much faster all of OpenMP's threads are than one, at a matrix product."""
    torch = bench.torch
    threads = torch.get_num_threads()
    if threads < 2:
        raise NotTried("torch uses one thread here")
    product = make_product(bench, "float32", TRIED_SHAPE)
    together = bench.time(product)
    torch.set_num_threads(1)
    try:
        alone = bench.time(product)
    finally:
        torch.set_num_threads(threads)
    bench.report(
        "threads.gain", "gain of all threads over one", "x", alone.median, together,
        detail=f"{threads} threads",
    )  # fmt: skip


# Sustained load


def measure_sustained(bench: Bench) -> None:
    """Matrix products without a pause: the rate at the end, and its part of the rate before.

    Each interval's rate is emitted with the GPU's state during it.
    """
    dtype = "float32" if bench.is_cpu else "bfloat16"
    shape = list(_choose_shapes(bench, dtype))[:3][-1]
    product = make_product(bench, dtype, shape)
    scale = GIGA if bench.is_cpu else TERA
    once = bench.time(product).median
    count = max(1, int(HOLD_INTERVAL_SECONDS / once))
    bench.synchronize()
    rates, began = [], time.perf_counter()
    while time.perf_counter() - began < bench.plan.hold_seconds:
        mark = time.perf_counter()
        for _ in range(count):
            product()
        load = bench.meter.read_load() if bench.device.type == "cuda" else None  # while it works
        bench.synchronize()
        now = time.perf_counter()
        rates.append(count * _flop(shape) / (now - mark) / scale)
        state = load._asdict() if load else {}
        bench.emit({"load": {**state, "seconds": now - began, "rate": rates[-1]}})
    third = max(1, len(rates) // 3)
    first, last = statistics.median(rates[:third]), statistics.median(rates[-third:])
    unit = "GFLOP/s" if bench.is_cpu else "TFLOP/s"
    title = f"after {bench.plan.hold_seconds:g} s of load, {dtype}"
    detail = f"({shape[0]}, {shape[1]}) @ ({shape[1]}, {shape[2]}), the last third"
    spread = {"slow": min(rates[-third:]), "fast": max(rates[-third:])}
    figure = {"key": "sustained.rate", "title": title, "unit": unit, "value": last, **spread}
    bench.emit({"figure": {**figure, "detail": detail}})
    hold = {"key": "sustained.hold", "title": "held of the first third's rate", "unit": "%"}
    bench.emit({"figure": {**hold, "value": 100 * last / first}})


# Between GPUs


def measure_peers(bench: Bench) -> None:
    """GB/s of copies between every two GPUs of this process."""
    torch = bench.torch
    names = range(torch.cuda.device_count())
    size = 256 * MIB
    blocks = [torch.empty(size, dtype=torch.uint8, device=f"cuda:{n}").random_() for n in names]
    for source, target in itertools.permutations(names, 2):
        fresh = torch.empty(size, dtype=torch.uint8, device=f"cuda:{target}")

        def copy(source: int = source, target: int = target, fresh: Any = fresh) -> None:
            fresh.copy_(blocks[source], non_blocking=True)
            torch.cuda.synchronize(source)
            torch.cuda.synchronize(target)

        direct = torch.cuda.can_device_access_peer(source, target)
        words = "directly" if direct else "through the machine's memory"
        title = f"copy from cuda:{source} to cuda:{target}"
        timing = bench.time_runs(copy, 5)
        bench.report(f"peer.{source}-{target}", title, "GB/s", size / GIGA, timing, detail=words)


def measure_reduce(bench: Bench) -> None:
    """GB/s of an all-reduce, as a rank that torchrun started; the first rank emits it.

    The bus's rate, as nccl-tests counts it: 2 (n - 1) / n of the bytes for each rank.
    """
    from torch import distributed

    on_cpu, ranks = bench.is_cpu, int(os.environ["WORLD_SIZE"])
    distributed.init_process_group("gloo" if on_cpu else "nccl")
    try:
        count = 16 * MIB if on_cpu else 512 * MIB
        block = bench.random(count // 4)
        timing = bench.time_runs(lambda: distributed.all_reduce(block), 5)
    finally:
        distributed.destroy_process_group()
    work = 2 * (ranks - 1) / ranks * count / GIGA
    title = f"all-reduce over {ranks} {'processes' if on_cpu else 'GPUs'}"
    bench.report("reduce.all", title, "GB/s", work, timing, detail=f"{count // MIB} MiB")


# The balance


def measure_balance(bench: Bench) -> None:
    """The device's balance in this process, and the same GPU in nvidia-smi."""
    from labkit.devices.nvml import strip_kind
    from labkit.memory.balance.read import take_snapshot

    held = bench.random(16, MIB)
    bench.synchronize()
    named = {one.torch_name: one.uuid for one in read_torch_devices(bench.torch).devices}
    uuid = strip_kind(named.get(str(bench.device)))
    snapshot = take_snapshot()
    for balance in snapshot.balances:
        if balance.torch_name == str(bench.device):
            found = balance._asdict()
            found["this_process"] = balance.this_process._asdict()
            del found["processes"]
            bench.emit({"balance": found})
    if bench.device.type == "cuda" and not bench.torch.version.hip:
        bench.emit({"smi": ask_nvidia_smi(uuid)})
    del held


def ask_nvidia_smi(uuid: str) -> dict[str, object]:
    """nvidia-smi's MiB for the GPU: total, reserved, used, free; a reason if there is none."""
    fields = ("memory.total", "memory.reserved", "memory.used", "memory.free")
    words = ["nvidia-smi", f"--query-gpu=uuid,{','.join(fields)}", "--format=csv,noheader,nounits"]
    try:
        answer = subprocess.run(words, capture_output=True, text=True, timeout=20, check=False)
    except (OSError, subprocess.TimeoutExpired) as error:
        return {"trouble": f"nvidia-smi: {error}"}
    for line in answer.stdout.splitlines():
        cells = [cell.strip() for cell in line.split(",")]
        if len(cells) == 1 + len(fields) and cells[0].removeprefix("GPU-") == uuid:
            return dict(zip(fields, cells[1:], strict=True))
    said = (answer.stderr or answer.stdout).strip().splitlines()
    return {"trouble": said[-1] if said else "nvidia-smi does not list this GPU"}


STEPS: dict[str, Callable[[Bench], None]] = {
    "verify": verify_device,
    "verify-compile": verify_compile,
    "matmul": measure_matmul,
    "attention": measure_attention,
    "copies": measure_copies,
    "transfers": measure_transfers,
    "overheads": measure_overheads,
    "balance": measure_balance,
    "sustained": measure_sustained,
    "compile": measure_compile,
    "threads": measure_threads,
    "loader": measure_loader,
    "peers": measure_peers,
    "reduce": measure_reduce,
}
GPU_STEPS = (
    *("verify", "copies", "matmul", "attention", "transfers", "overheads", "balance"),
    *("sustained", "compile", "verify-compile"),
)
CPU_STEPS = (
    *("verify", "matmul", "attention", "copies", "threads", "loader", "balance"),
    *("sustained", "compile", "verify-compile"),
)


def run_steps(bench: Bench) -> None:
    """Runs the plan's steps; one that fails is reported, and ends the process if CUDA is broken."""
    for name in bench.plan.steps:
        if time.monotonic() - bench.started > bench.plan.limit_seconds:
            bench.emit({"left_out": name})
            continue
        bench.emit({"start": name})
        began = time.monotonic()
        try:
            STEPS[name](bench)
        except NotTried as reason:
            bench.emit({"not_tried": name, "why": str(reason)})
        except Exception as error:  # torch raises many types, and each is a result
            bench.emit({"failed": name, "why": f"{type(error).__name__}: {error}".strip()})
            # After an error inside a kernel every later call fails: the caller starts again.
            bench.synchronize()
        if bench.device.type == "cuda":
            bench.torch.cuda.empty_cache()
        bench.emit({"done": name, "seconds": time.monotonic() - began})


def describe_device(torch: Any, device: Any) -> dict[str, object]:
    """The device's hardware as torch reports it."""
    if device.type == "cpu":
        from labkit.host.cpu import detect_cpu

        cpu = detect_cpu()
        threads = torch.get_num_threads()
        return {"threads": threads, "cores": cpu.usable_cores, "memory_bytes": cpu.total_bytes}
    if device.type != "cuda" or torch.version.hip:
        return {}
    properties = torch.cuda.get_device_properties(device)
    return {
        "compute_capability": f"{properties.major}.{properties.minor}",
        "sm_count": properties.multi_processor_count,
        "l2_bytes": getattr(properties, "L2_cache_size", None),
        "memory_bytes": properties.total_memory,
    }


def measure_device(name: str, plan: MeasurePlan, emit: Emit) -> None:
    """Measures the device of this name; its state is read before torch is loaded."""
    on_gpu = name.startswith("cuda") and plan.uuid is not None
    with tempfile.TemporaryDirectory(prefix="labkit-prove-") as cache, GpuMeter(plan.uuid) as meter:
        # An empty cache: the first compile is a first one.
        os.environ["TORCHINDUCTOR_CACHE_DIR"] = cache
        before: dict[str, object] = {"busy": os.getloadavg()[0]} if name == "cpu" else {}
        if on_gpu:
            before = meter.read_hardware()._asdict()
            emit({"idle": meter.read_load()._asdict()})
        emit({"start": "import"})
        started, began = time.monotonic(), time.perf_counter()
        import torch

        emit({"step": "import", "seconds": time.perf_counter() - began})
        facts = read_torch_devices(torch)
        devices = [one._asdict() for one in facts.devices]
        emit({"facts": {**facts._asdict(), "build": facts.build._asdict(), "devices": devices}})
        place = os.environ.get("LOCAL_RANK", "0")  # of torchrun's processes on this machine
        device = torch.device(f"cuda:{place}" if name == "cuda" else name)
        if device.type == "cuda":
            torch.cuda.set_device(device)
        emit({"hardware": {**before, **describe_device(torch, device)}})
        run_steps(Bench(torch, device, plan, emit, meter, started))
    emit({"step": "end"})


def main(words: list[str]) -> None:
    """Measures the device ``words[0]`` by the plan ``words[1]``; reports on standard output."""
    # What libraries print goes to standard error, so that the output contains only events.
    output = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)

    def emit(event: Mapping[str, object]) -> None:
        if os.environ.get("RANK", "0") == "0":  # of torchrun's processes, the first one reports
            print(json.dumps(event), file=output, flush=True)

    described = json.loads(words[1])
    measure_device(words[0], MeasurePlan(**{**described, "steps": tuple(described["steps"])}), emit)


if __name__ == "__main__":
    main(sys.argv[1:])

"""``sample_memory()``: the thread, what it keeps, and what it survives."""

from __future__ import annotations

import os
import pickle
import statistics
import subprocess
import sys
import time

import pytest

import labkit
from labkit.devices.nvml import SENTENCES
from labkit.errors import LabkitError, UsageError
from labkit.memory.sample import sampler as sampler_module
from labkit.memory.sample.model import LISTENERS
from labkit.memory.sample.sampler import MemorySampler, sample_memory
from tests.fakes.nvml import GIB as SCRIPT_GIB
from tests.fakes.nvml import MIB as SCRIPT_MIB
from tests.fakes.nvml import ROOT, PlayedHost, build_driver, script_driver, script_gpu
from tests.fakes.sampling import (
    GIB,
    MIB,
    PlayedClock,
    PlayedEvent,
    PlayedReader,
    play_cpu,
    play_gpu,
    snap,
)


def play(*answers, clock=None, turns=0, interval=0.1, **options):
    """A sampler on played memory; its thread takes ``turns`` samples, as fast as it can."""
    clock = clock or PlayedClock()
    event = PlayedEvent(clock, turns)
    sampler = MemorySampler(
        interval,
        reader=PlayedReader(*answers),
        clock=clock,
        wall_clock=lambda: 0.0,
        make_event=lambda: event,
        **options,
    )
    return sampler, clock, event


def highs(sampler, device, measure):
    points = sampler.samples.find_device(device).points[measure]
    return [point.high for point in points]


def test_every_measure_of_every_device_is_followed():
    sampler, clock, _ = play(snap(play_gpu(), play_cpu()))
    sampler.take_sample()
    clock.now += 1
    sampler.take_sample()
    gpu, cpu = sampler.samples.devices
    assert (gpu.name, gpu.kind, gpu.total_bytes) == ("cuda:0", "gpu", 24 * GIB)
    assert {measure: points[-1].high for measure, points in gpu.points.items()} == {
        "allocated": GIB,
        "reserved": 2 * GIB,
        "used": 4 * GIB,
    }
    assert {measure: points[-1].high for measure, points in cpu.points.items()} == {
        "process": 100 * MIB,
        "available": 8 * GIB,
    }
    assert [point.begin for point in cpu.points["process"]] == [0.0, 1.0]
    assert gpu.find_peak("used").high == 4 * GIB


def test_the_thread_samples_at_the_interval_from_start_to_stop():
    answers = [snap(play_cpu(resident=count)) for count in (1, 2, 3, 4, 9)]
    sampler, _, event = play(*answers, turns=3)
    assert not sampler.running
    with sampler as entered:
        assert entered is sampler
        assert sampler.running
        sampler._thread.join()
    assert not sampler.running
    assert highs(sampler, "cpu", "process") == [1, 2, 3, 4, 9]
    assert event.waits == [pytest.approx(0.1)] * 4
    assert sampler._reader.closed == 1
    assert LISTENERS == []


def test_the_time_that_a_sample_takes_is_no_part_of_the_pause():
    sampler, clock, event = play(snap(), turns=2)
    read = sampler._reader.read

    def read_slowly():
        clock.now += 0.04
        return read()

    sampler._reader.read = read_slowly
    with sampler:
        sampler._thread.join()
    assert event.waits[1:] == [pytest.approx(0.06)] * 2


def test_starting_twice_is_refused_and_a_restart_continues_after_a_gap():
    sampler, clock, _ = play(snap())
    sampler.start()
    with pytest.raises(LabkitError, match="already running"):
        sampler.start()
    sampler.stop()
    sampler.stop()
    clock.now += 60
    sampler.start().stop()
    points = sampler.samples.find_device("cpu").points["process"]
    assert points[-1].begin - points[0].end > sampler.samples.gap_seconds


def test_an_exception_in_a_sample_is_a_gap_and_following_goes_on():
    sampler, clock, _ = play(snap(), ValueError("no sense"), snap())
    for _ in range(3):
        sampler.take_sample()
        clock.now += 1
    assert highs(sampler, "cpu", "process") == [100 * MIB, None, 100 * MIB]
    assert sampler.samples.trouble == "ValueError: no sense"


def test_a_gpu_gets_torchs_name_once_torch_has_started_it():
    before = play_gpu(torch_name=None)
    sampler, clock, _ = play(snap(before, play_cpu()), snap(play_gpu(), play_cpu()))
    sampler.take_sample()
    assert sampler.samples.devices[0].name == "gpu 0"
    clock.now += 1
    sampler.take_sample()
    assert [device.name for device in sampler.samples.devices] == ["cuda:0", "cpu"]
    assert highs(sampler, "cuda:0", "used") == [4 * GIB] * 2


@pytest.mark.slow
def test_ten_hours_stay_small_and_keep_the_spike():
    gpus = [play_gpu(index=index) for index in range(2)]
    usual, spike = snap(*gpus, play_cpu()), snap(gpus[0], play_gpu(used=20 * GIB, index=1))
    sampler, clock, _ = play(usual)
    sizes = []
    for number in range(36_000):
        sampler._reader.answers = [spike if number == 12_345 else usual]
        sampler.take_sample()
        with sampler.mark(f"step {number}"):
            clock.now += 1.0
        if number % 900 == 0:
            sizes.append(len(pickle.dumps(sampler.samples)))
    samples = sampler.samples
    assert samples.seconds == pytest.approx(36_000, abs=1)
    assert max(len(points) for one in samples.devices for points in one.points.values()) <= 600
    assert len(samples.spans) <= 500
    assert max(sizes) < 350_000
    assert max(sizes[20:]) < 1.3 * max(sizes[:20])
    peak = samples.find_device("cuda:1").find_peak("used")
    assert peak.high == 20 * GIB
    assert peak.begin <= 12_345 <= peak.end


def test_marks_are_on_the_samplers_time():
    sampler, clock, _ = play(snap())
    with sampler:
        clock.now += 2
        sampler.mark("here")
        with sampler.mark("forward"):
            clock.now += 3
        with labkit.track_memory("cpu"):
            clock.now += 1
    begin = sampler.spans[0].begin
    assert [(one.kind, one.name, one.begin - begin, one.end - begin) for one in sampler.spans] == [
        ("mark", "here", 0.0, 0.0),
        ("mark", "forward", 0.0, 3.0),
        ("block", "block 1", 3.0, 4.0),
    ]
    with labkit.track_memory("cpu"):
        pass
    assert len(sampler.spans) == 3  # it has stopped


def test_the_latest_started_is_found():
    first, second = play(snap())[0], play(snap())[0]
    with first, second:
        assert sampler_module._LATEST is second
    assert sampler_module._LATEST is second


@pytest.mark.parametrize("interval", [0.0, -1.0, 0.001, float("nan"), float("inf"), None, "1"])
def test_an_interval_that_is_none_is_refused(interval):
    with pytest.raises(UsageError, match=r"invalid interval="):
        sample_memory(interval)


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs os.fork")
@pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")
def test_a_forked_child_is_not_followed_and_can_begin_anew():
    read_end, write_end = os.pipe()
    with sample_memory() as sampler:
        held = sampler._lock
        held.acquire()  # as the thread does at some moment
        child = os.fork()
        if child == 0:
            told = [sampler.running, LISTENERS == [], len(sampler.samples.devices)]
            sampler.stop()
            with sample_memory() as own:
                told.append(own.running)
            sampler.start().stop()
            os.write(write_end, repr(told).encode())
            os._exit(0)
        held.release()
        assert os.waitpid(child, 0)[1] == 0
        assert sampler.running
    assert os.read(read_end, 1000) == b"[False, True, 1, True]"
    os.close(read_end)
    os.close(write_end)


LIGHT = """
import sys, labkit
with labkit.sample_memory() as sampler:
    sampler.mark("here")
print(repr(sampler).splitlines()[0].partition(",")[2])
heavy = {"torch", "numpy", "matplotlib", "IPython"}
print(sorted(heavy & {name.partition(".")[0] for name in sys.modules}))
labkit.sample_memory().start()  # and is left running as the interpreter ends
"""


def test_sampling_imports_nothing_heavy_and_ends_with_the_interpreter():
    done = subprocess.run(
        [sys.executable, "-c", LIGHT], capture_output=True, text=True, check=True, timeout=60
    )
    assert (done.stdout, done.stderr) == (" a sample every 100 ms\n[]\n", "")


@pytest.fixture(scope="module")
def played(tmp_path_factory):
    folder = tmp_path_factory.mktemp("driver")
    return PlayedHost(folder, build_driver(folder / "driver"))


ON_DRIVER = """
from labkit.memory.sample.sampler import MemorySampler
from labkit.memory.sample.levels import LevelReader
clock = iter(range(1000)).__next__
sampler = MemorySampler(1.0, reader=LevelReader(processes=True, clock=lambda: 0.0), clock=clock)
for _ in range(6):
    sampler.take_sample()
for device in sampler.samples.devices[:-1]:
    print(device.name, device.total_bytes, [point.high for point in device.points["used"]])
print(sampler.trouble)
"""
USED = 24 * SCRIPT_GIB - 20 * SCRIPT_GIB - 512 * SCRIPT_MIB


LOST = SENTENCES["gpu lost"]


@pytest.mark.parametrize(
    ("lines", "seen", "trouble"),
    [
        pytest.param([], [USED] * 6, "None", id="healthy"),
        pytest.param(["fail memory_v2 15 3"], [USED] * 3 + [None] * 3, f"gpu 0: {LOST}", id="lost"),
        pytest.param(
            ["fail handle 15 3"], [USED] * 3 + [None] * 3, f"gpu 0: {LOST}", id="lost, unnamed"
        ),
        pytest.param(["fail memory_v2 3", "fail memory 3"], [None] * 6, "None", id="never told"),
    ],
)
def test_a_played_driver_is_followed_through_the_real_binding(played, lines, seen, trouble):
    script = script_driver(script_gpu(0, *lines), script_gpu(1))
    done = played.run_python(script, "-c", ON_DRIVER)
    assert done.stderr == ""
    total = None if seen[0] is None else 24 * SCRIPT_GIB
    assert done.stdout.splitlines() == [
        f"gpu 0 {total} {seen}",
        f"gpu 1 {24 * SCRIPT_GIB} {[USED] * 6}",
        trouble,
    ]


def test_a_driver_that_fails_later_is_a_gap_for_all(played):
    script = script_driver("fail count 999 3", script_gpu(0))
    done = played.run_python(script, "-c", ON_DRIVER)
    assert done.stdout.splitlines() == [
        f"gpu 0 {24 * SCRIPT_GIB} {[USED] * 3 + [None] * 3}",
        "NVML failed: Unknown Error (code 999)",
    ]


def test_it_costs_less_than_one_hundredth_of_a_core():
    assert measure_cost() < 0.1 * 0.01


def measure_cost():
    """The median processor time of a sample, in seconds; ten are taken a second."""
    sampler = sample_memory()
    sampler.take_sample()
    costs = []
    for _ in range(60):
        began = time.thread_time()
        sampler.take_sample()
        costs.append(time.thread_time() - began)
    return statistics.median(costs)


@pytest.mark.gpu
def test_a_real_gpu_is_followed_without_changing_it():
    code = (
        "import labkit, sys, torch\n"
        "with labkit.sample_memory(0.02) as sampler:\n"
        "    assert not torch.cuda.is_initialized()\n"
        "    held = torch.empty(2**28, dtype=torch.uint8, device='cuda')\n"
        "    sampler.take_sample()\n"
        "    assert torch.cuda.memory_allocated() == 2**28\n"
        "device = sampler.samples.find_device('cuda:0')\n"
        "peaks = [device.find_peak(name).high for name in ('allocated', 'reserved', 'used')]\n"
        "assert peaks[0] == 2**28 <= peaks[1] <= peaks[2] <= device.total_bytes, peaks\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True, timeout=120, cwd=ROOT)


@pytest.mark.gpu
def test_a_cuda_graph_is_captured_while_a_sampler_runs():
    import torch

    with sample_memory(0.01) as sampler:
        held = torch.ones(1000, device="cuda")
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            for _ in range(200):
                held = held * 1.0
                sampler.take_sample()
        graph.replay()
    assert float(held.sum()) == 1000.0


@pytest.mark.gpu
def test_a_real_sample_costs_less_than_one_hundredth_of_a_core():
    import torch

    held = torch.ones(1000, device="cuda")
    # Each GPU is asked for its memory: a host with eight of them may take longer.
    assert measure_cost() < 0.1 * 0.01 * max(1, torch.cuda.device_count() / 2)
    assert held.is_cuda

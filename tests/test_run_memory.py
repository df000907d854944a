"""What the meter measures: the process from outside, torch's allocator by one silent question."""

from __future__ import annotations

import itertools
import json
import subprocess
import sys

import pytest

from labkit.notebooks.cuda_probe import CudaProbe, DeviceState, read_answer
from labkit.notebooks.execute import HIGH_WATER_MARK, INTERVAL_SECONDS, MemoryTimeline, Meter
from labkit.notebooks.result import CellMemory, CudaMemory, MeasuringAccount
from tests.notebooks import make_notebook, run_cells

MIB = 2**20


def test_a_spike_that_is_over_at_once_is_seen_in_its_cell_and_no_other(tmp_path):
    spike = f"held = bytearray({200 * MIB}); del held"
    account = MeasuringAccount()
    cells = ["1", spike, f"kept = bytearray({50 * MIB})", "2"]
    result, _ = run_cells(tmp_path, *cells, account=account)
    quiet, spiked, grown, last = [cell.memory for cell in result.cells]
    assert account.describe().how.process == HIGH_WATER_MARK
    assert quiet.peak_bytes - quiet.before_bytes < 20 * MIB
    assert 199 * MIB <= spiked.peak_bytes - spiked.before_bytes < 230 * MIB
    assert spiked.after_bytes - spiked.before_bytes < 20 * MIB
    assert 49 * MIB <= grown.after_bytes - grown.before_bytes < 70 * MIB
    assert last.peak_bytes - last.before_bytes < 20 * MIB


def test_measuring_counts_its_own_time(tmp_path):
    account = MeasuringAccount()
    result, _ = run_cells(tmp_path, "1", "import time; time.sleep(0.5)", account=account)
    measuring = account.describe()
    assert measuring.seconds_per_cell > 0
    assert measuring.samples >= 2
    assert measuring.sampling_seconds > 0
    assert len(result.timeline) >= 2
    seconds = [point[0] for point in result.timeline]
    assert seconds == sorted(seconds)
    assert all(point[1] > MIB and point[2] is None for point in result.timeline)


@pytest.fixture
def sleeper():
    process = subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE)
    yield process
    process.kill()
    process.communicate()


def test_without_a_high_water_mark_the_highest_sample_counts_and_it_says_so(monkeypatch, sleeper):
    monkeypatch.setattr("labkit.notebooks.execute.reset_peak", lambda process_id: False)
    monkeypatch.setattr("labkit.notebooks.execute.read_resident_bytes", Readings(10, 30, 20))
    account = MeasuringAccount()
    meter = Meter(account)
    meter._process_id = sleeper.pid  # sampled by hand, not by the clock
    meter.begin_cell()
    meter.sample()
    assert meter.end_cell() == CellMemory(10, 30, 20)
    assert account.describe().how.process == f"sampled every {INTERVAL_SECONDS * 1000:.0f} ms"


def test_a_mark_that_the_cell_reset_itself_hides_no_sample(monkeypatch, sleeper):
    monkeypatch.setattr("labkit.notebooks.execute.read_peak_bytes", lambda process_id: 15)
    monkeypatch.setattr("labkit.notebooks.execute.read_resident_bytes", Readings(10, 30, 12))
    account = MeasuringAccount()
    meter = Meter(account)
    meter._process_id = sleeper.pid
    meter.begin_cell()
    meter.sample()
    assert meter.end_cell() == CellMemory(10, 30, 12)
    assert account.describe().how.process == HIGH_WATER_MARK


class Readings:
    """Gives one figure after the other."""

    def __init__(self, *figures):
        self._figures = iter(figures)

    def __call__(self, process_id):
        return next(self._figures)


def test_a_kernel_without_a_known_process_is_not_measured():
    account = MeasuringAccount()
    meter = Meter(account)
    meter.attach(None)
    meter.begin_cell()
    assert meter.end_cell() is None
    assert account.describe().how.process is None
    meter.detach()


@pytest.mark.parametrize("count", [10, 600, 601, 5000, 200_000])
def test_a_timeline_keeps_a_bounded_even_number_of_points(count):
    timeline = MemoryTimeline()
    for number in range(count):
        timeline.add((number * 0.1, 999 if number == 7 else number % 5, None))
    points = timeline.points
    assert min(count, 300) <= len(points) <= 600
    assert max(point[1] for point in points) == 999
    gaps = [later[0] - sooner[0] for sooner, later in itertools.pairwise(points)]
    assert max(gaps) <= 2.5 * (count * 0.1 / len(points)) + 0.1


def test_joined_points_keep_what_the_allocator_told():
    timeline = MemoryTimeline(limit=1, width_seconds=1)
    for point in [(0.0, 5, 70), (1.0, 9, None), (2.0, None, 60)]:
        timeline.add(point)
    assert timeline.points == ((1.0, 9, 70),)


# A torch that counts what it is told to allocate, and fails the cell that wakes a sleeping one.
FAKE_TORCH = """
import sys, types

class Cuda:
    def __init__(self):
        self.now = self.peak = 0
        self.started = False
        self.resets = 0
    def is_initialized(self):
        return self.started
    def device_count(self):
        assert self.started, "it was woken"
        return 1
    def allocate(self, count):
        self.started = True
        self.now += count
        self.peak = max(self.peak, self.now)
    def memory_allocated(self, index):
        return self.now
    def {}(self, index=0):
        return self.peak
    def memory_reserved(self, index):
        return self.now + 1000
    def {}(self, index):
        self.resets += 1
        self.peak = self.now

torch = types.ModuleType("torch")
torch.cuda = Cuda()
"""
PUT = "sys.modules['torch'] = torch"
# The names are put in at run time: a notebook whose text has them reads the peaks itself.
NAMES = 'FAKE.format("max_" + "memory_allocated", "reset_" + "peak_mem" + "ory_stats")'


def fake_torch():
    body = FAKE_TORCH.replace("\n", "\\n").replace('"', '\\"')
    return f'FAKE = "{body}"\nexec({NAMES}); import sys'


def test_the_allocators_peak_is_told_for_each_cell_once_cuda_is_in_use(tmp_path):
    account = MeasuringAccount()
    result, notebook = run_cells(
        tmp_path,
        fake_torch(),
        PUT,
        "torch.cuda.allocate(500); torch.cuda.allocate(-400)",
        "torch.cuda.allocate(30)",
        "1 / 0",
        asks_cuda=True,
        account=account,
    )
    told = [cell.cuda for cell in result.cells]
    assert told == [
        None,
        None,
        (CudaMemory("cuda:0", 0, 500, 100),),
        (CudaMemory("cuda:0", 100, 130, 130),),
        (CudaMemory("cuda:0", 130, 130, 130),),
    ]
    assert account.describe().how.cuda == "the allocator's own peak"
    assert 1130 in [point[2] for point in result.timeline]
    assert notebook.cells[3].execution_count == 4


def test_the_question_leaves_no_name_and_imports_nothing(tmp_path):
    result, notebook = run_cells(
        tmp_path,
        "before = set(dir())",
        "import sys\nprint(sorted(set(dir()) - before), 'torch' in sys.modules, len(In))",
        asks_cuda=True,
    )
    assert result.status == "passed"
    assert notebook.cells[1].outputs[0].text == "['_i2', 'before', 'sys'] False 3\n"


def test_a_notebook_that_reads_peaks_itself_finds_them_untouched(tmp_path):
    result, notebook = run_cells(
        tmp_path,
        fake_torch(),
        PUT,
        "torch.cuda.allocate(500); torch.cuda.allocate(-400)",
        "torch.cuda.allocate(30)",
        "print(torch.cuda.max_memory_allocated(), torch.cuda.resets)",
        asks_cuda=True,
    )
    assert result.status == "passed"
    assert notebook.cells[4].outputs[0].text == "500 0\n"
    # Below an earlier cell's peak a cell's own is not known; above it, it is.
    assert [cell.cuda[0].peak_bytes for cell in result.cells[2:]] == [500, None, None]


@pytest.mark.parametrize(
    ("text", "states"),
    [
        ("[(0, 1, 2, 3), (1, 4, 5, 6)]", (DeviceState(0, 1, 2, 3), DeviceState(1, 4, 5, 6))),
        ("None", ()),
        ("[(0, 1)]", ()),
        ("[0.1, ...", ()),
    ],
    ids=["two devices", "CUDA not in use", "another shape", "no literal"],
)
def test_an_answer_is_read_or_let_be(text, states):
    assert read_answer({"user_expressions": {"labkit": {"data": {"text/plain": text}}}}) == states
    assert read_answer({"status": "error"}) == ()


def test_a_device_that_was_never_used_is_not_told():
    probe = CudaProbe(make_notebook("1"))
    assert probe.describe_cell((DeviceState(0, 0, 0, 0), DeviceState(1, 5, 7, 9))) == (
        CudaMemory("cuda:1", 0, 7, 5),
    )
    assert json.dumps(probe.describe_cell(())) == "[]"

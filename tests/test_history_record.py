"""``record_allocations()`` on the CPU, on a fake CUDA, and where there is one on the real one."""

from __future__ import annotations

import gc
import linecache
import os
import pickle
import types

import pytest
import torch

from labkit.errors import DeviceMissingError, LabkitError, UsageError
from labkit.memory.allocations.analysis import analyse
from labkit.memory.allocations.record import (
    MAX_ENTRIES,
    AllocationRecorder,
    CudaRecorder,
    _forget_open,
    record_allocations,
)
from labkit.memory.allocations.snapshot import load_snapshot, read_recording
from labkit.memory.balance.read import read_machine_memory
from labkit.memory.track.storages import StorageTracer
from tests.fakes.allocator import MIB, make_training, take_snapshot


def make_model():
    torch.manual_seed(0)
    layers = [torch.nn.Linear(64, 128), torch.nn.ReLU(), torch.nn.Linear(128, 10)]
    return torch.nn.Sequential(*layers)


def train(model, steps=2):
    optimizer = torch.optim.Adam(model.parameters())
    for _ in range(steps):
        loss = model(torch.randn(32, 64)).square().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()


def names_of(groups):
    return {(group.place.frame.function, group.held_bytes) for group in groups if group.place.frame}


def test_a_block_on_the_cpu_is_recorded_with_its_lines():
    with record_allocations("cpu") as recorded:
        kept = torch.zeros(1000)
        torch.ones(2 * MIB).sum()
    (device,) = recorded.history.devices
    assert device.device == "cpu"
    # The vector, and the sum for as long as both are there.
    assert device.peak.live_bytes == 4000 + 8 * MIB + 4
    assert [group.held_bytes for group in device.kept] == [kept.nbytes]
    frame = device.kept[0].place.frame
    assert frame.file == __file__
    assert recorded.history.sources[frame.file, frame.line] == "kept = torch.zeros(1000)"
    assert (device.truncated, device.max_entries) == (False, MAX_ENTRIES)
    assert repr(recorded) == repr(recorded.history)


def test_the_peak_is_the_tracers_own():
    model = make_model()
    with StorageTracer() as tracer:
        train(model)
    gc.collect()
    again = make_model()
    with record_allocations("cpu") as recorded:
        train(again)
    (device,) = recorded.history.devices
    assert device.peak.live_bytes == tracer.levels["cpu"].peak_bytes
    # The parameters were there before, and are found when they are used.
    parameters = sum(one.nbytes for one in again.parameters())
    assert device.before_bytes == parameters
    backward = {name for name, _ in names_of(device.kept)}
    assert "train (backward)" in backward


def test_only_the_last_events_are_kept_and_the_rest_is_counted():
    with record_allocations("cpu", max_entries=3) as recorded:
        kept = torch.zeros(1000)
        for _ in range(5):
            torch.ones(10)
    (device,) = recorded.history.devices
    assert (device.events, device.truncated) == (3, True)
    assert device.before_bytes == 4040
    this = "test_only_the_last_events_are_kept_and_the_rest_is_counted"
    assert names_of(device.peak.groups) == {(this, kept.nbytes), (this, 40)}
    assert "only the last 3 events are kept (max_entries=3)" in repr(recorded)


def test_an_error_passes_through_and_what_led_to_it_is_there():
    with (
        pytest.raises(RuntimeError, match="allocate memory"),
        record_allocations("cpu") as recorded,
    ):
        kept = torch.zeros(1000)
        torch.empty(2**60, dtype=torch.uint8)
    (device,) = recorded.history.devices
    (failure,) = device.failures
    assert failure.asked_bytes == 2**60
    assert failure.device_free_bytes == pytest.approx(read_machine_memory().free_bytes, rel=0.5)
    assert failure.moment.live_bytes == kept.nbytes
    assert failure.place.frame.file == __file__
    line = linecache.getline(__file__, failure.place.frame.line).strip()
    assert line == "torch.empty(2**60, dtype=torch.uint8)"
    assert "out of memory: 1024.0 PiB requested" in repr(recorded)


def test_another_error_is_no_shortage():
    with pytest.raises(ZeroDivisionError), record_allocations("cpu") as recorded:
        torch.zeros(8)
        _ = 1 / 0
    assert recorded.history.devices[0].failures == ()


def test_a_file_for_torchs_viewer_and_for_labkit(tmp_path):
    with record_allocations("cpu") as recorded:
        torch.zeros(1000)
    path = recorded.save(tmp_path / "run.pickle")
    snapshot = pickle.loads(path.read_bytes())
    assert set(snapshot) == {"segments", "device_traces", "labkit"}
    alloc, free = snapshot["device_traces"][0]
    assert (alloc["action"], alloc["size"], free["action"]) == ("alloc", 4000, "free_completed")
    assert {"filename", "line", "name"} == set(alloc["frames"][0])
    assert repr(analyse(read_recording(load_snapshot(path)))) == repr(recorded)
    page = recorded.save_page(str(tmp_path / "run.html")).read_text()
    assert "torch.zeros(1000)" in page


def test_a_cell_of_a_notebook_is_called_by_its_number(monkeypatch):
    def format_code_name(file):
        return ("Cell", "In[7]") if file == "<ipython-input-7-abc>" else None

    shell = types.SimpleNamespace(compile=types.SimpleNamespace(format_code_name=format_code_name))
    ipython = types.SimpleNamespace(get_ipython=lambda: shell)
    monkeypatch.setitem(__import__("sys").modules, "IPython", ipython)
    code = compile("kept = torch.zeros(1000)", "<ipython-input-7-abc>", "exec")
    names = {"torch": torch}
    with record_allocations("cpu") as recorded:
        exec(code, names)
    assert "4.0 KiB" not in repr(recorded)
    assert "3.9 KiB  1 block        In[7]:1" in repr(recorded)


def test_nested_recordings_are_refused_and_the_outer_one_goes_on():
    with record_allocations("cpu") as outer:
        with (
            pytest.raises(LabkitError, match="already being recorded") as caught,
            record_allocations("cpu"),
        ):
            pass
        torch.zeros(1000)
        assert repr(outer) == "allocations: being recorded"
    assert "around both blocks" in caught.value.fix
    assert outer.history.devices[0].peak.live_bytes == 4000
    with record_allocations("cpu"):
        pass


def test_one_recorder_serves_block_after_block():
    recorder = record_allocations("cpu")
    assert repr(recorder) == "allocations: nothing recorded"
    for size in (100, 50):
        with recorder:
            torch.zeros(size)
        assert recorder.history.devices[0].peak.live_bytes == size * 4


def test_nothing_is_told_before_the_end():
    recorder = record_allocations("cpu")
    with pytest.raises(LabkitError, match="nothing has been recorded"):
        recorder.save("never.pickle")


@pytest.mark.parametrize("entries", [0, 2.5, True], ids=str)
def test_a_recording_always_has_a_bound(entries):
    with pytest.raises(UsageError, match="max_entries="):
        record_allocations("cpu", max_entries=entries)


def test_devices_that_cannot_be_recorded(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(DeviceMissingError, match="no CUDA device"):
        record_allocations("cuda")
    with pytest.raises(UsageError, match="'cuda:1'"):
        record_allocations("cuda:1")


class FakeCuda:
    """Torch with its recorder, as far as labkit talks to it."""

    def __init__(self, *, recording=False, fails=()):
        self.recording, self.fails, self.calls = recording, fails, []
        memory = types.SimpleNamespace(
            _record_memory_history=self.record, _snapshot=self.take_snapshot
        )
        self.cuda = types.SimpleNamespace(is_initialized=lambda: True, memory=memory)
        self._C = types.SimpleNamespace(_cuda_isHistoryEnabled=lambda: self.recording)

    def record(self, enabled="all", **settings):
        self.calls.append((enabled, settings))
        if "record" in self.fails:
            raise RuntimeError(self.fails["record"])
        self.recording = enabled is not None

    def take_snapshot(self):
        assert self.recording, "the events are gone by now"
        if "snapshot" in self.fails:
            raise RuntimeError("CUDA error: an illegal memory access was encountered")
        return take_snapshot(make_training())


START = ("all", {"context": "alloc", "stacks": "python", "max_entries": 48})
STOP = (None, {})


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs os.fork")
def test_a_forked_child_records_its_own_tensors(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "_is_in_bad_fork", lambda: True)
    with pytest.raises(DeviceMissingError) as caught:
        record_allocations("cuda")
    assert "spawn" in caught.value.fix
    with record_allocations() as outer:
        with pytest.raises(LabkitError, match="already being recorded"):
            outer.__enter__()
        _forget_open()  # what a fork does in the child
        with record_allocations() as recorded:
            torch.zeros(10)
    assert recorded.history.devices[0].device == "cpu"


def test_torchs_recorder_is_bounded_and_turned_off_again():
    fake = FakeCuda()
    with AllocationRecorder(CudaRecorder(fake, 48)) as recorded:
        assert fake.calls == [START]
    assert fake.calls == [START, STOP]
    (device,) = recorded.history.devices
    assert (device.device, device.max_entries, device.truncated) == ("cuda:0", 48, True)
    assert device.failures[0].asked_bytes == 3 * MIB


def test_a_recorder_that_is_on_already_is_left_as_it_is():
    fake = FakeCuda(recording=True)
    with AllocationRecorder(CudaRecorder(fake, 48)) as recorded:
        pass
    assert (fake.calls, fake.recording) == ([], True)
    assert recorded.history.devices[0].truncated is None
    fake.recording = False
    with recorded:
        assert fake.calls == [START]
    assert recorded.history.devices[0].truncated is True


def test_after_running_out_of_memory_the_recording_is_there():
    fake = FakeCuda()
    with (
        pytest.raises(torch.OutOfMemoryError),
        AllocationRecorder(CudaRecorder(fake, 48)) as recorded,
    ):
        raise torch.OutOfMemoryError("CUDA out of memory.")
    assert fake.calls == [START, STOP]
    assert recorded.history.devices[0].failures


def test_an_error_of_cudas_that_stays_does_not_hide_the_first_one():
    fake = FakeCuda(fails={"snapshot"})
    with pytest.raises(ValueError), AllocationRecorder(CudaRecorder(fake, 48)) as recorded:
        raise ValueError("the user's")
    assert fake.calls == [START, STOP]
    with pytest.raises(LabkitError, match="the recording is lost") as caught:
        _ = recorded.history
    assert "illegal memory access" in caught.value.cause
    with AllocationRecorder(CudaRecorder(fake, 48)):
        pass  # a block that works without the recorder works with it


@pytest.mark.parametrize(
    ("text", "kind", "message"),
    [
        ("No CUDA GPUs are available", RuntimeError, "No CUDA"),
        ("cudaMallocAsync does not yet support recordHistory", LabkitError, "this allocator"),
    ],
)
def test_a_start_that_fails_leaves_nothing_open(text, kind, message):
    with (
        pytest.raises(kind, match=message),
        AllocationRecorder(CudaRecorder(FakeCuda(fails={"record": text}), 48)),
    ):
        pass
    with record_allocations("cpu"):
        pass


@pytest.mark.gpu
def test_the_replay_is_what_the_real_allocator_counted():
    gc.collect()  # another test's tensors must not be freed meanwhile
    torch.cuda.empty_cache()
    old = torch.empty(4 * MIB, dtype=torch.uint8, device="cuda")
    torch.cuda.reset_peak_memory_stats()
    with record_allocations() as recorded:
        kept = torch.empty(8 * MIB, dtype=torch.uint8, device="cuda")
        for _ in range(3):
            torch.empty(16 * MIB, dtype=torch.uint8, device="cuda")
        model = make_model().cuda()
        model(torch.randn(32, 64, device="cuda")).sum().backward()
    stats = torch.cuda.memory_stats()
    device = recorded.history.devices[0]
    assert device.peak.live_bytes == stats["requested_bytes.all.peak"]
    assert device.highest_reserved_bytes == torch.cuda.max_memory_reserved()
    assert device.end.reserved_bytes == torch.cuda.memory_reserved()
    assert device.end.fragmentation.live_bytes == torch.cuda.memory_allocated()
    assert device.before_bytes >= old.nbytes
    assert any(group.place.frame.file == __file__ for group in device.kept if group.place.frame)
    assert not torch._C._cuda_isHistoryEnabled()
    assert kept.nbytes == 8 * MIB


@pytest.mark.gpu
def test_a_real_shortage_is_an_event():
    total = torch.cuda.get_device_properties(0).total_memory
    with pytest.raises(torch.OutOfMemoryError), record_allocations() as recorded:
        torch.empty(total, dtype=torch.uint8, device="cuda")
    (failure,) = recorded.history.devices[0].failures
    assert failure.asked_bytes >= total
    assert failure.device_free_bytes is not None
    assert failure.place.frame.file == __file__
    assert not torch._C._cuda_isHistoryEnabled()


@pytest.mark.gpu
def test_a_full_recording_on_the_real_one():
    with record_allocations(max_entries=10) as recorded:
        for _ in range(50):
            torch.empty(MIB, dtype=torch.uint8, device="cuda")
    assert (recorded.history.devices[0].events, recorded.history.devices[0].truncated) == (10, True)

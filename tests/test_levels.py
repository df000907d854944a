"""Reading every device again and again: what is kept open, what is asked, what is left alone."""

from __future__ import annotations

import sys
import types

import pytest

from labkit.memory.balance.read import take_snapshot
from labkit.memory.sample.levels import RETRY_SECONDS, LevelReader, read_levels
from tests.fakes.sampling import GIB, PlayedClock, lose_gpu, play_cpu, play_gpu

MIB = 2**20


class NVMLError(Exception):
    """The binding's error: a code."""

    def __init__(self, value):
        super().__init__(f"code {value}")
        self.value = value


class PlayedBinding:
    """As much of pynvml as reading memory takes; ``fail`` names queries and their codes."""

    NVMLError = NVMLError

    def __init__(self, *uuids, **fail):
        self.uuids, self.fail, self.asked = uuids, fail, []

    def __getattr__(self, query):
        if not query.startswith("nvml"):
            raise AttributeError(query)

        def ask(*arguments):
            self.asked.append(query)
            if query in self.fail:
                raise NVMLError(self.fail[query])
            return self.answer(query, *arguments)

        return ask

    def answer(self, query, *arguments):
        if query == "nvmlDeviceGetMemoryInfo":
            return types.SimpleNamespace(total=24 * GIB, free=20 * GIB, reserved=0)
        answers = {
            "nvmlDeviceGetCount": len(self.uuids),
            "nvmlDeviceGetHandleByIndex": arguments[0] if arguments else None,
            "nvmlDeviceGetUUID": self.uuids[arguments[0]] if arguments else None,
            "nvmlDeviceGetName": "A GPU",
            "nvmlDeviceGetMigMode": (0, 0),
        }
        if "RunningProcesses" in query:
            return [types.SimpleNamespace(pid=1, usedGpuMemory=3 * GIB)]
        return answers.get(query)


class PlayedCuda:
    """torch.cuda, started: the allocator's counters, and nothing that calls into CUDA."""

    def __init__(self, *uuids, started=True):
        self.uuids, self.started, self.described = uuids, started, 0

    def is_initialized(self):
        return self.started

    def device_count(self):
        return len(self.uuids)

    def get_device_properties(self, index):
        self.described += 1
        return types.SimpleNamespace(uuid=self.uuids[index], name="A GPU", is_integrated=0)

    def memory_stats_as_nested_dict(self, index):
        if index:
            return {}
        return {
            "allocated_bytes": {"all": {"current": 5 * MIB}},
            "reserved_bytes": {"all": {"current": 20 * MIB}},
        }


@pytest.fixture
def torch(monkeypatch):
    played = types.SimpleNamespace(cuda=PlayedCuda("a", "b"))
    monkeypatch.setitem(sys.modules, "torch", played)
    return played


def test_the_driver_is_opened_once_and_closed_in_the_end():
    binding = PlayedBinding("GPU-a")
    reader = LevelReader(binding=binding, clock=PlayedClock())
    for _ in range(3):
        assert reader.read().balances[0].used_bytes == 4 * GIB
    assert binding.asked.count("nvmlInit") == 1
    reader.close()
    reader.close()
    assert binding.asked.count("nvmlShutdown") == 1
    assert reader.read().balances[0].used_bytes == 4 * GIB
    assert binding.asked.count("nvmlInit") == 2


def test_processes_are_listed_where_they_are_asked_for():
    plain, full = PlayedBinding("GPU-a"), PlayedBinding("GPU-a")
    assert LevelReader(binding=plain).read().balances[0].processes is None
    assert not any("Processes" in query for query in plain.asked)
    (process,) = LevelReader(binding=full, processes=True).read().balances[0].processes
    assert (process.pid, process.used_bytes) == (1, 3 * GIB)


def test_a_driver_that_fails_is_asked_anew_after_a_while():
    clock, binding = PlayedClock(), PlayedBinding("GPU-a", nvmlDeviceGetCount=999)
    reader = LevelReader(binding=binding, clock=clock)
    assert reader.read().notes == ("NVML failed: code 999 (code 999)",)
    binding.fail = {}
    assert reader.read().notes == ("NVML failed: code 999 (code 999)",)
    assert binding.asked.count("nvmlInit") == 1
    clock.now += RETRY_SECONDS
    assert reader.read().balances[0].used_bytes == 4 * GIB
    assert binding.asked.count("nvmlInit") == 2


def test_a_machine_without_a_driver_is_asked_once():
    clock, binding = PlayedClock(), PlayedBinding(nvmlInit=12)
    reader = LevelReader(binding=binding, clock=clock)
    for _ in range(3):
        assert "libnvidia-ml.so.1 was not found" in reader.read().notes[0]
        clock.now += 60
    assert binding.asked == ["nvmlInit"]


def test_a_forked_child_does_not_speak_on_its_parents_connection():
    binding = PlayedBinding("GPU-a")
    reader = LevelReader(binding=binding)
    reader.read()
    reader.forget()
    assert "nvmlShutdown" not in binding.asked
    reader.read()
    assert binding.asked.count("nvmlInit") == 2


def test_a_lost_gpu_keeps_the_name_it_had(torch):
    binding = PlayedBinding("GPU-a", "GPU-b")
    reader = LevelReader(binding=binding)
    reader.read()
    binding.fail = {"nvmlDeviceGetHandleByIndex": 15}
    first = reader.read().balances[0]
    assert (first.uuid, first.torch_name, first.used_bytes) == ("GPU-a", "cuda:0", None)
    assert read_levels(first).held_bytes == {"allocated": None, "reserved": None, "used": None}


def test_of_torch_only_the_counters_are_read(torch):
    reader = LevelReader(binding=PlayedBinding("GPU-a", "GPU-b"))
    for _ in range(3):
        first, second, _ = reader.read().balances
    assert read_levels(first).held_bytes == {
        "allocated": 5 * MIB,
        "reserved": 20 * MIB,
        "used": 4 * GIB,
    }
    assert read_levels(second).held_bytes["allocated"] == 0
    assert torch.cuda.described == 2  # once each


def test_a_torch_that_has_not_started_cuda_is_left_alone(torch):
    torch.cuda.started = False
    levels = read_levels(LevelReader(binding=PlayedBinding("GPU-a")).read().balances[0])
    assert (levels.name, levels.held_bytes["allocated"]) == ("gpu 0", 0)
    assert torch.cuda.described == 0


def test_a_device_keeps_its_key_where_only_torch_still_sees_it(torch):
    clock, binding = PlayedClock(), PlayedBinding("GPU-a", "GPU-b")
    reader = LevelReader(binding=binding, clock=clock)
    keys = [read_levels(balance).key for balance in reader.read().balances]
    binding.fail = {"nvmlDeviceGetCount": 999}
    levels = [read_levels(balance) for balance in reader.read().balances]
    assert [one.key for one in levels] == keys == ["a", "b", "cpu"]
    assert levels[0].held_bytes == {"allocated": 5 * MIB, "reserved": 20 * MIB, "used": None}


@pytest.mark.parametrize(
    ("balance", "held"),
    [
        pytest.param(play_cpu(1, 2), {"process": 1, "available": 2}, id="cpu"),
        pytest.param(play_gpu(1, 2, 9), {"allocated": 1, "reserved": 3, "used": 9}, id="gpu"),
        pytest.param(
            play_gpu(free_bytes=None),
            {"allocated": GIB, "reserved": 2 * GIB, "used": None},
            id="use unknown",
        ),
        pytest.param(lose_gpu(), {"allocated": None, "reserved": None, "used": None}, id="lost"),
    ],
)
def test_the_levels_of_a_balance(balance, held):
    assert read_levels(balance).held_bytes == held


def test_a_containers_room_counts_where_it_has_a_limit(tmp_path):
    proc, group = tmp_path / "proc", tmp_path / "sys/fs/cgroup"
    (proc / "self").mkdir(parents=True)
    group.mkdir(parents=True)
    (proc / "meminfo").write_text("MemTotal: 16777216 kB\nMemAvailable: 8388608 kB\n")
    (proc / "self/cgroup").write_text("0::/\n")
    (group / "memory.max").write_text(f"{2 * GIB}\n")
    (group / "memory.current").write_text(f"{GIB // 2}\n")
    reader = LevelReader(binding=PlayedBinding(nvmlInit=12), root=tmp_path)
    cpu = reader.read().balances[-1]
    assert (cpu.total_bytes, cpu.free_bytes) == (2 * GIB, 2 * GIB - GIB // 2)
    (group / "memory.current").write_text(f"{GIB}\n")
    assert reader.read().balances[-1].free_bytes == GIB
    (proc / "meminfo").unlink()
    (group / "memory.current").unlink()
    assert reader.read().balances[-1].free_bytes is None


def test_it_agrees_with_the_snapshot_on_this_machine():
    mine, theirs = LevelReader(processes=True).read().balances[-1], take_snapshot().balances[-1]
    assert (mine.name, mine.total_bytes) == (theirs.name, theirs.total_bytes)
    assert mine.free_bytes == pytest.approx(theirs.free_bytes, rel=0.2)
    assert mine.this_process.used_bytes == pytest.approx(theirs.this_process.used_bytes, rel=0.2)


@pytest.mark.gpu
def test_it_agrees_with_torch_and_the_snapshot_on_a_real_gpu():
    import torch as real

    held = real.ones(2**20, device="cuda")
    mine = read_levels(LevelReader(processes=True).read().balances[0])
    theirs = take_snapshot().balances[0]
    assert mine.held_bytes["allocated"] == real.cuda.memory_allocated() >= held.nbytes
    assert mine.held_bytes["reserved"] == real.cuda.memory_reserved()
    assert mine.held_bytes["used"] == pytest.approx(theirs.used_bytes, rel=0.05)

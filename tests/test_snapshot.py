"""How the driver's, torch's and the kernel's figures become one balance, and how it looks."""

from __future__ import annotations

import sys
from types import SimpleNamespace

import pytest

from labkit.devices.nvml import GpuMemory, GpuProcess, MemoryAnswer, Trouble
from labkit.host.cpu import read_room
from labkit.memory.balance import read
from labkit.memory.balance.model import Balance, Snapshot, ThisProcess, list_terms
from labkit.memory.balance.read import (
    AllocatorFacts,
    MachineMemory,
    Observer,
    count_cpu_tensors,
    join_memory,
    may_use_cuda,
    read_allocators,
    read_machine_memory,
    take_snapshot,
)

GIB, MIB = 2**30, 2**20
ME = 4321

MACHINE = MachineMemory(64 * GIB, 40 * GIB, 64 * GIB, None, "AMD EPYC 9654")
OUTSIDE = Observer(ME, host_ids=True, uses_cuda=True, resident_bytes=3 * GIB, tensor_bytes=GIB)
INSIDE = OUTSIDE._replace(host_ids=False)
GPU = GpuMemory(
    0,
    "GPU-0a1b",
    "NVIDIA H200",
    total_bytes=141 * GIB,
    free_bytes=100 * GIB,
    reserved_bytes=GIB,
    processes=(GpuProcess(ME, 30 * GIB), GpuProcess(99, 9 * GIB)),
)
HELD = AllocatorFacts("cuda:0", "0a1b", "NVIDIA H200", 20 * GIB, 29 * GIB)


def join(gpu=GPU, held: AllocatorFacts | None = HELD, observer=OUTSIDE, machine=MACHINE):
    """The balance of the one GPU that these facts make."""
    allocators = (held,) if held else ()
    return join_memory(MemoryAnswer((gpu,)), allocators, machine, observer).balances[0]


def add_up(balance):
    return sum(term.held_bytes or 0 for term in list_terms(balance))


def test_a_gpu_is_told_apart_in_full():
    balance = join()
    assert balance.this_process == ThisProcess(20 * GIB, 9 * GIB, GIB, 30 * GIB)
    assert balance.other_processes_bytes == 9 * GIB
    assert balance.unaccounted_bytes == GIB
    assert balance.torch_name == "cuda:0"
    assert add_up(balance) == balance.total_bytes


@pytest.mark.parametrize(
    ("changes", "own", "others", "unaccounted"),
    [
        pytest.param(
            {"observer": INSIDE},
            ThisProcess(20 * GIB, 9 * GIB, None, None),
            None,
            11 * GIB,
            id="in a container with two processes it is not known which is this",
        ),
        pytest.param(
            {"observer": INSIDE, "gpu": GPU._replace(processes=(GpuProcess(7, 30 * GIB),))},
            ThisProcess(20 * GIB, 9 * GIB, GIB, 30 * GIB),
            0,
            10 * GIB,
            id="in a container the only process is this one",
        ),
        pytest.param(
            {"observer": INSIDE, "gpu": GPU._replace(processes=(GpuProcess(7, 28 * GIB),))},
            ThisProcess(20 * GIB, 9 * GIB, None, None),
            None,
            11 * GIB,
            id="in a container a process smaller than the allocator is another",
        ),
        pytest.param(
            {"observer": INSIDE, "gpu": GPU._replace(processes=(GpuProcess(ME, None),))},
            ThisProcess(20 * GIB, 9 * GIB, None, None),
            None,
            11 * GIB,
            id="memory of the only process unknown",
        ),
        pytest.param(
            {"gpu": GPU._replace(processes=None)},
            ThisProcess(20 * GIB, 9 * GIB, None, None),
            None,
            11 * GIB,
            id="processes not told",
        ),
        pytest.param(
            {"gpu": GPU._replace(processes=(GpuProcess(99, 9 * GIB),))},
            ThisProcess(20 * GIB, 9 * GIB, None, None),
            None,
            11 * GIB,
            id="the driver leaves this process out",
        ),
        pytest.param(
            {"gpu": GPU._replace(processes=(GpuProcess(ME, 30 * GIB), GpuProcess(99, None)))},
            ThisProcess(20 * GIB, 9 * GIB, GIB, 30 * GIB),
            None,
            10 * GIB,
            id="memory of the other process unknown",
        ),
        pytest.param(
            {"held": None},
            ThisProcess(0, 0, 30 * GIB, 30 * GIB),
            9 * GIB,
            GIB,
            id="another library than torch holds it",
        ),
        pytest.param(
            {"held": None, "observer": INSIDE._replace(uses_cuda=None)},
            ThisProcess(0, 0, None, None),
            None,
            40 * GIB,
            id="in a container, and another library may hold some of it",
        ),
        pytest.param(
            {"held": None, "observer": INSIDE._replace(uses_cuda=False)},
            ThisProcess(0, 0, 0, 0),
            39 * GIB,
            GIB,
            id="this process has not loaded CUDA",
        ),
        pytest.param(
            {"held": None, "gpu": GPU._replace(processes=(GpuProcess(99, 9 * GIB),))},
            ThisProcess(0, 0, 0, 0),
            9 * GIB,
            31 * GIB,
            id="this process is on other GPUs",
        ),
    ],
)
def test_what_is_not_certain_is_unknown_and_still_adds_up(changes, own, others, unaccounted):
    balance = join(**changes)
    assert balance.this_process == own
    assert balance.other_processes_bytes == others
    assert balance.unaccounted_bytes == unaccounted
    assert add_up(balance) == 141 * GIB


def test_gpus_and_allocators_are_joined_by_uuid_and_not_by_number():
    first, second = GPU, GPU._replace(nvml_index=1, uuid="MIG-ffff")
    swapped = (HELD._replace(uuid="ffff"), HELD._replace(torch_name="cuda:1", allocated_bytes=1))
    balances = join_memory(MemoryAnswer((first, second)), swapped, MACHINE, INSIDE).balances
    assert [(one.torch_name, one.this_process.allocated_bytes) for one in balances[:2]] == [
        ("cuda:1", 1),
        ("cuda:0", 20 * GIB),
    ]


INSTANCE = GPU._replace(uuid="MIG-1111", parent_uuid="GPU-0a1b")


@pytest.mark.parametrize(
    ("gpus", "uuid", "names"),
    [
        pytest.param((INSTANCE,), "1111", ["cuda:0"], id="by its own UUID"),
        pytest.param((INSTANCE,), "0a1b", ["cuda:0"], id="by its GPU's, as the only instance"),
        pytest.param(
            (INSTANCE, INSTANCE._replace(uuid="MIG-2222")),
            "2222",
            [None, "cuda:0"],
            id="one of two, by its own",
        ),
        pytest.param(
            (INSTANCE, INSTANCE._replace(uuid="MIG-2222")),
            "0a1b",
            [None, None, "cuda:0"],
            id="one of two by their GPU's is neither for certain",
        ),
    ],
)
def test_a_mig_instance_is_matched_by_its_uuid_or_as_the_only_one_of_its_gpu(gpus, uuid, names):
    held = (HELD._replace(uuid=uuid),)
    balances = join_memory(MemoryAnswer(gpus), held, MACHINE, INSIDE).balances
    assert [one.torch_name for one in balances[:-1]] == names


@pytest.mark.parametrize("name", ["NVIDIA GB10", "NVIDIA Thor", "Orin (nvgpu)"])
def test_unified_memory_is_told_by_name_where_torch_has_not_started_cuda(name):
    refused = GpuMemory(0, "GPU-0a1b", name, processes=())
    shared = join(refused, None)
    assert (shared.shared, shared.total_bytes, shared.free_bytes) == (True, 64 * GIB, 40 * GIB)
    lost = join(refused._replace(trouble=Trouble("gpu lost", "lost")), None)
    assert (lost.shared, lost.total_bytes) == (False, None)


def test_a_gpu_that_only_torch_knows_has_torchs_figures():
    held = HELD._replace(uuid=None, total_bytes=48 * GIB, free_bytes=10 * GIB)
    answer = MemoryAnswer(trouble=Trouble("no library", "no driver here"))
    snapshot = join_memory(answer, (held,), MACHINE, OUTSIDE)
    gpu = snapshot.balances[0]
    assert gpu.this_process == ThisProcess(20 * GIB, 9 * GIB, None, None)
    assert (gpu.total_bytes, gpu.unaccounted_bytes, gpu.processes) == (48 * GIB, 9 * GIB, None)
    assert snapshot.notes == ("no driver here",)


def test_unified_memory_is_told_by_torch_and_not_by_the_refusal_alone():
    refused = GpuMemory(0, "GPU-0a1b", "NVIDIA Something", processes=())
    assert join(refused).total_bytes is None
    held = HELD._replace(unified=True, allocated_bytes=8 * GIB, reserved_bytes=10 * GIB)
    shared = join(refused, held)
    assert (shared.shared, shared.total_bytes, shared.free_bytes) == (True, 64 * GIB, 40 * GIB)
    assert shared.this_process == ThisProcess(8 * GIB, 2 * GIB, None, None)
    assert shared.other_processes_bytes == 14 * GIB
    assert add_up(shared) == 64 * GIB


def test_a_linked_gpu_with_memory_of_its_own_keeps_its_figures():
    balance = join(GPU, HELD._replace(unified=True))
    assert (balance.shared, balance.total_bytes) == (False, 141 * GIB)


def test_the_cpu_is_a_balance_of_this_process():
    cpu = join_memory(MemoryAnswer(), (), MACHINE, OUTSIDE).balances[-1]
    assert cpu == Balance(
        kind="cpu",
        torch_name="cpu",
        name="AMD EPYC 9654",
        total_bytes=64 * GIB,
        free_bytes=40 * GIB,
        this_process=ThisProcess(GIB, 0, 2 * GIB, 3 * GIB),
        other_processes_bytes=21 * GIB,
        shared=True,
        machine_bytes=64 * GIB,
    )
    assert cpu.unaccounted_bytes == 0


def test_tensors_never_written_to_are_more_than_is_resident():
    observer = OUTSIDE._replace(tensor_bytes=5 * GIB)
    cpu = join_memory(MemoryAnswer(), (), MACHINE, observer).balances[-1]
    assert cpu.this_process == ThisProcess(5 * GIB, 0, 0, 3 * GIB)
    assert cpu.unaccounted_bytes == -2 * GIB
    assert add_up(cpu) == 64 * GIB


def test_a_system_that_tells_nothing_gives_nothing_but_unknowns():
    blind = Observer(ME, host_ids=False, uses_cuda=None)
    cpu = join_memory(MemoryAnswer(), (), MachineMemory(), blind).balances[-1]
    assert (cpu.total_bytes, cpu.free_bytes, cpu.unaccounted_bytes) == (None, None, None)
    assert cpu.other_processes_bytes is None


MEMINFO = "MemTotal:  16777216 kB\nMemFree:  1 kB\nMemAvailable:  8388608 kB\n"


def plant(root, files):
    for name, text in files.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    return root


V2 = {
    "proc/self/cgroup": "0::/\n",
    "sys/fs/cgroup/memory.max": f"{4 * GIB}\n",
    "sys/fs/cgroup/memory.current": f"{3 * GIB}\n",
    "sys/fs/cgroup/memory.stat": f"anon 5\ninactive_file {GIB}\nactive_file 7\n",
}
V1 = {
    "proc/self/cgroup": "4:memory:/\n",
    "sys/fs/cgroup/memory/memory.limit_in_bytes": f"{4 * GIB}\n",
    "sys/fs/cgroup/memory/memory.usage_in_bytes": f"{3 * GIB}\n",
    "sys/fs/cgroup/memory/memory.stat": f"inactive_file 1\ntotal_inactive_file {GIB}\n",
}


@pytest.mark.parametrize(
    ("files", "expected"),
    [
        pytest.param({}, MachineMemory(16 * GIB, 8 * GIB, 16 * GIB), id="no limit"),
        pytest.param(V2, MachineMemory(4 * GIB, 2 * GIB, 16 * GIB, 4 * GIB), id="cgroup v2"),
        pytest.param(
            {**V2, "proc/meminfo": MEMINFO.replace("8388608", "1024")},
            MachineMemory(4 * GIB, MIB, 16 * GIB, 4 * GIB),
            id="the machine has less left than the limit",
        ),
        pytest.param(
            {**V2, "sys/fs/cgroup/memory.max": f"{32 * GIB}"},
            MachineMemory(16 * GIB, 8 * GIB, 16 * GIB),
            id="a limit above what the machine has",
        ),
        pytest.param(
            {**V2, "sys/fs/cgroup/memory.current": f"{6 * GIB}"},
            MachineMemory(4 * GIB, 0, 16 * GIB, 4 * GIB),
            id="over the limit",
        ),
    ],
)
def test_what_is_free_is_what_can_be_had_here(tmp_path, files, expected):
    root = plant(tmp_path, {"proc/meminfo": MEMINFO, **files})
    assert read_machine_memory(root) == expected


def test_version_1_counts_the_cache_of_the_folders_below_too(tmp_path):
    assert read_room(plant(tmp_path, V1)) == 2 * GIB


def test_a_machine_without_proc_is_unknown(tmp_path):
    assert read_machine_memory(tmp_path) == MachineMemory()


class FakeCuda:
    """torch.cuda with recorded figures; None is a custom allocator."""

    def __init__(self, *reserved, started=True):
        self.started, self.reserved = started, reserved

    def is_initialized(self):
        return self.started

    def device_count(self):
        return len(self.reserved)

    def get_device_properties(self, index):
        assert self.started, "asking for properties would start CUDA"
        return SimpleNamespace(name="NVIDIA H200", uuid=f"uuid-{index}", is_integrated=0)

    def memory_stats_as_nested_dict(self, index):
        if self.reserved[index] is None:
            raise RuntimeError("CUDAPluggableAllocator does not yet support getDeviceStats")
        current = {"current": self.reserved[index]}
        return {"allocated_bytes": {"all": current}, "reserved_bytes": {"all": current}}

    def mem_get_info(self, device):
        if device == "cuda:0":
            return 100 * GIB, 141 * GIB
        raise RuntimeError("CUDA error: an illegal memory access was encountered")


def test_allocators_are_read_without_a_call_into_cuda():
    first, second, third = read_allocators(SimpleNamespace(cuda=FakeCuda(29 * GIB, 0, None)))
    assert first == AllocatorFacts("cuda:0", "uuid-0", "NVIDIA H200", 29 * GIB, 29 * GIB)
    assert (second.torch_name, second.reserved_bytes, second.total_bytes) == ("cuda:1", 0, None)
    assert (third.allocated_bytes, third.reserved_bytes) == (None, None)
    broken = FakeCuda(GIB)
    broken.get_device_properties = lambda index: broken.mem_get_info("an error that lasts")
    assert read_allocators(SimpleNamespace(cuda=broken)) == ()


def test_where_nvml_knows_no_gpu_torch_is_asked_for_the_total(monkeypatch):
    played = SimpleNamespace(cuda=FakeCuda(29 * GIB, 2 * GIB, 0))
    monkeypatch.setitem(sys.modules, "torch", played)
    monkeypatch.setattr(read, "read_gpu_memory", MemoryAnswer)
    monkeypatch.setattr(read, "count_cpu_tensors", lambda: 0)
    snapshot = take_snapshot()
    assert [one.total_bytes for one in snapshot.balances[:3]] == [141 * GIB, None, None]


def test_a_custom_allocator_is_unknown_and_the_rest_is_shown():
    held = HELD._replace(allocated_bytes=None, reserved_bytes=None)
    balance = join(held=held)
    assert balance.this_process == ThisProcess(used_bytes=30 * GIB)
    assert balance.other_processes_bytes == 9 * GIB
    assert "unknown" not in repr(Snapshot((balance,)))


class FakeDriver:
    """libcuda as far as labkit asks it: error 3 before cuInit, else its contexts."""

    def __init__(self, *active):
        self.active = active

    def cuDeviceGetCount(self, count):
        count._obj.value = len(self.active)
        return 0 if self.active else 3

    def cuDevicePrimaryCtxGetState(self, ordinal, flags, active):
        active._obj.value = self.active[ordinal]
        return 0


@pytest.mark.parametrize(
    ("active", "expected"),
    [((), False), ((0, 0), False), ((0, 1), None)],
    ids=["not started", "no context", "a context"],
)
def test_a_loaded_library_of_cuda_is_not_a_context(active, expected):
    assert may_use_cuda(lambda name, mode: FakeDriver(*active)) is expected


def test_without_cudas_library_there_is_no_context():
    assert may_use_cuda() is False


@pytest.mark.parametrize(
    "stand_in",
    [None, SimpleNamespace(), SimpleNamespace(cuda=FakeCuda(started=False))],
    ids=["not loaded", "being loaded", "CUDA not started"],
)
def test_before_cuda_is_started_torch_is_not_asked(monkeypatch, stand_in):
    monkeypatch.setitem(sys.modules, "torch", stand_in)
    assert read_allocators() == ()


def test_tensors_without_memory_are_not_asked_for_their_address():
    import torch
    from torch._subclasses.fake_tensor import FakeTensorMode

    before = count_cpu_tensors()
    with FakeTensorMode():  # asked for their address, they warn
        held = [torch.empty(3, device="meta"), torch.empty(3)]
    held.append(torch.empty(3, device="meta"))
    assert count_cpu_tensors() == before


def test_cpu_tensors_are_counted_by_storage():
    import torch

    before = count_cpu_tensors()
    base = torch.zeros(1000, dtype=torch.float64)
    views = [base[10:], base.view(10, 100), base.t()]
    elsewhere = [torch.empty(10**6, device="meta"), torch.eye(3).to_sparse()]
    assert len(views) + len(elsewhere) == 5
    assert before is not None
    after = count_cpu_tensors()
    assert after is not None
    # The sparse one's indices and values are tensors that only it holds.
    assert after - before == 8000


def test_tensors_are_unknown_while_torch_is_being_imported(monkeypatch):
    monkeypatch.setitem(sys.modules, "torch", SimpleNamespace())
    assert read.count_cpu_tensors() is None


def test_without_torch_there_are_no_tensors(monkeypatch):
    monkeypatch.delitem(sys.modules, "torch", raising=False)
    assert read.count_cpu_tensors() == 0


def test_this_machine_is_told():
    snapshot = take_snapshot()
    cpu = snapshot.balances[-1]
    assert cpu.kind == "cpu"
    assert cpu.this_process.used_bytes is None or cpu.this_process.used_bytes > MIB
    if cpu.total_bytes is not None and cpu.free_bytes is not None:
        assert add_up(cpu) == cpu.total_bytes

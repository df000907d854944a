"""The memory of this machine now: the balance of every GPU, and of this process on the CPU.

Reading changes nothing: the driver is asked through NVML, torch only where it has already started
CUDA, and the two are joined by UUID (NVML's numbers are not torch's: pytorch#86539).

What torch's allocators hold, asked only where torch is loaded and has started CUDA already.

Nothing here imports torch or makes a CUDA context: to report memory by taking several hundred
megabytes of it (pytorch#86493) would be to change what is read.
"""

from __future__ import annotations

import gc
import os
import sys
from collections.abc import Mapping
from typing import Any, NamedTuple

from labkit.devices.detect import strip_kind
from labkit.devices.nvml import (
    GpuMemory,
    GpuProcess,
    MemoryAnswer,
    is_named_unified,
    read_gpu_memory,
)
from labkit.memory.balance.model import Balance, DeviceProcess, ThisProcess
from labkit.memory.balance.process import (
    MachineMemory,
    has_loaded,
    read_command,
    read_machine_memory,
    read_resident_bytes,
    sees_host_ids,
)


class AllocatorFacts(NamedTuple):
    """One CUDA (or ROCm) device as torch sees it, in bytes.

    ``total_bytes`` and ``free_bytes`` are None where asking would make a context. ``unified``:
    the GPU has no memory of its own, and uses the machine's.
    """

    torch_name: str
    uuid: str | None
    name: str
    allocated_bytes: int
    reserved_bytes: int
    unified: bool = False
    total_bytes: int | None = None
    free_bytes: int | None = None


def find_started_torch() -> Any:
    """The torch module where this process has loaded it and CUDA has been started, else None."""
    torch = sys.modules.get("torch")
    cuda = getattr(torch, "cuda", None)
    is_initialized = getattr(cuda, "is_initialized", None)
    return torch if is_initialized is not None and is_initialized() else None


def read_allocators(torch: Any = None) -> tuple[AllocatorFacts, ...]:
    """Every device that torch can use, with what its allocator holds; () before CUDA is started."""
    torch = torch or find_started_torch()
    if torch is None:
        return ()
    return tuple(_read_allocator(torch, index) for index in range(torch.cuda.device_count()))


def _read_allocator(torch: Any, index: int) -> AllocatorFacts:
    properties = torch.cuda.get_device_properties(index)
    uuid = getattr(properties, "uuid", None)
    reserved = torch.cuda.memory_reserved(index)
    # mem_get_info makes a context where there is none. What the allocator holds proves one.
    free, total = torch.cuda.mem_get_info(index) if reserved else (None, None)
    return AllocatorFacts(
        torch_name=f"cuda:{index}",
        uuid=str(uuid) if uuid is not None else None,
        name=properties.name,
        allocated_bytes=torch.cuda.memory_allocated(index),
        reserved_bytes=reserved,
        unified=bool(getattr(properties, "is_integrated", 0)),
        total_bytes=total,
        free_bytes=free,
    )


def count_cpu_tensors() -> int | None:
    """Bytes of the CPU tensors that Python objects hold, each storage once; 0 without torch.

    What only torch's own graph holds (saved for backward) is not seen. None where torch is being
    imported just now. Takes about 0.1 us for each object that Python's collector tracks.
    """
    torch = sys.modules.get("torch")
    if torch is None:
        return 0
    tensor = getattr(torch, "Tensor", None)
    if tensor is None:
        return None
    # By type() and not isinstance(): that would wake lazy proxies, which import things.
    tensors = [held for held in gc.get_objects() if issubclass(type(held), tensor)]
    # Subclasses can put code of their own behind every attribute; a lazy module's parameter raises.
    with torch._C.DisableTorchFunctionSubclass():
        return sum(dict(filter(None, map(_measure_storage, tensors))).values())


def _measure_storage(tensor: Any) -> tuple[int, int] | None:
    """The address and the bytes of a CPU tensor's storage; None for one that has none."""
    try:
        if tensor.device.type != "cpu":
            return None
        storage = tensor.untyped_storage()
        if storage.device.type != "cpu":
            return None  # a fake tensor, which has no memory
        return storage.data_ptr(), storage.nbytes()
    except (RuntimeError, NotImplementedError):
        return None  # sparse and functional tensors have no storage to speak of


class Observer(NamedTuple):
    """What this process knows of itself: its id, whether ids here are the host's, and memory.

    ``resident_bytes`` and ``tensor_bytes`` are on the CPU; ``uses_cuda`` is None where it is not
    known whether some library of this process has started CUDA.
    """

    process_id: int
    host_ids: bool
    uses_cuda: bool | None
    resident_bytes: int | None = None
    tensor_bytes: int | None = None


class Snapshot(NamedTuple):
    """The balance of each device, GPUs first, and remarks; it shows itself as text and html."""

    balances: tuple[Balance, ...]
    notes: tuple[str, ...] = ()

    def __repr__(self) -> str:
        from labkit.memory.balance.view import format_snapshot

        return format_snapshot(self)

    def __str__(self) -> str:
        return repr(self)

    def _repr_html_(self) -> str:
        from labkit.memory.balance.view import draw_snapshot

        return draw_snapshot(self)


def take_snapshot() -> Snapshot:
    """Where every byte of this machine's devices is, as far as it can be told."""
    allocators = read_allocators()
    observer = observe_process(bool(allocators))
    return join_memory(read_gpu_memory(), allocators, read_machine_memory(), observer)


def observe_process(cuda_started: bool) -> Observer:
    """What is known of this process; a CUDA that torch started is in use."""
    return Observer(
        process_id=os.getpid(),
        host_ids=sees_host_ids(),
        uses_cuda=cuda_started or (None if has_loaded("libcuda.so") is not False else False),
        resident_bytes=read_resident_bytes(),
        tensor_bytes=count_cpu_tensors(),
    )


def join_memory(
    nvml: MemoryAnswer,
    allocators: tuple[AllocatorFacts, ...],
    machine: MachineMemory,
    observer: Observer,
) -> Snapshot:
    """The snapshot that these facts add up to."""
    by_uuid = {strip_kind(held.uuid): held for held in allocators if held.uuid}
    keys = [_find_key(gpu, nvml.gpus, by_uuid) for gpu in nvml.gpus]
    balances = [
        _balance_gpu(gpu, by_uuid.pop(key, None), machine, observer)
        for gpu, key in zip(nvml.gpus, keys, strict=True)
    ]
    # What torch uses and NVML does not know: an AMD GPU, or NVML out of order.
    unknown = list(by_uuid.values()) + [held for held in allocators if not held.uuid]
    balances += [_balance_allocator(held, machine) for held in unknown]
    notes = [nvml.trouble.sentence] if nvml.trouble else []
    if not nvml.trouble and not nvml.gpus:
        notes.append("the NVIDIA driver is loaded but there is no GPU")
    return Snapshot((*balances, _balance_cpu(machine, observer)), tuple(notes))


def _find_key(
    gpu: GpuMemory, gpus: tuple[GpuMemory, ...], by_uuid: Mapping[str, AllocatorFacts]
) -> str:
    """The UUID under which torch knows a GPU or slice, as torch writes it."""
    key, parent = strip_kind(gpu.uuid), strip_kind(gpu.parent_uuid)
    # Where CUDA gives a slice the UUID of its GPU, it can be no other one if there is just one.
    alone = bool(parent) and sum(one.parent_uuid == gpu.parent_uuid for one in gpus) == 1
    return parent if alone and key not in by_uuid else key


def _balance_gpu(
    gpu: GpuMemory, held: AllocatorFacts | None, machine: MachineMemory, observer: Observer
) -> Balance:
    unified = held.unified if held else is_named_unified(gpu.name)
    # Linked to the machine's memory and yet with figures of its own (GH200): those are right.
    shared = unified and gpu.total_bytes is None and gpu.trouble is None
    own = _read_own_use(gpu.processes, held, observer)
    balance = Balance(
        kind="cuda",
        nvml_index=gpu.nvml_index,
        torch_name=held.torch_name if held else None,
        name=gpu.name,
        uuid=gpu.uuid,
        total_bytes=gpu.total_bytes,
        free_bytes=gpu.free_bytes,
        driver_reserved_bytes=gpu.reserved_bytes,
        this_process=_split_own(held, own),
        other_processes_bytes=_add_others(gpu.processes, own),
        processes=_name_processes(gpu.processes, observer),
        host_ids=not observer.host_ids,
        trouble=gpu.trouble.sentence if gpu.trouble else None,
    )
    return _share_machine(balance, machine) if shared else balance


def _read_own_use(
    processes: tuple[GpuProcess, ...] | None, held: AllocatorFacts | None, observer: Observer
) -> int | None:
    """Bytes this process holds as the driver counts them, where that is certain.

    Among the host's own ids, by the id. In a container the ids are strangers' (nvidia-docker#179);
    there a list of one is this process where its allocator holds memory and no more than that.
    """
    if observer.uses_cuda is False:
        return 0
    reserved = held.reserved_bytes if held else 0
    listed = processes or ()
    if observer.host_ids:
        absent = 0 if processes is not None and not reserved else None
        return next((one.used_bytes for one in listed if one.pid == observer.process_id), absent)
    if reserved and len(listed) == 1:
        used = listed[0].used_bytes
        return used if used is not None and used >= reserved else None
    return None


def _split_own(held: AllocatorFacts | None, used: int | None) -> ThisProcess:
    # Without an entry of torch's, torch holds nothing here: it has not started CUDA.
    allocated, reserved = (held.allocated_bytes, held.reserved_bytes) if held else (0, 0)
    context = None if used is None else used - reserved
    return ThisProcess(allocated, reserved - allocated, context, used)


def _add_others(processes: tuple[GpuProcess, ...] | None, own: int | None) -> int | None:
    """Bytes of all processes but this one; None where one is not told, or may be this one."""
    if processes is None or own is None:
        return None
    counts = [one.used_bytes for one in processes if one.used_bytes is not None]
    return sum(counts) - own if len(counts) == len(processes) else None


def _name_processes(
    processes: tuple[GpuProcess, ...] | None, observer: Observer
) -> tuple[DeviceProcess, ...] | None:
    if processes is None:
        return None
    return tuple(
        DeviceProcess(one.pid, read_command(one.pid) if observer.host_ids else None, one.used_bytes)
        for one in processes
    )


def _balance_allocator(held: AllocatorFacts, machine: MachineMemory) -> Balance:
    """A device that only torch knows; who else uses it is unknown."""
    balance = Balance(
        kind="cuda",
        torch_name=held.torch_name,
        name=held.name,
        uuid=held.uuid,
        total_bytes=held.total_bytes,
        free_bytes=held.free_bytes,
        this_process=ThisProcess(held.allocated_bytes, held.reserved_bytes - held.allocated_bytes),
    )
    return _share_machine(balance, machine) if held.unified else balance


def _share_machine(balance: Balance, machine: MachineMemory) -> Balance:
    """The balance of a GPU that uses the machine's memory: what is not its own is the rest."""
    total, free = machine.total_bytes, machine.free_bytes
    rest = None
    if total is not None and free is not None:
        rest = max(0, total - free - balance.this_process.known_bytes)
    return balance._replace(
        total_bytes=total,
        free_bytes=free,
        driver_reserved_bytes=None,
        other_processes_bytes=rest,
        shared=True,
        machine_bytes=machine.machine_bytes,
        limit_bytes=machine.limit_bytes,
    )


def _balance_cpu(machine: MachineMemory, observer: Observer) -> Balance:
    resident, tensors = observer.resident_bytes, observer.tensor_bytes
    mine = ThisProcess(used_bytes=resident)
    if resident is not None and tensors is not None:
        # Tensors that were never written to are not resident: they can be more than that.
        mine = ThisProcess(tensors, 0, max(0, resident - tensors), resident)
    return _share_machine(
        Balance("cpu", torch_name="cpu", name=machine.cpu_name, this_process=mine), machine
    )

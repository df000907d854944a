"""Reads the balance of every GPU, and of this process on the CPU, now.

The figures come from the driver (through NVML), the kernel (``/proc`` and cgroups) and torch's
allocators. GPUs of NVML and torch are joined by UUID, as their numbers differ (pytorch#86539).

Reading changes nothing: torch is not imported, and no CUDA context is created, which would take
several hundred megabytes (pytorch#86493).
"""

from __future__ import annotations

import contextlib
import ctypes
import gc
import os
import re
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from labkit.devices.nvml import (
    GpuMemory,
    GpuProcess,
    MemoryAnswer,
    is_named_unified,
    read_gpu_memory,
    strip_kind,
)
from labkit.host.cpu import detect_cpu, read_linux_cpu, read_room
from labkit.memory.balance.model import Balance, DeviceProcess, Snapshot, ThisProcess

ROOT = Path("/")
PROC = Path("/proc")

# proc(5): writing 5 to clear_refs resets the high-water mark of resident memory and nothing else
# (1 to 4 clear page bits that other tools use).
RESET_HIGH_WATER_MARK = "5"

# The inode of the initial pid namespace on every machine (PROC_PID_INIT_INO in
# include/linux/proc_ns.h); a container has another.
FIRST_NAMESPACE = 0xEFFFFFFC


def read_resident_bytes(process_id: int | None = None, *, proc: Path = PROC) -> int | None:
    """Bytes of a process (None: this one) in physical memory, ``ps``'s RSS; None if unknown.

    Shared libraries and shared memory count in full.
    """
    try:
        words = (_folder(process_id, proc) / "statm").read_bytes().split()
    except FileNotFoundError:
        # With /proc, the process has ended; macOS and Windows have none.
        return None if proc.is_dir() else _ask_psutil(process_id)
    except OSError:
        return None
    return int(words[1]) * os.sysconf("SC_PAGE_SIZE") if len(words) > 1 else None


def reset_peak(process_id: int | None = None, *, proc: Path = PROC) -> bool:
    """Resets the peak of a process to its current use; False if the system does not allow it.

    The kernel keeps one peak for each process: the reset applies to every reader.
    """
    try:
        (_folder(process_id, proc) / "clear_refs").write_text(RESET_HIGH_WATER_MARK)
    except OSError:
        return False
    return True


def read_peak_bytes(process_id: int | None = None, *, proc: Path = PROC) -> int | None:
    """The most bytes a process had in physical memory since the last reset, or since its start.

    The kernel counts it (VmHWM), so no spike is missed; None on a system that does not.
    """
    try:
        status = (_folder(process_id, proc) / "status").read_bytes()
    except OSError:
        return None
    _, found, rest = status.partition(b"\nVmHWM:")
    return int(rest.split(None, 1)[0]) * 1024 if found else None


def sees_host_ids(*, proc: Path = PROC) -> bool:
    """True if process ids here are the host's, as NVML's are; False in a container."""
    try:
        return (proc / "self/ns/pid").stat().st_ino == FIRST_NAMESPACE
    except OSError:
        return False


def read_command(process_id: int, *, proc: Path = PROC) -> str | None:
    """The command of a process, such as ``python train.py``; None if it has ended or is hidden.

    Folders and arguments are left out: they can contain secrets, and snapshots are shared.
    """
    folder = _folder(process_id, proc)
    try:
        words = (folder / "cmdline").read_bytes().decode(errors="replace").split("\0")
        if not words[0]:  # a kernel thread
            return _make_printable((folder / "comm").read_text(errors="replace").strip())
    except OSError:
        return None
    program, *rest = words
    said = rest[:2] if rest[:1] == ["-m"] else [word for word in rest[:1] if word[:1] != "-"]
    return _make_printable(" ".join(word.rpartition("/")[2] for word in (program, *said) if word))


def _make_printable(name: str) -> str | None:
    """The name with "?" for control characters, because a process can set its own name."""
    return "".join(letter if letter.isprintable() else "?" for letter in name) or None


def _folder(process_id: int | None, proc: Path) -> Path:
    return proc / ("self" if process_id is None else str(process_id))


def _ask_psutil(process_id: int | None) -> int | None:
    """Resident bytes where there is no /proc: from psutil, which ipykernel brings, else from ps."""
    try:
        import psutil
    except ImportError:
        return _ask_ps(process_id)
    try:
        return int(psutil.Process(process_id).memory_info().rss)
    except psutil.Error:
        return None


def _ask_ps(process_id: int | None) -> int | None:
    from labkit.process import run_command

    pid = str(process_id or os.getpid())
    answer = run_command(["ps", "-o", "rss=", "-p", pid], timeout_seconds=5)
    text = answer.stdout.strip()
    return int(text) * 1024 if answer.ok and text.isdigit() else None


class MachineMemory(NamedTuple):
    """Bytes of the machine, and the part that may be used here; None is unknown.

    ``total_bytes`` is the container's limit if that is below ``machine_bytes``. ``free_bytes``
    can be allocated without swapping: the kernel's MemAvailable (MemFree leaves out reclaimable
    caches), or the rest of the container's limit if that is less.
    """

    total_bytes: int | None = None
    free_bytes: int | None = None
    machine_bytes: int | None = None
    limit_bytes: int | None = None
    cpu_name: str | None = None


def read_machine_memory(root: Path = ROOT) -> MachineMemory:
    """The memory of this machine, from the files below ``root``."""
    cpu = detect_cpu() if root == ROOT else read_linux_cpu(root, None)
    total = cpu.total_bytes if cpu.limit_bytes is None else cpu.limit_bytes
    free = read_free_bytes(root, limited=cpu.limit_bytes is not None)
    machine = cpu.total_bytes
    if machine is None and root == ROOT:  # Windows
        machine = total = _ask_psutil_for_machine()[0]
    return MachineMemory(total, free, machine, cpu.limit_bytes, cpu.name)


def _ask_psutil_for_machine() -> tuple[int | None, int | None]:
    """The machine's bytes, and those that can be allocated, as far as psutil tells them."""
    try:
        import psutil

        said = psutil.virtual_memory()
    except (ImportError, OSError, RuntimeError):
        return None, None
    return int(said.total), int(said.available)


def read_free_bytes(root: Path, *, limited: bool) -> int | None:
    """Bytes that can be allocated without swapping, on the machine or (limited) in a container."""
    offered = [_read_available_bytes(root), read_room(root) if limited else None]
    return min((count for count in offered if count is not None), default=None)


def _read_available_bytes(root: Path) -> int | None:
    try:
        text = (root / "proc/meminfo").read_text()
    except OSError:  # macOS and Windows have no such file
        return _ask_psutil_for_machine()[1] if root == ROOT else None
    found = re.search(r"^MemAvailable:\s*(\d+) kB$", text, re.MULTILINE)
    return int(found[1]) * 1024 if found else None


class AllocatorFacts(NamedTuple):
    """One CUDA (or ROCm) device as torch reports it, in bytes.

    Torch does not know what a custom allocator (CUDAPluggableAllocator) holds. ``total_bytes``
    and ``free_bytes`` are read if NVML does not know them and a context exists. ``unified``: the
    GPU uses the machine's memory.
    """

    torch_name: str
    uuid: str | None
    name: str
    allocated_bytes: int | None
    reserved_bytes: int | None
    unified: bool = False
    total_bytes: int | None = None
    free_bytes: int | None = None


def find_started_torch() -> Any:
    """The torch module if this process has imported it and started CUDA, else None."""
    torch = sys.modules.get("torch")
    cuda = getattr(torch, "cuda", None)
    is_initialized = getattr(cuda, "is_initialized", None)
    return torch if is_initialized is not None and is_initialized() else None


def read_allocators(torch: Any = None) -> tuple[AllocatorFacts, ...]:
    """Every device that torch can use, with its allocator's figures; () before CUDA is started.

    It makes no call into CUDA, which would fail after an error that lasts (a device assert).
    """
    torch = torch or find_started_torch()
    if torch is None:
        return ()
    return tuple(
        AllocatorFacts(f"cuda:{index}", uuid, name, *count_allocated(torch.cuda, index), unified)
        for index, (name, uuid, unified) in read_properties(torch).items()
    )


def count_allocated(cuda: Any, index: int) -> tuple[int | None, int | None]:
    """Bytes allocated and reserved on a device, from the allocator's counters; None if unknown."""
    try:
        statistics = cuda.memory_stats_as_nested_dict(index)
    except RuntimeError:
        return None, None  # a custom allocator
    if not statistics:
        return 0, 0
    allocated = statistics["allocated_bytes"]["all"]["current"]
    return allocated, statistics["reserved_bytes"]["all"]["current"]


def _read_total(torch: Any, held: AllocatorFacts) -> AllocatorFacts:
    """The facts with the device's total and free bytes, if a context exists."""
    if not held.reserved_bytes:  # mem_get_info would create a context
        return held
    try:
        free, total = torch.cuda.mem_get_info(held.torch_name)
    except RuntimeError:
        return held  # an error that lasts
    return held._replace(total_bytes=total, free_bytes=free)


def read_properties(torch: Any) -> dict[int, tuple[str, str | None, bool]]:
    """Each GPU's name and UUID, and whether it uses the machine's memory, as torch reports them.

    Empty if torch has not asked CUDA for them before an error that lasts.
    """
    found = {}
    with contextlib.suppress(RuntimeError):
        for index in range(torch.cuda.device_count()):
            properties = torch.cuda.get_device_properties(index)
            uuid = getattr(properties, "uuid", None)
            unified = bool(getattr(properties, "is_integrated", 0))
            found[index] = properties.name, str(uuid) if uuid is not None else None, unified
    return found


def count_cpu_tensors() -> int | None:
    """Bytes of the CPU tensors that Python objects hold, each storage once; 0 without torch.

    Tensors that only autograd's graph holds (saved for backward) are not counted. None while
    torch is being imported. Takes about 0.1 us for each object that Python's collector tracks.
    """
    torch = sys.modules.get("torch")
    if torch is None:
        return 0
    tensor = getattr(torch, "Tensor", None)
    if tensor is None:
        return None
    # By type(), because isinstance would make lazy proxies import modules.
    tensors = [held for held in gc.get_objects() if issubclass(type(held), tensor)]
    # A subclass can override every attribute, and the parameter of a lazy module raises.
    with torch._C.DisableTorchFunctionSubclass():
        found = (storage for storage in map(find_storage, tensors) if storage)
        return sum({address: count for device, address, count in found if device == "cpu"}.values())


def find_storage(tensor: Any) -> tuple[str, int, int] | None:
    """A tensor's device, and the address and bytes of its storage; None if it has no memory."""
    try:
        storage = tensor.untyped_storage()
        # A fake tensor, which warns when it is asked for its address; on "meta" it is like others.
        if storage.device != tensor.device or storage.device.type == "meta":
            return None
        return str(tensor.device), storage.data_ptr(), storage.nbytes()
    except (RuntimeError, NotImplementedError):
        return None  # sparse and functional tensors have no storage


def is_leaf(tensor: Any) -> bool:
    """True for a tensor that no operator of a graph has made."""
    try:
        return bool(tensor.is_leaf)
    # A view of ``no_grad``, once its base is written to with gradients: torch cannot tell.
    except RuntimeError:
        return False


class Observer(NamedTuple):
    """This process: its id, whether process ids here are the host's, and its memory.

    ``resident_bytes`` and ``tensor_bytes`` are on the CPU. ``uses_cuda`` is None if a library of
    this process may have started CUDA.
    """

    process_id: int
    host_ids: bool
    uses_cuda: bool | None
    resident_bytes: int | None = None
    tensor_bytes: int | None = None


def take_snapshot(*, counts_tensors: bool = True) -> Snapshot:
    """The balance of every device of this machine, as far as it can be read.

    Without ``counts_tensors`` the bytes of the CPU's tensors are unknown, which saves most time.
    """
    allocators, answer = read_allocators(), read_gpu_memory()
    if allocators and not answer.gpus:
        allocators = tuple(_read_total(sys.modules["torch"], held) for held in allocators)
    observer = Observer(
        process_id=os.getpid(),
        host_ids=sees_host_ids(),
        uses_cuda=True if allocators else may_use_cuda(),
        resident_bytes=read_resident_bytes(),
        tensor_bytes=count_cpu_tensors() if counts_tensors else None,
    )
    return join_memory(answer, allocators, read_machine_memory(), observer)


def may_use_cuda(load: Callable[..., Any] = ctypes.CDLL) -> bool | None:
    """False if this process has no CUDA context, else None: a library may use one.

    ``import torch`` loads CUDA's library without starting it. The library is asked only if it is
    loaded, and a library that is not started answers with an error, so the question starts nothing.
    """
    try:
        driver = load("libcuda.so.1", mode=getattr(os, "RTLD_NOLOAD", 0) | ctypes.DEFAULT_MODE)
        count, flags, active = ctypes.c_int(), ctypes.c_uint(), ctypes.c_int()
        if driver.cuDeviceGetCount(ctypes.byref(count)):
            return False
        for ordinal in range(count.value):
            state = ctypes.byref(flags), ctypes.byref(active)
            if driver.cuDevicePrimaryCtxGetState(ordinal, *state) or active.value:
                return None
    except (OSError, AttributeError):
        return False  # not loaded, or not CUDA's library
    return False


def join_memory(
    nvml: MemoryAnswer,
    allocators: tuple[AllocatorFacts, ...],
    machine: MachineMemory,
    observer: Observer,
) -> Snapshot:
    """The snapshot from these facts."""
    by_uuid = {strip_kind(held.uuid): held for held in allocators if held.uuid}
    keys = [_find_key(gpu, nvml.gpus, by_uuid) for gpu in nvml.gpus]
    balances = [
        _balance_gpu(gpu, by_uuid.pop(key, None), machine, observer)
        for gpu, key in zip(nvml.gpus, keys, strict=True)
    ]
    # Only torch reports an AMD GPU, or any GPU if NVML fails.
    unknown = list(by_uuid.values()) + [held for held in allocators if not held.uuid]
    balances += [_balance_allocator(held, machine) for held in unknown]
    notes = [nvml.trouble.sentence] if nvml.trouble else []
    if not nvml.trouble and not nvml.gpus:
        notes.append("the NVIDIA driver is loaded but there is no GPU")
    rank = read_rank()
    if rank is not None:
        notes.append(f"this process is rank {rank[0]} of {rank[1]}")
    return Snapshot((*balances, _balance_cpu(machine, observer)), tuple(notes))


def read_rank() -> tuple[int, int] | None:
    """This process's rank and the world size of torch's process group; None without a group."""
    dist = sys.modules.get("torch.distributed")
    if dist is None or not dist.is_available() or not dist.is_initialized():
        return None
    return dist.get_rank(), dist.get_world_size()


def _find_key(
    gpu: GpuMemory, gpus: tuple[GpuMemory, ...], by_uuid: Mapping[str, AllocatorFacts]
) -> str:
    """The UUID that torch has for a GPU or MIG instance, without a prefix."""
    key, parent = strip_kind(gpu.uuid), strip_kind(gpu.parent_uuid)
    # CUDA may report a MIG instance under its GPU's UUID. With one instance the match is certain.
    alone = bool(parent) and sum(one.parent_uuid == gpu.parent_uuid for one in gpus) == 1
    return parent if alone and key not in by_uuid else key


def _balance_gpu(
    gpu: GpuMemory, held: AllocatorFacts | None, machine: MachineMemory, observer: Observer
) -> Balance:
    unified = held.unified if held else is_named_unified(gpu.name)
    # A GPU that is linked to the machine's memory and has its own (GH200) reports right figures.
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
    """Bytes of this process as the driver counts them; None if that is not certain.

    On the host this process is found by its id. In a container the ids are the host's
    (nvidia-docker#179): there, the only process of the list is this one if its allocator holds
    memory, and no more than the process.
    """
    if observer.uses_cuda is False:
        return 0
    reserved = held.reserved_bytes if held else 0
    listed = processes or ()
    if observer.host_ids:
        absent = 0 if processes is not None and reserved == 0 else None
        return next((one.used_bytes for one in listed if one.pid == observer.process_id), absent)
    if reserved and len(listed) == 1:
        used = listed[0].used_bytes
        return used if used is not None and used >= reserved else None
    return None


def _split_own(held: AllocatorFacts | None, used: int | None) -> ThisProcess:
    # Without allocator facts torch has not started CUDA, so it holds nothing.
    allocated, reserved = (held.allocated_bytes, held.reserved_bytes) if held else (0, 0)
    if allocated is None or reserved is None:
        return ThisProcess(used_bytes=used)
    context = None if used is None else used - reserved
    return ThisProcess(allocated, reserved - allocated, context, used)


def _add_others(processes: tuple[GpuProcess, ...] | None, own: int | None) -> int | None:
    """Bytes of all other processes; None if one is unknown, or may be this process."""
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
    """The balance of a device that only torch knows; its other users are unknown."""
    balance = Balance(
        kind="cuda",
        torch_name=held.torch_name,
        name=held.name,
        uuid=held.uuid,
        total_bytes=held.total_bytes,
        free_bytes=held.free_bytes,
        this_process=_split_own(held, None),
    )
    return _share_machine(balance, machine) if held.unified else balance


def _share_machine(balance: Balance, machine: MachineMemory) -> Balance:
    """The balance of a device that uses the machine's memory; other processes hold the rest."""
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
        # Tensors that were never written are not resident and can exceed the resident bytes.
        mine = ThisProcess(tensors, 0, max(0, resident - tensors), resident)
    return _share_machine(
        Balance("cpu", torch_name="cpu", name=machine.cpu_name, this_process=mine), machine
    )

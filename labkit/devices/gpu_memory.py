"""What NVML says of each GPU's memory now: totals, the driver's reserve, and who holds what.

Like everything here it asks through the gate in ``nvml.py``, the one module that touches the
binding, and opens no CUDA context.
"""

from __future__ import annotations

from typing import Any, NamedTuple

from labkit.devices.nvml import SENTENCES, Gate, NvmlError, Trouble, list_slices, open_gate

# NVML writes "not available" as the largest number of its type; no real figure is near it.
NOT_TOLD_BYTES = 2**63

# The version word that nvmlDeviceGetMemoryInfo_v2 wants: sizeof(struct) | 2 << 24.
MEMORY_V2 = 0x02000028


class GpuProcess(NamedTuple):
    """A process that holds memory on a GPU; bytes are None where the driver does not tell (WSL).

    In a container the id is mostly the host's (nvidia-docker#179): never match by it alone.
    """

    pid: int
    used_bytes: int | None = None


class GpuMemory(NamedTuple):
    """One GPU, or one MIG slice of one: memory in bytes, and its processes; unknown is None.

    ``reserved_bytes`` is the driver's own, told apart from drivers with version 2 of the query
    on; older ones hide it in what is used (gpustat#116). ``parent_uuid`` is the split GPU's, for
    a slice of one.
    """

    nvml_index: int
    uuid: str | None = None
    name: str | None = None
    total_bytes: int | None = None
    free_bytes: int | None = None
    reserved_bytes: int | None = None
    processes: tuple[GpuProcess, ...] | None = None
    trouble: Trouble | None = None
    parent_uuid: str | None = None


class MemoryAnswer(NamedTuple):
    """Every GPU's memory; with trouble, why there is nothing to tell."""

    gpus: tuple[GpuMemory, ...] = ()
    trouble: Trouble | None = None


def read_gpu_memory(binding: Any = None) -> MemoryAnswer:
    """The memory of every GPU and MIG slice; a lost one does not hide the others.

    ``binding`` is the pynvml module, imported here where it is not given. Raises nothing:
    why there is no answer is in ``trouble``.
    """
    try:
        gate = open_gate(binding)
    except NvmlError as error:
        return MemoryAnswer(trouble=error.trouble)
    try:
        return ask_gpu_memory(gate)
    finally:
        gate.close()


def ask_gpu_memory(gate: Gate, *, processes: bool = True) -> MemoryAnswer:
    """The memory of every GPU and MIG slice, through a gate that is open and stays so.

    Without ``processes`` they are not listed: that is the slow part. Raises nothing.
    """
    try:
        count = gate.demand("nvmlDeviceGetCount")
        found = [gpu for index in range(count) for gpu in _read_slices(gate, index, processes)]
    except NvmlError as error:
        return MemoryAnswer(trouble=error.trouble)
    return MemoryAnswer(tuple(found))


def _read_slices(gate: Gate, index: int, processes: bool) -> list[GpuMemory]:
    """The GPU, or in its place its MIG slices: a split GPU's own figures are nobody's."""
    try:
        handle = gate.ask("nvmlDeviceGetHandleByIndex", index)
    except NvmlError as error:
        return [GpuMemory(index, trouble=error.trouble)]
    if handle is None:
        return [GpuMemory(index, trouble=Trouble("no permission", SENTENCES["no permission"]))]
    try:
        mig = gate.ask("nvmlDeviceGetMigMode", handle)
        parts = list_slices(gate, handle) if mig is not None and mig[0] else []
        parent_uuid = gate.ask("nvmlDeviceGetUUID", handle) if parts else None
    except NvmlError as error:
        return [_read_device(gate, index, handle, processes)._replace(trouble=error.trouble)]
    read = [_read_device(gate, index, part, processes) for part in parts or [handle]]
    return [device._replace(parent_uuid=parent_uuid) for device in read]


def _read_device(gate: Gate, index: int, handle: Any, processes: bool) -> GpuMemory:
    if isinstance(handle, Trouble):
        return GpuMemory(index, trouble=handle)
    known: dict[str, Any] = {}
    try:
        # What names the GPU comes first, so that a GPU that is lost midway is still named.
        known["uuid"] = gate.ask("nvmlDeviceGetUUID", handle)
        known["name"] = gate.ask("nvmlDeviceGetName", handle)
        known |= _read_totals(gate, handle)
        if processes:
            known["processes"] = _read_processes(gate, handle)
    except NvmlError as error:
        known["trouble"] = error.trouble
    return GpuMemory(index, **known)


def _read_totals(gate: Gate, handle: Any) -> dict[str, int]:
    memory = gate.ask("nvmlDeviceGetMemoryInfo", handle, MEMORY_V2)
    reserved = {} if memory is None else {"reserved_bytes": int(memory.reserved)}
    if memory is None:
        memory = gate.ask("nvmlDeviceGetMemoryInfo", handle)
    # A total of nothing is how some drivers say that the memory is the machine's.
    if memory is None or not memory.total:
        return {}
    return {"total_bytes": int(memory.total), "free_bytes": int(memory.free), **reserved}


def _read_processes(gate: Gate, handle: Any) -> tuple[GpuProcess, ...] | None:
    """Who computes or draws on it, the largest first; None where the driver does not tell."""
    computing = _ask_processes(gate, "Compute", handle)
    if computing is None:
        return None
    held: dict[int, int | None] = {}
    # A process that computes and draws is in both lists, with the same memory in each.
    for process in (*computing, *(_ask_processes(gate, "Graphics", handle) or ())):
        used = process.usedGpuMemory
        if used is not None and used < NOT_TOLD_BYTES:
            held[process.pid] = max(used, held.get(process.pid) or 0)
        else:
            held.setdefault(process.pid, None)
    found = [GpuProcess(pid, used) for pid, used in held.items()]
    return tuple(sorted(found, key=lambda process: (-(process.used_bytes or 0), process.pid)))


def _ask_processes(gate: Gate, kind: str, handle: Any) -> list[Any] | None:
    # The unversioned names raise something else than NVMLError where the driver is older.
    for version in ("_v3", "_v2"):
        answer: list[Any] | None = gate.ask(f"nvmlDeviceGet{kind}RunningProcesses{version}", handle)
        if answer is not None:
            return answer
    return None

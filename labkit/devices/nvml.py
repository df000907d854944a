"""What NVML says about the NVIDIA GPUs here; the one module that touches its binding, pynvml.

The binding is imported when it is asked, never before, and every query goes through one gate. The
facts of labkit.devices are NamedTuples: ``labkit devices`` is to answer in the time that twice
``import pynvml`` takes, and dataclasses import a third of that.

What NVML says of each GPU's memory now: totals, the driver's reserve, and who holds what.

Like everything here it asks through the gate in ``nvml.py``, the one module that touches the
binding, and opens no CUDA context.
"""

from __future__ import annotations

import contextlib
from importlib import import_module
from typing import Any, Literal, NamedTuple

# Return codes of NVML's C interface; they are stable, and older bindings lack some of the names.
NOT_SUPPORTED = 3
NO_PERMISSION = 4
NOT_FOUND = 6
INSUFFICIENT_SIZE = 7
DRIVER_NOT_LOADED = 9
LIBRARY_NOT_FOUND = 12
FUNCTION_NOT_FOUND = 13
GPU_IS_LOST = 15
VERSION_MISMATCH = 18
ARGUMENT_VERSION_MISMATCH = 25

# A single figure that is refused is unknown. NO_PERMISSION is normal on a MIG parent, the size
# is insufficient where processes started between the two calls that list them.
UNKNOWN_ANSWERS = frozenset(
    {
        NOT_SUPPORTED,
        NO_PERMISSION,
        NOT_FOUND,
        INSUFFICIENT_SIZE,
        FUNCTION_NOT_FOUND,
        ARGUMENT_VERSION_MISMATCH,
    }
)

TroubleKind = Literal[
    "no binding",
    "no library",
    "driver not loaded",
    "no permission",
    "version mismatch",
    "gpu lost",
    "other",
]

KINDS: dict[int, TroubleKind] = {
    LIBRARY_NOT_FOUND: "no library",
    DRIVER_NOT_LOADED: "driver not loaded",
    NO_PERMISSION: "no permission",
    VERSION_MISMATCH: "version mismatch",
    GPU_IS_LOST: "gpu lost",
}

SENTENCES: dict[TroubleKind, str] = {
    "no binding": "NVIDIA GPUs were not looked for: nvidia-ml-py is not installed in this Python",
    "no library": "no NVIDIA driver here: libnvidia-ml.so.1 was not found",
    "driver not loaded": "the NVIDIA driver is installed but not loaded into the kernel",
    "no permission": "this user may not open the NVIDIA driver's device files (/dev/nvidia*)",
    "version mismatch": (
        "the NVIDIA driver was updated while loaded: its library and kernel module differ"
        " until the module is reloaded or the machine restarted"
    ),
    "gpu lost": "the GPU is lost: it fell off the bus or its driver gave it up",
}


# GPUs that are built into the machine's memory, by how the driver names them. Torch tells it too
# where it has started CUDA; a figure that is refused proves nothing by itself (ollama#12619).
UNIFIED_NAMES = ("GB10", "Orin", "Thor", "Xavier", "Tegra")


class Trouble(NamedTuple):
    """Why NVML, or one GPU, gives no answer: its kind, and a sentence for people."""

    kind: TroubleKind
    sentence: str


class NvmlGpu(NamedTuple):
    """One GPU as NVML numbers it (PCI order); whatever it does not tell is None.

    ``slices`` are the parts that MIG split it into, each with the facts of a GPU and the number
    of the one it is part of.
    """

    nvml_index: int
    uuid: str | None = None
    name: str | None = None
    total_bytes: int | None = None
    compute_capability: str | None = None
    mig_enabled: bool | None = None
    trouble: Trouble | None = None
    slices: tuple[NvmlGpu, ...] = ()


class NvmlFacts(NamedTuple):
    """The driver and its GPUs; with trouble, why there is nothing to tell."""

    driver_version: str | None = None
    cuda_version: str | None = None
    gpus: tuple[NvmlGpu, ...] = ()
    trouble: Trouble | None = None


class NvmlError(Exception):
    """NVML refused in a way that says more than "unknown"."""

    def __init__(self, trouble: Trouble) -> None:
        super().__init__(trouble.sentence)
        self.trouble = trouble


class Gate:
    """The one way to NVML's functions: an answer, None where it cannot be known, or NvmlError."""

    def __init__(self, binding: Any) -> None:
        self._binding = binding

    def ask(self, query: str, *arguments: object) -> Any:
        """NVML's answer to one query; None where GPU, driver or binding do not support it."""
        function = getattr(self._binding, query, None)
        if function is None:
            return None
        try:
            return function(*arguments)
        except self._binding.NVMLError as error:
            if error.value in UNKNOWN_ANSWERS:
                return None
            raise NvmlError(_explain(error)) from error

    def demand(self, query: str, *arguments: object) -> Any:
        """NVML's answer to a query that nothing can be told without; raises NvmlError."""
        answer = self.ask(query, *arguments)
        if answer is None:
            raise NvmlError(Trouble("other", f"the NVIDIA driver does not answer {query}"))
        return answer

    def open(self) -> None:
        """Connects to the driver; raises NvmlError with the reason where there is no way."""
        try:
            self._binding.nvmlInit()
        except self._binding.NVMLError as error:
            raise NvmlError(_explain(error)) from error

    def close(self) -> None:
        """Lets go of the driver, which may have gone away by itself."""
        with contextlib.suppress(self._binding.NVMLError):
            self._binding.nvmlShutdown()


def open_gate(binding: Any = None) -> Gate:
    """The way to NVML, opened; raises NvmlError with the reason where there is none."""
    try:
        gate = Gate(binding or import_module("pynvml"))
    except ImportError as error:
        raise NvmlError(Trouble("no binding", SENTENCES["no binding"])) from error
    gate.open()
    return gate


def read_nvml(binding: Any = None) -> NvmlFacts:
    """The driver and every GPU it knows; a lost one does not hide the others.

    ``binding`` is the pynvml module, imported here where it is not given. Raises nothing:
    why there is no answer is in ``trouble``.
    """
    try:
        gate = open_gate(binding)
    except NvmlError as error:
        return NvmlFacts(trouble=error.trouble)
    try:
        return _read_driver(gate)
    finally:
        gate.close()


def _read_driver(gate: Gate) -> NvmlFacts:
    driver_version = cuda_version = None
    try:
        driver_version = gate.ask("nvmlSystemGetDriverVersion")
        cuda_version = _read_cuda_version(gate)
        count = gate.demand("nvmlDeviceGetCount")
    except NvmlError as error:
        return NvmlFacts(driver_version, cuda_version, trouble=error.trouble)
    gpus = tuple(_read_gpu(gate, index) for index in range(count))
    return NvmlFacts(driver_version, cuda_version, gpus)


def _read_cuda_version(gate: Gate) -> str | None:
    number = gate.ask("nvmlSystemGetCudaDriverVersion_v2")
    if number is None:
        number = gate.ask("nvmlSystemGetCudaDriverVersion")
    return f"{number // 1000}.{number % 1000 // 10}" if number else None


def _read_gpu(gate: Gate, index: int) -> NvmlGpu:
    try:
        handle = gate.ask("nvmlDeviceGetHandleByIndex", index)
    except NvmlError as error:
        return NvmlGpu(index, trouble=error.trouble)
    if handle is None:
        return NvmlGpu(index, trouble=Trouble("no permission", SENTENCES["no permission"]))
    gpu = _read_facts(gate, index, handle)
    if not gpu.mig_enabled:
        return gpu
    try:
        parts = list_slices(gate, handle)
    except NvmlError as error:
        return gpu._replace(trouble=error.trouble)
    slices = tuple(_read_slice(gate, gpu, part) for part in parts)
    return gpu._replace(slices=slices)


def _read_slice(gate: Gate, gpu: NvmlGpu, part: Any) -> NvmlGpu:
    if isinstance(part, Trouble):
        return NvmlGpu(gpu.nvml_index, trouble=part)
    facts = _read_facts(gate, gpu.nvml_index, part)
    # NVML tells the architecture of whole GPUs only; a slice has that of its GPU.
    return facts._replace(compute_capability=gpu.compute_capability, mig_enabled=None)


def list_slices(gate: Gate, handle: Any) -> list[Any]:
    """The handle of each MIG slice of a GPU, or the trouble with it in its place.

    Raises NvmlError where the GPU itself does not answer.
    """
    count = gate.ask("nvmlDeviceGetMaxMigDeviceCount", handle) or 0
    found = [_find_slice(gate, handle, place) for place in range(count)]
    return [part for part in found if part is not None]


def _find_slice(gate: Gate, handle: Any, place: int) -> Any:
    try:
        return gate.ask("nvmlDeviceGetMigDeviceHandleByIndex", handle, place)
    except NvmlError as error:
        return error.trouble


def _read_facts(gate: Gate, index: int, handle: Any) -> NvmlGpu:
    known: dict[str, Any] = {}
    try:
        # What names the GPU comes first, so that a GPU that is lost midway is still named.
        known["uuid"] = gate.ask("nvmlDeviceGetUUID", handle)
        known["name"] = gate.ask("nvmlDeviceGetName", handle)
        capability = gate.ask("nvmlDeviceGetCudaComputeCapability", handle)
        known["compute_capability"] = "{}.{}".format(*capability) if capability else None
        memory = gate.ask("nvmlDeviceGetMemoryInfo", handle)
        # Drivers of GPUs in the machine's memory refuse, or say nothing with a total of 0.
        known["total_bytes"] = int(memory.total) or None if memory is not None else None
        mig = gate.ask("nvmlDeviceGetMigMode", handle)
        known["mig_enabled"] = bool(mig[0]) if mig is not None else None
    except NvmlError as error:
        known["trouble"] = error.trouble
    return NvmlGpu(index, **known)


def is_named_unified(name: str | None) -> bool:
    """True where the driver's name for a GPU says that its memory is the machine's own.

    >>> is_named_unified("NVIDIA GB10"), is_named_unified("NVIDIA H200"), is_named_unified(None)
    (True, False, False)
    """
    return any(known in (name or "") for known in UNIFIED_NAMES)


def _explain(error: Any) -> Trouble:
    kind = KINDS.get(error.value, "other")
    return Trouble(kind, SENTENCES.get(kind) or f"NVML failed: {error} (code {error.value})")


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

"""The NVIDIA GPUs of this machine and their memory, from NVML; the only module to use pynvml.

pynvml is imported on the first query, every query goes through one ``Gate``, and no CUDA context
is made. The facts are NamedTuples: importing ``dataclasses`` would slow ``labkit devices`` down.
"""

from __future__ import annotations

import contextlib
from importlib import import_module
from typing import Any, Literal, NamedTuple

# Return codes of NVML's C interface, which are stable; older bindings lack some of the names.
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

# With these codes one figure is unknown. NO_PERMISSION is normal for a GPU split by MIG, and
# INSUFFICIENT_SIZE if processes start between the two calls that list them.
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
    "no binding": "cannot look for NVIDIA GPUs: nvidia-ml-py is not installed in this Python",
    "no library": "no NVIDIA driver here: libnvidia-ml.so.1 was not found",
    "driver not loaded": "the NVIDIA driver is installed but not loaded into the kernel",
    "no permission": "this user may not open the NVIDIA driver's device files (/dev/nvidia*)",
    "version mismatch": (
        "the NVIDIA driver was updated while loaded: its library and kernel module differ"
        " until the module is reloaded or the machine restarted"
    ),
    "gpu lost": "the GPU is lost: it fell off the bus, or the driver stopped using it",
}


# Parts of the names of GPUs with unified memory. A refused memory query alone does not prove it
# (ollama#12619); torch reports it once it has started CUDA.
UNIFIED_NAMES = ("GB10", "Orin", "Thor", "Xavier", "Tegra")


class Trouble(NamedTuple):
    """Why NVML or one GPU does not answer: the kind of failure, and a sentence."""

    kind: TroubleKind
    sentence: str


class NvmlGpu(NamedTuple):
    """One GPU, numbered by NVML (in PCI order); what is unknown is None.

    ``mig_instances`` have the facts of a GPU, and the number of the GPU that they are part of.
    """

    nvml_index: int
    uuid: str | None = None
    name: str | None = None
    total_bytes: int | None = None
    compute_capability: str | None = None
    mig_enabled: bool | None = None
    trouble: Trouble | None = None
    mig_instances: tuple[NvmlGpu, ...] = ()


class NvmlFacts(NamedTuple):
    """The driver and its GPUs, or the trouble with it."""

    driver_version: str | None = None
    cuda_version: str | None = None
    gpus: tuple[NvmlGpu, ...] = ()
    trouble: Trouble | None = None


class NvmlError(Exception):
    """NVML failed, and not only for one unknown figure."""

    def __init__(self, trouble: Trouble) -> None:
        super().__init__(trouble.sentence)
        self.trouble = trouble


class Gate:
    """Calls NVML's functions: an answer, None if it is unknown, or NvmlError."""

    def __init__(self, binding: Any) -> None:
        self._binding = binding

    def ask(self, query: str, *arguments: object) -> Any:
        """NVML's answer to a query; None if the GPU, driver or binding does not support it."""
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
        """NVML's answer to a required query; raises NvmlError if there is none."""
        answer = self.ask(query, *arguments)
        if answer is None:
            raise NvmlError(Trouble("other", f"the NVIDIA driver does not answer {query}"))
        return answer

    def open(self) -> None:
        """Connects to the driver; raises NvmlError."""
        try:
            self._binding.nvmlInit()
        except self._binding.NVMLError as error:
            raise NvmlError(_explain(error)) from error

    def close(self) -> None:
        """Disconnects from the driver, which may be gone."""
        with contextlib.suppress(self._binding.NVMLError):
            self._binding.nvmlShutdown()


def open_gate(binding: Any = None) -> Gate:
    """A gate that is connected to the driver; raises NvmlError."""
    try:
        gate = Gate(binding or import_module("pynvml"))
    except ImportError as error:
        raise NvmlError(Trouble("no binding", SENTENCES["no binding"])) from error
    gate.open()
    return gate


def read_nvml(binding: Any = None) -> NvmlFacts:
    """The driver and every GPU; a lost GPU does not hide the others.

    ``binding`` is the pynvml module (None: imports it). A failure is in ``trouble``, not raised.
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
        handles = _list_mig_instances(gate, handle)
    except NvmlError as error:
        return gpu._replace(trouble=error.trouble)
    return gpu._replace(mig_instances=tuple(_read_mig_instance(gate, gpu, one) for one in handles))


def _read_mig_instance(gate: Gate, gpu: NvmlGpu, handle: Any) -> NvmlGpu:
    if isinstance(handle, Trouble):
        return NvmlGpu(gpu.nvml_index, trouble=handle)
    facts = _read_facts(gate, gpu.nvml_index, handle)
    # NVML reports the compute capability of whole GPUs only.
    return facts._replace(compute_capability=gpu.compute_capability, mig_enabled=None)


def _list_mig_instances(gate: Gate, handle: Any) -> list[Any]:
    """The handle of each MIG instance of a GPU, or a Trouble in its place.

    Raises NvmlError if the GPU itself does not answer.
    """
    count = gate.ask("nvmlDeviceGetMaxMigDeviceCount", handle) or 0
    found = [_find_mig_instance(gate, handle, place) for place in range(count)]
    return [instance for instance in found if instance is not None]


def _find_mig_instance(gate: Gate, handle: Any, place: int) -> Any:
    try:
        return gate.ask("nvmlDeviceGetMigDeviceHandleByIndex", handle, place)
    except NvmlError as error:
        return error.trouble


def _read_facts(gate: Gate, index: int, handle: Any) -> NvmlGpu:
    known: dict[str, Any] = {}
    try:
        # UUID and name first: a GPU that is lost during the reading still has them.
        known["uuid"] = gate.ask("nvmlDeviceGetUUID", handle)
        known["name"] = gate.ask("nvmlDeviceGetName", handle)
        capability = gate.ask("nvmlDeviceGetCudaComputeCapability", handle)
        known["compute_capability"] = "{}.{}".format(*capability) if capability else None
        memory = gate.ask("nvmlDeviceGetMemoryInfo", handle)
        # For a GPU with unified memory, drivers refuse the query or answer a total of 0.
        known["total_bytes"] = int(memory.total) or None if memory is not None else None
        mig = gate.ask("nvmlDeviceGetMigMode", handle)
        known["mig_enabled"] = bool(mig[0]) if mig is not None else None
    except NvmlError as error:
        known["trouble"] = error.trouble
    return NvmlGpu(index, **known)


def is_named_unified(name: str | None) -> bool:
    """True if a GPU with this name uses the machine's memory.

    >>> is_named_unified("NVIDIA GB10"), is_named_unified("NVIDIA H200"), is_named_unified(None)
    (True, False, False)
    """
    return any(known in (name or "") for known in UNIFIED_NAMES)


def _explain(error: Any) -> Trouble:
    kind = KINDS.get(error.value, "other")
    return Trouble(kind, SENTENCES.get(kind) or f"NVML failed: {error} (code {error.value})")


def strip_kind(uuid: str | None) -> str:
    """The UUID without NVML's ``GPU-`` or ``MIG-``, as torch writes it; "" if there is none.

    >>> strip_kind("GPU-5d1c0f2e"), strip_kind("5d1c0f2e"), strip_kind(None)
    ('5d1c0f2e', '5d1c0f2e', '')
    """
    return (uuid or "").removeprefix("GPU-").removeprefix("MIG-")


# NVML's "not available" is the largest number of its type; no real figure is near it.
NOT_AVAILABLE_BYTES = 2**63

# The version argument of nvmlDeviceGetMemoryInfo_v2: sizeof(struct) | 2 << 24.
MEMORY_V2 = 0x02000028


class GpuProcess(NamedTuple):
    """A process that holds memory on a GPU; its bytes are None if unknown (on WSL).

    In a container the id is usually the host's (nvidia-docker#179): never match by it alone.
    """

    pid: int
    used_bytes: int | None = None


class GpuMemory(NamedTuple):
    """The memory of a GPU or a MIG instance in bytes, and its processes; unknown is None.

    ``reserved_bytes`` is the driver's reserve; drivers without version 2 of the query count it as
    used (gpustat#116). ``parent_uuid`` is the GPU of a MIG instance.
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
    """Every GPU's memory, or the trouble with the driver."""

    gpus: tuple[GpuMemory, ...] = ()
    trouble: Trouble | None = None


def read_gpu_memory(binding: Any = None) -> MemoryAnswer:
    """The memory of every GPU and MIG instance; a lost one does not hide the others.

    ``binding`` is the pynvml module (None: imports it). A failure is in ``trouble``, not raised.
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
    """The memory of every GPU and MIG instance, through an open gate.

    Listing the processes is the slow part. A failure is in ``trouble``, not raised.
    """
    try:
        count = gate.demand("nvmlDeviceGetCount")
        found = [gpu for index in range(count) for gpu in _read_gpu_memory(gate, index, processes)]
    except NvmlError as error:
        return MemoryAnswer(trouble=error.trouble)
    return MemoryAnswer(tuple(found))


def _read_gpu_memory(gate: Gate, index: int, processes: bool) -> list[GpuMemory]:
    """The memory of a GPU, or of its MIG instances: then the GPU's own figures mean nothing."""
    try:
        handle = gate.ask("nvmlDeviceGetHandleByIndex", index)
    except NvmlError as error:
        return [GpuMemory(index, trouble=error.trouble)]
    if handle is None:
        return [GpuMemory(index, trouble=Trouble("no permission", SENTENCES["no permission"]))]
    try:
        mig = gate.ask("nvmlDeviceGetMigMode", handle)
        instances = _list_mig_instances(gate, handle) if mig is not None and mig[0] else []
        parent_uuid = gate.ask("nvmlDeviceGetUUID", handle) if instances else None
    except NvmlError as error:
        return [_read_device(gate, index, handle, processes)._replace(trouble=error.trouble)]
    read = [_read_device(gate, index, one, processes) for one in instances or [handle]]
    return [device._replace(parent_uuid=parent_uuid) for device in read]


def _read_device(gate: Gate, index: int, handle: Any, processes: bool) -> GpuMemory:
    if isinstance(handle, Trouble):
        return GpuMemory(index, trouble=handle)
    known: dict[str, Any] = {}
    try:
        # UUID and name first, as in _read_facts.
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
    # For a GPU with unified memory some drivers answer a total of 0.
    if memory is None or not memory.total:
        return {}
    return {"total_bytes": int(memory.total), "free_bytes": int(memory.free), **reserved}


def _read_processes(gate: Gate, handle: Any) -> tuple[GpuProcess, ...] | None:
    """The compute and graphics processes, the largest first; None if unknown."""
    computing = _ask_processes(gate, "Compute", handle)
    if computing is None:
        return None
    held: dict[int, int | None] = {}
    # A process that does both is in both lists, with the same memory in each.
    for process in (*computing, *(_ask_processes(gate, "Graphics", handle) or ())):
        used = process.usedGpuMemory
        if used is not None and used < NOT_AVAILABLE_BYTES:
            held[process.pid] = max(used, held.get(process.pid) or 0)
        else:
            held.setdefault(process.pid, None)
    found = [GpuProcess(pid, used) for pid, used in held.items()]
    return tuple(sorted(found, key=lambda process: (-(process.used_bytes or 0), process.pid)))


def _ask_processes(gate: Gate, kind: str, handle: Any) -> list[Any] | None:
    # With an older driver, the names without a version raise something other than NVMLError.
    for version in ("_v3", "_v2"):
        answer: list[Any] | None = gate.ask(f"nvmlDeviceGet{kind}RunningProcesses{version}", handle)
        if answer is not None:
            return answer
    return None


# What can hold a GPU's clocks down, by the bit of NVML's mask (nvml.h, nvmlClocksEventReason*).
# Being idle (1) and following the clocks of a synchronized group (16) slow nothing down.
CLOCK_REASONS = {
    0x2: "application clocks",
    0x4: "power cap",
    0x8: "hardware slowdown",
    0x20: "software thermal slowdown",
    0x40: "hardware thermal slowdown",
    0x80: "hardware power brake",
    0x100: "display clocks",
}
SM_CLOCK, MEMORY_CLOCK, GPU_SENSOR = 1, 2, 0
UNCORRECTED, VOLATILE = 1, 0


class GpuLoad(NamedTuple):
    """A GPU's clocks (MHz), power (W), temperature (C) and PCIe link now; unknown is None.

    ``clock_reasons`` are what holds its clocks down, () for nothing. An idle GPU lowers the
    generation of its link.
    """

    sm_mhz: int | None = None
    memory_mhz: int | None = None
    power_watts: float | None = None
    temperature_celsius: int | None = None
    clock_reasons: tuple[str, ...] | None = None
    link_generation: int | None = None
    link_width: int | None = None


class GpuHardware(NamedTuple):
    """What a GPU can do and what was set or went wrong on it; unknown is None.

    The maximum link is what both the GPU and its slot can. ``ecc_errors`` are uncorrected ones
    since the driver was loaded. ``remapped_rows`` were replaced after such errors;
    ``row_remap_failed``: a row could not be replaced. ``processes`` counts those that hold memory,
    and ``used_bytes`` is what they hold.
    """

    max_sm_mhz: int | None = None
    max_memory_mhz: int | None = None
    bus_width_bits: int | None = None
    power_limit_watts: float | None = None
    default_power_limit_watts: float | None = None
    max_link_generation: int | None = None
    max_link_width: int | None = None
    ecc_errors: int | None = None
    remapped_rows: int | None = None
    row_remap_pending: bool | None = None
    row_remap_failed: bool | None = None
    mig_enabled: bool | None = None
    total_bytes: int | None = None
    processes: int | None = None
    used_bytes: int | None = None


class GpuMeter:
    """Reads one GPU, found by its UUID, or the GPU of a MIG instance; a context manager.

    Every figure is read on its own: a query that fails leaves the others known.
    """

    def __init__(self, uuid: str | None, binding: Any = None) -> None:
        self._uuid, self._binding = strip_kind(uuid), binding
        self._gate: Gate | None = None
        self._handle: Any = None

    @classmethod
    def attach(cls, gate: Gate, handle: Any) -> GpuMeter:
        """The meter of a GPU by its handle, through an open gate; it needs no ``with``."""
        meter = cls(None)
        meter._gate, meter._handle = gate, handle
        return meter

    def __enter__(self) -> GpuMeter:
        try:
            self._gate = open_gate(self._binding)
            self._handle = self._find_handle(self._gate)
        except NvmlError:
            self._handle = None
        return self

    def __exit__(self, *_: object) -> None:
        if self._gate is not None:
            self._gate.close()

    def read_load(self) -> GpuLoad:
        """The GPU's state now."""
        power = self.ask("nvmlDeviceGetPowerUsage")
        mask = self.ask("nvmlDeviceGetCurrentClocksEventReasons")
        if mask is None:  # an older binding or driver
            mask = self.ask("nvmlDeviceGetCurrentClocksThrottleReasons")
        return GpuLoad(
            self.ask("nvmlDeviceGetClockInfo", SM_CLOCK),
            self.ask("nvmlDeviceGetClockInfo", MEMORY_CLOCK),
            None if power is None else power / 1000,
            self.ask("nvmlDeviceGetTemperature", GPU_SENSOR),
            None if mask is None else name_clock_reasons(mask),
            self.ask("nvmlDeviceGetCurrPcieLinkGeneration"),
            self.ask("nvmlDeviceGetCurrPcieLinkWidth"),
        )

    def read_hardware(self) -> GpuHardware:
        """The GPU's limits, settings and errors."""
        limits = ("nvmlDeviceGetEnforcedPowerLimit", "nvmlDeviceGetPowerManagementDefaultLimit")
        power, usual = (self.ask(query) for query in limits)
        corrected, uncorrected, pending, failed = (
            self.ask("nvmlDeviceGetRemappedRows") or (None,) * 4
        )
        mig = self.ask("nvmlDeviceGetMigMode")
        total, used = self._read_memory()
        return GpuHardware(
            self.ask("nvmlDeviceGetMaxClockInfo", SM_CLOCK),
            self.ask("nvmlDeviceGetMaxClockInfo", MEMORY_CLOCK),
            self.ask("nvmlDeviceGetMemoryBusWidth"),
            None if power is None else power / 1000,
            None if usual is None else usual / 1000,
            self.ask("nvmlDeviceGetMaxPcieLinkGeneration"),
            self.ask("nvmlDeviceGetMaxPcieLinkWidth"),
            self.ask("nvmlDeviceGetTotalEccErrors", UNCORRECTED, VOLATILE),
            None if corrected is None else corrected + uncorrected,
            None if pending is None else bool(pending),
            None if failed is None else bool(failed),
            None if mig is None else bool(mig[0]),
            total,
            self._count_processes(),
            used,
        )

    def _read_memory(self) -> tuple[int | None, int | None]:
        """Its total bytes, and those in use; without version 2, used bytes contain the reserve."""
        memory = self.ask("nvmlDeviceGetMemoryInfo", MEMORY_V2)
        if memory is None:
            memory = self.ask("nvmlDeviceGetMemoryInfo")
            return (None if memory is None else int(memory.total) or None), None
        return int(memory.total) or None, int(memory.used)

    def _count_processes(self) -> int | None:
        if self._gate is None or self._handle is None:
            return None
        try:
            found = _read_processes(self._gate, self._handle)
        except NvmlError:
            return None
        return None if found is None else len(found)

    def _find_handle(self, gate: Gate) -> Any:
        """The handle of the GPU with this UUID, or of the one that an instance with it is part of.

        The only GPU is taken without a match: CUDA may report another UUID for an instance.
        """
        handles = []
        for index in range(gate.demand("nvmlDeviceGetCount")):
            with contextlib.suppress(NvmlError):  # a lost GPU does not hide the others
                handle = gate.demand("nvmlDeviceGetHandleByIndex", index)
                handles.append(handle)
                if self._uuid and self._uuid in map(strip_kind, _list_uuids(gate, handle)):
                    return handle
        return handles[0] if len(handles) == 1 else None

    def ask(self, query: str, *arguments: object) -> Any:
        """The answer to a query about the GPU; None if it fails for any reason."""
        if self._gate is None or self._handle is None:
            return None
        try:
            return self._gate.ask(query, self._handle, *arguments)
        except NvmlError:
            return None


def _list_uuids(gate: Gate, handle: Any) -> list[str | None]:
    """The UUIDs of a GPU and of its MIG instances."""
    mig = gate.ask("nvmlDeviceGetMigMode", handle)
    found = _list_mig_instances(gate, handle) if mig is not None and mig[0] else []
    parts = [handle, *(part for part in found if not isinstance(part, Trouble))]
    return [gate.ask("nvmlDeviceGetUUID", part) for part in parts]


def name_clock_reasons(mask: int) -> tuple[str, ...]:
    """The names of the set bits that hold clocks down.

    >>> name_clock_reasons(0x44), name_clock_reasons(0x1)
    (('power cap', 'hardware thermal slowdown'), ())
    """
    return tuple(name for bit, name in CLOCK_REASONS.items() if mask & bit)

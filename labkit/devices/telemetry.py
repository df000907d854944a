"""What NVIDIA's GPUs do now: load, heat, power, clocks, links, memory errors, processes.

Every figure is read on its own: one that the GPU, driver or container does not tell is None, and
the others are known. Reading makes no CUDA context. NamedTuples, as in ``nvml``.
"""

from __future__ import annotations

from typing import Any, NamedTuple

from labkit.devices.nvml import (
    Gate,
    GpuHardware,
    GpuLoad,
    GpuMemory,
    GpuMeter,
    NvmlError,
    Trouble,
    ask_gpu_memory,
    open_gate,
)

MAX_LINKS = 36
SWITCH = 2  # NVML_NVLINK_DEVICE_TYPE_SWITCH
# The paths between two GPUs on PCIe, by NVML's levels, as `nvidia-smi topo -m` names them.
PATHS = {0: "same board", 10: "PIX", 20: "PXB", 30: "PHB", 40: "NODE", 50: "SYS"}


class GpuTelemetry(NamedTuple):
    """The state of one GPU now, its limits and its errors; unknown is None."""

    nvml_index: int
    uuid: str | None = None
    bus_address: str | None = None
    utilization_percent: int | None = None
    memory_utilization_percent: int | None = None
    fan_percent: int | None = None
    performance_state: int | None = None
    ecc_enabled: bool | None = None
    persistence: bool | None = None
    load: GpuLoad = GpuLoad()
    hardware: GpuHardware = GpuHardware()

    def describe(self) -> dict[str, object]:
        """The state as ``--json`` prints it."""
        nested = {"load": self.load._asdict(), "hardware": self.hardware._asdict()}
        return {**self._asdict(), **nested}


class GpuPath(NamedTuple):
    """The path between two GPUs, by their indices: "NV4" for four NVLinks, else one of PATHS."""

    first: int
    second: int
    path: str | None


class Telemetry(NamedTuple):
    """The state and the memory of every GPU, and the paths between them; or the trouble."""

    gpus: tuple[GpuTelemetry, ...] = ()
    memory: tuple[GpuMemory, ...] = ()
    paths: tuple[GpuPath, ...] = ()
    trouble: Trouble | None = None

    def find(self, uuid: str | None) -> GpuTelemetry | None:
        """The state of the GPU with this UUID."""
        return next((gpu for gpu in self.gpus if uuid and gpu.uuid == uuid), None)

    def find_memory(self, uuid: str | None) -> GpuMemory | None:
        """The memory of the GPU or MIG instance with this UUID."""
        return next((one for one in self.memory if uuid and one.uuid == uuid), None)


def read_telemetry(binding: Any = None) -> Telemetry:
    """The state of every GPU; a failure of the driver is in ``trouble``, not raised.

    ``binding`` is the pynvml module (None: imports it).
    """
    try:
        gate = open_gate(binding)
    except NvmlError as error:
        return Telemetry(trouble=error.trouble)
    try:
        memory = ask_gpu_memory(gate)
        count = _ask(gate, "nvmlDeviceGetCount") or 0
        handles = [_ask(gate, "nvmlDeviceGetHandleByIndex", index) for index in range(count)]
        known = [(index, handle) for index, handle in enumerate(handles) if handle is not None]
        gpus = tuple(_read_gpu(gate, index, handle) for index, handle in known)
        return Telemetry(gpus, memory.gpus, _read_paths(gate, known, gpus), memory.trouble)
    finally:
        gate.close()


def _ask(gate: Gate, query: str, *arguments: object) -> Any:
    """The answer; None if the query fails for any reason, such as a lost GPU."""
    try:
        return gate.ask(query, *arguments)
    except NvmlError:
        return None


def _read_gpu(gate: Gate, index: int, handle: Any) -> GpuTelemetry:
    meter = GpuMeter.attach(gate, handle)
    rates, ecc = meter.ask("nvmlDeviceGetUtilizationRates"), meter.ask("nvmlDeviceGetEccMode")
    persistence = meter.ask("nvmlDeviceGetPersistenceMode")
    return GpuTelemetry(
        index,
        meter.ask("nvmlDeviceGetUUID"),
        _read_address(meter.ask("nvmlDeviceGetPciInfo")),
        rates.gpu if rates else None,
        rates.memory if rates else None,
        meter.ask("nvmlDeviceGetFanSpeed"),
        meter.ask("nvmlDeviceGetPerformanceState"),
        bool(ecc[0]) if ecc else None,
        None if persistence is None else bool(persistence),
        meter.read_load(),
        meter.read_hardware(),
    )


def _read_address(info: Any) -> str | None:
    """The bus address of a GPU or of the other end of a link, in lower case."""
    text = getattr(info, "busId", None)
    if isinstance(text, bytes):
        text = text.decode(errors="replace")
    return text.lower() if text else None


def _read_paths(
    gate: Gate, handles: list[tuple[int, Any]], gpus: tuple[GpuTelemetry, ...]
) -> tuple[GpuPath, ...]:
    """The path between each two GPUs; NVLinks to switches join all GPUs that have them."""
    if len(handles) < 2:
        return ()
    ends = {index: _list_link_ends(gate, handle) for index, handle in handles}
    addresses = {gpu.nvml_index: gpu.bus_address for gpu in gpus}
    found = []
    for place, (first, handle) in enumerate(handles):
        for second, other in handles[place + 1 :]:
            direct = ends[first].count(addresses[second] or "no address")
            links = direct or min(ends[first].count(None), ends[second].count(None))
            level = None if links else _ask(gate, TOPOLOGY, handle, other)
            path = None if level is None else PATHS.get(level)
            found.append(GpuPath(first, second, f"NV{links}" if links else path))
    return tuple(found)


TOPOLOGY = "nvmlDeviceGetTopologyCommonAncestor"


def _list_link_ends(gate: Gate, handle: Any) -> list[str | None]:
    """The address at the other end of each active NVLink of a GPU; None for a switch."""
    ends: list[str | None] = []
    for link in range(MAX_LINKS):
        state = _ask(gate, "nvmlDeviceGetNvLinkState", handle, link)
        if state is None:  # no such link, or no NVLink at all
            break
        if state:
            kind = _ask(gate, "nvmlDeviceGetNvLinkRemoteDeviceType", handle, link)
            remote = _read_address(_ask(gate, "nvmlDeviceGetNvLinkRemotePciInfo", handle, link))
            ends.append(None if kind == SWITCH else remote or "unknown")
    return ends

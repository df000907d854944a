"""What NVIDIA's GPUs do now: load, heat, power, clocks, links, memory errors, processes.

Every figure is read on its own: one that the GPU, driver or container does not tell is None, and
the others are known. Reading makes no CUDA context. NamedTuples, as in ``nvml``.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

from labkit.devices.nvml import Gate, GpuMemory, NvmlError, Trouble, ask_gpu_memory, open_gate

# What holds clocks down, by the bits of NVML's mask (nvml.h, nvmlClocksEventReason*). Idle (1) and
# the clocks of a synchronized group (16) slow nothing down.
HOLDS = {
    0x2: "application clocks",
    0x4: "the power limit",
    0x8: "a hardware slowdown",
    0x20: "heat (software)",
    0x40: "heat (hardware)",
    0x80: "the power supply's brake",
    0x100: "display clocks",
}
SENSOR, SM_CLOCK, MEMORY_CLOCK, UNCORRECTED, VOLATILE = 0, 1, 2, 1, 0
MAX_LINKS = 36
SWITCH = 2  # NVML_NVLINK_DEVICE_TYPE_SWITCH
# The paths between two GPUs on PCIe, by NVML's levels, as `nvidia-smi topo -m` names them.
PATHS = {0: "same board", 10: "PIX", 20: "PXB", 30: "PHB", 40: "NODE", 50: "SYS"}


class GpuTelemetry(NamedTuple):
    """The state of one GPU now; unknown is None.

    ``clock_holds`` are what holds its clocks down, () for nothing. The maximum link is what both
    the GPU and its slot can; an idle GPU lowers its link's generation. ``uncorrected_errors``
    counts the ECC errors since the driver was loaded; a row of memory that has them waits for a
    reset (``remap_pending``) to be replaced, or could not be (``remap_failed``).
    """

    nvml_index: int
    uuid: str | None = None
    bus_address: str | None = None
    utilization_percent: int | None = None
    memory_utilization_percent: int | None = None
    temperature_celsius: int | None = None
    fan_percent: int | None = None
    power_watts: float | None = None
    power_limit_watts: float | None = None
    default_power_limit_watts: float | None = None
    performance_state: int | None = None
    sm_mhz: int | None = None
    max_sm_mhz: int | None = None
    memory_mhz: int | None = None
    max_memory_mhz: int | None = None
    clock_holds: tuple[str, ...] | None = None
    link_generation: int | None = None
    max_link_generation: int | None = None
    link_width: int | None = None
    max_link_width: int | None = None
    ecc_enabled: bool | None = None
    uncorrected_errors: int | None = None
    remap_pending: bool | None = None
    remap_failed: bool | None = None
    persistence: bool | None = None


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
    def ask(query: str, *arguments: object) -> Any:
        return _ask(gate, f"nvmlDevice{query}", handle, *arguments)

    rates = ask("GetUtilizationRates")
    mask = ask("GetCurrentClocksEventReasons")
    if mask is None:  # an older binding or driver
        mask = ask("GetCurrentClocksThrottleReasons")
    ecc, rows = ask("GetEccMode"), ask("GetRemappedRows")
    return GpuTelemetry(
        index,
        uuid=ask("GetUUID"),
        bus_address=_read_address(ask("GetPciInfo")),
        utilization_percent=rates.gpu if rates else None,
        memory_utilization_percent=rates.memory if rates else None,
        temperature_celsius=ask("GetTemperature", SENSOR),
        fan_percent=ask("GetFanSpeed"),
        performance_state=ask("GetPerformanceState"),
        clock_holds=None if mask is None else name_holds(mask),
        ecc_enabled=bool(ecc[0]) if ecc else None,
        uncorrected_errors=ask("GetTotalEccErrors", UNCORRECTED, VOLATILE) if ecc else None,
        remap_pending=bool(rows[2]) if rows else None,
        remap_failed=bool(rows[3]) if rows else None,
        persistence=_as_bool(ask("GetPersistenceMode")),
        **_read_rates(ask),
    )


def _read_rates(ask: Callable[..., Any]) -> dict[str, Any]:
    """The figures of clocks (MHz), power (W) and the PCIe link."""
    watts = {
        "power_watts": ask("GetPowerUsage"),
        "power_limit_watts": ask("GetEnforcedPowerLimit"),
        "default_power_limit_watts": ask("GetPowerManagementDefaultLimit"),
    }
    return {
        **{name: None if value is None else value / 1000 for name, value in watts.items()},
        "sm_mhz": ask("GetClockInfo", SM_CLOCK),
        "max_sm_mhz": ask("GetMaxClockInfo", SM_CLOCK),
        "memory_mhz": ask("GetClockInfo", MEMORY_CLOCK),
        "max_memory_mhz": ask("GetMaxClockInfo", MEMORY_CLOCK),
        "link_generation": ask("GetCurrPcieLinkGeneration"),
        "max_link_generation": ask("GetMaxPcieLinkGeneration"),
        "link_width": ask("GetCurrPcieLinkWidth"),
        "max_link_width": ask("GetMaxPcieLinkWidth"),
    }


def _as_bool(number: int | None) -> bool | None:
    return None if number is None else bool(number)


def name_holds(mask: int) -> tuple[str, ...]:
    """What holds the clocks down, for the bits that are set.

    >>> name_holds(0x44), name_holds(0x1)
    (('the power limit', 'heat (hardware)'), ())
    """
    return tuple(name for bit, name in HOLDS.items() if mask & bit)


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

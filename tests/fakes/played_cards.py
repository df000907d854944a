"""Cards that are played for `labkit prove`: what its measuring processes print about them.

The healthy one has what an H100 80GB HBM3 reached in its first real run.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

from labkit.devices.detect import Detection, Device
from labkit.doctor.check import Finding
from labkit.doctor.run import Examination
from labkit.process import CommandResult
from labkit.prove.run import ProveTools

UUID = "GPU-5d1c0f2e-9a7b-4c3d-8e6f-1a2b3c4d5e6f"
H100 = "NVIDIA H100 80GB HBM3"
GIB = 2**30
HARDWARE = {
    "compute_capability": "9.0",
    "sm_count": 132,
    "memory_bytes": 79 * GIB,
    "max_sm_mhz": 1980,
    "max_memory_mhz": 2619,
    "bus_width_bits": 5120,
    "power_limit_watts": 700.0,
    "default_power_limit_watts": 700.0,
    "max_link_generation": 5,
    "max_link_width": 16,
    "ecc_errors": 0,
    "remapped_rows": 0,
    "row_remap_pending": False,
    "row_remap_failed": False,
    "mig_enabled": False,
    "total_bytes": 80 * GIB,
    "processes": 0,
    "used_bytes": 0,
}
LOAD = {
    "sm_mhz": 1290,
    "memory_mhz": 2619,
    "power_watts": 699.0,
    "temperature_celsius": 58,
    "clock_reasons": ["power cap"],
    "link_generation": 5,
    "link_width": 16,
}
# Key, unit and value of each figure, by the step that measures it.
FIGURES = {
    "matmul": (
        ("matmul.bfloat16", "TFLOP/s", 722.0),
        ("matmul.tf32", "TFLOP/s", 358.5),
        ("matmul.float8", "TFLOP/s", 1266.0),
        ("matmul.float32", "TFLOP/s", 51.6),
    ),
    "attention": (
        ("attention.cudnn", "TFLOP/s", 602.9),
        ("attention.flash", "TFLOP/s", 346.0),
        ("attention.math", "TFLOP/s", 35.6),
    ),
    "copies": (("copy.device", "GB/s", 3028.0), ("sum.float32", "GB/s", 3094.0)),
    "transfers": (
        ("copy.to.pinned", "GB/s", 55.0),
        ("copy.from.pinned", "GB/s", 55.1),
        ("copy.to.pageable", "GB/s", 15.8),
    ),
    "overheads": (("launch", "us", 15.9),),
    "sustained": (("sustained.rate", "TFLOP/s", 640.0), ("sustained.hold", "%", 98.0)),
}
BALANCE = {
    "kind": "cuda",
    "total_bytes": 80 * GIB,
    "free_bytes": 78 * GIB,
    "driver_reserved_bytes": GIB // 2,
    "this_process": {
        "allocated_bytes": GIB // 2,
        "cached_bytes": GIB // 2,
        "context_bytes": GIB // 2,
        "used_bytes": 3 * GIB // 2,
    },
    "other_processes_bytes": 0,
}
SMI = {
    "memory.total": str(80 * 1024),
    "memory.reserved": "512",
    "memory.used": "1536",
    "memory.free": str(78 * 1024),
}
FACTS = {
    "build": {"version": "2.11.0+cu130", "cuda": "13.0", "hip": None, "xpu": None},
    "devices": [{"torch_name": "cuda:0", "name": H100, "compute_capability": "9.0"}],
    "architectures": ["sm_90"],
    "refusal": None,
    "forked": False,
}


def play_card(
    *,
    hardware: Mapping[str, Any] | None = None,
    load: Mapping[str, Any] | None = None,
    values: Mapping[str, float] | None = None,
    steps: Iterable[str] = FIGURES,
) -> list[dict[str, Any]]:
    """The events of a card: a healthy H100's, with these differences."""
    events: list[dict[str, Any]] = [
        {"idle": {**LOAD, "sm_mhz": 345, "clock_reasons": [], "power_watts": 74.0}},
        {"start": "import"},
        {"step": "import", "seconds": 2.0},
        {"facts": FACTS},
        {"hardware": {**HARDWARE, **(hardware or {})}},
        {"start": "verify"},
        {"step": "allocate", "seconds": 0.1, "words": "64 MiB"},
        {"step": "compute", "seconds": 0.1, "words": "within 0.001"},
        {"done": "verify", "seconds": 0.2},
    ]
    for step in steps:
        events.append({"start": step})
        if step == "sustained":
            events += [
                {"load": {**LOAD, **(load or {}), "seconds": n * 0.5, "rate": 640.0}}
                for n in range(1, 7)
            ]
        events += [
            make_figure(key, unit, (values or {}).get(key, value))
            for key, unit, value in FIGURES[step]
        ]
        events.append({"done": step, "seconds": 1.0})
    return [*events, {"balance": BALANCE}, {"smi": SMI}, {"step": "end"}]


def make_figure(key: str, unit: str, value: float) -> dict[str, Any]:
    """The event of one figure."""
    figure = {"key": key, "title": key.replace(".", ", "), "unit": unit, "value": value}
    spread = {"slow": value * 0.99, "fast": value * 1.01}
    intensity = 1365.0 if key.startswith("matmul") else 0.25 if key == "sum.float32" else None
    return {"figure": {**figure, **spread, "intensity": intensity}}


CARDS: dict[str, list[dict[str, Any]]] = {
    "healthy": play_card(),
    "throttled": play_card(
        load={"clock_reasons": ["hardware thermal slowdown"], "sm_mhz": 600},
        values={"matmul.bfloat16": 310.0, "sustained.rate": 220.0, "sustained.hold": 61.0},
    ),
    "capped": play_card(
        hardware={"power_limit_watts": 350.0},
        load={"sm_mhz": 700, "power_watts": 349.0},
        values={"sustained.rate": 380.0},
    ),
    "x4-linked": play_card(
        load={"link_width": 4},
        values={"copy.to.pinned": 13.4, "copy.from.pinned": 13.2, "copy.to.pageable": 9.0},
    ),
    "worn": play_card(hardware={"ecc_errors": 3, "row_remap_failed": True}),
}

Raise = BaseException | type[BaseException]


class PlayedStream:
    """Plays the processes that measure: each call takes the next script.

    A script is a list of events; a text is a line of other output, and an exception is raised.
    A process whose script does not end with the event "end" ended with exit code -11.
    """

    def __init__(self, *scripts: Sequence[dict[str, Any] | str | Raise]) -> None:
        self.scripts = list(scripts)
        self.plans: list[dict[str, Any]] = []

    def __call__(
        self,
        arguments: Sequence[str],
        *,
        timeout_seconds: float,
        on_line: Callable[[str], None],
        environment: Mapping[str, str],
    ) -> CommandResult:
        """Passes the script's lines on, and returns how the process ended."""
        self.plans.append(json.loads(arguments[-1]))
        script = self.scripts.pop(0)
        for event in script:
            if isinstance(event, (dict, str)):
                on_line(event if isinstance(event, str) else json.dumps(event))
            else:
                raise event
        ended = bool(script) and script[-1] == {"step": "end"}
        return CommandResult(tuple(arguments), 0 if ended else -11)


def make_detection(*, gpu: bool = True, cpu: bool = False, **facts: Any) -> Detection:
    """A machine with an H100, a CPU, or both."""
    devices = [Device("cuda", "cuda:0", H100, UUID, 80 * GIB, driver="580.159.04")] if gpu else []
    if cpu:
        devices.append(Device("cpu", "cpu", "Xeon", cores=16.0))
    return Detection("cuda:0" if gpu else "cpu", tuple(devices), (), **facts)


def make_tools(stream: PlayedStream, *findings: Finding, **facts: Any) -> ProveTools:
    """The tools of a played machine; without ``findings``, the doctor finds one thing well."""
    found = findings or (Finding("ok", "driver 580.159.04", check="driver"),)
    return ProveTools(
        **{
            "examine": lambda: Examination(found),
            "explain": lambda text: None,
            "stream": stream,
            "run": lambda arguments, **_: CommandResult(tuple(arguments), 1, stderr="no torch"),
            "labs": lambda *_: (),
            "clock": iter(range(10_000)).__next__,
            "environment": {},
            **facts,
        }
    )

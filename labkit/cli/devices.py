"""``labkit devices``: what is here to compute on, in words or as JSON."""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING

from labkit.cli import add_common, print_json
from labkit.errors import ExitCode
from labkit.units import format_bytes

if TYPE_CHECKING:
    from labkit.devices.detect import Detection, Device


def add_commands(subparsers: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Adds ``devices``."""
    parser = subparsers.add_parser(
        "devices",
        help="list the devices here",
        description="The accelerators and the CPU of this machine, and which one torch takes.",
    )
    add_common(parser)
    parser.set_defaults(run=show_devices)


def show_devices(arguments: argparse.Namespace) -> int:
    """Prints every device and why there is no accelerator; always exits 0."""
    from labkit.devices.detect import detect_devices

    detection = detect_devices()
    if arguments.json:
        print_json(describe_detection(detection))
    else:
        print(format_detection(detection))
    return ExitCode.OK


def describe_detection(detection: Detection) -> dict[str, object]:
    """The detection as ``--json`` prints it; what is unknown is null."""
    return {
        "best": detection.best,
        "devices": [device._asdict() for device in detection.devices],
        "notes": list(detection.notes),
    }


def format_detection(detection: Detection) -> str:
    """The detection as a person reads it: the best device, each device's facts, the notes."""
    blocks = [f"best device: {detection.best or 'unknown'}"]
    blocks += [_format_device(device) for device in detection.devices]
    if detection.notes:
        blocks.append("\n".join(f"note: {note}" for note in detection.notes))
    return "\n\n".join(blocks)


def _format_device(device: Device) -> str:
    facts = _list_cpu_facts(device) if device.kind == "cpu" else _list_gpu_facts(device)
    title = device.torch_name or "gpu"
    lines = [f"{title:<8}{device.name or 'unknown'}"]
    lines += [f"        {label:<12}{fact}" for label, fact in facts]
    return "\n".join(lines)


def _list_cpu_facts(cpu: Device) -> list[tuple[str, str]]:
    memory = format_bytes(cpu.total_bytes)
    if cpu.limit_bytes is not None:
        memory = f"{format_bytes(cpu.limit_bytes)} for this container, of {memory}"
    extensions = cpu.vector_extensions
    words = "unknown" if extensions is None else ", ".join(extensions) or "none"
    return [("cores", _format_cores(cpu)), ("memory", memory), ("vectors", words)]


def _format_cores(cpu: Device) -> str:
    usable, logical = _count(cpu.cores), _count(cpu.logical_cores)
    text = f"{usable} usable here" if usable == logical else f"{usable} usable here, of {logical}"
    return f"{text} ({_count(cpu.physical_cores)} physical)"


def _count(number: float | None) -> str:
    return "unknown" if number is None else f"{number:g}"


def _list_gpu_facts(gpu: Device) -> list[tuple[str, str]]:
    memory = format_bytes(gpu.total_bytes)
    facts = [
        ("memory", f"{memory}, split by MIG" if gpu.mig else memory),
        ("capability", gpu.compute_capability or "unknown"),
        ("driver", f"{gpu.driver or 'unknown'} (CUDA {gpu.cuda or 'unknown'})"),
        ("uuid", gpu.uuid or "unknown"),
    ]
    if gpu.torch_name is None:
        facts.append(("torch name", "none, or not known"))
    return facts

"""``labkit devices``: the devices of this machine, as text or JSON, and whether they compute."""

from __future__ import annotations

import argparse
import functools
import os
import re
import sys
from typing import TYPE_CHECKING

from labkit.cli import add_common, print_json
from labkit.errors import ExitCode, UsageError
from labkit.text import escape_controls, format_bytes, format_seconds

if TYPE_CHECKING:
    from labkit.devices.detect import Detection, Device
    from labkit.devices.verify import Advice, DeviceVerdict, SelfTestStep, Verification

EPILOG = """\
exit codes: 0 the devices are listed and, with --verify, they work. With --verify:
1 a device that torch lists failed; 3 the DEVICE is not available; 5 torch, the driver or a GPU
is broken. A GPU that is hidden, or that this build of torch does not support, is reported and
is not a failure, unless it is the DEVICE, as in --verify cuda.
"""
ALL = "all"
DONE = {"import": "imported", "allocate": "allocated", "compute": "computed", "compile": "compiled"}


def add_commands(subparsers: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Adds ``devices``."""
    parser = subparsers.add_parser(
        "devices",
        help="list the devices of this machine",
        description="The accelerators and the CPU of this machine, and which one torch uses.",
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument(
        "--verify",
        nargs="?",
        const=ALL,
        metavar="DEVICE",
        help="test each device with torch (or one, such as cuda:0): allocate, compute, compile; "
        "print why a device cannot be used",
    )
    add_common(parser)
    parser.set_defaults(run=show_devices)


def show_devices(arguments: argparse.Namespace) -> int:
    """Prints every device and why there is no accelerator; with --verify, the verdicts."""
    from labkit.devices.detect import detect_devices

    asked = arguments.verify
    if asked is not None and not re.fullmatch(r"[a-z]+(:\d+)?", asked):
        cause = "a device is named as in torch: cpu, cuda, cuda:1, mps, xpu"
        raise UsageError(f"invalid --verify {asked!r}", cause=cause, fix="labkit devices")
    detection = detect_devices()
    if asked is not None:
        return _show_verification(arguments, detection)
    if arguments.json:
        print_json(describe_detection(detection))
    else:
        print(escape_controls(format_detection(detection)))
    return ExitCode.OK


def _show_verification(arguments: argparse.Namespace, detection: Detection) -> int:
    from labkit.devices.verify import verify_devices
    from labkit.process import run_working

    verification = verify_devices(
        detection,
        # The self-test must import this Python's torch, so it gets this environment unchanged.
        functools.partial(run_working, environment=os.environ),
        explain_known,
        asked=None if arguments.verify == ALL else arguments.verify,
        on_step=lambda words: print(escape_controls(words), file=sys.stderr, flush=True),
    )
    if verification.best:
        detection = detection._replace(best=verification.best)
    if arguments.json:
        print_json({**describe_detection(detection), **describe_verification(verification)})
    else:
        screen = f"{format_detection(detection)}\n\n{format_verification(verification)}"
        print(escape_controls(screen))
    return judge_exit(verification)


def explain_known(text: str) -> Advice | None:
    """The cause of a known error, and the command that fixes it on this system."""
    from labkit.devices.verify import Advice
    from labkit.host.distribution import read_distribution
    from labkit.known_errors.match import explain_text

    found = explain_text(text).first
    return Advice(found.error.cause, found.error.fix.on(read_distribution())) if found else None


def judge_exit(verification: Verification) -> ExitCode:
    """The exit code; a failed device takes precedence over a broken driver."""
    if any(one.listed and not one.verified for one in verification.verdicts):
        return ExitCode.FAILED
    broken = any(one.broken for one in verification.verdicts)
    return ExitCode.ENGINE if broken else ExitCode.OK


def describe_detection(detection: Detection) -> dict[str, object]:
    """The detection as ``--json`` prints it; what is unknown is null."""
    return {
        "best": detection.best,
        "devices": [device._asdict() for device in detection.devices],
        "notes": list(detection.notes),
    }


def format_detection(detection: Detection) -> str:
    """The detection as text: the best device, each device's facts, the notes."""
    blocks = [f"best device: {detection.best or 'unknown'}"]
    blocks += [_format_device(device) for device in detection.devices]
    if detection.notes:
        blocks.append("\n".join(f"note: {note}" for note in detection.notes))
    return "\n\n".join(blocks)


def describe_verification(verification: Verification) -> dict[str, object]:
    """What ``--verify`` adds to the JSON object: torch's build, and a verdict for each device."""
    facts = verification.torch
    return {
        "torch": facts.build._asdict() if facts else None,
        "verified": [
            {**one._asdict(), "steps": [step._asdict() for step in one.steps]}
            for one in verification.verdicts
        ],
    }


def format_verification(verification: Verification) -> str:
    """For each device: the duration of each step, or why it does not work."""
    lines = ["verified:"]
    for one in verification.verdicts:
        title = one.torch_name or ("cpu" if one.kind == "cpu" else "gpu")
        lines.append(f"{title:<8}{_format_verdict(one)}")
        if one.fix:
            lines.append(f"{'':<8}try: {one.fix}")
    return "\n".join(lines)


def _format_verdict(one: DeviceVerdict) -> str:
    if one.verified:
        return f"works: {_format_steps(one.steps)}"
    if one.listed:
        return f"fails: {one.cause}"
    return f"{one.name or 'unknown'} cannot be used: {one.cause}"


def _format_steps(steps: tuple[SelfTestStep, ...]) -> str:
    """The steps with their durations, then the skipped ones with the reasons."""
    done = [
        f"{DONE[step.name]} {f'{step.words} ' if step.name == 'allocate' else ''}"
        f"in {format_seconds(step.seconds)}"
        for step in steps
        if not step.skipped and step.name != "import"
    ]
    skipped = [f"; not {DONE[step.name]}: {step.skipped}" for step in steps if step.skipped]
    return ", ".join(done) + "".join(skipped)


def _format_device(device: Device) -> str:
    facts = _list_cpu_facts(device) if device.kind == "cpu" else _list_gpu_facts(device)
    title = device.torch_name or ("mig" if device.parent_uuid else "gpu")
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
    facts = [
        ("memory", _format_memory(gpu)),
        ("capability", gpu.compute_capability or "unknown"),
    ]
    if gpu.kind == "cuda":
        facts += [
            ("driver", f"{gpu.driver or 'unknown'} (CUDA {gpu.cuda or 'unknown'})"),
            ("uuid", gpu.uuid or "unknown"),
        ]
    if gpu.parent_uuid:
        facts.append(("part of", gpu.parent_uuid))
    if gpu.torch_name is None:
        facts.append(("torch name", "none, or unknown"))
    return facts


def _format_memory(gpu: Device) -> str:
    memory = format_bytes(gpu.total_bytes)
    if gpu.unified:
        return f"{memory}, shared with the system"
    return f"{memory}, split by MIG" if gpu.mig else memory

"""``labkit devices``: the devices of this machine, what they do now, and whether they compute."""

from __future__ import annotations

import argparse
import functools
import os
import re
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from labkit.cli import add_common, advise, is_terminal, print_json
from labkit.errors import ExitCode, UsageError
from labkit.text import escape_controls, format_bytes, format_seconds, shorten

if TYPE_CHECKING:
    from labkit.devices.detect import Detection, Device
    from labkit.devices.telemetry import GpuPath, GpuTelemetry, Telemetry
    from labkit.devices.verify import Advice, DeviceVerdict, SelfTestStep, Verification

EPILOG = """\
exit codes: 0 the devices are listed and, with --verify, they work. With --verify:
1 a device that torch lists failed; 3 the DEVICE is not available; 5 torch, the driver or a GPU
is broken. A GPU that is hidden, or that this build of torch does not support, is reported and
is not a failure, unless it is the DEVICE, as in --verify cuda.
"""
ALL = "all"
WATCH_SECONDS = 2.0
LONGEST_WATCH_SECONDS = 24 * 3600.0
GIB = 2**30
CLEAR = "\x1b[H\x1b[2J"  # the cursor to the top left, and the screen cleared
DONE = {"import": "imported", "allocate": "allocated", "compute": "computed", "compile": "compiled"}


def add_commands(subparsers: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Adds ``devices``."""
    parser = subparsers.add_parser(
        "devices",
        help="list the devices of this machine",
        description="The accelerators and the CPU of this machine, what they do now, and which one "
        "torch uses.",
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    what = parser.add_mutually_exclusive_group()
    what.add_argument(
        "--verify",
        nargs="?",
        const=ALL,
        metavar="DEVICE",
        help="test each device with torch (or one, such as cuda:0): allocate, compute, compile; "
        "print why a device cannot be used",
    )
    what.add_argument(
        "--watch",
        nargs="?",
        const=WATCH_SECONDS,
        type=float,
        metavar="SECONDS",
        help=f"print the devices again every SECONDS ({WATCH_SECONDS:g}) until Ctrl-C",
    )
    what.add_argument(
        "--report",
        action="store_true",
        help="print one block to paste into an issue: versions, devices, variables; no tokens, no "
        "names of users or hosts",
    )
    parser.add_argument(
        "--all",
        action="store_true",
        help="print everything that is known of each device (--json has it always)",
    )
    add_common(parser)
    parser.set_defaults(run=show_devices)


def show_devices(arguments: argparse.Namespace) -> int:
    """Prints every device and why there is no accelerator; with --verify, the verdicts."""
    from labkit.devices.detect import detect_devices

    asked = arguments.verify
    if asked is not None and not re.fullmatch(rf"{ALL}|(cpu|cuda|mps|xpu)(:\d+)?", asked):
        cause = "a device is named as in torch: cpu, cuda, cuda:1, mps, xpu"
        raise UsageError(f"invalid --verify {asked!r}", cause=cause, fix="labkit devices")
    if asked is not None:
        return _show_verification(arguments, detect_devices())
    if arguments.watch is not None:
        return _watch(arguments)
    if arguments.report:
        return _show_report(arguments)
    detection, telemetry = detect_devices(), _read_telemetry()
    if arguments.json:
        print_json(describe_detection(detection, telemetry))
    else:
        _print_devices(detection, telemetry, everything=arguments.all)
    return ExitCode.OK


def _print_devices(
    detection: Detection, telemetry: Telemetry, *, everything: bool, start: str = "", end: str = ""
) -> None:
    """Prints the devices, on a terminal folded to its width."""
    columns = _measure_columns()
    screen = format_devices(detection, telemetry, everything=everything, columns=columns)
    screen = escape_controls(advise(screen))
    if start:
        screen = cut_screen(screen, columns, _measure_rows())
    print(f"{start}{screen}{end}", flush=True)


def cut_screen(screen: str, columns: int | None, rows: int) -> str:
    """The lines of a screen that a terminal shows without scrolling; the last one counts the rest.

    A line that is wider than the terminal takes several rows. Two rows stay free: for the blank
    line at the end, and for the cursor.

    >>> cut_screen("a\\nb\\nc\\nd", 80, 5)
    'a\\nb\\n... 2 more lines: labkit devices, or a taller terminal'
    """
    lines = screen.splitlines()
    taken = [max(1, -(-len(line) // columns)) if columns else 1 for line in lines]
    free = rows - 2
    if sum(taken) <= free:
        return screen
    shown = 0
    while shown < len(lines) and sum(taken[: shown + 1]) < free:
        shown += 1
    rest = advise(f"... {len(lines) - shown} more lines: labkit devices, or a taller terminal")
    return "\n".join([*lines[:shown], rest[:columns]])


def _measure_rows() -> int:
    import shutil  # slow: it imports archive formats too

    return shutil.get_terminal_size().lines


def _measure_columns() -> int | None:
    import shutil  # slow: it imports archive formats too

    return shutil.get_terminal_size().columns if is_terminal() else None


def _read_telemetry() -> Telemetry:
    from labkit.devices.telemetry import Telemetry, read_telemetry

    return Telemetry() if sys.platform == "darwin" else read_telemetry()


def _watch(arguments: argparse.Namespace, sleep: Callable[[float], None] = time.sleep) -> int:
    """Prints the devices until Ctrl-C: on a terminal in place, elsewhere one after the other."""
    from labkit.devices.detect import detect_devices

    if arguments.json or not 0 < arguments.watch <= LONGEST_WATCH_SECONDS:
        what = "--json" if arguments.json else f"{arguments.watch:g} seconds"
        raise UsageError(f"--watch cannot be used with {what}", fix="labkit devices --watch")
    try:
        while True:
            detection, telemetry = detect_devices(), _read_telemetry()
            start = CLEAR if is_terminal() else ""
            _print_devices(detection, telemetry, everything=arguments.all, start=start, end="\n")
            sleep(arguments.watch)
    except KeyboardInterrupt:  # the only way to end it
        return ExitCode.OK


def _show_report(arguments: argparse.Namespace) -> int:
    """Prints the block for an issue."""
    from labkit.devices.detect import detect_devices
    from labkit.devices.report import describe_report, format_report, read_report
    from labkit.process import run_command

    report = read_report(detect_devices(), _read_telemetry(), run_command, os.environ)
    if arguments.json:
        print_json(describe_report(report))
    else:
        print(escape_controls(advise(format_report(report))))
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
        print(escape_controls(fold_screen(advise(screen), _measure_columns())))
    return judge_exit(verification)


def explain_known(text: str) -> Advice | None:
    """The cause of a known error, and the command that fixes it on this system and its GPUs."""
    from labkit.devices.verify import Advice
    from labkit.host.distribution import read_distribution
    from labkit.host.gpu import is_wsl, list_bus_gpus
    from labkit.host.packages import choose_target
    from labkit.known_errors.match import explain_text

    found = explain_text(text, signs={"lab"}).first
    if found is None:
        return None
    target = choose_target(gpu.capability for gpu in list_bus_gpus() if gpu.capability)
    fix = found.error.fix.on(read_distribution(), target, wsl=is_wsl(Path("/")))
    return Advice(found.error.cause, fix)


def judge_exit(verification: Verification) -> ExitCode:
    """The exit code; a failed device takes precedence over a broken driver."""
    if any(one.listed and not one.verified for one in verification.verdicts):
        return ExitCode.FAILED
    broken = any(one.broken for one in verification.verdicts)
    return ExitCode.ENGINE if broken else ExitCode.OK


def describe_detection(
    detection: Detection, telemetry: Telemetry | None = None
) -> dict[str, object]:
    """The detection as ``--json`` prints it; what is unknown is null."""
    described: dict[str, object] = {
        "best": detection.best,
        "devices": [device._asdict() for device in detection.devices],
        "notes": list(detection.notes),
    }
    if telemetry is not None:
        described["telemetry"] = [gpu.describe() for gpu in telemetry.gpus]
        described["paths"] = [path._asdict() for path in telemetry.paths]
        described["processes"] = [user._asdict() for user in list_users(telemetry)]
    return described


class GpuUser(NamedTuple):
    """A process that holds memory of a GPU (or MIG instance) by UUID; unknown is None."""

    pid: int
    uuid: str | None
    used_bytes: int | None = None
    user: str | None = None
    command: str | None = None


def list_users(telemetry: Telemetry) -> list[GpuUser]:
    """The processes on all GPUs, with their users and commands as far as this system knows them.

    In a container the ids are usually the host's, and mean nothing here.
    """
    from labkit.memory.balance.read import read_command, sees_host_ids

    known = sees_host_ids()
    return [
        GpuUser(
            process.pid,
            one.uuid,
            process.used_bytes,
            _name_owner(process.pid) if known else None,
            read_command(process.pid) if known else None,
        )
        for one in telemetry.memory
        for process in one.processes or ()
    ]


def _name_owner(pid: int) -> str | None:
    import pwd

    try:
        owner = Path(f"/proc/{pid}").stat().st_uid
        return pwd.getpwuid(owner).pw_name
    except OSError:
        return None
    except KeyError:  # a user without an entry
        return str(owner)


def format_devices(
    detection: Detection,
    telemetry: Telemetry,
    *,
    everything: bool = False,
    columns: int | None = None,
) -> str:
    """The devices as text: a table that fits 80 columns, or everything that is known.

    Lines fold at ``columns`` (None: not at all); in fewer than 80 each GPU has lines of its own.
    """
    screen = (
        format_detection(detection, telemetry)
        if everything
        else _format_table(detection, telemetry, columns)
    )
    return fold_screen(screen, columns)


# What comes before the text that a long line goes on with: a label of --all, a device, or "note:".
LABEL = re.compile(r"note: | {8}[A-Za-z ]{12}(?=\S)|\S+ {2,}| *")
MATRIX = re.compile(r"(?:GPU\d+)? +(?:-|GPU\d+) ")


def fold_screen(screen: str, columns: int | None) -> str:
    """The screen with its long lines folded at ``columns``; commands and matrices stay whole."""
    if columns is None:
        return screen
    return "\n".join(_fold_line(line, columns) for line in screen.splitlines())


def _fold_line(line: str, columns: int) -> str:
    if len(line) <= columns or MATRIX.match(line) or line.lstrip().startswith("try: "):
        return line
    label = LABEL.match(line)
    indent = " " * min(label.end() if label else 0, columns // 2)
    import textwrap

    return textwrap.fill(
        line.lstrip(),
        columns,
        initial_indent=line[: len(line) - len(line.lstrip())],
        subsequent_indent=indent,
        break_on_hyphens=False,
    )


def _format_table(detection: Detection, telemetry: Telemetry, columns: int | None) -> str:
    narrow = columns is not None and columns < WIDE
    gpus = [device for device in detection.devices if device.kind != "cpu"]
    lines = [f"best device: {detection.best or 'unknown'}", ""]
    if gpus and not narrow:
        lines.append(COLUMNS.format("", "GPU", "memory used", "load", "temp", "power"))
    for device in gpus:
        lines += _format_row(device, telemetry, narrow=narrow)
    lines += [_format_cpu(device) for device in detection.devices if device.kind == "cpu"]
    users = list_users(telemetry)
    if users:
        names = {device.uuid: _name_device(device) for device in gpus}
        header = USERS.format("process", "user", "device", "memory", "command")
        lines += ["", shorten(header, columns or WIDE)]
        lines += [_format_user(user, names, columns or WIDE) for user in users]
    if detection.notes:
        lines += ["", *(f"note: {note}" for note in detection.notes)]
    return "\n".join(lines)


COLUMNS = "{:<8}{:<22}{:>22}{:>9}{:>8}{:>11}"
USERS = "{:<8}{:<10}{:<9}{:>11}  {}"
WIDE = 80


def _name_device(device: Device) -> str:
    return device.torch_name or ("mig" if device.parent_uuid else "gpu")


def _format_row(device: Device, telemetry: Telemetry, *, narrow: bool) -> list[str]:
    """The line of a GPU's figures, and a line for each thing that is out of the ordinary."""
    state = telemetry.find(device.uuid)
    name = (device.name or "unknown").removeprefix("NVIDIA ").removeprefix("GeForce ")
    load, heat, power = "unknown", "unknown", "unknown"
    if device.kind != "cuda" or device.parent_uuid:
        load, heat, power = "", "", ""  # NVML reports them of whole NVIDIA GPUs only
    elif state:
        load = _add_unit(state.utilization_percent, " %")
        heat = _add_unit(state.load.temperature_celsius, " C")
        power = _format_power(state)
    used = _format_used(device, telemetry)
    row = (_name_device(device), shorten(name, 21), used, load, heat, power)
    lines = [COLUMNS.format(*row).rstrip()]
    if narrow:
        figures = {"load": load, "temp": heat, "power": power}
        known = [f"{label} {figure}" for label, figure in figures.items() if figure]
        lines = [f"{_name_device(device):<8}{name}", f"{'':<8}{', '.join([used, *known])}"]
    return lines + [f"{'':<8}{remark}" for remark in _list_remarks(device, state)]


def _add_unit(number: int | None, unit: str) -> str:
    return "unknown" if number is None else f"{number}{unit}"


def _format_power(state: GpuTelemetry) -> str:
    if state.load.power_watts is None:
        return "unknown"
    limit = state.hardware.power_limit_watts
    return (
        f"{state.load.power_watts:.0f}/{limit:.0f} W"
        if limit
        else f"{state.load.power_watts:.0f} W"
    )


def _format_used(device: Device, telemetry: Telemetry) -> str:
    memory = telemetry.find_memory(device.uuid)
    total = device.total_bytes
    if memory is None or memory.total_bytes is None or memory.free_bytes is None:
        return f"unknown of {format_bytes(total)}" if total else "unknown"
    used = memory.total_bytes - memory.free_bytes
    return f"{used / GIB:.1f} of {memory.total_bytes / GIB:.1f} GiB"


def _list_remarks(device: Device, state: GpuTelemetry | None) -> list[str]:
    """What a person should know of a GPU: only what is not as usual."""
    found = [device.trouble or ""]
    if device.unified:
        found.append("its memory is shared with the system")
    if device.mig:
        found.append("split by MIG")
    if state:
        if state.load.clock_reasons:
            clock = _format_clock(state.load.sm_mhz, state.hardware.max_sm_mhz)
            found.append(f"clocks held by {', '.join(state.load.clock_reasons)}: {clock}")
        width, most = state.load.link_width, state.hardware.max_link_width
        if width and most and width < most:
            found.append(f"PCIe: {width} of {most} lanes")
        if state.hardware.ecc_errors:
            found.append(f"{state.hardware.ecc_errors} uncorrected memory errors")
        if state.hardware.row_remap_failed or state.hardware.row_remap_pending:
            found.append(_describe_remapping(state))
    return [remark for remark in found if remark]


def _describe_remapping(state: GpuTelemetry) -> str:
    if state.hardware.row_remap_failed:
        return "a bad row of memory could not be replaced"
    return (
        "a bad row of memory waits for a reset to be replaced"
        if state.hardware.row_remap_pending
        else "fine"
    )


def _format_cpu(cpu: Device) -> str:
    facts = [cpu.name or "unknown", f"{_count(cpu.cores)} cores", _describe_cpu_memory(cpu)]
    return f"{_name_device(cpu):<8}{', '.join(facts)}"


def _format_user(user: GpuUser, names: dict[str | None, str], columns: int) -> str:
    row = USERS.format(
        user.pid,
        shorten(user.user or "unknown", 9),
        names.get(user.uuid, "gpu"),
        format_bytes(user.used_bytes),
        user.command or "unknown",
    )
    return shorten(row, columns)


def format_detection(detection: Detection, telemetry: Telemetry | None = None) -> str:
    """Everything about the devices as text: each one's facts, the paths between GPUs, the notes."""
    blocks = [f"best device: {detection.best or 'unknown'}"]
    blocks += [_format_device(device, telemetry) for device in detection.devices]
    if telemetry and telemetry.paths:
        blocks.append(_format_paths(telemetry.paths))
    if detection.notes:
        blocks.append("\n".join(f"note: {note}" for note in detection.notes))
    return "\n\n".join(blocks)


def _format_paths(paths: Sequence[GpuPath]) -> str:
    """The matrix of the paths between GPUs, as `nvidia-smi topo -m` draws it."""
    known = {(each.first, each.second): each.path or "unknown" for each in paths}
    known |= {(second, first): path for (first, second), path in known.items()}
    indices = sorted({index for pair in known for index in pair})
    rows = [["", *(f"GPU{index}" for index in indices)]]
    for first in indices:
        cells = ["-" if first == second else known[first, second] for second in indices]
        rows.append([f"GPU{first}", *cells])
    return "\n".join("".join(f"{cell:<8}" for cell in row).rstrip() for row in rows)


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


def _format_device(device: Device, telemetry: Telemetry | None) -> str:
    facts = _list_cpu_facts(device) if device.kind == "cpu" else _list_gpu_facts(device)
    state = telemetry.find(device.uuid) if telemetry else None
    facts += _list_state(state) if state else []
    lines = [f"{_name_device(device):<8}{device.name or 'unknown'}"]
    lines += [f"        {label:<12}{fact}" for label, fact in facts]
    return "\n".join(lines)


def _list_state(state: GpuTelemetry) -> list[tuple[str, str]]:
    """A GPU's state, one labeled line for each subject."""
    holds = (
        "unknown"
        if state.load.clock_reasons is None
        else ", ".join(state.load.clock_reasons) or "nothing"
    )
    now = _format_link(state.load.link_generation, state.load.link_width)
    most = _format_link(state.hardware.max_link_generation, state.hardware.max_link_width)
    ecc = {None: "unknown", False: "off", True: "on"}[state.ecc_enabled]
    if state.ecc_enabled:
        ecc += f", {_add_unit(state.hardware.ecc_errors, '')} uncorrected errors"
    if state.hardware.row_remap_pending or state.hardware.row_remap_failed:
        ecc += f"; {_describe_remapping(state)}"
    return [
        ("bus", state.bus_address or "unknown"),
        (
            "load",
            f"{_add_unit(state.utilization_percent, ' %')}, memory "
            f"{_add_unit(state.memory_utilization_percent, ' %')}, state "
            f"{'unknown' if state.performance_state is None else f'P{state.performance_state}'}",
        ),
        (
            "temperature",
            f"{_add_unit(state.load.temperature_celsius, ' C')}, fan "
            f"{_add_unit(state.fan_percent, ' %')}",
        ),
        ("power", f"{_format_power(state)}, default limit {_format_watts(state)}"),
        ("clocks", f"SM {_format_clock(state.load.sm_mhz, state.hardware.max_sm_mhz)}"),
        ("", f"memory {_format_clock(state.load.memory_mhz, state.hardware.max_memory_mhz)}"),
        ("held by", holds),
        ("PCIe", f"{now} now, {most} at most"),
        ("ECC", ecc),
        ("persistence", {None: "unknown", False: "off", True: "on"}[state.persistence]),
    ]


def _format_watts(state: GpuTelemetry) -> str:
    watts = state.hardware.default_power_limit_watts
    return "unknown" if watts is None else f"{watts:.0f} W"


def _format_clock(now: int | None, most: int | None) -> str:
    return "unknown" if now is None else f"{now} of {_add_unit(most, '')} MHz"


def _format_link(generation: int | None, width: int | None) -> str:
    return f"{generation}.0 x{width}" if generation and width else "unknown"


def _list_cpu_facts(cpu: Device) -> list[tuple[str, str]]:
    memory = _describe_cpu_memory(cpu)
    extensions = cpu.vector_extensions
    words = "unknown" if extensions is None else ", ".join(extensions) or "none"
    return [("cores", _format_cores(cpu)), ("memory", memory), ("vectors", words)]


def _describe_cpu_memory(cpu: Device) -> str:
    memory = format_bytes(cpu.total_bytes)
    if cpu.limit_bytes is None:
        return memory
    return f"{format_bytes(cpu.limit_bytes)} for this container, of {memory}"


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

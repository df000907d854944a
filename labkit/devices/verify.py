"""Verdicts on the devices: whether each computes, and if not, the cause and the fix.

Each device that torch lists runs the self-test in its own process, so that a crash or a hang is a
result too. The others get the reason why torch does not list them. This module does not import
torch.
"""

from __future__ import annotations

import json
import os
import platform
import re
import signal
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from labkit.devices.detect import HIDING, TORCH_KINDS, Detection, Device, explain_old_driver
from labkit.devices.nvml import strip_kind
from labkit.devices.torch_devices import TorchDevice, TorchFacts, has_kernels
from labkit.errors import DeviceMissingError
from labkit.host.distribution import read_distribution
from labkit.host.gpu import is_virtual, is_wsl, read_major
from labkit.host.packages import advise_driver
from labkit.host.torch_builds import NEEDS, InstalledTorch
from labkit.process import CommandResult, CommandRunner, name_python
from labkit.text import first_line, shorten

# Limits of work done, not of wall time: a busy machine took 180 s on a sound CPU.
LIST_SECONDS = 60.0
DEVICE_SECONDS = 180.0
# A self-test whose parent is gone ends itself after this many times its limit.
ORPHAN_LIMITS = 20
SELF_TEST = (sys.executable, "-m", "labkit.devices.self_test")


class Verification(NamedTuple):
    """Torch's facts (None: torch could not be asked), and a verdict on each device."""

    torch: TorchFacts | None
    verdicts: tuple[DeviceVerdict, ...]

    @property
    def best(self) -> str | None:
        """Torch's first device; None if torch could not be asked."""
        return self.torch.devices[0].torch_name if self.torch else None


def verify_devices(
    detection: Detection,
    run: CommandRunner,
    explain: Explain,
    *,
    asked: str | None = None,
    on_step: Callable[[str], None] = lambda words: None,
    environment: Mapping[str, str] = os.environ,
) -> Verification:
    """The verdict on every device, or on the device ``asked`` for by torch's name.

    Raises DeviceMissingError if torch does not list the device that is asked for.
    """
    on_step("asking torch for its devices ...")
    command = [*SELF_TEST, "list", f"{LIST_SECONDS * ORPHAN_LIMITS:g}"]
    answer = run(command, timeout_seconds=LIST_SECONDS)
    facts = read_facts(answer)
    advice = None if facts else explain_end(answer, LIST_SECONDS, "import", explain)
    listed = facts.devices if facts else ()
    known = match_devices(detection.devices, listed)
    missing = [
        judge_unlisted(device, facts, advice, explain, environment)
        for device in find_unlisted(detection.devices, known.values())
    ]
    if asked is not None:
        reasons = (advice.cause,) if advice else detection.notes
        listed, missing = (_find_asked(asked, listed, missing, reasons),), []
    elif detection.driver_trouble and not any(one.torch_name[:4] == "cuda" for one in listed):
        missing.insert(0, judge_driver(detection.driver_trouble))
    verdicts = []
    for device in listed:
        on_step(f"{device.torch_name}: allocating, computing, compiling ...")
        command = [*SELF_TEST, "try", f"{DEVICE_SECONDS * ORPHAN_LIMITS:g}", device.torch_name]
        answer = run(command, timeout_seconds=DEVICE_SECONDS)
        architectures = facts.architectures if facts else ()
        verdict = judge_self_test(device, answer, DEVICE_SECONDS, architectures, explain)
        verdicts.append(_complete(verdict, known.get(device.torch_name)))
    return Verification(facts, (*verdicts, *missing))


def _complete(verdict: DeviceVerdict, device: Device | None) -> DeviceVerdict:
    """The verdict with the names that NVML and the operating system give the device."""
    if device is None:
        return verdict
    name, uuid = verdict.name or device.name, device.uuid or verdict.uuid
    return verdict._replace(kind=device.kind, name=name, uuid=uuid)


def _find_asked(
    asked: str, listed: Sequence[TorchDevice], missing: list[DeviceVerdict], reasons: Sequence[str]
) -> TorchDevice:
    wanted = asked if ":" in asked or asked == "cpu" else f"{asked}:0"
    for device in listed:
        if device.torch_name == wanted:
            return device
    kind = wanted.partition(":")[0]
    named = [one for one in missing if TORCH_KINDS[one.kind] == kind]
    causes = [f"{one.name or 'a device'}: {one.cause}" for one in named]
    names = ", ".join(device.torch_name for device in listed)
    raise DeviceMissingError(
        f"--verify {asked}: torch has no such device here",
        cause="; ".join(causes or reasons) or f"torch lists {names}",
        fix=next((one.fix for one in named if one.fix), "labkit devices"),
    )


def read_facts(answer: CommandResult) -> TorchFacts | None:
    """Torch's facts, as the self-test printed them; None if it ended before that."""
    for event in read_events(answer.stdout):
        if "devices" in event:
            return TorchFacts(
                InstalledTorch(**event["build"]),
                tuple(TorchDevice(**device) for device in event["devices"]),
                tuple(event["architectures"]),
                event["refusal"],
                event["forked"],
            )
    return None


def match_devices(devices: Sequence[Device], listed: Sequence[TorchDevice]) -> dict[str, Device]:
    """The matched device for each of torch's device names; unmatched names are left out."""
    whole = _leave_out_split(devices)
    found: dict[str, Device] = {}
    # By UUID first: these matches are certain.
    for matches in (_is_same, _is_alike):
        for one in listed:
            free = [device for device in whole if device not in found.values()]
            matching = [device for device in free if matches(device, one)]
            if one.torch_name not in found and matching:
                named = (device for device in matching if device.torch_name == one.torch_name)
                found[one.torch_name] = next(named, matching[0])
    return found


def find_unlisted(devices: Sequence[Device], listed: Iterable[Device]) -> list[Device]:
    """The devices that torch does not list; a split GPU counts as its MIG instances."""
    taken = list(listed)
    return [device for device in _leave_out_split(devices) if device not in taken]


def _leave_out_split(devices: Sequence[Device]) -> list[Device]:
    split = {device.parent_uuid for device in devices if device.parent_uuid}
    return [device for device in devices if device.uuid is None or device.uuid not in split]


def _is_same(device: Device, one: TorchDevice) -> bool:
    return bool(device.uuid and one.uuid) and strip_kind(device.uuid) == strip_kind(one.uuid)


def _is_alike(device: Device, one: TorchDevice) -> bool:
    """True if the kinds match and no UUID differs; a MIG instance may have its GPU's UUID."""
    if device.trouble:
        return False
    if device.uuid and one.uuid:
        return bool(device.parent_uuid) and strip_kind(device.parent_uuid) == strip_kind(one.uuid)
    return TORCH_KINDS[device.kind] == one.torch_name.partition(":")[0]


# Torch's message if CUDA starts and all GPUs are hidden.
NO_GPUS = "No CUDA GPUs are available"
STEPS = ("import", "allocate", "compute", "compile")
FAILURES = {
    "import": "torch cannot be imported",
    "allocate": "it cannot allocate",
    "compute": "it does not compute",
    "compile": "torch.compile fails on it",
}
FORKED = "this process was forked after CUDA was started, and CUDA cannot be used in it"


class Advice(NamedTuple):
    """The cause of an error, and the command that fixes it (None: unknown)."""

    cause: str
    fix: str | None = None


# Finds the cause of an error message; None for an unknown one.
Explain = Callable[[str], "Advice | None"]


class SelfTestStep(NamedTuple):
    """One step of a self-test: its duration and result, or why it was skipped."""

    name: str
    seconds: float | None = None
    words: str | None = None
    skipped: str | None = None


class DeviceVerdict(NamedTuple):
    """Whether a device computes, and if not, the cause and the fix.

    ``listed``: torch lists it, so it was tested. ``broken``: the cause is a defect of the device,
    the driver or torch's build, and not a setting.
    """

    kind: str
    torch_name: str | None
    name: str | None
    uuid: str | None
    verified: bool
    listed: bool = True
    steps: tuple[SelfTestStep, ...] = ()
    cause: str | None = None
    fix: str | None = None
    broken: bool = False


def read_events(text: str) -> list[dict[str, Any]]:
    """The events that a self-test printed, one JSON object per line; other lines are skipped."""
    events = []
    for line in text.splitlines():
        try:
            event = json.loads(line)
        except ValueError:
            continue
        if isinstance(event, dict):
            events.append(event)
    return events


def judge_self_test(
    device: TorchDevice,
    answer: CommandResult,
    limit_seconds: float,
    architectures: tuple[str, ...],
    explain: Explain,
) -> DeviceVerdict:
    """The verdict on a tested device, from the output of its process and how it ended."""
    events = {event.get("step"): event for event in read_events(answer.stdout)}
    error = next((event["error"] for event in events.values() if "error" in event), None)
    steps = tuple(
        SelfTestStep(name, event.get("seconds"), event.get("words"), event.get("skipped"))
        for name in STEPS
        if (event := events.get(name)) is not None and "error" not in event
    )
    advice = None
    if error is not None or "end" not in events:
        failing = STEPS[len(steps)] if len(steps) < len(STEPS) else STEPS[-1]
        advice = (
            explain_error(error, failing, explain)
            if error is not None
            else explain_end(answer, limit_seconds, failing, explain)
        )
        if not has_kernels(device.compute_capability, architectures):
            advice = advice._replace(cause=_name_gap(device, architectures))
    return DeviceVerdict(
        kind=device.torch_name.partition(":")[0],
        torch_name=device.torch_name,
        name=device.name,
        uuid=device.uuid,
        verified=advice is None,
        steps=steps,
        cause=advice.cause if advice else None,
        fix=advice.fix if advice else None,
    )


def _name_gap(device: TorchDevice, architectures: tuple[str, ...]) -> str:
    capability, built = device.compute_capability, ", ".join(architectures)
    return f"torch has no kernel for its compute capability {capability}, only for {built}"


def explain_error(error: str, step: str, explain: Explain) -> Advice:
    """The cause of torch's error in a step; if unknown, the first line of the error."""
    known = explain(error)
    if known:
        return known._replace(cause=f"{FAILURES[step]}: {known.cause}")
    return Advice(f"{FAILURES[step]}: {_first_line(error)}")


def explain_end(answer: CommandResult, limit_seconds: float, step: str, explain: Explain) -> Advice:
    """Why a self-test ended early: it hung, was ended by a signal, or raised."""
    failure = FAILURES[step]
    if "No module named 'torch'" in answer.stderr:
        return Advice(
            "torch is not installed in this Python", f"{name_python()} -m pip install torch"
        )
    if answer.timed_out or "Timeout (" in answer.stderr:
        return Advice(
            f"{failure}: no result in {limit_seconds:g} s of work, the driver or a library hangs"
        )
    known = explain(answer.stderr)
    if known:
        return known._replace(cause=f"{failure}: {known.cause}")
    if answer.exit_code is not None and answer.exit_code < 0:
        return Advice(f"{failure}: the process was ended by {_name_signal(-answer.exit_code)}")
    return Advice(f"{failure}: {_first_line(answer.message)}")


def _name_signal(number: int) -> str:
    try:
        return signal.Signals(number).name
    except ValueError:
        return f"signal {number}"


def judge_driver(trouble: str) -> DeviceVerdict:
    """The verdict on an NVIDIA driver that does not answer: its GPUs are unknown."""
    return DeviceVerdict(
        "cuda", None, None, None, verified=False, listed=False, cause=trouble, broken=True
    )


def judge_unlisted(
    device: Device,
    facts: TorchFacts | None,
    advice: Advice | None,
    explain: Explain,
    environment: Mapping[str, str],
) -> DeviceVerdict:
    """The verdict on a device that torch does not list; ``advice`` is why ``facts`` are None."""
    reason = _explain_unlisted(device, facts, advice, explain, environment)
    return DeviceVerdict(
        kind=device.kind,
        torch_name=None,
        name=device.name,
        uuid=device.uuid,
        verified=False,
        listed=False,
        cause=reason.cause,
        fix=reason.fix,
        broken=reason.broken,
    )


class Reason(NamedTuple):
    """Why torch does not list a device: the cause, the command that fixes it, if it is a defect."""

    cause: str
    fix: str | None = None
    broken: bool = True


def _explain_unlisted(
    device: Device,
    facts: TorchFacts | None,
    advice: Advice | None,
    explain: Explain,
    environment: Mapping[str, str],
) -> Reason:
    if device.trouble:
        return Reason(device.trouble)
    if facts is None:
        return Reason(*(advice or Advice(FAILURES["import"])))
    known = explain(facts.refusal or "")
    fix = known.fix if known else None
    mismatch = _explain_mismatch(device, facts, fix)
    if mismatch:
        return mismatch
    hidden = _explain_hidden(device, environment)
    # The variable is not the cause if torch should see the device, or has another message.
    if hidden and device.torch_name is None and NO_GPUS in (facts.refusal or NO_GPUS):
        return hidden
    if known:
        return Reason(known.cause, fix)
    said = _first_line(facts.refusal or "")
    return Reason(f"torch says: {said}" if said else "torch does not list it, without a reason")


def _explain_mismatch(device: Device, facts: TorchFacts, fix: str | None) -> Reason | None:
    """Why torch's build or this process cannot use the device; None if unknown."""
    build = facts.build
    if not build.platforms.get(device.kind, True):
        return Reason(build.describe(), broken=False)
    if facts.forked:
        return Reason(FORKED, fix, broken=False)
    old = explain_old_driver(device.driver, device.cuda, build) if device.kind == "cuda" else None
    return Reason(old, fit_driver(device) or fix) if old else None


def fit_driver(device: Device) -> str | None:
    """What serves a GPU whose driver is too old for torch: a new driver, if no build runs on it.

    None if a build has code for the GPU and runs on this driver, or if that is unknown.
    """
    numbers = re.fullmatch(r"(\d+)\.(\d+)", device.compute_capability or "")
    major = read_major(device.driver)
    if numbers is None or major is None:
        return None
    capability = (int(numbers[1]), int(numbers[2]))
    machine = platform.machine()
    fitting = [needs for needs in NEEDS.values() if needs.has_code_for(capability, machine)]
    if not fitting or any(needs.driver <= major for needs in fitting):
        return None
    least = min(needs.driver for needs in fitting)
    wsl = is_wsl(Path("/"))
    virtual = is_virtual(device.name or "")
    return advise_driver(
        read_distribution(), capability, wsl=wsl, least=least, virtual=virtual
    ).command


def _explain_hidden(device: Device, environment: Mapping[str, str]) -> Reason | None:
    """The variable that hides a device from torch; None if none is set."""
    if device.parent_uuid:
        words = "CUDA gives a process one MIG instance, and this is another one"
        return Reason(words, f"export CUDA_VISIBLE_DEVICES={device.uuid}", broken=False)
    for name in HIDING.get(device.kind, ()):
        if name in environment:
            words = f"it is hidden by {name}={environment[name]!r}"
            return Reason(words, f"unset {name}", broken=False)
    return None


def _first_line(text: str) -> str:
    return shorten(first_line(text), 200)

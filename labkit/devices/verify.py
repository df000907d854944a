"""Does each device compute? Tried in processes of their own, so that a crash or hang is an answer.

What torch lists is tried step by step; for what is here and torch does not list, one sentence says
why. Nothing here imports torch.

Verdicts on devices: from what a trial printed and how it ended, to one sentence and a command.

Everything here is made of facts that are given: nothing is run, and torch is not imported.
"""

from __future__ import annotations

import json
import os
import signal
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, NamedTuple

from labkit.devices.detect import (
    HIDING,
    TORCH_KINDS,
    Detection,
    Device,
    explain_old_driver,
    strip_kind,
)
from labkit.devices.torch_devices import TorchDevice, TorchFacts, has_kernels
from labkit.errors import DeviceMissingError
from labkit.host.torch_builds import InstalledTorch
from labkit.process import CommandResult, CommandRunner

LIST_SECONDS = 60.0
DEVICE_SECONDS = 180.0  # mostly for torch.compile on a busy machine
# How much later a process is ended from outside, where it did not end itself.
GRACE_SECONDS = 15.0
TRIALS = (sys.executable, "-m", "labkit.devices.self_test")


class Verification(NamedTuple):
    """What came of verifying: torch's facts (None: it did not tell), and a verdict a device."""

    torch: TorchFacts | None
    verdicts: tuple[DeviceVerdict, ...]

    @property
    def best(self) -> str | None:
        """The device that torch takes first, None where torch did not tell."""
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
    """The verdict on every device, or on the one that is asked for by torch's name.

    Raises DeviceMissingError where torch does not list the one that is asked for.
    """
    on_step("asking torch for its devices ...")
    answer = run([*TRIALS, "list", f"{LIST_SECONDS:g}"], timeout_seconds=_wait(LIST_SECONDS))
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
        command = [*TRIALS, "try", f"{DEVICE_SECONDS:g}", device.torch_name]
        answer = run(command, timeout_seconds=_wait(DEVICE_SECONDS))
        architectures = facts.architectures if facts else ()
        verdict = judge_trial(device, answer, DEVICE_SECONDS, architectures, explain)
        verdicts.append(_complete(verdict, known.get(device.torch_name)))
    return Verification(facts, (*verdicts, *missing))


def _wait(limit_seconds: float) -> float:
    return limit_seconds + GRACE_SECONDS


def _complete(verdict: DeviceVerdict, device: Device | None) -> DeviceVerdict:
    """The verdict with the names that NVML and the operating system have for the device."""
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
    """What torch lists, as its trial printed it; None where it did not come to that."""
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
    """The device that is meant by each name of torch's, as far as one can be told."""
    whole = _leave_out_split(devices)
    found: dict[str, Device] = {}
    # By UUID first: what is found so is nobody else's.
    for matches in (_is_same, _is_alike):
        for one in listed:
            free = [device for device in whole if device not in found.values()]
            fitting = [device for device in free if matches(device, one)]
            if one.torch_name not in found and fitting:
                named = (device for device in fitting if device.torch_name == one.torch_name)
                found[one.torch_name] = next(named, fitting[0])
    return found


def find_unlisted(devices: Sequence[Device], listed: Iterable[Device]) -> list[Device]:
    """The devices that are here and that torch does not list; a split GPU is its slices."""
    taken = list(listed)
    return [device for device in _leave_out_split(devices) if device not in taken]


def _leave_out_split(devices: Sequence[Device]) -> list[Device]:
    split = {device.parent_uuid for device in devices if device.parent_uuid}
    return [device for device in devices if device.uuid is None or device.uuid not in split]


def _is_same(device: Device, one: TorchDevice) -> bool:
    return bool(device.uuid and one.uuid) and strip_kind(device.uuid) == strip_kind(one.uuid)


def _is_alike(device: Device, one: TorchDevice) -> bool:
    """True where nothing but the kind is there to go by, or a slice is told by its GPU's UUID."""
    if device.trouble:
        return False
    if device.uuid and one.uuid:
        return bool(device.parent_uuid) and strip_kind(device.parent_uuid) == strip_kind(one.uuid)
    return TORCH_KINDS[device.kind] == one.torch_name.partition(":")[0]


# Torch starts CUDA and is given no GPU: what it says where they are hidden from it.
NO_GPUS = "No CUDA GPUs are available"
STEPS = ("import", "allocate", "compute", "compile")
FAILURES = {
    "import": "torch cannot be imported",
    "allocate": "it cannot allocate",
    "compute": "it does not compute",
    "compile": "torch.compile fails on it",
}
FORKED = "CUDA was started before this process was forked, and does not survive that"


class Advice(NamedTuple):
    """What an error text comes from, and the command that mends it (None: not known)."""

    cause: str
    fix: str | None = None


# Turns what torch said into its cause; None where the text is not known.
Explain = Callable[[str], "Advice | None"]


class SelfTestStep(NamedTuple):
    """One step of a trial: how long it took, what it found, or why it was skipped."""

    name: str
    seconds: float | None = None
    words: str | None = None
    skipped: str | None = None


class DeviceVerdict(NamedTuple):
    """Whether a device computes, and if not, why, in one sentence.

    ``listed``: torch lists it, so it was tried. ``broken``: what is wrong lies below torch or in
    its build, and is not what somebody has set so.
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
    """The events that a trial printed, a JSON object a line; a line cut short is left out."""
    events = []
    for line in text.splitlines():
        try:
            event = json.loads(line)
        except ValueError:
            continue
        if isinstance(event, dict):
            events.append(event)
    return events


def judge_trial(
    device: TorchDevice,
    answer: CommandResult,
    limit_seconds: float,
    architectures: tuple[str, ...],
    explain: Explain,
) -> DeviceVerdict:
    """The verdict on a device that was tried, from what its process printed and how it ended."""
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
    """What torch's error in a step comes from, with torch's first line where it is not known."""
    known = explain(error)
    if known:
        return known._replace(cause=f"{FAILURES[step]}: {known.cause}")
    return Advice(f"{FAILURES[step]}: {_shorten(error)}")


def explain_end(answer: CommandResult, limit_seconds: float, step: str, explain: Explain) -> Advice:
    """Why a trial ended before it was through: it hung, died of a signal, or raised."""
    failure = FAILURES[step]
    if "No module named 'torch'" in answer.stderr:
        return Advice("torch is not installed in this Python", "python -m pip install torch")
    if answer.timed_out or "Timeout (" in answer.stderr:
        return Advice(f"{failure}: no end after {limit_seconds:g} s, the driver or a library hangs")
    known = explain(answer.stderr)
    if known:
        return known._replace(cause=f"{failure}: {known.cause}")
    if answer.exit_code is not None and answer.exit_code < 0:
        return Advice(f"{failure}: the process was ended by {_name_signal(-answer.exit_code)}")
    return Advice(f"{failure}: {_shorten(answer.message)}")


def _name_signal(number: int) -> str:
    try:
        return signal.Signals(number).name
    except ValueError:
        return f"signal {number}"


def judge_driver(trouble: str) -> DeviceVerdict:
    """The verdict on an NVIDIA driver that is here and does not answer: its GPUs are unknown."""
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
    """Why a device that is here is not one of torch's, in one sentence.

    ``advice`` is why torch told of no facts.
    """
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
    """Why torch does not list a device: cause, command that mends it, whether it is a defect."""

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
    # Where torch ought to see the device, or says something else, it is not the variable.
    if hidden and device.torch_name is None and NO_GPUS in (facts.refusal or NO_GPUS):
        return hidden
    if known:
        return Reason(known.cause, fix)
    said = _shorten(facts.refusal or "")
    return Reason(f"torch says: {said}" if said else "torch does not list it, and says not why")


def _explain_mismatch(device: Device, facts: TorchFacts, fix: str | None) -> Reason | None:
    """What this torch lacks for the device, or this process; None where nothing is known."""
    build = facts.build
    built = {"cuda": build.cuda, "rocm": build.hip, "xpu": build.xpu}
    if device.kind in built and not built[device.kind]:
        return Reason(build.describe(), broken=False)
    if facts.forked:
        return Reason(FORKED, fix, broken=False)
    old = explain_old_driver(device.driver, device.cuda, build) if device.kind == "cuda" else None
    return Reason(old, fix) if old else None


def _explain_hidden(device: Device, environment: Mapping[str, str]) -> Reason | None:
    """Which variable keeps a device from torch; None where none is set."""
    if device.parent_uuid:
        words = "CUDA gives a process one MIG slice, and it is another one"
        return Reason(words, f"export CUDA_VISIBLE_DEVICES={device.uuid}", broken=False)
    for name in HIDING.get(device.kind, ()):
        if name in environment:
            words = f"it is hidden by {name}={environment[name]!r}"
            return Reason(words, f"unset {name}", broken=False)
    return None


def _shorten(text: str) -> str:
    """The first line of a text that somebody else wrote, cut where it is long."""
    return next(iter(text.strip().splitlines()), "")[:200]

"""Does each device compute? Tried in processes of their own, so that a crash or hang is an answer.

What torch lists is tried step by step; for what is here and torch does not list, one sentence says
why. Nothing here imports torch.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import NamedTuple

from labkit.commands import CommandResult, CommandRunner
from labkit.devices.detect import TORCH_KINDS, Detection, Device
from labkit.devices.torch_devices import TorchBuild, TorchDevice, TorchFacts
from labkit.devices.verdicts import (
    Explain,
    Verdict,
    explain_end,
    judge_driver,
    judge_trial,
    judge_unlisted,
    read_events,
)
from labkit.devices.visibility import strip_kind
from labkit.errors import DeviceMissingError

LIST_SECONDS = 60.0
DEVICE_SECONDS = 180.0  # mostly for torch.compile on a busy machine
# How much later a process is ended from outside, where it did not end itself.
GRACE_SECONDS = 15.0
TRIALS = (sys.executable, "-m", "labkit.devices.trials")


class Verification(NamedTuple):
    """What came of verifying: torch's facts (None: it did not tell), and a verdict a device."""

    torch: TorchFacts | None
    verdicts: tuple[Verdict, ...]

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


def _complete(verdict: Verdict, device: Device | None) -> Verdict:
    """The verdict with the names that NVML and the operating system have for the device."""
    if device is None:
        return verdict
    name, uuid = verdict.name or device.name, device.uuid or verdict.uuid
    return verdict._replace(kind=device.kind, name=name, uuid=uuid)


def _find_asked(
    asked: str, listed: Sequence[TorchDevice], missing: list[Verdict], reasons: Sequence[str]
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
                TorchBuild(**event["build"]),
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

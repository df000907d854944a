"""Which device a run's notebooks get: ``--device`` against what is here."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field

from labkit.devices.detect import Detection
from labkit.errors import DeviceMissingError, UsageError

VISIBLE = "CUDA_VISIBLE_DEVICES"


@dataclass(frozen=True)
class DeviceChoice:
    """The device as torch names it on this machine (None: not knowable), and how it is imposed.

    ``environment`` goes to the kernels; ``asks_cuda`` is True where they can have a GPU.
    """

    name: str | None
    asks_cuda: bool
    environment: Mapping[str, str] = field(default_factory=dict)


def choose_device(asked: str, detection: Detection, environment: Mapping[str, str]) -> DeviceChoice:
    """What ``auto``, ``cpu``, ``cuda`` or ``cuda:N`` comes to here.

    With ``cuda:N`` the notebook sees that one GPU only, and calls it cuda:0. Raises
    DeviceMissingError where the device is not here, UsageError where the word is none of these.
    """
    found = re.fullmatch(r"auto|cpu|cuda(?::(\d+))?", asked)
    if found is None:
        raise UsageError(f"--device {asked} is no device", cause="it is auto, cpu, cuda or cuda:N")
    usable = (detection.best or "").startswith("cuda")
    if asked == "auto":
        return DeviceChoice(detection.best, usable)
    if asked == "cpu":
        return DeviceChoice("cpu", False, {VISIBLE: ""})
    if not usable:
        raise DeviceMissingError(
            f"--device {asked}: there is no GPU that torch can use here",
            cause="; ".join(detection.notes) or None,
            fix="labkit devices",
        )
    if found[1] is None:
        return DeviceChoice(detection.best, True)
    return _choose_numbered(int(found[1]), detection, environment)


def _choose_numbered(
    number: int, detection: Detection, environment: Mapping[str, str]
) -> DeviceChoice:
    visible = environment.get(VISIBLE)
    # A slice of a GPU has no number of its own. Torch calls AMD's GPUs cuda too.
    sound = [one for one in detection.devices if not one.trouble and not one.parent_uuid]
    gpus = [one for one in sound if one.kind == "cuda"] or [
        one for one in sound if one.kind == "rocm"
    ]
    # CUDA counts within the list that is set, so one entry of it means the same GPU alone.
    entries = [str(index) for index in range(len(gpus))]
    if visible is not None:
        entries = [entry.strip() for entry in visible.split(",")]
    known = [device.torch_name for device in gpus if device.torch_name]
    count = len(known) or len(entries)
    if number >= count:
        raise DeviceMissingError(
            f"--device cuda:{number}: torch has {_count_gpus(count)} here",
            cause=f"{VISIBLE}={visible!r} decides which" if visible is not None else None,
            fix="labkit devices",
        )
    return DeviceChoice(f"cuda:{number}", True, {VISIBLE: entries[number]})


def _count_gpus(count: int) -> str:
    return "1 GPU, cuda:0," if count == 1 else f"{count} GPUs, cuda:0 to cuda:{count - 1},"

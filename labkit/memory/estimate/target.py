"""What an estimate is held against: a device of this machine, a GPU by its name, or a size."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, NamedTuple

from labkit.errors import DeviceMissingError, UsageError
from labkit.memory.balance.model import MIB
from labkit.text import format_bytes, near_match

if TYPE_CHECKING:
    import torch

# Total memory in MiB as nvidia-smi shows it. A card's ECC and driver move it by a little.
KNOWN_GPUS = {
    "T4": 15_360,
    "V100 16GB": 16_160,
    "V100 32GB": 32_510,
    "A10": 23_028,
    "A100 40GB": 40_960,
    "A100 80GB": 81_920,
    "L4": 23_034,
    "L40S": 46_068,
    "H100": 81_559,
    "H200": 143_771,
    "B200": 183_359,
    "RTX 3060": 12_288,
    "RTX 3090": 24_576,
    "RTX 4090": 24_564,
    "RTX 5090": 32_607,
}
SIZES = {"kb": 10**3, "mb": 10**6, "gb": 10**9, "tb": 10**12}
SIZES |= {"b": 1, "kib": 2**10, "mib": MIB, "gib": 2**30, "tib": 2**40}


class Target(NamedTuple):
    """Where a step is to run: a name, "cuda" or "cpu", and what there is of memory in bytes.

    ``capacity_bytes`` is None where nothing was named: then nothing is judged. ``taken_bytes`` is
    what others hold of it now, where that is known.
    """

    name: str
    kind: str
    capacity_bytes: int | None = None
    taken_bytes: int | None = None


def find_target(device: str | int | torch.device | None) -> Target:
    """The device, GPU or size (bytes) that was named; raises UsageError or DeviceMissingError.

    >>> find_target("24 GiB").capacity_bytes, find_target("H100").name
    (25769803776, 'H100')
    """
    if device is None:
        return Target("cpu", "cpu")
    if isinstance(device, int | float):
        if type(device) is not int or device <= 0:
            raise UsageError(
                f"{device!r} is no size of a device",
                cause="a number is taken for bytes",
                fix='a size in words: "24 GiB"',
            )
        return Target(format_bytes(device), "cuda", device)
    word = str(device).strip()
    amount = re.fullmatch(r"(\d+(?:\.\d+)?) ?([KMGT]?i?B)", word, re.IGNORECASE)
    if amount:
        count = round(float(amount[1]) * SIZES[amount[2].lower()])
        return Target(word, "cuda", count)
    if re.fullmatch(r"cpu|cuda(:\d+)?", word):
        return _find_here(word)
    return _find_known(word)


def _find_known(word: str) -> Target:
    by_lower = {_squeeze(name): name for name in KNOWN_GPUS}
    name = by_lower.get(_squeeze(word))
    if name is None:
        alike = [one for key, one in by_lower.items() if key.startswith(_squeeze(word)) and word]
        near = alike[0] if alike else near_match(word, KNOWN_GPUS)
        raise UsageError(
            f"unknown device {word!r}",
            cause=f"known by name are {', '.join(KNOWN_GPUS)}; also a size, cpu, and cuda:0",
            fix=f'--device "{near or "24 GiB"}"',
        )
    return Target(name, "cuda", KNOWN_GPUS[name] * MIB)


def _squeeze(name: str) -> str:
    return name.lower().removeprefix("nvidia").replace(" ", "").replace("-", "")


def _find_here(word: str) -> Target:
    """A device of this machine, by torch's name for it, with what it has and what is taken."""
    from labkit.devices.detect import detect_devices
    from labkit.memory.balance.read import take_snapshot

    wanted = "cuda:0" if word == "cuda" else word
    balances = take_snapshot().balances
    balance = next((one for one in balances if one.torch_name == wanted), None)
    reasons: tuple[str, ...] = ()
    if balance is None:
        # Torch tells its names only once it has started CUDA; until then they are worked out.
        detection = detect_devices()
        uuids = {one.uuid for one in detection.devices if one.uuid and one.torch_name == wanted}
        balance = next((one for one in balances if one.uuid in uuids), None)
        reasons = detection.notes
    if balance is None or balance.total_bytes is None:
        raise DeviceMissingError(
            f"{wanted} is not on this machine, or its memory is not known",
            cause="; ".join(reasons) or "neither the driver nor torch tells of it",
            fix='a size instead: --device "24 GiB"',
        )
    total = balance.total_bytes - (balance.driver_reserved_bytes or 0)
    name = f"{wanted} ({balance.name})" if balance.name else wanted
    return Target(name, balance.kind, total, balance.other_processes_bytes)

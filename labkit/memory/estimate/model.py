"""An estimate, and the target to compare it with. Does not import torch."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from labkit.errors import DeviceMissingError, UsageError
from labkit.memory.balance.model import MIB
from labkit.memory.track.frames import Frame
from labkit.memory.track.model import LineUse
from labkit.render import Displayed
from labkit.text import format_bytes, near_match

if TYPE_CHECKING:
    import torch

# Total memory in MiB as nvidia-smi shows it. ECC and the driver version change it slightly.
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
# If this many steps fit, growth does not change the verdict (for example, a list of losses).
MANY_STEPS = 10_000
LEAST_TARGET_BYTES = MIB
SIZES = {"kb": 10**3, "mb": 10**6, "gb": 10**9, "tb": 10**12}
SIZES |= {"b": 1, "kib": 2**10, "mib": MIB, "gib": 2**30, "tib": 2**40}


class Target(NamedTuple):
    """The device for a step: its name, "cuda" or "cpu", and its memory in bytes.

    ``capacity_bytes`` is None if no device was named; then there is no verdict.
    ``taken_bytes`` is the memory that other processes hold now, None if unknown.
    """

    name: str
    kind: str
    capacity_bytes: int | None = None
    taken_bytes: int | None = None

    @property
    def is_hopper(self) -> bool:
        """True for Hopper and Blackwell, where cuBLAS has a larger workspace."""
        return bool(re.search(r"\b(G?H|G?B)[12]\d0\b", self.name))


class EstimateObstacle(NamedTuple):
    """Why a run on fake tensors stopped: the operator, the reason, and the user's line."""

    operator: str
    reason: str
    frame: Frame | None = None

    def __str__(self) -> str:
        where = f" at {self.frame.where}" if self.frame else ""
        return f"{self.operator}{where} {self.reason}"


@dataclass(frozen=True, repr=False)
class Estimate(
    Displayed, view="labkit.memory.estimate.view", text="format_estimate", html="render_estimate"
):
    """The peak memory of a step, in bytes, and whether it fits its target.

    ``kinds`` splits ``peak_bytes`` by category (parameters with buffers, gradients, optimizer state
    and temporaries, DDP's buckets, activations and temporaries of backward, inputs, other); the
    values add up to it. The peak is that of the target's tensors: ``host_bytes`` is the peak of
    those that stay in host memory, None for the CPU. ``allocated_bytes`` is the peak of the blocks
    that they get, as ``torch.cuda.max_memory_allocated()`` counts; a block is larger than its
    tensor where the rest is too small to cut off. ``reserved_bytes`` is what CUDA's allocator takes
    from the driver for the tensors, ``workspace_bytes`` what cuBLAS keeps of it besides, and
    ``context_bytes`` the minimum and maximum that CUDA itself takes; they are None for the CPU.

    With an ``obstacle`` the figures are a lower bound, with ``excess`` (a reason) an upper one.
    Where a step decides by unknown values, ``peak_bytes`` is the higher of two simulated peaks and
    ``lowest_bytes`` the lower. ``largest_batch`` is the largest batch that certainly fits if
    ``batch`` does not; 0 if a batch of 1 may not fit, None if it was not searched.
    ``growth_bytes`` is the additional memory that each step keeps; then ``peak_bytes`` is the peak
    of the first ``steps``.
    """

    name: str
    target: Target
    peak_bytes: int
    kinds: dict[str, int]
    lines: tuple[LineUse, ...] = ()
    batch: int | None = None
    inference: bool = False
    host_bytes: int | None = None
    allocated_bytes: int | None = None
    reserved_bytes: int | None = None
    workspace_bytes: int | None = None
    context_bytes: tuple[int, int] | None = None
    obstacle: EstimateObstacle | None = None
    excess: str | None = None
    lowest_bytes: int | None = None
    largest_batch: int | None = None
    notes: tuple[str, ...] = ()
    growth_bytes: int = 0
    steps: int = 2

    @property
    def least_bytes(self) -> int:
        """The minimum that is needed: the tensors, the workspaces and the smallest context."""
        held = self.peak_bytes if self.lowest_bytes is None else self.lowest_bytes
        return held + (self.workspace_bytes or 0) + (self.context_bytes or (0, 0))[0]

    @property
    def most_bytes(self) -> int:
        """Bytes that are certainly enough: the allocator's memory and the largest context."""
        held = max(self.peak_bytes, self.reserved_bytes or 0) + (self.workspace_bytes or 0)
        return held + (self.context_bytes or (0, 0))[1]

    @property
    def fits(self) -> bool | None:
        """True or False if it is certain; None if it is close or unknown, or memory grows."""
        capacity = self.target.capacity_bytes
        if capacity is None:
            return None
        if self.least_bytes > capacity:
            return None if self.excess else False
        lasts = self.steps_left is None or self.steps_left >= MANY_STEPS
        return True if self.most_bytes <= capacity and self.obstacle is None and lasts else None

    @property
    def steps_left(self) -> int | None:
        """The number of further steps that fit if memory grows; None without growth or target."""
        capacity = self.target.capacity_bytes
        if capacity is None or not self.growth_bytes:
            return None
        return max(0, capacity - self.most_bytes) // self.growth_bytes

    @property
    def spare_bytes(self) -> int | None:
        """The minimum that is left of the target; if negative, the minimum that is missing."""
        capacity = self.target.capacity_bytes
        if capacity is None:
            return None
        return capacity - (self.least_bytes if self.fits is False else self.most_bytes)


def find_target(device: str | int | torch.device | None) -> Target:
    """The target for a name: a device of this machine, a known GPU or a size; None is no target.

    Raises UsageError for an unknown name, DeviceMissingError for a device that does not exist.

    >>> find_target("24 GiB").capacity_bytes, find_target("H100").name
    (25769803776, 'H100')
    """
    if device is None:
        return Target("cpu", "cpu")
    if isinstance(device, int | float):
        # torch takes a small number for a GPU's.
        if type(device) is not int or device < LEAST_TARGET_BYTES:
            raise UsageError(
                f"invalid device size {device!r}",
                cause="a number is a size in bytes, at least 1 MiB",
                fix='a size with its unit: "24 GiB", or a GPU of this machine: "cuda:0"',
            )
        return Target(format_bytes(device), "cuda", device)
    word = str(device).strip()
    if word.isascii() and word.isdigit() and int(word) >= LEAST_TARGET_BYTES:
        return Target(format_bytes(int(word)), "cuda", int(word))
    amount = re.fullmatch(r"(\d+(?:\.\d+)?) ?([KMGT]?i?B)", word, re.IGNORECASE)
    if amount:
        size = round(float(amount[1]) * SIZES[amount[2].lower()])
        if not size:
            raise UsageError(
                f"invalid device size {word!r}",
                cause="a device has more memory than none",
                fix='--device "24 GiB"',
            )
        return Target(word, "cuda", size)
    if re.fullmatch(r"cpu|cuda(:\d+)?", word):
        return _find_local(word)
    return _find_known(word)


def _find_known(word: str) -> Target:
    by_lower = {_squeeze(name): name for name in KNOWN_GPUS}
    name = by_lower.get(_squeeze(word))
    if name is None:
        _refuse_number(word)
        alike = [one for key, one in by_lower.items() if key.startswith(_squeeze(word)) and word]
        near = alike[0] if alike else near_match(word, KNOWN_GPUS)
        raise UsageError(
            f"unknown device {word!r}",
            cause=f"the known GPUs are {', '.join(KNOWN_GPUS)}; also a size, cpu, cuda:0",
            fix=f'--device "{near or "24 GiB"}"',
        )
    return Target(name, "cuda", KNOWN_GPUS[name] * MIB)


def _refuse_number(word: str) -> None:
    """Raises UsageError for a size without a whole unit, unless it is the number of a known GPU."""
    found = re.fullmatch(r"(\d+(?:\.\d+)?) ?([KMGT]?i?)", word, re.IGNORECASE)
    if found is None or any(word in name.split() for name in KNOWN_GPUS):
        return
    unit = f"{found[2][0].upper()}iB" if found[2] else "GiB"
    raise UsageError(
        f"the device {word!r} has no unit",
        cause="a number alone is a size in bytes, of which a device has at least 1 MiB"
        if not found[2]
        else f"{found[2]!r} says nothing of bytes: GiB counts in 1024s, GB in 1000s",
        fix=f'--device "{found[1]} {unit}"',
    )


def _squeeze(name: str) -> str:
    return name.lower().removeprefix("nvidia").replace(" ", "").replace("-", "")


def _find_local(word: str) -> Target:
    """A device of this machine, by torch's name, with its total memory and the memory in use."""
    from labkit.devices.detect import detect_devices
    from labkit.memory.balance.read import take_snapshot

    wanted = "cuda:0" if word == "cuda" else word
    balances = take_snapshot(counts_tensors=False).balances
    balance = next((one for one in balances if one.torch_name == wanted), None)
    reasons: tuple[str, ...] = ()
    if balance is None:
        # Before torch has started CUDA, the balance does not have torch's names.
        detection = detect_devices()
        uuids = {one.uuid for one in detection.devices if one.uuid and one.torch_name == wanted}
        balance = next((one for one in balances if one.uuid in uuids), None)
        reasons = detection.notes
    if balance is None or balance.total_bytes is None:
        raise DeviceMissingError(
            f"{wanted} is not on this machine, or its memory is unknown",
            cause="; ".join(reasons) or "neither the driver nor torch reports it",
            fix='name a size instead: --device "24 GiB"',
        )
    total = balance.total_bytes - (balance.driver_reserved_bytes or 0)
    name = f"{wanted} ({balance.name})" if balance.name else wanted
    return Target(name, balance.kind, total, balance.other_processes_bytes)


@dataclass(frozen=True)
class NamedPlan:
    """What to estimate: a model by name, its task, and how it is trained or run.

    ``lora`` has peft's options, such as {"r": 16}; None trains all weights. ``weights`` is one of
    `formats.FORMATS`, None for unquantized ones. ``sequence`` is in tokens; for "generate" it is
    the length of the cache at the end.
    """

    library: str
    name: str
    task: str = "train"
    optimizer: str = "adamw"
    dtype: str = "float32"
    batch: int = 1
    sequence: int = 512
    lora: tuple[tuple[str, Any], ...] | None = None
    weights: str | None = None
    checkpointing: bool = False

    @property
    def title(self) -> str:
        """The work in words: ``llama, train, adamw, bfloat16, sequence 2048``."""
        words = [Path(self.name).name if self.library == "hf" else self.name, self.task]
        if self.task == "train":
            words.append(self.optimizer)
        # timm's models are of images.
        words += [self.dtype, *[f"sequence {self.sequence}"][: self.library == "hf"]]
        if self.weights:
            words.append(f"weights {self.weights}")
        if self.lora is not None:
            words.append("lora " + " ".join(f"{name}={value}" for name, value in self.lora))
        if self.checkpointing:
            words.append("checkpointing")
        return ", ".join(words)

"""Which GPU torch will call cuda:0: CUDA_VISIBLE_DEVICES and CUDA_DEVICE_ORDER, read as CUDA does.

NVML numbers GPUs by their place on the bus. CUDA numbers them "fastest first" unless
CUDA_DEVICE_ORDER=PCI_BUS_ID, and then keeps only what CUDA_VISIBLE_DEVICES lets through. Where
the number cannot be known without starting CUDA it is None (pytorch#86539, vllm#53834). Of the
slices that MIG makes of a GPU, CUDA gives a process one: the first that is named.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence

from labkit.devices.nvml import GpuFacts


def strip_kind(uuid: str | None) -> str:
    """The UUID as torch writes it, without NVML's ``GPU-`` or ``MIG-``; empty where there is none.

    >>> strip_kind("GPU-5d1c0f2e"), strip_kind("5d1c0f2e"), strip_kind(None)
    ('5d1c0f2e', '5d1c0f2e', '')
    """
    return (uuid or "").removeprefix("GPU-").removeprefix("MIG-")


def name_gpus(gpus: Sequence[GpuFacts], environment: Mapping[str, str]) -> list[str | None]:
    """The name torch gives each GPU, such as ``"cuda:0"``; None where hidden or not knowable."""
    places = _find_places(gpus, environment)
    numbers = [None if gpu.mig_enabled else places.get(gpu.nvml_index) for gpu in gpus]
    return [None if number is None else f"cuda:{number}" for number in numbers]


def name_slice(gpus: Sequence[GpuFacts], environment: Mapping[str, str]) -> str | None:
    """The UUID of the MIG slice that torch calls cuda:0; None where none is picked by name."""
    asked = environment.get("CUDA_VISIBLE_DEVICES", "").split(",")[0].strip()
    if not asked.startswith("MIG-"):
        return None
    uuids = [part.uuid for gpu in gpus for part in gpu.slices if part.uuid]
    fitting = [uuid for uuid in uuids if uuid.startswith(asked)]
    return fitting[0] if len(fitting) == 1 else None


def _find_places(gpus: Sequence[GpuFacts], environment: Mapping[str, str]) -> dict[int, int]:
    """Each GPU's place in torch's list by its NVML index, as far as it can be known."""
    asked = environment.get("CUDA_VISIBLE_DEVICES")
    if asked is not None and asked.startswith("GPU-"):
        places = _match_uuids(parse_uuids(asked), gpus)
        # Whether CUDA stops at a lost GPU or skips it is not known: nothing after it is.
        lost = [places[gpu.nvml_index] for gpu in gpus if gpu.trouble and gpu.nvml_index in places]
        sound = min(lost, default=len(places))
        return {index: place for index, place in places.items() if place < sound}
    if not is_order_known(gpus, environment) or (asked or "").startswith("MIG-"):
        return {}  # of a MIG list torch gets slices of GPUs, and no whole one
    shown = range(len(gpus)) if asked is None else parse_indices(asked, len(gpus))
    return {index: place for place, index in enumerate(shown)}


def hides_all(gpus: Sequence[GpuFacts], environment: Mapping[str, str]) -> bool:
    """True where CUDA_VISIBLE_DEVICES leaves torch none of these GPUs."""
    asked = environment.get("CUDA_VISIBLE_DEVICES")
    if asked is None:
        return False
    if asked.startswith("MIG-"):
        return not name_slice(gpus, environment) and not _may_hide_slices(gpus, asked)
    if asked.startswith("GPU-"):
        return not _match_uuids(parse_uuids(asked), gpus)
    return not parse_indices(asked, len(gpus))


def _may_hide_slices(gpus: Sequence[GpuFacts], asked: str) -> bool:
    """True where a name that fits no slice here can still be one's: listing them is refused."""
    # Drivers before 470 name slices by GPU and numbers, and later ones still take such names.
    by_numbers = asked.startswith("MIG-GPU-")
    split = [gpu for gpu in gpus if gpu.mig_enabled is not False]
    return any(by_numbers or not gpu.slices for gpu in split)


def is_order_known(gpus: Sequence[GpuFacts], environment: Mapping[str, str]) -> bool:
    """True where CUDA must number these GPUs as NVML does."""
    if any(gpu.trouble or gpu.mig_enabled for gpu in gpus):
        return False  # CUDA leaves out a lost GPU, and counts a slice in place of a split one
    if environment.get("CUDA_DEVICE_ORDER") == "PCI_BUS_ID":
        return True
    return len({(gpu.name, gpu.compute_capability, gpu.total_bytes) for gpu in gpus}) <= 1


def parse_indices(asked: str, count: int) -> list[int]:
    """The GPU numbers in a list such as ``"2,0"``, as CUDA reads it.

    The first entry that is no number of a GPU here ends the list; a repeated one voids it.

    >>> parse_indices("2, 0,-1,1", 4), parse_indices("1,1", 4), parse_indices("", 4)
    ([2, 0], [], [])
    """
    found: list[int] = []
    for word in asked.split(","):
        number = re.match(r"\+?\d+", word.strip())
        if number is None or int(number[0]) >= count:
            break
        if int(number[0]) in found:
            return []
        found.append(int(number[0]))
    return found


def parse_uuids(asked: str) -> list[str]:
    """The GPU UUIDs, or their beginnings, in a list; anything else ends it, a repeat voids it.

    >>> parse_uuids("GPU-8932,GPU-1a2b,0,GPU-77"), parse_uuids("GPU-1,GPU-1")
    (['GPU-8932', 'GPU-1a2b'], [])
    """
    found: list[str] = []
    for word in asked.split(","):
        if not word.strip().startswith("GPU-"):
            break
        if word.strip() in found:
            return []
        found.append(word.strip())
    return found


def _match_uuids(uuids: Sequence[str], gpus: Sequence[GpuFacts]) -> dict[int, int]:
    """The place in torch's list by NVML index; the first beginning that fits no GPU ends it."""
    places: dict[int, int] = {}
    for place, uuid in enumerate(uuids):
        fitting = [gpu.nvml_index for gpu in gpus if (gpu.uuid or "").startswith(uuid)]
        if len(fitting) != 1:
            break
        places[fitting[0]] = place
    return places

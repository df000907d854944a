"""The devices of this machine, and which of them torch would take; torch is not imported.

Which GPU torch will call cuda:0: CUDA_VISIBLE_DEVICES and CUDA_DEVICE_ORDER, read as CUDA does.

NVML numbers GPUs by their place on the bus. CUDA numbers them "fastest first" unless
CUDA_DEVICE_ORDER=PCI_BUS_ID, and then keeps only what CUDA_VISIBLE_DEVICES lets through. Where
the number cannot be known without starting CUDA it is None (pytorch#86539, vllm#53834). Of the
slices that MIG makes of a GPU, CUDA gives a process one: the first that is named.
"""

from __future__ import annotations

import os
import re
import sys
from collections.abc import Mapping, Sequence
from typing import NamedTuple

from labkit.devices.accelerators import Accelerator, find_apple_gpu, read_accelerators
from labkit.devices.cpu import CpuFacts, detect_cpu
from labkit.devices.nvml import NvmlFacts, NvmlGpu, is_named_unified, read_nvml
from labkit.host.torch_builds import InstalledTorch, read_torch_build

ON_MACOS = (
    "macOS has no NVIDIA driver; whether torch can use the Apple GPU only torch knows:"
    " labkit devices --verify"
)
# The driver's library comes into a container with the GPU.
WITHHELD = (
    "no GPU was passed into this container: libnvidia-ml.so.1 was not found"
    " (on the host, make doctor says why)"
)
SPLIT = (
    "a GPU is split by MIG, and CUDA gives a process one slice of it:"
    " CUDA_VISIBLE_DEVICES=MIG-... picks which"
)
# The variables that keep GPUs from the processes they are set for.
HIDING = {
    "cuda": ("CUDA_VISIBLE_DEVICES",),
    "rocm": ("HIP_VISIBLE_DEVICES", "ROCR_VISIBLE_DEVICES", "CUDA_VISIBLE_DEVICES"),
    "xpu": ("ZE_AFFINITY_MASK", "ONEAPI_DEVICE_SELECTOR"),
}
# What torch calls the devices of each kind; its builds for AMD keep CUDA's name.
TORCH_KINDS = {"cuda": "cuda", "rocm": "cuda", "xpu": "xpu", "mps": "mps", "cpu": "cpu"}


class Device(NamedTuple):
    """One device; memory in bytes, and None for what is unknown or makes no sense for its kind.

    ``kind`` is cuda, rocm, xpu, mps or cpu: what torch must be built for to use it.
    ``torch_name`` is what torch calls it ("cuda:0"), None where torch cannot use it or where its
    number cannot be known without starting CUDA. ``trouble`` says why a device is not read.
    ``parent_uuid`` is the GPU that a MIG slice is part of. ``unified``: it has no memory of its
    own, and ``total_bytes`` is the machine's.
    """

    kind: str
    torch_name: str | None = None
    name: str | None = None
    uuid: str | None = None
    total_bytes: int | None = None
    limit_bytes: int | None = None
    compute_capability: str | None = None
    mig: bool | None = None
    driver: str | None = None
    cuda: str | None = None
    cores: float | None = None
    physical_cores: int | None = None
    logical_cores: int | None = None
    vector_extensions: tuple[str, ...] | None = None
    trouble: str | None = None
    parent_uuid: str | None = None
    unified: bool | None = None


class Detection(NamedTuple):
    """What is here: torch's best device (None: not knowable), every device, and remarks.

    ``best`` is "cuda" without a number where torch can use a GPU whose number is not known.
    ``driver_trouble`` says why an NVIDIA driver that is here does not answer.
    """

    best: str | None
    devices: tuple[Device, ...]
    notes: tuple[str, ...]
    driver_trouble: str | None = None


def detect_devices() -> Detection:
    """Every GPU and the CPU of this machine, without importing torch.

    >>> detect_devices().devices[-1].kind
    'cpu'
    """
    cpu, build = detect_cpu(), read_torch_build()
    if sys.platform == "darwin":
        return describe_mac(cpu)
    return join_facts(read_nvml(), cpu, build, os.environ, read_accelerators())


def describe_mac(cpu: CpuFacts) -> Detection:
    """What a Mac has: its processor, and the GPU on it where it is Apple's."""
    gpus = [_describe_other(found, None, cpu) for found in find_apple_gpu(cpu)]
    return Detection(None, (*gpus, _describe_cpu(cpu)), (ON_MACOS,))


def join_facts(
    nvml: NvmlFacts,
    cpu: CpuFacts,
    build: InstalledTorch | None,
    environment: Mapping[str, str],
    accelerators: tuple[Accelerator, ...] = (),
) -> Detection:
    """The devices that these facts add up to, accelerators first."""
    unusable = _explain_unusable(nvml, build, environment)
    gpus = _name_all(nvml, cpu, environment if unusable is None else None)
    others = [
        _describe_other(found, _name_other(found, accelerators, build, environment), cpu)
        for found in accelerators
    ]
    best = _choose_best(gpus, others, unusable, build)
    absent = ("no library", "no binding")
    broken = nvml.trouble if nvml.trouble and nvml.trouble.kind not in absent else None
    notes = [unusable or _explain_order(nvml, environment), *_list_remarks(nvml, build)]
    if not gpus and best not in ("cpu", None):
        notes = []  # the GPU that torch takes is another maker's: NVIDIA's driver is not missed
    notes += _explain_others(others, build)
    return Detection(
        best=best,
        devices=(*gpus, *others, _describe_cpu(cpu)),
        notes=tuple(note for note in notes if note),
        driver_trouble=broken.sentence if broken else None,
    )


def _name_all(
    nvml: NvmlFacts, cpu: CpuFacts, environment: Mapping[str, str] | None
) -> list[Device]:
    """Every GPU with its slices behind it, named as torch would; by nothing without environment."""
    names: list[str | None] = [None] * len(nvml.gpus)
    picked = None
    if environment is not None:
        names, picked = name_gpus(nvml.gpus, environment), name_slice(nvml.gpus, environment)
    found = []
    for gpu, name in zip(nvml.gpus, names, strict=True):
        found.append(_describe_gpu(gpu, name, nvml, cpu))
        for part in gpu.slices:
            part_name = "cuda:0" if picked and part.uuid == picked else None
            described = _describe_gpu(part, part_name, nvml, cpu)
            found.append(described._replace(parent_uuid=gpu.uuid))
    return found


def _choose_best(
    gpus: list[Device], others: list[Device], unusable: str | None, build: InstalledTorch | None
) -> str | None:
    found = [*gpus, *others]
    if not found:
        return "cpu"
    if build is None:
        return None  # there are GPUs, and no torch here to say whether it could use them
    built = {"rocm": build.hip, "xpu": build.xpu, "cuda": None if unusable else build.cuda}
    usable = [device for device in found if not device.trouble and built.get(device.kind)]
    if not usable:
        return "cpu"
    kind = TORCH_KINDS[usable[0].kind]
    return f"{kind}:0" if any(one.torch_name == f"{kind}:0" for one in usable) else kind


def _explain_unusable(
    nvml: NvmlFacts, build: InstalledTorch | None, environment: Mapping[str, str]
) -> str | None:
    """One sentence on why torch has no NVIDIA GPU to compute on, None where it may have one."""
    if nvml.trouble:
        in_cuda_lab = environment.get("LABKIT_IN_CONTAINER") and build and build.cuda
        withheld = in_cuda_lab and nvml.trouble.kind == "no library"
        return WITHHELD if withheld else nvml.trouble.sentence
    if not nvml.gpus:
        return "the NVIDIA driver is loaded but there is no GPU"
    if build is None:
        return "torch is not installed in this Python, so which GPU it would take is not known"
    if hides_all(nvml.gpus, environment):
        return f"CUDA_VISIBLE_DEVICES={environment['CUDA_VISIBLE_DEVICES']!r} hides every GPU"
    if build.cuda is None:
        return build.describe()
    return explain_old_driver(nvml.driver_version, nvml.cuda_version, build)


def explain_old_driver(
    driver_version: str | None, driver_cuda: str | None, build: InstalledTorch
) -> str | None:
    """Why this build of torch cannot use this driver; None where nothing speaks against it."""
    # CUDA runs on drivers of its own major version, and on newer ones.
    if build.cuda is None or driver_cuda is None or _major(driver_cuda) >= _major(build.cuda):
        return None
    return (
        f"the NVIDIA driver {driver_version} (CUDA {driver_cuda}) is too old"
        f" for torch {build.version} (CUDA {build.cuda})"
    )


def _list_remarks(nvml: NvmlFacts, build: InstalledTorch | None) -> list[str]:
    remarks = []
    if not nvml.gpus and build is not None and build.cuda is None:
        remarks.append(build.describe())
    for gpu in nvml.gpus:
        place = f"GPU {gpu.nvml_index} ({gpu.name or 'unknown'})"
        if gpu.trouble:
            remarks.append(f"{place}: {gpu.trouble.sentence}")
        elif gpu.mig_enabled and not gpu.slices:
            remarks.append(f"{place}: it is split by MIG, and no slice of it can be seen here")
        remarks += [
            f"a slice of {place}: {part.trouble.sentence}" for part in gpu.slices if part.trouble
        ]
    return remarks


def _explain_order(nvml: NvmlFacts, environment: Mapping[str, str]) -> str | None:
    """What to say where torch can use these GPUs and their numbers in torch are not known."""
    if environment.get("CUDA_VISIBLE_DEVICES", "").startswith(("GPU-", "MIG-")):
        return None
    if any(gpu.slices for gpu in nvml.gpus):
        return SPLIT
    if len(nvml.gpus) < 2 or is_order_known(nvml.gpus, environment):
        return None
    return (
        "which GPU torch calls cuda:0 is not known without starting CUDA;"
        " for unlike GPUs CUDA_DEVICE_ORDER=PCI_BUS_ID settles it"
    )


def _major(version: str) -> int:
    return int(version.partition(".")[0])


def _name_other(
    found: Accelerator,
    accelerators: tuple[Accelerator, ...],
    build: InstalledTorch | None,
    environment: Mapping[str, str],
) -> str | None:
    """Torch's name for another maker's GPU, where it is alone and nothing can hide it."""
    built = build and {"rocm": build.hip, "xpu": build.xpu}.get(found.kind)
    alone = sum(one.kind == found.kind for one in accelerators) == 1
    hidden = any(name in environment for name in HIDING.get(found.kind, ()))
    usable = built and alone and not hidden and not found.trouble
    return f"{TORCH_KINDS[found.kind]}:0" if usable else None


def _explain_others(others: list[Device], build: InstalledTorch | None) -> list[str]:
    """A sentence for each GPU of another maker that this torch is not for, or that is barred."""
    notes = []
    for device in others:
        built = build and {"rocm": build.hip, "xpu": build.xpu}.get(device.kind)
        if device.trouble:
            notes.append(f"{device.name}: {device.trouble}")
        elif build and not built:
            platform = "ROCm" if device.kind == "rocm" else "XPU"
            notes.append(f"{device.name}: torch {build.version} is not built for {platform}")
    return notes


def _describe_gpu(gpu: NvmlGpu, torch_name: str | None, nvml: NvmlFacts, cpu: CpuFacts) -> Device:
    # Linked to the machine's memory and yet with figures of its own (GH200): those are right.
    unified = gpu.total_bytes is None and gpu.trouble is None and is_named_unified(gpu.name)
    return Device(
        kind="cuda",
        torch_name=torch_name,
        name=gpu.name,
        uuid=gpu.uuid,
        total_bytes=_share_memory(cpu) if unified else gpu.total_bytes,
        compute_capability=gpu.compute_capability,
        mig=gpu.mig_enabled,
        driver=nvml.driver_version,
        cuda=nvml.cuda_version,
        trouble=gpu.trouble.sentence if gpu.trouble else None,
        unified=unified if gpu.total_bytes or unified else None,
    )


def _describe_other(found: Accelerator, torch_name: str | None, cpu: CpuFacts) -> Device:
    return Device(
        kind=found.kind,
        torch_name=torch_name,
        name=found.name,
        total_bytes=_share_memory(cpu) if found.unified else found.total_bytes,
        compute_capability=found.architecture,
        trouble=found.trouble,
        unified=found.unified,
    )


def _share_memory(cpu: CpuFacts) -> int | None:
    """The bytes a GPU in the machine's memory has: all of it, or what this container may use."""
    return cpu.total_bytes if cpu.limit_bytes is None else cpu.limit_bytes


def _describe_cpu(cpu: CpuFacts) -> Device:
    return Device(
        kind="cpu",
        torch_name="cpu",
        name=cpu.name,
        total_bytes=cpu.total_bytes,
        limit_bytes=cpu.limit_bytes,
        cores=cpu.usable_cores,
        physical_cores=cpu.physical_cores,
        logical_cores=cpu.logical_cores,
        vector_extensions=cpu.vector_extensions,
    )


def strip_kind(uuid: str | None) -> str:
    """The UUID as torch writes it, without NVML's ``GPU-`` or ``MIG-``; empty where there is none.

    >>> strip_kind("GPU-5d1c0f2e"), strip_kind("5d1c0f2e"), strip_kind(None)
    ('5d1c0f2e', '5d1c0f2e', '')
    """
    return (uuid or "").removeprefix("GPU-").removeprefix("MIG-")


def name_gpus(gpus: Sequence[NvmlGpu], environment: Mapping[str, str]) -> list[str | None]:
    """The name torch gives each GPU, such as ``"cuda:0"``; None where hidden or not knowable."""
    places = _find_places(gpus, environment)
    numbers = [None if gpu.mig_enabled else places.get(gpu.nvml_index) for gpu in gpus]
    return [None if number is None else f"cuda:{number}" for number in numbers]


def name_slice(gpus: Sequence[NvmlGpu], environment: Mapping[str, str]) -> str | None:
    """The UUID of the MIG slice that torch calls cuda:0; None where none is picked by name."""
    asked = environment.get("CUDA_VISIBLE_DEVICES", "").split(",")[0].strip()
    if not asked.startswith("MIG-"):
        return None
    uuids = [part.uuid for gpu in gpus for part in gpu.slices if part.uuid]
    fitting = [uuid for uuid in uuids if uuid.startswith(asked)]
    return fitting[0] if len(fitting) == 1 else None


def _find_places(gpus: Sequence[NvmlGpu], environment: Mapping[str, str]) -> dict[int, int]:
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


def hides_all(gpus: Sequence[NvmlGpu], environment: Mapping[str, str]) -> bool:
    """True where CUDA_VISIBLE_DEVICES leaves torch none of these GPUs."""
    asked = environment.get("CUDA_VISIBLE_DEVICES")
    if asked is None:
        return False
    if asked.startswith("MIG-"):
        return not name_slice(gpus, environment) and not _may_hide_slices(gpus, asked)
    if asked.startswith("GPU-"):
        return not _match_uuids(parse_uuids(asked), gpus)
    return not parse_indices(asked, len(gpus))


def _may_hide_slices(gpus: Sequence[NvmlGpu], asked: str) -> bool:
    """True where a name that fits no slice here can still be one's: listing them is refused."""
    # Drivers before 470 name slices by GPU and numbers, and later ones still take such names.
    by_numbers = asked.startswith("MIG-GPU-")
    split = [gpu for gpu in gpus if gpu.mig_enabled is not False]
    return any(by_numbers or not gpu.slices for gpu in split)


def is_order_known(gpus: Sequence[NvmlGpu], environment: Mapping[str, str]) -> bool:
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


def _match_uuids(uuids: Sequence[str], gpus: Sequence[NvmlGpu]) -> dict[int, int]:
    """The place in torch's list by NVML index; the first beginning that fits no GPU ends it."""
    places: dict[int, int] = {}
    for place, uuid in enumerate(uuids):
        fitting = [gpu.nvml_index for gpu in gpus if (gpu.uuid or "").startswith(uuid)]
        if len(fitting) != 1:
            break
        places[fitting[0]] = place
    return places

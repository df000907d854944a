"""The devices of this machine, and which of them torch would take; torch is not imported."""

from __future__ import annotations

import os
import sys
from collections.abc import Mapping
from typing import NamedTuple

from labkit.devices.accelerators import Accelerator, find_apple_gpu, read_accelerators
from labkit.devices.cpu import CpuFacts, detect_cpu
from labkit.devices.nvml import GpuFacts, NvmlFacts, is_named_unified, read_nvml
from labkit.devices.torch_devices import TorchBuild, read_torch_build
from labkit.devices.visibility import hides_all, is_order_known, name_gpus, name_slice

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
    build: TorchBuild | None,
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
    gpus: list[Device], others: list[Device], unusable: str | None, build: TorchBuild | None
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
    nvml: NvmlFacts, build: TorchBuild | None, environment: Mapping[str, str]
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
    driver_version: str | None, driver_cuda: str | None, build: TorchBuild
) -> str | None:
    """Why this build of torch cannot use this driver; None where nothing speaks against it."""
    # CUDA runs on drivers of its own major version, and on newer ones.
    if build.cuda is None or driver_cuda is None or _major(driver_cuda) >= _major(build.cuda):
        return None
    return (
        f"the NVIDIA driver {driver_version} (CUDA {driver_cuda}) is too old"
        f" for torch {build.version} (CUDA {build.cuda})"
    )


def _list_remarks(nvml: NvmlFacts, build: TorchBuild | None) -> list[str]:
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
    build: TorchBuild | None,
    environment: Mapping[str, str],
) -> str | None:
    """Torch's name for another maker's GPU, where it is alone and nothing can hide it."""
    built = build and {"rocm": build.hip, "xpu": build.xpu}.get(found.kind)
    alone = sum(one.kind == found.kind for one in accelerators) == 1
    hidden = any(name in environment for name in HIDING.get(found.kind, ()))
    usable = built and alone and not hidden and not found.trouble
    return f"{TORCH_KINDS[found.kind]}:0" if usable else None


def _explain_others(others: list[Device], build: TorchBuild | None) -> list[str]:
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


def _describe_gpu(gpu: GpuFacts, torch_name: str | None, nvml: NvmlFacts, cpu: CpuFacts) -> Device:
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

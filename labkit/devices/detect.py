"""The devices of this machine, and which of them torch would take; torch is not imported."""

from __future__ import annotations

import os
import sys
from collections.abc import Mapping
from typing import NamedTuple

from labkit.devices.cpu import CpuFacts, detect_cpu
from labkit.devices.nvml import GpuFacts, NvmlFacts, read_nvml
from labkit.devices.torch_devices import TorchBuild, read_torch_build
from labkit.devices.visibility import hides_all, is_order_known, name_gpus

ON_MACOS = (
    "macOS has no NVIDIA driver; whether torch can use the Apple GPU only torch knows:"
    ' python -c "import labkit; print(labkit.best_device())"'
)


class Device(NamedTuple):
    """One device; memory in bytes, and None for what is unknown or makes no sense for its kind.

    ``torch_name`` is what torch calls it ("cuda:0"), None where torch cannot use it or where its
    number cannot be known without starting CUDA. ``trouble`` says why a device is not read.
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


class Detection(NamedTuple):
    """What is here: torch's best device (None: not knowable), every device, and remarks.

    ``best`` is "cuda" without a number where torch can use a GPU whose number is not known.
    """

    best: str | None
    devices: tuple[Device, ...]
    notes: tuple[str, ...]


def detect_devices() -> Detection:
    """Every NVIDIA GPU and the CPU of this machine, without importing torch.

    >>> detect_devices().devices[-1].kind
    'cpu'
    """
    return join_facts(read_nvml(), detect_cpu(), read_torch_build(), os.environ)


def join_facts(
    nvml: NvmlFacts,
    cpu: CpuFacts,
    build: TorchBuild | None,
    environment: Mapping[str, str],
    system: str = sys.platform,
) -> Detection:
    """The devices that these facts add up to, accelerators first."""
    if system == "darwin":
        return Detection(None, (_describe_cpu(cpu),), (ON_MACOS,))
    unusable = _explain_unusable(nvml, build, environment)
    names: list[str | None] = [None] * len(nvml.gpus)
    if unusable is None:
        names = name_gpus(nvml.gpus, environment)
    gpus = [_describe_gpu(gpu, name, nvml) for gpu, name in zip(nvml.gpus, names, strict=True)]
    notes = [unusable or _explain_order(nvml, environment), *_list_remarks(nvml, build)]
    return Detection(
        best=_choose_best(gpus, unusable, build),
        devices=(*gpus, _describe_cpu(cpu)),
        notes=tuple(note for note in notes if note),
    )


def _choose_best(gpus: list[Device], unusable: str | None, build: TorchBuild | None) -> str | None:
    if not gpus:
        return "cpu"
    if build is None:
        return None  # there are GPUs, and no torch here to say whether it could use them
    if unusable or all(gpu.trouble for gpu in gpus):
        return "cpu"
    return "cuda:0" if any(gpu.torch_name == "cuda:0" for gpu in gpus) else "cuda"


def _explain_unusable(
    nvml: NvmlFacts, build: TorchBuild | None, environment: Mapping[str, str]
) -> str | None:
    """One sentence on why torch has no NVIDIA GPU to compute on, None where it may have one."""
    if nvml.trouble:
        return nvml.trouble.sentence
    if not nvml.gpus:
        return "the NVIDIA driver is loaded but there is no GPU"
    if build is None:
        return "torch is not installed in this Python, so which GPU it would take is not known"
    if hides_all(nvml.gpus, environment):
        return f"CUDA_VISIBLE_DEVICES={environment['CUDA_VISIBLE_DEVICES']!r} hides every GPU"
    return _explain_mismatch(nvml, build)


def _explain_mismatch(nvml: NvmlFacts, build: TorchBuild) -> str | None:
    """Why this build of torch cannot use this driver; None where nothing speaks against it."""
    if build.cuda is None:
        return _name_build(build)
    # CUDA runs on drivers of its own major version, and on newer ones.
    if nvml.cuda_version is None or _major(nvml.cuda_version) >= _major(build.cuda):
        return None
    return (
        f"the NVIDIA driver {nvml.driver_version} (CUDA {nvml.cuda_version}) is too old"
        f" for torch {build.version} (CUDA {build.cuda})"
    )


def _list_remarks(nvml: NvmlFacts, build: TorchBuild | None) -> list[str]:
    remarks = []
    if not nvml.gpus and build is not None and build.cuda is None:
        remarks.append(_name_build(build))
    for gpu in nvml.gpus:
        if gpu.trouble:
            remarks.append(
                f"GPU {gpu.nvml_index} ({gpu.name or 'unknown'}): {gpu.trouble.sentence}"
            )
    return remarks


def _explain_order(nvml: NvmlFacts, environment: Mapping[str, str]) -> str | None:
    """What to say where torch can use these GPUs and their numbers in torch are not known."""
    by_uuid = environment.get("CUDA_VISIBLE_DEVICES", "").startswith(("GPU-", "MIG-"))
    if len(nvml.gpus) < 2 or by_uuid or is_order_known(nvml.gpus, environment):
        return None
    return (
        "which GPU torch calls cuda:0 is not known without starting CUDA;"
        " for unlike GPUs CUDA_DEVICE_ORDER=PCI_BUS_ID settles it"
    )


def _name_build(build: TorchBuild) -> str:
    kind = "is a CPU build" if build.version.endswith("+cpu") else "is built without CUDA"
    return f"torch {build.version} {kind}"


def _major(version: str) -> int:
    return int(version.partition(".")[0])


def _describe_gpu(gpu: GpuFacts, torch_name: str | None, nvml: NvmlFacts) -> Device:
    return Device(
        kind="cuda",
        torch_name=torch_name,
        name=gpu.name,
        uuid=gpu.uuid,
        total_bytes=gpu.total_bytes,
        compute_capability=gpu.compute_capability,
        mig=gpu.mig_enabled,
        driver=nvml.driver_version,
        cuda=nvml.cuda_version,
        trouble=gpu.trouble.sentence if gpu.trouble else None,
    )


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

"""The devices of this machine and the names that torch gives them, without importing torch.

NVML numbers GPUs by PCI bus. CUDA numbers them "fastest first" unless
CUDA_DEVICE_ORDER=PCI_BUS_ID, and shows only those in CUDA_VISIBLE_DEVICES, which is parsed here
as CUDA does. A number that cannot be known without starting CUDA is None (pytorch#86539,
vllm#53834). CUDA gives a process one MIG instance: the first in the list.

The GPUs of AMD, Intel and Apple: on Linux from /sys and /dev, on macOS from the CPU's name.
"""

from __future__ import annotations

import os
import platform
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

from labkit.devices.nvml import NvmlFacts, NvmlGpu, is_named_unified, read_nvml
from labkit.host.cpu import CpuFacts, detect_cpu
from labkit.host.gpu import parse_indices
from labkit.host.torch_builds import NEEDS, InstalledTorch, read_torch_build

INTEL = "0x8086"
AMD = "0x1002"
REFUSED = "this user may not open {}: sudo usermod -aG render $USER"
NOT_HERE = "{} does not exist: its driver is not loaded, or it was not passed to this container"


class Accelerator(NamedTuple):
    """A GPU that is not NVIDIA's, its memory in bytes; unknown is None.

    ``kind`` is the build of torch that can use it: rocm, xpu or mps. ``architecture`` is its
    compiler's name for it, such as gfx942. ``unified``: it uses the machine's memory.
    """

    kind: str
    name: str | None = None
    total_bytes: int | None = None
    architecture: str | None = None
    unified: bool | None = None
    trouble: str | None = None


def find_apple_gpu(cpu: CpuFacts) -> tuple[Accelerator, ...]:
    """The GPU of an Apple chip, which uses the machine's memory; () on an Intel Mac."""
    if not (cpu.name or "").startswith("Apple"):
        return ()
    return (Accelerator("mps", f"{cpu.name} GPU", cpu.total_bytes, unified=True),)


def read_accelerators(root: Path = Path("/")) -> tuple[Accelerator, ...]:
    """AMD's and Intel's GPUs, from the files below ``root``."""
    return (*_read_amd(root), *_read_intel(root))


def _read_amd(root: Path) -> list[Accelerator]:
    """The nodes of AMD's compute driver (kfd) that have shader units, in its order."""
    folders = (root / "sys/class/kfd/kfd/topology/nodes").glob("[0-9]*")
    found = []
    for folder in sorted(folders, key=lambda path: int(path.name)):
        properties = _read_properties(folder / "properties")
        if properties.get("simd_count"):
            found.append(_describe_amd(root, properties))
    return found or [_describe_without_kfd(path) for path in _list_cards(root, AMD)]


def _describe_amd(root: Path, properties: dict[str, int]) -> Accelerator:
    card = root / f"sys/class/drm/renderD{properties.get('drm_render_minor', 0)}/device"
    architecture = _name_architecture(properties.get("gfx_target_version", 0))
    unified = bool(properties.get("cpu_cores_count"))  # a chip with CPU and GPU has one memory
    memory = _read_text(card / "mem_info_vram_total")
    return Accelerator(
        "rocm",
        _read_text(card / "product_name") or f"AMD GPU ({architecture or 'unknown'})",
        int(memory) if memory and not unified else None,
        architecture,
        unified,
        _explain_refusal(root, "dev/kfd"),
    )


def _describe_without_kfd(card: Path) -> Accelerator:
    name = _read_text(card / "device/product_name") or "AMD GPU"
    return Accelerator("rocm", name, trouble=NOT_HERE.format("/dev/kfd"))


def _read_intel(root: Path) -> list[Accelerator]:
    found = []
    for card in _list_cards(root, INTEL):
        name = f"Intel GPU {_read_text(card / 'device/device')}".rstrip()
        trouble = _explain_refusal(root, f"dev/dri/{card.name}")
        found.append(Accelerator("xpu", name, trouble=trouble))
    return found


def _list_cards(root: Path, vendor: str) -> list[Path]:
    """The folders of a vendor's GPUs that have a render node, in the kernel's order."""
    cards = sorted((root / "sys/class/drm").glob("renderD*"))
    return [card for card in cards if _read_text(card / "device/vendor") == vendor]


def _explain_refusal(root: Path, node: str) -> str | None:
    if not (root / node).exists():
        return NOT_HERE.format(f"/{node}")
    allowed = os.access(root / node, os.R_OK | os.W_OK)
    return None if allowed else REFUSED.format(f"/{node}")


def _name_architecture(version: int) -> str | None:
    """The compiler's name for the kernel's version number.

    >>> _name_architecture(90402), _name_architecture(100300), _name_architecture(0)
    ('gfx942', 'gfx1030', None)
    """
    major, minor, step = version // 10000, version // 100 % 100, version % 100
    return f"gfx{major}{minor:x}{step:x}" if version else None


def _read_properties(path: Path) -> dict[str, int]:
    lines = (line.split() for line in _read_text(path).splitlines())
    return {words[0]: int(words[1]) for words in lines if len(words) == 2 and words[1].isdigit()}


def _read_text(path: Path) -> str:
    try:
        return path.read_text(errors="replace").strip()
    except OSError:
        return ""


ON_MACOS = (
    "macOS has no NVIDIA driver; to find out whether torch can use the Apple GPU:"
    " labkit devices --verify"
)
# The engine puts the driver's library into the container together with the GPU.
NOT_PASSED = (
    "no GPU was passed into this container: libnvidia-ml.so.1 was not found"
    " (run make doctor on the host to find the cause)"
)
SPLIT = (
    "a GPU is split by MIG, and CUDA gives a process one MIG instance:"
    " choose it with CUDA_VISIBLE_DEVICES=MIG-..."
)
ORDER_UNKNOWN = (
    "which GPU torch calls cuda:0 is not known without starting CUDA, as the GPUs differ:"
    " set CUDA_DEVICE_ORDER=PCI_BUS_ID to number them by bus"
)
# The variables that can hide GPUs from a process.
HIDING = {
    "cuda": ("CUDA_VISIBLE_DEVICES",),
    "rocm": ("HIP_VISIBLE_DEVICES", "ROCR_VISIBLE_DEVICES", "CUDA_VISIBLE_DEVICES"),
    "xpu": ("ZE_AFFINITY_MASK", "ONEAPI_DEVICE_SELECTOR"),
}
# Torch's name for each kind of device; its ROCm builds use CUDA's.
TORCH_KINDS = {"cuda": "cuda", "rocm": "cuda", "xpu": "xpu", "mps": "mps", "cpu": "cpu"}


class Device(NamedTuple):
    """One device, its memory in bytes; None is unknown or does not apply to its kind.

    ``kind`` is cuda, rocm, xpu, mps or cpu: the build of torch that can use it. ``torch_name`` is
    torch's name ("cuda:0"), None if torch cannot use the device or its number is unknown.
    ``trouble`` is why the device cannot be read. ``parent_uuid`` is the GPU of a MIG instance.
    ``unified``: the device uses the machine's memory, and ``total_bytes`` is the machine's.
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
    """The devices, torch's best one (None: unknown), and notes.

    ``best`` is "cuda" without a number if torch can use a GPU whose number is unknown.
    ``driver_trouble`` is why an installed NVIDIA driver does not answer.
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
    """The devices of a Mac: its CPU, and the GPU of an Apple chip."""
    gpus = [_describe_other(found, None, cpu) for found in find_apple_gpu(cpu)]
    return Detection(None, (*gpus, _describe_cpu(cpu)), (ON_MACOS,))


def join_facts(
    nvml: NvmlFacts,
    cpu: CpuFacts,
    build: InstalledTorch | None,
    environment: Mapping[str, str],
    accelerators: tuple[Accelerator, ...] = (),
) -> Detection:
    """The detection from these facts, accelerators first."""
    unusable = _explain_unusable(nvml, build, environment)
    gpus = _describe_gpus(nvml, cpu, environment if unusable is None else None)
    others = [
        _describe_other(found, _name_other(found, accelerators, build, environment), cpu)
        for found in accelerators
    ]
    best = _choose_best(gpus, others, unusable, build)
    absent = ("no library", "no binding")
    broken = nvml.trouble if nvml.trouble and nvml.trouble.kind not in absent else None
    notes = [unusable or _explain_order(nvml, environment), *_list_remarks(nvml, build)]
    notes += [] if unusable else [explain_no_code(gpu, build) for gpu in gpus]
    if not gpus and best not in ("cpu", None):
        notes = []  # torch uses another vendor's GPU and needs no NVIDIA driver
    notes += _explain_others(others, build)
    return Detection(
        best=best,
        devices=(*gpus, *others, _describe_cpu(cpu)),
        notes=tuple(note for note in notes if note),
        driver_trouble=broken.sentence if broken else None,
    )


def _describe_gpus(
    nvml: NvmlFacts, cpu: CpuFacts, environment: Mapping[str, str] | None
) -> list[Device]:
    """Every GPU, each followed by its MIG instances; no torch names if ``environment`` is None."""
    names: list[str | None] = [None] * len(nvml.gpus)
    chosen = None
    if environment is not None:
        names = name_gpus(nvml.gpus, environment)
        chosen = choose_mig_instance(nvml.gpus, environment)
    found = []
    for gpu, name in zip(nvml.gpus, names, strict=True):
        found.append(_describe_gpu(gpu, name, nvml, cpu))
        for instance in gpu.mig_instances:
            name = "cuda:0" if chosen and instance.uuid == chosen else None  # noqa: PLW2901
            described = _describe_gpu(instance, name, nvml, cpu)
            found.append(described._replace(parent_uuid=gpu.uuid))
    return found


def _choose_best(
    gpus: list[Device], others: list[Device], unusable: str | None, build: InstalledTorch | None
) -> str | None:
    found = [*gpus, *others]
    if not found:
        return "cpu"
    if build is None:
        return None  # without torch it is unknown which GPU it could use
    built = {**build.platforms, "cuda": None if unusable else build.cuda}
    usable = [
        device
        for device in found
        if not device.trouble and built.get(device.kind) and not explain_no_code(device, build)
    ]
    if not usable:
        return "cpu"
    kind = TORCH_KINDS[usable[0].kind]
    return f"{kind}:0" if any(one.torch_name == f"{kind}:0" for one in usable) else kind


def explain_no_code(
    device: Device, build: InstalledTorch | None, machine: str = platform.machine()
) -> str | None:
    """Why this build has no code for the GPU, in one sentence; None if it has, or is unknown.

    Only PyTorch's own builds, which say their CUDA in the version (``+cu130``), have a known list.
    """
    needs = NEEDS.get(build.version.partition("+")[2]) if build else None
    capability = device.compute_capability
    if device.kind != "cuda" or needs is None or capability is None or build is None:
        return None
    major, _, minor = capability.partition(".")
    if needs.has_code_for((int(major), int(minor)), machine):
        return None
    return (
        f"torch {build.version} has no code for {device.name} (compute capability {capability};"
        f" it has {needs.describe_span(machine)})"
    )


def _explain_unusable(
    nvml: NvmlFacts, build: InstalledTorch | None, environment: Mapping[str, str]
) -> str | None:
    """Why torch cannot use an NVIDIA GPU, in one sentence; None if it may be able to."""
    if nvml.trouble:
        in_cuda_lab = environment.get("LABKIT_IN_CONTAINER") and build and build.cuda
        not_passed = in_cuda_lab and nvml.trouble.kind == "no library"
        return NOT_PASSED if not_passed else nvml.trouble.sentence
    if not nvml.gpus:
        return "the NVIDIA driver is loaded but there is no GPU"
    if build is None:
        return "torch is not installed in this Python, so it is unknown which GPU it would use"
    if hides_all(nvml.gpus, environment):
        return f"CUDA_VISIBLE_DEVICES={environment['CUDA_VISIBLE_DEVICES']!r} hides every GPU"
    if build.cuda is None:
        return build.describe()
    return explain_old_driver(nvml.driver_version, nvml.cuda_version, build)


def explain_old_driver(
    driver_version: str | None, driver_cuda: str | None, build: InstalledTorch
) -> str | None:
    """Why this build of torch cannot use this driver; None if it can, or that is unknown."""
    # CUDA needs a driver of its own major version or a newer one.
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
        elif gpu.mig_enabled and not gpu.mig_instances:
            remarks.append(f"{place}: it is split by MIG, and none of its MIG instances is visible")
        remarks += [
            f"a MIG instance of {place}: {instance.trouble.sentence}"
            for instance in gpu.mig_instances
            if instance.trouble
        ]
    return remarks


def _explain_order(nvml: NvmlFacts, environment: Mapping[str, str]) -> str | None:
    """Why the numbers of usable GPUs are unknown; None if they are known."""
    if environment.get("CUDA_VISIBLE_DEVICES", "").startswith(("GPU-", "MIG-")):
        return None
    if any(gpu.mig_instances for gpu in nvml.gpus):
        return SPLIT
    known = len(nvml.gpus) < 2 or is_order_known(nvml.gpus, environment)
    return None if known else ORDER_UNKNOWN


def _major(version: str) -> int:
    return int(version.partition(".")[0])


def _name_other(
    found: Accelerator,
    accelerators: tuple[Accelerator, ...],
    build: InstalledTorch | None,
    environment: Mapping[str, str],
) -> str | None:
    """Torch's name for another vendor's GPU; None unless it is the only one and not hidden."""
    built = build and build.platforms.get(found.kind)
    alone = sum(one.kind == found.kind for one in accelerators) == 1
    hidden = any(name in environment for name in HIDING.get(found.kind, ()))
    usable = built and alone and not hidden and not found.trouble
    return f"{TORCH_KINDS[found.kind]}:0" if usable else None


def _explain_others(others: list[Device], build: InstalledTorch | None) -> list[str]:
    """For each GPU of another vendor, why torch cannot use it."""
    notes = []
    for device in others:
        built = build and build.platforms.get(device.kind)
        if device.trouble:
            notes.append(f"{device.name}: {device.trouble}")
        elif build and not built:
            platform = "ROCm" if device.kind == "rocm" else "XPU"
            notes.append(f"{device.name}: torch {build.version} is not built for {platform}")
    return notes


def _describe_gpu(gpu: NvmlGpu, torch_name: str | None, nvml: NvmlFacts, cpu: CpuFacts) -> Device:
    # A GPU that is linked to the machine's memory and has its own (GH200) reports right figures.
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
    """The bytes of a GPU with unified memory: the machine's, or the container's limit."""
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


def name_gpus(gpus: Sequence[NvmlGpu], environment: Mapping[str, str]) -> list[str | None]:
    """Torch's name for each GPU, such as ``"cuda:0"``; None if it is hidden or unknown."""
    places = _find_places(gpus, environment)
    numbers = [None if gpu.mig_enabled else places.get(gpu.nvml_index) for gpu in gpus]
    return [None if number is None else f"cuda:{number}" for number in numbers]


def choose_mig_instance(gpus: Sequence[NvmlGpu], environment: Mapping[str, str]) -> str | None:
    """The UUID of the MIG instance that torch calls cuda:0; None if none is chosen by name."""
    asked = environment.get("CUDA_VISIBLE_DEVICES", "").split(",")[0].strip()
    if not asked.startswith("MIG-"):
        return None
    uuids = [instance.uuid for gpu in gpus for instance in gpu.mig_instances if instance.uuid]
    matching = [uuid for uuid in uuids if uuid.startswith(asked)]
    return matching[0] if len(matching) == 1 else None


def _find_places(gpus: Sequence[NvmlGpu], environment: Mapping[str, str]) -> dict[int, int]:
    """The index in torch of each GPU by its NVML index, as far as it is known."""
    asked = environment.get("CUDA_VISIBLE_DEVICES")
    if asked is not None and asked.startswith("GPU-"):
        places = _match_uuids(parse_uuids(asked), gpus)
        # CUDA may stop at a lost GPU or skip it, so the indices after it are unknown.
        lost = [places[gpu.nvml_index] for gpu in gpus if gpu.trouble and gpu.nvml_index in places]
        first_lost = min(lost, default=len(places))
        return {index: place for index, place in places.items() if place < first_lost}
    if not is_order_known(gpus, environment) or (asked or "").startswith("MIG-"):
        return {}  # with a MIG list torch gets MIG instances and no whole GPU
    shown = range(len(gpus)) if asked is None else parse_indices(asked, len(gpus))
    return {index: place for place, index in enumerate(shown)}


def hides_all(gpus: Sequence[NvmlGpu], environment: Mapping[str, str]) -> bool:
    """True if CUDA_VISIBLE_DEVICES hides all of these GPUs from torch."""
    asked = environment.get("CUDA_VISIBLE_DEVICES")
    if asked is None:
        return False
    if asked.startswith("MIG-"):
        return not choose_mig_instance(gpus, environment) and not _may_be_instance(gpus, asked)
    if asked.startswith("GPU-"):
        return not _match_uuids(parse_uuids(asked), gpus)
    return not parse_indices(asked, len(gpus))


def _may_be_instance(gpus: Sequence[NvmlGpu], asked: str) -> bool:
    """True if a name that matches no listed MIG instance can still be valid."""
    # Drivers before 470 name instances by GPU and numbers, and later ones still accept that.
    by_numbers = asked.startswith("MIG-GPU-")
    split = [gpu for gpu in gpus if gpu.mig_enabled is not False]
    return any(by_numbers or not gpu.mig_instances for gpu in split)


def is_order_known(gpus: Sequence[NvmlGpu], environment: Mapping[str, str]) -> bool:
    """True if CUDA numbers these GPUs as NVML does."""
    if any(gpu.trouble or gpu.mig_enabled for gpu in gpus):
        return False  # CUDA omits a lost GPU, and counts a MIG instance instead of a split GPU
    if environment.get("CUDA_DEVICE_ORDER") == "PCI_BUS_ID":
        return True
    return len({(gpu.name, gpu.compute_capability, gpu.total_bytes) for gpu in gpus}) <= 1


def parse_uuids(asked: str) -> list[str]:
    """The GPU UUIDs, or prefixes of them, in a list, as CUDA parses it.

    The first other entry ends the list; a repeated one makes it empty.

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
    """The index in torch by NVML index; a prefix without exactly one match ends the list."""
    places: dict[int, int] = {}
    for place, uuid in enumerate(uuids):
        matching = [gpu.nvml_index for gpu in gpus if (gpu.uuid or "").startswith(uuid)]
        if len(matching) != 1:
            break
        places[matching[0]] = place
    return places

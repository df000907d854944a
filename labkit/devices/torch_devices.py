"""The devices that torch can use; the only module of ``devices`` that asks torch."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any, NamedTuple

from labkit.host.torch_builds import InstalledTorch

if TYPE_CHECKING:
    import torch


def best_device() -> torch.device:
    """The accelerator that torch can use (CUDA, MPS or XPU), else the CPU.

    >>> best_device().type in ("cpu", "cuda", "mps", "xpu")
    True
    """
    import torch

    return _find_accelerator(torch) or torch.device("cpu")


def _find_accelerator(torch: Any) -> Any:
    """The device of the accelerator that torch can use, or None; torch 2.6 needs two calls."""
    accelerator = torch.accelerator
    return accelerator.current_accelerator() if accelerator.is_available() else None


class TorchDevice(NamedTuple):
    """One device as torch lists it; unknown is None."""

    torch_name: str
    name: str | None = None
    uuid: str | None = None
    total_bytes: int | None = None
    compute_capability: str | None = None


class TorchFacts(NamedTuple):
    """The devices that torch lists, the CPU last, and why there is no accelerator.

    ``architectures``: what its CUDA kernels are built for. ``refusal``: torch's error message.
    ``forked``: this process was forked after CUDA was started, and cannot use it.
    """

    build: InstalledTorch
    devices: tuple[TorchDevice, ...]
    architectures: tuple[str, ...] = ()
    refusal: str | None = None
    forked: bool = False


def read_torch_devices(torch: Any) -> TorchFacts:
    """Every device that torch lists in this process; starts CUDA if it can."""
    version = torch.version
    build = InstalledTorch(str(torch.__version__), version.cuda, version.hip, version.xpu)
    found = _find_accelerator(torch)
    devices = []
    if found is not None:
        module = torch.get_device_module(found.type)
        count = torch.accelerator.device_count()
        devices = [_read_torch_device(module, found.type, index) for index in range(count)]
    return TorchFacts(
        build,
        (*devices, TorchDevice("cpu")),
        tuple(torch.cuda.get_arch_list()) if devices and build.cuda else (),
        None if devices else _ask_refusal(torch, build),
        bool(torch.cuda._is_in_bad_fork()),
    )


def _ask_refusal(torch: Any, build: InstalledTorch) -> str | None:
    """Torch's message on why it has no CUDA; ``is_available()`` is only False."""
    if not (build.cuda or build.hip):
        return None
    try:
        torch.cuda.init()
    except (RuntimeError, AssertionError) as error:
        return str(error).strip()
    return "torch starts CUDA and finds no GPU"


def _read_torch_device(module: Any, kind: str, index: int) -> TorchDevice:
    name = f"{kind}:{index}"
    if not hasattr(module, "get_device_properties"):
        return TorchDevice(name)  # torch has no properties for mps
    properties = module.get_device_properties(index)
    uuid = getattr(properties, "uuid", None)
    capability = (getattr(properties, "major", None), getattr(properties, "minor", None))
    # AMD's major and minor are not a compute capability. NVIDIA's GPUs have their name here.
    is_amd = str(getattr(properties, "gcnArchName", "")).startswith("gfx")
    return TorchDevice(
        name,
        getattr(properties, "name", None),
        None if uuid is None else str(uuid),
        getattr(properties, "total_memory", None),
        None if is_amd or None in capability else "{}.{}".format(*capability),
    )


def has_kernels(compute_capability: str | None, architectures: tuple[str, ...]) -> bool:
    """True if torch built for these architectures runs on a GPU of that compute capability.

    sm_80 runs on 8.0, 8.6 and 8.9; compute_80 on 8.0 and all later ones; sm_90a only on 9.0.
    True if either is unknown.

    >>> has_kernels("8.9", ("sm_80", "sm_90")), has_kernels("6.1", ("sm_75", "compute_120"))
    (True, False)
    """
    known = [re.fullmatch(r"(sm|compute)_(\d+)(\d)([a-z]?)", each) for each in architectures]
    if compute_capability is None or not all(known):
        return True
    major, minor = (int(part) for part in compute_capability.split("."))
    return not known or any(_runs_on(found, major, minor) for found in known if found)


def _runs_on(architecture: re.Match[str], major: int, minor: int) -> bool:
    kind, suffix = architecture[1], architecture[4]
    built = int(architecture[2]), int(architecture[3])
    if built == (major, minor):
        return True
    if kind == "compute":
        return built < (major, minor)
    return suffix != "a" and built[0] == major and built[1] < minor

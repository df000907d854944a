"""What torch can compute on; the one module that asks torch, and imports it only then."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any, NamedTuple

from labkit.host.torch_builds import InstalledTorch

if TYPE_CHECKING:
    import torch


def best_device() -> torch.device:
    """The device to compute on here: CUDA, MPS or XPU where torch can use it, else the CPU.

    >>> best_device().type in ("cpu", "cuda", "mps", "xpu")
    True
    """
    import torch

    found = torch.accelerator.current_accelerator(check_available=True)
    return torch.device("cpu") if found is None else found


class TorchDevice(NamedTuple):
    """One device as torch lists it; what torch does not tell is None."""

    torch_name: str
    name: str | None = None
    uuid: str | None = None
    total_bytes: int | None = None
    compute_capability: str | None = None


class TorchFacts(NamedTuple):
    """What torch can use here, accelerators before the CPU, and why it uses no accelerator.

    ``architectures`` are what its CUDA kernels are built for. ``refusal`` is torch's own text.
    ``forked``: this process came about after CUDA was started, and cannot use it.
    """

    build: InstalledTorch
    devices: tuple[TorchDevice, ...]
    architectures: tuple[str, ...] = ()
    refusal: str | None = None
    forked: bool = False


def read_torch_devices(torch: Any) -> TorchFacts:
    """Every device that torch lists in this process; it starts CUDA where it can."""
    version = torch.version
    build = InstalledTorch(str(torch.__version__), version.cuda, version.hip, version.xpu)
    found = torch.accelerator.current_accelerator(check_available=True)
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
    """Torch's words on why it has no CUDA: ``is_available()`` says no more than False."""
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
        return TorchDevice(name)  # mps: one device, and torch tells nothing of it
    told = module.get_device_properties(index)
    uuid = getattr(told, "uuid", None)
    capability = (getattr(told, "major", None), getattr(told, "minor", None))
    # On NVIDIA's GPUs this is their name; what AMD's have for a capability is not one of NVIDIA's.
    is_amd = str(getattr(told, "gcnArchName", "")).startswith("gfx")
    return TorchDevice(
        name,
        getattr(told, "name", None),
        None if uuid is None else str(uuid),
        getattr(told, "total_memory", None),
        None if is_amd or None in capability else "{}.{}".format(*capability),
    )


def has_kernels(compute_capability: str | None, architectures: tuple[str, ...]) -> bool:
    """Whether a torch with these architectures can run on a GPU of that compute capability.

    A kernel for sm_80 runs on 8.0, 8.6 and 8.9; ``compute_80`` on anything from 8.0 on; sm_90a
    on 9.0 alone. True where nothing is known.

    >>> has_kernels("8.9", ("sm_80", "sm_90")), has_kernels("6.1", ("sm_75", "compute_120"))
    (True, False)
    """
    known = [re.fullmatch(r"(sm|compute)_(\d+)(\d)([a-z]?)", each) for each in architectures]
    if compute_capability is None or not all(known):
        return True
    major, minor = (int(part) for part in compute_capability.split("."))
    return not known or any(
        (int(found[2]), int(found[3])) == (major, minor)
        or (
            found[4] != "a"
            and found[1] == "sm"
            and int(found[2]) == major
            and int(found[3]) < minor
        )
        or (found[1] == "compute" and (int(found[2]), int(found[3])) < (major, minor))
        for found in known
        if found
    )

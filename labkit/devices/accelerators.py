"""The GPUs of AMD, Intel and Apple: on Linux from /sys and /dev, on macOS from the CPU's name."""

from __future__ import annotations

import os
from pathlib import Path
from typing import NamedTuple

from labkit.devices.cpu import CpuFacts

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

"""Where a run ran, in the words of its result: versions and devices, without importing torch."""

from __future__ import annotations

import platform

from labkit import __version__
from labkit.devices.detect import Detection
from labkit.devices.torch_devices import read_torch_build


def read_environment(detection: Detection, device: str | None) -> dict[str, object]:
    """The versions of labkit, Python and torch, the platform, the devices here, and the one used.

    ``memory_total_bytes`` is what the machine has, or what a container's limit leaves of it.
    """
    build = read_torch_build()
    cpu = next((device for device in detection.devices if device.kind == "cpu"), None)
    sizes = [size for size in (cpu.limit_bytes, cpu.total_bytes) if size] if cpu else []
    return {
        "labkit": __version__,
        "python": platform.python_version(),
        "platform": platform.platform(),
        "torch": build.version if build else None,
        "best": detection.best,
        "device": device,
        "memory_total_bytes": min(sizes, default=None),
        "devices": [
            {"kind": device.kind, "torch_name": device.torch_name, "name": device.name}
            for device in detection.devices
        ],
    }

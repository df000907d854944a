"""Where a run ran, in the words of its result: versions and devices, without importing torch."""

from __future__ import annotations

import platform

from labkit import __version__
from labkit.devices.detect import detect_devices
from labkit.devices.torch_devices import read_torch_build


def read_environment() -> dict[str, object]:
    """The versions of labkit, Python and torch, the platform, and the devices here."""
    detection = detect_devices()
    build = read_torch_build()
    return {
        "labkit": __version__,
        "python": platform.python_version(),
        "platform": platform.platform(),
        "torch": build.version if build else None,
        "best": detection.best,
        "devices": [
            {"kind": device.kind, "torch_name": device.torch_name, "name": device.name}
            for device in detection.devices
        ],
    }

"""The file beside compose.yaml that lists a lab's GPUs: `.labkit/gpus.json`.

Variables make no lists, and Compose only ever adds to one, so the service that takes the list
has none of its own. JSON is YAML.
"""

from __future__ import annotations

import json
from pathlib import Path

from labkit.host.gpu_passing import name_cdi_device
from labkit.launch.choose_flavor import Flavor
from labkit.launch.choose_gpus import ALL_GPUS
from labkit.launch.settings import Checkout
from labkit.launch.state import prepare_state_folder, write_private

GPU_SERVICE = "cuda-chosen"
# The tests get the same GPUs.
SERVICES = (GPU_SERVICE, "test")


def write_gpu_file(checkout: Checkout, client: str, flavor: Flavor) -> Path:
    """The file for this engine and flavor, written anew."""
    prepare_state_folder(checkout)
    path = checkout.state_folder / "gpus.json"
    write_private(path, json.dumps(list_gpus(client, flavor), indent=2) + "\n")
    return path


def list_gpus(client: str, flavor: Flavor) -> dict[str, object]:
    """What the file holds: for each service the GPUs, the way the trial proved to work."""
    cdi = [name_cdi_device(gpu) for gpu in flavor.gpus]
    if client == "podman":  # whose Compose takes no reservation but NVIDIA's own
        return {"services": {name: {"devices": cdi} for name in SERVICES}}
    request: dict[str, object] = {"capabilities": ["gpu"]}
    if flavor.way == "cdi":
        # Not `devices:`, which Compose takes for a path before 2.30.
        request.update(driver="cdi", device_ids=cdi)
    elif flavor.gpus == ALL_GPUS:
        request.update(count="all")
    else:
        request.update(device_ids=list(flavor.gpus))
    reserved = {"resources": {"reservations": {"devices": [request]}}}
    return {"services": {name: {"deploy": reserved} for name in SERVICES}}

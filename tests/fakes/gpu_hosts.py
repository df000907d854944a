"""GPU hosts that are played to the launcher: what their drivers, engines and containers answer."""

from __future__ import annotations

import json
from collections.abc import Mapping

from labkit.process import CommandResult
from tests.fakes.host import (
    CONTEXT,
    DOCKER_FINE,
    DOCKER_INFO,
    INFO,
    PODMAN_FINE,
    Answers,
    fails,
    says,
)

RESERVATION, DOCKER_CDI = "docker run --gpus", "docker run --device"
PODMAN_CDI = "podman run --device"
SMI, SMI_LIST = "nvidia-smi --query-gpu", "nvidia-smi -L"

# What the engines and the toolkit say where they pass nothing on.
NO_TOOLKIT = fails(
    'docker: Error response from daemon: could not select device driver "" with capabilities:'
    " [[gpu]].",
    125,
)
CDI_OFF = fails(
    'docker: Error response from daemon: could not select device driver "cdi" with'
    " capabilities: [].",
    125,
)
NO_SPEC = fails(
    "docker: Error response from daemon: CDI device injection failed: unresolvable CDI devices"
    " nvidia.com/gpu=all",
    125,
)
PODMAN_NO_SPEC = fails(
    "Error: setting up CDI devices: unresolvable CDI devices nvidia.com/gpu=all", 126
)
PODMAN_STALE_SPEC = fails(
    "Error: setting up CDI devices: failed to inject devices: failed to stat CDI host device"
    ' "/dev/nvidia1": no such file or directory',
    126,
)
NO_LIBRARY = fails(
    "docker: Error response from daemon: failed to create task for container: OCI runtime create"
    " failed: error running prestart hook #0: exit status 1, stderr: Auto-detected mode as"
    " 'legacy'\nnvidia-container-cli: initialization error: load library failed:"
    " libnvidia-ml.so.1: cannot open shared object file: no such file or directory",
    127,
)
ROOTLESS_CGROUPS = fails(
    "docker: Error response from daemon: failed to create task for container: OCI runtime create"
    " failed: error running prestart hook #0: exit status 1, stderr: nvidia-container-cli: mount"
    " error: failed to add device rules: bpf_prog_query(BPF_CGROUP_DEVICE) failed: operation not"
    " permitted",
    127,
)
NVML_REFUSED = fails("", 4, "Failed to initialize NVML: Insufficient Permissions\n")
NVML_UNKNOWN = fails("", 255, "Failed to initialize NVML: Unknown Error\n")
BLOCKED = fails("", 255, "GPU access blocked by the operating system\n")

HERE: Answers = {
    "docker image inspect": says("sha256:1d0747c5"),
    "podman image inspect": says("sha256:1d0747c5"),
}
ROOTLESS = {
    INFO: says(json.dumps({**DOCKER_INFO, "SecurityOptions": ["name=seccomp", "name=rootless"]}))
}
SNAP = {
    INFO: says(
        json.dumps({**DOCKER_INFO, "DockerRootDir": "/var/snap/docker/common/var-lib-docker"})
    )
}
DESKTOP = {INFO: says(json.dumps({**DOCKER_INFO, "OperatingSystem": "Docker Desktop"}))}
REMOTE = {CONTEXT: says("ssh://ada@gpu-host")}


def lists(*rows: str) -> Mapping[str, CommandResult]:
    """An nvidia-smi whose query prints these rows: name, driver, index, UUID, capability, MIG."""
    return {SMI: says("\n".join(rows))}


def sees(*names: str) -> CommandResult:
    """A container in which `nvidia-smi -L` lists GPUs of these names."""
    lines = [f"GPU {place}: {name} (UUID: GPU-{place}000)" for place, name in enumerate(names)]
    return says("\n".join(lines))


def docker_host(
    *rows: str, reservation: CommandResult = NO_TOOLKIT, cdi: CommandResult = CDI_OFF
) -> dict[str, CommandResult]:
    """A host with Docker and these GPUs, whose containers answer so."""
    return {**DOCKER_FINE, **HERE, **lists(*rows), RESERVATION: reservation, DOCKER_CDI: cdi}


def podman_host(*rows: str, cdi: CommandResult = PODMAN_NO_SPEC) -> dict[str, CommandResult]:
    """A host with Podman and these GPUs, whose containers answer so."""
    return {**PODMAN_FINE, **HERE, **lists(*rows), PODMAN_CDI: cdi}

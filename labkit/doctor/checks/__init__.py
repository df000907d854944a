"""All checks in the order in which faults propagate: GPU, driver, engine, host, network, torch."""

from __future__ import annotations

from typing import TYPE_CHECKING

from labkit.doctor.checks import driver, engine, gpu_access, network, system, torch

if TYPE_CHECKING:
    from labkit.doctor.check import Check

CHECKS: tuple[Check, ...] = (
    driver.GPU_BUS_CHECK,
    driver.GPU_HEALTH_CHECK,
    driver.DRIVER_CHECK,
    driver.DRIVER_LIBRARY_CHECK,
    driver.DEVICE_NODES_CHECK,
    driver.UVM_CHECK,
    driver.MIG_CHECK,
    torch.CUDA_BUILD_CHECK,
    engine.ENGINE_CLIENT_CHECK,
    engine.ENGINE_PERMISSION_CHECK,
    engine.ENGINE_DAEMON_CHECK,
    engine.COMPOSE_CHECK,
    gpu_access.ENGINE_KIND_CHECK,
    gpu_access.TOOLKIT_CHECK,
    gpu_access.CDI_CHECK,
    gpu_access.GPU_ACCESS_CHECK,
    gpu_access.CGROUPS_CHECK,
    gpu_access.CGROUP_DRIVER_CHECK,
    gpu_access.SELINUX_CHECK,
    gpu_access.CONTAINER_GPU_CHECK,
    system.SHM_CHECK,
    system.DISK_CHECK,
    system.MEMORY_CHECK,
    system.PORT_CHECK,
    system.WORKSPACE_CHECK,
    network.CERTIFICATES_CHECK,
    network.DNS_CHECK,
    network.INDEX_CHECK,
    torch.TORCH_BUILD_CHECK,
    torch.TORCH_ALLOCATION_CHECK,
    torch.TORCH_MATMUL_CHECK,
    torch.TORCH_COMPILE_CHECK,
    system.CACHES_CHECK,
)

"""All checks in the order in which faults propagate: GPU, driver, engine, host, network, torch."""

from __future__ import annotations

from typing import TYPE_CHECKING

from labkit.doctor.checks import driver, engine, gpu, gpu_access, network, system, torch

if TYPE_CHECKING:
    from labkit.doctor.check import Check

CHECKS: tuple[Check, ...] = (
    driver.GPU_BUS_CHECK,
    gpu.GPU_HEALTH_CHECK,
    driver.DRIVER_VARIANT_CHECK,
    driver.DRIVER_CHECK,
    driver.NEXT_KERNEL_CHECK,
    driver.DRIVER_LIBRARY_CHECK,
    driver.DEVICE_NODES_CHECK,
    driver.UVM_CHECK,
    gpu.MIG_CHECK,
    gpu.GPU_CLOCKS_CHECK,
    gpu.GPU_LINK_CHECK,
    gpu.PERSISTENCE_CHECK,
    gpu.FABRIC_CHECK,
    gpu.PEERS_CHECK,
    gpu.VISIBLE_CHECK,
    gpu.COMPAT_CHECK,
    torch.CUDA_BUILD_CHECK,
    engine.ENGINE_CLIENT_CHECK,
    engine.ENGINE_PERMISSION_CHECK,
    engine.ENGINE_DAEMON_CHECK,
    engine.COMPOSE_CHECK,
    engine.ENGINE_SETTINGS_CHECK,
    engine.NESTING_CHECK,
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
    system.CHECKOUT_CHECK,
    system.WORKSPACE_CHECK,
    system.CLOCK_CHECK,
    system.MEMLOCK_CHECK,
    network.CERTIFICATES_CHECK,
    network.DNS_CHECK,
    network.INDEX_CHECK,
    torch.TORCH_BUILD_CHECK,
    torch.TORCH_ALLOCATION_CHECK,
    torch.TORCH_MATMUL_CHECK,
    torch.TORCH_COMPILE_CHECK,
    system.CACHES_CHECK,
)

# What a running lab asks about itself. It is past the engine, the network and the port, and what
# computes would take a learner's processor, or a GPU's memory for a context.
COMPUTING = (torch.TORCH_ALLOCATION_CHECK, torch.TORCH_MATMUL_CHECK, torch.TORCH_COMPILE_CHECK)
QUICK_CHECKS: tuple[Check, ...] = tuple(
    check
    for check in CHECKS
    if not check.network
    and check not in (*COMPUTING, system.PORT_CHECK)
    and check.probe.__module__ not in (engine.__name__, gpu_access.__name__)
)

"""All checks in the order a fault travels: bus, driver, engine, container, host, network, torch."""

from __future__ import annotations

from typing import TYPE_CHECKING

from labkit.doctor.checks import (
    caches,
    cdi,
    certificates,
    cgroup_driver,
    cgroups,
    compose,
    container_gpu,
    cuda_build,
    device_nodes,
    disk,
    dns,
    driver,
    driver_library,
    engine_client,
    engine_daemon,
    engine_kind,
    engine_permission,
    gpu_bus,
    gpu_health,
    gpu_passing,
    index,
    memory,
    mig,
    port,
    selinux,
    shm,
    toolkit,
    torch_allocation,
    torch_build,
    torch_compile,
    torch_matmul,
    uvm,
    workspace,
)

if TYPE_CHECKING:
    from labkit.doctor.check import Check

CHECKS: tuple[Check, ...] = tuple(
    module.CHECK
    for module in (
        gpu_bus,
        gpu_health,
        driver,
        driver_library,
        device_nodes,
        uvm,
        mig,
        cuda_build,
        engine_client,
        engine_permission,
        engine_daemon,
        compose,
        engine_kind,
        toolkit,
        cdi,
        gpu_passing,
        cgroups,
        cgroup_driver,
        selinux,
        container_gpu,
        shm,
        disk,
        memory,
        port,
        workspace,
        certificates,
        dns,
        index,
        torch_build,
        torch_allocation,
        torch_matmul,
        torch_compile,
        caches,
    )
)

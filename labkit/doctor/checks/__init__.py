"""All checks in the order a fault travels: bus, driver, engine, container, host, network, torch."""

from __future__ import annotations

from typing import TYPE_CHECKING

from labkit.doctor.checks import (
    caches,
    certificates,
    cgroups,
    compose,
    device_nodes,
    disk,
    dns,
    driver,
    driver_library,
    engine_client,
    engine_daemon,
    engine_permission,
    gpu_bus,
    gpu_passing,
    index,
    memory,
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
        driver,
        driver_library,
        device_nodes,
        uvm,
        engine_client,
        engine_permission,
        engine_daemon,
        compose,
        toolkit,
        gpu_passing,
        cgroups,
        selinux,
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

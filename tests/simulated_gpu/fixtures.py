"""The simulated hosts by name, as pytest fixtures; tests/conftest.py registers them."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import pytest

from tests.simulated_gpu.hosts import (
    A100,
    GB10,
    H100,
    MIG_1G,
    MIG_3G,
    P40,
    SECOND_A100,
    SPLIT_H100,
    T4,
    SimulatedGpu,
    SimulatedHost,
    find_missing_simulation,
)

# What torch's cu126 build has code for: it is the one for Maxwell, Pascal and Volta.
CU126_ARCHITECTURES = "sm_50 sm_60 sm_70 sm_75 sm_80 sm_86 sm_90"


def make_fixture(
    *gpus: SimulatedGpu, **variables: str
) -> Callable[[pytest.TempPathFactory], SimulatedHost]:
    """A fixture that is a host with these GPUs; without the simulation its tests skip."""

    @pytest.fixture(scope="session")
    def play(tmp_path_factory: pytest.TempPathFactory) -> SimulatedHost:
        reason = find_missing_simulation()
        if reason:
            pytest.skip(reason)
        state = tmp_path_factory.mktemp("simulated-machine") / "state"
        return SimulatedHost(gpus, state, variables)

    return play


no_gpu = make_fixture()
a100 = make_fixture(A100)
large_a100 = make_fixture(A100.but(total_mib=40960, reserved_mib=400))
two_a100 = make_fixture(A100, SECOND_A100)
t4 = make_fixture(T4)
h100 = make_fixture(H100, LABKIT_SIM_CONTEXT_MIB="518")
# Pascal with the build that has code for it, and with the one that has none.
pascal = make_fixture(P40, LABKIT_SIM_ARCHITECTURES=CU126_ARCHITECTURES)
pascal_without_code = make_fixture(P40)
# CUDA counts the fastest first, NVML by the bus.
slow_gpu_first = make_fixture(T4, A100, H100)
h100_mig = make_fixture(SPLIT_H100, MIG_3G, MIG_1G)
lost_gpu = make_fixture(A100, SECOND_A100.but(lost=1))
spark = make_fixture(GB10)
wsl = make_fixture(A100, LABKIT_SIM_HIDES_PROCESS_MEMORY="1")
driver_not_loaded = make_fixture(LABKIT_SIM_NVML_ERROR="9")
updated_driver = make_fixture(A100, LABKIT_SIM_NVML_ERROR="18")
# Too hot, its power capped, on half of its lanes, with errors of memory: for health checks.
sick_a100 = make_fixture(
    A100.but(
        throttle_reasons=0x40,
        temperature=92,
        power_limit_watts=200,
        default_power_limit_watts=400,
        pcie_width=8,
        ecc_corrected=12,
        ecc_uncorrected=1,
    )
)


@pytest.fixture
def full_gpu(a100: SimulatedHost) -> Iterator[SimulatedHost]:
    """A GPU of which another process leaves 500 MiB, less than a context and a little more."""
    context_mib = 400
    with a100.other_process(A100.total_mib - A100.reserved_mib - context_mib - 500):
        yield a100

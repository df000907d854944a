"""`labkit prove` as a whole on simulated cards: each sick one gets its cause, the healthy one none.

Speeds are played: products by LABKIT_SIM_GFLOPS, every other kernel takes 0.2 ms and computes
nothing, so the self-test is left out. Copies are as fast as this machine's, and cuDNN's attention
fails here: the verdict on all is asserted on played processes, in tests/test_prove.py.
"""

from __future__ import annotations

import pytest

from tests.simulated_gpu.hosts import A100, SimulatedGpu, SimulatedHost, find_missing_simulation

pytestmark = pytest.mark.simulated

CARD = A100.but(power_limit_watts=400, default_power_limit_watts=400)
SPEEDS = {
    "LABKIT_SIM_GFLOPS": "300000",
    "LABKIT_SIM_KERNEL_NS": "200000",
    "LABKIT_SIM_ARITHMETIC": "0",
}
SKIPPED = ("--skip", "doctor", "--skip", "labs", "--skip", "verify")
WORDS = ("--quick", "--seconds", "150", "--device", "cuda", "--json", *SKIPPED)


def prove(gpu: SimulatedGpu, folder):
    reason = find_missing_simulation()
    if reason:
        pytest.skip(reason)
    host = SimulatedHost((gpu,), folder / "state", SPEEDS)
    return host.run_labkit("prove", *WORDS, "--output", str(folder / "proof"), code=None).json()


def test_a_healthy_card_has_its_played_speed_and_no_alarm(tmp_path):
    proof = prove(CARD, tmp_path)
    (device,) = proof["devices"]
    figures = {one["key"]: one for one in device["figures"]}
    assert device["alarms"] == []
    assert figures["matmul.bfloat16"]["value"] == pytest.approx(300, rel=0.2)
    judged = ("matmul.bfloat16", "sustained.rate", "sustained.hold", "launch")
    assert {figures[key]["status"] for key in judged} == {"well"}
    assert {fact["group"]: fact["status"] for fact in proof["facts"]} == {"balance": "ok"}


SICK = {
    "heat": {"throttle_reasons": 0x40, "temperature": 91},
    "power limit": {"power_limit_watts": 250},
    "link": {"pcie_width": 4, "most_pcie_width": 16},
    "memory errors": {"ecc_uncorrected": 2},
}


def list_alarms(health, folder):
    proof = prove(CARD.but(**health), folder)
    return [one["name"] for one in proof["devices"][0]["alarms"]]


def test_each_cause_of_a_sick_card_is_named(tmp_path):
    health = {name: value for each in SICK.values() for name, value in each.items()}
    assert set(list_alarms(health, tmp_path)) == set(SICK)


@pytest.mark.slow
@pytest.mark.parametrize("cause", SICK)
def test_a_sick_card_has_its_cause_and_no_other(tmp_path, cause):
    assert list_alarms(SICK[cause], tmp_path) == [cause]

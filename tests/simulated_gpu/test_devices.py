"""Devices as labkit names them on simulated hosts: against what torch itself says there."""

from __future__ import annotations

import pytest

pytestmark = pytest.mark.simulated

# labkit's names of the GPUs by UUID, torch's own, what holds memory on the last of them, and best.
NAMES = """
from labkit.devices.detect import detect_devices
found = detect_devices()
answer = {
    "labkit": {one.uuid: one.torch_name for one in found.devices if one.kind == "cuda"},
    "best": found.best,
    "notes": list(found.notes),
}
count = torch.cuda.device_count()
held = [torch.empty(1 << 20, dtype=torch.uint8, device=f"cuda:{at}") for at in range(count)]
uuids = [str(torch.cuda.get_device_properties(at).uuid) for at in range(count)]
answer["torch"] = {uuid: f"cuda:{at}" for at, uuid in enumerate(uuids)}
answer["memory"] = {
    one.uuid: one.torch_name
    for one in labkit.memory().balances
    if one.kind == "cuda" and one.this_process.allocated_bytes
}
print(json.dumps(answer))
"""
VISIBLE = {
    "all": {},
    "the second": {"CUDA_VISIBLE_DEVICES": "1"},
    "the other way round": {"CUDA_VISIBLE_DEVICES": "2,0"},
    "a start of a UUID": {"CUDA_VISIBLE_DEVICES": "GPU-dddddddd"},
    "none": {"CUDA_VISIBLE_DEVICES": ""},
    "up to the first unknown one": {"CUDA_VISIBLE_DEVICES": "0,9,1"},
    "one twice": {"CUDA_VISIBLE_DEVICES": "0,0"},
    "by the bus": {"CUDA_DEVICE_ORDER": "PCI_BUS_ID"},
    "by the bus, two": {"CUDA_DEVICE_ORDER": "PCI_BUS_ID", "CUDA_VISIBLE_DEVICES": "2,0"},
}


@pytest.mark.parametrize("variables", VISIBLE.values(), ids=VISIBLE)
def test_names_are_torchs_whatever_is_visible_in_whatever_order(slow_gpu_first, variables):
    answer = slow_gpu_first.run_script(NAMES, **variables).json()
    truth = answer["torch"]
    named = {uuid.partition("-")[2]: name for uuid, name in answer["labkit"].items() if name}
    assert {uuid: truth.get(uuid) for uuid in named} == named
    assert {uuid.partition("-")[2]: name for uuid, name in answer["memory"].items()} == truth
    assert (answer["best"] or "").startswith("cuda") == bool(truth)


def test_two_alike_have_their_own_names(two_a100):
    answer = two_a100.run_script(NAMES).json()
    assert {uuid.partition("-")[2]: name for uuid, name in answer["labkit"].items()} == answer[
        "torch"
    ]
    assert len(answer["torch"]) == 2


def test_a_gpu_that_torch_has_no_code_for_is_not_the_best(pascal_without_code):
    refused = pascal_without_code.run_labkit("devices", "--json").json()
    assert refused["best"] == "cpu"
    assert any("no code for" in note for note in refused["notes"])


def test_a_mig_instance_is_the_device(h100_mig):
    printed = h100_mig.run_labkit("devices", "--json").json()
    gpus = [one for one in printed["devices"] if one["kind"] == "cuda"]
    assert [bool(one["parent_uuid"]) for one in gpus] == [False, True, True]
    second = gpus[2]["uuid"]
    answer = h100_mig.run_script(NAMES, CUDA_VISIBLE_DEVICES=second).json()
    assert answer["torch"] == {second.partition("-")[2]: "cuda:0"}
    assert answer["memory"] == {second: "cuda:0"}


def test_a_lost_gpu_does_not_hide_the_other(lost_gpu):
    printed = lost_gpu.run_labkit("devices", "--json").json()
    healthy, lost, _ = printed["devices"]
    # CUDA leaves the lost one out: which number the other has is unknown.
    assert (printed["best"], healthy["total_bytes"]) == ("cuda", 4 * 2**30)
    assert "fell off the bus" in str(lost)
    shown = lost_gpu.run_labkit("memory").stdout
    assert "NVIDIA A100" in shown


@pytest.mark.parametrize(
    ("host", "word"),
    [("driver_not_loaded", "not loaded"), ("updated_driver", "updated while loaded")],
)
def test_a_driver_that_does_not_answer_is_said(request, host, word):
    found = request.getfixturevalue(host).run_labkit("devices", code=None)
    assert word in found.stdout + found.stderr


def test_unified_memory_is_one_memory(spark):
    printed = spark.run_labkit("devices", "--json").json()
    assert printed["best"] == "cuda:0"
    shown = spark.run_labkit("memory")
    assert "GB10" in shown.stdout


@pytest.mark.slow  # test_every_device_is_verified does it on the default host
def test_every_device_verifies_with_a_compiled_kernel(t4):
    printed = t4.run_labkit("devices", "--verify", "cuda:0", "--json").json()
    [device] = printed["verified"]
    assert device["verified"], device


def test_memory_of_other_processes_is_unknown_where_nvml_hides_it(wsl):
    with wsl.other_process(1000):
        shown = wsl.run_labkit("memory", "--json").json()
    [gpu] = [one for one in shown["devices"] if one["kind"] == "cuda"]
    assert [process["used_bytes"] for process in gpu["processes"]] == [None]

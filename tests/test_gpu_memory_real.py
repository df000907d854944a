"""Devices and their memory on an NVIDIA GPU: against nvidia-smi and against torch itself."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from labkit.devices.torch_devices import has_kernels, read_torch_devices
from labkit.memory.balance.read import take_snapshot
from tests.simulated_gpu.hosts import find_missing_simulation

pytestmark = pytest.mark.gpu

MIB = 2**20
ROOT = Path(__file__).parents[1]
# What others on the GPU may take or give back between two readings, and what MiB round away.
SLACK_MIB = 16
HELD_BYTES = 256 * MIB


def ask_smi(query, uuid):
    """One row of ``nvidia-smi --query-gpu``, memory in MiB."""
    command = [
        "nvidia-smi",
        f"--id={uuid}",
        f"--query-gpu={query}",
        "--format=csv,noheader,nounits",
    ]
    done = subprocess.run(command, capture_output=True, text=True, check=True, timeout=60)
    return [word.strip() for word in done.stdout.split(",")]


def run_labkit(*words):
    """``labkit`` in a process of its own, and the JSON it prints; pytest's limit ends it."""
    done = subprocess.run(
        [sys.executable, "-m", "labkit", *words, "--json"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.stdout, done.stderr
    return done.returncode, json.loads(done.stdout)


@pytest.fixture
def held():
    """The balance of cuda:0 while this process holds a tensor on it, some of it cached."""
    import torch

    tensor = torch.empty(HELD_BYTES, dtype=torch.uint8, device="cuda:0")
    cached = torch.empty(HELD_BYTES, dtype=torch.uint8, device="cuda:0")
    del cached
    torch.cuda.synchronize()
    found = [one for one in take_snapshot().balances if one.torch_name == "cuda:0"]
    assert len(found) == 1
    yield found[0]
    del tensor
    torch.cuda.empty_cache()


def test_what_torch_allocates_and_reserves_is_what_torch_says(held):
    import torch

    allocated, reserved = torch.cuda.memory_allocated(0), torch.cuda.memory_reserved(0)
    assert allocated >= HELD_BYTES
    assert held.this_process.allocated_bytes == allocated
    assert held.this_process.cached_bytes == reserved - allocated


def test_the_uuid_is_torchs(held):
    import torch

    assert held.uuid.partition("-")[2] == str(torch.cuda.get_device_properties(0).uuid)


@pytest.mark.parametrize(
    ("query", "attribute"),
    [
        ("memory.total", "total_bytes"),
        ("memory.used", "used_bytes"),
        ("memory.free", "free_bytes"),
        ("memory.reserved", "driver_reserved_bytes"),
    ],
)
def test_the_figures_are_those_of_nvidia_smi(held, query, attribute):
    if held.shared or held.uuid.startswith("MIG-"):
        pytest.skip("nvidia-smi has no such figure for unified memory and MIG slices")
    (told,) = ask_smi(query, held.uuid)
    assert getattr(held, attribute) is not None
    assert abs(getattr(held, attribute) / MIB - int(told)) <= SLACK_MIB


def test_what_is_unaccounted_is_little(held):
    if held.this_process.context_bytes is None or held.other_processes_bytes is None:
        pytest.skip(
            "in a container with several processes on the GPU it is not known which is ours"
        )
    # 9 MiB on an H100; a hundredth of a small card is less than what rounds away elsewhere.
    assert abs(held.unaccounted_bytes) < max(held.total_bytes / 100, 64 * MIB)


STAGES = """
import json
from labkit.memory.balance.read import may_use_cuda, take_snapshot
from labkit.devices.detect import detect_devices
stages = {}
def note(stage):
    take_snapshot()
    seen = {"may use": may_use_cuda()}
    if "torch" in globals():
        held = [torch._C._cuda_hasPrimaryContext(one) for one in range(torch.cuda.device_count())]
        seen |= {"started": torch.cuda.is_initialized(), "contexts": any(held)}
    stages[stage] = seen
detect_devices()
note("before torch")  # NVML loads libcuda for its version, and starts nothing
import torch
note("with torch")
torch.ones(1, device="cuda")
note("with a tensor")
print(json.dumps(stages))
"""


@pytest.fixture(scope="module")
def stages():
    """What a process of its own has of CUDA after a snapshot, at three stages."""
    # No limit of wall time but pytest's own: a start takes long in some containers.
    done = subprocess.run(
        [sys.executable, "-c", STAGES], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout.splitlines()[-1])


def test_a_snapshot_makes_no_context(stages):
    assert (stages["with torch"]["started"], stages["with torch"]["contexts"]) == (False, False)
    assert (stages["with a tensor"]["started"], stages["with a tensor"]["contexts"]) == (True, True)


def test_without_a_context_no_memory_of_a_gpu_can_be_ours(stages):
    assert {stage: seen["may use"] for stage, seen in stages.items()} == {
        "before torch": False,
        "with torch": False,
        "with a tensor": None,
    }


def test_every_gpu_of_nvidia_smi_is_listed():
    code, printed = run_labkit("devices")
    assert code == 0
    listed = subprocess.run(
        ["nvidia-smi", "--query-gpu=uuid,name,compute_cap", "--format=csv,noheader"],
        capture_output=True,
        text=True,
        check=True,
        timeout=60,
    )
    rows = [
        f"{gpu['uuid']}, {gpu['name']}, {gpu['compute_capability']}"
        for gpu in printed["devices"]
        if gpu["kind"] == "cuda" and not gpu["parent_uuid"]
    ]
    assert rows == listed.stdout.splitlines()


def test_the_names_are_torchs():
    import torch

    _, printed = run_labkit("devices")
    named = [gpu for gpu in printed["devices"] if (gpu["torch_name"] or "").startswith("cuda:")]
    for gpu in named:
        uuid = str(torch.cuda.get_device_properties(gpu["torch_name"]).uuid)
        assert gpu["uuid"].partition("-")[2] == uuid
    assert (printed["best"] or "").startswith("cuda")


def test_torch_has_kernels_for_what_it_lists():
    import torch

    facts = read_torch_devices(torch)
    assert facts.refusal is None
    assert all(has_kernels(one.compute_capability, facts.architectures) for one in facts.devices)


# Each device has its own first compile. labkit limits the work of each; this is for a process that
# hangs, on a machine that starts processes slowly.
@pytest.mark.timeout(1800)
def test_every_device_is_verified(monkeypatch):
    if not find_missing_simulation():  # the second GPU would compile the same again
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "0")
    code, printed = run_labkit("devices", "--verify")
    listed = [one for one in printed["verified"] if one["listed"]]
    assert code == 0, printed["verified"]
    assert listed[0]["torch_name"] == "cuda:0"
    assert all(one["verified"] for one in listed)
    assert not [one for one in listed if one["uuid"] is None and one["kind"] == "cuda"]


def test_a_hidden_gpu_is_called_hidden(monkeypatch):
    monkeypatch.setitem(os.environ, "CUDA_VISIBLE_DEVICES", "")
    code, printed = run_labkit("devices", "--verify")
    causes = [one["cause"] for one in printed["verified"] if not one["listed"]]
    assert code == 0
    assert set(causes) == {"it is hidden by CUDA_VISIBLE_DEVICES=''"}

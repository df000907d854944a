"""``--device`` against what is here, and running out of memory in words."""

from __future__ import annotations

import pytest

from labkit.devices.detect import Detection, Device
from labkit.errors import DeviceMissingError, UsageError
from labkit.notebooks.recorder import advise, is_out_of_memory, read_balance
from labkit.notebooks.result import read_environment
from labkit.notebooks.schedule import DeviceChoice, choose_device

CPU = Device("cpu", "cpu", "a CPU", total_bytes=64 * 2**30, limit_bytes=8 * 2**30)
LOST = Device("cuda", None, "H", trouble="the GPU is lost")


def gpus(count, named=True):
    devices = [Device("cuda", f"cuda:{n}" if named else None, f"GPU {n}") for n in range(count)]
    return Detection("cuda:0" if named else "cuda", (*devices, CPU), ())


SPLIT = Detection(
    "cuda:0",
    (
        Device("cuda", None, "H", "GPU-1", mig=True),
        Device("cuda", None, "H 1g", "MIG-1", parent_uuid="GPU-1"),
        Device("cuda", "cuda:0", "H 1g", "MIG-2", parent_uuid="GPU-1"),
        CPU,
    ),
    (),
)
NONE = Detection("cpu", (CPU,), ("the NVIDIA driver is not installed",))


@pytest.mark.parametrize(
    ("asked", "detection", "environment", "choice"),
    [
        ("auto", NONE, {}, DeviceChoice("cpu", False)),
        ("auto", gpus(2), {}, DeviceChoice("cuda:0", True)),
        ("auto", Detection(None, (CPU,), ()), {}, DeviceChoice(None, False)),
        ("cpu", gpus(2), {}, DeviceChoice("cpu", False, {"CUDA_VISIBLE_DEVICES": ""})),
        ("cuda", gpus(2), {}, DeviceChoice("cuda:0", True)),
        ("cuda", gpus(2, named=False), {}, DeviceChoice("cuda", True)),
        ("cuda:1", gpus(2), {}, DeviceChoice("cuda:1", True, {"CUDA_VISIBLE_DEVICES": "1"})),
        (
            "cuda:1",
            gpus(2),
            {"CUDA_VISIBLE_DEVICES": "GPU-aa, GPU-bb"},
            DeviceChoice("cuda:1", True, {"CUDA_VISIBLE_DEVICES": "GPU-bb"}),
        ),
        (
            "cuda:1",
            gpus(3, named=False),
            {},
            DeviceChoice("cuda:1", True, {"CUDA_VISIBLE_DEVICES": "1"}),
        ),
        (
            "cuda:0",
            SPLIT,
            {"CUDA_VISIBLE_DEVICES": "MIG-2"},
            DeviceChoice("cuda:0", True, {"CUDA_VISIBLE_DEVICES": "MIG-2"}),
        ),
        (
            "cuda:0",
            Detection("cuda:0", (Device("rocm", "cuda:0", "AMD"), CPU), ()),
            {},
            DeviceChoice("cuda:0", True, {"CUDA_VISIBLE_DEVICES": "0"}),
        ),
    ],
    ids=[
        "auto without a GPU",
        "auto with one",
        "auto on a Mac",
        "cpu hides the GPUs",
        "cuda",
        "cuda of unlike GPUs",
        "one by number",
        "one of a list",
        "one of unlike GPUs",
        "a slice",
        "one of AMD's",
    ],
)
def test_a_device_that_is_here_is_imposed_on_the_kernel(asked, detection, environment, choice):
    assert choose_device(asked, detection, environment) == choice


@pytest.mark.parametrize(
    ("asked", "detection", "environment", "what", "cause"),
    [
        (
            "cuda",
            NONE,
            {},
            "--device cuda: there is no GPU that torch can use here",
            "the NVIDIA driver is not installed",
        ),
        (
            "cuda:0",
            Detection("cpu", (LOST, CPU), ("GPU 0 (H): the GPU is lost",)),
            {},
            "--device cuda:0: there is no GPU that torch can use here",
            "GPU 0 (H): the GPU is lost",
        ),
        ("cuda:1", gpus(1), {}, "--device cuda:1: torch has 1 GPU, cuda:0, here", None),
        (
            "cuda:1",
            SPLIT,
            {"CUDA_VISIBLE_DEVICES": "MIG-2"},
            "--device cuda:1: torch has 1 GPU, cuda:0, here",
            "CUDA_VISIBLE_DEVICES='MIG-2' decides which",
        ),
        (
            "cuda:5",
            gpus(3),
            {"CUDA_VISIBLE_DEVICES": "2,1,0"},
            "--device cuda:5: torch has 3 GPUs, cuda:0 to cuda:2, here",
            "CUDA_VISIBLE_DEVICES='2,1,0' decides which",
        ),
    ],
    ids=["none", "a lost one", "past the only one", "past the only slice", "past the last one"],
)
def test_a_device_that_is_not_here_is_missing(asked, detection, environment, what, cause):
    with pytest.raises(DeviceMissingError) as caught:
        choose_device(asked, detection, environment)
    assert (caught.value.what, caught.value.cause) == (what, cause)
    assert caught.value.fix == "labkit devices"
    assert int(caught.value.exit_code) == 3


@pytest.mark.parametrize("asked", ["gpu", "cuda:", "cuda:-1", "cuda:a", "CUDA", ""])
def test_a_word_that_is_no_device_is_a_usage_error(asked):
    with pytest.raises(UsageError) as caught:
        choose_device(asked, gpus(1), {})
    assert caught.value.cause == "it is auto, cpu, cuda or cuda:N"


def test_the_environment_tells_the_device_and_the_memory_a_container_leaves():
    environment = read_environment(gpus(1), "cuda:0")
    assert (environment["device"], environment["best"]) == ("cuda:0", "cuda:0")
    assert environment["memory_total_bytes"] == 8 * 2**30
    assert environment["devices"] == [
        {"kind": "cuda", "torch_name": "cuda:0", "name": "GPU 0"},
        {"kind": "cpu", "torch_name": "cpu", "name": "a CPU"},
    ]


ON_CUDA = (
    "CUDA out of memory. Tried to allocate 20.00 GiB. GPU 0 has a total capacity of 139.81 GiB of"
    " which 512.00 MiB is free. Process 1234 has 139.31 GiB memory in use. Of the allocated memory"
    " 100.50 GiB is allocated by PyTorch, and 38.00 GiB is reserved by PyTorch but unallocated. If"
    " reserved but unallocated memory is large try setting"
    " PYTORCH_CUDA_ALLOC_CONF=expandable_segments:True to avoid fragmentation."
)
ON_CPU = (
    "[enforce fail at alloc_cpu.cpp:127] err == 0. DefaultCPUAllocator: can't allocate memory: you"
    " tried to allocate 4000000000000 bytes. Error code 12 (Cannot allocate memory)"
)


@pytest.mark.parametrize(
    ("name", "value", "expected"),
    [
        ("OutOfMemoryError", ON_CUDA, True),
        ("torch.OutOfMemoryError", "", True),
        ("RuntimeError", ON_CPU, True),
        ("RuntimeError", "CUDA error: out of memory", True),
        ("MemoryError", "", True),
        ("RuntimeError", "shapes do not match", False),
    ],
)
def test_running_out_of_memory_is_known_by_its_name_or_text(name, value, expected):
    assert is_out_of_memory(name, value) is expected


def test_the_balance_is_read_from_the_text():
    assert read_balance(ON_CUDA) == {
        "asked_bytes": 20 * 2**30,
        "total_bytes": round(139.81 * 2**30),
        "free_bytes": 512 * 2**20,
        "allocated_bytes": round(100.5 * 2**30),
        "cached_bytes": 38 * 2**30,
    }
    assert read_balance(ON_CPU) == {
        "asked_bytes": 4_000_000_000_000,
        "total_bytes": None,
        "free_bytes": None,
        "allocated_bytes": None,
        "cached_bytes": None,
    }
    assert read_balance("") is None


def test_the_advice_shows_the_figures_side_by_side():
    lines = advise(ON_CUDA, read_balance(ON_CUDA)).splitlines()
    assert lines[0] == (
        "20.0 GiB asked for, 512.0 MiB free, 100.5 GiB allocated by torch, 38.0 GiB cached by"
        " torch, 139.8 GiB in all"
    )
    assert lines[1].startswith("try: a smaller batch; torch.no_grad()")
    assert lines[2].endswith("PYTORCH_ALLOC_CONF=expandable_segments:True helps")


def test_on_the_cpu_there_is_other_advice():
    assert advise(ON_CPU, read_balance(ON_CPU)).splitlines() == [
        "3.6 TiB asked for",
        "try: a smaller batch or a smaller type, or give the machine or container more memory",
    ]

"""``--device`` against what is here."""

from __future__ import annotations

import pytest

from labkit.devices.detect import Detection, Device
from labkit.errors import DeviceMissingError, UsageError
from labkit.notebooks.result import DeviceName, read_environment
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
        "a MIG instance",
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
            "--device cuda: torch can use no GPU here",
            "the NVIDIA driver is not installed",
        ),
        (
            "cuda:0",
            Detection("cpu", (LOST, CPU), ("GPU 0 (H): the GPU is lost",)),
            {},
            "--device cuda:0: torch can use no GPU here",
            "GPU 0 (H): the GPU is lost",
        ),
        ("cuda:1", gpus(1), {}, "--device cuda:1: torch has 1 GPU, cuda:0, here", None),
        (
            "cuda:1",
            SPLIT,
            {"CUDA_VISIBLE_DEVICES": "MIG-2"},
            "--device cuda:1: torch has 1 GPU, cuda:0, here",
            "CUDA_VISIBLE_DEVICES='MIG-2' limits them",
        ),
        (
            "cuda:5",
            gpus(3),
            {"CUDA_VISIBLE_DEVICES": "2,1,0"},
            "--device cuda:5: torch has 3 GPUs, cuda:0 to cuda:2, here",
            "CUDA_VISIBLE_DEVICES='2,1,0' limits them",
        ),
    ],
    ids=[
        "none",
        "a lost one",
        "past the only one",
        "past the only MIG instance",
        "past the last one",
    ],
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
    assert (environment.device, environment.best) == ("cuda:0", "cuda:0")
    assert environment.memory_total_bytes == 8 * 2**30
    assert environment.devices == (
        DeviceName("cuda", "cuda:0", "GPU 0"),
        DeviceName("cpu", "cpu", "a CPU"),
    )

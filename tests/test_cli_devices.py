"""``labkit devices`` as people and programs see it."""

from __future__ import annotations

import json

import pytest

from labkit.cli import main
from labkit.cli.devices import describe_detection, format_detection
from labkit.devices import detect
from labkit.devices.detect import Detection, Device

GIB = 2**30
GPU = Device(
    "cuda",
    "cuda:0",
    "NVIDIA H200",
    "GPU-0a1b2c3d",
    141 * GIB,
    compute_capability="9.0",
    mig=False,
    driver="580.95.05",
    cuda="13.0",
)
CPU = Device(
    "cpu",
    "cpu",
    "AMD EPYC 9654",
    total_bytes=16 * GIB,
    limit_bytes=2 * GIB,
    cores=1.5,
    physical_cores=2,
    logical_cores=4,
    vector_extensions=("AVX", "AVX2"),
)

FULL_SCREEN = """\
best device: cuda:0

cuda:0  NVIDIA H200
        memory      141.0 GiB
        capability  9.0
        driver      580.95.05 (CUDA 13.0)
        uuid        GPU-0a1b2c3d

cpu     AMD EPYC 9654
        cores       1.5 usable here, of 4 (2 physical)
        memory      2.0 GiB for this container, of 16.0 GiB
        vectors     AVX, AVX2"""

SLICE = Device(
    "cuda",
    name="NVIDIA H200 MIG 1g.18gb",
    uuid="MIG-11aa",
    total_bytes=18 * GIB,
    compute_capability="9.0",
    driver="580.95.05",
    cuda="13.0",
    parent_uuid="GPU-0a1b2c3d",
)
SPARK = Device("cuda", "cuda:0", "NVIDIA GB10", "GPU-77", 120 * GIB, unified=True)
OTHER = Device("rocm", None, "AMD Instinct MI300X", total_bytes=GIB, compute_capability="gfx942")

ODD_SCREEN = """\
best device: cuda:0

slice   NVIDIA H200 MIG 1g.18gb
        memory      18.0 GiB
        capability  9.0
        driver      580.95.05 (CUDA 13.0)
        uuid        MIG-11aa
        slice of    GPU-0a1b2c3d
        torch name  none, or not known

cuda:0  NVIDIA GB10
        memory      120.0 GiB, shared with the system
        capability  unknown
        driver      unknown (CUDA unknown)
        uuid        GPU-77

gpu     AMD Instinct MI300X
        memory      1.0 GiB
        capability  gfx942
        torch name  none, or not known"""

UNKNOWN_SCREEN = """\
best device: unknown

gpu     unknown
        memory      unknown, split by MIG
        capability  unknown
        driver      unknown (CUDA unknown)
        uuid        unknown
        torch name  none, or not known

cpu     unknown
        cores       unknown usable here (unknown physical)
        memory      unknown
        vectors     unknown

note: torch is not installed in this Python
note: and another thing"""


@pytest.mark.parametrize(
    ("detection", "screen"),
    [
        pytest.param(Detection("cuda:0", (GPU, CPU), ()), FULL_SCREEN, id="all known"),
        pytest.param(
            Detection("cuda:0", (SLICE, SPARK, OTHER), ()), ODD_SCREEN, id="slice, unified, AMD"
        ),
        pytest.param(
            Detection(
                None,
                (Device("cuda", mig=True), Device("cpu", "cpu")),
                ("torch is not installed in this Python", "and another thing"),
            ),
            UNKNOWN_SCREEN,
            id="nothing known",
        ),
    ],
)
def test_the_screen(detection, screen):
    assert format_detection(detection) == screen


@pytest.mark.parametrize(
    ("extensions", "words"), [((), "none"), (None, "unknown")], ids=["none", "unknown"]
)
def test_no_vector_extensions_is_not_unknown_ones(extensions, words):
    cpu = CPU._replace(vector_extensions=extensions)
    assert format_detection(Detection("cpu", (cpu,), ())).endswith(f"vectors     {words}")


def test_the_json_object_has_every_key_and_null_for_the_unknown():
    described = describe_detection(Detection("cuda:0", (GPU, CPU), ("a note",)))
    assert json.loads(json.dumps(described)) == {
        "best": "cuda:0",
        "devices": [
            {
                "kind": "cuda",
                "torch_name": "cuda:0",
                "name": "NVIDIA H200",
                "uuid": "GPU-0a1b2c3d",
                "total_bytes": 141 * GIB,
                "limit_bytes": None,
                "compute_capability": "9.0",
                "mig": False,
                "driver": "580.95.05",
                "cuda": "13.0",
                "cores": None,
                "physical_cores": None,
                "logical_cores": None,
                "vector_extensions": None,
                "trouble": None,
                "parent_uuid": None,
                "unified": None,
            },
            {
                "kind": "cpu",
                "torch_name": "cpu",
                "name": "AMD EPYC 9654",
                "uuid": None,
                "total_bytes": 16 * GIB,
                "limit_bytes": 2 * GIB,
                "compute_capability": None,
                "mig": None,
                "driver": None,
                "cuda": None,
                "cores": 1.5,
                "physical_cores": 2,
                "logical_cores": 4,
                "vector_extensions": ["AVX", "AVX2"],
                "trouble": None,
                "parent_uuid": None,
                "unified": None,
            },
        ],
        "notes": ["a note"],
    }


def test_the_command_prints_the_screen(monkeypatch, capsys):
    monkeypatch.setattr(detect, "detect_devices", lambda: Detection("cuda:0", (GPU, CPU), ()))
    assert main(["devices"]) == 0
    assert capsys.readouterr() == (FULL_SCREEN + "\n", "")


def test_the_command_prints_one_json_object_of_this_machine(capsys):
    assert main(["devices", "--json"]) == 0
    out, err = capsys.readouterr()
    printed = json.loads(out)
    assert list(printed) == ["schema_version", "best", "devices", "notes"]
    assert printed["devices"][-1]["kind"] == "cpu"
    assert err == ""

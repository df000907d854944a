"""Which build of torch fits: every driver against every architecture, and hosts of several."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from labkit.errors import DeviceMissingError, EngineError, ExitCode
from labkit.host.distribution import Distribution
from labkit.host.gpu import Gpu, GpuFacts
from labkit.host.torch_builds import CUDA_BUILDS, NEEDS
from labkit.launch.build import (
    CHOOSE_BUILD_BUILDS,
    BuildHost,
    choose_build,
    describe_architecture,
    describe_gpus,
    find_served,
)
from labkit.launch.runtime import Choice

UBUNTU = Distribution("Ubuntu 24.04", "ubuntu")
NEW_DRIVER = "sudo ubuntu-drivers install   # then reboot"

DRIVERS = {
    "450": "450.248.02",
    "470": "470.182.03",
    "525": "525.60.13",
    "535": "535.183.01",
    "550": "550.54.15",
    "570": "570.86.15",
    "580": "580.65.06",
    "590": "590.44.01",
}
GTX_780 = Gpu("GeForce GTX 780", 0, "GPU-kkkk", (3, 5))
GTX_970 = Gpu("NVIDIA GeForce GTX 970", 0, "GPU-mmmm", (5, 2))
GTX_1080 = Gpu("NVIDIA GeForce GTX 1080", 0, "GPU-pppp", (6, 1))
V100 = Gpu("Tesla V100-SXM2-32GB", 0, "GPU-vvvv", (7, 0))
T4 = Gpu("Tesla T4", 0, "GPU-tttt", (7, 5))
A100 = Gpu("NVIDIA A100-SXM4-80GB", 0, "GPU-aaaa", (8, 0), False)
RTX_4090 = Gpu("NVIDIA GeForce RTX 4090", 0, "GPU-llll", (8, 9))
H200 = Gpu("NVIDIA H200", 0, "GPU-hhhh", (9, 0), False)
B200 = Gpu("NVIDIA B200", 0, "GPU-bbbb", (10, 0), False)
RTX_5090 = Gpu("NVIDIA GeForce RTX 5090", 0, "GPU-gggg", (12, 0))
GB10 = Gpu("NVIDIA GB10", 0, "GPU-ssss", (12, 1))
NAMELESS = Gpu("NVIDIA Graphics Device", 0, "GPU-nnnn")
KINDS = {
    "Kepler": GTX_780,
    "Maxwell": GTX_970,
    "Pascal": GTX_1080,
    "Volta": V100,
    "Turing": T4,
    "Ampere": A100,
    "Ada": RTX_4090,
    "Hopper": H200,
    "Blackwell": B200,
    "GeForce-Blackwell": RTX_5090,
    "GB10": GB10,
    "unknown": NAMELESS,
}
# old: the driver is too old for any CUDA build; new: the GPU needs a newer driver; -: no build.
TABLE = """
                   450  470  525    535    550    570    580    590
Kepler             -    -    -      -      -      -      -      -
Maxwell            old  old  cu126  cu126  cu126  cu126  cu126  cu126
Pascal             old  old  cu126  cu126  cu126  cu126  cu126  cu126
Volta              old  old  cu126  cu126  cu126  cu126  cu126  cu126
Turing             old  old  cu126  cu126  cu126  cu126  cu130  cu130
Ampere             old  old  cu126  cu126  cu126  cu126  cu130  cu130
Ada                old  old  cu126  cu126  cu126  cu126  cu130  cu130
Hopper             old  old  cu126  cu126  cu126  cu126  cu130  cu130
Blackwell          old  old  new    new    new    new    cu130  cu130
GeForce-Blackwell  old  old  new    new    new    new    cu130  cu130
GB10               old  old  new    new    new    new    cu130  cu130
unknown            old  old  cu126  cu126  cu126  cu126  cu130  cu130
"""


def read_table():
    columns, *rows = TABLE.strip("\n").splitlines()
    for row in rows:
        kind, *cells = row.split()
        for driver, expected in zip(columns.split(), cells, strict=True):
            yield pytest.param(kind, driver, expected, id=f"{kind} on {driver}")


def host(driver, *gpus, machine="x86_64"):
    """A host with these GPUs, numbered in this order."""
    numbered = tuple(
        Gpu(gpu.name, place, gpu.uuid, gpu.capability, gpu.mig, gpu.parts)
        for place, gpu in enumerate(gpus)
    )
    version = DRIVERS.get(driver, driver)
    return BuildHost(GpuFacts(version, numbered), numbered, machine, UBUNTU)


def refuse(host, asked="auto", **options):
    with pytest.raises(EngineError) as caught:
        choose_build(asked, host, **options)
    assert caught.value.exit_code == ExitCode.ENGINE
    return caught.value


@pytest.mark.parametrize(("kind", "driver", "expected"), list(read_table()))
def test_the_build_for_a_driver_and_an_architecture(kind, driver, expected):
    played = host(driver, KINDS[kind])
    if expected in CHOOSE_BUILD_BUILDS:
        choice = choose_build("auto", played)
        assert choice.value == expected
        assert choice.warning is None
        return
    error = refuse(played)
    if expected == "old":
        assert error.what == f"driver {DRIVERS[driver]} is too old for CUDA"
        assert error.cause == "every CUDA build of torch here needs driver 525 or newer"
        assert error.fix == NEW_DRIVER
    elif expected == "new":
        name, kind = KINDS[kind].name, describe_architecture(KINDS[kind])
        assert error.what == f"no build of torch fits {name} with driver {DRIVERS[driver]}"
        assert error.cause == (
            f"its architecture ({kind}) needs build cu130, and that driver 580 or newer"
        )
        assert error.fix == NEW_DRIVER
    else:
        assert error.cause == "its architecture (Kepler, 3.5) is in none of them"
        assert error.fix == "make up FLAVOR=cpu"


def test_every_build_that_can_be_made_can_be_chosen():
    assert tuple(build.name for build in CUDA_BUILDS) == CHOOSE_BUILD_BUILDS


@pytest.mark.parametrize(
    ("played", "choice"),
    [
        pytest.param(
            host("580", H200, H200, H200, H200),
            Choice("cu130", "build cu130 for 4 NVIDIA H200 with driver 580.65.06"),
            id="four of a kind",
        ),
        pytest.param(
            host("580", RTX_4090, GTX_1080),
            Choice(
                "cu126",
                "build cu126 for NVIDIA GeForce RTX 4090, NVIDIA GeForce GTX 1080 with driver"
                " 580.65.06",
            ),
            id="Ada and Pascal: the older build serves both",
        ),
        pytest.param(
            host("580", GTX_1080, RTX_5090),
            Choice(
                "cu130",
                "build cu130 for NVIDIA GeForce RTX 5090 with driver 580.65.06",
                "NVIDIA GeForce GTX 1080 (GPU 0) is left out: build cu130 has no code for its"
                " architecture (Pascal, 6.1)",
                "make up GPUS=0   # a lab on that one",
            ),
            id="Pascal and Blackwell: the newer of two that serve one each",
        ),
        pytest.param(
            host("580", V100, V100, B200),
            Choice(
                "cu126",
                "build cu126 for 2 Tesla V100-SXM2-32GB with driver 580.65.06",
                "NVIDIA B200 (GPU 2) is left out: build cu126 has no code for its architecture"
                " (Blackwell, 10.0)",
                "make up GPUS=2   # a lab on that one",
            ),
            id="two Voltas and a Blackwell: the one that serves most",
        ),
        pytest.param(
            host("570", RTX_4090, RTX_5090),
            Choice(
                "cu126",
                "build cu126 for NVIDIA GeForce RTX 4090 with driver 570.86.15",
                "NVIDIA GeForce RTX 5090 (GPU 1) is left out: build cu126 has no code for its"
                " architecture (Blackwell, 12.0)",
                "make up GPUS=1   # a lab on that one",
            ),
            id="Ada and Blackwell with a driver of CUDA 12",
        ),
        pytest.param(
            host("580", NAMELESS),
            Choice(
                "cu130",
                "build cu130 by driver 580.65.06 alone: it does not tell the GPU's architecture",
            ),
            id="an architecture that is not told",
        ),
        pytest.param(
            host("535"),
            Choice(
                "cu126",
                "build cu126 by driver 535.183.01 alone: it does not tell the GPU's architecture",
            ),
            id="a driver that lists nothing",
        ),
        pytest.param(
            host(None, H200),
            Choice("cu130", "build cu130 for NVIDIA H200 with driver unknown"),
            id="a driver of unknown age",
        ),
        pytest.param(
            host("580", H200, machine="aarch64"),
            Choice("cu130", "build cu130 for NVIDIA H200 with driver 580.65.06"),
            id="on ARM64",
        ),
        pytest.param(
            host("550", H200, machine="aarch64"),
            Choice("cu126", "build cu126 for NVIDIA H200 with driver 550.54.15"),
            id="on ARM64, with a driver of CUDA 12",
        ),
    ],
)
def test_the_build_and_why(played, choice):
    assert choose_build("auto", played) == choice


@pytest.mark.parametrize(
    ("asked", "played", "reason"),
    [
        ("cu126", host("580", H200), "build cu126 for NVIDIA H200 with driver 580.65.06"),
        ("cu130", host("590", T4), "build cu130 for Tesla T4 with driver 590.44.01"),
    ],
)
def test_a_build_that_was_asked_for(asked, played, reason):
    assert choose_build(asked, played) == Choice(asked, reason)


@pytest.mark.parametrize(
    ("asked", "played", "cause", "fix"),
    [
        pytest.param(
            "cu130",
            host("570", RTX_4090),
            "it needs driver 580 or newer, and 570.86.15 is loaded",
            "make up CUDA=cu126",
            id="driver too old, the other build fits",
        ),
        pytest.param(
            "cu130",
            host("570", RTX_5090),
            "it needs driver 580 or newer, and 570.86.15 is loaded",
            NEW_DRIVER,
            id="driver too old, and no other build fits",
        ),
        pytest.param(
            "cu126",
            host("580", RTX_5090),
            "NVIDIA GeForce RTX 5090: build cu126 has no code for its architecture"
            " (Blackwell, 12.0)",
            "make up CUDA=cu130",
            id="Blackwell in the older build",
        ),
        pytest.param(
            "cu130",
            host("580", GTX_780),
            "GeForce GTX 780: build cu130 has no code for its architecture (Kepler, 3.5)",
            "make up FLAVOR=cpu",
            id="Kepler",
        ),
        pytest.param(
            "cu126",
            host("580", H200, machine="ppc64le"),
            "they are made for x86_64 and aarch64, and this machine is ppc64le",
            "make up FLAVOR=cpu",
            id="another machine",
        ),
    ],
)
def test_a_build_that_was_asked_for_and_cannot_work_is_an_error(asked, played, cause, fix):
    error = refuse(played, asked)
    assert error.what == f"build {asked} cannot run here"
    assert (error.cause, error.fix) == (cause, fix)


@pytest.mark.parametrize(
    ("machine", "cause"),
    [
        ("aarch64", "its architecture (Turing, 7.5) is in none of them"),
        ("ppc64le", "they are made for x86_64 and aarch64, and this machine is ppc64le"),
    ],
)
def test_what_runs_on_a_pc_may_have_no_build_on_another_machine(machine, cause):
    error = refuse(host("580", T4, machine=machine))
    assert error.what == "no build of torch fits Tesla T4 with driver 580.65.06"
    assert (error.cause, error.fix) == (cause, "make up FLAVOR=cpu")


def test_gpus_asked_for_that_no_build_serves_together_are_an_error():
    error = refuse(host("580", GTX_1080, RTX_5090), all_asked=True)
    assert error.what == "no build of torch serves GPU 0 and GPU 1 together"
    assert error.cause == (
        "NVIDIA GeForce GTX 1080 (GPU 0): build cu130 has no code for its architecture"
        " (Pascal, 6.1)"
    )
    assert error.fix == "make up GPUS=1"


GPUS = st.lists(st.sampled_from([*KINDS.values()]), max_size=6)


@given(
    gpus=GPUS, driver=st.sampled_from([*DRIVERS]), machine=st.sampled_from(["x86_64", "aarch64"])
)
def test_whatever_the_host_no_build_would_serve_more_of_its_gpus(gpus, driver, machine):
    played = host(driver, *gpus, machine=machine)
    able = [name for name in CHOOSE_BUILD_BUILDS if int(driver) >= NEEDS[name].driver]
    served = {name: len(find_served(name, played.gpus, machine)) for name in able}
    try:
        build = choose_build("auto", played)
    except EngineError as error:
        assert not any(served.values())
        assert error.cause
        assert error.fix
        return
    assert build.value in able
    assert served[build.value] == max(served.values())
    assert bool(build.warning) is (served[build.value] < len(gpus))
    assert played.gpus == () or served[build.value] > 0


EMPTY_MIG = Gpu("NVIDIA A100-SXM4-80GB", 0, "GPU-aaaa", (8, 0), True)
CUT = Gpu("NVIDIA A100-SXM4-80GB", 0, "GPU-cccc", (8, 0), True, ("MIG-1111", "MIG-2222"))
CUT_ANEW = "sudo nvidia-smi mig -i 0 -cgi 0 -C   # as one part of all of it"


def test_a_gpu_in_parts_is_one_like_others():
    assert choose_build("auto", host("580", CUT)).warning is None


def test_a_gpu_in_mig_mode_without_parts_computes_nothing():
    with pytest.raises(DeviceMissingError) as caught:
        choose_build("auto", host("580", EMPTY_MIG))
    assert caught.value.cause == "NVIDIA A100-SXM4-80GB (GPU 0) is in MIG mode and has no parts"
    assert caught.value.fix == CUT_ANEW


def test_it_is_left_out_where_there_are_others():
    assert choose_build("auto", host("580", EMPTY_MIG, H200)) == Choice(
        "cu130",
        "build cu130 for NVIDIA H200 with driver 580.65.06",
        "NVIDIA A100-SXM4-80GB (GPU 0) is left out: it is in MIG mode and has no parts",
        CUT_ANEW,
    )


def test_what_is_not_known_is_said_to_be():
    assert describe_gpus([]) == "an NVIDIA GPU"
    assert describe_architecture(NAMELESS) == "unknown"

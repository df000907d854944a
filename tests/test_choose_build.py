"""Which build of torch fits: every driver against every architecture, and hosts of several."""

from __future__ import annotations

import dataclasses

import pytest
from hypothesis import given
from hypothesis import strategies as st

from labkit.errors import DeviceMissingError, EngineError, ExitCode
from labkit.host.distribution import Distribution
from labkit.host.gpu import Gpu, GpuFacts, describe_architecture, describe_gpus
from labkit.host.torch_builds import CUDA_BUILDS, NEEDS, BuildHost, choose_build

UBUNTU = Distribution("Ubuntu 24.04", "ubuntu")
CLOSED_DRIVER = "sudo apt-get install nvidia-driver-580   # then reboot"
NEW_DRIVER = "sudo apt-get install nvidia-driver-580-open   # then reboot"

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
FAILING = Gpu("NVIDIA H200", 1, "GPU-eeee", (9, 0), answers=False)
ORIN = Gpu("Orin (nvgpu)", 0, None, (8, 7))
THOR = Gpu("NVIDIA Thor", 0, None, (11, 0))
EMPTY_MIG = Gpu("NVIDIA A100-SXM4-80GB", 0, "GPU-aaaa", (8, 0), True)
MIG = Gpu("NVIDIA A100-SXM4-80GB", 0, "GPU-cccc", (8, 0), True, ("MIG-1111", "MIG-2222"))
DIVIDE = "sudo nvidia-smi mig -i 0 -cgi 0 -C   # one instance of the whole GPU"
CPU_LAB = "make up FLAVOR=cpu"
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
    numbered = tuple(dataclasses.replace(gpu, index=place) for place, gpu in enumerate(gpus))
    version = DRIVERS.get(driver, driver)
    return BuildHost(GpuFacts(version, numbered), numbered, machine, UBUNTU)


def refuse(host, asked="auto", **options):
    with pytest.raises(EngineError) as caught:
        choose_build(asked, host, **options)
    return caught.value


@pytest.mark.parametrize(("kind", "driver", "expected"), list(read_table()))
def test_the_build_for_a_driver_and_an_architecture(kind, driver, expected):
    played = host(driver, KINDS[kind])
    if expected in NEEDS:
        choice = choose_build("auto", played)
        assert (choice.name, choice.warning) == (expected, None)
        return
    error = refuse(played)
    if expected == "old":
        assert "too old" in error.what
        assert "525" in str(error.cause)
        before_turing = kind in ("Maxwell", "Pascal", "Volta")
        any_driver = "sudo ubuntu-drivers install   # then reboot"
        wanted = CLOSED_DRIVER if before_turing else NEW_DRIVER
        assert error.fix == (any_driver if kind == "unknown" else wanted)
    elif expected == "new":
        assert "cu130" in str(error.cause)
        assert "580 or newer" in str(error.cause)
        assert error.fix == NEW_DRIVER
    else:
        assert "Kepler, 3.5" in str(error.cause)
        assert error.fix == "make up FLAVOR=cpu"


# The GPUs are asked for by their place; None: nothing is left out.
@pytest.mark.parametrize(
    ("played", "build", "reason", "left_out"),
    [
        pytest.param(
            host("580", H200, H200, H200, H200), "cu130", "4 NVIDIA H200", None, id="four of a kind"
        ),
        pytest.param(
            host("580", RTX_4090, GTX_1080), "cu126", "GTX 1080", None, id="the older serves both"
        ),
        pytest.param(
            host("580", GTX_1080, RTX_5090), "cu130", "RTX 5090", 0, id="newer of one each"
        ),
        pytest.param(
            host("580", V100, V100, B200), "cu126", "2 Tesla V100", 2, id="the one that serves most"
        ),
        pytest.param(
            host("570", RTX_4090, RTX_5090), "cu126", "RTX 4090", 1, id="a driver of CUDA 12"
        ),
        pytest.param(host("580", NAMELESS), "cu130", "not known", None, id="unknown architecture"),
        pytest.param(host("535"), "cu126", "not known", None, id="a driver that lists nothing"),
        pytest.param(host(None, H200), "cu130", "driver unknown", None, id="unknown driver"),
        pytest.param(host("580", H200, machine="aarch64"), "cu130", "H200", None, id="ARM64"),
        pytest.param(
            host("580", EMPTY_MIG, H200), "cu130", "NVIDIA H200", 0, id="MIG without instances"
        ),
        pytest.param(
            host("580", H200, FAILING), "cu130", "NVIDIA H200", 1, id="one that prints ERR!"
        ),
    ],
)
def test_the_build_and_why(played, build, reason, left_out):
    choice = choose_build("auto", played)
    assert choice.name == build
    assert reason in choice.reason
    wanted = [gpu for place, gpu in enumerate(played.gpus) if place != left_out]
    assert choice.gpus == tuple(wanted)
    if left_out is None:
        assert choice.warning is None
    else:
        gpu = played.gpus[left_out]
        assert f"{gpu.name} (GPU {left_out})" in str(choice.warning)
        alone = f"make up GPUS={left_out}   # a lab on that one"
        look = "make doctor   # shows the GPU's faults"
        assert choice.fix == (look if not gpu.answers else DIVIDE if gpu.mig else alone)


@pytest.mark.parametrize(
    ("asked", "played"), [("cu126", host("580", H200)), ("cu130", host("590", T4))]
)
def test_a_build_that_was_asked_for(asked, played):
    assert choose_build(asked, played).name == asked


@pytest.mark.parametrize(
    ("asked", "played", "cause", "fix"),
    [
        pytest.param(
            "cu130", host("570", RTX_4090), "driver 580", "make up CUDA=cu126", id="the other fits"
        ),
        pytest.param("cu130", host("570", RTX_5090), "driver 580", NEW_DRIVER, id="none fits"),
        pytest.param(
            "cu126", host("580", RTX_5090), "Blackwell, 12.0", "make up CUDA=cu130", id="Blackwell"
        ),
        pytest.param("cu130", host("580", GTX_780), "Kepler, 3.5", CPU_LAB, id="Kepler"),
        pytest.param("cu126", host("580", H200, machine="ppc64le"), "ppc64le", CPU_LAB, id="POWER"),
        pytest.param("auto", host("580", H200, machine="ppc64le"), "ppc64le", CPU_LAB, id="auto"),
        pytest.param("auto", host("580", T4, machine="aarch64"), "Turing", CPU_LAB, id="ARM64"),
    ],
)
def test_a_build_that_cannot_work_is_an_error(asked, played, cause, fix):
    error = refuse(played, asked)
    assert error.exit_code == ExitCode.ENGINE
    assert cause in str(error.cause)
    assert error.fix == fix


def test_of_several_mig_instances_a_process_gets_one_and_is_told_how_to_choose():
    choice = choose_build("auto", host("580", MIG))
    assert "2 MIG instances" in str(choice.warning)
    assert choice.fix == "make up GPUS=MIG-1111   # a lab on that one"
    assert choose_build("auto", host("580", MIG), all_asked=True).warning is None


@pytest.mark.parametrize("driver", ["540", "580"])
def test_no_build_runs_on_a_jetson_orin(driver):
    error = refuse(host(f"{driver}.4.0", ORIN, machine="aarch64"))
    assert "Orin" in error.what
    assert "NVIDIA's own builds" in str(error.cause)
    assert str(error.fix).startswith(CPU_LAB)
    assert choose_build("auto", host("580", THOR, machine="aarch64")).name == "cu130"


def test_a_gpu_that_fails_is_not_served():
    error = refuse(host("580", FAILING))
    assert "ERR!" in str(error.cause)
    assert error.fix == "make doctor"


def test_the_builds_have_the_code_that_the_installed_torch_lists():
    cuda = pytest.importorskip("torch").cuda
    for build in CUDA_BUILDS:
        listed = getattr(cuda, "PYTORCH_RELEASES_CODE_CC", {}).get(build.cuda)
        if not isinstance(listed, dict):
            pytest.skip("before torch 2.13 it has no list for each machine")
        needs = NEEDS[build.name]
        for machine, code in listed.items():
            assert {10 * major + minor for major, minor in needs.code[machine]} == code
            for number in cuda.DEVICE_REQUIREMENT:
                runs = any(number in cuda.DEVICE_REQUIREMENT[each] for each in code)
                assert needs.has_code_for((number // 10, number % 10), machine) is runs, number


def test_in_wsl_the_driver_is_updated_in_windows():
    played = dataclasses.replace(host("470", T4), facts=GpuFacts("470.182.03", (T4,), wsl=True))
    assert "wsl.exe" in str(refuse(played).fix)


def test_gpus_asked_for_that_no_build_serves_together_are_an_error():
    error = refuse(host("580", GTX_1080, RTX_5090), all_asked=True)
    assert "GPU 0 and GPU 1" in error.what
    assert "GTX 1080 (GPU 0)" in str(error.cause)
    assert error.fix == "make up GPUS=1"


def test_a_gpu_in_mig_mode_without_instances_computes_nothing():
    with pytest.raises(DeviceMissingError, match="A100") as caught:
        choose_build("auto", host("580", EMPTY_MIG))
    assert "MIG mode" in str(caught.value.cause)
    assert caught.value.fix == DIVIDE


GPUS = st.lists(st.sampled_from([*KINDS.values()]), max_size=6)


@given(
    gpus=GPUS, driver=st.sampled_from([*DRIVERS]), machine=st.sampled_from(["x86_64", "aarch64"])
)
def test_whatever_the_host_no_build_would_serve_more_of_its_gpus(gpus, driver, machine):
    played = host(driver, *gpus, machine=machine)
    able = [name for name in NEEDS if int(driver) >= NEEDS[name].driver]
    served = {name: len(played.list_served(name)) for name in able}
    try:
        build = choose_build("auto", played)
    except EngineError as error:
        assert not any(served.values())
        assert error.cause
        assert error.fix
        return
    assert len(build.gpus) == served[build.name] == max(served.values())
    assert bool(build.warning) is (len(build.gpus) < len(gpus))
    assert played.gpus == () or build.gpus


def test_what_is_not_known_is_said_to_be():
    assert describe_gpus([]) == "an NVIDIA GPU"
    assert describe_architecture(NAMELESS) == "unknown"

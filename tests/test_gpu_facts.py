"""The host's GPUs by what nvidia-smi and the kernel module's own files say."""

from __future__ import annotations

import pytest

from labkit.host.gpu import (
    PROBE_SECONDS,
    BusGpu,
    Gpu,
    GpuFacts,
    has_gpu,
    infer_capability,
    list_bus_gpus,
    name_architecture,
    probe_gpu,
)
from labkit.process import CommandResult
from tests.fakes import host
from tests.fakes.host import FakeRunner, hangs, says

MODULE_VERSION = """\
NVRM version: NVIDIA UNIX Open Kernel Module for x86_64  580.65.06  Release Build  (dvs-builder)
GCC version:  gcc version 12.2.0 (Debian 12.2.0-14)
"""
INFORMATION = """\
Model: \t\t NVIDIA GeForce GTX 1080
IRQ:   \t\t 128
GPU UUID: \t {uuid}
Video BIOS: \t 86.04.17.00.01
Bus Location: \t 0000:01:00.0
"""


@pytest.fixture
def loaded_module(tmp_path):
    """A root whose kernel has the NVIDIA module loaded."""
    folder = tmp_path / "proc" / "driver" / "nvidia"
    folder.mkdir(parents=True)
    (folder / "version").write_text(MODULE_VERSION)
    return tmp_path


def add_gpu(root, address, uuid):
    folder = root / "proc" / "driver" / "nvidia" / "gpus" / address
    folder.mkdir(parents=True)
    (folder / "information").write_text(INFORMATION.format(uuid=uuid))


def test_what_nvidia_smi_lists(tmp_path):
    run = FakeRunner(host.TWO_GPUS)
    facts = probe_gpu(run, tmp_path)
    assert facts == GpuFacts(
        "580.65.06",
        (
            Gpu("NVIDIA H200", 0, "GPU-aaaa", (9, 0), False),
            Gpu("NVIDIA GeForce RTX 4090", 1, "GPU-bbbb", (8, 9), None),
        ),
    )
    assert facts.present
    assert facts.driver_major == 580
    assert facts.names == ("NVIDIA H200", "NVIDIA GeForce RTX 4090")
    assert run.calls == [
        "nvidia-smi --query-gpu=name,driver_version,index,uuid,compute_cap,mig.mode.current"
        " --format=csv,noheader"
    ]
    assert run.limits == [PROBE_SECONDS]


def test_no_driver_at_all(tmp_path):
    facts = probe_gpu(FakeRunner({}), tmp_path)
    assert facts == GpuFacts()
    assert not facts.present
    assert facts.driver_major is None


def test_an_older_nvidia_smi_is_asked_for_what_it_knows(tmp_path):
    run = FakeRunner(
        {
            host.SMI: host.SMI_REFUSES,
            "nvidia-smi --query-gpu=name,driver_version,index,uuid,mig": says(
                "Tesla V100-SXM2-32GB, 470.182.03, 0, GPU-cccc, [N/A]\n"
                "Quadro T1000, 470.182.03, 1, GPU-dddd, [N/A]"
            ),
        }
    )
    assert probe_gpu(run, tmp_path) == GpuFacts(
        "470.182.03",
        (
            Gpu("Tesla V100-SXM2-32GB", 0, "GPU-cccc", (7, 0)),
            Gpu("Quadro T1000", 1, "GPU-dddd", None),
        ),
    )
    assert len(run.calls) == 2


def test_the_oldest_is_asked_for_names_alone(tmp_path):
    run = FakeRunner(
        {
            host.SMI: host.SMI_REFUSES,
            "nvidia-smi --query-gpu=name,driver_version --": says(
                "GeForce GTX 780, 390.157\nGeForce GTX 780, 390.157"
            ),
        }
    )
    assert probe_gpu(run, tmp_path) == GpuFacts(
        "390.157",
        (Gpu("GeForce GTX 780", 0, None, (3, 5)), Gpu("GeForce GTX 780", 1, None, (3, 5))),
    )


def test_what_is_not_told_is_not_known(tmp_path):
    answer = says("NVIDIA Graphics Device, [N/A], 0, [Unknown Error], [N/A], [N/A]")
    facts = probe_gpu(FakeRunner({host.SMI: answer}), tmp_path)
    assert facts == GpuFacts(None, (Gpu("NVIDIA Graphics Device", answers=False),))
    assert facts.present
    assert facts.driver_major is None


@pytest.mark.parametrize(
    ("row", "name"),
    [
        ("NVIDIA H200, 580.65.06, 0, GPU-aaaa, 9.0, ERR!", "NVIDIA H200"),
        ("ERR!, ERR!, 0, ERR!, ERR!, ERR!", "NVIDIA GPU"),
        ("[N/A], [N/A], 0, [N/A], [N/A], [N/A]", "NVIDIA GPU"),
    ],
)
def test_a_gpu_whose_queries_fail_does_not_answer(loaded_module, row, name):
    facts = probe_gpu(FakeRunner({host.SMI: says(row)}), loaded_module)
    assert (facts.gpus[0].name, facts.gpus[0].answers) == (name, False)
    assert facts.driver_version == "580.65.06"


def add_to_bus(root, device, address="0000:01:00.0", kind="0x030000", driver=None):
    folder = root / "sys/bus/pci/devices" / address
    folder.mkdir(parents=True)
    for name, text in (("vendor", "0x10de"), ("class", kind), ("device", device)):
        (folder / name).write_text(f"{text}\n")
    if driver:
        (root / "drivers" / driver).mkdir(parents=True)
        (folder / "driver").symlink_to(root / "drivers" / driver)


@pytest.mark.parametrize(
    ("device", "capability"),
    [
        ("0x0ffe", (3, 0)),
        ("0x1004", (3, 5)),
        ("0x1140", (2, 0)),
        ("0x13c2", (5, 2)),
        ("0x15f8", (6, 0)),
        ("0x1b80", (6, 1)),
        ("0x1db1", (7, 0)),
        ("0x1eb8", (7, 5)),
        ("0x20b0", (8, 0)),
        ("0x2204", (8, 6)),
        ("0x2330", (9, 0)),
        ("0x2684", (8, 9)),
        ("0x2901", (10, 0)),
        ("0x2b85", (12, 0)),
        ("0x2e12", (12, 1)),
        ("0x3182", (10, 3)),
        ("odd", None),
    ],
)
def test_a_generation_is_known_by_its_pci_id(tmp_path, device, capability):
    add_to_bus(tmp_path, device, driver="nouveau")
    add_to_bus(tmp_path, "0x10f0", "0000:01:00.1", kind="0x040300")  # its sound chip
    assert list_bus_gpus(tmp_path) == (BusGpu("0000:01:00.0", "nouveau", capability),)


@pytest.mark.parametrize(
    ("device", "loaded", "installed", "dropped"),
    [
        ("0x1b80", "590.44.01", None, (6, 1)),
        ("0x1b80", None, "590.44.01", (6, 1)),
        ("0x1b80", "580.95.05", None, None),
        ("0x1004", "580.95.05", None, (3, 5)),
        ("0x2684", "590.44.01", None, None),
        ("0x1b80", None, None, None),
    ],
)
def test_a_driver_that_is_too_new_for_the_gpu_is_found(
    tmp_path, device, loaded, installed, dropped
):
    add_to_bus(tmp_path, device)
    if loaded:
        version = tmp_path / "proc/driver/nvidia/version"
        version.parent.mkdir(parents=True)
        version.write_text(MODULE_VERSION.replace("580.65.06", loaded))
    answers = {host.SMI: says("No devices were found")}
    answers |= {"modinfo": says(installed)} if installed else {}
    assert probe_gpu(FakeRunner(answers), tmp_path).dropped == dropped


def test_a_jetson_without_nvidia_smi_is_known_by_its_name(tmp_path):
    for name, text in (
        ("etc/nv_tegra_release", "# R35 (release)"),
        ("proc/device-tree/model", "NVIDIA Jetson AGX Orin Developer Kit\0"),
    ):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(text)
    (gpu,) = probe_gpu(FakeRunner({}), tmp_path).gpus
    assert (gpu.name, gpu.capability) == ("NVIDIA Jetson AGX Orin Developer Kit", (8, 7))


@pytest.mark.parametrize(
    "printed",
    [
        "No devices were found",
        "\x01 lorem ipsum {",
        "a,b\nc,,,,,,\n,,,,",
        "Usage: it [OPTION], ...",
    ],
    ids=["no devices", "noise", "commas", "a help page"],
)
def test_what_is_no_list_of_gpus_is_no_gpu(tmp_path, loaded_module, printed):
    answer = {host.SMI: says(printed)}
    facts = probe_gpu(FakeRunner(answer), tmp_path / "without a driver")
    assert (facts.present, facts.gpus) == (False, ())
    assert facts.problem == printed.replace("\n", "; ").lstrip("\x01 ")
    facts = probe_gpu(FakeRunner(answer), loaded_module)
    assert (facts.driver_version, facts.gpus) == ("580.65.06", ())


def test_a_program_that_lists_nothing_has_no_gpu(tmp_path):
    assert probe_gpu(FakeRunner({host.SMI: says("")}), tmp_path) == GpuFacts()


def test_a_failure_of_two_lines_is_told_whole(loaded_module):
    said = (
        "Failed to initialize NVML: Driver/library version mismatch\nNVML library version: 580.95"
    )
    run = FakeRunner({host.SMI: CommandResult(("nvidia-smi",), 18, said + "\n")})
    assert probe_gpu(run, loaded_module).problem == said.replace("\n", "; ")


def test_a_gpu_in_mig_mode_comes_with_its_instances(tmp_path):
    run = FakeRunner(
        {
            host.SMI: says(
                "NVIDIA A100-SXM4-80GB, 580.65.06, 0, GPU-aaaa, 8.0, Disabled\n"
                "NVIDIA A100-SXM4-80GB, 580.65.06, 1, GPU-bbbb, 8.0, Enabled"
            ),
            "nvidia-smi -L": says(
                "GPU 0: NVIDIA A100-SXM4-80GB (UUID: GPU-aaaa)\n"
                "GPU 1: NVIDIA A100-SXM4-80GB (UUID: GPU-bbbb)\n"
                "  MIG 3g.40gb     Device  0: (UUID: MIG-1111)\n"
                "  MIG 3g.40gb     Device  1: (UUID: MIG-2222)"
            ),
        }
    )
    whole, cut = probe_gpu(run, tmp_path).gpus
    assert (whole.mig, whole.instances) == (False, ())
    assert (cut.mig, cut.instances) == (True, ("MIG-1111", "MIG-2222"))


def test_a_module_without_nvidia_smi(loaded_module):
    facts = probe_gpu(FakeRunner({}), loaded_module)
    assert facts == GpuFacts(driver_version="580.65.06")
    assert facts.present


def test_the_module_tells_its_gpus_by_name(loaded_module):
    add_gpu(loaded_module, "0000:41:00.0", "GPU-????????-????-????-????-????????????")
    add_gpu(loaded_module, "0000:01:00.0", "GPU-aaaa")
    facts = probe_gpu(FakeRunner({}), loaded_module)
    assert facts.gpus == (
        Gpu("NVIDIA GeForce GTX 1080", 0, "GPU-aaaa", (6, 1)),
        Gpu("NVIDIA GeForce GTX 1080", 1, None, (6, 1)),
    )


def test_nvidia_smi_without_a_driver(tmp_path):
    facts = probe_gpu(FakeRunner(host.SMI_WITHOUT_DRIVER), tmp_path)
    assert not facts.present
    assert facts.problem == (
        "NVIDIA-SMI has failed because it couldn't communicate with the NVIDIA driver. "
        "Make sure that the latest NVIDIA driver is installed and running."
    )


def test_nvidia_smi_that_hangs_leaves_the_module_as_witness(loaded_module):
    run = FakeRunner({host.SMI: hangs("nvidia-smi")})
    facts = probe_gpu(run, loaded_module)
    assert facts.present
    assert facts.problem == "nvidia-smi did not answer in 10 s"
    assert len(run.calls) == 1


@pytest.mark.parametrize(
    ("path", "text"),
    [
        ("proc/version", "Linux version 6.6.87.2-microsoft-standard-WSL2 (root@439a258ad544)"),
        ("dev/dxg", ""),
    ],
)
def test_wsl2_is_told_by_its_kernel_and_its_device(tmp_path, path, text):
    (tmp_path / path).parent.mkdir()
    (tmp_path / path).write_text(text)
    assert probe_gpu(FakeRunner(host.TWO_GPUS), tmp_path).wsl
    assert probe_gpu(FakeRunner({}), tmp_path) == GpuFacts(wsl=True)


def test_in_wsl2_nvidia_smi_is_found_where_path_does_not_lead(tmp_path):
    folder = tmp_path / "usr" / "lib" / "wsl" / "lib"
    folder.mkdir(parents=True)
    (folder / "nvidia-smi").write_text("")
    answer = says("NVIDIA GeForce RTX 4070, 581.29, 0, GPU-aaaa, 8.9, [N/A]")
    run = FakeRunner({f"{folder}/nvidia-smi": answer})
    assert probe_gpu(run, tmp_path).driver_version == "581.29"


@pytest.mark.parametrize(
    ("capability", "name"),
    [
        ((2, 0), "an architecture before Kepler"),
        ((3, 5), "Kepler"),
        ((7, 2), "Volta"),
        ((7, 5), "Turing"),
        ((8, 6), "Ampere"),
        ((8, 9), "Ada"),
        ((12, 1), "Blackwell"),
        ((13, 0), "a newer architecture"),
    ],
)
def test_the_architectures_name(capability, name):
    assert name_architecture(capability) == name


# At least one name of each pattern; None where it has two architectures or is not known.
@pytest.mark.parametrize(
    ("name", "capability"),
    [
        ("GeForce GTX TITAN X", (5, 2)),
        ("Tesla P100-PCIE-16GB", (6, 0)),
        ("NVIDIA GeForce GTX 1080 Ti", (6, 1)),
        ("Quadro P2000", (6, 1)),
        ("Tesla V100-SXM2-32GB", (7, 0)),
        ("Tesla T4", (7, 5)),
        ("NVIDIA A100-SXM4-80GB", (8, 0)),
        ("NVIDIA RTX A6000", (8, 6)),
        ("NVIDIA RTX 6000 Ada Generation", (8, 9)),
        ("NVIDIA H100 80GB HBM3", (9, 0)),
        ("NVIDIA B200", (10, 0)),
        ("NVIDIA B300", (10, 3)),
        ("NVIDIA RTX PRO 6000 Blackwell Workstation Edition", (12, 0)),
        ("NVIDIA GB10", (12, 1)),
        ("NVIDIA GeForce RTX 2050", None),
        ("NVIDIA GeForce GTX 960M", None),
        ("NVIDIA GeForce RTX 3050 A Laptop GPU", None),
        ("Quadro T1000", None),
    ],
)
def test_a_name_tells_the_capability_only_where_it_is_certain(name, capability):
    assert infer_capability(name) == capability


@pytest.mark.parametrize(
    ("vendor", "category", "there"),
    [("0x10de", "0x030200", True), ("0x10de", "0x040300", False), ("0x8086", "0x030000", False)],
    ids=["a GPU", "the sound chip of a card", "another maker's"],
)
def test_a_gpu_without_a_driver_is_found_on_the_bus(tmp_path, vendor, category, there):
    device = tmp_path / "sys/bus/pci/devices/0000:01:00.0"
    device.mkdir(parents=True)
    (device / "vendor").write_text(vendor + "\n")
    (device / "class").write_text(category + "\n")
    assert has_gpu(tmp_path) is there

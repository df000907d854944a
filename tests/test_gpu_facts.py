"""The host's GPUs by what nvidia-smi and the kernel module's own file say."""

from __future__ import annotations

import pytest

from labkit.host.gpu import GpuFacts, probe_gpu
from tests.fakes import host
from tests.fakes.host import FakeRunner, hangs, says

MODULE_VERSION = """\
NVRM version: NVIDIA UNIX Open Kernel Module for x86_64  580.65.06  Release Build  (dvs-builder)
GCC version:  gcc version 12.2.0 (Debian 12.2.0-14)
"""


@pytest.fixture
def loaded_module(tmp_path):
    """A root whose kernel has the NVIDIA module loaded."""
    folder = tmp_path / "proc" / "driver" / "nvidia"
    folder.mkdir(parents=True)
    (folder / "version").write_text(MODULE_VERSION)
    return tmp_path


def test_what_nvidia_smi_lists(tmp_path):
    facts = probe_gpu(FakeRunner(host.TWO_GPUS), tmp_path)
    assert facts == GpuFacts("580.65.06", ("NVIDIA H200", "NVIDIA GeForce RTX 4090"))
    assert facts.present


def test_no_driver_at_all(tmp_path):
    facts = probe_gpu(FakeRunner({}), tmp_path)
    assert facts == GpuFacts()
    assert not facts.present


def test_a_module_without_nvidia_smi(loaded_module):
    facts = probe_gpu(FakeRunner({}), loaded_module)
    assert facts == GpuFacts(driver_version="580.65.06")
    assert facts.present


def test_nvidia_smi_without_a_driver(tmp_path):
    facts = probe_gpu(FakeRunner(host.SMI_WITHOUT_DRIVER), tmp_path)
    assert not facts.present
    assert facts.problem == (
        "NVIDIA-SMI has failed because it couldn't communicate with the NVIDIA driver. "
        "Make sure that the latest NVIDIA driver is installed and running."
    )


def test_nvidia_smi_that_hangs_leaves_the_module_as_witness(loaded_module):
    facts = probe_gpu(FakeRunner({host.SMI: hangs("nvidia-smi")}), loaded_module)
    assert facts.present
    assert facts.problem == "nvidia-smi did not answer in 10 s"


def test_a_driver_that_lists_nothing(tmp_path):
    assert probe_gpu(FakeRunner({host.SMI: says("")}), tmp_path) == GpuFacts()


def test_a_version_file_of_another_form(tmp_path):
    folder = tmp_path / "proc" / "driver" / "nvidia"
    folder.mkdir(parents=True)
    (folder / "version").write_text("something else\n")
    assert probe_gpu(FakeRunner({}), tmp_path).driver_version is None

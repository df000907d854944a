"""The checks of the GPU and of its way into a container: what each probe asks, how it is judged."""

from __future__ import annotations

import json
import ssl

import pytest

from labkit.doctor.check import Check, Finding, ok, reach_url, unknown
from labkit.doctor.checks import driver, gpu_access, network, torch
from labkit.doctor.checks import driver as driver_module
from labkit.doctor.checks import gpu as gpu_module
from labkit.doctor.run import Examination, examine_host, format_examination
from labkit.host.distribution import Distribution
from tests.fakes.host import INFO, PODMAN_FINE, fails, hangs, says
from tests.fakes.sick_hosts import GPU_LINE, IN_DOCKER, play_host

DEBIAN = Distribution("Debian", "debian")
SECURE_BOOT = "sys/firmware/efi/efivars/SecureBoot-8be4df61-93ca-11d2-aa0d-00e098032b8c"
XID = "[8.1] NVRM: Xid (PCI:0000:01:00): {}, pid=7, name=python"
CLEAN = "[3.2] NVRM: loading NVIDIA UNIX Open Kernel Module"


@pytest.mark.parametrize(
    ("byte", "on"), [("\x01", True), ("\x00", False), ("", False)], ids=["on", "off", "empty"]
)
def test_secure_boot_is_read_from_the_firmware(tmp_path, byte, on):
    text = f"\x06\0\0\0{byte}" if byte else ""
    assert driver.is_secure_boot(play_host(tmp_path, files={SECURE_BOOT: text})) is on
    assert not driver.is_secure_boot(play_host(tmp_path / "bios"))


@pytest.mark.parametrize(
    ("asked", "status"),
    [("all", "warning"), ("0,1", "warning"), ("void", "ok"), ("none", "ok"), ("", "ok")],
)
def test_a_container_without_a_gpu_is_at_fault_only_where_it_asked_for_one(tmp_path, asked, status):
    host = play_host(
        tmp_path,
        gpu=True,
        files={"dev/nvidiactl": None},
        environment={"LABKIT_IN_CONTAINER": "1", "NVIDIA_VISIBLE_DEVICES": asked},
    )
    finding = driver_module.judge_gpu_bus(driver_module.probe_gpu_bus(host), DEBIAN)
    assert (finding.status, finding.skip_reason) == (status, "no GPU was passed to this container")


# The GPU's own faults


@pytest.mark.parametrize(
    ("answers", "log"),
    [
        ({"dmesg": says(f"[1.0] usb 1-1: new device\n{CLEAN}")}, CLEAN),
        ({"dmesg": fails("Operation not permitted"), "journalctl": says(CLEAN)}, CLEAN),
        ({"dmesg": None, "journalctl": None}, None),
        ({"dmesg": hangs("dmesg", 3), "journalctl": says(CLEAN)}, None),
    ],
    ids=["dmesg", "the journal", "neither", "one hang is enough"],
)
def test_the_kernels_log_is_asked_for_twice_at_most(tmp_path, answers, log):
    assert gpu_module.probe_gpu_health(play_host(tmp_path, gpu=True, answers=answers)).log == log


# Builds and parts


@pytest.mark.parametrize(
    ("version", "capabilities", "found"),
    [
        ("580.95.05", ((8, 9),), "torch's cu130 build fits compute capability 8.9"),
        (
            "580.95.05",
            ((8, 9), (8, 9), (7, 5)),
            "torch's cu130 build fits compute capability 8.9, 7.5",
        ),
        ("580.95.05", ((6, 1),), "torch's cu126 build fits compute capability 6.1"),
        ("535.230.02", ((9, 0),), "torch's cu126 build fits compute capability 9.0"),
        ("580.95.05", (), "torch's cu130 build fits"),
        (None, (), "torch's cu130 build fits"),
    ],
)
def test_a_build_for_driver_and_gpus(version, capabilities, found):
    finding = torch.judge_cuda_build(torch.CudaBuildFacts(version, capabilities), DEBIAN)
    assert (finding.status, finding.found) == ("ok", found)


def test_one_gpu_of_two_that_torch_has_no_code_for_is_a_warning():
    facts = torch.InstalledTorchFacts(
        "580.95.05", ((6, 1), (8, 9)), build=torch.InstalledTorch("2.13.0+cu130", "13.0")
    )
    finding = torch.judge_installed_torch(facts, DEBIAN)
    assert (finding.status, finding.cause) == (
        "warning",
        "it has code for 7.5 to 12.0, and a GPU here is 6.1",
    )


# The engine and its containers


@pytest.mark.parametrize(
    ("said", "files", "found"),
    [
        ({"CgroupDriver": "cgroupfs", "CgroupVersion": "1"}, {}, "cgroupfs, cgroup v1"),
        (
            {"CgroupDriver": "systemd", "CgroupVersion": "2"},
            {"etc/cdi/nvidia.yaml": "nvidia.com/gpu"},
            "systemd, cgroup v2",
        ),
        (
            {"CgroupDriver": "systemd", "CgroupVersion": "2"},
            {},
            "daemon-reload",
        ),
        ({}, {}, "not applicable to this engine"),
    ],
    ids=["cgroupfs", "systemd with CDI", "systemd alone", "silent"],
)
def test_the_cgroup_driver_is_told_and_never_a_fault(tmp_path, said, files, found):
    host = play_host(tmp_path, files=files, answers={INFO: says(json.dumps(said))})
    finding = gpu_access.judge_cgroup_driver(gpu_access.probe_cgroup_driver(host), DEBIAN)
    assert finding.status == "ok"
    assert found in finding.found


def test_a_container_gets_seconds_and_under_deep_its_minutes(tmp_path):
    for deep, limit in ((False, 5.0), (True, 20.0)):
        host = play_host(tmp_path / str(deep), gpu=True, deep=deep)
        gpu_access.probe_container_gpu(host)
        limits = dict(zip(host.run_long.calls, host.run_long.limits, strict=True))
        assert [limits[call] for call in limits if call.startswith(IN_DOCKER)] == [limit]


def test_podman_is_asked_by_cdi(tmp_path):
    answers = {INFO: None, "docker context": None, "docker compose": None, **PODMAN_FINE}
    host = play_host(tmp_path, gpu=True, answers=answers)
    facts = gpu_access.probe_container_gpu(host)
    assert (facts.engine, facts.tests[0].way, facts.tests[0].seen) == (
        "podman",
        "cdi",
        (GPU_LINE,),
    )
    assert gpu_access.judge_container_gpu(facts, DEBIAN).found == (
        "a container of labkit:cuda sees 1 GPU (by cdi)"
    )


# Certificates


@pytest.mark.parametrize(
    ("text", "status", "found"),
    [
        ("-----BEGIN CERTIFICATE-----\nMII\n", "ok", "set: LABKIT_CA_FILE"),
        (
            "\x30\x82\x03",
            "failed",
            "LABKIT_CA_FILE=/etc/ssl/proxy.crt contains no certificate in PEM form",
        ),
        (None, "failed", "LABKIT_CA_FILE=/etc/ssl/proxy.crt does not exist"),
    ],
    ids=["PEM", "binary", "missing"],
)
def test_the_certificate_that_a_build_shall_trust(tmp_path, text, status, found):
    host = play_host(
        tmp_path,
        files={"etc/ssl/proxy.crt": text},
        environment={"LABKIT_CA_FILE": "/etc/ssl/proxy.crt"},
    )
    finding = network.judge_certificates(network.probe_certificates(host), DEBIAN)
    assert (finding.status, finding.found) == (status, found)


def test_an_index_is_reached_with_the_certificate_that_a_build_trusts(tmp_path):
    # A file that is no certificate: that it is loaded at all is seen by its error.
    path = tmp_path / "proxy.pem"
    path.write_text("no certificate")
    with pytest.raises(ssl.SSLError):
        reach_url("https://index.invalid", ca_file=str(path))


# What is shown


def test_checks_skipped_for_one_reason_share_a_line():
    skipped = [Finding("skipped", "because no GPU", check=name) for name in ("a", "b", "c")]
    other = Finding("skipped", "because there is no torch", check="caches")
    examination = Examination((ok("fine"), *skipped, other))
    assert format_examination(examination) == (
        "ok              fine\n"
        "skipped  3 checks because no GPU\n"
        "skipped  caches because there is no torch\n"
        "\n"
        "5 checks: 1 ok, 4 skipped"
    )


def test_a_check_that_comes_late_says_what_to_try(tmp_path):
    late = Check(
        "slow",
        "slow",
        lambda host: host.run_long.wait(5),
        lambda facts, _: unknown("never"),
        limit_seconds=0.05,
        late="labkit doctor --deep",
    )

    class Waits:
        def wait(self, seconds):
            import threading

            threading.Event().wait(seconds)

    host = play_host(tmp_path, run_long=Waits())
    finding = examine_host(host, [late]).findings[0]
    assert (finding.status, finding.found, finding.fix) == (
        "unknown",
        "no answer in time",
        "labkit doctor --deep",
    )

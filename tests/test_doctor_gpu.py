"""The checks of the GPU and of its way into a container: what each probe asks, how it is judged."""

from __future__ import annotations

import json
import ssl

import pytest

from labkit.doctor.check import Check, Finding, ok, reach_url, unknown
from labkit.doctor.checks import driver, gpu_access, network, torch
from labkit.doctor.checks import driver as driver_module
from labkit.doctor.run import Examination, examine_host, format_examination
from labkit.host.distribution import Distribution
from labkit.host.gpu import Gpu
from tests.fakes.host import INFO, PODMAN_FINE, fails, hangs, says
from tests.fakes.sick_hosts import ECC, GPU_LINE, IN_DOCKER, play_host

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
    ("log", "errors", "status", "words"),
    [
        pytest.param(CLEAN, (), "ok", "no fault in the kernel's log since boot", id="clean"),
        pytest.param(
            None,
            ((0, 0),),
            "ok",
            "no memory errors; only root can read the kernel's log: sudo dmesg | grep NVRM",
            id="not to be read",
        ),
        pytest.param(XID.format(79), (), "failed", XID.format(79), id="off the bus"),
        pytest.param(XID.format(119), (), "warning", XID.format(119), id="firmware"),
        pytest.param(XID.format(94), (), "warning", XID.format(94), id="contained ECC"),
        pytest.param(
            XID.format(13),
            (),
            "ok",
            "no fault in the kernel's log since boot",
            id="a program's own fault",
        ),
        pytest.param(
            CLEAN,
            ((0, 0), (1, 2)),
            "warning",
            "GPU 1 has had 2 uncorrectable memory errors",
            id="counted",
        ),
    ],
)
def test_the_gpus_own_faults(log, errors, status, words):
    finding = driver_module.judge_gpu_health(driver_module.HealthFacts(log, errors), DEBIAN)
    assert (finding.status, finding.found) == (status, words)


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
    assert driver_module.probe_gpu_health(play_host(tmp_path, gpu=True, answers=answers)).log == log


@pytest.mark.parametrize(
    ("printed", "errors"),
    [("0, 0\n1, 17", ((0, 0), (1, 17))), ("0, [N/A]", ()), ("garbage", ())],
    ids=["counts", "not on this card", "garbage"],
)
def test_memory_errors_are_counted_for_each_gpu(tmp_path, printed, errors):
    host = play_host(tmp_path, gpu=True, answers={ECC: says(printed)})
    assert driver_module.probe_gpu_health(host).errors == errors


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
        torch.InstalledTorch("2.13.0+cu130", "13.0"), "580.95.05", ((6, 1), (8, 9))
    )
    finding = torch.judge_installed_torch(facts, DEBIAN)
    assert (finding.status, finding.cause) == (
        "warning",
        "it has code for 7.5 and newer, and a GPU here is 6.1",
    )


@pytest.mark.parametrize(
    ("gpus", "status", "found"),
    [
        ((Gpu("T4"),), "ok", "MIG is off, or this GPU has none"),
        ((), "ok", "MIG is off, or this GPU has none"),
        (
            (Gpu("H200", mig=True, instances=("MIG-1",)),),
            "ok",
            "MIG is on: 1 instance; a process uses one of them",
        ),
        (
            (Gpu("H200"), Gpu("H200", 1, mig=True)),
            "failed",
            "MIG is on for GPU 1, which has no MIG instance",
        ),
    ],
    ids=["off", "no GPU", "a part", "no part"],
)
def test_parts_of_a_gpu(gpus, status, found):
    finding = driver_module.judge_mig(gpus, DEBIAN)
    assert (finding.status, finding.found) == (status, found)


# The engine and its containers


@pytest.mark.parametrize(
    ("facts", "status", "found"),
    [
        (gpu_access.EngineOriginFacts("docker"), "ok", "docker runs on this system"),
        (gpu_access.EngineOriginFacts("podman"), "ok", "podman runs on this system"),
        (
            gpu_access.EngineOriginFacts("docker", system="Docker Desktop", in_wsl=True),
            "ok",
            "docker runs in WSL2",
        ),
        (
            gpu_access.EngineOriginFacts("docker", system="Docker Desktop"),
            "failed",
            "docker is Docker Desktop",
        ),
        (
            gpu_access.EngineOriginFacts("docker", "/var/snap/docker/common/x"),
            "failed",
            "docker is a snap",
        ),
    ],
    ids=["docker", "podman", "Desktop in WSL2", "Desktop on Linux", "a snap"],
)
def test_an_engine_that_can_reach_the_gpu(facts, status, found):
    finding = gpu_access.judge_engine_kind(facts, DEBIAN)
    assert (finding.status, finding.found) == (status, found)


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

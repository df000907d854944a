"""The checks on the way from the engine to the GPU: permission, Compose, CDI, cgroups, uvm."""

from __future__ import annotations

import json

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from labkit.doctor.checks import CHECKS, gpu_access, network, system
from labkit.doctor.checks import driver as driver_module
from labkit.doctor.checks import engine as engine_module
from labkit.doctor.checks import torch as torch_build_check
from labkit.doctor.checks.engine import EnginePair
from labkit.doctor.run import examine_host
from labkit.host.distribution import Distribution, parse_os_release
from labkit.host.engine import EngineFacts
from tests.fakes.host import DOCKER, NO_DOCKER, NO_PODMAN, PODMAN, says
from tests.fakes.sick_hosts import GPU_FILES, INFO, play_host

DEBIAN = Distribution("Debian GNU/Linux 13", "debian")
FEDORA = Distribution("Fedora Linux 43", "fedora")
OLD, NEW = "570.86.10", "580.95.05"
SPEC = "/etc/cdi/nvidia.yaml"
FAMILY_NAMES = ("debian", "ubuntu", "fedora", "rhel", "suse", "arch", "alpine")
MAKE_SPEC = "sudo nvidia-ctk cdi generate --output=/etc/cdi/nvidia.yaml"
CONFIGURE = "sudo nvidia-ctk runtime configure --runtime=docker && sudo systemctl restart docker"


@pytest.mark.parametrize(
    ("facts", "status", "found", "fix"),
    [
        pytest.param(
            gpu_access.GpuAccessFacts("docker", has_runtime=True),
            "ok",
            "docker knows the nvidia runtime",
            None,
            id="docker, runtime",
        ),
        pytest.param(
            gpu_access.GpuAccessFacts("docker", has_runtime=True, has_specification=True),
            "ok",
            "docker knows the nvidia runtime and CDI",
            None,
            id="docker, both",
        ),
        pytest.param(
            gpu_access.GpuAccessFacts("docker", has_specification=True),
            "ok",
            "docker passes the GPU on by CDI",
            None,
            id="docker, CDI",
        ),
        pytest.param(
            gpu_access.GpuAccessFacts("docker", has_specification=True, cdi_off=True),
            "failed",
            "docker's CDI is off, and docker has no nvidia runtime",
            "sudo nvidia-ctk runtime configure --runtime=docker --cdi.enabled "
            "&& sudo systemctl restart docker",
            id="docker, CDI that is switched off",
        ),
        pytest.param(
            gpu_access.GpuAccessFacts("docker"),
            "failed",
            "docker has neither the nvidia runtime nor a CDI specification",
            CONFIGURE,
            id="docker, nothing",
        ),
        pytest.param(
            gpu_access.GpuAccessFacts("docker", configured=True),
            "failed",
            "daemon.json names the nvidia runtime, but docker does not know it",
            "sudo systemctl restart docker",
            id="docker, not restarted",
        ),
        pytest.param(
            gpu_access.GpuAccessFacts("docker", rootless=True),
            "failed",
            "docker has neither the nvidia runtime nor a CDI specification",
            "nvidia-ctk runtime configure --runtime=docker "
            "--config=$HOME/.config/docker/daemon.json && systemctl --user restart docker",
            id="rootless docker, nothing",
        ),
        pytest.param(
            gpu_access.GpuAccessFacts("podman"),
            "ok",
            "podman passes the GPU on by CDI",
            None,
            id="podman",
        ),
    ],
)
def test_passing_the_gpu_on(facts, status, found, fix):
    finding = gpu_access.judge_gpu_access_settings(facts, DEBIAN)
    assert (finding.status, finding.found, finding.fix) == (status, found, fix)


@pytest.mark.parametrize(
    ("info", "off"),
    [
        ({"ServerVersion": "26.1.5", "CDISpecDirs": []}, True),
        ({"ServerVersion": "26.1.5", "CDISpecDirs": ["/etc/cdi"]}, False),
        ({"ServerVersion": "24.0.7"}, True),
        ({"ServerVersion": "29.1.0"}, False),
        ({"ServerVersion": "dev"}, False),
        ({}, False),
    ],
    ids=["switched off", "switched on", "too old for it", "on by default", "a build", "silent"],
)
def test_docker_says_whether_its_cdi_is_on(tmp_path, info, off):
    host = play_host(tmp_path, answers={INFO: says(json.dumps(info))})
    assert gpu_access.probe_gpu_access_settings(host).cdi_off is off


LIBRARY = f"/usr/lib/libcuda.so.{NEW}"
TEXT = f"kind: nvidia.com/gpu\n  - hostPath: {LIBRARY}\n"
FOUND = gpu_access.Specification(SPEC, TEXT)
CLOSED = gpu_access.Specification(SPEC, None)


@pytest.mark.parametrize(
    ("facts", "status", "found", "fix"),
    [
        pytest.param(
            gpu_access.CdiFacts("docker", needed=False),
            "ok",
            "no CDI specification, and none is needed",
            None,
            id="docker with its runtime, none",
        ),
        pytest.param(
            gpu_access.CdiFacts("podman", needed=True),
            "failed",
            "no CDI specification for the GPU",
            MAKE_SPEC,
            id="podman, none",
        ),
        pytest.param(
            gpu_access.CdiFacts("podman", True, specification=FOUND, driver=NEW),
            "ok",
            f"/etc/cdi/nvidia.yaml, of driver {NEW}",
            None,
            id="podman, right",
        ),
        pytest.param(
            gpu_access.CdiFacts("podman", True, specification=FOUND, driver=OLD),
            "failed",
            f"/etc/cdi/nvidia.yaml is for driver {NEW}, and {OLD} is loaded",
            MAKE_SPEC,
            id="podman, of another driver",
        ),
        pytest.param(
            gpu_access.CdiFacts("docker", False, specification=FOUND, driver=OLD),
            "warning",
            f"/etc/cdi/nvidia.yaml is for driver {NEW}, and {OLD} is loaded",
            MAKE_SPEC,
            id="docker that can do without, of another driver",
        ),
        pytest.param(
            gpu_access.CdiFacts("podman", True, specification=FOUND, driver=None, missing=LIBRARY),
            "failed",
            f"/etc/cdi/nvidia.yaml names {LIBRARY}, which does not exist",
            MAKE_SPEC,
            id="podman, files that are gone",
        ),
        pytest.param(
            gpu_access.CdiFacts("podman", True, rootless=True, specification=CLOSED),
            "failed",
            "this user cannot read /etc/cdi/nvidia.yaml",
            "sudo chmod a+r /etc/cdi/nvidia.yaml",
            id="rootless, closed",
        ),
        pytest.param(
            gpu_access.CdiFacts("docker", True, specification=CLOSED),
            "ok",
            "/etc/cdi/nvidia.yaml, which only root can read",
            None,
            id="docker as root, closed",
        ),
        pytest.param(
            gpu_access.CdiFacts(
                "podman",
                True,
                specification=gpu_access.Specification(SPEC, "nvidia.com/gpu"),
                driver=NEW,
            ),
            "ok",
            SPEC,
            None,
            id="one that names no driver",
        ),
    ],
)
def test_a_cdi_specification(facts, status, found, fix):
    finding = gpu_access.judge_cdi(facts, DEBIAN)
    assert (finding.status, finding.found, finding.fix) == (status, found, fix)


def test_an_outdated_specification_is_written_anew_where_it_is():
    text = TEXT.replace(NEW, OLD)
    specification = gpu_access.Specification("/var/run/cdi/nvidia.yaml", text)
    finding = gpu_access.judge_cdi(
        gpu_access.CdiFacts("podman", True, False, specification, NEW), DEBIAN
    )
    assert finding.safe.arguments == (
        *("nvidia-ctk", "cdi", "generate"),
        "--output=/var/run/cdi/nvidia.yaml",
    )


@pytest.mark.parametrize(
    ("files", "path"),
    [
        pytest.param({}, None, id="none"),
        pytest.param({"etc/cdi/nvidia.yaml": "kind: nvidia.com/gpu"}, SPEC, id="in /etc"),
        pytest.param(
            {"run/cdi/nvidia.json": '{"kind": "nvidia.com/gpu"}'},
            "/run/cdi/nvidia.json",
            id="in /run, as JSON",
        ),
        pytest.param({"etc/cdi/intel.yaml": "kind: intel.com/gpu"}, None, id="another maker's"),
        pytest.param({"etc/cdi/notes.txt": "kind: nvidia.com/gpu"}, None, id="no specification"),
        pytest.param({"etc/cdi/nvidia.yaml": "\x00\x01"}, None, id="garbage"),
    ],
)
def test_a_specification_is_found(tmp_path, files, path):
    found = gpu_access.find_specification(play_host(tmp_path, files=files))
    assert (found.path if found else None) == path


def test_the_files_a_specification_names_are_looked_for(tmp_path):
    files = {"etc/cdi/nvidia.yaml": TEXT}
    assert gpu_access.probe_cdi(play_host(tmp_path, gpu=True, files=files)).missing == LIBRARY
    there = {**files, LIBRARY.lstrip("/"): ""}
    assert gpu_access.probe_cdi(play_host(tmp_path, gpu=True, files=there)).missing is None
    assert (
        gpu_access.probe_cdi(play_host(tmp_path, gpu=True, files=there)).specification.driver == NEW
    )


@pytest.mark.parametrize(
    ("facts", "status", "found"),
    [
        pytest.param(
            gpu_access.CgroupFacts("docker", rootless=False),
            "ok",
            "no-cgroups is off, as this engine requires",
            id="root, off",
        ),
        pytest.param(
            gpu_access.CgroupFacts("docker", rootless=True, no_cgroups=True),
            "ok",
            "no-cgroups is on, as this engine requires",
            id="rootless, on",
        ),
        pytest.param(
            gpu_access.CgroupFacts("docker", rootless=True, has_spec=True),
            "ok",
            "no-cgroups is off, and CDI does not need it",
            id="rootless, off, CDI",
        ),
        pytest.param(
            gpu_access.CgroupFacts("docker", rootless=True),
            "warning",
            "rootless docker, and no-cgroups is off",
            id="rootless, off",
        ),
        pytest.param(
            gpu_access.CgroupFacts("docker", rootless=False, no_cgroups=True),
            "failed",
            "docker runs as root, and no-cgroups is on",
            id="root, on",
        ),
        pytest.param(
            gpu_access.CgroupFacts("podman", rootless=True),
            "ok",
            "not applicable to this engine",
            id="podman",
        ),
        pytest.param(
            gpu_access.CgroupFacts("docker", None),
            "ok",
            "not applicable to this engine",
            id="not known",
        ),
    ],
)
def test_no_cgroups_must_fit_the_engine(facts, status, found):
    finding = gpu_access.judge_cgroups(facts, DEBIAN)
    assert (finding.status, finding.found) == (status, found)


@pytest.mark.parametrize(
    ("line", "on"),
    [
        ("no-cgroups = true", True),
        ("  no-cgroups=true", True),
        ("#no-cgroups = true", False),
        ("no-cgroups = false", False),
        ("", False),
    ],
)
def test_the_toolkits_setting_is_read(tmp_path, line, on):
    name = "etc/nvidia-container-runtime/config.toml"
    files = {name: f"[nvidia-container-cli]\n{line}\n"}
    assert gpu_access.probe_cgroups(play_host(tmp_path, files=files)).no_cgroups is on


@pytest.mark.parametrize(
    ("engine", "distribution", "status", "fix"),
    [
        pytest.param(DOCKER, DEBIAN, "ok", None, id="docker"),
        pytest.param(PODMAN, FEDORA, "ok", None, id="podman's own numbering"),
        pytest.param(
            EngineFacts("docker", True, "28.5.1", compose_problem="unknown flag"),
            FEDORA,
            "failed",
            "sudo dnf install docker-compose",
            id="docker, Fedora",
        ),
        pytest.param(
            EngineFacts("podman", True, "5.4.2", compose_problem="no provider"),
            FEDORA,
            "failed",
            "sudo dnf install podman-compose",
            id="podman, Fedora",
        ),
        pytest.param(
            EngineFacts("docker", True, "20.10", compose_version="1.29.2"),
            DEBIAN,
            "failed",
            "sudo apt-get install docker-compose-plugin",
            id="Compose 1",
        ),
        pytest.param(
            EngineFacts("docker", True, "28", compose_version="dev"), DEBIAN, "ok", None, id="dev"
        ),
    ],
)
def test_compose(engine, distribution, status, fix):
    pair = EnginePair(NO_DOCKER, engine) if engine.name == "podman" else EnginePair(engine, PODMAN)
    finding = engine_module.judge_compose(pair, distribution)
    assert (finding.status, finding.fix) == (status, fix)


def test_a_refusing_socket_does_not_matter_where_podman_answers():
    refused = EngineFacts("docker", True, problem="permission denied while trying to connect")
    assert engine_module.judge_engine_permission(EnginePair(refused, PODMAN), DEBIAN).status == "ok"
    assert (
        engine_module.judge_engine_permission(EnginePair(refused, NO_PODMAN), DEBIAN).status
        == "failed"
    )


@pytest.mark.parametrize(
    ("info", "known"),
    [
        ('{"Runtimes": {"runc": {}, "nvidia": {"path": "x"}}}', True),
        ('{"Runtimes": {"runc": {}}}', False),
        ('{"Runtimes": null, "Labels": ["nvidia"]}', False),
        ('["nvidia"]', False),
        ("nvidia", False),
    ],
)
def test_the_nvidia_runtime_is_read_from_the_engines_own_list(tmp_path, info, known):
    assert gpu_access.knows_runtime(play_host(tmp_path, answers={INFO: says(info)})) is known


@pytest.mark.parametrize(
    ("facts", "status"),
    [
        (driver_module.UvmFacts(loaded=True, has_node=True), "ok"),
        (driver_module.UvmFacts(has_loader=True), "ok"),
        (driver_module.UvmFacts(in_wsl=True), "ok"),
        (driver_module.UvmFacts(), "warning"),
        (driver_module.UvmFacts(loaded=True), "warning"),
    ],
    ids=["there", "on demand", "WSL2", "missing", "without its file"],
)
def test_uvm(facts, status):
    assert driver_module.judge_uvm(facts, DEBIAN).status == status


def test_a_gpu_hosts_files_are_read_as_they_are(tmp_path):
    host = play_host(tmp_path, gpu=True)
    assert [gpu.address for gpu in driver_module.probe_gpu_bus(host).gpus] == ["0000:01:00.0"]
    assert driver_module.probe_device_nodes(host).found == ("nvidiactl", "nvidia0")
    assert driver_module.probe_uvm(host) == driver_module.UvmFacts(loaded=True, has_node=True)
    assert system.probe_memory(host).available_bytes == 24_000_000 * 1024


@pytest.mark.parametrize(
    ("name", "path", "missing"),
    [
        ("SSL_CERT_FILE", "/etc/ssl/company.pem", False),
        ("CURL_CA_BUNDLE", "/etc/ssl/none.pem", True),
    ],
)
def test_a_certificate_file_is_looked_for(tmp_path, name, path, missing):
    host = play_host(
        tmp_path, files={"etc/ssl/company.pem": "PEM"}, environment={name: path, "PIP_CERT": ""}
    )
    facts = network.probe_certificates(host)
    assert facts.files == (name,)
    assert facts.missing == (((name, path),) if missing else ())


@pytest.mark.slow
@given(st.text(max_size=300))
def test_any_os_release_is_read(text):
    assert parse_os_release(text).family in (None, *FAMILY_NAMES)


@settings(
    max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(data=st.data())
def test_whatever_is_in_a_hosts_files_every_check_comes_back(tmp_path, monkeypatch, data):
    monkeypatch.setattr(torch_build_check, "read_torch_build", lambda: None)
    words = st.text(st.characters(codec="utf-8"), max_size=60)
    names = [*GPU_FILES, "etc/os-release", "proc/meminfo", "proc/self/cgroup", "etc/cdi/a.yaml"]
    files = {name: data.draw(words, label=name) for name in names}
    findings = examine_host(play_host(tmp_path, gpu=True, files=files), CHECKS).findings
    assert [each.check for each in findings] == [check.name for check in CHECKS]

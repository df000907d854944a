"""Each check's predicate on the facts it may meet, and its probe on files and programs."""

from __future__ import annotations

import dataclasses
import importlib
import os
import threading
from pathlib import Path

import pytest

from labkit.doctor.check import (
    Check,
    Finding,
    Host,
    OnceRunner,
    failed,
    find_free_bytes,
    find_total_bytes,
    ok,
    unknown,
)
from labkit.doctor.checks import CHECKS, driver, gpu_access, network
from labkit.doctor.checks import driver as driver_module
from labkit.doctor.checks import engine as engine_module
from labkit.doctor.checks import system as system_module
from labkit.doctor.run import examine_host, format_examination
from labkit.host.distribution import UNKNOWN, Distribution, parse_os_release
from labkit.host.engine import EngineFacts
from labkit.host.gpu import BusGpu, Gpu, GpuFacts
from labkit.host.machine import FolderFacts
from labkit.process import CommandResult
from tests.fakes.host import ADA, DOCKER, NO_DOCKER, NO_PODMAN, PODMAN, fails, hangs, says
from tests.fakes.sick_hosts import CARD, CARD_FILES, GIB, OS_RELEASES, SMI_QUERY, lists, play_host

DEBIAN = Distribution("Debian", "debian")


# The checks as a whole


def test_names_are_single_and_each_need_stands_before_its_check():
    seen: list[str] = []
    for check in CHECKS:
        assert check.name not in seen
        assert set(check.needs) <= set(seen)
        seen.append(check.name)


def test_every_check_of_every_module_is_in_the_list():
    found = [
        value
        for path in Path(driver_module.__file__).parent.glob("*.py")
        for value in vars(importlib.import_module(f"labkit.doctor.checks.{path.stem}")).values()
        if isinstance(value, Check)
    ]
    assert {check.name for check in found} == {check.name for check in CHECKS}


# Distributions


@pytest.mark.parametrize(
    ("name", "family"),
    [(name, name) for name in OS_RELEASES],
    ids=OS_RELEASES.keys(),
)
def test_a_distribution_is_known_by_its_own_file(name, family):
    assert parse_os_release(OS_RELEASES[name]).family == family


@pytest.mark.parametrize(
    "text",
    [
        pytest.param("", id="an empty file"),
        pytest.param("ID=plan9\n", id="an unknown one"),
        pytest.param("\x00'\"=\x01\n===\nID", id="garbage"),
    ],
)
def test_an_unknown_distribution_has_no_family(text):
    assert parse_os_release(text).family is None


# The GPU and its driver


def test_the_driver_of_a_card_on_the_bus_is_read(tmp_path):
    host = play_host(tmp_path, files=CARD_FILES)
    target = tmp_path / "sys/bus/pci/drivers/vfio-pci"
    target.mkdir(parents=True)
    (tmp_path / CARD / "driver").symlink_to(target)
    facts = driver_module.probe_gpu_bus(host)
    assert facts.gpus == (BusGpu("0000:01:00.0", "vfio-pci", (8, 9)),)
    finding = driver_module.judge_gpu_bus(facts, UNKNOWN)
    assert finding.status == "warning"
    assert finding.skip_reason == "the GPU is reserved for virtual machines"


@pytest.mark.parametrize(
    ("facts", "found"),
    [
        pytest.param(
            driver_module.BusFacts(), "no NVIDIA GPU on the bus; the lab uses the CPU", id="none"
        ),
        pytest.param(
            driver_module.BusFacts(
                (BusGpu("0000:01:00.0", "nvidia", (8, 9)), BusGpu("0000:02:00.0", "vfio-pci"))
            ),
            "2 on the bus: 0000:01:00.0 (Ada), 0000:02:00.0",
            id="one of two given away",
        ),
        pytest.param(
            driver_module.BusFacts(in_wsl=True),
            "WSL2: Windows shares its GPU (/dev/dxg)",
            id="WSL2",
        ),
        pytest.param(
            driver_module.BusFacts(has_nodes=True),
            "an NVIDIA GPU that is not on a PCI bus (/dev/nvidiactl)",
            id="on a chip",
        ),
    ],
)
def test_a_bus_that_is_fine(facts, found):
    assert driver_module.judge_gpu_bus(facts, UNKNOWN).found == found
    assert driver_module.judge_gpu_bus(facts, UNKNOWN).status == "ok"


@pytest.mark.parametrize(
    ("version", "status", "found"),
    [
        ("450.80.02", "failed", "driver 450.80.02"),
        ("470.256.02", "failed", "driver 470.256.02"),
        ("525.60.13", "ok", "driver 525.60.13 runs CUDA 12 builds of torch"),
        ("579.99", "ok", "driver 579.99 runs CUDA 12 builds of torch"),
        ("580.65.06", "ok", "driver 580.65.06 runs every CUDA build of torch"),
        ("590.10", "ok", "driver 590.10 runs every CUDA build of torch"),
    ],
)
def test_a_driver_is_judged_by_its_age(version, status, found):
    finding = driver.judge_driver(driver.DriverFacts(GpuFacts(version, (Gpu("T4"),))), DEBIAN)
    assert (finding.status, finding.found) == (status, found)


def test_a_module_without_nvidia_smi_is_a_driver():
    facts = driver.DriverFacts(GpuFacts(None), module_version="580.65.06")
    assert driver.judge_driver(facts, DEBIAN).status == "ok"


def test_a_hung_nvidia_smi_with_a_loaded_module_says_nothing_against_the_driver():
    facts = driver.DriverFacts(
        GpuFacts(None, problem="nvidia-smi did not answer in 3 s"), "580.65.06", hung=True
    )
    assert driver.judge_driver(facts, DEBIAN).status == "ok"


@pytest.mark.parametrize(
    ("answer", "status", "words"),
    [
        pytest.param(
            says("NVIDIA H200, 580.95.05"),
            "ok",
            "module and libraries work together, both 580.95.05: NVIDIA H200",
            id="both versions agree",
        ),
        pytest.param(
            CommandResult(("nvidia-smi",), None, missing=True),
            "warning",
            "the module is loaded, but nvidia-smi is missing",
            id="no nvidia-smi",
        ),
        pytest.param(
            fails("Failed to initialize NVML: Insufficient Permissions", 4),
            "failed",
            "Failed to initialize NVML: Insufficient Permissions",
            id="a known sign",
        ),
        pytest.param(
            fails("Segmentation fault", 139), "failed", "Segmentation fault", id="a crash"
        ),
        pytest.param(
            says("No devices were found"), "failed", "No devices were found", id="no devices"
        ),
        pytest.param(says("hello"), "unknown", "nvidia-smi lists no GPU", id="garbage"),
        pytest.param(
            hangs("nvidia-smi", 3), "unknown", "nvidia-smi did not answer in 3 s", id="hangs"
        ),
    ],
)
def test_nvidia_smi_proves_module_and_library(answer, status, words):
    finding = driver_module.judge_driver_library(
        driver_module.LibraryFacts(answer, "580.95.05"), DEBIAN
    )
    assert (finding.status, finding.found) == (status, words)


@pytest.mark.parametrize(
    ("mode", "owner", "group", "groups", "refused"),
    [
        pytest.param(0o666, 0, 0, (), False, id="open to all"),
        pytest.param(0o660, 0, 44, (), True, id="another group's"),
        pytest.param(0o660, 0, 44, (44,), False, id="a group of mine"),
        pytest.param(0o600, 1000, 0, (), False, id="my own"),
        pytest.param(0o066, 1000, 0, (), True, id="my own, and closed to me"),
        pytest.param(0o644, 0, 0, (), True, id="to be read only"),
    ],
)
def test_device_files_are_open_or_not(mode, owner, group, groups, refused):
    status = os.stat_result((0o020000 | mode, 0, 0, 1, owner, group, 0, 0, 0, 0))
    host = Host(machine=play_machine(1000), groups=groups)
    assert driver_module._may_open(status, host) is not refused


def play_machine(user_id):
    """A Linux machine that this user sits at."""
    return dataclasses.replace(ADA, user_id=user_id)


def test_root_may_open_everything():
    status = os.stat_result((0o020000, 0, 0, 1, 5, 5, 0, 0, 0, 0))
    assert driver_module._may_open(status, Host(machine=play_machine(0)))


def test_refused_device_files_are_named_with_the_fix():
    facts = driver_module.NodeFacts(("nvidiactl", "nvidia0"), ("nvidia0",))
    finding = driver_module.judge_device_nodes(facts, DEBIAN)
    assert finding.found == "this user cannot open /dev/nvidia0"
    assert finding.fix.startswith("sudo usermod -aG video $USER")


def test_a_missing_gpu_file_is_named():
    finding = driver_module.judge_device_nodes(driver_module.NodeFacts(("nvidiactl",)), DEBIAN)
    assert (finding.status, finding.found) == ("failed", "missing: /dev/nvidia0")


def test_uvm_loaded_without_its_file_is_told_apart():
    finding = driver_module.judge_uvm(driver_module.UvmFacts(loaded=True), DEBIAN)
    assert finding.found == "nvidia-uvm is loaded, but /dev/nvidia-uvm is missing"


# The engine


def test_the_engine_that_answers_is_the_one_that_counts():
    down = EngineFacts("docker", client_found=True, problem="no")
    assert engine_module.EnginePair(down, PODMAN).chosen is PODMAN
    assert engine_module.EnginePair(DOCKER, PODMAN).chosen is DOCKER
    assert engine_module.EnginePair(down, NO_PODMAN).chosen is down
    assert engine_module.EnginePair(NO_DOCKER, NO_PODMAN).chosen is NO_DOCKER


def test_in_a_container_with_an_engine_the_engine_counts():
    pair = engine_module.EnginePair(DOCKER, NO_PODMAN, in_container=True)
    assert engine_module.judge_engine_client(pair, DEBIAN).found == "docker is installed"
    bare = engine_module.EnginePair(NO_DOCKER, NO_PODMAN, in_container=True)
    assert (
        engine_module.judge_engine_client(bare, DEBIAN).skip_reason == "this is inside a container"
    )


def test_docker_on_a_mac_is_started_its_own_way():
    down = EngineFacts("docker", client_found=True, problem="no daemon")
    pair = engine_module.EnginePair(down, NO_PODMAN, system="Darwin")
    assert engine_module.judge_engine_daemon(pair, UNKNOWN).fix == "open -a Docker"


def test_a_podman_that_is_broken_says_so():
    broken = EngineFacts("podman", client_found=True, problem="no subuid ranges")
    finding = engine_module.judge_engine_daemon(engine_module.EnginePair(NO_DOCKER, broken), DEBIAN)
    assert finding.found == "podman does not work (no subuid ranges)"


@pytest.mark.parametrize(
    ("version", "status"),
    [
        ("1.17.7", "warning"),
        ("1.17.8", "ok"),
        ("1.17.10", "ok"),
        ("1.9.0", "warning"),
        ("1.18.0", "ok"),
        ("2.0.0", "ok"),
    ],
)
def test_the_toolkit_has_a_floor(version, status):
    answer = says(f"NVIDIA Container Toolkit CLI version {version}\ncommit: 0a1b")
    assert gpu_access.judge_toolkit(gpu_access.ToolkitFacts(answer), DEBIAN).status == status


def test_a_toolkit_that_tells_no_version_is_unknown():
    finding = gpu_access.judge_toolkit(gpu_access.ToolkitFacts(says("hello")), DEBIAN)
    assert (finding.status, finding.found) == (
        "unknown",
        "nvidia-ctk prints no version (hello)",
    )


@pytest.mark.parametrize("switch", [None, "", "\x00", "1 1"])
def test_selinux_without_an_off_switch_is_fine(tmp_path, switch):
    files = {
        "sys/fs/selinux/enforce": "1",
        "sys/fs/selinux/booleans/container_use_devices": switch,
    }
    facts = gpu_access.probe_selinux(play_host(tmp_path, files=files))
    assert facts.enforcing
    assert (facts.devices_allowed is False) == (switch == "\x00")


# Resources


@pytest.mark.parametrize(
    ("facts", "status", "fix"),
    [
        pytest.param(system_module.SharedMemoryFacts(16 * GIB), "ok", None, id="plenty"),
        pytest.param(system_module.SharedMemoryFacts(512 * 2**20), "ok", None, id="just enough"),
        pytest.param(
            system_module.SharedMemoryFacts(64 * 2**20),
            "warning",
            "sudo mount -o remount,size=2G /dev/shm",
            id="on a host",
        ),
        pytest.param(
            system_module.SharedMemoryFacts(64 * 2**20, in_container=True),
            "warning",
            "LABKIT_SHM_SIZE=2g make down up",
            id="in a container",
        ),
        pytest.param(
            system_module.SharedMemoryFacts(None, system="Darwin"), "ok", None, id="a Mac"
        ),
        pytest.param(system_module.SharedMemoryFacts(None), "unknown", None, id="not to be asked"),
    ],
)
def test_shared_memory(facts, status, fix):
    finding = system_module.judge_shm(facts, DEBIAN)
    assert (finding.status, finding.fix) == (status, fix)


def test_the_fullest_disk_is_the_one_that_counts():
    rooms = {"/home": 80 * GIB, "/var": 3 * GIB, "/x": None}
    places = tuple(system_module.DiskPlace(path, free) for path, free in rooms.items())
    assert system_module.judge_disk(places, DEBIAN).found == "3.0 GiB free at /var"
    assert system_module.judge_disk((), DEBIAN).status == "unknown"


def test_the_engines_own_disk_is_asked_too(tmp_path):
    host = play_host(
        tmp_path,
        files={"var/lib/docker/x": ""},
        answers={
            "docker info": says('{"ServerVersion": "28", "DockerRootDir": "/var/lib/docker"}')
        },
    )
    place = system_module.probe_disk(host)[1]
    assert (place.path, place.free_bytes) == ("/var/lib/docker", 80 * GIB)


@pytest.mark.parametrize(
    ("facts", "status", "found"),
    [
        pytest.param(
            system_module.MemoryFacts(32 * GIB, 20 * GIB),
            "ok",
            "20.0 GiB of 32.0 GiB available",
            id="ok",
        ),
        pytest.param(
            system_module.MemoryFacts(32 * GIB, 20 * GIB, GIB),
            "warning",
            "1.0 GiB of memory for this container",
            id="a tight container",
        ),
        pytest.param(
            system_module.MemoryFacts(32 * GIB, GIB // 2),
            "warning",
            "512.0 MiB of 32.0 GiB available",
            id="little left",
        ),
        pytest.param(
            system_module.MemoryFacts(32 * GIB, None),
            "ok",
            "unknown of 32.0 GiB available",
            id="unknown",
        ),
        pytest.param(
            system_module.MemoryFacts(system="Darwin"), "ok", "not checked on Darwin", id="a Mac"
        ),
    ],
)
def test_memory(facts, status, found):
    finding = system_module.judge_memory(facts, DEBIAN)
    assert (finding.status, finding.found) == (status, found)


WORK = Path("/home/ada/work")


@pytest.mark.parametrize(
    ("folder", "status", "fix"),
    [
        pytest.param(FolderFacts(WORK, True, True, 1000, 1000, True, 1), "ok", None, id="mine"),
        pytest.param(
            FolderFacts(WORK, False, False, None, None, False, None), "ok", None, id="new"
        ),
        pytest.param(
            FolderFacts(WORK, True, False, 1000, 1000, True, 1),
            "failed",
            "mv /home/ada/work /home/ada/work.old",
            id="a file",
        ),
        pytest.param(
            FolderFacts(WORK, True, True, 0, 0, False, 1),
            "failed",
            'sudo chown -R "$(id -u):$(id -g)" /home/ada/work',
            id="root's",
        ),
        pytest.param(
            FolderFacts(WORK, True, True, 1000, 1000, False, 1),
            "failed",
            "chmod u+rwx /home/ada/work   # or see: ls -ld /home/ada/work",
            id="mine, read-only",
        ),
        pytest.param(
            FolderFacts(WORK, True, True, 1001, 1001, True, 1),
            "warning",
            'sudo chown -R "$(id -u):$(id -g)" /home/ada/work',
            id="another's, shared",
        ),
    ],
)
def test_a_workspace(folder, status, fix):
    finding = system_module.judge_workspace(system_module.WorkspaceFacts(folder, 1000), DEBIAN)
    assert (finding.status, finding.fix) == (status, fix)


def test_inside_the_lab_the_workspace_is_given_back_from_outside():
    folder = FolderFacts(Path("/work"), True, True, 0, 0, False, 1)
    finding = system_module.judge_workspace(
        system_module.WorkspaceFacts(folder, 1000, in_lab=True), DEBIAN
    )
    assert finding.fix == (
        'sudo chown -R "$(id -u):$(id -g)" work   # on the host, in the checkout'
    )


def test_room_is_asked_of_the_nearest_folder_there_is(tmp_path):
    assert find_free_bytes(tmp_path / "not/made/yet") > 0
    assert find_total_bytes(tmp_path / "not/made/yet") is None
    assert find_total_bytes(tmp_path) > 0


# The network


def test_a_proxys_password_is_never_shown(tmp_path):
    environment = {"HTTPS_PROXY": "http://ada:secret@proxy.example:3128"}
    finding = network.judge_certificates(
        network.probe_certificates(play_host(tmp_path, environment=environment)), DEBIAN
    )
    assert (finding.status, finding.found) == ("ok", "set: HTTPS_PROXY")
    assert "secret" not in repr(finding)


@pytest.mark.parametrize(
    ("address", "host"),
    [
        ("http://proxy.example:3128", "proxy.example"),
        ("proxy.example:3128", "proxy.example"),
        ("http://[::1", None),
        ("http://", None),
    ],
)
def test_a_proxys_host_is_read(address, host):
    assert network._read_host(address) == host


def test_a_proxy_that_is_no_address_fails():
    facts = network.ProxyFacts((("https_proxy", None),))
    assert network.judge_certificates(facts, DEBIAN).fix == "unset https_proxy"


def test_behind_a_proxy_no_name_is_asked_for(tmp_path):
    asked = []
    environment = {"https_proxy": "http://proxy.example:3128"}
    facts = network.probe_dns(play_host(tmp_path, resolve=asked.append, environment=environment))
    assert asked == []
    assert network.judge_dns(facts, DEBIAN).found == "the proxy resolves names"


def test_without_an_index_there_is_nothing_to_reach():
    assert network.judge_dns(network.NameFacts(), DEBIAN).skip_reason == "no index is set"


@pytest.mark.parametrize(
    ("settings", "machine", "indexes"),
    [
        ({}, "x86_64", ("cpu",)),
        ({"gpu": True}, "x86_64", ()),
        (
            {"gpu": True, "answers": {SMI_QUERY: lists("Tesla V100, 7.0, [N/A]")}},
            "x86_64",
            ("cu126",),
        ),
        ({"gpu": True, "answers": {SMI_QUERY: lists("T4, 7.5, [N/A]")}}, "aarch64", ("cpu",)),
        ({"gpu": True, "answers": {SMI_QUERY: None}}, "x86_64", ()),
    ],
    ids=["no GPU", "an RTX 4090", "a V100", "one that no build has code for", "no nvidia-smi"],
)
def test_the_index_is_the_one_that_this_hosts_build_comes_from(
    tmp_path, settings, machine, indexes
):
    host = play_host(tmp_path, indexes=(), builds_torch=True, **settings)
    host = dataclasses.replace(
        host, machine=dataclasses.replace(host.machine, architecture=machine)
    )
    expected = tuple(f"https://download.pytorch.org/whl/{name}" for name in indexes)
    assert network.list_indexes(host) == expected
    finding = network.judge_index(network.probe_index(host), DEBIAN)
    assert finding.found == (
        f"{expected[0]} answers"
        if expected
        else "no index is set: torch's build for this GPU comes from the default index"
    )


def test_an_index_that_is_named_takes_the_place_of_pytorchs(tmp_path):
    host = play_host(tmp_path, indexes=("https://own.example",), gpu=True)
    assert network.list_indexes(host) == ("https://own.example",)


def test_an_index_out_of_reach_for_an_unknown_reason_gets_a_command_to_look():
    facts = network.IndexFacts((("https://index.example", "strange"),))
    assert network.judge_index(facts, DEBIAN).fix == "curl -sSI https://index.example"


def test_an_indexs_password_is_never_shown(tmp_path):
    indexes = ("https://ada:secret@index.example/whl",)

    def refuse(address):
        raise OSError("refused")

    for settings in ({"reach": refuse}, {}):
        host = play_host(tmp_path, indexes=indexes, **settings)
        finding = network.judge_index(network.probe_index(host), DEBIAN)
        assert finding.found.startswith("https://index.example/whl ")
        assert "secret" not in repr(finding)


# How checks are made


def play_check(name, finding, needs=(), **settings):
    """A check that comes back with this finding, or raises it."""

    def probe(host):
        if isinstance(finding, BaseException):
            raise finding
        return finding

    return Check(name, name, probe, lambda facts, distribution: facts, needs, **settings)


@pytest.mark.parametrize(
    ("first", "second"),
    [
        pytest.param(ok("yes"), ("ok", "fine"), id="ok"),
        pytest.param(Finding("warning", "hm"), ("ok", "fine"), id="warning"),
        pytest.param(failed("no", "c", "f"), ("skipped", "because a failed"), id="failed"),
        pytest.param(unknown("?"), ("skipped", "because a is unknown"), id="unknown"),
        pytest.param(
            ok("none", skip_reason="there is none"),
            ("skipped", "because there is none"),
            id="unneeded",
        ),
        pytest.param(ValueError("x"), ("skipped", "because a is unknown"), id="broken"),
    ],
)
def test_what_the_first_finds_decides_whether_the_next_is_made(tmp_path, first, second):
    checks = [play_check("a", first), play_check("b", ok("fine"), ("a",))]
    finding = examine_host(play_host(tmp_path), checks).findings[1]
    assert (finding.status, finding.found) == second


def test_a_check_that_breaks_is_unknown_and_alone(tmp_path):
    checks = [play_check("a", KeyError("x")), play_check("b", ok("fine"))]
    first, second = examine_host(play_host(tmp_path), checks).findings
    assert first.found == "the check failed on what it read: KeyError: 'x'"
    assert (first.status, second.status) == ("unknown", "ok")


def test_a_reason_is_handed_down_a_chain(tmp_path):
    checks = [
        play_check("a", failed("no", "c", "f")),
        play_check("b", ok("fine"), ("a",)),
        play_check("c", ok("fine"), ("b",)),
    ]
    assert examine_host(play_host(tmp_path), checks).findings[2].found == "because a failed"


def test_an_examination_as_a_person_reads_it(tmp_path):
    checks = [
        play_check("disk", failed("0 B free", "the disk is full", "df -h")),
        play_check("memory", ok("8.0 GiB free")),
        play_check("build", ok("fine"), ("disk",)),
    ]
    assert format_examination(examine_host(play_host(tmp_path), checks)) == (
        "ok       memory 8.0 GiB free\n"
        "skipped  build  because disk failed\n"
        "failed   disk   0 B free\n"
        "                cause: the disk is full\n"
        "                try: df -h\n"
        "\n"
        "3 checks: 1 ok, 1 skipped, 1 failed"
    )


def test_lines_fold_to_the_terminal_and_commands_stay_whole(tmp_path):
    fix = "sudo nvidia-ctk runtime configure --runtime=docker && sudo systemctl restart docker"
    found = failed("no container of the lab sees the GPU of this host", "docker " * 12, fix)
    examination = examine_host(play_host(tmp_path), [play_check("container-gpu", found)])
    lines = format_examination(examination, 60).splitlines()
    assert f"  try: {fix}" in lines
    assert all(len(line) <= 60 for line in lines if "try:" not in line)
    assert format_examination(examination).count("\n") == 4


def test_two_who_ask_the_same_share_the_answer():
    calls = []
    inside = threading.Event()

    def slow(arguments, *, timeout_seconds):
        calls.append(arguments)
        inside.wait(10)
        return says("fine")

    runner = OnceRunner(slow)
    answers = []
    threads = [
        threading.Thread(target=lambda: answers.append(runner(["x"], timeout_seconds=1)))
        for _ in range(3)
    ]
    for thread in threads:
        thread.start()
    inside.set()
    for thread in threads:
        thread.join(10)
    assert len(calls) == 1
    assert [answer.stdout for answer in answers] == ["fine\n"] * 3


def test_a_runner_that_breaks_breaks_for_all_who_ask():
    def broken(arguments, *, timeout_seconds):
        raise OSError("no more processes")

    runner = OnceRunner(broken)
    for _ in range(2):
        with pytest.raises(OSError, match="no more processes"):
            runner(["x"], timeout_seconds=1)

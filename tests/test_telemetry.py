"""What GPUs do now, from a played driver to the screen of ``labkit devices``, and the report."""

from __future__ import annotations

import itertools
import json
import os
import pwd

import pytest

from labkit.cli import devices as command
from labkit.cli import main
from labkit.cli.devices import format_devices, list_users
from labkit.devices import detect, report, telemetry
from labkit.devices.detect import Detection, Device
from labkit.devices.nvml import GpuHardware, GpuLoad, GpuMemory, GpuProcess
from labkit.devices.report import format_report, hide_names, read_report
from labkit.devices.telemetry import GpuPath, GpuTelemetry, Telemetry
from labkit.memory.balance import read as balance
from labkit.process import CommandResult
from tests.fakes import host as fake
from tests.fakes.host import FakeRunner, says
from tests.fakes.nvml import PlayedHost, build_driver, script_driver, script_gpu
from tests.snapshots import assert_snapshot

pytest.importorskip("pynvml", reason="needs nvidia-ml-py")

GIB = 2**30
# An H100 under load, as its driver answered in a container.
H100 = {
    **{"bus": 6, "load": 98, "memory_load": 61, "temperature": 58, "pstate": 0, "persistence": 1},
    **{"power": 700340, "power_limit": 700000, "default_power_limit": 700000},
    **{"sm": 1275, "max_sm": 1980, "memory_clock": 2619, "max_memory_clock": 2619, "reasons": 4},
    **{"link_generation": 5, "max_link_generation": 5, "link_width": 16, "max_link_width": 16},
    **{"ecc": 1, "ecc_errors": 0, "remap_pending": 0, "remap_failed": 0},
}
LOAD = GpuLoad(1275, 2619, 700.34, 58, ("power cap",), 5, 16)
HARDWARE = GpuHardware(
    *(1980, 2619, None, 700.0, 700.0, 5, 16, 0, 0, False, False),
    *(False, 24 * GIB, 0, 24 * GIB - 20 * GIB - GIB // 2),
)
HEALTHY = GpuTelemetry(
    *(0, "GPU-00000000", "00000000:06:00.0", 98, 61, None, 0, True, True, LOAD, HARDWARE)
)


@pytest.fixture(scope="module")
def driver(tmp_path_factory):
    return build_driver(tmp_path_factory.mktemp("driver"))


@pytest.fixture
def host(tmp_path, driver):
    return PlayedHost(tmp_path, driver)


def script_figures(index=0, *lines, **figures):
    told = [f"figure {name} {number}" for name, number in figures.items()]
    return script_gpu(index, *told, *lines)


def ask(host, *parts):
    done = host.run(script_driver(*parts), "devices", "--json")
    assert (done.returncode, done.stderr) == (0, "")
    return json.loads(done.stdout)


def test_every_figure_comes_from_the_driver(host):
    (state,) = ask(host, script_figures(**H100))["telemetry"]
    expected = json.loads(json.dumps(HEALTHY.describe()))
    assert state == expected


def test_what_a_driver_does_not_tell_is_null(host):
    (state,) = ask(host, script_gpu(0))["telemetry"]
    figures = {**state.pop("load"), **state.pop("hardware"), **state}
    known = ("nvml_index", "uuid", "mig_enabled", "total_bytes", "used_bytes", "processes")
    assert {value for name, value in figures.items() if name not in known} == {None}


@pytest.mark.slow
@pytest.mark.parametrize("code", [3, 15, 999])
@pytest.mark.parametrize("query", ["power", "reasons", "ecc_errors", "temperature"])
def test_one_figure_that_fails_leaves_the_others(host, query, code):
    part, field = {
        "power": ("load", "power_watts"),
        "reasons": ("load", "clock_reasons"),
        "ecc_errors": ("hardware", "ecc_errors"),
        "temperature": ("load", "temperature_celsius"),
    }[query]
    (state,) = ask(host, script_figures(0, f"fail {query} {code}", **H100))["telemetry"]
    expected = json.loads(json.dumps(HEALTHY.describe()))
    expected[part][field] = None
    assert state == expected


@pytest.mark.parametrize(
    ("first", "second", "path"),
    [
        (["nvlink 00000000:07:00.0"] * 4, ["nvlink 00000000:06:00.0"] * 4, "NV4"),
        (["nvlink switch"] * 6, ["nvlink switch"] * 6, "NV6"),
        (["nvlink 00000000:09:00.0"], [], "NODE"),
        ([], [], "NODE"),
    ],
    ids=["direct", "over switches", "to another GPU", "PCIe"],
)
def test_the_path_between_two_gpus(host, first, second, path):
    parts = (
        script_figures(0, *first, bus=6, level=40),
        script_figures(1, *second, bus=7),
    )
    assert ask(host, *parts)["paths"] == [{"first": 0, "second": 1, "path": path}]


def test_a_driver_that_does_not_answer_has_no_telemetry(host):
    told = ask(host, "fail init 9", script_gpu(0))
    assert (told["telemetry"], told["paths"], told["processes"]) == ([], [], [])


# The screens

GPU = Device(
    "cuda", "cuda:0", "NVIDIA H100 80GB HBM3", "GPU-00000000", 80 * GIB, driver="580.95.05"
)
OTHER = GPU._replace(torch_name=None, uuid="GPU-1", name="NVIDIA RTX PRO 6000 Blackwell Max-Q")
SPLIT = GPU._replace(torch_name=None, uuid="GPU-2", mig=True)
PART = GPU._replace(uuid="MIG-3", parent_uuid="GPU-2", name="NVIDIA H100 MIG 1g.10gb")
SPARK = Device("cuda", "cuda:1", "NVIDIA GB10", "GPU-4", 120 * GIB, unified=True)
AMD = Device("rocm", None, "AMD Instinct MI300X", total_bytes=192 * GIB)
CPU = Device("cpu", "cpu", "AMD EPYC 9654", total_bytes=16 * GIB, limit_bytes=2 * GIB, cores=1.5)
SICK = HEALTHY._replace(
    uuid="GPU-1",
    nvml_index=1,
    utilization_percent=None,
    load=LOAD._replace(clock_reasons=("hardware thermal slowdown",), link_width=8),
    hardware=HARDWARE._replace(ecc_errors=3, row_remap_pending=True),
)
PROCESSES = (GpuProcess(646, 518 * 2**20), GpuProcess(2**22 + 1, None))
MEMORY = (
    GpuMemory(0, "GPU-00000000", None, 80 * GIB, 75 * GIB, GIB, PROCESSES),
    GpuMemory(2, "MIG-3", None, 10 * GIB, 10 * GIB),
)
TELEMETRY = Telemetry((HEALTHY, SICK), MEMORY, (GpuPath(0, 1, "NV18"),))
DETECTION = Detection("cuda:0", (GPU, OTHER, SPLIT, PART, SPARK, AMD, CPU), ("a note",))


@pytest.fixture
def processes(monkeypatch):
    """One process of ada's, and one that this system does not know."""
    monkeypatch.setattr(balance, "sees_host_ids", lambda: True)
    commands = {646: "python3 train.py"}
    monkeypatch.setattr(balance, "read_command", commands.get)
    monkeypatch.setattr(command, "_name_owner", {646: "ada"}.get)


def test_the_compact_screen_and_everything_that_is_known(processes):
    compact = format_devices(DETECTION, TELEMETRY)
    assert max(map(len, compact.splitlines())) <= 80
    everything = format_devices(DETECTION, TELEMETRY, everything=True)
    assert_snapshot("devices_now", f"{compact}\n\n---\n\n{everything}\n")


def test_in_a_container_the_ids_of_the_host_are_not_named(processes, monkeypatch):
    monkeypatch.setattr(balance, "sees_host_ids", lambda: False)
    assert {(user.user, user.command) for user in list_users(TELEMETRY)} == {(None, None)}


def test_the_owner_of_a_process_is_named():
    assert command._name_owner(os.getpid()) == pwd.getpwuid(os.geteuid()).pw_name
    assert command._name_owner(2**22 + 1) is None


def test_watch_prints_again_until_ctrl_c(monkeypatch, capsys):
    monkeypatch.setattr(detect, "detect_devices", lambda: Detection("cpu", (CPU,), ()))
    monkeypatch.setattr(telemetry, "read_telemetry", Telemetry)
    naps = itertools.count()

    def sleep(seconds):
        assert seconds == 0.5
        if next(naps) == 2:
            raise KeyboardInterrupt

    arguments = type("Arguments", (), {"json": False, "watch": 0.5, "all": False})()
    assert command._watch(arguments, sleep) == 0
    assert capsys.readouterr().out.count("best device: cpu") == 3


@pytest.mark.parametrize(
    "words", [["--watch", "--json"], ["--watch", "0"], ["--watch", "--report"]]
)
def test_what_makes_no_sense_with_watch_is_refused(words, capsys):
    assert main(["devices", *words]) == 2


# The report

SECRETS = {
    "HOME": "/home/ada",
    "USER": "ada",
    "HF_TOKEN": "hf_secret",
    "NCCL_AUTH_KEY": "secret",
    "CUDA_VISIBLE_DEVICES": "GPU-5d1c0f2e-9a7b",
    "LD_LIBRARY_PATH": "/home/ada/cuda/lib64:/home/bob/lib:/opt/ada/lib",
    "DOCKER_HOST": "ssh://ada:pass@gpu-box.example:22/x",
    "SHELL": "/bin/zsh",
}


def make_report(monkeypatch, tmp_path, **answers):
    monkeypatch.setattr(report.platform, "node", lambda: "lab-7")
    monkeypatch.setattr(report.getpass, "getuser", lambda: "ada")
    version = tmp_path / "proc/driver/nvidia/version"
    version.parent.mkdir(parents=True)
    version.write_text("NVRM version: NVIDIA UNIX Open Kernel Module for x86_64  580.95.05")
    known = {**fake.DOCKER_FINE, "nvidia-ctk": says("NVIDIA Container Toolkit CLI version 1.18.0")}
    detection = DETECTION._replace(notes=("a note about lab-7",))
    return read_report(detection, TELEMETRY, FakeRunner(known), SECRETS, tmp_path)


def test_the_report_names_versions_devices_and_variables(monkeypatch, tmp_path):
    text = format_report(make_report(monkeypatch, tmp_path))
    for words in (
        "580.95.05 (CUDA unknown, open kernel modules)",
        "toolkit   1.18.0",
        "docker 26.1.5+dfsg1, Compose 2.26.1-4",
        "cuda:0: NVIDIA H100 80GB HBM3",
        "PCIe 5.0 x8 of x16",
        "clocks held by hardware thermal slowdown",
        "GPU0-GPU1 NV18",
        "CUDA_VISIBLE_DEVICES=GPU-...",
        "LD_LIBRARY_PATH=~/cuda/lib64:/home/<user>/lib:/opt/<user>/lib",
        "DOCKER_HOST=ssh://<host>/x",
    ):
        assert words in text
    assert text.startswith("```\n")
    assert text.endswith("\n```")


def test_the_report_names_no_person_host_or_secret(monkeypatch, tmp_path):
    text = format_report(make_report(monkeypatch, tmp_path))
    hidden = ("ada", "bob", "secret", "pass", "lab-7", "gpu-box", "5d1c0f2e", "00000000", "zsh")
    assert [word for word in hidden if word in text] == []


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("adamant", "adamant"),
        ("ada", "<user>"),
        ("unix:///run/user/1000/docker.sock", "unix:///run/user/1000/docker.sock"),
        ("MIG-51c2b1b8-9b65/1/0", "MIG-..."),
    ],
)
def test_only_whole_names_are_hidden(text, shown):
    assert hide_names(text, {"ada": "<user>"}) == shown


def test_the_report_of_this_machine_is_one_json_object(capsys, monkeypatch):
    missing = CommandResult(("x",), None, missing=True)
    monkeypatch.setattr("labkit.process.run_command", lambda *words, **limits: missing)
    assert main(["devices", "--report", "--json"]) == 0
    told = json.loads(capsys.readouterr().out)
    assert told["engines"] == []
    assert told["devices"]

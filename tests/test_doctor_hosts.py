"""Whole hosts, healthy and broken, played to the doctor: the right verdict, the right fix."""

from __future__ import annotations

import dataclasses
import json
import threading
import time

import pytest

from labkit.doctor.check import OnceRunner
from labkit.doctor.checks import CHECKS
from labkit.doctor.checks import torch as torch_build_check
from labkit.doctor.run import examine_host, format_examination
from labkit.host.distribution import Distribution
from labkit.host.packages import INSTALL_DRIVER
from labkit.process import CommandResult, run_command
from tests.fakes.host import (
    COMPOSE,
    CONTEXT,
    DOCKER_INFO,
    INFO,
    NO_COMPOSE_PLUGIN,
    NO_DAEMON,
    NOT_ALLOWED,
    PODMAN_AS_DOCKER,
    PODMAN_FINE,
    SMI,
    SMI_WITHOUT_DRIVER,
    fails,
    hangs,
    says,
    write_program,
)
from tests.fakes.sick_hosts import (
    CARD,
    CARD_FILES,
    CTK,
    GIB,
    GPU_FILES,
    LIBRARY,
    SMI_QUERY,
    SPEC,
    WITH_RUNTIME,
    play_host,
    read_command,
)

NEW_DRIVER = INSTALL_DRIVER.on(Distribution(family="debian"))
NO_DOCKER = {INFO: None, COMPOSE: None, CONTEXT: None}
ROOTLESS = {**DOCKER_INFO, "SecurityOptions": ["name=rootless"], "Runtimes": {"nvidia": {}}}
WSL_FILES = dict.fromkeys(GPU_FILES) | {
    "dev/dxg": "",
    "proc/version": "Linux version 6.6.87.2-microsoft-standard-WSL2",
    "proc/modules": "",
}
LOCKED = "no-cgroups = true\n"


@pytest.fixture(autouse=True)
def no_torch(monkeypatch):
    """The hosts here are bare: what torch the tests run on is none of theirs."""
    monkeypatch.setattr(torch_build_check, "read_torch_build", lambda: None)


# Each healthy host: nothing failed, nothing warned of, nothing unknown.
HEALTHY = {
    "a laptop without a GPU": {},
    "without any engine": {"answers": NO_DOCKER},
    "Podman alone": {"answers": {**NO_DOCKER, **PODMAN_FINE}},
    "Podman under docker's name": {"answers": {**PODMAN_AS_DOCKER, **PODMAN_FINE}},
    "a GPU host": {"gpu": True},
    "a GPU host, Ubuntu": {"gpu": True, "distribution": "ubuntu"},
    "a GPU host with driver 535": {
        "gpu": True,
        "files": {"proc/driver/nvidia/version": "NVRM version: Kernel Module  535.230.02  x"},
        "answers": {SMI_QUERY: says("Tesla T4, 535.230.02")},
    },
    "a GPU host with a newer toolkit": {
        "gpu": True,
        "answers": {CTK: says("NVIDIA Container Toolkit CLI version 1.19.0")},
    },
    "Podman with CDI": {
        "gpu": True,
        "distribution": "fedora",
        "files": {"etc/cdi/nvidia.yaml": SPEC.format("580.95.05"), LIBRARY.format("580.95.05"): ""},
        "answers": {**NO_DOCKER, **PODMAN_FINE},
    },
    "Docker with CDI alone": {
        "gpu": True,
        "files": {
            "var/run/cdi/nvidia.json": SPEC.format("580.95.05"),
            LIBRARY.format("580.95.05"): "",
        },
        "answers": {INFO: says(json.dumps({**DOCKER_INFO, "CDISpecDirs": ["/etc/cdi"]}))},
    },
    "rootless Docker, set up for it": {
        "gpu": True,
        "files": {"etc/nvidia-container-runtime/config.toml": LOCKED},
        "answers": {INFO: says(json.dumps(ROOTLESS))},
    },
    "rootless Docker with CDI": {
        "gpu": True,
        "files": {"etc/cdi/nvidia.yaml": SPEC.format("580.95.05"), LIBRARY.format("580.95.05"): ""},
        "answers": {INFO: says(json.dumps(ROOTLESS))},
    },
    "an installed labkit without a checkout": {"workspace": None, "indexes": ()},
    "uvm not loaded yet": {
        "gpu": True,
        "files": {"dev/nvidia-uvm": None, "usr/bin/nvidia-modprobe": ""},
    },
    "WSL2 with Docker Desktop": {"gpu": True, "files": WSL_FILES, "answers": {CTK: None}},
    "SELinux that lets devices in": {
        "gpu": True,
        "distribution": "rhel",
        "files": {
            "sys/fs/selinux/enforce": "1",
            "sys/fs/selinux/booleans/container_use_devices": "1 1",
        },
    },
    "only the sound chip of a card": {
        "files": {f"{CARD}/vendor": "0x10de\n", f"{CARD}/class": "0x040300\n"}
    },
    "inside the lab's container": {
        "answers": NO_DOCKER,
        "files": {".dockerenv": ""},
        "environment": {"LABKIT_IN_CONTAINER": "1"},
    },
    "the lab runs on its port": {"own_port": 8888, "is_port_free": lambda address, port: False},
    "behind a proxy": {"environment": {"HTTPS_PROXY": "http://proxy.example:3128"}},
    "garbage in files nobody needs": {
        "files": {"proc/modules": "\x00\x01\x02", "etc/os-release": "\x00=\x01\n'\"="}
    },
}


@pytest.mark.parametrize("host", HEALTHY.values(), ids=HEALTHY.keys())
def test_no_false_alarm_on_a_healthy_host(tmp_path, host):
    examination = examine_host(play_host(tmp_path, **host), CHECKS)
    alarms = [each for each in examination.findings if each.status not in ("ok", "skipped")]
    assert alarms == []
    assert examination.healthy


def gone():
    raise OSError(-3, "Temporary failure in name resolution")


def refuse(address):
    raise OSError("[SSL: CERTIFICATE_VERIFY_FAILED] certificate verify failed: self signed")


MODULE = {"proc/driver/nvidia/version": None, "proc/modules": ""}
# Each broken host: what is wrong with it, the check that says so, how, and the fix.
BROKEN = {
    "no driver, Debian": (
        {"gpu": True, "files": MODULE, "answers": {SMI_QUERY: None}},
        (
            "driver",
            "failed",
            NEW_DRIVER,
        ),
    ),
    "no driver, Ubuntu": (
        {"files": CARD_FILES, "distribution": "ubuntu"},
        ("driver", "failed", "sudo ubuntu-drivers install   # then reboot"),
    ),
    "no driver, Fedora": (
        {"files": CARD_FILES, "distribution": "fedora"},
        ("driver", "failed", "sudo dnf install akmod-nvidia   # from RPM Fusion; then reboot"),
    ),
    "no driver, Rocky": (
        {"files": CARD_FILES, "distribution": "rhel"},
        (
            "driver",
            "failed",
            "sudo dnf module install nvidia-driver:open-dkms   # then reboot",
        ),
    ),
    "no driver, Arch": (
        {"files": CARD_FILES, "distribution": "arch"},
        ("driver", "failed", "sudo pacman -S nvidia-open   # then reboot"),
    ),
    "nouveau has the card": (
        {"files": {**CARD_FILES, "proc/modules": "nouveau 3 0 - Live 0x0\n"}},
        (
            "driver",
            "failed",
            NEW_DRIVER,
        ),
    ),
    "the module is not loaded": (
        {
            "files": CARD_FILES,
            "answers": {**SMI_WITHOUT_DRIVER, "modinfo": says("580.95.05")},
        },
        ("driver", "failed", "sudo modprobe nvidia   # where it refuses, it says why"),
    ),
    "a driver of 2020": (
        {
            "gpu": True,
            "files": {"proc/driver/nvidia/version": "NVRM version: Module  450.80.02  x"},
            "answers": {SMI_QUERY: says("Tesla T4, 450.80.02")},
        },
        (
            "driver",
            "failed",
            NEW_DRIVER,
        ),
    ),
    "updated without a reboot": (
        {
            "gpu": True,
            "answers": {
                SMI: CommandResult(
                    ("nvidia-smi",),
                    18,
                    "Failed to initialize NVML: Driver/library version mismatch\n"
                    "NVML library version: 580.105\n",
                )
            }
            | {SMI_QUERY: None},
        },
        ("driver-library", "failed", "sudo reboot"),
    ),
    "WSL2 that is blocked": (
        {
            "gpu": True,
            "files": WSL_FILES,
            "answers": {
                SMI_QUERY: fails(
                    "Failed to initialize NVML: GPU access blocked by the operating system", 17
                )
            },
        },
        (
            "driver",
            "failed",
            "wsl.exe --update && wsl.exe --shutdown   # in Windows, with its driver current",
        ),
    ),
    "no device files": (
        {"gpu": True, "files": {"dev/nvidiactl": None, "dev/nvidia0": None}},
        ("device-nodes", "failed", "sudo nvidia-modprobe -c=0 -u"),
    ),
    "CUDA's module is missing": (
        {"gpu": True, "files": {"dev/nvidia-uvm": None, "proc/modules": "nvidia 1 0 - Live 0\n"}},
        (
            "nvidia-uvm",
            "warning",
            "sudo nvidia-modprobe -u -c=0 || sudo modprobe nvidia-uvm",
        ),
    ),
    "the daemon does not run": (
        {"answers": {INFO: fails(NO_DAEMON)}},
        ("engine-daemon", "failed", "sudo systemctl enable --now docker"),
    ),
    "the daemon does not run, Alpine": (
        {"answers": {INFO: fails(NO_DAEMON)}, "distribution": "alpine"},
        (
            "engine-daemon",
            "failed",
            "sudo rc-update add docker && sudo service docker start",
        ),
    ),
    "not in the docker group": (
        {"answers": {INFO: fails(NOT_ALLOWED)}},
        (
            "engine-permission",
            "failed",
            "sudo usermod -aG docker $USER   # then log out and in again",
        ),
    ),
    "docker is down and podman is up": (
        {"answers": {INFO: fails(NO_DAEMON), **PODMAN_FINE}},
        ("engine-daemon", "warning", "sudo systemctl enable --now docker"),
    ),
    "an engine on another machine": (
        {"answers": {CONTEXT: says("ssh://ada@far.example")}},
        (
            "engine-daemon",
            "failed",
            "unset DOCKER_HOST DOCKER_CONTEXT; docker context use default",
        ),
    ),
    "no Compose, Ubuntu": (
        {"answers": {COMPOSE: fails(NO_COMPOSE_PLUGIN)}, "distribution": "ubuntu"},
        ("compose", "failed", "sudo apt-get install docker-compose-v2"),
    ),
    "Compose 1": (
        {"answers": {COMPOSE: says("1.29.2")}},
        ("compose", "failed", "sudo apt-get install docker-compose-plugin"),
    ),
    "no toolkit, Debian": (
        {"gpu": True, "answers": {CTK: None, INFO: says(json.dumps(DOCKER_INFO))}},
        (
            "toolkit",
            "failed",
            "sudo apt-get install nvidia-container-toolkit && sudo nvidia-ctk runtime configure "
            "--runtime=docker && sudo systemctl restart docker",
        ),
    ),
    "a toolkit with the hole": (
        {"gpu": True, "answers": {CTK: says("NVIDIA Container Toolkit CLI version 1.17.7")}},
        (
            "toolkit",
            "warning",
            "sudo apt-get update && sudo apt-get install --only-upgrade nvidia-container-toolkit",
        ),
    ),
    "docker was not told of the toolkit": (
        {"gpu": True, "answers": {INFO: says(json.dumps(DOCKER_INFO))}},
        (
            "gpu-passing",
            "failed",
            "sudo nvidia-ctk runtime configure --runtime=docker && sudo systemctl restart docker",
        ),
    ),
    "podman without CDI": (
        {"gpu": True, "answers": {**NO_DOCKER, **PODMAN_FINE}},
        (
            "cdi",
            "failed",
            "sudo nvidia-ctk cdi generate --output=/etc/cdi/nvidia.yaml",
        ),
    ),
    "CDI of an older driver": (
        {
            "gpu": True,
            "files": {"etc/cdi/nvidia.yaml": SPEC.format("570.86.10")},
            "answers": {**NO_DOCKER, **PODMAN_FINE},
        },
        (
            "cdi",
            "failed",
            "sudo nvidia-ctk cdi generate --output=/etc/cdi/nvidia.yaml",
        ),
    ),
    "rootless docker, not set up for it": (
        {"gpu": True, "answers": {INFO: says(json.dumps(ROOTLESS))}},
        (
            "cgroups",
            "warning",
            "sudo nvidia-ctk config --in-place --set nvidia-container-cli.no-cgroups=true "
            "&& systemctl --user restart docker",
        ),
    ),
    "docker as root, set up for rootless": (
        {
            "gpu": True,
            "files": {"etc/nvidia-container-runtime/config.toml": LOCKED},
            "answers": {INFO: says(json.dumps({**DOCKER_INFO, "Runtimes": {"nvidia": {}}}))},
        },
        (
            "cgroups",
            "failed",
            "sudo nvidia-ctk config --in-place --set nvidia-container-cli.no-cgroups=false "
            "&& sudo systemctl restart docker",
        ),
    ),
    "SELinux that keeps devices out": (
        {
            "gpu": True,
            "distribution": "fedora",
            "files": {
                "sys/fs/selinux/enforce": "1",
                "sys/fs/selinux/booleans/container_use_devices": "0 0",
            },
        },
        ("selinux", "warning", "sudo setsebool -P container_use_devices on"),
    ),
    "little shared memory": (
        {"total_bytes": lambda path: 64 * 2**20, "files": {".dockerenv": ""}},
        ("shm", "warning", "LABKIT_SHM_SIZE=2g make down up"),
    ),
    "a full disk": (
        {"free_bytes": lambda path: 10 * 2**20},
        ("disk", "failed", "df -h && docker system prune"),
    ),
    "a disk that is nearly full": (
        {"free_bytes": lambda path: 3 * GIB},
        ("disk", "warning", "df -h && docker system prune"),
    ),
    "a small machine": (
        {"files": {"proc/meminfo": "MemTotal: 1000000 kB\nMemAvailable: 800000 kB\n"}},
        ("memory", "warning", "free -h   # close what is not needed"),
    ),
    "a busy port": (
        {"is_port_free": lambda address, port: False},
        ("port", "warning", "make up   # takes the next free port, and prints it"),
    ),
    "a busy port that was asked for": (
        {"is_port_free": lambda address, port: False, "port_asked": True},
        ("port", "failed", "ss -ltnp   # or another PORT="),
    ),
    "no name server": (
        {"resolve": lambda name: gone()},
        ("dns", "warning", "resolvectl status || cat /etc/resolv.conf"),
    ),
    "an inspecting proxy": (
        {"reach": refuse},
        (
            "index",
            "warning",
            "LABKIT_CA_FILE=/path/to/that-proxy.pem make up   # a build then trusts it too",
        ),
    ),
    "a certificate file that is gone": (
        {"environment": {"SSL_CERT_FILE": "/etc/ssl/company.pem"}},
        ("certificates", "failed", "unset SSL_CERT_FILE"),
    ),
    "a proxy on this very machine": (
        {"environment": {"https_proxy": "http://127.0.0.1:3128"}},
        (
            "certificates",
            "warning",
            "export https_proxy=http://<this host's address>:<port>",
        ),
    ),
    "a daemon that hangs": (
        {"answers": {INFO: hangs("docker", 3)}},
        ("engine-daemon", "unknown", "sudo systemctl restart docker   # where it hangs"),
    ),
    "an nvidia-smi that hangs": (
        {"gpu": True, "answers": {SMI_QUERY: hangs("nvidia-smi", 3)}},
        (
            "driver-library",
            "unknown",
            "sudo dmesg | grep -i xid   # if the GPU hangs: reboot",
        ),
    ),
}


@pytest.mark.parametrize(("host", "verdict"), BROKEN.values(), ids=BROKEN.keys())
def test_a_broken_host_gets_its_one_verdict_and_its_fix(tmp_path, host, verdict):
    examination = examine_host(play_host(tmp_path, **host), CHECKS)
    alarms = [
        (each.check, each.status, read_command(each.fix))
        for each in examination.findings
        if each.status not in ("ok", "skipped")
    ]
    # This one, and no false alarm beside it.
    assert alarms == [(*verdict[:2], read_command(verdict[2]))]
    assert examination.healthy == (verdict[1] != "failed")


def find(examination, name):
    """The finding of the check of this name."""
    return next(each for each in examination.findings if each.check == name)


def test_without_a_gpu_its_checks_are_not_made(tmp_path):
    host = play_host(tmp_path)
    examination = examine_host(host, CHECKS)
    assert find(examination, "gpu-bus").found == "no NVIDIA GPU on the bus; the lab uses the CPU"
    for name in ("driver", "driver-library", "device-nodes", "nvidia-uvm", "toolkit", "selinux"):
        assert find(examination, name).status == "skipped"
        assert find(examination, name).found == "because no NVIDIA GPU on the bus"
    assert not any(call.startswith("nvidia") for call in host.run_long.calls)


def test_checks_that_need_a_failed_one_are_skipped_with_the_reason(tmp_path):
    host = play_host(tmp_path, gpu=True, answers={INFO: fails(NOT_ALLOWED)})
    examination = examine_host(host, CHECKS)
    for name in ("engine-daemon", "compose", "toolkit", "gpu-passing"):
        assert find(examination, name).found == "because engine-permission failed"
    assert find(examination, "driver").status == "ok"


def test_offline_asks_nobody(tmp_path):
    asked = []
    host = play_host(tmp_path, resolve=asked.append, reach=asked.append)
    names = {each.check for each in examine_host(host, CHECKS, offline=True).findings}
    assert asked == []
    assert {check.name for check in CHECKS} - names == {"dns", "index"}


def test_failures_are_shown_last_and_counted(tmp_path):
    host = play_host(tmp_path, free_bytes=lambda path: 1, is_port_free=lambda address, port: False)
    examination = examine_host(host, CHECKS)
    screen = format_examination(examination).splitlines()
    assert screen[-8:-1] == [
        "warning  port              port 8888 is taken",
        " " * 27 + "cause: another program listens on it, which does not accept this lab's token",
        " " * 27 + "try: make up   # takes the next free port, and prints it",
        f"failed   disk              1 B free at {tmp_path}/home/ada/work",
        " " * 27 + "cause: the disk is almost full",
        " " * 27 + "try: df -h && docker system prune",
        "",
    ]
    assert screen[-1] == "33 checks: 12 ok, 19 skipped, 1 warning, 1 failed"


GARBAGE = CommandResult(("x",), 0, "\x00\ufffd{[}\n,,,\n\x1b[31m" * 99, "\xff" * 99)


@pytest.mark.parametrize(
    "answer",
    [
        pytest.param(GARBAGE, id="garbage"),
        pytest.param(says("null"), id="null"),
        pytest.param(says("[]"), id="a list"),
        pytest.param(says('{"Runtimes": 3, "SecurityOptions": 7, "host": 1}'), id="odd JSON"),
        pytest.param(CommandResult(("x",), -9), id="killed"),
        pytest.param(says(""), id="silence"),
    ],
)
def test_whatever_commands_print_every_check_comes_back(tmp_path, answer):
    programs = ("docker", "podman", "nvidia-smi", "nvidia-ctk", "modinfo")
    files = dict.fromkeys(("proc/modules", "proc/meminfo"), "\x00ÿ,:=\n" * 50)
    files |= {"proc/self/cgroup": "garbage", "etc/os-release": "'"}
    host = play_host(tmp_path, gpu=True, files=files, answers={})
    fake = host.run_long
    fake.answers = dict.fromkeys(programs, answer)
    examination = examine_host(host, CHECKS)
    assert [each.check for each in examination.findings] == [check.name for check in CHECKS]
    assert format_examination(examination)


def test_commands_that_never_end_do_not_hold_up_the_doctor(tmp_path):
    let_go = threading.Event()

    def never(arguments, *, timeout_seconds):
        let_go.wait(30)
        return CommandResult(tuple(arguments), None, timed_out=True)

    host = dataclasses.replace(play_host(tmp_path, gpu=True), run=OnceRunner(never))
    started = time.monotonic()
    examination = examine_host(host, CHECKS, limit_scale=0.05)
    let_go.set()
    assert time.monotonic() - started < 5
    assert find(examination, "driver").found == "no answer in time"
    assert find(examination, "driver-library").found == "because driver is unknown"
    assert find(examination, "memory").status == "ok"
    assert len(examination.findings) == len(CHECKS)


def test_real_programs_that_hang_are_ended_at_their_limit(tmp_path, monkeypatch):
    for name in ("docker", "podman", "nvidia-smi", "nvidia-ctk", "modinfo"):
        write_program(tmp_path / "bin", name, "exec sleep 60")
    monkeypatch.setenv("PATH", f"{tmp_path / 'bin'}:/usr/bin:/bin")
    host = play_host(tmp_path / "root", gpu=True, files={"proc/driver/nvidia/version": None})
    host = dataclasses.replace(host, run=OnceRunner(run_command, limit_seconds=0.3))
    started = time.monotonic()
    examination = examine_host(host, CHECKS)
    assert time.monotonic() - started < 8
    assert find(examination, "driver").status == "unknown"
    assert find(examination, "engine-daemon").status == "unknown"


def test_each_command_is_asked_once_and_never_again_after_it_hung(tmp_path):
    host = play_host(tmp_path, gpu=True)
    examine_host(host, CHECKS)
    # The image is asked for once more by the trial of it, which knows nothing of the checks.
    calls = [call for call in host.run_long.calls if "image inspect" not in call]
    assert len(calls) == len(set(calls))

    host = play_host(tmp_path / "hung", answers={INFO: hangs("docker")})
    examine_host(host, CHECKS)
    assert [call for call in host.run_long.calls if call.startswith("docker")] == [
        "docker info --format {{json .}}"
    ]
    assert max(host.run_long.limits) <= 3


def test_the_doctor_changes_no_file(tmp_path):
    host = play_host(tmp_path, gpu=True)

    def list_all():
        return {
            path: (path.stat().st_mtime_ns, path.stat().st_mode) for path in tmp_path.rglob("*")
        }

    before = list_all()
    examine_host(host, CHECKS)
    assert list_all() == before


def test_the_runtime_of_the_recorded_host_is_known():
    assert "nvidia" in json.loads(WITH_RUNTIME[INFO].stdout)["Runtimes"]

"""GPU hosts by the faults that people meet, each played with the very texts they report."""

from __future__ import annotations

import dataclasses
import json
import sys

import pytest

from labkit.doctor.checks import CHECKS
from labkit.doctor.checks import system as system_module
from labkit.doctor.checks import torch as torch_build_check
from labkit.doctor.run import examine_host
from labkit.host.torch_builds import InstalledTorch
from labkit.process import CommandResult
from tests.fakes.host import (
    ADA,
    COMPOSE,
    CONTEXT,
    DOCKER_INFO,
    INFO,
    NO_DAEMON,
    PODMAN_FINE,
    SMI,
    fails,
    hangs,
    says,
)
from tests.fakes.sick_hosts import (
    CARD_FILES,
    CTK,
    DRIVER,
    ECC,
    GPU_FILES,
    GPU_LINE,
    IN_DOCKER,
    IN_DOCKER_BY_CDI,
    IN_PODMAN,
    LIBRARY,
    SMI_LIST,
    SMI_QUERY,
    SPEC,
    lists,
    play_host,
    read_command,
)

RUNTIME = {"runc": {}, "nvidia": {"path": "nvidia-container-runtime"}}
NO_DOCKER = {INFO: None, COMPOSE: None, CONTEXT: None}
NO_SMI = dict.fromkeys((SMI_QUERY, SMI_LIST, ECC))
PODMAN = {**NO_DOCKER, **PODMAN_FINE}
PODMAN_ROOTFUL = {
    **PODMAN,
    "podman info": says('{"version": {"Version": "5.4.2"}, "host": {"security": {}}}'),
}
SPEC_FILES = {"etc/cdi/nvidia.yaml": SPEC.format(DRIVER), LIBRARY.format(DRIVER): ""}
SECURE_BOOT = "sys/firmware/efi/efivars/SecureBoot-8be4df61-93ca-11d2-aa0d-00e098032b8c"
MIG_PARTS = (
    "GPU 0: NVIDIA H200 (UUID: GPU-f0a1b2c3-0000-1111-2222-333344445555)\n"
    "  MIG 3g.71gb     Device  0: (UUID: MIG-51c2b1b8-9b65-5f2f-8a0b-5c2a2d6d9a11)\n"
    "  MIG 3g.71gb     Device  1: (UUID: MIG-51c2b1b8-9b65-5f2f-8a0b-5c2a2d6d9a12)"
)
SELF_TEST = f"{sys.executable} -m labkit.devices.self_test"
PASSED = {step: {"words": "right"} for step in ("device", "allocate", "compute", "compile")}


def report(**events):
    """What the self-test prints: an event for each step."""
    return says("\n".join(json.dumps({"step": step, **event}) for step, event in events.items()))


HELD = report(**PASSED)
TOOLKIT = (
    "sudo apt-get install nvidia-container-toolkit && sudo nvidia-ctk runtime configure "
    "--runtime=docker && sudo systemctl restart docker"
)
NEW_DRIVER = "sudo apt-get install nvidia-driver   # 580 or newer: from NVIDIA; then reboot"
OLDER_BUILD = "pip install torch --index-url https://download.pytorch.org/whl/cu126"
PASCAL = "NVIDIA GeForce GTX 1080, 6.1, [N/A]"
BLACKWELL = "NVIDIA GeForce RTX 5090, 12.0, [N/A]"
REFUSED = 'Field "compute_cap" is not a valid field to query.'
SMI_DOWN = fails("Unable to determine the device handle for GPU0: 0000:01:00.0: Unknown Error", 15)
XID_79 = (
    "[    4.1] NVRM: loading NVIDIA UNIX Open Kernel Module for x86_64  580.95.05\n"
    "[88123.4] NVRM: Xid (PCI:0000:01:00): 79, pid=2212, GPU has fallen off the bus."
)


def driver(version, gpu="Tesla T4, 7.5, [N/A]"):
    """The files and answers of a host with this driver loaded, and this GPU."""
    text = f"NVRM version: NVIDIA UNIX Kernel Module  {version}  x"
    return {
        "files": {"proc/driver/nvidia/version": text},
        "answers": {SMI_QUERY: lists(gpu, driver=version)},
    }


def docker(**changes):
    """`docker info` with these of its fields changed."""
    return says(json.dumps({**DOCKER_INFO, "Runtimes": RUNTIME, **changes}))


def refuses(*texts):
    """An engine whose containers do not start, with its words for each way that is tried."""
    prefix = "docker: Error response from daemon: "
    first, second = (texts * 2)[:2]
    return {
        IN_DOCKER: fails(prefix + first, 125),
        IN_DOCKER_BY_CDI: fails(prefix + second, 125),
        IN_PODMAN: fails("Error: " + first, 126),
    }


def hook(text):
    """What runc says where the toolkit's hook failed with this text."""
    return (
        "failed to create task for container: OCI runtime create failed: runc create failed: "
        "error running prestart hook #0: exit status 1, stderr: Auto-detected mode as 'legacy'\n"
        f"nvidia-container-cli: {text}: unknown"
    )


# What is played: settings of the host, and the torch in its Python (None: there is none).
HEALTHY = {
    "an RTX 4090, Docker with the toolkit": ({}, None),
    "an H200 cut into parts by MIG": (
        {"answers": {SMI_QUERY: lists("NVIDIA H200, 9.0, Enabled"), SMI_LIST: says(MIG_PARTS)}},
        None,
    ),
    "a B200 with driver 580": (
        {"answers": {SMI_QUERY: lists("NVIDIA B200, 10.0, Disabled")}},
        None,
    ),
    "a GTX 1080 with driver 580": ({"answers": {SMI_QUERY: lists(PASCAL)}}, None),
    "a Tesla V100 with driver 535": (
        driver("535.230.02", "Tesla V100-SXM2-16GB, 7.0, [N/A]"),
        None,
    ),
    "a driver that does not know compute capabilities": (
        {
            "answers": {
                f"{SMI_QUERY},driver_version,index,uuid,compute_cap": fails(REFUSED, 2),
                f"{SMI_QUERY},driver_version,index,uuid,mig": fails(REFUSED, 2),
                ECC: fails('Field "ecc.errors" is not a valid field to query.', 2),
            }
        },
        None,
    ),
    "rootless Podman with CDI, Fedora": (
        {"distribution": "fedora", "files": SPEC_FILES, "answers": PODMAN},
        None,
    ),
    "Podman as root with a specification that only root reads": (
        {"files": {"etc/cdi/nvidia.yaml/x": ""}, "answers": {**PODMAN_ROOTFUL}},
        None,
    ),
    "Docker 29 with CDI alone": (
        {"files": SPEC_FILES, "answers": {INFO: says('{"ServerVersion": "29.1.0"}')}},
        None,
    ),
    "Docker's runtime refuses, and CDI works": (
        {
            "files": SPEC_FILES,
            "answers": {
                INFO: docker(CDISpecDirs=["/etc/cdi"]),
                IN_DOCKER: refuses(hook("mount error: x"))[IN_DOCKER],
            },
        },
        None,
    ),
    "the kernel's log may be read, and is clean": (
        {"answers": {"dmesg": says("[ 3.2] NVRM: loading NVIDIA UNIX Open Kernel Module")}},
        None,
    ),
    "a program of the user's crashed on the GPU": (
        {"answers": {"dmesg": says("[ 9.1] NVRM: Xid (PCI:0000:01:00): 31, pid=7, MMU Fault")}},
        None,
    ),
    "no image is here yet": (
        {"answers": {"docker image inspect": fails("Error: No such image: labkit:cuda")}},
        None,
    ),
    "Ubuntu's snap with a toolkit of its own": (
        {
            "distribution": "ubuntu",
            "answers": {CTK: None, INFO: docker(DockerRootDir="/var/snap/docker/common/var-lib")},
        },
        None,
    ),
    "WSL2 with Docker Desktop": (
        {
            "files": dict.fromkeys(GPU_FILES)
            | {"dev/dxg": "", "proc/version": "Linux version 6.6.87.2-microsoft-standard-WSL2"},
            "answers": {CTK: None, INFO: docker(OperatingSystem="Docker Desktop")},
        },
        None,
    ),
    "Secure Boot with a signed driver": ({"files": {SECURE_BOOT: "\x06\0\0\0\x01"}}, None),
    "inside the CUDA lab, the GPU passed on": (
        {
            "answers": {**NO_DOCKER, SELF_TEST: HELD},
            "files": {".dockerenv": ""},
            "environment": {"LABKIT_IN_CONTAINER": "1", "NVIDIA_VISIBLE_DEVICES": "all"},
        },
        InstalledTorch("2.13.0+cu130", "13.0"),
    ),
    "inside the CPU lab on a GPU host": (
        {
            "answers": {
                **NO_DOCKER,
                **NO_SMI,
                SELF_TEST: HELD,
            },
            "files": {".dockerenv": "", "dev/nvidiactl": None, "dev/nvidia0": None},
            "environment": {"LABKIT_IN_CONTAINER": "1"},
        },
        InstalledTorch("2.13.0+cpu"),
    ),
}

# Each broken host: its settings and torch; then every alarm: the check, its verdict, the fix.
BROKEN = {
    "no toolkit": (
        {"answers": {CTK: None, INFO: says(json.dumps(DOCKER_INFO))}},
        None,
        [("toolkit", "failed", TOOLKIT)],
    ),
    "the toolkit set up, docker not restarted": (
        {
            "files": {"etc/docker/daemon.json": json.dumps({"runtimes": RUNTIME})},
            "answers": {INFO: says(json.dumps(DOCKER_INFO))},
        },
        None,
        [("gpu-passing", "failed", "sudo systemctl restart docker")],
    ),
    "the runtime is known, and the container gets no GPU": (
        {
            "answers": refuses(
                'could not select device driver "" with capabilities: [[gpu]].',
                "CDI device injection failed: unresolvable CDI devices nvidia.com/gpu=all",
            )
        },
        None,
        [("container-gpu", "failed", TOOLKIT)],
    ),
    "snap's docker": (
        {
            "distribution": "ubuntu",
            "answers": {
                INFO: docker(Runtimes={}, DockerRootDir="/var/snap/docker/common/var-lib-docker")
            },
        },
        None,
        [
            (
                "engine-kind",
                "failed",
                "sudo snap remove docker && sudo apt-get install docker.io docker-compose-v2",
            )
        ],
    ),
    "the desktop-linux context": (
        {"answers": {INFO: docker(OperatingSystem="Docker Desktop")}},
        None,
        [("engine-kind", "failed", "docker context use default")],
    ),
    "a remote docker context": (
        {"answers": {CONTEXT: says("ssh://ada@far.example")}},
        None,
        [
            (
                "engine-daemon",
                "failed",
                "unset DOCKER_HOST DOCKER_CONTEXT; docker context use default",
            )
        ],
    ),
    "the driver's library is out of the engine's sight": (
        {
            "answers": refuses(
                hook(
                    "initialization error: load library failed: libnvidia-ml.so.1: cannot open "
                    "shared object file: no such file or directory"
                )
            )
        },
        None,
        [("container-gpu", "failed", NEW_DRIVER)],
    ),
    "an image that asks for a newer CUDA": (
        {
            "answers": refuses(
                hook("requirement error: unsatisfied condition: cuda>=12.8, please update")
            )
        },
        None,
        [("container-gpu", "failed", NEW_DRIVER)],
    ),
    "rootless docker, cgroups not left alone": (
        {
            "answers": {
                INFO: docker(SecurityOptions=["name=rootless"]),
                **refuses(
                    hook(
                        "mount error: failed to add device rules: unable to find any existing "
                        "device filters attached to the cgroup: "
                        "bpf_prog_query(BPF_CGROUP_DEVICE) failed: operation not permitted"
                    )
                ),
            }
        },
        None,
        [
            (
                "cgroups",
                "warning",
                "sudo nvidia-ctk config --in-place --set nvidia-container-cli.no-cgroups=true "
                "&& systemctl --user restart docker",
            ),
            (
                "container-gpu",
                "failed",
                "sudo nvidia-ctk config --in-place --set nvidia-container-cli.no-cgroups=true "
                "&& systemctl --user restart docker",
            ),
        ],
    ),
    "no-cgroups under docker as root": (
        {
            "files": {"etc/nvidia-container-runtime/config.toml": "no-cgroups = true\n"},
            "answers": refuses("Failed to initialize NVML: Unknown Error"),
        },
        None,
        [
            (
                "cgroups",
                "failed",
                "sudo nvidia-ctk config --in-place --set nvidia-container-cli.no-cgroups=false "
                "&& sudo systemctl restart docker",
            )
        ],
    ),
    "SELinux keeps the container out": (
        {
            "distribution": "fedora",
            "files": {
                **SPEC_FILES,
                "sys/fs/selinux/enforce": "1",
                "sys/fs/selinux/booleans/container_use_devices": "0 0",
            },
            "answers": {
                **PODMAN,
                IN_PODMAN: fails("Failed to initialize NVML: Insufficient Permissions", 4),
            },
        },
        None,
        [
            ("selinux", "warning", "sudo setsebool -P container_use_devices on"),
            ("container-gpu", "failed", "sudo setsebool -P container_use_devices on"),
        ],
    ),
    "WSL2, blocked inside the container": (
        {
            "files": dict.fromkeys(GPU_FILES) | {"dev/dxg": ""},
            "answers": {
                CTK: None,
                IN_DOCKER: says(
                    "Failed to initialize NVML: GPU access blocked by the operating system"
                ),
                IN_DOCKER_BY_CDI: fails("unresolvable CDI devices nvidia.com/gpu=all", 125),
            },
        },
        None,
        [
            (
                "container-gpu",
                "failed",
                "wsl.exe --update && wsl.exe --shutdown   # in Windows, with its NVIDIA driver "
                "current",
            )
        ],
    ),
    "a container without nvidia-smi": (
        {"answers": refuses('exec: "nvidia-smi": executable file not found in $PATH: unknown.')},
        None,
        [("container-gpu", "failed", "labkit doctor   # on the host: shows where the GPU is lost")],
    ),
    "an engine that says something new": (
        {
            "answers": refuses(
                "the moon is in the wrong phase",
                'could not select device driver "cdi" with capabilities: [].',
            )
        },
        None,
        [
            (
                "container-gpu",
                "failed",
                "docker run --rm --gpus all --entrypoint nvidia-smi labkit:cuda   "
                "# says it in full",
            )
        ],
    ),
    "a container that never starts": (
        {"answers": {IN_DOCKER: hangs("docker", 5), IN_DOCKER_BY_CDI: hangs("docker", 5)}},
        None,
        [
            (
                "container-gpu",
                "unknown",
                "labkit doctor --deep   # gives a container a minute to start",
            )
        ],
    ),
    "MIG on, and no part made": (
        {"answers": {SMI_QUERY: lists("NVIDIA H200, 9.0, Enabled"), SMI_LIST: says(GPU_LINE)}},
        None,
        [
            (
                "mig",
                "failed",
                "sudo nvidia-smi mig -i 0 -cgi 0 -C   "
                "# one instance of the whole GPU; or turn MIG off: sudo nvidia-smi -i 0 -mig 0",
            )
        ],
    ),
    "updated without a reboot": (
        {
            "answers": {
                SMI_QUERY: CommandResult(
                    ("nvidia-smi",),
                    18,
                    "Failed to initialize NVML: Driver/library version mismatch\n"
                    "NVML library version: 580.105\n",
                )
            }
        },
        None,
        [("driver-library", "failed", "sudo reboot")],
    ),
    "installed and not loaded": (
        {
            "files": dict.fromkeys(GPU_FILES) | CARD_FILES,
            "answers": {SMI_QUERY: None, "modinfo": says(DRIVER)},
        },
        None,
        [("driver", "failed", "sudo modprobe nvidia   # where it refuses, it says why")],
    ),
    "Secure Boot refuses the module": (
        {
            "distribution": "ubuntu",
            "files": dict.fromkeys(GPU_FILES) | CARD_FILES | {SECURE_BOOT: "\x06\0\0\0\x01"},
            "answers": {SMI_QUERY: None, "modinfo": says(DRIVER)},
        },
        None,
        [
            (
                "driver",
                "failed",
                "sudo update-secureboot-policy --enroll-key   # then reboot and enroll it",
            )
        ],
    ),
    "nouveau was first, NVIDIA's driver is installed": (
        {
            "files": dict.fromkeys(GPU_FILES)
            | CARD_FILES
            | {"proc/modules": "nouveau 3 0 - Live 0x0\n"},
            "answers": {SMI_QUERY: None, "modinfo": says(DRIVER)},
        },
        None,
        [
            (
                "driver",
                "failed",
                "echo blacklist nouveau | sudo tee /etc/modprobe.d/no-nouveau.conf "
                "&& sudo update-initramfs -u   # then reboot",
            )
        ],
    ),
    "uvm is missing": (
        {"files": {"dev/nvidia-uvm": None, "proc/modules": "nvidia 1 0 - Live 0\n"}},
        None,
        [("nvidia-uvm", "warning", "sudo nvidia-modprobe -u -c=0 || sudo modprobe nvidia-uvm")],
    ),
    "a driver of 2021": (
        driver("470.256.02"),
        None,
        [("driver", "failed", NEW_DRIVER)],
    ),
    "an RTX 5090 with driver 570": (
        driver("570.86.10", BLACKWELL),
        None,
        [("cuda-build", "failed", NEW_DRIVER)],
    ),
    "an RTX 5090 with the closed module": (
        {
            "answers": {
                "dmesg": says(
                    "[ 5.1] NVRM: The NVIDIA GPU 0000:01:00.0 (PCI ID: 10de:2b85)\n"
                    "[ 5.1] NVRM: installed in this system requires use of the NVIDIA open kernel "
                    "modules."
                )
            }
        },
        None,
        [("gpu-health", "failed", "sudo apt-get install nvidia-open-kernel-dkms   # then reboot")],
    ),
    "a GPU of 2012": (
        {"answers": {SMI_QUERY: lists("Tesla K40c, 3.5, [N/A]")}},
        None,
        [("cuda-build", "warning", "make up FLAVOR=cpu")],
    ),
    "a GTX 1080 beside an RTX 5090": (
        {"answers": {SMI_QUERY: lists(PASCAL, BLACKWELL)}},
        None,
        [
            (
                "cuda-build",
                "warning",
                "nvidia-smi -L   # then choose those that go together: make up GPUS=0",
            )
        ],
    ),
    "a GTX 1080 with a torch of CUDA 13": (
        {"answers": {SMI_QUERY: lists(PASCAL)}},
        InstalledTorch("2.13.0+cu130", "13.0"),
        [("torch-build", "failed", OLDER_BUILD)],
    ),
    "a torch of CUDA 13 on driver 550": (
        driver("550.163.01"),
        InstalledTorch("2.13.0+cu130", "13.0"),
        [("torch-build", "failed", OLDER_BUILD)],
    ),
    "CDI of the driver before": (
        {"files": {"etc/cdi/nvidia.yaml": SPEC.format("570.86.10")}, "answers": PODMAN},
        None,
        [("cdi", "failed", "sudo nvidia-ctk cdi generate --output=/etc/cdi/nvidia.yaml")],
    ),
    "CDI that names files that are gone": (
        {"files": {"etc/cdi/nvidia.yaml": SPEC.format(DRIVER)}, "answers": PODMAN},
        None,
        [("cdi", "failed", "sudo nvidia-ctk cdi generate --output=/etc/cdi/nvidia.yaml")],
    ),
    "Podman without CDI": (
        {"answers": PODMAN},
        None,
        [("cdi", "failed", "sudo nvidia-ctk cdi generate --output=/etc/cdi/nvidia.yaml")],
    ),
    "CDI on a docker that has it switched off": (
        {
            "files": SPEC_FILES,
            "answers": {INFO: docker(Runtimes={"runc": {}}, CDISpecDirs=[])},
        },
        None,
        [
            (
                "gpu-passing",
                "failed",
                "sudo nvidia-ctk runtime configure --runtime=docker --cdi.enabled "
                "&& sudo systemctl restart docker",
            )
        ],
    ),
    "off the bus": (
        {"answers": {SMI_QUERY: SMI_DOWN, "dmesg": says(XID_79)}},
        None,
        [
            (
                "gpu-health",
                "failed",
                "sudo dmesg | grep -i xid   # then power off, reseat the card and start again",
            ),
            (
                "driver-library",
                "failed",
                "sudo dmesg | grep -i xid   # then power off, reseat the card and start again",
            ),
        ],
    ),
    "memory errors that nothing corrects": (
        {"answers": {ECC: says("0, 3")}},
        None,
        [
            (
                "gpu-health",
                "warning",
                "nvidia-smi -q -d ECC,ROW_REMAPPER   "
                "# a reset clears it; if it comes back, replace it",
            )
        ],
    ),
    "memory errors in the journal alone": (
        {
            "answers": {
                "journalctl": says("kernel: NVRM: Xid (PCI:0000:01:00): 48, Double Bit ECC Error")
            }
        },
        None,
        [
            (
                "gpu-health",
                "warning",
                "nvidia-smi -q -d ECC,ROW_REMAPPER   # reset the GPU; if it comes back, replace it",
            )
        ],
    ),
    "an nvidia-smi that hangs": (
        {"answers": {SMI: hangs("nvidia-smi", 3), SMI_QUERY: hangs("nvidia-smi", 3)}},
        None,
        [("driver-library", "unknown", "sudo dmesg | grep -i xid   # if the GPU hangs: reboot")],
    ),
    "a macOS machine whose Docker is not started": (
        {
            "files": dict.fromkeys((*GPU_FILES, "proc/meminfo", "dev/shm/.keep")),
            "answers": {INFO: fails(NO_DAEMON)},
            "machine": dataclasses.replace(ADA, system="Darwin", user_id=None),
        },
        None,
        [("engine-daemon", "failed", "open -a Docker")],
    ),
    "inside the CUDA lab, without the GPU": (
        {
            "answers": {**NO_DOCKER, **NO_SMI, SELF_TEST: HELD},
            "files": {".dockerenv": "", "dev/nvidiactl": None, "dev/nvidia0": None},
            "environment": {"LABKIT_IN_CONTAINER": "1", "NVIDIA_VISIBLE_DEVICES": "all"},
        },
        InstalledTorch("2.13.0+cu130", "13.0"),
        [
            (
                "gpu-bus",
                "warning",
                "make doctor   # on the host: shows where the GPU is lost",
            )
        ],
    ),
    "inside the CUDA lab, the GPU's programs left out": (
        {
            "answers": {**NO_DOCKER, **NO_SMI, SELF_TEST: HELD},
            "files": {".dockerenv": ""},
            "environment": {"LABKIT_IN_CONTAINER": "1"},
        },
        InstalledTorch("2.13.0+cu130", "13.0"),
        [
            (
                "driver-library",
                "warning",
                "NVIDIA_DRIVER_CAPABILITIES=compute,utility   # in the container's environment",
            )
        ],
    ),
    "inside the CUDA lab, uvm left out": (
        {
            "answers": {**NO_DOCKER, SELF_TEST: HELD},
            "files": {".dockerenv": "", "dev/nvidia-uvm": None},
            "environment": {"LABKIT_IN_CONTAINER": "1"},
        },
        InstalledTorch("2.13.0+cu130", "13.0"),
        [("nvidia-uvm", "warning", "make down up")],
    ),
}

# The error that the self-test reports on a broken host; the check that fails, its command.
TORCH_FAULTS = {
    "a driver that is too old": (
        "RuntimeError: The NVIDIA driver on your system is too old (found version 12040).",
        ("torch-allocation", OLDER_BUILD),
    ),
    "an architecture without code": (
        "RuntimeError: CUDA error: no kernel image is available for execution on the device",
        ("torch-allocation", f"{OLDER_BUILD}   # or cu130"),
    ),
    "error 803": (
        "RuntimeError: Unexpected error from cudaGetDeviceCount(). Error 803: system has "
        "unsupported display driver / cuda driver combination",
        ("torch-allocation", "sudo reboot"),
    ),
    "error 804": (
        "RuntimeError: Error 804: forward compatibility was attempted on non supported HW",
        ("torch-allocation", "unset LD_LIBRARY_PATH   # or take the cuda/compat folder out of it"),
    ),
    "no fabric manager": (
        "RuntimeError: Error 802: system not yet initialized",
        ("torch-allocation", "sudo systemctl enable --now nvidia-fabricmanager"),
    ),
    "no compiler": (
        "RuntimeError: Failed to find C compiler. Please specify via CC environment variable",
        ("torch-compile", "sudo apt-get install g++ python3-dev"),
    ),
    "no headers": (
        "main.c:5:10: fatal error: Python.h: No such file or directory",
        ("torch-compile", "sudo apt-get install g++ python3-dev"),
    ),
    "a cache that runs nothing": (
        "ImportError: /tmp/torchinductor_ada/x.so: failed to map segment from shared object",
        (
            "torch-compile",
            "export TORCHINDUCTOR_CACHE_DIR=/cache/inductor   # or mount it as /tmp:exec",
        ),
    ),
}


def examine(tmp_path, monkeypatch, settings, torch):
    """Every alarm on the played host with a GPU, and the whole examination."""
    monkeypatch.setattr(torch_build_check, "read_torch_build", lambda: torch)
    examination = examine_host(play_host(tmp_path, gpu=True, **settings), CHECKS)
    alarms = [
        (each.check, each.status, read_command(each.fix))
        for each in examination.findings
        if each.status not in ("ok", "skipped")
    ]
    return alarms, examination


@pytest.mark.parametrize(("settings", "torch"), HEALTHY.values(), ids=HEALTHY.keys())
def test_no_false_alarm_on_a_healthy_host(tmp_path, monkeypatch, settings, torch):
    alarms, examination = examine(tmp_path, monkeypatch, settings, torch)
    assert alarms == []
    assert examination.healthy


@pytest.mark.parametrize(("settings", "torch", "verdicts"), BROKEN.values(), ids=BROKEN.keys())
def test_a_broken_host_gets_its_verdict_and_its_fix(
    tmp_path, monkeypatch, settings, torch, verdicts
):
    alarms, examination = examine(tmp_path, monkeypatch, settings, torch)
    # These, and no false alarm beside them.
    assert alarms == [(*verdict[:2], read_command(verdict[2])) for verdict in verdicts]
    assert examination.healthy == all(status != "failed" for _, status, _ in verdicts)


@pytest.mark.parametrize(("text", "verdict"), TORCH_FAULTS.values(), ids=TORCH_FAULTS.keys())
def test_a_fault_of_torch_is_known_by_its_error(tmp_path, monkeypatch, text, verdict):
    check, command = verdict
    step = {"torch-allocation": "allocate", "torch-compile": "compile"}[check]
    passed = dict(PASSED) if step == "compile" else {}
    answers = {SELF_TEST: report(**{**passed, step: {"error": text}})}
    torch = InstalledTorch("2.13.0+cu130", "13.0")
    alarms, _ = examine(tmp_path, monkeypatch, {"answers": answers}, torch)
    assert alarms == [(check, "failed", read_command(command))]


def test_a_cache_on_a_mount_that_runs_nothing_is_found_beforehand(tmp_path, monkeypatch):
    monkeypatch.setattr(system_module, "is_noexec", lambda path: True)
    settings = {"answers": {SELF_TEST: HELD}}
    alarms, _ = examine(tmp_path, monkeypatch, settings, InstalledTorch("2.13.0+cu130", "13.0"))
    assert alarms == [
        (
            "caches",
            "failed",
            "export TORCHINDUCTOR_CACHE_DIR=$HOME/.cache/inductor TMPDIR=$HOME/.cache",
        )
    ]


def test_a_gpu_seen_from_a_container_is_said_so(tmp_path, monkeypatch):
    _, examination = examine(tmp_path, monkeypatch, {}, None)
    found = next(each for each in examination.findings if each.check == "container-gpu")
    assert found.found == "a container of labkit:cuda sees 1 GPU (by reservation)"


def test_no_image_is_pulled_to_try_a_gpu_in(tmp_path):
    answers = {"docker image inspect": fails("Error: No such image")}
    host = play_host(tmp_path, gpu=True, answers=answers, images=("labkit:cuda", "labkit:cpu"))
    found = next(
        each for each in examine_host(host, CHECKS).findings if each.check == "container-gpu"
    )
    assert (found.status, found.found) == (
        "skipped",
        "no image to test it with yet: make build",
    )
    assert not [call for call in host.run_long.calls if " pull " in call or " run " in call]

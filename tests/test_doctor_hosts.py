"""Whole hosts, healthy and broken, played to the doctor: the right verdicts and the right fixes."""

from __future__ import annotations

import dataclasses
import json
import os
import sys
import threading
import time

import pytest

from labkit.doctor.check import OnceRunner
from labkit.doctor.checks import CHECKS
from labkit.doctor.checks import system as system_module
from labkit.doctor.checks import torch as torch_build_check
from labkit.doctor.run import examine_host, format_examination
from labkit.host.torch_builds import InstalledTorch
from labkit.process import CommandResult, run_command
from tests.fakes.host import (
    ADA,
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
    DRIVER,
    ECC,
    GIB,
    GPU_ANSWERS,
    GPU_FILES,
    GPU_LINE,
    IN_DOCKER,
    IN_DOCKER_BY_CDI,
    IN_PODMAN,
    LIBRARY,
    REMAPPED,
    SMI_LIST,
    SMI_QUERY,
    SMI_STATE,
    SPEC,
    lists,
    play_host,
    state,
)

RUNTIME = {"runc": {}, "nvidia": {"path": "nvidia-container-runtime"}}
NO_DOCKER = {INFO: None, COMPOSE: None, CONTEXT: None}
NO_SMI = dict.fromkeys((SMI_QUERY, SMI_LIST, ECC, REMAPPED, SMI_STATE))
PODMAN = {**NO_DOCKER, **PODMAN_FINE}
PODMAN_ROOTFUL = {
    **PODMAN,
    "podman info": says('{"version": {"Version": "5.4.2"}, "host": {"security": {}}}'),
}
SPEC_FILES = {"etc/cdi/nvidia.yaml": SPEC.format(DRIVER), LIBRARY.format(DRIVER): ""}
OLD_SPEC = {"etc/cdi/nvidia.yaml": SPEC.format("570.86.10")}
WSL_FILES = dict.fromkeys(GPU_FILES) | {
    "dev/dxg": "",
    "proc/version": "Linux version 6.6.87.2-microsoft-standard-WSL2",
    "proc/modules": "",
}
SECURE_BOOT = {"sys/firmware/efi/efivars/SecureBoot-8be4df61": "\x06\0\0\0\x01"}
SELINUX = {"sys/fs/selinux/enforce": "1"}
DEVICES_ALLOWED = "sys/fs/selinux/booleans/container_use_devices"
TOOLKIT_CONFIG = "etc/nvidia-container-runtime/config.toml"
BARE = dict.fromkeys(GPU_FILES) | CARD_FILES
IN_LXC = {"run/systemd/container": "lxc\n"}
NO_NODES = dict.fromkeys(("dev/nvidiactl", "dev/nvidia0", "dev/nvidia-uvm"))
NO_CUDA_IN_WINDOWS = {"usr/lib/wsl/lib/libdxcore.so": ""}
NEWER_KERNEL = "lib/modules/6.12.63+deb13-amd64/modules.dep"
ARM = dataclasses.replace(ADA, architecture="aarch64", user_id=os.getuid())
MISMATCH = "Failed to initialize NVML: Driver/library version mismatch\n"
IN_LAB = {"LABKIT_IN_CONTAINER": "1"}
MIG_PARTS = (
    "GPU 0: NVIDIA H200 (UUID: GPU-f0a1b2c3-0000-1111-2222-333344445555)\n"
    "  MIG 3g.71gb     Device  0: (UUID: MIG-51c2b1b8-9b65-5f2f-8a0b-5c2a2d6d9a11)\n"
    "  MIG 3g.71gb     Device  1: (UUID: MIG-51c2b1b8-9b65-5f2f-8a0b-5c2a2d6d9a12)"
)
SELF_TEST = f"{sys.executable} -m labkit.devices.self_test"
PASSED = {step: {"words": "right"} for step in ("device", "allocate", "compute", "compile")}
CU130 = InstalledTorch("2.13.0+cu130", "13.0")
GTX_1080 = "NVIDIA GeForce GTX 1080, 6.1, [N/A]"
RTX_5090 = "NVIDIA GeForce RTX 5090, 12.0, [N/A]"
REFUSED = 'Field "compute_cap" is not a valid field to query.'
SMI_DOWN = fails("Unable to determine the device handle for GPU0: 0000:01:00.0: Unknown Error", 15)
XID = "[8.1] NVRM: Xid (PCI:0000:01:00): {}, pid=7, name=python"
SWITCH = {
    "sys/bus/pci/devices/0000:05:00.0/vendor": "0x10de\n",
    "sys/bus/pci/devices/0000:05:00.0/class": "0x068000\n",
}
MANAGER = "nv-fabricmanager --version"
ACTIVE = "systemctl is-active nvidia-fabricmanager"
SECOND = "sys/bus/pci/devices/0000:02:00.0"
TWO_CARDS = {f"{SECOND}/{name.rpartition('/')[2]}": text for name, text in CARD_FILES.items()}
IOMMU = {f"{place}/iommu_group/type": "DMA-FQ\n" for place in (CARD, SECOND)}
TOPOLOGY = {
    "nvidia-smi topo": says(" \tGPU0\tGPU1\n GPU0\tX\tOK\n GPU1\tOK\tX\n\nLegend:\n OK = Ok")
}


def report(**events):
    """What the self-test prints: an event for each step."""
    return says("\n".join(json.dumps({"step": step, **event}) for step, event in events.items()))


HELD = report(**PASSED)


def variant(kind, version=DRIVER):
    """The file of a loaded module of this variant and version."""
    word = "Open Kernel Module" if kind == "open" else "Kernel Module"
    return {"proc/driver/nvidia/version": f"NVRM version: NVIDIA UNIX {word}  {version}  x"}


def card(device):
    return {f"{CARD}/device": f"{device}\n"}


def driver(version, gpu="Tesla T4, 7.5, [N/A]"):
    """A host with this driver loaded, and this GPU."""
    return {
        "files": variant("closed", version),
        "answers": {SMI_QUERY: lists(gpu, driver=version)},
    }


def docker(**changes):
    """`docker info` with these of its fields changed."""
    return {INFO: says(json.dumps({**DOCKER_INFO, "Runtimes": RUNTIME, **changes}))}


ROOTLESS_SOCKET = "unix:///run/user/1000/docker.sock"
ROOTLESS_DOCKER = docker(SecurityOptions=["name=rootless"], Runtimes={"runc": {}})
ROOTLESS = docker(SecurityOptions=["name=rootless"])


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


def logs(*lines):
    return {"answers": {"dmesg": says("\n".join(lines))}}


def gone():
    raise OSError(-3, "Temporary failure in name resolution")


def refuse(address):
    raise OSError("[SSL: CERTIFICATE_VERIFY_FAILED] certificate verify failed: self signed")


def expire(address):
    raise OSError(
        "[SSL: CERTIFICATE_VERIFY_FAILED] certificate verify failed: certificate has expired"
    )


BUSY = {"is_port_free": lambda address, port: False}
# Each healthy host: nothing failed, nothing warned of, nothing unknown.
PLAIN = {
    "a laptop without a GPU": {},
    "without any engine": {"answers": NO_DOCKER},
    "Podman alone": {"answers": PODMAN},
    "Podman under docker's name": {"answers": {**PODMAN_AS_DOCKER, **PODMAN_FINE}},
    "an installed labkit without a checkout": {"workspace": None, "indexes": ()},
    "only the sound chip of a card": {
        "files": {f"{CARD}/vendor": "0x10de\n", f"{CARD}/class": "0x040300\n"}
    },
    "a GPU of AMD": {"files": {**CARD_FILES, f"{CARD}/vendor": "0x1002\n"}},
    "inside the lab's container": {
        "answers": NO_DOCKER,
        "files": {".dockerenv": ""},
        "environment": IN_LAB,
    },
    "the lab runs on its port": {"own_port": 8888, **BUSY},
    "behind a proxy": {"environment": {"HTTPS_PROXY": "http://proxy.example:3128"}},
    "garbage in files nobody needs": {
        "files": {"proc/modules": "\x00\x01\x02", "etc/os-release": "\x00=\x01\n'\"="}
    },
    "docker's settings, well formed": {"files": {"etc/docker/daemon.json": '{"debug": true}'}},
    "LXC with nesting": {
        "files": {
            "run/systemd/container": "lxc\n",
            "proc/self/attr/current": "lxc-container-default-with-nesting (enforce)",
        }
    },
    "WSL2 on a laptop without a GPU of NVIDIA's": {
        "files": {**NO_CUDA_IN_WINDOWS, "dev/dxg": "", "proc/version": "microsoft-standard-WSL2"}
    },
    "an Arc of Intel": {
        "files": {**CARD_FILES, f"{CARD}/vendor": "0x8086\n", f"{CARD}/device": "0x56a0\n"}
    },
    "InfiniBand without a limit": {
        "files": {
            "sys/class/infiniband/mlx5_0/x": "",
            "proc/self/limits": "Max locked memory  unlimited  unlimited  bytes\n",
        }
    },
}
WITH_GPU = {
    "an RTX 4090, Docker with the toolkit": {},
    "Ubuntu": {"distribution": "ubuntu"},
    "an H200 cut into parts by MIG": {
        "answers": {SMI_QUERY: lists("NVIDIA H200, 9.0, Enabled"), SMI_LIST: says(MIG_PARTS)}
    },
    "an Xid 154 after which the GPU recovered": logs(
        XID.format(154) + ", GPU recovery action changed from 0x0 (None) to 0x1 (GPU Reset)",
        XID.format(154) + ", GPU recovery action changed from 0x1 (GPU Reset) to 0x0 (None)",
    ),
    "a data-center card with CUDA's newer compat library": {
        "answers": {SMI_QUERY: lists("NVIDIA H100 80GB HBM3, 9.0, Disabled")},
        "files": {"usr/local/cuda/compat/libcuda.so.610.12": ""},
        "environment": {"LD_LIBRARY_PATH": "/usr/local/cuda/compat"},
    },
    "a MIG instance named as old drivers did": {
        "environment": {"CUDA_VISIBLE_DEVICES": "MIG-GPU-f0a1b2c3/1/0"}
    },
    "a B200 with driver 580": {"answers": {SMI_QUERY: lists("NVIDIA B200, 10.0, Disabled")}},
    "a GTX 1080 with driver 580": driver(DRIVER, GTX_1080),
    "a V100 with driver 535": driver("535.230.02", "Tesla V100-SXM2-16GB, 7.0, [N/A]"),
    "a driver that does not know the newer fields": {
        "answers": {
            f"{SMI_QUERY},driver_version,index,uuid,compute_cap": fails(REFUSED, 2),
            f"{SMI_QUERY},driver_version,index,uuid,mig": fails(REFUSED, 2),
            ECC: fails('Field "ecc.errors" is not a valid field to query.', 2),
            SMI_STATE: fails(REFUSED, 2),
            REMAPPED: fails("Invalid", 2),
        }
    },
    "a newer toolkit": {"answers": {CTK: says("NVIDIA Container Toolkit CLI version 1.19.0")}},
    "rootless Podman with CDI, Fedora": {
        "distribution": "fedora",
        "files": SPEC_FILES,
        "answers": PODMAN,
    },
    "Podman as root, a specification that only root reads": {
        "files": {"etc/cdi/nvidia.yaml/x": ""},
        "answers": PODMAN_ROOTFUL,
    },
    "a specification made at boot beside an old one": {
        "files": {
            "etc/cdi/nvidia.yaml": SPEC.format("570.86.10"),
            "var/run/cdi/nvidia.yaml": SPEC.format(DRIVER),
            LIBRARY.format(DRIVER): "",
        },
        "answers": PODMAN,
    },
    "Docker 29 with CDI alone": {
        "files": SPEC_FILES,
        "answers": {INFO: says('{"ServerVersion": "29.1.0"}')},
    },
    "Docker's runtime refuses, and CDI works": {
        "files": SPEC_FILES,
        "answers": {
            **docker(CDISpecDirs=["/etc/cdi"]),
            IN_DOCKER: refuses(hook("mount error: x"))[IN_DOCKER],
        },
    },
    "rootless Docker, set up for it": {
        "files": {TOOLKIT_CONFIG: "no-cgroups = true\n"},
        "answers": ROOTLESS,
    },
    "rootless Docker with CDI": {"files": SPEC_FILES, "answers": ROOTLESS},
    "Ubuntu's snap with a toolkit of its own": {
        "distribution": "ubuntu",
        "answers": {CTK: None, **docker(DockerRootDir="/var/snap/docker/common/var-lib")},
    },
    "WSL2 with Docker Desktop": {
        "files": WSL_FILES,
        "answers": {CTK: None, **docker(OperatingSystem="Docker Desktop")},
    },
    "SELinux that lets devices in": {
        "distribution": "rhel",
        "files": {**SELINUX, DEVICES_ALLOWED: "1 1"},
    },
    "Secure Boot with a signed driver": {"files": SECURE_BOOT},
    "uvm not loaded yet": {"files": {"dev/nvidia-uvm": None, "usr/bin/nvidia-modprobe": ""}},
    "no image is here yet": {
        "answers": {"docker image inspect": fails("Error: No such image: labkit:cuda")}
    },
    "the kernel's log may be read, and is clean": logs(
        "[ 3.2] NVRM: loading NVIDIA UNIX Open Kernel Module"
    ),
    "a program of the user's crashed on the GPU": logs(XID.format(31), XID.format(45)),
    "inside the CPU lab on a GPU host": {
        "answers": {**NO_DOCKER, **NO_SMI, SELF_TEST: HELD},
        "files": {".dockerenv": "", "dev/nvidiactl": None, "dev/nvidia0": None},
        "environment": IN_LAB,
        "torch": InstalledTorch("2.13.0+cpu"),
    },
    "inside the CUDA lab, the GPU passed on": {
        "answers": {**NO_DOCKER, SELF_TEST: HELD},
        "files": {".dockerenv": ""},
        "environment": {**IN_LAB, "NVIDIA_VISIBLE_DEVICES": "all"},
        "torch": CU130,
    },
    "an older kernel and another flavor beside the running one": {
        "files": {
            "lib/modules/6.11.2+deb13-amd64/modules.dep": "",
            "lib/modules/6.99.0-rt-amd64/modules.dep": "",
        }
    },
    "power capped by its own limit, under load": {"answers": {SMI_STATE: says(state(reasons=4))}},
    "idle, with fewer lanes": {"answers": {SMI_STATE: says(state(lanes="8, 16", pstate="P8"))}},
    "two GPUs with a screen": {
        "answers": {SMI_STATE: says(f"{state()}\n{state(1, display='Enabled')}")}
    },
    "NVSwitches with their manager": {
        "files": SWITCH,
        "answers": {MANAGER: says(f"Fabric Manager version is : {DRIVER}"), ACTIVE: says("active")},
    },
    "two GPUs that access each other": {"files": TWO_CARDS, "answers": TOPOLOGY},
    "a driver newer than all that is known": driver("710.12", "NVIDIA L4, 8.9, [N/A]"),
    "Pascal beside Blackwell, whose modules ignore it": {
        "files": {**TWO_CARDS, **card("0x1b80"), f"{SECOND}/device": "0x2b85\n"},
        "answers": {SMI_QUERY: lists(RTX_5090), "nvidia-smi topo": says(" \tGPU0\n GPU0\tX\n")},
    },
    "a Jetson Thor": {
        "files": {**card("0x2b00"), "proc/device-tree/model": "NVIDIA Jetson AGX Thor\0"},
        "answers": {SMI_QUERY: lists("NVIDIA Thor, [N/A], [N/A]")},
        "machine": ARM,
    },
    "an LXC container that has the GPU": {"files": IN_LXC},
    "an LXC container that was not given the GPU": {
        "files": {**IN_LXC, **NO_NODES, **SWITCH},
        "answers": NO_SMI,
    },
    "an LXC container on a host without the driver": {
        "files": {**BARE, **IN_LXC},
        "answers": NO_SMI,
    },
    "an LXC container of a server with NVSwitches": {"files": {**IN_LXC, **SWITCH}},
    "a pod without the GPU": {
        "files": NO_NODES,
        "answers": {**NO_DOCKER, **NO_SMI},
        "environment": {"KUBERNETES_SERVICE_HOST": "10.0.0.1"},
    },
    "two GPUs in a container, whose host sets their mode": {
        "answers": {**NO_DOCKER, SMI_STATE: says(f"{state()}\n{state(1)}")},
        "files": {".dockerenv": ""},
    },
    "a kernel for which akmods builds the module at boot": {
        "distribution": "fedora",
        "files": {NEWER_KERNEL: "kernel/x.ko:\n", "usr/sbin/akmods": ""},
    },
    "some GPUs hidden on purpose": {"environment": {"CUDA_VISIBLE_DEVICES": "0"}},
    "an ordinary library path": {"environment": {"LD_LIBRARY_PATH": "/opt/cuda/lib64"}},
}


@pytest.fixture
def examine(tmp_path, monkeypatch):
    """Examines a played host; returns its alarms ("check status", fix) and the examination."""

    def examine(settings, gpu=True):
        torch = settings.get("torch")
        monkeypatch.setattr(torch_build_check, "read_torch_build", lambda: torch)
        rest = {name: value for name, value in settings.items() if name != "torch"}
        examination = examine_host(play_host(tmp_path, gpu=gpu, **rest), CHECKS)
        alarms = {
            f"{each.check} {each.status}": str(each.fix)
            for each in examination.findings
            if each.status not in ("ok", "skipped")
        }
        return alarms, examination

    return examine


HEALTHY = [pytest.param(settings, False, id=name) for name, settings in PLAIN.items()]
HEALTHY += [pytest.param(settings, True, id=f"{name} (GPU)") for name, settings in WITH_GPU.items()]


@pytest.mark.parametrize(("settings", "gpu"), HEALTHY)
def test_no_false_alarm_on_a_healthy_host(examine, settings, gpu):
    alarms, examination = examine(settings, gpu)
    assert alarms == {}
    assert examination.healthy


REMAKE_SPEC = "nvidia-ctk cdi generate --output=/etc/cdi/nvidia.yaml"
CONFIGURE = "nvidia-ctk runtime configure --runtime=docker"
INSTALL_TOOLKIT = "apt-get install nvidia-container-toolkit"
OLDER_BUILD = "pip install --force-reinstall torch torchvision --index-url https://download.pytorch.org/whl/cu126"
NO_CGROUPS = "--set nvidia-container-cli.no-cgroups="
# Each broken host: its settings, then every alarm with a part of its fix.
BROKEN_PLAIN = {
    "the daemon does not run": (
        {"answers": {INFO: fails(NO_DAEMON)}},
        {"engine-daemon failed": "systemctl enable --now docker"},
    ),
    "the daemon does not run, Alpine": (
        {"answers": {INFO: fails(NO_DAEMON)}, "distribution": "alpine"},
        {"engine-daemon failed": "rc-update add docker && sudo service docker start"},
    ),
    "the daemon does not run, and there is no systemd": (
        {
            "answers": {INFO: fails(NO_DAEMON)},
            "find_program": lambda name: None if name == "systemctl" else name,
        },
        {"engine-daemon failed": "sudo service docker start"},
    ),
    "not in the docker group": (
        {"answers": {INFO: fails(NOT_ALLOWED)}},
        {"engine-permission failed": "usermod -aG docker $USER"},
    ),
    "docker is down and podman is up": (
        {"answers": {INFO: fails(NO_DAEMON), **PODMAN_FINE}},
        {"engine-daemon warning": "systemctl enable --now docker"},
    ),
    "an engine on another machine": (
        {"answers": {CONTEXT: says("ssh://ada@far.example")}},
        {"engine-daemon failed": "unset DOCKER_HOST DOCKER_CONTEXT"},
    ),
    "a DOCKER_HOST where nothing answers": (
        {
            "answers": {INFO: fails(NO_DAEMON)},
            "environment": {"DOCKER_HOST": "tcp://far.example:2375"},
        },
        {"engine-daemon failed": "unset DOCKER_HOST"},
    ),
    "a context whose machine does not answer": (
        {"answers": {INFO: fails(NO_DAEMON), CONTEXT: says("tcp://far.example:2375")}},
        {"engine-daemon failed": "docker context use default"},
    ),
    "a rootless docker that is down": (
        {"answers": {INFO: fails(NO_DAEMON)}, "environment": {"DOCKER_HOST": ROOTLESS_SOCKET}},
        {"engine-daemon failed": "systemctl --user start docker"},
    ),
    "a rootless docker that is slow": (
        {"answers": {INFO: hangs("docker", 3)}, "environment": {"DOCKER_HOST": ROOTLESS_SOCKET}},
        {"engine-daemon unknown": "time docker info"},
    ),
    "a Docker Desktop that is not started": (
        {
            "answers": {
                INFO: fails(NO_DAEMON),
                CONTEXT: says("unix:///home/ada/.docker/desktop/docker.sock"),
            }
        },
        {"engine-daemon failed": "systemctl --user start docker-desktop"},
    ),
    "a daemon that is slow": (
        {"answers": {INFO: hangs("docker", 3)}},
        {"engine-daemon unknown": "time docker info"},
    ),
    "a macOS machine whose Docker is not started": (
        {
            "files": dict.fromkeys(("proc/meminfo", "dev/shm/.keep")),
            "answers": {INFO: fails(NO_DAEMON)},
            "machine": dataclasses.replace(ADA, system="Darwin", user_id=None),
        },
        {"engine-daemon failed": "open -a Docker"},
    ),
    "no Compose, Ubuntu": (
        {"answers": {COMPOSE: fails(NO_COMPOSE_PLUGIN)}, "distribution": "ubuntu"},
        {"compose failed": "apt-get install docker-compose-v2"},
    ),
    "Compose 1": (
        {"answers": {COMPOSE: says("1.29.2")}},
        {"compose failed": "apt-get install docker-compose-plugin"},
    ),
    "a daemon.json that does not parse": (
        {"files": {"etc/docker/daemon.json": '{"runtimes": {},}'}},
        {"engine-settings failed": "json.tool /etc/docker/daemon.json"},
    ),
    "a docker that remaps user ids": (
        {"answers": docker(SecurityOptions=["name=userns"])},
        {"engine-settings warning": "make up RUNTIME=local"},
    ),
    "LXC without nesting": (
        {
            "files": {
                "run/systemd/container": "lxc",
                "proc/self/attr/current": "lxc-container-default-cgns (enforce)",
            }
        },
        {"lxc-nesting warning": "--features nesting=1"},
    ),
    "little shared memory": (
        {"total_bytes": lambda path: 64 * 2**20, "files": {".dockerenv": ""}},
        {"shm warning": "LABKIT_SHM_SIZE=2g make down up"},
    ),
    "a full disk": ({"free_bytes": lambda path: 10 * 2**20}, {"disk failed": "df -h"}),
    "a disk that is nearly full": ({"free_bytes": lambda path: 3 * GIB}, {"disk warning": "df -h"}),
    "a disk without inodes": ({"free_inodes": lambda path: 70}, {"disk failed": "df -i"}),
    "a small machine": (
        {"files": {"proc/meminfo": "MemTotal: 1000000 kB\nMemAvailable: 800000 kB\n"}},
        {"memory warning": "free -h"},
    ),
    "InfiniBand with a limit": (
        {
            "files": {
                "sys/class/infiniband/mlx5_0/x": "",
                "proc/self/limits": "Max locked memory  8388608  8388608  bytes\n",
            }
        },
        {"memlock warning": "memlock unlimited"},
    ),
    "InfiniBand with a limit, in a container": (
        {
            "files": {
                ".dockerenv": "",
                "sys/class/infiniband/mlx5_0/x": "",
                "proc/self/limits": "Max locked memory  8388608  8388608  bytes\n",
            }
        },
        {"memlock warning": "--ulimit memlock=-1"},
    ),
    "a clock of 1970": (
        {"files": {"etc/ld.so.cache": ""}, "now": lambda: 0.0},
        {"clock failed": "timedatectl set-ntp true"},
    ),
    "a busy port": (BUSY, {"port warning": "make up"}),
    "a busy port that was asked for": ({**BUSY, "port_asked": True}, {"port failed": "ss -ltnp"}),
    "no name server": ({"resolve": lambda name: gone()}, {"dns warning": "/etc/resolv.conf"}),
    "an inspecting proxy": ({"reach": refuse}, {"index warning": "LABKIT_CA_FILE="}),
    "a clock that is ahead": ({"reach": expire}, {"index warning": "date -u"}),
    "a certificate file that is gone": (
        {"environment": {"SSL_CERT_FILE": "/etc/ssl/company.pem"}},
        {"certificates failed": "unset SSL_CERT_FILE"},
    ),
    "a proxy on this very machine": (
        {"environment": {"https_proxy": "http://127.0.0.1:3128"}},
        {"certificates warning": "export https_proxy="},
    ),
    "a Jetson Orin": (
        {
            "files": {"proc/device-tree/model": "NVIDIA Jetson AGX Orin\0", "dev/nvidiactl": ""},
            "machine": dataclasses.replace(ADA, architecture="aarch64", user_id=os.getuid()),
        },
        {"gpu-bus warning": "make up FLAVOR=cpu"},
    ),
}
BROKEN_GPU = {
    "no driver": (
        {"files": BARE, "answers": {SMI_QUERY: None}},
        {"driver failed": "nvidia-driver"},
    ),
    **{
        f"no driver, {family}": (
            {"files": {**BARE, **card(device)}, "answers": NO_SMI, "distribution": family},
            {"driver failed": fix},
        )
        for family, device, fix in (
            ("ubuntu", "0x2684", "apt-get install nvidia-driver-580-open"),
            ("fedora", "0x2684", "dnf install akmod-nvidia xorg-x11-drv-nvidia-cuda"),
            ("fedora", "0x1b80", "dnf install akmod-nvidia-580xx"),
            ("rhel", "0x1db4", "nvidia-driver:580-dkms"),
            ("arch", "0x1b80", "nvidia-580xx-dkms and nvidia-580xx-utils from the AUR"),
            ("arch", "0x2b85", "pacman -Syu nvidia-open"),
            ("suse", "0x15f8", "nvidia-driver-G06-kmp-meta"),
        )
    },
    "a K40": (
        {"files": {**BARE, **card("0x1024")}, "answers": NO_SMI},
        {"driver warning": "make up FLAVOR=cpu"},
    ),
    "a GTX 1080 under 590, installed": (
        {
            "files": {**BARE, **card("0x1b80")},
            "answers": {**NO_SMI, "modinfo": says("590.44.01")},
            "distribution": "ubuntu",
        },
        {"driver failed": "apt-get install nvidia-driver-580 "},
    ),
    "a GTX 1080 under 590, loaded": (
        {
            "files": {**card("0x1b80"), **variant("closed", "590.44.01"), "dev/nvidia0": None},
            "answers": {SMI_QUERY: fails("No devices were found", 6)},
            "distribution": "arch",
        },
        {"driver failed": "nvidia-580xx-dkms"},
    ),
    **{
        f"no driver, {name}": (
            {
                "files": {**BARE, **TWO_CARDS, **card(first), f"{SECOND}/device": f"{second}\n"},
                "answers": NO_SMI,
                "distribution": "ubuntu",
            },
            {"driver failed": fix},
        )
        for name, first, second, fix in (
            ("Pascal and Blackwell", "0x1b80", "0x2b85", "nvidia-driver-580-open "),
            ("Kepler and Ada", "0x2684", "0x1024", "nvidia-driver-580-open "),
            ("Pascal and Ampere", "0x2204", "0x1b80", "nvidia-driver-580 "),
        )
    },
    "a V100 under the open modules of 595": (
        {
            "files": {**card("0x1db4"), **variant("open", "595.58.03"), "dev/nvidia0": None},
            "answers": {SMI_QUERY: fails("No devices were found", 6)},
            "distribution": "suse",
        },
        {"driver failed": "nvidia-driver-G06-kmp-meta"},
    ),
    "a laptop whose GPU is switched off": (
        {
            "files": {**BARE, "etc/prime-discrete": "off\n"},
            "answers": {**NO_SMI, "modinfo": says(DRIVER)},
            "distribution": "ubuntu",
        },
        {"driver failed": "prime-select on-demand   # then reboot"},
    ),
    "an LXC container without the driver's libraries": (
        {"files": IN_LXC, "answers": NO_SMI},
        {"driver-library failed": f"NVIDIA-Linux-*-{DRIVER}.run --no-kernel-modules"},
    ),
    "an LXC container with libraries of another version": (
        {"files": IN_LXC, "answers": {SMI_QUERY: fails("", 18, MISMATCH)}},
        {"driver-library failed": f"NVIDIA-Linux-*-{DRIVER}.run --no-kernel-modules"},
    ),
    "an LXC container without uvm": (
        {"files": {**IN_LXC, "dev/nvidia-uvm": None}},
        {"nvidia-uvm warning": "pct set <id> --dev0"},
    ),
    "an LXC container without its GPU's file": (
        {"files": {**IN_LXC, "dev/nvidia0": None}},
        {"device-nodes failed": "pct set <id> --dev0"},
    ),
    "one of two GPUs that does not answer": (
        {
            "answers": {
                SMI_QUERY: says(
                    f"NVIDIA L4, {DRIVER}, 0, GPU-a, 8.9, [N/A]\n"
                    "[Unknown Error], ERR!, 1, [Unknown Error], [Unknown Error], [N/A]"
                )
            }
        },
        {"gpu-health failed": "dmesg"},
    ),
    "a T4 beside an A100, on ARM": (
        {
            "answers": {SMI_QUERY: lists("Tesla T4, 7.5, [N/A]", "NVIDIA A100, 8.0, Disabled")},
            "machine": ARM,
        },
        {"cuda-build warning": "make up   # with the others"},
    ),
    "nouveau has the card": (
        {
            "files": {**BARE, "proc/modules": "nouveau 3 0 - Live 0x0\n"},
            "answers": {SMI_QUERY: None},
        },
        {"driver failed": "apt-get install nvidia-driver"},
    ),
    "nouveau was first, on an image of Fedora": (
        {
            "files": {**BARE, "proc/modules": "nouveau 3 0 - Live 0\n", "run/ostree-booted": ""},
            "answers": {**NO_SMI, "modinfo": says(DRIVER)},
            "distribution": "fedora",
        },
        {"driver failed": "rpm-ostree kargs"},
    ),
    "nouveau was first, NVIDIA's driver is installed": (
        {
            "files": {**BARE, "proc/modules": "nouveau 3 0 - Live 0x0\n"},
            "answers": {SMI_QUERY: None, "modinfo": says(DRIVER)},
        },
        {"driver failed": "blacklist nouveau"},
    ),
    "installed and not loaded": (
        {
            "files": BARE,
            "answers": {**SMI_WITHOUT_DRIVER, SMI_QUERY: None, "modinfo": says(DRIVER)},
        },
        {"driver failed": "sudo modprobe nvidia"},
    ),
    "Secure Boot refuses the module": (
        {
            "distribution": "ubuntu",
            "files": {**BARE, **SECURE_BOOT},
            "answers": {SMI_QUERY: None, "modinfo": says(DRIVER)},
        },
        {"driver failed": "update-secureboot-policy --enroll-key"},
    ),
    "a driver of 2021": (driver("470.256.02"), {"driver failed": "nvidia-driver"}),
    "an RTX 5090 with driver 570": (
        {**driver("570.86.10", RTX_5090), "files": variant("open", "570.86.10")},
        {"cuda-build failed": "580 or newer"},
    ),
    "an RTX 5090 with the closed module": (
        {
            "files": {**card("0x2b85"), **variant("closed")},
            "answers": {SMI_QUERY: lists(RTX_5090)},
            "distribution": "ubuntu",
        },
        {"driver-variant failed": "nvidia-driver-580-open"},
    ),
    "a GTX 1080 with the open module": (
        {
            "files": {**card("0x1b80"), **variant("open")},
            "answers": {SMI_QUERY: lists(GTX_1080)},
            "distribution": "ubuntu",
        },
        {"driver-variant failed": "nvidia-driver-580 "},
    ),
    "the next kernel has no module": (
        {"files": {NEWER_KERNEL: "kernel/x.ko:\n", "var/lib/dkms/nvidia/580/x": ""}},
        {"next-kernel warning": "dkms autoinstall -k 6.12.63+deb13-amd64"},
    ),
    "the next kernel has no module, and nothing is known to make it": (
        {"files": {NEWER_KERNEL: "kernel/x.ko:\n"}},
        {"next-kernel warning": "install NVIDIA's driver once more"},
    ),
    "the next kernel has no module, for akmods failed": (
        {
            "distribution": "fedora",
            "files": {
                NEWER_KERNEL: "kernel/x.ko:\n",
                "usr/sbin/akmods": "",
                "var/cache/akmods/nvidia/580-for-6.12.63+deb13-amd64.failed.log": "",
            },
        },
        {"next-kernel warning": "akmods --force --kernels 6.12.63+deb13-amd64"},
    ),
    "the next kernel has no module, and Ubuntu has it built": (
        {
            "distribution": "ubuntu",
            "files": {
                "proc/sys/kernel/osrelease": "6.8.0-60-generic\n",
                "lib/modules/6.8.0-60-generic/modules.dep": "kernel/nvidia-580-open/nvidia.ko:\n",
                "lib/modules/6.8.0-63-generic/modules.dep": "kernel/x.ko:\n",
            },
        },
        {"next-kernel warning": "apt-get install linux-modules-nvidia-580-open-6.8.0-63-generic"},
    ),
    "the next kernel has no module, of the next minor release": (
        {
            "distribution": "rhel",
            "files": {
                "proc/sys/kernel/osrelease": "5.14.0-503.el9_5.x86_64\n",
                "lib/modules/5.14.0-503.el9_5.x86_64/modules.dep": "extra/nvidia.ko.xz:\n",
                "lib/modules/5.14.0-570.12.1.el9_6.x86_64/modules.dep": "kernel/x.ko:\n",
                "var/lib/dkms/nvidia/580/x": "",
            },
        },
        {"next-kernel warning": "dkms autoinstall -k 5.14.0-570.12.1.el9_6.x86_64"},
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
        {"driver-library failed": "reboot"},
    ),
    "WSL2 that is blocked": (
        {
            "files": WSL_FILES,
            "answers": {
                SMI_QUERY: fails(
                    "Failed to initialize NVML: GPU access blocked by the operating system", 17
                )
            },
        },
        {"driver failed": "wsl.exe --update"},
    ),
    "no device files": (
        {"files": {"dev/nvidiactl": None, "dev/nvidia0": None}},
        {"device-nodes failed": "nvidia-modprobe -c=0 -u"},
    ),
    "CUDA's module is missing": (
        {"files": {"dev/nvidia-uvm": None, "proc/modules": "nvidia 1 0 - Live 0\n"}},
        {"nvidia-uvm warning": "modprobe nvidia-uvm"},
    ),
    "an nvidia-smi that hangs": (
        {"answers": {SMI: hangs("nvidia-smi", 3), **dict.fromkeys(NO_SMI, hangs("nvidia-smi", 3))}},
        {"driver-library unknown": "dmesg | grep -i xid"},
    ),
    "off the bus": (
        {"answers": {SMI_QUERY: SMI_DOWN, "dmesg": says(XID.format(79))}},
        {
            "gpu-health failed": "dmesg | grep -i xid",
            "driver-library failed": "power the machine off",
        },
    ),
    **{
        f"Xid {number}": (logs(XID.format(45), XID.format(number)), {"gpu-health warning": ""})
        for number in (48, 62, 63, 64, 74, 94, 95, 119, 120, 140, 154)
    },
    "an Xid 154 that asks for a restart": (
        logs(XID.format(154) + ", GPU recovery action changed from 0x0 (None) to 0x2 (Reboot)"),
        {"gpu-health warning": ""},
    ),
    "memory errors that nothing corrects": (
        {"answers": {ECC: says("0, 3")}},
        {"gpu-health warning": "ROW_REMAPPER"},
    ),
    "a row that waits to be replaced": (
        {"answers": {REMAPPED: says("GPU-f0a1b2c3-0000, 1, 0")}},
        {"gpu-health warning": "reset the GPU"},
    ),
    "a row that could not be replaced": (
        {"answers": {REMAPPED: says("GPU-f0a1b2c3-0000, 0, 1")}},
        {"gpu-health warning": "have the card replaced"},
    ),
    "slowed down by heat": (
        {"answers": {SMI_STATE: says(state(reasons=0x40))}},
        {"gpu-clocks warning": "TEMPERATURE"},
    ),
    "slowed down by its supply": (
        {"answers": {SMI_STATE: says(state(reasons=0x80))}},
        {"gpu-clocks warning": "POWER"},
    ),
    "a power limit": (
        {"answers": {SMI_STATE: says(state(watts="250.00, 450.00"))}},
        {"gpu-clocks warning": "nvidia-smi -i 0 -pl 450"},
    ),
    "half of the PCIe lanes": (
        {"answers": {SMI_STATE: says(state(lanes="8, 16"))}},
        {"gpu-link warning": "reseat the card"},
    ),
    "a server without persistence": (
        {
            "answers": {SMI_STATE: says(f"{state()}\n{state(1)}")},
            "files": {"usr/lib/systemd/system/nvidia-persistenced.service": ""},
        },
        {"persistence warning": "nvidia-persistenced"},
    ),
    "a server without persistence and its service": (
        {"answers": {SMI_STATE: says(f"{state()}\n{state(1)}")}},
        {"persistence warning": "nvidia-smi -pm 1"},
    ),
    "NVSwitches without a manager": (
        {"files": SWITCH, "distribution": "ubuntu"},
        {"fabric-manager failed": f"apt-get install 'nvidia-fabricmanager-580={DRIVER}*'"},
    ),
    "a fabric manager of another version": (
        {"files": SWITCH, "answers": {MANAGER: says("version is : 570.86.10")}},
        {"fabric-manager failed": DRIVER},
    ),
    "a fabric manager that does not run": (
        {
            "files": SWITCH,
            "answers": {MANAGER: says(f"version is : {DRIVER}"), ACTIVE: fails("", 3, "inactive")},
        },
        {"fabric-manager failed": "systemctl enable --now nvidia-fabricmanager"},
    ),
    "peers behind an IOMMU": (
        {"files": {**TWO_CARDS, **IOMMU}, "answers": TOPOLOGY},
        {"peer-access warning": "NCCL_P2P_DISABLE=1"},
    ),
    **{
        f"every GPU hidden by {value!r}": (
            {"environment": {"CUDA_VISIBLE_DEVICES": value}},
            {"visible-devices warning": "unset CUDA_VISIBLE_DEVICES"},
        )
        for value in ("", "-1", "7", "GPU-dead")
    },
    "a compat folder before the driver": (
        {
            "files": {"usr/local/cuda/compat/libcuda.so.570.86.10": ""},
            "environment": {"LD_LIBRARY_PATH": "/usr/local/cuda/compat:/opt/x"},
        },
        {"cuda-compat warning": "unset LD_LIBRARY_PATH"},
    ),
    "a compat folder in the loader's settings": (
        {
            "files": {
                "usr/local/cuda/compat/libcuda.so.590.1": "",
                "etc/ld.so.conf.d/00-compat.conf": "/usr/local/cuda/compat\n",
            }
        },
        {"cuda-compat warning": "/etc/ld.so.conf.d/00-compat.conf"},
    ),
    "MIG on, and no part made": (
        {"answers": {SMI_QUERY: lists("NVIDIA H200, 9.0, Enabled"), SMI_LIST: says(GPU_LINE)}},
        {"mig failed": "nvidia-smi mig -i 0 -cgi 0 -C"},
    ),
    "MIG on, and no part made, beside a GPU that works": (
        {
            "answers": {
                SMI_QUERY: lists("NVIDIA H100, 9.0, Disabled", "NVIDIA H100, 9.0, Enabled"),
                SMI_LIST: says(GPU_LINE),
            }
        },
        {"mig warning": "nvidia-smi mig -i 1 -cgi 0 -C"},
    ),
    "an L4 beside a K40": (
        {
            "files": variant("closed"),
            "answers": {SMI_QUERY: lists("NVIDIA L4, 8.9, [N/A]", "Tesla K40c, 3.5, [N/A]")},
        },
        {"cuda-build warning": "make up   # with the others"},
    ),
    "a GTX 1080 with a torch of CUDA 13": (
        {**driver(DRIVER, GTX_1080), "torch": CU130},
        {"torch-build failed": OLDER_BUILD},
    ),
    "a torch of CUDA 13 on driver 550": (
        {**driver("550.163.01"), "torch": CU130},
        {"torch-build failed": OLDER_BUILD},
    ),
    "an RTX 5080 on driver 570, with a torch of CUDA 12": (
        {
            **driver("570.86.10", "NVIDIA GeForce RTX 5080, 12.0, [N/A]"),
            "files": variant("open", "570.86.10"),
            "torch": InstalledTorch("2.13.0+cu126", "12.6"),
        },
        {"cuda-build failed": "580 or newer", "torch-build failed": "580 or newer"},
    ),
    "no toolkit": (
        {"answers": {CTK: None, INFO: says(json.dumps(DOCKER_INFO))}},
        {"toolkit failed": INSTALL_TOOLKIT},
    ),
    "Podman without the toolkit": (
        {"answers": {**PODMAN, CTK: None}, "distribution": "fedora"},
        {"toolkit failed": f"dnf install nvidia-container-toolkit && sudo {REMAKE_SPEC}"},
    ),
    "rootless Docker without the toolkit": (
        {"answers": {**ROOTLESS_DOCKER, CTK: None}},
        {"toolkit failed": "systemctl --user restart docker"},
    ),
    "an image of Fedora without the toolkit": (
        {
            "files": {"run/ostree-booted": ""},
            "answers": {CTK: None, INFO: says(json.dumps(DOCKER_INFO))},
            "distribution": "fedora",
        },
        {"toolkit failed": "rpm-ostree install nvidia-container-toolkit   # then reboot, and"},
    ),
    "a toolkit with the hole": (
        {"answers": {CTK: says("NVIDIA Container Toolkit CLI version 1.17.7")}},
        {"toolkit warning": "--only-upgrade nvidia-container-toolkit"},
    ),
    "docker does not know the toolkit": (
        {"answers": {INFO: says(json.dumps(DOCKER_INFO))}},
        {"gpu-passing failed": CONFIGURE},
    ),
    "the toolkit set up, docker not restarted": (
        {
            "files": {"etc/docker/daemon.json": json.dumps({"runtimes": RUNTIME})},
            "answers": {INFO: says(json.dumps(DOCKER_INFO))},
        },
        {"gpu-passing failed": "systemctl restart docker"},
    ),
    "the runtime is known, and the container gets no GPU": (
        {
            "answers": refuses(
                'could not select device driver "" with capabilities: [[gpu]].',
                "CDI device injection failed: unresolvable CDI devices nvidia.com/gpu=all",
            )
        },
        {"container-gpu failed": INSTALL_TOOLKIT},
    ),
    "snap's docker": (
        {
            "distribution": "ubuntu",
            "answers": docker(Runtimes={}, DockerRootDir="/var/snap/docker/common/var-lib-docker"),
        },
        {"engine-kind failed": "snap remove docker"},
    ),
    "the desktop-linux context": (
        {"answers": docker(OperatingSystem="Docker Desktop")},
        {"engine-kind failed": "docker context use default"},
    ),
    "Podman without CDI": ({"answers": PODMAN}, {"cdi failed": REMAKE_SPEC}),
    "CDI of the driver before": (
        {"files": OLD_SPEC, "answers": PODMAN},
        {"cdi failed": REMAKE_SPEC},
    ),
    "CDI that names files that are gone": (
        {"files": {"etc/cdi/nvidia.yaml": SPEC.format(DRIVER)}, "answers": PODMAN},
        {"cdi failed": REMAKE_SPEC},
    ),
    "CDI on a docker that has it switched off": (
        {"files": SPEC_FILES, "answers": docker(Runtimes={"runc": {}}, CDISpecDirs=[])},
        {"gpu-passing failed": "--cdi.enabled"},
    ),
    "rootless docker, cgroups not left alone": (
        {
            "answers": {
                **ROOTLESS,
                **refuses(
                    hook(
                        "mount error: failed to add device rules: unable to find any existing "
                        "device filters attached to the cgroup: "
                        "bpf_prog_query(BPF_CGROUP_DEVICE) failed: operation not permitted"
                    )
                ),
            }
        },
        {"cgroups warning": f"{NO_CGROUPS}true", "container-gpu failed": f"{NO_CGROUPS}true"},
    ),
    "no-cgroups under docker as root": (
        {
            "files": {TOOLKIT_CONFIG: "no-cgroups = true\n"},
            "answers": refuses("Failed to initialize NVML: Unknown Error"),
        },
        {"cgroups failed": f"{NO_CGROUPS}false"},
    ),
    "SELinux keeps the container out": (
        {
            "distribution": "fedora",
            "files": {**SPEC_FILES, **SELINUX, DEVICES_ALLOWED: "0 0"},
            "answers": {
                **PODMAN,
                IN_PODMAN: fails("Failed to initialize NVML: Insufficient Permissions", 4),
            },
        },
        dict.fromkeys(("selinux warning", "container-gpu failed"), "container_use_devices on"),
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
        {"container-gpu failed": "wsl.exe --update"},
    ),
    "an engine that says something new": (
        {
            "answers": refuses(
                "the moon is in the wrong phase",
                'could not select device driver "cdi" with capabilities: [].',
            )
        },
        {"container-gpu failed": "docker run --rm --gpus all --entrypoint nvidia-smi"},
    ),
    "a container that never starts": (
        {"answers": {IN_DOCKER: hangs("docker", 5), IN_DOCKER_BY_CDI: hangs("docker", 5)}},
        {"container-gpu unknown": "labkit doctor --deep"},
    ),
    "inside the CUDA lab, without the GPU": (
        {
            "answers": {**NO_DOCKER, **NO_SMI, SELF_TEST: HELD},
            "files": {".dockerenv": "", "dev/nvidiactl": None, "dev/nvidia0": None},
            "environment": {**IN_LAB, "NVIDIA_VISIBLE_DEVICES": "all"},
            "torch": CU130,
        },
        {"gpu-bus warning": "make doctor   # on the host"},
    ),
    "inside the CUDA lab, the GPU's programs left out": (
        {
            "answers": {**NO_DOCKER, **NO_SMI, SELF_TEST: HELD},
            "files": {".dockerenv": ""},
            "environment": IN_LAB,
            "torch": CU130,
        },
        {"driver-library warning": "NVIDIA_DRIVER_CAPABILITIES=compute,utility"},
    ),
    "inside the CUDA lab, uvm left out": (
        {
            "answers": {**NO_DOCKER, SELF_TEST: HELD},
            "files": {".dockerenv": "", "dev/nvidia-uvm": None},
            "environment": IN_LAB,
            "torch": CU130,
        },
        {"nvidia-uvm warning": "make down up"},
    ),
}
BROKEN = [pytest.param(*case, False, id=name) for name, case in BROKEN_PLAIN.items()]
BROKEN += [pytest.param(*case, True, id=f"{name} (GPU)") for name, case in BROKEN_GPU.items()]


@pytest.mark.parametrize(("settings", "expected", "gpu"), BROKEN)
def test_a_broken_host_gets_its_verdicts_and_no_other(examine, settings, expected, gpu):
    alarms, examination = examine(settings, gpu)
    assert list(alarms) == list(expected)
    for name, fix in expected.items():
        assert fix in alarms[name]
    assert examination.healthy == all(" failed" not in name for name in expected)


# The error that the self-test reports on a broken host; the step that fails, and its fix.
TORCH_FAULTS = {
    "a driver that is too old": (
        "RuntimeError: The NVIDIA driver on your system is too old (found version 12040).",
        ("allocate", OLDER_BUILD),
    ),
    "an architecture without code": (
        "RuntimeError: CUDA error: no kernel image is available for execution on the device",
        ("allocate", "--force-reinstall torch"),
    ),
    "error 803": (
        "RuntimeError: Unexpected error from cudaGetDeviceCount(). Error 803: system has "
        "unsupported display driver / cuda driver combination",
        ("allocate", "reboot"),
    ),
    "no fabric manager": (
        "RuntimeError: Error 802: system not yet initialized",
        ("allocate", "nvidia-fabricmanager"),
    ),
    "no compiler": (
        "RuntimeError: Failed to find C compiler. Please specify via CC environment variable",
        ("compile", "apt-get install g++ python3-dev"),
    ),
    "a cache that runs nothing": (
        "ImportError: /tmp/torchinductor_ada/x.so: failed to map segment from shared object",
        ("compile", "TORCHINDUCTOR_CACHE_DIR"),
    ),
}


@pytest.mark.parametrize(("text", "verdict"), TORCH_FAULTS.values(), ids=TORCH_FAULTS.keys())
def test_a_fault_of_torch_is_known_by_its_error(examine, text, verdict):
    step, fix = verdict
    passed = dict(PASSED) if step == "compile" else {}
    answers = {SELF_TEST: report(**{**passed, step: {"error": text}})}
    alarms, _ = examine({"answers": answers, "torch": CU130})
    check = {"allocate": "torch-allocation", "compile": "torch-compile"}[step]
    assert list(alarms) == [f"{check} failed"]
    assert fix in alarms[f"{check} failed"]


def test_a_cache_on_a_mount_that_runs_nothing_is_found_beforehand(examine, monkeypatch):
    monkeypatch.setattr(system_module, "is_noexec", lambda path: True)
    alarms, _ = examine({"answers": {SELF_TEST: HELD}, "torch": CU130})
    assert alarms == {
        "caches failed": "export TORCHINDUCTOR_CACHE_DIR=$HOME/.cache/inductor TMPDIR=$HOME/.cache"
    }


def test_a_read_only_checkout_is_found_before_up_writes_there(examine, tmp_path, monkeypatch):
    checkout = tmp_path / "labkit"
    checkout.mkdir()
    assert examine({"checkout": checkout}, gpu=False)[0] == {}
    # The tests may run as root, whom no mode keeps out.
    monkeypatch.setattr(os, "access", lambda path, mode: checkout not in (path, path.parent))
    alarms, _ = examine({"checkout": checkout, "workspace": None}, gpu=False)
    assert list(alarms) == ["checkout failed"]
    assert alarms["checkout failed"].startswith(f"cp -r {checkout}")


def test_in_wsl_nvidia_smi_is_found_beside_the_path_of_root(examine, tmp_path):
    program = "usr/lib/wsl/lib/nvidia-smi"
    answers = {
        f"{tmp_path}/{start.replace('nvidia-smi', program, 1)}": answer
        for start, answer in GPU_ANSWERS.items()
        if start.startswith("nvidia-smi")
    }
    docker_desktop = docker(OperatingSystem="Docker Desktop")
    settings = {
        "files": {**WSL_FILES, program: "", "usr/lib/wsl/lib/libcuda.so.1": ""},
        "answers": {**NO_SMI, **answers, CTK: None, **docker_desktop},
    }
    assert examine(settings)[0] == {}


def test_a_working_driver_is_never_replaced_to_reach_a_container(examine):
    library = "load library failed: libnvidia-ml.so.1: cannot open shared object file"
    alarms, _ = examine({"answers": refuses(hook(f"initialization error: {library}"))})
    assert list(alarms) == ["container-gpu failed"]
    assert "nvidia-driver" not in alarms["container-gpu failed"]


def test_no_image_is_pulled_to_try_a_gpu_in(tmp_path):
    answers = {"docker image inspect": fails("Error: No such image")}
    host = play_host(tmp_path, gpu=True, answers=answers, images=("labkit:cuda", "labkit:cpu"))
    found = find(examine_host(host, CHECKS), "container-gpu")
    assert (found.status, "make build" in found.found) == ("skipped", True)
    assert not [call for call in host.run_long.calls if " pull " in call or " run " in call]


def find(examination, name):
    """The finding of the check of this name."""
    return next(each for each in examination.findings if each.check == name)


@pytest.fixture(autouse=True)
def no_torch(monkeypatch):
    """The hosts here are bare: what torch the tests run on is none of theirs."""
    monkeypatch.setattr(torch_build_check, "read_torch_build", lambda: None)


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
    programs = ("docker", "podman", "nvidia-smi", "nvidia-ctk", "modinfo", "nv-fabricmanager")
    files = dict.fromkeys(("proc/modules", "proc/meminfo"), "\x00ÿ,:=\n" * 50)
    files |= {"proc/self/cgroup": "garbage", "etc/os-release": "'", **SWITCH, **TWO_CARDS}
    host = play_host(tmp_path, gpu=True, files=files, answers={})
    fake = host.run_long
    fake.answers = dict.fromkeys(programs, answer)
    examination = examine_host(host, CHECKS)
    assert [each.check for each in examination.findings] == [check.name for check in CHECKS]
    assert not [each for each in examination.findings if "the check failed on" in each.found]
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
    assert time.monotonic() - started < 20
    assert find(examination, "driver").found == "no answer in time"
    assert find(examination, "driver-library").found == "because driver is unknown"
    assert find(examination, "memory").status == "ok"
    assert len(examination.findings) == len(CHECKS)


def test_on_a_busy_machine_the_limits_are_longer(tmp_path):
    waited = threading.Event()

    def slow(arguments, *, timeout_seconds):
        waited.wait(0.6)
        return says("")

    host = dataclasses.replace(play_host(tmp_path), run=OnceRunner(slow), patience=6.0)
    examination = examine_host(host, CHECKS, limit_scale=0.05)  # 0.4 s, six times
    assert find(examination, "engine-client").status == "ok"


def test_real_programs_that_hang_are_ended_at_their_limit(tmp_path, monkeypatch):
    for name in ("docker", "podman", "nvidia-smi", "nvidia-ctk", "modinfo"):
        write_program(tmp_path / "bin", name, "exec sleep 60")
    monkeypatch.setenv("PATH", f"{tmp_path / 'bin'}:/usr/bin:/bin")
    host = play_host(tmp_path / "root", gpu=True, files={"proc/driver/nvidia/version": None})
    host = dataclasses.replace(host, run=OnceRunner(run_command, limit_seconds=0.3))
    started = time.monotonic()
    examination = examine_host(host, CHECKS)
    assert time.monotonic() - started < 30
    assert find(examination, "driver").status == "unknown"
    assert find(examination, "engine-daemon").status == "unknown"


def test_each_command_is_asked_once_and_never_again_after_it_hung(tmp_path):
    host = play_host(tmp_path, gpu=True)
    examine_host(host, CHECKS)
    # The image is asked for once more by its self-test, which knows nothing of the checks.
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

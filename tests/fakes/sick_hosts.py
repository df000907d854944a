"""A host that is played to the doctor: a root of files, recorded answers, and no network."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping
from pathlib import Path

from labkit.doctor.check import Host, OnceRunner
from labkit.process import CommandResult
from tests.fakes.host import ADA, CONTEXT, DOCKER_FINE, DOCKER_INFO, INFO, FakeRunner, fails, says

GIB = 2**30
DRIVER = "580.95.05"
KERNEL = "6.12.57+deb13-amd64"
OS_RELEASES = {
    "debian": 'PRETTY_NAME="Debian GNU/Linux 13 (trixie)"\nID=debian\n',
    "ubuntu": 'PRETTY_NAME="Ubuntu 24.04.3 LTS"\nID=ubuntu\nID_LIKE=debian\n',
    "fedora": 'PRETTY_NAME="Fedora Linux 43"\nID=fedora\n',
    "rhel": 'PRETTY_NAME="Rocky Linux 9.6"\nID="rocky"\nID_LIKE="rhel centos fedora"\n',
    "suse": 'PRETTY_NAME="openSUSE Tumbleweed"\nID="opensuse-tumbleweed"\nID_LIKE="suse"\n',
    "arch": "PRETTY_NAME=Arch\nID=arch\n",
    "alpine": "PRETTY_NAME=Alpine\nID=alpine\n",
}
Answers = Mapping[str, CommandResult | None]
Files = Mapping[str, str | None]

SMI_QUERY = "nvidia-smi --query-gpu=name"


def lists(*gpus: str, driver: str = DRIVER) -> CommandResult:
    """nvidia-smi's answer for GPUs given as "NAME, CAPABILITY, MIG MODE"."""
    rows = []
    for index, gpu in enumerate(gpus):
        name, rest = gpu.split(", ", 1)
        rows.append(f"{name}, {driver}, {index}, GPU-f0a1b2c3-000{index}, {rest}")
    return says("\n".join(rows))


ADA_GPU = "NVIDIA GeForce RTX 4090, 8.9, [N/A]"
SMI_FINE = lists(ADA_GPU)
CTK = "nvidia-ctk --version"
CTK_FINE = says("NVIDIA Container Toolkit CLI version 1.17.8\ncommit: 5b2f1a3")
WITH_RUNTIME = {INFO: says(json.dumps({**DOCKER_INFO, "Runtimes": {"runc": {}, "nvidia": {}}}))}

PLAIN_FILES: Files = {
    "proc/version": "Linux version 6.12.0-amd64",
    "proc/modules": "ext4 1015808 2 - Live 0x0\n",
    "proc/meminfo": "MemTotal: 32000000 kB\nMemFree: 100 kB\nMemAvailable: 24000000 kB\n",
    "dev/shm/.keep": "",
    "proc/sys/kernel/osrelease": f"{KERNEL}\n",
    f"lib/modules/{KERNEL}/modules.dep": "kernel/fs/ext4/ext4.ko.xz:\n",
}
CARD = "sys/bus/pci/devices/0000:01:00.0"
CARD_FILES: Files = {
    f"{CARD}/vendor": "0x10de\n",
    f"{CARD}/class": "0x030000\n",
    f"{CARD}/device": "0x2684\n",
}
GPU_FILES: Files = {
    **CARD_FILES,
    "proc/driver/nvidia/version": (
        "NVRM version: NVIDIA UNIX Open Kernel Module for x86_64  "
        f"{DRIVER}  Release Build\nGCC version: gcc version 14.2.0\n"
    ),
    "proc/modules": "nvidia_uvm 2150400 0 - Live 0x0\nnvidia 14000000 1 - Live 0x0\n",
    "dev/nvidiactl": "",
    "dev/nvidia0": "",
    "dev/nvidia-uvm": "",
    f"lib/modules/{KERNEL}/modules.dep": "updates/dkms/nvidia.ko.xz:\n",
}
# `nvidia-smi -L`, as an RTX 4090 answers it.
GPU_LINE = "GPU 0: NVIDIA GeForce RTX 4090 (UUID: GPU-f0a1b2c3-0000-1111-2222-333344445555)"
ECC = "nvidia-smi --query-gpu=index,ecc.errors"
REMAPPED = "nvidia-smi --query-remapped-rows"
SMI_LIST = "nvidia-smi -L"
SMI_STATE = "nvidia-smi --query-gpu=index,pstate"


def state(
    index: int = 0,
    watts: str = "450.00, 450.00",
    lanes: str = "16, 16",
    reasons: int = 1,
    **rest: str,
) -> str:
    """nvidia-smi's row about a GPU's clocks, power limit, link and persistence."""
    persistence, display = rest.get("persistence", "Disabled"), rest.get("display", "Disabled")
    pstate = rest.get("pstate", "P0")
    return f"{index}, {pstate}, {watts}, {lanes}, {persistence}, {display}, 0x{reasons:016x}"


# An image that is here, and a container of it that sees the GPU.
IMAGE_HERE: Answers = {
    "docker image inspect": says("sha256:1d0747c5"),
    "podman image inspect": says("1d0747c5"),
}
IN_DOCKER, IN_DOCKER_BY_CDI = "docker run --gpus", "docker run --device"
IN_PODMAN = "podman run --device"
SEEN_INSIDE: Answers = {
    **IMAGE_HERE,
    IN_DOCKER: says(GPU_LINE),
    IN_DOCKER_BY_CDI: says(GPU_LINE),
    IN_PODMAN: says(GPU_LINE),
}
# A specification of a driver's version, and the library it names.
SPEC = "cdiVersion: 0.5.0\nkind: nvidia.com/gpu\n  - hostPath: /usr/lib/libcuda.so.{}\n"
LIBRARY = "usr/lib/libcuda.so.{}"

GPU_ANSWERS: Answers = {
    **WITH_RUNTIME,
    **SEEN_INSIDE,
    SMI_QUERY: SMI_FINE,
    SMI_LIST: says(GPU_LINE),
    ECC: says("0, [N/A]"),
    REMAPPED: says("GPU-f0a1b2c3-0000, 0, 0"),
    SMI_STATE: says(state()),
    "dmesg": fails("dmesg: read kernel buffer failed: Operation not permitted"),
    "journalctl": says("Nov 24 09:12:01 ada kernel: NVRM: loading NVIDIA UNIX Open Kernel Module"),
    CTK: CTK_FINE,
}


def play_host(
    root: Path,
    *,
    files: Files = {},  # noqa: B006
    answers: Answers = {},  # noqa: B006
    gpu: bool = False,
    distribution: str = "debian",
    **settings: object,
) -> Host:
    """A healthy CPU host (or GPU host) with Docker, changed by ``files`` and ``answers``.

    A file or an answer of None is taken away.
    """
    written = {**PLAIN_FILES, **(GPU_FILES if gpu else {}), **files}
    written.setdefault("etc/os-release", OS_RELEASES[distribution])
    for name, text in written.items():
        if text is not None:
            path = root / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(text)
            path.chmod(0o666)
    played = {**DOCKER_FINE, **(GPU_ANSWERS if gpu else {}), **answers}
    runner = FakeRunner({start: answer for start, answer in played.items() if answer})
    workspace = root / "home/ada/work"
    workspace.mkdir(parents=True, exist_ok=True)
    host = Host(
        run=OnceRunner(runner),
        run_long=runner,
        run_shared=OnceRunner(runner, limit_seconds=600),
        root=root,
        machine=dataclasses.replace(ADA, user_id=workspace.stat().st_uid),
        groups=(),
        environment={},
        workspace=workspace,
        images=("labkit:cuda",),
        indexes=("https://index.example/whl/cpu",),
        free_bytes=lambda path: 80 * GIB,
        total_bytes=lambda path: 16 * GIB,
        free_inodes=lambda path: 10_000_000,
        find_program=lambda name: f"/usr/bin/{name}",
        is_port_free=lambda address, port: True,
        resolve=lambda name: None,
        reach=lambda url: None,
    )
    return dataclasses.replace(host, **settings)


def read_command(fix: str | None) -> str | None:
    """The command of a fix, without the comment that may follow it."""
    return fix.partition("   #")[0] if fix else fix


__all__ = ["CONTEXT", "INFO", "play_host"]

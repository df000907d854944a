"""A host that is played: recorded answers of docker, podman and nvidia-smi, and tiny programs."""

from __future__ import annotations

import json
import stat
from collections.abc import Mapping, Sequence
from pathlib import Path

from labkit.host.engine import EngineFacts
from labkit.host.gpu import GpuFacts
from labkit.host.machine import MachineFacts
from labkit.host.torch_builds import BUILDS
from labkit.launch.settings import Checkout
from labkit.process import CommandResult

Answers = Mapping[str, CommandResult]


class FakeRunner:
    """Answers a command with what is recorded for the longest beginning of it that is known.

    A program that nothing is recorded for is missing. ``calls`` holds what was asked.
    """

    def __init__(self, answers: Answers) -> None:
        self.answers = dict(answers)
        self.calls: list[str] = []
        self.limits: list[float] = []

    def __call__(self, arguments: Sequence[str], *, timeout_seconds: float) -> CommandResult:
        line = " ".join(arguments)
        self.calls.append(line)
        self.limits.append(timeout_seconds)
        known = [start for start in self.answers if line.startswith(start)]
        if not known:
            return CommandResult(tuple(arguments), None, missing=True)
        return self.answers[max(known, key=len)]


def says(stdout: str) -> CommandResult:
    """A program that prints this and ends well."""
    return CommandResult(("program",), 0, stdout + "\n")


def fails(stderr: str, exit_code: int = 1, stdout: str = "") -> CommandResult:
    """A program that complains and ends badly."""
    return CommandResult(("program",), exit_code, stdout, stderr + "\n")


def hangs(program: str, seconds: float = 10.0) -> CommandResult:
    """A program that was ended at its limit."""
    return CommandResult((program, "info"), None, seconds=seconds, timed_out=True)


NO_DAEMON = (
    "Cannot connect to the Docker daemon at unix:///var/run/docker.sock. "
    "Is the docker daemon running?"
)
NOT_ALLOWED = (
    "permission denied while trying to connect to the Docker daemon socket at "
    'unix:///var/run/docker.sock: Get "http://%2Fvar%2Frun%2Fdocker.sock/v1.45/info": '
    "dial unix /var/run/docker.sock: connect: permission denied"
)
# Recorded from a client without the Compose plugin: the reason, then the whole help.
NO_COMPOSE_PLUGIN = (
    "unknown flag: --short\nSee 'docker --help'.\n\nUsage:  docker [OPTIONS] COMMAND\n\n"
    "For more help on how to use Docker, head to https://docs.docker.com/go/guides/"
)
NO_PODMAN_PROVIDER = (
    "Error: looking up compose provider failed\n7 errors occurred:\n"
    '\t* exec: "docker-compose": executable file not found in $PATH'
)

INFO = "docker info"
COMPOSE = "docker compose version"
CONTEXT = "docker context inspect"
PODMAN_INFO = "podman info"
PODMAN_COMPOSE = "podman compose version"

DOCKER_INFO = {
    "ServerVersion": "26.1.5+dfsg1",
    "SecurityOptions": ["name=seccomp,profile=builtin"],
    "OperatingSystem": "Debian GNU/Linux 12 (bookworm)",
}
PODMAN_SAYS = {
    "host": {"security": {"rootless": True, "selinuxEnabled": False}, "os": "linux"},
    "version": {"APIVersion": "5.4.2", "Version": "5.4.2"},
}

DOCKER_FINE: Answers = {
    INFO: says(json.dumps(DOCKER_INFO)),
    COMPOSE: says("2.26.1-4"),
    CONTEXT: says("unix:///var/run/docker.sock"),
}
PODMAN_FINE: Answers = {
    PODMAN_INFO: says(json.dumps(PODMAN_SAYS)),
    PODMAN_COMPOSE: says("1.3.0"),
}
# podman-docker: a command named docker that is Podman's.
PODMAN_AS_DOCKER: Answers = {
    INFO: says(json.dumps(PODMAN_SAYS)),
    COMPOSE: says("1.3.0"),
    CONTEXT: fails('Error: unrecognized command "docker context"', 125),
}

SMI = "nvidia-smi"
TWO_GPUS: Answers = {
    SMI: says(
        "NVIDIA H200, 580.65.06, 0, GPU-aaaa, 9.0, Disabled\n"
        "NVIDIA GeForce RTX 4090, 580.65.06, 1, GPU-bbbb, 8.9, [N/A]"
    ),
}
# Recorded from 470, which does not know the field.
SMI_REFUSES = CommandResult(
    ("nvidia-smi",), 2, 'Field "compute_cap" is not a valid field to query.\n\n'
)
SMI_WITHOUT_DRIVER: Answers = {
    SMI: CommandResult(
        ("nvidia-smi",),
        9,
        "NVIDIA-SMI has failed because it couldn't communicate with the NVIDIA driver. "
        "Make sure that the latest NVIDIA driver is installed and running.\n",
    ),
}

DOCKER = EngineFacts(
    "docker",
    client_found=True,
    server_version="26.1.5",
    endpoint="unix:///var/run/docker.sock",
    rootless=False,
    compose_version="2.26.1",
)
PODMAN = EngineFacts(
    "podman", client_found=True, server_version="5.4.2", rootless=True, compose_version="1.3.0"
)
NO_DOCKER = EngineFacts("docker", client_found=False)
NO_PODMAN = EngineFacts("podman", client_found=False)
NO_GPU = GpuFacts()

ADA = MachineFacts(
    system="Linux",
    architecture="x86_64",
    python=(3, 12),
    user_id=1000,
    group_id=1000,
    user_name="ada",
    ssh_server=None,
)


def write_program(folder: Path, name: str, script: str) -> Path:
    """An executable ``folder/name`` made of a few lines of sh."""
    folder.mkdir(parents=True, exist_ok=True)
    program = folder / name
    program.write_text(f"#!/bin/sh\n{script}\n", encoding="utf-8")
    program.chmod(program.stat().st_mode | stat.S_IXUSR | stat.S_IXGRP | stat.S_IXOTH)
    return program


def make_checkout(folder: Path) -> Checkout:
    """A checkout with the files that the launcher looks for, and nothing started in it."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "compose.yaml").write_text("services: {}\n", encoding="utf-8")
    (folder / "pyproject.toml").write_text("[project]\nname = 'labkit'\n", encoding="utf-8")
    locks = folder / "docker" / "locks"
    locks.mkdir(parents=True)
    for build in BUILDS.values():
        for name in build.locks[:-1]:
            package = "nvidia-cublas==13.0" if name.startswith("cuda-") else "torch==2.13.0"
            (locks / f"{name}.txt").write_text(f"{package}\n", encoding="utf-8")
    (locks / "torch-cpu.txt").write_text("torch==2.13.0+cpu\n", encoding="utf-8")
    (locks / "lab.txt").write_text("numpy==2.4.0\n", encoding="utf-8")
    (folder / ".labkit" / "logs").mkdir(mode=0o700, parents=True)
    (folder / "work").mkdir()
    return Checkout(folder)

"""Is the NVIDIA Container Toolkit there, and past its worst hole?"""

from __future__ import annotations

import re
from dataclasses import dataclass

from labkit.commands import CommandResult
from labkit.doctor.check import Check, Finding, failed, ok, unknown, warning
from labkit.doctor.distribution import INSTALL_TOOLKIT, UPDATE_TOOLKIT, Distribution
from labkit.doctor.host import COMMAND_SECONDS, Host

SAFE_VERSION = (1, 17, 8)  # CVE-2025-23266, a way out of the container, is open before it


@dataclass(frozen=True)
class ToolkitFacts:
    """What nvidia-ctk says of itself, and whether the engine brings a toolkit of its own."""

    answer: CommandResult
    engine_has_runtime: bool = False


def probe(host: Host) -> ToolkitFacts:
    """`nvidia-ctk --version`, and the runtimes that `docker info` lists."""
    answer = host.run(["nvidia-ctk", "--version"], timeout_seconds=COMMAND_SECONDS)
    return ToolkitFacts(answer, knows_runtime(host))


def knows_runtime(host: Host) -> bool:
    """True where `docker info` lists the nvidia runtime."""
    runtimes = host.ask_docker().get("Runtimes")
    return isinstance(runtimes, dict) and "nvidia" in runtimes


def judge(facts: ToolkitFacts, distribution: Distribution) -> Finding:
    """Fine from 1.17.8 on; Docker Desktop has one inside that this cannot ask."""
    if facts.answer.missing:
        if facts.engine_has_runtime:
            return ok("not installed here; the engine brings its own (Docker Desktop)")
        return failed(
            "no NVIDIA Container Toolkit",
            "without it no container gets the GPU; it comes from NVIDIA's own package source "
            "(nvidia.github.io/libnvidia-container)",
            INSTALL_TOOLKIT.on(distribution),
        )
    found = re.search(r"version\s+v?(\d+)\.(\d+)\.(\d+)", facts.answer.stdout)
    if found is None:
        return unknown(f"nvidia-ctk tells no version ({facts.answer.message})")
    version = ".".join(found.groups())
    if tuple(map(int, found.groups())) < SAFE_VERSION:
        return warning(
            f"NVIDIA Container Toolkit {version}",
            "CVE-2025-23266 is open before 1.17.8: a container can take over the host",
            UPDATE_TOOLKIT.on(distribution),
        )
    return ok(f"NVIDIA Container Toolkit {version}")


CHECK = Check("toolkit", "the NVIDIA Container Toolkit", probe, judge, ("engine-kind",))

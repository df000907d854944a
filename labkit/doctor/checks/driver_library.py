"""Do the driver's libraries fit its loaded kernel module, so that nvidia-smi works?"""

from __future__ import annotations

import re
from dataclasses import dataclass

from labkit.commands import CommandResult
from labkit.doctor.check import Check, Finding, failed, ok, unknown, warning
from labkit.doctor.checks.driver import read_module_version
from labkit.doctor.distribution import Distribution
from labkit.doctor.explain import explain_text
from labkit.doctor.host import COMMAND_SECONDS, Host

QUERY = ["nvidia-smi", "--query-gpu=name,driver_version", "--format=csv,noheader"]


@dataclass(frozen=True)
class LibraryFacts:
    """nvidia-smi's answer, and the version of the module below it."""

    answer: CommandResult
    module_version: str | None = None
    in_container: bool = False


def probe(host: Host) -> LibraryFacts:
    """nvidia-smi goes through the library to the module: it fails where they differ."""
    answer = host.run(QUERY, timeout_seconds=COMMAND_SECONDS)
    return LibraryFacts(answer, read_module_version(host), host.in_container)


def judge(facts: LibraryFacts, distribution: Distribution) -> Finding:
    """Fine where nvidia-smi lists GPUs; else what its own words mean."""
    answer = facts.answer
    if answer.missing:
        return _judge_no_program(facts.in_container)
    if answer.timed_out:
        return unknown(answer.message, "sudo dmesg | grep -i xid   # a hung GPU needs a reboot")
    said = f"{answer.stdout}\n{answer.stderr}"
    found = explain_text(said).first
    if found:
        return failed(found.line, found.sign.cause, found.sign.fix.on(distribution))
    if not answer.ok:
        return failed(answer.message, "nvidia-smi does not say why", "sudo dmesg | grep -i nvrm")
    names = [line.split(",")[0].strip() for line in answer.stdout.splitlines() if "," in line]
    if not names:
        return unknown("nvidia-smi printed nothing that lists a GPU", "nvidia-smi")
    versions = re.findall(r"\d{3}\.\d+(?:\.\d+)?", answer.stdout)
    agree = f", both {facts.module_version}" if facts.module_version in versions else ""
    return ok(f"module and libraries work together{agree}: {', '.join(names)}")


def _judge_no_program(in_container: bool) -> Finding:
    if in_container:
        return warning(
            "this container has the GPU's files, and no nvidia-smi",
            "the driver's programs were not passed on to it",
            "NVIDIA_DRIVER_CAPABILITIES=compute,utility   # in the container's environment",
        )
    return warning(
        "the module is loaded, but there is no nvidia-smi",
        "the driver's user-space part is missing or not on PATH",
        "command -v nvidia-smi || sudo ldconfig -p | grep libnvidia-ml",
    )


CHECK = Check(
    "driver-library", "module and libraries of one version", probe, judge, needs=("driver",)
)

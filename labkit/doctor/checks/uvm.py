"""Is nvidia-uvm there, which CUDA needs and nvidia-smi does not?"""

from __future__ import annotations

import re
from dataclasses import dataclass

from labkit.doctor.check import Check, Finding, SafeFix, ok, warning
from labkit.doctor.distribution import Distribution
from labkit.doctor.host import Host


@dataclass(frozen=True)
class UvmFacts:
    """Whether the module is loaded, its device file there, and who could load it on demand."""

    loaded: bool = False
    has_node: bool = False
    has_loader: bool = False
    in_wsl: bool = False
    in_container: bool = False


def probe(host: Host) -> UvmFacts:
    """/proc/modules, /dev/nvidia-uvm and the nvidia-modprobe program."""
    return UvmFacts(
        loaded=bool(re.search(r"^nvidia_uvm ", host.read("proc/modules") or "", re.MULTILINE)),
        has_node=host.exists("dev/nvidia-uvm"),
        has_loader=host.exists("usr/bin/nvidia-modprobe"),
        in_wsl=host.in_wsl,
        in_container=host.in_container,
    )


def judge(facts: UvmFacts, distribution: Distribution) -> Finding:
    """Fine where it is there, or where CUDA's first use will load it."""
    if facts.in_wsl:
        return ok("WSL2 needs none")
    if facts.has_node:
        return ok("/dev/nvidia-uvm is there")
    if facts.has_loader:
        return ok("not loaded yet; nvidia-modprobe loads it when CUDA is first used")
    cause = "CUDA would fail with an unknown error where nvidia-smi still works"
    if facts.in_container:
        return warning("no /dev/nvidia-uvm in this container", cause, "make down up")
    what = "nvidia-uvm is loaded, without /dev/nvidia-uvm" if facts.loaded else "no nvidia-uvm"
    load = ("modprobe", "nvidia-uvm")
    safe = None if facts.loaded else SafeFix(load, "loads the driver's module for CUDA's memory")
    return warning(
        what, cause, "sudo nvidia-modprobe -u -c=0 || sudo modprobe nvidia-uvm", safe=safe
    )


CHECK = Check("nvidia-uvm", "the module that CUDA's memory needs", probe, judge, ("driver",))

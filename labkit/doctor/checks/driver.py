"""Is NVIDIA's driver loaded, and new enough for a CUDA build of torch?"""

from __future__ import annotations

import re
from dataclasses import dataclass

from labkit.doctor.check import Check, Finding, SafeFix, failed, ok, unknown
from labkit.doctor.distribution import INSTALL_DRIVER, Distribution, Fix
from labkit.doctor.explain import explain_text
from labkit.doctor.host import COMMAND_SECONDS, Host
from labkit.host.builds import NEEDS
from labkit.host.gpu import GpuFacts, probe_gpu

OLDEST_DRIVER = min(needs.driver for needs in NEEDS.values())
NEWEST_DRIVER = max(needs.driver for needs in NEEDS.values())
DROP_NOUVEAU = Fix(
    "echo blacklist nouveau | sudo tee /etc/modprobe.d/no-nouveau.conf "
    "&& sudo dracut --force && sudo reboot",
    debian="echo blacklist nouveau | sudo tee /etc/modprobe.d/no-nouveau.conf "
    "&& sudo update-initramfs -u && sudo reboot",
    arch="echo blacklist nouveau | sudo tee /etc/modprobe.d/no-nouveau.conf "
    "&& sudo mkinitcpio -P && sudo reboot",
)
ENROLL_KEY = Fix(
    "sudo mokutil --import <the key that signed the module>   # then reboot and enroll it",
    ubuntu="sudo update-secureboot-policy --enroll-key   # then reboot and enroll it",
    fedora="sudo kmodgenca -a; sudo mokutil --import /etc/pki/akmods/certs/public_key.der   "
    "# then reboot and enroll it",
)


@dataclass(frozen=True)
class DriverFacts:
    """nvidia-smi's words or the loaded module's version, and what stands in its place."""

    gpu: GpuFacts
    module_version: str | None = None
    installed_module: str | None = None
    held_by_nouveau: bool = False
    in_wsl: bool = False
    hung: bool = False
    secure_boot: bool = False


def probe(host: Host) -> DriverFacts:
    """nvidia-smi first, then the module's own file, then whether a module could be loaded."""
    gpu = probe_gpu(host.run, host.root)
    hung = "did not answer" in (gpu.problem or "")
    return DriverFacts(
        gpu,
        module_version=read_module_version(host),
        # One hang is as much waiting as a check may cost.
        installed_module=None if hung or gpu.driver_version else _find_installed(host),
        held_by_nouveau=bool(re.search(r"^nouveau ", host.read("proc/modules") or "", re.M)),
        in_wsl=host.in_wsl,
        hung=hung,
        secure_boot=is_secure_boot(host),
    )


def is_secure_boot(host: Host) -> bool:
    """True where the firmware says Secure Boot is on: its variable's last byte is 1."""
    variables = host.list("sys/firmware/efi/efivars", "SecureBoot-*")
    texts = [host.read(f"sys/firmware/efi/efivars/{each.name}") for each in variables]
    return any(text and text[-1] == "\x01" for text in texts)


def _find_installed(host: Host) -> str | None:
    """The version of the module that the running kernel could load, or None."""
    answer = host.run(["modinfo", "-F", "version", "nvidia"], timeout_seconds=COMMAND_SECONDS)
    version = answer.stdout.strip() if answer.ok else ""
    return version if re.fullmatch(r"\d{3}[\d.]*", version) else None


def read_module_version(host: Host) -> str | None:
    """The loaded kernel module's version, such as "580.65.06"; None where none is loaded."""
    text = host.read("proc/driver/nvidia/version") or ""
    found = re.search(r"\b(\d{3}\.\d+(?:\.\d+)?)\b", text)
    return found.group(1) if found else None


def judge(facts: DriverFacts, distribution: Distribution) -> Finding:
    """The loaded driver's version against what CUDA 12 and 13 need."""
    version = facts.gpu.driver_version or facts.module_version
    major = re.match(r"\d+", version or "")
    if facts.hung and not version:
        return unknown(
            f"{facts.gpu.problem}", "sudo dmesg | grep -i xid   # a hung GPU needs a reboot"
        )
    if major is None:
        return _judge_missing(facts, distribution)
    if int(major.group()) < OLDEST_DRIVER:
        return failed(
            f"driver {version}",
            f"too old: every CUDA build of torch here needs driver {OLDEST_DRIVER} or newer",
            INSTALL_DRIVER.on(distribution),
        )
    build = "every CUDA build" if int(major.group()) >= NEWEST_DRIVER else "CUDA 12 builds"
    return ok(f"driver {version} runs {build} of torch")


def _judge_missing(facts: DriverFacts, distribution: Distribution) -> Finding:
    found = explain_text(facts.gpu.problem or "").first
    if facts.in_wsl:
        cause = found.sign.cause if found else "the driver in Windows does not reach into WSL2"
        return failed(
            f"no driver answers ({facts.gpu.problem or 'no nvidia-smi'})",
            cause,
            "wsl.exe --update && wsl.exe --shutdown   # in Windows, with its driver current",
        )
    if facts.held_by_nouveau:
        fix = DROP_NOUVEAU if facts.installed_module else INSTALL_DRIVER
        return failed(
            "nouveau drives the GPU",
            "the free nouveau driver is loaded, which CUDA cannot use",
            fix.on(distribution),
        )
    if facts.installed_module:
        return _judge_not_loaded(facts, distribution)
    return failed(
        "no NVIDIA driver is loaded",
        "none is installed, or none for the running kernel",
        INSTALL_DRIVER.on(distribution),
    )


def _judge_not_loaded(facts: DriverFacts, distribution: Distribution) -> Finding:
    found = f"driver {facts.installed_module} is installed but not loaded"
    if facts.secure_boot:
        return failed(
            found,
            "Secure Boot is on, and refuses a module that is not signed with an enrolled key",
            ENROLL_KEY.on(distribution),
        )
    return failed(
        found,
        "the kernel did not load its module: no reboot since it was installed",
        "sudo modprobe nvidia   # where it refuses, it says why",
        safe=SafeFix(("modprobe", "nvidia"), "loads the driver that is installed"),
    )


CHECK = Check("driver", "NVIDIA's driver, and its age", probe, judge, needs=("gpu-bus",))

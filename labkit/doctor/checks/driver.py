"""Checks of the GPU and its driver: bus, kernel module, libraries, device files, faults, MIG."""

from __future__ import annotations

import re
import stat
from dataclasses import dataclass

from labkit.doctor.check import (
    COMMAND_SECONDS,
    Check,
    Finding,
    Host,
    SafeFix,
    failed,
    ok,
    unknown,
    warning,
)
from labkit.host.distribution import Distribution
from labkit.host.gpu import (
    DISPLAY_CLASS,
    NVIDIA,
    Gpu,
    GpuFacts,
    probe_gpu,
    read_module_version,
)
from labkit.host.packages import DROP_NOUVEAU, ENROLL_KEY, INSTALL_DRIVER
from labkit.host.torch_builds import NEEDS
from labkit.known_errors import KNOWN_ERRORS
from labkit.known_errors.match import explain_text
from labkit.process import CommandResult
from labkit.text import plural

NOT_PASSED = "no GPU was passed to this container"
NO_GPU = "no NVIDIA GPU on the bus; the lab uses the CPU"


@dataclass(frozen=True)
class BusFacts:
    """The PCI addresses of NVIDIA's display controllers, and the kernel driver of each.

    A container sees the host's bus even if no GPU was passed on to it. ``gpu_asked`` says whether
    its environment requests one, as that of the CUDA image does.
    """

    drivers: tuple[tuple[str, str | None], ...] = ()
    in_wsl: bool = False
    has_nodes: bool = False
    in_container: bool = False
    gpu_asked: bool = False


def probe_gpu_bus(host: Host) -> BusFacts:
    """The GPUs in /sys/bus/pci, and the device files of GPUs without a PCI bus (WSL2, Jetson)."""
    found = []
    for folder in host.list("sys/bus/pci/devices", "*"):
        place = f"sys/bus/pci/devices/{folder.name}"
        vendor, category = host.read(f"{place}/vendor"), host.read(f"{place}/class")
        if (vendor or "").strip() == NVIDIA and (category or "").startswith(DISPLAY_CLASS):
            link = folder / "driver"
            found.append((folder.name, link.readlink().name if link.is_symlink() else None))
    return BusFacts(
        tuple(found),
        host.exists("dev/dxg"),
        host.exists("dev/nvidiactl"),
        host.in_container,
        host.environment.get("NVIDIA_VISIBLE_DEVICES", "void") not in ("", "void", "none"),
    )


def judge_gpu_bus(facts: BusFacts, distribution: Distribution) -> Finding:
    """OK with or without a GPU; a warning if all are reserved for virtual machines."""
    if not facts.drivers:
        if facts.in_wsl:
            return ok("WSL2: Windows shares its GPU (/dev/dxg)")
        if facts.has_nodes:
            return ok("an NVIDIA GPU that is not on a PCI bus (/dev/nvidiactl)")
        return ok(NO_GPU, skip_reason="no NVIDIA GPU on the bus")
    if facts.in_container and not facts.has_nodes and not facts.in_wsl:
        return _judge_not_passed(facts)
    given = [address for address, driver in facts.drivers if driver == "vfio-pci"]
    if len(given) == len(facts.drivers):
        return warning(
            f"every NVIDIA GPU ({', '.join(given)}) is reserved for virtual machines",
            "its kernel driver is vfio-pci, so this host cannot use it; the lab uses the CPU",
            "lspci -nnk -d 10de:   # then remove its id from vfio-pci's ids",
            skip_reason="the GPU is reserved for virtual machines",
        )
    return ok(f"{len(facts.drivers)} on the bus: {', '.join(name for name, _ in facts.drivers)}")


def _judge_not_passed(facts: BusFacts) -> Finding:
    """A container without the host's GPU: a problem only if it requested one."""
    if not facts.gpu_asked:
        return ok(
            "the host has an NVIDIA GPU; this container did not request it", skip_reason=NOT_PASSED
        )
    return warning(
        "the host has an NVIDIA GPU, but this container does not",
        "it was started without one, or the engine did not pass it on",
        "make doctor   # on the host: shows where the GPU is lost",
        skip_reason=NOT_PASSED,
    )


GPU_BUS_CHECK = Check("gpu-bus", "an NVIDIA GPU on the bus", probe_gpu_bus, judge_gpu_bus)


OLDEST_DRIVER = min(needs.driver for needs in NEEDS.values())
NEWEST_DRIVER = max(needs.driver for needs in NEEDS.values())


@dataclass(frozen=True)
class DriverFacts:
    """The driver from nvidia-smi, the loaded module, and what may prevent it from loading."""

    gpu: GpuFacts
    module_version: str | None = None
    installed_module: str | None = None
    held_by_nouveau: bool = False
    in_wsl: bool = False
    hung: bool = False
    secure_boot: bool = False


def probe_driver(host: Host) -> DriverFacts:
    """nvidia-smi first, then the loaded module, then the module that could be loaded."""
    gpu = probe_gpu(host.run, host.root)
    hung = "did not answer" in (gpu.problem or "")
    return DriverFacts(
        gpu,
        module_version=read_module_version(host.root),
        # A check has time for one hanging command only.
        installed_module=None if hung or gpu.driver_version else _find_installed(host),
        held_by_nouveau=bool(re.search(r"^nouveau ", host.read("proc/modules") or "", re.M)),
        in_wsl=host.in_wsl,
        hung=hung,
        secure_boot=is_secure_boot(host),
    )


def is_secure_boot(host: Host) -> bool:
    """True if the firmware says that Secure Boot is on: its variable's last byte is 1."""
    variables = host.list("sys/firmware/efi/efivars", "SecureBoot-*")
    texts = [host.read(f"sys/firmware/efi/efivars/{each.name}") for each in variables]
    return any(text and text[-1] == "\x01" for text in texts)


def _find_installed(host: Host) -> str | None:
    """The version of the module that the running kernel could load, or None."""
    answer = host.run(["modinfo", "-F", "version", "nvidia"], timeout_seconds=COMMAND_SECONDS)
    version = answer.stdout.strip() if answer.ok else ""
    return version if re.fullmatch(r"\d{3}[\d.]*", version) else None


def judge_driver(facts: DriverFacts, distribution: Distribution) -> Finding:
    """Compares the loaded driver's version with what CUDA 12 and 13 need."""
    version = facts.gpu.driver_version or facts.module_version
    major = re.match(r"\d+", version or "")
    if facts.hung and not version:
        return unknown(
            f"{facts.gpu.problem}", "sudo dmesg | grep -i xid   # if the GPU hangs: reboot"
        )
    if major is None:
        return _judge_missing_driver(facts, distribution)
    if int(major.group()) < OLDEST_DRIVER:
        return failed(
            f"driver {version}",
            f"too old: the CUDA builds of torch need driver {OLDEST_DRIVER} or newer",
            INSTALL_DRIVER.on(distribution),
        )
    build = "every CUDA build" if int(major.group()) >= NEWEST_DRIVER else "CUDA 12 builds"
    return ok(f"driver {version} runs {build} of torch")


def _judge_missing_driver(facts: DriverFacts, distribution: Distribution) -> Finding:
    found = explain_text(facts.gpu.problem or "").first
    if facts.in_wsl:
        cause = found.error.cause if found else "the driver in Windows is not available in WSL2"
        return failed(
            f"no driver answers ({facts.gpu.problem or 'no nvidia-smi'})",
            cause,
            "wsl.exe --update && wsl.exe --shutdown   # in Windows, with a current driver",
        )
    if facts.held_by_nouveau:
        fix = DROP_NOUVEAU if facts.installed_module else INSTALL_DRIVER
        return failed(
            "the GPU is driven by nouveau",
            "nouveau is loaded, which CUDA cannot use",
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
            "Secure Boot is on and rejects a module that is not signed with an enrolled key",
            ENROLL_KEY.on(distribution),
        )
    return failed(
        found,
        "the kernel has not loaded its module: no reboot since the installation?",
        "sudo modprobe nvidia   # if it fails, it says why",
        safe=SafeFix(("modprobe", "nvidia"), "loads the installed driver"),
    )


DRIVER_CHECK = Check(
    "driver", "NVIDIA's driver and its version", probe_driver, judge_driver, needs=("gpu-bus",)
)


QUERY = ["nvidia-smi", "--query-gpu=name,driver_version", "--format=csv,noheader"]


@dataclass(frozen=True)
class LibraryFacts:
    """nvidia-smi's answer, and the version of the loaded module."""

    answer: CommandResult
    module_version: str | None = None
    in_container: bool = False


def probe_driver_library(host: Host) -> LibraryFacts:
    """nvidia-smi calls the module through the library: it fails if their versions differ."""
    answer = host.run(QUERY, timeout_seconds=COMMAND_SECONDS)
    return LibraryFacts(answer, read_module_version(host.root), host.in_container)


def judge_driver_library(facts: LibraryFacts, distribution: Distribution) -> Finding:
    """OK if nvidia-smi lists GPUs; else the cause of its error."""
    answer = facts.answer
    if answer.missing:
        return _judge_no_program(facts.in_container)
    if answer.timed_out:
        return unknown(answer.message, "sudo dmesg | grep -i xid   # if the GPU hangs: reboot")
    output = f"{answer.stdout}\n{answer.stderr}"
    found = explain_text(output).first
    if found:
        return failed(found.line, found.error.cause, found.error.fix.on(distribution))
    if not answer.ok:
        return failed(answer.message, "nvidia-smi does not say why", "sudo dmesg | grep -i nvrm")
    names = [line.split(",")[0].strip() for line in answer.stdout.splitlines() if "," in line]
    if not names:
        return unknown("nvidia-smi lists no GPU", "nvidia-smi")
    versions = re.findall(r"\d{3}\.\d+(?:\.\d+)?", answer.stdout)
    agree = f", both {facts.module_version}" if facts.module_version in versions else ""
    return ok(f"module and libraries work together{agree}: {', '.join(names)}")


def _judge_no_program(in_container: bool) -> Finding:
    if in_container:
        return warning(
            "this container has the GPU's device files, but no nvidia-smi",
            "the driver's programs were not passed on",
            "NVIDIA_DRIVER_CAPABILITIES=compute,utility   # in the container's environment",
        )
    return warning(
        "the module is loaded, but nvidia-smi is missing",
        "the driver's programs are not installed, or not on PATH",
        "command -v nvidia-smi || sudo ldconfig -p | grep libnvidia-ml",
    )


DRIVER_LIBRARY_CHECK = Check(
    "driver-library",
    "module and libraries of the same version",
    probe_driver_library,
    judge_driver_library,
    needs=("driver",),
)


@dataclass(frozen=True)
class UvmFacts:
    """Whether the module is loaded, its device file exists, and nvidia-modprobe can load it."""

    loaded: bool = False
    has_node: bool = False
    has_loader: bool = False
    in_wsl: bool = False
    in_container: bool = False


def probe_uvm(host: Host) -> UvmFacts:
    """/proc/modules, /dev/nvidia-uvm and the nvidia-modprobe program."""
    return UvmFacts(
        loaded=bool(re.search(r"^nvidia_uvm ", host.read("proc/modules") or "", re.MULTILINE)),
        has_node=host.exists("dev/nvidia-uvm"),
        has_loader=host.exists("usr/bin/nvidia-modprobe"),
        in_wsl=host.in_wsl,
        in_container=host.in_container,
    )


def judge_uvm(facts: UvmFacts, distribution: Distribution) -> Finding:
    """OK if the device file exists, or if CUDA's first use creates it."""
    if facts.in_wsl:
        return ok("not needed in WSL2")
    if facts.has_node:
        return ok("/dev/nvidia-uvm exists")
    if facts.has_loader:
        return ok("not loaded yet; nvidia-modprobe loads it when CUDA is first used")
    cause = "CUDA would fail with an unknown error, although nvidia-smi works"
    if facts.in_container:
        return warning("no /dev/nvidia-uvm in this container", cause, "make down up")
    what = "nvidia-uvm is loaded, but /dev/nvidia-uvm is missing"
    if not facts.loaded:
        what = "nvidia-uvm is not loaded"
    load = ("modprobe", "nvidia-uvm")
    safe = None if facts.loaded else SafeFix(load, "loads the driver's module for CUDA's memory")
    return warning(
        what, cause, "sudo nvidia-modprobe -u -c=0 || sudo modprobe nvidia-uvm", safe=safe
    )


UVM_CHECK = Check(
    "nvidia-uvm", "the module that CUDA's memory needs", probe_uvm, judge_uvm, ("driver",)
)


@dataclass(frozen=True)
class NodeFacts:
    """The device files, the ones that this user cannot open, and whether nvidia-modprobe exists."""

    found: tuple[str, ...] = ()
    refused: tuple[str, ...] = ()
    in_wsl: bool = False
    in_container: bool = False
    has_loader: bool = False


def probe_device_nodes(host: Host) -> NodeFacts:
    """/dev/nvidiactl, /dev/nvidia0, /dev/nvidia1, ..., with owner and mode."""
    if host.exists("dev/dxg"):
        return NodeFacts(("dxg",), in_wsl=True)
    nodes = [*host.list("dev", "nvidiactl"), *host.list("dev", "nvidia[0-9]*")]
    refused = [node.name for node in nodes if not _may_open(node.stat(), host)]
    return NodeFacts(
        tuple(node.name for node in nodes),
        tuple(refused),
        in_container=host.in_container,
        has_loader=host.exists("usr/bin/nvidia-modprobe"),
    )


def _may_open(status: object, host: Host) -> bool:
    """Whether owner, group and mode let this host's user read and write."""
    mode = int(getattr(status, "st_mode", 0))
    owner, group = getattr(status, "st_uid", None), getattr(status, "st_gid", None)
    if host.machine.is_root:
        return True
    if owner == host.machine.user_id:
        wanted = stat.S_IRUSR | stat.S_IWUSR
    elif group == host.machine.group_id or group in host.groups:
        wanted = stat.S_IRGRP | stat.S_IWGRP
    else:
        wanted = stat.S_IROTH | stat.S_IWOTH
    return mode & wanted == wanted


def judge_device_nodes(facts: NodeFacts, distribution: Distribution) -> Finding:
    """OK if the files of nvidiactl and a GPU exist and this user may open them."""
    if facts.in_wsl:
        return ok("/dev/dxg exists")
    if "nvidiactl" not in facts.found or len(facts.found) < 2:
        return _judge_missing_device_nodes(facts)
    if facts.refused:
        return failed(
            f"this user cannot open {', '.join(f'/dev/{name}' for name in facts.refused)}",
            "their group and mode do not allow it",
            "sudo usermod -aG video $USER   # or the group of `ls -l /dev/nvidia*`",
        )
    return ok(f"{', '.join(f'/dev/{name}' for name in facts.found)}, open to this user")


def _judge_missing_device_nodes(facts: NodeFacts) -> Finding:
    found = f"missing: {'/dev/nvidia0' if 'nvidiactl' in facts.found else '/dev/nvidiactl'}"
    if facts.in_container:
        return failed(
            found,
            "only some of the GPU's device files were passed on to this container",
            "make down up",
        )
    make = SafeFix(("nvidia-modprobe", "-c=0", "-u"), "creates the GPU's device files")
    return failed(
        found,
        "the driver is loaded, but its device files were not created",
        "sudo nvidia-modprobe -c=0 -u",
        safe=make if facts.has_loader else None,
    )


DEVICE_NODES_CHECK = Check(
    "device-nodes",
    "device files and their permissions",
    probe_device_nodes,
    judge_device_nodes,
    ("driver",),
)


ECC_QUERY = [
    "nvidia-smi",
    "--query-gpu=index,ecc.errors.uncorrected.volatile.total",
    "--format=csv,noheader",
]
LOGS = (
    ["dmesg"],
    ["journalctl", "--dmesg", "--boot", "--quiet", "--no-pager", "--grep=NVRM"],
)
FAULTS = ("gpu-off-the-bus", "ecc-error", "gpu-firmware-hung", "needs-open-modules")


@dataclass(frozen=True)
class HealthFacts:
    """The kernel's lines about NVIDIA's GPUs since boot (None: unreadable), and ECC counts."""

    log: str | None = None
    errors: tuple[tuple[int, int], ...] = ()


def probe_gpu_health(host: Host) -> HealthFacts:
    """The kernel's log, if this user may read it, and nvidia-smi's count of memory errors."""
    answer = host.run(ECC_QUERY, timeout_seconds=COMMAND_SECONDS)
    counted = re.findall(r"^(\d+), *(\d+)\s*$", answer.stdout, re.MULTILINE)
    return HealthFacts(_read_log(host), tuple((int(index), int(count)) for index, count in counted))


def _read_log(host: Host) -> str | None:
    for command in LOGS:
        answer = host.run(command, timeout_seconds=COMMAND_SECONDS)
        if answer.ok:
            return "\n".join(line for line in answer.stdout.splitlines() if "NVRM" in line)
        if answer.timed_out:  # a check has time for one hanging command only
            return None
    return None


def judge_gpu_health(facts: HealthFacts, distribution: Distribution) -> Finding:
    """A failure if a GPU left the bus: it is gone until a reboot; other faults are warnings."""
    faults = tuple(error for error in KNOWN_ERRORS if error.name in FAULTS)
    found = explain_text(facts.log or "", faults).first
    if found:
        judged = (
            failed if found.error.name in ("gpu-off-the-bus", "needs-open-modules") else warning
        )
        return judged(found.line, found.error.cause, found.error.fix.on(distribution))
    broken = [(index, count) for index, count in facts.errors if count]
    if broken:
        index, count = broken[0]
        return warning(
            f"GPU {index} has had {count} uncorrectable memory errors",
            "programs that used this memory crashed or computed wrong results",
            "nvidia-smi -q -d ECC,ROW_REMAPPER   # reset the GPU; if it happens again, replace it",
        )
    if facts.log is None:
        return ok("no memory errors; only root can read the kernel's log: sudo dmesg | grep NVRM")
    return ok("no fault in the kernel's log since boot")


GPU_HEALTH_CHECK = Check(
    "gpu-health", "the GPU's own faults", probe_gpu_health, judge_gpu_health, ("gpu-bus",)
)


def probe_mig(host: Host) -> tuple[Gpu, ...]:
    """The GPUs that nvidia-smi lists, with MIG's state and instances."""
    return probe_gpu(host.run, host.root).gpus


def judge_mig(gpus: tuple[Gpu, ...], distribution: Distribution) -> Finding:
    """A failure if MIG is on without an instance: CUDA then has no device."""
    enabled = [gpu for gpu in gpus if gpu.mig]
    empty = [gpu for gpu in enabled if not gpu.instances]
    if empty:
        index = empty[0].index
        return failed(
            f"MIG is on for GPU {index}, which has no MIG instance",
            "with MIG on, CUDA uses only MIG instances",
            f"sudo nvidia-smi mig -i {index} -cgi 0 -C   "
            f"# one instance of the whole GPU; or turn MIG off: sudo nvidia-smi -i {index} -mig 0",
        )
    if enabled:
        count = sum(len(gpu.instances) for gpu in enabled)
        return ok(f"MIG is on: {plural(count, 'instance')}; a process uses one of them")
    return ok("MIG is off, or this GPU has none")


MIG_CHECK = Check("mig", "MIG instances", probe_mig, judge_mig, ("driver-library",))

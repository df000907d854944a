"""Is NVIDIA's driver loaded, and new enough for a CUDA build of torch?

Is there an NVIDIA GPU on this machine at all?

Do the driver's libraries fit its loaded kernel module, so that nvidia-smi works?

Is nvidia-uvm there, which CUDA needs and nvidia-smi does not?

Are the GPU's device files there, and may this user open them?

Has the GPU itself reported a fault: off the bus, or memory that it cannot correct?

Where a GPU is cut up (MIG), is there a part of it to use?
"""

from __future__ import annotations

import re
import stat
from dataclasses import dataclass

from labkit.doctor.check import Check, Finding, SafeFix, failed, ok, unknown, warning
from labkit.doctor.host import COMMAND_SECONDS, Host
from labkit.host.distribution import Distribution
from labkit.host.gpu import Gpu, GpuFacts, probe_gpu
from labkit.host.packages import DROP_NOUVEAU, ENROLL_KEY, INSTALL_DRIVER
from labkit.host.torch_builds import NEEDS
from labkit.known_errors import KNOWN_ERRORS
from labkit.known_errors.match import explain_text
from labkit.process import CommandResult

NVIDIA = "0x10de"
DISPLAY_CLASS = "0x03"  # VGA, 3D and other display controllers; a card's sound chip is none
WITHHELD = "no GPU was passed to this container"
NO_GPU = "no NVIDIA GPU on the bus; the lab uses the CPU"


@dataclass(frozen=True)
class BusFacts:
    """The PCI addresses of NVIDIA's display controllers with the kernel driver bound to each.

    A container sees the host's bus whether it was given a GPU or not; ``gpu_asked`` is whether
    its environment asks for one, as the CUDA image's does.
    """

    drivers: tuple[tuple[str, str | None], ...] = ()
    in_wsl: bool = False
    has_nodes: bool = False
    in_container: bool = False
    gpu_asked: bool = False


def probe_gpu_bus(host: Host) -> BusFacts:
    """The GPUs by /sys/bus/pci, and what shows one that is on no bus (WSL2, Jetson)."""
    found = []
    for folder in host.list("sys/bus/pci/devices", "*"):
        place = f"sys/bus/pci/devices/{folder.name}"
        vendor, kind = host.read(f"{place}/vendor"), host.read(f"{place}/class")
        if (vendor or "").strip() == NVIDIA and (kind or "").startswith(DISPLAY_CLASS):
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
    """Fine with a GPU and fine without; only one that is given away to a machine is a warning."""
    if not facts.drivers:
        if facts.in_wsl:
            return ok("WSL2: Windows has the GPU and lends it (/dev/dxg)")
        if facts.has_nodes:
            return ok("an NVIDIA GPU that is on no PCI bus here (/dev/nvidiactl)")
        return ok(NO_GPU, moot="no NVIDIA GPU on the bus")
    if facts.in_container and not facts.has_nodes and not facts.in_wsl:
        return _judge_withheld(facts)
    given = [address for address, driver in facts.drivers if driver == "vfio-pci"]
    if len(given) == len(facts.drivers):
        return warning(
            f"every NVIDIA GPU ({', '.join(given)}) is kept for virtual machines",
            "vfio-pci is bound to it, so this host cannot use it; the lab uses the CPU",
            "lspci -nnk -d 10de:   # and take its id out of vfio-pci's ids to have it back",
            moot="the GPU is kept for virtual machines",
        )
    return ok(f"{len(facts.drivers)} on the bus: {', '.join(name for name, _ in facts.drivers)}")


def _judge_withheld(facts: BusFacts) -> Finding:
    """A container without the host's GPU: as it should be, unless it asked for one."""
    if not facts.gpu_asked:
        return ok("the host has an NVIDIA GPU; this container was not given it", moot=WITHHELD)
    return warning(
        "the host has an NVIDIA GPU, and this container does not",
        "it was started without one, or the engine did not pass it on",
        "make doctor   # on the host: says where the GPU is lost",
        moot=WITHHELD,
    )


GPU_BUS_CHECK = Check("gpu-bus", "an NVIDIA GPU on the bus", probe_gpu_bus, judge_gpu_bus)


OLDEST_DRIVER = min(needs.driver for needs in NEEDS.values())
NEWEST_DRIVER = max(needs.driver for needs in NEEDS.values())


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


def probe_driver(host: Host) -> DriverFacts:
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


def judge_driver(facts: DriverFacts, distribution: Distribution) -> Finding:
    """The loaded driver's version against what CUDA 12 and 13 need."""
    version = facts.gpu.driver_version or facts.module_version
    major = re.match(r"\d+", version or "")
    if facts.hung and not version:
        return unknown(
            f"{facts.gpu.problem}", "sudo dmesg | grep -i xid   # a hung GPU needs a reboot"
        )
    if major is None:
        return _judge_missing_driver(facts, distribution)
    if int(major.group()) < OLDEST_DRIVER:
        return failed(
            f"driver {version}",
            f"too old: every CUDA build of torch here needs driver {OLDEST_DRIVER} or newer",
            INSTALL_DRIVER.on(distribution),
        )
    build = "every CUDA build" if int(major.group()) >= NEWEST_DRIVER else "CUDA 12 builds"
    return ok(f"driver {version} runs {build} of torch")


def _judge_missing_driver(facts: DriverFacts, distribution: Distribution) -> Finding:
    found = explain_text(facts.gpu.problem or "").first
    if facts.in_wsl:
        cause = found.error.cause if found else "the driver in Windows does not reach into WSL2"
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


DRIVER_CHECK = Check(
    "driver", "NVIDIA's driver, and its age", probe_driver, judge_driver, needs=("gpu-bus",)
)


QUERY = ["nvidia-smi", "--query-gpu=name,driver_version", "--format=csv,noheader"]


@dataclass(frozen=True)
class LibraryFacts:
    """nvidia-smi's answer, and the version of the module below it."""

    answer: CommandResult
    module_version: str | None = None
    in_container: bool = False


def probe_driver_library(host: Host) -> LibraryFacts:
    """nvidia-smi goes through the library to the module: it fails where they differ."""
    answer = host.run(QUERY, timeout_seconds=COMMAND_SECONDS)
    return LibraryFacts(answer, read_module_version(host), host.in_container)


def judge_driver_library(facts: LibraryFacts, distribution: Distribution) -> Finding:
    """Fine where nvidia-smi lists GPUs; else what its own words mean."""
    answer = facts.answer
    if answer.missing:
        return _judge_no_program(facts.in_container)
    if answer.timed_out:
        return unknown(answer.message, "sudo dmesg | grep -i xid   # a hung GPU needs a reboot")
    said = f"{answer.stdout}\n{answer.stderr}"
    found = explain_text(said).first
    if found:
        return failed(found.line, found.error.cause, found.error.fix.on(distribution))
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


DRIVER_LIBRARY_CHECK = Check(
    "driver-library",
    "module and libraries of one version",
    probe_driver_library,
    judge_driver_library,
    needs=("driver",),
)


@dataclass(frozen=True)
class UvmFacts:
    """Whether the module is loaded, its device file there, and who could load it on demand."""

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


UVM_CHECK = Check(
    "nvidia-uvm", "the module that CUDA's memory needs", probe_uvm, judge_uvm, ("driver",)
)


@dataclass(frozen=True)
class NodeFacts:
    """The device files found, those that this user may not open, and what could make them."""

    found: tuple[str, ...] = ()
    refused: tuple[str, ...] = ()
    in_wsl: bool = False
    in_container: bool = False
    has_loader: bool = False


def probe_device_nodes(host: Host) -> NodeFacts:
    """/dev/nvidiactl and /dev/nvidia0 and on, by their owner and mode."""
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
    """Whether the mode lets this host's user read and write; the system would ask it the same."""
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
    """Fine where nvidiactl and a GPU are there and open to this user."""
    if facts.in_wsl:
        return ok("/dev/dxg is there")
    if "nvidiactl" not in facts.found or len(facts.found) < 2:
        return _judge_missing_device_nodes(facts)
    if facts.refused:
        return failed(
            f"this user may not open {', '.join(f'/dev/{name}' for name in facts.refused)}",
            "their group and mode leave it out",
            "sudo usermod -aG video $USER   # or the group of `ls -l /dev/nvidia*`",
        )
    return ok(f"{', '.join(f'/dev/{name}' for name in facts.found)}, open to this user")


def _judge_missing_device_nodes(facts: NodeFacts) -> Finding:
    found = f"missing: {'/dev/nvidia0' if 'nvidiactl' in facts.found else '/dev/nvidiactl'}"
    if facts.in_container:
        return failed(found, "this container was given part of the GPU's files", "make down up")
    make = SafeFix(("nvidia-modprobe", "-c=0", "-u"), "makes the GPU's device files")
    return failed(
        found,
        "the driver is loaded, but nobody made its device files",
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


ERRORS = [
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
    """The kernel's lines on NVIDIA's GPUs since boot (None: not to be read) and the ECC counts."""

    log: str | None = None
    errors: tuple[tuple[int, int], ...] = ()


def probe_gpu_health(host: Host) -> HealthFacts:
    """The kernel's log, where this user may read it, and nvidia-smi's count of memory errors."""
    answer = host.run(ERRORS, timeout_seconds=COMMAND_SECONDS)
    counted = re.findall(r"^(\d+), *(\d+)\s*$", answer.stdout, re.MULTILINE)
    return HealthFacts(_read_log(host), tuple((int(index), int(count)) for index, count in counted))


def _read_log(host: Host) -> str | None:
    for command in LOGS:
        answer = host.run(command, timeout_seconds=COMMAND_SECONDS)
        if answer.ok:
            return "\n".join(line for line in answer.stdout.splitlines() if "NVRM" in line)
        if answer.timed_out:  # one hang is as much waiting as a check may cost
            return None
    return None


def judge_gpu_health(facts: HealthFacts, distribution: Distribution) -> Finding:
    """A GPU that left the bus is gone until a reboot; other faults are warned of."""
    faults = tuple(sign for sign in KNOWN_ERRORS if sign.name in FAULTS)
    found = explain_text(facts.log or "", faults).first
    if found:
        judged = failed if found.error.name in ("gpu-off-the-bus", "needs-open-modules") else warning
        return judged(found.line, found.error.cause, found.error.fix.on(distribution))
    broken = [(index, count) for index, count in facts.errors if count]
    if broken:
        index, count = broken[0]
        return warning(
            f"GPU {index} has met {count} memory errors that it could not correct",
            "programs that used the memory then died or went wrong",
            "nvidia-smi -q -d ECC,ROW_REMAPPER   # a reset clears it; if it comes back, replace it",
        )
    if facts.log is None:
        return ok("no memory error counted; the kernel's log is for root: sudo dmesg | grep NVRM")
    return ok("no fault in the kernel's log since boot")


GPU_HEALTH_CHECK = Check(
    "gpu-health", "the GPU's own faults", probe_gpu_health, judge_gpu_health, ("gpu-bus",)
)


def probe_mig(host: Host) -> tuple[Gpu, ...]:
    """The GPUs as nvidia-smi tells of them: which have MIG on, and their parts."""
    return probe_gpu(host.run, host.root).gpus


def judge_mig(gpus: tuple[Gpu, ...], distribution: Distribution) -> Finding:
    """A GPU with MIG on and no part of its own gives CUDA nothing to run on."""
    cut = [gpu for gpu in gpus if gpu.mig]
    empty = [gpu for gpu in cut if not gpu.parts]
    if empty:
        index = empty[0].index
        return failed(
            f"MIG is on for GPU {index}, which is cut into no part",
            "CUDA runs on the parts alone, and there is none",
            f"sudo nvidia-smi mig -i {index} -cgi 0 -C   "
            f"# one part of all of it; or switch MIG off: sudo nvidia-smi -i {index} -mig 0",
        )
    if cut:
        count = sum(len(gpu.parts) for gpu in cut)
        return ok(f"MIG is on: {count} part{'s' if count > 1 else ''}; a process uses one of them")
    return ok("MIG is off, or not on this GPU")


MIG_CHECK = Check("mig", "MIG: parts of a GPU", probe_mig, judge_mig, ("driver-library",))

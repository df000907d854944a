"""Checks of NVIDIA's driver: the GPU on the bus, kernel modules, libraries, device files."""

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
    BusGpu,
    GpuFacts,
    infer_capability,
    list_bus_gpus,
    name_architecture,
    probe_gpu,
    read_installed_version,
    read_major,
    read_module_version,
)
from labkit.host.packages import (
    CPU_LAB,
    DROP_NOUVEAU,
    DROP_NOUVEAU_ON_IMAGES,
    ENROLL_KEY,
    GIVE_TO_LXC,
    INSTALL_HEADERS,
    INSTALL_OPEN_MODULE,
    OPEN_FROM,
    THEN_REBOOT,
    Capability,
    Variant,
    advise_driver,
    choose_target,
    find_last_branch,
    find_variant,
    is_dropped,
)
from labkit.host.torch_builds import JETSON_WHEELS, NEEDS, ON_JETSON, TEGRA
from labkit.known_errors.match import explain_text
from labkit.process import CommandResult

AMD_VENDOR, INTEL_VENDOR = "0x1002", "0x8086"
# Intel's GPUs on cards of their own, by the start of their PCI ids: DG1, Alchemist, Battlemage.
ARC = re.compile(r"0x(?:490[5-9]|4f8|569|56[a-c]|e2[01])", re.IGNORECASE)
NOT_PASSED = "no GPU was passed to this container"
# What brings the driver's libraries into an LXC container.
LXC_LIBRARIES = (
    "sudo sh NVIDIA-Linux-*-{version}.run --no-kernel-modules"
    "   # nvidia.com/drivers; exactly the version of the host's module"
)
LOOK_FOR_HANG = "sudo dmesg | grep -i xid   # if the GPU hangs: reboot"
NO_GPU = "no NVIDIA GPU on the bus; the lab uses the CPU"


@dataclass(frozen=True)
class BusFacts:
    """NVIDIA's GPUs on the PCI bus, and the signs of GPUs that are not on it.

    A container sees the host's bus even if no GPU was passed on to it. ``gpu_asked`` says whether
    its environment requests one, as that of the CUDA image does. ``others`` names GPUs that the
    lab's builds of torch do not use, ``jetson`` the board of a Jetson. ``windows_cuda`` is False in
    a WSL2 to which Windows gives the libraries of its GPU, but not NVIDIA's.
    """

    gpus: tuple[BusGpu, ...] = ()
    in_wsl: bool = False
    has_nodes: bool = False
    in_container: bool = False
    gpu_asked: bool = False
    others: tuple[str, ...] = ()
    jetson: str | None = None
    windows_cuda: bool = True
    in_lxc: bool = False


def probe_gpu_bus(host: Host) -> BusFacts:
    """The GPUs in /sys/bus/pci, and the device files of GPUs without a PCI bus (WSL2, Jetson)."""
    board = (host.read("proc/device-tree/model") or "").strip("\0\n ")
    return BusFacts(
        list_bus_gpus(host.root),
        host.exists("dev/dxg"),
        host.exists("dev/nvidiactl"),
        host.in_container,
        host.environment.get("NVIDIA_VISIBLE_DEVICES", "void") not in ("", "void", "none"),
        _name_others(host),
        board if "Jetson" in board else None,
        not host.list("usr/lib/wsl/lib", "*") or bool(host.list("usr/lib/wsl/lib", "libcuda*")),
        host.in_lxc,
    )


def _name_others(host: Host) -> tuple[str, ...]:
    """The makers of other GPUs; Intel only for a card of its own, for most processors have one."""
    intel = [
        host.read(f"sys/bus/pci/devices/{gpu.address}/device") or ""
        for gpu in list_bus_gpus(host.root, INTEL_VENDOR)
    ]
    names = ["AMD"] if list_bus_gpus(host.root, AMD_VENDOR) else []
    return (*names, *(["Intel (Arc)"] if any(map(ARC.match, intel)) else []))


def judge_gpu_bus(facts: BusFacts, distribution: Distribution) -> Finding:
    """OK with or without a GPU; a warning if all are reserved for virtual machines."""
    if not facts.gpus:
        return _judge_empty_bus(facts)
    if facts.in_lxc and not facts.has_nodes:
        found = f"the host has an NVIDIA GPU, which this LXC container was not given: {GIVE_TO_LXC}"
        return ok(found, skip_reason=NOT_PASSED)
    if facts.in_container and not facts.has_nodes and not facts.in_wsl:
        return _judge_not_passed(facts)
    given = [gpu.address for gpu in facts.gpus if gpu.driver == "vfio-pci"]
    if len(given) == len(facts.gpus):
        return warning(
            f"every NVIDIA GPU ({', '.join(given)}) is reserved for virtual machines",
            "its kernel driver is vfio-pci, so this host cannot use it; the lab uses the CPU",
            "lspci -nnk -d 10de:   # then remove its id from vfio-pci's ids",
            skip_reason="the GPU is reserved for virtual machines",
        )
    return ok(f"{len(facts.gpus)} on the bus: {', '.join(map(_name_bus_gpu, facts.gpus))}")


def _name_bus_gpu(gpu: BusGpu) -> str:
    return f"{gpu.address} ({name_architecture(gpu.capability)})" if gpu.capability else gpu.address


def _judge_empty_bus(facts: BusFacts) -> Finding:
    if facts.in_wsl:
        return _judge_wsl(facts)
    if facts.jetson:
        capability = infer_capability(facts.jetson)
        if capability not in TEGRA:
            return ok(f"{facts.jetson}, whose GPU is not on a PCI bus")
        return warning(
            facts.jetson,
            f"PyTorch's builds have no code for its GPU; {ON_JETSON} ({JETSON_WHEELS})",
            CPU_LAB,
            skip_reason="no build of torch here runs on a Jetson's GPU",
        )
    if facts.has_nodes:
        return ok("an NVIDIA GPU that is not on a PCI bus (/dev/nvidiactl)")
    if facts.others:
        makers = " and ".join(facts.others)
        found = f"a GPU of {makers}, which the lab's builds of torch do not use; it uses the CPU"
        return ok(found, skip_reason="no NVIDIA GPU on the bus")
    return ok(NO_GPU, skip_reason="no NVIDIA GPU on the bus")


def _judge_wsl(facts: BusFacts) -> Finding:
    if facts.windows_cuda:
        return ok("WSL2: Windows shares its GPU (/dev/dxg)")
    found = "WSL2: Windows has no NVIDIA GPU, or no driver for it; the lab uses the CPU"
    return ok(found, skip_reason="Windows shares no NVIDIA GPU")


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
    """The driver from nvidia-smi, the loaded module, and what may prevent it from loading.

    ``capabilities`` are those of the GPUs, from nvidia-smi or else by their PCI ids. On a laptop of
    two GPUs ``switched_off`` is True if NVIDIA's was turned off (`prime-select`).
    """

    gpu: GpuFacts
    module_version: str | None = None
    installed_module: str | None = None
    held_by_nouveau: bool = False
    in_wsl: bool = False
    hung: bool = False
    secure_boot: bool = False
    capabilities: tuple[Capability, ...] = ()
    switched_off: bool = False

    @property
    def target(self) -> Capability | None:
        """The GPU that a driver is chosen for; no GPU that works today loses its driver."""
        if self.gpu.gpus and not self.gpu.problem:
            return min(self.capabilities, default=None)
        return choose_target(self.capabilities)

    @property
    def left_out(self) -> tuple[Capability, ...]:
        """The GPUs that the driver for ``target`` does not serve."""
        target = self.target
        if target is None:
            return ()
        needs_open = any(find_variant(each) == "open" for each in self.capabilities)
        oldest = OPEN_FROM if needs_open else (5, 0)
        return tuple(each for each in self.capabilities if each < min(oldest, target))

    def advise_driver(
        self, distribution: Distribution, least: int = OLDEST_DRIVER, installed: int | None = None
    ) -> str:
        """The command that installs a driver for the GPUs."""
        return advise_driver(
            distribution,
            self.target,
            wsl=self.in_wsl,
            least=least,
            installed=installed,
            virtual=any(gpu.is_virtual for gpu in self.gpu.gpus),
        ).command


def probe_driver(host: Host) -> DriverFacts:
    """nvidia-smi first, then the loaded module, then the module that could be loaded."""
    gpu = probe_gpu(host.run, host.root)
    hung = "did not answer" in (gpu.problem or "")
    return DriverFacts(
        gpu,
        module_version=read_module_version(host.root),
        # A check has time for one hanging command only.
        installed_module=None if hung or gpu.driver_version else read_installed_version(host.run),
        held_by_nouveau=bool(re.search(r"^nouveau ", host.read("proc/modules") or "", re.M)),
        in_wsl=host.in_wsl,
        hung=hung,
        secure_boot=is_secure_boot(host),
        capabilities=read_capabilities(host, gpu),
        switched_off=(host.read("etc/prime-discrete") or "").strip() == "off",
    )


def read_capabilities(host: Host, facts: GpuFacts | None = None) -> tuple[Capability, ...]:
    """Each GPU's compute capability, from nvidia-smi or its PCI id; unknown ones are left out.

    The bus that a container sees is the host's, with GPUs that it was not given.
    """
    facts = facts or probe_gpu(host.run, host.root)
    gpus = facts.gpus or (() if host.in_container else list_bus_gpus(host.root))
    return tuple(gpu.capability for gpu in gpus if gpu.capability)


def is_secure_boot(host: Host) -> bool:
    """True if the firmware says that Secure Boot is on: its variable's last byte is 1."""
    variables = host.list("sys/firmware/efi/efivars", "SecureBoot-*")
    texts = [host.read(f"sys/firmware/efi/efivars/{each.name}") for each in variables]
    return any(text and text[-1] == "\x01" for text in texts)


def judge_driver(facts: DriverFacts, distribution: Distribution) -> Finding:
    """Compares the driver's version with what the GPUs and the builds of torch need."""
    version = facts.gpu.driver_version or facts.module_version
    major = read_major(version or facts.installed_module)
    dropped = [each for each in facts.capabilities if major and is_dropped(each, major)]
    if facts.capabilities and max(facts.capabilities) < (5, 0):
        return _judge_too_old_gpu(facts, distribution)
    if dropped and (version is None or not facts.gpu.gpus or facts.gpu.problem):
        # Neither a reboot nor modprobe helps: the driver ignores the GPU.
        return failed(
            f"driver {version or facts.installed_module} does not support {_name(dropped[0])}",
            f"{find_last_branch(dropped[0])} is the last branch for it",
            facts.advise_driver(distribution, installed=major),
        )
    if facts.hung and not version:
        return unknown(f"{facts.gpu.problem}", LOOK_FOR_HANG)
    if version is None or major is None:
        return _judge_missing_driver(facts, distribution)
    if major < OLDEST_DRIVER:
        return failed(
            f"driver {version}",
            f"too old: the CUDA builds of torch need driver {OLDEST_DRIVER} or newer",
            facts.advise_driver(distribution),
        )
    build = "every CUDA build" if major >= NEWEST_DRIVER else "CUDA 12 builds"
    return ok(f"driver {version} runs {build} of torch")


def _name(capability: Capability) -> str:
    return f"{name_architecture(capability)} ({capability[0]}.{capability[1]})"


def _judge_too_old_gpu(facts: DriverFacts, distribution: Distribution) -> Finding:
    newest = max(facts.capabilities)
    last = find_last_branch(newest)
    return warning(
        f"a GPU of {_name(newest)}",
        f"no build of torch has code for it, and {last} is its last driver; the lab uses the CPU",
        CPU_LAB,
        skip_reason="no build of torch runs on this GPU",
    )


def _judge_missing_driver(facts: DriverFacts, distribution: Distribution) -> Finding:
    found = explain_text(facts.gpu.problem or "", signs={"lab"}).first
    if facts.in_wsl:
        cause = found.error.cause if found else "the driver in Windows is not available in WSL2"
        return failed(
            f"no driver answers ({facts.gpu.problem or 'no nvidia-smi'})",
            cause,
            "wsl.exe --update && wsl.exe --shutdown   # in Windows, with a current driver",
        )
    install = facts.advise_driver(distribution)
    if facts.held_by_nouveau:
        return failed(
            "the GPU is driven by nouveau",
            "nouveau is loaded, which CUDA cannot use",
            _drop_nouveau(distribution) if facts.installed_module else install,
        )
    if facts.installed_module:
        return _judge_not_loaded(facts, distribution)
    cause = "none is installed, or none for the running kernel"
    if facts.left_out and facts.target:
        cause += f"; none serves {_name(facts.left_out[0])} together with {_name(facts.target)}"
    return failed("no NVIDIA driver is loaded", cause, install)


def _drop_nouveau(distribution: Distribution) -> str:
    return DROP_NOUVEAU_ON_IMAGES if distribution.image_based else DROP_NOUVEAU.on(distribution)


def _judge_not_loaded(facts: DriverFacts, distribution: Distribution) -> Finding:
    found = f"driver {facts.installed_module} is installed but not loaded"
    if facts.switched_off:
        cause = "this laptop's NVIDIA GPU is switched off, to save power"
        return failed(found, cause, f"sudo prime-select on-demand{THEN_REBOOT}")
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


@dataclass(frozen=True)
class VariantFacts:
    """The variant of the loaded or installed kernel module (None: unknown), and the GPUs."""

    variant: Variant | None = None
    capabilities: tuple[Capability, ...] = ()
    major: int | None = None


def probe_driver_variant(host: Host) -> VariantFacts:
    """/proc/driver/nvidia/version, else the licence of the module that could be loaded."""
    text = host.read("proc/driver/nvidia/version")
    if text is None:
        words = ["modinfo", "-F", "license", "nvidia"]
        text = host.run(words, timeout_seconds=COMMAND_SECONDS).stdout
    variant: Variant | None = None
    if "NVIDIA" in text or "GPL" in text:
        variant = "open" if "Open Kernel Module" in text or "GPL" in text else "closed"
    version = read_module_version(host.root) or read_installed_version(host.run)
    return VariantFacts(variant, read_capabilities(host), read_major(version))


def judge_driver_variant(facts: VariantFacts, distribution: Distribution) -> Finding:
    """A failure if the GPU needs the other variant: the module then finds no GPU."""
    if facts.variant is None:
        return ok("unknown to this driver")
    for capability in facts.capabilities:
        needed = find_variant(capability)
        if facts.major and is_dropped(capability, facts.major):
            continue  # the check of the driver says that no variant of this branch serves it
        if needed not in (None, facts.variant):
            fix = INSTALL_OPEN_MODULE.on(distribution)
            if needed == "closed":
                fix = advise_driver(distribution, capability).command
            found = f"the {facts.variant} kernel modules, and a GPU of {_name(capability)}"
            return failed(found, f"that GPU works with the {needed} modules only", fix)
    return ok(f"the {facts.variant} kernel modules")


DRIVER_VARIANT_CHECK = Check(
    "driver-variant",
    "open or closed kernel modules",
    probe_driver_variant,
    judge_driver_variant,
    needs=("gpu-bus",),
)


@dataclass(frozen=True)
class KernelFacts:
    """The running kernel, the newest installed one, and whether each has NVIDIA's module.

    ``builder`` makes the modules: "dkms", "akmods", or the prefix of Ubuntu's packages of built
    ones, such as "linux-modules-nvidia-580-open"; None is unknown. ``build_failed`` is True if
    akmods has tried and failed.
    """

    running: str | None = None
    newest: str | None = None
    running_has_module: bool = False
    newest_has_module: bool = False
    builder: str | None = None
    build_failed: bool = False


def probe_next_kernel(host: Host) -> KernelFacts:
    """The lists of modules in /lib/modules; the newest kernel is what the next boot takes."""
    running = (host.read("proc/sys/kernel/osrelease") or "").strip() or None
    folder = next((f for f in ("lib/modules", "usr/lib/modules") if host.list(f, "*")), "")
    names = [path.parent.name for path in host.list(folder, "*/modules.dep")] if folder else []
    alike = [name for name in names if _read_flavor(name) == _read_flavor(running or "")]
    newest = max(alike, key=_split_numbers, default=None)
    has = {name: _has_module(host, f"{folder}/{name}") for name in (running, newest) if name}
    logs = host.list("var/cache/akmods", f"*/*{newest}*failed.log")
    return KernelFacts(
        running,
        newest,
        has.get(running or "", False),
        has.get(newest or "", False),
        _find_builder(host, f"{folder}/{running}"),
        bool(logs),
    )


def _read_flavor(kernel: str) -> str:
    """What follows the version: another flavor is not the next to boot. Releases do not count."""
    flavor = re.sub(r"^[\d.-]+", "", kernel)
    return re.sub(r"^(el|fc|amzn)\d+(?:_\d+)?", r"\1", flavor)


def _find_builder(host: Host, folder: str) -> str | None:
    listed = host.read(f"{folder}/modules.dep") or ""
    built = re.search(r"^kernel/(nvidia-\S+)/nvidia\.ko", listed, re.MULTILINE)
    if built:
        return f"linux-modules-{built[1]}"
    if host.list("var/lib/dkms", "nvidia*"):
        return "dkms"
    return "akmods" if host.exists("usr/sbin/akmods") or host.exists("usr/bin/akmods") else None


def _split_numbers(name: str) -> list[int]:
    return [int(number) for number in re.findall(r"\d+", name)]


def _has_module(host: Host, folder: str) -> bool:
    listed = host.read(f"{folder}/modules.dep") or ""
    return bool(re.search(r"/nvidia\.ko", listed)) or bool(
        host.list(folder, "updates/dkms/nvidia.ko*")
    )


def judge_next_kernel(facts: KernelFacts, distribution: Distribution) -> Finding:
    """A warning if the GPU is gone after the next reboot."""
    if facts.newest is None or not facts.running_has_module:
        return ok("the modules of this system's kernels are not listed here")
    if facts.newest_has_module or facts.newest == facts.running:
        return ok(f"kernel {facts.newest} has NVIDIA's module")
    if facts.builder == "akmods" and not facts.build_failed:
        return ok(f"akmods builds NVIDIA's module for kernel {facts.newest} when it boots")
    return warning(
        f"kernel {facts.newest} is installed and has no NVIDIA module",
        "none was built or installed for it: the next reboot ends without a GPU driver",
        _write_build_command(facts.builder, facts.newest, distribution),
    )


def _write_build_command(builder: str | None, kernel: str, distribution: Distribution) -> str:
    if builder == "dkms":
        headers = INSTALL_HEADERS.on(distribution).replace("$(uname -r)", kernel)
        return f"sudo dkms autoinstall -k {kernel}   # says why; headers: {headers}"
    if builder == "akmods":
        return f"sudo akmods --force --kernels {kernel}   # says why"
    if builder:
        return f"sudo apt-get install {builder}-{kernel}"
    return f"install NVIDIA's driver once more   # it makes the module for kernel {kernel}"


NEXT_KERNEL_CHECK = Check(
    "next-kernel",
    "the driver after the next reboot",
    probe_next_kernel,
    judge_next_kernel,
    needs=("driver",),
)


QUERY = ["nvidia-smi", "--query-gpu=name,driver_version", "--format=csv,noheader"]


@dataclass(frozen=True)
class LibraryFacts:
    """nvidia-smi's answer, and the version of the loaded module."""

    answer: CommandResult
    module_version: str | None = None
    in_container: bool = False
    in_lxc: bool = False
    in_wsl: bool = False
    capabilities: tuple[Capability, ...] = ()


def probe_driver_library(host: Host) -> LibraryFacts:
    """nvidia-smi calls the module through the library: it fails if their versions differ."""
    answer = host.run([host.smi, *QUERY[1:]], timeout_seconds=COMMAND_SECONDS)
    version = read_module_version(host.root)
    known = () if answer.ok or answer.timed_out else read_capabilities(host)
    return LibraryFacts(answer, version, host.in_container, host.in_lxc, host.in_wsl, known)


def judge_driver_library(facts: LibraryFacts, distribution: Distribution) -> Finding:
    """OK if nvidia-smi lists GPUs; else the cause of its error."""
    answer = facts.answer
    output = f"{answer.stdout}\n{answer.stderr}"
    if answer.missing or (facts.in_lxc and "version mismatch" in output):
        return _judge_lxc_libraries(facts) if facts.in_lxc else _judge_no_program(facts)
    if answer.timed_out:
        return unknown(answer.message, LOOK_FOR_HANG)
    found = explain_text(output, signs={"lab"}).first
    if found:
        target = choose_target(facts.capabilities)
        fix = found.error.fix.on(distribution, target, wsl=facts.in_wsl)
        return failed(found.line, found.error.cause, fix)
    if not answer.ok:
        return failed(answer.message, "nvidia-smi does not say why", "sudo dmesg | grep -i nvrm")
    names = [line.split(",")[0].strip() for line in answer.stdout.splitlines() if "," in line]
    if not names:
        return unknown("nvidia-smi lists no GPU", "nvidia-smi")
    versions = re.findall(r"\d{3}\.\d+(?:\.\d+)?", answer.stdout)
    agree = f", both {facts.module_version}" if facts.module_version in versions else ""
    return ok(f"module and libraries work together{agree}: {', '.join(names)}")


def _judge_lxc_libraries(facts: LibraryFacts) -> Finding:
    """An LXC container has its host's module, and needs libraries of its own, without a module."""
    found = "this LXC container lacks the driver's libraries and programs"
    if not facts.answer.missing:
        found = "this LXC container's driver libraries are of another version than the module"
    cause = f"they must be of the version of the host's module, {facts.module_version or 'unknown'}"
    return failed(found, cause, LXC_LIBRARIES.format(version=facts.module_version or "<version>"))


def _judge_no_program(facts: LibraryFacts) -> Finding:
    if facts.in_container:
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
    needs=("driver", "driver-variant"),
)


@dataclass(frozen=True)
class UvmFacts:
    """Whether the module is loaded, its device file exists, and nvidia-modprobe can load it."""

    loaded: bool = False
    has_node: bool = False
    has_loader: bool = False
    in_wsl: bool = False
    in_container: bool = False
    in_lxc: bool = False


def probe_uvm(host: Host) -> UvmFacts:
    """/proc/modules, /dev/nvidia-uvm and the nvidia-modprobe program."""
    return UvmFacts(
        loaded=bool(re.search(r"^nvidia_uvm ", host.read("proc/modules") or "", re.MULTILINE)),
        has_node=host.exists("dev/nvidia-uvm"),
        has_loader=host.exists("usr/bin/nvidia-modprobe"),
        in_wsl=host.in_wsl,
        in_container=host.in_container,
        in_lxc=host.in_lxc,
    )


def judge_uvm(facts: UvmFacts, distribution: Distribution) -> Finding:
    """OK if the device file exists, or if CUDA's first use creates it."""
    if facts.in_wsl:
        return ok("not needed in WSL2")
    if facts.has_node:
        return ok("/dev/nvidia-uvm exists")
    cause = "CUDA would fail with an unknown error, although nvidia-smi works"
    if facts.in_lxc:
        return warning("no /dev/nvidia-uvm in this LXC container", cause, GIVE_TO_LXC)
    if facts.has_loader:
        return ok("not loaded yet; nvidia-modprobe loads it when CUDA is first used")
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
    in_lxc: bool = False


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
        in_lxc=host.in_lxc,
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
    if facts.in_lxc:
        cause = "only some of the GPU's device files were passed on to this LXC container"
        return failed(found, cause, GIVE_TO_LXC)
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

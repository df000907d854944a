"""Is there an NVIDIA GPU on this machine at all?"""

from __future__ import annotations

from dataclasses import dataclass

from labkit.doctor.check import Check, Finding, ok, warning
from labkit.doctor.distribution import Distribution
from labkit.doctor.host import Host

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


def probe(host: Host) -> BusFacts:
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


def judge(facts: BusFacts, distribution: Distribution) -> Finding:
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


CHECK = Check("gpu-bus", "an NVIDIA GPU on the bus", probe, judge)

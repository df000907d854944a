"""Is there an NVIDIA GPU on this machine at all?"""

from __future__ import annotations

from dataclasses import dataclass

from labkit.doctor.check import Check, Finding, ok, warning
from labkit.doctor.distribution import Distribution
from labkit.doctor.host import Host

NVIDIA = "0x10de"
DISPLAY_CLASS = "0x03"  # VGA, 3D and other display controllers; a card's sound chip is none
NO_GPU = "no NVIDIA GPU on the bus; the lab uses the CPU"


@dataclass(frozen=True)
class BusFacts:
    """The PCI addresses of NVIDIA's display controllers with the kernel driver bound to each."""

    drivers: tuple[tuple[str, str | None], ...] = ()
    in_wsl: bool = False
    has_nodes: bool = False


def probe(host: Host) -> BusFacts:
    """The GPUs by /sys/bus/pci, and what shows one that is on no bus (WSL2, Jetson)."""
    found = []
    for folder in host.list("sys/bus/pci/devices", "*"):
        place = f"sys/bus/pci/devices/{folder.name}"
        vendor, kind = host.read(f"{place}/vendor"), host.read(f"{place}/class")
        if (vendor or "").strip() == NVIDIA and (kind or "").startswith(DISPLAY_CLASS):
            link = folder / "driver"
            found.append((folder.name, link.readlink().name if link.is_symlink() else None))
    return BusFacts(tuple(found), host.exists("dev/dxg"), host.exists("dev/nvidiactl"))


def judge(facts: BusFacts, distribution: Distribution) -> Finding:
    """Fine with a GPU and fine without; only one that is given away to a machine is a warning."""
    if not facts.drivers:
        if facts.in_wsl:
            return ok("WSL2: Windows has the GPU and lends it (/dev/dxg)")
        if facts.has_nodes:
            return ok("an NVIDIA GPU that is on no PCI bus here (/dev/nvidiactl)")
        return ok(NO_GPU, moot="no NVIDIA GPU on the bus")
    given = [address for address, driver in facts.drivers if driver == "vfio-pci"]
    if len(given) == len(facts.drivers):
        return warning(
            f"every NVIDIA GPU ({', '.join(given)}) is kept for virtual machines",
            "vfio-pci is bound to it, so this host cannot use it; the lab uses the CPU",
            "lspci -nnk -d 10de:   # and take its id out of vfio-pci's ids to have it back",
            moot="the GPU is kept for virtual machines",
        )
    return ok(f"{len(facts.drivers)} on the bus: {', '.join(name for name, _ in facts.drivers)}")


CHECK = Check("gpu-bus", "an NVIDIA GPU on the bus", probe, judge)

"""The NVIDIA GPUs of this host, from the driver's programs and files, and their selection."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from labkit.errors import DeviceMissingError, UsageError
from labkit.host.packages import Capability as Capability  # noqa: PLC0414  (a GPU's, for others)
from labkit.host.packages import find_last_branch, is_dropped
from labkit.process import CommandResult, CommandRunner

PROBE_SECONDS = 10.0
# The queried fields, and the shorter lists for an older nvidia-smi that rejects a field (470 does
# not know compute_cap). The name is first: every version has it.
FIELDS = (
    ("name", "driver_version", "index", "uuid", "compute_cap", "mig.mode.current"),
    ("name", "driver_version", "index", "uuid", "mig.mode.current"),
    ("name", "driver_version"),
)
REFUSED = "is not a valid field to query"
# nvidia-smi's path in WSL2, which is not on root's PATH.
WSL_SMI = "usr/lib/wsl/lib/nvidia-smi"
DRIVER = re.compile(r"\d{3}\.\d+")
QUOTED_LINES = 3
VERSION = re.compile(r"\b(\d{3}\.\d+(?:\.\d+)?)\b")

# What nvidia-smi prints in a field of a GPU that fails.
FAILING = ("ERR!", "[Unknown Error]", "[GPU is lost]", "[GPU requires reset]")

# The first compute capability of each architecture.
ARCHITECTURES: tuple[tuple[Capability, str], ...] = (
    ((3, 0), "Kepler"),
    ((5, 0), "Maxwell"),
    ((6, 0), "Pascal"),
    ((7, 0), "Volta"),
    ((7, 5), "Turing"),
    ((8, 0), "Ampere"),
    ((8, 9), "Ada"),
    ((9, 0), "Hopper"),
    ((10, 0), "Blackwell"),
    ((13, 0), "a newer architecture"),
)

# The generation by PCI device id, for hosts whose driver is missing, broken or too new for the GPU:
# the first id of each range and its capability, up to the next range. The ids are those in the
# public lists of supported GPUs of NVIDIA's drivers.
PCI_IDS: tuple[tuple[int, Capability], ...] = (
    (0x0000, (2, 0)),
    (0x0FC0, (3, 0)),
    (0x1000, (3, 5)),
    (0x1040, (2, 0)),
    (0x1180, (3, 0)),
    (0x1200, (2, 0)),
    (0x1280, (3, 5)),
    (0x1340, (5, 0)),
    (0x13C0, (5, 2)),
    (0x15F0, (6, 0)),
    (0x1600, (5, 2)),
    (0x1B00, (6, 1)),
    (0x1D80, (7, 0)),
    (0x1E00, (7, 5)),
    (0x2080, (8, 0)),
    (0x2180, (7, 5)),
    (0x2200, (8, 6)),
    (0x2300, (9, 0)),
    (0x2400, (8, 6)),
    (0x2600, (8, 9)),
    (0x2900, (10, 0)),
    (0x2B00, (11, 0)),  # Thor, the first Jetson whose GPU is on a PCI bus
    (0x2B80, (12, 0)),
    (0x2E00, (12, 1)),
    (0x2F00, (12, 0)),
    (0x3180, (10, 3)),
)
NVIDIA_VENDOR = "0x10de"
DISPLAY_CLASS = "0x03"  # VGA, 3D and other display controllers; not a card's sound chip

# For a driver that does not report the capability. Only series with a single architecture: an RTX
# 2050 is not Turing, and a GTX 960M is not the same as a GTX 960.
NAMES: tuple[tuple[str, Capability], ...] = (
    # Kepler; of Quadro K620, K1200 and K2200 the chip is Maxwell's.
    (r"\bK80\b", (3, 7)),
    (
        r"\b(?:Tesla )?K(?:20[cmsX]?|20Xm|40[cmst]?)\b|\bQuadro K(?:5200|6000)\b|\bGTX 780\b"
        r"|\bGT 7[12]0\b|\bGTX TITAN(?: Black| Z)?$",
        (3, 5),
    ),
    (
        r"\bGTX (?:6[5-9]0|7[67]0)\b|\bGRID K(?:[12]|340|5[24]0)\b|\bTesla K10\b"
        r"|\bQuadro K(?:420|600|2000|4000|4200|5000)\b",
        (3, 0),
    ),
    (r"\bGTX 7[45]0\b|\bQuadro (?:K620|K1200|K2200)\b", (5, 0)),
    (r"GTX 9\d0\b|\bTesla M(4|6|40|60)\b|\bGTX TITAN X\b", (5, 2)),
    (r"\bP100\b", (6, 0)),
    (r"\bGTX? 10[3-8]0\b|\bTITAN Xp?\b|\bTesla P(4|6|40)\b|\bQuadro P\d{3,4}\b", (6, 1)),
    (r"\bV100S?\b|\bTITAN V\b|\bQuadro GV100\b", (7, 0)),
    (r"\bRTX 20[6-8]0\b|\bGTX 16[356]0\b|\bT4G?\b|\bTITAN RTX\b|\bQuadro RTX \d000\b", (7, 5)),
    (r"\bA100\b|\bA800\b|\bA30\b", (8, 0)),
    (r"\bRTX 30[6-9]0\b|\b(A2|A10G?|A16|A40)\b|\bRTX A\d000\b", (8, 6)),
    (r"\bRTX 40[5-9]0\b|\bL4\b|\bL40S?\b|\bRTX \d000 Ada\b", (8, 9)),
    (r"\bH100\b|\bH200\b|\bH800\b|\bGH200\b", (9, 0)),
    (r"\bG?B200\b", (10, 0)),
    (r"\bG?B300\b", (10, 3)),
    (r"\bRTX 50[5-9]0\b|\bRTX PRO \d000 Blackwell\b", (12, 0)),
    (r"\bGB10\b", (12, 1)),
    (r"\bXavier\b", (7, 2)),
    (r"\bOrin\b", (8, 7)),
    (r"\bThor\b", (11, 0)),
)

# The card's name ends with the size in GB and the series: A for applications, B for a desktop, C
# for computing, Q for a workstation.
_VGPU = re.compile(r"-\d{1,3}[ABCQ]$")


def is_virtual(name: str) -> bool:
    """True if a GPU's name is that of a vGPU's profile, the part that a virtual machine gets.

    >>> is_virtual("NVIDIA A40-8Q"), is_virtual("NVIDIA A40")
    (True, False)
    """
    return bool(_VGPU.search(name))


@dataclass(frozen=True)
class Gpu:
    """One GPU. ``index`` counts in PCI bus order, as nvidia-smi and the engines do.

    ``capability`` is CUDA's compute capability, (8, 9) for 8.9. ``mig`` is True in MIG mode, and
    ``instances`` are the UUIDs of the GPU's MIG instances. ``answers`` is False for a GPU whose
    queries fail (nvidia-smi prints "ERR!"). None means unknown.
    """

    name: str
    index: int = 0
    uuid: str | None = None
    capability: Capability | None = None
    mig: bool | None = None
    instances: tuple[str, ...] = ()
    answers: bool = True

    @property
    def is_virtual(self) -> bool:
        """True if it is a part of a GPU, a vGPU, by its name."""
        return is_virtual(self.name)

    @property
    def lacks_instances(self) -> bool:
        """True if the GPU is in MIG mode and has no MIG instance: no program can use it."""
        return bool(self.mig) and not self.instances


@dataclass(frozen=True)
class GpuFacts:
    """The host's NVIDIA driver and GPUs; ``problem`` quotes nvidia-smi if it failed.

    ``on_bus`` are the generations of the GPUs on the PCI bus, and ``installed`` is the driver that
    is installed but not loaded: both are read only if the driver lists no GPU. ``withheld`` is True
    in an LXC container that was not given its host's GPU.
    """

    driver_version: str | None = None
    gpus: tuple[Gpu, ...] = ()
    problem: str | None = None
    wsl: bool = False
    on_bus: tuple[Capability, ...] = ()
    installed: str | None = None
    withheld: bool = False

    @property
    def dropped(self) -> Capability | None:
        """The generation of a GPU for which the driver here is too new; None if there is none."""
        major = read_major(self.driver_version or self.installed)
        return next((each for each in self.on_bus if major and is_dropped(each, major)), None)

    @property
    def present(self) -> bool:
        """True if a driver is loaded, even if it does not list its GPUs."""
        return bool(self.gpus) or self.driver_version is not None

    @property
    def names(self) -> tuple[str, ...]:
        """The GPUs' names, in the order of their indices."""
        return tuple(gpu.name for gpu in self.gpus)

    @property
    def driver_major(self) -> int | None:
        """The driver's branch, 580 of "580.65.06"; None if the version is unknown."""
        return read_major(self.driver_version)


def read_major(version: str | None) -> int | None:
    """The branch of a driver's version, 580 of "580.65.06"; None if it is unknown."""
    found = re.match(r"(\d+)\.", version or "")
    return int(found.group(1)) if found else None


def probe_gpu(run: CommandRunner, root: Path = Path("/")) -> GpuFacts:
    """The driver and GPUs from `nvidia-smi`, else from /proc/driver/nvidia, else empty.

    An LXC container sees its host's bus and driver, although it may not have been given the GPU.
    """
    if is_lxc(root) and not (root / "dev/nvidiactl").exists():
        return GpuFacts(withheld=bool(list_bus_gpus(root)))
    program = find_smi(run, root)
    answer, fields = _ask_fields(run, program)
    wsl = is_wsl(root)
    rows = _read_rows(answer, fields)
    if rows:
        gpus = _read_instances(run, program, tuple(_read_gpu(row, n) for n, row in enumerate(rows)))
        versions = (_known(row.get("driver_version")) for row in rows)
        version = next(filter(None, versions), None) or read_module_version(root)
        return GpuFacts(version, gpus, wsl=wsl)
    if answer.ok and not answer.stdout.strip():
        return GpuFacts(wsl=wsl)
    version = read_module_version(root)
    on_bus = tuple(gpu.capability for gpu in list_bus_gpus(root) if gpu.capability)
    old = version is None and any(map(find_last_branch, on_bus))
    return GpuFacts(
        driver_version=version,
        gpus=_read_module_gpus(root) or _read_jetson(root),
        problem=None if answer.missing else _quote(answer),
        wsl=wsl,
        on_bus=on_bus,
        installed=read_installed_version(run) if old else None,
    )


def read_installed_version(run: CommandRunner) -> str | None:
    """The version of the module that the running kernel could load; None if there is none."""
    answer = run(["modinfo", "-F", "version", "nvidia"], timeout_seconds=PROBE_SECONDS)
    version = answer.stdout.strip() if answer.ok else ""
    return version if re.fullmatch(r"\d{3}[\d.]*", version) else None


def _read_jetson(root: Path) -> tuple[Gpu, ...]:
    """The GPU of a Jetson, whose older systems have no nvidia-smi."""
    model = _read(root / "proc/device-tree/model").strip("\0\n ")
    is_jetson = "Jetson" in model and (root / "etc/nv_tegra_release").exists()
    return (Gpu(model, capability=infer_capability(model)),) if is_jetson else ()


@dataclass(frozen=True)
class BusGpu:
    """An NVIDIA GPU on the PCI bus: its address, kernel driver and generation; unknown is None."""

    address: str
    driver: str | None = None
    capability: Capability | None = None


def list_bus_gpus(root: Path = Path("/"), vendor: str = NVIDIA_VENDOR) -> tuple[BusGpu, ...]:
    """A vendor's display controllers in /sys/bus/pci, which need no driver to be listed."""
    found = []
    for folder in sorted((root / "sys/bus/pci/devices").glob("*")):
        is_gpu = _read(folder / "class").startswith(DISPLAY_CLASS)
        if is_gpu and _read(folder / "vendor").strip() == vendor:
            link = folder / "driver"
            driver = link.readlink().name if link.is_symlink() else None
            known = _read_generation(folder / "device") if vendor == NVIDIA_VENDOR else None
            found.append(BusGpu(folder.name, driver, known))
    return tuple(found)


def _read_generation(path: Path) -> Capability | None:
    try:
        number = int(_read(path).strip(), 16)
    except ValueError:
        return None
    return [capability for first, capability in PCI_IDS if first <= number][-1]  # from 0 on


def has_driver(root: Path = Path("/")) -> bool:
    """True if files of a loaded driver exist; starts no program."""
    return any((root / path).exists() for path in ("proc/driver/nvidia/version", "dev/dxg"))


def has_gpu(root: Path = Path("/")) -> bool:
    """True if there is an NVIDIA GPU here: a loaded driver, or a display controller on the bus."""
    return has_driver(root) or bool(list_bus_gpus(root))


def find_smi(run: CommandRunner, root: Path) -> str:
    """How to call nvidia-smi: its name, or its path in WSL2 if it is not on PATH (as with sudo)."""
    by_path = root / WSL_SMI
    if by_path.exists() and run(["nvidia-smi", "-h"], timeout_seconds=PROBE_SECONDS).missing:
        return str(by_path)
    return "nvidia-smi"


def _ask_fields(run: CommandRunner, program: str) -> tuple[CommandResult, Sequence[str]]:
    """nvidia-smi's answer for as many fields as it supports, and those fields."""
    for fields in FIELDS:
        words = [program, f"--query-gpu={','.join(fields)}", "--format=csv,noheader"]
        answer = run(words, timeout_seconds=PROBE_SECONDS)
        if REFUSED not in answer.stdout + answer.stderr:
            break
    return answer, fields


def _quote(answer: CommandResult) -> str:
    """The first lines of nvidia-smi's output: on a mismatch the last is a version."""
    if answer.exit_code is None:
        return answer.message
    said = answer.stderr or answer.stdout
    text = "".join(each for each in said if each.isprintable() or each == "\n")
    lines = [line.strip() for line in text.splitlines()]
    return "; ".join([line for line in lines if line][:QUOTED_LINES]) or answer.message


def _read_rows(answer: CommandResult, fields: Sequence[str]) -> list[dict[str, str]]:
    """Each GPU's values by field name; empty if the output is not a list of GPUs."""
    if not answer.ok:
        return []
    lines = [line.split(",") for line in answer.stdout.splitlines() if "," in line]
    rows = [dict(zip(fields, map(str.strip, line), strict=False)) for line in lines]
    return [row for row in rows if _names_gpu(row)]


def _names_gpu(row: dict[str, str]) -> bool:
    """True if the name and the driver's version (or "[N/A]") are in their columns.

    Another program of the same name must not cause a download of CUDA.
    """
    version = row["driver_version"]
    is_version = DRIVER.match(version) is not None or (bool(version) and _known(version) is None)
    return is_version and bool(row["name"])


def _read_gpu(row: dict[str, str], place: int) -> Gpu:
    name = _known(row["name"])
    index = row.get("index", "")
    return Gpu(
        name or "NVIDIA GPU",
        int(index) if index.isdecimal() else place,
        _known(row.get("uuid")),
        _parse_capability(row.get("compute_cap", "")) or infer_capability(name or ""),
        {"Enabled": True, "Disabled": False}.get(row.get("mig.mode.current", "")),
        answers=name is not None and not any(value in FAILING for value in row.values()),
    )


def _known(text: str | None) -> str | None:
    """The value, or None for nvidia-smi's placeholders ("[N/A]", "ERR!", "[Unknown Error]")."""
    return text if text and not text.startswith("[") and text not in ("N/A", "ERR!") else None


def _parse_capability(text: str) -> Capability | None:
    found = re.fullmatch(r"(\d+)\.(\d+)", text)
    return (int(found.group(1)), int(found.group(2))) if found else None


def _read_instances(run: CommandRunner, program: str, gpus: tuple[Gpu, ...]) -> tuple[Gpu, ...]:
    """The GPUs with the UUIDs of their MIG instances, which only `nvidia-smi -L` lists."""
    if not any(gpu.mig for gpu in gpus):
        return gpus
    found: dict[int, list[str]] = {}
    current = -1
    for line in run([program, "-L"], timeout_seconds=PROBE_SECONDS).stdout.splitlines():
        whole = re.match(r"GPU (\d+):", line)
        instance = re.search(r"\(UUID: (MIG-[^)]+)\)", line)
        if whole:
            current = int(whole.group(1))
        elif instance:
            found.setdefault(current, []).append(instance.group(1))
    return tuple(replace(gpu, instances=tuple(found.get(gpu.index, ()))) for gpu in gpus)


def is_lxc(root: Path, environment: Mapping[str, str] = os.environ) -> bool:
    """True in an LXC container: a system of its own, which runs on its host's kernel."""
    kind = _read(root / "run/systemd/container") or environment.get("container", "")
    return kind.strip() in ("lxc", "lxc-libvirt") or (root / "dev/.lxc").exists()


def is_wsl(root: Path) -> bool:
    """True in WSL2, where the GPU is a Windows device (/dev/dxg)."""
    return (root / "dev/dxg").exists() or "microsoft" in _read(root / "proc/version").lower()


def read_module_version(root: Path) -> str | None:
    """The loaded kernel module's version, such as "580.65.06"; None if none is loaded."""
    found = VERSION.search(_read(root / "proc/driver/nvidia/version"))
    return found.group(1) if found else None


def _read_module_gpus(root: Path) -> tuple[Gpu, ...]:
    """The GPUs of the kernel module, in the order of their bus addresses."""
    gpus: list[Gpu] = []
    for path in sorted((root / "proc/driver/nvidia/gpus").glob("*/information")):
        fields = dict(
            re.findall(r"^(Model|GPU UUID):\s*(.+?)\s*$", _read(path), flags=re.MULTILINE)
        )
        name, uuid = fields.get("Model"), fields.get("GPU UUID", "")
        if name:
            known = uuid if "?" not in uuid else None  # "?" until the module has read the UUID
            gpus.append(Gpu(name, len(gpus), known or None, infer_capability(name)))
    return tuple(gpus)


def _read(path: Path) -> str:
    """The file's text; empty if it does not exist or cannot be read."""
    try:
        return path.read_text(encoding="utf-8", errors="replace")
    except OSError:
        return ""


def name_architecture(capability: Capability) -> str:
    """The architecture's name.

    >>> name_architecture((8, 6))
    'Ampere'
    """
    known = [name for first, name in ARCHITECTURES if first <= capability]
    return known[-1] if known else "an architecture before Kepler"


def infer_capability(name: str) -> Capability | None:
    """The compute capability of the GPU of this name, or None if the name is ambiguous.

    >>> infer_capability("NVIDIA GeForce RTX 3090")
    (8, 6)
    """
    found = (capability for pattern, capability in NAMES if re.search(pattern, name))
    return next(found, None)


def infer_capability_of_device(device: int) -> Capability | None:
    """The compute capability of NVIDIA's GPU with this PCI device number, or None if unknown.

    Only for numbers of GPUs: their sound and USB devices are numbered in between. Those before
    Kepler are unknown.

    >>> infer_capability_of_device(0x1B80), infer_capability_of_device(0x2B85)
    ((6, 1), (12, 0))
    """
    known = [capability for first, capability in PCI_IDS if first <= device]
    return known[-1] if known and known[-1] >= (3, 0) else None


def describe_architecture(gpu: Gpu) -> str:
    """The architecture and the compute capability of a GPU.

    >>> describe_architecture(Gpu("NVIDIA H200", capability=(9, 0)))
    'Hopper, 9.0'
    """
    if gpu.capability is None:
        return "unknown"
    major, minor = gpu.capability
    return f"{name_architecture(gpu.capability)}, {major}.{minor}"


def describe_gpus(gpus: Sequence[Gpu]) -> str:
    """The GPUs' names, each once, with a count if it is more than one.

    >>> describe_gpus([Gpu("NVIDIA H200"), Gpu("NVIDIA H200", 1), Gpu("NVIDIA L4", 2)])
    '2 NVIDIA H200, NVIDIA L4'
    """
    names = [gpu.name for gpu in gpus]
    counts = {name: names.count(name) for name in names}
    said = [f"{count} {name}" if count > 1 else name for name, count in counts.items()]
    return ", ".join(said) or "an NVIDIA GPU"


ALL_GPUS = ("all",)


@dataclass(frozen=True)
class GpuSelection:
    """GPUs of a host, and their names (``words``) for a container engine.

    The names are "all", indices, and UUIDs of MIG instances. Whole GPUs use indices, because only
    newer CDI specifications have their UUIDs.
    """

    gpus: tuple[Gpu, ...]
    words: tuple[str, ...]

    def narrow(self, served: Sequence[Gpu]) -> GpuSelection:
        """The selection limited to the GPUs in ``served``."""
        if len(served) == len(self.gpus):
            return self
        return GpuSelection(tuple(served), tuple(str(gpu.index) for gpu in served))


def parse_gpus(text: str | None) -> tuple[str, ...]:
    """The words in `GPUS=`; empty if it was not given.

    Raises UsageError for a word that cannot name a GPU.

    >>> parse_gpus("0, 1,GPU-3f4e")
    ('0', '1', 'GPU-3f4e')
    """
    if text is None or text == "all":
        return ALL_GPUS if text else ()
    words = tuple(word.strip() for word in text.split(",") if word.strip())
    for word in words or ("",):
        if not (word.isdecimal() or word.startswith(("GPU-", "MIG-"))):
            raise UsageError(
                f"invalid GPUS={text}",
                cause=f"{word!r} is neither an index (0,1) nor a UUID (GPU-..., MIG-...), nor all",
                fix="nvidia-smi -L   # lists both",
            )
    return tuple(dict.fromkeys(words))


def select_gpus(asked: tuple[str, ...], facts: GpuFacts) -> GpuSelection:
    """The host's GPUs that the user asked for.

    Raises DeviceMissingError, with the list of the host's GPUs, if one is missing. If the host does
    not list its GPUs, the words are used unchanged.
    """
    if asked in ((), ALL_GPUS):
        return GpuSelection(facts.gpus, ALL_GPUS)
    if not facts.gpus:
        return GpuSelection((), asked)
    found = [_find_gpu(word, facts.gpus) for word in asked]
    words = tuple(dict.fromkeys(word for _, word in found))
    return GpuSelection(tuple(dict.fromkeys(gpu for gpu, _ in found)), words)


def _find_gpu(word: str, gpus: Sequence[Gpu]) -> tuple[Gpu, str]:
    """The GPU that the word names, and its name for the engine."""
    if word.startswith("MIG-"):
        found = [(gpu, uuid) for gpu in gpus for uuid in gpu.instances if uuid.startswith(word)]
        if len(found) == 1:
            return found[0]
        raise _refuse_gpu(word, gpus)
    whole = [gpu for gpu in gpus if word == str(gpu.index) or _starts(gpu.uuid, word)]
    if len(whole) == 1:
        return whole[0], str(whole[0].index)
    raise _refuse_gpu(word, gpus)


def _starts(uuid: str | None, word: str) -> bool:
    return word.startswith("GPU-") and bool(uuid) and str(uuid).startswith(word)


def _refuse_gpu(word: str, gpus: Sequence[Gpu]) -> DeviceMissingError:
    lines = []
    for gpu in gpus:
        lines.append(f"{gpu.index} {gpu.name}" + (f" ({gpu.uuid})" if gpu.uuid else ""))
        lines += gpu.instances
    return DeviceMissingError(
        f"this host has no GPU {word}",
        cause=f"it has: {'; '.join(lines)}",
        fix=f"make up GPUS={gpus[0].index}",
    )


def parse_indices(asked: str, count: int) -> list[int]:
    """The GPU numbers in a list such as ``"2,0"``, as CUDA parses it.

    The first invalid entry ends the list; a repeated one makes it empty.

    >>> parse_indices("2, 0,-1,1", 4), parse_indices("1,1", 4), parse_indices("", 4)
    ([2, 0], [], [])
    """
    found: list[int] = []
    for word in asked.split(","):
        number = re.match(r"\+?\d+", word.strip())
        if number is None or int(number[0]) >= count:
            break
        if int(number[0]) in found:
            return []
        found.append(int(number[0]))
    return found

"""The NVIDIA GPUs this host has, by what its driver's own programs and files say.

NVIDIA's architectures by compute capability, and by the names of the GPUs that have them.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from labkit.process import CommandResult, CommandRunner

PROBE_SECONDS = 10.0
# One question, and what is left of it where an older nvidia-smi refuses a field (compute_cap is
# not known to 470). The name stands first: it is the one column that is always there.
FIELDS = (
    ("name", "driver_version", "index", "uuid", "compute_cap", "mig.mode.current"),
    ("name", "driver_version", "index", "uuid", "mig.mode.current"),
    ("name", "driver_version"),
)
REFUSED = "is not a valid field to query"
# Where WSL2 keeps nvidia-smi; root's PATH does not lead there.
WSL_SMI = "usr/lib/wsl/lib/nvidia-smi"
DRIVER = re.compile(r"\d{3}\.\d+")
QUOTED_LINES = 3
VERSION = re.compile(r"\b(\d{3}\.\d+(?:\.\d+)?)\b")


@dataclass(frozen=True)
class Gpu:
    """One GPU. ``index`` counts in PCI bus order, as nvidia-smi and the engines do.

    ``capability`` is CUDA's compute capability, (8, 9) for 8.9. ``mig`` is True where the GPU is
    cut into parts, and ``parts`` are their UUIDs. None is "not known".
    """

    name: str
    index: int = 0
    uuid: str | None = None
    capability: Capability | None = None
    mig: bool | None = None
    parts: tuple[str, ...] = ()


@dataclass(frozen=True)
class GpuFacts:
    """The host's NVIDIA driver and GPUs; ``problem`` is nvidia-smi's own line where it failed."""

    driver_version: str | None = None
    gpus: tuple[Gpu, ...] = ()
    problem: str | None = None
    wsl: bool = False

    @property
    def present(self) -> bool:
        """True where a driver runs here and has at least one GPU, or cannot say how many."""
        return bool(self.gpus) or self.driver_version is not None

    @property
    def names(self) -> tuple[str, ...]:
        """The GPUs' names, in the order of their indices."""
        return tuple(gpu.name for gpu in self.gpus)

    @property
    def driver_major(self) -> int | None:
        """The driver's branch, 580 of "580.65.06"; None where the version is not known."""
        found = re.match(r"(\d+)\.", self.driver_version or "")
        return int(found.group(1)) if found else None


def probe_gpu(run: CommandRunner, root: Path = Path("/")) -> GpuFacts:
    """What `nvidia-smi` lists, else what /proc/driver/nvidia tells, else nothing."""
    program = _find_program(run, root)
    answer, fields = _ask_fields(run, program)
    wsl = is_wsl(root)
    rows = _read_rows(answer, fields)
    if rows:
        gpus = _read_parts(run, program, tuple(_read_gpu(row, n) for n, row in enumerate(rows)))
        return GpuFacts(_known(rows[0].get("driver_version")), gpus, wsl=wsl)
    if answer.ok and not answer.stdout.strip():
        return GpuFacts(wsl=wsl)
    return GpuFacts(
        driver_version=read_module_version(root),
        gpus=_read_module_gpus(root),
        problem=None if answer.missing else _quote(answer),
        wsl=wsl,
    )


def has_driver(root: Path = Path("/")) -> bool:
    """True where a driver's own files show that one runs; nothing is asked of it."""
    return any((root / path).exists() for path in ("proc/driver/nvidia/version", "dev/dxg"))


def _find_program(run: CommandRunner, root: Path) -> str:
    """nvidia-smi by its name, or WSL2's where PATH does not lead to it."""
    by_path = root / WSL_SMI
    if by_path.exists() and run(["nvidia-smi", "-h"], timeout_seconds=PROBE_SECONDS).missing:
        return str(by_path)
    return "nvidia-smi"


def _ask_fields(run: CommandRunner, program: str) -> tuple[CommandResult, Sequence[str]]:
    """nvidia-smi's answer to as many fields as it knows, and those fields."""
    for fields in FIELDS:
        words = [program, f"--query-gpu={','.join(fields)}", "--format=csv,noheader"]
        answer = run(words, timeout_seconds=PROBE_SECONDS)
        if REFUSED not in answer.stdout + answer.stderr:
            break
    return answer, fields


def _quote(answer: CommandResult) -> str:
    """nvidia-smi's own words; of a mismatch the first line tells, and the last only a version."""
    if answer.exit_code is None:
        return answer.message
    said = answer.stderr or answer.stdout
    text = "".join(each for each in said if each.isprintable() or each == "\n")
    lines = [line.strip() for line in text.splitlines()]
    return "; ".join([line for line in lines if line][:QUOTED_LINES]) or answer.message


def _read_rows(answer: CommandResult, fields: Sequence[str]) -> list[dict[str, str]]:
    """Each GPU's values by the names of the fields; what is no list of GPUs has no rows."""
    if not answer.ok:
        return []
    lines = [line.split(",") for line in answer.stdout.splitlines() if "," in line]
    rows = [dict(zip(fields, map(str.strip, line), strict=False)) for line in lines]
    return [row for row in rows if _names_gpu(row)]


def _names_gpu(row: dict[str, str]) -> bool:
    """True where a name and a driver's version, or what stands in for one, are where they belong.

    A program that prints something else must not have gigabytes of CUDA fetched for it.
    """
    version = row["driver_version"]
    told = DRIVER.match(version) is not None or version.startswith("[") or version == "N/A"
    return told and bool(row["name"])


def _read_gpu(row: dict[str, str], place: int) -> Gpu:
    name = row["name"]
    index = row.get("index", "")
    return Gpu(
        name,
        int(index) if index.isdecimal() else place,
        _known(row.get("uuid")),
        _parse_capability(row.get("compute_cap", "")) or infer_capability(name),
        {"Enabled": True, "Disabled": False}.get(row.get("mig.mode.current", "")),
    )


def _known(text: str | None) -> str | None:
    """The value, or None for what nvidia-smi prints in its place ("[N/A]")."""
    return text if text and not text.startswith("[") and text != "N/A" else None


def _parse_capability(text: str) -> Capability | None:
    found = re.fullmatch(r"(\d+)\.(\d+)", text)
    return (int(found.group(1)), int(found.group(2))) if found else None


def _read_parts(run: CommandRunner, program: str, gpus: tuple[Gpu, ...]) -> tuple[Gpu, ...]:
    """The GPUs with the UUIDs of their parts, which `nvidia-smi -L` alone lists."""
    if not any(gpu.mig for gpu in gpus):
        return gpus
    parts: dict[int, list[str]] = {}
    current = -1
    for line in run([program, "-L"], timeout_seconds=PROBE_SECONDS).stdout.splitlines():
        whole = re.match(r"GPU (\d+):", line)
        part = re.search(r"\(UUID: (MIG-[^)]+)\)", line)
        if whole:
            current = int(whole.group(1))
        elif part:
            parts.setdefault(current, []).append(part.group(1))
    return tuple(
        Gpu(gpu.name, gpu.index, gpu.uuid, gpu.capability, gpu.mig, tuple(parts.get(gpu.index, ())))
        for gpu in gpus
    )


def is_wsl(root: Path) -> bool:
    """True in WSL2, where the GPU is a Windows device (/dev/dxg)."""
    return (root / "dev/dxg").exists() or "microsoft" in _read(root / "proc/version").lower()


def read_module_version(root: Path) -> str | None:
    """The loaded kernel module's version, such as "580.65.06"; None where none is loaded."""
    found = VERSION.search(_read(root / "proc/driver/nvidia/version"))
    return found.group(1) if found else None


def _read_module_gpus(root: Path) -> tuple[Gpu, ...]:
    """The GPUs that the kernel module has, in the order of their addresses on the bus."""
    gpus: list[Gpu] = []
    for path in sorted((root / "proc/driver/nvidia/gpus").glob("*/information")):
        fields = dict(
            re.findall(r"^(Model|GPU UUID):\s*(.+?)\s*$", _read(path), flags=re.MULTILINE)
        )
        name, uuid = fields.get("Model"), fields.get("GPU UUID", "")
        if name:
            known = uuid if "?" not in uuid else None  # as it prints one it has not read yet
            gpus.append(Gpu(name, len(gpus), known or None, infer_capability(name)))
    return tuple(gpus)


def _read(path: Path) -> str:
    """The file's text; empty where it is not there or may not be read."""
    try:
        return path.read_text(encoding="utf-8", errors="replace")
    except OSError:
        return ""


Capability = tuple[int, int]

# From each capability on, until the next one.
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

# For a driver that does not tell the capability. Only series with one architecture throughout:
# an RTX 2050 is no Turing, a GTX 960M not like a GTX 960.
NAMES: tuple[tuple[str, Capability], ...] = (
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
)


def name_architecture(capability: Capability) -> str:
    """The architecture's name.

    >>> name_architecture((8, 6))
    'Ampere'
    """
    known = [name for first, name in ARCHITECTURES if first <= capability]
    return known[-1] if known else "an architecture before Kepler"


def infer_capability(name: str) -> Capability | None:
    """The compute capability of the GPU of this name, or None where the name alone leaves doubt.

    >>> infer_capability("NVIDIA GeForce RTX 3090")
    (8, 6)
    """
    found = (capability for pattern, capability in NAMES if re.search(pattern, name))
    return next(found, None)

"""The NVIDIA GPUs this host has, by what its driver's own programs and files say."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

from labkit.commands import CommandRunner

PROBE_SECONDS = 10.0


@dataclass(frozen=True)
class GpuFacts:
    """The host's NVIDIA driver and GPUs; ``problem`` is nvidia-smi's own line where it failed."""

    driver_version: str | None = None
    names: tuple[str, ...] = ()
    problem: str | None = None

    @property
    def present(self) -> bool:
        """True where a driver runs here and has at least one GPU, or cannot say how many."""
        return bool(self.names) or self.driver_version is not None


def probe_gpu(run: CommandRunner, root: Path = Path("/")) -> GpuFacts:
    """What `nvidia-smi` lists, else what /proc/driver/nvidia/version says, else nothing."""
    answer = run(
        ["nvidia-smi", "--query-gpu=name,driver_version", "--format=csv,noheader"],
        timeout_seconds=PROBE_SECONDS,
    )
    if answer.ok:
        rows = [line.split(",") for line in answer.stdout.splitlines() if "," in line]
        names = tuple(row[0].strip() for row in rows)
        return GpuFacts(rows[0][-1].strip() if rows else None, names)
    return GpuFacts(
        driver_version=_read_module_version(root),
        problem=None if answer.missing else answer.message,
    )


def _read_module_version(root: Path) -> str | None:
    """The loaded kernel module's version, such as "580.65.06"; None where none is loaded."""
    try:
        text = (root / "proc/driver/nvidia/version").read_text(encoding="utf-8")
    except OSError:
        return None
    found = re.search(r"\b(\d{3}\.\d+(?:\.\d+)?)\b", text)
    return found.group(1) if found else None

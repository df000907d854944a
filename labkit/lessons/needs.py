"""What a claim can need from the machine, and what a real GPU showed where it is missing."""

from __future__ import annotations

import functools
import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from labkit.errors import UsageError
from labkit.text import near_match


def missing_need(need: str | None) -> str | None:
    """Why this machine does not meet ``need`` ("needs cuda"), or None if it does.

    Needs are "cuda", "accelerator" (any device beyond the CPU that torch can use), and what
    torch.compile needs: "cpu_compiler", "cuda_compiler", or "compiler" (either of them).
    """
    if need is None:
        return None
    if need not in NEEDS:
        near = near_match(need, NEEDS)
        raise UsageError(
            f"unknown need {need!r}",
            cause=f"the needs are {', '.join(sorted(NEEDS))}",
            fix=f"needs={near!r}" if near else None,
        )
    return None if NEEDS[need]() else f"needs {need}"


def has_cuda() -> bool:
    """True if torch can use a CUDA device; creates no CUDA context."""
    import torch

    return bool(torch.cuda.is_available())


def has_accelerator() -> bool:
    """True if torch can use a device other than the CPU: CUDA, MPS, XPU or a similar one."""
    import torch

    return bool(torch.accelerator.is_available())


def has_cpu_compiler() -> bool:
    """True if the C++ compiler that torch.compile calls for the CPU is installed."""
    return _can_compile_for("cpu")


def has_cuda_compiler() -> bool:
    """True if torch.compile finds what it needs for the CUDA device (Volta or newer)."""
    return has_cuda() and _can_compile_for("cuda")


def has_compiler() -> bool:
    """True if torch.compile finds what it needs for the CUDA device or for the CPU."""
    return has_cuda_compiler() or has_cpu_compiler()


def _can_compile_for(device: str) -> bool:
    import torch

    from labkit.devices.self_test import find_compiler_gap

    return find_compiler_gap(torch, device) is None


NEEDS: dict[str, Callable[[], bool]] = {
    "cuda": has_cuda,
    "accelerator": has_accelerator,
    "compiler": has_compiler,
    "cpu_compiler": has_cpu_compiler,
    "cuda_compiler": has_cuda_compiler,
}

NEED_WORDS = {
    "cuda": "needs CUDA",
    "accelerator": "needs a device beyond the CPU",
    "compiler": "needs a compiler for torch.compile",
    "cpu_compiler": "needs a C++ compiler",
    "cuda_compiler": "needs torch.compile for CUDA",
}


@dataclass(frozen=True)
class ProvenClaims:
    """The claims that held in a stored run of the labs, with its device and date."""

    device: str
    date: str
    held: frozenset[str]


@functools.cache
def find_proven(folder: Path | None = None) -> ProvenClaims | None:
    """The newest stored run of the labs on a CUDA device; None without one that can be read.

    ``folder`` is docs/results of a checkout, which an installed labkit carries.
    """
    package = Path(__file__).resolve().parents[1]
    stored = [package.parent / "docs" / "results", package / "_results"]
    folder = folder or next((one for one in stored if one.is_dir()), stored[-1])
    runs = [run for path in folder.glob("*/labs.json") if (run := _read_run(path))]
    return max(runs, key=lambda run: run.date, default=None)


def _read_run(path: Path) -> ProvenClaims | None:
    try:
        run = json.loads(path.read_text(encoding="utf-8"))
        device = next(one for one in run["environment"]["devices"] if one["kind"] == "cuda")
        held = frozenset(
            claim["statement"]
            for notebook in run["notebooks"]
            for claim in notebook["claims"]
            if claim["held"] is True
        )
        name = device["name"].removeprefix("NVIDIA ")
        return ProvenClaims(f"a real {name}", run["started_at"][:10], held)
    except (OSError, ValueError, LookupError, TypeError, AttributeError, StopIteration):
        return None

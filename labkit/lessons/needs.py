"""What a claim can need from the machine, and messages for what is missing."""

from __future__ import annotations

from collections.abc import Callable

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

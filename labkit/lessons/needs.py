"""What a claim can need from the machine, and messages for what is missing."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable

from labkit.errors import UsageError
from labkit.text import near_match


def missing_need(need: str | None) -> str | None:
    """Why this machine does not meet ``need`` ("needs cuda"), or None if it does.

    Needs are "cuda", "accelerator" (any device beyond the CPU that torch can use) and
    "compiler" (a C++ compiler, as torch.compile needs on CPU).
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


def has_compiler() -> bool:
    """True if the C++ compiler that torch.compile calls is installed."""
    named = os.environ.get("CXX")
    return any(shutil.which(name) for name in ((named,) if named else ("g++", "clang++", "c++")))


NEEDS: dict[str, Callable[[], bool]] = {
    "cuda": has_cuda,
    "accelerator": has_accelerator,
    "compiler": has_compiler,
}

"""What a claim may need of the machine, and the words for what is missing."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable

from labkit.errors import UsageError
from labkit.text import near_match


def missing_need(need: str | None) -> str | None:
    """Why what ``need`` names cannot run here ("needs cuda"), or None where it can.

    Needs are "cuda", "accelerator" (any device beyond the CPU that torch can use) and
    "compiler" (a C++ compiler, as torch.compile needs on CPU).
    """
    if need is None:
        return None
    if need not in NEEDS:
        near = near_match(need, NEEDS)
        raise UsageError(
            f"nothing is known of the need {need!r}",
            cause=f"the needs are {', '.join(sorted(NEEDS))}",
            fix=f"needs={near!r}" if near else None,
        )
    return None if NEEDS[need]() else f"needs {need}"


def has_cuda() -> bool:
    """True where torch can use a CUDA device; asks torch and makes no context."""
    import torch

    return bool(torch.cuda.is_available())


def has_accelerator() -> bool:
    """True where torch can use any device beyond the CPU: CUDA, MPS, XPU and their like."""
    import torch

    return bool(torch.accelerator.is_available())


def has_compiler() -> bool:
    """True where the C++ compiler that torch.compile would call is found."""
    named = os.environ.get("CXX")
    return any(shutil.which(name) for name in ((named,) if named else ("g++", "clang++", "c++")))


NEEDS: dict[str, Callable[[], bool]] = {
    "cuda": has_cuda,
    "accelerator": has_accelerator,
    "compiler": has_compiler,
}

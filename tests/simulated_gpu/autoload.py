"""Installed into the environment as ``labkit_simulated_gpu``: torch calls load() on import.

``LABKIT_SIM_ARITHMETIC=0`` leaves the arithmetic out: then no CUDA operator computes anything.
"""

from __future__ import annotations

import ctypes
import os
import sys
from pathlib import Path


def load() -> None:
    """Gives torch the arithmetic, turns cuDNN off, and names the played build's architectures."""
    import torch

    # cuDNN's graphs of operations are not simulated; without cuDNN torch uses kernels of its own.
    torch.backends.cudnn.enabled = False
    played = os.environ.get("LABKIT_SIM_ARCHITECTURES")
    if played:
        torch._C._cuda_getArchFlags = lambda: played
    if os.environ.get("LABKIT_SIM_ARITHMETIC", "1") != "0":
        ctypes.CDLL(str(Path(sys.prefix) / "simulated-gpu" / "libarithmetic.so"))

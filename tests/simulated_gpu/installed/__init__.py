"""Installed into the environment as ``labkit_simulated_gpu``: torch calls load() on import.

``LABKIT_SIM_ARITHMETIC=0`` leaves the arithmetic out: then no CUDA operator computes anything.
"""

from __future__ import annotations

import ctypes
import importlib.abc
import importlib.util
import os
import sys
from collections.abc import Callable, Sequence
from importlib.machinery import ModuleSpec
from pathlib import Path
from types import ModuleType

INDUCTOR = "torch._inductor.compile_fx"


def load() -> None:
    """Gives torch the arithmetic, turns cuDNN off, and names the played build's architectures."""
    import torch

    # cuDNN's graphs of operations are not simulated; without cuDNN torch uses kernels of its own.
    torch.backends.cudnn.enabled = False
    # torch's own Triton kernels, which replace CUDA's of some operators a moment after this.
    os.environ["TORCH_DISABLE_NATIVE_JIT"] = "1"
    played = os.environ.get("LABKIT_SIM_ARCHITECTURES")
    if played:
        torch._C._cuda_getArchFlags = lambda: played
    if os.environ.get("LABKIT_SIM_ARITHMETIC", "1") != "0":
        ctypes.CDLL(str(Path(sys.prefix) / "simulated-gpu" / "libarithmetic.so"))
        from labkit_simulated_gpu.compiled import add_values

        sys.meta_path.insert(0, _AfterImport(INDUCTOR, add_values))


class _AfterImport(importlib.abc.MetaPathFinder):
    """Calls a function with a module once that is imported: inductor takes seconds to import."""

    def __init__(self, name: str, act: Callable[[ModuleType], None]) -> None:
        self._name, self._act = name, act

    def find_spec(
        self, name: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        """The module's own spec, whose loader then calls the function."""
        if name != self._name:
            return None
        sys.meta_path.remove(self)
        spec = importlib.util.find_spec(name)
        if spec is None or spec.loader is None:
            return None
        execute = spec.loader.exec_module

        def execute_and_act(module: ModuleType) -> None:
            execute(module)
            self._act(module)

        spec.loader.exec_module = execute_and_act  # type: ignore[method-assign]
        return spec

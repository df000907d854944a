"""What torch can compute on; the one module that asks torch, and imports it only then."""

from __future__ import annotations

import re
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    import torch


class TorchBuild(NamedTuple):
    """The installed torch: its version, and the CUDA version it was built for (None: without)."""

    version: str
    cuda: str | None = None


def best_device() -> torch.device:
    """The device to compute on here: CUDA, MPS or XPU where torch can use it, else the CPU.

    >>> best_device().type in ("cpu", "cuda", "mps", "xpu")
    True
    """
    import torch

    found = torch.accelerator.current_accelerator(check_available=True)
    return torch.device("cpu") if found is None else found


def read_torch_build(folder: Path | None = None) -> TorchBuild | None:
    """The installed torch's version and CUDA, without importing it; None where there is none.

    Read from ``torch/version.py``: the package's metadata leaves out what a wheel was built for
    ("2.13.0" where this file says "2.13.0+cu130"), and importing torch takes seconds.
    """
    folder = folder or find_torch_folder()
    if folder is None:
        return None
    try:
        text = (folder / "version.py").read_text(encoding="utf-8")
    except OSError:
        return None
    told = dict(re.findall(r"^(__version__|cuda)\b[^=\n]*=\s*'([^'\n]*)'", text, re.MULTILINE))
    return TorchBuild(told["__version__"], told.get("cuda")) if "__version__" in told else None


def find_torch_folder() -> Path | None:
    """The folder of the torch that ``import torch`` would load, or None."""
    from importlib.util import find_spec

    try:
        spec = find_spec("torch")
    except ValueError:  # a stand-in without a spec sits in sys.modules
        return None
    places = list(spec.submodule_search_locations or ()) if spec else []
    return Path(places[0]) if places else None

"""Small proofs that a device computes with torch, each device in a Python of its own.

``python -m labkit.devices.self_test list SECONDS`` prints what torch lists, ``try SECONDS cuda:0``
what came of each step on one device: a JSON object a line, so that it is known how far a process
got that hung or died. What they leave behind is what torch.compile puts in its own cache.
"""

from __future__ import annotations

import faulthandler
import importlib.util
import json
import os
import shutil
import sys
import time
from collections.abc import Callable, Mapping
from typing import Any

from labkit.devices.torch_devices import read_torch_devices

Tell = Callable[[Mapping[str, object]], None]
Find = Callable[[str], object]

BLOCK = 16 * 2**20  # times 4 bytes
SIDE = 256
# TF32, where it is in use, stays below it; a broken card does not.
MATMUL_ERROR = 0.5
COMPILE_ERROR = 1e-3
# Of NVIDIA's GPUs Triton takes those from Volta on.
TRITON_CAPABILITY = 7


class NotTried(Exception):
    """A step that cannot be taken here, for a reason that says nothing against the device."""


def allocate(torch: Any, device: str) -> str:
    """Fills 64 MiB of the device with a number, and reads it back."""
    # Whole numbers: MPS and some of Intel's GPUs have no float64 to add them up in.
    block = torch.full((BLOCK,), 7, dtype=torch.int32, device=device)
    if not bool((block == 7).all().item()):
        raise RuntimeError("what is read from its memory is not what was written to it")
    return "64 MiB"


def compute(torch: Any, device: str) -> str:
    """Multiplies (256, 256) matrices on the device and compares with the CPU's float64."""
    maker = torch.Generator().manual_seed(0)
    left, right = (torch.randn(SIDE, SIDE, generator=maker) for _ in range(2))
    exact = left.double() @ right.double()
    product = (left.to(device) @ right.to(device)).cpu().double()
    error = (product - exact).abs().max().item()
    if not error < MATMUL_ERROR:  # not a number is not below either
        raise RuntimeError(f"a matmul is {error:.3g} away from the CPU's float64")
    return f"within {error:.1g} of the CPU's float64"


def compile_function(torch: Any, device: str) -> str:
    """Compiles a small function for the device; NotTried where there is nothing to do it with."""
    reason = find_compiler_gap(torch, device)
    if reason:
        raise NotTried(reason)
    return compile_curve(torch, device)


def compile_curve(torch: Any, device: str) -> str:
    """Compiles a small function for the device and compares with the CPU's float64."""

    def curve(x: Any) -> Any:
        return torch.sin(x) * 2 + 1

    points = torch.linspace(0, 1, 64)
    drawn = torch.compile(curve)(points.to(device)).cpu().double()
    error = (drawn - curve(points.double())).abs().max().item()
    if not error < COMPILE_ERROR:
        raise RuntimeError(f"a compiled function is {error:.3g} away from the plain one")
    return "the same as uncompiled"


STEPS = {"allocate": allocate, "compute": compute, "compile": compile_function}


def find_compiler_gap(
    torch: Any,
    device: str,
    find: Find = shutil.which,
    find_module: Find = importlib.util.find_spec,
    environment: Mapping[str, str] = os.environ,
) -> str | None:
    """What torch.compile needs for the device and is not here, in a sentence; None where all is."""
    kind = device.partition(":")[0]
    if kind == "cpu":
        return _find_missing(find, environment.get("CXX"), ("g++", "clang++"), "C++ compiler")
    if kind not in ("cuda", "xpu"):
        return None
    if kind == "cuda" and not torch.version.hip:
        major, minor = torch.cuda.get_device_capability(device)
        if major < TRITON_CAPABILITY:
            return f"Triton needs compute capability 7.0, and this is {major}.{minor}"
    if not find_module("triton"):
        return "there is no Triton in this Python"
    return _find_missing(find, environment.get("CC"), ("gcc", "clang"), "C compiler")


def _find_missing(find: Find, chosen: str | None, usual: tuple[str, ...], what: str) -> str | None:
    names = (chosen.split()[0],) if chosen and chosen.split() else usual
    return None if any(find(name) for name in names) else f"there is no {what} ({names[0]}) here"


def run_steps(torch: Any, device: str, tell: Tell, clock: Callable[[], float]) -> None:
    """Takes the steps in turn and tells of each; the first that fails is the last."""
    for name, step in STEPS.items():
        started = clock()
        try:
            result = step(torch, device)
        except NotTried as reason:
            tell({"step": name, "skipped": str(reason)})
            continue
        except Exception as error:  # whatever torch raises is what was to be found out
            tell({"step": name, "error": f"{type(error).__name__}: {error}".strip()})
            return
        tell({"step": name, "seconds": clock() - started, "words": result})


def main(words: list[str]) -> None:
    """Lists torch's devices, or tries one; tells on what was the standard output."""
    # What libraries print goes with the errors, so that the output holds nothing but events.
    output = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)

    def tell(event: Mapping[str, object]) -> None:
        print(json.dumps(event), file=output, flush=True)

    # From a thread of its own in C: it ends a process that hangs inside the driver too.
    faulthandler.dump_traceback_later(float(words[1]), exit=True)
    started = time.perf_counter()
    import torch

    tell({"step": "import", "seconds": time.perf_counter() - started})
    if words[0] == "try":
        run_steps(torch, words[2], tell, time.perf_counter)
    else:
        facts = read_torch_devices(torch)
        tell(
            {
                **facts._asdict(),
                "build": facts.build._asdict(),
                "devices": [device._asdict() for device in facts.devices],
            }
        )
    tell({"step": "end"})


if __name__ == "__main__":
    main(sys.argv[1:])

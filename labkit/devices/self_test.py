"""Self-tests: checks that a device computes with torch. Each device is tested in its own process.

Each command prints one JSON object per line, which shows how far a process got before it ended:

- ``python -m labkit.devices.self_test list SECONDS``: what torch lists;
- ``... try SECONDS cuda:0``: the result of each step on one device;
- ``... prove SECONDS``: the result of each step on the best device, for the doctor.

They write nothing to disk except torch.compile's cache.
"""

from __future__ import annotations

import faulthandler
import importlib.util
import json
import os
import shutil
import sys
import threading
import time
from collections.abc import Callable, Mapping
from typing import Any

from labkit.devices.torch_devices import best_device, read_torch_devices

Report = Callable[[Mapping[str, object]], None]
Step = Callable[[Any, str], str]
Find = Callable[[str], object]

BLOCK = 16 * 2**20  # times 4 bytes
SIDE = 256
# The rounding error of TF32 stays below this; the error of a broken GPU does not.
MATMUL_ERROR = 0.5
COMPILE_ERROR = 1e-3
# Triton supports NVIDIA's GPUs from Volta on.
TRITON_CAPABILITY = 7


class NotTried(Exception):
    """A step that cannot run here, for a reason outside the device."""


def allocate(torch: Any, device: str) -> str:
    """Fills 64 MiB of the device with a number, and reads it back."""
    # Integers: MPS and some of Intel's GPUs have no float64 to sum floats in.
    block = torch.full((BLOCK,), 7, dtype=torch.int32, device=device)
    if not bool((block == 7).all().item()):
        raise RuntimeError("its memory does not return the values written to it")
    return "64 MiB"


def compute(torch: Any, device: str) -> str:
    """Multiplies (256, 256) matrices on the device and compares with the CPU's float64."""
    maker = torch.Generator().manual_seed(0)
    left, right = (torch.randn(SIDE, SIDE, generator=maker) for _ in range(2))
    exact = left.double() @ right.double()
    product = (left.to(device) @ right.to(device)).cpu().double()
    error = (product - exact).abs().max().item()
    if not error < MATMUL_ERROR:  # also true for NaN
        raise RuntimeError(f"a matmul is {error:.3g} away from the CPU's float64")
    return f"within {error:.1g} of the CPU's float64"


def compile_function(torch: Any, device: str) -> str:
    """Compiles a small function for the device; raises NotTried if a tool for it is missing."""
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
# Compiles even if a compiler is missing, because the doctor has a fix for torch's error message.
PROOFS = {**STEPS, "compile": compile_curve}


def find_compiler_gap(
    torch: Any,
    device: str,
    find: Find = shutil.which,
    find_module: Find = importlib.util.find_spec,
    environment: Mapping[str, str] = os.environ,
) -> str | None:
    """The tool that torch.compile needs and does not find, in a sentence; None if all are found."""
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


def run_steps(
    torch: Any,
    device: str,
    report: Report,
    clock: Callable[[], float],
    steps: Mapping[str, Step] = STEPS,
) -> None:
    """Runs and reports the steps in order; stops after the first failure."""
    for name, step in steps.items():
        started = clock()
        try:
            words = step(torch, device)
        except NotTried as reason:
            report({"step": name, "skipped": str(reason)})
            continue
        except Exception as error:  # torch raises many types, and each is a result
            report({"step": name, "error": f"{type(error).__name__}: {error}".strip()})
            return
        report({"step": name, "seconds": clock() - started, "words": words})


def end_with_parent(interval_seconds: float = 1.0) -> None:
    """Ends this process soon after its parent, so that no self-test stays on a GPU."""
    parent = os.getppid()

    def watch() -> None:
        while os.getppid() == parent:
            time.sleep(interval_seconds)
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()


def main(words: list[str]) -> None:
    """Lists torch's devices, or tests one; reports on the original standard output."""
    end_with_parent()
    # What libraries print goes to standard error, so that the output contains only events.
    output = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)

    def report(event: Mapping[str, object]) -> None:
        print(json.dumps(event), file=output, flush=True)

    # A thread in C: it also ends a process that hangs inside the driver.
    faulthandler.dump_traceback_later(float(words[1]), exit=True)
    started = time.perf_counter()
    import torch

    report({"step": "import", "seconds": time.perf_counter() - started})
    if words[0] == "try":
        run_steps(torch, words[2], report, time.perf_counter)
    elif words[0] == "prove":
        best = best_device()
        device = str(best) if best.type == "cpu" else f"{best.type}:{best.index or 0}"
        report({"step": "device", "words": device})
        run_steps(torch, device, report, time.perf_counter, PROOFS)
    else:
        facts = read_torch_devices(torch)
        report(
            {
                **facts._asdict(),
                "build": facts.build._asdict(),
                "devices": [device._asdict() for device in facts.devices],
            }
        )
    report({"step": "end"})


if __name__ == "__main__":
    main(sys.argv[1:])

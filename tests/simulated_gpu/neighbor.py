"""A process without torch that holds memory on a GPU: ``python -m ...neighbor GPU MIB``."""

from __future__ import annotations

import ctypes
import sys

from tests.simulated_gpu.hosts import MIB, load_runtime


def hold(gpu: int, mib: int) -> None:
    """Takes the memory, says so, and waits for the end of the standard input."""
    runtime = load_runtime()
    address = ctypes.c_void_p()
    failed = runtime.cudaSetDevice(gpu) or runtime.cudaMalloc(
        ctypes.byref(address), ctypes.c_size_t(mib * MIB)
    )
    print(f"CUDA error {failed}" if failed else "held", flush=True)
    sys.stdin.read()


if __name__ == "__main__":
    hold(int(sys.argv[1]), int(sys.argv[2]))

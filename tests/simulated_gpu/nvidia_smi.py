#!/usr/bin/env python3
"""What labkit and its tests ask of nvidia-smi, answered by the simulated NVML."""

from __future__ import annotations

import argparse
import sys

import pynvml


def read_fields(handle: object) -> dict[str, object]:
    """The fields of --query-gpu, memory in MiB."""
    memory = pynvml.nvmlDeviceGetMemoryInfo(handle, version=pynvml.nvmlMemory_v2)
    try:
        mig = "Enabled" if pynvml.nvmlDeviceGetMigMode(handle)[0] else "Disabled"
    except pynvml.NVMLError:
        mig = "[N/A]"
    sizes = ("total", "used", "free", "reserved")
    return {
        "index": pynvml.nvmlDeviceGetIndex(handle),
        "uuid": pynvml.nvmlDeviceGetUUID(handle),
        "name": pynvml.nvmlDeviceGetName(handle),
        "compute_cap": "{}.{}".format(*pynvml.nvmlDeviceGetCudaComputeCapability(handle)),
        "driver_version": pynvml.nvmlSystemGetDriverVersion(),
        "mig.mode.current": mig,
        **{f"memory.{size}": getattr(memory, size) >> 20 for size in sizes},
    }


def main() -> int:
    """Prints the queried fields of each GPU, or the list of -L."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--query-gpu", default="index,name,memory.used,memory.total")
    parser.add_argument("--format")
    parser.add_argument("--id")
    parser.add_argument("-L", dest="listed", action="store_true")
    arguments = parser.parse_args()
    pynvml.nvmlInit()
    for index in range(pynvml.nvmlDeviceGetCount()):
        fields = read_fields(pynvml.nvmlDeviceGetHandleByIndex(index))
        if arguments.listed:
            print("GPU {index}: {name} (UUID: {uuid})".format(**fields))
        elif arguments.id in (None, fields["uuid"], str(index)):
            print(", ".join(str(fields[name]) for name in arguments.query_gpu.split(",")))
    return 0


if __name__ == "__main__":
    sys.exit(main())

"""Simulated hosts: their GPUs, and how a test runs a script on one. fixtures.py has their names.

Which GPUs there are is decided when CUDA starts, so each script is a process. Tests marked ``gpu``
run in pytest's own process, on the host that ``play_default_host`` puts into the environment.
"""

from __future__ import annotations

import atexit
import contextlib
import ctypes
import json
import os
import subprocess
import sys
import sysconfig
import tempfile
import textwrap
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[2]
HOME = Path(sys.prefix) / "simulated-gpu"
RUNTIME_LIBRARY = "libcudart.so.13"
MIB = 2**20
# For the longest, a lab's run on a busy machine; pytest's own limit ends the others.
LIMIT_SECONDS = 1800
# cudaErrorIllegalAddress and cudaErrorAssert: every later call of the process fails too.
ILLEGAL_ADDRESS, DEVICE_ASSERT = 700, 710
# At the start of each script.
PREAMBLE = """\
import json, os, sys, time
import torch, labkit
MIB = 2**20
def new(mib, device="cuda:0"):
    return torch.empty(int(mib * MIB), dtype=torch.uint8, device=device)
def first():
    return labkit.memory().balances[0]
def say(*values):
    print(json.dumps(values), flush=True)
"""
# At its end. Python's own way to exit aborts, on a busy machine, if torch's thread for backward
# passes still has to release Python objects, such as a mode.
ENDING = """
sys.stdout.flush()
sys.stderr.flush()
os._exit(0)
"""
# What pytest's own host would pass on to another one.
PLAYED = "LABKIT_SIM_"
FROM_OUTSIDE = ("CUDA_VISIBLE_DEVICES", "CUDA_DEVICE_ORDER")
ALLOCATOR_VARIABLES = (
    "PYTORCH_ALLOC_CONF",
    "PYTORCH_CUDA_ALLOC_CONF",
    "PYTORCH_NO_CUDA_MEMORY_CACHING",
)


@dataclass(frozen=True)
class SimulatedGpu:
    """A GPU, or a MIG instance of the GPU at place ``parent``; ``more`` are fields of README.md."""

    name: str
    uuid: str
    capability: str
    total_mib: int
    multiprocessors: int
    reserved_mib: int = 256
    parent: int | None = None
    more: Mapping[str, object] = field(default_factory=dict)

    def describe(self) -> str:
        """Its part of LABKIT_SIM_GPUS."""
        names = ("name", "uuid", "capability", "total_mib", "multiprocessors", "reserved_mib")
        fields: dict[str, object] = {name: getattr(self, name) for name in names}
        if self.parent is not None:
            fields["parent"] = self.parent
        return ",".join(f"{name}={value}" for name, value in {**fields, **self.more}.items())

    def but(self, **more: object) -> SimulatedGpu:
        """The same GPU with other fields, such as its UUID or its health."""
        own = {name: more.pop(name) for name in list(more) if hasattr(self, name)}
        return replace(self, **own, more={**self.more, **more})


# The figures of the real cards (the H100's as measured), but for the memory of those that a test
# fills: device memory is the host's memory, and a machine of CI has little.
A100 = SimulatedGpu(
    "NVIDIA A100-SXM4-40GB", "GPU-aaaaaaaa-1111-2222-3333-000000000000", "8.0", 4096, 108
)
SECOND_A100 = A100.but(uuid="GPU-bbbbbbbb-1111-2222-3333-000000000001")
H100 = SimulatedGpu(
    "NVIDIA H100 80GB HBM3", "GPU-cccccccc-1111-2222-3333-000000000002", "9.0", 81559, 132, 480
)
T4 = SimulatedGpu("Tesla T4", "GPU-dddddddd-1111-2222-3333-000000000003", "7.5", 15360, 40, 453)
P40 = SimulatedGpu("Tesla P40", "GPU-eeeeeeee-1111-2222-3333-000000000004", "6.1", 24576, 30, 300)
SPLIT_H100 = H100.but(uuid="GPU-ffffffff-1111-2222-3333-000000000005")
MIG_3G, MIG_1G = (
    SimulatedGpu(
        f"NVIDIA H100 80GB HBM3 MIG {profile}",
        f"MIG-{number}0000000-1111-2222-3333-00000000000{number}",
        "9.0",
        total_mib,
        multiprocessors,
        reserved_mib=32,
        parent=0,
    )
    for number, profile, total_mib, multiprocessors in (
        (1, "3g.40gb", 40448, 60),
        (2, "1g.10gb", 9984, 16),
    )
)
GB10 = SimulatedGpu(
    "NVIDIA GB10", "GPU-99999999-1111-2222-3333-000000000006", "12.1", 8192, 48, 0
).but(integrated=1)


@dataclass(frozen=True)
class Output:
    """What a script on a simulated host printed, and its exit code."""

    stdout: str
    stderr: str
    code: int

    def json(self) -> Any:
        """The output, which is one JSON value."""
        return json.loads(self.stdout)


@dataclass(frozen=True)
class SimulatedHost:
    """A machine with simulated GPUs. Processes on it see what the others hold."""

    gpus: tuple[SimulatedGpu, ...]
    state: Path
    variables: Mapping[str, str] = field(default_factory=dict)

    def environment(self, variables: Mapping[str, str] | None = None) -> dict[str, str]:
        """The environment variables of a process on this host."""
        dropped = (*FROM_OUTSIDE, *ALLOCATOR_VARIABLES)
        kept = {
            name: value
            for name, value in os.environ.items()
            if not name.startswith(PLAYED) and name not in dropped
        }
        return {
            **kept,
            "LABKIT_SIM_GPUS": ";".join(gpu.describe() for gpu in self.gpus),
            "LABKIT_SIM_STATE": str(self.state),
            "PYTHONPATH": str(ROOT),
            **self.variables,
            **(variables or {}),
        }

    def run(
        self,
        *words: str,
        code: int | None = 0,
        folder: Path = ROOT,
        variables: Mapping[str, str] | None = None,
    ) -> Output:
        """Runs the environment's Python with ``words``; fails on another exit code than ``code``.

        ``code=None`` takes every exit code.
        """
        done = subprocess.run(
            [sys.executable, *words],
            cwd=folder,
            env=self.environment(variables),
            capture_output=True,
            text=True,
            check=False,
            timeout=LIMIT_SECONDS,
        )
        assert code in (None, done.returncode), (
            f"exit code {done.returncode}\n{done.stdout[-4000:]}\n{done.stderr[-4000:]}"
        )
        return Output(done.stdout, done.stderr, done.returncode)

    def run_script(
        self, script: str, *arguments: str, code: int | None = 0, **variables: str
    ) -> Output:
        """Runs Python source after PREAMBLE; ``variables`` are added to the environment."""
        source = PREAMBLE + textwrap.dedent(script) + ENDING
        return self.run("-c", source, *arguments, code=code, variables=variables)

    def run_labkit(self, *words: str, code: int | None = 0, **variables: str) -> Output:
        """Runs a command of labkit."""
        return self.run("-m", "labkit", *words, code=code, variables=variables)

    @contextlib.contextmanager
    def other_process(self, mib: int, gpu: int = 0) -> Iterator[subprocess.Popen[str]]:
        """A process that holds so much memory on a GPU, with its context, while the block runs."""
        process = subprocess.Popen(
            [sys.executable, "-m", "tests.simulated_gpu.neighbor", str(gpu), str(mib)],
            cwd=ROOT,
            env={**self.environment(), "CUDA_DEVICE_ORDER": "PCI_BUS_ID"},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        try:
            assert process.stdout is not None
            assert process.stdout.readline() == "held\n"
            yield process
        finally:
            process.kill()
            process.communicate()


def load_runtime() -> ctypes.CDLL:
    """The simulated CUDA runtime, with its functions for tests."""
    packages = Path(sysconfig.get_path("purelib"))
    return ctypes.CDLL(str(packages / "nvidia" / "cu13" / "lib" / RUNTIME_LIBRARY))


def break_cuda(error: int = ILLEGAL_ADDRESS) -> None:
    """From now on every CUDA call of this process fails, as after a kernel's illegal access."""
    load_runtime().labkit_sim_break(error)


def count_launches() -> int:
    """How many kernels this process has launched."""
    count = load_runtime().labkit_sim_count_launches
    count.restype = ctypes.c_uint64
    return int(count())


def find_missing_simulation() -> str | None:
    """Why there is no simulated GPU in this Python; None if there is one."""
    if (HOME / "libarithmetic.so").exists() and str(HOME) in os.environ.get("LD_LIBRARY_PATH", ""):
        return None
    return "needs the simulated GPU: make test SIMULATED=1"


def play_default_host() -> None:
    """Two A100 for this process and what it starts: what tests marked ``gpu`` find."""
    state = Path(tempfile.gettempdir()) / f"labkit-simulated-gpu-{os.getpid()}"
    os.environ.update(SimulatedHost((A100, SECOND_A100), state).environment())
    atexit.register(state.unlink, missing_ok=True)

"""The figures that memory promises, measured side by side: ``python -m tests.bench.bench_memory``.

Each line names a limit, what was measured, and whether it holds. Commands are run in turn, so that
a busy moment of the machine falls on all of them alike; the figure is the median.
"""

from __future__ import annotations

import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

from labkit.memory.track.counters import CudaCounter, OpenBlocks
from labkit.memory.track.tracker import MemoryTracker
from tests.fakes.nvml import PlayedHost, build_driver, script_driver, script_gpu

ROUNDS = 15
# What the installed ``labkit`` runs.
CONSOLE_SCRIPT = "import re, sys; from labkit.cli import main; sys.exit(main())"
LABKIT = {
    f"labkit {name}": (sys.executable, "-c", CONSOLE_SCRIPT, name) for name in ("devices", "memory")
}
BLOCKS = 2000


class RecordedCuda:
    """torch.cuda with recorded statistics: what is left is the tracker's own time."""

    statistics = {"allocated_bytes": {"all": {"current": 1024, "peak": 4096}}}  # noqa: RUF012

    def memory_stats_as_nested_dict(self, index: int) -> dict[str, dict[str, dict[str, int]]]:
        """The recorded statistics."""
        return self.statistics

    def reset_peak_memory_stats(self, index: int) -> None:
        """Nothing to reset."""


def time_commands(
    commands: dict[str, tuple[str, ...]], environment: dict[str, str], folder: str
) -> dict[str, float]:
    """The median seconds of each command, run in turn, with compiled modules in the folder."""
    # As in anything installed; where a tree is read-only they would be compiled at every start.
    compiled = {**environment, "PYTHONPYCACHEPREFIX": folder, "PYTHONDONTWRITEBYTECODE": ""}
    taken: dict[str, list[float]] = {name: [] for name in commands}
    for place in range(ROUNDS + 1):
        for name, words in commands.items():
            started = time.perf_counter()
            subprocess.run(words, capture_output=True, check=True, env=compiled, timeout=60)
            if place:  # the first round compiles
                taken[name].append(time.perf_counter() - started)
    return {name: statistics.median(seconds) for name, seconds in taken.items()}


def time_block(make: Callable[[], MemoryTracker]) -> float:
    """The median seconds to enter and exit a tracker around nothing."""
    taken = []
    for _ in range(BLOCKS):
        tracker = make()
        started = time.perf_counter()
        with tracker:
            pass
        taken.append(time.perf_counter() - started)
    return statistics.median(taken)


def report(name: str, measured: float, limit: float, unit: str) -> bool:
    """Prints one figure beside its limit; True where it holds."""
    holds = measured <= limit
    print(f"{name:<52}{measured:8.2f} {unit:<6} limit {limit:g}  {'ok' if holds else 'TOO MUCH'}")
    return holds


def compare_commands() -> list[bool]:
    """labkit's commands against ``import pynvml``, without a driver."""
    commands = {"import pynvml": (sys.executable, "-c", "import pynvml"), **LABKIT}
    with tempfile.TemporaryDirectory() as folder:
        medians = time_commands(commands, dict(os.environ), folder)
    base = medians.pop("import pynvml")
    return [
        report(f"{name}, over import pynvml ({base * 1000:.0f} ms)", seconds / base, 2.0, "times")
        for name, seconds in medians.items()
    ]


def compare_peers() -> list[bool]:
    """labkit's commands against nvitop and gpustat, on the same played driver."""
    peers = {}
    for name, option in (("nvitop", "-1"), ("gpustat", "--no-color")):
        path = shutil.which(name)
        if path:
            peers[f"{name} {option}"] = (path, option)
        else:
            print(f"{'labkit, over ' + name:<52}not measured: {name} is not installed")
    with tempfile.TemporaryDirectory() as folder:
        host = PlayedHost(Path(folder), build_driver(Path(folder) / "driver"))
        played = host.play(script_driver(script_gpu(0), script_gpu(1)))
        medians = time_commands({**LABKIT, **peers}, played, folder)
    return [
        report(
            f"{name}, over {peer} ({medians[peer] * 1000:.0f} ms)",
            medians[name] / medians[peer],
            1.0,
            "times",
        )
        for peer in peers
        for name in LABKIT
    ]


def compare_blocks() -> list[bool]:
    """What a tracker costs, on CUDA by a recorded backend and on the CPU."""
    open_blocks = OpenBlocks(find_devices=lambda: [CudaCounter(RecordedCuda(), 0)])
    cuda = time_block(lambda: MemoryTracker("cuda", open_blocks=open_blocks))
    cpu = time_block(lambda: MemoryTracker("cpu"))
    return [
        report("track_memory('cuda') enter and exit, recorded", cuda * 1e6, 50, "us"),
        report("track_memory('cpu') enter and exit", cpu * 1e6, 1000, "us"),
    ]


if __name__ == "__main__":
    sys.exit(0 if all([*compare_commands(), *compare_peers(), *compare_blocks()]) else 1)

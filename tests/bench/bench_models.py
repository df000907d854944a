"""Estimates of real models' steps beside what was measured: ``python -m tests.bench.bench_models``.

It needs the packages of docker/locks/models.txt. Names as arguments choose steps. Without names it
also renews the table in docs/memory.md.
"""

from __future__ import annotations

import sys
import time
import warnings
from pathlib import Path

import torch

from tests.fakes import tutorial_steps  # noqa: F401 (adds its steps)
from tests.fakes.real_models import STEPS, compare_step, import_torchvision

PAGE = Path(__file__).parents[2] / "docs" / "memory.md"
BEGIN, END = "<!-- models -->\n", "<!-- end of models -->\n"
HEADER = "| step | measured | estimate | |\n|---|---|---|---|\n"


def format_row(one):
    """A row of the table: what was measured, and by how much the estimate is off."""
    off = "exact" if abs(one.off) < 0.00005 else f"{one.off:+.2%}"
    return f"| {one.name} | {one.measured_bytes / 2**20:.1f} MiB | {off} | {one.flag} |\n"


def main(names):
    """Compares the steps; returns 1 if an estimate is off without saying so."""
    warnings.simplefilter("ignore")
    torch.set_num_threads(1)
    import_torchvision()
    found = []
    for name in names or STEPS:
        started = time.perf_counter()
        found.append(compare_step(name))
        print(format_row(found[-1]).strip(), f"{time.perf_counter() - started:.0f} s", flush=True)
    flagged = [one for one in found if one.flag]
    wrong = [one.name for one in found if not one.holds]
    print(f"{len(found)} steps, {len(flagged)} flagged, wrong without a flag: {wrong or 'none'}")
    if not names and not wrong:
        head, _, rest = PAGE.read_text().partition(BEGIN)
        table = HEADER + "".join(map(format_row, found))
        PAGE.write_text(head + BEGIN + table + END + rest.partition(END)[2])
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))

"""What ``labkit run`` costs over plain nbclient, on the same notebooks, side by side.

    python tests/bench/bench_run.py --repeats 5 tensors autograd

Each repeat runs both, one after the other, in processes of their own, and says how long each took
and how long until the first cell began. The medians and their ratio come last.
"""

from __future__ import annotations

import argparse
import asyncio
import os
import statistics
import subprocess
import sys
import tempfile
import time
from datetime import datetime
from pathlib import Path

ROOT = Path(__file__).parents[2]


def main() -> None:
    """Measures what was asked for and prints a table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("names", nargs="*", default=["tensors"], help="labs or notebook files")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--plainly", type=Path, metavar="DIR", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.plainly:
        run_plainly(arguments.names, arguments.plainly)
        return
    rows = [measure_both(arguments.names) for _ in range(arguments.repeats)]
    print("              nbclient    labkit     ratio   difference")
    for title, place in (("whole run", 0), ("first cell", 1)):
        plain = statistics.median(row[0][place] for row in rows)
        ours = statistics.median(row[1][place] for row in rows)
        print(
            f"{title:<12}{plain:8.2f} s {ours:8.2f} s {ours / plain:9.3f} {ours - plain:+10.2f} s"
        )


def measure_both(names: list[str]) -> tuple[tuple[float, float], tuple[float, float]]:
    """Seconds in all and to the first cell, of plain nbclient and of labkit."""
    plainly = [sys.executable, __file__, "--plainly"]
    ours = [sys.executable, "-m", "labkit", "run", "--output"]
    row = (measure(plainly, names), measure(ours, names))
    print("  ".join(f"{whole:.2f} s, first cell {first:.2f} s" for whole, first in row), flush=True)
    return row


def measure(command: list[str], names: list[str]) -> tuple[float, float]:
    """Seconds that the command took, and those to the first cell, as the notebook records it."""
    path = os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH")]))
    with tempfile.TemporaryDirectory() as folder:
        began, started = time.time(), time.monotonic()
        done = subprocess.run(
            [*command, folder, *names],
            env={**os.environ, "PYTHONPATH": path},
            capture_output=True,
            text=True,
            check=False,
        )
        seconds = time.monotonic() - started
        if done.returncode != 0:
            sys.exit(f"{' '.join(command)} failed:\n{done.stdout}{done.stderr}")
        return seconds, read_first_cell(Path(folder)) - began


def read_first_cell(folder: Path) -> float:
    """When the first cell of the first notebook began, in seconds since 1970."""
    import nbformat

    times = [
        cell.metadata["execution"]["iopub.execute_input"]
        for path in folder.glob("*.ipynb")
        for cell in nbformat.read(path, as_version=4).cells
        if "execution" in cell.metadata
    ]
    return datetime.fromisoformat(min(times).replace("Z", "+00:00")).timestamp()


def run_plainly(names: list[str], folder: Path) -> None:
    """Runs the same notebooks in nbclient alone, and writes them executed."""
    import nbformat
    from nbclient import NotebookClient

    from labkit.cli.run import find_source
    from labkit.notebooks.kernel import kernel_environment
    from labkit.notebooks.sources import load_notebook

    for name in names:
        source = find_source(name)
        notebook = load_notebook(source)
        client = NotebookClient(notebook, timeout=None)
        environment, place = dict(os.environ), source.path.resolve().parent
        if source.is_lab:
            environment, place = kernel_environment(reference=True, workspace=None), folder
        asyncio.run(client.async_execute(env=environment, cwd=str(place)))
        (folder / f"{source.name}.ipynb").write_text(nbformat.writes(notebook), encoding="utf-8")


if __name__ == "__main__":
    main()

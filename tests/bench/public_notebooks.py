"""Other people's notebooks under ``labkit run`` and under plain nbclient, side by side.

``python -m tests.bench.public_notebooks --checkouts DIR`` reads public_notebooks.tsv: a repository,
a commit and a path a line. Each notebook runs three times in a clean checkout: under nbclient,
under labkit, and under nbclient again. A cell whose plain runs differ (random numbers, times) is
left out; every other cell must have the same outputs and the same error under labkit. DIR keeps the
clones, ``owner+name/repo``; what is missing there is cloned from GitHub.
"""

from __future__ import annotations

import argparse
import json
import re
import subprocess
import sys
import tempfile
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import nbformat
from nbclient import NotebookClient
from nbclient.exceptions import CellExecutionError, CellTimeoutError

LIST = Path(__file__).with_suffix(".tsv")
TIMEOUT_SECONDS = 120
ANSI = re.compile(r"\x1b\[[0-9;]*m")
ADDRESS = re.compile(r"0x[0-9a-f]{6,}")

Cell = tuple[str, Any]


@dataclass(frozen=True)
class Listed:
    """A notebook of the list: ``owner/name``, a commit and the path in it."""

    repository: str
    commit: str
    path: str


@dataclass(frozen=True)
class Verdict:
    """How many code cells were compared and left out, and where labkit's differ."""

    compared: int
    left_out: int
    differences: tuple[str, ...]


def read_list(path: Path = LIST) -> list[Listed]:
    """The notebooks of the list; comments start with ``#``."""
    lines = path.read_text(encoding="utf-8").splitlines()
    return [Listed(*line.split("\t")) for line in lines if line and not line.startswith("#")]


def check_out(listed: Listed, checkouts: Path, place: Path) -> Path:
    """A clean tree of the commit under ``place``, made of the clone in ``checkouts``."""
    clone = checkouts / listed.repository.replace("/", "+") / "repo"
    if not clone.exists():
        address = f"https://github.com/{listed.repository}"
        subprocess.run(["git", "clone", "-q", "--bare", address, clone], check=True)
    tree = place / listed.repository.replace("/", "+")
    if not tree.exists():
        subprocess.run(["git", "clone", "-q", "--shared", "-n", clone, tree], check=True)
    git = ["git", "-C", tree, "--literal-pathspecs"]
    subprocess.run([*git, "clean", "-fdxq", "-e", ".git"], check=True)
    command = [*git, "checkout", "-q", "-f", listed.commit, "--pathspec-from-file=-"]
    subprocess.run(
        [*command, "--pathspec-file-nul"], input=list_present(git, listed.commit), check=True
    )
    return tree / listed.path


def list_present(git: list[Any], commit: str) -> bytes:
    """The paths of a commit that are in the clone, NUL between; a snapshot can lack large files."""
    command = [*git, "ls-tree", "-r", "-l", "-z", commit]
    entries = subprocess.run(command, stdout=subprocess.PIPE, check=True).stdout.split(b"\0")
    sized = [entry.split(b"\t", 1) for entry in entries if entry]
    return b"\0".join(path for facts, path in sized if facts.split()[3].isdigit())


def run_plain(path: Path) -> list[Cell]:
    """The code cells' outputs under nbclient, which stops at the first error."""
    notebook = nbformat.read(path, as_version=4)  # type: ignore[no-untyped-call]
    client = NotebookClient(
        notebook,
        timeout=TIMEOUT_SECONDS,
        resources={"metadata": {"path": str(path.parent)}},
        kernel_name="python3",
    )
    try:
        client.execute()
    except CellTimeoutError:
        pass  # labkit's must end at the same cell
    except CellExecutionError:
        pass
    return list(describe_cells(notebook))


def run_labkit(path: Path, folder: Path) -> list[Cell]:
    """The code cells' outputs under ``labkit run`` with its own defaults."""
    command = [sys.executable, "-m", "labkit", "run", path, "--kernel", "python3", "--no-color"]
    limits = ["--timeout", str(TIMEOUT_SECONDS), "--output", folder]
    ended = subprocess.run([*command, *limits], capture_output=True, text=True, check=False)
    executed = [found for found in folder.rglob("*.ipynb") if found.is_file()]
    if len(executed) != 1:
        raise RuntimeError(f"{path}: {len(executed)} executed notebooks\n{ended.stderr[-2000:]}")
    notebook = nbformat.read(executed[0], as_version=4)  # type: ignore[no-untyped-call]
    return list(describe_cells(notebook))


def describe_cells(notebook: Any) -> Iterator[Cell]:
    """Source and outputs of each code cell, as far as both runs must agree on them."""
    for cell in notebook.cells:
        if cell.cell_type == "code":
            yield cell.source, describe_outputs(cell.outputs)


def describe_outputs(outputs: Iterable[Any]) -> list[Any]:
    """Outputs without execution counts; neighboring pieces of one stream are joined."""
    described: list[Any] = []
    for output in outputs:
        kind = output.output_type
        if kind == "stream":
            if described and described[-1][:2] == ["stream", output.name]:
                described[-1][2] += output.text
            else:
                described.append(["stream", output.name, output.text])
        elif kind == "error":
            described.append(["error", output.ename, output.evalue])
        else:
            described.append([kind, json.dumps(output.data, sort_keys=True)])
    return [[normalize(part) for part in parts] for parts in described]


def normalize(text: str) -> str:
    """A text without colors and addresses."""
    return ADDRESS.sub("0x", ANSI.sub("", text))


def compare(plain: list[list[Cell]], labkit: list[Cell]) -> Verdict:
    """Judges labkit's cells by two or more plain runs."""
    first = plain[0]
    differences = [] if len(first) == len(labkit) else [f"{len(first)} cells, {len(labkit)} here"]
    steady = [all(again == one for again in others) for one, *others in zip(*plain, strict=True)]
    for number, (one, ours, same) in enumerate(zip(first, labkit, steady, strict=False), start=1):
        if same and one != ours:
            differences.append(f"cell {number}: {one[1]!r:.300} but {ours[1]!r:.300}")
    return Verdict(sum(steady), len(steady) - sum(steady), tuple(differences))


def judge(listed: Listed, checkouts: Path, place: Path) -> Verdict:
    """Runs a notebook of the list and compares; two plain runs can agree by chance, hardly four."""
    plain = [run_plain(check_out(listed, checkouts, place))]
    with tempfile.TemporaryDirectory() as folder:
        labkit = run_labkit(check_out(listed, checkouts, place), Path(folder) / "run")
    verdict = Verdict(0, 0, ())
    for least in (2, 4):
        while len(plain) < least:
            plain.append(run_plain(check_out(listed, checkouts, place)))
        verdict = compare(plain, labkit)
        if not verdict.differences:
            break
    return verdict


def main() -> int:
    """Prints a line a notebook and exits 1 if one differs."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--checkouts", type=Path, required=True, help="where the clones are kept")
    parser.add_argument("--list", type=Path, default=LIST, help="which notebooks")
    arguments = parser.parse_args()
    differing = 0
    with tempfile.TemporaryDirectory() as place:
        for listed in read_list(arguments.list):
            verdict = judge(listed, arguments.checkouts, Path(place))
            differing += bool(verdict.differences)
            word = "differs" if verdict.differences else "same"
            print(
                f"{word:8} {verdict.compared:3} cells, {verdict.left_out} left out  "
                f"{listed.repository} {listed.path}",
                flush=True,
            )
            for difference in verdict.differences:
                print(f"         {difference}", flush=True)
    print(f"{differing} differ")
    return int(differing > 0)


if __name__ == "__main__":
    sys.exit(main())

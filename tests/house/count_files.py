"""Counts the files of labkit that one command or call runs through, from its start to its end.

``python tests/house/count_files.py [PATH...]`` runs each path in a fresh Python under a profiler
and counts the files in which a function ran; code that runs because a module is imported does not
count. It prints each count with its limit and the files, and exits 1 where one is over its limit.
The Python that runs it needs the lab's packages.
"""

from __future__ import annotations

import contextlib
import importlib
import io
import json
import os
import pkgutil
import socket
import subprocess
import sys
import tempfile
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from types import CodeType, FrameType
from typing import Any

ROOT = Path(__file__).parents[2]
PACKAGE = ROOT / "labkit"

LIMITS = {"up": 20, "run": 20, "choice": 4, "memory": 8, "check": 11}

# What has no public entry point is found by one of these names, in any module of the launcher.
CHECKOUT, SETTINGS, STEPS = ("Checkout",), ("Settings",), ("Steps",)
PROBE_HOST, MAKE_PLAN = ("probe_host",), ("make_plan",)

CENTER = """\
def center_right(x):
    return x - x.mean(dim=0, keepdim=True)


def center_wrong(x):
    return x + x.mean(dim=0, keepdim=True)
"""


class FileCounter:
    """Notes each file of the package in which a function runs inside the block, on every thread.

    Module and class bodies are not functions; what they call while a module is imported belongs
    to the import.
    """

    def __init__(self, package: Path = PACKAGE) -> None:
        self._package = package
        # By identity: code of two files is equal where text and line are. Kept, so that no id is
        # used twice.
        self._seen: dict[int, CodeType] = {}
        self._files: set[Path] = set()

    def __enter__(self) -> FileCounter:
        threading.setprofile(self._note)
        sys.setprofile(self._note)
        return self

    def __exit__(self, *_: object) -> None:
        sys.setprofile(None)
        threading.setprofile(None)

    def _note(self, frame: FrameType, event: str, _: Any) -> None:
        code = frame.f_code
        if event != "call" or id(code) in self._seen:
            return
        if not self._is_ours(code):
            self._seen[id(code)] = code
        elif not self._is_import(frame):
            self._seen[id(code)] = code
            if is_function(code):
                self._files.add(Path(code.co_filename))

    def _is_ours(self, code: CodeType) -> bool:
        return code.co_filename.startswith(f"{self._package}{os.sep}")

    def _is_import(self, frame: FrameType | None) -> bool:
        """True where one of our modules is being imported, and this is called for that."""
        while frame:
            if frame.f_code.co_name == "<module>" and self._is_ours(frame.f_code):
                return True
            frame = frame.f_back
        return False

    def list_files(self) -> list[str]:
        """The files, relative to the folder that the package is in, in order."""
        return sorted(str(path.relative_to(self._package.parent)) for path in self._files)


def is_function(code: CodeType) -> bool:
    """True for the code of functions (and lambdas, generators); False for modules and classes."""
    return bool(code.co_flags & 0x1)  # inspect.CO_OPTIMIZED


# The paths. Each yields when its setup is done, and is counted from there to its end.


def follow_up(folder: Path) -> Iterator[None]:
    """`labkit up` without an engine, after an earlier one has made the .venv and the workspace."""
    checkout = make_checkout(folder)
    os.environ["LABKIT_HOME"] = str(checkout)
    words = ["--runtime", "local", "--port", str(find_free_port())]
    labkit("up", *words)
    labkit("down")
    try:
        yield
        run_main("up", *words)
    finally:
        sys.setprofile(None)
        labkit("down")


def follow_run(folder: Path) -> Iterator[None]:
    """`labkit run` of a notebook of one cell, to report.html."""
    notebook = folder / "one_cell.ipynb"
    notebook.write_text(json.dumps(make_notebook("1 + 1")), encoding="utf-8")
    yield
    run_main("run", str(notebook), "--output", str(folder / "run"))
    assert (folder / "run" / "report.html").is_file()


def follow_choice(folder: Path) -> Iterator[None]:
    """From a host's facts (Docker, an H200) to the runtime, the flavor and torch's build."""
    from tests.fakes.gpu_hosts import RESERVATION, docker_host, sees
    from tests.fakes.host import ADA, FakeRunner

    row = "NVIDIA H200, 580.65.06, 0, GPU-aaaa, 9.0, Disabled"
    run = FakeRunner(docker_host(row, reservation=sees("NVIDIA H200")))
    settings = find_name("labkit.launch", SETTINGS)()
    checkout = find_name("labkit.launch", CHECKOUT)(make_checkout(folder))
    steps = find_name("labkit.launch", STEPS)(io.StringIO())
    facts = find_name("labkit.launch", PROBE_HOST)(
        checkout, settings, steps, run, folder / "no-such-root", machine=ADA
    )
    assert any(call.startswith(RESERVATION) for call in run.calls)
    make_plan = find_name("labkit.launch", MAKE_PLAN)
    yield
    plan = make_plan(checkout, settings, facts)
    chosen = (plan.runtime.value, plan.flavor.value.name, plan.flavor.value.build)
    assert chosen == ("docker", "cuda", "cu130"), chosen


def follow_memory(folder: Path) -> Iterator[None]:
    """`labkit.memory()` in a notebook, to its html."""
    import torch

    import labkit

    kept = torch.ones(1000)
    yield
    html = labkit.memory()._repr_html_()
    assert "<" in html
    del kept


def follow_check(folder: Path) -> Iterator[None]:
    """`labkit.check()` of a wrong answer and of the right one, in cells of a notebook."""
    from IPython.core.interactiveshell import InteractiveShell

    from tests.fakes.small_labs import write_labs

    os.environ["IPYTHONDIR"] = str(folder / "ipython")
    os.environ["LABKIT_LABS"] = str(write_labs(folder / "labs"))
    os.chdir(make_workspace(folder))
    shell = InteractiveShell.instance()
    run_cell(shell, CENTER)
    run_cell(shell, "import torch\nfrom labkit import check")
    yield
    shown = io.StringIO()
    with contextlib.redirect_stdout(shown):
        run_cell(shell, "check('small.center', center_wrong)")
        run_cell(shell, "check('small.center', center_right)")
    progress = json.loads((folder / "work" / "progress.json").read_text(encoding="utf-8"))
    assert progress["exercises"]["small.center"]["passed"], shown.getvalue()


PATHS: dict[str, Callable[[Path], Iterator[None]]] = {
    "up": follow_up,
    "run": follow_run,
    "choice": follow_choice,
    "memory": follow_memory,
    "check": follow_check,
}


# What the paths need.


def make_checkout(folder: Path) -> Path:
    """A checkout with this one's locks, and a .venv with a fake Python and a fake JupyterLab."""
    from tests.fakes.played_lab import make_played_checkout

    return make_played_checkout(folder).root


def make_workspace(folder: Path) -> Path:
    """A workspace that `labkit serve` fills, with a fake JupyterLab that exits at once."""
    workspace = folder / "work"
    workspace.mkdir()
    write_jupyterlab(folder / "fakes", "")
    variables = {"LABKIT_WORKSPACE": str(workspace), "LABKIT_STATE": str(folder / "state")}
    labkit("serve", **variables, PYTHONPATH=f"{folder / 'fakes'}:{ROOT}")
    return workspace


def write_jupyterlab(folder: Path, text: str) -> None:
    """A package ``jupyterlab`` in the folder, whose main program is this text."""
    (folder / "jupyterlab").mkdir(parents=True)
    (folder / "jupyterlab" / "__init__.py").touch()
    (folder / "jupyterlab" / "__main__.py").write_text(text, encoding="utf-8")


def make_notebook(source: str) -> dict[str, Any]:
    """A notebook of one code cell."""
    cell = {
        "cell_type": "code",
        "id": "only",
        "metadata": {},
        "source": source,
        "outputs": [],
        "execution_count": None,
    }
    kernel = {"display_name": "Python 3", "language": "python", "name": "python3"}
    metadata = {"kernelspec": kernel}
    return {"nbformat": 4, "nbformat_minor": 5, "metadata": metadata, "cells": [cell]}


def find_free_port() -> int:
    """A port that nothing listens on."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return int(listener.getsockname()[1])


def labkit(*words: str, **variables: str) -> None:
    """Runs one command in a process of its own; raises where it fails."""
    subprocess.run(
        [sys.executable, "-m", "labkit", *words],
        env={**os.environ, "PYTHONPATH": str(ROOT), **variables},
        check=True,
        stdout=subprocess.DEVNULL,
    )


def run_main(*words: str) -> None:
    """Runs one command in this process; raises where it fails."""
    from labkit.cli import main

    with contextlib.redirect_stdout(io.StringIO()):
        code = main(words)
    assert code == 0, f"labkit {' '.join(words)} exited with {code}"


def run_cell(shell: Any, source: str) -> None:
    """Runs a cell; raises what it raised."""
    shell.run_cell(source).raise_error()


def find_name(package: str, names: tuple[str, ...]) -> Any:
    """The class or function of one of these names, in whichever module of the package it is."""
    for found in pkgutil.iter_modules(importlib.import_module(package).__path__):
        module = importlib.import_module(f"{package}.{found.name}")
        for name in names:
            value = getattr(module, name, None)
            if getattr(value, "__module__", None) == module.__name__:
                return value
    raise LookupError(
        f"{package} defines none of: {', '.join(names)}; mend the names in {__file__}"
    )


# Counting and printing.


def follow(name: str) -> list[str]:
    """The files of one path, followed in this process."""
    with tempfile.TemporaryDirectory() as scratch:
        path = PATHS[name](Path(scratch))
        next(path)
        with FileCounter() as counter:
            for _ in path:
                raise AssertionError(f"{name} yields more than once")
        os.chdir(ROOT)
    return counter.list_files()


def count(name: str) -> list[str]:
    """The files of one path, followed in a fresh process without variables of labkit's."""
    kept = {key: value for key, value in os.environ.items() if not key.startswith("LABKIT_")}
    command = [sys.executable, __file__, "--follow", name]
    with tempfile.TemporaryDirectory() as scratch:
        answer = Path(scratch) / "files.json"
        done = subprocess.run([*command, str(answer)], env=kept, check=False)
        if done.returncode:
            raise SystemExit(f"the path {name} could not be followed to its end")
        files: list[str] = json.loads(answer.read_text(encoding="utf-8"))
        return files


def main(words: list[str]) -> int:
    """Counts the paths that are named, or all; returns 1 where one is over its limit."""
    if words[:1] == ["--follow"]:
        sys.path[:0] = [str(ROOT)]
        Path(words[2]).write_text(json.dumps(follow(words[1])), encoding="utf-8")
        return 0
    over = 0
    for name in words or LIMITS:
        files = count(name)
        over += len(files) > LIMITS[name]
        verdict = "over the limit" if len(files) > LIMITS[name] else "ok"
        print(f"{name}: {len(files)} files, limit {LIMITS[name]}: {verdict}")
        print("".join(f"  {file}\n" for file in files), flush=True)
    return 1 if over else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))

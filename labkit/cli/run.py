"""``labkit run``: executes labs and notebooks headless and says what held."""

from __future__ import annotations

import argparse
import contextlib
import json
import math
import os
import signal
import sys
from collections.abc import Callable, Iterator
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

from labkit.cli import SCHEMA_VERSION, add_common, print_json
from labkit.errors import EngineError, LabkitError, UsageError

if TYPE_CHECKING:
    from labkit.runner.result import NotebookResult, RunResult
    from labkit.runner.sources import Source

DEFAULT_TIMEOUT_SECONDS = 600.0
NEEDED = ("nbclient", "nbformat", "ipykernel", "jupytext")


def add_commands(subparsers: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Adds ``run``."""
    parser = subparsers.add_parser(
        "run",
        help="run labs or notebooks headless",
        description="Executes labs by name (their reference version), or notebooks by path,"
        " each in a fresh kernel. Exits 0 only if every claim held and every check passed.",
    )
    parser.add_argument("names", nargs="*", metavar="NAME", help="a lab, or PATH.ipynb|.py|.md")
    parser.add_argument("--all", action="store_true", help="every lab")
    parser.add_argument(
        "--timeout",
        type=float,
        default=DEFAULT_TIMEOUT_SECONDS,
        metavar="SECONDS",
        help="the longest a single cell may take (default: 600)",
    )
    parser.add_argument(
        "--keep-going", action="store_true", help="run the rest after a notebook that failed"
    )
    parser.add_argument(
        "--output", type=Path, metavar="DIR", help="keep the executed notebooks and result.json"
    )
    add_common(parser)
    parser.set_defaults(run=run_asked)


def run_asked(arguments: argparse.Namespace) -> int:
    """Runs what was asked for and returns the exit code of the first notebook that failed."""
    _require_sense(arguments)
    from labkit.runner.sources import find_source, is_path, list_labs

    labs = [word for word in arguments.names if not is_path(word)]
    require_packages(labs if labs or not arguments.all else ["all"])
    sources = list_labs() if arguments.all else [find_source(word) for word in arguments.names]
    if not sources:
        raise UsageError("there is no lab to run", cause="labs.toml lists none with a lesson")
    with _end_like_interrupt():
        run = _execute(_name_apart(sources), arguments)
    if arguments.output:
        _write_result(arguments.output, run)
    _show(run, arguments.json)
    return int(run.exit_code)


def require_packages(labs: list[str], find: Callable[[str], object] = find_spec) -> None:
    """Raises EngineError where this Python lacks what notebooks (and labs: torch) need."""
    needed = (*NEEDED, "torch") if labs else NEEDED
    missing = [name for name in needed if find(name) is None]
    if not missing:
        return
    lacks = ", ".join(missing) if len(missing) < len(needed) else "all of the lab's packages"
    words = " ".join(labs) or "tensors"
    raise EngineError(
        f"{sys.executable} cannot run notebooks",
        cause=f"this Python lacks {lacks}",
        fix=f"make run LABS={words if len(labs) < 2 else repr(words)}",
    )


def _require_sense(arguments: argparse.Namespace) -> None:
    if arguments.all and arguments.names:
        raise UsageError("--all runs every lab: give it or names, not both")
    if not arguments.all and not arguments.names:
        raise UsageError("nothing to run: name a lab or a notebook", fix="labkit run --all")
    if not (math.isfinite(arguments.timeout) and arguments.timeout > 0):
        raise UsageError(
            f"--timeout {arguments.timeout:g} is no time limit", cause="it must be above 0 seconds"
        )


def _execute(sources: list[Source], arguments: argparse.Namespace) -> RunResult:
    from labkit.runner.environment import read_environment
    from labkit.runner.execute import run_notebooks
    from labkit.runner.result import RunResult
    from labkit.runner.show import Progress

    if arguments.output:
        _make_folder(arguments.output)
    notebooks = run_notebooks(
        sources,
        timeout_seconds=arguments.timeout,
        keep_going=arguments.keep_going,
        watch=Progress(sys.stderr).show_event,
        keep=_keep_in(arguments.output) if arguments.output else lambda result, notebook: None,
    )
    return RunResult(read_environment(), notebooks)


def _show(run: RunResult, as_json: bool) -> None:
    from labkit.runner.result import describe_run
    from labkit.runner.show import format_summary

    # Under --json the summary is for whoever watches; stdout is the object's alone.
    print(format_summary(run.notebooks), file=sys.stderr if as_json else sys.stdout)
    if as_json:
        print_json(describe_run(run))


@contextlib.contextmanager
def _end_like_interrupt() -> Iterator[None]:
    """Makes SIGTERM (``docker stop``, CI) end a run as Ctrl-C does: with its kernel."""

    def interrupt(number: int, frame: object) -> None:
        raise KeyboardInterrupt

    before = signal.signal(signal.SIGTERM, interrupt)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def _name_apart(sources: list[Source]) -> list[Source]:
    """The same sources, with a number added to a name that came before."""
    import dataclasses

    seen: dict[str, int] = {}
    apart = []
    for source in sources:
        seen[source.name] = count = seen.get(source.name, 0) + 1
        name = source.name if count == 1 else f"{source.name}-{count}"
        apart.append(dataclasses.replace(source, name=name))
    return apart


def _make_folder(folder: Path) -> None:
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UsageError(f"--output {folder} cannot be made", cause=str(error)) from error
    if not os.access(folder, os.W_OK):
        raise UsageError(f"--output {folder} cannot be written", cause="permission denied")


def _keep_in(folder: Path) -> Callable[[NotebookResult, Any], None]:
    """Writes each executed notebook into the folder as it is done."""
    import nbformat

    def keep(result: NotebookResult, notebook: Any) -> None:
        _write(folder / f"{result.name}.ipynb", nbformat.writes(notebook))

    return keep


def _write_result(folder: Path, run: RunResult) -> None:
    from labkit.runner.result import describe_run

    described = {"schema_version": SCHEMA_VERSION, **describe_run(run)}
    _write(folder / "result.json", json.dumps(described, indent=2) + "\n")


def _write(path: Path, text: str) -> None:
    try:
        path.write_text(text, encoding="utf-8")
    except OSError as error:
        raise LabkitError(f"{path} cannot be written", cause=str(error)) from error

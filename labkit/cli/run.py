"""``labkit run``: executes labs and notebooks headless and says what held.

``labkit report`` makes a run's page again; ``labkit compare`` sets two runs side by side.
"""

from __future__ import annotations

import argparse
import itertools
import math
import os
import sys
import time
from collections.abc import Callable, Mapping
from datetime import datetime
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

from labkit.cli import add_common, print_json
from labkit.errors import EngineError, ExitCode, LabkitError, UsageError, format_error
from labkit.process import end_like_interrupt

if TYPE_CHECKING:
    from labkit.notebooks.execute import RunOptions
    from labkit.notebooks.folder import RunFolder
    from labkit.notebooks.result import NotebookResult, RunResult
    from labkit.notebooks.sources import Source


DEFAULT_TIMEOUT_SECONDS = 600.0
NEEDED = ("nbclient", "nbformat", "ipykernel", "jupytext")


def add_commands(commands: argparse._SubParsersAction[Any]) -> None:
    """Adds ``run``, ``report`` and ``compare``."""
    _add_run(commands)
    _add_report(commands)


def _add_run(subparsers: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Adds ``run``."""
    parser = subparsers.add_parser(
        "run",
        help="run labs or notebooks headless",
        description="Executes labs by name (their reference version), or notebooks by path,"
        " each in a fresh kernel. Exits 0 only if every claim held and every check passed.",
    )
    parser.add_argument("names", nargs="*", metavar="NAME", help="a lab, or PATH.ipynb|.py|.md")
    parser.add_argument("--all", action="store_true", help="every lab")
    _add_limits(parser)
    _add_ways(parser)
    parser.add_argument(
        "--output",
        type=Path,
        metavar="DIR",
        help="the run folder: result.json, executed notebooks, report.html"
        " (default: runs/DATE-TIME here)",
    )
    parser.add_argument("--no-output", action="store_true", help="keep nothing of the run")
    add_common(parser)
    parser.set_defaults(run=run_asked)


def _add_limits(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--timeout",
        type=float,
        default=DEFAULT_TIMEOUT_SECONDS,
        metavar="SECONDS",
        help="the longest a single cell may take (default: 600)",
    )
    parser.add_argument(
        "--total-timeout",
        type=float,
        metavar="SECONDS",
        help="the longest the whole run may take (default: no limit)",
    )


def _add_ways(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--device",
        default="auto",
        metavar="DEVICE",
        help="auto, cpu, cuda or cuda:N; what is not here is an error (default: auto)",
    )
    parser.add_argument(
        "--keep-going", action="store_true", help="run the rest after a notebook that failed"
    )
    parser.add_argument(
        "--allow-errors",
        action="store_true",
        help="go on after a cell that raised, as nbclient does; a claim must hold all the same",
    )
    parser.add_argument(
        "--jobs",
        type=int,
        default=1,
        metavar="N",
        help="notebooks at a time, each in its own kernel; they share the GPU (default: 1)",
    )


def run_asked(arguments: argparse.Namespace) -> int:
    """Runs what was asked for and returns the exit code of the first notebook that failed."""
    _require_sense(arguments)
    from labkit.notebooks.sources import find_source, is_path, list_labs

    labs = [word for word in arguments.names if not is_path(word)]
    require_packages(labs if labs or not arguments.all else ["all"])
    sources = list_labs() if arguments.all else [find_source(word) for word in arguments.names]
    if not sources:
        raise UsageError("there is no lab to run", cause="labs.toml lists none with a lesson")
    with end_like_interrupt():
        run, folder = _execute(_name_apart(sources), arguments)
    _show(run, arguments.json, folder.trouble if folder else None)
    sound = folder is None or _finish_folder(folder)
    return int(run.exit_code) or (ExitCode.OK if sound else ExitCode.FAILED)


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
    limits = {"--timeout": arguments.timeout, "--total-timeout": arguments.total_timeout}
    for option, seconds in limits.items():
        if seconds is not None and not (math.isfinite(seconds) and seconds > 0):
            raise UsageError(
                f"{option} {seconds:g} is no time limit", cause="it must be above 0 seconds"
            )
    if arguments.jobs < 1:
        raise UsageError(f"--jobs {arguments.jobs} runs nothing", cause="it must be at least 1")
    if arguments.no_output and arguments.output:
        raise UsageError("--output and --no-output: give one of them, not both")


def _execute(
    sources: list[Source], arguments: argparse.Namespace
) -> tuple[RunResult, RunFolder | None]:
    from labkit.devices.detect import detect_devices
    from labkit.notebooks.console import RunProgress
    from labkit.notebooks.result import NotebookResult, RunResult, read_environment
    from labkit.notebooks.schedule import choose_device, keep_nothing, run_notebooks

    started, started_at = time.monotonic(), datetime.now().astimezone()
    detection = detect_devices()
    device = choose_device(arguments.device, detection, os.environ)
    environment = read_environment(detection, device.name)
    waiting = [NotebookResult(source.name, str(source.path), "not_run") for source in sources]
    folder = _open_folder(arguments, environment, waiting)
    notebooks = run_notebooks(
        sources,
        _choose_options(arguments, device.environment, device.asks_cuda),
        watch=RunProgress(sys.stderr, jobs=arguments.jobs).show_event,
        keep=folder.keep if folder else keep_nothing,
        follow=folder.follow if folder else lambda place, result, notebook: None,
    )
    run = RunResult(
        environment,
        notebooks,
        started_at.isoformat(timespec="seconds"),
        time.monotonic() - started,
    )
    if folder:
        folder.finish(run)
    return run, folder


def _choose_options(
    arguments: argparse.Namespace, environment: Mapping[str, str], asks_cuda: bool
) -> RunOptions:
    from labkit.notebooks.execute import RunOptions

    return RunOptions(
        timeout_seconds=arguments.timeout,
        total_timeout_seconds=arguments.total_timeout,
        keep_going=arguments.keep_going,
        jobs=arguments.jobs,
        allow_errors=arguments.allow_errors,
        environment=environment,
        asks_cuda=asks_cuda,
    )


def _open_folder(
    arguments: argparse.Namespace,
    environment: Mapping[str, object],
    waiting: list[NotebookResult],
) -> RunFolder | None:
    """The run's folder; where only the default one cannot be made, a warning and None."""
    from labkit.notebooks.folder import RunFolder, make_run_folder

    if arguments.no_output:
        return None
    try:
        path = make_run_folder(arguments.output)
    except UsageError as error:
        if arguments.output:
            raise
        print(f"warning: nothing of this run is kept: {error.what}", file=sys.stderr)
        print(f"  cause: {error.cause}\n  try: --output DIR, or --no-output", file=sys.stderr)
        return None
    return RunFolder(path, environment, waiting)


def _finish_folder(folder: RunFolder) -> bool:
    """Adds the report, says where all of it is, and returns whether it is whole."""
    if folder.trouble:
        cause = folder.trouble.strerror or str(folder.trouble)
        error = LabkitError(f"the run folder {folder.path} is not whole", cause=cause)
        print(format_error(error), file=sys.stderr)
        return False
    print(f"run folder: {folder.path}", file=sys.stderr)
    if find_spec("labkit.notebooks.report") is None:
        return True
    from labkit.notebooks.report import write_report

    try:
        print(f"report: {write_report(folder.path)}", file=sys.stderr)
    except (LabkitError, OSError) as error:
        print(f"error: the report could not be written: {error}", file=sys.stderr)
        return False
    return True


def _show(run: RunResult, as_json: bool, trouble: OSError | None) -> None:
    from labkit.notebooks.console import format_summary
    from labkit.notebooks.result import describe_run

    # Under --json the summary is for whoever watches; stdout is the object's alone.
    print(format_summary(run.notebooks), file=sys.stderr if as_json else sys.stdout)
    if as_json:
        described = describe_run(run)
        if trouble:  # the exit code is 1 for it: what was asked for was not all written
            described |= {"status": "failed", "trouble": f"the run folder is not whole: {trouble}"}
        print_json(described)


def _name_apart(sources: list[Source]) -> list[Source]:
    """The same sources, with a number added to a name that came before."""
    import dataclasses

    taken: set[str] = set()
    apart = []
    for source in sources:
        names = itertools.chain([source.name], (f"{source.name}-{n}" for n in itertools.count(2)))
        name = next(name for name in names if name not in taken)
        taken.add(name)
        apart.append(dataclasses.replace(source, name=name))
    return apart


RUNS_FOLDER = Path("runs")


def _add_report(subparsers: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Adds ``report`` and ``compare``."""
    report = subparsers.add_parser(
        "report",
        help="make a run's report again",
        description="Writes report.html beside a run's result.json and prints its path.",
    )
    report.add_argument(
        "run_folder",
        nargs="?",
        type=Path,
        metavar="RUN",
        help="a run folder or its result.json (default: the newest under runs/)",
    )
    add_common(report)
    report.set_defaults(run=make_report)
    compare = subparsers.add_parser(
        "compare",
        help="set two runs side by side",
        description="Compares two runs, CPU against GPU or before against after: seconds and"
        " peaks with their ratios (B over A), cells of one side alone, claims that changed.",
    )
    compare.add_argument("a", type=Path, metavar="A", help="a run folder or its result.json")
    compare.add_argument("b", type=Path, metavar="B", help="the run to set beside it")
    compare.add_argument(
        "--output", type=Path, metavar="FILE.html", help="write the comparison as a page too"
    )
    add_common(compare)
    compare.set_defaults(run=compare_asked)


def make_report(arguments: argparse.Namespace) -> int:
    """Writes the report and prints its path; exits 0 whatever came of the run."""
    from labkit.notebooks.report import write_report

    path = write_report(arguments.run_folder or find_newest_run(RUNS_FOLDER))
    if arguments.json:
        print_json({"report": str(path)})
    else:
        print(path)
    return ExitCode.OK


def find_newest_run(runs: Path) -> Path:
    """The run folder under ``runs`` with the newest result.json; UsageError where none has one."""
    results = sorted(runs.glob("*/result.json"), key=lambda path: path.stat().st_mtime_ns)
    if not results:
        raise UsageError(
            f"there is no run under {runs}/",
            cause="no folder in it has a result.json",
            fix="labkit run tensors --output runs/tensors",
        )
    return results[-1].parent


def compare_asked(arguments: argparse.Namespace) -> int:
    """Prints the comparison and writes its page where asked; exits 0 whatever differs."""
    from labkit.notebooks.compare import compare_runs, describe_comparison, format_comparison
    from labkit.notebooks.report.comparison import write_comparison
    from labkit.notebooks.report.saved import read_run

    comparison = compare_runs(read_run(arguments.a), read_run(arguments.b))
    if arguments.output:
        write_comparison(arguments.output, comparison)
    if arguments.json:
        print_json(describe_comparison(comparison))
    else:
        print(format_comparison(comparison))
    return ExitCode.OK

"""``labkit run``: executes labs and notebooks headless and reports the results.

``labkit report`` rewrites a run's report; ``labkit compare`` compares two runs.
"""

from __future__ import annotations

import argparse
import itertools
import math
import os
import shutil
import sys
import threading
import time
from collections.abc import Callable, Iterable
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any, TextIO

from labkit.cli import add_common, print_error, print_json
from labkit.errors import EngineError, ExitCode, LabkitError, UsageError
from labkit.process import end_like_interrupt
from labkit.text import escape_controls, format_bytes, format_seconds

if TYPE_CHECKING:
    from labkit.lessons.catalog import Lab
    from labkit.notebooks.execute import CellEvent, RunOptions
    from labkit.notebooks.result import NotebookResult, RunAccount, RunFailure, RunFolder, RunResult
    from labkit.notebooks.schedule import DeviceChoice
    from labkit.notebooks.sources import Source

DEFAULT_TIMEOUT_SECONDS = 600.0
NEEDED = ("nbclient", "nbformat", "ipykernel", "jupytext", "msgspec", "nh3")
RUNS_FOLDER = Path("runs")


def add_commands(commands: argparse._SubParsersAction[Any]) -> None:
    """Adds ``run``, ``report`` and ``compare``."""
    _add_run(commands)
    _add_report(commands)
    _add_compare(commands)


def _add_run(subparsers: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    parser = subparsers.add_parser(
        "run",
        help="run labs or notebooks headless",
        description="Executes labs by name (their reference version), or notebooks by path,"
        " each in a fresh kernel. Exits 0 only if every claim held and every check passed.",
    )
    parser.add_argument("names", nargs="*", metavar="NAME", help="a lab, or PATH.ipynb|.py|.md")
    parser.add_argument("--all", action="store_true", help="every lab")
    _add_limits(parser)
    _add_options(parser)
    parser.add_argument(
        "--output",
        type=Path,
        metavar="DIR",
        help="the run folder: result.json, executed notebooks, report.html"
        " (default: runs/DATE-TIME here)",
    )
    parser.add_argument("--no-output", action="store_true", help="write no run folder")
    add_common(parser)
    parser.set_defaults(run=run_asked)


def _add_limits(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--timeout",
        type=float,
        default=DEFAULT_TIMEOUT_SECONDS,
        metavar="SECONDS",
        help="time limit for a single cell (default: 600)",
    )
    parser.add_argument(
        "--total-timeout",
        type=float,
        metavar="SECONDS",
        help="time limit for the whole run (default: none)",
    )


def _add_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--device",
        default="auto",
        metavar="DEVICE",
        help="auto, cpu, cuda or cuda:N; a missing device is an error (default: auto)",
    )
    parser.add_argument(
        "--kernel",
        metavar="NAME",
        help="the kernel to run in; python3 is this Python (default: the one the notebook names)",
    )
    parser.add_argument(
        "--keep-going", action="store_true", help="run the other notebooks after one failed"
    )
    parser.add_argument(
        "--allow-errors",
        action="store_true",
        help="continue after a cell that raised, as nbclient does; every claim must still hold",
    )
    parser.add_argument(
        "--jobs",
        type=int,
        default=1,
        metavar="N",
        help="notebooks to run at once, each in its own kernel; they share the GPU (default: 1)",
    )


def run_asked(arguments: argparse.Namespace) -> int:
    """Runs the named notebooks and returns the exit code of the first one that failed."""
    _check_arguments(arguments)
    from labkit.notebooks.sources import is_path

    labs = [word for word in arguments.names if not is_path(word)]
    require_packages(["all"] if arguments.all else labs)
    sources = list_labs() if arguments.all else [find_source(word) for word in arguments.names]
    if not sources:
        raise UsageError("there is no lab to run", cause="labs.toml lists no lab with a lesson")
    with end_like_interrupt():
        run, folder = _execute(_name_apart(sources), arguments)
    _show(run, arguments.json, folder.trouble if folder else None)
    sound = folder is None or _finish_folder(folder)
    return int(run.exit_code) or (ExitCode.OK if sound else ExitCode.FAILED)


def require_packages(labs: list[str], find: Callable[[str], object] = find_spec) -> None:
    """Raises EngineError if this Python lacks packages for notebooks (for labs, also torch)."""
    words = " ".join(labs) or "tensors"
    fix = f"make run LABS={words if len(labs) < 2 else repr(words)}"
    require_modules((*NEEDED, "torch") if labs else NEEDED, "cannot run notebooks", fix, find)


def require_reader(find: Callable[[str], object] = find_spec) -> None:
    """Raises EngineError if this Python lacks the packages to read a run's result."""
    require_modules(("msgspec", "nh3"), "cannot read a run's result", "make shell", find)


def require_modules(
    needed: tuple[str, ...], cannot: str, fix: str, find: Callable[[str], object] = find_spec
) -> None:
    """Raises EngineError with the cause and ``fix`` if this Python lacks one of the modules."""
    missing = [name for name in needed if find(name) is None]
    if missing:
        lacks = ", ".join(missing) if len(missing) < len(needed) else "all of the lab's packages"
        raise EngineError(f"{sys.executable} {cannot}", cause=f"this Python lacks {lacks}", fix=fix)


def find_source(word: str) -> Source:
    """The file at that path or the lab of that name. Raises UsageError if there is neither."""
    from labkit.notebooks.sources import find_file, is_path

    if is_path(word):
        return find_file(word)
    from labkit.lessons.catalog import find_lab

    return _lab_source(find_lab(word))


def list_labs() -> list[Source]:
    """Every lab's source, in its order."""
    from labkit.lessons.catalog import find_labs

    return [_lab_source(lab) for lab in find_labs()]


def _lab_source(lab: Lab) -> Source:
    from labkit.lessons.notebooks import make_reference_notebook
    from labkit.notebooks.sources import Source

    return Source(lab.name, lab.lesson, lambda: make_reference_notebook(lab))


def _check_arguments(arguments: argparse.Namespace) -> None:
    if arguments.all and arguments.names:
        raise UsageError("--all conflicts with names: give one of them")
    if not arguments.all and not arguments.names:
        raise UsageError("nothing to run: name a lab or a notebook", fix="labkit run --all")
    limits = {"--timeout": arguments.timeout, "--total-timeout": arguments.total_timeout}
    for option, seconds in limits.items():
        if seconds is not None and not (math.isfinite(seconds) and seconds > 0):
            raise UsageError(f"invalid {option} {seconds:g}", cause="it must be above 0 seconds")
    if arguments.jobs < 1:
        raise UsageError(f"invalid --jobs {arguments.jobs}", cause="it must be at least 1")
    if arguments.no_output and arguments.output:
        raise UsageError("--output conflicts with --no-output: give one of them")


def _execute(
    sources: list[Source], arguments: argparse.Namespace
) -> tuple[RunResult, RunFolder | None]:
    from labkit.devices.detect import detect_devices
    from labkit.notebooks.result import RunAccount, read_environment
    from labkit.notebooks.schedule import choose_device, follow_nothing, keep_nothing, run_notebooks

    detection = detect_devices()
    device = choose_device(arguments.device, detection, os.environ)
    account = RunAccount(read_environment(detection, device.name))
    folder = _open_folder(arguments, account, sources)
    notebooks = run_notebooks(
        sources,
        _choose_options(arguments, device),
        account.measuring,
        watch=RunProgress(sys.stderr, jobs=arguments.jobs).show_event,
        keep=folder.keep if folder else keep_nothing,
        follow=folder.follow if folder else follow_nothing,
    )
    run = account.describe(notebooks)
    if folder:
        folder.finish(run)
    return run, folder


def _choose_options(arguments: argparse.Namespace, device: DeviceChoice) -> RunOptions:
    from labkit.notebooks.execute import RunOptions

    return RunOptions(
        timeout_seconds=arguments.timeout,
        total_timeout_seconds=arguments.total_timeout,
        keep_going=arguments.keep_going,
        jobs=arguments.jobs,
        allow_errors=arguments.allow_errors,
        kernel=arguments.kernel,
        environment=device.environment,
        asks_cuda=device.asks_cuda,
    )


def _open_folder(
    arguments: argparse.Namespace, account: RunAccount, sources: Iterable[Source]
) -> RunFolder | None:
    """The run's folder. If the default one cannot be created, prints a warning and returns None."""
    from labkit.notebooks.result import NotebookResult, RunFolder

    if arguments.no_output:
        return None
    waiting = [NotebookResult(source.name, str(source.path), "not_run") for source in sources]
    try:
        return RunFolder(arguments.output, account, waiting)
    except UsageError as error:
        if arguments.output:
            raise
        print(f"warning: this run is not saved: {error.what}", file=sys.stderr)
        print(f"  cause: {error.cause}\n  try: --output DIR, or --no-output", file=sys.stderr)
        return None


def _finish_folder(folder: RunFolder) -> bool:
    """Adds the report, prints the paths, and returns whether the folder is complete."""
    shown = escape_controls(str(folder.path))
    if folder.trouble:
        cause = folder.trouble.strerror or str(folder.trouble)
        error = LabkitError(f"the run folder {shown} is incomplete", cause=cause)
        print_error(error)
        return False
    print(f"run folder: {shown}", file=sys.stderr)
    from labkit.notebooks.report.page import write_report

    try:
        print(f"report: {escape_controls(str(write_report(folder.path)))}", file=sys.stderr)
    except LabkitError as error:
        print_error(error)
        return False
    return True


def _show(run: RunResult, as_json: bool, trouble: OSError | None) -> None:
    # With --json the summary goes to stderr; stdout contains only the object.
    print(format_summary(run.notebooks), file=sys.stderr if as_json else sys.stdout)
    if as_json:
        described = run.describe()
        if trouble:  # the exit code is 1, because the output is incomplete
            described |= {"status": "failed", "trouble": f"the run folder is incomplete: {trouble}"}
        print_json(described)


def _name_apart(sources: list[Source]) -> list[Source]:
    """The same sources, with a number added to repeated names."""
    import dataclasses

    taken: set[str] = set()
    apart = []
    for source in sources:
        names = itertools.chain([source.name], (f"{source.name}-{n}" for n in itertools.count(2)))
        name = next(name for name in names if name not in taken)
        taken.add(name)
        apart.append(dataclasses.replace(source, name=name))
    return apart


# Output for people: one line per cell during the run, and a summary at the end. Control characters
# in names, code and outputs are escaped.

LINE_COLUMNS = 52
LEAST_COLUMNS = 12
FIGURE_COLUMNS = 21  # the seconds and the memory, with the gaps before them
TRACEBACK_LINES = 40
CLEAR_LINE = "\r\x1b[K"
UPDATE_SECONDS = 0.2
# The message is sufficient; the traceback would show labkit's own code.
WITHOUT_TRACEBACK = ("ClaimFailed", "CheckFailed")


class RunProgress:
    """Writes one line per cell, ``tensors  3/41  a = torch.tensor([1.0])  0.01 s``, to a stream.

    On a terminal the line is updated while the cell runs, with the elapsed seconds and the current
    memory, unless several notebooks run at once (``jobs``) and would overwrite each other.
    """

    def __init__(self, stream: TextIO, *, jobs: int = 1, columns: int | None = None) -> None:
        self._stream = stream
        self._live = jobs == 1 and stream.isatty() and os.environ.get("TERM") != "dumb"
        self._columns = columns or shutil.get_terminal_size().columns
        self._lock = threading.Lock()
        self._shown = 0.0

    def show_event(self, event: CellEvent) -> None:
        """Writes the line of a cell that starts, is running or has ended."""
        with self._lock:
            if event.status != "running":
                live = self._live
                line = format_cell(event, self._columns if live else None)
                self._stream.write(f"{CLEAR_LINE}{line}\n" if live else f"{line}\n")
                self._stream.flush()
            elif self._live and self._is_due(event):
                line = format_cell(event, self._columns)
                self._stream.write(CLEAR_LINE + line[: self._columns - 1])
                self._stream.flush()

    def _is_due(self, event: CellEvent) -> bool:
        now = time.monotonic()
        due = event.seconds is None or now - self._shown >= UPDATE_SECONDS
        self._shown = now if due else self._shown
        return due


def format_cell(event: CellEvent, columns: int | None = None) -> str:
    """One line for a cell: notebook, number, first source line, and seconds and memory if known.

    With ``columns``, the first source line is cut to fit the terminal.
    """
    place = f"{event.number:>{len(str(event.total))}}/{event.total}"
    start = f"{escape_controls(event.notebook)}  {place}  "
    width = LINE_COLUMNS
    if columns is not None:
        width = max(LEAST_COLUMNS, min(width, columns - 1 - len(start) - FIGURE_COLUMNS))
    line = f"{start}{_cut(event.first_line, width):<{width}}"
    if event.seconds is not None:
        line += f"  {event.seconds:6.2f} s"
    if event.resident_bytes is not None:
        line += f"  {format_bytes(event.resident_bytes):>9}"
    return line if event.status in ("running", "passed") else f"{line}  {_say(event.status)}"


def format_summary(notebooks: Iterable[NotebookResult]) -> str:
    """Each notebook's status, one line each, with the reason below a failed one."""
    return escape_controls("\n".join(_format_notebook(notebook) for notebook in notebooks))


def _format_notebook(notebook: NotebookResult) -> str:
    words = [f"{notebook.name}: {_say(notebook.status)}", *_count_outcomes(notebook)]
    line = ", ".join(words)
    if notebook.seconds is not None:
        line += f" ({format_seconds(notebook.seconds)})"
    broken = [
        f"claim does not hold: {claim.statement}"
        for claim in notebook.claims
        if claim.held is False
    ]
    broken += [
        f"check did not pass: {check.name} ({check.status})"
        for check in notebook.checks
        if check.status != "passed"
    ]
    broken += [
        f"output was cut: {format_bytes(cell.output_bytes)} came from '{_cut(cell.first_line)}'"
        for cell in notebook.cells
        if cell.truncated
    ]
    details = [f"  {text}" for text in broken]
    if notebook.error:
        details.append(_indent(_format_failure(notebook.error)))
    return "\n".join([line, *details])


def _count_outcomes(notebook: NotebookResult) -> list[str]:
    """The counts above 0: cells run, claims held and skipped, checks passed."""
    held = sum(claim.held is True for claim in notebook.claims)
    skipped = sum(claim.skipped is not None for claim in notebook.claims)
    passed = sum(check.status == "passed" for check in notebook.checks)
    ran = sum(cell.has_run for cell in notebook.cells)
    words = [f"{ran} of {len(notebook.cells)} cells run"] if notebook.cells else []
    if notebook.claims:
        words.append(f"{held} of {len(notebook.claims)} claims held")
    if skipped:
        words.append(f"{skipped} skipped")
    if notebook.checks:
        words.append(f"{passed} of {len(notebook.checks)} checks passed")
    return words


def _format_failure(failure: RunFailure) -> str:
    blocks = [failure.what]
    if failure.source:
        blocks.append(_indent(failure.source))
    if failure.traceback and failure.name not in WITHOUT_TRACEBACK:
        lines = failure.traceback.splitlines()
        if len(lines) > TRACEBACK_LINES:
            lines = ["...", *lines[-TRACEBACK_LINES:]]
        blocks.append("\n".join(lines))
    if failure.hint:
        blocks.append(failure.hint)
    return "\n\n".join(blocks)


def _indent(text: str) -> str:
    return "\n".join(f"  {line}".rstrip() for line in text.splitlines())


def _cut(text: str, width: int = LINE_COLUMNS) -> str:
    text = escape_controls(text)
    return text if len(text) <= width else text[: width - 3] + "..."


def _say(status: str) -> str:
    return status.replace("_", " ")


# Reports and comparisons.


def _add_report(subparsers: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    report = subparsers.add_parser(
        "report",
        help="write a run's report again",
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


def _add_compare(subparsers: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    compare = subparsers.add_parser(
        "compare",
        help="compare two runs",
        description="Compares two runs, CPU against GPU or before against after: seconds and"
        " peaks with their ratios (B / A), cells in only one run, claims that changed.",
    )
    compare.add_argument("a", type=Path, metavar="A", help="a run folder or its result.json")
    compare.add_argument("b", type=Path, metavar="B", help="the run to compare with it")
    add_common(compare)
    compare.set_defaults(run=compare_asked)


def make_report(arguments: argparse.Namespace) -> int:
    """Writes the report and prints its path; exits 0 for any status of the run."""
    require_reader()
    from labkit.notebooks.report.page import write_report

    path = write_report(arguments.run_folder or find_newest_run(RUNS_FOLDER))
    if arguments.json:
        print_json({"report": str(path)})
    else:
        print(escape_controls(str(path)))
    return ExitCode.OK


def find_newest_run(runs: Path) -> Path:
    """The run folder under ``runs`` with the newest result.json. Raises UsageError without one."""
    results = sorted(runs.glob("*/result.json"), key=lambda path: path.stat().st_mtime_ns)
    if not results:
        raise UsageError(
            f"there is no run under {runs}/",
            cause="no folder in it has a result.json",
            fix="labkit run tensors --output runs/tensors",
        )
    return results[-1].parent


def compare_asked(arguments: argparse.Namespace) -> int:
    """Prints the comparison; exits 0, also if the runs differ."""
    require_reader()
    from labkit.notebooks.compare import compare_runs, describe_comparison, format_comparison
    from labkit.notebooks.result import read_run

    comparison = compare_runs(read_run(arguments.a), read_run(arguments.b))
    if arguments.json:
        print_json(describe_comparison(comparison))
    else:
        print(format_comparison(comparison))
    return ExitCode.OK

"""``labkit run``: executes labs and notebooks headless and reports the results.

``labkit report`` rewrites a run's report; ``labkit compare`` compares two runs.
"""

from __future__ import annotations

import argparse
import itertools
import json
import math
import os
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

from labkit.cli import add_common, print_error, print_json
from labkit.errors import EngineError, ExitCode, LabkitError, UsageError
from labkit.host.cpu import count_allowed_cores
from labkit.process import in_clone, name_python
from labkit.text import escape_controls

if TYPE_CHECKING:
    from labkit.lessons.catalog import Lab
    from labkit.notebooks.execute import RunOptions
    from labkit.notebooks.result import RunAccount, RunFolder, RunResult
    from labkit.notebooks.schedule import DeviceChoice
    from labkit.notebooks.sources import Source

DEFAULT_TIMEOUT_SECONDS = 600.0
DEFAULT_TOLERANCE = 1e-6
NEEDED = ("nbclient", "nbformat", "ipykernel", "jupytext", "msgspec", "nh3")
RUNS_FOLDER = Path("runs")
FORMATS = """\
what runs of a file:

  .ipynb        its code cells
  .py           a percent script, a Sphinx-Gallery script, or the whole file as one cell
  .md           a plain one: its blocks of Python (without any, its own language), no shell;
                with a header (jupytext:, jupyter:, kernelspec:): also ```bash and the like
  .md, .myst    of MyST: its {code-cell} blocks
  .Rmd          its chunks, {bash} too, as knitr does
  .qmd          its chunks of the kernel's language, as Quarto's Jupyter engine does

eval=FALSE and error=TRUE of a chunk count, in its fence or as '#| eval: false'. A note says
what was not run."""


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
        epilog=FORMATS,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument(
        "names", nargs="*", metavar="NAME", help="a lab, or PATH.ipynb|.py|.md|.myst|.Rmd|.qmd"
    )
    parser.add_argument("--all", action="store_true", help="every lab")
    parser.add_argument(
        "--last-failed",
        action="store_true",
        help="only those that did not pass in the newest run under runs/; all, if all passed",
    )
    _add_limits(parser)
    _add_options(parser)
    _add_ranks(parser)
    _add_parameters(parser)
    _add_outputs(parser)
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
        type=_read_jobs,
        default=1,
        metavar="N",
        help="notebooks to run at once, each in its own kernel with its share of the cores; auto:"
        " as many as cores and memory allow; they share the GPU (default: 1)",
    )
    parser.add_argument(
        "--cwd",
        type=Path,
        metavar="DIR",
        help="the folder to run in (default: each notebook's own)",
    )


def _add_ranks(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--nproc-per-node",
        type=int,
        metavar="N",
        help="run each notebook in N processes under torchrun, each with its own kernel and RANK",
    )
    parser.add_argument(
        "--nnodes",
        type=int,
        default=1,
        metavar="M",
        help="with --nproc-per-node: the number of machines, each of which runs this command",
    )
    parser.add_argument(
        "--rdzv-endpoint",
        metavar="HOST:PORT",
        help="with --nnodes: where the machines meet, a free port on one of them",
    )


def _add_parameters(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "-p",
        "--parameter",
        nargs=2,
        action="append",
        default=[],
        metavar=("NAME", "VALUE"),
        help="set a variable after the cell with the tag 'parameters', as papermill does",
    )
    parser.add_argument(
        "--parameters-file",
        type=Path,
        metavar="FILE",
        help="parameters as YAML or JSON: one object; -p overrules it",
    )


def _add_outputs(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--output",
        metavar="DIR",
        help="the run folder: result.json, executed notebooks, report.html; or an address that"
        " fsspec knows, such as s3://bucket/run (default: runs/DATE-TIME here)",
    )
    parser.add_argument("--no-output", action="store_true", help="write no run folder")
    parser.add_argument(
        "--junit",
        type=Path,
        metavar="FILE",
        help="also write the result as JUnit XML; folders on the way are made",
    )
    parser.add_argument(
        "--compare-outputs",
        type=float,
        nargs="?",
        const=DEFAULT_TOLERANCE,
        metavar="TOLERANCE",
        help="fail where text outputs differ from the saved ones; numbers may differ by this"
        " relative part (default: 1e-6)",
    )


def _read_jobs(text: str) -> int | str:
    return "auto" if text == "auto" else int(text)


def run_asked(arguments: argparse.Namespace) -> int:
    """Runs the named notebooks and returns the exit code of the first one that failed."""
    _check_arguments(arguments)
    from labkit.notebooks.sources import is_path

    labs = [word for word in arguments.names if not is_path(word)]
    require_packages(["all"] if arguments.all else labs)
    sources = list_labs() if arguments.all else [find_source(word) for word in arguments.names]
    if arguments.last_failed:
        sources = choose_failed(sources, find_newest_run(RUNS_FOLDER))
    elif not sources:
        raise UsageError("there is no lab to run", cause="labs.toml lists no lab with a lesson")
    sources = _name_apart(sources)
    with open_output(arguments.output) as output:
        _refuse_own_files(sources, output, arguments.junit)
        run, folder = _execute(sources, arguments, output)
        _show(run, arguments.json, folder.trouble if folder else None)
        sound = folder is None or _finish_folder(folder, arguments.output or "")
    if arguments.junit:
        from labkit.notebooks.junit import write_junit

        write_junit(run, arguments.junit)
    return int(run.exit_code) or (ExitCode.OK if sound else ExitCode.FAILED)


def _refuse_own_files(sources: list[Source], output: Path | None, junit: Path | None) -> None:
    """Raises UsageError if the run would replace a source, or a file of a folder of the user's."""
    if junit and any(junit.resolve() == source.path.resolve() for source in sources):
        raise UsageError(
            f"--junit {junit} is what is to be run",
            cause="the results would replace it",
            fix="--junit results.xml",
        )
    names = [*(f"{source.name}.ipynb" for source in sources), "report.html"] if output else []
    for path in (output / name for name in names if output):
        if path.exists():
            raise UsageError(
                f"--output {output} already holds {path.name}",
                cause="the run would replace it",
                fix="choose another --output",
            )


def choose_failed(sources: list[Source], newest: Path) -> list[Source]:
    """The sources that did not pass in that run; all of them if every one passed.

    Without sources, the run's own. Raises UsageError if there is then nothing to run.
    """
    from labkit.notebooks.result import read_run
    from labkit.notebooks.sources import find_file

    run = read_run(newest).result
    failed = {Path(one.path).resolve() for one in run.notebooks if one.status != "passed"}
    if sources:
        return [one for one in sources if one.path.resolve() in failed] or sources
    if not failed:
        raise UsageError(f"nothing to run: every notebook passed in {newest}")
    labs = {lab.path.resolve(): lab for lab in list_labs()}
    return [labs.get(path) or find_file(str(path)) for path in sorted(failed)]


@contextmanager
def open_output(asked: str | None) -> Iterator[Path | None]:
    """The local run folder of ``--output``; that of an address is uploaded at the end.

    Raises UsageError if fsspec cannot reach the address.
    """
    if asked is None or "://" not in asked:
        yield Path(asked) if asked else None
        return
    import tempfile

    from labkit.notebooks.upload import check_address, upload_folder

    check_address(asked)
    with tempfile.TemporaryDirectory(prefix="labkit-run-") as scratch:
        folder = Path(scratch) / "run"
        try:
            yield folder
        finally:
            if folder.is_dir():  # also after Ctrl-C, and after a failure
                upload_folder(folder, asked)


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
        fix = fix if in_clone() else f"{name_python()} -m pip install {' '.join(missing)}"
        lacks = ", ".join(missing) if len(missing) < len(needed) else "all of the lab's packages"
        raise EngineError(f"{sys.executable} {cannot}", cause=f"this Python lacks {lacks}", fix=fix)


def find_source(word: str) -> Source:
    """The file at that path or the lab of that name. Raises UsageError if there is neither."""
    from labkit.notebooks.sources import find_file, is_path

    if is_path(word):
        return find_file(word)
    from labkit.lessons.catalog import find_lab

    try:
        return _lab_source(find_lab(word))
    except UsageError:
        if Path(word).is_dir():
            return find_file(word)  # which says how its notebooks are named
        raise


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
    if not (arguments.all or arguments.names or arguments.last_failed):
        raise UsageError("nothing to run: name a lab or a notebook", fix="labkit run --all")
    limits = {"--timeout": arguments.timeout, "--total-timeout": arguments.total_timeout}
    for option, seconds in limits.items():
        if seconds is not None and not (math.isfinite(seconds) and seconds > 0):
            raise UsageError(f"invalid {option} {seconds:g}", cause="it must be above 0 seconds")
    if arguments.cwd and not arguments.cwd.is_dir():
        raise UsageError(f"--cwd {escape_controls(str(arguments.cwd))} is not a folder")
    if arguments.compare_outputs is not None and not 0 <= arguments.compare_outputs < math.inf:
        raise UsageError(
            f"invalid --compare-outputs {arguments.compare_outputs:g}",
            cause="the tolerance is a number from 0 on",
        )
    _check_ranks(arguments)
    if arguments.jobs != "auto" and arguments.jobs < 1:
        raise UsageError(f"invalid --jobs {arguments.jobs}", cause="it must be at least 1")
    if arguments.no_output and arguments.output:
        raise UsageError("--output conflicts with --no-output: give one of them")


def _check_ranks(arguments: argparse.Namespace) -> None:
    ranks, nodes, endpoint = arguments.nproc_per_node, arguments.nnodes, arguments.rdzv_endpoint
    if ranks is None:
        if nodes != 1 or endpoint:
            raise UsageError(
                "--nnodes and --rdzv-endpoint need --nproc-per-node",
                fix="labkit run train.ipynb --nproc-per-node 2",
            )
        return
    for option, number in (("--nproc-per-node", ranks), ("--nnodes", nodes)):
        if number < 1:
            raise UsageError(f"invalid {option} {number}", cause="it must be at least 1")
    if nodes > 1 and not endpoint:
        raise UsageError(
            f"--nnodes {nodes} needs --rdzv-endpoint",
            cause="the machines have to know where they meet",
            fix="--rdzv-endpoint HOST:29500, the name of one of the machines and a free port on it",
        )
    if arguments.jobs != 1:
        raise UsageError(
            "--jobs conflicts with --nproc-per-node", cause="the ranks of one notebook run at once"
        )
    if arguments.device.startswith("cuda:"):
        raise UsageError(
            f"--device {arguments.device} conflicts with --nproc-per-node",
            cause="each rank takes the GPU of its LOCAL_RANK",
            fix="--device cuda",
        )


def _execute(
    sources: list[Source], arguments: argparse.Namespace, output: Path | None
) -> tuple[RunResult, RunFolder | None]:
    from labkit.devices.detect import detect_devices
    from labkit.notebooks.result import RunAccount, read_environment
    from labkit.notebooks.schedule import choose_device, follow_nothing, keep_nothing, run_notebooks
    from labkit.notebooks.summary import RunProgress

    detection = detect_devices()
    device = choose_device(arguments.device, detection, os.environ)
    options = _choose_options(arguments, device, len(sources))
    account = RunAccount(read_environment(detection, device.name))
    if arguments.nproc_per_node:
        return _execute_ranks(sources, arguments, output, options, account)
    folder = None if arguments.no_output else _open_folder(output, account, sources)
    notebooks = run_notebooks(
        sources,
        options,
        account.measuring,
        watch=RunProgress(sys.stderr, jobs=options.jobs).show_event,
        keep=folder.keep if folder else keep_nothing,
        follow=folder.follow if folder else follow_nothing,
    )
    run = account.describe(notebooks)
    if folder:
        folder.finish(run)
    return run, folder


def _execute_ranks(
    sources: list[Source],
    arguments: argparse.Namespace,
    output: Path | None,
    options: RunOptions,
    account: RunAccount,
) -> tuple[RunResult, RunFolder | None]:
    """Runs the notebooks one after the other, each in all ranks at once."""
    import dataclasses
    import time

    from labkit.notebooks.schedule import follow_nothing, keep_nothing, share_cores
    from labkit.notebooks.summary import RunProgress
    from labkit.notebooks.torchrun import LABEL, RankOptions, run_ranks

    count = arguments.nproc_per_node
    ranks = RankOptions(count, arguments.nnodes, arguments.rdzv_endpoint)
    shares = share_cores(count, count_allowed_cores(), os.environ)
    environment = {"OMP_NUM_THREADS": os.environ.get("OMP_NUM_THREADS", "1"), **shares}
    options = dataclasses.replace(
        options, environment={**environment, **options.environment}, finds_waits=True
    )
    labels = [
        dataclasses.replace(one, name=LABEL.format(name=one.name, rank=rank))
        for one in sources
        for rank in range(count)
    ]
    folder = None if arguments.no_output else _open_folder(output, account, labels)
    limit = arguments.total_timeout
    deadline = None if limit is None else time.monotonic() + limit
    notebooks: list[Any] = []
    for number, source in enumerate(sources):
        notebooks += run_ranks(
            source,
            options,
            ranks,
            account=account.measuring,
            deadline=deadline,
            watch=RunProgress(sys.stderr, jobs=count).show_event,
            keep=folder.keep if folder else keep_nothing,
            follow=folder.follow if folder else follow_nothing,
            place=number * count,
        )
        statuses = {one.status for one in notebooks}
        if "interrupted" in statuses or (not arguments.keep_going and statuses != {"passed"}):
            break
    run = account.describe(notebooks)
    if folder:
        folder.finish(run)
    return run, folder


def _choose_options(arguments: argparse.Namespace, device: DeviceChoice, count: int) -> RunOptions:
    from labkit.memory.balance.read import read_machine_memory
    from labkit.notebooks.execute import RunOptions
    from labkit.notebooks.schedule import choose_jobs, share_cores

    cores = count_allowed_cores()
    jobs = arguments.jobs
    if jobs == "auto":
        jobs = choose_jobs(count, cores, read_machine_memory().free_bytes)
    return RunOptions(
        timeout_seconds=arguments.timeout,
        total_timeout_seconds=arguments.total_timeout,
        keep_going=arguments.keep_going,
        jobs=jobs,
        allow_errors=arguments.allow_errors,
        kernel=arguments.kernel,
        environment={**share_cores(jobs, cores, os.environ), **device.environment},
        asks_cuda=device.asks_cuda,
        folder=arguments.cwd,
        parameters=read_parameters(arguments.parameters_file, arguments.parameter),
        tolerance=arguments.compare_outputs,
    )


def read_parameters(file: Path | None, typed: list[list[str]]) -> Mapping[str, Any]:
    """The parameters of the file, overruled by the typed ones.

    Raises UsageError if the file cannot be read or holds no object.
    """
    from labkit.notebooks.sources import parse_parameters

    if file is None:
        return parse_parameters(typed)
    import yaml  # jupytext brings it

    shown = escape_controls(str(file))
    try:
        found = yaml.safe_load(file.read_text(encoding="utf-8-sig"))
    except (OSError, ValueError, yaml.YAMLError) as error:
        raise UsageError(f"{shown} cannot be read", cause=escape_controls(str(error))) from error
    if not isinstance(found, dict):
        raise UsageError(f"{shown} holds no parameters", cause="it is not an object of names")
    try:
        json.dumps(found, allow_nan=False)
    except (TypeError, ValueError) as error:
        raise UsageError(
            f"{shown} holds a value that JSON does not have", cause=escape_controls(str(error))
        ) from error
    parse_parameters([(str(name), "") for name in found])
    return {**found, **parse_parameters(typed)}


def _open_folder(
    asked: Path | None, account: RunAccount, sources: Iterable[Source]
) -> RunFolder | None:
    """The run's folder. If the default one cannot be created, prints a warning and returns None."""
    from labkit.notebooks.result import NotebookResult, RunFolder

    waiting = [NotebookResult(source.name, str(source.path), "not_run") for source in sources]
    try:
        return RunFolder(asked, account, waiting)
    except UsageError as error:
        if asked:
            raise
        print(f"warning: this run is not saved: {error.what}", file=sys.stderr)
        print(f"  cause: {error.cause}\n  try: --output DIR, or --no-output", file=sys.stderr)
        return None


def _finish_folder(folder: RunFolder, asked: str) -> bool:
    """Adds the report, prints the paths, and returns whether the folder is complete."""
    from labkit.files import name_outside
    from labkit.notebooks.upload import show_address

    is_sent = "://" in asked
    shown = show_address(asked) if is_sent else escape_controls(str(name_outside(folder.path)))
    if folder.trouble:
        cause = folder.trouble.strerror or str(folder.trouble)
        error = LabkitError(f"the run folder {shown} is incomplete", cause=cause)
        print_error(error)
        return False
    print(f"run folder: {shown}", file=sys.stderr)
    from labkit.notebooks.report.page import write_report

    try:
        report = write_report(folder.path)
        print(f"report: {shown}/{report.name}", file=sys.stderr)
    except LabkitError as error:
        print_error(error)
        return False
    return True


def _show(run: RunResult, as_json: bool, trouble: OSError | None) -> None:
    from labkit.notebooks.summary import format_summary

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

"""``labkit report`` makes a run's page again; ``labkit compare`` sets two runs side by side."""

from __future__ import annotations

import argparse
from pathlib import Path

from labkit.cli import add_common, print_json
from labkit.errors import ExitCode, UsageError

RUNS_FOLDER = Path("runs")


def add_commands(subparsers: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
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
    from labkit.runner.report import write_report

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
    from labkit.runner.compare import compare_runs, describe_comparison
    from labkit.runner.compare_text import format_comparison
    from labkit.runner.report.comparison import write_comparison
    from labkit.runner.report.saved import read_run

    comparison = compare_runs(read_run(arguments.a), read_run(arguments.b))
    if arguments.output:
        write_comparison(arguments.output, comparison)
    if arguments.json:
        print_json(describe_comparison(comparison))
    else:
        print(format_comparison(comparison))
    return ExitCode.OK

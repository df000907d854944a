"""``labkit history`` makes a page and figures of a memory snapshot that torch has written."""

from __future__ import annotations

import argparse
from pathlib import Path

from labkit.cli import add_common, print_json
from labkit.errors import ExitCode


def add_commands(subparsers: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Adds ``history``."""
    parser = subparsers.add_parser(
        "history",
        help="show what a memory snapshot of torch's tells",
        description="Reads a snapshot that torch.cuda.memory._dump_snapshot() or"
        " labkit.record_allocations() has written: what was live at the peak, by the line that"
        " allocated it, how the reserved memory is cut up, and what was never freed. A snapshot"
        " is a pickle; no code in it is run.",
    )
    parser.add_argument("file", type=Path, metavar="FILE", help="the snapshot, a .pickle")
    parser.add_argument(
        "-o",
        "--output",
        type=Path,
        metavar="PAGE.html",
        help="write it as one page too, which needs no internet",
    )
    add_common(parser)
    parser.set_defaults(run=show_history)


def show_history(arguments: argparse.Namespace) -> int:
    """Prints what the snapshot tells and writes the page where asked; exits 0."""
    from labkit.memory.history.analysis import analyse
    from labkit.memory.history.describe import describe_history
    from labkit.memory.history.files import load_snapshot, write_file
    from labkit.memory.history.page import make_page
    from labkit.memory.history.snapshot import read_recording

    history = analyse(read_recording(load_snapshot(arguments.file)))
    page = None
    if arguments.output:
        made = make_page(history, arguments.file.name)
        page = str(write_file(arguments.output, made.encode(errors="replace")))
    if arguments.json:
        described = describe_history(history)
        print_json({"snapshot": str(arguments.file), "page": page, **described})
    else:
        print(history)
        if page:
            print(f"\npage: {page}")
    return ExitCode.OK

"""``labkit memory``: the balance of each device, once or live; ``labkit history``: a snapshot."""

from __future__ import annotations

import argparse
import contextlib
import shutil
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from labkit.cli import add_common, print_json
from labkit.cli.terminal import can_print, fit_bar, is_terminal, wants_color
from labkit.errors import ExitCode, UsageError

if TYPE_CHECKING:
    from labkit.memory.balance.model import Balance, Snapshot


DEFAULT_INTERVAL_SECONDS = 2.0
SHORTEST_INTERVAL_SECONDS, LONGEST_INTERVAL_SECONDS = 0.1, 86_400.0

# The terminal's alternate screen, so that its contents come back at the end, without a cursor
# and without line wrapping, which would make the text too high.
ENTER_SCREEN = "\x1b[?1049h\x1b[?25l\x1b[?7l"
LEAVE_SCREEN = "\x1b[?7h\x1b[?25h\x1b[?1049l"
TO_TOP, CLEAR_LINE, CLEAR_BELOW = "\x1b[H", "\x1b[K", "\x1b[J"


def add_commands(commands: argparse._SubParsersAction[Any]) -> None:
    """Adds ``memory`` and ``history``."""
    _add_memory(commands)
    _add_history(commands)


def _add_memory(subparsers: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Adds ``memory``."""
    parser = subparsers.add_parser(
        "memory",
        help="show who holds each device's memory",
        description="The balance of each device: who holds its memory, in terms that add up.",
    )
    parser.add_argument(
        "--watch",
        nargs="?",
        type=float,
        const=DEFAULT_INTERVAL_SECONDS,
        metavar="SECONDS",
        help="update the balance every SECONDS (default: 2) until Ctrl-C",
    )
    add_common(parser)
    parser.set_defaults(run=show_memory)


def show_memory(arguments: argparse.Namespace) -> int:
    """Prints the balance of each device, or why it cannot be read; exits 0."""
    from labkit.memory.balance.read import take_snapshot

    if arguments.watch is not None:
        return _start_watching(arguments, take_snapshot)
    snapshot = take_snapshot()
    if arguments.json:
        print_json(describe_snapshot(snapshot))
    else:
        print(_format(snapshot, arguments))
    return ExitCode.OK


def _start_watching(arguments: argparse.Namespace, take: Callable[[], Snapshot]) -> int:
    if arguments.json:
        raise UsageError(
            "--watch conflicts with --json",
            cause="--json prints exactly one object",
            fix="labkit memory --json",
        )
    if not SHORTEST_INTERVAL_SECONDS <= arguments.watch <= LONGEST_INTERVAL_SECONDS:
        raise UsageError(
            f"invalid --watch {arguments.watch:g}",
            cause=f"an interval is between {SHORTEST_INTERVAL_SECONDS:g} seconds and a day",
            fix=f"labkit memory --watch {DEFAULT_INTERVAL_SECONDS:g}",
        )
    watch(lambda: _format(take(), arguments), arguments.watch, on_screen=is_terminal())
    return ExitCode.OK


def watch(
    draw: Callable[[], str],
    interval_seconds: float,
    *,
    on_screen: bool,
    sleep: Callable[[float], object] = time.sleep,
    measure_height: Callable[[], int] = lambda: shutil.get_terminal_size().lines,
) -> None:
    """Prints what ``draw`` returns after every interval until Ctrl-C; on a screen, in place."""
    with _alternate_screen() if on_screen else contextlib.nullcontext():
        while True:
            text = draw()
            if on_screen:
                lines = [f"{line}{CLEAR_LINE}" for line in fit_screen(text, measure_height())]
                print(TO_TOP + "\n".join(lines) + CLEAR_BELOW, end="", flush=True)
            else:
                print(text, end="\n\n", flush=True)
            sleep(interval_seconds)


def fit_screen(text: str, height: int) -> list[str]:
    """The lines of a text that fit a screen; if some do not, the last line has their number.

    >>> fit_screen("one\\ntwo\\nthree", height=2)
    ['one', '2 more lines in a higher window']
    """
    lines = text.splitlines()
    if len(lines) <= height:
        return lines
    hidden = len(lines) - height + 1
    return [*lines[: height - 1], f"{hidden} more lines in a higher window"]


@contextlib.contextmanager
def _alternate_screen() -> Iterator[None]:
    print(ENTER_SCREEN, end="", flush=True)
    try:
        yield
    finally:
        print(LEAVE_SCREEN, end="", flush=True)


def _format(snapshot: Snapshot, arguments: argparse.Namespace) -> str:
    from labkit.memory.balance.view import BAR_WIDTH, GLYPHS, INDENT, format_snapshot

    return format_snapshot(
        snapshot,
        color=wants_color(refused=arguments.no_color),
        plain=not can_print("".join(GLYPHS.values())),
        width=fit_bar(BAR_WIDTH, len(INDENT)),
    )


def describe_snapshot(snapshot: Snapshot) -> dict[str, object]:
    """The snapshot as ``--json`` prints it; what is unknown is null."""
    return {
        "devices": [_describe_balance(balance) for balance in snapshot.balances],
        "notes": list(snapshot.notes),
    }


def _describe_balance(balance: Balance) -> dict[str, object]:
    processes = balance.processes
    return {
        **balance._asdict(),
        "this_process": balance.this_process._asdict(),
        "used_bytes": balance.used_bytes,
        "unaccounted_bytes": balance.unaccounted_bytes,
        "processes": None if processes is None else [one._asdict() for one in processes],
    }


def _add_history(subparsers: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Adds ``history``."""
    parser = subparsers.add_parser(
        "history",
        help="analyze a memory snapshot that torch wrote",
        description="Reads a snapshot from torch.cuda.memory._dump_snapshot() or"
        " labkit.record_allocations(): what was live at the peak, by the line that allocated it,"
        " how fragmented the reserved memory is, and what was never freed. A snapshot is a"
        " pickle; its code is not run.",
    )
    parser.add_argument("file", type=Path, metavar="FILE", help="the snapshot, a .pickle")
    parser.add_argument(
        "-o",
        "--output",
        type=Path,
        metavar="PAGE.html",
        help="also write a page that works offline",
    )
    add_common(parser)
    parser.set_defaults(run=show_history)


def show_history(arguments: argparse.Namespace) -> int:
    """Prints the analysis of the snapshot and writes the page if asked; exits 0."""
    from labkit.memory.allocations.analysis import analyse
    from labkit.memory.allocations.page import make_page
    from labkit.memory.allocations.snapshot import load_snapshot, read_recording, write_file
    from labkit.memory.allocations.view import describe_history

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

"""The commands ``labkit memory``, ``labkit history`` and ``labkit estimate``.

``memory`` shows the balance of each device, once or live. ``history`` analyzes a snapshot.
``estimate`` says whether a step fits a GPU, without a GPU.
"""

from __future__ import annotations

import argparse
import contextlib
import functools
import importlib.util
import shlex
import shutil
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any

from labkit.cli import add_common, can_print, fit_bar, is_terminal, print_json, wants_color
from labkit.cli.named import (
    add_named_options,
    parse_sizes,
    print_ranks,
    refuse_named_options,
    show_named,
    take_one,
)
from labkit.errors import ExitCode, UsageError
from labkit.process import name_python
from labkit.text import escape_controls, near_match

if TYPE_CHECKING:
    from labkit.memory.allocations.analysis import History
    from labkit.memory.balance.model import Balance, Snapshot
    from labkit.memory.estimate.model import Estimate


DEFAULT_INTERVAL_SECONDS = 2.0
SHORTEST_INTERVAL_SECONDS, LONGEST_INTERVAL_SECONDS = 0.1, 86_400.0

# Switches to the terminal's alternate screen, which restores the old contents at the end, and
# turns off the cursor and line wrapping, which would make the text too high.
ENTER_SCREEN = "\x1b[?1049h\x1b[?25l\x1b[?7l"
LEAVE_SCREEN = "\x1b[?7h\x1b[?25h\x1b[?1049l"
TO_TOP, CLEAR_LINE, CLEAR_BELOW = "\x1b[H", "\x1b[K", "\x1b[J"


def add_commands(commands: argparse._SubParsersAction[Any]) -> None:
    """Adds ``memory``, ``history`` and ``estimate``."""
    _add_memory(commands)
    _add_history(commands)
    _add_estimate(commands)


def _add_memory(subparsers: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Adds ``memory``."""
    parser = subparsers.add_parser(
        "memory",
        help="show what holds each device's memory",
        description="The balance of each device: what holds its memory, in terms that add up.",
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
    """The lines of a text that fit a screen; if some do not, the last line says how many.

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
        help="analyze a memory snapshot that torch wrote, or compare two",
        description="Reads a snapshot from torch.cuda.memory._dump_snapshot() or"
        " labkit.record_allocations(): what was live at the peak, by the line that allocated it,"
        " how fragmented the reserved memory is, and what was never freed. A snapshot is a"
        " pickle; its code is not run.",
    )
    parser.add_argument(
        "file", type=Path, metavar="FILE", help="the snapshot, a .pickle, also as .gz, .bz2, .xz"
    )
    parser.add_argument(
        "later",
        type=Path,
        nargs="?",
        metavar="LATER",
        help="a later snapshot: prints which lines hold more or less at its end",
    )
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
    from labkit.memory.allocations.analysis import compare_histories
    from labkit.memory.allocations.page import make_page
    from labkit.memory.allocations.snapshot import write_file
    from labkit.memory.allocations.view import describe_comparison, describe_history

    if arguments.later and arguments.output:
        raise UsageError(
            "--output conflicts with a second snapshot",
            cause="a page shows one snapshot",
            fix=f"labkit history {shlex.quote(str(arguments.later))} --output page.html",
        )
    if arguments.output and arguments.output.resolve() == arguments.file.resolve():
        raise UsageError(
            f"--output {arguments.output} is the snapshot",
            cause="the page would replace it",
            fix=f"labkit history {shlex.quote(str(arguments.file))} --output page.html",
        )
    history = _read_history(arguments.file)
    if arguments.later:
        later = _read_history(arguments.later)
        compared = compare_histories(history, later)
        if arguments.json:
            named = {"snapshots": [str(arguments.file), str(arguments.later)]}
            print_json({**named, **describe_comparison(compared)})
        else:
            print(compared)
        return ExitCode.OK
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
            print(f"\npage: {escape_controls(page)}")
    return ExitCode.OK


def _read_history(path: Path) -> History:
    from labkit.memory.allocations.analysis import analyse
    from labkit.memory.allocations.snapshot import load_snapshot, read_recording

    snapshot = load_snapshot(path)
    try:
        return analyse(read_recording(snapshot))
    except UsageError as error:
        what = f"{path} is not a memory snapshot of torch"
        raise UsageError(what, cause=error.cause, fix=error.fix) from error


MODULE_NAME = "labkit_estimated_file"
EXAMPLE = """\
the function takes the batch size and returns the step:

  def make_step(batch=32):
      model = Model()
      optimizer = torch.optim.AdamW(model.parameters())
      inputs = torch.randn(batch, 3, 224, 224)
      def step():
          optimizer.zero_grad()
          model(inputs).mean().backward()
          optimizer.step()
      return step

a model by name or configuration, without weights (needs transformers or timm):

  labkit estimate hf:config.json --dtype bf16 --batch 4 --sequence 2048 --lora r=16
  labkit estimate hf:config.json --task generate --context 8192 --weights nf4 --device "24 GiB"

exits 0 if it fits or no device was named, 1 if it does not fit or may not fit"""


def _add_estimate(subparsers: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Adds ``estimate``."""
    parser = subparsers.add_parser(
        "estimate",
        help="estimate whether a training step fits a GPU, without running it",
        description="Estimates the peak memory of a training or inference step on fake tensors,"
        " without a GPU and without using the memory.",
        epilog=EXAMPLE,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument(
        "step",
        metavar="FILE:FUNCTION",
        help="the function that makes the step; or a model: hf:NAME, hf:config.json, timm:NAME",
    )
    parser.add_argument(
        "--batch",
        type=functools.partial(parse_sizes, option="--batch"),
        metavar="N",
        help="the batch size (default: the function's own)",
    )
    parser.add_argument(
        "--device",
        metavar="WHAT",
        help='the device to fit: a size with its unit ("24 GiB"; a number alone is bytes), a GPU'
        ' ("H100"), or cuda:0 or cpu of this machine',
    )
    parser.add_argument("--inference", action="store_true", help="run the step without gradients")
    parser.add_argument(
        "--world-size",
        type=int,
        metavar="N",
        help="also what each of N ranks would hold; the batch is that of one rank",
    )
    parser.add_argument(
        "--shard",
        choices=("ddp", "zero1", "fsdp"),
        help="with --world-size: how the model is shared out (default: ddp)",
    )
    add_named_options(parser)
    add_common(parser)
    parser.set_defaults(run=show_estimate)


def show_estimate(arguments: argparse.Namespace) -> int:
    """Prints the estimate; exits 0 if it fits or no device was named."""
    from labkit.memory.estimate.formats import parse_source
    from labkit.memory.estimate.model import find_target
    from labkit.memory.estimate.play import estimate_memory
    from labkit.memory.estimate.view import (
        BAR_WIDTH,
        GLYPHS,
        INDENT,
        describe_estimate,
        format_estimate,
    )

    find_target(arguments.device)  # refuses an unknown name before torch is loaded
    if arguments.world_size is None and arguments.shard:
        raise UsageError("--shard needs --world-size", fix="labkit estimate --help")
    source = parse_source(arguments.step)
    if source:
        return show_named(arguments, source)
    refuse_named_options(arguments)
    path, name = split_step(arguments.step)
    check_file(path, name)
    # The user's own prints are not results of this command.
    with contextlib.redirect_stdout(sys.stderr):
        function = find_function(load_file(path), name, path)

    def estimate_step(step: Callable[..., object]) -> Estimate:
        return estimate_memory(
            step,
            batch=take_one(arguments.batch),
            device=arguments.device,
            inference=arguments.inference,
            say=lambda words: print(words, file=sys.stderr),
        )

    if arguments.world_size is not None:
        return _show_ranks(function, estimate_step, arguments)
    with contextlib.redirect_stdout(sys.stderr):
        estimate = estimate_step(function)
    if arguments.json:
        print_json(describe_estimate(estimate))
    else:
        plain = not can_print("".join(GLYPHS.values()))
        width = fit_bar(BAR_WIDTH, len(INDENT))
        print(format_estimate(estimate, plain=plain, width=width))
    judged = estimate.target.capacity_bytes is not None
    return ExitCode.FAILED if judged and not estimate.fits else ExitCode.OK


def _show_ranks(
    function: Callable[..., object],
    estimate: Callable[[Callable[..., object]], Estimate],
    arguments: argparse.Namespace,
) -> int:
    """Prints what each rank would hold; exits 0 if every rank fits or no device was named."""
    from labkit.memory.estimate.shards import estimate_ranks

    with contextlib.redirect_stdout(sys.stderr):
        found = estimate_ranks(
            function, estimate, world_size=arguments.world_size, shard=arguments.shard or "ddp"
        )
    return print_ranks(found, as_json=arguments.json)


def split_step(word: str) -> tuple[Path, str]:
    """The file and the function of ``FILE:FUNCTION``; raises UsageError if one is missing.

    >>> split_step("train.py:make_step")[1]
    'make_step'
    """
    file, colon, name = word.rpartition(":")
    if not colon and (word.endswith(".json") or Path(word, "config.json").is_file()):
        raise UsageError(
            f"{word!r} does not name a function",
            cause="a model's configuration follows hf:",
            fix=_name_command(f"hf:{word}"),
        )
    if not colon or not file or not name:
        raise UsageError(
            f"{word!r} does not name a function",
            cause="the argument is FILE:FUNCTION, a file and a function in it",
            fix=_name_command(f"{file or word or 'train.py'}:make_step"),
        )
    return Path(file), name


def _name_command(step: str) -> str:
    return f"labkit estimate {shlex.quote(step)}"


def check_file(path: Path, name: str) -> None:
    """Raises UsageError with a near match where there is no such file."""
    if path.is_file():
        return
    folder = path.parent
    there = sorted(one.name for one in folder.glob("*.py")) if folder.is_dir() else []
    near = near_match(path.name, there)
    raise UsageError(
        f"{path} does not exist",
        cause=f"the Python files in {folder}/ are: {', '.join(there[:8]) or 'none'}",
        fix=_name_command(f"{folder / near}:{name}") if near else "labkit estimate --help",
    )


def load_file(path: Path) -> ModuleType:
    """Imports the file, with its folder importable; raises UsageError if this fails."""
    from labkit.memory.estimate.play import explain_failure

    spec = importlib.util.spec_from_file_location(MODULE_NAME, path.resolve())
    if spec is None or spec.loader is None:
        raise UsageError(
            f"{path} is not a Python file",
            cause="its name does not end in .py",
            fix="labkit estimate train.py:make_step",
        )
    module = importlib.util.module_from_spec(spec)
    sys.modules[MODULE_NAME] = module  # dataclasses and pickle look a module up by its name
    with _import_beside(path):
        try:
            spec.loader.exec_module(module)
        except SyntaxError as error:
            raise UsageError(
                f"{path} is not valid Python: {error.msg}",
                cause=f"{Path(error.filename or path).name}:{error.lineno}:"
                f" {(error.text or '').strip()}",
                fix=f"{name_python()} -m py_compile {shlex.quote(str(path))}",
            ) from error
        except (Exception, SystemExit) as error:
            raise explain_failure(str(path), error) from error
    return module


def find_function(module: ModuleType, name: str, path: Path) -> Callable[..., Any]:
    """The function of that name; raises UsageError with a near match where there is none."""
    found = getattr(module, name, None)
    if callable(found):
        return found  # type: ignore[no-any-return]
    own = [
        key
        for key, value in vars(module).items()
        if callable(value) and getattr(value, "__module__", None) == module.__name__
    ]
    near = near_match(name, own)
    raise UsageError(
        f"{path} has no function {name!r}",
        cause=f"its functions are: {', '.join(own) or 'none'}",
        fix=_name_command(f"{path}:{near or (own[0] if own else 'make_step')}"),
    )


@contextlib.contextmanager
def _import_beside(path: Path) -> Iterator[None]:
    """Lets the file import modules of its folder, as ``python FILE`` does."""
    sys.path.insert(0, str(path.resolve().parent))
    try:
        yield
    finally:
        sys.path.remove(str(path.resolve().parent))

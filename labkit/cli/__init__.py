"""The command line: one module for each family of commands, errors, exit codes, standard output."""

from __future__ import annotations

import argparse
import contextlib
import errno
import io
import json
import os
import sys
from collections.abc import Sequence
from typing import Any

from labkit import __version__
from labkit.errors import ExitCode, LabkitError, describe_error, format_error
from labkit.text import escape_controls, name_make

NARROWEST_BAR = 10


def can_print(text: str) -> bool:
    """True if the output's encoding has every character of the text."""
    try:
        text.encode(getattr(sys.stdout, "encoding", None) or "ascii")
    except UnicodeEncodeError:
        return False
    return True


def wants_color(*, refused: bool) -> bool:
    """True for a terminal with colors, unless ``refused`` or NO_COLOR is set."""
    refused = refused or bool(os.environ.get("NO_COLOR"))
    return is_terminal() and not refused and os.environ.get("TERM") != "dumb"


def is_terminal() -> bool:
    """True if the standard output is a terminal; False if it is closed."""
    return sys.stdout is not None and sys.stdout.isatty()


def fit_bar(widest: int, indent: int) -> int:
    """The width of a bar that fits a terminal's line after ``indent`` columns, at most ``widest``.

    Outside a terminal it is ``widest``.
    """
    if not is_terminal():
        return widest
    import shutil  # slow: it imports archive formats too

    return max(NARROWEST_BAR, min(widest, shutil.get_terminal_size().columns - indent))


def print_what_can_be() -> None:
    """Makes the output write ``?`` for a character that its encoding lacks, instead of raising.

    Names of files, processes and devices, and lines of code, can have any characters.
    """
    if isinstance(sys.stdout, io.TextIOWrapper) and sys.stdout.errors == "strict":
        sys.stdout.reconfigure(errors="replace")


SCHEMA_VERSION = 1

# Each family's module has add_commands(subparsers); only the requested module is imported.
FAMILIES = {
    "up": "launch",
    "down": "launch",
    "status": "launch",
    "logs": "launch",
    "devices": "devices",
    "doctor": "doctor",
    "prove": "prove",
    "memory": "memory",
    "history": "memory",
    "estimate": "memory",
    "run": "run",
    "report": "run",
    "compare": "run",
    "check": "learn",
    "progress": "learn",
    "reset": "learn",
    "shell": "launch",
    "exec": "launch",
    "serve": "launch",
    "lab": "launch",
    "hub": "launch",
    "build": "maintain",
    "test": "maintain",
    "lint": "maintain",
    "docs": "maintain",
    "lock": "maintain",
    "clean": "maintain",
}


# What starts containers, servers and shells, or looks at a host of theirs.
NOT_ON_WINDOWS = ("launch", "maintain", "prove")


# Arguments whose words are another program's; a command's own come with "command".
PASSED_ON = ("command", "words", "parameter")


class Parser(argparse.ArgumentParser):
    """An argument parser that raises labkit errors."""

    def error(self, message: str) -> None:  # type: ignore[override]
        """Raises a usage error instead of printing it, so that ``--json`` can report it."""
        from labkit.errors import UsageError

        raise UsageError(message, fix=f"{self.prog} --help")

    def _get_value(self, action: argparse.Action, arg_string: str) -> Any:
        """The argument's value; refuses an empty one, which as a path is the current folder."""
        if not arg_string and action.dest not in PASSED_ON:
            from labkit.errors import UsageError

            name = "/".join(action.option_strings) or action.metavar or action.dest
            raise UsageError(
                f"the value of {name} is empty",
                cause="a variable in the command line may have no value",
                fix=f"{self.prog} --help",
            )
        return super()._get_value(action, arg_string)  # type: ignore[misc]


def print_json(value: dict[str, object]) -> None:
    """Prints the one object of ``--json``, with its schema version first."""
    print(json.dumps({"schema_version": SCHEMA_VERSION, **value}, indent=2))


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs one command and returns its exit code; errors go to stderr, and to ``--json``."""
    words = list(sys.argv[1:] if arguments is None else arguments)
    print_what_can_be()
    try:
        return int(_run(words))
    except LabkitError as error:
        return _report(error, words)
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        if "--json" in words:
            stopped = {"what": "interrupted", "cause": None, "fix": None, "exit_code": 130}
            print_json({"error": stopped})
        return ExitCode.INTERRUPTED
    except BrokenPipeError:  # a subclass of OSError, so it comes first
        # The reader closed the pipe (`labkit logs | head`): not an error.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return ExitCode.OK
    except OSError as error:
        return _report(_explain_system_error(error), words)


def _explain_system_error(error: OSError) -> LabkitError:
    """The error for an OSError that no caller has explained."""
    where = f"{error.filename}: " if error.filename else ""
    full = error.errno in (errno.ENOSPC, errno.EDQUOT)
    explained = LabkitError(
        f"{where}{error.strerror or error}",
        cause="the disk is full" if full else "the system refused it",
        fix="df -h ." if full else "the same command with --debug",
    )
    explained.__cause__ = error
    return explained


def advise(text: str) -> str:
    """The text with commands as they can be typed here: make's lines, or this Python's."""
    from labkit.process import name_command

    return name_command(name_make(text))


def print_error(error: LabkitError) -> None:
    """Prints an error on standard error, with control characters (of a file name) as codes."""
    error.cause = advise(error.cause) if error.cause else None
    error.fix = advise(error.fix) if error.fix else None
    print(escape_controls(format_error(error)), file=sys.stderr)


def _report(error: LabkitError, words: Sequence[str]) -> int:
    if "--debug" in words:
        import traceback

        traceback.print_exception(error)
    print_error(error)
    if "--json" in words:
        with contextlib.suppress(OSError):  # the disk may be full; the error is on stderr
            print_json({"error": describe_error(error)})
    return int(error.exit_code)


def _run(words: list[str]) -> int:
    named = next((word for word in words if not word.startswith("-")), None)
    if named is not None and named not in FAMILIES:
        raise _unknown_command(named)
    parser = build_parser(named)
    # `labkit serve` passes unknown arguments on; for all other commands they are an error.
    arguments, further = parser.parse_known_args(words)
    arguments.further = further
    _refuse_windows(arguments)
    if further and not getattr(arguments, "passes_on", False):
        parser.error(f"unrecognized arguments: {' '.join(further)}")
    from labkit.process import end_like_interrupt

    # Else a `timeout` or a CI that stops would leave programs, kernels and containers running.
    with end_like_interrupt():
        return int(arguments.run(arguments))


def _refuse_windows(arguments: argparse.Namespace) -> None:
    """Raises EngineError for a command that needs Linux or macOS where this is Windows."""
    if sys.platform != "win32":
        return
    asked = vars(arguments)
    examines = asked["command"] == "doctor" and not asked["list"] and asked["explain"] is None
    starts_ranks = asked.get("nproc_per_node") is not None
    if not (examines or starts_ranks or FAMILIES[asked["command"]] in NOT_ON_WINDOWS):
        return
    from labkit.errors import EngineError

    command = asked["command"] + (" --nproc-per-node" if starts_ranks else "")
    raise EngineError(
        f"labkit {command} does not run on Windows",
        cause="it needs Linux, which WSL2 runs on Windows, with its GPU",
        fix="wsl --install   # then repeat the command in its terminal",
    )


def _unknown_command(named: str) -> LabkitError:
    from labkit.errors import UsageError
    from labkit.text import near_match

    near = near_match(named, FAMILIES)
    return UsageError(
        f"unknown command {named!r}",
        cause=f"the commands are: {', '.join(FAMILIES)}",
        fix=f"labkit {near}" if near else "labkit --help",
    )


def build_parser(named: str | None = None) -> Parser:
    """The parser of one command, or of all of them: shtab makes a shell's completion from it."""
    import importlib

    parser = Parser(prog="labkit", description="A GPU lab for PyTorch.")
    parser.add_argument("--version", action="version", version=f"labkit {__version__}")
    commands = parser.add_subparsers(dest="command", metavar="COMMAND", required=True)
    families = [FAMILIES[named]] if named in FAMILIES else dict.fromkeys(FAMILIES.values())
    for family in families:
        importlib.import_module(f"labkit.cli.{family}").add_commands(commands)
    return parser


def add_common(parser: argparse.ArgumentParser, *, as_json: bool = True) -> None:
    """The options that every command has: ``--debug``, ``--no-color`` and mostly ``--json``."""
    if as_json:
        parser.add_argument("--json", action="store_true", help="print one JSON object")
    parser.add_argument("--no-color", action="store_true", help="plain text (so does NO_COLOR)")
    parser.add_argument("--debug", action="store_true", help="show tracebacks")

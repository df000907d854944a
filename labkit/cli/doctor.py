"""``labkit doctor``: checks this host, explains error texts, and offers safe fixes."""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import functools
import io
import os
import select
import shlex
import shutil
import signal
import stat
import sys
import threading
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO, cast

from labkit.cli import add_common, advise, print_json
from labkit.errors import ExitCode, UsageError
from labkit.host.torch_builds import BUILDS
from labkit.text import escape_controls

if TYPE_CHECKING:
    from labkit.doctor.check import Host
    from labkit.doctor.run import Attempt, Examination, Offer
    from labkit.known_errors.match import Explanation

# The images to test GPU access with: the lab's own images and their base image.
IMAGES = (*(f"labkit:{name}" for name in BUILDS), "debian:bookworm-slim")

# A pipe that is still open after so long may never end: `tail -f` does not.
PIPE_SECONDS = 3
POLL_SECONDS = 0.2
STILL_OPEN = "still reading standard input: it is explained when it ends, or after Ctrl-C"


def add_commands(subparsers: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Adds ``doctor``."""
    parser = subparsers.add_parser(
        "doctor",
        help="check this host, or explain an error",
        description="Checks this host from the GPU on its bus to a compiled kernel, within 10 "
        "seconds (more on a busy machine), and changes nothing. Exits with 5 if a check failed. "
        "With --fix it offers to run the fixes that are safe. With --explain it names the causes "
        "of the errors in a log instead; it exits with 0 if it knows them or the log shows no "
        "error, and with 1 if the log shows an error that it does not know.",
    )
    what = parser.add_mutually_exclusive_group()
    what.add_argument(
        "--explain",
        nargs="?",
        const="-",
        metavar="FILE",
        help="explain the errors in a file (or in standard input)",
    )
    # A log that is named after another option, or without --explain.
    parser.add_argument("file", nargs="?", help=argparse.SUPPRESS)
    what.add_argument("--list", action="store_true", help="list the checks without running them")
    what.add_argument(
        "--fix", action="store_true", help="offer to run the fixes that are safe, one by one"
    )
    parser.add_argument("--yes", action="store_true", help="with --fix: run them without asking")
    parser.add_argument(
        "--deep", action="store_true", help="give torch.compile and containers minutes to finish"
    )
    parser.add_argument(
        "--offline", action="store_true", help="leave out checks that use the network"
    )
    parser.add_argument(
        "--quick", action="store_true", help="leave out those too, the engine's, and what computes"
    )
    add_common(parser)
    parser.set_defaults(run=run_doctor)


def run_doctor(arguments: argparse.Namespace) -> int:
    """Lists the checks, explains a text, examines the host or fixes it."""
    if arguments.yes and not arguments.fix:
        raise UsageError("--yes needs --fix", fix="labkit doctor --fix --yes")
    if arguments.file and arguments.explain == "-":
        arguments.explain = arguments.file
    elif arguments.file:
        raise UsageError(
            f"doctor takes no file: {escape_controls(arguments.file)}",
            cause="without --explain it checks this host",
            fix=f"labkit doctor --explain {shlex.quote(escape_controls(arguments.file))}",
        )
    if arguments.explain is not None:
        return explain(arguments)
    return list_checks(arguments) if arguments.list else examine(arguments)


def list_checks(arguments: argparse.Namespace) -> int:
    """Prints every check's name and title, in their order."""
    from labkit.doctor.checks import CHECKS

    if arguments.json:
        print_json({"checks": [{"check": each.name, "title": each.title} for each in CHECKS]})
    else:
        print("\n".join(f"{each.name:<18}{each.title}" for each in CHECKS))
    return ExitCode.OK


def explain(arguments: argparse.Namespace) -> int:
    """Prints the causes found in the text.

    Without one, it says that the text shows no error (exit 0), or none that is known by more than
    its form, or only one after which the log goes on (exit 1).
    After Ctrl-C it explains what standard input brought until then (exit 130).
    """
    from labkit.host.distribution import read_distribution
    from labkit.known_errors.match import explain_file, format_explanation
    from labkit.known_errors.unpack import LogContent

    name = "standard input" if arguments.explain == "-" else arguments.explain
    with open_log(arguments.explain) as log, LogContent(log) as content:
        before = stat_file(log)
        explanation = explain_file(cast("BinaryIO", content))
        change = before and describe_change(log, before)
    is_stopped = isinstance(log, StoppableInput) and log.is_stopped
    if not content.start and not is_stopped:
        refuse_empty(name)
    distribution = read_distribution()
    if not explanation.found and not explanation.has_failed and not content.is_text:
        raise UsageError(
            f"{name} is not text",
            fix="labkit doctor --explain FILE   # a file with a log, or - for standard input",
        )
    if arguments.json:
        print_json(explanation.describe(distribution))
    elif text := format_explanation(explanation, distribution):
        print(text)
    # They are the answer, too, but no part of an object.
    for line in list_remarks(explanation):
        print(advise(line), file=sys.stderr if arguments.json else sys.stdout)
    if change:
        print(f"{name} {change}", file=sys.stderr)
    if is_stopped:
        print("interrupted: only what came before is explained", file=sys.stderr)
        return ExitCode.INTERRUPTED
    has_failed = explanation.has_failed and not explanation.first
    return ExitCode.FAILED if has_failed else ExitCode.OK


def refuse_empty(name: str) -> None:
    """Raises UsageError for a log without a byte: a program's errors went past the pipe."""
    where = "a pipe" if name == "standard input" else "> FILE"
    raise UsageError(
        f"nothing was read: {escape_controls(name)} is empty",
        cause=f"programs print errors to stderr, which {where} does not receive without 2>&1",
        fix="your-command 2>&1 | labkit doctor --explain -",
    )


def list_remarks(explanation: Explanation) -> list[str]:
    """What to say beside the known errors: that there are none, or what is still unknown."""
    from labkit.known_errors.context import advise_unknown

    if explanation.first:
        return []
    if explanation.is_known_by_form:
        name = explanation.found[0].error.name
        shown = {each.line_number for each in explanation.found}
        message = explanation.message
        return [
            f"{name} is known by its form alone: the text's own words say more than the doctor",
            *(
                [f"line {message.number}: {message.line}"]
                if message and message.number not in shown
                else []
            ),
            advise_unknown(explanation.context, explanation.message),
        ]
    if failure := explanation.failure:
        said = explanation.message
        line = said.line if said else failure.line
        return [
            "the doctor does not know the error in this text",
            f"line {said.number if said else failure.line_number}: {line}",
            *([f"at: {said.where}"] if said and said.where and said.where not in line else []),
            advise_unknown(explanation.context, said),
        ]
    if explanation.found or explanation.has_failed:
        return []
    return [
        "no error found in this text",
        *(
            f"line {each.line_number}: {each.error.name}, but the log goes on after it"
            for each in explanation.passed
        ),
    ]


def stat_file(log: BinaryIO) -> os.stat_result | None:
    """The size and times of a log; None for a pipe or a terminal, which has none."""
    try:
        found = os.fstat(log.fileno())
    except (OSError, ValueError):  # not a file of the system's: a test's buffer
        return None
    return found if stat.S_ISREG(found.st_mode) else None


def describe_change(log: BinaryIO, before: os.stat_result) -> str | None:
    """What happened to a log's file while it was read; None if nothing did."""
    after = os.fstat(log.fileno())
    if after.st_size < max(before.st_size, os.lseek(log.fileno(), 0, os.SEEK_CUR)):
        return (
            "was cut short while it was read: parts are missing or joined wrongly here;"
            " explain it again"
        )
    if after.st_size > before.st_size:
        return (
            "grew while it was read: what its program wrote last may be missing here;"
            " explain it again when the program has ended"
        )
    if after.st_mtime_ns != before.st_mtime_ns or after.st_nlink < before.st_nlink:
        return "was written again while it was read: explain it again"
    return None


class StoppableInput(io.RawIOBase):
    """A pipe or terminal that also ends at Ctrl-C: what it brought until then is kept."""

    def __init__(self, descriptor: int) -> None:
        super().__init__()
        self._descriptor = descriptor
        self.is_stopped = False

    def fileno(self) -> int:
        """The descriptor that it reads."""
        return self._descriptor

    def read(self, size: int = -1) -> bytes:
        """So many bytes, fewer only at the end."""
        parts: list[bytes] = []
        while size > 0 and self._wait() and (part := os.read(self._descriptor, size)):
            parts.append(part)
            size -= len(part)
        return b"".join(parts)

    def _wait(self) -> bool:
        """True when there is something to read, false after Ctrl-C."""
        while not self.is_stopped:
            if select.select([self._descriptor], [], [], POLL_SECONDS)[0]:
                return True
        return False

    def stop(self, *_: object) -> None:
        """Ends the input, as the handler of SIGINT; the second time it ends the command."""
        if self.is_stopped:
            raise KeyboardInterrupt
        self.is_stopped = True


@contextlib.contextmanager
def end_at_interrupt(file: BinaryIO) -> Iterator[BinaryIO]:
    """The file, which ends at Ctrl-C; unchanged where no signal can be handled."""
    try:
        stoppable = StoppableInput(file.fileno())
        before = signal.signal(signal.SIGINT, stoppable.stop)
    except (OSError, ValueError):  # a buffer of a test, or not the main thread
        yield file
        return
    try:
        yield cast("BinaryIO", stoppable)
    finally:
        signal.signal(signal.SIGINT, before)


@contextlib.contextmanager
def open_log(name: str) -> Iterator[BinaryIO]:
    """A file, or standard input for "-", to read bytes from.

    Raises UsageError for a file that cannot be read.
    """
    from labkit.known_errors.unpack import UNPACK_ERRORS

    try:
        if name == "-":
            with _open_input() as file:
                yield file
        else:
            with Path(name).open("rb") as file:
                refuse_device(file, name)
                yield file
    except (OSError, *UNPACK_ERRORS) as error:
        raise UsageError(
            f"cannot read {name}: {getattr(error, 'strerror', None) or error}",
            fix="labkit doctor --explain FILE   # a file with a log, or - for standard input",
        ) from error


@contextlib.contextmanager
def _open_input() -> Iterator[BinaryIO]:
    if sys.stdin is None:  # the shell's <&-
        raise OSError("standard input is closed")
    refuse_device(sys.stdin.buffer, "standard input")
    waiting = threading.Timer(PIPE_SECONDS, print, (STILL_OPEN,), {"file": sys.stderr})
    waiting.daemon = True
    if sys.stdin.isatty():
        print("paste the log, then press Ctrl-D:", file=sys.stderr)
    else:
        waiting.start()
    try:
        with end_at_interrupt(sys.stdin.buffer) as log:
            yield log
    finally:
        waiting.cancel()


def refuse_device(file: BinaryIO, name: str) -> None:
    """Raises UsageError for a device, which may never end; a terminal and /dev/null do."""
    try:
        opened = os.fstat(file.fileno())
    except (OSError, ValueError):  # not a file of the system's: a test's buffer
        return
    kinds = {stat.S_IFCHR: "character device", stat.S_IFBLK: "block device"}
    kind = kinds.get(stat.S_IFMT(opened.st_mode))
    if kind and not file.isatty() and opened.st_rdev != Path(os.devnull).stat().st_rdev:
        raise UsageError(
            f"{name} is a {kind}, not a log: it may never end", fix="labkit doctor --explain FILE"
        )


def examine(arguments: argparse.Namespace) -> int:
    """Runs every check and prints the findings, failures last; exit code 5 if one failed.

    With ``--fix`` it then offers the fixes, and prints the findings after the fixes.
    """
    from labkit.doctor.checks import CHECKS, QUICK_CHECKS
    from labkit.doctor.run import examine_host

    host = make_host(deep=arguments.deep)
    checks = QUICK_CHECKS if arguments.quick else CHECKS
    examination = examine_host(host, checks, offline=arguments.offline)
    attempts: list[Attempt] = []
    if arguments.fix:
        if not arguments.json:
            show(examination)
        attempts, examination = mend(arguments, host, examination)
    if arguments.json:
        print_json(
            {
                "healthy": examination.healthy,
                "distribution": host.distribution.name,
                "counts": examination.count(),
                "checks": [finding.describe() for finding in examination.shown],
                "fixes": [each.describe() for each in attempts if each.offer.safe],
                "not_run": [each.describe_refusal() for each in attempts if not each.offer.safe],
            }
        )
    elif not arguments.fix or any(attempt.result for attempt in attempts):
        show(examination)
    return ExitCode.OK if examination.healthy else ExitCode.ENGINE


def show(examination: Examination) -> None:
    """Prints the findings for a person."""
    from labkit.doctor.run import format_examination

    columns = shutil.get_terminal_size().columns if sys.stdout.isatty() else None
    print(advise(format_examination(examination, columns)))


def mend(
    arguments: argparse.Namespace, host: Host, examination: Examination
) -> tuple[list[Attempt], Examination]:
    """Offers the fixes; returns the attempts and the findings after them.

    Raises UsageError if a fix needs confirmation and no person can be asked.
    """
    from labkit.doctor.checks import CHECKS
    from labkit.doctor.run import fix_host, list_offers
    from labkit.process import run_at_terminal, run_command

    asks = not arguments.yes
    if asks and (arguments.json or not sys.stdin.isatty()):
        commands = [
            shlex.join(offer.command)
            for offer in list_offers(examination.findings, host.machine.user_id)
            if offer.safe
        ]
        if commands:
            raise UsageError(
                f"--fix would run: {'; '.join(commands)}",
                cause="it cannot ask for confirmation: "
                + ("--json is for programs" if arguments.json else "this is not a terminal"),
                fix="labkit doctor --fix --yes",
            )
    return fix_host(
        lambda: make_host(deep=arguments.deep),
        CHECKS,
        examination,
        ask=ask_person if asks else announce,
        run=run_at_terminal if asks else run_command,
        report=lambda line: print(line, file=sys.stderr),
        may_ask=asks,
        offline=arguments.offline,
    )


def announce(offer: Offer) -> bool:
    """Shows the command that will run, and returns True."""
    does = offer.safe.does if offer.safe else ""
    print(f"{offer.finding.check}: {offer.finding.found}", file=sys.stderr)
    print(f"  {shlex.join(offer.command)}   # {does}", file=sys.stderr)
    return True


def ask_person(offer: Offer) -> bool:
    """Shows the command and asks whether to run it; only "y" and "yes" mean yes."""
    announce(offer)
    print("run it? [y/N] ", end="", file=sys.stderr, flush=True)
    return sys.stdin.readline().strip().lower() in ("y", "yes")


def make_host(*, deep: bool = False) -> Host:
    """The host for the checks: this machine, and the checkout's workspace, port and index."""
    from labkit.doctor.check import (
        PROBE_SECONDS,
        Host,
        OnceRunner,
        measure_patience,
        reach_url,
        run_probe,
    )
    from labkit.launch.settings import DEFAULT_PORT, find_checkout, read_settings
    from labkit.launch.state import read_state

    checkout = None
    with contextlib.suppress(UsageError):
        checkout = find_checkout()  # first: it reads .env
    settings = read_settings({})
    named = [os.environ.get(name) for name in ("LABKIT_IMAGE", "BASE_IMAGE")]
    patience = measure_patience()
    host = Host(
        run=OnceRunner(run_probe, PROBE_SECONDS * patience),
        patience=patience,
        deep=deep,
        images=(*filter(None, named), *IMAGES),
        port=settings.port or DEFAULT_PORT,
        port_asked=settings.port is not None,
        reach=functools.partial(reach_url, ca_file=os.environ.get("LABKIT_CA_FILE")),
        workspace=find_workspace(os.environ),
        indexes=find_indexes(os.environ),
    )
    if checkout is None:
        return host
    state = read_state(checkout)
    return dataclasses.replace(
        host,
        checkout=checkout.root,
        workspace=checkout.workspace,
        port=state.port if state and not host.port_asked else host.port,
        own_port=state.port if state else None,
        builds_torch=not os.environ.get("TORCH_INDEX"),
    )


def find_workspace(environment: Mapping[str, str]) -> Path | None:
    """The workspace without a checkout: known inside the lab, None elsewhere."""
    named = environment.get("LABKIT_WORKSPACE")
    inside = "/work" if environment.get("LABKIT_IN_CONTAINER") else None
    place = named or inside
    return Path(place) if place else None


def find_indexes(environment: Mapping[str, str]) -> tuple[str, ...]:
    """The package indexes that environment variables name."""
    names = ("TORCH_INDEX", "PYPI_INDEX", "PIP_INDEX_URL")
    return tuple(filter(None, map(environment.get, names)))

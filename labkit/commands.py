"""The one door to other programs: every call has a time limit, and none outlives it.

A program that is missing, slow or killed is an answer here, not an exception: probes must
never hang or crash on a broken host.
"""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from labkit.errors import UsageError

Line = Callable[[str], None]


@dataclass(frozen=True)
class CommandResult:
    """What a program did: its exit code (None where it never ended by itself) and its words."""

    arguments: tuple[str, ...]
    exit_code: int | None
    stdout: str = ""
    stderr: str = ""
    seconds: float = 0.0
    missing: bool = False
    timed_out: bool = False

    @property
    def ok(self) -> bool:
        """True where the program ran and ended with 0."""
        return self.exit_code == 0

    @property
    def message(self) -> str:
        """The one line that says most: its last error line, or why there is none."""
        if self.missing:
            return f"{self.arguments[0]}: command not found"
        if self.timed_out:
            return f"{self.arguments[0]} did not answer in {self.seconds:.0f} s"
        lines = [line.strip() for line in (self.stderr or self.stdout).splitlines()]
        return next((line for line in reversed(lines) if line), f"exit code {self.exit_code}")


class CommandRunner(Protocol):
    """What probes call to run a program; tests play a fake host through it."""

    def __call__(self, arguments: Sequence[str], *, timeout_seconds: float) -> CommandResult:
        """Runs the program and returns what it did, within the limit."""
        ...


def run_command(
    arguments: Sequence[str],
    *,
    timeout_seconds: float,
    environment: Mapping[str, str] | None = None,
    folder: Path | None = None,
) -> CommandResult:
    """What the program printed and how it ended; missing and timed out are results too."""
    started = time.monotonic()
    try:
        process = _start(arguments, environment, folder, stderr=subprocess.PIPE)
    except OSError:
        return CommandResult(tuple(arguments), None, missing=True)
    try:
        stdout, stderr = process.communicate(timeout=timeout_seconds)
    except subprocess.TimeoutExpired:
        _end_group(process)
        return CommandResult(
            tuple(arguments), None, seconds=time.monotonic() - started, timed_out=True
        )
    except BaseException:
        _end_group(process)
        raise
    finally:
        _close_pipes(process)
    seconds = time.monotonic() - started
    return CommandResult(tuple(arguments), process.returncode, stdout, stderr, seconds)


def stream_command(
    arguments: Sequence[str],
    *,
    timeout_seconds: float,
    on_line: Line,
    environment: Mapping[str, str] | None = None,
    folder: Path | None = None,
) -> CommandResult:
    """Runs a long program, handing over each line of its output (both streams) as it comes.

    On Ctrl-C or past the limit the program and all its children are ended before this returns.
    """
    started = time.monotonic()
    try:
        process = _start(arguments, environment, folder, stderr=subprocess.STDOUT)
    except OSError:
        return CommandResult(tuple(arguments), None, missing=True)
    expired = threading.Event()

    def expire() -> None:
        expired.set()
        _end_group(process)

    alarm = threading.Timer(timeout_seconds, expire)
    alarm.daemon = True
    alarm.start()
    try:
        for line in process.stdout or ():
            on_line(line.rstrip("\n"))
        process.wait()
    except BaseException:
        _end_group(process)
        raise
    finally:
        alarm.cancel()
        alarm.join()
        _close_pipes(process)
    seconds = time.monotonic() - started
    exit_code = None if expired.is_set() else process.returncode
    return CommandResult(tuple(arguments), exit_code, seconds=seconds, timed_out=expired.is_set())


def replace_process(arguments: Sequence[str], environment: Mapping[str, str] | None = None) -> None:
    """Becomes the program: its exit code, signals and terminal are this process's own.

    Raises UsageError where there is no such program.
    """
    try:
        os.execvpe(arguments[0], list(arguments), dict(environment or os.environ))  # noqa: S606
    except OSError as error:
        raise UsageError(
            f"cannot run {arguments[0]}: {error.strerror}",
            cause="it is not installed here, or not on PATH",
            fix=f"command -v {arguments[0]}",
        ) from error


def _start(
    arguments: Sequence[str],
    environment: Mapping[str, str] | None,
    folder: Path | None,
    stderr: int,
) -> subprocess.Popen[str]:
    return subprocess.Popen(
        list(arguments),
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=stderr,
        env=dict(environment) if environment is not None else None,
        cwd=folder,
        text=True,
        errors="replace",
        start_new_session=True,  # so that a limit or Ctrl-C can end its children too
    )


def _end_group(process: subprocess.Popen[str], grace_seconds: float = 5.0) -> None:
    """Ends the program's whole process group: politely, then for certain.

    The second signal goes out even where the program has ended by then: a child of its may have
    ignored the first.
    """
    for sign in (signal.SIGTERM, signal.SIGKILL):
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(process.pid, sign)
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(timeout=grace_seconds)


def _close_pipes(process: subprocess.Popen[str]) -> None:
    """Closes what is left open; only ever by the thread that reads, which may be in the middle."""
    for pipe in (process.stdout, process.stderr):
        if pipe:
            pipe.close()

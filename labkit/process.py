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
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Protocol

from labkit.errors import UsageError

Line = Callable[[str], None]

# How long a program that is asked to end may take over it.
GRACE_SECONDS = 5.0
# What is kept of each stream of a probed program; a flood beyond it is read and let go.
KEPT_BYTES = 4 * 2**20
# How long the last words of a program that was ended are waited for: a child of its that left
# its process group may hold the pipe open.
LAST_WORDS_SECONDS = 1.0


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
        return next((line for line in reversed(lines) if line), self._describe_end())

    def _describe_end(self) -> str:
        if self.exit_code is not None and self.exit_code < 0:
            with contextlib.suppress(ValueError):  # a number that no signal here has
                return f"{self.arguments[0]} was killed by {signal.Signals(-self.exit_code).name}"
        return f"exit code {self.exit_code}"


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
    grace_seconds: float = GRACE_SECONDS,
) -> CommandResult:
    """What the program printed (at most 4 MiB of each stream) and how it ended.

    Missing and timed out are results too; the latter has what was printed by then. Past its limit
    a program has ``grace_seconds`` to end by itself.
    """
    started = time.monotonic()
    try:
        process = _start(arguments, environment, folder, stderr=subprocess.PIPE)
    except OSError:
        return CommandResult(tuple(arguments), None, missing=True)
    try:
        streams = [_Stream(process.stdout), _Stream(process.stderr)]
        timed_out = not _wait(process, streams, started + timeout_seconds)
    except BaseException:
        _end_group(process)
        raise
    seconds = time.monotonic() - started
    if timed_out:
        _end_group(process, grace_seconds)
        for stream in streams:
            stream.join(LAST_WORDS_SECONDS)
    return CommandResult(
        tuple(arguments),
        None if timed_out else process.returncode,
        stdout=streams[0].text,
        stderr=streams[1].text,
        seconds=seconds,
        timed_out=timed_out,
    )


def run_at_terminal(arguments: Sequence[str], *, timeout_seconds: float) -> CommandResult:
    """How a program ended that may ask the person at the terminal, as sudo asks for a password.

    It keeps this process's terminal, so Ctrl-C reaches it too, and what it prints is seen there
    (on standard error: standard output is for results) and not kept.
    """
    started = time.monotonic()
    try:
        done = subprocess.run(list(arguments), stdout=2, timeout=timeout_seconds, check=False)
    except OSError:
        return CommandResult(tuple(arguments), None, missing=True)
    except subprocess.TimeoutExpired:
        seconds = time.monotonic() - started
        return CommandResult(tuple(arguments), None, seconds=seconds, timed_out=True)
    seconds = time.monotonic() - started
    return CommandResult(tuple(arguments), done.returncode, seconds=seconds)


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
    expired = threading.Event()

    def expire() -> None:
        expired.set()
        _end_group(process)

    alarm = threading.Timer(timeout_seconds, expire)
    alarm.daemon = True
    try:
        process = _start(arguments, environment, folder, stderr=subprocess.STDOUT)
    except OSError:
        return CommandResult(tuple(arguments), None, missing=True)
    # Nothing between the start and here: a Ctrl-C that came there would leave the program behind.
    try:
        alarm.start()
        for line in process.stdout or ():
            on_line(line.rstrip("\n"))
        process.wait()
    except BaseException:
        _end_group(process)
        raise
    finally:
        alarm.cancel()
        if alarm.ident is not None:
            alarm.join()
        _close_pipes(process)
    seconds = time.monotonic() - started
    exit_code = None if expired.is_set() else process.returncode
    return CommandResult(tuple(arguments), exit_code, seconds=seconds, timed_out=expired.is_set())


@contextlib.contextmanager
def end_like_interrupt() -> Iterator[None]:
    """Has SIGTERM (``docker stop``, CI) and SIGHUP (a lost terminal) end the block as Ctrl-C does.

    What was started in it is undone, and results are written. A signal that somebody else has
    chosen for is left to them, as nohup's is.
    """
    before = {}
    if threading.current_thread() is threading.main_thread():
        for number in (signal.SIGTERM, signal.SIGHUP):
            if signal.getsignal(number) is signal.SIG_DFL:
                before[number] = signal.signal(number, signal.default_int_handler)
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


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


class _Stream(threading.Thread):
    """Reads a program's stream to its end, so that it never waits for a reader; keeps a part.

    The thread closes the pipe itself: closed by another in the middle of a read, its number could
    be a new file's by then.
    """

    def __init__(self, pipe: IO[str] | None) -> None:
        super().__init__(daemon=True)
        self._pipe = pipe
        self._kept = bytearray()
        self.start()

    def run(self) -> None:
        """Reads until nobody holds the other end."""
        with contextlib.suppress(OSError, ValueError), self._pipe or contextlib.nullcontext():
            while self._pipe and (block := os.read(self._pipe.fileno(), 65536)):
                self._kept += block[: KEPT_BYTES - len(self._kept)]

    @property
    def text(self) -> str:
        """What was kept of it so far; what is not UTF-8 is shown as such."""
        text = bytes(self._kept).decode(errors="replace")
        return text.replace("\r\n", "\n").replace("\r", "\n")


def _wait(process: subprocess.Popen[str], streams: Sequence[_Stream], deadline: float) -> bool:
    """True once the program has ended and all it wrote is read; False at the deadline."""
    for stream in streams:
        stream.join(max(0.0, deadline - time.monotonic()))
    try:
        process.wait(max(0.0, deadline - time.monotonic()))
    except subprocess.TimeoutExpired:
        return False
    return not any(stream.is_alive() for stream in streams)


def _end_group(process: subprocess.Popen[str], grace_seconds: float = GRACE_SECONDS) -> None:
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

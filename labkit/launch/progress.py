"""Shows the progress of long steps, and writes their full output to a log that errors quote.

On a terminal the line of the running step is redrawn; elsewhere a new line is printed every 15 s.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import sys
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator
from pathlib import Path
from types import TracebackType
from typing import TextIO

from labkit.errors import EngineError, LabkitError
from labkit.host.distribution import read_distribution
from labkit.known_errors.match import explain_text
from labkit.launch.state import open_private
from labkit.process import name_command
from labkit.text import escape_controls, format_clock, strip_ansi

HEARTBEAT_SECONDS = 15.0
TICK_SECONDS = 0.2


class Step:
    """A running step: its title, its progress and its start time."""

    def __init__(self, title: str, clock: Callable[[], float]) -> None:
        self.title = title
        self.detail = ""
        self._clock = clock
        self._started = clock()

    @property
    def seconds(self) -> float:
        """How long the step has been running."""
        return self._clock() - self._started

    def note(self, detail: str) -> None:
        """Sets the step's progress, such as "package 12 of 118"."""
        self.detail = detail

    def __str__(self) -> str:
        middle = f": {self.detail}" if self.detail else ""
        return f"{self.title}{middle}  {format_clock(self.seconds)}"


class Steps:
    """Prints steps and messages to ``stream``, standard error by default.

    Control characters are escaped, because messages contain file names and program output.
    """

    def __init__(
        self,
        stream: TextIO | None = None,
        *,
        terminal: bool | None = None,
        clock: Callable[[], float] = time.monotonic,
        heartbeat_seconds: float = HEARTBEAT_SECONDS,
    ) -> None:
        self._stream = stream or sys.stderr
        self._terminal = self._stream.isatty() if terminal is None else terminal
        self._clock = clock
        self._heartbeat_seconds = heartbeat_seconds
        self._lock = threading.Lock()

    def say(self, text: str) -> None:
        """Prints one message, above the line of the running step."""
        with self._lock:
            self._clear()
            print(escape_controls(name_command(text)), file=self._stream, flush=True)

    @contextlib.contextmanager
    def step(self, title: str) -> Iterator[Step]:
        """Shows ``title`` while the block runs, then how long it took."""
        step = Step(title, self._clock)
        done = threading.Event()
        if not self._terminal:
            self.say(f"{title} ...")
        ticker = threading.Thread(target=self._tick, args=(step, done), daemon=True)
        ticker.start()
        try:
            yield step
        except BaseException:
            self._end(done, ticker, f"{title}: stopped after {format_clock(step.seconds)}")
            raise
        self._end(done, ticker, f"{title}: done in {format_clock(step.seconds)}")

    def _tick(self, step: Step, done: threading.Event) -> None:
        """Redraws the line on a terminal; elsewhere prints it every 15 s."""
        if self._terminal:
            while not done.wait(TICK_SECONDS):
                self._redraw(str(step))
            return
        while not done.wait(self._heartbeat_seconds):
            self.say(f"  {step}")

    def _redraw(self, line: str) -> None:
        width = shutil.get_terminal_size().columns
        with self._lock:
            self._clear()
            self._stream.write(escape_controls(line)[: width - 1])
            self._stream.flush()

    def _clear(self) -> None:
        if self._terminal:
            self._stream.write("\r\x1b[K")

    def _end(self, done: threading.Event, ticker: threading.Thread, line: str) -> None:
        done.set()
        ticker.join()
        self.say(line)


QUOTED_LINES = 12


class StepLog:
    """Writes a step's output to ``path`` and keeps its last lines, which errors quote."""

    def __init__(self, path: Path, on_line: Callable[[str], None] | None = None) -> None:
        self.path = path
        self._last: deque[str] = deque(maxlen=400)
        self._on_line = on_line
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        self._file = os.fdopen(open_private(path, os.O_TRUNC), "w", encoding="utf-8")

    def __enter__(self) -> StepLog:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        with contextlib.suppress(OSError):
            self._file.close()

    def write(self, line: str) -> None:
        """Adds one line of output."""
        # On a full disk, errors still quote the last lines: they are in memory.
        with contextlib.suppress(OSError):
            self._file.write(line + "\n")
            self._file.flush()
        self._last.append(line)
        if self._on_line:
            self._on_line(line)

    def failure(self, what: str, fix: str) -> LabkitError:
        """The error of a failed step: its last lines, the log's path, and the cause if known."""
        return explain_failure(what, list(self._last), self.path, fix)


def explain_failure(what: str, lines: list[str], path: Path, fix: str) -> LabkitError:
    """An EngineError with the end of ``lines`` and the cause of a known error found in them."""
    # Only a certain match is named here; `labkit doctor --explain` lists the possible ones too.
    found = explain_text("\n".join(lines), signs={"lab"}).sure
    known = found.error if found else None
    shown = [escape_controls(strip_ansi(line)) for line in lines[-QUOTED_LINES:] if line.strip()]
    quoted = "\n".join(f"  | {line}" for line in shown)
    return EngineError(
        f"{what}\n{quoted}\n  the whole log: {path}" if quoted else f"{what} (log: {path})",
        cause=known.cause if known else None,
        fix=known.fix.on(read_distribution()) if known else fix,
    )

"""The full output of a long step, in a file that an error names and quotes the end of."""

from __future__ import annotations

import contextlib
from collections import deque
from collections.abc import Callable
from pathlib import Path
from types import TracebackType

from labkit.errors import EngineError, LabkitError

QUOTED_LINES = 12

# A text in a failed step's output, and what it means: cause and next command.
SIGNS = (
    ("no space left on device", "the disk is full", "df -h && docker system prune"),
    ("temporary failure in name resolution", "no name server answers from here", "check DNS"),
    ("could not resolve", "no name server answers from here", "check DNS and the proxy settings"),
    (
        "certificate verify failed",
        "something between here and the package index changes certificates (a company proxy?)",
        "ask for that proxy's certificate",
    ),
    (
        "do not match the hashes",
        "a downloaded package is not the one that was locked",
        "check the package index or proxy in use, then: make lock",
    ),
    (
        "no matching distribution found",
        "the package index has no build of a locked package for this Python and machine",
        "use Python 3.10 to 3.14 on x86-64 or ARM64, or a container engine",
    ),
    (
        "ensurepip is not available",
        "this Python came without the venv module's own files",
        "sudo apt-get install python3-venv",
    ),
)


class StepLog:
    """Collects a step's output in ``path`` and keeps its last lines for an error to quote."""

    def __init__(self, path: Path, on_line: Callable[[str], None] | None = None) -> None:
        self.path = path
        self._last: deque[str] = deque(maxlen=400)
        self._on_line = on_line
        path.parent.mkdir(parents=True, exist_ok=True)
        self._file = path.open("w", encoding="utf-8")

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
        # A full disk must not hide what the step says: its last lines are quoted from memory.
        with contextlib.suppress(OSError):
            self._file.write(line + "\n")
            self._file.flush()
        self._last.append(line)
        if self._on_line:
            self._on_line(line)

    def failure(self, what: str, fix: str) -> LabkitError:
        """The error for a step that failed: its last lines, the file, and a cause where known."""
        return explain_failure(what, list(self._last), self.path, fix)


def explain_failure(what: str, lines: list[str], path: Path, fix: str) -> LabkitError:
    """An EngineError that quotes the end of ``lines`` and names the sign found in them."""
    text = "\n".join(lines).lower()
    cause, known_fix = next(
        ((cause, fix) for sign, cause, fix in SIGNS if sign in text), (None, fix)
    )
    quoted = "\n".join(f"  | {line}" for line in lines[-QUOTED_LINES:] if line.strip())
    return EngineError(
        f"{what}\n{quoted}\n  the whole log: {path}" if quoted else f"{what} (log: {path})",
        cause=cause,
        fix=known_fix,
    )

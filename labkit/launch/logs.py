"""The full output of a long step, in a file that an error names and quotes the end of."""

from __future__ import annotations

import contextlib
from collections import deque
from collections.abc import Callable
from pathlib import Path
from types import TracebackType

from labkit.doctor.distribution import read_distribution
from labkit.doctor.explain import explain_text
from labkit.errors import EngineError, LabkitError

QUOTED_LINES = 12


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
    # A mere possibility is for `labkit doctor --explain` to tell of: here one cause is named.
    found = explain_text("\n".join(lines)).sure
    sign = found.sign if found else None
    quoted = "\n".join(f"  | {line}" for line in lines[-QUOTED_LINES:] if line.strip())
    return EngineError(
        f"{what}\n{quoted}\n  the whole log: {path}" if quoted else f"{what} (log: {path})",
        cause=sign.cause if sign else None,
        fix=sign.fix.on(read_distribution()) if sign else fix,
    )

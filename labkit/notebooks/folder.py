"""The run folder, written as the run goes: a crash leaves what was known by then."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import os
import threading
import time
from collections.abc import Mapping
from datetime import datetime
from pathlib import Path
from typing import Any

from labkit.errors import UsageError
from labkit.notebooks.result import NotebookResult, RunResult, describe_run

RESULT = "result.json"
SCHEMA_VERSION = 1
DEFAULT_PARENT = Path("runs")
# Between two writings while the run goes on: nothing that watches the file needs more.
PAUSE_SECONDS = 1.0


class RunFolder:
    """One run's folder: ``result.json`` (always whole) and the executed notebooks.

    A writing that fails does not end the run: ``trouble`` says what the first one met with.
    """

    def __init__(
        self, path: Path, environment: Mapping[str, object], results: list[NotebookResult]
    ) -> None:
        self.path = path
        self.trouble: OSError | None = None
        self._environment = environment
        self._results = list(results)
        self._started = time.monotonic()
        self.started_at = datetime.now().astimezone().isoformat(timespec="seconds")
        self._lock = threading.Lock()
        self._written = 0.0

    def follow(self, place: int, result: NotebookResult, notebook: Any = None) -> None:
        """Notes a notebook's result so far, and the notebook itself; on disk in about a second."""
        with self._lock:
            self._results[place] = result
            now = time.monotonic()
            if result.status == "running" and now - self._written < PAUSE_SECONDS:
                return
            self._written = now
            # Until the end, a run "runs": also between two notebooks.
            run = RunResult(
                self._environment, tuple(self._results), self.started_at, now - self._started
            )
            self._write(RESULT, format_result({**describe_run(run), "status": "running"}))
            if notebook is not None:
                self._write_notebook(result, notebook)

    def keep(self, place: int, result: NotebookResult, notebook: Any) -> NotebookResult:
        """Writes the executed notebook, and returns the result with the name of its file."""
        with self._lock:
            if not self._write_notebook(result, notebook):
                return result
        return dataclasses.replace(result, executed=f"{result.name}.ipynb")

    def finish(self, run: RunResult) -> None:
        """Writes the result of the whole run."""
        with self._lock:
            self._write(RESULT, format_result(describe_run(run)))

    def _write_notebook(self, result: NotebookResult, notebook: Any) -> bool:
        import nbformat

        return self._write(f"{result.name}.ipynb", nbformat.writes(notebook))

    def _write(self, name: str, text: str) -> bool:
        try:
            write_whole(self.path / name, text)
        except OSError as error:
            self.trouble = self.trouble or error
            return False
        return True


def make_run_folder(asked: Path | None, now: datetime | None = None) -> Path:
    """The folder asked for, or a new one under ``runs/`` named for the date and time.

    UsageError where it cannot be made or written, or where another run is in it.
    """
    if asked is not None:
        _claim(asked, f"--output {asked}")
        return asked
    stamp = f"{now or datetime.now():%Y-%m-%d-%H%M%S}"
    for number in range(1, 1000):
        path = DEFAULT_PARENT / (stamp if number == 1 else f"{stamp}-{number}")
        # Two runs in one second: the second gets a name of its own.
        with contextlib.suppress(FileExistsError):
            _make(path, f"the run folder {path}", exist_ok=False)
            _claim(path, f"the run folder {path}")
            return path
    raise UsageError(f"{DEFAULT_PARENT} has too many runs of {stamp}")


def write_whole(path: Path, text: str) -> None:
    """Writes a file so that whoever reads it sees the old one or the new one, whole."""
    draft = path.with_name(f".{path.name}.part")
    try:
        draft.write_text(text, encoding="utf-8")
        draft.replace(path)
    except OSError:
        with contextlib.suppress(OSError):
            draft.unlink()
        raise


def format_result(described: Mapping[str, object]) -> str:
    """The text of ``result.json``."""
    return json.dumps({"schema_version": SCHEMA_VERSION, **described}) + "\n"


def _make(path: Path, name: str, *, exist_ok: bool) -> None:
    try:
        path.mkdir(parents=True, exist_ok=exist_ok)
    except FileExistsError:
        if not exist_ok:
            raise
        raise UsageError(f"{name} cannot be made", cause="a file of that name is there") from None
    except OSError as error:
        raise UsageError(f"{name} cannot be made", cause=error.strerror) from error


def _claim(path: Path, name: str) -> None:
    """Makes the folder this run's own: the empty result file can be made by one run only."""
    _make(path, name, exist_ok=True)
    try:
        os.close(os.open(path / RESULT, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o644))
    except FileExistsError:
        raise UsageError(
            f"{name} already holds a run",
            cause=f"{path / RESULT} is there",
            fix="another --output, or take the old run away first",
        ) from None
    except OSError as error:
        raise UsageError(f"{name} cannot be written", cause=error.strerror) from error

"""What a learner has passed: a readable progress.json in the workspace, keyed by exercise name."""

from __future__ import annotations

import json
import os
from dataclasses import asdict, dataclass, replace
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

from labkit.files import (
    Disk,
    dated_name,
    explain_disk_errors,
    hold_lock,
    move_new,
    write_atomically,
)

WORKSPACE_VARIABLE = "LABKIT_WORKSPACE"
FILE_NAME = "progress.json"
STATE_FOLDER = ".labkit"


@dataclass(frozen=True)
class Standing:
    """Where a learner stands with one exercise: when it was first passed, after how many tries."""

    passed: str | None = None  # ISO time of the first pass
    attempts: int = 0


@dataclass(frozen=True)
class Progress:
    """Every exercise that was tried, by full name; ``note`` says what was wrong with the file."""

    exercises: dict[str, Standing]
    note: str | None = None

    def standing(self, name: str) -> Standing:
        """The standing with that exercise; one never tried has no pass and no attempts."""
        return self.exercises.get(name, Standing())


def find_workspace(start: Path | None = None) -> Path | None:
    """The learner's folder: LABKIT_WORKSPACE, or the nearest one above that labkit made.

    None where there is neither; then nothing is recorded.
    """
    named = os.environ.get(WORKSPACE_VARIABLE)
    if named:
        return Path(named) if Path(named).is_dir() else None
    here = (start or Path.cwd()).resolve()
    for folder in (here, *here.parents):
        if (folder / STATE_FOLDER / "manifest.json").is_file():
            return folder
    return None


def read_progress(workspace: Path) -> Progress:
    """The progress recorded in the workspace, changing nothing; a broken file reads as empty."""
    path = workspace / FILE_NAME
    try:
        return Progress(_parse(path.read_bytes()))
    except FileNotFoundError:
        return Progress({})
    except (OSError, ValueError) as error:
        return Progress({}, f"{FILE_NAME} could not be read ({error})")


def record_attempt(
    workspace: Path,
    name: str,
    *,
    passed: bool,
    now: datetime | None = None,
    disk: Disk | None = None,
) -> tuple[Standing, str | None]:
    """The new standing after one more attempt, and a note where a broken file was set aside.

    A pass stays a pass: a later failure does not take it back.
    """
    now = now or datetime.now(timezone.utc).astimezone()
    disk = disk or Disk()
    state = workspace / STATE_FOLDER
    with explain_disk_errors(workspace):
        disk.make_folder(state)
        with hold_lock(state / "progress.lock"):
            progress = read_progress(workspace)
            note = progress.note
            if note:
                note = _set_aside(disk, workspace / FILE_NAME, now)
            old = progress.standing(name)
            new = replace(old, attempts=old.attempts + 1)
            if passed and new.passed is None:
                new = replace(new, passed=now.isoformat(timespec="seconds"))
            exercises = {**progress.exercises, name: new}
            write_atomically(disk, workspace / FILE_NAME, _format(exercises), state)
    return new, note


def _set_aside(disk: Disk, path: Path, now: datetime) -> str:
    kept = dated_name(path, "broken", now)
    if path.is_symlink():
        disk.replace(path, kept)
    else:
        move_new(disk, path, kept)
    return f"{FILE_NAME} could not be read: it was kept as {kept.name}, and a new one begun"


def _parse(data: bytes) -> dict[str, Standing]:
    value: Any = json.loads(data)
    entries = value.get("exercises") if isinstance(value, dict) else None
    if not isinstance(entries, dict):
        raise ValueError("it holds no exercises")
    return {name: _parse_standing(entry) for name, entry in entries.items()}


def _parse_standing(entry: Any) -> Standing:
    if not isinstance(entry, dict):
        raise ValueError("an exercise's entry is no object")
    passed, attempts = entry.get("passed"), entry.get("attempts", 0)
    if not isinstance(passed, str | None) or not isinstance(attempts, int):
        raise ValueError("an exercise's entry has the wrong kinds of values")
    return Standing(passed, attempts)


def _format(exercises: dict[str, Standing]) -> bytes:
    entries = {name: asdict(exercises[name]) for name in sorted(exercises)}
    return (json.dumps({"schema_version": 1, "exercises": entries}, indent=2) + "\n").encode()

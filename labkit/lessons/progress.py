"""Records what a learner passed: progress.json in the workspace, keyed by exercise name."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, field, replace
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

from labkit.files import (
    STATE_FOLDER,
    Disk,
    dated_name,
    explain_disk_errors,
    hold_lock,
    move_new,
    write_atomically,
)

FILE_NAME = "progress.json"


@dataclass(frozen=True)
class Standing:
    """A learner's progress in one exercise: the time of the first pass, and the attempts."""

    passed: str | None = None  # ISO time of the first pass
    attempts: int = 0


@dataclass(frozen=True)
class Progress:
    """Every attempted exercise, by full name; ``note`` says why the file could not be read.

    ``document`` is the parsed file: unknown fields are written back.
    """

    exercises: dict[str, Standing]
    note: str | None = None
    document: dict[str, Any] = field(default_factory=dict, compare=False, repr=False)

    def standing(self, name: str) -> Standing:
        """The standing of that exercise; without attempts, it has no pass and 0 attempts."""
        return self.exercises.get(name, Standing())


def read_progress(workspace: Path) -> Progress:
    """Reads the workspace's progress and changes nothing; a broken file gives empty progress."""
    try:
        document = json.loads((workspace / FILE_NAME).read_bytes())
        return Progress(_parse(document), None, document)
    except FileNotFoundError:
        return Progress({})
    except (OSError, ValueError, RecursionError) as error:
        return Progress({}, f"{FILE_NAME} could not be read ({error})")


def record_attempt(
    workspace: Path,
    name: str,
    *,
    passed: bool,
    now: datetime | None = None,
    disk: Disk | None = None,
) -> tuple[Standing, str | None]:
    """The new standing after one more attempt, and a note if a broken file was set aside.

    A later failure does not remove a recorded pass.
    """
    now = now or datetime.now(timezone.utc).astimezone()
    disk = disk or Disk()
    path, state = workspace / FILE_NAME, workspace / STATE_FOLDER
    with explain_disk_errors(workspace):
        disk.make_folder(state)
        # Takes the lock of updates too, because an update removes all drafts.
        with hold_lock(state / "lock"):
            progress = read_progress(workspace)
            new = _count_attempt(progress.standing(name), passed, now)
            note = None
            try:
                data = _format(progress.document, name, new)
            except RecursionError:  # parsed, and nested too deeply to be written
                progress = Progress({}, "it is nested too deeply")
                new = _count_attempt(Standing(), passed, now)
                data = _format({}, name, new)
            if progress.note:
                note = _set_aside(disk, path, now)
            write_atomically(path, data, disk=disk, scratch=state)
    return new, note


def _count_attempt(old: Standing, passed: bool, now: datetime) -> Standing:
    new = replace(old, attempts=old.attempts + 1)
    if passed and new.passed is None:
        new = replace(new, passed=now.isoformat(timespec="seconds"))
    return new


def _set_aside(disk: Disk, path: Path, now: datetime) -> str:
    kept = dated_name(path, "broken", now)
    move_new(disk, path, kept)
    return f"{FILE_NAME} could not be read: it was kept as {kept.name}, and a new one was started"


def _parse(document: Any) -> dict[str, Standing]:
    entries = document.get("exercises") if isinstance(document, dict) else None
    if not isinstance(entries, dict):
        raise ValueError("it holds no exercises")
    return {name: _parse_standing(entry) for name, entry in entries.items()}


def _parse_standing(entry: Any) -> Standing:
    if not isinstance(entry, dict):
        raise ValueError("an exercise's entry is not an object")
    passed, attempts = entry.get("passed"), entry.get("attempts", 0)
    if not isinstance(passed, str | None) or not isinstance(attempts, int):
        raise ValueError("an exercise's entry has values of the wrong types")
    return Standing(passed, attempts)


def _format(document: dict[str, Any], name: str, standing: Standing) -> str:
    entries = document.get("exercises", {})
    entries = {**entries, name: {**entries.get(name, {}), **asdict(standing)}}
    ordered = {key: entries[key] for key in sorted(entries)}
    return json.dumps({"schema_version": 1, **document, "exercises": ordered}, indent=2) + "\n"

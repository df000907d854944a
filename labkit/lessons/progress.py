"""Records what a learner passed and predicted: progress.json in the workspace, keyed by name."""

from __future__ import annotations

import errno
import json
import os
import stat
from collections.abc import Callable, Collection, Mapping
from dataclasses import asdict, dataclass, field, fields, replace
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

from labkit.files import (
    LARGEST_RECORD_BYTES,
    STATE_FOLDER,
    Disk,
    WrongKindError,
    dated_name,
    explain_disk_errors,
    hold_lock,
    move_new,
    read_regular,
    write_atomically,
)

FILE_NAME = "progress.json"


@dataclass(frozen=True)
class Standing:
    """A learner's progress in one exercise; times are ISO texts.

    ``passed`` is the time of the first pass, and ``by`` the notebook that earned it. ``failures``
    counts failed attempts with another answer than the failed one before, ``failed`` is the digest
    of that one. ``seen`` is when the solution was shown before a pass.
    """

    passed: str | None = None
    attempts: int = 0
    failures: int = 0
    failed: str | None = None
    by: str | None = None
    seen: str | None = None


@dataclass(frozen=True)
class Prediction:
    """A learner's first answer to a question of a lesson, and what was then seen, in words."""

    expected: str
    seen: str
    as_expected: bool
    made: str | None = None


@dataclass(frozen=True)
class Score:
    """How many predictions were made, and how many of them came out as expected."""

    predicted: int
    as_expected: int


@dataclass(frozen=True)
class Progress:
    """Every attempted exercise, by full name; ``note`` says why the file could not be read.

    ``document`` is the parsed file: unknown fields are written back.
    """

    exercises: dict[str, Standing]
    note: str | None = None
    document: dict[str, Any] = field(default_factory=dict, compare=False, repr=False)

    @property
    def predictions(self) -> dict[str, Prediction]:
        """Every prediction, by full name; an entry that cannot be read is left out."""
        return _parse_predictions(self.document.get("predictions"))

    def score(self, lab: str) -> Score:
        """The score of the lab's predictions."""
        return count_score(self.predictions, lab)

    def standing(self, name: str) -> Standing:
        """The standing of that exercise; without attempts, it has no pass and 0 attempts."""
        return self.exercises.get(name, Standing())


def read_progress(workspace: Path) -> Progress:
    """Reads the workspace's progress and changes nothing; a broken file gives empty progress."""
    try:
        progress = _load(workspace)
    except OSError as error:
        why = f"{FILE_NAME} could not be read ({error.strerror})"
        return Progress({}, f"{why}; until it can, nothing is recorded")
    note = progress.note and f"{progress.note}; the next check starts a new one"
    return replace(progress, note=note)


def _load(workspace: Path) -> Progress:
    """Like `read_progress`; OSError if the system refuses: then nothing is known of the file."""
    path = workspace / FILE_NAME
    try:
        document = json.loads(read_regular(path, 0, LARGEST_RECORD_BYTES))
        return Progress(_parse(document), None, document)
    except FileNotFoundError:
        if path.is_symlink():  # such as into a folder that is not mounted
            raise
        return Progress({})
    except (WrongKindError, ValueError, RecursionError) as error:
        why = getattr(error, "strerror", None) or error
        return Progress({}, f"{FILE_NAME} could not be read ({why})")


def record_attempt(
    workspace: Path,
    name: str,
    *,
    passed: bool,
    answer: str | None = None,
    by: str | None = None,
    now: datetime | None = None,
    disk: Disk | None = None,
) -> tuple[Standing, str | None]:
    """The new standing after one more attempt, and a note if a broken file was set aside.

    ``answer`` is a digest of the function. A later failure does not remove a recorded pass.
    """
    now = now or _now()

    def count(old: Standing) -> Standing:
        return count_attempt(old, passed, answer, by, now)

    return _change(workspace, name, count, now, disk or Disk())


def record_seen(workspace: Path, name: str) -> None:
    """Records that the solution was shown; not after a pass."""
    now = _now()

    def mark(old: Standing) -> Standing:
        return old if old.passed or old.seen else replace(old, seen=_format_time(now))

    _change(workspace, name, mark, now, Disk())


def record_prediction(workspace: Path, name: str, prediction: Prediction) -> None:
    """Records the prediction under the question's full name."""
    now = _now()

    def add(progress: Progress) -> str:
        entries = _object(progress.document.get("predictions"))
        made = asdict(replace(prediction, made=_format_time(now)))
        return _format({**progress.document, "predictions": {**entries, name: made}})

    _rewrite(workspace, add, now, Disk())


def count_score(predictions: Mapping[str, Prediction], lab: str) -> Score:
    """The score of those predictions that are the lab's."""
    own = [one for name, one in predictions.items() if name.partition(".")[0] == lab]
    return Score(len(own), sum(one.as_expected for one in own))


def clear_progress(workspace: Path, names: Collection[str]) -> str | None:
    """Removes the standings of these exercises, by full name, and a lab's predictions, by lab.

    Returns a note if a broken file was set aside.
    """
    now = _now()

    def remove(progress: Progress) -> str:
        kept = {
            key: {name: entry for name, entry in _object(value).items() if not _is_in(name, names)}
            for key, value in progress.document.items()
            if key in ("exercises", "predictions")
        }
        return _format({**progress.document, **kept})

    return _rewrite(workspace, remove, now, Disk()) if names else None


def _is_in(name: str, names: Collection[str]) -> bool:
    return name in names or name.partition(".")[0] in names


def _change(
    workspace: Path,
    name: str,
    change: Callable[[Standing], Standing],
    now: datetime,
    disk: Disk,
) -> tuple[Standing, str | None]:
    new = Standing()

    def edit(progress: Progress) -> str:
        nonlocal new
        new = change(progress.standing(name))
        return _format(progress.document, name, new)

    note = _rewrite(workspace, edit, now, disk)
    return new, note


def _rewrite(
    workspace: Path, edit: Callable[[Progress], str], now: datetime, disk: Disk
) -> str | None:
    """Replaces the file by what ``edit`` makes of it; a note if a broken file was set aside."""
    state = workspace / STATE_FOLDER
    with explain_disk_errors(workspace):
        path = _find_file(workspace)
        disk.make_folder(state)
        # Takes the lock of updates too, because an update removes all drafts.
        with hold_lock(state / "lock"):
            # What cannot be read now (a lost mount, another user's file) is not set aside.
            progress = _load(workspace)
            note = None
            try:
                data = edit(progress)
            except RecursionError:  # parsed, and nested too deeply to be written
                progress = Progress({}, f"{FILE_NAME} could not be read (it is nested too deeply)")
                data = edit(progress)
            if progress.note:
                # What a link leads to is not labkit's: the link itself is set aside.
                path = workspace / FILE_NAME
                note = _set_aside(disk, path, progress.note, now)
            # A link's file may be on another disk.
            write_atomically(
                path, data, disk=disk, scratch=state if path.parent == workspace else None
            )
    return note


def _find_file(workspace: Path) -> Path:
    """The file to write: progress.json, or a file it is a link to, which the link's owner has."""
    path = workspace / FILE_NAME
    if not path.is_symlink():
        return path
    file = Path(os.path.realpath(path))
    found = file.stat()
    if not stat.S_ISREG(found.st_mode):  # such as a device
        return path
    if found.st_uid != path.lstat().st_uid:
        raise PermissionError(errno.EACCES, "it is a link to another user's file", str(path))
    return file


def count_attempt(
    old: Standing, passed: bool, answer: str | None, by: str | None, now: datetime | None = None
) -> Standing:
    """The standing after one more attempt."""
    new = replace(old, attempts=old.attempts + 1)
    if not passed and (answer is None or answer != old.failed):
        new = replace(new, failures=old.failures + 1, failed=answer)
    if passed and new.passed is None:
        new = replace(new, passed=_format_time(now or _now()), by=by)
    return new


def _now() -> datetime:
    return datetime.now(timezone.utc).astimezone()


def _format_time(time: datetime) -> str:
    return time.isoformat(timespec="seconds")


def _set_aside(disk: Disk, path: Path, why: str, now: datetime) -> str:
    kept = dated_name(path, "broken", now)
    move_new(disk, path, kept)
    return f"{why}: it was kept as {kept.name}, and a new one was started"


def _parse(document: Any) -> dict[str, Standing]:
    entries = document.get("exercises") if isinstance(document, dict) else None
    if not isinstance(entries, dict):
        raise ValueError("it holds no exercises")
    return {name: _parse_standing(entry) for name, entry in entries.items()}


def _parse_standing(entry: Any) -> Standing:
    if not isinstance(entry, dict):
        raise ValueError("an exercise's entry is not an object")
    known = {each.name: entry[each.name] for each in fields(Standing) if each.name in entry}
    for name, value in known.items():
        if not isinstance(value, int if name in ("attempts", "failures") else str | None):
            raise ValueError("an exercise's entry has values of the wrong types")
    return Standing(**known)


def _parse_predictions(entries: object) -> dict[str, Prediction]:
    found = {}
    for name, entry in _object(entries).items():
        known = {key: value for key, value in _object(entry).items() if key != "made"}
        kinds = {key: type(value) for key, value in known.items()}
        if kinds == {"expected": str, "seen": str, "as_expected": bool}:
            made = entry.get("made")
            found[name] = Prediction(**known, made=made if isinstance(made, str) else None)
    return found


def _object(value: object) -> dict[str, Any]:
    return value if isinstance(value, dict) else {}


def _format(
    document: dict[str, Any], name: str | None = None, standing: Standing | None = None
) -> str:
    entries = dict(document.get("exercises", {}))
    if name and standing:
        always = {"passed": standing.passed, "attempts": standing.attempts}
        rest = {key: value for key, value in asdict(standing).items() if value}
        entries[name] = {**entries.get(name, {}), **always, **rest}
    ordered = {key: entries[key] for key in sorted(entries)}
    return json.dumps({"schema_version": 1, **document, "exercises": ordered}, indent=2) + "\n"

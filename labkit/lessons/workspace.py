"""Puts the labs' notebooks into the learner's folder without losing what the learner wrote.

- A notebook is placed once. A deleted one is not placed again until ``reset_lab``.
- If a lab changes, an unedited notebook is replaced; a copy keeps its outputs and metadata.
  For an edited one, the new version is placed beside it once, under a dated name.
- The next start completes interrupted saves of JupyterLab and interrupted replacements.

``.labkit/manifest.json`` records which files labkit placed. The launcher reads its
``last_update``: ``{"at": ISO time, "placed": [file, ...], "replaced": [...], "laid_beside": [...],
"missing": [...], "notes": [...]}``; ``at`` is when the lists last changed.
If no lab changed, no lesson is converted, and only the standard library is loaded.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import shlex
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import AbstractContextManager
from dataclasses import asdict, dataclass, field, replace
from datetime import datetime
from pathlib import Path
from typing import Any

from labkit import __version__
from labkit.errors import LabkitError
from labkit.files import (
    LARGEST_RECORD_BYTES,
    NO_FOLLOW,
    SAVE_PREFIX,
    SAVE_SECONDS,
    STATE_FOLDER,
    TEMPORARY_PREFIX,
    Disk,
    WrongKindError,
    dated_name,
    explain_disk_errors,
    free_name,
    hold_lock,
    move_new,
    name_outside,
    place_new,
    read_regular,
    temporary_name,
    write_atomically,
)
from labkit.lessons.catalog import Lab, find_labs
from labkit.lessons.notebooks import (
    CONVERTER_VERSION,
    Digests,
    digest_notebook,
    make_learner_notebook,
    notebook_bytes,
    read_digests,
)

PLACED, UNCHANGED, REPLACED = "placed", "unchanged", "replaced"
LAID_BESIDE, MISSING = "laid_beside", "missing"
_LISTED = (PLACED, REPLACED, LAID_BESIDE, MISSING)
SCHEMA_VERSION = 1
# The bytes of a file name that Linux and macOS allow.
LONGEST_NAME = 255

# The kinds of copies beside a notebook. "old" sorts after "ipynb", so that the lab's notebook
# stays the first of its files; earlier versions of labkit named the copies of a reset "backup".
BACKUP, YOURS, NEW, BROKEN = "old", "yours", "new", "broken"
# While a file is replaced, it has one of these prefixes in the state folder. If the replacement
# is interrupted, the file becomes a copy of the given kind.
_TAKEN = {"replaced-": YOURS, "reset-": BACKUP}

MakeNotebook = Callable[[Lab], bytes]


@dataclass(frozen=True)
class LabUpdate:
    """What an update did for one lab, and the file that it placed, laid beside or checked."""

    lab: str
    action: str
    file: str


@dataclass(frozen=True)
class Update:
    """What an update did in a workspace; ``notes`` describe everything unusual."""

    workspace: Path
    labs: tuple[LabUpdate, ...]
    notes: tuple[str, ...] = ()

    def files(self, action: str) -> list[str]:
        """The files with that action, in the order of the labs."""
        return [lab.file for lab in self.labs if lab.action == action]


@dataclass(frozen=True)
class Reset:
    """The fresh notebook's file, and the name of the previous one's copy (None: no copy)."""

    file: str
    backup: str | None
    notes: tuple[str, ...] = ()


@dataclass(frozen=True)
class Entry:
    """A lab's notebook: its file name, and the digests of what labkit placed or laid beside it.

    ``placed`` is None if the file existed before labkit placed anything. ``whole`` also covers
    the outputs and metadata. ``older`` are the digests of contents placed earlier.
    """

    file: str
    placed: str | None = None
    laid: str | None = None
    older: tuple[str, ...] = ()
    whole: str | None = None


@dataclass(frozen=True)
class Manifest:
    """What labkit records about a workspace; ``source`` is the labs' digest at the last update."""

    entries: dict[str, Entry] = field(default_factory=dict)
    source: str | None = None
    last_update: dict[str, Any] = field(default_factory=dict)


def read_manifest(state: Path) -> Manifest:
    """The manifest in a ``.labkit`` folder, or an empty one.

    ValueError if it is broken, WrongKindError if it is not a file, OSError if it cannot be read.
    """
    try:
        value: Any = json.loads(read_regular(_manifest_path(state), 0, LARGEST_RECORD_BYTES))
    except FileNotFoundError:
        return Manifest()
    except RecursionError as error:
        raise ValueError("it is nested too deeply") from error
    try:
        entries = {name: _read_entry(entry) for name, entry in value["labs"].items()}
        return Manifest(entries, value.get("source"), dict(value.get("last_update", {})))
    except (KeyError, TypeError, AttributeError) as error:
        raise ValueError(f"it lacks {error}") from error


def update_workspace(
    folder: Path,
    labs: Iterable[Lab] | None = None,
    *,
    make: MakeNotebook | None = None,
    disk: Disk | None = None,
    now: datetime | None = None,
) -> Update:
    """Brings the workspace up to date with the labs, and says what it did with each notebook.

    A crash at any point loses nothing; the next call completes the update.
    """
    labs = tuple(find_labs() if labs is None else labs)
    keeper = _Keeper(Path(folder), disk or Disk(), now or datetime.now().astimezone())
    with explain_disk_errors(keeper.folder), keeper.opened():
        manifest = keeper.begin()
        source = source_digest(labs)
        if manifest.source == source and all(lab.name in manifest.entries for lab in labs):
            done = [keeper.look(lab, manifest.entries[lab.name]) for lab in labs]
        else:
            done = []
            for lab in labs:
                known = manifest.entries.get(lab.name)
                entry, result = keeper.update(lab, known, (make or _make_notebook)(lab))
                entry = _succeed(known, entry) if known else entry
                done.append(result)
                if entry != known:
                    manifest = replace(manifest, entries={**manifest.entries, lab.name: entry})
                    keeper.write(manifest)
        update = Update(keeper.folder, tuple(done), tuple(keeper.notes))
        keeper.conclude(manifest, source, update)
    return update


def reset_lab(
    folder: Path,
    lab: Lab,
    *,
    make: MakeNotebook | None = None,
    disk: Disk | None = None,
    now: datetime | None = None,
) -> Reset:
    """Replaces the lab's notebook by a fresh one; keeps the old one under a dated name."""
    data = (make or _make_notebook)(lab)
    new = digest_notebook(data)
    keeper = _Keeper(Path(folder), disk or Disk(), now or datetime.now().astimezone())
    with explain_disk_errors(keeper.folder), keeper.opened():
        manifest = keeper.begin()
        fresh = Entry(lab.notebook, new.content, whole=new.whole)
        entry = _succeed(manifest.entries.get(lab.name) or Entry(lab.notebook), fresh)
        backup = keeper.exchange(keeper.folder / entry.file, data)
        keeper.write(replace(manifest, entries={**manifest.entries, lab.name: entry}))
    return Reset(entry.file, backup, tuple(keeper.notes))


def restore_saves(
    folder: Path, *, disk: Disk | None = None, now: datetime | None = None
) -> tuple[str, ...]:
    """Restores the hidden files ``.~NAME`` that a killed save of JupyterLab left; returns notes.

    Raises LabkitError if the folder cannot be locked; without such a file, it takes no lock.
    """
    if next(_find_saves(Path(folder)), None) is None:
        return ()
    keeper = _Keeper(Path(folder), disk or Disk(), now or datetime.now().astimezone())
    with explain_disk_errors(keeper.folder), keeper.opened():
        keeper.restore_saves()
    return tuple(keeper.notes)


def source_digest(labs: Iterable[Lab]) -> str:
    """A digest of all inputs of the labs' notebooks."""
    digest = hashlib.sha256(f"{__version__} {CONVERTER_VERSION}".encode())
    for lab in labs:
        lesson = lab.lesson.read_bytes() if lab.lesson.is_file() else b""
        digest.update(f"\n{lab.name}\n{lab.notebook}\n{len(lesson)}\n".encode() + lesson)
    return digest.hexdigest()


@dataclass(frozen=True)
class _Keeper:
    """A workspace under change, with the disk to use and the current date."""

    folder: Path
    disk: Disk
    now: datetime
    notes: list[str] = field(default_factory=list)

    @property
    def state(self) -> Path:
        return self.folder / STATE_FOLDER

    def opened(self) -> AbstractContextManager[None]:
        """Creates the folders, refuses symbolic links as labkit's own files, and takes the lock."""
        self.disk.make_folder(self.folder)
        for path in (self.state, _manifest_path(self.state)):
            if path.is_symlink():
                raise LabkitError(
                    f"{name_outside(path)} is a symbolic link",
                    cause="labkit keeps its own records there, and does not follow links",
                    fix=f"rm {shlex.quote(str(name_outside(path)))}",
                )
        self.disk.make_folder(self.state)
        return hold_lock(self.state / "lock")

    def begin(self) -> Manifest:
        """Completes interrupted changes, and reads the manifest; sets a broken one aside."""
        for draft in self.state.glob(f"{TEMPORARY_PREFIX}*"):
            with contextlib.suppress(OSError):
                self.disk.remove(draft)
        try:
            manifest = read_manifest(self.state)
        except (ValueError, WrongKindError) as error:
            manifest = Manifest()
            path = _manifest_path(self.state)
            kept = dated_name(path, BROKEN, self.now)
            move_new(self.disk, path, kept)
            why = getattr(error, "strerror", None) or error
            self.notes.append(
                f"the manifest could not be read ({why}): it was kept as {STATE_FOLDER}/{kept.name}"
            )
        self._restore_taken(manifest)
        self.restore_saves()
        return manifest

    def write(self, manifest: Manifest) -> None:
        """Writes the manifest."""
        value = {
            "schema_version": SCHEMA_VERSION,
            "labs": {name: asdict(entry) for name, entry in manifest.entries.items()},
            "source": manifest.source,
            "last_update": manifest.last_update,
        }
        data = json.dumps(value, indent=2) + "\n"
        write_atomically(_manifest_path(self.state), data, disk=self.disk, scratch=self.state)

    def restore_saves(self) -> None:
        """Restores the hidden copies that killed saves left; see ``_find_saves``."""
        for path, saved, broken in _find_saves(self.folder):
            name = path.relative_to(self.folder)
            said = f"a save of {name} was interrupted: the version before it"
            try:
                if broken:
                    self.notes.append(f"{said} was restored{self._restore_save(path, saved)}")
                else:
                    kept = dated_name(path, YOURS, self.now)
                    move_new(self.disk, saved, kept)
                    self.notes.append(f"{said} is kept as {kept.name}")
            except OSError as error:
                self.notes.append(f"{said} stays in {saved.name}: {error.strerror}")

    def _restore_save(self, path: Path, saved: Path) -> str:
        """Renames the copy to the broken file's name; says where the broken file was kept."""
        said = ""
        data = read_regular(path, NO_FOLLOW)
        if data:
            kept = dated_name(path, BROKEN, self.now)
            place_new(self.disk, kept, data, self.state)
            said = f"; the broken file was kept as {kept.name}"
        self.disk.replace(saved, path)
        self.disk.sync(path.parent)
        return said

    def look(self, lab: Lab, entry: Entry) -> LabUpdate:
        """Reports whether the file exists; called if no lesson changed."""
        there = os.path.lexists(self.folder / entry.file)
        return LabUpdate(lab.name, UNCHANGED if there else MISSING, entry.file)

    def update(self, lab: Lab, entry: Entry | None, data: bytes) -> tuple[Entry, LabUpdate]:
        """Updates one lab to its new notebook; returns the entry to record."""
        new = digest_notebook(data)
        if entry is None:
            return self._place(lab, data, new)
        path = self.folder / entry.file
        if not os.path.lexists(path):
            return entry, LabUpdate(lab.name, MISSING, entry.file)
        placed = replace(entry, placed=new.content, whole=new.whole)
        current = read_digests(path)
        if current is not None and current.content == new.content:
            return placed, LabUpdate(lab.name, UNCHANGED, entry.file)
        unedited = current is not None and current.content == entry.placed
        if unedited and _is_writable(path) and self._replace(path, data, entry):
            return placed, LabUpdate(lab.name, REPLACED, entry.file)
        return self._lay_beside(lab, entry, data, new)

    def exchange(self, path: Path, data: bytes) -> str | None:
        """Writes the fresh notebook to ``path``; returns the previous file's new name."""
        if not os.path.lexists(path):
            place_new(self.disk, path, data, self.state)
            return None
        taken = self._take(path, data, "reset-")
        backup = dated_name(path, BACKUP, self.now)
        move_new(self.disk, taken, backup)
        return backup.name

    def conclude(self, manifest: Manifest, source: str, update: Update) -> None:
        """Records the update; writes nothing if the manifest stays the same."""
        done: dict[str, object] = {action: update.files(action) for action in _LISTED}
        done["notes"] = list(update.notes)
        before = {key: manifest.last_update.get(key) for key in done}
        if manifest.source == source and before == done:
            return
        last = {"at": self.now.isoformat(timespec="seconds"), **done}
        self.write(replace(manifest, source=source, last_update=last))

    def _place(self, lab: Lab, data: bytes, new: Digests) -> tuple[Entry, LabUpdate]:
        path = self.folder / lab.notebook
        entry = Entry(lab.notebook, new.content, whole=new.whole)
        try:
            place_new(self.disk, path, data, self.state)
        except FileExistsError:
            if _is_empty(path):  # left by an interrupted placement without hard links
                write_atomically(path, data, disk=self.disk, scratch=self.state)
                return entry, LabUpdate(lab.name, PLACED, lab.notebook)
            # Placed by an update that stopped before recording it, or the learner's own file.
            current = read_digests(path)
            if current is None or current.content != new.content:
                return self._lay_beside(lab, Entry(lab.notebook), data, new)
            return entry, LabUpdate(lab.name, UNCHANGED, lab.notebook)
        return entry, LabUpdate(lab.name, PLACED, lab.notebook)

    def _replace(self, path: Path, data: bytes, entry: Entry) -> bool:
        """Replaces an unedited notebook; False if the system or a concurrent save prevents it."""
        try:
            taken = self._take(path, data, "replaced-")
        except PermissionError as error:  # for example, an immutable file
            self.notes.append(f"{path.name} could not be replaced: {error.strerror}")
            return False
        except FileExistsError:
            return False
        kept = self._settle_taken(taken, path, entry)
        if kept:
            self.notes.append(
                f"{path.name} is the new version; yours, with its outputs, is kept as {kept}"
            )
        return True

    def _take(self, path: Path, data: bytes, prefix: str) -> Path:
        """Moves the file at ``path`` into the state folder, and writes ``data`` to ``path``.

        The file itself is moved, so that a concurrent save writes either to the moved file or to
        a new one. A new one stays: raises FileExistsError, and the moved file gets a dated name.
        """
        draft = temporary_name(path, self.state)
        taken = free_name(self.state / f"{prefix}{path.name}")
        try:
            self.disk.write_new(draft, data)
            self.disk.replace(path, taken)
        except OSError:
            with contextlib.suppress(OSError):
                self.disk.remove(draft)
            raise
        try:
            move_new(self.disk, draft, path)
        except OSError as error:
            with contextlib.suppress(OSError):
                self.disk.remove(draft)
            if isinstance(error, FileExistsError):
                move_new(self.disk, taken, dated_name(path, _TAKEN[prefix], self.now))
            else:
                self._put_back(taken, path)
            raise
        self.disk.sync(self.state)
        return taken

    def _put_back(self, taken: Path, path: Path) -> None:
        with contextlib.suppress(OSError):
            move_new(self.disk, taken, path)
            return
        # A full disk has no room to claim the name first. If this fails, the next start retries.
        with contextlib.suppress(OSError):
            if not os.path.lexists(path):
                self.disk.replace(taken, path)

    def _settle_taken(self, taken: Path, path: Path, entry: Entry | None) -> str | None:
        """Removes a replaced file if it is unedited; else keeps it beside the new one."""
        held = read_digests(taken)
        if held and entry and held.whole == entry.whole:
            self.disk.remove(taken)
            return None
        kept = dated_name(path, YOURS, self.now)
        move_new(self.disk, taken, kept)
        return kept.name

    def _restore_taken(self, manifest: Manifest) -> None:
        """Completes replacements that were interrupted."""
        entries = {entry.file: entry for entry in manifest.entries.values()}
        for prefix, kind in _TAKEN.items():
            for taken in sorted(self.state.glob(f"{prefix}*")):
                path = self.folder / taken.name.removeprefix(prefix)
                try:
                    self._restore(taken, path, kind, entries.get(path.name))
                except OSError as error:
                    self.notes.append(
                        f"an update of {path.name} was interrupted: the file that it replaced is"
                        f" {STATE_FOLDER}/{taken.name}, and cannot be moved: {error.strerror}"
                    )

    def _restore(self, taken: Path, path: Path, kind: str, entry: Entry | None) -> None:
        if not os.path.lexists(path):
            move_new(self.disk, taken, path)
        elif os.path.samestat(os.lstat(taken), os.lstat(path)):
            self.disk.remove(taken)
            return
        elif _is_empty(path) and not os.path.lexists(path.with_name(SAVE_PREFIX + path.name)):
            # The name was claimed, but the file was not renamed yet.
            self.disk.replace(taken, path)
        else:
            if kind == YOURS:
                kept = self._settle_taken(taken, path, entry)
                if kept is None:
                    return
            else:
                beside = dated_name(path, kind, self.now)
                move_new(self.disk, taken, beside)
                kept = beside.name
            self.notes.append(
                f"an update of {path.name} was interrupted: your file is kept as {kept}"
            )
            return
        self.notes.append(f"an update of {path.name} was interrupted: your file was restored")

    def _lay_beside(
        self, lab: Lab, entry: Entry, data: bytes, new: Digests
    ) -> tuple[Entry, LabUpdate]:
        path = self.folder / entry.file
        if new.content in (entry.placed, entry.laid):
            return entry, LabUpdate(lab.name, UNCHANGED, entry.file)
        laid = self._find_laid(path, new)
        if laid is None:
            laid = dated_name(path, NEW, self.now)
            place_new(self.disk, laid, data, self.state)
        return replace(entry, laid=new.content), LabUpdate(lab.name, LAID_BESIDE, laid.name)

    def _find_laid(self, path: Path, new: Digests) -> Path | None:
        """The same version, laid by an update that crashed before recording it."""
        for other in sorted(self.folder.glob(f"{path.stem}.{NEW}-*{path.suffix}")):
            found = read_digests(other)
            if found and found.content == new.content:
                return other
        return None


def _manifest_path(state: Path) -> Path:
    return state / "manifest.json"


def _read_entry(value: dict[str, Any]) -> Entry:
    file = value["file"]
    # A name with a folder in it could point outside the workspace.
    # Nor can a file have a name that no file system holds.
    if (
        not isinstance(file, str)
        or Path(file).name != file
        or file.startswith(".")
        or "\0" in file
        or len(os.fsencode(file)) > LONGEST_NAME
    ):
        raise TypeError("a plain file name")
    placed, laid, whole = (value.get(key) for key in ("placed", "laid", "whole"))
    older = tuple(value.get("older", ()))
    digests = [digest for digest in (placed, laid, whole) if digest is not None]
    if not all(isinstance(digest, str) for digest in (*digests, *older)):
        raise TypeError("a digest")
    return Entry(file, placed, laid, older, whole)


def _succeed(known: Entry, entry: Entry) -> Entry:
    """The new entry with the known one's file name; the known contents become ``older``."""
    now = {entry.placed, entry.laid}
    before = dict.fromkeys((*known.older, known.placed, known.laid))
    older = tuple(digest for digest in before if digest is not None and digest not in now)
    return replace(entry, file=known.file, older=older)


def _find_saves(folder: Path) -> Iterator[tuple[Path, Path, bool]]:
    """Each file X and its hidden copy .~X that a killed save left, and whether X is broken.

    An intact X is listed if .~X is an intact notebook with other content: another process may
    have moved the file that the save was writing.
    """
    for inside, folders, files in os.walk(folder):
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        for name in sorted(files):
            if name.startswith(SAVE_PREFIX):
                saved = Path(inside) / name
                path = saved.with_name(name.removeprefix(SAVE_PREFIX))
                broken = _judge_save(path, saved)
                if broken is not None:
                    yield path, saved, broken


def _judge_save(path: Path, saved: Path) -> bool | None:
    """Whether ``path`` is broken; None if there is nothing to do. Waits for a save to end.

    Two reads must agree: ext4 truncates a file shortly before it changes its mtime.
    """
    seen: object = None
    while True:
        try:
            if not _is_plain(path) or not _is_plain(saved):
                return None
            now, before = (read_regular(one, NO_FOLLOW) for one in (path, saved))
            # Read last: a save that began before this has set it.
            details = path.lstat()
        except OSError:
            return None
        if path.suffix == ".ipynb":
            useful, broken = _is_json(before) and now != before, not _is_json(now)
        else:  # a truncated text file cannot be recognized
            useful, broken = bool(before) and not now, True
        if not useful:
            return None
        look = (now, before, details.st_mtime_ns)
        # A time in the future (the clock was set back) is ignored.
        if look == seen and not 0 <= time.time() - details.st_mtime < SAVE_SECONDS:
            return broken
        seen = look
        time.sleep(0.05)


def _is_plain(path: Path) -> bool:
    return path.is_file() and not path.is_symlink()


def _is_json(data: bytes) -> bool:
    try:
        json.loads(data)
    except (ValueError, RecursionError):
        return False
    return True


def _is_empty(path: Path) -> bool:
    return _is_plain(path) and path.stat().st_size == 0


def _is_writable(path: Path) -> bool:
    # Checks the mode: os.access is always true for root, and a read-only file must not be replaced.
    return bool(path.stat().st_mode & 0o200)


def _make_notebook(lab: Lab) -> bytes:
    return notebook_bytes(make_learner_notebook(lab))

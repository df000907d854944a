"""Puts the labs' notebooks into the learner's folder, and never takes anything of theirs away.

The folder belongs to the learner. A notebook is put there once. Where the labs change, an
untouched notebook is replaced; beside a touched one the new version is laid under a dated name,
once; a deleted one stays away until ``reset_lab``. Touched means content (``contents``).
What was done is kept in ``.labkit/manifest.json`` (``manifest``), under ``last_update`` too.
Where nothing is new no lesson is converted, and only the standard library is loaded.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable, Iterable
from contextlib import AbstractContextManager
from dataclasses import dataclass, replace
from datetime import datetime
from pathlib import Path

from labkit import __version__
from labkit.errors import LabkitError
from labkit.files import (
    Disk,
    dated_name,
    explain_disk_errors,
    free_name,
    hold_lock,
    move_new,
    place_new,
    write_atomically,
)
from labkit.lessons.catalog import Lab, find_labs
from labkit.lessons.manifest import (
    Entry,
    Manifest,
    manifest_path,
    read_manifest,
    set_manifest_aside,
    write_manifest,
)
from labkit.lessons.notebooks import (
    CONVERTER_VERSION,
    content_digest,
    make_learner_notebook,
    notebook_bytes,
    read_digest,
)
from labkit.lessons.progress import STATE_FOLDER

PLACED, UNCHANGED, REPLACED = "placed", "unchanged", "replaced"
LAID_BESIDE, MISSING = "laid_beside", "missing"
_TOLD = (PLACED, REPLACED, LAID_BESIDE, MISSING)

MakeNotebook = Callable[[Lab], bytes]


@dataclass(frozen=True)
class LabUpdate:
    """What an update did for one lab, and the file it is about (for laid_beside, the new one)."""

    lab: str
    action: str
    file: str


@dataclass(frozen=True)
class Update:
    """What an update did in a workspace; ``notes`` tell of anything that was out of order."""

    workspace: Path
    labs: tuple[LabUpdate, ...]
    notes: tuple[str, ...] = ()

    def files(self, action: str) -> list[str]:
        """The files that met with that action, in the order of the labs."""
        return [lab.file for lab in self.labs if lab.action == action]


@dataclass(frozen=True)
class Reset:
    """The fresh notebook's file, and the name its predecessor was kept under (None: no such)."""

    file: str
    backup: str | None


def update_workspace(
    folder: Path,
    labs: Iterable[Lab] | None = None,
    *,
    make: MakeNotebook | None = None,
    disk: Disk | None = None,
    now: datetime | None = None,
) -> Update:
    """Brings the workspace up to the labs, and says what became of each one's notebook.

    A crash at any point leaves every file of the learner's whole; running it again goes on.
    """
    labs = tuple(find_labs() if labs is None else labs)
    keeper = _Keeper(Path(folder), disk or Disk(), now or datetime.now().astimezone())
    with explain_disk_errors(keeper.folder), keeper.opened():
        manifest, notes = keeper.read()
        source = source_digest(labs)
        if manifest.source == source and all(lab.name in manifest.entries for lab in labs):
            done = [keeper.look(lab, manifest.entries[lab.name]) for lab in labs]
        else:
            done = []
            for lab in labs:
                data = (make or _make_notebook)(lab)
                known = manifest.entries.get(lab.name)
                entry, result = keeper.update(lab, known, data)
                entry = _succeed(known, entry) if known else entry
                done.append(result)
                if entry != known:
                    manifest = replace(manifest, entries={**manifest.entries, lab.name: entry})
                    write_manifest(keeper.disk, keeper.state, manifest)
        update = Update(keeper.folder, tuple(done), notes)
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
    """Puts a fresh notebook in place of the lab's, which is kept under a dated name."""
    data = (make or _make_notebook)(lab)
    keeper = _Keeper(Path(folder), disk or Disk(), now or datetime.now().astimezone())
    with explain_disk_errors(keeper.folder), keeper.opened():
        manifest, _ = keeper.read()
        known = manifest.entries.get(lab.name)
        entry = _succeed(known or Entry(lab.notebook), Entry(lab.notebook, content_digest(data)))
        backup = keeper.put_fresh(keeper.folder / entry.file, data)
        entries = {**manifest.entries, lab.name: entry}
        write_manifest(keeper.disk, keeper.state, replace(manifest, entries=entries))
    return Reset(entry.file, backup)


def source_digest(labs: Iterable[Lab]) -> str:
    """A digest of everything that the labs' notebooks are made from."""
    digest = hashlib.sha256(f"{__version__} {CONVERTER_VERSION}".encode())
    for lab in labs:
        lesson = lab.lesson.read_bytes() if lab.lesson.is_file() else b""
        digest.update(f"\n{lab.name}\n{lab.notebook}\n{len(lesson)}\n".encode() + lesson)
    return digest.hexdigest()


@dataclass(frozen=True)
class _Keeper:
    """A workspace being changed: its folder, the disk it goes through, and the day."""

    folder: Path
    disk: Disk
    now: datetime

    @property
    def state(self) -> Path:
        return self.folder / STATE_FOLDER

    def opened(self) -> AbstractContextManager[None]:
        """Makes the folders, refuses links that lead elsewhere, and takes the lock."""
        self.disk.make_folder(self.folder)
        for path in (self.state, manifest_path(self.state)):
            if path.is_symlink():
                raise LabkitError(
                    f"{path} is a symbolic link",
                    cause="labkit writes its notes there, and follows no link to do so",
                    fix=f"rm '{path}'",
                )
        self.disk.make_folder(self.state)
        return hold_lock(self.state / "lock")

    def read(self) -> tuple[Manifest, tuple[str, ...]]:
        """The manifest, or a new one and a note where it was broken; scraps of a crash go."""
        for scrap in self.state.glob("tmp-*"):
            self.disk.remove(scrap)
        try:
            return read_manifest(self.state), ()
        except ValueError:
            return Manifest(), (set_manifest_aside(self.disk, self.state, self.now),)

    def look(self, lab: Lab, entry: Entry) -> LabUpdate:
        """How things stand where no lesson has changed: a file is there, or it is missing."""
        there = os.path.lexists(self.folder / entry.file)
        return LabUpdate(lab.name, UNCHANGED if there else MISSING, entry.file)

    def update(self, lab: Lab, entry: Entry | None, data: bytes) -> tuple[Entry, LabUpdate]:
        """Does what the new notebook calls for, and gives the entry that describes it."""
        new = content_digest(data)
        if entry is None:
            return self._place(lab, data, new)
        path = self.folder / entry.file
        if not os.path.lexists(path):
            return entry, LabUpdate(lab.name, MISSING, entry.file)
        current = read_digest(path)
        if current == new:
            return replace(entry, placed=new), LabUpdate(lab.name, UNCHANGED, entry.file)
        if current is not None and current == entry.placed and _is_writable(path):
            self._replace(path, data, current)
            return replace(entry, placed=new), LabUpdate(lab.name, REPLACED, entry.file)
        return self._lay_beside(lab, entry, data, new)

    def put_fresh(self, path: Path, data: bytes) -> str | None:
        """Puts the notebook at ``path``; what was there is kept under the name returned."""
        if not os.path.lexists(path):
            place_new(self.disk, path, data, self.state)
            return None
        backup = dated_name(path, "backup", self.now)
        if path.is_file() and not path.is_symlink():
            write_atomically(self.disk, path, data, self.state, kept=backup)
        else:  # a link or a folder: it is moved as it is
            self.disk.replace(path, backup)
            place_new(self.disk, path, data, self.state)
        return backup.name

    def conclude(self, manifest: Manifest, source: str, update: Update) -> None:
        """Notes what was done; writes nothing where nothing is new to note."""
        told: dict[str, object] = {action: update.files(action) for action in _TOLD}
        told["notes"] = list(update.notes)
        before = {key: manifest.last_update.get(key) for key in told}
        if manifest.source == source and before == told:
            return
        last = {"at": self.now.isoformat(timespec="seconds"), **told}
        write_manifest(self.disk, self.state, replace(manifest, source=source, last_update=last))

    def _place(self, lab: Lab, data: bytes, new: str) -> tuple[Entry, LabUpdate]:
        path = self.folder / lab.notebook
        try:
            place_new(self.disk, path, data, self.state)
        except FileExistsError:
            # Placed before a crash kept it from being noted, or the learner's own file.
            if read_digest(path) != new:
                return self._lay_beside(lab, Entry(lab.notebook), data, new)
            return Entry(lab.notebook, new), LabUpdate(lab.name, UNCHANGED, lab.notebook)
        return Entry(lab.notebook, new), LabUpdate(lab.name, PLACED, lab.notebook)

    def _replace(self, path: Path, data: bytes, untouched: str) -> None:
        # The old file keeps a name until it is certain that nobody wrote to it meanwhile.
        kept = free_name(self.state / f"replaced-{path.name}")
        write_atomically(self.disk, path, data, self.state, kept=kept)
        if read_digest(kept) == untouched:
            self.disk.remove(kept)
        else:
            move_new(self.disk, kept, dated_name(path, "yours", self.now))

    def _lay_beside(self, lab: Lab, entry: Entry, data: bytes, new: str) -> tuple[Entry, LabUpdate]:
        path = self.folder / entry.file
        if new in (entry.placed, entry.laid):
            return entry, LabUpdate(lab.name, UNCHANGED, entry.file)
        laid = self._find_laid(path, new)
        if laid is None:
            laid = dated_name(path, "new", self.now)
            place_new(self.disk, laid, data, self.state)
        return replace(entry, laid=new), LabUpdate(lab.name, LAID_BESIDE, laid.name)

    def _find_laid(self, path: Path, new: str) -> Path | None:
        """The same version laid before a crash kept it from being noted."""
        beside = sorted(self.folder.glob(f"{path.stem}.new-*{path.suffix}"))
        return next((other for other in beside if read_digest(other) == new), None)


def _succeed(known: Entry, entry: Entry) -> Entry:
    """The new entry under the old one's name, which remembers the contents it takes over from."""
    now = {entry.placed, entry.laid}
    before = dict.fromkeys((*known.older, known.placed, known.laid))
    older = tuple(digest for digest in before if digest is not None and digest not in now)
    return replace(entry, file=known.file, older=older)


def _is_writable(path: Path) -> bool:
    # By the mode and not by os.access, which lets root write anything: a file that its owner
    # made read-only is not to be replaced.
    return bool(path.stat().st_mode & 0o200)


def _make_notebook(lab: Lab) -> bytes:
    return notebook_bytes(make_learner_notebook(lab))

"""Writes that are whole or not at all, and never over something that was not meant.

Each mutation of the learner's folder goes through a Disk, so that a test can let the machine
die between any two of them.
"""

from __future__ import annotations

import contextlib
import errno
import os
import time
from collections.abc import Iterator
from datetime import datetime
from pathlib import Path

from labkit.errors import LabkitError

# What file systems without hard links answer (FAT, some bind mounts into containers).
_NO_LINKS = {errno.EPERM, errno.EOPNOTSUPP, errno.ENOSYS, errno.EMLINK, errno.EXDEV, errno.EACCES}
# What network file systems answer that keep no locks: one process at a time is up to the user.
_NO_LOCKS = {errno.ENOLCK, errno.EOPNOTSUPP, errno.ENOSYS}
LOCK_SECONDS = 30.0


class Disk:
    """The few ways in which labkit changes a folder; each step is atomic."""

    def write_new(self, path: Path, data: bytes) -> None:
        """Writes a file that must not be there yet, and waits until the disk has it."""
        handle = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW, 0o644)
        with os.fdopen(handle, "wb") as file:
            give_to_owner(handle, path.parent)
            file.write(data)
            file.flush()
            os.fsync(file.fileno())

    def link(self, source: Path, target: Path) -> None:
        """Gives ``source`` a second name; FileExistsError where the name is taken."""
        os.link(source, target, follow_symlinks=False)

    def replace(self, source: Path, target: Path) -> None:
        """Moves ``source`` over ``target`` in one step."""
        source.replace(target)

    def remove(self, path: Path) -> None:
        """Takes one name of a file away; one that is gone already is fine."""
        path.unlink(missing_ok=True)

    def make_folder(self, path: Path) -> None:
        """Makes the folder and those above it."""
        if path.is_dir():
            return
        path.mkdir(parents=True, exist_ok=True)
        handle = os.open(path, os.O_RDONLY)
        try:
            give_to_owner(handle, path.parent)
        finally:
            os.close(handle)

    def settle(self, folder: Path) -> None:
        """Waits until the disk has the folder's names too, where the system can say so."""
        with contextlib.suppress(OSError):
            handle = os.open(folder, os.O_RDONLY)
            try:
                os.fsync(handle)
            finally:
                os.close(handle)


def give_to_owner(handle: int, folder: Path) -> None:
    """Where root writes into somebody's folder, lets that somebody own what is written."""
    if os.geteuid() == 0:
        owner = folder.stat()
        os.fchown(handle, owner.st_uid, owner.st_gid)


def write_atomically(
    disk: Disk, path: Path, data: bytes, scratch: Path, kept: Path | None = None
) -> None:
    """The file at ``path`` is the old one or the new one, whatever happens in between.

    Where ``kept`` is given, the old one has that name too before it is replaced.
    """
    temporary = free_name(scratch / f"tmp-{os.getpid()}-{path.name}")
    try:
        disk.write_new(temporary, data)
        if kept:
            keep_copy(disk, path, kept)
        disk.replace(temporary, path)
    except OSError:
        disk.remove(temporary)
        raise
    disk.settle(path.parent)


def place_new(disk: Disk, path: Path, data: bytes, scratch: Path) -> None:
    """Puts a whole file where none is; FileExistsError where something has that name."""
    temporary = free_name(scratch / f"tmp-{os.getpid()}-{path.name}")
    try:
        disk.write_new(temporary, data)
        move_new(disk, temporary, path)
    except OSError:
        disk.remove(temporary)
        raise
    disk.settle(path.parent)


def move_new(disk: Disk, source: Path, target: Path) -> None:
    """Moves a file to a name that must be free, without a moment in which it has none."""
    try:
        disk.link(source, target)
    except OSError as error:
        if isinstance(error, FileExistsError) or error.errno not in _NO_LINKS:
            raise
        # Without hard links the name is taken with an empty file first.
        disk.write_new(target, b"")
        disk.replace(source, target)
        return
    disk.remove(source)


def keep_copy(disk: Disk, path: Path, kept: Path) -> None:
    """Makes ``kept`` hold what ``path`` holds, under a name that must be free."""
    try:
        disk.link(path, kept)
    except OSError as error:
        if isinstance(error, FileExistsError) or error.errno not in _NO_LINKS:
            raise
        disk.write_new(kept, path.read_bytes())
    disk.settle(kept.parent)


def free_name(path: Path) -> Path:
    """The path, or the first of ``name-2``, ``name-3`` ... that nothing has."""
    candidate, number = path, 1
    while os.path.lexists(candidate):
        number += 1
        candidate = path.with_name(f"{path.stem}-{number}{path.suffix}")
    return candidate


def dated_name(path: Path, kind: str, now: datetime) -> Path:
    """A free name beside ``path`` that says what it is and of which day.

    >>> dated_name(Path("gone/01_tensors.ipynb"), "backup", datetime(2026, 11, 23)).name
    '01_tensors.backup-2026-11-23.ipynb'
    """
    return free_name(path.with_name(f"{path.stem}.{kind}-{now:%Y-%m-%d}{path.suffix}"))


@contextlib.contextmanager
def hold_lock(path: Path, timeout_seconds: float = LOCK_SECONDS) -> Iterator[None]:
    """Keeps other labkit processes out of the folder; the system frees it if this one dies."""
    try:
        import fcntl
    except ImportError:  # no such lock on this system: one process at a time is up to the user
        yield
        return
    handle = os.open(path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW, 0o644)
    try:
        give_to_owner(handle, path.parent)
        until = time.monotonic() + timeout_seconds
        while True:
            try:
                fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError:
                if time.monotonic() > until:
                    raise LabkitError(
                        f"{path.parent.parent} is being changed by another labkit process",
                        cause=f"{path} has been locked for {timeout_seconds:.0f} s",
                        fix="wait for it to end, then try again",
                    ) from None
                time.sleep(0.05)
            except OSError as error:
                if error.errno not in _NO_LOCKS:
                    raise
                break
        yield
    finally:
        os.close(handle)


@contextlib.contextmanager
def explain_disk_errors(folder: Path) -> Iterator[None]:
    """Turns what the system says into an error with its cause and what to do about it."""
    try:
        yield
    except OSError as error:
        cause = error.strerror or str(error)
        named = f"{cause} ({error.filename})" if error.filename else cause
        fix = {
            errno.ENOSPC: "free some space, then try again: no notebook was changed",
            errno.EDQUOT: "free some space, then try again: no notebook was changed",
            errno.EROFS: "mount the workspace so that it can be written to",
            errno.EACCES: f"chown -R $(id -u):$(id -g) '{folder}'",
            errno.EPERM: f"chown -R $(id -u):$(id -g) '{folder}'",
            errno.ELOOP: f"remove the symbolic link {error.filename}",
        }.get(error.errno or 0)
        raise LabkitError(
            f"the workspace {folder} could not be written to", cause=named, fix=fix
        ) from error

"""The lab's contents manager: a save replaces the whole file atomically, or leaves it unchanged.

jupyter_server's own ``atomic_writing`` copies the file to ``.~NAME``, truncates the file and
writes to it. A server that is killed at this point leaves an empty or partial notebook. This
module writes the new content to a file beside it and renames that file, so that the name always
refers to the whole old content or the whole new content.
"""

from __future__ import annotations

import contextlib
import errno
import functools
import os
import secrets
import shutil
import stat
import time
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any

from anyio.to_thread import run_sync
from jupyter_server.services.contents.filecheckpoints import AsyncFileCheckpoints
from jupyter_server.services.contents.fileio import FileManagerMixin
from jupyter_server.services.contents.largefilemanager import AsyncLargeFileManager
from traitlets import default

# The prefix keeps Dropbox from uploading it. It does not contain the file's name, because that
# name may already have 255 bytes, the maximum.
NEW_FILE = ".~labkit-save-"
# A save takes seconds, so a temporary file older than a day is from a killed server.
ABANDONED_SECONDS = 24 * 3600


class WholeFiles(FileManagerMixin):
    """Writes and copies files atomically, for contents managers and checkpoints on local disks."""

    @contextlib.contextmanager
    def atomic_writing(self, os_path: str, *args: Any, **kwargs: Any) -> Iterator[IO[Any]]:
        """A file for the new content of ``os_path``; takes its name once everything is on disk.

        Symbolic links are followed. The old file's mode, owner and extended attributes are kept as
        far as the file system allows; a hard link under another name keeps the old content. If
        the file cannot be replaced (a read-only folder, a file mount, a device), jupyter_server
        writes into it. Raises HTTPError 403 if permission is missing.
        """
        path = Path(os.path.realpath(os_path))
        with self.perm_to_403(os_path):
            file = open_beside(path, *args, **kwargs) if self.use_atomic_writing else None
        if file is None:
            with super().atomic_writing(os_path, *args, **kwargs) as written_in_place:
                yield written_in_place
            return
        new = Path(file.name)
        try:
            with file:
                yield file
                file.flush()
                # A file without a write still has the old file's mtime.
                os.utime(new)
                os.fsync(file.fileno())
            try:
                new.replace(path)
            except OSError:
                # A file mount, or another user's file in a folder with the sticky bit.
                with new.open("rb") as whole, super().atomic_writing(os_path, text=False) as target:
                    shutil.copyfileobj(whole, target)
            sync_folder(path.parent)
        finally:
            new.unlink(missing_ok=True)

    async def _copy(self, src: str, dest: str) -> None:
        """Copies ``src`` to ``dest``, to create or restore a checkpoint."""
        await run_sync(self._copy_whole, src, dest)

    def _copy_whole(self, src: str, dest: str) -> None:
        if not os.access(src, os.W_OK):
            # The copy would be read-only too, and later checkpoints could not replace it.
            raise PermissionError(errno.EACCES, "the file is read-only", src)
        with Path(src).open("rb") as source, self.atomic_writing(dest, text=False) as target:
            shutil.copyfileobj(source, target)
        with contextlib.suppress(OSError):
            shutil.copystat(src, dest)


class LabCheckpoints(WholeFiles, AsyncFileCheckpoints):  # type: ignore[misc]
    """jupyter_server's checkpoints, created and restored atomically."""


class LabContentsManager(WholeFiles, AsyncLargeFileManager):  # type: ignore[misc]
    """jupyter_server's contents manager, with atomic saves."""

    @default("checkpoints_class")
    def _checkpoints_class_default(self) -> type[LabCheckpoints]:
        return LabCheckpoints


def open_beside(
    path: Path, text: bool = True, encoding: str = "utf-8", **kwargs: Any
) -> IO[Any] | None:
    """A new file in the folder of ``path``, with its attributes; None if it cannot be created.

    Raises PermissionError if ``path`` exists and is read-only.
    """
    try:
        old = path.stat()
    except FileNotFoundError:
        old = None
    if old and not stat.S_ISREG(old.st_mode):
        return None
    if old and not os.access(path, os.W_OK):
        raise PermissionError(errno.EACCES, "the file is read-only", str(path))
    remove_abandoned(path.parent)
    if text:
        kwargs = {"encoding": encoding, "newline": "\n", **kwargs}
    new = path.with_name(NEW_FILE + secrets.token_hex(8))

    def create(mode: int) -> IO[Any]:
        def open_new(name: str, flags: int) -> int:
            return os.open(name, flags, mode)

        return open(new, "x" if text else "xb", opener=open_new, **kwargs)

    try:
        # Other users must not read it before it has the old file's mode.
        file = create(0o600 if old else 0o666)
    except PermissionError:
        return None
    if old and not keep_attributes(path, old, new):
        # On some file systems the mode cannot be changed after creation.
        file.close()
        new.unlink()
        file = create(stat.S_IMODE(old.st_mode))
    return file


def keep_attributes(path: Path, old: os.stat_result, new: Path) -> bool:
    """Copies the owner, mode and extended attributes of ``path`` to ``new``, as far as possible.

    Returns False if the mode could not be set.
    """
    made = new.stat()
    if (made.st_uid, made.st_gid) != (old.st_uid, old.st_gid):
        # Only root can change the owner; any user can set a group that they belong to.
        for owner in (old.st_uid, -1):
            with contextlib.suppress(OSError):
                os.chown(new, owner, old.st_gid)
                break
    with contextlib.suppress(OSError):
        shutil.copystat(path, new)
    with contextlib.suppress(OSError):
        new.chmod(stat.S_IMODE(old.st_mode))
    return stat.S_IMODE(new.stat().st_mode) == stat.S_IMODE(old.st_mode)


def sync_folder(folder: Path) -> None:
    """Syncs the directory entries of ``folder`` to disk, if its file system supports it."""
    with contextlib.suppress(OSError):
        descriptor = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


@functools.lru_cache(maxsize=256)
def remove_abandoned(folder: Path) -> None:
    """Removes temporary files of killed servers in ``folder``, once per server process."""
    with contextlib.suppress(OSError), os.scandir(folder) as entries:
        for entry in entries:
            if entry.name.startswith(NEW_FILE):
                with contextlib.suppress(OSError):
                    if time.time() - entry.stat().st_mtime > ABANDONED_SECONDS:
                        Path(entry.path).unlink()

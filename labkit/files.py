"""Atomic writes, moves that overwrite nothing, a file lock, and the workspace's folder.

All changes of a folder go through a Disk, so that a test can simulate a crash between any two.
"""

from __future__ import annotations

import contextlib
import errno
import os
import secrets
import shlex
import stat
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from datetime import datetime
from pathlib import Path
from typing import BinaryIO, cast

from labkit.errors import LabkitError
from labkit.text import format_bytes

WORKSPACE_VARIABLE = "LABKIT_WORKSPACE"
# The workspace's path on the host, for a command that the launcher runs in a container.
OUTSIDE_VARIABLE = "LABKIT_OUTSIDE"
# Where the labs are in a workspace that has notebooks of its own.
LABS_FOLDER = "labkit-labs"
STATE_FOLDER = ".labkit"
LOCK_SECONDS = 30.0
# The pause between two tries: short, so that a process that locks in a loop starves no other.
RETRY_SECONDS = 0.01
TEMPORARY_PREFIX = "tmp-"
# JupyterLab copies X to .~X, then empties X and writes it, and removes .~X at the end.
SAVE_PREFIX = ".~"
# A save that takes longer was killed.
SAVE_SECONDS = 2.0
# A larger file is not read into memory; JupyterLab cannot open such a notebook either.
LARGEST_BYTES = 512 * 2**20
# No record of labkit's own comes near.
LARGEST_RECORD_BYTES = 32 * 2**20

# Windows has no links to follow; there, only O_BINARY keeps line ends as they are.
NO_FOLLOW = getattr(os, "O_NOFOLLOW", 0)
_BINARY = getattr(os, "O_BINARY", 0)
_NO_WAIT = getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_CLOEXEC", 0)
# Errors of file systems without hard links (FAT, FUSE, some bind mounts into containers).
_NO_LINKS = {errno.EPERM, errno.EOPNOTSUPP, errno.ENOSYS, errno.EMLINK, errno.EXDEV, errno.EACCES}
# AT_FDCWD, and the flag that renameat2 takes not to overwrite.
_HERE, _NO_REPLACE = -100, 1
# Errors that something of another kind under the name of a file or folder gives.
_WRONG_KINDS = {
    errno.EEXIST,
    errno.EISDIR,
    errno.ENOTDIR,
    errno.ENXIO,
    errno.ELOOP,
    errno.EINVAL,
    errno.EFBIG,
}
# Errors of network file systems without locks: two processes can then run at the same time.
_NO_LOCKS = {errno.ENOLCK, errno.EOPNOTSUPP, errno.ENOSYS}


class Disk:
    """The changes that labkit makes to a folder; each is one step."""

    def write_new(self, path: Path, data: bytes, mode: int = 0o644) -> None:
        """Creates the file and waits until it is on disk. FileExistsError if the name is taken."""
        flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | NO_FOLLOW | _BINARY
        handle = os.open(path, flags, mode)
        with os.fdopen(handle, "wb") as file:
            give_to_owner(handle, path.parent)
            file.write(data)
            file.flush()
            os.fsync(handle)

    def link(self, source: Path, target: Path) -> None:
        """Gives ``source`` a second name. FileExistsError if the name is taken."""
        if os.link in os.supports_follow_symlinks:
            os.link(source, target, follow_symlinks=False)
        else:
            os.link(source, target)

    def rename_new(self, source: Path, target: Path) -> bool:
        """Renames to a free name in one step; False where the system has no such step.

        FileExistsError if the name is taken. This is Linux's renameat2 with RENAME_NOREPLACE.
        """
        import ctypes

        library = None if sys.platform == "win32" else ctypes.CDLL(None, use_errno=True)
        rename = getattr(library, "renameat2", None)
        if rename is None:
            return False
        names = (ctypes.c_char_p(os.fsencode(source)), ctypes.c_char_p(os.fsencode(target)))
        if rename(_HERE, names[0], _HERE, names[1], _NO_REPLACE) == 0:
            return True
        if ctypes.get_errno() != errno.EEXIST:
            return False
        raise FileExistsError(errno.EEXIST, os.strerror(errno.EEXIST), str(target))

    def claim(self, path: Path) -> int:
        """Creates an empty file and returns its descriptor. FileExistsError if it exists."""
        flags = os.O_RDWR | os.O_CREAT | os.O_EXCL | NO_FOLLOW | _BINARY
        handle = os.open(path, flags, 0o644)
        give_to_owner(handle, path.parent)
        return handle

    def replace(self, source: Path, target: Path) -> None:
        """Renames ``source`` to ``target``, and overwrites what had that name."""
        source.replace(target)

    def remove(self, path: Path) -> None:
        """Removes the file; a missing one is not an error."""
        path.unlink(missing_ok=True)

    def make_folder(self, path: Path) -> None:
        """Creates the folder and its parents."""
        if path.is_dir():
            return
        path.mkdir(parents=True, exist_ok=True)
        try:
            handle = os.open(path, os.O_RDONLY)
        except PermissionError:  # Windows opens no folder, and has no owner to give it to
            return
        try:
            give_to_owner(handle, path.parent)
        finally:
            os.close(handle)

    def sync(self, folder: Path) -> None:
        """Waits until the folder's names are on disk, where the system supports that."""
        with contextlib.suppress(OSError):
            handle = os.open(folder, os.O_RDONLY)
            try:
                os.fsync(handle)
            finally:
                os.close(handle)


class WrongKindError(OSError):
    """A folder, a pipe or a device has the name of a file, or the file is too large to be read."""


def read_regular(path: Path, flags: int = 0, most_bytes: int = LARGEST_BYTES) -> bytes:
    """The content of a regular file. WrongKindError for anything else, and for a larger file.

    ``flags`` are added to those of `os.open`, for instance O_NOFOLLOW. A named pipe is not waited
    for.
    """
    with open_regular(path, flags, most_bytes) as file:
        return file.read()


def open_regular(path: Path, flags: int = 0, most_bytes: int | None = None) -> BinaryIO:
    """A regular file, open for reading; see `read_regular`."""
    # Looks before it opens: opening a device can have effects, and a socket cannot be opened.
    _check_kind(path.stat(follow_symlinks=not flags & NO_FOLLOW), path, most_bytes)
    handle = os.open(path, os.O_RDONLY | _NO_WAIT | _BINARY | flags)
    try:
        _check_kind(os.fstat(handle), path, most_bytes)  # the name may be another file's by now
    except OSError:
        os.close(handle)
        raise
    return os.fdopen(handle, "rb")


def open_packed(file: BinaryIO, start: bytes) -> BinaryIO | None:
    """What gzip, bzip2 or xz compressed, by the first bytes of its file; None if none of them did.

    Reading it raises what these raise for a damaged file: OSError, EOFError, zlib's and lzma's.
    """
    import bz2
    import gzip
    import lzma

    if start.startswith(b"\x1f\x8b"):
        return cast("BinaryIO", gzip.GzipFile(fileobj=file, mode="rb"))
    if start.startswith(b"BZh"):
        return cast("BinaryIO", bz2.BZ2File(file))
    if start.startswith(b"\xfd7zXZ\x00"):
        return cast("BinaryIO", lzma.LZMAFile(file))
    return None


def _check_kind(status: os.stat_result, path: Path, most_bytes: int | None) -> None:
    if not stat.S_ISREG(status.st_mode):
        kind = name_kind(status.st_mode)
        raise WrongKindError(errno.EINVAL, f"it is {kind}, not a file", str(path))
    if most_bytes is not None and status.st_size > most_bytes:
        size = f"{format_bytes(status.st_size)}, more than {format_bytes(most_bytes)}"
        raise WrongKindError(errno.EFBIG, f"it has {size}", str(path))


def name_kind(mode: int) -> str:
    """What a file mode says that something is.

    >>> name_kind(stat.S_IFIFO | 0o644)
    'a named pipe'
    """
    kinds = {
        stat.S_IFREG: "a file",
        stat.S_IFDIR: "a folder",
        stat.S_IFLNK: "a symbolic link",
        stat.S_IFIFO: "a named pipe",
        stat.S_IFSOCK: "a socket",
    }
    return kinds.get(stat.S_IFMT(mode), "a device")


def give_to_owner(handle: int, folder: Path) -> None:
    """If root writes into another user's folder, gives the new file to that user.

    File systems that refuse chown (FAT, FUSE, a root-squashing server) keep the file as it is.
    """
    if hasattr(os, "geteuid") and os.geteuid() == 0:
        with contextlib.suppress(OSError):
            owner = folder.stat()
            os.fchown(handle, owner.st_uid, owner.st_gid)


def write_atomically(
    path: Path,
    data: bytes | str,
    mode: int | None = None,
    *,
    disk: Disk | None = None,
    scratch: Path | None = None,
) -> None:
    """Writes the file so that a reader sees the old content or the new one, never a part.

    ``mode`` is the new file's (0644 if None, reduced by the umask). The new content is first
    written to a hidden file beside ``path``, or in the folder ``scratch`` of the same file
    system; it is removed on an OSError, which is raised again.
    """
    disk = disk or Disk()
    content = data.encode() if isinstance(data, str) else data
    temporary = temporary_name(path, scratch)
    try:
        disk.write_new(temporary, content, 0o644 if mode is None else mode)
        disk.replace(temporary, path)
    except OSError:
        _discard(disk, temporary)
        raise
    disk.sync(path.parent)


def place_new(disk: Disk, path: Path, data: bytes, scratch: Path) -> None:
    """Writes a whole file under a free name. FileExistsError if the name is taken."""
    temporary = temporary_name(path, scratch)
    try:
        disk.write_new(temporary, data)
        move_new(disk, temporary, path)
    except OSError:
        _discard(disk, temporary)
        raise


def move_new(disk: Disk, source: Path, target: Path) -> None:
    """Renames a file, link or folder to a free name. FileExistsError if the name is taken."""
    if source.is_dir() and not source.is_symlink():
        if os.path.lexists(target):
            raise FileExistsError(errno.EEXIST, os.strerror(errno.EEXIST), str(target))
        disk.replace(source, target)  # a folder cannot overwrite a file
        return
    try:
        disk.link(source, target)
    except OSError as error:
        if isinstance(error, FileExistsError) or error.errno not in _NO_LINKS:
            raise
        if not disk.rename_new(source, target):
            _move_without_links(disk, source, target)
    else:
        disk.remove(source)
    disk.sync(target.parent)


def _move_without_links(disk: Disk, source: Path, target: Path) -> None:
    """Claims the name with an empty file, then renames over it.

    This is for file systems that have neither links nor renames that overwrite nothing. If another
    program writes into the empty file in the meantime, that content is kept beside it; one that
    renames over it in between loses its file.
    """
    handle = disk.claim(target)
    with os.fdopen(handle, "rb") as claimed:
        try:
            disk.replace(source, target)
        except OSError:
            if not os.fstat(handle).st_size:
                _discard(disk, target)
            raise
        _wait_for_save(target)
        saved = claimed.read()
    if saved:
        disk.write_new(dated_name(target, "yours", datetime.now().astimezone()), saved)


def _wait_for_save(path: Path) -> None:
    """Waits until JupyterLab's save of the file ends: it keeps a copy in .~NAME until then."""
    until = time.monotonic() + SAVE_SECONDS
    while os.path.lexists(path.with_name(SAVE_PREFIX + path.name)) and time.monotonic() < until:
        time.sleep(0.05)


def temporary_name(path: Path, scratch: Path | None = None) -> Path:
    """A name for the draft of ``path`` that no other process or thread uses.

    Hidden, beside ``path``; or in ``scratch``, where it begins with TEMPORARY_PREFIX.
    """
    unique = f"{os.getpid()}-{secrets.token_hex(4)}"
    if scratch is None:
        return path.with_name(f".{path.name[:40]}.{unique}.tmp")
    return scratch / f"{TEMPORARY_PREFIX}{unique}"


def _discard(disk: Disk, temporary: Path) -> None:
    # The error that is being raised matters more than a draft that could not be removed.
    with contextlib.suppress(OSError):
        disk.remove(temporary)


def free_name(path: Path) -> Path:
    """The path, or the first of ``name-2``, ``name-3`` ... that does not exist."""
    candidate, number = path, 1
    while os.path.lexists(candidate):
        number += 1
        candidate = path.with_name(f"{path.stem}-{number}{path.suffix}")
    return candidate


def dated_name(path: Path, kind: str, now: datetime) -> Path:
    """A free name beside ``path`` with the kind of copy and the date in it.

    >>> dated_name(Path("gone/01_tensors.ipynb"), "old", datetime(2026, 11, 23)).name
    '01_tensors.old-2026-11-23.ipynb'
    """
    return free_name(path.with_name(f"{path.stem}.{kind}-{now:%Y-%m-%d}{path.suffix}"))


@contextlib.contextmanager
def hold_lock(
    path: Path,
    timeout_seconds: float | None = LOCK_SECONDS,
    on_wait: Callable[[], None] | None = None,
) -> Iterator[None]:
    """Holds an exclusive lock on the file ``path``; the system releases it if the process dies.

    ``on_wait`` is called once if another process holds it. LabkitError after
    ``timeout_seconds``; None waits without a limit. On a system or file system without locks,
    nothing is locked.
    """
    try:
        import fcntl
    except ImportError:  # Windows
        yield
        return
    handle = os.open(path, os.O_RDWR | os.O_CREAT | NO_FOLLOW, 0o644)
    try:
        give_to_owner(handle, path.parent)
        started = time.monotonic()
        waited = False
        while True:
            try:
                fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError:
                if timeout_seconds is not None and time.monotonic() - started > timeout_seconds:
                    raise LabkitError(
                        f"{path.parent.parent} is being changed by another labkit process",
                        cause=f"{path} has been locked for {timeout_seconds:.0f} s",
                        fix="wait for it to end, then try again",
                    ) from None
                if on_wait and not waited:
                    on_wait()
                waited = True
                time.sleep(RETRY_SECONDS)
            except OSError as error:
                if error.errno not in _NO_LOCKS:
                    raise
                break
        yield
    finally:
        os.close(handle)


@contextlib.contextmanager
def explain_disk_errors(folder: Path) -> Iterator[None]:
    """Turns an OSError into a LabkitError with its cause and the command that helps."""
    try:
        yield
    except OSError as error:
        raise explain_wrong_kind(error) or _explain_refusal(error, folder) from error


def explain_wrong_kind(error: OSError) -> LabkitError | None:
    """The explanation if something else has the name of a file or folder of labkit's."""
    # Of a rename, the second name is the one that something else has.
    name = getattr(error, "filename2", None) or error.filename
    if error.errno not in _WRONG_KINDS or not isinstance(name, str | Path):
        return None
    try:
        kind = name_kind(os.lstat(name).st_mode)
    except OSError:
        return None
    path = name_outside(Path(name))
    quoted, free = shlex.quote(str(path)), shlex.quote(f"{path}.moved")
    return LabkitError(
        f"{path} is {kind}",
        cause="labkit keeps its own records under this name",
        fix=f"mv {quoted} {free}",
    )


def _explain_refusal(error: OSError, folder: Path) -> LabkitError:
    cause = error.strerror or str(error)
    path = Path(error.filename) if isinstance(error.filename, str) else folder
    shown = name_outside(path)
    quoted, whole = shlex.quote(str(shown)), shlex.quote(str(name_outside(folder)))
    give = None
    if error.errno in (errno.EACCES, errno.EPERM) and hasattr(os, "geteuid"):  # not on Windows
        owner, user = _find_owner(path), os.geteuid()
        if owner is not None and owner != user:
            cause += f"; it belongs to uid {owner}, and you are uid {user}"
        chown = f"{'sudo ' if user else ''}chown -R $(id -u):$(id -g) {whole}"
        give = f"chmod -R u+rwX {whole}" if user and owner == user else chown
    full = "free some space, then try again: no notebook was changed"
    fix = {
        errno.ENOSPC: full,
        errno.EDQUOT: full,
        errno.EROFS: "mount the workspace so that it can be written to",
    }.get(error.errno or 0)
    if error.errno == errno.EACCES:
        fix = give
    elif error.errno == errno.EPERM and give:
        # A file made immutable with chattr +i gives this error too.
        fix = f"{give}; if `lsattr -d {quoted}` shows an i: chattr -i {quoted}"
    return LabkitError(
        f"the workspace {name_outside(folder)} could not be written to",
        cause=f"{cause} ({shown})" if shown != name_outside(folder) else cause,
        fix=fix,
    )


def _find_owner(path: Path) -> int | None:
    """The user id of the owner of the path, or of the nearest folder above it that is seen."""
    for one in (path, *path.parents):
        with contextlib.suppress(OSError):
            return os.lstat(one).st_uid
    return None


def name_outside(path: Path, environment: Mapping[str, str] = os.environ) -> Path:
    """The path as whoever called the launcher finds it: absolute, and the host's for a container.

    >>> inside = {"LABKIT_WORKSPACE": "/inside", "LABKIT_OUTSIDE": "/home/ada/labs"}
    >>> name_outside(Path("/inside/runs/1/report.html"), inside).as_posix()
    '/home/ada/labs/runs/1/report.html'
    """
    inside, outside = (environment.get(name) for name in (WORKSPACE_VARIABLE, OUTSIDE_VARIABLE))
    if not (inside and outside):
        return path
    place = Path.cwd() / path
    return Path(outside) / place.relative_to(inside) if place.is_relative_to(inside) else place


def find_labs_folder(workspace: Path) -> Path:
    """The folder with the labs' notebooks: the workspace, or its subfolder ``labkit-labs``.

    The labs are in the subfolder if the workspace had notebooks before the labs came.
    """
    below = workspace / LABS_FOLDER
    # Unlike Path.is_dir before Python 3.14, os.path.isdir raises nothing for a closed folder.
    both = [os.path.isdir(each / STATE_FOLDER) for each in (workspace, below)]  # noqa: PTH112
    return below if both == [False, True] else workspace


def choose_labs_folder(workspace: Path) -> Path:
    """The folder for the labs' notebooks in a workspace; see `find_labs_folder`."""
    known = (workspace / STATE_FOLDER).is_dir() or find_labs_folder(workspace) != workspace
    if known or next(workspace.glob("*.ipynb"), None) is None:
        return find_labs_folder(workspace)
    return workspace / LABS_FOLDER


def find_workspace(
    environment: Mapping[str, str] | None = None, start: Path | None = None
) -> Path | None:
    """The folder with the labs: LABKIT_WORKSPACE's, or the nearest one above with a manifest.

    ``environment`` is os.environ if None, ``start`` the current folder. None if neither is there.
    """
    named = (os.environ if environment is None else environment).get(WORKSPACE_VARIABLE)
    if named:
        return find_labs_folder(Path(named)) if Path(named).is_dir() else None
    here = (start or Path.cwd()).resolve()
    for folder in (here, *here.parents):
        # Whatever it is: what reads it says so.
        if os.path.lexists(folder / STATE_FOLDER / "manifest.json"):
            return folder
    return None

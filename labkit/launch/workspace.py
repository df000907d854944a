"""Prepares the workspace for a start, gives it to the lab's user, and reports what was added.

Root changes the owner by file descriptor, because the workspace's user can rename and link files
at the same time.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import shlex
import stat
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from labkit.errors import UsageError
from labkit.files import LABS_FOLDER, STATE_FOLDER
from labkit.host.machine import read_folder
from labkit.launch.settings import Checkout, Identity
from labkit.launch.state import read_record
from labkit.text import format_bytes, plural

MANIFEST = f"{STATE_FOLDER}/manifest.json"
LEAST_FREE_BYTES = 64 * 1024**2
ROOT_ID = 0
# O_NONBLOCK: a named pipe in place of a file must not block the walk.
OPEN_FLAGS = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC


def prepare_workspace(checkout: Checkout) -> None:
    """Creates ``work/`` if it is missing. Raises UsageError if it cannot be used."""
    workspace = checkout.workspace
    quoted = shlex.quote(str(workspace))
    with contextlib.suppress(OSError):
        workspace.mkdir(exist_ok=True)
    facts = read_folder(workspace)
    if not facts.is_folder:
        raise UsageError(
            f"the workspace {workspace} is not a folder",
            cause="another kind of file has its name" if facts.exists else "it cannot be created",
            fix=f"ls -ld {quoted} {shlex.quote(str(workspace.parent))}",
        )
    if not facts.writable:
        raise UsageError(
            f"the workspace {workspace} is not writable",
            cause=f"it belongs to uid {facts.owner_id}, and you are uid {os.getuid()}",
            fix=f"sudo chown -R $(id -u):$(id -g) {quoted}",
        )
    if facts.free_bytes is not None and facts.free_bytes < LEAST_FREE_BYTES:
        raise UsageError(
            f"the workspace's disk is full: {format_bytes(facts.free_bytes)} left",
            cause="a notebook that cannot be saved is lost",
            fix=f"df -h {quoted}",
        )


def hand_over(checkout: Checkout, identity: Identity) -> str | None:
    """Gives the token and root's files in the workspace to the user that the lab runs as.

    Does nothing unless the host's user is root: other users own the files already. Changes folders,
    and files without hard links, on the workspace's own file system; follows no link. Returns a
    warning if the file system refuses.
    """
    if os.geteuid() != 0 or identity.is_root:
        return None
    changer = _OwnerChanger(identity)
    changer.give_file(checkout.token_file)
    # A folder of the user's own keeps its owners.
    workspace = None if checkout.named else changer.open_folder(checkout.workspace)
    if workspace is not None:
        with _closing(workspace):
            if not identity.owns_workspace:
                changer.give(workspace)
            changer.give_inside(workspace)
    return changer.describe_refusals(checkout.workspace)


class _OwnerChanger:
    """Changes the owner of open files; records refusals."""

    def __init__(self, identity: Identity) -> None:
        self._user, self._group = identity.user_id, identity.group_id
        self._refused: list[str] = []

    def open_folder(self, path: Path) -> int | None:
        """A descriptor of the folder, opened from / on without following other users' links."""
        parent = os.open("/", OPEN_FLAGS)
        for name in _resolve_own_link(path).parts[1:]:
            with _closing(parent):
                try:
                    parent = os.open(name, OPEN_FLAGS | os.O_DIRECTORY, dir_fd=parent)
                except OSError as error:
                    self._refused.append(f"{path}: {error.strerror}")
                    return None
        return parent

    def give_file(self, path: Path) -> None:
        """Gives the file at ``path`` to the user, unless it has hard links or is a link."""
        folder = self.open_folder(path.parent)
        if folder is not None:
            with _closing(folder):
                self._give_entry(folder, path.name, _find_mount(folder))

    def give_inside(self, folder: int) -> None:
        """Gives root's files below the folder to the user; other users' files stay theirs."""
        mount = _find_mount(folder)
        waiting = [os.dup(folder)]
        try:
            while waiting:
                inner = waiting.pop()
                with _closing(inner):
                    for name in os.listdir(inner):  # noqa: PTH208 - by descriptor
                        below = self._give_entry(inner, name, mount)
                        if below is not None:
                            waiting.append(below)
        except OSError as error:  # such as too many open files
            self._refused.append(str(error.strerror))
        finally:
            for left in waiting:
                os.close(left)

    def _give_entry(self, folder: int, name: str, mount: object) -> int | None:
        """Gives one entry of a folder to the user; returns a descriptor of a folder to enter."""
        try:
            kind = os.stat(name, dir_fd=folder, follow_symlinks=False).st_mode
            if not (stat.S_ISDIR(kind) or stat.S_ISREG(kind)):
                return None
            entry = os.open(name, OPEN_FLAGS, dir_fd=folder)
        except OSError as error:
            self._refused.append(f"{name}: {error.strerror}")
            return None
        # Check the open file, not its name: the name can refer to another file by now.
        facts = os.fstat(entry)
        is_folder = stat.S_ISDIR(facts.st_mode)
        has_one_name = stat.S_ISREG(facts.st_mode) and facts.st_nlink == 1
        is_here = _find_mount(entry) == mount
        if is_here and facts.st_uid == ROOT_ID and (is_folder or has_one_name):
            self.give(entry)
        if is_here and is_folder:
            return entry
        os.close(entry)
        return None

    def give(self, descriptor: int) -> None:
        """Gives an open file to the user; records a refusal."""
        try:
            os.fchown(descriptor, self._user, self._group)
        except OSError as error:
            self._refused.append(str(error.strerror))

    def describe_refusals(self, workspace: Path) -> str | None:
        """A warning about the files that stay root's; None if there are none."""
        if not self._refused:
            return None
        files = plural(len(self._refused), "file")
        return (
            f"{files} of {workspace.name}/ cannot be given to uid {self._user}"
            f" ({self._refused[0]}): the lab may not be able to change them"
        )


def _resolve_own_link(path: Path) -> Path:
    """The target of ``path`` if it is root's own link; otherwise ``path``."""
    if not hasattr(os, "O_PATH"):
        return path
    with contextlib.suppress(OSError):
        link = os.open(path, os.O_PATH | os.O_NOFOLLOW)
        with _closing(link):
            facts = os.fstat(link)
            if stat.S_ISLNK(facts.st_mode) and facts.st_uid == ROOT_ID:
                return Path(os.path.normpath(path.parent / os.readlink("", dir_fd=link)))
    return path


def _find_mount(descriptor: int) -> object:
    """An identifier of the mount of an open file: Linux's mount id, else the device.

    Two bind mounts of one disk have the same device.
    """
    with contextlib.suppress(OSError):
        for line in Path(f"/proc/self/fdinfo/{descriptor}").read_text().splitlines():
            if line.startswith("mnt_id:"):
                return line
    return os.fstat(descriptor).st_dev


@contextlib.contextmanager
def _closing(descriptor: int) -> Iterator[None]:
    try:
        yield
    finally:
        os.close(descriptor)


def describe_update(checkout: Checkout) -> list[str]:
    """The changes of the last start to the workspace, one line for each kind of change."""
    labs = _find_labs(checkout)
    folder = f"{labs.relative_to(checkout.workspace.parent).as_posix()}/"
    titles = {
        "placed": f"put into {folder}",
        "replaced": "updated, untouched until now",
        "laid_beside": "new versions laid beside your own",
    }
    update = _read_last_update(checkout)
    lines = []
    for kind, title in titles.items():
        names = _list_texts(update.get(kind))
        if names:
            lines.append(f"{title}: {', '.join(names)}")
    return [*lines, *_list_texts(update.get("notes")), *describe_missing(checkout)]


def describe_missing(checkout: Checkout) -> list[str]:
    """A line on the labs whose notebooks the learner has deleted; empty if all are there."""
    folder = _find_labs(checkout)
    entries = _read_manifest(checkout).get("labs")
    names = [
        str(name)
        for name, entry in (entries.items() if isinstance(entries, dict) else ())
        if isinstance(entry, dict)
        and isinstance(entry.get("file"), str)
        and not os.path.lexists(folder / entry["file"])
    ]
    if not names:
        return []
    value = names[0] if len(names) == 1 else f'"{" ".join(names)}"'
    return [f"deleted by you: {', '.join(names)} (make reset LABS={value} puts them back)"]


def digest_lessons(checkout: Checkout) -> str:
    """A digest of all that the labs' notebooks are made from."""
    folder = checkout.root / "labs"
    digest = hashlib.sha256()
    for path in sorted([folder / "labs.toml", *folder.glob("*/lesson.py")]):
        with contextlib.suppress(OSError):
            digest.update(f"{path.parent.name}\n".encode() + path.read_bytes())
    return digest.hexdigest()


def _list_texts(value: Any) -> list[str]:
    """The texts of a list; empty for anything else."""
    return [one for one in value if isinstance(one, str)] if isinstance(value, list) else []


def read_update_time(checkout: Checkout) -> str | None:
    """When the workspace was last updated, or None if never."""
    at = _read_last_update(checkout).get("at")
    return at if isinstance(at, str) else None


def _find_labs(checkout: Checkout) -> Path:
    """The folder that the last start put the labs into; see `labkit.files.choose_labs_folder`."""
    workspace = checkout.workspace
    below = workspace / LABS_FOLDER
    # Unlike Path.is_file before Python 3.14, os.path.isfile raises nothing for a closed folder.
    both = [os.path.isfile(each / MANIFEST) for each in (workspace, below)]  # noqa: PTH113
    return below if both == [False, True] else workspace


def _read_last_update(checkout: Checkout) -> dict[str, Any]:
    """The manifest's record of the last update; empty if it cannot be read."""
    update = _read_manifest(checkout).get("last_update")
    return update if isinstance(update, dict) else {}


def _read_manifest(checkout: Checkout) -> dict[str, Any]:
    """The workspace's manifest; empty if it cannot be read."""
    try:
        found = json.loads(read_record(_find_labs(checkout) / MANIFEST))
    except (OSError, ValueError, RecursionError):
        return {}
    return found if isinstance(found, dict) else {}

"""Who owns a folder, whether it can be written, and how much room its disk has."""

from __future__ import annotations

import os
import shutil
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class FolderFacts:
    """A folder as it is on disk; owner and room are None where it does not exist."""

    path: Path
    exists: bool
    is_folder: bool
    owner_id: int | None
    group_id: int | None
    writable: bool
    free_bytes: int | None


def read_folder(path: Path) -> FolderFacts:
    """The facts of ``path``, following a symbolic link to where it leads."""
    try:
        status = path.stat()
    except OSError:
        return FolderFacts(path, os.path.lexists(path), False, None, None, False, None)
    return FolderFacts(
        path,
        exists=True,
        is_folder=path.is_dir(),
        owner_id=status.st_uid,
        group_id=status.st_gid,
        writable=os.access(path, os.W_OK | os.X_OK),
        free_bytes=shutil.disk_usage(path).free,
    )

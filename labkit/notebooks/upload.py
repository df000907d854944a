"""Sends a run folder to an address that fsspec knows: ``s3://``, ``gs://``, ``memory://``."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from labkit.errors import LabkitError, UsageError
from labkit.text import escape_controls, first_line


def check_address(address: str) -> None:
    """Raises UsageError if fsspec is missing, lacks the protocol's package, or finds a run."""
    system, place = _connect(address)
    try:
        taken = system.exists(f"{place}/result.json")
    except Exception as error:  # each file system raises errors of its own
        raise UsageError(
            f"--output {show_address(address)} cannot be reached", cause=_say(error)
        ) from error
    if taken:
        raise UsageError(
            f"--output {show_address(address)} already holds a run", fix="choose another one"
        )


def upload_folder(folder: Path, address: str) -> None:
    """Copies the folder's files there. Raises LabkitError if one cannot be sent."""
    system, place = _connect(address)
    try:
        system.makedirs(place, exist_ok=True)
        for path in sorted(path for path in folder.rglob("*") if path.is_file()):
            target = f"{place}/{path.relative_to(folder).as_posix()}"
            system.makedirs(target.rpartition("/")[0], exist_ok=True)
            system.put_file(str(path), target)
    except Exception as error:
        raise LabkitError(
            f"the run was not sent to {show_address(address)}", cause=_say(error)
        ) from error


def _connect(address: str) -> tuple[Any, str]:
    try:
        from fsspec.core import url_to_fs

        system, place = url_to_fs(address)
    except (ImportError, ValueError, OSError) as error:  # OSError: an archive that is not there
        raise UsageError(
            f"--output {show_address(address)} cannot be used", cause=_say(error)
        ) from error
    return system, place.rstrip("/")


def show_address(address: str) -> str:
    """The address for people, without a password in it.

    >>> show_address("ftp://me:secret@host/runs")
    'ftp://...@host/runs'
    """
    return escape_controls(re.sub(r"(?<=://)[^/@]*@", "...@", address))


def _say(error: Exception) -> str:
    return escape_controls(first_line(str(error)) or type(error).__name__)

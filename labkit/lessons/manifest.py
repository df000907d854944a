"""The workspace's own notes, in ``.labkit/manifest.json``: what labkit put where.

``last_update`` tells what the last update did, for the launcher to read:
``{"at": ISO time, "placed": [file, ...], "replaced": [...], "laid_beside": [...],
"missing": [...], "notes": [...]}``. The lists are those of the very last update, and empty where
it had nothing to do; ``at`` is when they last came out different. Standard library only.
"""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, field
from datetime import datetime
from pathlib import Path
from typing import Any

from labkit.files import Disk, dated_name, move_new, write_atomically

SCHEMA_VERSION = 1


@dataclass(frozen=True)
class Entry:
    """A lab's notebook: the file's name, the content put there, the content laid beside it.

    ``placed`` is None where the file was there before labkit put anything; ``older`` are contents
    that were placed or laid before those: files of labkit's, until somebody works on them.
    """

    file: str
    placed: str | None = None
    laid: str | None = None
    older: tuple[str, ...] = ()


@dataclass(frozen=True)
class Manifest:
    """What labkit knows of a workspace; ``source`` is the digest of the labs it last saw whole."""

    entries: dict[str, Entry] = field(default_factory=dict)
    source: str | None = None
    last_update: dict[str, Any] = field(default_factory=dict)


def manifest_path(state: Path) -> Path:
    """Where the manifest lies in a workspace's ``.labkit`` folder."""
    return state / "manifest.json"


def read_manifest(state: Path) -> Manifest:
    """The manifest; an empty one where there is none; ValueError where it is broken."""
    try:
        value: Any = json.loads(manifest_path(state).read_bytes())
    except FileNotFoundError:
        return Manifest()
    try:
        entries = {name: _read_entry(entry) for name, entry in value["labs"].items()}
        return Manifest(entries, value.get("source"), dict(value.get("last_update", {})))
    except (KeyError, TypeError, AttributeError) as error:
        raise ValueError(f"it lacks {error}") from error


def write_manifest(disk: Disk, state: Path, manifest: Manifest) -> None:
    """Writes the manifest whole, or leaves the old one."""
    value = {
        "schema_version": SCHEMA_VERSION,
        "labs": {name: asdict(entry) for name, entry in manifest.entries.items()},
        "source": manifest.source,
        "last_update": manifest.last_update,
    }
    data = (json.dumps(value, indent=2) + "\n").encode()
    write_atomically(disk, manifest_path(state), data, state)


def set_manifest_aside(disk: Disk, state: Path, now: datetime) -> str:
    """Keeps a broken manifest under a dated name, and says so."""
    kept = dated_name(manifest_path(state), "broken", now)
    move_new(disk, manifest_path(state), kept)
    return f"the manifest could not be read: it was kept as .labkit/{kept.name}"


def _read_entry(value: dict[str, Any]) -> Entry:
    file, placed, laid = value["file"], value.get("placed"), value.get("laid")
    # A name with a folder in it would lead out of the workspace.
    if not isinstance(file, str) or Path(file).name != file or file.startswith("."):
        raise TypeError("a plain file name")
    if not isinstance(placed, str | None) or not isinstance(laid, str | None):
        raise TypeError("a digest")
    older = tuple(value.get("older", ()))
    if not all(isinstance(digest, str) for digest in older):
        raise TypeError("a digest")
    return Entry(file, placed, laid, older)

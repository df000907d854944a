"""What the start page says of the labs: how far the learner is, and where to go on.

It reads the workspace, runs no notebook and loads no torch.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path
from typing import Any

from labkit.errors import LabkitError
from labkit.files import find_labs_folder, name_kind
from labkit.lessons.catalog import Lab, exercise_titles, find_labs
from labkit.lessons.learner import OnRead, called_checks, find_notebooks, read_entries
from labkit.lessons.notebooks import cell_source, digest_parsed, read_notebook
from labkit.lessons.progress import Progress, read_progress
from labkit.lessons.workspace import Entry

_HEADING = re.compile(r"^#{1,6} +\S", re.MULTILINE)
# A notebook is placed without outputs: a larger file was edited or run, whatever its digest.
_LARGEST_PLACED_BYTES = 4 * 2**20


@dataclass(frozen=True)
class LabCard:
    """A lab and the learner's progress in it; ``passed`` is None if that is unknown.

    ``notebook`` is its path below the workspace; None if the learner has deleted it, or if it
    cannot be opened for the reason in ``trouble``.
    """

    lab: Lab
    notebook: str | None
    passed: int | None
    total: int
    trouble: str | None = None


@dataclass(frozen=True)
class NextStep:
    """Where to go on: a lab's notebook, the exercise, and the id of the cell with its heading.

    ``begun`` is False if the learner has not edited this notebook; then it is read from the top.
    """

    card: LabCard
    begun: bool
    exercise: str
    cell: str | None = None


@dataclass(frozen=True)
class Overview:
    """The labs in their order; ``next`` is None if all exercises are passed or no lab is there."""

    cards: tuple[LabCard, ...]
    next: NextStep | None
    note: str | None = None

    @property
    def passed(self) -> int | None:
        """How many exercises are passed; None if that is unknown."""
        known = [card.passed for card in self.cards if card.passed is not None]
        return sum(known) if len(known) == len(self.cards) else None

    @property
    def total(self) -> int:
        """How many exercises there are."""
        return sum(card.total for card in self.cards)


def read_overview(
    workspace: Path, labs: Iterable[Lab] | None = None, on_read: OnRead = lambda path: None
) -> Overview:
    """The learner's progress in every lab, and where to go on.

    That is the notebook that was edited last: its exercise that was tried last, else the first
    one that is not passed. If it has none left, it is the next lab with an open exercise.
    ``on_read`` is called with each notebook before it is read.
    """
    labs = tuple(find_labs() if labs is None else labs)
    folder = find_labs_folder(workspace)
    entries, progress = read_entries(folder), read_progress(folder)
    titles = {lab.name: exercise_titles(lab) for lab in labs}
    paths = _find_paths(folder, labs, entries, on_read)
    cards = tuple(
        LabCard(
            lab,
            place,
            sum(progress.standing(f"{lab.name}.{name}").passed is not None for name in known),
            len(known),
            trouble,
        )
        for lab, known in zip(labs, titles.values(), strict=True)
        for place, trouble in [_describe_place(workspace, paths.get(lab.name), lab)]
    )
    edited = {}
    for card in cards:
        on_read(workspace / (card.notebook or ""))
        edited[card.lab.name] = _edited_at(workspace, card, entries)
    return Overview(cards, _find_next(workspace, cards, edited, titles, progress), progress.note)


def overview_without_progress(note: str, labs: Iterable[Lab] | None = None) -> Overview:
    """The labs with the names that their notebooks were given; ``note`` says why that is all."""
    labs = tuple(find_labs() if labs is None else labs)
    cards = tuple(LabCard(lab, lab.notebook, None, len(exercise_titles(lab))) for lab in labs)
    return Overview(cards, None, note)


def mark_unread(overview: Overview, note: str) -> Overview:
    """An overview that was read before, with ``note`` in place of where to go on."""
    return replace(overview, next=None, note=note)


def _find_paths(
    folder: Path, labs: Iterable[Lab], entries: Mapping[str, Entry], on_read: OnRead
) -> dict[str, Path]:
    """The notebooks of the labs that have one, by the lab's name."""
    found = {}
    for lab in labs:
        entry = entries.get(lab.name)
        found[lab.name] = folder / (entry.file if entry else lab.notebook)
    # Unlike Path.is_file before Python 3.14, it raises nothing, whatever stands there.
    there = {name: path for name, path in found.items() if os.path.isfile(path)}  # noqa: PTH113
    gone = [lab for lab in labs if lab.name not in there]
    # Renamed, moved or deleted: this reads all notebooks.
    return {**there, **(find_notebooks(folder, gone, on_read) if gone else {})}


def _describe_place(workspace: Path, path: Path | None, lab: Lab) -> tuple[str | None, str | None]:
    """The path of a lab's notebook below the workspace, or None, and why it cannot be opened."""
    if path is None:
        return None, None
    place = path.relative_to(workspace).as_posix()
    name = place.encode(errors="backslashreplace").decode()
    if not _is_utf8(place):
        return None, (
            f"No browser can open its notebook {name}: the name is not UTF-8. Rename the file."
        )
    if os.path.isfile(path):  # noqa: PTH113 - it raises nothing
        return place, None
    try:
        kind = name_kind(path.lstat().st_mode)
    except OSError:  # it just went
        return None, None
    lost = " that leads to no file" if path.is_symlink() else ""
    keep = f"labkit reset {lab.name} puts a fresh notebook there, and keeps what is there now."
    return None, f"Its notebook {name} is {kind}{lost}: {keep}"


def _is_utf8(text: object) -> bool:
    """False for text with lone surrogates, as file names and JSON may have: no URL can hold it."""
    if not isinstance(text, str):
        return False
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def _edited_at(workspace: Path, card: LabCard, entries: Mapping[str, Entry]) -> int | None:
    """When the notebook was last written, in ns; None for one as it was placed."""
    if card.notebook is None:
        return None
    path, entry = workspace / card.notebook, entries.get(card.lab.name)
    try:
        known = path.stat()
    except (OSError, ValueError):
        return None
    if known.st_size <= _LARGEST_PLACED_BYTES and entry and entry.whole:
        whole = _look_into(path, known).whole
        if whole == entry.whole:
            return None
    return known.st_mtime_ns


@dataclass(frozen=True)
class _Look:
    """What the page asks of a notebook.

    ``headings`` has the id of the last cell with a heading above each check. ``whole`` is None
    if the file cannot be read, and for a large one.
    """

    whole: str | None
    headings: Mapping[str, str]


def _look_into(path: Path, known: os.stat_result) -> _Look:
    version = known.st_size, known.st_ino, known.st_mtime_ns, known.st_ctime_ns
    return _read_look(path, version)


@lru_cache(maxsize=64)
def _read_look(path: Path, version: tuple[int, ...]) -> _Look:
    """Each version of a file is read once: some are large."""
    try:
        notebook = read_notebook(path)
    except LabkitError:
        return _Look(None, {})
    whole = digest_parsed(notebook).whole if version[0] <= _LARGEST_PLACED_BYTES else None
    return _Look(whole, _find_headings(notebook["cells"]))


def _find_next(
    workspace: Path,
    cards: tuple[LabCard, ...],
    edited: Mapping[str, int | None],
    titles: Mapping[str, Mapping[str, str]],
    progress: Progress,
) -> NextStep | None:
    there = [card for card in cards if card.notebook is not None]
    last = max(
        (card for card in there if edited[card.lab.name] is not None),
        key=lambda card: edited[card.lab.name] or 0,
        default=None,
    )
    order = there
    if last is not None:  # from the lab that was edited last on, and around
        place = there.index(last)
        order = [*there[place:], *there[:place]]
    for card in order:
        name = _choose_exercise(card, titles[card.lab.name], progress)
        if name is not None:
            begun = edited[card.lab.name] is not None
            cell = None
            if begun:
                cell = _find_cell(workspace / (card.notebook or ""), f"{card.lab.name}.{name}")
            return NextStep(card, begun, titles[card.lab.name][name], cell)
    return None


def _choose_exercise(card: LabCard, titles: Mapping[str, str], progress: Progress) -> str | None:
    """The open exercise of the lab that was tried, the last in order, else the first open one."""
    standings = {name: progress.standing(f"{card.lab.name}.{name}") for name in titles}
    still_open = [name for name, standing in standings.items() if standing.passed is None]
    tried = [name for name in still_open if standings[name].attempts]
    return tried[-1] if tried else next(iter(still_open), None)


def _find_cell(path: Path, exercise: str) -> str | None:
    """The id of the cell with the exercise's heading; None if it cannot be found."""
    try:
        return _look_into(path, path.stat()).headings.get(exercise)
    except OSError:
        return None


def _find_headings(cells: Iterable[Any]) -> Mapping[str, str]:
    """For each exercise, the id of the last cell with a heading above the one that checks it."""
    found: dict[str, str] = {}
    heading = None
    for cell in cells:
        source = cell_source(cell)
        if cell["cell_type"] == "markdown" and _HEADING.search(source):
            heading = cell.get("id")
        elif heading and _is_utf8(heading):
            found.update((one, heading) for one in called_checks(source) if one not in found)
    return found

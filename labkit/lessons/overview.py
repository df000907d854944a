"""What the start page says of the labs: how far the learner is, and where to go on.

It reads the workspace, runs no notebook and loads no torch.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

from labkit.errors import LabkitError
from labkit.files import STATE_FOLDER, find_labs_folder
from labkit.lessons.catalog import Lab, exercise_titles, find_labs
from labkit.lessons.learner import called_checks, find_notebook
from labkit.lessons.notebooks import cell_source, read_digests, read_notebook
from labkit.lessons.progress import Progress, read_progress
from labkit.lessons.workspace import Entry, read_manifest

_HEADING = re.compile(r"^#{1,6} +\S", re.MULTILINE)


@dataclass(frozen=True)
class LabCard:
    """A lab and the learner's progress in it.

    ``notebook`` is its path below the workspace; None if the learner has deleted it.
    """

    lab: Lab
    notebook: str | None
    passed: int
    total: int


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
    def passed(self) -> int:
        """How many exercises are passed."""
        return sum(card.passed for card in self.cards)

    @property
    def total(self) -> int:
        """How many exercises there are."""
        return sum(card.total for card in self.cards)


def read_overview(workspace: Path, labs: Iterable[Lab] | None = None) -> Overview:
    """The learner's progress in every lab, and where to go on.

    That is the notebook that was edited last: its exercise that was tried last, else the first
    one that is not passed. If it has none left, it is the next lab with an open exercise.
    """
    labs = tuple(find_labs() if labs is None else labs)
    folder = find_labs_folder(workspace)
    entries, progress = _read_entries(folder), read_progress(folder)
    titles = {lab.name: exercise_titles(lab) for lab in labs}
    cards = tuple(
        LabCard(
            lab,
            _find_place(workspace, folder, lab, entries.get(lab.name)),
            sum(progress.standing(f"{lab.name}.{name}").passed is not None for name in known),
            len(known),
        )
        for lab, known in zip(labs, titles.values(), strict=True)
    )
    edited = {card.lab.name: _edited_at(workspace, card, entries) for card in cards}
    return Overview(cards, _find_next(workspace, cards, edited, titles, progress), progress.note)


def _read_entries(folder: Path) -> Mapping[str, Entry]:
    try:
        return read_manifest(folder / STATE_FOLDER).entries
    except (OSError, ValueError):
        return {}


def _find_place(workspace: Path, folder: Path, lab: Lab, entry: Entry | None) -> str | None:
    """The path of the lab's notebook below the workspace; None if it has none."""
    path: Path | None = folder / (entry.file if entry else lab.notebook)
    if path is None or not path.is_file():
        path = find_notebook(folder, lab)  # renamed or moved; it reads all notebooks
    return path.relative_to(workspace).as_posix() if path else None


def _edited_at(workspace: Path, card: LabCard, entries: Mapping[str, Entry]) -> int | None:
    """When the notebook was last written, in ns; None for one as it was placed."""
    if card.notebook is None:
        return None
    path, entry = workspace / card.notebook, entries.get(card.lab.name)
    held = read_digests(path)
    if entry and held and held.whole == entry.whole:
        return None
    try:
        return path.stat().st_mtime_ns
    except OSError:
        return None


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
            path = workspace / (card.notebook or "")
            cell = _find_cell(path, f"{card.lab.name}.{name}") if begun else None
            return NextStep(card, begun, titles[card.lab.name][name], cell)
    return None


def _choose_exercise(card: LabCard, titles: Mapping[str, str], progress: Progress) -> str | None:
    """The open exercise of the lab that was tried, the last in order, else the first open one."""
    standings = {name: progress.standing(f"{card.lab.name}.{name}") for name in titles}
    still_open = [name for name, standing in standings.items() if standing.passed is None]
    tried = [name for name in still_open if standings[name].attempts]
    return tried[-1] if tried else next(iter(still_open), None)


def _find_cell(path: Path, exercise: str) -> str | None:
    """The id of the last cell with a heading above the one that checks the exercise."""
    try:
        cells = read_notebook(path)["cells"]
    except LabkitError:
        return None
    found = None
    for cell in cells:
        source = cell_source(cell)
        if cell["cell_type"] == "markdown" and _HEADING.search(source):
            found = cell.get("id")
        elif exercise in called_checks(source):
            return str(found) if found else None
    return None

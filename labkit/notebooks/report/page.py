"""The page around everything: head, style, the little script, and the bound on its size."""

from __future__ import annotations

import contextlib
import os
from importlib.resources import files
from pathlib import Path

from labkit.errors import LabkitError
from labkit.notebooks.report.outputs import Piece
from labkit.render import escape, make_document
from labkit.text import format_bytes

MAX_PAGE_BYTES = 2_900_000
# Pieces stand in the page as numbers between these until it is known which ones fit; escape()
# lets no such character through.
EDGE = "\0"


class Pieces:
    """The outputs of a page: laid aside first, then filled in as far as the page may grow."""

    def __init__(self) -> None:
        self._pieces: list[tuple[Piece, str]] = []

    def lay_aside(self, piece: Piece, where: str) -> str:
        """What stands for the piece in the page; ``where`` names the file that keeps it."""
        self._pieces.append((piece, where))
        return f"{EDGE}{len(self._pieces) - 1}{EDGE}"

    def fill(self, page: str, limit_bytes: int = MAX_PAGE_BYTES) -> str:
        """The page with its pieces; the largest are left out, and said to be, where it must be."""
        parts = page.split(EDGE)
        asked = {int(number) for number in parts[1::2]}
        room = limit_bytes - sum(len(part.encode(errors="replace")) for part in parts[::2])
        sizes = {number: self._pieces[number][0].size_bytes for number in asked}
        kept = {number: self._pieces[number][0].make() for number in _choose(sizes, room)}
        # What was made may be larger than what was expected of it.
        sizes = {number: len(made.encode(errors="replace")) for number, made in kept.items()}
        fitting = _choose(sizes, room)
        for place in range(1, len(parts), 2):
            number = int(parts[place])
            parts[place] = kept[number] if number in fitting else self._say_left_out(number)
        return "".join(parts)

    def _say_left_out(self, number: int) -> str:
        piece, where = self._pieces[number]
        size = format_bytes(piece.size_bytes)
        return (
            f'<p class="left-out">{escape(piece.what)} of {size} is left out to keep this page'
            f" small; it is in {escape(where)}</p>"
        )


def _choose(sizes: dict[int, int], room: int) -> set[int]:
    """The numbers that fit into the room once the largest are left out, each for a short note."""
    note = 200
    kept, total = set(sizes), sum(sizes.values())
    for number in sorted(sizes, key=lambda one: sizes[one], reverse=True):
        if total <= room or sizes[number] <= note:
            break
        kept.discard(number)
        total -= sizes[number] - note
    return kept


def make_page(title: str, body: str) -> str:
    """A whole html document that loads nothing: style and script are in it, and no other can be."""
    return make_document(
        escape(title),
        body,
        style=_read("report.css"),
        script=_read("report.js"),
        sources=("img-src data:",),
    )


def write_page(path: Path, page: str) -> Path:
    """Writes the page in one step: who has an older one open never finds half of this one."""
    partial = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        partial.write_text(page, encoding="utf-8", errors="replace")
        partial.replace(path)
    except OSError as error:
        with contextlib.suppress(OSError):
            partial.unlink()
        raise LabkitError(f"{path} cannot be written", cause=str(error)) from error
    return path


def _read(name: str) -> str:
    return files("labkit.notebooks.report").joinpath(name).read_text(encoding="utf-8")

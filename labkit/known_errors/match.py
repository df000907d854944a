"""Finds the known errors in a log, with the line of each, the root cause first.

A log is read in blocks. A known error is searched only in blocks that contain the words that its
text requires, and there only in the lines around these words.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import BinaryIO

from labkit.host.distribution import UNKNOWN, Distribution
from labkit.known_errors import KNOWN_ERRORS
from labkit.known_errors.model import CERTAINTIES, Expression, KnownError, RequiredWords
from labkit.known_errors.read import (
    Piece,
    clean_line,
    decode_blocks,
    find_translated,
    read_pieces,
    translate,
)
from labkit.text import escape_controls, strip_ansi

BLOCK_BYTES = 2**18
QUOTED_CHARACTERS = 200
# An error text can be wrapped: this many lines before and after its rarest word are searched.
LINES_AROUND = 3
# A sentence about the error, not the error: `"address already in use" -> choose another port`.
MENTION = re.compile(r".{0,40}?(?:[\"'`] {0,3}(?:->|=>|→)|\bmeans\b)")
# Words consist of lower-case letters, digits and non-ASCII characters; all else separates them.
_SEPARATORS = bytes(
    byte if byte >= 0x80 or chr(byte).isalnum() else ord(" ") for byte in range(256)
)


@dataclass(frozen=True)
class Match:
    """A known error, the line number where it was found (from 1), and the error that caused it.

    ``line`` quotes that line, safe to print.
    """

    error: KnownError
    line_number: int
    line: str
    caused_by: str | None = None

    def describe(self, distribution: Distribution) -> dict[str, object]:
        """The match as ``--json`` prints it, with the fix for this distribution."""
        return {
            "sign": self.error.name,
            "certainty": self.error.certainty,
            "line_number": self.line_number,
            "line": self.line,
            "cause": self.error.cause,
            "fix": self.error.fix.on(distribution),
            "fix_elsewhere": self.error.fix.by_family(),
            "otherwise": self.error.otherwise,
            "caused_by": self.caused_by,
        }


@dataclass(frozen=True)
class Explanation:
    """The known errors found in a text: causes first, their effects after them."""

    found: tuple[Match, ...] = ()

    @property
    def first(self) -> Match | None:
        """The cause to fix first, or None if the text has no known error."""
        return self.found[0] if self.found else None

    @property
    def sure(self) -> Match | None:
        """The first match if its certainty is more than "possible": it may be shown unasked."""
        return self.first if self.first and self.first.error.certainty != "possible" else None

    def describe(self, distribution: Distribution = UNKNOWN) -> dict[str, object]:
        """The explanation as ``--json`` prints it."""
        return {"found": [each.describe(distribution) for each in self.found]}


def explain_text(text: str, known: tuple[KnownError, ...] = KNOWN_ERRORS) -> Explanation:
    """The known errors in ``text``: causes before effects, then by certainty, then by line.

    >>> explain_text("OSError: [Errno 28] No space left on device").first.error.cause
    'the disk is full'
    """
    return _explain(read_pieces([text]), known)


def explain_file(file: BinaryIO, known: tuple[KnownError, ...] = KNOWN_ERRORS) -> Explanation:
    """The known errors in a log of any size and encoding; only one block is in memory at a time."""
    blocks = iter(lambda: file.read(BLOCK_BYTES), b"")
    return _explain(read_pieces(decode_blocks(blocks)), known)


# Errors whose fixes help only where there is a GPU.
GPU_ERRORS = {"no-cuda-build", "torch-without-driver"}
NO_GPU_HINT = (
    "cause: this machine has no NVIDIA GPU, so no tensor can be made on cuda\n"
    'try: device = labkit.best_device()   # then device=device instead of device="cuda"'
)


def hint_at(text: str, distribution: Distribution, *, has_gpu: bool = True) -> str | None:
    """The cause and the fix, one line each, to print below an error; None if none is certain.

    Without a GPU the hint for its errors is another device, not another build of torch.

    >>> print(hint_at("AssertionError: Torch not compiled with CUDA enabled", UNKNOWN))
    cause: this torch is a build for the CPU
    try: pip install torch --index-url https://download.pytorch.org/whl/cu130
    """
    found = explain_text(text).sure
    if found is None:
        return None
    if found.error.name in GPU_ERRORS and not has_gpu:
        return NO_GPU_HINT
    return f"cause: {found.error.cause}\ntry: {found.error.fix.on(distribution)}"


def format_explanation(explanation: Explanation, distribution: Distribution) -> str:
    """The explanation for a person: a block for each known error, in the order to fix them."""
    return "\n\n".join(_format_match(each, distribution) for each in explanation.found)


def _format_match(found: Match, distribution: Distribution) -> str:
    error = found.error
    lines = [
        f"{error.name} ({error.certainty})",
        f"  line {found.line_number}: {found.line}",
        f"  cause: {error.cause}",
        f"  try: {error.fix.on(distribution)}",
    ]
    if error.otherwise:
        lines.append(f"  else: {error.otherwise}")
    if found.caused_by:
        lines.append(f"  comes from: {found.caused_by}")
    return "\n".join(lines)


def _explain(blocks: Iterable[list[Piece]], known: tuple[KnownError, ...]) -> Explanation:
    places: dict[KnownError, tuple[int, str]] = {}
    before: list[Piece] = []
    for pieces in blocks:
        block = _Block([*before, *pieces])
        for error in known:
            if error not in places and (place := block.find(error)):
                places[error] = place
        before = block.pieces[-2 * LINES_AROUND :]
    return _rank_matches(places, known)


class _Block:
    """Some consecutive lines of a log, and the words in them."""

    def __init__(self, pieces: list[Piece]) -> None:
        self.pieces = pieces
        joined = "\n".join([text for _, text in pieces])
        # One Unicode character becomes two in lower case, which would shift all later positions.
        lowered = strip_ansi(joined).replace("\u0130", "i").lower()
        self._translated = find_translated(lowered)
        lowered = translate(lowered, self._translated)
        words = re.sub(r"\\+[nrt]", " ", lowered) if "\\" in lowered else lowered
        self._words = set(words.encode(errors="replace").translate(_SEPARATORS).split())
        self._vocabulary = b" ".join(self._words)
        self._lowered = lowered.split("\n")
        self._cleaned: dict[int, str] = {}

    def find(self, error: KnownError) -> tuple[int, str] | None:
        """The number and the quote of the first line that shows the error, or None."""
        places = [self._search(each, error) for each in error.expressions if self._may_match(each)]
        return min(filter(None, places), key=lambda place: place[0], default=None)

    def _may_match(self, expression: Expression) -> bool:
        whole, parts = expression.words
        return all(word.encode() in self._words for word in whole) and all(
            part.encode() in self._vocabulary for part in parts
        )

    def _search(self, expression: Expression, error: KnownError) -> tuple[int, str] | None:
        for first, last in self._list_windows(expression.words):
            window = "\n".join(self._clean(place) for place in range(first, last))
            for match in expression.regex.finditer(window):
                if not _is_excused(window, match, error):
                    place = first + window.count("\n", 0, match.start())
                    number, line = self.pieces[place]
                    return number, quote_line(line, match.group())
        return None

    def _list_windows(self, words: RequiredWords) -> Iterator[tuple[int, int]]:
        """The ranges of lines that contain all the words; overlapping ranges are merged."""
        first = last = -1
        rarest = words.rarest
        for place, line in enumerate(self._lowered):
            if rarest not in line or not self._are_near(place, words):
                continue
            if place - LINES_AROUND > last:
                if last >= 0:
                    yield first, last
                first = max(0, place - LINES_AROUND)
            last = min(len(self.pieces), place + LINES_AROUND + 1)
        if last >= 0:
            yield first, last

    def _are_near(self, place: int, words: RequiredWords) -> bool:
        near = self._lowered[max(0, place - LINES_AROUND) : place + LINES_AROUND + 1]
        return all(any(word in line for line in near) for word in (*words.whole, *words.parts))

    def _clean(self, place: int) -> str:
        if place not in self._cleaned:
            line = clean_line(self.pieces[place][1])
            self._cleaned[place] = translate(line, self._translated)
        return self._cleaned[place]


def _is_excused(window: str, match: re.Match[str], error: KnownError) -> bool:
    """True if the line only mentions the error, or shows that it is another error."""
    if MENTION.match(window, match.end()):
        return True
    if error.exception is None:
        return False
    start = window.rfind("\n", 0, match.start()) + 1
    end = window.find("\n", match.end())
    return bool(error.exception.search(window, start, end if end >= 0 else len(window)))


def quote_line(line: str, matched: str) -> str:
    """The line, safe to print; a long one is cut to the part around the matched text."""
    line = strip_ansi(line)
    if len(line) > QUOTED_CHARACTERS:
        start = line.find(matched.partition("\n")[0][:QUOTED_CHARACTERS])
        middle = max(0, start - QUOTED_CHARACTERS // 4)
        line = line[middle : middle + QUOTED_CHARACTERS]
    return escape_controls(line.strip())


def _rank_matches(
    places: Mapping[KnownError, tuple[int, str]], known: Sequence[KnownError]
) -> Explanation:
    by_name = {error.name: error for error in known}
    effects = {error.name: _list_effects(error, by_name) for error in places}
    found = [
        Match(
            error,
            *place,
            next((name for name in effects if error.name in effects[name]), None),
        )
        for error, place in places.items()
    ]
    return Explanation(tuple(sorted(found, key=lambda each: _rank(each, effects))))


def _rank(found: Match, effects: Mapping[str, set[str]]) -> tuple[int, int, int]:
    # A cause includes the effects of its effects, so it has fewer causes above it than they have.
    causes = sum(found.error.name in names for names in effects.values())
    return causes, CERTAINTIES.index(found.error.certainty), found.line_number


def _list_effects(error: KnownError, by_name: Mapping[str, KnownError]) -> set[str]:
    """The names of all errors that this one causes, directly or indirectly."""
    effects: set[str] = set()
    waiting = list(error.brings)
    while waiting:
        name = waiting.pop()
        if name not in effects:
            effects.add(name)
            waiting += by_name[name].brings if name in by_name else ()
    return effects - {error.name}

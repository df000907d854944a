"""Finds the known errors in a log, with the line of each, the root cause first.

A log is read in blocks. A known error is searched only in blocks that contain the words that its
text requires, and there only in the lines around these words.
"""

from __future__ import annotations

import re
from bisect import bisect_right
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from itertools import accumulate
from typing import BinaryIO, NamedTuple

from labkit.host.distribution import UNKNOWN, Distribution
from labkit.known_errors import KNOWN_ERRORS
from labkit.known_errors.context import Context, judge_memory
from labkit.known_errors.mention import (
    FINAL,
    PROGRESS,
    PROGRESS_WORDS,
    RETRY,
    TRANSIENT,
    WARNING,
    find_stage,
    is_mention,
)
from labkit.known_errors.model import CERTAINTIES, Expression, KnownError
from labkit.known_errors.read import (
    Piece,
    clean_line,
    decode_blocks,
    find_translated,
    read_pieces,
    translate,
)
from labkit.text import escape_controls, strip_ansi

BLOCK_BYTES = 2**19
QUOTED_CHARACTERS = 200
# An error text can be wrapped: this many lines before and after its rarest word are searched.
LINES_AROUND = 3
# In a traceback: the package whose code raised the error is the last one above it.
_RAISER = re.compile(r"(?:site|dist)-packages[/\\]([A-Za-z]\w{0,60})[/\\.]")
# Shorter words are in too many others: they are searched as whole words.
SHORTEST_SEARCHED = 3
# Words consist of lower-case letters, digits and non-ASCII characters; all else separates them.
_SEPARATORS = bytes(
    byte if byte >= 0x80 or chr(byte).isalnum() else ord(" ") for byte in range(256)
)
_NO_DIGITS = bytes(ord(" ") if chr(byte).isdecimal() else byte for byte in range(256))


# What a command of a fix does besides, to say so next to it.
_NOTES = (
    (r"restart docker\b", "a restart of docker stops its running containers"),
    (r"snap remove docker", "this deletes docker's images, containers and volumes: save them"),
    (r"system prune", "prune deletes stopped containers and their data: read its list first"),
    (r"wsl\.exe --shutdown", "--shutdown ends all programs that run in WSL"),
    (r"apt-get -f install", "apt asks before it removes packages: read its list first"),
)


def list_notes(error: KnownError, distribution: Distribution) -> list[str]:
    """What the commands of an error's fixes end, delete or remove besides."""
    fixes = f"{error.fix.on(distribution)}\n{error.otherwise or ''}"
    return [note for command, note in _NOTES if re.search(command, fixes)]


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
            "notes": list_notes(self.error, distribution),
            "caused_by": self.caused_by,
        }


@dataclass(frozen=True)
class Explanation:
    """The known errors found in a text: causes first, their effects after them."""

    found: tuple[Match, ...] = ()
    context: Context = field(default_factory=Context)

    @property
    def first(self) -> Match | None:
        """The cause to fix first, or None if the text has no error known by more than its form."""
        return next((one for one in self.found if one.error.general != "log"), None)

    @property
    def sure(self) -> Match | None:
        """The first match if its certainty is more than "possible": it may be shown unasked."""
        return self.first if self.first and self.first.error.certainty != "possible" else None

    def describe(self, distribution: Distribution = UNKNOWN) -> dict[str, object]:
        """The explanation as ``--json`` prints it."""
        distribution = self.context.choose_distribution(distribution)
        return {
            "found": [each.describe(distribution) for each in self.found],
            "read_from_text": {**self.context.values, "signs": sorted(self.context.signs)},
        }


def explain_text(text: str, known: tuple[KnownError, ...] = KNOWN_ERRORS) -> Explanation:
    """The known errors in ``text``: causes before effects, then by certainty, then by line.

    >>> explain_text("OSError: [Errno 28] No space left on device").first.error.cause
    'the disk is full'
    """
    # With the last line's end, the whole text is one block.
    return _explain(read_pieces([text + "\n"]), known)


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
    """The explanation for a person: a block for each known error, in the order to fix them.

    The fixes are those of the distribution that the text names, else of ``distribution``.
    """
    distribution = explanation.context.choose_distribution(distribution)
    return "\n\n".join(_format_match(each, distribution) for each in explanation.found)


def _format_match(found: Match, distribution: Distribution) -> str:
    error = found.error
    lines = [f"{error.name} ({error.certainty})", f"  line {found.line_number}: {found.line}"]
    if found.caused_by:  # its own fix would mend nothing as long as the cause is there
        return "\n".join([*lines, f"  comes from: {found.caused_by}"])
    lines += [f"  cause: {error.cause}", f"  try: {error.fix.on(distribution)}"]
    if error.otherwise:
        lines.append(f"  else: {error.otherwise}")
    lines += [f"  note: {note}" for note in list_notes(error, distribution)]
    return "\n".join(lines)


class _Place(NamedTuple):
    """Where an error was found: its line's number and quote, and the values in its text.

    ``end`` is the last line of the text, ``last``, ``stage`` and ``retried`` are of the last line
    that shows the error.
    """

    number: int
    end: int
    line: str
    values: Mapping[str, str]
    last: int
    stage: str
    retried: bool


def _explain(blocks: Iterable[list[Piece]], known: tuple[KnownError, ...]) -> Explanation:
    places: dict[KnownError, _Place] = {}
    found: set[str] = set()  # a name's hash is stored, that of an error is computed each time
    context = Context()
    before: list[Piece] = []
    for pieces in filter(None, blocks):
        block = _Block([*before, *pieces])
        context.read(block.words, block.join_lowered, block.joined)
        for error in known:
            if (error.passes or error.name not in found) and (place := block.find(error)):
                found.add(error.name)
                first = places.get(error, place)
                places[error] = first._replace(
                    last=place.last, stage=place.stage, retried=place.retried
                )
        _forget_what_passed(places, block)
        before = block.pieces[-2 * LINES_AROUND :]
    return _rank_matches(places, known, context)


def _forget_what_passed(places: dict[KnownError, _Place], block: _Block) -> None:
    """Drops errors that the log shows progress after; a retry that failed for good is certain."""
    waiting = [error for error in places if error.passes]
    if not waiting:
        return
    for number, stage, final in block.list_outcomes():
        for error in waiting:
            place = places.get(error)
            if place is None or number < place.last or stage not in ("", place.stage):
                continue
            if final:
                places[error] = place._replace(retried=False)
            elif number > place.last:
                del places[error]


class _Block:
    """Some consecutive lines of a log, and the words in them."""

    def __init__(self, pieces: list[Piece]) -> None:
        self.pieces = pieces
        self.joined = "\n".join([text for _, text in pieces])
        # One Unicode character becomes two in lower case, which would shift all later positions.
        lowered = strip_ansi(self.joined).replace("\u0130", "i").lower()
        self._translated = find_translated(lowered)
        self._text = translate(lowered, self._translated)
        self.words = set(_split_words(self._text))
        self._vocabulary = b" ".join(self.words)
        # Most words of a log are times and addresses: a text without digits is in a part of a
        # word without digits, of which there are few.
        self._letters = b" ".join(set(self._vocabulary.translate(_NO_DIGITS).split()))
        self._lowered = self._text.split("\n")
        self._cleaned: dict[int, str] = {}
        self._counts: dict[str, int] = {}

    def join_lowered(self) -> str:
        """The block's text in lower case, in English."""
        return self._text

    @cached_property
    def _starts(self) -> Sequence[int]:
        """The position in the text at which each line begins."""
        return list(accumulate((len(line) + 1 for line in self._lowered), initial=0))

    def find(self, error: KnownError) -> _Place | None:
        """The first place that shows the error, with the last line that does; None if none."""
        found: list[_Place] = []
        for each in error.expressions:
            # Most texts lack a whole word of most patterns: that is asked here, without a call.
            if each.keys[0] <= self.words and self._may_match(each):
                found += self._search(each, error)
        if not found:
            return None
        last = max(found, key=lambda place: place.last)
        return min(found, key=lambda place: place.number)._replace(
            last=last.last, stage=last.stage, retried=last.retried
        )

    def list_outcomes(self) -> Iterator[tuple[int, str, bool]]:
        """The lines that show progress or a final failure: number, stage, and whether it failed."""
        if PROGRESS_WORDS.isdisjoint(self.words):
            return
        for (number, raw), line in zip(self.pieces, self._lowered, strict=True):
            final = bool(FINAL.search(line))
            if final or PROGRESS.search(line):
                yield number, find_stage(strip_ansi(raw)), final

    def _may_match(self, expression: Expression) -> bool:
        """Whether the text has the parts of words, and one of each group of choices."""
        _, parts, choices = expression.keys
        return all(map(self._contains, parts)) and all(
            any(map(self._contains, each)) for each in choices
        )

    def _contains(self, part: bytes) -> bool:
        return part in (self._letters if part.isalpha() else self._vocabulary)

    def _search(self, expression: Expression, error: KnownError) -> Iterator[_Place]:
        for first, last in self._list_windows(expression):
            window = "\n".join(self._clean(place) for place in range(first, last))
            # What was counted and found up to the line at ``seen``: a window may have many matches.
            place, seen, raiser = first, 0, None
            for match in expression.regex.finditer(window):
                if not _is_excused(window, match, error):
                    begin = window.rfind("\n", 0, match.start()) + 1
                    for found in _RAISER.finditer(window, seen, match.end()):
                        raiser = found[1]
                    place += window.count("\n", seen, begin)
                    seen = begin
                    number, line = self.pieces[place]
                    quote = quote_line(line, match.group())
                    groups = match.groupdict().items()
                    values = {name: text for name, text in groups if text is not None}
                    if raiser:
                        values["raiser"] = raiser
                    around = window[max(0, match.start() - 400) : match.start()]
                    lines = "\n".join(around.split("\n")[-3:])
                    retried = error.passes and bool(RETRY.search(lines))
                    retried = retried and not FINAL.search(line.lower())
                    stage = find_stage(strip_ansi(line[:100]))
                    end = self.pieces[place + window.count("\n", begin, match.end())][0]
                    yield _Place(number, end, quote, values, number, stage, retried)
                    if not error.passes:
                        return

    def _list_windows(self, expression: Expression) -> Iterator[tuple[int, int]]:
        """The ranges of lines that contain all the words; overlapping ranges are merged."""
        first, last = 0, -LINES_AROUND - 1
        for place in self._list_candidates(expression):
            if not self._are_near(place, expression):
                continue
            if last < 0 or place - LINES_AROUND > last:
                if last >= 0:
                    yield first, last
                first = max(0, place - LINES_AROUND)
            last = min(len(self.pieces), place + LINES_AROUND + 1)
        if last >= 0:
            yield first, last

    def _list_candidates(self, expression: Expression) -> Iterator[int]:
        """The lines that contain a rare one of the words, in their order."""
        words = expression.words.longest
        if len(words[0]) >= SHORTEST_SEARCHED:
            rarest = min(words, key=self._count) if len(words) > 1 else words[0]
            return self._list_lines_at(lambda start: self._text.find(rarest, start))
        if expression.choices:
            alternatives = max(expression.choices, key=_shortest_length)
            sought = "|".join(map(re.escape, alternatives))
        elif words[0] in expression.words.whole:
            sought = rf"(?<![a-z0-9]){re.escape(words[0])}(?![a-z0-9])"
        elif words[0]:
            sought = re.escape(words[0])
        else:
            return iter(range(len(self._lowered)))
        pattern = re.compile(sought)
        return self._list_lines_at(lambda start: _find_start(pattern, self._text, start))

    def _count(self, word: str) -> int:
        if word not in self._counts:
            self._counts[word] = self._text.count(word)
        return self._counts[word]

    def _list_lines_at(self, find: Callable[[int], int]) -> Iterator[int]:
        at = find(0)
        while at >= 0:
            place = bisect_right(self._starts, at) - 1
            yield place
            at = find(self._starts[place + 1])

    def _are_near(self, place: int, expression: Expression) -> bool:
        words = (*expression.words.whole, *expression.words.parts)
        if len(words) == 1 and not expression.choices:
            return True
        near = "\n".join(self._lowered[max(0, place - LINES_AROUND) : place + LINES_AROUND + 1])
        return all(word in near for word in words) and all(
            any(word in near for word in each) for each in expression.choices
        )

    def _clean(self, place: int) -> str:
        if place not in self._cleaned:
            line = clean_line(self.pieces[place][1])
            self._cleaned[place] = translate(line, self._translated)
        return self._cleaned[place]


def _shortest_length(words: Sequence[str]) -> int:
    return min(map(len, words))


def _find_start(pattern: re.Pattern[str], text: str, start: int) -> int:
    found = pattern.search(text, start)
    return found.start() if found else -1


def _split_words(text: str) -> list[bytes]:
    text = re.sub(r"\\+[nrt]", " ", text) if "\\" in text else text
    return text.encode(errors="replace").translate(_SEPARATORS).split()


def _is_excused(window: str, match: re.Match[str], error: KnownError) -> bool:
    """True if the line only mentions the error, or shows that it is another error."""
    start = window.rfind("\n", 0, match.start()) + 1
    end = window.find("\n", match.end())
    end = end if end >= 0 else len(window)
    before, after = window[start : match.start()], window[match.end() : min(end, match.end() + 200)]
    if is_mention(before, after) or (error.passes and TRANSIENT.search(after)):
        return True
    return bool(error.exception and error.exception.search(window, start, end))


def quote_line(line: str, matched: str) -> str:
    """The line, safe to print; a long one is cut to the part around the matched text."""
    line = strip_ansi(line)
    if len(line) > QUOTED_CHARACTERS:
        start = line.find(matched.partition("\n")[0][:QUOTED_CHARACTERS])
        middle = max(0, start - QUOTED_CHARACTERS // 4)
        line = line[middle : middle + QUOTED_CHARACTERS]
    return escape_controls(line.strip())


def _rank_matches(
    places: Mapping[KnownError, _Place], known: Sequence[KnownError], context: Context
) -> Explanation:
    places = _leave_out_general(places)
    by_name = {error.name: error for error in known}
    effects = {error.name: _list_effects(error, by_name) for error in places}
    conditions, values = context.list_conditions(), context.list_values()
    found = []
    for error, place in places.items():
        named = {f"{name}-{text}" if text else name for name, text in place.values.items()}
        if reason := judge_memory(place.values):
            named.add(reason)
        shown = {**values, **place.values, **_compute_share(place.values)}
        adapted = error.adapt(conditions | named, shown, context.capability)
        if place.retried:  # it may have succeeded later
            adapted = replace(adapted, certainty="possible")
        cause = next((name for name in effects if error.name in effects[name]), None)
        found.append(Match(adapted, place.number, place.line, cause))
    return Explanation(tuple(sorted(found, key=lambda each: _rank(each, effects))), context)


def _compute_share(values: Mapping[str, str]) -> Mapping[str, str]:
    """The ``share`` of a GPU's memory to ask for where ``free`` of its ``total`` GiB are free."""
    try:
        share = float(values["free"]) / float(values["total"]) - 0.03
    except (KeyError, ValueError, ZeroDivisionError):
        return {}
    return {"share": f"{share:.2f}"} if share >= 0.1 else {}


_GENERAL = {None: 0, "line": 1, "log": 2}


def _leave_out_general(places: Mapping[KnownError, _Place]) -> Mapping[KnownError, _Place]:
    """Without the errors whose text is part of another one that says more: special, or a cause."""

    def is_part_of(error: KnownError, other: KnownError) -> bool:
        here, there = places[error], places[other]
        overlap = here.number <= there.end and there.number <= here.end
        brought = other.name in error.brings
        if error.general == "log" and other.general != "log":
            return overlap or not brought
        # One that is known only by its form does not hide a special one that follows from it.
        brings = error.name in other.brings and _GENERAL[other.general] <= _GENERAL[error.general]
        return overlap and (brings or (error.general == "line" and not other.general))

    return {
        error: place
        for error, place in places.items()
        if not any(is_part_of(error, other) for other in places)
    }


def _rank(found: Match, effects: Mapping[str, set[str]]) -> tuple[int, int, bool, int]:
    # A cause includes the effects of its effects, so it has fewer causes above it than they have.
    causes = sum(found.error.name in names for names in effects.values())
    error = found.error
    # A program goes on after a warning: an error that ended it comes first, if it is as sure.
    grade = 2 * CERTAINTIES.index(error.certainty)
    grade += error.certainty == "likely" and bool(WARNING.search(found.line))
    return causes, grade, bool(error.general), found.line_number


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

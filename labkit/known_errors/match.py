"""Finds the known errors in a log, with the line of each, the root cause first.

A log is read in blocks. A known error is searched only in blocks that contain the words that its
text requires, and there only in the lines around these words.
"""

from __future__ import annotations

import re
from bisect import bisect_right
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cache, reduce
from itertools import accumulate, chain
from operator import or_
from typing import BinaryIO, NamedTuple

from labkit.host.distribution import UNKNOWN, Distribution
from labkit.host.packages import Fix
from labkit.known_errors import KNOWN_ERRORS
from labkit.known_errors.catalog import find_status
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
    is_prose,
)
from labkit.known_errors.model import CERTAINTIES, Expression, KnownError
from labkit.known_errors.read import (
    PIECE_CHARACTERS,
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
# A log is searched by chunks of about this size; so many of its words are remembered.
CHUNK_CHARACTERS = 2048
MOST_WORDS = 200_000


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
    """The known errors found in a text: causes first, their effects after them.

    ``failure`` is the first line that shows that something failed, None if no line does: without
    a known error it tells a text with an unknown error from a healthy log.
    """

    found: tuple[Match, ...] = ()
    context: Context = field(default_factory=Context)
    failure: Match | None = None

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
            "unexplained": None
            if self.found or not self.failure
            else {"line_number": self.failure.line_number, "line": self.failure.line},
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
    that shows the error. ``reported`` is true if a person's sentence, not a program, shows it.
    """

    number: int
    end: int
    line: str
    values: Mapping[str, str]
    last: int
    stage: str
    retried: bool
    reported: bool


# By the forms in which programs report failures, whatever failed: never shown as a known error.
_FAILURE = KnownError(
    "failure",
    (
        r"Traceback \(most recent call last\)",
        r"^(?:\S{1,60} )?(?:error|fatal|panic|critical): ",
        r"^(?:\w{1,40}\.){0,8}\w{0,40}(?-i:Error|Exception)(?:: |$)",
        r"\blevel=(?:error|fatal|panic)\b",
        r"\[(?:error|fatal|critical)\]",
        r"\b(?-i:ERROR|FATAL|CRITICAL)\b.{0,40} - ",
        r"^\*\*\* .{1,160} Error \d",
        r"\b(?:exit|exited|status|returned).{0,30} (?:code|status):? [1-9]",
        r"core dumped",
        r"^Failed (?:to|with) ",
        r"(?-i:FAILED) \[",
        r"Segmentation fault",
    ),
    "",
    Fix(""),
    unless=r"\b(?:0|no) errors?\b|\bignor|\bretr|\bwarn|falling back|errors?: (?:0|None|null)\b"
    r"|(?:code|status):? \d{1,3}\.\s*$|(?-i:segmentation fault)",
)


def _explain(blocks: Iterable[list[Piece]], known: tuple[KnownError, ...]) -> Explanation:
    places: dict[KnownError, _Place] = {}
    found: set[str] = set()  # a name's hash is stored, that of an error is computed each time
    context = Context()
    before: list[Piece] = []
    index = _index_all() if known is KNOWN_ERRORS else _Index((*known, _FAILURE))
    for pieces in filter(None, blocks):
        block = _Block([*before, *pieces], index.features)
        context.read(block.words, block.join_lowered, block.joined)
        for error, plans in index.plans:
            if (error.passes or error.name not in found) and (place := block.find(error, plans)):
                first = places.get(error, place)
                if first.reported and not place.reported:
                    first = place
                if not first.reported:  # a program's own line may follow
                    found.add(error.name)
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


class _Search(NamedTuple):
    """What to ask before an expression is run: the features that a text must have.

    ``required`` are the numbers of words that all must be there, ``choices`` of groups of which
    one must be there; ``words`` are those required, in the order of ``required``. ``near`` are all
    required words, too short ones included, the longest first.
    """

    expression: Expression
    required: tuple[int, ...]
    words: tuple[str, ...]
    choices: tuple[tuple[int, ...], ...]
    near: tuple[str, ...]


class _Features(dict[bytes, tuple[int, ...]]):
    """For a word of a log, the numbers of the features that it is or contains.

    A feature is a word that an expression requires: a whole one, or a part of a word.
    """

    def __init__(self) -> None:
        super().__init__()
        self._whole: dict[bytes, int] = {}
        self._parts: dict[bytes, dict[bytes, int]] = {}  # by their first letters
        self._count = 0

    def add_whole(self, word: str) -> int:
        """The number of a whole word."""
        return self._number(self._whole, word.encode())

    def add_part(self, part: str) -> int:
        """The number of a part of a word, of at least ``SHORTEST_SEARCHED`` letters."""
        key = part.encode()
        return self._number(self._parts.setdefault(key[:SHORTEST_SEARCHED], {}), key)

    def _number(self, known: dict[bytes, int], word: bytes) -> int:
        if word not in known:
            known[word] = self._count
            self._count += 1
        return known[word]

    def __missing__(self, word: bytes) -> tuple[int, ...]:
        found = [self._whole[word]] if word in self._whole else []
        starting = self._parts.get
        for start in range(len(word) - SHORTEST_SEARCHED + 1):
            if parts := starting(word[start : start + SHORTEST_SEARCHED]):
                found += [number for part, number in parts.items() if word.startswith(part, start)]
        if len(self) >= MOST_WORDS:
            self.clear()
        self[word] = tuple(found)
        return self[word]


class _Index:
    """Known errors with the plans of their expressions, and the features that these ask for."""

    def __init__(self, known: Iterable[KnownError]) -> None:
        self.features = _Features()
        self.plans = [(error, [self._plan(each) for each in error.expressions]) for error in known]

    def _plan(self, expression: Expression) -> _Search:
        whole, parts = expression.words
        numbers = {word: self.features.add_whole(word) for word in whole}
        numbers |= {
            part: self.features.add_part(part) for part in parts if len(part) >= SHORTEST_SEARCHED
        }
        words = tuple(sorted(numbers, key=len, reverse=True))
        choices = tuple(
            tuple(map(self.features.add_part, each))
            for each in expression.choices
            if _shortest_length(each) >= SHORTEST_SEARCHED
        )
        near = tuple(sorted((*whole, *parts), key=len, reverse=True))
        return _Search(expression, tuple(numbers[word] for word in words), words, choices, near)


@cache
def _index_all() -> _Index:
    return _Index((*KNOWN_ERRORS, _FAILURE))


class _Block:
    """Some consecutive lines of a log, and the features of each chunk of lines."""

    def __init__(self, pieces: list[Piece], features: _Features) -> None:
        self.pieces = pieces
        self.joined = "\n".join([text for _, text in pieces])
        # One Unicode character becomes two in lower case, which would shift all later positions.
        lowered = strip_ansi(self.joined).replace("\u0130", "i").lower()
        self._translated = find_translated(lowered)
        self._text = translate(lowered, self._translated)
        lengths = [len(line) + 1 for line in self._text.split("\n")]
        # The position in the text at which each line begins.
        self._starts: Sequence[int] = list(accumulate(lengths, initial=0))
        self._cleaned: dict[int, str] = {}
        self._plain: dict[int, str] = {}
        self.words: set[bytes] = set()
        self._places: dict[int, int] = {}
        self._read_chunks(features)

    def _read_chunks(self, features: _Features) -> None:
        """Notes for each feature the chunks that have it, as bits."""
        count = len(self.pieces)
        # A match reaches LINES_AROUND lines from its rarest word: at most into the next chunk.
        self._chunk_lines = size = max(
            LINES_AROUND + 1, count * CHUNK_CHARACTERS // (len(self._text) + 1)
        )
        places = self._places
        for number, first in enumerate(range(0, count, size)):
            end = self._starts[min(first + size, count)]
            words = set(_split_words(self._text[self._starts[first] : end]))
            self.words |= words
            bit = 1 << number
            for feature in set(chain.from_iterable(map(features.__getitem__, words))):
                places[feature] = places.get(feature, 0) | bit

    def join_lowered(self) -> str:
        """The block's text in lower case, in English."""
        return self._text

    def find(self, error: KnownError, plans: Iterable[_Search]) -> _Place | None:
        """The first place that shows the error, with the last line that does; None if none."""
        found: list[_Place] = []
        for each in plans:
            # Most texts lack a word of most expressions: that is asked here, without a call.
            if not each.required or each.required[0] in self._places:
                found += self._search(each, error)
        if not found:
            return None
        last = max(found, key=lambda place: place.last)
        return min(found, key=lambda place: (place.reported, place.number))._replace(
            last=last.last, stage=last.stage, retried=last.retried
        )

    def list_outcomes(self) -> Iterator[tuple[int, str, bool]]:
        """The lines that show progress or a final failure: number, stage, and whether it failed."""
        if PROGRESS_WORDS.isdisjoint(self.words):
            return
        for (number, raw), line in zip(self.pieces, self._text.split("\n"), strict=True):
            if PROGRESS_WORDS.isdisjoint(_split_words(line)):
                continue
            final = bool(FINAL.search(line))
            if final or PROGRESS.search(line):
                yield number, find_stage(strip_ansi(raw)), final

    def _search(self, plan: _Search, error: KnownError) -> Iterator[_Place]:
        for first, last in self._list_windows(plan):
            window = "\n".join(self._clean(place) for place in range(first, last))
            # What was counted and found up to the line at ``seen``: a window may have many matches.
            place, seen, raiser = first, 0, None
            for match in plan.expression.regex.finditer(window):
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
                    reported = is_prose(*_split_line(window, match))
                    yield _Place(number, end, quote, values, number, stage, retried, reported)
                    if not error.passes and not reported:
                        return

    def _list_windows(self, plan: _Search) -> Iterator[tuple[int, int]]:
        """The ranges of lines that contain all the words; overlapping ranges are merged."""
        first, last = 0, -1
        for place in self._list_candidates(plan):
            start, end = self._reach(place)
            if not self._may_match(start, end, plan):
                continue
            if last < 0 or start > last - 1:
                if last >= 0:
                    yield first, last
                first = start
            last = end
        if last >= 0:
            yield first, last

    def _reach(self, place: int) -> tuple[int, int]:
        """The range of lines to read around a line; of a line in pieces only this piece."""
        number, text = self.pieces[place]
        if len(text) == PIECE_CHARACTERS:
            around = self.pieces[max(0, place - 1) : place + 2 : 2]
            if any(each == number for each, _ in around):
                return place, place + 1
        return max(0, place - LINES_AROUND), min(len(self.pieces), place + LINES_AROUND + 1)

    def _list_candidates(self, plan: _Search) -> Iterable[int]:
        """The lines that contain a rare one of the words, in their order."""
        chunks, word = self._list_chunks(plan)
        if not chunks:
            return ()
        if len(word) >= SHORTEST_SEARCHED:
            return self._list_lines_with(chunks, word)
        if plan.expression.choices:
            alternatives = max(plan.expression.choices, key=_shortest_length)
            return sorted(
                {at for each in alternatives for at in self._list_lines_with(chunks, each)}
            )
        return self._list_lines_with(chunks, plan.expression.words.rarest)

    def _list_chunks(self, plan: _Search) -> tuple[int, str]:
        """The chunks with the rarest required word near to all others, and this word."""
        clauses = [self._places.get(number, 0) for number in plan.required]
        if not all(clauses):
            return 0, ""
        searched = [
            (chunks, word)
            for chunks, word in zip(clauses, plan.words, strict=True)
            if len(word) >= SHORTEST_SEARCHED
        ]
        everywhere = (1 << len(self.pieces)) - 1, min(plan.words, key=len, default="")
        chunks, word = min(searched, key=lambda pair: pair[0].bit_count(), default=everywhere)
        for choice in plan.choices:
            clauses.append(reduce(or_, (self._places.get(number, 0) for number in choice)))
        for clause in clauses:
            chunks &= clause | clause << 1 | clause >> 1
        return chunks, word

    def _list_lines_with(self, chunks: int, word: str) -> Iterator[int]:
        """The lines of these chunks that contain the word; "" is in each."""
        starts, count, size = self._starts, len(self.pieces), self._chunk_lines
        while chunks:
            lowest = chunks & -chunks
            # The carry runs through all set bits above the lowest one: they are read together.
            carried = chunks + lowest
            first, after = (each.bit_length() - 1 for each in (lowest, carried & -carried))
            chunks &= carried
            end = starts[min(after * size, count)]
            at = self._text.find(word, starts[min(first * size, count)], end)
            while at >= 0:
                place = bisect_right(starts, at) - 1
                yield place
                at = self._text.find(word, starts[place + 1], end) if place + 1 < count else -1

    def _may_match(self, first: int, last: int, plan: _Search) -> bool:
        """Whether these lines have all the words, one of each group of choices, and the phrase."""
        phrase, choices = plan.expression.phrase, plan.expression.choices
        near = self._text[self._starts[first] : self._starts[last]]
        for word in plan.near:
            if word not in near:
                return False
        if choices and not all(any(word in near for word in each) for each in choices):
            return False
        if phrase in plan.words:
            return True
        plain = " ".join(self._squeeze(place) for place in range(first, last))
        return phrase in plain or "nvrm:" in plain

    def _squeeze(self, place: int) -> str:
        """The cleaned line in lower case, each run of blanks a space."""
        if place not in self._plain:
            self._plain[place] = " ".join(self._clean(place).lower().split())
        return self._plain[place]

    def _clean(self, place: int) -> str:
        if place not in self._cleaned:
            line = clean_line(self.pieces[place][1])
            self._cleaned[place] = translate(line, self._translated)
        return self._cleaned[place]


def _shortest_length(words: Sequence[str]) -> int:
    return min(map(len, words))


def _split_words(text: str) -> list[bytes]:
    text = re.sub(r"\\+[nrt]", " ", text) if "\\" in text else text
    return text.encode(errors="replace").translate(_SEPARATORS).split()


def _is_excused(window: str, match: re.Match[str], error: KnownError) -> bool:
    """True if the line only mentions the error, or shows that it is another error."""
    before, after = _split_line(window, match)
    if is_mention(before, after) or (error.passes and TRANSIENT.search(after)):
        return True
    start, end = match.start() - len(before), match.end() + len(after)
    return bool(error.exception and error.exception.search(window, start, end))


def _split_line(window: str, match: re.Match[str]) -> tuple[str, str]:
    """The text before and after a match, up to the ends of its first and last line."""
    start = window.rfind("\n", 0, match.start()) + 1
    end = window.find("\n", match.end())
    return window[start : match.start()], window[match.end() : end if end >= 0 else None]


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
    failed = places.get(_FAILURE)
    failure = failed and Match(_FAILURE, failed.number, failed.line)
    places = _leave_out_general({error: places[error] for error in places if error != _FAILURE})
    by_name = {error.name: error for error in known}
    effects = {error.name: _list_effects(error, by_name) for error in places}
    conditions, values = context.list_conditions(), context.list_values()
    found = []
    for error, place in places.items():
        named = {f"{name}-{text}" if text else name for name, text in place.values.items()}
        if reason := judge_memory(place.values):
            named.add(reason)
        shown = {
            **values,
            **place.values,
            **_compute_share(place.values),
            **_read_status(place.values),
        }
        adapted = error.adapt(conditions | named, shown, context.capability)
        # A retry may have succeeded later; a sentence may tell of another time or machine.
        if place.retried or place.reported:
            adapted = replace(adapted, certainty="possible")
        cause = next((name for name in effects if error.name in effects[name]), None)
        found.append(Match(adapted, place.number, place.line, cause))
    ranked = sorted(found, key=lambda each: _rank(each, effects))
    return Explanation(tuple(ranked), context, failure)


def _compute_share(values: Mapping[str, str]) -> Mapping[str, str]:
    """The ``share`` of a GPU's memory to ask for where ``free`` of its ``total`` GiB are free."""
    try:
        share = float(values["free"]) / float(values["total"]) - 0.03
    except (KeyError, ValueError, ZeroDivisionError):
        return {}
    return {"share": f"{share:.2f}"} if share >= 0.1 else {}


def _read_status(values: Mapping[str, str]) -> Mapping[str, str]:
    """The ``meaning`` of a ``status`` of CUDA, a ``lib`` or ``nvml``, and the ``advice``."""
    area = next((name for name in ("lib", "nvml") if name in values), "")
    status = find_status(values.get("status", ""), area)
    return {"meaning": status.meaning, "advice": status.advice} if status else {}


_GENERAL = {None: 0, "line": 1, "advice": 2, "log": 3}


def _leave_out_general(places: Mapping[KnownError, _Place]) -> Mapping[KnownError, _Place]:
    """Without the errors whose text is part of another one that says more: special, or a cause."""

    def is_part_of(error: KnownError, other: KnownError) -> bool:
        here, there = places[error], places[other]
        overlap = here.number <= there.end and there.number <= here.end
        brought = other.name in error.brings
        if error.general in ("advice", "log") and other.general != error.general:
            return other.general != "log" and (overlap or not brought)
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

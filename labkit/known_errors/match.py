"""Finds the known errors in a log, with the line of each, the root cause first.

A log is read in blocks. A known error is searched only in blocks that contain the words that its
text requires, and there only in the lines around these words.
"""

from __future__ import annotations

import re
from bisect import bisect_left, bisect_right
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cache, cached_property, reduce
from itertools import accumulate, chain, groupby
from operator import or_
from string import ascii_lowercase
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
    RETRY_BELOW,
    TRANSIENT,
    WARNING,
    find_stage,
    is_mention,
    is_prose,
    is_source,
)
from labkit.known_errors.model import CERTAINTIES, Expression, KnownError, split_alternatives
from labkit.known_errors.read import (
    PIECE_CHARACTERS,
    Piece,
    clean_line,
    decode_blocks,
    find_translated,
    read_pieces,
    translate,
    unescape,
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
_IN_WORD = r"[^\x00-/:-`{-\x7f]"
# Of the same words only the letters, and the ends of lines.
_NOT_LETTERS = bytes(
    byte if chr(byte) in ascii_lowercase + "\n" else ord(" ") for byte in range(256)
)
# What stands in a log as in its cleaned text.
_NOT_ESCAPED = r"""[^\s"'`/<>&\\]+"""
# A log is searched by chunks of about this size; so many of its words are remembered.
CHUNK_CHARACTERS = 16_384
SHORTEST_PART = 4
MOST_WORDS = 200_000
FEW_PLANS = 8
CLEANED_LINES = 64
# After so many chunks the rarest words of each expression are chosen by what was read so far.
NEW_KEYS = (4, 16, 64, 256)
NO_KEY = -1
# A text in lower case may be longer by a few characters.
SLACK = 8


# What a command of a fix does besides, to say so next to it.
_NOTES = (
    (r"restart docker\b", "a restart of docker stops its running containers"),
    (r"snap remove docker", "this deletes docker's images, containers and volumes: save them"),
    (r"system prune", "prune deletes stopped containers and their data: read its list first"),
    (r"wsl\.exe --shutdown", "--shutdown ends all programs that run in WSL"),
    (r"-aG docker\b", "whoever is in the group docker can become root on this machine"),
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

    >>> explain_text("OSError: [Errno 28] No space left on device").first.error.name
    'disk-full'
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
    try: pip install --force-reinstall torch --index-url https://download.pytorch.org/whl/cu130
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
        r"^(?:\S{1,160} )?(?:error|fatal|panic|critical)(?:\[\w{1,8}\])?: ",
        r"^(?:\w{1,40}\.){0,8}\w{0,40}(?-i:Error|Exception)(?:: |$)",
        r"\blevel=(?:error|fatal|panic)\b",
        r"\"(?:level|severity|lvl)\":\s?\"(?:error|fatal|panic|critical)\"",
        r"^[EF]\d{4} \d\d:\d\d:\d\d\.\d{6} .{1,60}\.go:\d{1,5}\] ",
        r"\[(?:error|fatal|critical)\]",
        r"\b(?-i:ERROR|FATAL|CRITICAL)\b.{0,40} - ",
        r"^(?:\w{0,4}make(?:\[\d{1,3}\])?: )?\*\*\* .{1,200}(?: Error -?\d| Stop\.$)",
        r"^ninja: build stopped",
        r"^CMake Error\b",
        r"^npm (?:ERR!|error) \w",
        r"\bERR_PNPM_\w",
        r"\bELIFECYCLE\b",
        r"^thread '[^']{1,60}' (?:\(\d{1,9}\) )?panicked at ",
        r"^goroutine \d{1,9} \[\w",
        r"^Exception in thread ",
        r"^Unhandled exception\b",
        r"^terminate called after throwing",
        r"^(?-i:FAILED|ERROR) \S{1,200}\.py(?:::| - |$)",
        r"\.py::\S{1,200} (?-i:FAILED|ERROR)\b",
        r"^=+ .{0,60}\b[1-9]\d{0,5} (?:failed|errors?)\b",
        r"^(?-i:FAILED) \((?:failures|errors)=",
        r"^\s{0,40}--- (?-i:FAIL): ",
        r"^(?-i:FAIL)\t\S{1,200}\t",
        r"^test result: (?-i:FAILED)",
        r"\bHTTP/[\d.]{1,3}\"? 5\d\d\b",
        r"\b(?:500 Internal Server Error|502 Bad Gateway|504 Gateway Time-?out)\b",
        r"\b503 Service (?:Temporarily )?Unavailable\b",
        r"\bHTTP Error [45]\d\d\b",
        r"\b[45]\d\d (?:Client|Server) Error\b",
        r"\b(?:exit|exited|status|returned).{0,30} (?:code|status):? (?!20\d\b|30\d\b)[1-9]",
        r"\bstatus=[1-9]\d{0,2}/\w",
        r"core dumped",
        r"^Failed (?:to|with) ",
        r"(?-i:FAILED) \[",
        r"Segmentation fault",
    ),
    "",
    Fix(""),
    unless=r"\b(?:0|no) errors?\b|(?<!\d\s)\bignor|\bretr|\bwarn|falling back"
    r"|errors?: (?:0|None|null)\b|(?:code|status):? \d{1,3}\.\s*$|(?-i:segmentation fault)",
)


def _explain(blocks: Iterable[list[Piece]], known: tuple[KnownError, ...]) -> Explanation:
    places: dict[KnownError, _Place] = {}
    found: set[str] = set()  # a name's hash is stored, that of an error is computed each time
    context = Context()
    before: list[Piece] = []
    passing = {error.name for error in known if error.passes}
    index = _index_all() if known is KNOWN_ERRORS else _Index((*known, _FAILURE))
    for pieces in filter(None, blocks):
        block = _Block([*before, *pieces])
        ended = {name for name in found if name not in passing}
        possible = block.list_possible(index, ended)
        context.read(block.words, block.join_lowered, block.joined)
        for error, plans in possible:
            # Of an error that passes, the last place counts, too.
            first = places.get(error) if error.passes else None
            if place := block.find(error, plans, only_last=bool(first and not first.reported)):
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
    for number, stage, final in block.list_outcomes(min(places[each].last for each in waiting)):
        for error in waiting:
            place = places.get(error)
            if place is None or number < place.last or not _is_of(stage, place.stage):
                continue
            if final:
                places[error] = place._replace(retried=False)
            elif number > place.last:
                del places[error]


def _is_of(stage: str, failed: str) -> bool:
    """Whether a line of this stage can show that the step of the failed stage went on."""
    # torch marks the exception that ends a rank; the other ranks' lines have no mark.
    return stage == failed or (stage == "" and not failed.startswith("rank"))


@dataclass(frozen=True, eq=False)
class _Plan:
    """An expression, and what is looked for before it is run.

    ``clauses`` are groups of numbers of runs of letters: a text's words must have one of each.
    """

    error: KnownError
    expression: Expression
    clauses: Sequence[frozenset[int]]

    @cached_property
    def needed(self) -> Sequence[Sequence[str]]:
        """Groups of texts, of each of which a match contains one, the longest first."""
        return sorted(self.expression.texts, key=_shortest_length, reverse=True) or [("",)]

    @cached_property
    def words(self) -> Sequence[Sequence[str]]:
        """Groups of words, of each of which a text that is not yet cleaned contains one."""
        return _list_words(_NOT_ESCAPED, self.needed)

    @cached_property
    def letters(self) -> Sequence[Sequence[str]]:
        """The same, where letters are all that is sure to be the same in a cleaned text."""
        return _list_words("[a-z]+", self.needed)

    @cached_property
    def start(self) -> str | None:
        """The text at the start of a line with which every match begins."""
        found = re.match(r"\^([\w ,:]+)(?![\w ,:?*+{|])", self.expression.pattern)
        return " ".join(found[1].lower().split()) if found else None


class _Vocabulary:
    """The words of logs, each with the numbers of the runs of letters that it is or contains.

    A run is a whole word, or with a space at only one end the start or end of a word, or without
    a space a part of a word.
    """

    def __init__(self) -> None:
        self.numbers: dict[str, int] = {}
        self._whole: dict[bytes, int] = {}
        # By their first, or last, letters.
        self._starts: dict[bytes, list[tuple[bytes, int]]] = {}
        self._ends: dict[bytes, list[tuple[bytes, int]]] = {}
        self._parts: dict[bytes, list[tuple[bytes, int]]] = {}
        self._read: set[bytes] = set()
        self._found: dict[bytes, list[int]] = {}

    def add(self, run: str) -> int:
        """The number of a run of letters."""
        if run in self.numbers:
            return self.numbers[run]
        number = self.numbers[run] = len(self.numbers)
        letters = run.strip().encode()
        if run == f" {run.strip()} ":
            self._whole[letters] = number
        elif run.startswith(" "):
            self._starts.setdefault(letters[:SHORTEST_SEARCHED], []).append((letters, number))
        elif run.endswith(" "):
            self._ends.setdefault(letters[-SHORTEST_SEARCHED:], []).append((letters, number))
        else:
            self._parts.setdefault(letters[:SHORTEST_PART], []).append((letters, number))
        return number

    def find(self, words: set[bytes]) -> Mapping[bytes, Sequence[int]]:
        """Those of the words that are or contain runs, with the numbers of these."""
        if new := words - self._read:
            if len(self._read) > MOST_WORDS:
                self._read.clear()
                self._found.clear()
                new = words
            self._learn(new)
        return {word: self._found[word] for word in self._found.keys() & words}

    def _learn(self, words: set[bytes]) -> None:
        self._read |= words
        whole, starts, ends, size = self._whole, self._starts, self._ends, SHORTEST_SEARCHED
        # Most words of a log are none that an error has: this decides how fast it is read.
        found = {word for word in words if word[:size] in starts or word[-size:] in ends}
        found |= words & whole.keys()
        parts, least = self._parts, SHORTEST_PART
        found |= {
            word
            for word in words
            if len(word) >= least
            for at in range(len(word) - least + 1)
            if word[at : at + least] in parts
        }
        for word in found:
            if numbers := list(self._list_runs(word)):
                self._found[word] = numbers

    def _list_runs(self, word: bytes) -> Iterator[int]:
        if word in self._whole:
            yield self._whole[word]
        for run, number in self._starts.get(word[:SHORTEST_SEARCHED], ()):
            if word.startswith(run):
                yield number
        for run, number in self._ends.get(word[-SHORTEST_SEARCHED:], ()):
            if word.endswith(run):
                yield number
        for at in range(len(word) - SHORTEST_PART + 1):
            for run, number in self._parts.get(word[at : at + SHORTEST_PART], ()):
                if word.startswith(run, at):
                    yield number


class _Index:
    """The plans of known errors' expressions, by a run of letters that is rare in what was read."""

    def __init__(self, known: Iterable[KnownError]) -> None:
        self.plans: list[_Plan] = []
        self._vocabulary = _Vocabulary()
        for error in known:
            for expression in error.expressions:
                self._add(error, expression)
        self._chunks = 0
        self._seen = Counter[int]()
        # For each run, the plans to ask for if it is there; for each plan, its rarest clauses.
        self._keys: dict[int, list[int]] = {}
        self._rarest: list[list[frozenset[int]]] = []
        self._choose_keys()

    def _choose_keys(self) -> None:
        """Each plan's key is what was seen in the fewest chunks, then the longest."""
        runs = self._vocabulary.numbers.items()
        rates = {number: (self._seen[number], -len(run)) for run, number in runs}
        self._keys.clear()
        self._rarest = [
            sorted(plan.clauses, key=lambda clause: max(map(rates.__getitem__, clause)))[:2]
            for plan in self.plans
        ]
        for number, clauses in enumerate(self._rarest):
            for key in clauses[0] if clauses else [NO_KEY]:
                self._keys.setdefault(key, []).append(number)

    def list_possible(
        self, text: bytes, words: set[bytes], ended: set[str], around: int
    ) -> Iterator[tuple[int, int]]:
        """The plans that a text may match, each with those of its lines that may, as bits.

        The text consists of its ``words``, runs of letters in lower case; what a plan needs may
        stand in so many lines ``around``. ``ended`` names of errors are left out.
        """
        known = self._vocabulary.find(words)
        there = {NO_KEY, *chain.from_iterable(known.values())}
        self._chunks += 1
        if self._chunks <= NEW_KEYS[-1]:
            self._seen.update(there)
            if self._chunks in NEW_KEYS:
                self._choose_keys()
        possible = [
            number
            for number in {each for key in there & self._keys.keys() for each in self._keys[key]}
            if not any(map(there.isdisjoint, self.plans[number].clauses))
            and self.plans[number].error.name not in ended
        ]
        # To note the place of each word takes longer than to look for those of a few plans.
        if len(possible) < FEW_PLANS:
            yield from ((number, -1) for number in possible)
            return
        asked = set(
            chain.from_iterable(chain.from_iterable(map(self._rarest.__getitem__, possible)))
        )
        near = _list_lines_near(
            text.split(b"\n"),
            {word: runs for word, runs in known.items() if not asked.isdisjoint(runs)},
            around,
        )
        for number in possible:
            bits = -1
            for clause in self._rarest[number]:
                bits &= reduce(or_, (near.get(run, 0) for run in clause))
            if bits:
                yield number, bits

    def _add(self, error: KnownError, expression: Expression) -> None:
        add = self._vocabulary.add
        clauses = {frozenset([add(run)]) for run in expression.letters if _is_searched(run)}
        for group in expression.texts:
            if all(map(_is_searched, runs := _find_runs(group))):
                clauses.add(frozenset(map(add, runs)))
        self.plans.append(_Plan(error, expression, list(clauses)))


def _find_runs(texts: Sequence[str]) -> list[str]:
    """Of each text the longest run of letters that is not in all; at its ends it may go on."""
    found = [
        [
            " " * (run.start() > 0) + run[0] + " " * (run.end() < len(text))
            for run in re.finditer("[a-z]+", text)
        ]
        for text in texts
    ]
    return _pick_own(found)


def _pick_own(found: Sequence[Sequence[str]]) -> list[str]:
    """The longest of each that is not in all the others; "" if it has none."""
    common = set.intersection(*map(set, found)) if len(found) > 1 else set()
    return [max((e for e in each if e not in common), key=len, default="") for each in found]


def _list_words(piece: str, groups: Iterable[Sequence[str]]) -> list[tuple[str, ...]]:
    """What of the groups' texts matches a piece: groups of words, the rarest in logs first.

    These are the words that all texts of a group have, and of each the longest.
    """
    found: set[tuple[str, ...]] = set()
    for group in groups:
        words = [re.findall(piece, text) for text in group]
        found.update((word,) for word in set.intersection(*map(set, words)))
        if len(group) > 1:
            own = _pick_own(words)
            found |= {tuple(set(own))} if all(own) else set()
    return sorted(found, key=lambda group: (3 * len(group) - _shortest_length(group), group))


def _list_lines_near(
    lines: Iterable[bytes], known: Mapping[bytes, Sequence[int]], around: int
) -> Mapping[int, int]:
    """For each run of letters, as bits, the lines with it and so many around them."""
    places: dict[int, int] = {}
    words, bit = known.keys(), 1
    for line in lines:
        for word in words & line.split():
            for run in known[word]:
                places[run] = places.get(run, 0) | bit
        bit <<= 1
    return {run: _widen(bits, around) for run, bits in places.items()}


def _widen(bits: int, count: int) -> int:
    """The bits, and so many more at both sides of each."""
    for _ in range(count):
        bits |= bits << 1 | bits >> 1
    return bits


def _is_searched(run: str) -> bool:
    """Whether a run of letters is long enough to be searched; as a whole word any is."""
    ends = run.startswith(" ") + run.endswith(" ")
    return len(run.strip()) >= (SHORTEST_PART, SHORTEST_SEARCHED, 1)[ends]


@cache
def _index_all() -> _Index:
    return _Index((*KNOWN_ERRORS, _FAILURE))


class _Words(set[bytes]):
    """The runs of letters in a block; it contains a word that is a whole one in the text."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self._text = text
        self._asked: dict[object, bool] = {}

    def __contains__(self, word: object) -> bool:
        if isinstance(word, bytes) and word not in self._asked:
            self._asked[word] = self.issuperset(_split_letters(word)) and self._has(word.decode())
        return self._asked.get(word, False)

    def _has(self, word: str) -> bool:
        text, length = self._text, len(word)
        at = text.find(word)
        while at >= 0:
            end = at + length
            before, after = text[at - 1 : at], text[end : end + 1]
            if not (before.isalnum() or after.isalnum() or max(before, after) > "\x7f"):
                return True
            at = text.find(word, end)
        return False


class _Lines(NamedTuple):
    """Lines of a block that an expression may match: the first line, and from it on all as bits."""

    first: int
    bits: int
    is_plain: bool


_Possible = list[tuple[KnownError, list[tuple[_Plan, list[_Lines]]]]]


def _list_hits(
    text: str,
    starts: Sequence[int],
    needed: Sequence[Sequence[str]],
    reach: int,
    *,
    at_start: bool,
) -> Iterator[int]:
    """The lines with one of the first texts needed, and of the others no farther than ``reach``.

    ``starts`` are the positions at which the lines begin; ``at_start``: so do the first texts.
    """
    for literal in needed[0]:
        at = text.find(literal)
        while at >= 0:
            line = bisect_right(starts, at) - 1
            if at_start and at > starts[line]:
                at = text.find(literal, starts[line + 1])
                continue
            start = max(at - reach, starts[max(0, line - LINES_AROUND)])
            end = min(at + reach, starts[min(len(starts) - 1, line + LINES_AROUND + 1)])
            following = at + 1
            for each in needed[1:]:
                if _find_any(text, each, start, end) < 0:
                    # No place has all that it needs near before the next place of these.
                    place = _find_any(text, each, max(start, end - len(max(each, key=len))))
                    following = max(following, place - reach) if place >= 0 else len(text)
                    break
            else:
                yield line
                following = starts[line + 1]
            at = text.find(literal, following)


def _find_any(text: str, choices: Sequence[str], start: int, end: int | None = None) -> int:
    """The first place of one of these in this part of the text; -1 if it has none."""
    if len(choices) == 1:
        return text.find(choices[0], start, end)
    places = (text.find(each, start, end) for each in choices)
    return min((place for place in places if place >= 0), default=-1)


class _Found(NamedTuple):
    """A match in a window: some lines of a block from the line ``first`` on, cleaned."""

    match: re.Match[str]
    first: int
    reported: bool = False

    @property
    def window(self) -> str:
        """The lines that were searched."""
        return self.match.string


class _Block:
    """Some consecutive lines of a log, in which known errors are looked for."""

    def __init__(self, pieces: list[Piece]) -> None:
        self.pieces = pieces
        self.joined = "\n".join([text for _, text in pieces])
        plain = strip_ansi(self.joined)
        # One Unicode character becomes two in lower case, which would shift all later positions.
        lowered = plain.replace("\u0130", "i").lower()
        self._translated = find_translated(lowered)
        self._text = translate(lowered, self._translated)
        self.words = _Words(self._text)
        self._lines = plain.split("\n")
        lengths = [
            len(line) + 1 for line in (self._text.split("\n") if self._translated else self._lines)
        ]
        self._starts = list(accumulate(lengths, initial=0))
        self._cleaned: dict[str, str] = {}
        self._spaced = [""] * len(self._lines)
        self._squeezed: set[int] = set()
        self._known_lines: dict[str, str] = {}
        # The pieces of one line are read each alone.
        self._around = 0 if pieces[0][0] == pieces[-1][0] and len(pieces) > 1 else LINES_AROUND

    def join_lowered(self) -> str:
        """The block's text in lower case, in English."""
        return self._text

    def list_possible(self, index: _Index, ended: set[str]) -> _Possible:
        """The errors that the block may show, but those with ``ended`` names, with their plans."""
        found: dict[int, list[_Lines]] = {}
        starts, count = self._starts, len(self._lines)
        around = self._around
        size = max(8 * around, count * CHUNK_CHARACTERS // (len(self._text) + 1), 1)
        for first in range(0, count, size):
            start, end = max(0, first - around), min(count, first + size + around)
            text = self._text[starts[start] : starts[end]]
            letters = unescape(text).encode(errors="replace").translate(_NOT_LETTERS)
            words = set(letters.split())
            self.words |= words
            # The lines around a chunk belong to the one next to it.
            own = (1 << min(size, count - first)) - 1 << first - start
            is_plain = "&#" not in text
            for plan, bits in index.list_possible(letters, words, ended, around):
                if bits & own:
                    found.setdefault(plan, []).append(_Lines(start, bits & own, is_plain))
        plans = ((index.plans[number], found[number]) for number in sorted(found))
        groups = (list(each) for _, each in groupby(plans, lambda pair: pair[0].error.name))
        return [(group[0][0].error, group) for group in groups]

    def find(
        self, error: KnownError, plans: Iterable[tuple[_Plan, list[_Lines]]], *, only_last: bool
    ) -> _Place | None:
        """The first place that shows the error, with the last line that does; None if none."""
        found = [
            place
            for plan, lines in plans
            for place in self._search(plan, lines, only_last=only_last)
        ]
        if not found:
            return None
        found.sort(key=lambda place: (place.reported, place.number))
        first, last = found[0], max(found, key=lambda place: place.last)
        # A later line of the same error may say more: a version, a name, which of its kinds it is.
        values: dict[str, str] = {}
        for place in reversed(found):
            if place.reported == first.reported:
                values |= place.values
        return first._replace(values=values, last=last.last, stage=last.stage, retried=last.retried)

    def list_outcomes(self, first: int) -> Iterator[tuple[int, str, bool]]:
        """The lines that show progress or a final failure: number, stage, and whether it failed.

        Only lines from the one with the number ``first`` on.
        """
        start = bisect_left(self.pieces, (first, ""))
        starts = self._starts
        found: dict[int, bool] = {}
        for outcome in _list_outcomes():
            if not self.words.issuperset(outcome.words):
                continue
            for text in outcome.texts:
                at = self._text.find(text, starts[start])
                while at >= 0:
                    place = bisect_right(starts, at) - 1
                    line = self._text[starts[place] : starts[place + 1] - 1]
                    if outcome.regex.search(line):
                        found[place] = outcome.is_final or found.get(place, False)
                    at = self._text.find(text, starts[place + 1])
        for place in sorted(found):
            line = self._text[starts[place] : starts[place + 1] - 1]
            if not PROGRESS_WORDS.isdisjoint(_split_words(line)):
                yield self.pieces[place][0], find_stage(self._lines[place]), found[place]

    def _search(self, plan: _Plan, lines: Sequence[_Lines], *, only_last: bool) -> Iterator[_Place]:
        """The first place, by preference of a program's own line, and the last one."""
        if not only_last:
            reported: list[_Found] = []
            for found in self._list_matches(plan, self._list_windows(plan, lines)):
                if not found.reported:
                    yield self._describe(found, plan.error)
                    break
                reported = [*reported[:1], found]
            else:
                yield from (self._describe(each, plan.error) for each in reported)
        if plan.error.passes:
            hits = (
                self._reach(line)
                for each in reversed(lines)
                for line in reversed(self._list_hits(plan, each))
            )
            for window in hits:
                if matches := list(self._list_matches(plan, [window])):
                    yield self._describe(matches[-1], plan.error)
                    break

    def _list_matches(self, plan: _Plan, windows: Iterable[tuple[int, int]]) -> Iterator[_Found]:
        for first, last in windows:
            window = "\n".join(map(self._clean, self._lines[first:last]))
            cased = plan.expression.cased
            if cased and not any(word in window for word in cased):
                continue
            for match in plan.expression.regex.finditer(window):
                if not _is_excused(window, match, plan.error):
                    yield _Found(match, first, is_prose(*_split_line(window, match)))

    def _describe(self, found: _Found, error: KnownError) -> _Place:
        match, window = found.match, found.window
        begin = window.rfind("\n", 0, match.start()) + 1
        place = found.first + window.count("\n", 0, begin)
        number, line = self.pieces[place]
        values = {name: text for name, text in match.groupdict().items() if text is not None}
        for raiser in _RAISER.finditer(window, 0, match.end()):
            values["raiser"] = raiser[1]
        around = window[max(0, match.start() - 400) : match.start()]
        below = window[match.end() : match.end() + 400].split("\n")
        retried = error.passes and bool(
            RETRY.search("\n".join(around.split("\n")[-3:]))
            or RETRY_BELOW.search("\n".join(below[1:3]))
        )
        retried = retried and not FINAL.search(line.lower())
        end = self.pieces[place + window.count("\n", begin, match.end())][0]
        quote = quote_line(line, match.group())
        stage = find_stage(self._lines[place][:100])
        return _Place(number, end, quote, values, number, stage, retried, found.reported)

    def _list_windows(self, plan: _Plan, lines: Iterable[_Lines]) -> Iterator[tuple[int, int]]:
        """The ranges of lines that have all that the plan needs; overlapping ones are merged."""
        first, last = 0, -1
        for each in lines:
            for place in self._list_hits(plan, each):
                if place + LINES_AROUND < last:
                    continue
                start, end = self._reach(place)
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

    def _list_hits(self, plan: _Plan, lines: _Lines) -> Sequence[int]:
        """Those of the lines that have a text of the plan, and near it all that it needs."""
        # What stands around a line counts, too.
        around = self._around
        bits, first = _widen(lines.bits << around, around), lines.first - around
        words = plan.words if lines.is_plain else plan.letters
        hits: list[int] = []
        last = min(first + bits.bit_length(), len(self._lines))
        if not self._has_words(words[:1], max(0, first), last):
            return ()
        while bits:
            lowest = bits & -bits
            # The carry runs through all set bits above the lowest one: they are read together.
            carried = bits + lowest
            start = first + lowest.bit_length() - 1
            end = first + (carried & -carried).bit_length() - 1
            bits &= carried
            start, end = max(0, start), min(end, len(self._lines))
            if self._has_words(words, start, end):
                hits += [start + line for line in self._find_texts(plan, start, end)]
        return sorted(hits)

    def _has_words(self, words: Sequence[Sequence[str]], start: int, end: int) -> bool:
        """Whether these lines, not yet cleaned, have one of each group of words."""
        first, last, find = self._starts[start], self._starts[end], self._text.find
        for group in words:
            for word in group:
                if find(word, first, last) >= 0:
                    break
            else:
                return False
        return True

    def _find_texts(self, plan: _Plan, start: int, end: int) -> Iterable[int]:
        text, starts = self._join(start, end)
        needed, reach = plan.needed, plan.expression.longest + SLACK
        if "nvrm:" in text:  # NVIDIA's module may name itself within a text: only words are sure
            needed, reach = plan.words or [("",)], len(text)
        if any(_find_any(text, each, 0) < 0 for each in needed):
            return ()
        needed = _put_rarest_first(text, needed)
        if len(needed) == 1 and sum(map(text.count, needed[0])) > (end - start) // 2:
            return range(end - start)  # it is quicker to read all than to choose
        at_start = plan.start is not None and all(e.startswith(plan.start) for e in needed[0])
        return _list_hits(text, starts, needed, reach, at_start=at_start)

    def _join(self, start: int, end: int) -> tuple[str, Sequence[int]]:
        """Some cleaned lines in lower case, each with a blank, and where each begins."""
        for first in range(start - start % CLEANED_LINES, end, CLEANED_LINES):
            if first not in self._squeezed:
                self._squeezed.add(first)
                last = min(first + CLEANED_LINES, len(self._lines))
                self._spaced[first:last] = map(self._squeeze, self._lines[first:last])
        lines = self._spaced[start:end]
        return "".join(lines), list(accumulate(map(len, lines), initial=0))

    def _squeeze(self, line: str) -> str:
        """The cleaned line in lower case, each run of blanks a space, and one at its end."""
        found = self._known_lines.get(line)
        if found is None:
            words = self._clean(line).lower().split()
            # An empty line adds nothing: a text has no two blanks in a row.
            found = self._known_lines[line] = " ".join([*words, ""])
        return found

    def _clean(self, line: str) -> str:
        found = self._cleaned.get(line)
        if found is None:
            found = clean_line(line)
            if self._translated:
                found = translate(found, self._translated)
            self._cleaned[line] = found
        return found


def _put_rarest_first(text: str, needed: Sequence[Sequence[str]]) -> Sequence[Sequence[str]]:
    if len(needed) == 1 or len(text) < CHUNK_CHARACTERS // 4:
        return needed
    rarest = min(needed, key=lambda group: sum(map(text.count, group)))
    return [rarest, *(group for group in needed if group is not rarest)]


class _Outcome(NamedTuple):
    """A text of `PROGRESS` or `FINAL`: runs of letters that its line has, and one of some texts."""

    regex: re.Pattern[str]
    words: frozenset[bytes]
    texts: Sequence[str]
    is_final: bool


@cache
def _list_outcomes() -> list[_Outcome]:
    return [
        _Outcome(
            re.compile(each.pattern),
            frozenset(
                run.strip().encode()
                for run in each.letters
                if run.startswith(" ") and run.endswith(" ")
            ),
            max(each.texts, key=_shortest_length, default=("",)),
            is_final,
        )
        for regex, is_final in ((PROGRESS, False), (FINAL, True))
        for each in split_alternatives(regex.pattern)
    ]


def _shortest_length(words: Sequence[str]) -> int:
    return min(map(len, words))


def _split_letters(text: bytes) -> list[bytes]:
    return text.translate(_NOT_LETTERS).split()


def _split_words(text: str) -> list[bytes]:
    return unescape(text).encode(errors="replace").translate(_SEPARATORS).split()


def _is_excused(window: str, match: re.Match[str], error: KnownError) -> bool:
    """True if the line only mentions the error, or shows that it is another error."""
    before, after = _split_line(window, match)
    if is_mention(before, after) or (error.passes and TRANSIENT.search(after)):
        return True
    start, end = match.start() - len(before), match.end() + len(after)
    above = window[window.rfind("\n", 0, max(0, start - 1)) + 1 : max(0, start - 1)]
    below = window[end + 1 :].partition("\n")[0]
    if is_source(before, window[start:end], above, below):
        return True
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
            named |= {reason, *(f"{reason}-{sign}" for sign in conditions & {"windows"})}
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

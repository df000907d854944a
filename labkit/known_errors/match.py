"""Finds the known errors in a log, with the line of each, the root cause first.

A log is read in blocks, and a block is searched by chunks of some hundred lines. A known error is
searched only in chunks that contain the words that its text requires, and there only in the lines
around these words.
"""

from __future__ import annotations

import re
from bisect import bisect_left, bisect_right
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cache, cached_property
from itertools import accumulate, groupby
from typing import BinaryIO, NamedTuple

from labkit.host.distribution import UNKNOWN, Distribution
from labkit.host.packages import Fix
from labkit.known_errors import KNOWN_ERRORS
from labkit.known_errors.catalog import find_status
from labkit.known_errors.context import Context, judge_memory
from labkit.known_errors.index import Index, SearchPlan, shortest_length, split_letters
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
from labkit.known_errors.model import CERTAINTIES, KnownError, split_alternatives
from labkit.known_errors.read import (
    PIECE_CHARACTERS,
    NumberedLines,
    clean_lines,
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
# In a traceback: the package whose code raised the error is the last one above it. torch's lookup
# of an attribute raises for every model: it says nothing about whose code is wrong.
_RAISER = re.compile(
    r"(?:site|dist)-packages[/\\](?!torch[/\\](?:nn[/\\]modules[/\\]module|_ops)\.py)"
    r"([A-Za-z]\w{0,60})[/\\.]"
)
# pip's names of packages whose module has another name, or the name of another package.
_DISTRIBUTIONS = {
    "attr": "attrs",
    "awq": "autoawq",
    "cv2": "opencv-python",
    "flashinfer": "flashinfer-python",
    "fitz": "pymupdf",
    "google": "protobuf",
    "llama_cpp": "llama-cpp-python",
    "OpenSSL": "pyopenssl",
    "PIL": "pillow",
    "skimage": "scikit-image",
    "sklearn": "scikit-learn",
    "TTS": "coqui-tts",
    "whisper": "openai-whisper",
    "yaml": "pyyaml",
}
# Words consist of lower-case letters, digits and non-ASCII characters; all else separates them.
_SEPARATORS = bytes(
    byte if byte >= 0x80 or chr(byte).isalnum() else ord(" ") for byte in range(256)
)
# A block is searched by chunks of about this size.
CHUNK_CHARACTERS = 16_384
# A part of an encoded file (base64, a digest in hexadecimal), in lower case: its letters are no
# words.
_ENCODED = re.compile(r"[\"']?(?:[a-z+/]{0,30}\d){4,2000}[a-z0-9+/=]{0,4000}[\"',]{0,2}")
ENCODED_CHARACTERS = 64
# An expression of whose texts more than one in so many lines has one is run on all lines.
FEW_LINES = 8
# Where a text is more often in a chunk, others of so many alternatives may be rarer.
OFTEN = 20
MOST_COUNTED = 4
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


def explain_text(
    text: str, known: tuple[KnownError, ...] = KNOWN_ERRORS, *, of_lab: bool = False
) -> Explanation:
    """The known errors in ``text``: causes before effects, then by certainty, then by line.

    ``of_lab``: this lab wrote it, so that its own commands help.

    >>> explain_text("OSError: [Errno 28] No space left on device").first.error.name
    'disk-full'
    """
    # With the last line's end, the whole text is one block.
    return _explain(read_pieces([text + "\n"]), known, Context({"lab"} if of_lab else set()))


def explain_file(file: BinaryIO, known: tuple[KnownError, ...] = KNOWN_ERRORS) -> Explanation:
    """The known errors in a log of any size and encoding; only one block is in memory at a time."""
    blocks = iter(lambda: file.read(BLOCK_BYTES), b"")
    return _explain(read_pieces(decode_blocks(blocks)), known, Context())


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
    found = explain_text(text, of_lab=True).sure
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
        r"^(?:\S{1,160} )?(?:error|fatal|panic|critical): ",
        r"^(?:\S{1,160} )?(?:error|fatal|panic|critical)\[\w{1,8}\]: ",
        r"^(?:\w{1,40}\.){0,8}\w{0,40}(?-i:Error|Exception)(?:: |$)",
        r"\blevel=(?:error|fatal|panic)\b",
        r"\"(?:level|severity|lvl)\":\s?\"(?:error|fatal|panic|critical)\"",
        r"^E\d{4} \d\d:\d\d:\d\d\.\d{6} .{1,60}\.go:\d{1,5}\] ",
        r"^F\d{4} \d\d:\d\d:\d\d\.\d{6} .{1,60}\.go:\d{1,5}\] ",
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


def _explain(
    blocks: Iterable[NumberedLines], known: tuple[KnownError, ...], context: Context
) -> Explanation:
    places: dict[KnownError, _Place] = {}
    found: set[str] = set()  # a name's hash is stored, that of an error is computed each time
    before = NumberedLines([], [])
    passing = {error.name for error in known if error.passes}
    index = _index_all() if known is KNOWN_ERRORS else Index((*known, _FAILURE))
    for pieces in blocks:
        if not pieces.lines:
            continue
        block = _Block(before.add(pieces))
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
        before = NumberedLines(block.numbers[-2 * LINES_AROUND :], block.lines[-2 * LINES_AROUND :])
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


@cache
def _index_all() -> Index:
    return Index((*KNOWN_ERRORS, _FAILURE))


class _Words(set[bytes]):
    """The runs of letters in a block; it contains a word that is a whole one in the text.

    What is not only letters and digits, it contains wherever the text does.
    """

    def __init__(self, text: str) -> None:
        super().__init__()
        self._text = text
        self._asked: dict[object, bool] = {}

    def __contains__(self, word: object) -> bool:
        if isinstance(word, bytes) and word not in self._asked:
            self._asked[word] = self.issuperset(split_letters(word.decode())) and self._has(
                word.decode()
            )
        return self._asked.get(word, False)

    def _has(self, word: str) -> bool:
        text, length = self._text, len(word)
        at = text.find(word)
        if not word.isalnum():
            return at >= 0
        while at >= 0:
            end = at + length
            before, after = text[at - 1 : at], text[end : end + 1]
            if not (before.isalnum() or after.isalnum() or max(before, after) > "\x7f"):
                return True
            at = text.find(word, end)
        return False


_Possible = list[tuple[KnownError, list[tuple[SearchPlan, list["_Chunk"]]]]]


class _Chunk:
    """Some consecutive lines of a block, cleaned: its ``own`` ones, and a few around them.

    ``start`` is the block's line with which its text begins.
    """

    def __init__(self, text: str, start: int, own: range) -> None:
        self._start, self.own = start, own
        self._cleaned, self.prefixes = clean_lines(text)
        self._lowered = f"\n{self._cleaned.lower()}"
        # As one line, each run of blanks a space: so texts are found that are wrapped.
        words = self._lowered.split()
        self.squeezed = " ".join([*words, ""])
        text = self.squeezed
        if max(map(len, words), default=0) >= ENCODED_CHARACTERS:
            text = " ".join([word for word in words if not _is_encoded(word)])
        self.letters = split_letters(text)
        # NVIDIA's module may name itself within a text: there only words are sure.
        self._is_interrupted = "nvrm:" in self.squeezed
        self._has: dict[Sequence[str], bool] = {}

    @property
    def own_lines(self) -> list[str]:
        """The chunk's own lines, cleaned."""
        start = self.own.start - self._start
        return self._cleaned.split("\n")[start : start + len(self.own)]

    @cached_property
    def _starts(self) -> list[int]:
        """Where in the squeezed text each line begins."""
        lines = map(str.split, self._lowered[1:].split("\n"))
        return list(accumulate((len(" ".join([*words, ""])) for words in lines), initial=0))

    def is_possible(self, plan: SearchPlan) -> bool:
        """Whether the chunk has one of each group of texts that the plan needs."""
        cased = plan.expression.cased
        return (
            all(map(self._has_any, plan.words if self._is_interrupted else plan.checked))
            and (not plan.start or f"\n{plan.start.split()[0]}" in self._lowered)
            and (not cased or any(word in self._cleaned for word in cased))
        )

    def _has_any(self, group: Sequence[str]) -> bool:
        found = self._has.get(group)
        if found is None:
            text = self.squeezed
            found = False
            for each in group:
                if each in text:
                    found = True
                    break
            self._has[group] = found
        return found

    def list_hits(self, plan: SearchPlan) -> Sequence[int]:
        """Those of its own lines that have a text of the plan, and near it all that it needs."""
        text, own = self.squeezed, self.own
        needed, reach = plan.needed, plan.expression.longest + SLACK
        if self._is_interrupted:
            needed, reach = plan.words, len(text)
        needed = _put_rarest_first(text, needed)
        at_start = bool(plan.start) and all(e.startswith(plan.start) for e in needed[0])
        is_alone = len(needed) == 1 and not at_start
        if is_alone and sum(map(text.count, needed[0])) > len(own) // FEW_LINES:
            return own  # it is quicker to read all than to choose
        hits = _list_hits(text, self._starts, needed, reach, at_start=at_start)
        return sorted({line for hit in hits if (line := hit + self._start) in own})


def _is_encoded(word: str) -> bool:
    return len(word) >= ENCODED_CHARACTERS and bool(_ENCODED.fullmatch(word))


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

    def __init__(self, pieces: NumberedLines) -> None:
        self.numbers, self.lines = pieces
        self.joined = "\n".join(self.lines)
        plain = strip_ansi(self.joined)
        self._text = plain.lower()
        if translated := find_translated(self._text):
            plain = translate(plain, translated)
            self._text = plain.lower()
        self.words = _Words(self._text)
        # The pieces of one line are read each alone.
        is_one_line = self.numbers[0] == self.numbers[-1] and len(self.numbers) > 1
        self._around = 0 if is_one_line else LINES_AROUND
        self._has_pieces = self.numbers[-1] - self.numbers[0] + 1 < len(self.numbers)
        self._chunks = list(self._split(plain))

    def _split(self, text: str) -> Iterator[_Chunk]:
        first = start = 0
        while start <= len(text):
            end = _find_end(text, start + CHUNK_CHARACTERS)
            above, below = start, end
            for _ in range(self._around):
                above = text.rfind("\n", 0, max(0, above - 1)) + 1
                below = _find_end(text, below + 1)
            own = range(first, first + text.count("\n", start, end) + 1)
            yield _Chunk(text[above:below], first - text.count("\n", above, start), own)
            first, start = own.stop, end + 1

    @cached_property
    def _cleaned(self) -> list[str]:
        return [line for chunk in self._chunks for line in chunk.own_lines]

    @cached_property
    def _starts(self) -> list[int]:
        """Where each line begins in the text in lower case."""
        return list(accumulate((len(line) + 1 for line in self._text.split("\n")), initial=0))

    def join_lowered(self) -> str:
        """The block's text in lower case, in English."""
        return self._text

    def list_possible(self, index: Index, ended: set[str]) -> _Possible:
        """The errors that the block may show, but those with ``ended`` names, with their plans."""
        found: dict[int, list[_Chunk]] = {}
        for chunk in self._chunks:
            self.words.update(chunk.letters, split_letters(chunk.prefixes.lower()))
            for number in index.list_possible(chunk.letters, ended):
                if chunk.is_possible(index.plans[number]):
                    found.setdefault(number, []).append(chunk)
        plans = ((index.plans[number], found[number]) for number in sorted(found))
        groups = (list(each) for _, each in groupby(plans, lambda pair: pair[0].error.name))
        return [(group[0][0].error, group) for group in groups]

    def find(
        self,
        error: KnownError,
        plans: Iterable[tuple[SearchPlan, list[_Chunk]]],
        *,
        only_last: bool,
    ) -> _Place | None:
        """The first place that shows the error, with the last line that does; None if none."""
        found = [
            place
            for plan, chunks in plans
            for place in self._search(plan, chunks, only_last=only_last)
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
        start = bisect_left(self.numbers, first)
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
                yield self.numbers[place], find_stage(strip_ansi(self.lines[place])), found[place]

    def _search(
        self, plan: SearchPlan, chunks: Sequence[_Chunk], *, only_last: bool
    ) -> Iterator[_Place]:
        """The first place, by preference of a program's own line, and the last one."""
        if not only_last:
            reported: list[_Found] = []
            for found in self._list_matches(plan, self._list_windows(plan, chunks)):
                if not found.reported:
                    yield self._describe(found, plan.error)
                    break
                reported = [*reported[:1], found]
            else:
                if not reported:
                    return
                yield from (self._describe(each, plan.error) for each in reported)
        if plan.error.passes:
            hits = (line for each in reversed(chunks) for line in reversed(each.list_hits(plan)))
            for line in hits:
                if matches := list(self._list_matches(plan, [self._reach(line)])):
                    yield self._describe(matches[-1], plan.error)
                    break

    def _list_matches(
        self, plan: SearchPlan, windows: Iterable[tuple[int, int]]
    ) -> Iterator[_Found]:
        for first, last in windows:
            window = "\n".join(self._cleaned[first:last])
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
        number, line = self.numbers[place], self.lines[place]
        values = {name: text for name, text in match.groupdict().items() if text is not None}
        for raiser in _RAISER.finditer(window, 0, match.end()):
            values["raiser"] = _DISTRIBUTIONS.get(raiser[1], raiser[1])
        around = window[max(0, match.start() - 400) : match.start()]
        below = window[match.end() : match.end() + 400].split("\n")
        retried = error.passes and bool(
            RETRY.search("\n".join(around.split("\n")[-3:]))
            or RETRY_BELOW.search("\n".join(below[1:3]))
        )
        retried = retried and not FINAL.search(line.lower())
        end = self.numbers[place + window.count("\n", begin, match.end())]
        quote = quote_line(line, match.group())
        stage = find_stage(strip_ansi(line)[:100])
        return _Place(number, end, quote, values, number, stage, retried, found.reported)

    def _list_windows(
        self, plan: SearchPlan, chunks: Iterable[_Chunk]
    ) -> Iterator[tuple[int, int]]:
        """The ranges of lines that have all that the plan needs; overlapping ones are merged."""
        first, last = 0, -1
        for chunk in chunks:
            for start, end in self._list_reaches(chunk.list_hits(plan)):
                if end <= last:
                    continue
                if last < 0 or start > last - 1:
                    if last >= 0:
                        yield first, last
                    first = start
                last = end
        if last >= 0:
            yield first, last

    def _list_reaches(self, hits: Sequence[int]) -> Iterable[tuple[int, int]]:
        if isinstance(hits, range) and not self._has_pieces:
            return [(self._reach(hits[0])[0], self._reach(hits[-1])[1])]
        return map(self._reach, hits)

    def _reach(self, place: int) -> tuple[int, int]:
        """The range of lines to read around a line; of a line in pieces only this piece."""
        numbers = self.numbers
        if self._has_pieces and len(self.lines[place]) == PIECE_CHARACTERS:
            around = numbers[max(0, place - 1) : place + 2 : 2]
            if numbers[place] in around:
                return place, place + 1
        return max(0, place - LINES_AROUND), min(len(numbers), place + LINES_AROUND + 1)


def _find_end(text: str, start: int) -> int:
    """Where the line ends that this position is in."""
    end = text.find("\n", start)
    return end if end >= 0 else len(text)


def _put_rarest_first(text: str, needed: Sequence[tuple[str, ...]]) -> Sequence[tuple[str, ...]]:
    # To count takes as long as to search: only what could be first is counted.
    most = len(needed[0])
    if sum(map(text.count, needed[0])) > OFTEN:
        most = max(most, MOST_COUNTED)
    first = [group for group in needed if len(group) <= most]
    if len(first) == 1:
        return needed
    rarest = min(first, key=lambda group: sum(map(text.count, group)))
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
            max(each.texts, key=shortest_length, default=("",)),
            is_final,
        )
        for regex, is_final in ((PROGRESS, False), (FINAL, True))
        for each in split_alternatives(regex.pattern)
    ]


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
            named.add(reason)
        named |= {f"{name}-{sign}" for name in named for sign in conditions}
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

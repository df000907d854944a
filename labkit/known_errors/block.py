"""A block of a log: some consecutive lines, in which known errors are looked for.

A block is searched by chunks of some hundred lines. A known error is searched only in chunks that
contain the words that its text requires, and there only in the lines around these words.
"""

from __future__ import annotations

import re
import sys
from bisect import bisect_left, bisect_right
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence, Set
from functools import cache, cached_property, partial
from itertools import accumulate, chain, groupby
from typing import NamedTuple

from labkit.known_errors.index import (
    Index,
    SearchPlan,
    join_digits,
    shortest_length,
    split_letters,
)
from labkit.known_errors.mention import (
    FINAL,
    PROGRESS,
    PROGRESS_WORDS,
    RETRY,
    RETRY_BELOW,
    STEPS,
    TRANSIENT,
    find_stage,
    is_documented,
    is_mention,
    is_prose,
    is_source,
)
from labkit.known_errors.model import HEAD_CHARACTERS, KnownError, split_alternatives
from labkit.known_errors.read import (
    PIECE_CHARACTERS,
    NumberedLines,
    clean_lines,
    unescape,
)
from labkit.known_errors.translate import find_translated, translate
from labkit.text import escape_controls, strip_ansi

QUOTED_CHARACTERS = 200
# An error text can be wrapped: this many lines before and after its rarest word are searched.
LINES_AROUND = 3
# In a traceback: the package whose code raised the error is the last one above it. torch's lookup
# of an attribute raises for every model: it says nothing about whose code is wrong.
_RAISER = re.compile(
    r"(?:site|dist)-packages[/\\](?!torch[/\\](?:nn[/\\]modules[/\\]module|_ops)\.py)"
    r"([A-Za-z]\w{0,60})[/\\.]"
)
# The line with which Python ends a traceback, and what an exception of C++ says.
_RAISED = re.compile(
    r"(?:[A-Za-z_]\w{0,40}\.){0,6}[A-Z]\w{0,40}(?:Error|Exception): |what\(\): "
    r"|(?:[a-z_]\w{0,40}\.){1,5}[A-Z]\w{0,40}: "
)
# pip's names of packages whose module has another name, or the name of another package.
_DISTRIBUTIONS = {
    "attr": "attrs",
    "awq": "autoawq",
    "cv2": "opencv-python",
    "flash_attn": "flash-attn",
    "flash_attn_2_cuda": "flash-attn",
    "flashinfer": "flashinfer-python",
    "fitz": "pymupdf",
    "google": "protobuf",
    "llama_cpp": "llama-cpp-python",
    "OpenSSL": "pyopenssl",
    "PIL": "pillow",
    "pynvml": "nvidia-ml-py",
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
CHUNK_CHARACTERS = 8192
# A part of an encoded file (base64, a digest in hexadecimal), in lower case: its letters are no
# words.
_ENCODED = re.compile(r"[\"']?(?:[a-z+/]{0,30}\d){4,2000}[a-z0-9+/=]{0,4000}[\"',]{0,2}")
ENCODED_CHARACTERS = 64
# An expression of whose texts more than one in so many lines has one is run on all lines.
FEW_LINES = 8
_NO_RUNS = frozenset[int]()
# Where a text is more often in a chunk, others of so many alternatives may be rarer.
OFTEN = 20
MOST_COUNTED = 5
# A text in lower case may be longer by a few characters.
SLACK = 8
# From so many places on it is quicker to list where a text is than to search for it near each.
FEW_PLACES = 12

# A place in a part of the text, from one position up to another, of what is searched for; if it
# is not there, -1, or where it is known, the next place.
_Find = Callable[[int, int], int]


class ErrorPlace(NamedTuple):
    """Where an error was found: its line's number and quote, and the values in its text.

    ``end`` is the last line of the text, ``last``, ``stage``, ``retried`` and ``last_line`` (its
    quote) are of the last line that shows the error. ``reported`` is true if a person's sentence,
    not a program, shows it.
    """

    number: int
    end: int
    line: str
    values: Mapping[str, str]
    last: int
    stage: str
    retried: bool
    reported: bool
    last_line: str


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


class Outcome(NamedTuple):
    """A line that shows progress or a final failure: its number, its stage, whether it failed.

    ``is_step``: it only says that a step of a training is done, which another process may have
    written, or this one before the error: what is printed waits in a buffer, an error does not.
    """

    number: int
    stage: str
    is_final: bool
    is_step: bool


_Possible = list[tuple[KnownError, list[tuple[SearchPlan, list["Chunk"]]]]]


class Chunk:
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
            least, match = ENCODED_CHARACTERS, _ENCODED.fullmatch
            text = " ".join([word for word in words if len(word) < least or not match(word)])
        self.letters, self.digits = split_letters(text), join_digits(self.squeezed)
        # NVIDIA's module may name itself within a text: there only words are sure.
        self._is_interrupted = "nvrm:" in self.squeezed
        self._has: dict[Sequence[str], bool] = {}
        self._has_cased: dict[str, bool] = {}
        self._has_heads: dict[re.Pattern[str], bool] = {}
        self._places: dict[str | Sequence[str], list[int]] = {}

    @property
    def own_lines(self) -> list[str]:
        """The chunk's own lines, cleaned."""
        start = self.own.start - self._start
        return self._cleaned.split("\n")[start : start + len(self.own)]

    @cached_property
    def _starts(self) -> list[int]:
        """Where in the squeezed text each line begins."""
        lines = (" ".join(line.split()) for line in self._lowered[1:].split("\n"))
        return list(accumulate((len(line) + 1 if line else 0 for line in lines), initial=0))

    @cached_property
    def _heads(self) -> frozenset[str]:
        """What its lines begin with."""
        return frozenset([line[:HEAD_CHARACTERS] for line in self._cleaned.split("\n")])

    def is_possible(self, plan: SearchPlan, there: Set[int]) -> bool:
        """Whether the chunk has one of each group of texts that the plan needs.

        ``there`` are the numbers of the runs of letters that it has.
        """
        cased, head, runs = plan.expression.cased, plan.expression.head, plan.runs
        if cased and not any(self._has_word(word, runs, there) for word in cased):
            return False
        if head is not None and not self._has_head(head):
            return False
        has = self._has
        for group in plan.words if self._is_interrupted else plan.checked:
            found = has.get(group)
            if found is None:
                found = has[group] = self._has_any(group, runs, there)
            if not found:
                return False
        return True

    def _has_any(
        self, choices: Sequence[str], runs: Mapping[str, Set[int]], there: Set[int]
    ) -> bool:
        """Whether it has one of these texts."""
        text = self.squeezed
        for each in choices:  # noqa: SIM110 (a generator takes twice as long)
            # To look for its letters among all words takes a twentieth of a search.
            if runs.get(each, _NO_RUNS) <= there and each in text:
                return True
        return False

    def _has_word(self, word: str, runs: Mapping[str, Set[int]], there: Set[int]) -> bool:
        """Whether it has this word in the same case."""
        found = self._has_cased.get(word)
        if found is None:
            found = self._has_cased[word] = runs[word] <= there and word in self._cleaned
        return found

    def _has_head(self, head: re.Pattern[str]) -> bool:
        found = self._has_heads.get(head)
        if found is None:
            found = self._has_heads[head] = any(map(head.match, self._heads))
        return found

    def list_hits(self, plan: SearchPlan) -> Sequence[int]:
        """Those of its own lines that have a text of the plan, and near it all that it needs."""
        text, own = self.squeezed, self.own
        needed, reach = plan.needed, plan.expression.longest + SLACK
        if self._is_interrupted:
            needed, reach = plan.words, len(text)
        needed = _put_rarest_first(needed, self._count)
        first = self._list_places(needed[0])
        at_start = bool(plan.start) and all(e.startswith(plan.start) for e in needed[0])
        is_alone = len(needed) == 1 and not at_start
        if is_alone and len(first) > len(own) // FEW_LINES:
            return own  # it is quicker to read all than to choose
        finds = [self._make_find(group, len(first)) for group in needed[1:]]
        hits = _list_hits(first, self._starts, finds, reach, at_start=at_start)
        return sorted({line for hit in hits if (line := hit + self._start) in own})

    def _count(self, texts: Sequence[str]) -> int:
        """How often it has these texts."""
        return len(self._list_places(texts))

    def _list_places(self, texts: Sequence[str]) -> list[int]:
        """Where it has these texts, in order. Many plans need the same ones."""
        found = self._places.get(texts)
        if found is None:
            lists = [self._list_places_of(each) for each in texts]
            found = lists[0] if len(lists) == 1 else sorted(chain.from_iterable(lists))
            self._places[texts] = found
        return found

    def _list_places_of(self, literal: str) -> list[int]:
        found = self._places.get(literal)
        if found is None:
            found = self._places[literal] = []
            find, text = found.append, self.squeezed
            at = text.find(literal)
            while at >= 0:
                find(at)
                at = text.find(literal, at + 1)
        return found

    def _make_find(self, texts: Sequence[str], count: int) -> _Find:
        """Finds the first of these texts in a part of the text; asked for so many parts."""
        if texts not in self._places and count < FEW_PLACES:
            return partial(_find_any, self.squeezed, texts)
        return partial(_find_place, self._list_places(texts))


def _list_hits(
    places: Sequence[int],
    starts: Sequence[int],
    finds: Sequence[_Find],
    reach: int,
    *,
    at_start: bool,
) -> Iterator[int]:
    """The lines of the places of a text near which, within ``reach``, each of ``finds`` succeeds.

    ``starts`` are the positions at which the lines begin; ``at_start``: so do the texts.
    """
    following = 0
    for at in places:
        if at < following:
            continue
        line = bisect_right(starts, at) - 1
        if at_start and at > starts[line]:
            following = starts[line + 1]
            continue
        start = max(at - reach, starts[max(0, line - LINES_AROUND)])
        end = min(at + reach, starts[min(len(starts) - 1, line + LINES_AROUND + 1)])
        for find in finds:
            place = find(start, end)
            if not 0 <= place < end:
                # No place has all that it needs near before the next place of these.
                following = place - reach
                break
        else:
            yield line
            following = starts[line + 1]


def _find_place(places: Sequence[int], start: int, end: int) -> int:
    """The first of these places from ``start`` on, also after ``end``; far beyond if none is."""
    index = bisect_left(places, start)
    return places[index] if index < len(places) else sys.maxsize


def _find_any(text: str, choices: Sequence[str], start: int, end: int) -> int:
    """A place of one of these in a part of the text; -1 if it has none."""
    for each in choices:
        place = text.find(each, start, end)
        if place >= 0:
            return place
    return -1


class _Found(NamedTuple):
    """A match in a window: some lines of a block from the line ``first`` on, cleaned."""

    match: re.Match[str]
    first: int
    reported: bool = False

    @property
    def window(self) -> str:
        """The lines that were searched."""
        return self.match.string


class LogBlock:
    """Some consecutive lines of a log, in which known errors are looked for."""

    def __init__(self, pieces: NumberedLines) -> None:
        self.numbers, self.lines = pieces
        self.joined = "\n".join(self.lines)
        plain = strip_ansi(self.joined)
        self._text = plain.lower()
        if translated := find_translated(self._text):
            plain = translate(plain, translated)
            self._text = plain.lower()
        # The pieces of one line are read each alone.
        is_one_line = self.numbers[0] == self.numbers[-1] and len(self.numbers) > 1
        self._around = 0 if is_one_line else LINES_AROUND
        self._has_pieces = self.numbers[-1] - self.numbers[0] + 1 < len(self.numbers)
        self._chunks = list(self._split(plain))

    @cached_property
    def words(self) -> _Words:
        """The words of the block."""
        words = _Words(self._text)
        for chunk in self._chunks:
            words.update(chunk.letters, split_letters(chunk.prefixes.lower()))
        return words

    def _split(self, text: str) -> Iterator[Chunk]:
        first = start = 0
        while start <= len(text):
            end = _find_end(text, start + CHUNK_CHARACTERS)
            above, below = start, end
            for _ in range(self._around):
                above = text.rfind("\n", 0, max(0, above - 1)) + 1
                below = _find_end(text, below + 1)
            own = range(first, first + text.count("\n", start, end) + 1)
            yield Chunk(text[above:below], first - text.count("\n", above, start), own)
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

    def join_searched(self) -> str:
        """What errors are looked for in: the cleaned text in lower case, with single blanks."""
        return "".join([chunk.squeezed for chunk in self._chunks])

    def list_possible(self, index: Index, ended: Collection[str]) -> _Possible:
        """The errors that the block may show, but those with ``ended`` names, with their plans."""
        found: dict[int, list[Chunk]] = {}
        for chunk in self._chunks:
            there = index.find_runs(chunk.letters)
            for number in index.list_possible(there, chunk.digits, ended):
                if chunk.is_possible(index.plans[number], there):
                    found.setdefault(number, []).append(chunk)
        plans = ((index.plans[number], found[number]) for number in sorted(found))
        groups = (list(each) for _, each in groupby(plans, lambda pair: pair[0].error.name))
        return [(group[0][0].error, group) for group in groups]

    def find(
        self,
        error: KnownError,
        plans: Iterable[tuple[SearchPlan, list[Chunk]]],
        *,
        only_last: bool,
    ) -> ErrorPlace | None:
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
        return first._replace(
            values=values,
            last=last.last,
            stage=last.stage,
            retried=last.retried,
            last_line=last.last_line,
        )

    def list_outcomes(self, first: int) -> Iterator[Outcome]:
        """The lines that show progress or a final failure, from the number ``first`` on."""
        start = bisect_left(self.numbers, first)
        starts = self._starts
        found: dict[int, set[str]] = {}
        for outcome in _list_outcomes():
            if not self.words.issuperset(outcome.words):
                continue
            for text in outcome.texts:
                at = self._text.find(text, starts[start])
                while at >= 0:
                    place = bisect_right(starts, at) - 1
                    if self._shows(outcome, place, at):
                        found.setdefault(place, set()).add(outcome.kind)
                        at = starts[place + 1] - 1
                    at = self._text.find(text, at + 1)
        for place in sorted(found):
            line = self._text[starts[place] : starts[place + 1] - 1]
            if not PROGRESS_WORDS.isdisjoint(_split_words(line)):
                stage, kinds = find_stage(strip_ansi(self.lines[place])), found[place]
                yield Outcome(self.numbers[place], stage, "final" in kinds, kinds == {"step"})

    def _shows(self, outcome: _OutcomeText, place: int, at: int) -> bool:
        """Whether the line has a match near this position of the text."""
        begin = self._starts[place]
        line = self._text[begin : self._starts[place + 1] - 1]
        start, end = at - begin - outcome.reach, at - begin + outcome.reach
        return bool(outcome.regex.search(line, max(0, start), end))

    def _search(
        self, plan: SearchPlan, chunks: Sequence[Chunk], *, only_last: bool
    ) -> Iterator[ErrorPlace]:
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

    def _describe(self, found: _Found, error: KnownError) -> ErrorPlace:
        match, window = found.match, found.window
        begin = window.rfind("\n", 0, match.start()) + 1
        last = window.rfind("\n", begin, match.end()) + 1
        # What is found with the code above an exception is shown at the exception's own line.
        if last > begin and _RAISED.match(window, last):
            begin = last
        place = found.first + window.count("\n", 0, begin)
        number, line = self.numbers[place], self.lines[place]
        values = {name: text for name, text in match.groupdict().items() if text is not None}
        for raiser in _RAISER.finditer(window, 0, match.end()):
            values["raiser"] = _DISTRIBUTIONS.get(raiser[1], raiser[1])
        around = window[max(0, match.start() - 400) : match.start()]
        below = window[match.end() : match.end() + 400].split("\n")
        retried = error.passes and bool(
            RETRY.search("\n".join(around.split("\n")[-3:]))
            or RETRY_BELOW.search("\n".join(below[:3]))
        )
        retried = retried and not FINAL.search(line.lower())
        end = self.numbers[place + window.count("\n", begin, match.end())]
        quote = quote_line(line, window[max(begin, match.start()) : match.end()])
        stage = find_stage(strip_ansi(line)[:100])
        reported = found.reported
        return ErrorPlace(number, end, quote, values, number, stage, retried, reported, quote)

    def _list_windows(self, plan: SearchPlan, chunks: Iterable[Chunk]) -> Iterator[tuple[int, int]]:
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


def _put_rarest_first(
    needed: Sequence[tuple[str, ...]], count: Callable[[tuple[str, ...]], int]
) -> Sequence[tuple[str, ...]]:
    # To count takes as long as to search: only what could be first is counted.
    most = len(needed[0])
    if count(needed[0]) > OFTEN:
        most = max(most, MOST_COUNTED)
    first = [group for group in needed if len(group) <= most]
    if len(first) == 1:
        return needed
    rarest = min(first, key=count)
    return [rarest, *(group for group in needed if group is not rarest)]


class _OutcomeText(NamedTuple):
    """A text of `PROGRESS`, `STEPS` or `FINAL`: runs of letters of its line, one of some texts.

    A match, with what may not be around it, is within ``reach`` of the text.
    """

    regex: re.Pattern[str]
    words: frozenset[bytes]
    texts: Sequence[str]
    kind: str
    reach: int


@cache
def _list_outcomes() -> list[_OutcomeText]:
    return [
        _OutcomeText(
            re.compile(each.pattern),
            frozenset(
                run.strip().encode()
                for run in each.letters
                if run.startswith(" ") and run.endswith(" ")
            ),
            max(each.texts, key=shortest_length, default=("",)),
            kind,
            2 * each.longest,
        )
        for regex, kind in ((PROGRESS, "progress"), (STEPS, "step"), (FINAL, "final"))
        for each in split_alternatives(regex.pattern)
    ]


def _split_words(text: str) -> list[bytes]:
    return unescape(text).encode(errors="replace").translate(_SEPARATORS).split()


def _is_excused(window: str, match: re.Match[str], error: KnownError) -> bool:
    """True if the line only mentions the error, or shows that it is another error."""
    before, after = _split_line(window, match)
    # The form of a failure, which has no cause of its own, is an exception's name and no more.
    is_known = bool(error.cause)
    if is_mention(before, after, "" if is_known else match.group()) or (
        is_known and error.passes and TRANSIENT.search(after)
    ):
        return True
    start, end = match.start() - len(before), match.end() + len(after)
    above = window[window.rfind("\n", 0, max(0, start - 1)) + 1 : max(0, start - 1)]
    below = window[end + 1 :].partition("\n")[0]
    if is_source(before, window[start:end], above, below):
        return True
    if is_documented(window[max(0, start - 400) : start], window[start:end], window[end + 1 :]):
        return True
    return bool(error.exception and error.exception.search(window, start, end))


def _split_line(window: str, match: re.Match[str]) -> tuple[str, str]:
    """The text before and after a match, up to the ends of its first and last line."""
    start = window.rfind("\n", 0, match.start()) + 1
    end = window.find("\n", match.end())
    return window[start : match.start()], window[match.end() : end if end >= 0 else None]


def quote_line(line: str, matched: str) -> str:
    """The line, safe to print; of a long one whole words, from its start if the match is near it.

    >>> quote_line(f"error: {'very ' * 50}long: no such file", "no such file")[:13]
    '... very very'
    """
    line = strip_ansi(line).strip()
    if len(line) > QUOTED_CHARACTERS:
        matched = " ".join(matched.partition("\n")[0].split())
        # A record escapes what is matched: its longest word stands there as it is.
        word = max(re.findall(r"\w+", matched), key=len, default="")
        parts = (matched[:QUOTED_CHARACTERS], word)
        at = max(0, next((at for at in map(line.find, parts) if at >= 0), 0))
        start, end = 0, QUOTED_CHARACTERS - len(_CUT)
        if at + len(matched) > end:
            size = QUOTED_CHARACTERS - 2 * len(_CUT)
            start = max(0, min(at - QUOTED_CHARACTERS // 4, len(line) - size))
            start = max(start, line.find(" ", start, at) + 1)
            end = start + size
        before, after = _CUT if start else "", "" if end >= len(line) else _CUT[::-1]
        end = max(line.rfind(" ", at + len(matched), end + 1), 0) or end if after else end
        line = f"{before}{line[start:end].strip()}{after}"
    return escape_controls(line)


_CUT = "... "

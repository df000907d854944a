"""Scans a log, block by block, for known errors and for what it says about its machine."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import cache, partial
from itertools import count

from labkit.known_errors import KNOWN_ERRORS
from labkit.known_errors.block import LINES_AROUND, ErrorPlace, LogBlock, Outcome
from labkit.known_errors.context import Context
from labkit.known_errors.failures import BY_FORM, ENDING, FAILURE
from labkit.known_errors.index import Index
from labkit.known_errors.model import KnownError
from labkit.known_errors.read import NumberedLines, clean_line
from labkit.known_errors.summaries import BELOW_COUNTS, COUNT, FINDING, LINES_BELOW_COUNTS
from labkit.text import strip_ansi

# So many lines above an exception its traceback may begin.
LONGEST_TRACEBACK = 200

Found = Sequence[tuple[str, ErrorPlace]]
# The end of a program's own words is its last line, but for those in which a shell waits, and the
# usage that a program prints below.
LINES_QUOTED, LONGEST_ENDING = 40, 400
# A record of a system's log, or a message of one of many programs: another one follows.
_RECORD = re.compile(
    r"\s*(?:<\d{1,3}>)?(?:[A-Z][a-z]{2} {1,2}\d{1,2} \d\d:\d\d:\d\d |\[ {0,6}\d{1,9}\.\d{1,9}\]"
    r"|\d{4}-\d\d-\d\dT\S{8,40} \S{1,80} \S{1,80}\[?\d{0,9}\]?: )"
    r"|\s*\S{1,80}\[\d{1,9}\]: "
)
_PROMPT = re.compile(r"[\w.@~/:()\[\]\x20-]{0,80}[$#%>❯]\s*(?:exit|logout)?\s*")
_USAGE = re.compile(r"\s*usage\b", re.IGNORECASE)
_GOES_ON = re.compile(r"[^\s-].*[^:\s]\s*$")
_COUNTS = re.compile("|".join(COUNT.patterns), re.IGNORECASE)
_BELOW_COUNTS = re.compile(BELOW_COUNTS)
# What a log says of its machine stands at its start and near its errors: later blocks without any
# are not searched for it, which takes a third of the time.
BLOCKS_OF_FACTS = 4
# To read the plans of all known errors takes as long as to read two megabytes: a few short texts
# are searched only for those that they can have.
SHORT_CHARACTERS = 2**15
SHORT_TEXTS = 4
_texts_asked = count()


class Scan:
    """What the blocks read so far show: the place of each known error, and facts of the machine.

    ``passed`` are the places of those after which the log goes on: they ended nothing.
    """

    def __init__(self, known: Sequence[KnownError], context: Context) -> None:
        self.places: dict[KnownError, ErrorPlace] = {}
        self.passed: dict[KnownError, ErrorPlace] = {}
        # Of an error that may pass: the line of the first step of a training after it.
        self._steps: dict[KnownError, int] = {}
        self.context = context
        self._index = None if known is KNOWN_ERRORS else Index((*known, *BY_FORM))
        self._by_name = {error.name: error for error in (*known, *BY_FORM)}
        self._passing = {error.name for error in (*known, *BY_FORM) if error.passes}
        # The names of all errors that were found, also of those that have passed; how many blocks
        # were read, and the last one.
        self.seen, self._count = set[str](), 0
        self._last = NumberedLines([], [])

    def read_lines(self, lines: NumberedLines) -> None:
        """Reads the next block, which begins with the last lines of the one before it."""
        block = LogBlock(lines)
        index = self._index or _choose_index(block)
        found = find_errors(block, index, self.list_ended(), self._list_shown())
        self.add(lines, found, partial(read_facts, block), block.list_outcomes)

    def find_ending(self) -> ErrorPlace | None:
        """The last line, if it says in plain words that the program failed."""
        lines = self._last.lines
        said = [
            place
            for place, line in enumerate(lines)
            if line.strip() and not _PROMPT.fullmatch(strip_ansi(line))
        ]
        # What a program is to be called with stands below what it refused.
        usage = next((place for place in said if _USAGE.match(lines[place])), None)
        if usage is not None and not any(_GOES_ON.match(lines[at]) for at in said if at > usage):
            said = [place for place in said if place < usage]
        if not said:
            return None
        for form in (ENDING, FINDING):
            if found := _find_last(self._last, said[-1], form):
                return found
        for place in reversed(said[-LINES_BELOW_COUNTS:]):
            line = clean_line(lines[place])
            if _COUNTS.search(line) and (found := _find_last(self._last, place, COUNT)):
                return found
            if not _BELOW_COUNTS.fullmatch(line):
                return None
        return None

    def list_ended(self) -> frozenset[str]:
        """The names of errors that need not be searched for again: they are shown, and stay."""
        ended = self._list_shown() - self._passing
        # That something failed is certain at once; to look for the last one in each block is slow.
        is_certain = FAILURE in self.places or FAILURE in self.passed
        return ended | {FAILURE.name} if is_certain else ended

    def wants_facts(self, waiting: int = 0) -> bool:
        """Whether the next block is read for facts; ``waiting`` ones before it are not added."""
        return self._count + waiting < BLOCKS_OF_FACTS

    def _list_shown(self) -> frozenset[str]:
        """The names of errors that a program's own line showed: a person's may tell of another."""
        places = self.places.items()
        return frozenset(error.name for error, place in places if not place.reported)

    def add(
        self,
        lines: NumberedLines,
        found: Found,
        add_facts: Callable[[Context], None],
        list_outcomes: Callable[[int], Iterable[Outcome]],
    ) -> None:
        """Adds what the next block shows.

        ``add_facts`` and `LogBlock.list_outcomes` are asked for the rest where it is needed.
        """
        names = {name for name, _ in found}
        is_new = not names <= self.seen
        self.seen |= names
        if is_new and self._count > BLOCKS_OF_FACTS:
            read_facts(LogBlock(self._last), self.context)
        if is_new or self.wants_facts():
            add_facts(self.context)
        self._count += 1
        self._last = lines
        for name, place in found:
            error = self._by_name[name]
            first = self.places.get(error, place)
            if first.reported and not place.reported:
                first = place
            if place.last != first.last:
                self._steps.pop(error, None)
            self.places[error] = first._replace(
                last=place.last,
                stage=place.stage,
                retried=place.retried,
                last_line=place.last_line,
            )
        if waiting := [error for error in self.places if error.passes and error != FAILURE]:
            self._move_what_passed(waiting, list_outcomes)

    def _move_what_passed(
        self,
        waiting: Sequence[KnownError],
        list_outcomes: Callable[[int], Iterable[Outcome]],
    ) -> None:
        """Puts aside errors that the log shows progress after; a retry that failed is certain."""
        places = self.places
        for outcome in list_outcomes(min(places[each].last for each in waiting)):
            for error in waiting:
                place = places.get(error)
                if place is None or outcome.number < place.last:
                    continue
                if not _is_of(outcome.stage, place.stage):
                    continue
                if outcome.is_final:
                    places[error] = place._replace(retried=False)
                elif outcome.number > place.last and self._is_over(error, place, outcome):
                    self.passed.setdefault(error, places.pop(error))
                    self._move_failure(place, outcome.number)

    def _is_over(self, error: KnownError, place: ErrorPlace, outcome: Outcome) -> bool:
        """Whether progress shows that the program went on.

        A single step of a training does not where nothing says that the program tries again.
        """
        if not outcome.is_step or place.retried or outcome.stage:
            return True
        return self._steps.setdefault(error, outcome.number) != outcome.number

    def _move_failure(self, passed: ErrorPlace, until: int) -> None:
        """Puts aside the failure that an error that passed was; a later one takes its place."""
        failure = self.places.get(FAILURE)
        if failure is None or not passed.number - LONGEST_TRACEBACK <= failure.number < until:
            return
        del self.places[FAILURE]
        # Where the program said that it tries again, it was no failure of the run.
        if not passed.retried:
            self.passed.setdefault(FAILURE, failure)
        if failure.last > until:
            self.places[FAILURE] = failure._replace(number=failure.last, line=failure.last_line)


def _find_last(lines: NumberedLines, place: int, error: KnownError) -> ErrorPlace | None:
    """Where this line, with some above it, shows the error as a program's own words."""
    last = strip_ansi(lines.lines[place])
    if len(last) > LONGEST_ENDING or _RECORD.match(last):
        return None
    # What is above may show that somebody only quotes it.
    part = slice(max(0, place - LINES_QUOTED), place + 1)
    block = LogBlock(NumberedLines(lines.numbers[part], lines.lines[part]))
    for _, found in find_errors(block, _index_ends(error), frozenset()):
        if found.last == lines.numbers[place] and not found.reported:
            return found._replace(number=found.last, line=found.last_line)
    return None


def repeat_ends(blocks: Iterable[NumberedLines]) -> Iterator[NumberedLines]:
    """Each block that has lines, after the last lines of the one before it."""
    before = NumberedLines([], [])
    for block in blocks:
        if block.lines:
            lines = before.add(block)
            yield lines
            size = 2 * LINES_AROUND
            before = NumberedLines(lines.numbers[-size:], lines.lines[-size:])


def _is_of(stage: str, failed: str) -> bool:
    """Whether a line of this stage can show that the step of the failed stage went on."""
    # torch marks the exception that ends a rank; the other ranks' lines have no mark.
    return stage == failed or (stage == "" and not failed.startswith("rank"))


def find_errors(
    block: LogBlock,
    index: Index,
    ended: frozenset[str],
    shown: frozenset[str] = frozenset(),
) -> Found:
    """The places of errors in a block, but those with ``ended`` names.

    Of those ``shown`` before only the last place counts.
    """
    possible = block.list_possible(index, ended)
    found = (
        # Of an error that passes, the last place counts, too.
        (error.name, block.find(error, plans, only_last=error.name in shown))
        for error, plans in possible
    )
    return [(name, place) for name, place in found if place]


def read_facts(block: LogBlock, context: Context) -> None:
    """Adds what a block says of its machine."""
    context.read(block.words, block.join_lowered, block.joined)


def _choose_index(block: LogBlock) -> Index:
    """The index of all known errors, or in the first short texts of those that they can have."""
    text = block.join_searched()
    is_short = len(text) < SHORT_CHARACTERS and not index_all.cache_info().currsize
    if is_short and next(_texts_asked) < SHORT_TEXTS:
        return Index((*KNOWN_ERRORS, *BY_FORM), text)
    return index_all()


@cache
def _index_ends(error: KnownError) -> Index:
    return Index((error,))


@cache
def index_all() -> Index:
    """The index of all known errors."""
    return Index((*KNOWN_ERRORS, *BY_FORM))

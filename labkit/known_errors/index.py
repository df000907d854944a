"""Chooses the expressions that a part of a log may match, by the words that they require.

Nearly all words of a log are in no known error. An expression is looked for only where a text has
two consecutive words that all its matches have; for one without such words, a rare word decides.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence, Set
from dataclasses import dataclass
from functools import cached_property
from itertools import chain, pairwise
from string import ascii_lowercase

from labkit.known_errors.model import Expression, KnownError, find_pairs

# Shorter words are in too many others: they are searched as whole words.
SHORTEST_SEARCHED = 3
SHORTEST_PART = 4
MOST_WORDS = 200_000
# After so many texts, half a megabyte, it is known what is rare in a log.
TEXTS_COUNTED = 64
NO_KEY = -1
# Of a text in lower case only its letters.
_NOT_LETTERS = bytes(byte if chr(byte) in ascii_lowercase else ord(" ") for byte in range(256))
_NOT_DIGITS = bytes(byte if chr(byte).isdigit() else ord(" ") for byte in range(256))
# NVIDIA's module may name itself between any two words of its messages.
_NVRM = b"nvrm"


def split_letters(text: str) -> list[bytes]:
    """The runs of letters of a text in lower case."""
    return text.encode(errors="replace").translate(_NOT_LETTERS).split()


def join_digits(text: str) -> bytes:
    """The runs of digits of a text, each between two spaces."""
    digits = text.encode(errors="replace").translate(_NOT_DIGITS).split()
    return b" %b " % b" ".join(digits)


@dataclass(frozen=True, eq=False)
class SearchPlan:
    """An expression, and what is looked for before it is run.

    ``clauses`` are groups of numbers of runs of letters, or of pairs of words: a text has one of
    each group. ``counts`` says in how many plans' ``needed`` each group of texts is, ``runs`` the
    numbers of the runs that each text has.
    """

    error: KnownError
    expression: Expression
    clauses: Sequence[frozenset[int]]
    counts: Counter[tuple[str, ...]]
    runs: Mapping[str, frozenset[int]]

    @cached_property
    def needed(self) -> Sequence[tuple[str, ...]]:
        """Groups of texts, of each of which a match contains one, the rarest in logs first."""
        groups = self.expression.texts
        # A single sign is nearly everywhere: to look for it decides nothing.
        groups = [group for group in groups if shortest_length(group) > 1]
        return sorted(groups, key=lambda each: (len(each), -shortest_length(each))) or [("",)]

    @cached_property
    def checked(self) -> Sequence[tuple[str, ...]]:
        """The same: first those that many plans need, as one search answers for all of these."""
        counts = self.counts
        return sorted(self.needed, key=lambda each: -counts[each] * (counts[each] > 2))

    @cached_property
    def words(self) -> Sequence[tuple[str, ...]]:
        """The same, without what blanks separate: another word may stand there."""
        found: set[tuple[str, ...]] = set()
        for group in self.needed:
            words = [text.split() for text in group]
            found.update((word,) for word in set.intersection(*map(set, words)))
            if len(group) > 1 and all(own := _pick_own(words)):
                found.add(tuple(set(own)))
        return sorted(found, key=len) or [("",)]

    @cached_property
    def codes(self) -> Sequence[bytes]:
        """Runs of digits, of which a match contains one; none where it may have no such run."""
        groups = (
            [max(re.findall(r"\d{2,}", text, re.ASCII), key=len, default="") for text in group]
            for group in self.needed
        )
        longest = max(groups, key=shortest_length)
        return tuple(code.encode() for code in set(longest)) if all(longest) else ()

    @cached_property
    def start(self) -> str:
        """The text at the start of a line with which every match begins; "" if it may vary."""
        found = re.match(r"\^((?:[\w ,:=-]|\\[*\[(])+)([?*{]?)", self.expression.pattern)
        if not found:
            return ""
        text = found[1][:-1] if found[2] else found[1]
        return " ".join(text.replace("\\", "").lower().split())


class _Vocabulary:
    """The words of logs, each with the numbers of the runs of letters that it is or contains.

    A run is a whole word, or with a space at only one end the start or end of a word, or without
    a space a part of a word. A pair of whole words that follow each other has a number, too.
    """

    def __init__(self) -> None:
        self.numbers: dict[str, int] = {}
        self._pairs: dict[tuple[bytes, bytes], int] = {}
        self._whole: dict[bytes, int] = {}
        # By their first, or last, letters.
        self._starts: dict[bytes, list[tuple[bytes, int]]] = {}
        self._ends: dict[bytes, list[tuple[bytes, int]]] = {}
        self._parts: dict[bytes, list[tuple[bytes, int]]] = {}
        self._read: set[bytes] = set()
        self._found: dict[bytes, frozenset[int]] = {}

    def add(self, run: str) -> int:
        """The number of a run of letters, or of a pair of words."""
        if run in self.numbers:
            return self.numbers[run]
        number = self.numbers[run] = len(self.numbers)
        letters, *second = run.encode().split()
        if second:
            self._pairs[letters, second[0]] = number
        elif run == f" {run.strip()} ":
            self._whole[letters] = number
        elif run.startswith(" "):
            self._starts.setdefault(letters[:SHORTEST_SEARCHED], []).append((letters, number))
        elif run.endswith(" "):
            self._ends.setdefault(letters[-SHORTEST_SEARCHED:], []).append((letters, number))
        else:
            self._parts.setdefault(letters[:SHORTEST_PART], []).append((letters, number))
        return number

    def find(self, words: Sequence[bytes]) -> set[int]:
        """The numbers of the runs and pairs in a text of these words."""
        pairs = self._pairs.keys() & pairwise(words)
        if _NVRM in (distinct := set(words)):
            others = [word for word in words if word != _NVRM]
            pairs |= self._pairs.keys() & pairwise(others)
        if new := distinct - self._read:
            if len(self._read) > MOST_WORDS:
                self._read.clear()
                self._found.clear()
                new = distinct
            self._learn(new)
        found = map(self._found.__getitem__, self._found.keys() & distinct)
        return set(map(self._pairs.__getitem__, pairs)).union(*found)

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
            if numbers := frozenset(self._list_runs(word)):
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


# A plan's number; what a text must have for it: all of these runs and pairs, one of each group,
# the smallest and so the rarest ones first, and one of its codes; and the name of the plan's error.
_Check = tuple[int, frozenset[int], Sequence[frozenset[int]], Sequence[bytes], str]


class Index:
    """The plans of known errors' expressions, by what is rare in the texts read so far.

    For one ``text``, in lower case, only the expressions that may match it: to read the plans of
    all takes longer than to search a short text.
    """

    def __init__(self, known: Iterable[KnownError], text: str | None = None) -> None:
        self.plans: list[SearchPlan] = []
        self._vocabulary = _Vocabulary()
        counts: Counter[tuple[str, ...]] = Counter()
        runs: dict[str, frozenset[int]] = {}
        for error in known:
            for expression in error.expressions:
                if text is not None and not all(word in text for word in expression.plain_words):
                    continue
                clauses = self._list_clauses(expression)
                self.plans.append(SearchPlan(error, expression, clauses, counts, runs))
                counts.update(expression.texts)
                for each in chain(expression.cased, *expression.texts):
                    if each not in runs:
                        runs[each] = self._list_runs(each)
        # For each run or pair, the plans to ask for if it is there.
        self._keys: dict[int, list[int]] = {}
        self._checks: dict[int, list[_Check]] = {}
        # In how many of the first texts each run or pair was.
        self._seen: Counter[int] = Counter()
        self._count = 0
        self._choose_keys()

    def find_runs(self, words: Sequence[bytes]) -> Set[int]:
        """The numbers of the runs and pairs in a text of these runs of letters."""
        there = {NO_KEY} | self._vocabulary.find(words)
        if self._count < TEXTS_COUNTED:
            self._learn(there)
        return there

    def list_possible(self, there: Set[int], digits: bytes, ended: Collection[str]) -> list[int]:
        """The numbers of the plans that a text with these runs and digits may match.

        ``there`` is of `find_runs`, ``digits`` of `join_digits`. ``ended`` names of errors are left
        out.
        """
        checks, found = self._checks, set()
        for key in there & self._keys.keys():
            for number, runs, choices, codes, name in checks.get(key) or self._prepare(key):
                if runs <= there and name not in ended and number not in found:
                    if codes and not any(code in digits for code in codes):
                        continue
                    for each in choices:
                        if there.isdisjoint(each):
                            break
                    else:
                        found.add(number)
        return list(found)

    def _prepare(self, key: int) -> list[_Check]:
        checks = self._checks[key] = []
        for number in self._keys[key]:
            plan = self.plans[number]
            single = [clause for clause in plan.clauses if len(clause) == 1]
            others = sorted((clause for clause in plan.clauses if len(clause) > 1), key=len)
            runs = frozenset[int]().union(*single)
            checks.append((number, runs, others, plan.codes, plan.error.name))
        return checks

    def _learn(self, there: Set[int]) -> None:
        """Counts what is in the first texts of a log, and then chooses the keys by that."""
        self._seen.update(there)
        self._count += 1
        if self._count == TEXTS_COUNTED:
            self._choose_keys()

    def _choose_keys(self) -> None:
        """Each plan's key is what the fewest texts so far had, then what the fewest plans have."""
        self._keys.clear()
        self._checks.clear()
        clauses = chain.from_iterable(plan.clauses for plan in self.plans)
        counts = Counter(chain.from_iterable(clauses))
        runs = self._vocabulary.numbers.items()
        rates = {number: (self._seen[number], counts[number], -len(run)) for run, number in runs}
        for number, plan in enumerate(self.plans):
            rarest: Iterable[int] = min(
                plan.clauses,
                key=lambda clause: max(map(rates.__getitem__, clause)),
                default=[NO_KEY],
            )
            for key in rarest:
                self._keys.setdefault(key, []).append(number)

    def _list_clauses(self, expression: Expression) -> list[frozenset[int]]:
        groups = [[run] for run in expression.letters if _is_searched(run)]
        groups += [[pair] for pair in expression.pairs]
        for texts in expression.texts:
            if all(map(_is_searched, runs := _find_runs(texts))):
                groups.append(runs)
            if all(pairs := [max(find_pairs(text), key=len, default="") for text in texts]):
                groups.append(pairs)
        return list({frozenset(map(self._vocabulary.add, group)) for group in groups})

    def _list_runs(self, text: str) -> frozenset[int]:
        return frozenset(map(self._vocabulary.add, filter(_is_searched, _split_runs(text.lower()))))


def _find_runs(texts: Sequence[str]) -> list[str]:
    """Of each text the longest run of letters that is not in all; at its ends it may go on."""
    return _pick_own([_split_runs(text) for text in texts])


def _split_runs(text: str) -> list[str]:
    """The runs of letters of a text that may go on at its ends; a space is where one cannot."""
    return [
        " " * (run.start() > 0) + run[0] + " " * (run.end() < len(text))
        for run in re.finditer("[a-z]+", text)
    ]


def _pick_own(found: Sequence[Sequence[str]]) -> list[str]:
    """The longest of each that is not in all the others; "" if it has none."""
    common = set.intersection(*map(set, found)) if len(found) > 1 else set()
    return [max((e for e in each if e not in common), key=len, default="") for each in found]


def _is_searched(run: str) -> bool:
    """Whether a run of letters is long enough to be searched; as a whole word any is."""
    ends = run.startswith(" ") + run.endswith(" ")
    return len(run.strip()) >= (SHORTEST_PART, SHORTEST_SEARCHED, 1)[ends]


def shortest_length(words: Sequence[str]) -> int:
    """The fewest characters of one of these."""
    return min(map(len, words))

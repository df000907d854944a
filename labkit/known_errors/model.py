"""A known error: the patterns that find it, its cause, and its fix."""

from __future__ import annotations

import re
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Literal, NamedTuple

from labkit.host.gpu import Capability
from labkit.host.packages import DriverFix, Fix

Certainty = Literal["certain", "likely", "possible"]
CERTAINTIES: tuple[Certainty, ...] = ("certain", "likely", "possible")

# Terminals and log collectors wrap long lines and indent the rest; NVIDIA's module names itself
# again on each line of a message.
BLANKS = r"\s{1,40}(?:NVRM:\s{1,20})?"
LONGEST_REPEAT = 120
# One piece of a regular expression, with the repeat that follows it.
_PIECE = re.compile(
    r"(?:(?P<class>\[\^?\]?(?:\\.|[^\]\\])*\])|\\x(?P<code>[0-9a-f]{2})|\\(?P<escaped>.)|(?P<plain>.))"
    r"(?P<repeat>[?*+]|\{\d*,?\d*\})?"
)
# Placeholders in a pattern's literal text: for what can match any text, and for a word's end.
_OPEN, _END = "\0", "\1"
_WORD = re.compile(r"[a-z0-9\x80-\U0010ffff]+")


class Variant(NamedTuple):
    """Another cause, fix or second fix (None: the same) where a condition holds."""

    condition: str
    cause: str | None = None
    fix: Fix | None = None
    otherwise: str | None = None


@dataclass(frozen=True)
class KnownError:
    """An error text, its cause, and the fix.

    ``patterns`` are regular expressions, any one of which is enough. A space in them matches any
    run of blanks, and "+" and "*" match at most ``LONGEST_REPEAT`` times, so that no text makes
    them slow. Each pattern contains a word that all its matches contain. A match is ignored if
    ``unless`` matches its line.
    ``otherwise`` is the second fix to try. ``brings`` names the known errors that this one causes:
    they rank below it. ``variants`` replace a field where a condition of the text holds. An error
    that ``passes`` is forgotten if the log shows progress after it, such as a retry that succeeded.
    A ``general`` error knows only the form of its text: it gives way to any other one on its
    "line", or anywhere in the "log" (there not to those that it ``brings``). With "advice" the
    text itself says what to do: it gives way like "log", and hides those.
    ``source`` is where people met it; each of ``samples`` must match, and none of ``unlike``.
    """

    name: str
    patterns: tuple[str, ...]
    cause: str
    fix: Fix
    certainty: Certainty = "certain"
    otherwise: str | None = None
    brings: tuple[str, ...] = ()
    unless: str | None = None
    passes: bool = False
    general: Literal["line", "advice", "log"] | None = None
    variants: tuple[Variant, ...] = ()
    source: str = ""
    samples: tuple[str, ...] = ()
    unlike: tuple[str, ...] = ()

    @cached_property
    def expressions(self) -> tuple[Expression, ...]:
        """The patterns, each with the words that its matches contain."""
        return tuple(Expression(text, list_required_words(text)) for text in self.patterns)

    @cached_property
    def exception(self) -> re.Pattern[str] | None:
        """``unless``, compiled."""
        return compile_pattern(self.unless) if self.unless else None

    def adapt(
        self,
        conditions: Collection[str],
        values: Mapping[str, str],
        capability: Capability | None = None,
    ) -> KnownError:
        """The error with the first variant of each field whose condition holds, and values.

        ``{driver|580}`` in a text becomes the value of ``driver``, or "580" if it is unknown. A fix
        that installs the driver becomes the one for a GPU of this capability.
        """
        chosen = [each for each in self.variants if each.condition in conditions]
        cause = next((each.cause for each in chosen if each.cause), self.cause)
        fix = next((each.fix for each in chosen if each.fix), self.fix)
        otherwise = next((each.otherwise for each in chosen if each.otherwise), self.otherwise)
        return replace(
            self,
            cause=_fill(cause, values),
            fix=replace(fix, capability=capability, wsl="wsl" in conditions)
            if isinstance(fix, DriverFix)
            else Fix(**{name: _fill(text, values) for name, text in vars(fix).items() if text}),
            otherwise=otherwise and _fill(otherwise, values),
        )


def _fill(text: str, values: Mapping[str, str]) -> str:
    return re.sub(r"\{([a-z]+)\|([^}]*)\}", lambda found: values.get(found[1]) or found[2], text)


class RequiredWords(NamedTuple):
    """Words in lower case that a text must contain: ``whole`` ones, and ``parts`` of words."""

    whole: tuple[str, ...]
    parts: tuple[str, ...]

    @property
    def rarest(self) -> str:
        """The longest word, which is the best one to search for; "" if there is none."""
        return self.longest[0]

    @property
    def longest(self) -> list[str]:
        """The two longest words, at least one: "" if there is none."""
        return sorted((*self.whole, *self.parts), key=len, reverse=True)[:2] or [""]


@dataclass(frozen=True)
class Expression:
    """A pattern, compiled at its first use, and the words that its matches contain."""

    pattern: str
    words: RequiredWords

    @cached_property
    def regex(self) -> re.Pattern[str]:
        """The compiled pattern."""
        return compile_pattern(self.pattern)

    @cached_property
    def choices(self) -> tuple[tuple[str, ...], ...]:
        """For each group of alternatives: a part of a word for each, one of which a match has."""
        return list_choices(self.pattern)

    @cached_property
    def phrase(self) -> str:
        """The longest text that every match contains, in lower case, each blank a space."""
        runs = re.split(f"[{_OPEN}{_END}]", _read_pattern(self.pattern).literals.lower())
        return max((" ".join(run.split()) for run in runs), key=len)


def compile_pattern(pattern: str) -> re.Pattern[str]:
    """The compiled pattern: any case, line by line, with bounded repeats and wrapped blanks."""
    bounded = "".join(map(_bound_repeat, _PIECE.finditer(pattern)))
    return re.compile(bounded.replace(" ", BLANKS), re.IGNORECASE | re.MULTILINE)


def _bound_repeat(piece: re.Match[str]) -> str:
    least = {"*": 0, "+": 1}.get(piece["repeat"] or "")
    return piece[0] if least is None else f"{piece[0][:-1]}{{{least},{LONGEST_REPEAT}}}"


def list_required_words(pattern: str) -> RequiredWords:
    """The words that every match of a pattern contains.

    >>> list_required_words(r"Error 80\\d: no (?:old|new) driver")
    RequiredWords(whole=('no',), parts=('error', '80', 'driver'))
    """
    text = _read_pattern(pattern).literals.lower()
    whole: list[str] = []
    parts: list[str] = []
    for word in _WORD.finditer(text):
        around = text[word.start() - 1 : word.start()] + text[word.end() : word.end() + 1]
        closed = len(around) == 2 and word.start() and _OPEN not in around
        (whole if closed else parts).append(word.group())
    return RequiredWords(tuple(dict.fromkeys(whole)), tuple(dict.fromkeys(parts)))


def list_choices(pattern: str) -> tuple[tuple[str, ...], ...]:
    """Parts of words of which every match contains one, for each group of alternatives.

    >>> list_choices(r"Error 80\\d: no (?:old|new) driver")
    (('old', 'new'),)
    """
    return tuple(_read_pattern(pattern).choices)


@dataclass
class _Branch:
    """What every match of a part of a pattern contains: its text, with ``_OPEN``, and choices."""

    literals: str = ""
    choices: list[tuple[str, ...]] = field(default_factory=list)

    def find_longest_word(self) -> str:
        return max(_WORD.findall(self.literals.lower()), key=len, default="")


def _read_pattern(pattern: str) -> _Branch:
    """Raises ValueError for alternatives outside a group: they have no words in common."""
    branches, _ = _read_branches(_PIECE.finditer(pattern))
    if len(branches) > 1:
        raise ValueError(f"split this pattern into several: {pattern}")
    return branches[0]


def _read_branches(pieces: Iterator[re.Match[str]]) -> tuple[list[_Branch], str]:
    """The alternatives up to the end of the group or pattern, and the repeat after the group."""
    branches = [_Branch()]
    for piece in pieces:
        branch = branches[-1]
        if piece["plain"] == "|":
            branches.append(_Branch())
        elif piece["plain"] == ")":
            return branches, piece["repeat"] or ""
        elif piece["plain"] == "(":
            looks = piece["repeat"] == "?" and _skip_group_kind(pieces)
            inner, repeat = _read_branches(pieces)
            _add_group(branch, inner, optional=looks or _is_optional(repeat), repeat=repeat)
        else:
            branch.literals += _read_literal(piece)
    return branches, ""


def _skip_group_kind(pieces: Iterator[re.Match[str]]) -> bool:
    """Skips what follows "(?"; true if the group only looks ahead or back."""
    kind = next(pieces)["plain"]
    if kind in ("!", "="):
        return True
    if kind == "<":
        next(pieces)
        return True
    end = ">" if kind == "P" else ":"
    while kind != end:
        kind = next(pieces)["plain"]
    return False


def _add_group(branch: _Branch, inner: Sequence[_Branch], *, optional: bool, repeat: str) -> None:
    if optional:
        branch.literals += _OPEN
    elif len(inner) == 1:
        branch.literals += inner[0].literals + (_OPEN if repeat else "")
        branch.choices += inner[0].choices
    else:
        branch.literals += _OPEN
        words = tuple(each.find_longest_word() for each in inner)
        if all(words):
            branch.choices.append(words)


def _is_optional(repeat: str) -> bool:
    return repeat.startswith(("?", "*", "{0", "{,"))


def _read_literal(piece: re.Match[str]) -> str:
    """The text that a piece adds to every match."""
    repeat = piece["repeat"] or ""
    if piece["class"] or piece["plain"] == "." or _is_optional(repeat):
        return _OPEN
    after = _OPEN if repeat else ""
    if piece["code"]:
        return chr(int(piece["code"], 16)) + after
    if piece["escaped"]:
        # \b, \B and \s end a word; the other classes are open; an escaped sign is itself.
        classes = dict.fromkeys("bBsnrt", _END) | dict.fromkeys("dDwWSAZ", _OPEN)
        return classes.get(piece["escaped"], piece["escaped"]) + after
    return _END + after if piece["plain"] in "^$" else piece["plain"] + after

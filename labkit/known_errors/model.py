"""A known error: the patterns that find it, its cause, and its fix."""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Literal, NamedTuple

from labkit.host.gpu import Capability
from labkit.host.packages import DriverFix, Fix

Certainty = Literal["certain", "likely", "possible"]
CERTAINTIES: tuple[Certainty, ...] = ("certain", "likely", "possible")

# Terminals and log collectors wrap long lines and indent the rest.
BLANKS = r"\s{1,40}"
LONGEST_REPEAT = 120
# One piece of a regular expression, with the repeat that follows it.
_PIECE = re.compile(
    r"(?:(?P<class>\[\^?\]?(?:\\.|[^\]\\])*\])|\\x(?P<code>[0-9a-f]{2})|\\(?P<escaped>.)|(?P<plain>.))"
    r"(?P<repeat>[?*+]|\{\d*,?\d*\})?"
)
# Placeholder for the parts of a pattern that can match any text.
_OPEN = "\0"
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
    "line", or anywhere in the "log" (there not to those that it ``brings``).
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
    general: Literal["line", "log"] | None = None
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
        return max((*self.whole, *self.parts), key=len, default="")


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
    def keys(self) -> tuple[frozenset[bytes], tuple[bytes, ...]]:
        """The words encoded to look them up: whole ones, and parts, the longest (rarest) first."""
        parts = sorted((part.encode() for part in self.words.parts), key=len, reverse=True)
        return frozenset(word.encode() for word in self.words.whole), tuple(parts)


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
    text = _leave_only_literals(pattern).lower()
    whole: list[str] = []
    parts: list[str] = []
    for word in _WORD.finditer(text):
        around = text[word.start() - 1 : word.start()] + text[word.end() : word.end() + 1]
        closed = len(around) == 2 and word.start() and _OPEN not in around
        (whole if closed else parts).append(word.group())
    return RequiredWords(tuple(dict.fromkeys(whole)), tuple(dict.fromkeys(parts)))


def _leave_only_literals(pattern: str) -> str:
    """The pattern with optional parts, groups, classes and repeats replaced by ``_OPEN``.

    Raises ValueError for alternatives outside a group: they have no words in common.
    """
    literals = ""
    depth = 0
    for piece in _PIECE.finditer(pattern):
        character = piece["plain"]
        if character == "|" and depth == 0:
            raise ValueError(f"split this pattern into several: {pattern}")
        depth += (character == "(") - (character == ")")
        literals += _OPEN if depth or character == ")" else _read_literal(piece)
    return literals


def _read_literal(piece: re.Match[str]) -> str:
    """The text that a piece outside all groups adds to every match."""
    repeat = piece["repeat"] or ""
    if piece["class"] or piece["plain"] == "." or repeat.startswith(("?", "*", "{0", "{,")):
        return _OPEN
    after = _OPEN if repeat else ""
    if piece["code"]:
        return chr(int(piece["code"], 16)) + after
    if piece["escaped"]:
        # \b, \B and \s end a word; the other classes are open; an escaped sign is itself.
        classes = dict.fromkeys("bBs", " ") | dict.fromkeys("dDwWSAZ", _OPEN)
        return classes.get(piece["escaped"], piece["escaped"]) + after
    return " " + after if piece["plain"] in "^$" else piece["plain"] + after

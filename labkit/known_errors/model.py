"""A known error: the patterns that find it, its cause, and its fix."""

from __future__ import annotations

import re
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from itertools import pairwise
from typing import Literal, NamedTuple

from labkit.host.gpu import Capability
from labkit.host.packages import DriverFix, Fix

Certainty = Literal["certain", "likely", "possible"]
CERTAINTIES: tuple[Certainty, ...] = ("certain", "likely", "possible")

# Terminals and log collectors wrap long lines and indent the rest; NVIDIA's module names itself
# again on each line of a message.
BLANKS = r"\s{1,40}(?:NVRM:\s{1,20})?"
LONGEST_REPEAT = 120
# An expression's alternatives are listed as so many texts at most.
MOST_TEXTS = 16
# So many signs at the start of a line are compared before an expression is run.
HEAD_CHARACTERS = 8
# One piece of a regular expression: the start of a group, some plain text, or one character or
# class with the repeat that follows it.
_PIECE = re.compile(
    r"(?P<open>\((?:\?(?:P<\w+>|<?[!=]|(?:-i)?:))?)"
    r"|(?P<text>[\w ,;:'\"/=<>@%&~`!#-]{2,}(?![?*+{]))"
    r"|(?:(?P<class>\[\^?\]?(?:\\.|[^\]\\])*\])|\\x(?P<code>[0-9a-f]{2})|\\(?P<escaped>.)|(?P<plain>.))"
    r"(?P<repeat>[?*+]|\{\d*,?\d*\})?"
)
# What is no plain text: escapes and classes, and then the innermost groups.
_ESCAPE_OR_CLASS = re.compile(r"\\x[0-9a-f]{2}|\\.|\[\^?\]?(?:\\.|[^\]\\])*\]")
_INNER_GROUP = re.compile(r"\([^()]*\)")
# Letters that a match has as they are: not the last one before a sign that makes it optional.
_PLAIN_WORD = re.compile(r"[a-z]{4,}(?![?*{])")
# Placeholders in a pattern's literal text: for what can match any text, and for a word's end.
_OPEN, _END = "\0", "\1"
_ZERO_WIDTH, _ANCHORS = frozenset("bBAZ"), frozenset("^$")
_OPEN_CLASSES, _BLANK_CLASSES = frozenset("dDwWS123456789"), frozenset("snrt")
# What an earlier group matched (\1) may be any text, too.
_ESCAPED = dict.fromkeys("bBsnrt", _END) | dict.fromkeys("dDwWSAZ123456789", _OPEN)
_WORD = re.compile(r"[a-z0-9\x80-\U0010ffff]+")
_LETTERS = re.compile("[a-z]+")


# In place of a second fix: none where the condition holds.
NO_FIX = "-"


class Variant(NamedTuple):
    """Another cause, fix or second fix (None: the same, "-": none) where a condition holds."""

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
    One that ``follows`` only says that another process ended: what ended that one brings it.
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
    follows: bool = False
    general: Literal["line", "advice", "log"] | None = None
    variants: tuple[Variant, ...] = ()
    source: str = ""
    samples: tuple[str, ...] = ()
    unlike: tuple[str, ...] = ()

    def __hash__(self) -> int:
        # To hash all fields takes longer than to read the line of a log.
        return hash(self.name)

    @cached_property
    def expressions(self) -> tuple[Expression, ...]:
        """The patterns, each with the words that its matches contain."""
        return tuple(map(Expression, self.patterns))

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

        ``{driver|580}`` in a text becomes the value of ``driver``, or "580" if it is unknown, and
        ``<the package>`` that of ``package``. A fix that installs the driver becomes the one for a
        GPU of this capability.
        """
        chosen = [each for each in self.variants if each.condition in conditions]
        cause = next((each.cause for each in chosen if each.cause), self.cause)
        fix = next((each.fix for each in chosen if each.fix), self.fix)
        otherwise = next((each.otherwise for each in chosen if each.otherwise), self.otherwise)
        return replace(
            self,
            cause=_fill(cause, values),
            fix=replace(
                fix,
                capability=capability or fix.capability,
                wsl="wsl" in conditions,
                installed=int(values.get("branch", 0)) or None,
                virtual="vgpu" in conditions,
            )
            if isinstance(fix, DriverFix)
            else Fix(**{name: _fill(text, values) for name, text in vars(fix).items() if text}),
            otherwise=None if otherwise in (None, NO_FIX) else _fill(otherwise, values),
        )


def _fill(text: str, values: Mapping[str, str]) -> str:
    """The text with values; what is unknown and has no other name leaves no blank or brackets.

    >>> _fill("the driver {driver|} is older ({what|})", {})
    'the driver is older'
    """

    def write(found: re.Match[str]) -> str:
        value = values.get(found["name"]) or found["other"]
        return f"{found['blank']}{value}" if value else ""

    text = re.sub(r" \(\{([a-z]+)\|\}\)", lambda it: it[0] if values.get(it[1]) else "", text)
    filled = re.sub(r"(?P<blank> ?)\{(?P<name>[a-z]+)\|(?P<other>[^}]*)\}", write, text)
    return filled.replace("<the package>", values.get("package", "<the package>"))


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

    @cached_property
    def regex(self) -> re.Pattern[str]:
        """The compiled pattern."""
        return compile_pattern(self.pattern)

    @cached_property
    def _branch(self) -> _Branch:
        return _read_pattern(self.pattern)

    @cached_property
    def words(self) -> RequiredWords:
        """The words that every match contains."""
        return _list_words(self._branch)

    @property
    def choices(self) -> list[tuple[str, ...]]:
        """For each group of alternatives: a part of a word for each, one of which a match has."""
        return self._branch.choices

    @cached_property
    def letters(self) -> list[str]:
        """The runs of letters in every match; a space is where no letter precedes or follows.

        >>> Expression(r"Error 80\\d: no \\w+driver").letters
        ['error ', ' no ', 'driver']
        """
        text = self._branch.literals.lower()
        # As if open at both ends: what is around a match is unknown.
        text = f"{_OPEN}{text}{_OPEN}"
        return [
            " " * (text[run.start() - 1] != _OPEN) + run[0] + " " * (text[run.end()] != _OPEN)
            for run in _LETTERS.finditer(text)
        ]

    @property
    def pairs(self) -> list[str]:
        """The pairs of consecutive words in every match, in lower case, each joined by a space.

        >>> Expression(r"Error 80\\d: no such (?:old|new) driver: it is off").pairs
        ['no such', 'driver it', 'it is']
        """
        return find_pairs(self._branch.literals)

    @cached_property
    def texts(self) -> list[tuple[str, ...]]:
        """Groups of texts in lower case, each blank a space: a match contains one of each.

        >>> Expression(r"Error 80\\d: no (?:old|new) driver").texts
        [('error 80',), (': no old driver', ': no new driver')]
        """
        return self._branch.texts

    @cached_property
    def plain_words(self) -> list[str]:
        """Letters in lower case that every match has, outside groups: few, but quickly found.

        >>> Expression(r"Error 80\\d: no \\w+(?:old|new) drivers?").plain_words
        ['error', 'driver']
        """
        text, count = _ESCAPE_OR_CLASS.sub(_OPEN, self.pattern), 1
        while count:
            text, count = _INNER_GROUP.subn(_OPEN, text)
        return _PLAIN_WORD.findall(text.lower())

    @cached_property
    def head(self) -> re.Pattern[str] | None:
        """What a line begins with in which a match begins; None where a match may begin anywhere.

        It tells nothing beyond the first ``HEAD_CHARACTERS``.

        >>> Expression(r"^\\d{2}-\\d+ E \\w+: ").head.pattern
        '\\\\d{2}-\\\\d'
        >>> Expression(r"^(?:tar|zip): not found").head.pattern
        'tar:|zip:'
        """
        if not self.pattern.startswith("^"):
            return None
        found = _read_head(self.pattern) or "|".join(
            sorted(
                {re.escape(text.split(" ")[0][:HEAD_CHARACTERS]) for text in self._branch.begins}
            )
        )
        return re.compile(found, re.IGNORECASE) if found else None

    @property
    def longest(self) -> int:
        """The most characters of a match, each run of blanks being a space."""
        return self._branch.longest

    @cached_property
    def cased(self) -> tuple[str, ...]:
        """Words of which a match contains one in the same case; none if the case has no meaning."""
        for group in re.finditer(r"\(\?-i:([\w|]+)\)(?![?*{])", self.pattern):
            before = _ESCAPE_OR_CLASS.sub("", self.pattern[: group.start()])
            if before.count("(") == before.count(")"):
                return tuple(group[1].split("|"))
        return ()


def compile_pattern(pattern: str) -> re.Pattern[str]:
    """The compiled pattern: any case, line by line, with bounded repeats and wrapped blanks."""
    bounded = "".join(map(_bound_repeat, _PIECE.finditer(pattern)))
    # A blank that may be missing, or be there several times.
    bounded = re.sub(r" (?=[?{])", lambda _: f"(?:{BLANKS})", bounded)
    return re.compile(bounded.replace(" ", BLANKS), re.IGNORECASE | re.MULTILINE)


def _bound_repeat(piece: re.Match[str]) -> str:
    least = {"*": 0, "+": 1}.get(piece["repeat"] or "")
    return piece[0] if least is None else f"{piece[0][:-1]}{{{least},{LONGEST_REPEAT}}}"


def _read_head(pattern: str) -> str:
    """The first signs of all lines that match a pattern, which begins with "^"; "" if they vary."""
    found, count = "", 0
    for piece in _PIECE.finditer(pattern, 1):
        if text := piece["text"]:
            sign = text.split(" ")[0][: HEAD_CHARACTERS - count]
            found, count = found + re.escape(sign), count + len(sign)
            if sign != text:
                return found
            continue
        repeat = piece["repeat"] or ""
        least = 1 if repeat in ("", "+") else int(repeat[1:].split(",")[0].rstrip("}") or 0)
        if not _is_sign(piece) or not 0 < least <= HEAD_CHARACTERS - count:
            return found
        found += piece[0].removesuffix(repeat) + (f"{{{least}}}" if least > 1 else "")
        count += least
        if repeat == "+" or "," in repeat:
            return found
    return found


def _is_sign(piece: re.Match[str]) -> bool:
    """Whether a piece is one sign of a line, of which most lines have another there."""
    if piece["escaped"]:
        return piece["escaped"] not in (*_ZERO_WIDTH, *_BLANK_CLASSES, *"wWSD")
    if piece["class"]:
        return not re.match(r"\[\^", piece["class"]) and "\\w" not in piece["class"]
    return bool(piece["code"]) or (piece["plain"] or " ") not in "|()?^$. "


def split_alternatives(pattern: str) -> Iterator[Expression]:
    """The alternatives of a pattern outside its groups.

    >>> [each.pattern for each in split_alternatives("ready|(?:up|down)load")]
    ['ready', '(?:up|down)load']
    """
    depth = start = 0
    for piece in _PIECE.finditer(pattern):
        depth += bool(piece["open"]) - (piece["plain"] == ")")
        if piece["plain"] == "|" and not depth:
            yield Expression(pattern[start : piece.start()])
            start = piece.end()
    yield Expression(pattern[start:])


def find_pairs(text: str) -> list[str]:
    """The pairs of whole words that follow each other in a text that may go on at its ends."""
    text = f"{_OPEN}{text.lower()}{_OPEN}"
    words = list(_LETTERS.finditer(text))
    return [
        f"{first[0]} {second[0]}"
        for first, second in pairwise(words)
        if _OPEN not in text[first.start() - 1 : second.end() + 1]
    ]


def list_required_words(pattern: str) -> RequiredWords:
    """The words that every match of a pattern contains.

    >>> list_required_words(r"Error 80\\d: no (?:old|new) driver")
    RequiredWords(whole=('no',), parts=('error', '80', 'driver'))
    """
    return _list_words(_read_pattern(pattern))


def _list_words(branch: _Branch) -> RequiredWords:
    text = branch.literals.lower()
    whole: list[str] = []
    parts: list[str] = []
    for word in _WORD.finditer(text):
        around = text[word.start() - 1 : word.start()] + text[word.end() : word.end() + 1]
        closed = len(around) == 2 and word.start() and _OPEN not in around
        (whole if closed else parts).append(word.group())
    return RequiredWords(tuple(dict.fromkeys(whole)), tuple(dict.fromkeys(parts)))


@dataclass
class _Branch:
    """What every match of a part of a pattern contains: its text, with ``_OPEN``, and choices.

    ``run`` are the texts that the part can be since the last open place, ``head`` those that it
    can begin with (None until it has an open place), ``inner`` those between.
    """

    literals: str = ""
    choices: list[tuple[str, ...]] = field(default_factory=list)
    inner: list[tuple[str, ...]] = field(default_factory=list)
    head: tuple[str, ...] | None = None
    run: tuple[str, ...] = ("",)
    longest: int = 0

    @property
    def is_exact(self) -> bool:
        """Whether the part can be nothing but the texts of its run."""
        return self.head is None

    @property
    def texts(self) -> list[tuple[str, ...]]:
        """Groups of texts in lower case, of each of which a match contains one."""
        runs = [*([] if self.head is None else [self.head]), *self.inner, self.run]
        return [group for run in runs if (group := _squeeze(run))]

    @property
    def begins(self) -> tuple[str, ...]:
        """The texts with which it can begin; none where anything can be there."""
        texts = self.run if self.head is None else self.head
        return texts if all(texts) else ()

    def find_longest_word(self) -> str:
        return max(_WORD.findall(self.literals.lower()), key=len, default="")

    def end_run(self) -> None:
        """Notes that any text may follow."""
        if self.head is None:
            self.head = self.run
        else:
            self.inner.append(self.run)
        self.run = ("",)

    def add_text(self, text: str) -> None:
        """Adds plain text."""
        self.literals += text
        self.longest += len(text)
        self.run = tuple([each + text for each in self.run])

    def add_piece(self, piece: re.Match[str]) -> None:
        """Adds one character, or what stands for it, with its repeat."""
        self.literals += _read_literal(piece)
        repeat, escaped = piece["repeat"] or "", piece["escaped"] or ""
        if escaped in _ZERO_WIDTH or piece["plain"] in _ANCHORS:
            return
        most = _read_most(repeat)
        self.longest += most
        signs = _read_class(piece["class"] or "")
        if signs and not repeat and len(signs) * len(self.run) <= MOST_TEXTS:
            self.run = tuple(each + sign for each in self.run for sign in signs)
            return
        is_open = piece["class"] or piece["plain"] == "." or escaped in _OPEN_CLASSES
        if is_open or _is_optional(repeat):
            self.end_run()
            return
        text = chr(int(piece["code"], 16)) if piece["code"] else piece["plain"] or escaped
        if escaped in _BLANK_CLASSES:
            text = " "
        self.run = tuple(each + text for each in self.run)
        if most > 1 and text != " ":
            self.end_run()

    def add_group(self, inner: Sequence[_Branch], repeat: str) -> None:
        """Adds the texts of a group's alternatives."""
        self.longest += max(each.longest for each in inner) * _read_most(repeat)
        if _is_optional(repeat):
            self.end_run()
            return
        exact = [text for each in inner for text in each.run]
        if (
            not repeat
            and all(each.is_exact for each in inner)
            and len(exact) * len(self.run) <= MOST_TEXTS
        ):
            self.run = tuple(before + text for before in self.run for text in exact)
        elif len(inner) == 1:
            self._add_part(inner[0])
            if repeat:
                self.end_run()
        else:
            self.end_run()
            if all(each.texts for each in inner):
                best = [max(each.texts, key=lambda texts: min(map(len, texts))) for each in inner]
                self.inner.append(tuple(dict.fromkeys(text for texts in best for text in texts)))

    def _add_part(self, part: _Branch) -> None:
        """Adds a part whose first texts follow at once, and which may have open places."""
        head = part.run if part.head is None else part.head
        if len(head) * len(self.run) <= MOST_TEXTS:
            self.run = tuple(before + text for before in self.run for text in head)
        else:
            self.end_run()
            self.run = head
        if part.head is not None:
            self.end_run()
            self.inner += part.inner
            self.run = part.run


def _squeeze(run: Sequence[str]) -> tuple[str, ...]:
    """The shortest texts of which each of these has one; none if one of these is empty.

    A blank at the end stays: there the word is at its end. One at the start may be a line's start.
    """
    # What is read has each run of blanks as one space. The first ones are the commonest in logs.
    texts = dict.fromkeys(
        " ".join(each.lower().split()) + " " * each[-1:].isspace() for each in run
    )
    if not all(map(str.strip, texts)):
        return ()
    return tuple(e for e in texts if not any(other in e for other in texts if other != e))


def _read_class(text: str) -> str:
    """The signs of a class that lists a few; "" for ranges, escapes and what it excludes."""
    return "" if re.search(r"^\[\^|\\|\w-\w", text) else text[1:-1]


def _read_most(repeat: str) -> int:
    """How often at most a piece with this repeat is in a match."""
    if repeat[:1] == "{":
        return int(repeat[1:-1].rpartition(",")[2] or LONGEST_REPEAT)
    return LONGEST_REPEAT if repeat in ("*", "+") else 1


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
        branch, plain = branches[-1], piece["plain"]
        if piece["text"]:
            branch.add_text(piece["text"])
        elif plain == "|":
            branches.append(_Branch())
        elif plain == ")":
            return branches, piece["repeat"] or ""
        elif piece["open"]:
            inner, repeat = _read_branches(pieces)
            looks = piece["open"].endswith(("!", "="))
            _add_group(branch, inner, optional=looks or _is_optional(repeat), repeat=repeat)
            if not looks:
                branch.add_group(inner, repeat)
        elif plain != "?":  # it makes the repeat before it lazy
            branch.add_piece(piece)
    return branches, ""


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
        return _ESCAPED.get(piece["escaped"], piece["escaped"]) + after
    return _END + after if piece["plain"] in "^$" else piece["plain"] + after

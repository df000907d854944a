"""From any log to its causes: the signs in it, the line each was seen in, the root first."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass

from labkit.host.distribution import UNKNOWN, Distribution
from labkit.known_errors import KNOWN_ERRORS
from labkit.known_errors.model import CERTAINTIES, KnownError

QUOTED_CHARACTERS = 200
# Colours and cursor moves, as programs write them to terminals.
ESCAPES = re.compile(r"\x1b\[[0-9;?]*[ -/]*[@-~]|\x1b\][^\x07\x1b]*(?:\x07|\x1b\\)")


@dataclass(frozen=True)
class Match:
    """A sign, the line of the text it was seen in (from 1), and the found sign that caused it."""

    sign: KnownError
    line_number: int
    line: str
    caused_by: str | None = None

    def describe(self, distribution: Distribution) -> dict[str, object]:
        """The find as ``--json`` prints it, with the fix for this distribution."""
        return {
            "sign": self.sign.name,
            "certainty": self.sign.certainty,
            "line_number": self.line_number,
            "line": self.line,
            "cause": self.sign.cause,
            "fix": self.sign.fix.on(distribution),
            "fix_elsewhere": self.sign.fix.by_family(),
            "otherwise": self.sign.otherwise,
            "caused_by": self.caused_by,
        }


@dataclass(frozen=True)
class Explanation:
    """The signs found in a text: causes first, what they bring about after them."""

    found: tuple[Match, ...] = ()

    @property
    def first(self) -> Match | None:
        """The cause to mend first, or None where nothing in the text is known."""
        return self.found[0] if self.found else None

    @property
    def sure(self) -> Match | None:
        """The first where it is more than a possibility: what to name beside an error unasked."""
        return self.first if self.first and self.first.sign.certainty != "possible" else None

    def describe(self, distribution: Distribution = UNKNOWN) -> dict[str, object]:
        """The explanation as ``--json`` prints it."""
        return {"found": [each.describe(distribution) for each in self.found]}


def explain_text(text: str, signs: tuple[KnownError, ...] = KNOWN_ERRORS) -> Explanation:
    """The signs in ``text``, ranked: a cause above its symptoms, then the surer, then the earlier.

    >>> explain_text("OSError: [Errno 28] No space left on device").first.sign.cause
    'the disk is full'
    """
    # A journal's lines have the quotes inside them escaped, as dockerd writes its own errors.
    clean = ESCAPES.sub("", text).replace("\r\n", "\n").replace("\r", "\n").replace('\\"', '"')
    matches = {sign: match for sign in signs if (match := sign.find(clean))}
    effects = {sign.name: _list_effects(sign, signs) for sign in matches}
    found = [
        Match(
            sign,
            clean.count("\n", 0, match.start()) + 1,
            _quote_line(clean, match),
            next((name for name in effects if sign.name in effects[name]), None),
        )
        for sign, match in matches.items()
    ]
    return Explanation(tuple(sorted(found, key=lambda each: _rank(each, effects))))


def hint_at(text: str, distribution: Distribution) -> str | None:
    """The cause and the fix, a line each, to stand below an error; None where none is sure.

    >>> print(hint_at("AssertionError: Torch not compiled with CUDA enabled", UNKNOWN))
    cause: this torch is a build for the CPU
    try: pip install torch --index-url https://download.pytorch.org/whl/cu130
    """
    found = explain_text(text).sure
    if found is None:
        return None
    return f"cause: {found.sign.cause}\ntry: {found.sign.fix.on(distribution)}"


def format_explanation(explanation: Explanation, distribution: Distribution) -> str:
    """The explanation as a person reads it, a block for each sign, the one to mend first on top."""
    return "\n\n".join(_format_found(each, distribution) for each in explanation.found)


def _rank(found: Match, effects: Mapping[str, set[str]]) -> tuple[int, int, int]:
    # A cause brings about all that its effects do, so it has fewer causes above it than they.
    causes = sum(found.sign.name in brought for brought in effects.values())
    return causes, CERTAINTIES.index(found.sign.certainty), found.line_number


def _list_effects(sign: KnownError, signs: tuple[KnownError, ...]) -> set[str]:
    """The names of all that the sign brings about, through however many steps."""
    by_name = {each.name: each for each in signs}
    effects: set[str] = set()
    waiting = list(sign.brings)
    while waiting:
        name = waiting.pop()
        if name not in effects:
            effects.add(name)
            waiting += by_name[name].brings if name in by_name else ()
    return effects - {sign.name}


def _quote_line(text: str, match: re.Match[str]) -> str:
    """The line the match lies in, cut to what is around the match where it is long."""
    start = text.rfind("\n", 0, match.start()) + 1
    end = text.find("\n", match.start())
    line = text[start : end if end >= 0 else len(text)]
    if len(line) > QUOTED_CHARACTERS:
        middle = max(0, match.start() - start - QUOTED_CHARACTERS // 4)
        line = line[middle : middle + QUOTED_CHARACTERS]
    return line.strip()


def _format_found(found: Match, distribution: Distribution) -> str:
    sign = found.sign
    lines = [
        f"{sign.name} ({sign.certainty})",
        f"  line {found.line_number}: {found.line}",
        f"  cause: {sign.cause}",
        f"  try: {sign.fix.on(distribution)}",
    ]
    if sign.otherwise:
        lines.append(f"  else: {sign.otherwise}")
    if found.caused_by:
        lines.append(f"  comes from: {found.caused_by}")
    return "\n".join(lines)

"""What the doctor knows of one error text."""

from __future__ import annotations

import re
from dataclasses import dataclass
from functools import cached_property
from typing import Literal

from labkit.host.packages import Fix

Certainty = Literal["certain", "likely", "possible"]
CERTAINTIES: tuple[Certainty, ...] = ("certain", "likely", "possible")


@dataclass(frozen=True)
class KnownError:
    """An error text, why it comes up, and the way out.

    ``patterns`` are regular expressions, of which any one is enough; a space in them stands for
    any run of blanks, since terminals wrap long lines. ``otherwise`` is the second thing to try.
    ``brings`` names the signs that this one causes: they rank below it.
    """

    name: str
    patterns: tuple[str, ...]
    cause: str
    fix: Fix
    certainty: Certainty = "certain"
    otherwise: str | None = None
    brings: tuple[str, ...] = ()

    @cached_property
    def expressions(self) -> tuple[re.Pattern[str], ...]:
        """The patterns, compiled: any case, a line at a time."""
        flags = re.IGNORECASE | re.MULTILINE
        return tuple(re.compile(text.replace(" ", r"\s+"), flags) for text in self.patterns)

    def find(self, text: str) -> re.Match[str] | None:
        """The first place in ``text`` that shows this sign, or None."""
        found = [match for each in self.expressions if (match := each.search(text))]
        return min(found, key=lambda match: match.start(), default=None)

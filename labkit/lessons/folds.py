"""Folds: the claims of one cell as one output, which names what does not hold first.

Facts that hold are one line with their count, and a list behind it. Each claim still has an
output of its own, for its record; only the first one's is in sight, and it is updated.
"""

from __future__ import annotations

import re
import uuid
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from labkit.lessons.cards import (
    BAD,
    GOOD,
    HIDDEN_HTML,
    QUIET,
    Card,
    card_html,
    card_text,
    find_kernel_shell,
    frame_html,
    list_html,
    show_bundle,
    show_card,
)
from labkit.lessons.needs import NEED_WORDS, find_proven
from labkit.text import plural

# Where Linux and macOS put a process's memory: a number in here is an address, not a fact.
_ADDRESSES = range(0x5000_0000_0000, 0x8000_0000_0000)
_HEX_ADDRESS = re.compile(r" at 0x[0-9a-fA-F]{6,}|0x[0-9a-fA-F]{6,}")
_NUMPY_NUMBER = re.compile(r"np\.\w+\(([^()]*)\)")
_TRUTH = r"(tensor\()?(True|False|None|np\.(True|False)_)\)?"
_SHAPE_ALONE = re.compile(r"(tensor|array) of shape \(.*\), \w+")  # of values too many to show
_PLAIN_TRUTHS = re.compile(rf"[\[(]*({_TRUTH}(, )?)+,?[\])]*")


@dataclass(frozen=True)
class Fact:
    """A claim as it is shown; ``held`` is None if the machine lacks what ``need`` names."""

    statement: str
    held: bool | None
    need: str | None = None
    expected: str | None = None
    seen: str | None = None
    shown: bool = False


def show_fact(fact: Fact, mime: str, record: dict[str, Any]) -> None:
    """Displays the fact with its record; outside of a notebook's kernel it is not folded."""
    fold = current_fold()
    if fold:
        fold.add(fact, mime, record)
    else:
        show_card(_make_card(fact), mime, record)


def fact_text(fact: Fact) -> str:
    """The fact as one line of plain text.

    >>> fact_text(Fact("a scalar has no dimensions", True, expected="0", seen="0"))
    'holds: a scalar has no dimensions (seen 0)'
    """
    return card_text(_make_card(fact))


def describe_seen(seen: str | None) -> str:
    """What was seen, in words that tell something: no bare True or False, no shape, no address.

    >>> describe_seen("True"), describe_seen("(3, 4)"), describe_seen("140234881122304")
    ('', 'seen (3, 4)', '')
    """
    if seen is None or _PLAIN_TRUTHS.fullmatch(seen) or _SHAPE_ALONE.fullmatch(seen):
        return ""
    if seen.isdecimal() and int(seen) in _ADDRESSES:
        return ""
    # Of an error the first line: those below are for who maintains what raised it.
    text = _NUMPY_NUMBER.sub(r"\1", _HEX_ADDRESS.sub("", seen.partition("\n")[0]))
    return f"seen {text}"


def describe_skip(need: str | None, statements: Sequence[str]) -> str:
    """Why these claims are skipped, and what a real GPU showed, if one has proven them all."""
    word = NEED_WORDS.get(need or "", f"needs {need}")
    proven = find_proven()
    if proven is None or not all(statement in proven.held for statement in statements):
        return word
    held = "it held" if len(statements) == 1 else "they held"
    return f"{word}; on {proven.device}, {proven.date}, {held}"


@dataclass
class Fold:
    """The claims that one cell has shown so far.

    ``waiting`` is a line to open while the learner has not yet said what they expect.
    """

    cell: str
    waiting: str | None = None
    facts: list[Fact] = field(default_factory=list)
    _display_id: str = field(default_factory=lambda: uuid.uuid4().hex)
    _first: dict[str, Any] = field(default_factory=dict)

    def add(self, fact: Fact, mime: str, record: dict[str, Any]) -> None:
        """Displays the fact with its record: in the output of the first one, which is updated."""
        self.facts.append(fact)
        bundle = {"text/plain": fact_text(fact), mime: record}
        if self._first:
            show_bundle({"text/html": HIDDEN_HTML, **bundle})
            self.refresh()
        else:
            self._first = bundle
            show_bundle({"text/html": self.html(), **bundle}, self._display_id)

    def refresh(self) -> None:
        """Shows the facts again; nothing if there are none yet."""
        if self._first:
            show_bundle({"text/html": self.html(), **self._first}, self._display_id, update=True)

    def html(self) -> str:
        """What does not hold first, then what stays in sight, then the rest in folded lines."""
        failed = [one for one in self.facts if one.held is False]
        held = [one for one in self.facts if one.held]
        in_sight = [one for one in held if one.shown] or (held if len(held) == 1 else [])
        folded = [one for one in held if one not in in_sight]
        parts = [card_html(_make_card(one)) for one in (*failed, *in_sight)]
        if folded:
            more = "more " if in_sight else ""
            summary = plural(len(folded), f"{more}fact") + " held"
            parts.append(_fold(GOOD, summary, [_sentence(one) for one in folded]))
        parts += self._skipped_html()
        shown = "".join(parts)
        if self.waiting and not failed:
            details = f"<details><summary>{self.waiting}</summary>{shown}</details>"
            return frame_html(QUIET, details)
        return shown

    def _skipped_html(self) -> list[str]:
        skipped = [one for one in self.facts if one.held is None]
        parts = []
        for need in dict.fromkeys(one.need for one in skipped):
            own = [one for one in skipped if one.need == need]
            if len(own) == 1:
                parts.append(card_html(_make_card(own[0])))
                continue
            why = describe_skip(need, [one.statement for one in own])
            summary = f"{plural(len(own), 'fact')} skipped: {why}"
            parts.append(_fold(QUIET, summary, [one.statement for one in own]))
        return parts


_current: Fold | None = None


def current_fold() -> Fold | None:
    """The fold of the cell that runs, made if need be; None outside of a notebook's kernel."""
    cell = _running_cell()
    if cell is None:
        return None
    if _current is None or _current.cell != cell:
        return begin_fold(cell)
    return _current


def begin_fold(cell: str | None = None, waiting: str | None = None) -> Fold | None:
    """A new fold for the claims that follow in the cell; None outside of a notebook's kernel."""
    global _current  # noqa: PLW0603  one kernel runs one cell at a time
    cell = cell or _running_cell()
    _current = Fold(cell, waiting) if cell else None
    return _current


def _running_cell() -> str | None:
    shell = find_kernel_shell()
    if shell is None:
        return None
    parent: Any = shell.get_parent()
    return str(parent.get("header", {}).get("msg_id", shell.execution_count))


def _make_card(fact: Fact) -> Card:
    if fact.held is None:
        return Card(QUIET, "skipped", fact.statement, describe_skip(fact.need, [fact.statement]))
    if fact.held:
        return Card(GOOD, "holds", fact.statement, describe_seen(fact.seen))
    if fact.expected == "True" and fact.seen == "False":
        return Card(BAD, "does not hold", fact.statement)
    found = f"expected {fact.expected}, seen {fact.seen}"
    return Card(BAD, "does not hold", fact.statement, found)


def _sentence(fact: Fact) -> str:
    seen = describe_seen(fact.seen)
    return f"{fact.statement} ({seen})" if seen else fact.statement


def _fold(severity: str, summary: str, sentences: Sequence[str]) -> str:
    return frame_html(
        severity, f"<details><summary>{summary}</summary>{list_html(sentences)}</details>"
    )

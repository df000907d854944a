"""Shows the results of claims and checks.

In a notebook, a result is a card: HTML, text and a record, which
``labkit.notebooks.result`` reads back. Outside IPython its text is printed.
Colors come from JupyterLab's variables, so that a card is legible in light and dark themes;
in other pages a card keeps the surrounding text color. Standard library only.
"""

from __future__ import annotations

import html
import re
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from typing import NamedTuple

GOOD, BAD, QUIET = "good", "bad", "quiet"

_EDGES = {
    GOOD: "var(--jp-success-color1, #4caf50)",
    BAD: "var(--jp-error-color1, #e5484d)",
    QUIET: "var(--jp-border-color1, #9e9e9e)",
}
_WORDS = {**_EDGES, QUIET: "var(--jp-content-font-color2, currentColor)"}
_CARD = (
    "border-left: 3px solid {edge}; padding: 0.15em 0 0.15em 0.75em; margin: 0.15em 0; "
    "color: var(--jp-content-font-color1, currentColor); "
    "font-family: var(--jp-content-font-family, sans-serif); "
    "font-size: var(--jp-content-font-size1, 14px); line-height: 1.45;"
)
_MUTED = "color: var(--jp-content-font-color2, currentColor);"
_CODE = (
    "font-family: var(--jp-code-font-family, monospace); background: transparent; color: inherit;"
)


class Detail(NamedTuple):
    """A line under a card's sentence; ``code`` keeps its spaces and its line breaks."""

    label: str
    text: str
    code: bool = False


@dataclass(frozen=True)
class Card:
    """A result to show: its severity, a bold word, a sentence, an aside, and details.

    ``folded`` is code behind a line to click on, in html only.
    """

    severity: str
    word: str
    sentence: str
    aside: str = ""
    details: tuple[Detail, ...] = ()
    folded: Detail | None = None


def show_card(card: Card, mime: str, record: Mapping[str, object]) -> None:
    """Displays the card with its record in IPython; prints its text elsewhere."""
    if not _in_ipython():
        print(card_text(card))
        return
    from IPython.display import display

    bundle = {"text/html": card_html(card), "text/plain": card_text(card), mime: dict(record)}
    display(bundle, raw=True)


def card_text(card: Card) -> str:
    """The card as plain text: the word and the sentence, then a line for each detail.

    >>> print(card_text(Card(GOOD, "holds", "1 + 1 is 2", "seen 2", (Detail("hint", "add"),))))
    holds: 1 + 1 is 2 (seen 2)
      hint: add
    """
    aside = f" ({card.aside})" if card.aside else ""
    lines = [f"{card.word}: {card.sentence}{aside}"]
    lines += [f"  {detail.label}: {_indent(detail.text)}" for detail in card.details]
    return "\n".join(lines)


def card_html(card: Card) -> str:
    """The card as html that inherits the theme's colors; `code` in backticks becomes code."""
    mark = f'<b style="color: {_WORDS[card.severity]};">{html.escape(card.word)}</b>'
    aside = f' <span style="{_MUTED}">({_inline_html(card.aside)})</span>' if card.aside else ""
    head = f"<div>{mark} {_inline_html(card.sentence)}{aside}</div>"
    details = "".join(_detail_html(detail) for detail in card.details)
    folded = _folded_html(card.folded) if card.folded else ""
    return f'<div style="{_CARD.format(edge=_EDGES[card.severity])}">{head}{details}{folded}</div>'


def _in_ipython() -> bool:
    module = sys.modules.get("IPython")
    return module is not None and module.get_ipython() is not None


def _indent(text: str) -> str:
    return text.replace("\n", "\n    ")


def _detail_html(detail: Detail) -> str:
    text = _inline_html(detail.text)
    if detail.code:
        style = f"{_CODE} white-space: pre-wrap; display: inline-block; vertical-align: top;"
        text = f'<span style="{style}">{html.escape(detail.text)}</span>'
    return f'<div><span style="{_MUTED}">{html.escape(detail.label)}:</span> {text}</div>'


def _folded_html(folded: Detail) -> str:
    code = f'<pre style="{_CODE} margin: 0.3em 0;">{html.escape(folded.text)}</pre>'
    return f"<details><summary>{html.escape(folded.label)}</summary>{code}</details>"


def _inline_html(text: str) -> str:
    escaped = html.escape(text).replace("\n", "<br>")
    return re.sub(r"`([^`]+)`", rf'<code style="{_CODE}">\1</code>', escaped)

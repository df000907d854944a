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
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

GOOD, BAD, QUIET, NEWS = "good", "bad", "quiet", "news"

_EDGES = {
    GOOD: "var(--jp-success-color1, #4caf50)",
    BAD: "var(--jp-error-color1, #e5484d)",
    QUIET: "var(--jp-border-color1, #9e9e9e)",
    NEWS: "var(--jp-content-link-color, #1f83c4)",
}
# JupyterLab's green has a contrast of 4.1 on white; mixed with the text color it is above 4.5.
_MIXED = "color-mix(in srgb, {color} 75%, var(--jp-content-font-color1, currentColor))"
_WORDS = {
    GOOD: _MIXED.format(color=_EDGES[GOOD]),
    BAD: _MIXED.format(color=_EDGES[BAD]),
    QUIET: "var(--jp-content-font-color2, currentColor)",
    NEWS: _MIXED.format(color=_EDGES[NEWS]),
}
_CARD = (
    "border-left: 3px solid {edge}; padding: 0.15em 0 0.15em 0.75em; margin: 0.15em 0; "
    "color: var(--jp-content-font-color1, currentColor); "
    "font-family: var(--jp-content-font-family, sans-serif); "
    "font-size: var(--jp-content-font-size1, 14px); line-height: 1.45; overflow-wrap: anywhere;"
)
_MUTED = "color: var(--jp-content-font-color2, currentColor);"
_CODE = (
    "font-family: var(--jp-code-font-family, monospace); background: transparent; color: inherit; "
    "padding: 0; overflow-wrap: anywhere;"
)

# An output for its record alone. Its place is hidden too where the page knows JupyterLab's classes.
HIDDEN_HTML = (
    '<span class="labkit-record"></span>'
    "<style>.jp-OutputArea-child:has(.labkit-record){display:none}</style>"
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
    show_bundle({"text/html": card_html(card), "text/plain": card_text(card), mime: dict(record)})


def show_bundle(
    bundle: Mapping[str, object], display_id: str | None = None, *, update: bool = False
) -> None:
    """Displays data by MIME type in IPython; prints its text elsewhere.

    ``display_id`` names the output, and ``update`` replaces the output of that name.
    """
    if _find_shell() is None:
        print(bundle["text/plain"])
        return
    from IPython.display import display

    display(dict(bundle), raw=True, display_id=display_id, update=update)


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
    aside = f' <span style="{_MUTED}">({inline_html(card.aside)})</span>' if card.aside else ""
    head = f"<div>{mark} {inline_html(card.sentence)}{aside}</div>"
    details = "".join(_detail_html(detail) for detail in card.details)
    folded = _folded_html(card.folded) if card.folded else ""
    return frame_html(card.severity, f"{head}{details}{folded}")


def frame_html(severity: str, inner: str) -> str:
    """Html inside the frame of a card."""
    return f'<div style="{_CARD.format(edge=_EDGES[severity])}">{inner}</div>'


def list_html(sentences: Iterable[str]) -> str:
    """Sentences as a list; `code` in backticks becomes code."""
    items = "".join(f"<li>{inline_html(one)}</li>" for one in sentences)
    return f'<ul style="margin: 0.2em 0; padding-left: 1.4em;">{items}</ul>'


def find_kernel_shell() -> Any:
    """The shell of a notebook's kernel; None in a terminal, where an output cannot be updated."""
    shell = _find_shell()
    return shell if hasattr(shell, "kernel") else None


def _find_shell() -> Any:
    module = sys.modules.get("IPython")
    return module.get_ipython() if module is not None else None


def _indent(text: str) -> str:
    return text.replace("\n", "\n    ")


def _detail_html(detail: Detail) -> str:
    text = inline_html(detail.text)
    if detail.code:
        style = f"{_CODE} white-space: pre-wrap; display: inline-block; vertical-align: top;"
        text = f'<span style="{style}">{html.escape(detail.text)}</span>'
    return f'<div><span style="{_MUTED}">{html.escape(detail.label)}:</span> {text}</div>'


def _folded_html(folded: Detail) -> str:
    code = f'<pre style="{_CODE} margin: 0.3em 0;">{html.escape(folded.text)}</pre>'
    return f"<details><summary>{html.escape(folded.label)}</summary>{code}</details>"


def inline_html(text: str) -> str:
    """Text as html; `code` in backticks becomes code."""
    escaped = html.escape(text).replace("\n", "<br>")
    return re.sub(r"`([^`]+)`", rf'<code style="{_CODE}">\1</code>', escaped)

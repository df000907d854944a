"""Text as html: escaped, without terminal codes and control characters, bounded."""

from __future__ import annotations

import html
import re
from collections.abc import Iterable, Sequence

_ANSI = re.compile(r"\x1b\[[0-?]*[ -/]*[@-~]|\x1b\][^\x07\x1b]*(?:\x07|\x1b\\)|\x1b[@-_]")
_CONTROL = re.compile(r"[\x00-\x08\x0b\x0c\x0e-\x1f\x7f\ud800-\udfff]")
_OVERWRITTEN = re.compile(r"[^\n]*\r(?=[^\n])")


def escape(text: object) -> str:
    """The text as html, in an attribute too; control characters become the replacement mark."""
    return html.escape(mark_controls(str(text)))


def mark_controls(text: str) -> str:
    """The text with control characters and halves of characters as the replacement mark."""
    return _CONTROL.sub("\N{REPLACEMENT CHARACTER}", text)


def clean_text(text: str) -> str:
    """What a terminal would show in the end: no colour codes, no progress bar's earlier states."""
    plain = _ANSI.sub("", text) if "\x1b" in text else text
    if "\r" in plain:
        plain = _OVERWRITTEN.sub("", plain.replace("\r\n", "\n")).replace("\r", "")
    return plain


def escape_block(text: str, limit: int) -> str:
    """Text for a ``<pre>``: past ``limit`` characters its middle is left out, and that is said."""
    # A flood is cut before it is cleaned: what goes need not be read.
    flood = max(0, len(text) - 20 * limit)
    plain = clean_text(text[: 10 * limit] + text[-10 * limit :] if flood else text)
    if len(plain) <= limit and not flood:
        return escape(plain)
    head, tail = plain[: limit * 3 // 4], plain[-(limit // 4) :]
    left_out = flood + len(plain) - len(head) - len(tail)
    note = f'<em class="left-out">{left_out:,} characters left out</em>'
    return f"{escape(head)}\n{note}\n{escape(tail)}"


def shorten(text: str, limit: int) -> str:
    """The text in at most ``limit`` characters, with an ellipsis where it was longer."""
    return text if len(text) <= limit else text[: limit - 1] + "…"


def make_table(caption: str, heads: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """A table of html cells with its heads and a caption; a row's first cell is its head.

    A head that starts with "#" is of a column of numbers.
    """
    numbers = [head.startswith("#") for head in heads]
    top = "".join(
        f'<th scope="col"{_number_class(number)}>{head.lstrip("#")}</th>'
        for head, number in zip(heads, numbers, strict=True)
    )
    body = "".join(_make_row(row, numbers) for row in rows)
    return (
        f'<div class="scroll"><table><caption>{caption}</caption>'
        f"<thead><tr>{top}</tr></thead><tbody>{body}</tbody></table></div>"
    )


def _make_row(row: Sequence[str], numbers: Sequence[bool]) -> str:
    cells = [f'<th scope="row">{row[0]}</th>']
    cells += [
        f"<td{_number_class(number)}>{cell}</td>"
        for cell, number in zip(row[1:], numbers[1:], strict=True)
    ]
    return f"<tr>{''.join(cells)}</tr>"


def _number_class(number: bool) -> str:
    return ' class="n"' if number else ""


def say(word: str) -> str:
    """A status word or a key as people write it: "timed_out" is "timed out"."""
    return word.replace("_", " ")


def start_sentence(text: str) -> str:
    """The text with its first letter in upper case, and all else as it is."""
    return text[:1].upper() + text[1:]


def mark(status: str) -> str:
    """A status as html: its words, in the colour of how good they are."""
    mood = "good" if status in ("passed", "held") else "bad"
    if status in ("skipped", "not_run", "interrupted", "running", "unknown"):
        mood = "quiet"
    return f'<span class="{mood}">{escape(say(status))}</span>'


def count(number: int, noun: str) -> str:
    """A number with its noun: "1 claim", "3 claims"."""
    return f"{number:,} {noun}" if number == 1 else f"{number:,} {noun}s"

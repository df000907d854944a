"""Text as html.

One html document that stands alone: nothing that is not in it is loaded or run.

Text as html: escaped, without terminal codes and control characters, bounded.
"""

from __future__ import annotations

import base64
import hashlib
import html
import re
from collections.abc import Iterable, Sequence

from labkit.text import strip_ansi


def make_document(
    title: str, body: str, *, style: str, script: str, sources: tuple[str, ...] = ()
) -> str:
    """The whole document; a browser loads nothing for it and runs no script but this one.

    ``title`` and ``body`` are html, escaped already. ``sources`` are further directives of its
    content security policy, such as ``"img-src data:"``.

    >>> "script-src 'sha256-" in make_document("t", "b", style="", script="")
    True
    """
    allowed = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    directives = (
        "default-src 'none'",
        *sources,
        "style-src 'unsafe-inline'",
        f"script-src 'sha256-{allowed}'",
        "base-uri 'none'",
        "form-action 'none'",
    )
    return (
        '<!DOCTYPE html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        f'<meta http-equiv="Content-Security-Policy" content="{"; ".join(directives)}">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        '<meta name="color-scheme" content="light dark">\n'
        f"<title>{title}</title>\n<style>\n{style}</style>\n</head>\n"
        f"<body>\n{body}\n<script>{script}</script>\n</body>\n</html>\n"
    )


# Control characters, marks of direction (with them a file's name can show as another), and halves
# of characters.
_CONTROL = re.compile(
    r"[\x00-\x08\x0b\x0c\x0e-\x1f\x7f-\x9f\u200e\u200f\u202a-\u202e\u2066-\u2069\ud800-\udfff]"
)


def escape(text: object) -> str:
    """The text as html, in an attribute too; control characters become the replacement mark."""
    return html.escape(mark_controls(str(text)))


def mark_controls(text: str) -> str:
    """The text with control characters and halves of characters as the replacement mark."""
    return _CONTROL.sub("\N{REPLACEMENT CHARACTER}", text)


def clean_text(text: str) -> str:
    """What a terminal would show in the end: no colour codes, no progress bar's earlier states."""
    plain = strip_ansi(text)
    if "\r" in plain:
        # Line by line: a regular expression for this takes hours on a long line.
        plain = "\n".join(line.rstrip("\r").rpartition("\r")[2] for line in plain.split("\n"))
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

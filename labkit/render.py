"""HTML from data: escaped and bounded text, tables, self-contained documents, and ``Displayed``.

A document is self-contained: a browser loads no other file for it.
"""

from __future__ import annotations

import html
import importlib
import re
from collections.abc import Iterable, Sequence
from typing import Any, ClassVar

from labkit.text import strip_ansi


class Displayed:
    """Base of data classes that a view module shows in ``print`` and in a notebook.

    The class names the view's module, its function that makes the text and, optionally, its
    function that makes the HTML. The module is imported when an object is first shown, because a
    view imports its model and a circular import is not possible. A dataclass needs
    ``repr=False``; otherwise its generated ``__repr__`` replaces this one.

        class Estimate(Displayed, view="labkit.memory.estimate.view", text="format_estimate"):
    """

    _view: ClassVar[str]
    _text: ClassVar[str]
    _html: ClassVar[str | None]

    def __init_subclass__(cls, *, view: str, text: str, html: str | None = None) -> None:
        super().__init_subclass__()
        cls._view, cls._text, cls._html = view, text, html

    def __repr__(self) -> str:
        return str(self._show(self._text))

    def __str__(self) -> str:
        return repr(self)

    def _repr_html_(self) -> str | None:
        return None if self._html is None else str(self._show(self._html))

    def _repr_mimebundle_(self, **_: object) -> dict[str, str]:
        shown = {"text/plain": repr(self), "text/html": self._repr_html_()}
        return {kind: content for kind, content in shown.items() if content is not None}

    def _show(self, function: str) -> Any:
        return getattr(importlib.import_module(self._view), function)(self)


def make_document(
    title: str, body: str, *, style: str, script: str, sources: tuple[str, ...] = ()
) -> str:
    """The HTML document; the browser loads no other file and runs only this script.

    ``title`` and ``body`` are HTML, already escaped. ``sources`` are more directives of its content
    security policy, such as ``"img-src data:"``.

    >>> "script-src 'sha256-" in make_document("t", "b", style="", script="")
    True
    """
    import base64  # these two are slow to import, and only documents need them
    import hashlib

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


# Control characters, direction marks (with them one file name can look like another), and lone
# surrogates.
_CONTROL = re.compile(
    r"[\x00-\x08\x0b\x0c\x0e-\x1f\x7f-\x9f\u200e\u200f\u202a-\u202e\u2066-\u2069\ud800-\udfff]"
)


def escape(text: object) -> str:
    """The text as HTML, also for attributes; control characters become U+FFFD."""
    return html.escape(mark_controls(str(text)))


def mark_controls(text: str) -> str:
    """The text with U+FFFD in place of control characters and lone surrogates."""
    return _CONTROL.sub("\N{REPLACEMENT CHARACTER}", text)


def clean_text(text: str) -> str:
    """The final text on a terminal, without color codes and earlier states of progress bars."""
    plain = strip_ansi(text)
    if "\r" in plain:
        # Line by line, because a regular expression takes hours on a long line.
        plain = "\n".join(line.rstrip("\r").rpartition("\r")[2] for line in plain.split("\n"))
    return plain


def escape_block(text: str, limit: int) -> str:
    """Text for a ``<pre>``: beyond ``limit`` characters a note replaces the middle."""
    # A very long text is cut first, because cleaning is slow.
    cut = max(0, len(text) - 20 * limit)
    plain = clean_text(text[: 10 * limit] + text[-10 * limit :] if cut else text)
    if len(plain) <= limit and not cut:
        return escape(plain)
    head, tail = plain[: limit * 3 // 4], plain[-(limit // 4) :]
    left_out = cut + len(plain) - len(head) - len(tail)
    note = f'<em class="left-out">{left_out:,} characters left out</em>'
    return f"{escape(head)}\n{note}\n{escape(tail)}"


def make_table(caption: str, heads: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """A table of HTML cells with column headers and a caption; a row's first cell is its header.

    A column whose head starts with "#" has numbers.
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


def to_words(name: str) -> str:
    """A status or a key as words: "timed_out" is "timed out"."""
    return name.replace("_", " ")


def start_sentence(text: str) -> str:
    """The text with its first letter in upper case."""
    return text[:1].upper() + text[1:]


def render_status(status: str) -> str:
    """A status as HTML: its words, in the color of its severity."""
    severity = "good" if status in ("passed", "held") else "bad"
    if status in ("skipped", "not_run", "interrupted", "running", "stopped", "unknown"):
        severity = "quiet"
    return f'<span class="{severity}">{escape(to_words(status))}</span>'

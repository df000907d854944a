"""Text as html."""

from __future__ import annotations

import html
import re

# Control characters, marks of direction, and halves of characters.
_CONTROL = re.compile(
    r"[\x00-\x08\x0b\x0c\x0e-\x1f\x7f-\x9f\u200e\u200f\u202a-\u202e\u2066-\u2069\ud800-\udfff]"
)


def escape(text: object) -> str:
    """The text as html, in an attribute too.

    Control characters, and those that turn the direction of writing around (a file's name could
    show as another with them), become the replacement mark.
    """
    return html.escape(_CONTROL.sub("\N{REPLACEMENT CHARACTER}", str(text)))


def shorten(text: str, limit: int) -> str:
    """The text in at most ``limit`` characters; a long path keeps its end.

    >>> shorten("/a/very/long/path/train.py", 12)
    '…th/train.py'
    """
    return text if len(text) <= limit else f"…{text[1 - limit :]}"

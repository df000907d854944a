"""Text as html, and the document around it: nothing in it is loaded from anywhere."""

from __future__ import annotations

import base64
import hashlib
import html
import re
from importlib.resources import files

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


def make_document(title: str, body: str) -> str:
    """A whole html document; a browser loads nothing for it and runs no script but its own."""
    style, script = _read("history.css"), _read("history.js")
    allowed = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    policy = (
        "default-src 'none'; style-src 'unsafe-inline';"
        f" script-src 'sha256-{allowed}'; base-uri 'none'; form-action 'none'"
    )
    return (
        '<!DOCTYPE html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        f'<meta http-equiv="Content-Security-Policy" content="{policy}">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        '<meta name="color-scheme" content="light dark">\n'
        f"<title>{escape(title)}</title>\n<style>\n{style}</style>\n</head>\n"
        f"<body>\n{body}\n<script>{script}</script>\n</body>\n</html>\n"
    )


def _read(name: str) -> str:
    return files("labkit.memory.history").joinpath(name).read_text(encoding="utf-8")

"""One html document that stands alone: nothing that is not in it is loaded or run."""

from __future__ import annotations

import base64
import hashlib


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

"""Whole screens kept in files: tests/snapshots/NAME.txt, renewed by ``pytest --renew-snapshots``.

The wording of a screen lives in one file, so that an edit of wording edits one file. Tests of
behavior assert error types and key words instead.
"""

from __future__ import annotations

import difflib
import os
from pathlib import Path

FOLDER = Path(__file__).parent / "snapshots"
# Set by the option of conftest.py.
RENEW_VARIABLE = "LABKIT_RENEW_SNAPSHOTS"


def assert_snapshot(name: str, text: str) -> None:
    """Compares ``text`` with the stored screen ``name``; raises with the difference."""
    path = FOLDER / f"{name}.txt"
    if os.environ.get(RENEW_VARIABLE):
        FOLDER.mkdir(exist_ok=True)
        path.write_text(text, encoding="utf-8")
        return
    stored = path.read_text(encoding="utf-8") if path.exists() else ""
    if text == stored:
        return
    difference = "\n".join(
        difflib.unified_diff(stored.splitlines(), text.splitlines(), "stored", "shown", lineterm="")
    )
    raise AssertionError(
        f"the screen {name} differs from {path.name}:\n{difference}\n"
        "renew it with: pytest --renew-snapshots"
    )

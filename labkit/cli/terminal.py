"""What stands behind the standard output: its width, its characters, whether it has colours."""

from __future__ import annotations

import io
import os
import sys

NARROWEST_BAR = 10


def can_print(text: str) -> bool:
    """True where the output's encoding has every character of the text."""
    try:
        text.encode(getattr(sys.stdout, "encoding", None) or "ascii")
    except UnicodeEncodeError:
        return False
    return True


def wants_colour(*, refused: bool) -> bool:
    """True for a terminal that shows colours and was not asked to leave them: NO_COLOR counts."""
    refused = refused or bool(os.environ.get("NO_COLOR"))
    return is_terminal() and not refused and os.environ.get("TERM") != "dumb"


def is_terminal() -> bool:
    """True where a person reads along; a closed standard output is none."""
    return sys.stdout is not None and sys.stdout.isatty()


def fit_bar(widest: int, indent: int) -> int:
    """The cells of a bar after ``indent`` others: as many as a terminal's line has, at most
    ``widest``. A file gets all of them."""
    if not is_terminal():
        return widest
    import shutil  # with the libraries of archives that it loads, it takes milliseconds

    return max(NARROWEST_BAR, min(widest, shutil.get_terminal_size().columns - indent))


def print_what_can_be() -> None:
    """Lets the output write ``?`` for a character that its encoding lacks, where it would raise.

    Names of files, processes and cards, and lines of code, are in whatever letters they are.
    """
    if isinstance(sys.stdout, io.TextIOWrapper) and sys.stdout.errors == "strict":
        sys.stdout.reconfigure(errors="replace")

"""The standard output: its width, its encoding, and whether it shows colors."""

from __future__ import annotations

import io
import os
import sys

NARROWEST_BAR = 10


def can_print(text: str) -> bool:
    """True if the output's encoding has every character of the text."""
    try:
        text.encode(getattr(sys.stdout, "encoding", None) or "ascii")
    except UnicodeEncodeError:
        return False
    return True


def wants_color(*, refused: bool) -> bool:
    """True for a terminal with colors, unless ``refused`` or NO_COLOR is set."""
    refused = refused or bool(os.environ.get("NO_COLOR"))
    return is_terminal() and not refused and os.environ.get("TERM") != "dumb"


def is_terminal() -> bool:
    """True if the standard output is a terminal; False if it is closed."""
    return sys.stdout is not None and sys.stdout.isatty()


def fit_bar(widest: int, indent: int) -> int:
    """How many cells of a bar fit a terminal's line after ``indent`` others: at most ``widest``.

    Outside a terminal it is ``widest``.
    """
    if not is_terminal():
        return widest
    import shutil  # it also imports archive formats, which takes milliseconds

    return max(NARROWEST_BAR, min(widest, shutil.get_terminal_size().columns - indent))


def print_what_can_be() -> None:
    """Makes the output write ``?`` for a character that its encoding lacks, instead of raising.

    Names of files, processes and devices, and lines of code, can have any characters.
    """
    if isinstance(sys.stdout, io.TextIOWrapper) and sys.stdout.errors == "strict":
        sys.stdout.reconfigure(errors="replace")

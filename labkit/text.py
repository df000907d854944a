"""Text formatting for all of labkit: numbers, plurals, shortening, and escaping foreign text.

Unknown values print as "unknown", never as a number.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Mapping, Sequence

BINARY_UNITS = ("B", "KiB", "MiB", "GiB", "TiB", "PiB")


def format_bytes(count: int | None) -> str:
    """Bytes in the largest binary unit that keeps them above one; None is "unknown".

    >>> format_bytes(1536), format_bytes(0), format_bytes(None)
    ('1.5 KiB', '0 B', 'unknown')
    """
    if count is None:
        return "unknown"
    value = float(count)
    for unit in BINARY_UNITS:
        if abs(value) < 1024 or unit == BINARY_UNITS[-1]:
            break
        value /= 1024
    return f"{count} B" if unit == "B" else f"{value:.1f} {unit}"


def format_seconds(seconds: float | None) -> str:
    """A measured duration with three figures, minutes from 60 s on; None is "not measured".

    >>> format_seconds(0.00042), format_seconds(3.14159), format_seconds(83), format_seconds(None)
    ('0.42 ms', '3.14 s', '1 min 23 s', 'not measured')
    """
    if seconds is None:
        return "not measured"
    if seconds < 0.001:
        return f"{seconds * 1000:.2g} ms"
    if seconds < 1:
        return f"{seconds * 1000:.3g} ms"
    if seconds < 60:
        return f"{seconds:.3g} s"
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes} min {rest} s"


def format_clock(seconds: float) -> str:
    """An elapsed time in clock format.

    >>> format_clock(83.4), format_clock(4000)
    ('1:23', '1:06:40')
    """
    minutes, rest = divmod(int(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{rest:02d}" if hours else f"{minutes}:{rest:02d}"


def near_match(name: str, known: Iterable[str]) -> str | None:
    """The known name that the user probably meant by ``name``, or None if none is similar.

    >>> near_match("tensor", ["autograd", "tensors"])
    'tensors'
    """
    import difflib  # slow to import, and only errors need it

    found = difflib.get_close_matches(name, list(known), n=1, cutoff=0.5)
    return found[0] if found else None


def plural(number: int, noun: str) -> str:
    """A number with its noun.

    >>> plural(1, "claim"), plural(1200, "claim")
    ('1 claim', '1,200 claims')
    """
    return f"{number:,} {noun}" if number == 1 else f"{number:,} {noun}s"


def join_names(names: Sequence[str]) -> str:
    """The names joined for a sentence.

    >>> join_names(["tensors", "autograd", "compile"])
    'tensors, autograd and compile'
    """
    return " and ".join([", ".join(names[:-1]), names[-1]] if len(names) > 1 else names)


def count_bytes(text: str) -> int:
    """The number of bytes of the text in UTF-8; a lone surrogate counts as one byte."""
    return len(text) if text.isascii() else len(text.encode(errors="replace"))


def shorten(text: str, limit: int) -> str:
    """The text in at most ``limit`` characters, with an ellipsis if it was cut.

    >>> shorten("autograd", 5)
    'auto…'
    """
    return text if len(text) <= limit else text[: limit - 1] + "…"


def shorten_start(text: str, limit: int) -> str:
    """The text in at most ``limit`` characters, cut at its start: a long path keeps its end.

    >>> shorten_start("/a/very/long/path/train.py", 12)
    '…th/train.py'
    """
    return text if len(text) <= limit else f"…{text[1 - limit :]}"


def first_line(text: str) -> str:
    """The first line that is not empty, stripped; "" if there is none.

    >>> first_line("  \\n error: no such file\\n")
    'error: no such file'
    """
    return next((line.strip() for line in text.splitlines() if line.strip()), "")


# CSI sequences (colors, cursor), OSC sequences (title, links), and two-character escapes.
_ANSI = re.compile(r"\x1b\[[0-?]*[ -/]*[@-~]|\x1b\][^\x07\x1b\n]*(?:\x07|\x1b\\)|\x1b[@-_]")


def strip_ansi(text: str) -> str:
    """The text without the escape sequences of a terminal.

    >>> strip_ansi("\\x1b[31mred\\x1b[0m")
    'red'
    """
    return _ANSI.sub("", text) if "\x1b" in text else text


# Characters that a terminal executes instead of showing: control characters except newline and tab,
# marks that change the direction of writing, and lone surrogates, which cannot be encoded.
_NOT_SHOWN = re.compile(
    r"[\x00-\x08\x0b-\x1f\x7f-\x9f\u061c\u200b-\u200f\u2028-\u202e\u2060-\u2069\ufeff\ud800-\udfff]"
)


def escape_controls(text: str) -> str:
    """Foreign text made safe to print: control characters are shown as escape codes.

    Newlines and tabs are kept.

    >>> escape_controls("evil\\x1b]0;title\\x07.ipynb")
    'evil\\\\x1b]0;title\\\\x07.ipynb'
    """
    return _NOT_SHOWN.sub(lambda found: found.group().encode("unicode_escape").decode(), text)


# Set by the Makefile, for messages of the commands that it calls.
MAKE_VARIABLE = "LABKIT_MAKE"
_COMMAND = re.compile(
    r"\blabkit (reset|run|check|progress|doctor|memory|devices)((?: (?:--all|[A-Za-z_][\w.]*))*)"
    r"(?= *(?:$|[(),;#&]))"
)


def name_make(text: str, environment: Mapping[str, str] = os.environ) -> str:
    """The text with make's lines in place of labkit's commands, if make called this program.

    >>> name_make("labkit reset tensors", {"LABKIT_MAKE": "1"})
    'make reset LABS=tensors'
    >>> name_make("labkit run --all", {"LABKIT_MAKE": "1"}), name_make("labkit run --all", {})
    ('make run', 'labkit run --all')
    """
    return _COMMAND.sub(_make_line, text) if environment.get(MAKE_VARIABLE) else text


def _make_line(found: re.Match[str]) -> str:
    names = [word for word in found[2].split() if word != "--all"]
    value = " ".join(names)
    quoted = f'"{value}"' if len(names) > 1 else value
    return f"make {found[1]}" + (f" LABS={quoted}" if names else "")

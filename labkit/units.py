"""Bytes and seconds as text; what is unknown prints as "unknown", never as a number."""

from __future__ import annotations

import difflib
from collections.abc import Iterable

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
    """How long something has been going on, as a clock shows it.

    >>> format_clock(83.4), format_clock(4000)
    ('1:23', '1:06:40')
    """
    minutes, rest = divmod(int(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{rest:02d}" if hours else f"{minutes}:{rest:02d}"


def near_match(name: str, known: Iterable[str]) -> str | None:
    """The known name that ``name`` was probably meant to be, or None where none is near.

    >>> near_match("tensor", ["autograd", "tensors"])
    'tensors'
    """
    found = difflib.get_close_matches(name, list(known), n=1, cutoff=0.5)
    return found[0] if found else None

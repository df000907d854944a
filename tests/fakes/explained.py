"""What the doctor shows of a text."""

from __future__ import annotations

from labkit.host.distribution import UNKNOWN, Distribution
from labkit.known_errors.match import explain_text, format_explanation


def show_first(text: str, distribution: Distribution = UNKNOWN) -> str:
    """The first cause with its fixes, as they are shown."""
    return format_explanation(explain_text(text), distribution).partition("\n\n")[0]

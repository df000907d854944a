"""What a simulated step has seen, for its test: an estimate puts lists of tests back."""

from __future__ import annotations

import string
from typing import Any


class Record:
    """Keeps values where an estimate does not look: in a module of Python's own."""

    def __init__(self) -> None:
        self._name = f"labkit_record_{id(self)}"
        setattr(string, self._name, [])

    def append(self, value: Any) -> None:
        """Adds a value."""
        getattr(string, self._name).append(value)

    def __len__(self) -> int:
        """How many values there are."""
        return len(getattr(string, self._name))

    def take(self) -> list[Any]:
        """The values so far, which are forgotten."""
        found: list[Any] = getattr(string, self._name)[:]
        getattr(string, self._name).clear()
        return found

"""What a simulated step has seen, for its test: an estimate puts lists of tests back."""

from __future__ import annotations

from queue import SimpleQueue
from typing import Any


class Record:
    """Keeps values where an estimate does not look, as it cannot copy a queue."""

    def __init__(self) -> None:
        self._values: SimpleQueue[Any] = SimpleQueue()

    def append(self, value: Any) -> None:
        """Adds a value."""
        self._values.put(value)

    def take(self) -> list[Any]:
        """The values so far, which are forgotten."""
        return [self._values.get() for _ in range(self._values.qsize())]

"""Keeps a cell's output bounded, in memory and in the notebook, and says where it cut.

Of printed text the beginning and the end are kept; a single output that is too big gives way to a
line that says so. What stays below the limits is kept as nbclient keeps it.
"""

from __future__ import annotations

from collections import deque
from typing import Any

from nbformat.v4 import new_output

from labkit.text import format_bytes

HEAD_BYTES = 1024 * 1024
TAIL_BYTES = 256 * 1024
RICH_BYTES = 32 * 1024 * 1024
ERROR_CHARACTERS = 64 * 1024
ERROR_LINES = 2000


class Flood:
    """A stream past its limit: one output that stands for the rest of it, with its end."""

    def __init__(self, name: str) -> None:
        self.output = new_output("stream", name=name, text="")
        self._pieces: deque[str] = deque()
        self._kept = 0
        self._left_out = 0

    def add(self, text: str) -> None:
        """Takes in more text and lets go of what is no longer its end."""
        self._left_out += max(0, len(text) - TAIL_BYTES)
        text = text[-TAIL_BYTES:]
        self._pieces.append(text)
        self._kept += len(text)
        while self._kept - len(self._pieces[0]) >= TAIL_BYTES:
            dropped = len(self._pieces.popleft())
            self._kept -= dropped
            self._left_out += dropped

    def write(self) -> None:
        """Puts the notice, where something was left out, and the end into the output."""
        text = "".join(self._pieces)
        left_out = self._left_out + max(0, len(text) - TAIL_BYTES)
        if left_out:
            size = format_bytes(left_out)
            text = f"\n[labkit left out {size} of {self.output.name} here]\n{text[-TAIL_BYTES:]}"
        self.output.text = text


class OutputLimit:
    """The outputs of the cell that is running: counted, and bounded."""

    def __init__(self) -> None:
        self.start_cell()

    def start_cell(self) -> None:
        """Nothing was put out yet."""
        self.output_bytes = 0
        self.truncated = False
        self.clear()

    def clear(self) -> None:
        """The cell took back what it had put out."""
        self._room: dict[str, int] = {}
        self._floods: dict[str, Flood] = {}
        self._rich_bytes = 0

    def finish_cell(self) -> None:
        """The cell has ended: what stands for its floods gets its text."""
        for flood in self._floods.values():
            flood.write()

    def take_text(self, name: str, text: str) -> tuple[str, Any]:
        """The part of a stream's text to keep as it is, and an output to add after it, or None."""
        self.output_bytes += _count_bytes(text)
        if name in self._floods:
            self._add(name, text)
            return "", None
        room = self._room.get(name, HEAD_BYTES)
        self._room[name] = max(0, room - len(text))
        if len(text) <= room:
            return text, None
        self._floods[name] = Flood(name)
        self._add(name, text[room:])
        return text[:room], self._floods[name].output

    def _add(self, name: str, text: str) -> None:
        self._floods[name].add(text)
        self.truncated = True

    def bound_content(self, content: dict[str, Any]) -> None:
        """Shortens, in place, what a cell displays or the traceback it ends with."""
        if "traceback" in content:
            self._bound_error(content)
            return
        size = sum(_count_bytes(str(value)) for value in content.get("data", {}).values())
        self.output_bytes += size
        if self._rich_bytes + size > RICH_BYTES:
            notice = f"[labkit left out an output of {format_bytes(size)} here]"
            content["data"], content["metadata"] = {"text/plain": notice}, {}
            self.truncated = True
            return
        self._rich_bytes += size

    def _bound_error(self, content: dict[str, Any]) -> None:
        lines = [str(line) for line in content["traceback"]]
        self.output_bytes += sum(map(_count_bytes, lines))
        content["evalue"] = shorten(str(content.get("evalue", "")))
        content["traceback"] = [shorten(line) for line in lines[-ERROR_LINES:]]
        longest = max(map(len, lines), default=0)
        self.truncated |= len(lines) > ERROR_LINES or longest > ERROR_CHARACTERS


def shorten(text: str, limit: int = ERROR_CHARACTERS) -> str:
    """The text, or its two ends around what was left out.

    >>> shorten("abcdefghij", 4)
    'ab[labkit left out 6 B here]ij'
    """
    if len(text) <= limit:
        return text
    half = limit // 2
    notice = f"[labkit left out {format_bytes(len(text) - 2 * half)} here]"
    return text[:half] + notice + text[-half:]


def _count_bytes(text: str) -> int:
    return len(text) if text.isascii() else len(text.encode(errors="replace"))

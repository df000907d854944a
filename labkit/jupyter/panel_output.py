"""Whether a panel's output is still in the notebook, as far as a kernel can know.

No front end tells a kernel that an output was cleared. But the notebook is saved every now and
then, and where an output was in the file and is no longer, it was taken away.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

# Reading a file of more than that after each save would cost more than it is worth.
LARGEST_BYTES = 64 * 2**20


class SavedOutput:
    """One output in a notebook's file, looked for by a word that stands in nothing else."""

    def __init__(self, notebook: Path | None, word: str) -> None:
        self._notebook = notebook
        self._word = word.encode()
        self._seen_at: int | None = None
        self._was_there = False

    def was_cleared(self) -> bool:
        """True once a saved notebook lacks the output that an earlier save held."""
        if self._notebook is None:
            return False
        try:
            status = self._notebook.stat()
            if status.st_mtime_ns == self._seen_at or status.st_size > LARGEST_BYTES:
                return False
            held = self._notebook.read_bytes()
        except OSError:
            return False
        self._seen_at = status.st_mtime_ns
        is_there = self._word in held
        # A file cut off in the middle of being written proves nothing.
        gone = self._was_there and not is_there and held.rstrip().endswith(b"}")
        self._was_there = is_there or (self._was_there and not gone)
        return gone


def find_notebook(
    names: Mapping[str, Any], environment: Mapping[str, str] = os.environ
) -> Path | None:
    """The file of the notebook that this kernel serves, as its front end names it; else None."""
    # The first is VS Code's, in the notebook's own names, the second the Jupyter server's.
    said = names.get("__vsc_ipynb_file__") or environment.get("JPY_SESSION_NAME")
    return Path(said) if isinstance(said, str) and said.endswith(".ipynb") else None

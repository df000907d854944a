"""An out-of-memory error: the kernel's own page on it, else the figures of the error's text.

The kernel knows the balance, the largest free block, the live tensors and their names. It is asked
once, right after the cell.
"""

from __future__ import annotations

import ast
from typing import Any

from labkit.memory.oom.model import EXPANDABLE, TEXT, read_failure
from labkit.notebooks.cuda_probe import KEY, ask_kernel
from labkit.notebooks.result import FailureBalance
from labkit.text import format_bytes

NAMES = ("OutOfMemoryError", "MemoryError")
TEXTS = ("out of memory", "not enough memory", "can't allocate memory", "cannot allocate memory")
LABELS = {
    "asked_bytes": "asked for",
    "free_bytes": "free",
    "allocated_bytes": "allocated by torch",
    "cached_bytes": "cached by torch",
    "total_bytes": "in all",
}
ON_CUDA = (
    "try: a smaller batch; torch.no_grad() where no gradient is needed; restart kernels that still"
    " hold memory (nvidia-smi names their processes)"
)
FRAGMENTED = f"the cache is large, but its free blocks are too small: {EXPANDABLE} helps"
ON_CPU = "try: a smaller batch or a smaller type, or give the machine or container more memory"

# In the kernel this imports labkit; where the kernel's Python does not have it, the request fails.
EXPLAIN = "__import__('importlib').import_module('labkit.jupyter.explain').explain_last_error()"
PAGE_CHARACTERS = 10_000


async def explain_in_kernel(client: Any, value: str) -> str | None:
    """The page on the error that a cell has just ended with, whose text is ``value``.

    None where it is not about a GPU's memory, or the kernel cannot answer.
    """
    if not TEXT.search(value):
        return None
    return read_page(await ask_kernel(client, EXPLAIN) or {})


def read_page(content: Any) -> str | None:
    """The page in a kernel's reply; None where there is none, or something else."""
    answer = content.get("user_expressions", {}).get(KEY, {})
    try:
        page = ast.literal_eval(answer.get("data", {}).get("text/plain", "None"))
    except (ValueError, SyntaxError):
        return None  # the notebook changed how text is shown
    return page[:PAGE_CHARACTERS] if isinstance(page, str) and page else None


def is_out_of_memory(name: str, value: str) -> bool:
    """True where this exception says that memory ran out, on a GPU or in the process.

    >>> is_out_of_memory("RuntimeError", "CUDA error: out of memory")
    True
    """
    return name.rpartition(".")[2] in NAMES or any(text in value.lower() for text in TEXTS)


def read_balance(value: str) -> FailureBalance | None:
    """The bytes that the text names, None for each it does not; None where it names none."""
    failure = read_failure(value)
    found = FailureBalance(**{key: getattr(failure, key) for key in LABELS})
    return None if found == FailureBalance() else found


def advise(value: str, balance: FailureBalance | None) -> str:
    """The balance in a line, where there is one, and what to try."""
    lines = []
    if balance:
        counts = {label: getattr(balance, key) for key, label in LABELS.items()}
        known = [
            f"{format_bytes(count)} {label}" for label, count in counts.items() if count is not None
        ]
        lines.append(", ".join(known))
    lines.append(ON_CUDA if "CUDA" in value else ON_CPU)
    if balance and balance.asked_bytes and (balance.cached_bytes or 0) >= balance.asked_bytes:
        lines.append(FRAGMENTED)
    return "\n".join(lines)

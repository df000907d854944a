"""Follows a notebook cell by cell as it runs: status, seconds, memory, and where it is.

Running out of memory: told by the kernel itself while it is there, else from the error's text.

The kernel knows the balance, the largest free block, the live tensors and the names that hold
them. It is asked right after the cell, once; one that cannot answer leaves the text.
"""

from __future__ import annotations

import ast
import dataclasses
import re
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from labkit.host.distribution import read_distribution
from labkit.known_errors.match import hint_at
from labkit.memory.oom.model import EXPANDABLE, TEXT, read_failure
from labkit.notebooks.cuda_probe import KEY, ask_kernel
from labkit.notebooks.output_limits import OutputLimit, shorten
from labkit.notebooks.result import CellMemory, CellResult, CudaMemory, RunFailure
from labkit.text import format_bytes

SKIP_TAG = "skip-execution"  # nbclient's
ANSI = re.compile(r"\x1b\[[0-9;]*[A-Za-z]")
MESSAGE_CHARACTERS = 2000


@dataclass(frozen=True)
class CellEvent:
    """A cell that starts (status "running", no seconds yet), goes on, or has ended.

    ``resident_bytes`` is what the kernel's process holds now, None where not measured.
    """

    notebook: str
    number: int
    total: int
    first_line: str
    status: str
    seconds: float | None
    resident_bytes: int | None = None


class CellRecorder:
    """The cells of one notebook and what has become of each so far."""

    def __init__(self, name: str, notebook: Any, watch: Callable[[CellEvent], None]) -> None:
        self._name = name
        self._notebook = notebook
        self._watch = watch
        self._cells = {
            index: _start_result(index, cell)
            for index, cell in enumerate(notebook.cells)
            if cell.cell_type == "code" and cell.source.strip()
        }
        self._order = [index for index, cell in self._cells.items() if cell.status != "skipped"]
        self._open: int | None = None
        self._started = 0.0
        # What the kernel tells of the memory it ran out of.
        self.explanation: str | None = None

    @property
    def cells(self) -> tuple[CellResult, ...]:
        """Every code cell that has a source, in order."""
        return tuple(self._cells.values())

    @property
    def place(self) -> str | None:
        """The cell that is running, as people count: "cell 3 of 41"; None before the first."""
        if self._open is None:
            return None
        return f"cell {self._order.index(self._open) + 1} of {len(self._order)}"

    @property
    def seconds(self) -> float:
        """How long the running cell has been running."""
        return time.monotonic() - self._started

    def start_cell(self, cell_index: int) -> None:
        """A cell is about to run."""
        self._open = cell_index
        self._change(status="running")
        self._tell(cell_index, "running", None)

    def start_clock(self) -> None:
        """The cell's time begins now."""
        self._started = time.monotonic()

    def tick(self, resident_bytes: int | None) -> None:
        """Tells that the cell is still running, if one is."""
        number = self._open
        if number is not None and self._cells[number].status == "running":
            self._tell(number, "running", self.seconds, resident_bytes)

    def end_cell(
        self,
        reply: Any,
        seconds: float,
        memory: CellMemory | None,
        cuda: tuple[CudaMemory, ...],
        allowed: bool,
    ) -> None:
        """A cell has run; one that is allowed to raise has passed all the same."""
        raised = str(reply.get("ename")) if reply["status"] == "error" else None
        status = "failed" if raised and not allowed else "passed"
        self._change(raised=raised if allowed else None, memory=memory, cuda=cuda or None)
        self._settle(status, seconds, memory)
        if status == "passed":
            self._open = None

    def note_output(self, limit: OutputLimit) -> None:
        """What the running cell has put out."""
        self._change(output_bytes=limit.output_bytes, truncated=limit.truncated)

    def note_memory(self, memory: CellMemory | None) -> None:
        """What the running cell, which is cut short, was seen to hold."""
        self._change(memory=memory)

    def end_open_cell(self, status: str) -> None:
        """The run ended; the cell it ended in, if it has no status of its own yet, gets this."""
        if self._open is not None and self._cells[self._open].status == "running":
            self._settle(status, self.seconds, self._cells[self._open].memory)

    def describe_open_cell(self, what: str, kind: str) -> RunFailure:
        """The failure ``what`` with the running cell's place and source."""
        if self._open is None:
            return RunFailure(what, kind=kind)
        source = self._notebook.cells[self._open].source
        return RunFailure(what, self._open, source=source, kind=kind)

    def describe_error(self, name: str, value: str) -> RunFailure:
        """The failure of the running cell, which raised: its source and its plain traceback."""
        value = ANSI.sub("", value)
        message = shorten(f"{name}: {value}" if value else name, MESSAGE_CHARACTERS)
        failure = self.describe_open_cell(f"{self.place} raised {message}", "cell")
        traceback = _find_traceback(self._notebook.cells[failure.cell_index])
        failure = dataclasses.replace(failure, name=name, traceback=traceback)
        if not is_out_of_memory(name, value):
            said = _read_stderr(self._notebook.cells[failure.cell_index])
            hint = hint_at(f"{said}\n{name}: {value}", read_distribution())
            return dataclasses.replace(failure, hint=hint)
        balance = read_balance(value)
        hint = self.explanation or advise(value, balance)
        return dataclasses.replace(failure, kind="out_of_memory", balance=balance, hint=hint)

    @property
    def open_memory(self) -> CellMemory | None:
        """The memory of the cell that is running or was the last to run."""
        return None if self._open is None else self._cells[self._open].memory

    def _change(self, **changes: Any) -> None:
        if self._open is not None:
            self._cells[self._open] = dataclasses.replace(self._cells[self._open], **changes)

    def _settle(self, status: str, seconds: float, memory: CellMemory | None) -> None:
        assert self._open is not None
        self._change(status=status, seconds=seconds)
        self._tell(self._open, status, seconds, memory.after_bytes if memory else None)

    def _tell(
        self, index: int, status: str, seconds: float | None, resident: int | None = None
    ) -> None:
        number, total = self._order.index(index) + 1, len(self._order)
        first_line = self._cells[index].first_line
        event = CellEvent(self._name, number, total, first_line, status, seconds, resident)
        self._watch(event)


def _read_stderr(cell: Any) -> str:
    """What the cell wrote to standard error: the warning that explains an error stands there."""
    texts = [
        output.text
        for output in cell.outputs
        if output.output_type == "stream" and output.name == "stderr"
    ]
    return "".join(texts)


def _find_traceback(cell: Any) -> str | None:
    for output in reversed(cell.outputs):
        if output.output_type == "error":
            return ANSI.sub("", "\n".join(output.traceback))
    return None


def _start_result(index: int, cell: Any) -> CellResult:
    lines = (line.strip() for line in cell.source.splitlines())
    first_line = shorten(next(line for line in lines if line), 200)
    skipped = SKIP_TAG in cell.metadata.get("tags", [])
    return CellResult(index, "skipped" if skipped else "not_run", None, first_line)


NAMES = ("OutOfMemoryError", "MemoryError")
TEXTS = ("out of memory", "not enough memory", "can't allocate memory", "cannot allocate memory")
WORDS = {
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
FRAGMENTED = f"much is cached and in pieces too small to use: {EXPANDABLE} helps"
ON_CPU = "try: a smaller batch or a smaller type, or give the machine or container more memory"

# In the kernel this imports labkit, which a notebook of anybody's may not have: then it fails.
EXPLAIN = "__import__('importlib').import_module('labkit.jupyter.explain').explain_last_error()"
PAGE_CHARACTERS = 10_000


async def explain_in_kernel(client: Any, value: str) -> str | None:
    """The page on the error that a cell has just ended with, whose text is ``value``.

    None where it is not about a GPU's memory, or the kernel cannot tell.
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


def read_balance(value: str) -> dict[str, int | None] | None:
    """The bytes that the text names, None for each it does not; None where it names none."""
    shortage = read_failure(value)
    found = {key: getattr(shortage, key) for key in WORDS}
    return found if any(count is not None for count in found.values()) else None


def advise(value: str, balance: dict[str, int | None] | None) -> str:
    """The balance in a line, where there is one, and what to try."""
    lines = []
    if balance:
        known = [
            f"{format_bytes(balance[key])} {word}"
            for key, word in WORDS.items()
            if balance[key] is not None
        ]
        lines.append(", ".join(known))
    lines.append(ON_CUDA if "CUDA" in value else ON_CPU)
    asked, cached = (balance or {}).get("asked_bytes"), (balance or {}).get("cached_bytes")
    if asked and cached and cached >= asked:
        lines.append(FRAGMENTED)
    return "\n".join(lines)

"""Runs one notebook in a fresh kernel and records each cell: status, seconds, memory, output.

Memory is measured from outside the kernel: no code of labkit runs there, and nothing is imported.
The peak of a cell is the operating system's high-water mark of the kernel process, reset before the
cell and read after it. It is exact and does not disturb torch.compile. The memory of child
processes (torch.compile's C++ compiler and workers, a DataLoader's workers) is not counted. On a
system without such a mark (macOS), the peak is the highest sample, and the result says so.

After an out-of-memory error, the kernel is queried once for the balance, the largest free block,
the live tensors and their names. Without a reply, the error's text gives the figures.
"""

from __future__ import annotations

import ast
import asyncio
import contextlib
import math
import os
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from jupyter_client.kernelspec import NoSuchKernel
from msgspec.structs import replace
from nbclient.exceptions import CellExecutionError, CellTimeoutError, DeadKernelError

from labkit.memory.balance.read import PROC, read_peak_bytes, read_resident_bytes, reset_peak
from labkit.memory.oom.model import EXPANDABLE, TEXT, read_failure
from labkit.notebooks.cuda_probe import KEY, CudaProbe, ask_kernel
from labkit.notebooks.kernel import (
    Client,
    Kernel,
    OutputLimit,
    choose_kernel,
    find_waiting_line,
    kernel_environment,
    list_stack_arguments,
    shorten_middle,
)
from labkit.notebooks.outputs import copy_outputs, find_changes, follow_marks
from labkit.notebooks.result import (
    CellMemory,
    CellResult,
    CudaMemory,
    FailureBalance,
    MeasuringAccount,
    NotebookResult,
    OutputChange,
    Point,
    RunFailure,
    collect_checks,
    collect_claims,
)
from labkit.notebooks.sources import Source, find_label, inject_parameters, note_not_run
from labkit.text import format_bytes, strip_ansi

NAMES = ("OutOfMemoryError", "MemoryError")
TEXTS = ("out of memory", "not enough memory", "can't allocate memory", "cannot allocate memory")
LABELS = {
    "asked_bytes": "asked for",
    "free_bytes": "free",
    "allocated_bytes": "allocated by torch",
    "cached_bytes": "cached by torch",
    "total_bytes": "total",
}
ON_CUDA = (
    "try: a smaller batch; torch.no_grad() if no gradient is needed; restart kernels that still"
    " hold memory (nvidia-smi names their processes)"
)
FRAGMENTED = "the cache is large, but its free blocks are too small: "
SET_IT = f"{EXPANDABLE} helps, unless the notebook sets it already"
IS_SET = "expandable segments are on, so allocate the largest blocks first"
# torch's variable, and its name before 2.9, which it still reads.
ALLOCATOR_SETTINGS = ("PYTORCH_ALLOC_CONF", "PYTORCH_CUDA_ALLOC_CONF")
ON_CPU = "try: a smaller batch or a smaller dtype, or give the machine or container more memory"

# This imports labkit in the kernel; the request fails if the kernel's Python does not have it.
EXPLAIN = "__import__('importlib').import_module('labkit.jupyter.cells').explain_last_error()"
PAGE_CHARACTERS = 10_000


async def explain_in_kernel(client: Any, value: str) -> str | None:
    """The explanation of the error that ended a cell, whose text is ``value``.

    None if it is not about a GPU's memory, or the kernel cannot answer.
    """
    if not TEXT.search(value):
        return None
    return read_page(await ask_kernel(client, EXPLAIN) or {})


def read_page(content: Any) -> str | None:
    """The explanation in a kernel's reply; None without one."""
    answer = content.get("user_expressions", {}).get(KEY, {})
    try:
        page = ast.literal_eval(answer.get("data", {}).get("text/plain", "None"))
    except (ValueError, SyntaxError):
        return None  # the notebook changed the repr of strings
    return page[:PAGE_CHARACTERS] if isinstance(page, str) and page else None


def is_out_of_memory(name: str, value: str) -> bool:
    """True if this exception means that memory ran out, on a GPU or in the process.

    >>> is_out_of_memory("RuntimeError", "CUDA error: out of memory")
    True
    """
    return name.rpartition(".")[2] in NAMES or any(text in value.lower() for text in TEXTS)


def read_balance(value: str) -> FailureBalance | None:
    """The byte counts in the text, None for each missing one; None if the text has none."""
    failure = read_failure(value)
    found = FailureBalance(**{key: getattr(failure, key) for key in LABELS})
    return None if found == FailureBalance() else found


def advise(
    value: str, balance: FailureBalance | None, environment: Mapping[str, str] = os.environ
) -> str:
    """The balance in one line, if known, and what to try.

    ``environment`` is the kernel's, which says whether expandable segments are on.
    """
    lines = []
    if balance:
        counts = {label: getattr(balance, key) for key, label in LABELS.items()}
        known = [
            f"{format_bytes(count)} {label}" for label, count in counts.items() if count is not None
        ]
        lines.append(", ".join(known))
    lines.append(ON_CUDA if "CUDA" in value else ON_CPU)
    if balance and balance.asked_bytes and (balance.cached_bytes or 0) >= balance.asked_bytes:
        settings = [environment.get(name, "") for name in ALLOCATOR_SETTINGS]
        is_set = any("expandable_segments:true" in one.lower() for one in settings)
        lines.append(FRAGMENTED + (IS_SET if is_set else SET_IT))
    return "\n".join(lines)


STARTUP_SECONDS = 60
SKIP_TAG = "skip-execution"  # nbclient's
ALLOW_TAG = "raises-exception"  # nbclient's
MESSAGE_CHARACTERS = 2000
HIGH_WATER_MARK = "the kernel's high-water mark"
# A sample reads a file in about 20 us if there is /proc; else it runs `ps` for some ms.
INTERVAL_SECONDS = 0.1 if PROC.is_dir() else 0.5
SAMPLED = f"sampled every {INTERVAL_SECONDS * 1000:.0f} ms"
ALLOCATOR = "the allocator's own peak"


@dataclass(frozen=True)
class CellEvent:
    """An event of a cell: it started (status "running", no seconds), is running, or has ended.

    ``resident_bytes`` is the current memory of the kernel's process, None if not measured.
    """

    notebook: str
    number: int
    total: int
    first_line: str
    status: str
    seconds: float | None
    resident_bytes: int | None = None


Watch = Callable[[CellEvent], None]
Follow = Callable[[NotebookResult], None]


@dataclass(frozen=True)
class RunOptions:
    """How notebooks are run; ``environment`` is added to this process's for their kernels.

    ``kernel`` overrides the kernel that a notebook names. ``asks_cuda`` is True if a kernel can
    use a GPU; only then is its allocator queried. Notebooks run in ``folder``, by default their
    own. With ``finds_waits``, a cell that is ended early says at which line it was. ``tolerance``
    is the relative difference that numbers in outputs may have from the saved
    ones; None compares no outputs.
    """

    timeout_seconds: float = 600.0
    total_timeout_seconds: float | None = None
    keep_going: bool = False
    jobs: int = 1
    allow_errors: bool = False
    kernel: str | None = None
    environment: Mapping[str, str] = field(default_factory=dict)
    asks_cuda: bool = False
    folder: Path | None = None
    parameters: Mapping[str, Any] = field(default_factory=dict)
    tolerance: float | None = None
    finds_waits: bool = False


@dataclass(frozen=True)
class Ending:
    """How an execution ended: the status of the notebook and of its last cell, and the reason."""

    status: str
    failure: RunFailure | None = None


class Execution:
    """Runs one notebook in one kernel, from the kernel's start to its guaranteed end."""

    def __init__(
        self,
        source: Source,
        notebook: Any,
        options: RunOptions,
        account: MeasuringAccount,
        *,
        deadline: float | None = None,
        watch: Watch = lambda event: None,
        follow: Follow = lambda result: None,
    ) -> None:
        self._source = source
        self._notebook = notebook
        self._options = options
        self._deadline = deadline
        self._follow = follow
        injected = inject_parameters(notebook, options.parameters)
        self._notes = (*injected, *note_not_run(notebook))
        self._saved = None
        if options.tolerance is not None:
            follow_marks(notebook)
            self._saved = copy_outputs(notebook)
        self._started = time.monotonic()
        self._startup_seconds: float | None = None
        self._recorder = CellRecorder(source.name, notebook, watch)
        self._meter = Meter(account, self._tick)
        self._probe = CudaProbe(notebook) if options.asks_cuda else None
        self._kernel = Kernel(choose_kernel(notebook, options.kernel))
        # Where the cell was that has been ended: "cell 3 of 5, line 2: dist.barrier()".
        self.waits: str | None = None
        self._client = Client(
            notebook,
            self._kernel,
            self._note_cut_short,
            extra_arguments=list_stack_arguments(self._kernel) if options.finds_waits else [],
            timeout_func=lambda cell: self._limit_seconds(),
            startup_timeout=math.ceil(min(STARTUP_SECONDS, self._left_seconds())),
            allow_errors=options.allow_errors,
            on_notebook_start=lambda notebook: self._meter.attach(self._kernel.process_id),
            on_cell_execute=self._start_cell,
            on_cell_executed=self._end_cell,
        )

    def run(self) -> NotebookResult:
        """Runs every cell of the notebook in place; the kernel has ended when this returns."""
        self._follow(self._describe("running"))
        with tempfile.TemporaryDirectory(prefix="labkit-run-") as scratch:
            try:
                ending = self._execute(scratch)
            finally:
                self._meter.detach()
                self._kernel.close()
        self._recorder.end_open_cell(ending.status)
        result = replace(
            self._describe(ending.status),
            claims=collect_claims(self._notebook),
            checks=collect_checks(self._notebook),
            output_changes=self._compare_outputs(),
            error=ending.failure,
        )
        broken = ending.status == "passed" and not result.all_held
        return replace(result, status="failed") if broken else result

    def _compare_outputs(self) -> tuple[OutputChange, ...] | None:
        if self._saved is None or self._options.tolerance is None:
            return None
        ran = {cell.index for cell in self._recorder.cells if cell.status == "passed"}
        return find_changes(self._saved, self._notebook, ran, self._options.tolerance)

    def stop(self) -> None:
        """Ends the kernel and the run, from another thread; the status becomes "interrupted"."""
        self._find_wait()
        self._client.stop()

    def _find_wait(self) -> None:
        place = self._recorder.place
        if self._options.finds_waits and place and self.waits is None:
            line = find_waiting_line(self._kernel, self._notebook)
            self.waits = f"{place}, {line}" if line else place

    @property
    def has_lost_kernel(self) -> bool:
        """True if the kernel's process has ended, whether or not the run knows it yet."""
        return self._kernel.has_ended

    def _execute(self, scratch: str) -> Ending:
        """Runs the cells: a reference notebook in ``scratch``, any other notebook in its folder."""
        environment, folder = dict(os.environ), str(self._source.path.resolve().parent)
        if self._source.is_lab:
            environment, folder = kernel_environment(reference=True, workspace=None), scratch
            environment.pop("MPLBACKEND", None)  # the inline backend, as in JupyterLab
        if self._options.folder:
            folder = str(self._options.folder.resolve())
        self._recorder.environment = {**environment, **self._options.environment}
        try:
            self._client.run(self._recorder.environment, folder)
        except (Exception, asyncio.CancelledError) as error:
            # A cell that raised just before the run was stopped has failed by itself.
            by_itself = isinstance(error, CellExecutionError) or not self._client.stopped
            ending = self._explain(error) if by_itself else self._explain_stop()
            if ending is None:
                raise
            return ending
        return Ending("passed")

    def _explain(self, error: BaseException) -> Ending | None:
        """How an exception ended the execution; None for an unexpected exception."""
        if isinstance(error, CellTimeoutError):
            return self._explain_timeout()
        if isinstance(error, CellExecutionError):
            return Ending("failed", self._recorder.describe_error(error.ename, error.evalue))
        if isinstance(error, DeadKernelError):
            what = f"the kernel died in {self._recorder.place}: {self._client.death}"
            return Ending("died", self._describe_death(what))
        return self._explain_start(error) if self._startup_seconds is None else None

    def _explain_start(self, error: BaseException) -> Ending | None:
        if isinstance(error, NoSuchKernel):
            what = f"the kernel {error.name!r} is not installed"
            hint = (
                "--kernel NAME runs it with another one: --kernel python3 is this Python,"
                " jupyter kernelspec list names the rest"
            )
            return Ending("invalid", RunFailure(what, kind="no_kernel", hint=hint))
        if not isinstance(error, RuntimeError | OSError) or isinstance(error, RecursionError):
            return None
        if self._left_seconds() <= 0:
            return self._explain_timeout()
        return Ending("died", self._describe_death(f"the kernel did not start: {error}"))

    def _explain_timeout(self) -> Ending:
        place = self._recorder.place
        what = f"{place} ran past {self._options.timeout_seconds:g} s"
        if self._left_seconds() <= 0:
            limit = self._options.total_timeout_seconds
            begun = self._startup_seconds is not None
            where = f"in {place}" if place else "between two cells" if begun else "at its start"
            what = f"the limit of {limit:g} s for the whole run was reached {where}"
        return Ending("timed_out", self._recorder.describe_open_cell(what, "timeout"))

    def _explain_stop(self) -> Ending:
        place = f" in {self._recorder.place}" if self._recorder.place else ""
        failure = self._recorder.describe_open_cell(f"interrupted{place}", "interrupted")
        return Ending("interrupted", failure)

    def _describe_death(self, what: str) -> RunFailure:
        failure = self._recorder.describe_open_cell(what, "dead_kernel")
        memory = self._recorder.open_memory
        hint = None
        if memory and memory.before_bytes and memory.peak_bytes:
            hint = (
                f"its process held {format_bytes(memory.before_bytes)} before the cell and"
                f" {format_bytes(memory.peak_bytes)} when it was last measured"
            )
            if "SIGKILL" in what:
                hint += "; Linux also sends SIGKILL when memory runs out (see dmesg)"
        stderr = self._kernel.read_stderr() or None
        hint = "\n".join(filter(None, [hint, _find_hint(stderr or "")])) or None
        return replace(failure, traceback=stderr, hint=hint)

    def _start_cell(self, cell: Any, cell_index: int) -> None:
        if self._left_seconds() <= 0:
            raise CellTimeoutError
        if self._startup_seconds is None:
            self._startup_seconds = time.monotonic() - self._started
        self._recorder.start_cell(cell_index)
        self._meter.begin_cell()
        self._recorder.start_clock()

    async def _end_cell(self, cell: Any, cell_index: int, execute_reply: Any) -> None:
        seconds = self._recorder.seconds
        self._client.limit.finish_cell()
        memory = self._meter.end_cell()
        cuda: tuple[Any, ...] = ()
        if self._probe:
            with self._meter.count_cost():
                states = await self._probe.ask(self._client)
            cuda = self._probe.describe_cell(states)
            if cuda:
                self._meter.note_cuda(sum(state.reserved_bytes for state in states))
        reply = execute_reply["content"]
        allowed = self._options.allow_errors or ALLOW_TAG in cell.metadata.get("tags", [])
        if reply["status"] == "error" and not allowed:
            value = str(reply.get("evalue"))
            self._recorder.explanation = await explain_in_kernel(self._client, value)
        self._recorder.note_output(self._client.limit)
        self._recorder.end_cell(reply, seconds, memory, cuda, allowed)
        self._follow(self._describe("running"))

    def _note_cut_short(self) -> None:
        self._find_wait()
        self._recorder.note_output(self._client.limit)
        self._recorder.note_memory(self._meter.end_cell())

    def _tick(self, resident_bytes: int | None) -> None:
        # A write error repeats at the cell's end, in the thread that can report it.
        with contextlib.suppress(OSError):
            self._recorder.tick(resident_bytes)
        self._follow(self._describe("running"))

    def _describe(self, status: str) -> NotebookResult:
        return NotebookResult(
            name=self._source.name,
            path=str(self._source.path),
            status=status,
            seconds=time.monotonic() - self._started,
            startup_seconds=self._startup_seconds,
            cells=self._recorder.cells,
            timeline=() if status == "running" else self._meter.timeline.points,
            kernel=self._kernel.name,
            parameters=_record_parameters(self._options.parameters),
            notes=self._notes,
        )

    def _left_seconds(self) -> float:
        return math.inf if self._deadline is None else self._deadline - time.monotonic()

    def _limit_seconds(self) -> float:
        # nbclient takes 0 for "no limit".
        return max(0.001, min(self._options.timeout_seconds, self._left_seconds()))


def _record_parameters(parameters: Mapping[str, Any]) -> dict[str, Any] | None:
    """The parameters for the result; JSON has no infinity and no NaN, so these become text."""
    recorded = {
        name: str(value) if isinstance(value, float) and not math.isfinite(value) else value
        for name, value in parameters.items()
    }
    return recorded or None


class CellRecorder:
    """Records the cells of one notebook and the current state of each."""

    def __init__(self, name: str, notebook: Any, watch: Watch) -> None:
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
        # The kernel's explanation of an out-of-memory error.
        self.explanation: str | None = None
        self.environment: Mapping[str, str] = os.environ  # the kernel's

    @property
    def cells(self) -> tuple[CellResult, ...]:
        """Every code cell that has a source, in order."""
        return tuple(self._cells.values())

    @property
    def place(self) -> str | None:
        """The running cell, counted from 1: "cell 3 of 41"; None before the first."""
        current = self._open  # which another thread may change
        if current is None:
            return None
        return f"cell {self._order.index(current) + 1} of {len(self._order)}"

    @property
    def seconds(self) -> float:
        """How long the running cell has been running."""
        return time.monotonic() - self._started

    @property
    def open_memory(self) -> CellMemory | None:
        """The memory of the running cell, or of the last one."""
        return None if self._open is None else self._cells[self._open].memory

    def start_cell(self, cell_index: int) -> None:
        """Records that a cell starts."""
        self._open = cell_index
        self._change(status="running")
        self._send_event(cell_index, "running", None)

    def start_clock(self) -> None:
        """Starts the cell's time."""
        self._started = time.monotonic()

    def tick(self, resident_bytes: int | None) -> None:
        """Reports that the cell is still running, if one is."""
        index = self._open
        if index is not None and self._cells[index].status == "running":
            self._send_event(index, "running", self.seconds, resident_bytes)

    def end_cell(
        self,
        reply: Any,
        seconds: float,
        memory: CellMemory | None,
        cuda: tuple[CudaMemory, ...],
        allowed: bool,
    ) -> None:
        """Records the end of a cell; a cell that is allowed to raise passes."""
        raised = str(reply.get("ename")) if reply["status"] == "error" else None
        status = "failed" if raised and not allowed else "passed"
        self._change(raised=raised if allowed else None, memory=memory, cuda=cuda or None)
        self._settle(status, seconds, memory)
        if status == "passed":
            self._open = None

    def note_output(self, limit: OutputLimit) -> None:
        """Records the output size of the running cell."""
        self._change(output_bytes=limit.output_bytes, truncated=limit.truncated)

    def note_memory(self, memory: CellMemory | None) -> None:
        """Records the memory of the running cell, which ends early."""
        self._change(memory=memory)

    def end_open_cell(self, status: str) -> None:
        """Sets the status of the cell in which the run ended, unless it has one."""
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

        value = strip_ansi(value)
        message = shorten_middle(f"{name}: {value}" if value else name, MESSAGE_CHARACTERS)
        failure = self.describe_open_cell(f"{self.place} raised {message}", "cell")
        cell = self._notebook.cells[failure.cell_index]
        failure = replace(failure, name=name, traceback=_find_traceback(cell))
        if not is_out_of_memory(name, value):
            return replace(failure, hint=_find_hint(f"{_read_stderr(cell)}\n{name}: {value}"))
        balance = read_balance(value)
        hint = self.explanation or advise(value, balance, self.environment)
        return replace(failure, kind="out_of_memory", balance=balance, hint=hint)

    def _change(self, **changes: Any) -> None:
        if self._open is not None:
            self._cells[self._open] = replace(self._cells[self._open], **changes)

    def _settle(self, status: str, seconds: float, memory: CellMemory | None) -> None:
        assert self._open is not None
        self._change(status=status, seconds=seconds)
        self._send_event(self._open, status, seconds, memory.after_bytes if memory else None)

    def _send_event(
        self, index: int, status: str, seconds: float | None, resident: int | None = None
    ) -> None:
        number, total = self._order.index(index) + 1, len(self._order)
        first = self._cells[index].first_line
        self._watch(CellEvent(self._name, number, total, first, status, seconds, resident))


def _start_result(index: int, cell: Any) -> CellResult:
    first = shorten_middle(find_label(cell.source), 200)
    skipped = SKIP_TAG in cell.metadata.get("tags", [])
    status = "skipped" if skipped else "not_run"
    return CellResult(index, status, first_line=first, output_bytes=0)


def _read_stderr(cell: Any) -> str:
    """What the cell wrote to standard error; a warning there can explain its exception."""
    texts = [
        output.text
        for output in cell.outputs
        if output.output_type == "stream" and output.name == "stderr"
    ]
    return "".join(texts)


def _find_traceback(cell: Any) -> str | None:
    for output in reversed(cell.outputs):
        if output.output_type == "error":
            return strip_ansi("\n".join(output.traceback))
    return None


def _find_hint(text: str) -> str | None:
    """The cause and fix of a known error in the text; None if there is none."""
    from labkit.host.distribution import read_distribution
    from labkit.host.gpu import has_gpu
    from labkit.known_errors.match import hint_at

    return hint_at(text, read_distribution(), has_gpu=has_gpu())


class Meter:
    """Measures one kernel's memory, per cell and over time; ``account`` sums the measuring time."""

    def __init__(
        self,
        account: MeasuringAccount,
        tick: Callable[[int | None], None] = lambda resident: None,
    ) -> None:
        self.timeline = MemoryTimeline()
        self._account = account
        self._tick = tick
        self._started = time.monotonic()
        self._process_id: int | None = None
        self._lock = threading.Lock()
        self._done = threading.Event()
        self._thread: threading.Thread | None = None
        self._before: int | None = None
        self._highest: int | None = None
        self._marked = False

    def attach(self, process_id: int | None) -> None:
        """Starts to sample the process; None (an unknown id) measures nothing."""
        self._process_id = process_id
        if process_id is not None:
            self._thread = threading.Thread(target=self._sample_on, daemon=True)
            self._thread.start()

    def detach(self) -> None:
        """Ends the sampling."""
        self._done.set()
        if self._thread:
            self._thread.join()

    def begin_cell(self) -> None:
        """Reads the resident memory before a cell, and resets the high-water mark to it."""
        with self.count_cost():
            self._account.add_cell()
            self._marked = self._process_id is not None and reset_peak(self._process_id)
            self._before = self._read_resident()
            with self._lock:
                self._highest = self._before

    def end_cell(self) -> CellMemory | None:
        """The memory of the cell that has ended; None if nothing could be measured."""
        with self.count_cost():
            after = self._read_resident()
            mark = read_peak_bytes(self._process_id) if self._marked else None
            # The cell may have reset the mark itself, so the samples count too.
            seen = (mark, self._highest, self._before, after)
            known = [count for count in seen if count is not None]
        if not known:
            return None
        self._account.note_methods(process=SAMPLED if mark is None else HIGH_WATER_MARK)
        return CellMemory(self._before, max(known), after)

    def note_cuda(self, reserved_bytes: int) -> None:
        """Adds the bytes that torch's allocators reserve after a cell to the timeline."""
        self._account.note_methods(cuda=ALLOCATOR)
        self._add_point(self._read_resident(), reserved_bytes)

    @contextmanager
    def count_cost(self) -> Iterator[None]:
        """Counts the duration of the block as measuring time."""
        started = time.perf_counter()
        try:
            yield
        finally:
            self._account.add_cell_seconds(time.perf_counter() - started)

    def sample(self) -> None:
        """Reads the process once, for the timeline and for the peak of the running cell."""
        started = time.perf_counter()
        resident = self._read_resident()
        if resident is not None:
            with self._lock:
                self._highest = max(self._highest or 0, resident)
            self._add_point(resident, None)
        self._tick(resident)
        self._account.add_sample(time.perf_counter() - started)

    def _sample_on(self) -> None:
        while not self._done.wait(INTERVAL_SECONDS):
            self.sample()

    def _add_point(self, resident: int | None, cuda: int | None) -> None:
        with self._lock:
            seconds = round(time.monotonic() - self._started, 3)
            self.timeline.add((seconds, resident, cuda))

    def _read_resident(self) -> int | None:
        if self._process_id is None:
            return None
        # A zombie process has 0 pages; this is not a measurement.
        return read_resident_bytes(self._process_id) or None


POINT_LIMIT = 600
FIRST_WIDTH_SECONDS = 0.05


class MemoryTimeline:
    """Points of (seconds, resident bytes, CUDA bytes or None), at most ``limit`` of them.

    Time is divided into slices of equal width, and each slice keeps its highest point. If there
    are too many slices, neighboring pairs are merged: spacing stays even, and no peak is lost.
    """

    def __init__(
        self, limit: int = POINT_LIMIT, width_seconds: float = FIRST_WIDTH_SECONDS
    ) -> None:
        self._limit = limit
        self._width = width_seconds
        self._slices: dict[int, Point] = {}

    @property
    def points(self) -> tuple[Point, ...]:
        """The kept points, in time order."""
        return tuple(self._slices[number] for number in sorted(self._slices))

    def add(self, point: Point) -> None:
        """Adds a measured point."""
        self._put(point)
        while len(self._slices) > self._limit:
            self._width *= 2
            points, self._slices = self.points, {}
            for kept in points:
                self._put(kept)

    def _put(self, point: Point) -> None:
        number = int(point[0] / self._width)
        there = self._slices.get(number)
        self._slices[number] = point if there is None else _join(there, point)


def _join(first: Point, second: Point) -> Point:
    """The point with more resident memory, with the higher known CUDA value of both."""
    higher = second if (second[1] or 0) > (first[1] or 0) else first
    known = [point[2] for point in (first, second) if point[2] is not None]
    return (higher[0], higher[1], max(known, default=None))

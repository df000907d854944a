"""Runs one notebook in a fresh kernel, through nbclient's hooks.

The cells, outputs and failures are those of plain nbclient; what is added is the account of them.
"""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import math
import os
import tempfile
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from jupyter_client.kernelspec import NoSuchKernel
from nbclient.exceptions import CellExecutionError, CellTimeoutError, DeadKernelError

from labkit.host.distribution import read_distribution
from labkit.known_errors.match import hint_at
from labkit.notebooks.client import Client
from labkit.notebooks.cuda_probe import CudaProbe
from labkit.notebooks.kernel import QUIET, Kernel
from labkit.notebooks.meter import Meter
from labkit.notebooks.recorder import CellEvent, CellRecorder, explain_in_kernel
from labkit.notebooks.result import (
    NotebookResult,
    RunFailure,
    all_held,
    collect_checks,
    collect_claims,
)
from labkit.notebooks.sources import Source
from labkit.text import format_bytes

Watch = Callable[[CellEvent], None]
Follow = Callable[[NotebookResult], None]
PACKAGE_PARENT = str(Path(__file__).resolve().parents[2])
STARTUP_SECONDS = 60
KERNEL_HINT = "the kernels that are: jupyter kernelspec list"


@dataclass(frozen=True)
class RunOptions:
    """How notebooks are run; ``environment`` is what their kernels get on top of ours.

    ``asks_cuda`` is True where a kernel can have a GPU: only there is its allocator asked.
    """

    timeout_seconds: float = 600.0
    total_timeout_seconds: float | None = None
    keep_going: bool = False
    jobs: int = 1
    allow_errors: bool = False
    environment: Mapping[str, str] = field(default_factory=dict)
    asks_cuda: bool = False


@dataclass(frozen=True)
class Ending:
    """How an execution ended: the status, of the notebook and the cell it ended in, and why."""

    status: str
    failure: RunFailure | None = None


class Execution:
    """One notebook in one kernel, from the kernel's start to its certain end.

    Runs in a thread that is not the main one: there nbclient would take Ctrl-C for itself and
    report a dead kernel. ``stop`` is for the thread that the signal comes to.
    """

    def __init__(
        self,
        source: Source,
        notebook: Any,
        options: RunOptions,
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
        self._started = time.monotonic()
        self._startup_seconds: float | None = None
        self._stopped = False
        self._recorder = CellRecorder(source.name, notebook, watch)
        self._meter = Meter(self._tick)
        self._probe = CudaProbe(notebook) if options.asks_cuda else None
        self._kernel = Kernel(notebook)
        self._client = Client(
            notebook,
            self._note_cut_short,
            km=self._kernel.manager,
            timeout_func=lambda cell: self._limit_seconds(),
            startup_timeout=math.ceil(min(STARTUP_SECONDS, self._left_seconds())),
            allow_errors=options.allow_errors,
            on_notebook_start=self._start_notebook,
            on_cell_execute=self._start_cell,
            on_cell_executed=self._end_cell,
            log=QUIET,
        )
        self._loop: asyncio.AbstractEventLoop | None = None
        self._task: asyncio.Task[Any] | None = None

    def run(self) -> NotebookResult:
        """Runs every cell of the notebook in place; the kernel is gone when this returns."""
        self._follow(self._describe("running"))
        with tempfile.TemporaryDirectory(prefix="labkit-run-") as scratch:
            lab = self._source.lab is not None
            folder = scratch if lab else str(self._source.path.resolve().parent)
            environment = _choose_environment(self._source, self._options.environment)
            try:
                ending = asyncio.run(self._execute(self._kernel.start_options(environment, folder)))
            finally:
                self._meter.detach()
                self._kernel.close()
        self._recorder.end_open_cell(ending.status)
        claims, checks = collect_claims(self._notebook), collect_checks(self._notebook)
        broken = ending.status == "passed" and not all_held(claims, checks)
        result = self._describe("failed" if broken else ending.status)
        return dataclasses.replace(result, claims=claims, checks=checks, error=ending.failure)

    def stop(self) -> None:
        """Ends the kernel and the run, from another thread; the status becomes "interrupted"."""
        self._stopped = True
        self._kernel.kill()
        if self._loop is not None and self._task is not None:
            with contextlib.suppress(RuntimeError):  # it ended by itself just now
                self._loop.call_soon_threadsafe(self._task.cancel)

    async def _execute(self, options: dict[str, Any]) -> Ending:
        self._loop, self._task = asyncio.get_running_loop(), asyncio.current_task()
        try:
            if self._stopped:
                raise asyncio.CancelledError
            await self._client.async_execute(cleanup_kc=True, **options)
        except (Exception, asyncio.CancelledError) as error:
            if self._stopped:
                return self._explain_stop()
            ending = self._explain(error)
            if ending is None:
                raise
            return ending
        return Ending("passed")

    def _explain(self, error: BaseException) -> Ending | None:
        """What an execution's exception means; None where it is not one of its own."""
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
            what = f"it asks for the kernel {error.name!r}, which is not installed here"
            return Ending("invalid", RunFailure(what, kind="no_kernel", hint=KERNEL_HINT))
        if not isinstance(error, (RuntimeError, OSError)):
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
            what = f"the run's {limit:g} s in all were over {where}"
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
                f" {format_bytes(memory.peak_bytes)} when it was last seen"
            )
            if "SIGKILL" in what:
                hint += "; SIGKILL is also how Linux ends a process when memory runs out (dmesg)"
        stderr = self._kernel.read_stderr() or None
        hints = [hint, hint_at(stderr or "", read_distribution())]
        hint = "\n".join(filter(None, hints)) or None
        return dataclasses.replace(failure, traceback=stderr, hint=hint)

    def _start_notebook(self, notebook: Any) -> None:
        self._kernel.guard()
        self._meter.attach(self._kernel.process_id)

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
            cuda = self._probe.tell_cell(states)
            if cuda:
                self._meter.note_cuda(cuda, sum(state.reserved_bytes for state in states))
        tags = cell.metadata.get("tags", [])
        allowed = self._options.allow_errors or "raises-exception" in tags
        if not allowed:
            await self._explain_shortage(execute_reply["content"])
        self._recorder.note_output(self._client.limit)
        self._recorder.end_cell(execute_reply["content"], seconds, memory, cuda, allowed)
        self._follow(self._describe("running"))

    async def _explain_shortage(self, reply: Mapping[str, Any]) -> None:
        """Has the kernel tell where its memory is, if that is what the cell ended for."""
        if reply["status"] == "error":
            value = str(reply.get("evalue"))
            self._recorder.explanation = await explain_in_kernel(self._client, value)

    def _note_cut_short(self) -> None:
        self._recorder.note_output(self._client.limit)
        self._recorder.note_memory(self._meter.end_cell())

    def _tick(self, resident_bytes: int | None) -> None:
        with contextlib.suppress(OSError):  # said where the cell's end is written, in its thread
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
            measuring=self._meter.measuring,
        )

    def _left_seconds(self) -> float:
        return math.inf if self._deadline is None else self._deadline - time.monotonic()

    def _limit_seconds(self) -> float:
        # nbclient takes 0 for "no limit".
        return max(0.001, min(self._options.timeout_seconds, self._left_seconds()))


def _choose_environment(source: Source, extra: Mapping[str, str]) -> dict[str, str]:
    """The kernel's environment: ours for anybody's notebook; for a lab, a reference run's."""
    environment = {**os.environ, **extra}
    if source.lab is None:
        return environment
    environment["LABKIT_REFERENCE"] = "1"
    environment.pop("MPLBACKEND", None)  # the inline backend, as in JupyterLab
    # Run from a checkout, labkit may not be installed for the kernel to find.
    paths = [PACKAGE_PARENT, environment.get("PYTHONPATH", "")]
    environment["PYTHONPATH"] = os.pathsep.join(path for path in paths if path)
    return environment

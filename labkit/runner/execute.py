"""Runs notebooks one after the other, each in a fresh kernel, through nbclient's hooks.

The cells, outputs and failures are those of plain nbclient; what is added is the account of them.
"""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import os
import tempfile
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from jupyter_client.kernelspec import NoSuchKernel
from nbclient import NotebookClient
from nbclient.exceptions import CellExecutionError, CellTimeoutError, DeadKernelError

from labkit.errors import LabkitError
from labkit.runner.kernel import QUIET, Kernel, explain_death
from labkit.runner.recorder import CellEvent, Recorder
from labkit.runner.result import (
    NotebookResult,
    RunFailure,
    all_held,
    collect_checks,
    collect_claims,
)
from labkit.runner.sources import Source, load_notebook

Watch = Callable[[CellEvent], None]
Keep = Callable[[NotebookResult, Any], None]
PACKAGE_PARENT = str(Path(__file__).resolve().parents[2])


@dataclass(frozen=True)
class Ending:
    """How an execution ended: the status, of the notebook and the cell it ended in, and why."""

    status: str
    failure: RunFailure | None = None


def run_notebooks(
    sources: Sequence[Source],
    *,
    timeout_seconds: float,
    keep_going: bool = False,
    watch: Watch = lambda event: None,
    keep: Keep = lambda result, notebook: None,
) -> tuple[NotebookResult, ...]:
    """Runs each source in its own kernel; after a failure the rest is "not_run".

    ``keep_going`` runs the rest all the same, except after Ctrl-C. ``watch`` hears of each cell
    as it starts and ends; ``keep`` gets each result with its executed notebook as it is done.
    """
    results: list[NotebookResult] = []
    stopped = False
    for source in sources:
        if stopped:
            results.append(NotebookResult(source.name, str(source.path), "not_run"))
            continue
        try:
            notebook = load_notebook(source)
        except LabkitError as error:
            what = f"{error.what}: {error.cause}" if error.cause else error.what
            result = NotebookResult(
                source.name, str(source.path), "invalid", error=RunFailure(what)
            )
        else:
            result = run_notebook(source, notebook, timeout_seconds=timeout_seconds, watch=watch)
            keep(result, notebook)
        results.append(result)
        stopped = result.status == "interrupted" or (result.status != "passed" and not keep_going)
    return tuple(results)


def run_notebook(
    source: Source, notebook: Any, *, timeout_seconds: float, watch: Watch = lambda event: None
) -> NotebookResult:
    """Runs every cell of ``notebook`` in place, in a fresh kernel that is gone afterwards."""
    started = time.monotonic()
    recorder = Recorder(source.name, notebook, watch)
    with tempfile.TemporaryDirectory(prefix="labkit-run-") as scratch:
        folder = scratch if source.lab is not None else str(source.path.resolve().parent)
        execution = Execution(notebook, recorder, timeout_seconds)
        ending = execution.run(_choose_environment(source), folder)
    recorder.end_open_cell(ending.status)
    claims, checks = collect_claims(notebook), collect_checks(notebook)
    status = ending.status
    if status == "passed" and not all_held(claims, checks):
        status = "failed"
    return NotebookResult(
        name=source.name,
        path=str(source.path),
        status=status,
        seconds=time.monotonic() - started,
        cells=recorder.cells,
        claims=claims,
        checks=checks,
        error=ending.failure,
    )


class Client(NotebookClient):  # type: ignore[misc]
    """nbclient, which does not ask a kernel politely to stop where it cannot listen."""

    death = "it is gone"

    async def async_execute_cell(
        self, cell: Any, cell_index: int, *rest: Any, **options: Any
    ) -> Any:
        """Executes the cell; past its time, dead or cancelled, the kernel is killed at once."""
        try:
            return await super().async_execute_cell(cell, cell_index, *rest, **options)
        except (CellTimeoutError, DeadKernelError, asyncio.CancelledError) as error:
            self.shutdown_kernel = "immediate"
            if isinstance(error, DeadKernelError):
                self.death = await explain_death(self.km)
            raise


class Execution:
    """One notebook in one kernel, from the kernel's start to its certain end.

    nbclient runs in a thread of its own: in the main thread it would take Ctrl-C for itself and
    report a dead kernel. So the signal comes here, as KeyboardInterrupt.
    """

    def __init__(self, notebook: Any, recorder: Recorder, timeout_seconds: float) -> None:
        self._recorder = recorder
        self._timeout_seconds = timeout_seconds
        self._kernel = Kernel(notebook)
        self._client = Client(
            notebook,
            km=self._kernel.manager,
            timeout_func=lambda cell: timeout_seconds,
            on_cell_execute=recorder.start_cell,
            on_cell_executed=recorder.end_cell,
            log=QUIET,
        )
        self._loop: asyncio.AbstractEventLoop | None = None
        self._task: asyncio.Task[Any] | None = None

    def run(self, environment: dict[str, str], folder: str) -> Ending:
        """Runs all cells and returns how that ended; the kernel is gone by then."""
        options = self._kernel.start_options(environment, folder)
        try:
            with ThreadPoolExecutor(1) as pool:
                future = pool.submit(lambda: asyncio.run(self._execute(options)))
                try:
                    return future.result()
                except KeyboardInterrupt:
                    self._stop()
        finally:
            self._kernel.close()
        place = f" in {self._recorder.place}" if self._recorder.place else ""
        return Ending("interrupted", self._recorder.describe_open_cell(f"interrupted{place}"))

    def _stop(self) -> None:
        self._kernel.kill()
        if self._loop is not None and self._task is not None:
            with contextlib.suppress(RuntimeError):  # it ended by itself just now
                self._loop.call_soon_threadsafe(self._task.cancel)

    async def _execute(self, options: dict[str, Any]) -> Ending:
        self._loop, self._task = asyncio.get_running_loop(), asyncio.current_task()
        try:
            await self._client.async_execute(cleanup_kc=True, **options)
        except CellTimeoutError:
            what = f"{self._recorder.place} ran past {self._timeout_seconds:g} s"
            return Ending("timed_out", self._recorder.describe_open_cell(what))
        except CellExecutionError as error:
            return Ending("failed", self._recorder.describe_error(error.ename, error.evalue))
        except NoSuchKernel as error:
            what = f"it asks for the kernel {error.name!r}, which is not installed here"
            return Ending("invalid", RunFailure(what))
        except DeadKernelError:
            what = f"the kernel died in {self._recorder.place}: {self._client.death}"
            return Ending("died", self._describe_death(what))
        except RuntimeError as error:  # nbclient's own, where the kernel did not start
            return Ending("died", self._describe_death(f"the kernel did not start: {error}"))
        return Ending("passed")

    def _describe_death(self, what: str) -> RunFailure:
        failure = self._recorder.describe_open_cell(what)
        return dataclasses.replace(failure, traceback=self._kernel.read_stderr() or None)


def _choose_environment(source: Source) -> dict[str, str]:
    """The kernel's environment: ours for anybody's notebook; for a lab, a reference run's."""
    environment = dict(os.environ)
    if source.lab is None:
        return environment
    environment["LABKIT_REFERENCE"] = "1"
    environment.pop("MPLBACKEND", None)  # the inline backend, as in JupyterLab
    # Run from a checkout, labkit may not be installed for the kernel to find.
    paths = [PACKAGE_PARENT, environment.get("PYTHONPATH", "")]
    environment["PYTHONPATH"] = os.pathsep.join(path for path in paths if path)
    return environment

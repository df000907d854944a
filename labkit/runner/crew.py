"""Runs notebooks, one or a few at a time, each in its own kernel and in a thread of its own.

The main thread only waits: Ctrl-C comes to it as KeyboardInterrupt, and it stops the others.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor, wait
from typing import Any

from labkit.errors import LabkitError
from labkit.runner.execute import Execution, RunOptions, Watch
from labkit.runner.result import NotebookResult, RunFailure
from labkit.runner.sources import Source, load_notebook

Keep = Callable[[int, NotebookResult, Any], NotebookResult]
Follow = Callable[[int, NotebookResult, Any], None]

# Reading a notebook changes warning filters, which belong to the whole process.
LOADING = threading.Lock()


def keep_nothing(place: int, result: NotebookResult, notebook: Any) -> NotebookResult:
    """The result as it is, and the executed notebook forgotten."""
    return result


def run_notebooks(
    sources: Sequence[Source],
    options: RunOptions,
    *,
    watch: Watch = lambda event: None,
    keep: Keep = keep_nothing,
    follow: Follow = lambda place, result, notebook: None,
    load: Callable[[Source], Any] = load_notebook,
) -> tuple[NotebookResult, ...]:
    """Runs each source in its own kernel; after a failure those not begun are "not_run".

    ``watch`` hears of each cell as it starts, goes on and ends; ``follow`` of each notebook's
    result so far; ``keep`` gets each result with its executed notebook, and may add to it.
    """
    crew = Crew(sources, options, watch=watch, keep=keep, follow=follow, load=load)
    return crew.run()


class Crew:
    """The threads of one run, and whether they are to begin another notebook."""

    def __init__(
        self,
        sources: Sequence[Source],
        options: RunOptions,
        *,
        watch: Watch,
        keep: Keep,
        follow: Follow,
        load: Callable[[Source], Any],
    ) -> None:
        self._sources = sources
        self._options = options
        self._watch, self._keep, self._follow, self._load = watch, keep, follow, load
        limit = options.total_timeout_seconds
        self._deadline = None if limit is None else time.monotonic() + limit
        self._lock = threading.Lock()
        self._running: set[Execution] = set()
        self._no_more = False
        self._interrupted = False

    def run(self) -> tuple[NotebookResult, ...]:
        """Every source's result, in their order."""
        with ThreadPoolExecutor(max(1, self._options.jobs)) as pool:
            futures = [pool.submit(self._run_one, place) for place in range(len(self._sources))]
            try:
                self._wait(futures)
            except BaseException as error:
                self.stop()
                if not isinstance(error, KeyboardInterrupt):
                    raise
        return tuple(future.result() for future in futures)

    def stop(self) -> None:
        """Ends what runs and begins nothing more."""
        with self._lock:
            self._no_more = self._interrupted = True
            running = list(self._running)
        for execution in running:
            execution.stop()

    @staticmethod
    def _wait(futures: list[Future[NotebookResult]]) -> None:
        done, _ = wait(futures, return_when="FIRST_EXCEPTION")
        for future in done:
            future.result()

    def _run_one(self, place: int) -> NotebookResult:
        source = self._sources[place]
        not_run = NotebookResult(source.name, str(source.path), "not_run")
        late = self._deadline is not None and time.monotonic() >= self._deadline
        if self._no_more or late:
            return not_run
        try:
            with LOADING:
                notebook = self._load(source)
        except LabkitError as error:
            what = f"{error.what}: {error.cause}" if error.cause else error.what
            failure = RunFailure(what, kind="invalid")
            result = NotebookResult(source.name, str(source.path), "invalid", error=failure)
        else:
            result = self._execute(place, source, notebook)
        # A file that is no notebook says nothing of the others.
        if result.status not in ("passed", "invalid") and not self._options.keep_going:
            self._no_more = True
        self._follow(place, result, None)
        return result

    def _execute(self, place: int, source: Source, notebook: Any) -> NotebookResult:
        execution = Execution(
            source,
            notebook,
            self._options,
            deadline=self._deadline,
            watch=self._watch,
            follow=lambda result: self._follow(place, result, notebook),
        )
        with self._lock:
            self._running.add(execution)
            interrupted = self._interrupted
        if interrupted:
            execution.stop()
        try:
            result = execution.run()
        finally:
            with self._lock:
                self._running.discard(execution)
        return self._keep(place, result, notebook)

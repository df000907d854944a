"""The schedule of a run: chooses the device, and runs one or several notebooks at a time.

Each notebook has its own kernel and thread. The main thread only waits: Ctrl-C raises
KeyboardInterrupt there, and it stops the other threads.
"""

from __future__ import annotations

import re
import threading
import time
import traceback
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor, wait
from dataclasses import dataclass, field
from typing import Any

from msgspec.structs import replace

from labkit.devices.detect import Detection
from labkit.errors import DeviceMissingError, LabkitError, UsageError
from labkit.notebooks.execute import Execution, RunOptions, Watch
from labkit.notebooks.fences import NO_CODE
from labkit.notebooks.result import MeasuringAccount, NotebookResult, RunFailure
from labkit.notebooks.sources import Source, load_notebook

Keep = Callable[[int, NotebookResult, Any], NotebookResult]
Follow = Callable[[int, NotebookResult, Any], None]
Load = Callable[[Source], Any]

BLOCKS_HINT = (
    "a plain .md runs only the blocks of its own language; a shell's block runs if the header has"
    " jupytext:, or if it is a block of Python that begins with %%bash"
)

# Reading a notebook changes the warning filters, which are global to the process.
LOADING = threading.Lock()


def keep_nothing(place: int, result: NotebookResult, notebook: Any) -> NotebookResult:
    """Returns the result unchanged; the executed notebook is discarded."""
    return result


def follow_nothing(place: int, result: NotebookResult, notebook: Any) -> None:
    """Ignores an intermediate result."""


def run_notebooks(
    sources: Sequence[Source],
    options: RunOptions,
    account: MeasuringAccount | None = None,
    *,
    watch: Watch = lambda event: None,
    keep: Keep = keep_nothing,
    follow: Follow = follow_nothing,
    load: Load = load_notebook,
) -> tuple[NotebookResult, ...]:
    """Runs each source in its own kernel; after a failure, sources not started are "not_run".

    ``watch`` gets an event when a cell starts, while it runs, and when it ends. ``follow`` gets
    each notebook's intermediate result. ``keep`` gets each final result with its executed
    notebook, and returns the result to use. ``account`` sums the measuring time.
    """
    account = account or MeasuringAccount()
    schedule = Schedule(sources, options, account, watch=watch, keep=keep, follow=follow, load=load)
    return schedule.run()


class Schedule:
    """The threads of one run, and whether they may start another notebook."""

    def __init__(
        self,
        sources: Sequence[Source],
        options: RunOptions,
        account: MeasuringAccount,
        *,
        watch: Watch,
        keep: Keep,
        follow: Follow,
        load: Load,
    ) -> None:
        self._sources = sources
        self._options = options
        self._account = account
        self._watch, self._keep, self._follow, self._load = watch, keep, follow, load
        limit = options.total_timeout_seconds
        self._deadline = None if limit is None else time.monotonic() + limit
        self._lock = threading.Lock()
        self._running: set[Execution] = set()
        self._no_more = False
        self._interrupted = False

    def run(self) -> tuple[NotebookResult, ...]:
        """Runs all sources; returns their results in the same order."""
        with ThreadPoolExecutor(max(1, self._options.jobs)) as pool:
            futures = [pool.submit(self._run_one, place) for place in range(len(self._sources))]
            try:
                self._wait(futures)
            except BaseException as error:
                self.stop()
                if not isinstance(error, KeyboardInterrupt):
                    raise
        return refuse_empty(tuple(future.result() for future in futures))

    def stop(self) -> None:
        """Ends the running notebooks and starts no other."""
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
        late = self._deadline is not None and time.monotonic() >= self._deadline
        if self._no_more or late:
            return NotebookResult(source.name, str(source.path), "not_run")
        try:
            result = self._execute(place, source)
        except OSError:
            raise  # an error of the terminal or the machine ends the run
        except Exception as error:
            # An unexpected error of one notebook or kernel does not stop the others.
            failure = explain_failure(error)
            result = NotebookResult(source.name, str(source.path), "invalid", error=failure)
        # An invalid file does not stop the other notebooks.
        if result.status not in ("passed", "invalid") and not self._options.keep_going:
            self._no_more = True
        self._follow(place, result, None)
        return result

    def _execute(self, place: int, source: Source) -> NotebookResult:
        with LOADING:
            notebook = self._load(source)
        execution = Execution(
            source,
            notebook,
            self._options,
            self._account,
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


def refuse_empty(results: tuple[NotebookResult, ...]) -> tuple[NotebookResult, ...]:
    """The results, "invalid" where no notebook of the run has code that runs: nothing has passed.

    Beside others that have some, a page of text passes with a note.
    """
    if any(one.cell_numbers or one.status != "passed" for one in results):
        return results
    return tuple(
        replace(
            one,
            status="invalid",
            notes=tuple(note for note in one.notes if note != NO_CODE),
            error=RunFailure(
                f"{one.path} has no code that runs", kind="invalid", hint=_explain_blocks(one)
            ),
        )
        for one in results
    )


def _explain_blocks(result: NotebookResult) -> str | None:
    """What makes code of a document's blocks, where some are left out; None without any."""
    left = any(note.startswith("not run: ") for note in result.notes)
    return BLOCKS_HINT if left and result.path.endswith(".md") else None


def explain_failure(error: Exception) -> RunFailure:
    """The failure for an error outside the notebook's cells: an invalid file or a defect."""
    if isinstance(error, LabkitError):
        what = f"{error.what}: {error.cause}" if error.cause else error.what
        return RunFailure(what, kind="invalid", hint=error.fix)
    last = "".join(traceback.format_exception(error)[-20:])
    what = f"labkit could not run it: {type(error).__name__}: {error}"
    return RunFailure(what, kind="invalid", name=type(error).__name__, traceback=last)


# A kernel with torch takes 0.4 GiB before the notebook makes its first tensor.
NOTEBOOK_BYTES = 2 * 2**30
THREADS = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS")


def choose_jobs(notebooks: int, cores: int | None, free_bytes: int | None) -> int:
    """How many notebooks to run at once: one for two cores, and 2 GiB of free memory for each.

    >>> choose_jobs(10, cores=16, free_bytes=8 * 2**30)
    4
    """
    by_cores = max(1, (cores or 1) // 2)
    by_memory = notebooks if free_bytes is None else max(1, free_bytes // NOTEBOOK_BYTES)
    return max(1, min(notebooks, by_cores, by_memory))


def share_cores(jobs: int, cores: int | None, environment: Mapping[str, str]) -> dict[str, str]:
    """The threads that each of several kernels may use; empty if the caller has set them.

    Without this, each kernel would start a thread for every core.
    """
    if jobs == 1 or cores is None or any(name in environment for name in THREADS):
        return {}
    return dict.fromkeys(THREADS, str(max(1, cores // jobs)))


VISIBLE = "CUDA_VISIBLE_DEVICES"


@dataclass(frozen=True)
class DeviceChoice:
    """The device as torch names it on this machine (None: unknown), and how kernels get it.

    ``environment`` is set in the kernels; ``asks_cuda`` is True if they can use a GPU.
    """

    name: str | None
    asks_cuda: bool
    environment: Mapping[str, str] = field(default_factory=dict)


def choose_device(asked: str, detection: Detection, environment: Mapping[str, str]) -> DeviceChoice:
    """The device that ``auto``, ``cpu``, ``cuda`` or ``cuda:N`` means on this machine.

    With ``cuda:N`` the notebook sees only that GPU, as cuda:0. Raises DeviceMissingError if the
    device does not exist, UsageError for any other word.
    """
    found = re.fullmatch(r"auto|cpu|cuda(?::(\d+))?", asked)
    if found is None:
        raise UsageError(f"invalid --device {asked!r}", cause="it is auto, cpu, cuda or cuda:N")
    usable = (detection.best or "").startswith("cuda")
    if asked == "auto":
        return DeviceChoice(detection.best, usable)
    if asked == "cpu":
        return DeviceChoice("cpu", False, {VISIBLE: ""})
    if not usable:
        raise DeviceMissingError(
            f"--device {asked}: torch can use no GPU here",
            cause="; ".join(detection.notes) or None,
            fix="labkit devices",
        )
    if found[1] is None:
        return DeviceChoice(detection.best, True)
    return _choose_numbered(int(found[1]), detection, environment)


def _choose_numbered(
    number: int, detection: Detection, environment: Mapping[str, str]
) -> DeviceChoice:
    visible = environment.get(VISIBLE)
    # A MIG instance has no CUDA number of its own. Torch names AMD GPUs cuda too.
    sound = [one for one in detection.devices if not one.trouble and not one.parent_uuid]
    gpus = [one for one in sound if one.kind == "cuda"] or [
        one for one in sound if one.kind == "rocm"
    ]
    # CUDA numbers the GPUs within this list, so a list with one entry selects that GPU.
    entries = [str(index) for index in range(len(gpus))]
    if visible is not None:
        entries = [entry.strip() for entry in visible.split(",")]
    known = [device.torch_name for device in gpus if device.torch_name]
    count = len(known) or len(entries)
    if number >= count:
        raise DeviceMissingError(
            f"--device cuda:{number}: torch has {_count_gpus(count)} here",
            cause=f"{VISIBLE}={visible!r} limits them" if visible is not None else None,
            fix="labkit devices",
        )
    return DeviceChoice(f"cuda:{number}", True, {VISIBLE: entries[number]})


def _count_gpus(count: int) -> str:
    return "1 GPU, cuda:0," if count == 1 else f"{count} GPUs, cuda:0 to cuda:{count - 1},"

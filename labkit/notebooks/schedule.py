"""Which device a run's notebooks get: ``--device`` against what is here.

Runs notebooks, one or a few at a time, each in its own kernel and in a thread of its own.

The main thread only waits: Ctrl-C comes to it as KeyboardInterrupt, and it stops the others.
"""

from __future__ import annotations

import re
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor, wait
from dataclasses import dataclass, field
from typing import Any

from labkit.devices.detect import Detection
from labkit.errors import DeviceMissingError, LabkitError, UsageError
from labkit.notebooks.execute import Execution, RunOptions, Watch
from labkit.notebooks.result import NotebookResult, RunFailure
from labkit.notebooks.sources import Source, load_notebook

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
    crew = Schedule(sources, options, watch=watch, keep=keep, follow=follow, load=load)
    return crew.run()


class Schedule:
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


VISIBLE = "CUDA_VISIBLE_DEVICES"


@dataclass(frozen=True)
class DeviceChoice:
    """The device as torch names it on this machine (None: not knowable), and how it is imposed.

    ``environment`` goes to the kernels; ``asks_cuda`` is True where they can have a GPU.
    """

    name: str | None
    asks_cuda: bool
    environment: Mapping[str, str] = field(default_factory=dict)


def choose_device(asked: str, detection: Detection, environment: Mapping[str, str]) -> DeviceChoice:
    """What ``auto``, ``cpu``, ``cuda`` or ``cuda:N`` comes to here.

    With ``cuda:N`` the notebook sees that one GPU only, and calls it cuda:0. Raises
    DeviceMissingError where the device is not here, UsageError where the word is none of these.
    """
    found = re.fullmatch(r"auto|cpu|cuda(?::(\d+))?", asked)
    if found is None:
        raise UsageError(f"--device {asked} is no device", cause="it is auto, cpu, cuda or cuda:N")
    usable = (detection.best or "").startswith("cuda")
    if asked == "auto":
        return DeviceChoice(detection.best, usable)
    if asked == "cpu":
        return DeviceChoice("cpu", False, {VISIBLE: ""})
    if not usable:
        raise DeviceMissingError(
            f"--device {asked}: there is no GPU that torch can use here",
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
    # A slice of a GPU has no number of its own. Torch calls AMD's GPUs cuda too.
    sound = [one for one in detection.devices if not one.trouble and not one.parent_uuid]
    gpus = [one for one in sound if one.kind == "cuda"] or [
        one for one in sound if one.kind == "rocm"
    ]
    # CUDA counts within the list that is set, so one entry of it means the same GPU alone.
    entries = [str(index) for index in range(len(gpus))]
    if visible is not None:
        entries = [entry.strip() for entry in visible.split(",")]
    known = [device.torch_name for device in gpus if device.torch_name]
    count = len(known) or len(entries)
    if number >= count:
        raise DeviceMissingError(
            f"--device cuda:{number}: torch has {_count_gpus(count)} here",
            cause=f"{VISIBLE}={visible!r} decides which" if visible is not None else None,
            fix="labkit devices",
        )
    return DeviceChoice(f"cuda:{number}", True, {VISIBLE: entries[number]})


def _count_gpus(count: int) -> str:
    return "1 GPU, cuda:0," if count == 1 else f"{count} GPUs, cuda:0 to cuda:{count - 1},"

"""Runs a notebook in several ranks under torchrun: each rank has a kernel of its own.

torchrun (torch.distributed.run) starts a process for each rank on this machine and sets its
environment; that process runs the notebook as any other run does, and its kernel inherits RANK,
WORLD_SIZE and the rest. The ranks run freely: a rank waits for others only in its collectives, as
in a script, so that unequal steps show as they are. When a rank fails, torchrun ends the others.

The ranks report through files in a scratch folder. Which failure was first is decided by time,
except that errors about a lost connection follow from another rank's end.
"""

from __future__ import annotations

import contextlib
import json
import os
import pickle
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
import uuid
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import msgspec
from msgspec.structs import replace

from labkit.errors import EngineError
from labkit.files import write_atomically
from labkit.notebooks.execute import CellEvent, Execution, RunOptions, Watch
from labkit.notebooks.kernel import GUARD, MARK, find_marked
from labkit.notebooks.ranks import is_lost_peer
from labkit.notebooks.result import (
    CellResult,
    MeasuringAccount,
    MeasuringMethods,
    NotebookResult,
    RankPlace,
    RunFailure,
)
from labkit.notebooks.schedule import explain_failure
from labkit.notebooks.sources import Source, load_notebook
from labkit.text import strip_ansi

POLL_SECONDS = 0.2
# What a rank gets to say where it was, and torchrun to end after that.
STOP_SECONDS = 3.0
LOG_CHARACTERS = 2000
LOG_LINES = 12
LABEL = "{name}.rank{rank}"

Keep = Callable[[int, NotebookResult, Any], NotebookResult]
Follow = Callable[[int, NotebookResult, Any], None]


@dataclass(frozen=True)
class RankOptions:
    """torchrun's options: processes on this machine, machines, and where they meet."""

    nproc_per_node: int
    nnodes: int = 1
    rdzv_endpoint: str | None = None

    def list_arguments(self) -> list[str]:
        """The arguments of torch.distributed.run."""
        if self.rdzv_endpoint is None:
            # A container's host name may have no address, so the ranks meet on loopback.
            meeting = ["--standalone", "--local-addr", "127.0.0.1"]
        else:
            meeting = ["--nnodes", str(self.nnodes), "--rdzv-backend", "c10d"]
            meeting += ["--rdzv-endpoint", self.rdzv_endpoint, "--rdzv-id", "labkit"]
        return [*meeting, "--nproc-per-node", str(self.nproc_per_node), "--max-restarts", "0"]


@dataclass(frozen=True)
class _RankPlan:
    """What each rank reads: the source, the options, and the end of the whole run."""

    name: str
    path: str
    is_lab: bool
    options: RunOptions
    deadline: float | None


@dataclass
class _Reports:
    """What the ranks have written into the scratch folder so far."""

    scratch: Path
    _read: dict[Path, int] = field(default_factory=dict)
    _times: dict[Path, int] = field(default_factory=dict)

    def list_events(self) -> Iterator[CellEvent]:
        """The cells that have ended since the last call."""
        for path in sorted(self.scratch.glob("*.events")):
            with path.open("rb") as file:
                file.seek(self._read.get(path, 0))
                for line in file:
                    if line.endswith(b"\n"):
                        self._read[path] = self._read.get(path, 0) + len(line)
                        yield CellEvent(**json.loads(line))

    def list_results(self, *, changed: bool = False) -> list[NotebookResult]:
        """Each rank's last result, by rank; with ``changed``, those that are new."""
        found = []
        for path in self.scratch.glob("*.result"):
            stamp = path.stat().st_mtime_ns
            if not changed or self._times.get(path) != stamp:
                found.append(msgspec.json.decode(path.read_bytes(), type=NotebookResult))
            self._times[path] = stamp
        return sorted(found, key=lambda one: one.rank.rank if one.rank else 0)

    def list_methods(self) -> list[MeasuringMethods]:
        """How each rank has measured."""
        return [
            msgspec.json.decode(path.read_bytes(), type=MeasuringMethods)
            for path in sorted(self.scratch.glob("*.methods"))
        ]

    def read_notebook(self, rank: int) -> Any:
        """The executed notebook of a rank; None if it has not written one."""
        import nbformat

        path = self.scratch / f"{rank}.ipynb"
        return nbformat.read(path, as_version=4) if path.is_file() else None


def run_ranks(
    source: Source,
    options: RunOptions,
    ranks: RankOptions,
    *,
    account: MeasuringAccount | None = None,
    deadline: float | None = None,
    watch: Watch = lambda event: None,
    keep: Keep = lambda place, result, notebook: result,
    follow: Follow = lambda place, result, notebook: None,
    place: int = 0,
) -> tuple[NotebookResult, ...]:
    """The results of this machine's ranks, by rank; ``place`` is that of the first among all.

    Raises UsageError for an invalid notebook, EngineError if torchrun cannot start the ranks.
    """
    notebook = load_notebook(source)
    with tempfile.TemporaryDirectory(prefix="labkit-torchrun-") as folder:
        scratch = Path(folder)
        _write_plan(scratch, source, notebook, options, deadline)
        reports, run = _Reports(scratch), _Torchrun(scratch, ranks, options)
        interrupted = False
        try:
            while run.is_running(POLL_SECONDS):
                _pass_on(reports, watch, follow, place)
        except KeyboardInterrupt:
            interrupted = True
        finally:
            run.close()
        _pass_on(reports, watch, follow, place)
        found = reports.list_results()
        if not found:
            raise _explain_no_ranks(scratch, ranks, interrupted)
        for how in reports.list_methods():
            (account or MeasuringAccount()).note_methods(process=how.process, cuda=how.cuda)
        results = settle_ranks(end_ranks(found, interrupted, _read_log(scratch)))
        return tuple(
            keep(place + number, one, reports.read_notebook(one.rank.rank if one.rank else 0))
            for number, one in enumerate(results)
        )


def _write_plan(
    scratch: Path, source: Source, notebook: Any, options: RunOptions, deadline: float | None
) -> None:
    import nbformat

    nbformat.write(notebook, scratch / "notebook.ipynb")
    plan = _RankPlan(source.name, str(source.path), source.is_lab, options, deadline)
    (scratch / "plan").write_bytes(pickle.dumps(plan))


def _pass_on(reports: _Reports, watch: Watch, follow: Follow, place: int) -> None:
    for event in reports.list_events():
        watch(event)
    for result in reports.list_results(changed=True):
        local = result.rank.local_rank if result.rank else 0
        follow(place + local, result, None)


def _explain_no_ranks(scratch: Path, ranks: RankOptions, interrupted: bool) -> BaseException:
    if interrupted:
        return KeyboardInterrupt()
    lines = _read_log(scratch)
    fix = "labkit doctor"
    if ranks.rdzv_endpoint:
        fix = f"start the same command on all {ranks.nnodes} machines, with {ranks.rdzv_endpoint}"
    return EngineError(
        "torchrun ended before a rank began",
        cause=lines[-1][-LOG_CHARACTERS:] if lines else "it wrote nothing",
        fix=fix,
    )


def _read_log(scratch: Path) -> list[str]:
    """The lines that torchrun and the ranks' processes wrote, without empty ones."""
    log = (scratch / "log").read_text(encoding="utf-8", errors="replace")
    return [line for line in strip_ansi(log).splitlines() if line.strip()]


def end_ranks(
    results: Sequence[NotebookResult], interrupted: bool, log: Sequence[str]
) -> list[NotebookResult]:
    """The final results: a rank that is still "running" was killed, or was interrupted."""
    ended = [_end_unfinished(one, log) if one.status == "running" else one for one in results]
    if not interrupted or any(map(_has_failed, results)):
        return ended
    # Where the ranks end one after the other, a later one loses its connection to an earlier one.
    return [one if one.status == "passed" else _interrupt(one) for one in results]


def _has_failed(result: NotebookResult) -> bool:
    """True if the rank failed by itself: not because it, or another rank, was ended."""
    if result.status == "running":
        return _find_failed_cell(result) is not None
    text = result.error.what if result.error else ""
    return result.status not in ("passed", "stopped", "interrupted") and not is_lost_peer(text)


def _interrupt(result: NotebookResult) -> NotebookResult:
    waits = result.rank.waits if result.rank else None
    failure = RunFailure(f"interrupted in {waits}" if waits else "interrupted", kind="interrupted")
    ended = ("running", "stopped", "failed")
    cells = tuple(
        replace(one, status="interrupted") if one.status in ended else one for one in result.cells
    )
    return replace(result, status="interrupted", error=failure, cells=cells)


def _find_failed_cell(result: NotebookResult) -> CellResult | None:
    return next((one for one in result.cells if one.status == "failed"), None)


def _end_unfinished(result: NotebookResult, log: Sequence[str]) -> NotebookResult:
    """The result of a rank whose process ended before it wrote its last one."""
    lines = ["torchrun's last lines:", *log[-LOG_LINES:]] if log else []
    hint = "\n".join(lines)[:LOG_CHARACTERS] or None
    cell = _find_failed_cell(result)
    if cell:
        what = f"cell {result.cell_numbers[cell.index]} of {len(result.cell_numbers)} failed;"
        what += " the process of this rank was killed before it wrote the error"
        return replace(result, status="failed", error=RunFailure(what, cell.index, hint=hint))
    what = "the process that ran this rank's kernel was killed"
    return replace(result, status="died", error=RunFailure(what, kind="dead_kernel", hint=hint))


def settle_ranks(results: Iterable[NotebookResult]) -> list[NotebookResult]:
    """The results by rank, with the first failure marked, and explained by the other ranks."""
    results = sorted(results, key=lambda one: one.rank.rank if one.rank else 0)
    failed = [one for one in results if one.status not in ("passed", "stopped", "interrupted")]
    if not failed:
        return results
    first = min(failed, key=_order_failure)
    assert first.rank is not None
    others = [one for one in results if one is not first]
    named = [one for one in results if one is not first or first.status == "timed_out"]
    lines = [_say_standing(one) for one in named if one.rank]
    failure = first.error or RunFailure()
    hint = "\n".join(filter(None, [failure.hint, *lines]))
    error = replace(failure, hint=hint if others else None)
    marked = replace(first, rank=replace(first.rank, failed_first=True), error=error)
    return [marked if one is first else one for one in results]


def _order_failure(result: NotebookResult) -> tuple[bool, bool, float]:
    """Causes before what they bring: torchrun kills the other ranks, at times nobody records."""
    text = result.error.what if result.error else ""
    ended = result.rank.ended_at if result.rank else None
    return is_lost_peer(text), ended is None, ended or 0.0


def _say_standing(result: NotebookResult) -> str:
    """Where the rank was at the end: "rank 1 waits in cell 3 of 5, line 2: dist.barrier()"."""
    assert result.rank is not None
    name = f"rank {result.rank.rank}"
    if result.status == "passed":
        return f"{name} has passed all its cells"
    if result.rank.waits:
        return f"{name} was in {result.rank.waits}"
    return f"{name}: {result.error.what if result.error else result.status}"


class _Torchrun:
    """The process of torchrun, in a group of its own, which ends if this process is killed."""

    def __init__(self, scratch: Path, ranks: RankOptions, options: RunOptions) -> None:
        self._mark = MARK + uuid.uuid4().hex
        home = str(Path(__file__).resolve().parents[2])
        path = os.pathsep.join(filter(None, [home, os.environ.get("PYTHONPATH", "")]))
        command = [sys.executable, "-m", "torch.distributed.run", *ranks.list_arguments()]
        command += ["--module", __name__, str(scratch)]
        environment = {**os.environ, **options.environment, self._mark: "1", "PYTHONPATH": path}
        with (scratch / "log").open("wb") as log:
            # Not through labkit.process: the ranks run for as long as the notebook does.
            self._process = subprocess.Popen(
                command,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,
                env=environment,
            )
        self._guard = subprocess.Popen(
            ["sh", "-c", GUARD, "sh", str(self._process.pid), self._mark],
            stdin=subprocess.PIPE,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            start_new_session=True,
        )

    def is_running(self, seconds: float) -> bool:
        """False if it ends within the seconds."""
        try:
            self._process.wait(seconds)
        except subprocess.TimeoutExpired:
            return True
        return False

    def close(self) -> None:
        """Lets the ranks say where they were, then ends every process that is left."""
        if self._process.poll() is None:
            self._process.terminate()
            with contextlib.suppress(subprocess.TimeoutExpired):
                self._process.wait(4 * STOP_SECONDS)
        for _ in range(2):
            for process_id in find_marked(self._mark):
                with contextlib.suppress(ProcessLookupError, PermissionError):
                    os.kill(process_id, signal.SIGKILL)
        self._process.wait()
        self._guard.kill()
        self._guard.communicate()


# What runs in the process of a rank.


class _RankRun:
    """One rank's run of the notebook; SIGTERM, which torchrun sends, stops it."""

    def __init__(self, scratch: Path) -> None:
        import nbformat

        plan: _RankPlan = pickle.loads((scratch / "plan").read_bytes())  # noqa: S301  our own parent's
        self._rank, local = int(os.environ["RANK"]), int(os.environ["LOCAL_RANK"])
        self._scratch, self._label = scratch, LABEL.format(name=plan.name, rank=self._rank)
        size = int(os.environ["WORLD_SIZE"])
        self._place = RankPlace(self._rank, local, size, socket.gethostname())
        self._notebook = nbformat.read(scratch / "notebook.ipynb", as_version=4)
        self._ended_at: float | None = None
        self._asked_to_stop = threading.Event()
        self._done = threading.Event()
        self._result = NotebookResult(self._label, plan.path, "running", rank=self._place)
        make = (lambda: self._notebook) if plan.is_lab else None
        self._account = MeasuringAccount()
        self._execution = Execution(
            Source(self._label, Path(plan.path), make),
            self._notebook,
            plan.options,
            self._account,
            deadline=plan.deadline,
            watch=self._note,
            follow=self._write,
        )

    def run(self) -> int:
        """Runs the notebook and writes its result; 0 if it passed."""
        signal.signal(signal.SIGTERM, lambda *_: self._asked_to_stop.set())
        signal.signal(signal.SIGINT, signal.SIG_IGN)
        thread = threading.Thread(target=self._execute, daemon=True)
        thread.start()
        while not self._done.wait(POLL_SECONDS / 2):
            if self._asked_to_stop.is_set():
                self._stop()
                break
        thread.join()
        result = self._result
        place = replace(self._place, waits=self._execution.waits, ended_at=self._ended_at)
        if result.status == "interrupted":
            failure = RunFailure("ended because another rank failed", kind="interrupted")
            cells = tuple(
                replace(one, status="stopped") if one.status == "interrupted" else one
                for one in result.cells
            )
            result = replace(result, status="stopped", error=failure, cells=cells)
        self._write_notebook()
        how = msgspec.json.encode(self._account.describe().how)
        write_atomically(self._scratch / f"{self._rank}.methods", how)
        self._write(replace(result, rank=place))
        return 0 if result.status == "passed" else 1

    def _execute(self) -> None:
        try:
            self._result = self._execution.run()
        except Exception as error:
            # A defect of labkit, or a full disk: the rank says it, with the cells that have run.
            self._result = replace(self._result, status="invalid", error=explain_failure(error))
        finally:
            self._ended_at = self._ended_at or time.time()
            self._done.set()

    def _stop(self) -> None:
        # The end of this rank's own kernel may be what the other rank's failure follows from.
        if not (self._execution.has_lost_kernel and self._done.wait(STOP_SECONDS)):
            self._execution.stop()

    def _note(self, event: CellEvent) -> None:
        if event.status == "running":
            return
        if event.status != "passed":
            self._ended_at = self._ended_at or time.time()
        with (self._scratch / f"{self._rank}.events").open("a", encoding="utf-8") as file:
            file.write(json.dumps(asdict(event)) + "\n")

    def _write(self, result: NotebookResult) -> None:
        self._result = placed = result if result.rank else replace(result, rank=self._place)
        write_atomically(self._scratch / f"{self._rank}.result", msgspec.json.encode(placed))

    def _write_notebook(self) -> None:
        import nbformat

        data = nbformat.writes(self._notebook).encode("utf-8", "backslashreplace")
        write_atomically(self._scratch / f"{self._rank}.ipynb", data)


if __name__ == "__main__":
    sys.exit(_RankRun(Path(sys.argv[1])).run())

"""The result of a run: a data model that encodes, decodes and defines the JSON schema.

``labkit run --json`` prints a ``RunResult`` and a run folder's ``result.json`` holds one.
``result.schema.json`` beside this file is made from these classes::

    python -m labkit.notebooks.result > labkit/notebooks/result.schema.json

Unknown and unmeasured values are null, never 0. ``read_run`` also reads results of older versions
and other tools: unknown keys are ignored, and missing or mistyped values are unknown.
"""

from __future__ import annotations

import contextlib
import copy
import json
import platform
import threading
import time
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from types import NoneType, UnionType
from typing import TYPE_CHECKING, Annotated, Any, Union, get_args, get_origin

import msgspec
from msgspec import UNSET, Meta, Struct, UnsetType

from labkit import __version__
from labkit.errors import ExitCode, UsageError
from labkit.files import Disk, place_new, read_regular, write_atomically

if TYPE_CHECKING:
    from labkit.devices.detect import Detection

SCHEMA_VERSION = 1
RESULT_NAME = "result.json"
DEFAULT_PARENT = Path("runs")
# The shortest time between two writes while a run is in progress.
WRITE_INTERVAL_SECONDS = 1.0

# MIME types of claims and checks in a notebook's outputs; labkit.lessons.cards writes them.
CLAIM_MIME = "application/vnd.labkit.claim+json"
CHECK_MIME = "application/vnd.labkit.check+json"

# The status words of notebooks and runs, and the exit code of the command for each.
EXIT_CODES = {
    "passed": ExitCode.OK,
    "failed": ExitCode.FAILED,  # a cell raised, a claim does not hold, or a check did not pass
    "died": ExitCode.FAILED,  # the kernel's process ended during a cell, or never started
    "timed_out": ExitCode.TIMEOUT,
    "invalid": ExitCode.USAGE,  # not a notebook, or its kernel is not installed
    "interrupted": ExitCode.INTERRUPTED,
    "stopped": ExitCode.FAILED,  # a rank that was ended because another one failed
    "not_run": ExitCode.OK,  # an earlier notebook failed; that one sets the exit code
    "running": ExitCode.FAILED,  # only in the file of a run that is in progress or was killed
}
CELL_STATUSES = [
    *("passed", "failed", "timed_out", "died", "interrupted"),
    *("skipped", "not_run", "running", "stopped"),
]
FAILURE_KINDS = [
    *("cell", "out_of_memory", "timeout", "dead_kernel"),
    *("interrupted", "invalid", "no_kernel"),
]

# The upper bounds keep foreign numbers printable; infinity is not a measurement.
Count = Annotated[int, Meta(ge=0, le=2**62)]
Seconds = Annotated[float, Meta(ge=0, le=1e15)]
Point = tuple[Seconds, Count | None, Count | None]
Status = Annotated[str, Meta(extra_json_schema={"enum": list(EXIT_CODES)})]
CellStatus = Annotated[str, Meta(extra_json_schema={"enum": CELL_STATUSES})]
FailureKind = Annotated[str, Meta(extra_json_schema={"enum": FAILURE_KINDS})]


class CellMemory(Struct, frozen=True):
    """Resident bytes of the kernel's process before a cell, at its peak, and after it."""

    before_bytes: Count | None = None
    peak_bytes: Count | None = None
    after_bytes: Count | None = None


class CudaMemory(Struct, frozen=True):
    """Bytes that torch's allocator holds on one device before a cell, at its peak, and after it.

    The peak is null if the notebook reads the allocator's peak itself (labkit then must not
    reset it for each cell) and this cell stayed below an earlier one.
    """

    device: str = "cuda"
    before_bytes: Count | None = None
    peak_bytes: Count | None = None
    after_bytes: Count | None = None


class CellResult(Struct, frozen=True):
    """One code cell; seconds are wall time, null for a cell that was cut short."""

    index: Annotated[int, Meta(ge=0, description="Place among all cells, from 0.")] = 0
    status: CellStatus = "unknown"
    seconds: Seconds | None = None
    first_line: str = ""
    raised: Annotated[
        str | None, Meta(description="The exception of a cell that was allowed to raise.")
    ] = None
    memory: CellMemory | None = None
    cuda: tuple[CudaMemory, ...] | None = None
    output_bytes: Count | None = None
    truncated: Annotated[bool, Meta(description="Not all of the output was kept.")] = False

    @property
    def cuda_peak_bytes(self) -> int | None:
        """The highest peak on any one CUDA device, in bytes; None if not measured."""
        return find_highest(memory.peak_bytes for memory in self.cuda or ())

    @property
    def has_run(self) -> bool:
        """True if the cell was started."""
        return self.status not in ("skipped", "not_run")


class ClaimOutcome(Struct, frozen=True):
    """A fact that the notebook states; ``held`` is null if it was skipped."""

    statement: str = ""
    held: bool | None = None
    skipped: Annotated[str | None, Meta(description="The reason.")] = None


class CheckOutcome(Struct, frozen=True):
    """An exercise that the notebook checks, and the verdict's status."""

    name: str = "unnamed"
    status: str = "unknown"


class OutputChange(Struct, frozen=True):
    """An output that differs from the saved one: in which cell, and both as text."""

    cell_index: Count = 0
    saved: str | None = None
    seen: str | None = None


class FailureBalance(Struct, frozen=True):
    """The byte counts in the text of an out-of-memory error."""

    asked_bytes: Count | None = None
    total_bytes: Count | None = None
    free_bytes: Count | None = None
    allocated_bytes: Count | None = None
    cached_bytes: Count | None = None


class RunFailure(Struct, frozen=True):
    """Why a notebook ended early: what happened, in which cell, and what to try."""

    what: str = "it failed; the result does not say why"
    cell_index: Count | None = None
    name: Annotated[str | None, Meta(description="The exception's.")] = None
    source: str | None = None
    traceback: Annotated[
        str | None, Meta(description="Or the last output of a kernel's process that died.")
    ] = None
    kind: FailureKind = "cell"
    hint: Annotated[str | None, Meta(description="What else is known and what to try.")] = None
    balance: FailureBalance | None = None


class RankPlace(Struct, frozen=True):
    """The place of a notebook's run among those of --nproc-per-node, and how it ended."""

    rank: Count = 0
    local_rank: Count = 0
    world_size: Count = 1
    host: str | None = None
    failed_first: Annotated[
        bool, Meta(description="The failure that the other ranks' failures follow from.")
    ] = False
    waits: Annotated[
        str | None, Meta(description="The cell and the line where it was when it was ended.")
    ] = None
    ended_at: Annotated[
        Seconds | None, Meta(description="Seconds since 1970, by this rank's clock.")
    ] = None


class NotebookResult(Struct, frozen=True):
    """One notebook: its status, wall seconds including kernel start and end, and its cells."""

    name: str = "unnamed"
    path: str = ""
    status: Status = "unknown"
    seconds: Seconds | None = None
    executed: Annotated[
        str | None, Meta(description="The executed notebook's file in the run folder.")
    ] = None
    startup_seconds: Annotated[
        Seconds | None, Meta(description="From the beginning to the first cell.")
    ] = None
    cells: tuple[CellResult, ...] = ()
    timeline: Annotated[
        tuple[Point, ...],
        Meta(
            max_length=600,
            description="Seconds since the start, resident bytes of the kernel's process, and"
            " bytes that torch's allocator reserves on all devices.",
        ),
    ] = ()
    claims: tuple[ClaimOutcome, ...] = ()
    checks: tuple[CheckOutcome, ...] = ()
    error: RunFailure | None = None
    kernel: Annotated[str | None, Meta(description="The kernel that ran it, by name.")] = None
    parameters: Annotated[
        dict[str, Any] | None, Meta(description="What -p and --parameters-file set.")
    ] = None
    output_changes: Annotated[
        tuple[OutputChange, ...] | None,
        Meta(description="Of --compare-outputs; null if nothing was compared."),
    ] = None
    notes: tuple[str, ...] = ()
    rank: Annotated[
        RankPlace | None, Meta(description="Of --nproc-per-node; null for a single process.")
    ] = None

    @property
    def peak_bytes(self) -> int | None:
        """The highest process peak of its cells; None if no cell was measured."""
        return find_highest(cell.memory.peak_bytes for cell in self.cells if cell.memory)

    @property
    def cuda_peak_bytes(self) -> int | None:
        """The highest peak of its cells on any one CUDA device; None if none was measured."""
        return find_highest(cell.cuda_peak_bytes for cell in self.cells)

    @property
    def cell_numbers(self) -> dict[int, int]:
        """The number of each cell that runs, from 1, by its index; skipped cells have none."""
        run = (cell.index for cell in self.cells if cell.status != "skipped")
        return {index: number for number, index in enumerate(run, start=1)}

    @property
    def all_held(self) -> bool:
        """True if no claim failed, every check passed, and no compared output changed.

        A skipped claim is not a failure.
        """
        sound = all(check.status == "passed" for check in self.checks) and not self.output_changes
        return sound and not any(claim.held is False for claim in self.claims)


class DeviceName(Struct, frozen=True):
    """A device of the machine."""

    kind: str = "unknown"
    torch_name: str | None = None
    name: str | None = None


class Environment(Struct, frozen=True):
    """The environment of a run: versions and devices."""

    labkit: str | None = None
    python: str | None = None
    platform: str | None = None
    torch: Annotated[str | None, Meta(description="The installed version.")] = None
    best: str | None = None
    device: Annotated[
        str | None, Meta(description="The device of --device, as torch names it on this machine.")
    ] = None
    memory_total_bytes: Annotated[
        Count | None, Meta(description="The machine's memory, or the container's limit.")
    ] = None
    devices: tuple[DeviceName, ...] = ()


class MeasuringMethods(Struct, frozen=True):
    """How peaks were measured. Memory of child processes (compilers, workers) is not counted."""

    process: str | None = None
    cuda: str | None = None


class Measuring(Struct, frozen=True):
    """How the run was measured, and how long measuring took."""

    seconds_per_cell: Annotated[
        Seconds | None, Meta(description="What measuring adds to each cell.")
    ] = None
    samples: Count = 0
    sampling_seconds: Annotated[
        Seconds | None, Meta(description="What the sampling thread took in all.")
    ] = None
    how: MeasuringMethods = MeasuringMethods()


class RunResult(Struct, frozen=True):
    """What labkit run --json prints and a run folder's result.json holds."""

    schema_version: Annotated[int, Meta(extra_json_schema={"const": SCHEMA_VERSION})] = (
        SCHEMA_VERSION
    )
    status: Annotated[
        Status,
        Meta(
            description="Of the first notebook that did not pass; running: the run goes on, or was"
            " killed."
        ),
    ] = "unknown"
    started_at: Annotated[str | None, Meta(description="ISO 8601 with the offset from UTC.")] = None
    seconds: Seconds | None = None
    environment: Environment = Environment()
    measuring: Measuring = Measuring()
    notebooks: tuple[NotebookResult, ...] = ()
    trouble: Annotated[
        str | UnsetType,
        Meta(description="Why the run folder is incomplete; absent if it is complete."),
    ] = UNSET

    @property
    def exit_code(self) -> ExitCode:
        """The exit code that the command ends with."""
        return EXIT_CODES[self.status]

    @property
    def device(self) -> str | None:
        """The device of the run, as torch names it."""
        return self.environment.device or self.environment.best

    def describe(self) -> dict[str, Any]:
        """The result as JSON values."""
        described: dict[str, Any] = msgspec.to_builtins(self)
        return described


def find_highest(values: Iterable[int | None]) -> int | None:
    """The largest known value, None if none is known."""
    return max((value for value in values if value is not None), default=None)


def find_status(notebooks: Iterable[NotebookResult]) -> str:
    """The status of the first notebook that did not pass; "passed" if all did.

    Of several ranks, it is the status of the one that failed first.
    """
    ordered = sorted(notebooks, key=lambda one: not (one.rank and one.rank.failed_first))
    statuses = [notebook.status for notebook in ordered]
    for first in ("running", "interrupted"):
        if first in statuses:
            return first
    return next((status for status in statuses if status != "passed"), "passed")


def group_ranks(notebooks: Iterable[NotebookResult]) -> list[list[NotebookResult]]:
    """The ranks of each notebook that ran in several processes, by rank."""
    groups: dict[str, list[NotebookResult]] = {}
    for one in notebooks:
        if one.rank is not None:
            groups.setdefault(one.path, []).append(one)
    return [sorted(group, key=lambda one: one.rank.rank) for group in groups.values()]  # type: ignore[union-attr]


def list_rank_rows(group: Iterable[NotebookResult]) -> list[tuple[str, list[CellResult | None]]]:
    """Each cell's first line, with its result in every rank; None where a rank has no such cell."""
    ranks = [{cell.index: cell for cell in one.cells} for one in group]
    lines = {cell.index: cell.first_line for cells in ranks for cell in cells.values()}
    return [(lines[index], [cells.get(index) for cells in ranks]) for index in sorted(lines)]


class MeasuringAccount:
    """Sums the measuring time over all notebooks of a run; thread-safe."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._process: str | None = None
        self._cuda: str | None = None
        self._cell_seconds = self._sampling_seconds = 0.0
        self._cells = self._samples = 0

    def add_cell(self) -> None:
        """Counts a cell."""
        with self._lock:
            self._cells += 1

    def add_cell_seconds(self, seconds: float) -> None:
        """Counts time that measuring took before or after a cell."""
        with self._lock:
            self._cell_seconds += seconds

    def add_sample(self, seconds: float) -> None:
        """Counts a sample and the time it took."""
        with self._lock:
            self._samples += 1
            self._sampling_seconds += seconds

    def note_methods(self, *, process: str | None = None, cuda: str | None = None) -> None:
        """Records how peaks are measured; the first call sets each method."""
        with self._lock:
            self._process = self._process or process
            self._cuda = self._cuda or cuda

    def describe(self) -> Measuring:
        """The current sums."""
        with self._lock:
            return Measuring(
                self._cell_seconds / self._cells if self._cells else None,
                self._samples,
                self._sampling_seconds,
                MeasuringMethods(self._process, self._cuda),
            )


def read_environment(detection: Detection, device: str | None) -> Environment:
    """The versions of labkit, Python and torch, the platform, the devices, and the one used.

    ``memory_total_bytes`` is the machine's memory, or the container's limit if that is lower.
    """
    from labkit.host.torch_builds import read_torch_build

    build = read_torch_build()
    cpu = next((device for device in detection.devices if device.kind == "cpu"), None)
    sizes = [size for size in (cpu.limit_bytes, cpu.total_bytes) if size] if cpu else []
    return Environment(
        labkit=__version__,
        python=platform.python_version(),
        platform=platform.platform(),
        torch=build.version if build else None,
        best=detection.best,
        device=device,
        memory_total_bytes=min(sizes, default=None),
        devices=tuple(
            DeviceName(device.kind, device.torch_name, device.name) for device in detection.devices
        ),
    )


class RunAccount:
    """The data of a run in progress, except the results of its notebooks."""

    def __init__(self, environment: Environment) -> None:
        self.environment = environment
        self.measuring = MeasuringAccount()
        self.started_at = datetime.now().astimezone().isoformat(timespec="seconds")
        self._started = time.monotonic()

    def describe(self, notebooks: Iterable[NotebookResult], status: str | None = None) -> RunResult:
        """The run with these notebooks; without ``status``, theirs is used."""
        notebooks = tuple(notebooks)
        return RunResult(
            status=status or find_status(notebooks),
            started_at=self.started_at,
            seconds=time.monotonic() - self._started,
            environment=self.environment,
            measuring=self.measuring.describe(),
            notebooks=notebooks,
        )


# Claims and checks in an executed notebook.


def read_claims(notebook: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Each claim's record in the order shown: statement, held, skipped, expected, seen.

    ``held`` is None if the claim was skipped; ``skipped`` is then the reason.
    """
    return list(_read_records(notebook, CLAIM_MIME))


def read_checks(notebook: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Each check's record in the order shown: exercise, status, message and other keys."""
    return list(_read_records(notebook, CHECK_MIME))


def _read_records(notebook: Mapping[str, Any], mime: str) -> Iterator[dict[str, Any]]:
    for cell in notebook.get("cells", ()):
        for output in cell.get("outputs", ()):
            record = output.get("data", {}).get(mime)
            if isinstance(record, Mapping):
                yield dict(record)


def collect_claims(notebook: Mapping[str, Any]) -> tuple[ClaimOutcome, ...]:
    """The outcomes of the claims that an executed notebook's outputs record."""
    return tuple(
        ClaimOutcome(str(record.get("statement")), record.get("held"), record.get("skipped"))
        for record in read_claims(notebook)
    )


def collect_checks(notebook: Mapping[str, Any]) -> tuple[CheckOutcome, ...]:
    """The outcomes of the checks that an executed notebook's outputs record."""
    return tuple(
        CheckOutcome(str(record.get("exercise")), str(record.get("status")))
        for record in read_checks(notebook)
    )


# The run folder.


class RunFolder:
    """One run's folder, written during the run: ``result.json`` and executed notebooks.

    Each write is atomic, so that a crash keeps the last written state. A failed write does not
    end the run: ``trouble`` keeps the first error.
    """

    def __init__(
        self, asked: Path | None, account: RunAccount, waiting: Iterable[NotebookResult]
    ) -> None:
        self.trouble: OSError | None = None
        self._account = account
        self._results = list(waiting)
        self._lock = threading.Lock()
        self._written = 0.0
        self.path = make_run_folder(asked, self._encode_so_far())

    def follow(self, place: int, result: NotebookResult, notebook: Any = None) -> None:
        """Records a notebook's current result, and the notebook; written within a second."""
        with self._lock:
            self._results[place] = result
            now = time.monotonic()
            if result.status == "running" and now - self._written < WRITE_INTERVAL_SECONDS:
                return
            self._written = now
            # The run is "running" until its end, also between two notebooks.
            self._write(RESULT_NAME, self._encode_so_far())
            if notebook is not None:
                self._write_notebook(result, notebook)

    def keep(self, place: int, result: NotebookResult, notebook: Any) -> NotebookResult:
        """Writes the executed notebook, and returns the result with the name of its file.

        Without a notebook, such as a rank's that ended before it wrote one, there is no file.
        """
        with self._lock:
            if notebook is None or not self._write_notebook(result, notebook):
                return result
        return msgspec.structs.replace(result, executed=f"{result.name}.ipynb")

    def finish(self, run: RunResult) -> None:
        """Writes the result of the whole run."""
        with self._lock:
            self._write(RESULT_NAME, _encode(run))

    def _encode_so_far(self) -> bytes:
        return _encode(self._account.describe(self._results, "running"))

    def _write_notebook(self, result: NotebookResult, notebook: Any) -> bool:
        import nbformat

        # A lone surrogate, which UTF-8 cannot encode, becomes a JSON escape.
        data = nbformat.writes(hide_solutions(notebook)).encode("utf-8", "backslashreplace")
        return self._write(f"{result.name}.ipynb", data)

    def _write(self, name: str, data: bytes) -> bool:
        try:
            write_atomically(self.path / name, data)
        except OSError as error:
            self.trouble = self.trouble or error
            return False
        return True


# In the metadata of a reference notebook's cell: the learner's stub of its solution.
STUB_KEY = "labkit_stub"
SOLUTION_NOTE = "# This cell ran with the reference solution, which is left out here."


def hide_solutions(notebook: Any) -> Any:
    """The notebook with the learner's stub in place of each solution; outputs stay.

    Run folders lie where learners browse. A notebook without solutions is returned as it is.
    """
    if not any(STUB_KEY in cell.get("metadata", {}) for cell in notebook["cells"]):
        return notebook
    shown = copy.copy(notebook)
    shown["cells"] = [_hide_solution(cell) for cell in notebook["cells"]]
    return shown


def _hide_solution(cell: Any) -> Any:
    metadata = dict(cell.get("metadata", {}))
    stub = metadata.pop(STUB_KEY, None)
    if stub is None:
        return cell
    shown = copy.copy(cell)
    shown["metadata"], shown["source"] = metadata, f"{SOLUTION_NOTE}\n{stub}"
    return shown


def _encode(run: RunResult) -> bytes:
    return (json.dumps(run.describe()) + "\n").encode()


def make_run_folder(asked: Path | None, result: bytes, now: datetime | None = None) -> Path:
    """The requested folder, or a new one under ``runs/`` named after the date and time.

    ``result`` becomes its result.json, which marks it as used. Raises UsageError if the folder
    cannot be created or written, or if it already holds a run.
    """
    if asked is not None:
        _claim_folder(asked, f"--output {asked}", result)
        return asked
    stamp = f"{now or datetime.now():%Y-%m-%d-%H%M%S}"
    for number in range(1, 1000):
        path = DEFAULT_PARENT / (stamp if number == 1 else f"{stamp}-{number}")
        # A second run in the same second gets a numbered name.
        with contextlib.suppress(FileExistsError):
            _make_folder(path, f"the run folder {path}", exist_ok=False)
            _claim_folder(path, f"the run folder {path}", result)
            return path
    raise UsageError(f"{DEFAULT_PARENT} has too many runs of {stamp}")


def _make_folder(path: Path, name: str, *, exist_ok: bool) -> None:
    try:
        path.mkdir(parents=True, exist_ok=exist_ok)
    except FileExistsError:
        if not exist_ok:
            raise
        raise UsageError(f"{name} cannot be made", cause="a file has that name") from None
    except OSError as error:
        raise UsageError(f"{name} cannot be made", cause=error.strerror) from error


def _claim_folder(path: Path, name: str, result: bytes) -> None:
    _make_folder(path, name, exist_ok=True)
    try:
        place_new(Disk(), path / RESULT_NAME, result, path)
    except FileExistsError:
        raise UsageError(
            f"{name} already holds a run",
            cause=f"{path / RESULT_NAME} exists",
            fix="choose another --output, or move the old run away",
        ) from None
    except OSError as error:
        raise UsageError(f"{name} cannot be written", cause=error.strerror) from error


# Reading a result, also one of an older version or another tool.


@dataclass(frozen=True)
class SavedRun:
    """A result and the folder from which it was read."""

    folder: Path
    result: RunResult


def read_run(place: Path) -> SavedRun:
    """Reads the run in a folder or a result.json. Raises UsageError if it is not valid."""
    path = place / RESULT_NAME if place.is_dir() else place
    try:
        text = read_regular(path).decode(errors="replace")
        # NaN and Infinity, which Python writes although JSON has no such numbers, are unknown.
        described = json.loads(text, parse_constant=lambda name: None)
    except FileNotFoundError as error:
        raise UsageError(
            f"{path} is not there",
            cause="labkit run writes result.json into its run folder",
            fix="labkit run tensors --output runs/tensors",
        ) from error
    except OSError as error:
        raise UsageError(f"{path} cannot be read", cause=error.strerror) from error
    except (ValueError, RecursionError) as error:
        raise UsageError(f"{path} is not a run's result", cause=str(error)) from error
    return SavedRun(path.parent, parse_run(described, path))


def parse_run(described: Any, path: Path) -> RunResult:
    """The result in ``described``, the parsed content of the file ``path``."""
    notebooks = described.get("notebooks") if isinstance(described, Mapping) else None
    if not isinstance(notebooks, list):
        raise UsageError(f"{path} is not a run's result", cause="it has no list of notebooks")
    version = described.get("schema_version", SCHEMA_VERSION)
    if isinstance(version, int) and version > SCHEMA_VERSION:
        raise UsageError(
            f"{path} has schema version {version}",
            cause=f"a newer labkit wrote it; this one reads up to {SCHEMA_VERSION}",
        )
    notebooks = [_complete(item) for item in notebooks if isinstance(item, Mapping)]
    run: RunResult = fit({**described, "schema_version": 1, "notebooks": notebooks}, RunResult)
    return run


def _complete(notebook: Mapping[str, Any]) -> dict[str, Any]:
    """Adds cell indices and the executed notebook's name to a notebook of an older version."""
    cells = notebook.get("cells")
    known = [cell for cell in cells if isinstance(cell, Mapping)] if isinstance(cells, list) else []
    completed: dict[str, Any] = {"executed": f"{notebook.get('name')}.ipynb", **notebook}
    completed["cells"] = [
        cell if fit(cell.get("index"), Count) is not UNSET else {**cell, "index": place}
        for place, cell in enumerate(known)
    ]
    return completed


def fit(value: Any, kind: Any) -> Any:
    """``value`` as the model's type ``kind``, without the parts that do not fit; UNSET for none.

    >>> fit({"name": "tensors.center", "status": 3}, CheckOutcome)
    CheckOutcome(name='tensors.center', status='unknown')
    """
    if isinstance(value, str):
        value = value.encode("utf-8", "replace").decode()  # replaces lone surrogates
    with contextlib.suppress(msgspec.ValidationError, RecursionError, UnicodeEncodeError):
        return msgspec.convert(value, kind)
    if get_origin(kind) is Annotated:
        kind = get_args(kind)[0]
    arguments = get_args(kind)
    if isinstance(kind, type) and issubclass(kind, Struct):
        return _fit_struct(value, kind) if isinstance(value, Mapping) else UNSET
    if get_origin(kind) is tuple and arguments[1:] == (...,):
        items = (fit(item, arguments[0]) for item in value) if isinstance(value, list) else ()
        return tuple(item for item in items if item is not UNSET)
    if get_origin(kind) in (Union, UnionType):
        options = (fit(value, option) for option in arguments if option is not NoneType)
        return next((option for option in options if option is not UNSET), UNSET)
    return UNSET


def _fit_struct(value: Mapping[str, Any], kind: type[Struct]) -> Any:
    fields = {
        field.name: fit(value[field.name], field.type)
        for field in msgspec.structs.fields(kind)
        if field.name in value
    }
    return kind(**{name: part for name, part in fields.items() if part is not UNSET})


# The JSON schema.


def make_schema(kind: type[Struct] = RunResult, title: str = "labkit run result") -> dict[str, Any]:
    """The JSON schema of labkit's output: every key is required, and no other is allowed."""
    _, parts = msgspec.json.schema_components((kind,), ref_template="#/$defs/{name}")
    for part in parts.values():
        part["additionalProperties"] = False
        part["required"] = [name for name in part["properties"] if name != "trouble"]
        for described in part["properties"].values():
            described.pop("default", None)
            _drop_upper_bounds(described)
    return {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        **parts.pop(kind.__name__),
        "title": title,
        "$defs": parts,
    }


def _drop_upper_bounds(described: Any) -> None:
    """Removes the upper bounds, which apply only to reading."""
    if isinstance(described, dict):
        described.pop("maximum", None)
        described = list(described.values())
    if isinstance(described, list):
        for part in described:
            _drop_upper_bounds(part)


def format_schema() -> str:
    """The text of result.schema.json."""
    return json.dumps(make_schema(), indent=1) + "\n"


if __name__ == "__main__":
    print(format_schema(), end="")

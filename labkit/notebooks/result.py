"""What came of a run: frozen facts, the object that ``labkit run --json`` prints.

``result.schema.json`` beside this file is its JSON Schema.

Where a run ran, in the words of its result: versions and devices, without importing torch.
"""

from __future__ import annotations

import dataclasses
import platform
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from labkit import __version__
from labkit.devices.detect import Detection
from labkit.errors import ExitCode
from labkit.host.torch_builds import read_torch_build
from labkit.lessons.cards import read_checks, read_claims

Point = tuple[float, int | None, int | None]

# The status words of notebooks and runs, and the exit code each one ends the command with.
EXIT_CODES = {
    "passed": ExitCode.OK,
    "failed": ExitCode.FAILED,  # a cell raised, a claim does not hold, a check did not pass
    "died": ExitCode.FAILED,  # the kernel's process ended under a cell, or never started
    "timed_out": ExitCode.TIMEOUT,
    "invalid": ExitCode.USAGE,  # the file is no notebook, or asks for a kernel that is not here
    "interrupted": ExitCode.INTERRUPTED,
    "not_run": ExitCode.OK,  # an earlier notebook failed; that one sets the exit code
    "running": ExitCode.FAILED,  # only in the file of a run that goes on, or that was cut short
}


@dataclass(frozen=True)
class CellMemory:
    """The kernel process's resident bytes before a cell, at its highest, and after it.

    None is "not measured". Of a cell that the kernel died in, the peak is the highest sample.
    """

    before_bytes: int | None
    peak_bytes: int | None
    after_bytes: int | None


@dataclass(frozen=True)
class CudaMemory:
    """What torch's allocator had on one device: bytes before a cell, at the highest, and after.

    The peak is None where the notebook reads the allocator's peak itself, so that it must not be
    reset for each cell, and this cell stayed below an earlier one.
    """

    device: str
    before_bytes: int
    peak_bytes: int | None
    after_bytes: int


@dataclass(frozen=True)
class CellResult:
    """One code cell: its place in the notebook from 0, wall seconds (None: did not end by itself).

    ``status`` is passed, failed, timed_out, died, interrupted, skipped (by its tag), not_run, or
    running while it does. ``raised`` names the exception of a cell that was allowed to raise.
    ``output_bytes`` is what the cell put out; ``truncated`` says that not all of it was kept.
    """

    index: int
    status: str
    seconds: float | None
    first_line: str
    raised: str | None = None
    memory: CellMemory | None = None
    cuda: tuple[CudaMemory, ...] | None = None
    output_bytes: int = 0
    truncated: bool = False


@dataclass(frozen=True)
class ClaimOutcome:
    """A fact the notebook stated; ``held`` is None where it was skipped, for the reason given."""

    statement: str
    held: bool | None
    skipped: str | None


@dataclass(frozen=True)
class CheckOutcome:
    """An exercise the notebook checked, and the verdict's status."""

    name: str
    status: str


@dataclass(frozen=True)
class RunFailure:
    """Why a notebook ended early: what happened, and in which cell, with its source.

    ``kind`` is cell, out_of_memory, timeout, dead_kernel, interrupted, invalid or no_kernel.
    ``name`` is the exception's; ``traceback`` is its text or, of a kernel that died, the last
    that the process wrote. ``hint`` is what else is known and what to try. ``balance`` has the
    bytes that an out-of-memory text names.
    """

    what: str
    cell_index: int | None = None
    name: str | None = None
    source: str | None = None
    traceback: str | None = None
    kind: str = "cell"
    hint: str | None = None
    balance: Mapping[str, int | None] | None = None


@dataclass(frozen=True)
class Measuring:
    """How a notebook was measured, and what that cost in seconds of its own time."""

    process: str | None = None
    cuda: str | None = None
    cell_seconds: float = 0.0
    cells: int = 0
    sampling_seconds: float = 0.0
    samples: int = 0


@dataclass(frozen=True)
class NotebookResult:
    """One notebook's run: status, wall seconds with the kernel's start, and what it showed.

    ``executed`` is its file in the run folder. ``timeline`` is points of seconds since the start,
    resident bytes, and the bytes torch's allocator holds on all devices (None: not asked then).
    """

    name: str
    path: str
    status: str
    seconds: float | None = None
    executed: str | None = None
    startup_seconds: float | None = None
    cells: tuple[CellResult, ...] = ()
    timeline: tuple[Point, ...] = ()
    claims: tuple[ClaimOutcome, ...] = ()
    checks: tuple[CheckOutcome, ...] = ()
    error: RunFailure | None = None
    measuring: Measuring = Measuring()


@dataclass(frozen=True)
class RunResult:
    """A whole run: where and when it ran, and its notebooks in the order they were asked for."""

    environment: Mapping[str, object]
    notebooks: tuple[NotebookResult, ...]
    started_at: str | None = None
    seconds: float | None = None

    @property
    def status(self) -> str:
        """The status of the first notebook that did not pass; "passed" where all did."""
        statuses = [notebook.status for notebook in self.notebooks]
        for above_all in ("running", "interrupted"):
            if above_all in statuses:
                return above_all
        return next((status for status in statuses if status != "passed"), "passed")

    @property
    def exit_code(self) -> ExitCode:
        """The exit code that the command ends with."""
        return EXIT_CODES[self.status]


def describe_run(run: RunResult) -> dict[str, object]:
    """The run as ``--json`` and ``result.json`` have it."""
    return {
        "status": run.status,
        "started_at": run.started_at,
        "seconds": run.seconds,
        "environment": dict(run.environment),
        "measuring": _describe_measuring([notebook.measuring for notebook in run.notebooks]),
        "notebooks": [_describe_notebook(notebook) for notebook in run.notebooks],
    }


def _describe_notebook(notebook: NotebookResult) -> dict[str, object]:
    described = dataclasses.asdict(notebook)
    del described["measuring"]
    return described


def _describe_measuring(parts: list[Measuring]) -> dict[str, object]:
    cells = sum(part.cells for part in parts)
    return {
        "seconds_per_cell": sum(part.cell_seconds for part in parts) / cells if cells else None,
        "samples": sum(part.samples for part in parts),
        "sampling_seconds": sum(part.sampling_seconds for part in parts),
        "how": {
            "process": next((part.process for part in parts if part.process), None),
            "cuda": next((part.cuda for part in parts if part.cuda), None),
        },
    }


def collect_claims(notebook: Mapping[str, Any]) -> tuple[ClaimOutcome, ...]:
    """The claims that an executed notebook's outputs record, in the order they were shown."""
    return tuple(
        ClaimOutcome(str(record.get("statement")), record.get("held"), record.get("skipped"))
        for record in read_claims(notebook)
    )


def collect_checks(notebook: Mapping[str, Any]) -> tuple[CheckOutcome, ...]:
    """The checks that an executed notebook's outputs record, in the order they were shown."""
    return tuple(
        CheckOutcome(str(record.get("exercise")), str(record.get("status")))
        for record in read_checks(notebook)
    )


def all_held(claims: tuple[ClaimOutcome, ...], checks: tuple[CheckOutcome, ...]) -> bool:
    """True where no claim failed (a skipped one did not) and every check passed."""
    return not any(claim.held is False for claim in claims) and all(
        check.status == "passed" for check in checks
    )


def read_environment(detection: Detection, device: str | None) -> dict[str, object]:
    """The versions of labkit, Python and torch, the platform, the devices here, and the one used.

    ``memory_total_bytes`` is what the machine has, or what a container's limit leaves of it.
    """
    build = read_torch_build()
    cpu = next((device for device in detection.devices if device.kind == "cpu"), None)
    sizes = [size for size in (cpu.limit_bytes, cpu.total_bytes) if size] if cpu else []
    return {
        "labkit": __version__,
        "python": platform.python_version(),
        "platform": platform.platform(),
        "torch": build.version if build else None,
        "best": detection.best,
        "device": device,
        "memory_total_bytes": min(sizes, default=None),
        "devices": [
            {"kind": device.kind, "torch_name": device.torch_name, "name": device.name}
            for device in detection.devices
        ],
    }

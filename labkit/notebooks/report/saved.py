"""Reads a run back from its result.json, whoever wrote it and whenever: unknown stays None."""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from labkit.errors import UsageError

SCHEMA_VERSION = 1
RESULT_NAME = "result.json"
KNOWN_OF_FAILURE = ("what", "hint", "kind", "cell_index", "name", "source", "traceback")


@dataclass(frozen=True)
class Memory:
    """Bytes at one place ("process" or "cuda:0") before, at most during, and after a cell."""

    place: str
    before_bytes: int | None
    peak_bytes: int | None
    after_bytes: int | None


@dataclass(frozen=True)
class Cell:
    """One code cell: ``index`` counts all cells from 0, ``number`` the cells to run from 1.

    ``number`` is None for a cell that its tag skips; ``memory`` and ``cuda`` are None and empty
    where nothing was measured. ``raised`` names the exception of a cell that may raise.
    """

    index: int
    number: int | None
    status: str
    seconds: float | None
    first_line: str
    memory: Memory | None = None
    cuda: tuple[Memory, ...] = ()
    output_bytes: int | None = None
    truncated: bool = False
    raised: str | None = None


@dataclass(frozen=True)
class Claim:
    """A stated fact; ``held`` is None where it was skipped, for the reason given."""

    statement: str
    held: bool | None
    skipped: str | None


@dataclass(frozen=True)
class Check:
    """An exercise that was checked, and the verdict's status."""

    name: str
    status: str


@dataclass(frozen=True)
class Failure:
    """Why a notebook ended early, and what to try (``hint``).

    ``details`` is whatever else its kind of failure recorded, as the balance of a full GPU.
    """

    what: str
    hint: str | None = None
    kind: str | None = None
    cell_index: int | None = None
    source: str | None = None
    traceback: str | None = None
    details: Mapping[str, object] = field(default_factory=dict)


@dataclass(frozen=True)
class Moment:
    """Bytes at one moment of a notebook's run, in seconds since its start."""

    seconds: float
    resident_bytes: int | None
    cuda_bytes: int | None


@dataclass(frozen=True)
class Notebook:
    """One notebook of a run; ``executed`` is its file in the run folder, None where not kept."""

    name: str
    path: str
    status: str
    seconds: float | None = None
    startup_seconds: float | None = None
    executed: str | None = None
    cells: tuple[Cell, ...] = ()
    timeline: tuple[Moment, ...] = ()
    claims: tuple[Claim, ...] = ()
    checks: tuple[Check, ...] = ()
    failure: Failure | None = None

    @property
    def peak_bytes(self) -> int | None:
        """The highest process peak of its cells; None where no cell was measured."""
        return find_highest(cell.memory.peak_bytes for cell in self.cells if cell.memory)

    @property
    def cuda_peak_bytes(self) -> int | None:
        """The highest peak of its cells on any one CUDA device; None where none was measured."""
        return find_highest(cell_cuda_peak(cell) for cell in self.cells)


@dataclass(frozen=True)
class Run:
    """A run as its folder has it: where and when it ran, how it measured, what came of it."""

    folder: Path
    status: str
    started_at: str | None
    seconds: float | None
    environment: Mapping[str, object]
    measuring: Mapping[str, object]
    notebooks: tuple[Notebook, ...]

    @property
    def device(self) -> str | None:
        """The device it ran on, as torch names it."""
        device = self.environment.get("device") or self.environment.get("best")
        if isinstance(device, Mapping):
            device = device.get("torch_name") or device.get("name")
        return _text(device)


def read_run(place: Path) -> Run:
    """The run in a folder or in a result.json; UsageError says what is wrong with it."""
    path = place / RESULT_NAME if place.is_dir() else place
    try:
        described = json.loads(path.read_text(encoding="utf-8", errors="replace"))
    except FileNotFoundError as error:
        raise UsageError(
            f"{path} is not there",
            cause="a run folder is what labkit run --output made: it has a result.json",
            fix="labkit run tensors --output runs/tensors",
        ) from error
    except OSError as error:
        raise UsageError(f"{path} cannot be read", cause=str(error)) from error
    except (ValueError, RecursionError) as error:
        raise UsageError(f"{path} is not a run's result", cause=str(error)) from error
    return parse_run(described, path)


def parse_run(described: object, path: Path) -> Run:
    """The run that ``described``, the object of the file ``path``, tells of."""
    result = _mapping(described)
    version = result.get("schema_version", SCHEMA_VERSION)
    if not isinstance(result.get("notebooks"), list):
        raise UsageError(f"{path} is not a run's result", cause="it has no list of notebooks")
    if isinstance(version, int) and version > SCHEMA_VERSION:
        raise UsageError(
            f"{path} has schema version {version}",
            cause=f"a newer labkit wrote it; this one reads up to {SCHEMA_VERSION}",
        )
    return Run(
        folder=path.parent,
        status=_text(result.get("status")) or "unknown",
        started_at=_text(result.get("started_at")),
        seconds=_number(result.get("seconds")),
        environment=_mapping(result.get("environment")),
        measuring=_mapping(result.get("measuring")),
        notebooks=tuple(_parse_notebook(item) for item in _mappings(result["notebooks"])),
    )


def cell_cuda_peak(cell: Cell) -> int | None:
    """The cell's highest peak on any one CUDA device, in bytes; None where not measured."""
    return find_highest(memory.peak_bytes for memory in cell.cuda)


def find_highest(values: Iterable[int | None]) -> int | None:
    """The largest known value, None where none is known."""
    return max((value for value in values if value is not None), default=None)


def _parse_notebook(described: Mapping[str, Any]) -> Notebook:
    name = _text(described.get("name")) or "unnamed"
    return Notebook(
        name=name,
        path=_text(described.get("path")) or "",
        status=_text(described.get("status")) or "unknown",
        seconds=_number(described.get("seconds")),
        startup_seconds=_number(described.get("startup_seconds")),
        executed=_text(described.get("executed", f"{name}.ipynb")),
        cells=_parse_cells(_mappings(described.get("cells"))),
        timeline=_parse_timeline(described.get("timeline")),
        claims=tuple(_parse_claim(item) for item in _mappings(described.get("claims"))),
        checks=tuple(
            Check(_text(item.get("name")) or "unnamed", _text(item.get("status")) or "unknown")
            for item in _mappings(described.get("checks"))
        ),
        failure=_parse_failure(described.get("error")),
    )


def _parse_cells(described: list[Mapping[str, Any]]) -> tuple[Cell, ...]:
    cells, number = [], 0
    for place, item in enumerate(described):
        status = _text(item.get("status")) or "unknown"
        number += status != "skipped"
        index = _count(item.get("index"))
        memory = item.get("memory")
        cells.append(
            Cell(
                index=place if index is None else index,
                number=None if status == "skipped" else number,
                status=status,
                seconds=_number(item.get("seconds")),
                first_line=_text(item.get("first_line")) or "",
                memory=_parse_memory("process", memory) if isinstance(memory, Mapping) else None,
                cuda=tuple(
                    _parse_memory(_text(one.get("device")) or "cuda", one)
                    for one in _mappings(item.get("cuda"))
                ),
                output_bytes=_count(item.get("output_bytes")),
                truncated=item.get("truncated") is True,
                raised=_text(item.get("raised")),
            )
        )
    return tuple(cells)


def _parse_memory(place: str, described: Mapping[str, Any]) -> Memory:
    return Memory(
        place,
        _count(described.get("before_bytes")),
        _count(described.get("peak_bytes")),
        _count(described.get("after_bytes")),
    )


def _parse_timeline(described: object) -> tuple[Moment, ...]:
    moments = []
    for item in described if isinstance(described, list) else ():
        if isinstance(item, list) and item and _number(item[0]) is not None:
            seconds, resident, cuda = (*item, None, None)[:3]
            moments.append(Moment(float(seconds), _count(resident), _count(cuda)))
    return tuple(moments)


def _parse_claim(described: Mapping[str, Any]) -> Claim:
    held = described.get("held")
    return Claim(
        _text(described.get("statement")) or "",
        held if isinstance(held, bool) else None,
        _text(described.get("skipped")),
    )


def _parse_failure(described: object) -> Failure | None:
    if not isinstance(described, Mapping):
        return None
    return Failure(
        what=_text(described.get("what")) or "it failed; the result does not say why",
        hint=_text(described.get("hint")),
        kind=_text(described.get("kind")),
        cell_index=_count(described.get("cell_index")),
        source=_text(described.get("source")),
        traceback=_text(described.get("traceback")),
        details={
            str(key): value
            for key, value in described.items()
            if key not in KNOWN_OF_FAILURE and value is not None
        },
    )


def _mapping(value: object) -> Mapping[str, Any]:
    return value if isinstance(value, Mapping) else {}


def _mappings(value: object) -> list[Mapping[str, Any]]:
    return [item for item in value if isinstance(item, Mapping)] if isinstance(value, list) else []


def _text(value: object) -> str | None:
    return value if isinstance(value, str) and value else None


def _number(value: object) -> float | None:
    if isinstance(value, bool) or not isinstance(value, int | float):
        return None
    return float(value) if math.isfinite(value) else None


def _count(value: object) -> int | None:
    number = _number(value)
    return None if number is None or number < 0 else int(number)

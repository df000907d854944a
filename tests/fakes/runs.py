"""Runs that never ran: results and executed notebooks, made where a test wants them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

MIB = 2**20


def make_cell(index: int, status: str = "passed", **facts: Any) -> dict[str, Any]:
    """A cell of a result as ``labkit run`` writes it on a machine without CUDA."""
    return {
        "index": index,
        "status": status,
        "seconds": 0.25,
        "first_line": f"x = {index}",
        "raised": None,
        "memory": {
            "before_bytes": 100 * MIB,
            "peak_bytes": 300 * MIB,
            "after_bytes": 120 * MIB,
        },
        "cuda": None,
        "output_bytes": 2048,
        "truncated": False,
        **facts,
    }


def make_notebook(name: str = "tensors", status: str = "passed", **facts: Any) -> dict[str, Any]:
    """A notebook of a result: two cells, a claim and a check that held, unless told otherwise."""
    return {
        "name": name,
        "path": f"labs/{name}/lesson.py",
        "status": status,
        "seconds": 4.0,
        "executed": f"{name}.ipynb",
        "startup_seconds": 0.75,
        "cells": [make_cell(1), make_cell(3)],
        "timeline": [[0.5, 100 * MIB, None], [1.0, 300 * MIB, None], [2.0, 120 * MIB, None]],
        "claims": [{"statement": "two and two make four", "held": True, "skipped": None}],
        "checks": [{"name": f"{name}.center", "status": "passed"}],
        "error": None,
        **facts,
    }


def make_result(*notebooks: dict[str, Any], **facts: Any) -> dict[str, Any]:
    """A whole result of the notebooks given (one that passed where none is)."""
    return {
        "schema_version": 1,
        "status": "passed",
        "started_at": "2026-11-23T06:10:12+00:00",
        "seconds": 12.5,
        "environment": {
            "labkit": "0.1.0",
            "python": "3.12.1",
            "platform": "Linux-6.8",
            "torch": "2.13.0+cpu",
            "best": "cpu",
            "device": "cpu",
            "memory_total_bytes": 8 * 2**30,
            "devices": [{"kind": "cpu", "torch_name": "cpu", "name": "AMD EPYC"}],
        },
        "measuring": {
            "seconds_per_cell": 0.002,
            "how": {"process": "the kernel's high-water mark", "cuda": None},
        },
        "notebooks": list(notebooks or [make_notebook()]),
        **facts,
    }


def write_run(
    folder: Path, result: dict[str, Any], executed: dict[str, list[dict[str, Any]]] | None = None
) -> Path:
    """Writes a run folder with its result and executed notebooks (name to cells); returns it."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "result.json").write_text(json.dumps(result), encoding="utf-8")
    for name, cells in (executed or {}).items():
        notebook = {"nbformat": 4, "nbformat_minor": 5, "metadata": {}, "cells": cells}
        (folder / name).write_text(json.dumps(notebook), encoding="utf-8")
    return folder


def code(source: str, *outputs: dict[str, Any]) -> dict[str, Any]:
    """An executed code cell."""
    return {"cell_type": "code", "source": source, "metadata": {}, "outputs": list(outputs)}


def markdown(source: str) -> dict[str, Any]:
    """A markdown cell."""
    return {"cell_type": "markdown", "source": source, "metadata": {}}


def shows(metadata: dict[str, Any] | None = None, **data: Any) -> dict[str, Any]:
    """A displayed output; the keyword text_html is the MIME type text/html, and so on."""
    types = {
        name.replace("_", "/", 1).replace("svg", "svg+xml"): text for name, text in data.items()
    }
    return {"output_type": "display_data", "data": types, "metadata": metadata or {}}


def prints(text: str, name: str = "stdout") -> dict[str, Any]:
    """A piece of text on a stream."""
    return {"output_type": "stream", "name": name, "text": text}

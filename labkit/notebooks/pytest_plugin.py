"""``pytest --labkit``: collects notebooks as tests, each run by labkit in a fresh kernel.

pytest loads this module in every session, so it imports nothing of labkit until it is used.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    from labkit.notebooks.result import NotebookResult


def pytest_addoption(parser: pytest.Parser) -> None:
    """Adds the options."""
    group = parser.getgroup("labkit", "notebooks run by labkit")
    group.addoption("--labkit", action="store_true", help="run .ipynb files as tests")
    group.addoption(
        "--labkit-timeout",
        type=float,
        default=600.0,
        metavar="SECONDS",
        help="time limit for a single cell (default: 600)",
    )
    group.addoption(
        "--labkit-compare-outputs",
        type=float,
        nargs="?",
        const=1e-6,
        metavar="TOLERANCE",
        help="also compare with the saved outputs; numbers may differ by this part (1e-6)",
    )


def pytest_collect_file(file_path: Path, parent: pytest.Collector) -> pytest.Collector | None:
    """A collector for each notebook, with ``--labkit``; Jupyter's checkpoints are left out."""
    wanted = parent.config.getoption("--labkit") and file_path.suffix == ".ipynb"
    if not wanted or ".ipynb_checkpoints" in file_path.parts:
        return None
    return NotebookFile.from_parent(parent, path=file_path)


class NotebookFile(pytest.File):
    """A notebook's file; it has one test."""

    def collect(self) -> Iterator[pytest.Item]:
        """The test that runs it."""
        yield NotebookItem.from_parent(self, name=self.path.stem)


class NotebookItem(pytest.Item):
    """Runs a notebook: every cell must run, every claim hold, every check pass."""

    def runtest(self) -> None:
        """Runs it. Raises NotebookFailed if it did not pass."""
        from labkit.notebooks.execute import RunOptions
        from labkit.notebooks.schedule import run_notebooks
        from labkit.notebooks.sources import Source

        options = RunOptions(
            timeout_seconds=self.config.getoption("--labkit-timeout"),
            tolerance=self.config.getoption("--labkit-compare-outputs"),
        )
        (result,) = run_notebooks([Source(self.name, self.path)], options)
        if result.status == "interrupted":
            raise KeyboardInterrupt
        if result.status != "passed":
            raise NotebookFailed(result)

    def repr_failure(self, excinfo: pytest.ExceptionInfo[BaseException], style: Any = None) -> Any:
        """The summary that ``labkit run`` prints."""
        if not isinstance(excinfo.value, NotebookFailed):
            return super().repr_failure(excinfo, style)
        from labkit.notebooks.summary import format_summary

        return format_summary([excinfo.value.result])

    def reportinfo(self) -> tuple[Path, int | None, str]:
        """The file and the test's name in reports."""
        return self.path, None, f"notebook {self.name}"


class NotebookFailed(Exception):
    """A notebook that did not pass, with its result."""

    def __init__(self, result: NotebookResult) -> None:
        super().__init__(f"{result.name}: {result.status}")
        self.result = result

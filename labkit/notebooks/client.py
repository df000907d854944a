"""nbclient with its outputs bounded and its ends certain; cells and failures are nbclient's own.

Runs a notebook's cells in a fresh kernel, going on after errors, for checks and the gate.
"""

from __future__ import annotations

import asyncio
import atexit
import json
import math
import os
import subprocess
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from nbclient import NotebookClient
from nbclient.exceptions import CellTimeoutError, DeadKernelError

from labkit.errors import LabkitError
from labkit.notebooks.kernel import explain_death
from labkit.notebooks.output_limits import OutputLimit, shorten

# A reply can overtake its cell's output; nbclient waits 4 s for the rest, a flood can take longer.
IOPUB_SECONDS = 60


class Client(NotebookClient):  # type: ignore[misc]
    """One notebook's execution; ``on_cut_short`` is called while the kernel may still be there."""

    def __init__(self, notebook: Any, on_cut_short: Callable[[], None], **options: Any) -> None:
        super().__init__(notebook, iopub_timeout=IOPUB_SECONDS, **options)
        self.limit = OutputLimit()
        self.death = "it is gone"
        self._on_cut_short = on_cut_short

    async def async_execute_cell(
        self, cell: Any, cell_index: int, *rest: Any, **options: Any
    ) -> Any:
        """Executes the cell; past its time, dead or cancelled, the kernel is killed at once.

        nbclient would ask it politely to stop, and wait for one that cannot listen.
        """
        self.limit.start_cell()
        try:
            return await super().async_execute_cell(cell, cell_index, *rest, **options)
        except (CellTimeoutError, DeadKernelError, asyncio.CancelledError) as error:
            self.shutdown_kernel = "immediate"
            self.limit.finish_cell()
            self._on_cut_short()
            if isinstance(error, DeadKernelError):
                self.death = await explain_death(self.km)
            raise

    def output(self, outs: list[Any], msg: Any, display_id: str | None, cell_index: int) -> Any:
        """Takes a message in as nbclient does, within the limits."""
        if self.output_hook_stack[msg["parent_header"].get("msg_id")]:
            return super().output(outs, msg, display_id, cell_index)  # an Output widget's
        if self.clear_before_next_output:
            self.limit.clear()
        content = msg["content"]
        if msg["msg_type"] != "stream":
            self.limit.bound_content(content)
            return super().output(outs, msg, display_id, cell_index)
        content["text"], rest = self.limit.take_text(content["name"], content["text"])
        kept = super().output(outs, msg, display_id, cell_index) if content["text"] else None
        if rest is not None:
            outs.append(rest)
        return kept

    def clear_output(self, outs: list[Any], msg: Any, cell_index: int) -> None:
        """Clears as nbclient does; what was cleared counts no longer."""
        super().clear_output(outs, msg, cell_index)
        if not outs:
            self.limit.clear()

    async def _check_raise_for_error(self, cell: Any, cell_index: int, exec_reply: Any) -> None:
        if exec_reply is not None and exec_reply["content"]["status"] == "error":
            content = exec_reply["content"]
            content["evalue"] = shorten(str(content.get("evalue", "")))
            content["traceback"] = [shorten(str(line)) for line in content.get("traceback", ())]
        await super()._check_raise_for_error(cell, cell_index, exec_reply)


OnCell = Callable[[int, int], None]


def run_cells(
    notebook: Mapping[str, Any],
    folder: Path,
    environment: Mapping[str, str],
    *,
    timeout_seconds: float,
    on_cell: OnCell | None = None,
) -> Any:
    """A copy of the notebook with the outputs of a fresh run in ``folder``.

    A cell that raises does not stop the run, and one that takes longer than the limit is
    interrupted. ``on_cell`` is told the number of each cell as it starts, and how many there are.
    """
    import nbformat
    from nbclient import NotebookClient

    # Through text, because a file's sources may be lists of lines.
    copy = nbformat.v4.reads(json.dumps(notebook))
    for cell in copy.cells:
        if cell.cell_type == "code":
            cell.outputs, cell.execution_count = [], None
    started = 0

    def tell(cell: Any, cell_index: int) -> None:
        nonlocal started
        started = cell_index + 1
        if on_cell:
            on_cell(started, len(copy.cells))

    client = NotebookClient(
        copy,
        resources={"metadata": {"path": str(folder)}},
        allow_errors=True,
        timeout=math.ceil(timeout_seconds),  # whole seconds; 0 would be no limit
        interrupt_on_timeout=True,
        on_cell_start=tell,
    )
    client.km = _own_kernel()  # set here, and not above, so that the client ends it as its own
    # The process's own streams are kept off ours; what cells print comes as outputs.
    quiet = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
    try:
        client.execute(env=dict(environment), **quiet)
    except (RuntimeError, AssertionError) as error:
        # nbclient would clean up at exit a second time, and fails at it.
        atexit.unregister(client._cleanup_kernel)
        # It takes Ctrl-C for itself: it ends the kernel, and then reports it dead.
        if getattr(client, "_async_cleanup_kernel_future", None) is not None:
            raise KeyboardInterrupt from error
        raise _dead_kernel(started, len(copy.cells), error) from error
    return copy


def kernel_environment(*, reference: bool, workspace: Path | None) -> dict[str, str]:
    """The environment of a kernel that finds this labkit, and the workspace if there is one."""
    environment = {
        key: value
        for key, value in os.environ.items()
        if key not in ("LABKIT_REFERENCE", "LABKIT_WORKSPACE")
    }
    if reference:
        environment["LABKIT_REFERENCE"] = "1"
    if workspace:
        environment["LABKIT_WORKSPACE"] = str(workspace)
    home = Path(__file__).resolve().parents[2]
    # An installed labkit is found anyway; putting site-packages first could hide the library.
    if home.name not in ("site-packages", "dist-packages"):
        paths = [str(home), environment.get("PYTHONPATH", "")]
        environment["PYTHONPATH"] = os.pathsep.join(path for path in paths if path)
    return environment


def cell_error(cell: Mapping[str, Any]) -> str | None:
    """The error that ended the cell, in one line; None where it ran through."""
    for output in cell.get("outputs", ()):
        if output.get("output_type") == "error":
            text = str(output.get("evalue", "")).strip().splitlines()
            return f"{output.get('ename')}: {text[0] if text else ''}".rstrip(": ")
    return None


def _dead_kernel(cell: int, cells: int, error: Exception) -> LabkitError:
    if not cell:
        return LabkitError("the kernel did not start", cause=str(error), fix="labkit check --debug")
    return LabkitError(
        f"the kernel died in cell {cell} of {cells}",
        cause="the cell ended its own process, or the machine ran out of memory",
        fix="run the notebook in JupyterLab up to that cell, and watch its memory",
    )


def _own_kernel() -> Any:
    """The kernel of this very Python, whatever was registered under its name."""
    from jupyter_client import AsyncKernelManager
    from jupyter_client.kernelspec import NATIVE_KERNEL_NAME, KernelSpecManager

    manager = AsyncKernelManager(kernel_name=NATIVE_KERNEL_NAME)
    manager.kernel_spec_manager = KernelSpecManager(kernel_dirs=[])
    return manager

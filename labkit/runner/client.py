"""nbclient with its outputs bounded and its ends certain; cells and failures are nbclient's own."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

from nbclient import NotebookClient
from nbclient.exceptions import CellTimeoutError, DeadKernelError

from labkit.runner.floods import OutputLimit, shorten
from labkit.runner.kernel import explain_death

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

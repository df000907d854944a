"""Reads the peaks of torch's CUDA allocator in a kernel, without changing the kernel's state.

A silent request evaluates one expression after a cell. It imports nothing, creates no CUDA context,
empties no cache and defines no name. It returns None if the notebook has not imported torch or
has not used CUDA.
"""

from __future__ import annotations

import ast
import asyncio
import re
from collections.abc import Mapping
from typing import Any, NamedTuple

from labkit.notebooks.result import CudaMemory

KEY = "labkit"
TIMEOUT_SECONDS = 10.0
# After a cell that failed, ipykernel answers what is already in its queue with "aborted".
ATTEMPTS = 5
PAUSE_SECONDS = 0.02

EXPRESSION = (
    "(lambda torch: None if torch is None or not hasattr(torch, 'cuda')"
    " or not torch.cuda.is_initialized() else [(index, torch.cuda.memory_allocated(index),"
    " torch.cuda.max_memory_allocated(index), torch.cuda.memory_reserved(index),"
    " {reset})[:4] for index in range(torch.cuda.device_count())])"
    "(__import__('sys').modules.get('torch'))"
)
RESET = "torch.cuda.reset_peak_memory_stats(index)"

# If the notebook reads the allocator's statistics itself, the probe must not reset them. The same
# holds if labkit measures in the kernel, because a `with` block can stay open across cells.
READS_PEAKS = re.compile(
    r"max_memory_|memory_stats|memory_summary|reset_peak|reset_max|track_memory|%memory"
)


class DeviceState(NamedTuple):
    """One device's allocator: bytes allocated, the peak since the reset, bytes reserved."""

    number: int
    allocated_bytes: int
    peak_bytes: int
    reserved_bytes: int


class CudaProbe:
    """Queries a kernel after each cell, and computes the cell's memory from two replies."""

    def __init__(self, notebook: Any) -> None:
        sources = "\n".join(str(cell.source) for cell in notebook.cells)
        self._resets = READS_PEAKS.search(sources) is None
        self._last: dict[int, DeviceState] = {}
        self._silent = False

    async def ask(self, client: Any) -> tuple[DeviceState, ...]:
        """Every device's state in the client's kernel; empty if CUDA is not in use."""
        if self._silent:
            return ()
        expression = EXPRESSION.format(reset=RESET if self._resets else "None")
        content = await ask_kernel(client, expression)
        if content is None:
            # The kernel did not reply, so it is not queried again.
            self._silent = True
            return ()
        return read_answer(content)

    def describe_cell(self, states: tuple[DeviceState, ...]) -> tuple[CudaMemory, ...]:
        """The memory of the cell that ended with these states, for each device that it used."""
        shares = tuple(
            self._compare(state)
            for state in states
            if state.peak_bytes or state.number in self._last
        )
        self._last = {state.number: state for state in states}
        return shares

    def _compare(self, state: DeviceState) -> CudaMemory:
        last = self._last.get(state.number)
        before = last.allocated_bytes if last else 0
        peak: int | None = max(state.peak_bytes, before, state.allocated_bytes)
        if not self._resets and last and state.peak_bytes <= last.peak_bytes:
            peak = None
        return CudaMemory(f"cuda:{state.number}", before, peak, state.allocated_bytes)


def read_answer(content: Mapping[str, Any]) -> tuple[DeviceState, ...]:
    """The states in an execute_reply's content; empty if it has none."""
    answer = content.get("user_expressions", {}).get(KEY, {})
    text = answer.get("data", {}).get("text/plain", "None")
    try:
        rows = ast.literal_eval(text)
        return tuple(DeviceState(*map(int, row)) for row in rows or ())
    except (ValueError, SyntaxError, TypeError):
        return ()  # the notebook changed the repr of lists


async def ask_kernel(client: Any, expression: str) -> Mapping[str, Any] | None:
    """The reply to one expression, evaluated silently; None without a reply."""
    try:
        for _ in range(ATTEMPTS):
            content = await asyncio.wait_for(_evaluate(client, expression), TIMEOUT_SECONDS)
            if content.get("status") != "aborted":
                return content
            await asyncio.sleep(PAUSE_SECONDS)
    except asyncio.TimeoutError:
        return None
    return {}


async def _evaluate(client: Any, expression: str) -> Mapping[str, Any]:
    request = client.kc.execute(
        "",
        silent=True,
        store_history=False,
        user_expressions={KEY: expression},
        allow_stdin=False,
        stop_on_error=False,
    )
    reply = await client.async_wait_for_reply(request)
    return reply["content"] if reply else {}

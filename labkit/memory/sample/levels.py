"""Reads the balance of every device repeatedly, at low cost: constant facts are read once.

NVML stays open between two readings. Only the counters of torch's allocators are read, because a
call into CUDA from another thread can break a CUDA graph capture.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

from labkit.devices.nvml import Gate, MemoryAnswer, NvmlError, ask_gpu_memory, open_gate, strip_kind
from labkit.memory.balance.model import Balance, Snapshot, name_device
from labkit.memory.balance.read import (
    AllocatorFacts,
    MachineMemory,
    Observer,
    count_allocated,
    find_started_torch,
    join_memory,
    may_use_cuda,
    read_free_bytes,
    read_machine_memory,
    read_properties,
    read_resident_bytes,
    sees_host_ids,
)

# The measures of a device, the innermost first.
GPU_MEASURES = ("allocated", "reserved", "used")
CPU_MEASURES = ("process", "available")

# Seconds between two attempts to open a failed driver, and two checks of the loaded libraries.
RETRY_SECONDS = 5.0
# These do not change while this process lives.
FINAL_TROUBLES = {"no binding", "no library"}


class Levels(NamedTuple):
    """One device's memory at a moment, in bytes by measure; None is not measured."""

    key: str
    name: str
    kind: str
    total_bytes: int | None
    held_bytes: dict[str, int | None]


def read_levels(balance: Balance) -> Levels:
    """The levels in a balance that are sampled over time."""
    mine = balance.this_process
    if balance.kind == "cpu":
        held = dict(zip(CPU_MEASURES, (mine.used_bytes, balance.free_bytes), strict=True))
        return Levels("cpu", "cpu", "cpu", balance.total_bytes, held)
    reserved = None
    if mine.allocated_bytes is not None and mine.cached_bytes is not None:
        reserved = mine.allocated_bytes + mine.cached_bytes
    counts: tuple[int | None, ...] = (mine.allocated_bytes, reserved, balance.used_bytes)
    if balance.trouble:
        counts = (None, None, None)  # torch's counters of a lost GPU are out of date
    name = name_device(balance)
    # Torch's UUIDs have no prefix, and torch still lists a GPU that NVML has lost.
    key = strip_kind(balance.uuid or name)
    held = dict(zip(GPU_MEASURES, counts, strict=True))
    return Levels(key, name, "gpu", balance.total_bytes, held)


class LevelReader:
    """Reads every device on each call, without importing torch or starting CUDA.

    ``processes`` separates this process from others on a GPU, at the cost of one more query per
    GPU.
    """

    def __init__(
        self,
        *,
        processes: bool = False,
        binding: Any = None,
        root: Path = Path("/"),
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._processes = processes
        self._binding = binding
        self._root = root
        self._clock = clock
        self._machine: MachineMemory | None = None
        self.forget()

    def forget(self) -> None:
        """Drops the driver without closing it: in a forked child, it belongs to the parent."""
        self._gate: Gate | None = None
        self._answer = MemoryAnswer()
        self._asked_at: float | None = None
        self._uses_cuda: bool | None = None
        self._looked_at: float | None = None
        self._torch: Any = None
        self._gpus: dict[int, tuple[str, str | None, bool]] = {}
        self._known: dict[int, list[Balance]] = {}

    def close(self) -> None:
        """Closes NVML; the next reading opens it again."""
        self._asked_at = None
        self._close_gate()

    def read(self) -> Snapshot:
        """The balance of every device now, GPUs first; CPU tensors are not counted."""
        allocators = self._read_allocators()
        answer = self._ask_driver()
        observer = Observer(
            process_id=os.getpid(),
            host_ids=sees_host_ids() if self._processes else False,
            uses_cuda=self._look_for_cuda(bool(allocators)) if self._processes else None,
            resident_bytes=read_resident_bytes(),
        )
        return self._name_lost(join_memory(answer, allocators, self._read_machine(), observer))

    def _read_machine(self) -> MachineMemory:
        if self._machine is None:
            self._machine = read_machine_memory(self._root)
        limited = self._machine.limit_bytes is not None
        return self._machine._replace(free_bytes=read_free_bytes(self._root, limited=limited))

    def _ask_driver(self) -> MemoryAnswer:
        if self._gate is None and not self._may_ask():
            return self._answer
        try:
            if self._gate is None:
                self._asked_at = self._clock()
                self._gate = open_gate(self._binding)
            self._answer = ask_gpu_memory(self._gate, processes=self._processes)
        except NvmlError as error:
            self._answer = MemoryAnswer(trouble=error.trouble)
        if self._answer.trouble:
            self._close_gate()  # a reloaded driver answers only after NVML is opened again
        return self._answer

    def _close_gate(self) -> None:
        if self._gate is not None:
            self._gate.close()
            self._gate = None

    def _may_ask(self) -> bool:
        trouble = self._answer.trouble
        if trouble is not None and trouble.kind in FINAL_TROUBLES:
            return False
        return self._asked_at is None or self._clock() - self._asked_at >= RETRY_SECONDS

    def _look_for_cuda(self, started: bool) -> bool | None:
        if started or self._uses_cuda:
            self._uses_cuda = True
        elif self._looked_at is None or self._clock() - self._looked_at >= RETRY_SECONDS:
            self._looked_at = self._clock()
            self._uses_cuda = may_use_cuda()
        return self._uses_cuda

    def _read_allocators(self) -> tuple[AllocatorFacts, ...]:
        torch = find_started_torch()
        if torch is None:
            return ()
        if torch is not self._torch:
            self._gpus = read_properties(torch)
            self._torch = torch
        return tuple(
            AllocatorFacts(
                f"cuda:{index}", uuid, name, *count_allocated(torch.cuda, index), unified
            )
            for index, (name, uuid, unified) in self._gpus.items()
        )

    def _name_lost(self, snapshot: Snapshot) -> Snapshot:
        """The snapshot with the earlier names of GPUs that no longer report their UUID."""
        known: dict[int, list[Balance]] = {}
        balances = []
        for balance in snapshot.balances:
            before = self._known.get(-1 if balance.nvml_index is None else balance.nvml_index, [])
            # With several MIG instances at this index, it is not known which one is lost.
            if not balance.uuid and len(before) == 1:
                uuid, torch_name = before[0].uuid, before[0].torch_name
                balance = balance._replace(uuid=uuid, torch_name=torch_name)  # noqa: PLW2901
            if balance.nvml_index is not None:
                known.setdefault(balance.nvml_index, []).append(balance)
            balances.append(balance)
        self._known |= known
        return snapshot._replace(balances=tuple(balances))
